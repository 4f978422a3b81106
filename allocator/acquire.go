package allocator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"multihomed/routing"
)

// Acquire returns the numbers of keys, leasing one to each that has none, and
// holds them until they are released. New leases are durable when it returns;
// all of them are written in one transaction.
//
// The map holds the keys that have a number, also when an error tells why
// others have none: FullError, DatabaseError, or a key that makes no sense.
func (a *Allocator) Acquire(ctx context.Context, keys []routing.Key, inUse InUse) (map[routing.Key]routing.TableID, error) {
	got := make(map[routing.Key]routing.TableID, len(keys))
	a.mu.Lock()
	missing := a.hold(keys, got)
	a.mu.Unlock()
	if len(missing) == 0 {
		return got, nil
	}
	return got, a.lease(ctx, missing, got, inUse)
}

// hold marks the keys that have a lease as held, and returns the others.
func (a *Allocator) hold(keys []routing.Key, got map[routing.Key]routing.TableID) (missing []routing.Key) {
	for _, key := range keys {
		l := a.byHolder[linkHolder(key)]
		if l == nil || !a.numbers.Contains(l.table) {
			missing = append(missing, key)
			continue
		}
		if !l.live {
			a.revive(l)
		}
		got[key] = l.table
	}
	return missing
}

// attempts at a new lease: the second after the file was found to be another
// one than we thought, and was brought in line.
const attempts = 2

// lease makes new leases.
func (a *Allocator) lease(ctx context.Context, missing []routing.Key, got map[routing.Key]routing.TableID, inUse InUse) error {
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
		if missing, again, err = a.tryLease(ctx, missing, got, inUse); !again {
			break
		}
	}
	return errors.Join(append(refused, err)...)
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
func (a *Allocator) tryLease(ctx context.Context, missing []routing.Key, got map[routing.Key]routing.TableID, inUse InUse) (left []routing.Key, again bool, err error) {
	a.mu.Lock()
	// Somebody else may have leased them while this call waited for the disk.
	missing = a.hold(missing, got)
	a.expire()
	grants, full := a.choose(missing, inUse)
	a.mu.Unlock()
	if len(grants) > 0 {
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
	if full != nil {
		return full.Keys, false, full
	}
	return nil, false, nil
}

// contradicts says that the file is not what memory thinks it is.
func contradicts(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT || errors.Is(err, errRowGone)
}

// A grant is a number that was chosen for a key and is not durable yet.
type grant struct {
	lease *lease
	// outside is the lease of the same key whose number left the range.
	outside *lease
	// victim is the released lease whose number is recycled.
	victim *lease
}

// choose reserves numbers in memory: the one that a client had for an address of
// the link, an unused one, or else the one that was released longest ago. Leases
// that are recycled are out of byHolder from here on, so that an Acquire of their
// keys waits for the outcome.
func (a *Allocator) choose(keys []routing.Key, inUse InUse) (grants []grant, full *FullError) {
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
	c := a.newChooser(inUse)
	for i, key := range others {
		number, victim, ok := a.number(c)
		if !ok {
			return grants, a.full(c, others[i:])
		}
		grants = append(grants, a.reserve(linkHolder(key), number, victim, held{live: true}))
	}
	return grants, nil
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
	return grant{lease: l, outside: a.byHolder[h], victim: victim}
}

func (a *Allocator) full(c *chooser, keys []routing.Key) *FullError {
	e := &FullError{Range: a.numbers, Keys: keys, Others: c.denied, Example: c.example}
	for _, l := range a.byTable {
		if l.live && a.numbers.Contains(l.table) {
			e.Live++
		}
	}
	return e
}

// A chooser goes through the numbers once for all keys of a batch.
type chooser struct {
	inUse     InUse
	next      uint64
	candidate *lease
	denied    int
	example   string
}

func (a *Allocator) newChooser(inUse InUse) *chooser {
	if inUse == nil {
		inUse = func(routing.TableID) (string, bool) { return "", false }
	}
	return &chooser{inUse: inUse, next: a.low, candidate: a.free.first}
}

// pass is told of a lease that leaves the queue otherwise than by number.
func (c *chooser) pass(l *lease) {
	if c.candidate == l {
		c.candidate = l.next
	}
}

// number finds the next number for a key.
func (a *Allocator) number(c *chooser) (number routing.TableID, victim *lease, ok bool) {
	for ; c.next <= uint64(a.numbers.Last); c.next++ {
		t := routing.TableID(c.next) //nolint:gosec // not above Last, which has 32 bits
		if a.byTable[t] != nil {
			if c.next == a.low {
				a.low++
			}
			continue
		}
		if c.free(t) {
			return t, nil, true
		}
	}
	for c.candidate != nil {
		l := c.candidate
		c.candidate = l.next
		if c.free(l.table) {
			return l.table, l, true
		}
	}
	return 0, nil, false
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
		for _, old := range []*lease{g.victim, g.outside} {
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
	for _, g := range grants {
		if g.outside != nil {
			delete(a.byTable, g.outside.table)
		}
		a.byHolder[g.lease.holder] = g.lease
		got[g.lease.link] = g.lease.table
	}
}

// undo takes grants back that could not be written.
func (a *Allocator) undo(grants []grant) {
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
