package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"multihomed/allocator"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/hooked"
	"multihomed/cmd/internal/lockfile"
	"multihomed/cmd/internal/moved"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

const flushHelp = `Remove every rule and route of multihomed from the kernel, and take its mark (an
interface group) from the uplinks. What is not ours stays, also in our tables. After
it, all traffic follows the main table as it would without multihomed; routes that
were moved out of it are put back.

The daemon must not be running: it would put everything back. The leases stay, so
that every link gets the same table again. Flushing twice does nothing more.

On a terminal it asks first, unless --yes is given; in a script it asks nothing.`

func (a *app) flush() *cobra.Command {
	var yes, verbose bool
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "remove every rule and route of multihomed",
		Long:  flushHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := a.load()
			return a.remove(cmd.Context(), cfg, yes, verbose)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print every object that is removed")
	return cmd
}

func (a *app) remove(ctx context.Context, cfg config.Config, yes, verbose bool) error {
	if able, err := netAdmin(); err != nil {
		return &exitError{exitProblem, err}
	} else if !able {
		return &exitError{exitProblem, errors.New("flush needs the right to change routing (CAP_NET_ADMIN); to fix: sudo multihomectl flush")}
	}
	lock, err := takeLock(ctx, cfg)
	if err != nil {
		return &exitError{exitProblem, err}
	}
	defer lock.Close()

	hooks, errs := hooked.Open(cfg.RuntimeDir)
	for _, err := range errs {
		fmt.Fprintln(a.Err, err)
	}
	f, err := openFlusher(ctx, cfg, hooks)
	if err != nil {
		return &exitError{exitProblem, err}
	}
	defer f.close()
	planned := f.left()
	if len(planned) == 0 && len(f.moved) == 0 {
		_, err := fmt.Fprintln(a.Out, "nothing of multihomed stands")
		return err
	}
	if !yes && !a.confirmed(planned) {
		return &exitError{exitProblem, errors.New("nothing was removed")}
	}
	return a.report(f.run(ctx), f, cfg, verbose)
}

// netAdmin reports whether this process may change routing.
func netAdmin() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("reading the rights of this process: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0, nil
}

// patience is what a dispatcher gets to make way.
const patience = 2 * time.Second

