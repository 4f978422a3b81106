// Multihomed-dispatcher is called by NetworkManager's dispatcher when something
// happens to a device. It tells the daemon, and where there is none it brings the
// host in order itself.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/daemon"
	"multihomed/cmd/internal/hook"
	"multihomed/dispatcher"
)

// version is set by the linker.
var version = "development"

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), os.Stderr))
}

func run(args, environ []string, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("multihomed-dispatcher", version)
		return 0
	}
	event, err := dispatcher.NetworkManager(args, dispatcher.ParseEnvironment(environ))
	if err != nil {
		fmt.Fprintf(stderr, "multihomed-dispatcher: %v; it is called by NetworkManager, see NetworkManager-dispatcher(8)\n", err)
		return 2
	}
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for _, odd := range event.Odd {
		log.LogAttrs(ctx, slog.LevelWarn, "a variable makes no sense", slog.String("variable", odd))
	}
	if event.Effect == dispatcher.Nothing {
		return 0
	}
	err = daemon.Once(ctx, daemon.Options{ConfigPath: config.DefaultPath, Version: version, Logger: log, Level: level},
		hook.Message{Caller: event.Caller, Action: event.Action, Interface: event.Interface})
	if err != nil {
		log.LogAttrs(ctx, slog.LevelError, "not in order", slog.String("action", event.Action), slog.String("interface", event.Interface), slog.String("error", err.Error()))
		return 1
	}
	return 0
}
