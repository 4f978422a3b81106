package allocator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"multihomed/routing"
)

// Flush writes which links hold their leases, since when the others do not, and
// which leases of clients have expired, in one transaction, and moves the log into
// the database. Call it every few minutes; nothing depends on it but the order in
// which numbers are recycled after a crash and what a reader of the file sees. It
// does nothing if nothing changed.
func (a *Allocator) Flush(ctx context.Context) error {
	a.disk.Lock()
	defer a.disk.Unlock()
	if a.closed {
		return ErrClosed
	}
	if a.readOnly {
		return nil
	}
	return a.flush(context.WithoutCancel(ctx))
}

// A change is bookkeeping that the disk lacks.
type change struct {
	lease *lease
	held  held
}

func (a *Allocator) flush(ctx context.Context) error {
	changes := a.changes()
	if len(changes) == 0 && !a.logged && !a.behind {
		return nil
	}
	if err := a.writable(ctx); err != nil {
		return err
	}
	if len(changes) > 0 {
		err := transaction(ctx, a.db, func(tx *sql.Tx) error { return update(ctx, tx, changes) })
		if err != nil {
			err = databaseError(a.path, fmt.Sprintf("updating %d leases in", len(changes)), err)
			a.drop(err)
			return err
		}
		a.logged = true
		a.mu.Lock()
		for _, c := range changes {
			c.lease.stored = c.held
		}
		a.mu.Unlock()
	}
	a.fault = nil
	return a.checkpoint(ctx)
}

// changes lists the leases of which the disk says something else.
func (a *Allocator) changes() []change {
	a.mu.Lock()
	defer a.mu.Unlock()
	var changes []change
	a.expire()
	for _, l := range a.byHolder {
		if h := l.toStore(); h != l.stored {
			changes = append(changes, change{lease: l, held: h})
		}
	}
	return changes
}

func update(ctx context.Context, tx *sql.Tx, changes []change) error {
	statement, err := tx.PrepareContext(ctx, updateLease)
	if err != nil {
		return err
	}
	defer statement.Close()
	for _, c := range changes {
		result, err := statement.ExecContext(ctx, updateArguments(c.lease, c.held)...)
		if err != nil {
			return err
		}
		// What is acknowledged must be there, whoever else had his hands in the file.
		if n, err := result.RowsAffected(); n != 1 || err != nil {
			return errors.Join(err, fmt.Errorf("%w: %v with table %d", errRowGone, c.lease.holder, c.lease.table))
		}
	}
	return nil
}

// checkpoint empties the log. Then the database is complete without it, for who
// copies the file, or reads it on a file system that became read-only.
func (a *Allocator) checkpoint(ctx context.Context) error {
	var busy, frames, moved int
	row := a.db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	if err := row.Scan(&busy, &frames, &moved); err != nil {
		return databaseError(a.path, "checkpointing", err)
	}
	// A reader in the middle of something: next time.
	a.logged = busy != 0
	return nil
}

// Forget deletes the leases of keys that are not held, durably. Their numbers
// count as unused afterwards. A key that is held is an error and keeps its lease.
func (a *Allocator) Forget(ctx context.Context, keys ...routing.Key) error {
	_, err := a.forget(ctx, func() (list []*lease, err error) {
		for _, key := range keys {
			l := a.byHolder[linkHolder(key)]
			switch {
			case l == nil || slices.Contains(list, l):
			case l.live:
				err = errors.Join(err, fmt.Errorf("forgetting the table of %v: the link is in use; release it first", key))
			default:
				list = append(list, l)
			}
		}
		return list, err
	})
	return err
}

// Purge deletes all leases that are not held, of links and of clients, and returns their
// number.
func (a *Allocator) Purge(ctx context.Context) (int, error) {
	return a.forget(ctx, func() (list []*lease, err error) {
		a.expire()
		for _, l := range a.byHolder {
			if !l.live {
				list = append(list, l)
			}
		}
		return list, nil
	})
}

func (a *Allocator) forget(ctx context.Context, choose func() ([]*lease, error)) (int, error) {
	a.disk.Lock()
	defer a.disk.Unlock()
	ctx = context.WithoutCancel(ctx)
	if err := a.writable(ctx); err != nil {
		return 0, err
	}
	// Out of memory first, so that nobody acquires them meanwhile: an Acquire
	// of such a key waits for the outcome.
	a.mu.Lock()
	list, refused := choose()
	for _, l := range list {
		delete(a.byHolder, l.holder)
		if a.numbers.Contains(l.table) {
			a.free.remove(l)
		}
	}
	a.mu.Unlock()
	if len(list) == 0 {
		return 0, refused
	}
	err := transaction(ctx, a.db, func(tx *sql.Tx) error {
		for _, l := range list {
			if _, err := tx.ExecContext(ctx, deleteLease, int64(l.table)); err != nil {
				return err
			}
		}
		return nil
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		for _, l := range list {
			a.byHolder[l.holder] = l
		}
		a.rebuild()
		err = databaseError(a.path, "deleting leases from", err)
		a.drop(err)
		return 0, errors.Join(refused, err)
	}
	a.logged = true
	for _, l := range list {
		delete(a.byTable, l.table)
		a.lowered(l.table)
	}
	return len(list), refused
}
