package allocator

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"multihomed/routing"
)

// Acquire returns the numbers of keys, leasing one to each that has none, and
// holds them until they are released. New leases are durable when it returns;
// all of them are written in one transaction.
//
// The map holds the keys that have a number, also when an error tells why
// others have none: FullError, ScarceError, DatabaseError, or a key that makes no
// sense.
func (a *Allocator) Acquire(ctx context.Context, keys []routing.Key, inUse InUse) (map[routing.Key]routing.TableID, error) {
	return a.acquire(ctx, keys, nil, inUse)
}

// Move gives other numbers to keys, in place of those that from names: somebody else uses
// these. The new leases are durable when it returns, and the old ones are gone, all in one
// transaction; the keys are held. A key that has another number by now keeps that. One for
// which there is no number keeps the one it has, and is not in the map; the error says why,
// as that of Acquire.
//
// The numbers come from the end of the range. Programs that do not ask for a number count
// upwards (FRR's pbrd from 10000), and the next number would be the next one they take.
func (a *Allocator) Move(ctx context.Context, from map[routing.Key]routing.TableID, inUse InUse) (map[routing.Key]routing.TableID, error) {
	keys := slices.SortedFunc(maps.Keys(from), func(x, y routing.Key) int { return cmp.Compare(from[x], from[y]) })
	return a.acquire(ctx, keys, from, inUse)
}

func (a *Allocator) acquire(ctx context.Context, keys []routing.Key, from map[routing.Key]routing.TableID, inUse InUse) (map[routing.Key]routing.TableID, error) {
	got := make(map[routing.Key]routing.TableID, len(keys))
	a.mu.Lock()
	missing := a.hold(keys, from, got)
	a.mu.Unlock()
	if len(missing) == 0 {
		return got, nil
	}
	return got, a.lease(ctx, missing, from, got, inUse)
}

// hold marks the keys that have a lease as held, and returns those that need another one:
// they have none, or one that from names.
func (a *Allocator) hold(keys []routing.Key, from, got map[routing.Key]routing.TableID) (missing []routing.Key) {
	for _, key := range keys {
		l := a.byHolder[linkHolder(key)]
		if l == nil || !a.numbers.Contains(l.table) {
			missing = append(missing, key)
			continue
		}
		if !l.live {
			a.revive(l)
		}
		if l.table == from[key] {
			missing = append(missing, key)
			continue
		}
		got[key] = l.table
	}
	return missing
}

// attempts at a new lease: the second after the file was found to be another
// one than we thought, and was brought in line.
const attempts = 2

// lease makes new leases.
func (a *Allocator) lease(ctx context.Context, missing []routing.Key, from, got map[routing.Key]routing.TableID, inUse InUse) error {
	var refused []error
	missing, refused = valid(missing)
	if len(missing) == 0 {
		return errors.Join(refused...)
	}
	a.disk.Lock()
	defer a.disk.Unlock()
	if err := ctx.Err(); err != nil {
		return errors.Join(append(refused, fmt.Errorf("leasing a table to %v: %w", missing[0], context.Cause(ctx)))...)
	}
	ctx = context.WithoutCancel(ctx)
	var err error
	for range attempts {
		if err = a.writable(ctx); err != nil {
			break
		}
		var again bool
		if missing, again, err = a.tryLease(ctx, missing, from, got, inUse); !again {
			break
		}
	}
	if _, disk := errors.AsType[*DatabaseError](err); disk && a.anyhow && !a.readOnly {
		err = a.leaseInMemory(missing, from, got, inUse)
	}
	return errors.Join(append(refused, err)...)
}

// leaseInMemory gives numbers that the disk does not take. They are written as soon as
// it does, and until then the kernel tells whose they are (Options.Standing). Only
// numbers that no lease has are given: the file still says whose the others are.
func (a *Allocator) leaseInMemory(missing []routing.Key, from, got map[routing.Key]routing.TableID, inUse InUse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing = a.hold(missing, from, got)
	c := a.newChooser(inUse, from != nil)
	c.candidate = nil
	grants, unserved := a.chooseWith(c, missing)
	if len(grants) > 0 {
		a.settle(grants, got)
		a.behind = true
	}
	return unserved
}

// valid drops keys twice in the list and keys that make no sense.
func valid(keys []routing.Key) (good []routing.Key, refused []error) {
	seen := make(map[routing.Key]bool, len(keys))
	for _, key := range keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		if err := checkKey(key); err != nil {
			refused = append(refused, fmt.Errorf("leasing a table to %v: %w", key, err))
			continue
		}
		good = append(good, key)
	}
	return good, refused
}

