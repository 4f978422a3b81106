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
	"sync"
	"sync/atomic"
	"time"

	"multihomed/routing"
)

// DefaultName is the name of the database in the directory of the state.
const DefaultName = "leases.db"

// Options say where the leases are kept and which numbers may be leased.
type Options struct {
	// Path of the database; its directory is made if it is missing.
	Path string
	// Range of the tables. Its last number is kept for failover and never leased, so
	// that it has at least two.
	Range routing.TableRange
	// Scratch is a directory, best in memory, for the copy from which leases are
	// read when the file system of Path is full or read-only. Empty means the
	// system's temporary directory.
	Scratch string
	// Anyhow keeps links independent of the disk: no trouble with the database makes Open
	// fail. A database that is of no use (ErrCorrupt, ErrForeign, ErrNewer, or another
	// user's) is moved aside and made anew from Standing. While the disk can be neither
	// read nor written, numbers are given in memory. Fault and Check tell why.
	Anyhow bool
	// Standing returns the leases that rules and routes in the kernel show. Open takes
	// over those that the database lacks. It asks once; leased reports which tables it
	// knows, which Standing may leave out. Nil means that nothing stands.
	Standing func(leased func(routing.TableID) bool) ([]Standing, error)
	// Moved is called when a database was moved aside, with its new path and the reason;
	// nil for nobody.
	Moved func(to string, why error)
	// Now is the clock for the times that people see; nil means time.Now.
	Now func() time.Time
	// Uptime is the clock by which the leases of clients expire; nil means
	// CLOCK_MONOTONIC_RAW. Boot tells its boots apart; empty means the kernel's
	// boot id.
	Uptime func() time.Duration
	Boot   string
}

// A Standing is a table that stands in the kernel for a key.
type Standing struct {
	Key   routing.Key
	Table routing.TableID
}

// An InUse says whether a number is used by something that no lease here knows,
// and by what, for the error message ("rule 100 from 10.0.0.0/8"). It must
// report every table of the kernel that holds a rule or route, whoever made it;
// the package documentation says why. It must not call the allocator.
type InUse = func(routing.TableID) (why string, used bool)

// An Allocator leases table numbers. It is safe for concurrent use.
type Allocator struct {
	path, scratch string
	anyhow        bool
	moved         func(to string, why error)
	now           func() time.Time
	uptime        func() time.Duration
	boot          string

	// disk is held during every use of the database and across the memory
	// changes that go with it. It is taken before mu.
	disk sync.Mutex
	// db is nil after a failure, until the next write.
	db *sql.DB
	// file is what path named when db was opened.
	file os.FileInfo
	// fault says why db is nil.
	fault error
	// logged says that the log holds commits: a checkpoint has something to do.
	logged bool
	// behind says that numbers were given in memory that the file lacks.
	behind   bool
	readOnly bool
	// trial says that nothing is written, and that numbers are given all the same.
	trial  bool
	closed bool

	// mu guards the leases in memory and is never held across a disk access.
	mu sync.Mutex
	// numbers may be leased: the range without its last number, which is kept.
	numbers  routing.TableRange
	kept     routing.TableID
	byHolder map[holder]*lease
	// byTable also holds numbers that are being committed.
	byTable map[routing.TableID]*lease
	// free holds the released leases whose numbers are in the range.
	free queue
	// low is in the range, or one past it: every number below is in byTable.
	low uint64
	// order is the last one given to a release.
	order int64
	// owned counts the live leases of clients by owner.
	owned map[uint32]int
	// earliest is not after the first second in which a lease expires.
	earliest int64
	// generation counts the changes of which key has which number.
	generation atomic.Uint64
}

// Open opens the leases, creating the database if there is none. Those of links
// count as released until they are acquired; those of clients stand until they
// expire, if they were made since the host was started.
//
// If the file can be read but not written (a full disk, a read-only file
// system), Open succeeds: keys that have a lease are served, new ones get an
// error until the cause is gone, and Fault tells it. Other troubles (ErrCorrupt,
// ErrLocked, ErrNewer, ErrForeign) are errors.
func Open(ctx context.Context, options Options) (*Allocator, error) {
	a, err := newAllocator(options)
	if err != nil {
		return nil, err
	}
	// A statement that is interrupted in the middle helps nobody; each is
	// bounded by the busy timeout.
	ctx = context.WithoutCancel(ctx)
	db, leases, err := a.openFile(ctx)
	if err == nil {
		err = a.use(db)
	}
	if err == nil {
		err = a.forgetKept(ctx, leases)
	}
	if err != nil {
		cause := err
		if leases, err = a.readInstead(ctx, cause); err != nil {
			return nil, err
		}
		a.fault = cause
	}
	a.adopt(leases, false)
	taken, err := a.takeStanding(options.Standing)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if taken {
		a.behind = true
		if a.fault == nil {
			_ = a.writable(ctx) // Fault tells.
		}
	}
	return a, nil
}

