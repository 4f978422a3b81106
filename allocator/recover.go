package allocator

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// writable makes sure that the database is open and says what memory says.
func (a *Allocator) writable(ctx context.Context) error {
	switch {
	case a.closed:
		return ErrClosed
	case a.trial:
		return nil
	case a.readOnly:
		return &DatabaseError{Path: a.path, Doing: "writing to", Kind: ErrReadOnly, Cause: errors.New("it was opened for reading only")}
	case a.db != nil && a.unmoved() && !a.behind:
		return nil
	case a.db != nil && !a.unmoved():
		a.drop(&DatabaseError{Path: a.path, Doing: "writing to", Kind: errMoved})
	case a.db != nil:
		// It is read again, to find what it lacks.
		err := a.db.Close()
		a.db = nil
		if err != nil {
			a.fault = databaseError(a.path, "closing", err)
			return a.fault
		}
	}
	db, leases, err := a.openFile(ctx)
	if err != nil {
		a.fault = err
		return err
	}
	if err := a.align(ctx, db, leases); err != nil {
		err = errors.Join(databaseError(a.path, "rewriting the leases in", err), db.Close())
		a.fault = err
		return err
	}
	if err := a.use(db); err != nil {
		a.fault = err
		return err
	}
	a.fault, a.behind = nil, false
	return nil
}

// use takes a database that was just opened.
func (a *Allocator) use(db *sql.DB) error {
	file, err := os.Stat(a.path)
	if err != nil {
		return errors.Join(databaseError(a.path, "opening", err), db.Close())
	}
	// The log may hold what a crash left.
	a.db, a.file, a.logged = db, file, true
	return nil
}

// unmoved says that the path still names the file that is open. sqlite does not
// look in WAL mode, and would go on writing to a file that nobody finds again
// (https://www.sqlite.org/howtocorrupt.html, section 4.2).
func (a *Allocator) unmoved() bool {
	file, err := os.Stat(a.path)
	return err == nil && os.SameFile(file, a.file)
}

// align brings a database that was opened again in line with memory, which may
// differ after a commit whose outcome is not known, after the file was deleted
// while it was open, or after a backup was put in its place.
func (a *Allocator) align(ctx context.Context, db *sql.DB, onDisk []*lease) error {
	a.mu.Lock()
	stale, late, lacking := a.compare(onDisk)
	a.mu.Unlock()
	if len(stale)+len(late)+len(lacking) > 0 {
		err := transaction(ctx, db, func(tx *sql.Tx) error {
			for _, t := range stale {
				if _, err := tx.ExecContext(ctx, deleteLease, int64(t)); err != nil {
					return err
				}
			}
			for _, c := range lacking {
				if _, err := tx.ExecContext(ctx, insertLease, insertArguments(c.lease, c.held)...); err != nil {
					return err
				}
			}
			return update(ctx, tx, late)
		})
		if err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range slices.Concat(late, lacking) {
		c.lease.stored = c.held
	}
	a.adopt(onDisk, false)
	return nil
}

// compare finds the numbers whose rows contradict memory, the leases whose rows
// say something else about when they end, and those that have no row.
func (a *Allocator) compare(onDisk []*lease) (stale []routing.TableID, late, lacking []change) {
	rows := make(map[routing.TableID]bool, len(onDisk))
	for _, row := range onDisk {
		byTable, byKey := a.byTable[row.table], a.byHolder[row.holder]
		switch {
		case byTable == nil && byKey == nil && row.table == a.kept:
			stale = append(stale, row.table) // From a backup of version 1.
		case byTable == nil && byKey == nil:
			// Only the disk knows it.
		case byTable == byKey:
			rows[row.table] = true
			byTable.stored = row.stored
			if h := byTable.toStore(); h != row.stored {
				late = append(late, change{lease: byTable, held: h})
			}
		default:
			stale = append(stale, row.table)
		}
	}
	for t, l := range a.byTable {
		if !rows[t] {
			lacking = append(lacking, change{lease: l, held: l.toStore()})
		}
	}
	return stale, late, lacking
}

// drop closes the database after a failed write, so that the next one starts
// from what is really there. While another process holds the lock nothing was
// written and nothing is unclear.
func (a *Allocator) drop(fault error) {
	a.fault = fault
	if errors.Is(fault, ErrLocked) || a.db == nil {
		return
	}
	if err := a.db.Close(); err != nil {
		a.fault = errors.Join(fault, databaseError(a.path, "closing", err))
	}
	a.db = nil
}

// canStillRead says that a failure to open the database for writing need not be
// one for reading.
func canStillRead(err error) bool {
	return errors.Is(err, ErrReadOnly) || errors.Is(err, ErrDiskFull) || errors.Is(err, ErrIO)
}

// readCopy reads the leases from a copy of the database.
func readCopy(ctx context.Context, path, scratch string) ([]*lease, error) {
	if err := checkFile(path); err != nil {
		return nil, databaseError(path, "opening", err)
	}
	copied, remove, err := copyAside(path, scratch)
	if err != nil {
		return nil, databaseError(path, "copying", err)
	}
	db, leases, err := openWritable(ctx, copied)
	if err == nil {
		err = databaseError(copied, "closing", db.Close())
	}
	if err = errors.Join(err, remove()); err != nil {
		return nil, err
	}
	return leases, nil
}

// readLeases reads the leases without writing to the database.
func readLeases(ctx context.Context, path, scratch string) ([]*lease, error) {
	err := checkFile(path)
	if err == nil {
		// Not by opening it: to close a file gives up the locks that sqlite has
		// on it in the same process (fcntl(2)).
		err = unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &DatabaseError{Path: path, Doing: "opening", Kind: ErrMissing, Cause: err}
	case errors.Is(err, fs.ErrPermission):
		return nil, &DatabaseError{Path: path, Doing: "opening", Kind: ErrUnreadable, Cause: err}
	case err != nil:
		return nil, databaseError(path, "opening", err)
	}
	// Without a log nobody has the database open, and it can be read without
	// the shared memory that a reader would have to create beside it.
	mode := "&immutable=1"
	if logged(path) {
		mode = "&mode=ro"
	}
	leases, err := readOnce(ctx, path, mode, scratch)
	if errors.Is(err, ErrCorrupt) && mode != "&mode=ro" && logged(path) {
		// A writer came in between.
		return readOnce(ctx, path, "&mode=ro", scratch)
	}
	return leases, err
}

func logged(path string) bool {
	_, err := os.Lstat(path + logSuffix)
	return err == nil
}

func readOnce(ctx context.Context, path, mode, scratch string) ([]*lease, error) {
	db, err := connect(parameters(path) + mode)
	if err != nil {
		return nil, databaseError(path, "opening", err)
	}
	leases, current, err := readCurrent(ctx, db, path)
	err = errors.Join(err, databaseError(path, "closing", db.Close()))
	if (err == nil && !current) || canStillRead(err) {
		return readCopy(ctx, path, scratch)
	}
	return leases, err
}

// readCurrent reads a database if its schema is the current one.
func readCurrent(ctx context.Context, db *sql.DB, path string) (leases []*lease, current bool, err error) {
	version, err := identify(ctx, db, path)
	if err != nil {
		return nil, false, err
	}
	latest, err := latestVersion()
	if err != nil || version < latest {
		return nil, false, err
	}
	leases, err = load(ctx, db, path)
	return leases, true, err
}
