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
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"multihomed/internal/binder"
	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/holding/client"
	"multihomed/internal/holding/wire"
	"multihomed/internal/journal"
)

const binderHelp = `usage: multihomed-binder [--socket PATH] [--daemon PATH] | --help | --version

It binds cgroups to links for multihomectl run, and has the rights for that, which neither
its callers nor the daemon have. systemd starts it by multihomed-binder.socket. Elsewhere:

  --socket PATH  listen at PATH, and do not end when nobody asks
  --daemon PATH  ask the daemon at PATH; by default at bindings in its runtime directory

See multihomed-binder(8).
`

// runBinder is the process that binds cgroups to links.
func runBinder(c call) int {
	flags := flag.NewFlagSet("multihomed-binder", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", "", "listen at `path`")
	at := flags.String("daemon", "", "ask the daemon at `path`")
	show := flags.Bool("version", false, "print the version and exit")
	err := flags.Parse(c.args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(binderHelp)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("it takes no argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "multihomed-binder: %s; see multihomed-binder --help\n", escape.Text(err.Error()))
		return daemon.ExitUsage
	}
	if *show {
		fmt.Println("multihomed-binder", version)
		return 0
	}
	log := journal.New(os.Stderr, slog.LevelInfo)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if *at == "" {
		// The daemon reports a bad file.
		*at = filepath.Join(config.Find(config.DefaultPath).RuntimeDir, wire.Name)
	}
	trusted := usersOf(daemonName)
	o := binder.Options{Socket: *socket, Bindings: client.Daemon{Path: *at, Trusted: trusted}, Trusted: trusted, Logger: log}
	if *socket != "" {
		o.Idle = forever // Nobody would start it again.
	}
	err = binder.Run(ctx, o)
	if err != nil {
		log.LogAttrs(ctx, slog.LevelError, "exiting on error", event.Is(event.Failed), slog.String("error", err.Error()))
	}
	if errors.Is(err, binder.ErrNoSocket) {
		return daemon.ExitUsage
	}
	return daemon.ExitStatus(err)
}

// forever is longer than any host runs.
const forever = 1<<63 - 1

// usersOf is the number of a user, none if there is none.
func usersOf(name string) []uint32 {
	u, err := user.Lookup(name)
	if err != nil {
		return nil
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil
	}
	return []uint32{uint32(n)}
}
