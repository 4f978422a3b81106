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
	// ForeignIn says who else uses a table that a link holds, in the family of its lease.
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
	// Daemon is what the running daemon says of itself, the zero value while it
	// has not said anything; Running says that it holds the lock.
	Daemon  Daemon
	Running bool
	// Silent says that the daemon runs and does not answer.
	Silent bool
	// Unit is whether the administrator wants the service to run, and Start the command
	// that starts it if that is not [unitfile.Enable]. Both matter only where it does not run.
	Unit  unitfile.State
	Start string
	// LeasesUnread says why the tables had to be told from what stands. Where the
	// user may not read them that is no fault, and in no note.
	LeasesUnread string
	// ManagerUnread says why NetworkManager could not be asked at all.
	ManagerUnread string
	// Off is what the administrator switched off.
	Off offswitch.State
	// NoManager says that this host has no NetworkManager.
	NoManager bool
	// Unwanted says how the administrator keeps it from running, if it is NoManager by that.
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

	// objects are kept where nothing can change any more; odd are the links whose objects
	// are not just as planned.
	objects []Object
	odd     map[string]bool
	// shelf is nil if nothing is kept for the next view.
	shelf *Shelf
}

// Entries are those of a configuration that select interfaces.
type Entries struct {
	Links            []config.Link
	Include, Exclude []config.Matcher
}

// FromSnapshot is the view of the daemon itself: nothing is read, and nothing is guessed.
func FromSnapshot(cfg config.Config, s *reconcile.Snapshot, daemon Daemon, manager nm.Status, alone bool, off offswitch.State) *View {
	v := Of(cfg, s)
	v.NM.Status, v.Daemon, v.Running, v.NoManager, v.Off, v.ByDaemon = manager, daemon, true, alone, off, true
	return v
}

// Of is what a snapshot says, whoever made it: not who works on the host, and what its
// managers say of themselves.
func Of(cfg config.Config, s *reconcile.Snapshot) *View {
	v := &View{
		Policy: cfg.RoutingPolicy(), Planner: s, Links: make(map[string]kernel.Link, len(s.Interfaces)),
		Missing: s.Missing, Contested: s.Contested, ForeignIn: s.ForeignIn, Claims: s.Claims, Snapshot: s, Entries: Entries{cfg.Links, cfg.Include, cfg.Exclude},
	}
	for _, i := range s.Interfaces {
		v.Links[i.Facts.Name] = i.Facts
	}
	if s.Unread > 0 {
		v.Note("%d messages of the kernel, the last because of: %v", s.Unread, s.UnreadFault)
	}
	return v
}

// ClaimOf is what the owner of an interface says of it, by whatever name.
func (v *View) ClaimOf(l kernel.Link) (reconcile.Claim, bool) {
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

// Complete reports whether everybody who has links was asked.
// Where all is off, nobody's word is waited for.
func (v *View) Complete() bool { return v.NM.Complete || v.NoManager || v.Off.HostOff() }

// Note notes what could not be read, once.
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
