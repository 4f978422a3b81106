package allocator

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"time"

	"multihomed/routing"
)

// A Demand is one thing that a client asks for.
type Demand struct {
	Key ClientKey
	// Release gives the lease back; otherwise it is made or renewed.
	Release bool
	// Owner is the user who asks.
	Owner uint32
	// Tag is kept with the lease.
	Tag string
	// Lifetime counts from now, in whole seconds.
	Lifetime time.Duration
	// Table is the number that the client is known to have had, 0 if none is. A
	// key without a lease gets it if no lease has it.
	Table routing.TableID
	// Quota is how many tables Owner may hold, 0 for any number. Root may hold
	// any number.
	Quota int
}

// An Outcome is what became of a Demand.
type Outcome struct {
	// Table is 0 after a release.
	Table routing.TableID
	// Expires is when the lease ends, on CLOCK_MONOTONIC_RAW, in whole seconds.
	Expires time.Duration
	// New says that there was no live lease.
	New bool
	// Err is ErrNotOwner, a FullError, a ScarceError, a QuotaError, a DatabaseError,
	// or says that the demand makes no sense.
	Err error
}

// Bounds of what a demand may hold.
const (
	maxTag      = 127
	maxLifetime = 365 * 24 * time.Hour
	never       = math.MaxInt64
)

func (d Demand) check() error {
	if d.Release {
		return checkClientKey(d.Key)
	}
	switch {
	case d.Lifetime < time.Second || d.Lifetime > maxLifetime || d.Lifetime%time.Second != 0:
		return fmt.Errorf("a lifetime of %v is not a whole number of seconds between %v and %v", d.Lifetime, time.Second, maxLifetime)
	case len(d.Tag) > maxTag:
		return fmt.Errorf("the tag has %d bytes, %d is the most", len(d.Tag), maxTag)
	}
	return checkClientKey(d.Key)
}

// Serve does what clients ask, in that order, in one transaction. What it says
// of a lease, of its renewal or its release is durable when it returns; if it
// cannot be made so, every demand that needed it gets the DatabaseError and
// nothing has changed.
func (a *Allocator) Serve(ctx context.Context, demands []Demand, inUse InUse) []Outcome {
	a.disk.Lock()
	defer a.disk.Unlock()
	if err := ctx.Err(); err != nil {
		return all(len(demands), fmt.Errorf("leasing tables: %w", context.Cause(ctx)))
	}
	ctx = context.WithoutCancel(ctx)
	var outcomes []Outcome
	for range attempts {
		// First, because it brings the file in line with memory as it is now.
		fault := a.writable(ctx)
		b := &batch{Allocator: a, before: map[*lease]held{}}
		a.mu.Lock()
		a.expire()
		outcomes = b.do(demands, inUse)
		a.mu.Unlock()
		if b.empty() {
			return outcomes
		}
		if fault == nil {
			if fault = b.commit(ctx); fault == nil {
				return outcomes
			}
			a.drop(fault)
		}
		a.mu.Lock()
		b.undo()
		a.mu.Unlock()
		outcomes = b.fail(outcomes, fault)
		if !contradicts(fault) {
			break
		}
	}
	return outcomes
}

func all(n int, err error) []Outcome {
	outcomes := make([]Outcome, n)
	for i := range outcomes {
		outcomes[i].Err = err
	}
	return outcomes
}

// A batch is what one transaction changes.
type batch struct {
	*Allocator
	chooser *chooser
	// grants are new leases, in order.
	grants []grant
	// changed are leases whose rows must be written, before what they were.
	changed []*lease
	before  map[*lease]held
	// wrote says which demands need the transaction.
	wrote []bool
}

func (b *batch) do(demands []Demand, inUse InUse) []Outcome {
	b.chooser = b.newChooser(inUse, false)
	outcomes := make([]Outcome, len(demands))
	b.wrote = make([]bool, len(demands))
	for i, d := range demands {
		if err := d.check(); err != nil {
			outcomes[i].Err = err
			continue
		}
		writes := len(b.grants) + len(b.changed)
		if d.Release {
			outcomes[i] = b.giveBack(d)
		} else {
			outcomes[i] = b.renew(d)
		}
		l := b.byHolder[clientHolder(d.Key)]
		_, touched := b.before[l]
		b.wrote[i] = touched || len(b.grants)+len(b.changed) > writes
	}
	return outcomes
}

func (b *batch) giveBack(d Demand) Outcome {
	l := b.byHolder[clientHolder(d.Key)]
	switch {
	case l == nil || !l.live:
	case !l.yields(d.Owner):
		return Outcome{Err: ErrNotOwner}
	default:
		b.note(l)
		b.release(l)
		// From now on it may be recycled in this batch.
		if b.chooser.candidate == nil && b.numbers.Contains(l.table) {
			b.chooser.candidate = b.free.last
		}
		b.chooser.holding = nil // Its interface may have no other.
	}
	return Outcome{}
}

