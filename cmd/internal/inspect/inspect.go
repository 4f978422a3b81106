// Package inspect reads the host without changing it and says how it stands:
// which links there are, what the plan wants for them, and what of that is in
// force. It asks the same planner as the daemon, and works without the daemon,
// without the database and, as far as the kernel lets it, without root.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"multihomed/allocator"
	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/lockfile"
	"multihomed/cmd/internal/runstate"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// A View is the host as it was found.
type View struct {
	Policy  routing.Policy
	Planner *routing.Planner
	// Links are the kernel's interfaces by name.
	Links map[string]kernel.Link
	// Missing is what would have to change for the kernel to be as planned.
	Missing []routing.Op
	Claims  map[string]reconcile.Claim
	NM      nm.Snapshot
	// Daemon is what the running daemon says of itself; Running says that it
	// holds the lock.
	Daemon  runstate.State
	Running bool
	// Notes are what could not be read, in sentences.
	Notes []string
}

// Read reads the host. It fails only where the kernel cannot be read.
func Read(ctx context.Context, cfg config.Config) (*View, error) {
	v := &View{Policy: cfg.RoutingPolicy(), Claims: map[string]reconcile.Claim{}}
	mirror, err := kernel.Open(kernel.Config{Tables: v.Policy.Tables})
	if err != nil {
		return nil, err
	}
	defer mirror.Close() //nolint:errcheck // nothing was written
	if err := mirror.Sync(ctx); err != nil {
		return nil, err
	}

	v.readDaemon(cfg)
	v.NM, err = nm.ReadOnce(ctx, nm.Options{})
	if err != nil {
		v.note("NetworkManager: %v", err)
	}
	policy := cfg.NMPolicy()
	for name, d := range v.NM.Devices {
		v.Claims[name] = claims.Of(policy, d)
	}
	leases := v.leases(ctx, cfg)
	mirror.View(func(k *kernel.State) { v.plan(k, leases) })
	return v, nil
}

func (v *View) note(format string, args ...any) {
	v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
}

func (v *View) readDaemon(cfg config.Config) {
	state, found, err := runstate.Read(cfg.RuntimeDir)
	if err != nil {
		v.note("%v", err)
	}
	held, err := lockfile.Held(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if err != nil {
		// Without the right to open the lock its state file must do.
		held = found
	}
	v.Running = held
	if held && found {
		v.Daemon = state
	}
}

// leases returns the tables the database knows, none where it cannot be read.
func (v *View) leases(ctx context.Context, cfg config.Config) *allocator.Allocator {
	path := filepath.Join(cfg.StateDir, allocator.DefaultName)
	leases, err := allocator.OpenReadOnly(ctx, allocator.Options{Path: path, Range: v.Policy.Tables})
	switch {
	case err == nil:
		return leases
	case errors.Is(err, allocator.ErrMissing) || errors.Is(err, allocator.ErrReadOnly):
		// Not started yet, or not for this user: the rules tell the tables.
	default:
		v.note("%v", err)
	}
	return nil
}

func (v *View) plan(k *kernel.State, leases *allocator.Allocator) {
	v.Planner = routing.NewPlanner(v.Policy)
	v.Links = map[string]kernel.Link{}
	for _, index := range k.Indexes() {
		facts, ok := k.Link(index)
		if !ok {
			continue
		}
		v.Links[facts.Name] = facts
		claim := v.Claims[facts.Name]
		if claim.Standing == reconcile.NoLink {
			continue
		}
		link := reconcile.LinkOf(facts, claim)
		keys := routing.Keys(link)
		mine := reconcile.TablesOf(k, facts.Name)
		if claim.Standing == reconcile.Draining && (len(keys) == 0 || len(mine) == 0) {
			continue
		}
		link.Tables = tables(k, leases, mine, keys)
		v.Planner.Set(link)
	}
	all := routing.Everything(v.Planner, k)
	v.Missing = routing.Diff(v.Planner, k, all, func(routing.Op) bool { return true })
}

// tables finds the table of every key: in the database, else among those that
// the kernel's rules give the interface.
func tables(k *kernel.State, leases *allocator.Allocator, mine []routing.TableID, keys []routing.Key) map[routing.Key]routing.TableID {
	out := map[routing.Key]routing.TableID{}
	for _, key := range keys {
		if leases != nil {
			if t, ok := leases.Lookup(key); ok {
				out[key] = t
				continue
			}
		}
		for _, r := range k.RuleOrder(key.Family, routing.PrioritySource) {
			if r.From.IsValid() && key.Prefix.Contains(r.From.Addr()) && key.Prefix.Bits() <= r.From.Bits() && slices.Contains(mine, r.Table) {
				out[key] = r.Table
				break
			}
		}
	}
	return out
}

// Converged says what differs between the kernel and a fresh plan, nil if
// nothing does.
func (v *View) Converged() error {
	if len(v.Missing) == 0 {
		return nil
	}
	errs := make([]error, 0, len(v.Missing))
	for _, op := range v.Missing {
		errs = append(errs, errors.New(op.String()))
	}
	return fmt.Errorf("the kernel differs from the plan: %w", errors.Join(errs...))
}

// Interfaces yields the names of all claims, sorted.
func (v *View) Interfaces() []string { return slices.Sorted(maps.Keys(v.Claims)) }

