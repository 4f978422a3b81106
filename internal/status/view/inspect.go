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
package view

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

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
	// Daemon is what the running daemon says of itself, the zero State while it
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
	// Alone says that this host has no NetworkManager.
	Alone bool
	// Unwanted says how the administrator keeps it from running, if it is Alone by that.
	Unwanted string
	// Notes are what could not be read, in sentences.
	Notes []string

	// entries are of the configuration.
	entries entries
	// unsure says that there are devices whose profiles this user may not read.
	unsure bool
	// snapshot is where the view comes from; byDaemon says that the daemon made it.
	snapshot *reconcile.Snapshot
	byDaemon bool
	// objects are kept where nothing can change any more; odd are the links whose objects
	// are not just as planned.
	objects []Object
	odd     map[string]bool
	// shelf is nil if nothing is kept for the next view.
	shelf *Shelf
}

// patience is how long NetworkManager may take for one answer. It is for
// somebody who looks at a terminal.
const patience = 3 * time.Second

// mostChecked is for how many links outcomes are checked where they are not named.
const mostChecked = 50

// Read reads the host. It fails only where the kernel cannot be read. Outcomes are checked
// for the links that only names, or for the first ones.
func Read(ctx context.Context, cfg config.Config, only ...string) (*View, error) {
	mirror, err := kernel.Open(kernel.Config{Tables: cfg.Tables, Interest: func(string) bool { return false }})
	if err != nil {
		return nil, err
	}
	defer mirror.Close()
	v, err := (&reading{cfg: cfg, mirror: mirror}).look(ctx)
	if err != nil {
		return nil, err
	}
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