// tryLease chooses numbers and commits them. It returns the keys that still
// have none, and whether to try once more.
func (a *Allocator) tryLease(ctx context.Context, missing []routing.Key, from, got map[routing.Key]routing.TableID, inUse InUse) (left []routing.Key, again bool, err error) {
	a.mu.Lock()
	// Somebody else may have leased them while this call waited for the disk.
	missing = a.hold(missing, from, got)
	a.expire()
	var grants []grant
	var unserved error
	if from != nil {
		grants, unserved = a.chooseWith(a.newChooser(inUse, true), missing)
	} else {
		grants, unserved = a.choose(missing, inUse)
	}
	a.mu.Unlock()
	if len(grants) > 0 && !a.trial {
		if err := transaction(ctx, a.db, func(tx *sql.Tx) error { return write(ctx, tx, grants) }); err != nil {
			a.mu.Lock()
			a.undo(grants)
			a.mu.Unlock()
			again = contradicts(err)
			err = databaseError(a.path, fmt.Sprintf("writing %d new leases to", len(grants)), err)
			a.drop(err)
			return missing, again, err
		}
		a.logged, a.fault = true, nil
	}
	a.mu.Lock()
	a.settle(grants, got)
	a.mu.Unlock()
	return nil, false, unserved
}

// contradicts says that the file is not what memory thinks it is.
func contradicts(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT || errors.Is(err, errRowGone)
}

// A grant is a number that was chosen for a key and is not durable yet.
type grant struct {
	lease *lease
	// old is the lease of the same key whose number left the range, or is somebody else's.
	old *lease
	// victim is the released lease whose number is recycled.
	victim *lease
}

// choose reserves numbers in memory: the one that a client had for an address of
// the link, an unused one, or else the one that was released longest ago. Leases
// that are recycled are out of byHolder from here on, so that an Acquire of their
// keys waits for the outcome. The error says which keys get none.
func (a *Allocator) choose(keys []routing.Key, inUse InUse) (grants []grant, unserved error) {
	// Before the chooser looks at the queue, so that it does not come upon a
	// number that was taken over, nor recycle one that another key takes over.
	formerly := a.formerly(len(keys))
	others := make([]routing.Key, 0, len(keys))
	for _, key := range keys {
		if victim := formerly.take(key, a.byTable); victim != nil {
			grants = append(grants, a.reserve(linkHolder(key), victim.table, victim, held{live: true}))
		} else {
			others = append(others, key)
		}
	}
	more, unserved := a.chooseWith(a.newChooser(inUse, false), others)
	return append(grants, more...), unserved
}

// chooseWith reserves the next numbers of a chooser.
func (a *Allocator) chooseWith(c *chooser, keys []routing.Key) (grants []grant, unserved error) {
	var refused []routing.Key
	for i, key := range keys {
		chosen, verdict := a.number(c, key.Interface)
		if verdict == exhausted {
			unserved = a.full(c, keys[i:])
			break
		}
		if verdict == scarce {
			refused = append(refused, key)
			continue
		}
		grants = append(grants, a.reserve(linkHolder(key), chosen.number, chosen.victim, held{live: true}))
	}
	if len(refused) > 0 {
		unserved = errors.Join(unserved, &ScarceError{Range: a.configured(), Keys: refused, Kept: c.keep})
	}
	return grants, unserved
}

// reserve gives a number to a holder in memory. Until it is durable, settle or
// undo must follow.
func (a *Allocator) reserve(h holder, number routing.TableID, victim *lease, state held) grant {
	l := &lease{holder: h, table: number, created: a.now().UnixMilli(), held: state}
	l.stored = l.toStore()
	if victim != nil {
		a.free.remove(victim)
		delete(a.byHolder, victim.holder)
	}
	a.byTable[number] = l
	if uint64(number) == a.low {
		a.low++
	}
	return grant{lease: l, old: a.byHolder[h], victim: victim}
}

func (a *Allocator) full(c *chooser, keys []routing.Key) *FullError {
	e := &FullError{Range: a.configured(), Keys: keys, Others: c.denied, Example: c.example}
	for _, l := range a.byTable {
		if l.live && a.numbers.Contains(l.table) {
			e.Live++
		}
	}
	return e
}

// A chooser goes through the numbers once for all keys of a batch.
type chooser struct {
	inUse InUse
	// keep is how many numbers are left to interfaces that have none.
	keep int
	// next is the number to look at next; down says that they are looked at from the last.
	next      uint64
	down      bool
	candidate *lease
	// ahead are the numbers that come next: as many as have to be known to tell
	// whether more than those to keep are left.
	ahead []choice
	// holding are the interfaces that have a live lease, nil if that was not asked.
	holding map[string]bool
	denied  int
	example string
}

// A choice is a number that can be leased, and the released lease that it is taken
// from.
type choice struct {
	number routing.TableID
	victim *lease
}

