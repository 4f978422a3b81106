// Multihomed gives every link of NetworkManager its own routing table and the
// rules that lead to it, so that all links of a host work at the same time.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/daemon"
)

// version is set by the linker.
var version = "development"

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("multihomed", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", config.DefaultPath, "configuration `file`; it need not exist")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "multihomed: unexpected argument %q; see multihomed -help\n", flags.Arg(0))
		return 2
	}
	if *show {
		fmt.Println("multihomed", version)
		return 0
	}

	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := daemon.Run(ctx, daemon.Options{ConfigPath: *path, Version: version, Logger: log, Level: level})
	if err != nil {
		log.Error("multihomed ends", slog.String("error", err.Error()))
		return 1
	}
	return 0
}

// withoutTime leaves the time to the journal where that reads our stderr.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.Attr{}
	}
	return a
}
