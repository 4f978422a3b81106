package allocator

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"multihomed/routing"
)

// applicationID marks the file as ours in its header ("MHL1"), see
// https://www.sqlite.org/pragma.html#pragma_application_id. file(1) shows it.
const applicationID = 0x4d484c31

// busyTimeout in milliseconds. Nobody else writes: the daemon and the
// dispatcher take turns by another lock. What may be in the way for a moment is
// a reader that recovers the log after a crash.
const busyTimeout = 250

//go:embed migrations/*.sql
var migrations embed.FS

// parameters of every connection. Durability first: in WAL mode synchronous=FULL
// syncs the log once for each commit. The cache is small because so is the
// database, and nothing is read after the start.
func parameters(path string, more ...string) string {
	q := url.Values{"_txlock": {"immediate"}}
	q["_pragma"] = append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout),
		"synchronous(FULL)", "cache_size(-128)", "trusted_schema(0)",
	}, more...)
	u := url.URL{Path: path}
	return "file:" + u.EscapedPath() + "?" + q.Encode()
}

// connect opens a database with exactly one connection. Nothing is read yet.
func connect(dsn string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// openWritable opens or creates the database, brings its schema up to date and
// reads it.
func openWritable(ctx context.Context, path string) (*sql.DB, []*lease, error) {
	if err := prepareFile(path); err != nil {
		return nil, nil, err
	}
	db, err := connect(parameters(path) + "&mode=rw")
	if err != nil {
		return nil, nil, databaseError(path, "opening", err)
	}
	leases, err := prepare(ctx, db, path)
	if err != nil {
		return nil, nil, errors.Join(err, databaseError(path, "closing", db.Close()))
	}
	return db, leases, nil
}

func prepare(ctx context.Context, db *sql.DB, path string) ([]*lease, error) {
	version, err := identify(ctx, db, path)
	if err != nil {
		return nil, err
	}
	// Only now, so that a file that is not ours is not changed. The mode is kept
	// in the file.
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode=WAL").Scan(&mode); err != nil {
		return nil, databaseError(path, "opening", err)
	}
	if mode != "wal" {
		return nil, &DatabaseError{Path: path, Doing: "opening", Cause: fmt.Errorf("journal mode is %s, not wal: the file system lacks shared memory or locks", mode)}
	}
	if err := migrate(ctx, db, path, version); err != nil {
		return nil, err
	}
	return load(ctx, db, path)
}

// identify returns the schema version, 0 for a new file.
func identify(ctx context.Context, db *sql.DB, path string) (int, error) {
	const query = `SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id, pragma_user_version`
	var application, version, objects int
	if err := db.QueryRowContext(ctx, query).Scan(&application, &version, &objects); err != nil {
		return 0, databaseError(path, "opening", err)
	}
	latest, err := latestVersion()
	switch {
	case err != nil:
		return 0, err
	case application == 0 && version == 0 && objects == 0:
		return 0, nil
	case application != applicationID:
		return 0, &DatabaseError{Path: path, Doing: "opening", Kind: ErrForeign, Cause: fmt.Errorf("its application id is %#x, not %#x", application, applicationID)}
	case version > latest:
		return 0, &DatabaseError{Path: path, Doing: "opening", Kind: ErrNewer, Cause: fmt.Errorf("schema %d, this release knows %d", version, latest)}
	}
	return version, nil
}

// latestVersion is the number of migrations: the file names are in order, the
// first leads to version 1.
func latestVersion() (int, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, fmt.Errorf("listing migrations: %w", err)
	}
	return len(names), nil
}

// migrate runs the migrations that the file lacks, all or none.
func migrate(ctx context.Context, db *sql.DB, path string, version int) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return fmt.Errorf("listing migrations: %w", err)
	}
	if version >= len(names) {
		return nil
	}
	slices.Sort(names)
	return transaction(ctx, db, func(tx *sql.Tx) error {
		for _, name := range names[version:] {
			text, err := migrations.ReadFile(name)
			if err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				if isOtherSchema(err) {
					return corrupt(path, fmt.Errorf("it cannot be brought to schema %s: %w", name, err))
				}
				return databaseError(path, "bringing to schema "+name, err)
			}
		}
		header := fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=%d", applicationID, len(names))
		if _, err := tx.ExecContext(ctx, header); err != nil {
			return databaseError(path, "bringing to its schema", err)
		}
		return nil
	})
}

// transaction runs do in one transaction. The context must not be one that can
// be cancelled: a commit has to have an outcome that is known.
func transaction(ctx context.Context, db *sql.DB, do func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		if back := tx.Rollback(); back != nil {
			return errors.Join(err, back)
		}
		return err
	}
	return tx.Commit()
}

