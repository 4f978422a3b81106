// Package view is the host as it was found: links with their plans, what of these is missing in
// the kernel, rules of others, and who works on it. The daemon makes a view from its own
// snapshot ([FromSnapshot]), package offline from a reading of the host. A view becomes the
// status that is shown ([View.Status]) and its JSON ([View.Document]).
package view

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/status/outcome"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A View is the host as it was found.
type View struct {
	Policy  routing.Policy
	Planner routing.Plans
	// Links are the kernel's interfaces by name.
	Links map[string]routing.Interface
	// Missing are the changes after which the kernel would be as planned. While NetworkManager is
	// not known completely, no deletion is among them.
	Missing []routing.Op
	// ForeignIn says who else uses a table that a link holds, in the family of its lease.
	ForeignIn map[routing.TableID]string
	// Contested are those of Missing that another program keeps deleting.
	Contested []routing.Op
	// Strays are packets that are bound to a link and do not leave by it.
	Strays []outcome.Stray
	// Shared are addresses that several uplinks have.
	Shared []outcome.Shared
	// Unchecked counts the links whose traffic was not checked.
	Unchecked int
	// Unbound says by family which way packets leave that are bound to no link.
	Unbound map[routing.Family]status.Unbound
	// Failover is which uplinks work, nil if no daemon says so.
	Failover *Failover
	// Answers is on which link forwarded packets are answered, nil if no daemon says so.
	Answers *status.Answers
	// Bindings are what is bound to links.
	Bindings []status.Binding
	Claims   map[string]reconcile.Claim
	NM       nm.Snapshot
	// Daemon is what the running daemon says of itself, zero if it says nothing. Running says that
	// it holds the lock.
	Daemon  Daemon
	Running bool
	// Silent says that the daemon runs and does not answer.
	Silent bool
	// Unit is whether the administrator wants the service to run, and Start the command
	// that starts it if that is not [unitfile.Enable]. Both matter only where it does not run.
	Unit  unitfile.State
	Start string
	// Fault is what is wrong with the configuration file, nil if nothing is or if the daemon says so.
	Fault *config.Fault
	// LeasesUnread says why the leases were not read, so that tables were told from rules and
	// routes. If the user may not read them, that is no fault, and not in Notes.
	LeasesUnread string
	// ManagerUnread says why NetworkManager could not be asked at all.
	ManagerUnread string
	// Off is what the administrator switched off.
	Off offswitch.State
	// NoManager says that this host has no NetworkManager.
	NoManager bool
	// Unwanted says how the administrator keeps an installed one from running, else it is empty.
	Unwanted string
	// ProfilesUnread says that there are devices whose profiles this user may not read.
	ProfilesUnread bool
	// Notes are what could not be read, in sentences.
	Notes []string
	// Entries are those of the configuration that select interfaces.
	Entries Entries
	// Snapshot is where the view comes from, ByDaemon says that the daemon made it.
	Snapshot *reconcile.Snapshot
	ByDaemon bool

	// objects are made once if there is a Snapshot; odd are the links whose objects are not all
	// in force as planned.
	objects []Object
	odd     map[string]bool
	// shelf is nil if nothing is kept for the next view.
	shelf *Shelf
}

// Entries are those of a configuration that select interfaces.
type Entries struct {
	Links            []config.Link
	Include, Exclude []config.Matcher
	Prefer           []config.Name
	Weights          []config.Weight
}

// FromSnapshot is the view of the daemon itself: it reads nothing and guesses nothing.
func FromSnapshot(cfg config.Config, s *reconcile.Snapshot, daemon Daemon, manager nm.Status, alone bool, off offswitch.State) *View {
	v := Of(cfg, s)
	v.NM.Status, v.Daemon, v.Running, v.NoManager, v.Off, v.ByDaemon = manager, daemon, true, alone, off, true
	return v
}

// Of is the view of a snapshot alone. The caller adds who works on the host, and what
// NetworkManager says of itself.
func Of(cfg config.Config, s *reconcile.Snapshot) *View {
	v := &View{
		Policy: cfg.RoutingPolicy(), Planner: s, Links: make(map[string]routing.Interface, len(s.Interfaces)),
		Missing: s.Missing, Contested: s.Contested, ForeignIn: s.ForeignIn, Claims: s.Claims, Snapshot: s, Entries: Entries{cfg.Links, cfg.Include, cfg.Exclude, cfg.Failover.Prefer, cfg.Share.Weights},
	}
	for _, i := range s.Interfaces {
		v.Links[i.Facts.Name] = i.Facts
	}
	if s.Unread > 0 {
		v.Note("%d messages of the kernel, the last because of: %v", s.Unread, s.UnreadFault)
	}
	return v
}

// ClaimOf is the claim of an interface by its index, whatever its name is by now.
func (v *View) ClaimOf(l routing.Interface) (reconcile.Claim, bool) {
	if v.Snapshot == nil {
		claim, claimed := v.Claims[l.Name]
		return claim, claimed
	}
	i, known := v.Snapshot.Interface(l.Index)
	if !known {
		return reconcile.Claim{}, false
	}
	return i.Claim, i.Claimed
}

// Unsettled reports links that come or go.
func (v *View) Unsettled(name string) bool {
	claim, _ := v.ClaimOf(v.Links[name])
	return claim.Standing == reconcile.Draining || claim.Pending || !v.Links[name].Carrier
}

// Complete reports whether all sources of links were asked. With the host switched off, none
// has to be.
func (v *View) Complete() bool { return v.NM.Complete || v.NoManager || v.Off.HostOff() }

// Refused reports whether the daemon does not run because it does not start with its configuration.
func (v *View) Refused() bool { return !v.Running && v.Fault != nil && v.Fault.Refused }

// Note adds a sentence on what could not be read, once.
func (v *View) Note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(v.Notes, text) {
		v.Notes = append(v.Notes, text)
	}
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
