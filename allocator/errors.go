package allocator

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"multihomed/routing"
)

// What can be wrong with the database. A DatabaseError wraps exactly one of
// these where the cause is known.
var (
	// ErrCorrupt: the file is damaged, or a row in it makes no sense.
	ErrCorrupt = errors.New("the lease database is corrupt")
	// ErrForeign: the file is not a lease database, or not a regular file.
	ErrForeign = errors.New("the file is not a lease database of multihomed")
	// ErrNewer: a later release wrote the file.
	ErrNewer = errors.New("the lease database was written by a newer release")
	// ErrLocked: another process holds the lock of the file.
	ErrLocked = errors.New("the lease database is locked by another process")
	// ErrReadOnly: the file, its directory or its file system cannot be written.
	ErrReadOnly = errors.New("the lease database cannot be written")
	// ErrUnreadable: this user may not read the file (OpenReadOnly).
	ErrUnreadable = errors.New("the lease database cannot be read by this user")
	// ErrDiskFull: no space is left for a new lease.
	ErrDiskFull = errors.New("the disk is full")
	// ErrIO: the disk answered with an error.
	ErrIO = errors.New("the disk reports an error")
	// ErrMissing: there is no database (OpenReadOnly only; Open creates it).
	ErrMissing = errors.New("there is no lease database")
	// ErrClosed: the allocator was closed.
	ErrClosed = errors.New("the allocator is closed")
)

// errMoved says that the file was deleted or renamed while it was open.
var errMoved = errors.New("the lease database was deleted or renamed while it was open")

// errRowGone says that somebody else deleted or changed the row of a lease.
var errRowGone = errors.New("the lease is not in the database any more")

// makingDirectory is what is being done where there is no directory for the file.
const makingDirectory = "creating the directory of"

// A DatabaseError is a failure of the lease database: what was being done, to
// which file, what the cause is and how to fix it.
type DatabaseError struct {
	Path string
	// Doing completes "while ...".
	Doing string
	// Kind is one of the errors above, or nil.
	Kind error
	// Cause is what the database or the system said.
	Cause error
}

func (e *DatabaseError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Doing, e.Path)
	switch {
	case e.Kind == nil:
		fmt.Fprint(&b, e.Cause)
	case e.Cause == nil:
		fmt.Fprint(&b, e.Kind)
	default:
		fmt.Fprintf(&b, "%v (%v)", e.Kind, e.Cause)
	}
	fix := fixFor(e.Kind, e.Path)
	if e.Doing == makingDirectory {
		fix = fmt.Sprintf("make %s again, or restart multihomed with systemctl, which makes it", filepath.Dir(e.Path))
	}
	if fix != "" {
		b.WriteString("; to fix: ")
		b.WriteString(fix)
	}
	return b.String()
}

// Unwrap makes errors.Is work for the kind and for the cause.
func (e *DatabaseError) Unwrap() []error {
	var all []error
	if e.Kind != nil {
		all = append(all, e.Kind)
	}
	if e.Cause != nil {
		all = append(all, e.Cause)
	}
	return all
}

// fixFor tells the administrator what to do.
func fixFor(kind error, path string) string {
	switch kind {
	case ErrCorrupt: //nolint:errorlint // kinds are the sentinels above, never wrapped
		return fmt.Sprintf("restore %[1]s from a backup, or move it away (mv %[1]s %[1]s.bad) and restart multihomed: every link then gets a new table number", path)
	case ErrForeign:
		return fmt.Sprintf("move %s away, or set another state_dir in the configuration", path)
	case ErrNewer:
		return fmt.Sprintf("install the newer multihomed again, or move %s away: every link then gets a new table number", path)
	case ErrLocked:
		return fmt.Sprintf("find the process with `fuser -v %s` and end it; multihomed tries again by itself", path)
	case ErrReadOnly:
		return fmt.Sprintf("let the user that runs multihomed write %s and its directory, and mount the file system read-write", path)
	case ErrUnreadable:
		return "run as root, or as a member of the group that owns " + path
	case ErrDiskFull:
		return "free some space on the file system of " + path + "; links that have a table keep it, new ones are tried again"
	case ErrIO:
		return "see the kernel log for errors of the disk that holds " + path
	case ErrMissing:
		return "start multihomed, which creates it"
	default:
		return ""
	}
}

