package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/handoff"
	"multihomed/internal/hookstate"
	"multihomed/internal/lockfile"
	"multihomed/internal/offswitch"
	"multihomed/internal/orders"
	"multihomed/internal/ownership"
	"multihomed/internal/rights"
	"multihomed/internal/status"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/view"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
)

const offHelp = `Switch multihomed off, or some links only, until it is switched on again: over
reboots, upgrades and restarts of the service. All its rules, routes and groups, or those
of the links, are removed from the kernel. When the command returns they are gone, and
traffic follows the main table as it would without multihomed. Objects of other links
stay, and so do the leases: switched on again, every link gets the same table.

A link is named by its interface, or by its NetworkManager profile. It is remembered by
the profile, whatever its interface is called later; without one, by the interface.

A running daemon does it itself, and then stays idle. One that does not answer within
three seconds is killed. It works without a daemon, and with a configuration that cannot
be used. If the state directory cannot be written, it lasts only until the next boot, and
says so. The exit status is 1 in that case, or if something is left: it says what and
why.`

const onHelp = `Switch multihomed, or some links, on again after multihomectl off. Without a link,
everything is on. With a link, marks of profiles that it had go, too. When the command
returns the routing is active, in the same tables as before. Without a daemon it is made
once, and the hooks keep it.`

func (a *app) off() *cobra.Command {
	return &cobra.Command{
		Use:               "off [LINK...]",
		Short:             "switch multihomed, or some links, off until it is switched on",
		Long:              offHelp,
		Example:           "  multihomectl off\n  multihomectl off wan1",
		ValidArgsFunction: a.completeOff,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.switchOff(cmd.Context(), args) },
	}
}

func (a *app) on() *cobra.Command {
	return &cobra.Command{
		Use:               "on [LINK...]",
		Short:             "switch it on again",
		Long:              onHelp,
		Example:           "  multihomectl on\n  multihomectl on wan1",
		ValidArgsFunction: a.completeOn,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.switchOn(cmd.Context(), args) },
	}
}

// completeOff offers the interfaces that are not off.
func (a *app) completeOff(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	cfg, _ := config.SalvageHere(a.configPath)
	off := offswitch.Load(cfg.Switch())
	var out []string
	all, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, i := range all {
		if _, is := off.Of(i.Name, ""); !is && i.Name != routing.Loopback && !slices.Contains(args, i.Name) {
			out = append(out, i.Name)
		}
	}
	slices.SortFunc(out, status.CompareNames)
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeOn offers the links that are off.
func (a *app) completeOn(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	cfg, _ := config.SalvageHere(a.configPath)
	var out []string
	for _, l := range offswitch.Load(cfg.Switch()).Links {
		name := l.Interface
		if name == "" {
			name = l.UUID
		}
		if !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, status.CompareNames)
	return out, cobra.ShellCompDirectiveNoFileComp
}

// may reports whether this process has the rights to switch.
func (a *app) may(command string, links []string) error {
	able, err := rights.NetAdmin()
	if err == nil && !able {
		words := append([]string{command}, shellWords(links)...)
		if a.configPath != config.DefaultPath && a.configPath != "" {
			words = append(words, "--config", shellWord(a.configPath))
		}
		err = fmt.Errorf("%s needs the right to change routing (CAP_NET_ADMIN); to fix: sudo multihomectl %s", command, strings.Join(words, " "))
	}
	if err != nil {
		return &exitError{exitProblem, err}
	}
	return nil
}

// targets finds the links that words name, among the interfaces and among what is off.
// Present are the interfaces of the host.
func (a *app) targets(ctx context.Context, off offswitch.State, words []string) (out []orders.Target, present []offswitch.Interface, err error) {
	if len(words) == 0 {
		return nil, nil, nil
	}
	host := orders.Host{Profiles: map[string]orders.Profile{}}
	// Without NetworkManager a link is known by its interface alone.
	if known, err := nm.ReadOnce(ctx, nm.Options{CallTimeout: managerTimeout}); err == nil {
		for name, d := range known.Devices {
			host.Profiles[name] = orders.Profile{UUID: d.ProfileUUID, Name: d.ProfileID}
		}
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the interfaces: %w", err)
	}
	for _, i := range all {
		host.Interfaces = append(host.Interfaces, i.Name)
	}
	out, err = host.Targets(off, words)
	if err != nil {
		return nil, nil, &exitError{exitUsage, err}
	}
	return out, host.Present(), nil
}

// managerTimeout is how long NetworkManager may take for one answer.
const managerTimeout = 3 * time.Second

func (a *app) switchOff(ctx context.Context, words []string) error {
	if done, err := a.delegated(ctx, "off", words, "Off", append([]string{}, words...)); done {
		return err
	}
	cfg, sound := a.salvage()
	mark := offswitch.Mark{Since: time.Now().UTC().Truncate(time.Second), By: offswitch.Who(a.Env)}
	targets, _, err := a.targets(ctx, offswitch.Load(cfg.Switch()), words)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		targets = []orders.Target{{}}
	}
	// Before the switch: the objects in the kernel tell whose they are.
	var all []*cleanup.Remains
	for _, t := range targets {
		r, err := a.remains(ctx, cfg, sound, t.Name)
		if err != nil {
			return &exitError{exitProblem, err}
		}
		defer r.Close()
		r.Left()
		all = append(all, r)
	}
	before, now, err := orders.SwitchOff(cfg.Switch(), targets, mark)
	var failed []error
	if unkept, is := errors.AsType[*offswitch.UnkeptError](err); is {
		failed = append(failed, unkept)
	} else if err != nil {
		return &exitError{exitProblem, err}
	}
	for i, t := range targets {
		removed, err := a.vanish(ctx, cfg, t.Name, all[i])
		if err != nil {
			failed = append(failed, fmt.Errorf("%s is switched off and adds nothing any more, but %w", t, err))
			continue
		}
		if t.All() {
			a.forgetNames(cfg)
		}
		fmt.Fprintln(a.Out, orders.SentenceOff(cfg, before, now, t, removed))
	}
	if err := errors.Join(failed...); err != nil {
		return &exitError{exitProblem, err}
	}
	return nil
}

