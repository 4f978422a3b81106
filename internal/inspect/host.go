package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"multihomed/allocator"
	"multihomed/internal/config"
	"multihomed/internal/handoff"
	"multihomed/internal/handoff/note"
	"multihomed/internal/lockfile"
	"multihomed/internal/owners"
	"multihomed/internal/presence"
	"multihomed/internal/runstate"
	"multihomed/internal/standing"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// A reading is a host that is being looked at without the daemon. The facts are put
// together as the daemon does it: by [claims.Open] and [reconcile.Look].
type reading struct {
	cfg    config.Config
	mirror *kernel.Mirror
	notes  []string

	pid     int
	running bool

	manager      nm.Snapshot
	managerFault string
	alone        bool
	// unsure are the devices whose profiles are not for this user: they may say
	// anything.
	unsure map[string]bool

	leasesUnread string
}

func (r *reading) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// look reads everything and makes the view of it.
func (r *reading) look(ctx context.Context) (*View, error) {
	r.readDaemon()
	r.readManager(ctx)
	owners, unread := owners.Open(r.cfg, owners.Asked(r.manager), r.mirror)
	for _, err := range unread.Leases {
		r.note("routed leases: %v", err)
	}
	for _, err := range unread.Hooks {
		r.note("links of hooks: %v", err)
	}
	leases := &readLeases{database: r.openLeases(ctx), tables: r.cfg.Tables, mirror: r.mirror}
	snapshot, err := reconcile.Look(ctx, reconcile.Options{
		Policy: r.cfg.RoutingPolicy(), Mirror: reconcile.MirrorOf(r.mirror), Leases: leases,
		Owners:   &recalledOwners{Owners: owners, reading: r},
		Reserved: func(routing.TableID) (string, bool) { return "", false }, // No table is given out.
		Memory:   runstate.Memory{Directory: r.cfg.RuntimeDir},
	})
	if err != nil {
		return nil, err
	}
	v := of(r.cfg, snapshot)
	v.NM, v.ManagerUnread, v.Alone = r.manager, r.managerFault, r.alone
	if v.Alone {
		v.Unwanted = presence.Unwanted(r.cfg.NetworkManager)
	}
	v.Running, v.Daemon.PID, v.LeasesUnread = r.running, r.pid, r.leasesUnread
	v.Off, _ = owners.Off.State()
	v.Unit, v.Start = unitfile.Read(os.DirFS("/"), unitfile.Service), unitfile.Start(os.DirFS("/"))
	v.unsure = len(r.unsure) > 0
	for _, text := range r.notes {
		v.note("%s", text)
	}
	return v, nil
}

// DaemonRuns reports whether a daemon holds the lock, and not one who stands in for it.
func DaemonRuns(cfg config.Config) bool {
	pid, held, err := Worker(cfg)
	return err == nil && held && !handoff.StandsIn(pid)
}

// Worker is the process that works on this host: the one that holds the lock, or, where
// somebody removed the runtime directory under it, that of the network namespace. It is
// 0 if this user may not see which it is.
func Worker(cfg config.Config) (pid int, held bool, err error) {
	pid, held, err = lockfile.Holder(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if err != nil || held {
		return pid, held, err
	}
	return lockfile.NamespaceHolder(lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir)...)
}

func (r *reading) readDaemon() {
	pid, held, err := Worker(r.cfg)
	if err != nil {
		r.note("whether the daemon runs: %v", err)
	}
	if r.running = held && !handoff.StandsIn(pid); r.running {
		r.pid = pid
	}
}

func (r *reading) readManager(ctx context.Context) {
	var err error
	r.manager, err = nm.ReadOnce(ctx, nm.Options{CallTimeout: patience, Passed: note.Passed(r.cfg.RuntimeDir)})
	if err != nil {
		r.managerFault = err.Error()
		r.manager.Absent = true
	}
	r.alone = r.manager.Absent && !presence.NetworkManager(r.cfg.NetworkManager)
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

// LeasesPath is where the leases are.
func LeasesPath(cfg config.Config) string { return filepath.Join(cfg.StateDir, allocator.DefaultName) }

// openLeases returns what the database knows, nil where it cannot be read.
func (r *reading) openLeases(ctx context.Context) *allocator.Allocator {
	path := LeasesPath(r.cfg)
	leases, err := allocator.OpenReadOnly(ctx, allocator.Options{Path: path, Range: r.cfg.Tables})
	switch {
	case err == nil:
		return leases
	case errors.Is(err, allocator.ErrMissing):
		// Not started yet: there are no leases.
	case errors.Is(err, allocator.ErrUnreadable):
		r.leasesUnread = "this user may not read the leases in " + path + "; table numbers were taken from the rules and routes in the kernel"
	default:
		r.leasesUnread = fmt.Sprintf("leases: %v", err)
		r.notes = append(r.notes, r.leasesUnread)
	}
	return nil
}

// readLeases are the tables that networks have, by the database or by what stands. It
// gives out none.
type readLeases struct {
	database *allocator.Allocator
	tables   routing.TableRange
	mirror   *kernel.Mirror
}

// Acquire implements [reconcile.Leases]. A network without a table has none for now, and
// that is no error.
func (l *readLeases) Acquire(_ context.Context, keys []routing.Key, _ func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	out := make(map[routing.Key]routing.TableID, len(keys))
	missing := false
	for _, k := range keys {
		if l.database != nil {
			if t, ok := l.database.Lookup(k); ok {
				out[k] = t
				continue
			}
		}
		missing = true
	}
	if !missing {
		return out, nil
	}
	l.mirror.View(func(k *kernel.State) {
		for _, lease := range standing.Read(l.tables, k).Leases(k) {
			if _, known := out[lease.Key]; !known {
				out[lease.Key] = lease.Table
			}
		}
	})
	return out, nil
}

// Release implements [reconcile.Leases].
func (*readLeases) Release(...routing.Key) {}

// recalledOwners ask what stands where NetworkManager cannot be asked: an interface for
// which something of ours stands was a link, and a family for which nothing stands may
// be its owner's own.
type recalledOwners struct {
	*owners.Owners
	reading *reading
	asked   bool
}

// Take implements [reconcile.Owners].
func (o *recalledOwners) Take() reconcile.Claims {
	c := o.Owners.Take()
	complete := c.Complete
	// Not knowing is not emptiness: what nobody is known to want may be wanted.
	c.Complete = complete && len(o.reading.unsure) == 0
	if o.asked || c.Complete {
		return c
	}
	o.asked = true
	o.reading.mirror.View(func(k *kernel.State) {
		stands := standing.Read(o.reading.cfg.Tables, k)
		for _, index := range k.Indexes() {
			facts, _ := k.LinkFacts(index)
			claim, claimed := c.Changed[facts.Name]
			switch {
			case claimed && !o.reading.unsure[facts.Name]:
				continue
			case !claimed && !complete && stands.Any(facts):
				claim.Standing, claim.Watched = reconcile.Link, true
				claim.Why = "its routing stands, and NetworkManager cannot be asked"
			}
			if claim.Standing == reconcile.NoLink {
				continue
			}
			claim.Intents = maps.Clone(claim.Intents)
			if claim.Intents == nil {
				claim.Intents = map[routing.Family]routing.Intent{}
			}
			for _, f := range routing.Families() {
				if len(stands.Of(facts.Name, facts.Index, f)) == 0 {
					claim.Intents[f] = routing.Intent{LeaveAlone: "nothing of it stands, and its profile could not be read"}
				}
			}
			c.Changed[facts.Name] = claim
		}
	})
	return c
}
