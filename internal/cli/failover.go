package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/handoff"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
)

const failoverHelp = `Try failover, or make it forget. multihomectl status shows which uplinks work; [failover]
in multihomed.toml(5) configures what is sent to find out, and what moves.`

const testHelp = `Let an uplink count as dead for 30 seconds, to see what happens when it dies: unbound
traffic moves to another uplink, and back. It counts as dead in each address family in
which another uplink works; if there is none, the command refuses. It returns when the
traffic has moved, and prints where to. To end the test early: multihomectl failover reset.

A link is named by its interface, or by the name of its profile. It needs root, and a
running daemon.`

const resetHelp = `Forget the history of an uplink: its deaths, who ever answered on it, and a running test. A
dead link counts as not known then, and its traffic returns at once, until it is found
dead again. Use it when a link was repaired and should not have to prove itself first.

A link is named by its interface, or by the name of its profile. It needs root, and a
running daemon.`

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
	return uplinkNames(*s), cobra.ShellCompDirectiveNoFileComp
}

// uplinkNames are the uplinks of which failover knows, in the order of people.
func uplinkNames(s Status) []string {
	var out []string
	if s.Failover != nil {
		for _, h := range s.Failover.Uplinks {
			out = append(out, h.Interface)
		}
	}
	slices.SortFunc(out, status.CompareNames)
	return slices.Compact(out)
}

// seenTime bounds the wait for what an order does.
const seenTime = 2 * time.Second

// order has the daemon carry out an order about one uplink, and says what came of it.
func (a *app) order(ctx context.Context, order handoff.Order, word string) error {
	if err := a.may("failover "+string(order), []string{word}); err != nil {
		return err
	}
	return a.carryOut(ctx, a.load(ctx), order, word)
}

// carryOut is order for who has the rights.
func (a *app) carryOut(ctx context.Context, cfg config.Config, order handoff.Order, word string) error {
	before, err := askDaemon(ctx, cfg, false)
	switch {
	case errors.Is(err, socket.ErrNobody):
		return &exitError{exitProblem, errors.New("multihomed is not running, so no link is watched; to fix: systemctl start multihomed")}
	case err != nil:
		return &exitError{exitProblem, err}
	}
	name, err := uplink(*before, word)
	if err != nil {
		return err
	}
	err = handoff.Command(ctx, cfg.RuntimeDir, handoff.Message{Caller: "multihomectl", Action: "failover " + string(order), Interface: escape.Original(name), Failover: order})
	if refusal, is := errors.AsType[*handoff.RefusedError](err); is {
		err = fmt.Errorf("%s: %w", name, refusal)
		if !strings.Contains(refusal.Why, "to fix: ") {
			err = fmt.Errorf("%w; to fix: see why the others do not work, multihomectl status", err)
		}
	} else if errors.Is(err, handoff.ErrNobody) {
		err = fmt.Errorf("%w; to fix: systemctl start multihomed", err)
	}
	if err != nil {
		return &exitError{exitProblem, err}
	}
	after, err := seen(ctx, cfg, order, name)
	if err != nil {
		return &exitError{exitProblem, fmt.Errorf("the order was carried out, and the status could not be read: %w", err)}
	}
	_, err = fmt.Fprintln(a.Out, sentenceOfOrder(*after, order, name))
	return err
}

// uplink finds the uplink that a word names.
func uplink(s Status, word string) (string, error) {
	switch {
	case s.Failover == nil || !s.Failover.Enabled:
		return "", &exitError{exitProblem, errors.New("failover is switched off; to fix: set enabled = true in [failover] of the configuration, then: systemctl reload multihomed")}
	case len(s.Failover.Uplinks) == 0:
		return "", &exitError{exitProblem, errors.New("no link has a default route, so none is watched; see multihomectl status")}
	}
	known := uplinkNames(s)
	f := filter(word)
	for _, l := range s.Links {
		isNamed := word == l.Interface || word == escape.Original(l.Interface) || l.Profile != "" && (word == l.Profile || word == escape.Original(l.Profile))
		switch {
		case isNamed && slices.Contains(known, l.Interface):
			return l.Interface, nil
		case isNamed:
			return "", &exitError{exitUsage, fmt.Errorf("%s is no uplink with a default route, so it is not watched; there are %s", l.Interface, strings.Join(known, ", "))}
		case f.link(l) && strings.ContainsAny(word, `*?[`):
			return "", &exitError{exitUsage, fmt.Errorf("%s is a pattern; name one uplink: %s", escape.Text(word), strings.Join(known, ", "))}
		}
	}
	return "", &exitError{exitUsage, fmt.Errorf("there is no uplink %s%s; there are %s", escape.Name(word), meant(word, known), strings.Join(known, ", "))}
}

// seen waits until the status shows what an order did; it returns the last status in any case.
func seen(ctx context.Context, cfg config.Config, order handoff.Order, name string) (*Status, error) {
	waiting, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		s, err := askDaemon(ctx, cfg, false)
		if err != nil || isSeen(*s, order, name) {
			return s, err
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			return s, nil
		}
	}
}

// isSeen reports whether a status shows what an order did, the way of unbound traffic included.
func isSeen(s Status, order handoff.Order, name string) bool {
	tested, used := false, false
	for _, h := range s.Failover.Named(name) {
		tested = tested || h.Tested != nil
		used = used || h.Tested != nil && s.Unbound[h.Family].Interface == name
	}
	if order == handoff.TestFailover {
		return tested && !used
	}
	return !tested
}

// sentenceOfOrder says what an order did.
func sentenceOfOrder(s Status, order handoff.Order, name string) string {
	var parts []string
	until := ""
	for _, h := range s.Failover.Named(name) {
		way := clean(s.Unbound[h.Family].Interface)
		switch {
		case order == handoff.ResetFailover:
			word, _ := healthWord(h)
			parts = append(parts, familyName(h.Family)+" "+word)
		case h.Tested != nil:
			until = h.Tested.Local().Format(time.TimeOnly)
			parts = append(parts, "unbound "+familyName(h.Family)+" leaves by "+way)
		default:
			parts = append(parts, familyName(h.Family)+" stays, because no other uplink works")
		}
	}
	name = clean(name)
	text := strings.Join(parts, ", ")
	switch {
	case order == handoff.ResetFailover:
		return fmt.Sprintf("the history of %s is forgotten: %s", name, text)
	case until == "":
		return fmt.Sprintf("the test of %s has begun: multihomectl status shows it", name)
	default:
		return fmt.Sprintf("%s counts as dead until %s: %s; to end it now: multihomectl failover reset %s", name, until, text, name)
	}
}