const (
	// obeyTime is how long a daemon may take to remove everything. It needs milliseconds,
	// and some more with a thousand links.
	obeyTime = 3 * time.Second
	// offTime bounds the whole command.
	offTime = 15 * time.Second
	// tryAgain is how often the lock is tried while a daemon comes or goes.
	tryAgain = 50 * time.Millisecond
)

// vanish waits until no object of a link, or of the host, is left. The holder of the lock
// removes them; if it does not, vanish takes its place. It returns what was removed.
func (a *app) vanish(ctx context.Context, cfg config.Config, name string, r *cleanup.Remains) (removed string, err error) {
	ctx, cancel := context.WithTimeout(ctx, offTime)
	defer cancel()
	planned := r.Left()
	summary := ""
	if len(planned) > 0 {
		summary = r.Summary(planned)
	}
	path := filepath.Join(cfg.RuntimeDir, lockfile.Name)
	// After a boot without the daemon there is no directory yet.
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return "", fmt.Errorf("%s left: %w", r.Summary(planned), err)
	}
	ticker := time.NewTicker(tryAgain)
	defer ticker.Stop()
	var asked, unlocked time.Time
	var quiet silence
	defer quiet.close()
	for {
		err := handoff.Send(cfg.RuntimeDir, handoff.Switched())
		if err == nil {
			if asked.IsZero() {
				asked = time.Now()
			}
			if gone, err := a.gone(ctx, cfg, name, r, obeyTime-time.Since(asked)); gone || err != nil {
				if err == nil {
					_, err = r.RemoveEndpoints(ctx)
				}
				return summary, err
			}
		}
		lock, locking := lockfile.TryLock(path)
		if lock != nil {
			works, err := a.worksUnlocked(ctx, cfg, lock, &unlocked)
			if err != nil {
				return "", fmt.Errorf("%s left: %w; to fix: systemctl restart multihomed, then do this again", r.Summary(r.Left()), err)
			}
			if works {
				select {
				case <-ctx.Done():
					return "", fmt.Errorf("%s left: %w", r.Summary(r.Left()), context.Cause(ctx))
				case <-ticker.C:
				}
				continue
			}
			defer lock.Close()
			done, err := a.takeAway(ctx, cfg, r, movedOf(cfg, name), false)
			if err != nil {
				return "", errors.Unwrap(err)
			}
			if done.Endpoints > 0 {
				summary = done.Summary()
			}
			return summary, nil
		}
		held, is := errors.AsType[*lockfile.HeldError](locking)
		if !is {
			return "", locking
		}
		hangs := !asked.IsZero() && time.Since(asked) >= obeyTime || errors.Is(err, handoff.ErrBusy)
		if errors.Is(err, handoff.ErrNobody) {
			idle, err := quiet.lasts(path, held.PID)
			if err != nil {
				return "", fmt.Errorf("%s left: %w", r.Summary(r.Left()), err)
			}
			hangs = hangs || idle
		}
		if hangs {
			pid, err := endHolder(ctx, path)
			if err != nil {
				return "", fmt.Errorf("%s left: %w; to fix: systemctl kill --signal=KILL multihomed, then do this again", r.Summary(r.Left()), err)
			}
			asked = time.Time{}
			if pid != 0 {
				fmt.Fprintf(a.Err, "multihomectl: killed process %d, which held the lock and did not answer\n", pid)
				continue
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s left: %w", r.Summary(r.Left()), locking)
		case <-ticker.C:
		}
	}
}

