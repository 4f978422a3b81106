// Tool is what the test runs inside of a machine:
//
//	tool keep SELECTOR...   binds "unit x.service" and so on, and prints the states when they change
//	tool mark               prints the mark of its first socket, and of a later one that has one, and waits
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/cgroupbpf"
	"multihomed/internal/cgroups"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Println("error:", err)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "mark":
		return mark(ctx)
	case len(args) > 1 && args[0] == "keep":
		return keep(ctx, args[1:])
	}
	return errors.New("usage: tool keep SELECTOR... | tool mark")
}

func mark(ctx context.Context) error {
	first := true
	// As fast as it can: the first one may come before the program.
	for ctx.Err() == nil {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
		if first {
			fmt.Printf("first %#x\n", uint32(mark))
		}
		if first = false; mark != 0 {
			fmt.Printf("later %#x\n", uint32(mark))
			<-ctx.Done()
		}
	}
	return nil
}

func keep(ctx context.Context, texts []string) error {
	kinds := map[string]func(string) (cgroups.Selector, error){"unit": cgroups.Unit, "slice": cgroups.Slice, "cgroup": cgroups.Path}
	binds := make([]cgroups.Bind, 0, len(texts))
	for _, text := range texts {
		kind, name, _ := strings.Cut(text, " ")
		s, err := kinds[kind](name)
		if err != nil {
			return err
		}
		binds = append(binds, cgroups.Bind{Selector: s, Link: "wan1"})
	}
	k := cgroups.NewKeeper(cgroups.Options{
		Logger: slog.New(slog.NewTextHandler(os.Stdout, nil)),
		Attach: func(_ context.Context, _ string, cgroup *os.File) error {
			return cgroupbpf.Attach(cgroup, cgroupbpf.Mark{Value: 0x82000000, Mask: 0xff000000}, nil)
		},
	})
	k.Want(binds...)
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	for {
		select {
		case err := <-ended:
			return err
		case <-k.Changed():
		}
		now := time.Now().Format(time.StampMicro)
		for _, s := range k.States() {
			fmt.Println(now, s.Sentence())
		}
	}
}
