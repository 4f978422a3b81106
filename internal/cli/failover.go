package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/handoff"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/internal/unitfile"
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
	return a.carryOut(ctx, a.load(ctx), order, word, func() error { return a.may("failover "+string(order), []string{word}) })
}

// carryOut is order with the check of the rights. That comes last: who has none learns of a wrong
// word without them.
func (a *app) carryOut(ctx context.Context, cfg config.Config, order handoff.Order, word string, may func() error) error {
	before, err := askDaemon(ctx, cfg, false)
	if errors.Is(err, fs.ErrPermission) {
		if err := may(); err != nil {
			return err
		}
	}
	if err != nil {
		return &exitError{exitProblem, a.unanswered(err)}
	}
	name, err := uplink(*before, word)
	if err != nil {
		return err
	}
	if err := may(); err != nil {
		return err
	}
	err = handoff.Command(ctx, cfg.RuntimeDir, handoff.Message{Caller: "multihomectl", Action: "failover " + string(order), Interface: escape.Original(name), Failover: order})
	if refusal, is := errors.AsType[*handoff.RefusedError](err); is {
		err = refusedOrder(*before, order, name, refusal)
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
	_, err = fmt.Fprintln(a.Out, sentenceOfOrder(*after, order, name))
	return err
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
		return fmt.Errorf("multihomed does not answer within %v; to fix: %s", answerTime, unitfile.Restart)
	default:
		return err
	}
}

// refusedOrder says why the daemon refused an order, and what helps.
func refusedOrder(s Status, order handoff.Order, name string, refusal *handoff.RefusedError) error {
	if order != handoff.TestFailover || strings.Contains(refusal.Why, "to fix: ") {
		return fmt.Errorf("%s: %w", clean(name), refusal)
	}
	others, tested := false, ""
	for _, h := range s.Failover.Uplinks {
		if h.Interface == name {
			continue
		}
		others = true
		if h.Tested != nil {
			tested = h.Interface
		}
	}
	switch {
	case !others && len(s.OffLinks) > 0:
		return fmt.Errorf("%s is the only uplink with a default route, so nothing can take its traffic; to fix: multihomectl on %s", clean(name), shellWord(s.OffLinks[0].Interface))
	case !others:
		return fmt.Errorf("%s is the only uplink with a default route, so nothing can take its traffic; to fix: connect another one", clean(name))
	case tested != "":
		return fmt.Errorf("%s: %w: %s counts as dead by a test; to fix: multihomectl failover reset %s", clean(name), refusal, clean(tested), shellWord(tested))
	default:
		return fmt.Errorf("%s: %w; to fix: see why the others do not work, multihomectl status", clean(name), refusal)
	}
}

// uplink finds the uplink that a word names.
func uplink(s Status, word string) (string, error) {
	known := uplinkNames(s)
	names := strings.Join(known, ", ")
	isOff := slices.IndexFunc(s.OffLinks, func(l status.OffLink) bool {
		// Another profile may be active on its interface.
		return isNameOf(word, l.Interface) && !slices.Contains(known, l.Interface)
	})
	switch {
	case s.Off != nil:
		return "", &exitError{exitProblem, fmt.Errorf("multihomed is switched off%s, so no link is watched; to fix: multihomectl on", offText(s.Off))}
	case s.Failover == nil || !s.Failover.Enabled:
		return "", &exitError{exitProblem, errors.New("failover is switched off; to fix: set enabled = true in [failover] of the configuration, then: systemctl reload multihomed")}
	case isOff >= 0:
		l := s.OffLinks[isOff]
		return "", &exitError{exitProblem, fmt.Errorf("%s is switched off%s, so it is not watched; to fix: multihomectl on %s", clean(l.Interface), offText(&l.Off), shellWord(l.Interface))}
	case len(known) == 0:
		return "", &exitError{exitProblem, errors.New("no link has a default route, so none is watched; to fix: connect two that have one, see multihomectl status")}
	}
	f := filter(word)
	for _, l := range s.Links {
		isNamed := isNameOf(word, l.Interface) || isNameOf(word, l.Profile)
		switch {
		case isNamed && slices.Contains(known, l.Interface):
			return l.Interface, nil
		case isNamed:
			return "", &exitError{exitUsage, fmt.Errorf("%s is no uplink with a default route, so it is not watched; there are %s", l.Interface, names)}
		case f.link(l) && strings.ContainsAny(word, `*?[`):
			return "", &exitError{exitUsage, fmt.Errorf("%s is a pattern; name one uplink: %s", escape.Text(word), names)}
		}
	}
	for _, o := range s.Others {
		if isNameOf(word, o.Interface) {
			return "", &exitError{exitUsage, fmt.Errorf("%s is no link, so it is not watched (%s); there are %s", clean(o.Interface), clean(o.Why), names)}
		}
	}
	return "", &exitError{exitUsage, fmt.Errorf("there is no uplink %q%s; there are %s", escape.Text(word), meant(word, known), names)}
}

// isNameOf reports whether a word is a name, as it is or as it is shown.
func isNameOf(word, name string) bool {
	return name != "" && (word == name || word == escape.Original(name))
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