// worksUnlocked reports whether a daemon works on this host without the lock, which is ours
// now, and releases the lock then. Its runtime directory was removed: it makes that again as
// soon as it gets the lock. One that does not do so in time is killed.
func (a *app) worksUnlocked(ctx context.Context, cfg config.Config, lock *lockfile.Lock, since *time.Time) (bool, error) {
	trusted := lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)
	_, held, err := lockfile.NamespaceHolder(trusted...)
	if err != nil || !held {
		return false, nil //nolint:nilerr // where the kernel does not tell, the lock that we have decides
	}
	if err := lock.Close(); err != nil {
		return false, err
	}
	if since.IsZero() {
		*since = time.Now()
	}
	if time.Since(*since) < obeyTime {
		return true, nil
	}
	pid, err := lockfile.EndNamespaceHolder(ctx, trusted...)
	if err != nil {
		return false, err
	}
	if *since = (time.Time{}); pid != 0 {
		fmt.Fprintf(a.Err, "multihomectl: killed process %d, which worked without the lock and did not answer\n", pid)
	}
	return true, nil
}

// A silence is that of a holder of the lock that takes no messages: a command at work, a daemon
// that starts, or one that hangs between making the lock and making the socket.
type silence struct {
	holder *lockfile.Process
	since  time.Time
	worked int64
}

// lasts reports whether the process that holds the lock has been silent for obeyTime, and idle.
func (s *silence) lasts(path string, pid int) (bool, error) {
	switch {
	case s.holder == nil || s.holder.PID != pid:
		s.close()
		var err error
		if s.holder, err = lockfile.OpenHolder(path); s.holder == nil {
			return false, err
		}
	case time.Since(s.since) < obeyTime:
		return false, nil
	case !s.holder.Busy(s.worked):
		return true, nil
	}
	s.since, s.worked = time.Now(), s.holder.Worked()
	return false, nil
}

func (s *silence) close() {
	if s.holder != nil {
		_ = s.holder.Close() // a descriptor of a process
		s.holder = nil
	}
}

// endHolder kills the process that holds a lock, because it does not answer, and returns its
// number; 0 if it released the lock meanwhile.
func endHolder(ctx context.Context, path string) (pid int, err error) {
	holder, err := lockfile.OpenHolder(path)
	if err != nil {
		return 0, err
	}
	if holder == nil {
		pid, held, err := lockfile.Holder(path)
		if err == nil && held && pid == 0 {
			err = fmt.Errorf("the process that holds %s is not visible here", path)
		}
		return 0, err
	}
	defer holder.Close()
	ended, err := holder.End(ctx, path)
	if err != nil {
		return 0, fmt.Errorf("ending process %d, which holds %s: %w", holder.PID, path, err)
	}
	if !ended {
		return 0, nil
	}
	return holder.PID, nil
}