// load checks the file and reads all leases. Stored states are set, the others
// are as the disk has them.
func load(ctx context.Context, db *sql.DB, path string) ([]*lease, error) {
	// The database is small: 0.2 ms for 1,000 leases.
	var health string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&health); err != nil {
		return nil, databaseError(path, "checking", err)
	}
	if health != "ok" {
		return nil, corrupt(path, errors.New(health))
	}
	leases, err := query(ctx, db)
	if err == nil {
		err = compiles(ctx, db)
	}
	if err != nil {
		if _, ok := errors.AsType[*rowError](err); ok || isOtherSchema(err) {
			return nil, corrupt(path, err)
		}
		return nil, databaseError(path, "reading", err)
	}
	return leases, nil
}

// compiles reports whether what changes leases can be done with the tables that the file
// has. A file may be whole, and lack one of them, or have a view in its place.
func compiles(ctx context.Context, db *sql.DB) error {
	for _, statement := range []string{deleteLease, insertLease, updateLease} {
		if err := compilesOne(ctx, db, statement); err != nil {
			return err
		}
	}
	return nil
}

func compilesOne(ctx context.Context, db *sql.DB, statement string) (err error) {
	prepared, err := db.PrepareContext(ctx, statement)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, prepared.Close()) }()
	return nil
}

// isOtherSchema reports whether a statement cannot be compiled: our statements make sense
// for our schema, so the file has another one, whatever its header says (SQLITE_ERROR,
// https://www.sqlite.org/rescode.html#error).
func isOtherSchema(err error) bool {
	e, is := errors.AsType[*sqlite.Error](err)
	return is && e.Code()&0xff == sqlite3.SQLITE_ERROR
}

func corrupt(path string, cause error) error {
	return &DatabaseError{Path: path, Doing: "reading", Kind: ErrCorrupt, Cause: cause}
}

func query(ctx context.Context, db *sql.DB) (leases []*lease, err error) {
	rows, err := db.QueryContext(ctx, `SELECT number, kind, family, interface, subject, created_at, released_at, release_order, owner, tag, boot, expires_at FROM tables`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		l, err := scan(rows)
		if err != nil {
			return nil, err
		}
		leases = append(leases, l)
	}
	return leases, rows.Err()
}

// A rowError says that a row holds what no release writes.
type rowError struct {
	number int64
	cause  error
}

func (e *rowError) Error() string { return fmt.Sprintf("table %d: %v", e.number, e.cause) }

func (e *rowError) Unwrap() error { return e.cause }

// maxExpiry in seconds: more than any host runs, and far from what time.Duration
// holds.
const maxExpiry = 1 << 32

func scan(rows *sql.Rows) (*lease, error) {
	var (
		number   int64
		r        row
		released sql.NullInt64
		l        lease
	)
	if err := rows.Scan(&number, &r.kind, &r.family, &r.name, &r.subject, &l.created, &released, &l.order,
		&l.owner, &l.tag, &l.boot, &l.expires); err != nil {
		return nil, &rowError{number, err}
	}
	if l.expires < 0 || l.expires > maxExpiry {
		return nil, &rowError{number, fmt.Errorf("it expires at %d", l.expires)}
	}
	h, err := r.holder()
	if err != nil {
		return nil, &rowError{number, err}
	}
	l.holder = h
	l.table = routing.TableID(number) //nolint:gosec // the schema limits it to 32 bits
	l.live, l.released = !released.Valid, released.Int64
	l.stored = l.toStore()
	return &l, nil
}

// The three statements that change leases. The second finds its row only if the
// lease is the one that it is meant for.
const (
	deleteLease = `DELETE FROM tables WHERE number = ?`
	insertLease = `INSERT INTO tables (number, kind, family, interface, subject, created_at,
		released_at, release_order, owner, tag, boot, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	updateLease = `UPDATE tables SET released_at = ?, release_order = ?, owner = ?, tag = ?, boot = ?, expires_at = ?
		WHERE number = ? AND kind = ? AND family = ? AND interface = ? AND subject = ?`
)

// insertArguments are the arguments of insertLease.
func insertArguments(l *lease, h held) []any {
	return append(append(l.identity(), l.created), h.columns()...)
}

// updateArguments are the arguments of updateLease.
func updateArguments(l *lease, h held) []any { return append(h.columns(), l.identity()...) }

// identity are the columns that never change.
func (l *lease) identity() []any {
	r := l.row()
	return []any{int64(l.table), r.kind, r.family, r.name, r.subject}
}

func (h held) columns() []any {
	return []any{sql.NullInt64{Int64: h.released, Valid: !h.live}, h.order, int64(h.owner), h.tag, h.boot, h.expires}
}
