package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"multihomed/dispatcher"
	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/event"
	"multihomed/internal/handoff"
	"multihomed/internal/handoff/note"
	"multihomed/internal/journal"
	"multihomed/internal/standin"
)

const dispatcherHelp = `usage: multihomed-dispatcher INTERFACE ACTION   called by NetworkManager
       multihomed-dispatcher CALLER             called by the hooks of ifupdown, dhclient, dhcpcd or udev
       multihomed-dispatcher --help | --version

It is a hook: its environment says what happened, and it tells the daemon. If the daemon
does not run, it repairs the routing itself, unless multihomed.service is disabled or
masked, or multihomed is switched off. See multihomed-dispatcher(8).
`

// runDispatcher is called when something happens to an interface: by NetworkManager's
// dispatcher, by ifupdown, by the scripts of DHCP clients and by udev. It tells the
// daemon, and without a daemon it repairs the routing itself.
func runDispatcher(c call) int {
	args, stderr := c.args, os.Stderr
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-version") {
		fmt.Println("multihomed-dispatcher", version)
		return 0
	}
	if len(args) == 1 && slices.Contains([]string{"--help", "-help", "-h"}, args[0]) {
		fmt.Print(dispatcherHelp)
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	level := new(slog.LevelVar)
	options := daemon.Options{ConfigPath: config.DefaultPath, Version: version, Level: level}
	if standin.Is(args) {
		err := standin.Run(ctx, level, func(ctx context.Context, log *slog.Logger, m handoff.Message, done func()) error {
			options.Logger = log
			return daemon.Once(ctx, options, m, daemon.Linger, done)
		})
		if errors.Is(err, standin.ErrUsage) {
			return 2
		}
		return daemon.ExitStatus(err)
	}
	log := journal.New(stderr, level)
	options.Logger = log
	happened, err := dispatcher.Parse(args, dispatcher.ParseEnvironment(os.Environ()))
	if err != nil {
		fmt.Fprintf(stderr, "multihomed-dispatcher: %v\n", err)
		return 2
	}
	for _, name := range happened.Odd {
		log.LogAttrs(ctx, slog.LevelWarn, "variable ignored, because it makes no sense", slog.String("caller", happened.Caller), slog.String("variable", name))
	}
	if happened.Effect == dispatcher.Nothing {
		return 0
	}
	err = deal(ctx, options, happened)
	if ended, is := errors.AsType[*standin.EndedError](err); is {
		return ended.Status // It has logged why: one line for each call.
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelError, "event not handled", event.Is(event.Failed), slog.String("caller", happened.Caller), slog.String("action", happened.Action),
			slog.String("interface", happened.Interface), slog.String("error", err.Error()))
	}
	return daemon.ExitStatus(err)
}

// deal hands an event to the daemon, or starts a stand-in for it.
func deal(ctx context.Context, o daemon.Options, happened dispatcher.Event) error {
	// The daemon or the stand-in reports a bad file with which it works.
	cfg := config.FindHere(o.ConfigPath).Config
	o.Level.Set(cfg.LogLevel)
	// The message goes out even if the note fails: the kernel or NetworkManager may know as much.
	message, noting := note.Note(ctx, cfg.RuntimeDir, happened, time.Now())
	hung := func(pid int) {
		o.Logger.LogAttrs(ctx, slog.LevelError, "daemon killed because it did not acknowledge an event, standing in for it until it is back",
			event.Is(event.DaemonHung), slog.Int("pid", pid), slog.Duration("after", handoff.AckTimeout))
	}
	if err := handoff.Deliver(ctx, cfg.RuntimeDir, message, hung); !errors.Is(err, handoff.ErrNobody) {
		return errors.Join(noting, err)
	}
	// The daemon may have ended, or was killed: then the file counts.
	if now := config.FindHere(o.ConfigPath).Config; now.Switch() != cfg.Switch() {
		cfg = now
		message, noting = note.Note(ctx, cfg.RuntimeDir, happened, time.Now())
	}
	// The note is written all the same: the daemon reads it when it starts again.
	if why := daemon.KeptAway(cfg); why != "" {
		o.Logger.LogAttrs(ctx, slog.LevelDebug, "doing nothing", slog.String("reason", why))
		return errors.Join(noting, daemon.LetGo(ctx, cfg, o.Logger, why))
	}
	if fault := daemon.Find(ctx, o.ConfigPath).Fault; fault != nil && fault.Refused {
		return errors.Join(noting, fault)
	}
	if happened.Effect == dispatcher.Removed {
		// udev kills what its programs leave behind (udev(7), RUN).
		return errors.Join(noting, daemon.Once(ctx, o, message, 0, func() {}))
	}
	err := standin.Start(ctx, o.Logger, cfg, message)
	if _, is := errors.AsType[*standin.EndedError](err); is && noting != nil {
		return noting // The stand-in has logged its own error.
	}
	return errors.Join(noting, err)
}
