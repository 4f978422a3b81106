package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/handoff"
	"multihomed/internal/hookstate"
	"multihomed/internal/lockfile"
	"multihomed/internal/mainroutes"
	"multihomed/internal/orders"
	"multihomed/internal/ownership"
	"multihomed/internal/rights"
	"multihomed/internal/rttables"
	"multihomed/internal/standin"
)

const flushHelp = `Remove every rule, route and Multipath TCP endpoint of multihomed from the kernel, and
take its interface group from the uplinks. Objects of others stay, also in our
tables. After that, all traffic follows the main table as it would without multihomed;
routes that were moved out of it are put back.

It needs neither a configuration nor the database: it finds our objects in the kernel.
The daemon must not be running: it would restore everything. So does a hook at the next
event of a link, unless the service is disabled or masked. multihomectl off lasts. The
leases stay, so that every link gets the same table again. Flushing twice does no harm.

On a terminal it asks first, unless --yes is given; in a script it asks nothing. The
exit status is 1 if something is left, and it says what and why.`

func (a *app) flush() *cobra.Command {
	var yes, verbose bool
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "remove every rule and route of multihomed",
		Long:  flushHelp,
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.remove(cmd.Context(), yes, verbose)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print every object that is removed")
	return cmd
}

// salvage reads the configuration for a command that works without one. It reports a bad
// file in one line.
func (a *app) salvage() (cfg config.Config, sound bool) {
	cfg, err := config.SalvageHere(a.configPath)
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(a.Err, "multihomectl: the configuration cannot be used (%s); going by the objects in the kernel\n", first)
	}
	return cfg, err == nil
}

// remains finds our objects, of one link or of all.
func (a *app) remains(ctx context.Context, cfg config.Config, sound bool, link string) (*cleanup.Remains, error) {
	o := cleanup.Options{Tables: cfg.Tables, RuntimeDir: cfg.RuntimeDir, Link: link}
	eras, err := cleanup.ReadEras(cfg.StateDir)
	if err != nil {
		fmt.Fprintf(a.Err, "multihomectl: %v; going by the objects in the kernel\n", err)
	}
	o.Eras = eras
	if sound || cfg.UplinkGroup != config.Default().UplinkGroup {
		o.Group = cfg.UplinkGroup
	}
	return cleanup.Open(ctx, o)
}

func (a *app) remove(ctx context.Context, yes, verbose bool) error {
	cfg, sound := a.salvage()
	r, err := a.remains(ctx, cfg, sound, "")
	if err != nil {
		return &exitError{exitProblem, err}
	}
	defer r.Close()
	hooks, errs := hookstate.Open(cfg.RuntimeDir)
	for _, err := range errs {
		fmt.Fprintln(a.Err, err)
	}
	// If there is nothing to remove, neither the right nor the lock is needed: packages are
	// also removed in containers that have neither.
	planned, out := r.Left(), hooks.Moved()
	endpoints, err := r.Endpoints(ctx)
	if err != nil {
		fmt.Fprintf(a.Err, "multihomectl: %v\n", err)
	}
	table, err := r.HasTable(ctx)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		fmt.Fprintf(a.Err, "multihomectl: %v\n", err)
	}
	work := len(planned)+len(out)+len(endpoints) > 0 || table
	if able, err := rights.NetAdmin(); err != nil {
		return &exitError{exitProblem, err}
	} else if !able && work {
		return &exitError{exitProblem, errors.New("flush needs the right to change routing (CAP_NET_ADMIN); to fix: sudo multihomectl flush")}
	} else if able {
		lock, err := takeLock(ctx, cfg)
		if err == nil && work && !yes && a.asks() {
			// Others do not wait for an answer, and off kills who holds the lock and does nothing.
			if err := lock.Close(); err != nil {
				return &exitError{exitProblem, err}
			}
			if !a.confirmed(r.Summary(planned)) {
				return &exitError{exitProblem, errors.New("nothing was removed")}
			}
			if lock, err = takeLock(ctx, cfg); err == nil {
				// Others may have moved routes meanwhile.
				hooks, _ = hookstate.Open(cfg.RuntimeDir) // Its errors were told before the question.
				out = hooks.Moved()
			}
		}
		if err != nil && work {
			return &exitError{exitProblem, err}
		}
		if lock != nil {
			defer lock.Close()
		}
	}
	if !work {
		a.forgetNames(cfg)
		_, err := fmt.Fprintln(a.Out, "nothing of multihomed is left")
		return err
	}
	done, err := a.takeAway(ctx, cfg, r, out, verbose)
	if err != nil {
		return err
	}
	a.forgetNames(cfg)
	_, err = fmt.Fprintf(a.Out, "removed %s%s%s\n", done.Summary(), orders.LeasesStay(cfg), comesBack(cfg))
	return err
}