// gone waits until no object of a link is left, and reports whether that came true.
func (a *app) gone(ctx context.Context, cfg config.Config, name string, r *cleanup.Remains, timeout time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, max(timeout, tryAgain))
	defer cancel()
	left, err := r.Await(ctx)
	if err != nil || len(left) > 0 {
		return false, err
	}
	ticker := time.NewTicker(tryAgain)
	defer ticker.Stop()
	for len(movedOf(cfg, name)) > 0 {
		select {
		case <-ctx.Done():
			return false, nil
		case <-ticker.C:
		}
	}
	return true, nil
}

// movedOf are the routes that were moved out of main, of a link or of all.
func movedOf(cfg config.Config, name string) []hookstate.Config {
	hooks, _ := hookstate.Open(cfg.RuntimeDir)
	return slices.DeleteFunc(hooks.Moved(), func(c hookstate.Config) bool { return name != "" && c.Interface != name })
}

func (a *app) switchOn(ctx context.Context, words []string) error {
	if done, err := a.delegated(ctx, "on", words, "On", append([]string{}, words...)); done {
		return err
	}
	cfg, _ := a.salvage()
	targets, present, err := a.targets(ctx, offswitch.Load(cfg.Switch()), words)
	if err != nil {
		return err
	}
	before, now, err := orders.SwitchOn(cfg.Switch(), targets, present)
	unkept, isUnkept := errors.AsType[*offswitch.UnkeptError](err)
	if err != nil && !isUnkept {
		return &exitError{exitProblem, err}
	}
	text := orders.SentenceOn(before, now, targets, present)
	how, err := a.appear(ctx, targets)
	if err != nil {
		err = fmt.Errorf("%s, but %w", text, err)
	} else {
		_, err = fmt.Fprintf(a.Out, "%s: %s\n", text, how)
	}
	if isUnkept {
		err = errors.Join(err, unkept)
	}
	if err != nil {
		return &exitError{exitProblem, err}
	}
	return nil
}

// appear waits until the routing of all links is active, and says of how many: of all, or of the
// targets if there are some.
func (a *app) appear(ctx context.Context, targets []orders.Target) (string, error) {
	cfg := a.load(ctx)
	ctx, cancel := context.WithTimeout(ctx, offTime)
	defer cancel()
	err := handoff.Send(cfg.RuntimeDir, handoff.Switched())
	noDaemon := errors.Is(err, handoff.ErrNobody)
	if err != nil && !noDaemon {
		return "", err
	}
	if noDaemon {
		if why := daemon.KeptAway(cfg); why != "" {
			return "nothing is done yet, because " + why + "; to start it: " + unitfile.Start(os.DirFS("/")), nil
		}
	}
	work := func(context.Context) error { return nil }
	if noDaemon {
		o := daemon.Options{ConfigPath: a.configPath, Version: a.Version, Level: new(slog.LevelVar), Logger: slog.New(slog.DiscardHandler)}
		work = func(ctx context.Context) error {
			return daemon.Once(ctx, o, handoff.Message{}, daemon.Linger, func() {})
		}
	}
	working, stop := context.WithCancel(ctx)
	worked := make(chan error, 1)
	go func() { worked <- work(working) }()
	v, err := a.awaitActive(ctx, cfg)
	stop()
	if err := errors.Join(err, <-worked); err != nil {
		return "", err
	}
	var links []offswitch.Interface
	for plan := range v.Planner.Links() {
		links = append(links, offswitch.Interface{Name: plan.Link.Name, UUID: v.Claims[plan.Link.Name].UUID})
	}
	what := orders.LinksRouted(targets, links)
	if noDaemon {
		what += "; the service does not run, to start it: systemctl start multihomed"
	}
	return what, nil
}

// awaitActive waits until everything planned is active.
func (a *app) awaitActive(ctx context.Context, cfg config.Config) (*view.View, error) {
	ticker := time.NewTicker(tryAgain)
	defer ticker.Stop()
	for {
		v, err := offline.Read(ctx, cfg)
		if err == nil && v.Converged() == nil {
			return v, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("not everything is active yet; to fix: see multihomectl status (%w)", v.Converged())
			}
			return nil, err
		case <-ticker.C:
		}
	}
}
