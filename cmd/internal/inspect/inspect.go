// Package inspect reads the host without changing it and says how it stands:
// which links there are, what the plan wants for them, what of that is in
// force, and what else on the host keeps it from working. It asks the same
// planner as the daemon, and works without the daemon, without the database
// and, as far as the kernel lets it, without root.
//
// It costs one reading of NetworkManager, one dump of the interfaces,
// addresses, rules and routes (a host with a million routes answers only for
// its links and for our tables), some 200 lookups and one reading of the leases.
// Nothing is written, no lock is taken, and nobody waits for it.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"multihomed/allocator"
	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/declared"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/hooked"
	"multihomed/cmd/internal/lockfile"
	"multihomed/cmd/internal/presence"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/offswitch"
	"multihomed/internal/outcome"
	"multihomed/internal/status"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// A View is the host as it was found.
type View struct {
	Policy  routing.Policy
	Planner routing.Plans
	// Links are the kernel's interfaces by name.
	Links map[string]kernel.Link
	// Missing is what would have to change for the kernel to be as planned.
	// While NetworkManager is not known completely nothing is to be deleted.
	Missing []routing.Op
	// ForeignIn says who else uses a table that a link holds.
	ForeignIn map[routing.TableID]string
	// Contested are what of Missing somebody else keeps taking away.
	Contested []routing.Op
	// Strays are packets that are bound to a link and do not leave by it.
	Strays []outcome.Stray
	// Unchecked counts the links for which that was not found out.
	Unchecked int
	// Unbound is the way of what is bound to nothing, by family.
	Unbound map[routing.Family]status.Unbound
	Claims  map[string]reconcile.Claim
	NM      nm.Snapshot
	// Daemon is what the running daemon says of itself, the zero State while it
	// has not said anything; Running says that it holds the lock.
	Daemon  runstate.State
	Running bool
	// Silent says that the daemon runs and does not answer.
	Silent bool
	// LeasesUnread says why the tables had to be told from what stands. Where the
	// user may not read them that is no fault, and in no note.
	LeasesUnread string
	// ManagerUnread says why NetworkManager could not be asked at all.
	ManagerUnread string
	// Off is what the administrator switched off.
	Off offswitch.State
	// Alone says that this host has no NetworkManager.
	Alone bool
	// Notes are what could not be read, in sentences.
	Notes []string

	// entries are of the configuration.
	entries entries
	// snapshot is where the view comes from, nil if the host was read.
	snapshot *reconcile.Snapshot
	recall   *reconcile.Recall
	// objects are kept where nothing can change any more.
	objects []Object
	// unsure are the devices whose profiles are not for this user: they may
	// say anything.
	unsure map[string]bool
}

// patience is how long NetworkManager may take for one answer. It is for
// somebody who looks at a terminal.
const patience = 3 * time.Second

// mostChecked is for how many links outcomes are checked where they are not named.
const mostChecked = 50

// Read reads the host. It fails only where the kernel cannot be read. Outcomes are checked
// for the links that only names, or for the first ones.
func Read(ctx context.Context, cfg config.Config, only ...string) (*View, error) {
	v := &View{
		Policy: cfg.RoutingPolicy(), Off: offswitch.Load(cfg.StateDir), Claims: map[string]reconcile.Claim{},
		recall: reconcile.NewRecall(runstate.Memory{Directory: cfg.RuntimeDir}),
		Links:  map[string]kernel.Link{}, ForeignIn: map[routing.TableID]string{}, unsure: map[string]bool{},
		entries: entriesOf(cfg),
	}
	v.readDaemon(cfg)
	v.readManager(ctx, cfg)
	v.readClaims(cfg)
	mirror, err := kernel.Open(kernel.Config{
		Tables: v.Policy.Tables,
		Interest: func(name string) bool {
			return v.Claims[name].Standing != reconcile.NoLink
		},
	})
	if err != nil {
		return nil, err
	}
	defer mirror.Close()
	if err := mirror.Sync(ctx); err != nil {
		return nil, err
	}
	if err := v.recallClaims(ctx, mirror); err != nil {
		return nil, err
	}
	leases := v.readLeases(ctx, cfg)
	if err := mirror.SetNetworks(ctx, v.networks(mirror)); err != nil {
		return nil, err
	}
	unbound, err := mirror.Unbound(ctx)
	if err != nil {
		return nil, err
	}
	mirror.View(func(k *kernel.State) { v.look(k, leases, unbound) })
	checker := NewChecker()
	defer checker.Close()
	if err := checker.Check(ctx, v, only, mostChecked); err != nil {
		v.note("where bound traffic goes: %v", err)
	}
	return v, nil
}