// readInstead reads the leases of a database that cannot be opened for writing.
func (a *Allocator) readInstead(ctx context.Context, cause error) ([]*lease, error) {
	if !canStillRead(cause) && !a.anyhow {
		return nil, cause
	}
	leases, err := readCopy(ctx, a.path, a.scratch)
	switch {
	case err == nil:
		return leases, nil
	case a.anyhow:
		return nil, nil // What stands in the kernel is all that is known.
	case errors.Is(err, fs.ErrNotExist):
		return nil, cause // There are no leases that could be read.
	default:
		return nil, errors.Join(cause, err)
	}
}

// takeStanding takes over from the kernel what no lease contradicts, as released
// leases, and reports whether there was something.
func (a *Allocator) takeStanding(standing func(func(routing.TableID) bool) ([]Standing, error)) (taken bool, err error) {
	if standing == nil {
		return false, nil
	}
	all, err := standing(func(t routing.TableID) bool { return a.byTable[t] != nil })
	if err != nil {
		return false, fmt.Errorf("reading which tables stand in the kernel: %w", err)
	}
	for _, s := range all {
		h := linkHolder(s.Key)
		if checkKey(s.Key) != nil || !a.numbers.Contains(s.Table) || a.byHolder[h] != nil || a.byTable[s.Table] != nil {
			continue
		}
		l := &lease{holder: h, table: s.Table, created: a.now().UnixMilli()}
		a.end(l)
		a.byTable[l.table], a.byHolder[h] = l, l
		taken = true
	}
	if taken {
		a.rebuild()
	}
	return taken, nil
}

// OpenReadOnly reads the leases as they were last written and closes the file.
// It works while another process writes and changes nothing: Acquire of a key
// without a lease is an error, and Live is what the writer last wrote.
func OpenReadOnly(ctx context.Context, options Options) (*Allocator, error) {
	a, err := newAllocator(options)
	if err != nil {
		return nil, err
	}
	a.readOnly = true
	leases, err := readLeases(context.WithoutCancel(ctx), a.path, a.scratch)
	if err != nil {
		return nil, err
	}
	a.adopt(leases, true)
	return a, nil
}

// OpenTrial reads the leases as [Open] does, and gives the numbers that an Allocator from Open would
// give. It writes nothing: the leases that it makes end with it. A database that does not exist is
// one without leases, and so is an empty Path. The other errors are those of [OpenReadOnly].
func OpenTrial(ctx context.Context, options Options) (*Allocator, error) {
	a, err := newAllocator(options)
	if err != nil {
		return nil, err
	}
	a.readOnly, a.trial = true, true
	var leases []*lease
	if options.Path != "" {
		leases, err = readLeases(context.WithoutCancel(ctx), a.path, a.scratch)
	}
	if err != nil && !errors.Is(err, ErrMissing) {
		return nil, err
	}
	a.adopt(slices.DeleteFunc(leases, func(l *lease) bool { return l.table == a.kept }), false)
	_, err = a.takeStanding(options.Standing)
	return a, err
}

func newAllocator(options Options) (*Allocator, error) {
	path, err := filepath.Abs(options.Path)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", options.Path, err)
	}
	a := &Allocator{
		path: path, scratch: options.Scratch, anyhow: options.Anyhow, moved: options.Moved, now: options.Now, uptime: options.Uptime, boot: options.Boot,
		byHolder: map[holder]*lease{}, byTable: map[routing.TableID]*lease{},
	}
	if a.moved == nil {
		a.moved = func(string, error) {}
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.uptime == nil {
		a.uptime = Uptime
	}
	if a.boot == "" {
		if a.boot, err = bootID(); err != nil {
			return nil, err
		}
	}
	return a, a.setRange(options.Range)
}

// adopt takes leases from disk into memory, unless what memory holds
// contradicts them.
func (a *Allocator) adopt(leases []*lease, keepLive bool) {
	slices.SortFunc(leases, func(x, y *lease) int {
		// Those that were held when the disk was written were, for all we know,
		// released after all others.
		if x.live != y.live {
			if y.live {
				return -1
			}
			return 1
		}
		return byRelease(x, y)
	})
	for _, l := range leases {
		if a.byTable[l.table] != nil || a.byHolder[l.holder] != nil || l.table == a.kept {
			continue
		}
		a.order = max(a.order, l.order)
		if l.live && !a.stillLive(l, keepLive) {
			a.end(l)
		}
		a.byTable[l.table], a.byHolder[l.holder] = l, l
	}
	a.rebuild()
}