// yields reports whether a user may change a live lease.
func (l *lease) yields(owner uint32) bool { return owner == 0 || owner == l.owner }

func (b *batch) renew(d Demand) Outcome {
	l := b.byHolder[clientHolder(d.Key)]
	if l != nil && l.live && !l.yields(d.Owner) {
		return Outcome{Err: ErrNotOwner}
	}
	fresh := l == nil || !l.live
	if fresh && d.Owner != 0 && d.Quota > 0 && b.owned[d.Owner] >= d.Quota {
		return Outcome{Err: &QuotaError{Owner: d.Owner, Quota: d.Quota}}
	}
	state := held{live: true, owner: d.Owner, tag: d.Tag, boot: b.boot, expires: b.second() + int64(d.Lifetime/time.Second)}
	if !fresh {
		state.owner = l.owner // Root renews it for its owner.
	}
	if l == nil || !b.numbers.Contains(l.table) {
		var err error
		if l, err = b.grant(d, state); err != nil {
			return Outcome{Err: err}
		}
	} else {
		b.keep(l, state)
	}
	return Outcome{Table: l.table, Expires: time.Duration(l.expires) * time.Second, New: fresh}
}

// keep makes or leaves an existing lease live.
func (b *batch) keep(l *lease, state held) {
	after := *l
	after.held = state
	if l.live && after.toStore() == l.stored && l.toStore() == l.stored {
		return // Renewed within a second: nothing to write.
	}
	b.note(l)
	if l.live {
		b.uncount(l)
	} else {
		b.chooser.leaves(l)
		b.chooser.holds(l.name())
		b.free.remove(l)
	}
	state.order, state.released = l.order, l.released
	l.held = state
	b.count(l)
}

// note remembers what a lease was.
func (b *batch) note(l *lease) {
	if _, known := b.before[l]; !known {
		b.before[l] = l.held
		b.changed = append(b.changed, l)
	}
}

func (b *batch) grant(d Demand, state held) (*lease, error) {
	if b.isScarce(b.chooser, d.Key.Interface) {
		return nil, &ScarceError{Range: b.configured(), Client: d.Key, Kept: b.chooser.keep}
	}
	chosen := choice{number: d.Table}
	if d.Table == 0 || !b.numbers.Contains(d.Table) || b.byTable[d.Table] != nil {
		var v verdict
		if chosen, v = b.number(b.chooser, d.Key.Interface); v != found {
			e := b.full(b.chooser, nil)
			e.Client = d.Key
			return nil, e
		}
	}
	b.chooser.taken(chosen.number)
	b.chooser.holds(d.Key.Interface)
	g := b.reserve(clientHolder(d.Key), chosen.number, chosen.victim, state)
	if g.old != nil && g.old.live {
		b.uncount(g.old)
	}
	b.byHolder[g.lease.holder] = g.lease
	b.generation.Add(1)
	b.count(g.lease)
	b.grants = append(b.grants, g)
	// What is changed again in this batch is written with the grant.
	b.before[g.lease] = held{}
	return g.lease, nil
}

func (b *batch) empty() bool { return len(b.grants)+len(b.changed) == 0 }

// commit makes the batch durable. Nobody else writes meanwhile; links that
// Acquire finds are answered.
func (b *batch) commit(ctx context.Context) error {
	b.mu.Lock()
	changes := make([]change, 0, len(b.changed))
	for _, l := range b.changed {
		changes = append(changes, change{lease: l, held: l.toStore()})
	}
	for _, g := range b.grants {
		g.lease.stored = g.lease.toStore()
	}
	b.mu.Unlock()
	err := transaction(ctx, b.db, func(tx *sql.Tx) error {
		if err := update(ctx, tx, changes); err != nil {
			return err
		}
		return write(ctx, tx, b.grants)
	})
	if err != nil {
		return databaseError(b.path, fmt.Sprintf("writing %d leases to", len(changes)+len(b.grants)), err)
	}
	b.logged, b.fault = true, nil
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range changes {
		c.lease.stored = c.held
	}
	for _, g := range b.grants {
		if g.old != nil {
			delete(b.byTable, g.old.table)
		}
	}
	return nil
}

// undo puts memory back to where it was.
func (b *batch) undo() {
	b.generation.Add(1)
	for _, g := range slices.Backward(b.grants) {
		delete(b.byTable, g.lease.table)
		if b.byHolder[g.lease.holder] == g.lease {
			delete(b.byHolder, g.lease.holder)
		}
		for _, l := range []*lease{g.victim, g.old} {
			if l != nil {
				b.byTable[l.table], b.byHolder[l.holder] = l, l
			}
		}
	}
	for _, l := range b.changed {
		l.held = b.before[l]
	}
	b.rebuild()
}

// fail says so to whoever needed the transaction.
func (b *batch) fail(outcomes []Outcome, err error) []Outcome {
	for i := range outcomes {
		if b.wrote[i] && outcomes[i].Err == nil {
			outcomes[i] = Outcome{Err: err}
		}
	}
	return outcomes
}
