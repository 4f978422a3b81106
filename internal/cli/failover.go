package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/handoff"
	"multihomed/internal/orders"
	"multihomed/internal/status/socket"
	"multihomed/internal/unitfile"
)

const failoverHelp = `Try failover, or make it forget. multihomectl status shows which uplinks work; [failover]
in multihomed.toml(5) configures what is sent to find out, and what moves.`

const testHelp = `Let an uplink count as dead for 30 seconds, to see what happens when it dies: unbound
traffic moves to another uplink, and back. It counts as dead in each address family in
which another uplink works; if there is none, the command refuses. It returns when the
traffic has moved, and prints where to. To end the test early: multihomectl failover reset.

A link is named by its interface, or by the name of its profile. It needs a running
daemon, and root or the permission of polkit.`

const resetHelp = `Forget the history of an uplink: its deaths, who ever answered on it, and a running test. A
dead link counts as not known then, and its traffic returns at once, until it is found
dead again. Use it when a link was repaired and should not have to prove itself first.

A link is named by its interface, or by the name of its profile. It needs a running
daemon, and root or the permission of polkit.`

func (a *app) failover() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "failover",
		Short:   "try failover, or make it forget the past of a link",
		Long:    failoverHelp,
		Example: "  multihomectl failover test wan0\n  multihomectl failover reset wan0",
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "test LINK",
		Short:             "let an uplink count as dead for 30 seconds",
		Long:              testHelp,
		Example:           "  multihomectl failover test wan0",
		Args:              oneLink,
		ValidArgsFunction: a.completeUplinks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.order(cmd.Context(), handoff.TestFailover, args[0])
		},
	}, &cobra.Command{
		Use:               "reset LINK",
		Short:             "forget the deaths of an uplink, and end its test",
		Long:              resetHelp,
		Example:           "  multihomectl failover reset wan0",
		Args:              oneLink,
		ValidArgsFunction: a.completeUplinks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.order(cmd.Context(), handoff.ResetFailover, args[0])
		},
	})
	return cmd
}

func oneLink(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return usageError(cmd, "%s takes one uplink, and got %d", cmd.CommandPath(), len(args))
}

// completeUplinks offers the uplinks that are watched.
func (a *app) completeUplinks(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := askDaemon(cmd.Context(), a.find(cmd.Context()).Config, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return orders.UplinkNames(*s), cobra.ShellCompDirectiveNoFileComp
}

// seenTime bounds the wait for what an order does, and patientTime each answer in it.
const seenTime = 2 * time.Second

// order has the daemon carry out an order about one uplink, and says what came of it.
func (a *app) order(ctx context.Context, order handoff.Order, word string) error {
	method := "FailoverTest"
	if order == handoff.ResetFailover {
		method = "FailoverReset"
	}
	return a.carryOut(ctx, a.load(ctx), order, word, func() (bool, error) {
		return a.delegated(ctx, "failover "+string(order), []string{word}, method, word)
	})
}

// carryOut is order with the check of the rights. That comes last: who has none learns of a wrong
// word without them.
func (a *app) carryOut(ctx context.Context, cfg config.Config, order handoff.Order, word string, delegated func() (bool, error)) error {
	before, err := askPatiently(ctx, cfg)
	if errors.Is(err, fs.ErrPermission) {
		if done, err := delegated(); done {
			return err
		}
	}
	if err != nil {
		return &exitError{exitProblem, a.unanswered(err)}
	}
	name, err := orders.Uplink(*before, word)
	if err != nil {
		return a.ordered(err)
	}
	if done, err := delegated(); done {
		return err
	}
	err = handoff.Command(ctx, cfg.RuntimeDir, handoff.Message{Caller: "multihomectl", Action: "failover " + string(order), Interface: escape.Original(name), Failover: order})
	if refusal, is := errors.AsType[*handoff.RefusedError](err); is {
		err = orders.Refused(*before, order, name, refusal)
	} else if errors.Is(err, handoff.ErrNobody) {
		err = a.unanswered(socket.ErrNobody)
	}
	if err != nil {
		return &exitError{exitProblem, err}
	}
	after, err := seen(ctx, cfg, order, name)
	if err != nil {
		return &exitError{exitProblem, fmt.Errorf("the order was carried out, and the status could not be read: %w", a.unanswered(err))}
	}
	_, err = fmt.Fprintln(a.Out, orders.SentenceOfOrder(*after, order, name))
	return err
}

// ordered gives an error of an order its exit status.
func (a *app) ordered(err error) error {
	if _, is := errors.AsType[*orders.WordError](err); is {
		return &exitError{exitUsage, err}
	}
	return &exitError{exitProblem, err}
}

// startCommand starts the service.
func (a *app) startCommand() string {
	if unitfile.Read(a.Root, unitfile.Service).Unwanted() {
		return unitfile.Start(a.Root)
	}
	return "systemctl start multihomed"
}

// unanswered says what to do with a daemon that does not answer.
func (a *app) unanswered(err error) error {
	switch {
	case errors.Is(err, socket.ErrNobody):
		return fmt.Errorf("multihomed is not running, so no link is watched; to fix: %s", a.startCommand())
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("multihomed does not answer within %v; to fix: %s", patientTime, unitfile.Restart)
	default:
		return err
	}
}

// seen waits until the status shows what an order did; it returns the last status in any case.
func seen(ctx context.Context, cfg config.Config, order handoff.Order, name string) (*Status, error) {
	waiting, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		s, err := askPatiently(ctx, cfg)
		if err != nil || orders.IsSeen(*s, order, name) {
			return s, err
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			return s, nil
		}
	}
}
