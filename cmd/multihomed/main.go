// Multihomed gives every link of NetworkManager its own routing table and the
// rules that lead to it, so that all links of a host work at the same time.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/daemon"
	"multihomed/internal/event"
	"multihomed/internal/journal"
)

// version is set by the linker.
var version = "development"

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

func run(args []string, stderr *os.File) int {
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
	log := journal.New(stderr, level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := daemon.Run(ctx, daemon.Options{ConfigPath: *path, Version: version, Logger: log, Level: level})
	if err != nil {
		text, fix, _ := strings.Cut(err.Error(), "; to fix: ")
		log.LogAttrs(ctx, slog.LevelError, "exiting on error", event.Is(event.Failed), slog.String("error", text), slog.String("fix", fix))
		return 1
	}
	return 0
}
