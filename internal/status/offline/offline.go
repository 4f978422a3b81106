// Package offline reads the host without the daemon and without changing it, and makes the
// same view of it as the daemon: the facts are put together by the same code ([owners.Open]), and
// the plan is the loop's first pass, made without writing ([reconcile.Look]). It works without the
// database and, as far as the kernel lets it, without root.
//
// It costs one reading of NetworkManager, one dump of the interfaces,
// addresses, rules and routes (a host with a million routes answers only for
// its links and for our tables), some 200 lookups and one reading of the leases.
// Nothing is written, no lock is taken, and nobody waits for it.
package offline

import (
	"context"
	"fmt"
	"os"
	"time"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/failover"
	"multihomed/internal/handoff/note"
	"multihomed/internal/owners"
	"multihomed/internal/recollection"
	"multihomed/internal/status/check"
	"multihomed/internal/status/view"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// patience is how long NetworkManager may take for one answer, while a user waits at a terminal.
const patience = 3 * time.Second

// Read reads the host. It fails only where the kernel cannot be read. Outcomes are checked
// for the links that only names, or for the first ones.
func Read(ctx context.Context, cfg config.Config, only ...string) (*view.View, error) {
	v, err := Look(ctx, cfg)
	if err != nil {
		return nil, err
	}
	outcomes := check.NewOutcomes()
	defer outcomes.Close()
	if err := outcomes.Check(ctx, v, only, check.WithoutDaemon); err != nil {
		v.Note("where bound traffic goes: %v", err)
	}
	return v, nil
}

// Look is Read without a check of where traffic goes.
func Look(ctx context.Context, cfg config.Config) (*view.View, error) {
	mirror, err := kernel.Open(kernel.Config{Tables: cfg.Tables, Interest: func(string) bool { return false }})
	if err != nil {
		return nil, err
	}
	defer mirror.Close()
	return (&reading{cfg: cfg, mirror: mirror}).look(ctx)
}

// A reading is a host that is being looked at.
type reading struct {
	cfg    config.Config
	mirror *kernel.Mirror
	notes  []string

	pid     int
	running bool

	manager      nm.Snapshot
	managerFault string
	alone        bool
	// unsure are the devices whose profiles this user may not read: they may say anything.
	unsure map[string]bool

	leasesUnread string
}

func (r *reading) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// look reads everything and makes the view of it.
func (r *reading) look(ctx context.Context) (*view.View, error) {
	r.readDaemon()
	r.readManager(ctx)
	// Who only looks does not judge: what stands in table F is right.
	standing := failover.FactsOf(r.cfg)
	standing.Frozen = true
	p, err := r.plan(ctx, planning{
		leases:   &readLeases{database: r.openLeases(ctx), tables: r.cfg.Tables, mirror: r.mirror},
		reserved: func(routing.TableID) (string, bool) { return "", false }, // No table is given out.
		failover: standing, answers: reconcile.StandingAnswers{}, seen: reconcile.MirrorOf(r.mirror),
	})
	if err != nil {
		return nil, err
	}
	v := view.Of(r.cfg, p.snapshot)
	states, held := p.bound.States()
	v.Bindings = binding.Status(states, held, r.cfg.Answers.MarkMask, p.snapshot)
	v.NM, v.ManagerUnread, v.NoManager = r.manager, r.managerFault, r.alone
	if v.NoManager {
		v.Unwanted = r.cfg.NetworkManager.Unwanted()
	}
	v.Running, v.Daemon.PID, v.LeasesUnread = r.running, r.pid, r.leasesUnread
	v.Off, _ = p.owners.Off.State()
	v.Unit, v.Start = unitfile.Read(os.DirFS("/"), unitfile.Service), unitfile.Start(os.DirFS("/"))
	v.ProfilesUnread = len(r.unsure) > 0
	for _, text := range r.notes {
		v.Note("%s", text)
	}
	return v, nil
}

// planning is what differs between who shows the host and who plans changes of it.
type planning struct {
	leases   reconcile.Leases
	reserved func(routing.TableID) (string, bool)
	failover routing.Failover
	answers  reconcile.Answers
	// seen is the kernel as the loop is to see it.
	seen reconcile.Mirror
}

// planned is the loop's first pass, unwritten, with what it was made of.
type planned struct {
	snapshot *reconcile.Snapshot
	owners   *owners.Owners
	bound    *binding.Keeper
}

// plan makes the loop's first pass. A mirror serves it once.
func (r *reading) plan(ctx context.Context, o planning) (planned, error) {
	owners, unread := owners.Open(r.cfg, owners.Asked(r.manager), r.mirror)
	for _, err := range unread.Leases {
		r.note("routed leases: %v", err)
	}
	for _, err := range unread.Hooks {
		r.note("links of hooks: %v", err)
	}
	bound := binding.Look(r.cfg, owners.HostOff)
	snapshot, err := reconcile.Look(ctx, reconcile.Options{
		Policy: r.cfg.RoutingPolicy(), Mirror: o.seen, Leases: o.leases,
		Owners:   &recalledOwners{Owners: owners, reading: r},
		Reserved: o.reserved,
		Memory:   recollection.File{Directory: r.cfg.RuntimeDir},
		Failover: reconcile.StandingFailover(o.failover), Answers: o.answers, Bindings: bound,
	})
	return planned{snapshot, owners, bound}, err
}

func (r *reading) readManager(ctx context.Context) {
	var err error
	r.manager, err = nm.ReadOnce(ctx, nm.Options{CallTimeout: patience, DNS: true, Passed: note.Passed(r.cfg.RuntimeDir)})
	if err != nil {
		r.managerFault = err.Error()
		r.manager.Absent = true
	}
	r.alone = r.manager.Absent && !r.cfg.NetworkManager.Expected()
	if err != nil && !r.alone {
		r.note("NetworkManager: %v", err)
	}
	r.unsure = map[string]bool{}
	for name, d := range r.manager.Devices {
		if os.Geteuid() != 0 && len(d.Problems) > 0 {
			r.unsure[name] = true
		}
	}
}
