package allocator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// asideInfix is what stands between the name of the database and the time in the name
// of one that was moved aside.
const asideInfix = ".aside-"

// keptAside is how many databases that were moved aside are kept; the oldest goes when
// there are more.
const keptAside = 5

// openFile is openWritable, for an allocator that may make the database anew.
func (a *Allocator) openFile(ctx context.Context) (*sql.DB, []*lease, error) {
	db, leases, err := openWritable(ctx, a.path)
	if err == nil || !a.anyhow {
		return db, leases, err
	}
	stranger := ofAnother(a.path, err)
	if !stranger && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) {
		return nil, nil, err
	}
	var known []*lease
	if stranger {
		// It may be sound, and readable.
		if known, _ = readCopy(ctx, a.path, a.scratch); known == nil {
			known = []*lease{}
		}
	}
	to, failed := moveAside(a.path, a.now())
	if failed != nil {
		return nil, nil, errors.Join(err, fmt.Errorf("moving it aside: %w", failed))
	}
	a.moved(to, err)
	if db, leases, err = openWritable(ctx, a.path); err != nil || len(known) == 0 {
		return db, leases, err
	}
	// What was read is written to the new one as if memory had known it.
	a.mu.Lock()
	a.adopt(known, false)
	a.mu.Unlock()
	err = databaseError(a.path, "rewriting the leases in", a.align(ctx, db, leases))
	if err == nil {
		leases, err = load(ctx, db, a.path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, leases, nil
}

// ofAnother reports whether a database cannot be opened because it is another user's.
// That its directory or its file system cannot be written is no such case.
func ofAnother(path string, err error) bool {
	if !errors.Is(err, ErrReadOnly) {
		return false
	}
	denied := false
	for _, suffix := range []string{"", logSuffix, indexSuffix} {
		denied = denied || errors.Is(unix.Faccessat(unix.AT_FDCWD, path+suffix, unix.R_OK|unix.W_OK, unix.AT_EACCESS), unix.EACCES)
	}
	return denied && unix.Faccessat(unix.AT_FDCWD, filepath.Dir(path), unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil
}

// moveAside gives a database another name, and returns that. Nothing is overwritten.
// The log goes first: beside a new database sqlite would take it for that one's
// (https://www.sqlite.org/howtocorrupt.html, section 1.4).
func moveAside(path string, now time.Time) (string, error) {
	names, err := aside(path)
	if err != nil {
		return "", err
	}
	next := 1
	if len(names) > 0 {
		next = sequence(path, names[len(names)-1]) + 1
	}
	to := fmt.Sprintf("%s%s%06d-%s", path, asideInfix, next, now.UTC().Format("20060102T150405Z"))
	for _, suffix := range []string{logSuffix, indexSuffix, ""} {
		err := unix.Renameat2(unix.AT_FDCWD, path+suffix, unix.AT_FDCWD, to+suffix, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) {
			// A file system without RENAME_NOREPLACE; that the name is free was seen.
			err = os.Rename(path+suffix, to+suffix)
		}
		if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return "", err
		}
	}
	return to, errors.Join(syncDirectory(filepath.Dir(path)), thinOut(path))
}

// aside lists the databases that were moved aside, in that order.
func aside(path string) (names []string, err error) {
	found, err := filepath.Glob(strings.NewReplacer("\\", "\\\\", "[", "\\[", "*", "\\*", "?", "\\?").Replace(path) + asideInfix + "*")
	if err != nil {
		return nil, err
	}
	for _, name := range found {
		name = strings.TrimSuffix(strings.TrimSuffix(name, logSuffix), indexSuffix)
		if sequence(path, name) > 0 && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(x, y string) int { return sequence(path, x) - sequence(path, y) })
	return names, nil
}

// sequence is the number in the name of a database that was moved aside, 0 if it is no
// such name. No clock is asked what came first.
func sequence(path, name string) int {
	digits, _, _ := strings.Cut(strings.TrimPrefix(name, path+asideInfix), "-")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// thinOut removes the oldest of the databases that were moved aside, if there are too
// many: a disk that damages each of them must not be filled by them.
func thinOut(path string) error {
	names, err := aside(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names[:max(len(names)-keptAside, 0)] {
		for _, suffix := range []string{logSuffix, indexSuffix, ""} {
			// Not what is in a directory, whoever put it there.
			if err := os.Remove(name + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// probe tells why a new lease could not be written, as far as that can be seen without
// writing one.
func probe(path string) error {
	for _, name := range []string{filepath.Dir(path), path} {
		if err := unix.Faccessat(unix.AT_FDCWD, name, unix.W_OK, unix.AT_EACCESS); err != nil {
			return databaseError(path, "writing to", err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return databaseError(path, "writing to", err)
	}
	// Some file systems do not count.
	if fs.Blocks > 0 && fs.Bavail == 0 && (fs.Bfree == 0 || os.Geteuid() != 0) {
		return databaseError(path, "writing to", unix.ENOSPC)
	}
	return nil
}