// Complete reports whether everybody who has links was asked.
// Where all is off, nobody's word is waited for.
func (v *View) Complete() bool { return v.NM.Complete || v.Alone || v.Off.HostOff() }

// note notes what could not be read, once.
func (v *View) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(v.Notes, text) {
		v.Notes = append(v.Notes, text)
	}
}

// DaemonRuns reports whether a daemon holds the lock, and not one who stands in for it.
func DaemonRuns(cfg config.Config) bool {
	pid, held, err := lockfile.Holder(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	return err == nil && held && !hook.StandsIn(pid)
}

func (v *View) readDaemon(cfg config.Config) {
	pid, held, err := lockfile.Holder(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if err != nil {
		v.note("whether the daemon runs: %v", err)
	}
	v.Running = held && !hook.StandsIn(pid)
	if v.Running {
		v.Daemon.PID = pid
	}
}

func (v *View) readManager(ctx context.Context, cfg config.Config) {
	var err error
	v.NM, err = nm.ReadOnce(ctx, nm.Options{CallTimeout: patience})
	if err != nil {
		v.ManagerUnread = err.Error()
		v.NM.Absent = true
	}
	v.Alone = v.NM.Absent && !presence.NetworkManager(cfg.NetworkManager)
	if err != nil && !v.Alone {
		v.note("NetworkManager: %v", err)
	}
	for name, d := range v.NM.Devices {
		if os.Geteuid() != 0 && len(d.Problems) > 0 {
			v.unsure[name] = true
		}
	}
}

// readClaims puts together what NetworkManager, hooks and clients of the table
// allocator say.
func (v *View) readClaims(cfg config.Config) {
	leased, errs := declared.Open(cfg.RuntimeDir)
	for _, err := range errs {
		v.note("routed leases: %v", err)
	}
	hooks, errs := hooked.Open(cfg.RuntimeDir)
	for _, err := range errs {
		v.note("links of hooks: %v", err)
	}
	names := slices.Concat(slices.Collect(maps.Keys(v.NM.Devices)), leased.Take(), hooks.Take())
	for _, name := range names {
		f := claims.Facts{Name: name, Policy: cfg.NMPolicy(), Links: cfg.Links, Leased: leased.Of(name), Off: v.Off}
		f.Device, f.Managed = v.NM.Devices[name]
		f.Configs, f.Released = hooks.Of(name)
		if len(f.Configs) > 0 || len(f.Leased) > 0 {
			f.Kind, f.Controller = kindOf(name)
		}
		if claim, claimed := claims.Judge(f); claimed {
			v.Claims[name] = claim
		}
	}
}

// kindOf returns the driver's name of a virtual interface and what it is a port of,
// empty where there is none.
func kindOf(name string) (kind, controller string) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return "", "" // It has gone.
	}
	if master := link.Attrs().MasterIndex; master != 0 {
		if c, err := netlink.LinkByIndex(master); err == nil {
			controller = c.Attrs().Name
		}
	}
	if link.Type() == "tuntap" {
		return "tun", controller // as the kernel calls it
	}
	return link.Type(), controller
}

// LeasesPath is where the leases are.
func LeasesPath(cfg config.Config) string { return filepath.Join(cfg.StateDir, allocator.DefaultName) }

// readLeases returns what the database knows, nil where it cannot be read.
func (v *View) readLeases(ctx context.Context, cfg config.Config) *allocator.Allocator {
	path := LeasesPath(cfg)
	leases, err := allocator.OpenReadOnly(ctx, allocator.Options{Path: path, Range: v.Policy.Tables})
	switch {
	case err == nil:
		return leases
	case errors.Is(err, allocator.ErrMissing):
		// Not started yet: there are no leases.
	case errors.Is(err, allocator.ErrUnreadable):
		v.LeasesUnread = "this user may not read the leases in " + path + "; table numbers were taken from the rules and routes in the kernel"
	default:
		v.LeasesUnread = fmt.Sprintf("leases: %v", err)
		v.Notes = append(v.Notes, v.LeasesUnread)
	}
	return nil
}

// Converged says what differs between the kernel and a fresh plan, nil if
// nothing does.
func (v *View) Converged() error {
	if len(v.Missing) == 0 {
		return nil
	}
	errs := make([]error, 0, len(v.Missing))
	for _, op := range v.Missing {
		errs = append(errs, errors.New(op.Text(v.device)))
	}
	return fmt.Errorf("the kernel differs from the plan: %w", errors.Join(errs...))
}

// Interfaces yields the names of all claims, sorted.
func (v *View) Interfaces() []string { return slices.Sorted(maps.Keys(v.Claims)) }