// rebuild derives the free queue and the low mark from the leases.
func (a *Allocator) rebuild() {
	a.generation.Add(1)
	a.free = queue{}
	a.low = uint64(a.numbers.First)
	a.owned, a.earliest = map[uint32]int{}, never
	released := make([]*lease, 0, len(a.byHolder))
	for _, l := range a.byHolder {
		l.previous, l.next = nil, nil
		if l.live {
			a.count(l)
		}
		if !l.live && a.numbers.Contains(l.table) {
			released = append(released, l)
		}
	}
	slices.SortFunc(released, byRelease)
	for _, l := range released {
		a.free.push(l)
	}
}

// forgetKept deletes the lease of the number that is kept for failover, which
// version 1 leased as any other: its key gets another one when it is acquired. The
// old table may still stand in the kernel, and InUse says so.
func (a *Allocator) forgetKept(ctx context.Context, leases []*lease) error {
	if !slices.ContainsFunc(leases, func(l *lease) bool { return l.table == a.kept }) {
		return nil
	}
	err := transaction(ctx, a.db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, deleteLease, int64(a.kept))
		return err
	})
	if err != nil {
		err = databaseError(a.path, fmt.Sprintf("deleting the lease of table %d, which is kept for failover, from", uint32(a.kept)), err)
		err = errors.Join(err, databaseError(a.path, "closing", a.db.Close()))
		a.db = nil
	}
	return err
}

// SetRange changes the numbers that may be leased from now on: all of the range but its
// last, which is kept for failover. Leases outside of it end: their keys get another number
// when they are acquired the next time.
func (a *Allocator) SetRange(r routing.TableRange) error {
	a.disk.Lock() // A commit in progress is in the old range.
	defer a.disk.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.setRange(r); err != nil {
		return err
	}
	a.rebuild()
	return nil
}

func (a *Allocator) setRange(r routing.TableRange) error {
	if r.First == 0 || r.First >= r.Last {
		return fmt.Errorf("table range %v holds 0 or less than 2 tables: first must be at least 1 and below last, which is kept for failover", r)
	}
	a.numbers, a.kept = routing.TableRange{First: r.First, Last: r.Last - 1}, r.Last
	a.low = uint64(r.First)
	return nil
}

// Range is the range of tables, the last one included, which is never leased.
func (a *Allocator) Range() routing.TableRange {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.configured()
}

// configured is the range with its last number.
func (a *Allocator) configured() routing.TableRange {
	return routing.TableRange{First: a.numbers.First, Last: a.kept}
}

// Release says that keys are not used any more. They keep their numbers for the
// next time, until all others are used up. It costs no disk access; keys that
// have no lease are ignored.
func (a *Allocator) Release(keys ...routing.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range keys {
		if l := a.byHolder[linkHolder(key)]; l != nil && l.live {
			a.release(l)
		}
	}
}

// Lookup returns the number of a key that has a lease in the range, held or
// released.
func (a *Allocator) Lookup(key routing.Key) (routing.TableID, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.byHolder[linkHolder(key)]
	if l == nil || !a.numbers.Contains(l.table) {
		return 0, false
	}
	return l.table, true
}

// Generation changes whenever a key gets, changes or loses its table. Asking costs nothing.
// Whether a lease is live does not count.
func (a *Allocator) Generation() uint64 { return a.generation.Load() }

// List returns the leases of links, sorted by interface, family and prefix.
func (a *Allocator) List() []Lease {
	a.mu.Lock()
	all := make([]Lease, 0, len(a.byHolder))
	for _, l := range a.byHolder {
		if l.kind == kindLink {
			all = append(all, l.public(a.numbers))
		}
	}
	a.mu.Unlock()
	sortLeases(all)
	return all
}

// Fault tells why new leases cannot be written at the moment, nil if as far as
// is known they can.
func (a *Allocator) Fault() error {
	a.disk.Lock()
	defer a.disk.Unlock()
	return a.fault
}

// Check brings the database in line with what was given in memory meanwhile, and
// tells why new leases cannot be written, nil if they can. It costs a look at the file
// and its file system while all is well. Call it every few seconds.
func (a *Allocator) Check(ctx context.Context) error {
	a.disk.Lock()
	defer a.disk.Unlock()
	if a.closed || a.readOnly {
		return nil
	}
	if a.fault != nil || a.behind || a.db == nil || !a.unmoved() {
		if err := a.writable(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return probe(a.path)
}

// Close writes what Flush writes and closes the database. Leases stay as they
// are: the next Open finds them.
func (a *Allocator) Close() error {
	a.disk.Lock()
	defer a.disk.Unlock()
	if a.closed || a.readOnly {
		a.closed = true
		return nil
	}
	err := a.flush(context.Background())
	a.closed = true
	if a.db != nil {
		err = errors.Join(err, databaseError(a.path, "closing", a.db.Close()))
		a.db = nil
	}
	return err
}

// lowered notes that a number is not taken any more.
func (a *Allocator) lowered(t routing.TableID) {
	if a.numbers.Contains(t) {
		a.low = min(a.low, uint64(t))
	}
}
