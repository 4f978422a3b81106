package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"multihomed/internal/config"
	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/client"
	"multihomed/internal/escape"
	"multihomed/internal/lockfile"
	"multihomed/internal/orders"
	"multihomed/internal/rights"
	"multihomed/internal/status/socket"
)

// fetchDocument asks the daemon for the document of the status: on D-Bus if there is a bus and the
// daemon of this runtime directory is on it, else on its socket, which is there for hosts without a
// bus and for a bus that is dead.
func fetchDocument(ctx context.Context, cfg config.Config) (socket.Reply, error) {
	if document, err := describe(ctx, cfg); err == nil {
		return document, nil
	}
	return socket.Fetch(ctx, cfg.RuntimeDir)
}

// busTime bounds the answer on D-Bus: the rest of the patience is for the socket.
const busTime = answerTime / 2

func describe(ctx context.Context, cfg config.Config) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	c, err := openBus(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Describe(ctx)
}

// openBus connects to the daemon that works here: in the directory that the configuration names, and in the
// network namespace of this process.
func openBus(ctx context.Context, cfg config.Config) (*client.Client, error) {
	c, err := client.Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.Works(ctx, dbusapi.Place{RuntimeDirectory: cfg.RuntimeDir, NetworkNamespace: lockfile.NamespaceCookie()}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// delegated has the daemon carry out a command of a user who may not change routing: polkit then decides,
// and may ask for a password. It is done unless the user has the right.
func (a *app) delegated(ctx context.Context, command string, words []string, method string, args ...any) (isDone bool, err error) {
	refused := a.may(command, words)
	if refused == nil {
		return false, nil
	}
	if able, err := rights.NetAdmin(); err != nil || able {
		return true, refused
	}
	text, err := a.orderByBus(ctx, method, args...)
	refusal, isRefused := errors.AsType[*dbusapi.Error](err)
	switch {
	case errors.Is(err, client.ErrNobody):
		return true, refused
	case isRefused && (refusal.Name == dbusapi.AccessDenied || refusal.Name == dbusapi.InteractionNeeded):
		// What fixes it is said once, with the command.
		why, _, _ := strings.Cut(refusal.Text, "; to fix: ")
		return true, &exitError{exitProblem, fmt.Errorf("%s; %w", escape.Text(why), refused)}
	case err != nil:
		return true, orderFailed(err)
	}
	_, err = fmt.Fprintln(a.Out, text)
	return true, err
}

// orderFailed gives the error of an order its exit status.
func orderFailed(err error) error {
	if refusal, is := errors.AsType[*dbusapi.Error](err); is && (refusal.Name == dbusapi.InvalidArgs || refusal.Name == dbusapi.NoSuchLink) {
		return &exitError{exitUsage, err}
	}
	return &exitError{exitProblem, err}
}

// orderTime bounds an order, with the time that a user takes for a password.
const orderTime = 5 * time.Minute

// orderByBus has the daemon do something.
func (a *app) orderByBus(ctx context.Context, method string, args ...any) (string, error) {
	cfg := a.load(ctx)
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	c, err := openBus(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if a.isTerminal() {
		defer startAgent(ctx)()
	}
	return c.Order(ctx, method, args...)
}

func (a *app) isTerminal() bool {
	f, is := a.In.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

const reloadHelp = `Have the daemon read its configuration again, and return when the new one is active. If it
cannot be used, the present one stays active, and the exit status is 1. It needs a
running daemon, and the right to do so: polkit may ask for a password.`

func (a *app) reload() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "read the configuration again", Long: reloadHelp, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.tellDaemon(cmd.Context(), "the configuration is active", "systemctl reload multihomed", "Reload")
		},
	}
}

const reconcileHelp = `Have the daemon read the kernel again, compare it with the plan and repair what differs. It
does so by itself after every change; this is for when you doubt it. It returns when done.
It needs a running daemon, and the right to do so: polkit may ask for a password.`

func (a *app) reconcile() *cobra.Command {
	return &cobra.Command{
		Use: "reconcile", Short: "compare the kernel with the plan now", Long: reconcileHelp, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.tellDaemon(cmd.Context(), "the kernel was read again and repaired; to see what is not as planned: multihomectl status", "systemctl restart multihomed", "Reconcile")
		},
	}
}

const logLevelHelp = `Change what the daemon logs, until its configuration is read again: debug, info, warn or
error. To change it for good, set log_level in multihomed.toml(5). It needs a running
daemon, and the right to do so: polkit may ask for a password.`

func (a *app) logLevel() *cobra.Command {
	return &cobra.Command{
		Use: "log-level LEVEL", Short: "change what the daemon logs", Long: logLevelHelp, Example: "  multihomectl log-level debug",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(cmd, "%s takes one level, and got %d", cmd.CommandPath(), len(args))
			}
			if _, err := orders.Level(args[0]); err != nil {
				return usageError(cmd, "%v", err)
			}
			return nil
		},
		ValidArgsFunction: words(config.LevelWords()...),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tellDaemon(cmd.Context(), "the log level is "+args[0]+" until the configuration is read again", "set log_level in "+a.configPath+", then: systemctl reload multihomed", "SetLogLevel", args[0])
		},
	}
}

// tellDaemon has the daemon do what only it can do. Otherwise is what helps without a bus.
func (a *app) tellDaemon(ctx context.Context, done, otherwise, method string, args ...any) error {
	_, err := a.orderByBus(ctx, method, args...)
	switch refusal, isRefused := errors.AsType[*dbusapi.Error](err); {
	case errors.Is(err, client.ErrNobody):
		if _, asked := socket.Fetch(ctx, a.find(ctx).RuntimeDir); errors.Is(asked, socket.ErrNobody) {
			return &exitError{exitProblem, fmt.Errorf("multihomed is not running; to fix: %s", a.startCommand())}
		}
		return &exitError{exitProblem, fmt.Errorf("multihomed is not on the system bus; to fix: %s", otherwise)}
	case isRefused && refusal.Name == dbusapi.InvalidArgs:
		return &exitError{exitUsage, err}
	case err != nil:
		return &exitError{exitProblem, err}
	}
	_, err = fmt.Fprintln(a.Out, done)
	return err
}
