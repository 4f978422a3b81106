package allocator

import (
	"context"
	"database/sql"
	"fmt"

	"multihomed/routing"
)

// An Imported is a lease that another program made.
type Imported struct {
	Key   ClientKey
	Table routing.TableID
	Tag   string
}

// A Fate says what Import did with one lease.
type Fate uint8

// Only Entered changes something.
const (
	// Entered: the key has this number now.
	Entered Fate = iota
	// Already: the key has had this number before.
	Already
	// Taken: another lease has the number.
	Taken
	// Other: the key has another number.
	Other
	// Outside: the range does not hold the number.
	Outside
	// Kept: the number is the last of the range, which is kept for failover.
	Kept
	// Senseless: the key or the tag makes no sense.
	Senseless
)

// An ImportResult tells the fate of one Imported, and why in words.
type ImportResult struct {
	Imported
	Fate Fate
	Why  string
}

// Import enters leases of clients with given numbers, as released ones: their
// clients, or the links that have their addresses, get these numbers when they
// ask. All are entered in one transaction or none; what contradicts a lease that
// is there already is left out. With try, nothing is entered.
func (a *Allocator) Import(ctx context.Context, leases []Imported, try bool) ([]ImportResult, error) {
	a.disk.Lock()
	defer a.disk.Unlock()
	ctx = context.WithoutCancel(ctx)
	if !try {
		if err := a.writable(ctx); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	results, entered := a.judge(leases)
	a.mu.Unlock()
	if try || len(entered) == 0 {
		return results, nil
	}
	err := transaction(ctx, a.db, func(tx *sql.Tx) error {
		for _, l := range entered {
			if _, err := tx.ExecContext(ctx, insertLease, insertArguments(l, l.stored)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		err = databaseError(a.path, fmt.Sprintf("importing %d leases into", len(entered)), err)
		a.drop(err)
		return nil, err
	}
	a.logged = true
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range entered {
		a.byTable[l.table], a.byHolder[l.holder] = l, l
		a.order = max(a.order, l.order)
	}
	a.rebuild()
	return results, nil
}

// judge decides which leases can be entered.
func (a *Allocator) judge(leases []Imported) (results []ImportResult, entered []*lease) {
	byTable, byHolder := map[routing.TableID]*lease{}, map[holder]*lease{}
	now := a.now().UnixMilli()
	for _, i := range leases {
		h := clientHolder(i.Key)
		known, holding := a.byHolder[h], a.byTable[i.Table]
		if known == nil {
			known = byHolder[h]
		}
		if holding == nil {
			holding = byTable[i.Table]
		}
		r := ImportResult{Imported: i}
		err := checkClientKey(i.Key)
		switch {
		case err != nil:
			r.Fate, r.Why = Senseless, err.Error()
		case len(i.Tag) > maxTag:
			r.Fate, r.Why = Senseless, fmt.Sprintf("the tag has %d bytes, %d is the most", len(i.Tag), maxTag)
		case i.Table == a.kept:
			r.Fate, r.Why = Kept, fmt.Sprintf("the last table of %v is kept for failover", a.configured())
		case !a.numbers.Contains(i.Table):
			r.Fate, r.Why = Outside, fmt.Sprintf("the range of tables is %v", a.configured())
		case known != nil && known.table == i.Table:
			r.Fate, r.Why = Already, "it has this table already"
		case known != nil:
			r.Fate, r.Why = Other, fmt.Sprintf("it has table %v already", known.table)
		case holding != nil:
			r.Fate, r.Why = Taken, fmt.Sprintf("the table is that of %v", holding.holder)
		default:
			l := &lease{holder: h, table: i.Table, created: now, held: held{
				released: now, order: a.order + int64(len(entered)) + 1, tag: i.Tag,
			}}
			l.stored = l.toStore()
			byTable[i.Table], byHolder[h] = l, l
			entered = append(entered, l)
		}
		results = append(results, r)
	}
	return results, entered
}