// A FullError says that no table number is left for some keys.
type FullError struct {
	Range routing.TableRange
	// Keys are the links that got no number, none if it was a client.
	Keys   []routing.Key
	Client ClientKey
	// Live numbers are held by keys; Others are denied by InUse.
	Live, Others int
	// Example is the reason why one of the others is not available.
	Example string
}

func (e *FullError) Error() string {
	var b strings.Builder
	if len(e.Keys) == 0 {
		fmt.Fprintf(&b, "no routing table is left in %v for %v", e.Range, e.Client)
	} else {
		fmt.Fprintf(&b, "no routing table is left in %v for %v", e.Range, e.Keys[0])
	}
	if n := len(e.Keys) - 1; n > 0 {
		fmt.Fprintf(&b, " and %d more", n)
	}
	fmt.Fprintf(&b, ": %d are held by links and clients", e.Live)
	if e.Others > 0 {
		fmt.Fprintf(&b, ", %d are in use otherwise (%s)", e.Others, e.Example)
	}
	b.WriteString("; to fix: widen first and last of [tables] in the configuration")
	return b.String()
}

// A ScarceError says that an interface that has a table gets no further one: the few
// numbers that are left are kept for interfaces that have none.
type ScarceError struct {
	Range routing.TableRange
	// Keys are the links that got no number, none if it was a client.
	Keys   []routing.Key
	Client ClientKey
	// Kept is how many numbers are kept.
	Kept int
}

func (e *ScarceError) Error() string {
	var b strings.Builder
	name := e.Client.Interface
	if len(e.Keys) == 0 {
		fmt.Fprintf(&b, "no further routing table for %v", e.Client)
	} else {
		name = e.Keys[0].Interface
		fmt.Fprintf(&b, "no further routing table for %v", e.Keys[0])
	}
	if n := len(e.Keys) - 1; n > 0 {
		fmt.Fprintf(&b, " and %d more", n)
	}
	fmt.Fprintf(&b, ": %s has one, and the last %d of %v are kept for interfaces that have none; to fix: widen first and last of [tables] in the configuration", name, e.Kept, e.Range)
	return b.String()
}

// databaseError wraps an error of the driver or of the system.
func databaseError(path, doing string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*DatabaseError](err); ok {
		return e
	}
	return &DatabaseError{Path: path, Doing: doing, Kind: kindOf(err), Cause: err}
}

// kindOf sorts the result codes of sqlite (https://www.sqlite.org/rescode.html)
// and the errors of the system into the kinds above.
func kindOf(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return kindOfCode(e.Code())
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		switch errno { //nolint:exhaustive // the others have no kind
		case syscall.ENOSPC, syscall.EDQUOT:
			return ErrDiskFull
		case syscall.EROFS, syscall.EACCES, syscall.EPERM:
			return ErrReadOnly
		case syscall.EIO:
			return ErrIO
		case syscall.ELOOP, syscall.EISDIR, syscall.ENOTDIR, syscall.ENXIO:
			return ErrForeign
		}
	}
	return nil
}

func kindOfCode(code int) error {
	if code == sqlite3.SQLITE_IOERR_SHMSIZE {
		// The only way to fail to grow the index of the log: no space.
		return ErrDiskFull
	}
	// The low byte is the primary code.
	switch code & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT:
		return ErrCorrupt
	case sqlite3.SQLITE_NOTADB:
		return ErrForeign
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return ErrLocked
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN:
		return ErrReadOnly
	case sqlite3.SQLITE_FULL:
		return ErrDiskFull
	case sqlite3.SQLITE_IOERR:
		return ErrIO
	default:
		return nil
	}
}
