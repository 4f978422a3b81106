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
	"strings"
	"syscall"

	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/hangup"
	"multihomed/internal/journal"
	"multihomed/internal/suggest"
)

// runDaemon gives every link its own routing table and the rules that lead to it, so
// that all links of a host work at the same time.
func runDaemon(c call) int {
	stderr := os.Stderr
	flags := flag.NewFlagSet("multihomed", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", config.DefaultPath, "configuration `file`; it need not exist")
	check := flags.Bool("check", false, "check the configuration and exit: 0 if it is sound, 78 if not")
	reload := flags.Bool("reload", false, "with --check: check also whether the running daemon takes it without a restart")
	show := flags.Bool("version", false, "print the version and exit")
	err := flags.Parse(c.args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Println("usage: multihomed [--config FILE] [--check [--reload]] [--version]; see multihomed(8)")
		flags.VisitAll(func(f *flag.Flag) {
			name, text := flag.UnquoteUsage(f)
			if name != "" {
				text += fmt.Sprintf(" (default %s)", f.DefValue)
			}
			fmt.Printf("  --%-13s %s\n", strings.TrimSpace(f.Name+" "+strings.ToUpper(name)), text)
		})
		return 0
	case err != nil:
		text := err.Error()
		if name, unknown := strings.CutPrefix(text, "flag provided but not defined: -"); unknown {
			text = fmt.Sprintf("there is no flag --%s", escape.Text(name))
			if word := suggest.For(name, []string{"config", "check", "reload", "version", "help"}); word != "" {
				text += "; did you mean --" + word + "?"
			}
		}
		fmt.Fprintf(stderr, "multihomed: %s; see multihomed --help%s\n", text, c.hint)
		return daemon.ExitUsage
	case flags.NArg() > 0:
		text := fmt.Sprintf("multihomed takes no arguments, and got %q", flags.Arg(0))
		if suggest.For(flags.Arg(0), []string{"status", "flush", "config", "lease", "report"}) != "" {
			text += "; did you mean multihomectl " + flags.Arg(0) + "?"
		}
		fmt.Fprintf(stderr, "multihomed: %s; see multihomed --help%s\n", text, c.hint)
		return daemon.ExitUsage
	}
	if *show || *check {
		hangup.GiveBack()
	}
	if *show {
		fmt.Println("multihomed", version)
		return 0
	}
	switch {
	case *check && *reload:
		return checked(daemon.CheckReload(context.Background(), *path), stderr)
	case *check:
		_, err := config.Load(*path)
		return checked(err, stderr)
	case *reload:
		fmt.Fprintf(stderr, "multihomed: --reload goes with --check; to reload: systemctl reload multihomed; see multihomed --help%s\n", c.hint)
		return daemon.ExitUsage
	}

	level := new(slog.LevelVar)
	log := journal.New(stderr, level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err = daemon.Run(ctx, daemon.Options{ConfigPath: *path, Version: version, Logger: log, Level: level, Hangup: hangup.Taken()})
	if err != nil {
		text, fix, _ := strings.Cut(err.Error(), "; to fix: ")
		log.LogAttrs(ctx, slog.LevelError, "exiting on error", event.Is(event.Failed), slog.String("error", text), slog.String("fix", fix))
	}
	return daemon.ExitStatus(err)
}

// checked prints what is wrong with a configuration file. ExecReload= of the unit calls it,
// so that a file that the daemon refuses fails the reload.
func checked(err error, stderr io.Writer) int {
	if err != nil {
		// The level of the line for the journal (sd-daemon(3)).
		mark := ""
		if os.Getenv("JOURNAL_STREAM") != "" {
			mark = "<3>"
		}
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(stderr, mark+strings.TrimSuffix(line, "\n"))
		}
		return daemon.ExitConfiguration
	}
	return 0
}