func (a *Allocator) newChooser(inUse InUse, down bool) *chooser {
	if inUse == nil {
		inUse = func(routing.TableID) (string, bool) { return "", false }
	}
	c := &chooser{inUse: inUse, keep: routing.KeptForNew(a.numbers.Size()), next: a.low, candidate: a.free.first}
	if down {
		c.down, c.next = true, uint64(a.numbers.Last)
	}
	return c
}

// leaves is told of a released lease that leaves the queue otherwise than by number.
func (c *chooser) leaves(l *lease) {
	if c.candidate == l {
		c.candidate = l.next
	}
	c.taken(l.table)
}

// taken is told of a number that is taken otherwise than by number.
func (c *chooser) taken(t routing.TableID) {
	c.ahead = slices.DeleteFunc(c.ahead, func(o choice) bool { return o.number == t })
}

// A verdict says whether there is a number for an interface.
type verdict uint8

const (
	found verdict = iota
	// scarce: those that are left are not for this interface.
	scarce
	exhausted
)

// number finds the next number for a key of an interface.
func (a *Allocator) number(c *chooser, name string) (choice, verdict) {
	switch {
	case a.isScarce(c, name):
		return choice{}, scarce
	case len(c.ahead) == 0:
		return choice{}, exhausted
	}
	chosen := c.ahead[0]
	c.ahead = c.ahead[1:]
	c.holds(name)
	return chosen, found
}

// holds is told of an interface that has a live lease from now on.
func (c *chooser) holds(name string) {
	if c.holding != nil {
		c.holding[name] = true
	}
}

// isScarce reports whether the numbers that are left are not for this interface. It
// looks ahead.
func (a *Allocator) isScarce(c *chooser, name string) bool {
	for len(c.ahead) <= c.keep {
		next, ok := a.another(c)
		if !ok {
			break
		}
		c.ahead = append(c.ahead, next)
	}
	if len(c.ahead) == 0 || len(c.ahead) > c.keep {
		return false
	}
	if c.holding == nil {
		c.holding = map[string]bool{}
		for _, l := range a.byTable {
			if l.live && a.numbers.Contains(l.table) {
				c.holding[l.name()] = true
			}
		}
	}
	return c.holding[name]
}

// another finds a number that is not yet ahead.
func (a *Allocator) another(c *chooser) (choice, bool) {
	for c.down && c.next >= uint64(a.numbers.First) {
		t := routing.TableID(c.next) //nolint:gosec // not above Last, which has 32 bits
		c.next--
		if a.byTable[t] == nil && c.free(t) {
			return choice{number: t}, true
		}
	}
	for !c.down && c.next <= uint64(a.numbers.Last) {
		t := routing.TableID(c.next) //nolint:gosec // not above Last, which has 32 bits
		c.next++
		if a.byTable[t] != nil {
			if uint64(t) == a.low {
				a.low++
			}
			continue
		}
		if c.free(t) {
			return choice{number: t}, true
		}
	}
	for c.candidate != nil {
		l := c.candidate
		c.candidate = l.next
		if c.free(l.table) {
			return choice{number: l.table, victim: l}, true
		}
	}
	return choice{}, false
}

// free asks the caller.
func (c *chooser) free(t routing.TableID) bool {
	why, used := c.inUse(t)
	if used {
		c.denied++
		if c.example == "" {
			c.example = fmt.Sprintf("%d: %s", uint32(t), why)
		}
	}
	return !used
}

// write puts grants into the database.
func write(ctx context.Context, tx *sql.Tx, grants []grant) error {
	insert, err := tx.PrepareContext(ctx, insertLease)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, g := range grants {
		for _, old := range []*lease{g.victim, g.old} {
			if old == nil {
				continue
			}
			if _, err := tx.ExecContext(ctx, deleteLease, int64(old.table)); err != nil {
				return err
			}
		}
		if _, err := insert.ExecContext(ctx, insertArguments(g.lease, g.lease.stored)...); err != nil {
			return err
		}
	}
	return nil
}

// settle makes grants that are durable known.
func (a *Allocator) settle(grants []grant, got map[routing.Key]routing.TableID) {
	a.generation.Add(1)
	for _, g := range grants {
		if g.old != nil {
			delete(a.byTable, g.old.table)
			a.lowered(g.old.table)
		}
		a.byHolder[g.lease.holder] = g.lease
		got[g.lease.link] = g.lease.table
	}
}

// undo takes grants back that could not be written.
func (a *Allocator) undo(grants []grant) {
	a.generation.Add(1)
	for _, g := range grants {
		if g.victim == nil {
			delete(a.byTable, g.lease.table)
			a.lowered(g.lease.table)
			continue
		}
		a.byTable[g.victim.table], a.byHolder[g.victim.holder] = g.victim, g.victim
		if a.numbers.Contains(g.victim.table) {
			a.free.insert(g.victim)
		}
	}
}
