package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"multihomed/internal/daemon"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/journal"
	"multihomed/internal/prober"
)

const proberHelp = `usage: multihomed-prober [--socket PATH] | --help | --version

It sends probes for the daemon, which has no IP sockets, and needs no rights. systemd starts
it by multihomed-prober.socket. Elsewhere:

  --socket PATH  listen at PATH; started by root, it gives the socket to the owner of the
                 directory and becomes nobody

See multihomed-prober(8).
`

// runProber is the process that probes links for the daemon.
func runProber(c call) int {
	flags := flag.NewFlagSet("multihomed-prober", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", "", "listen at `path`")
	show := flags.Bool("version", false, "print the version and exit")
	err := flags.Parse(c.args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(proberHelp)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("it takes no argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "multihomed-prober: %s; see multihomed-prober --help\n", escape.Text(err.Error()))
		return daemon.ExitUsage
	}
	if *show {
		fmt.Println("multihomed-prober", version)
		return 0
	}
	log := journal.New(os.Stderr, slog.LevelInfo)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err = prober.Run(ctx, prober.Options{Socket: *socket, Logger: log})
	if err != nil {
		log.LogAttrs(ctx, slog.LevelError, "exiting on error", event.Is(event.Failed), slog.String("error", err.Error()))
	}
	if errors.Is(err, prober.ErrNoSocket) {
		return daemon.ExitUsage
	}
	return daemon.ExitStatus(err)
}