// takeLock takes the place of the daemon.
func takeLock(ctx context.Context, cfg config.Config) (*lockfile.Lock, error) {
	// After a boot without the daemon there is no directory yet.
	if err := os.MkdirAll(cfg.RuntimeDir, 0o755); err != nil { //nolint:gosec // status.json is for everybody
		return nil, fmt.Errorf("creating the runtime directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lock, err := hook.TakeLock(ctx, cfg.RuntimeDir)
	held, ok := errors.AsType[*lockfile.HeldError](err)
	if !ok {
		return lock, err
	}
	who := "multihomed is running"
	if held.PID != 0 {
		who += " (process " + strconv.Itoa(held.PID) + ")"
	}
	return nil, errors.New(who + "; to fix: systemctl stop multihomed, then do this again")
}

// A flusher removes what is ours.
type flusher struct {
	mirror *kernel.Mirror
	writer *kernel.Writer
	nobody *routing.Planner
	// moved are routes that belong into main.
	moved   []hooked.Config
	runtime string
}

func openFlusher(ctx context.Context, cfg config.Config, hooks *hooked.Store) (*flusher, error) {
	mirror, err := kernel.Open(kernel.Config{
		Tables: cfg.Tables,
		// Routes of main decide nothing here; there are some of ours only on links
		// that hooks made.
		Interest: func(name string) bool { return slices.Contains(hooks.Interfaces(), name) },
	})
	if err != nil {
		return nil, err
	}
	writer, err := mirror.OpenWriter()
	if err == nil {
		err = mirror.Sync(ctx)
	}
	f := &flusher{mirror: mirror, writer: writer, nobody: routing.NewPlanner(cfg.RoutingPolicy()), moved: hooks.Moved(), runtime: cfg.RuntimeDir}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *flusher) close() {
	// Nothing is left to be written, and the process ends.
	if f.writer != nil {
		_ = f.writer.Close()
	}
	_ = f.mirror.Close()
}

// left is what stands: the way from there to a plan without links.
func (f *flusher) left() []routing.Op {
	var ops []routing.Op
	f.mirror.View(func(k *kernel.State) {
		ops = routing.Diff(f.nobody, k, routing.Everything(f.nobody, k), func(routing.Op) bool { return true })
	})
	return ops
}

// rounds is how often what somebody else adds meanwhile is removed too.
const rounds = 3

// outcome is what a flush did.
type outcome struct {
	removed []string
	rules   int
	routes  int
	groups  int
	// failed are errors of the last round.
	failed []error
	err    error
}

func (f *flusher) run(ctx context.Context) outcome {
	var out outcome
	// First, so that the host stays reachable.
	for _, c := range f.moved {
		if err := moved.PutBack(ctx, f.mirror, f.runtime, c); err != nil {
			out.err = fmt.Errorf("putting routes of %s back into main: %w", c.Interface, err)
			return out
		}
	}
	for range rounds {
		ops := f.left()
		if len(ops) == 0 {
			break
		}
		out.failed = nil
		errs := f.writer.Apply(ctx, ops)
		for i, op := range ops {
			if errs != nil && errs[i] != nil {
				out.failed = append(out.failed, errs[i])
				continue
			}
			out.add(op, f.text(op))
		}
		if out.err = f.mirror.Sync(ctx); out.err != nil {
			break
		}
	}
	return out
}

func (o *outcome) add(op routing.Op, text string) {
	o.removed = append(o.removed, text)
	switch op.Verb {
	case routing.DeleteRule:
		o.rules++
	case routing.DeleteRoute:
		o.routes++
	default:
		o.groups++
	}
}

// text is an operation in the words of iproute2.
func (f *flusher) text(op routing.Op) string {
	name := func(index int) string {
		out := "if" + strconv.Itoa(index)
		f.mirror.View(func(k *kernel.State) {
			if l, ok := k.Link(index); ok {
				out = l.Name
			}
		})
		return clean(out)
	}
	flag := func(family routing.Family) string {
		if family == routing.IPv6 {
			return "-6"
		}
		return "-4"
	}
	switch op.Verb {
	case routing.DeleteRule:
		return flag(op.Rule.Family) + " rule " + op.Rule.String()
	case routing.DeleteRoute:
		return flag(op.Route.Family) + " route " + op.Route.Text(name(op.Route.Device))
	default:
		return "link " + name(op.Index) + " group"
	}
}

// confirmed asks, if there is somebody to answer.
func (a *app) confirmed(planned []routing.Op) bool {
	_, in := descriptor(a.In)
	_, out := descriptor(a.Out)
	if !in || !out {
		return true
	}
	var would outcome
	for _, op := range planned {
		would.add(op, "")
	}
	fmt.Fprintf(a.Out, "Remove %s? All traffic then follows the main table. [y/N] ", would.summary())
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return err == nil && (answer == "y" || answer == "yes")
}

func (o outcome) summary() string {
	parts := []string{count(o.rules, "rule"), count(o.routes, "route")}
	if o.groups > 0 {
		parts = append(parts, "the mark of "+count(o.groups, "uplink"))
	}
	if len(parts) == 2 {
		return parts[0] + " and " + parts[1]
	}
	return parts[0] + ", " + parts[1] + " and " + parts[2]
}

func (a *app) report(o outcome, f *flusher, cfg config.Config, verbose bool) error {
	if verbose {
		for _, text := range o.removed {
			if _, err := fmt.Fprintln(a.Out, "removed", text); err != nil {
				return err
			}
		}
	}
	left := f.left()
	switch {
	case o.err != nil:
		return &exitError{exitProblem, fmt.Errorf("removed %s, then: %w", o.summary(), o.err)}
	case len(o.failed) > 0:
		return &exitError{exitProblem, fmt.Errorf("removed %s; %d could not be removed: %w", o.summary(), len(o.failed), o.failed[0])}
	case len(left) > 0:
		return &exitError{exitProblem, fmt.Errorf("removed %s, but somebody keeps adding to them: %d stand", o.summary(), len(left))}
	}
	leases := filepath.Join(cfg.StateDir, allocator.DefaultName)
	stay := ""
	if exists(leases) {
		stay = "; the leases stay in " + leases + ": every link gets the same table again"
	}
	_, err := fmt.Fprintf(a.Out, "removed %s%s\n", o.summary(), stay)
	return err
}
