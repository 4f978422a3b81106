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
	check := flags.Bool("check", false, "check the configuration and exit: 0 if it is sound, 78 if not")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return daemon.ExitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "multihomed: unexpected argument %q; see multihomed -help\n", flags.Arg(0))
		return daemon.ExitUsage
	}
	if *show {
		fmt.Println("multihomed", version)
		return 0
	}
	if *check {
		return checked(*path, stderr)
	}

	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := daemon.Run(ctx, daemon.Options{ConfigPath: *path, Version: version, Logger: log, Level: level})
	if err != nil {
		log.Error("multihomed ends", slog.String("error", err.Error()))
	}
	return daemon.ExitStatus(err)
}

// checked says what is wrong with a configuration file. systemd calls it before a
// reload (ExecReload=), which fails with it.
func checked(path string, stderr io.Writer) int {
	if _, err := config.Load(path); err != nil {
		fmt.Fprintln(stderr, err)
		return daemon.ExitConfiguration
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