// forgetNames removes the names of the tables. It ignores a missing permission: flush itself
// reports that if there is something to remove.
func (a *app) forgetNames(cfg config.Config) {
	if err := rttables.Remove(cfg.RuntimeDir); err != nil && !errors.Is(err, fs.ErrPermission) {
		fmt.Fprintf(a.Err, "multihomectl: %v\n", err)
	}
}

// comesBack says what undoes a flush, if something does.
func comesBack(cfg config.Config) string {
	if daemon.KeptAway(cfg) != "" {
		return ""
	}
	return "; a hook restores the routing at the next event of a link, and multihomed when it starts; to prevent that: multihomectl off"
}

// takeAway puts routes back into main, and removes our objects. Its caller holds the lock.
func (a *app) takeAway(ctx context.Context, cfg config.Config, r *cleanup.Remains, out []hookstate.Config, verbose bool) (cleanup.Outcome, error) {
	// First, so that the host stays reachable.
	var missing []error
	for _, c := range out {
		if err := mainroutes.PutBack(ctx, r.Mirror(), cfg.RuntimeDir, c); err != nil {
			missing = append(missing, fmt.Errorf("putting routes of %s back into main: %w", c.Interface, err))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return cleanup.Outcome{}, &exitError{exitProblem, fmt.Errorf("nothing was removed: %w", err)}
	}
	done, err := r.Remove(ctx)
	if verbose {
		for _, text := range done.Removed {
			if _, err := fmt.Fprintln(a.Out, "removed", text); err != nil {
				return done, err
			}
		}
	}
	if err == nil {
		err = done.Err()
	}
	if err != nil {
		return done, &exitError{exitProblem, fmt.Errorf("removed %s; then: %w", done.Summary(), err)}
	}
	return done, nil
}

// makeWayTimeout is how long a stand-in may take to make way.
const makeWayTimeout = 2 * time.Second

// takeLock takes the place of the daemon.
func takeLock(ctx context.Context, cfg config.Config) (*lockfile.Lock, error) {
	// After a boot without the daemon there is no directory yet.
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, makeWayTimeout)
	defer cancel()
	lock, err := handoff.TakeLock(ctx, cfg.RuntimeDir, standin.Runs)
	held, ok := errors.AsType[*lockfile.HeldError](err)
	if err != nil && !ok {
		return nil, err
	}
	if ok {
		return nil, running(held.PID)
	}
	// Somebody may have removed the runtime directory of a running daemon. If the kernel does
	// not tell, the lock decides.
	pid, works, err := lockfile.NamespaceHolder(lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)...)
	if err == nil && works {
		return nil, errors.Join(running(pid), lock.Close())
	}
	return lock, nil
}

// running is the error while a daemon holds the lock.
func running(pid int) error {
	who := "multihomed is running"
	if pid != 0 {
		who += " (process " + strconv.Itoa(pid) + ")"
	}
	return errors.New(who + "; to fix: systemctl stop multihomed, then do this again; or multihomectl off, which needs no stop and lasts")
}

// confirmed asks the user.
func (a *app) confirmed(what string) bool {
	fmt.Fprintf(a.Out, "Remove %s? All traffic then follows the main table. [y/N] ", what)
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return err == nil && (answer == "y" || answer == "yes")
}

// asks reports whether there is somebody to ask.
func (a *app) asks() bool {
	_, in := descriptor(a.In)
	_, out := descriptor(a.Out)
	return in && out
}
