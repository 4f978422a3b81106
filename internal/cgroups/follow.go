package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/news"
)

// unified is where systemd mounts cgroup v2 on a host that has v1, too.
const unified = "unified"

// ErrNone says that the host has no cgroup v2.
var ErrNone = errors.New("this host has no cgroup v2, which bindings of units, slices and cgroups need; to fix: boot without systemd.unified_cgroup_hierarchy=0")

// Root finds the directory of cgroup v2 at or below the directory where systemd mounts cgroups ([Mount]).
func Root(mount string) (string, error) {
	for _, at := range []string{mount, filepath.Join(mount, unified)} {
		var system unix.Statfs_t
		if err := unix.Statfs(at, &system); err == nil && system.Type == unix.CGROUP2_SUPER_MAGIC {
			return at, nil
		}
	}
	return "", ErrNone
}

// A Cgroup is one that exists, or existed.
type Cgroup struct {
	// ID is its identity (the number of its inode, which is its cgroup id).
	ID uint64
	// Path is its directory, from the root.
	Path string
	// Born is when it was made, by the kernel's clock, which ticks some hundred times a second. If the kernel has
	// forgotten that, it is later, but never later than it was found.
	Born time.Time
	// Delegated says that it is in a directory of another user than root, who may have made it.
	Delegated bool
}

// A Receiver is told what a Follower sees, by one goroutine.
type Receiver interface {
	// Found tells of a cgroup that is selected, each once. The directory is the receiver's, to close.
	Found(s Selector, c Cgroup, directory *os.File)
	// Gone tells that it was removed.
	Gone(s Selector, id uint64)
	// Looked tells that all that exists was told for these selectors, except for what an error names.
	Looked(selectors []Selector, missed error)
}

// A Follower finds cgroups and tells of their creation and removal.
type Follower struct {
	root   string
	wanted news.Signal

	mu        sync.Mutex
	selectors []Selector
}

// NewFollower returns a Follower for cgroups below a directory: [Mount], but for tests.
func NewFollower(root string) *Follower { return &Follower{root: root, wanted: news.NewSignal()} }

// Want replaces the selectors. What is no longer wanted is not told as gone.
func (f *Follower) Want(selectors ...Selector) {
	f.mu.Lock()
	f.selectors = nil
	for _, s := range selectors {
		if !slices.Contains(f.selectors, s) {
			f.selectors = append(f.selectors, s)
		}
	}
	f.mu.Unlock()
	f.wanted.Give()
}

func (f *Follower) want() []Selector {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.selectors
}

const (
	// lookAgain is how often to look for what could not be watched.
	lookAgain = 10 * time.Second
	// share is what part of a processor other users may take by making cgroups in directories of theirs, and atOnce how much
	// they may take at once.
	share  = 10
	atOnce = 50 * time.Millisecond
)

// Follow tells a receiver of the wanted cgroups until ctx is done.
func (f *Follower) Follow(ctx context.Context, r Receiver) (err error) {
	trusted, delegated := make(chan batch), make(chan batch)
	t, err := newTree(f.root, r, trusted, delegated)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	again, pause := time.NewTimer(0), time.NewTimer(0)
	again.Stop()
	pause.Stop()
	defer again.Stop()
	defer pause.Stop()
	budget := budget{left: atOnce, at: time.Now()}
	open := delegated // nil during a pause
	waits := false    // for again
	f.wanted.Give()
	for ctx.Err() == nil {
		var b batch
		select {
		case <-ctx.Done():
			return nil
		case <-f.wanted:
			t.want(f.want())
		case <-again.C:
			waits = false
			t.look(t.top)
			t.tell()
		case <-pause.C:
			open = delegated
		case b = <-trusted:
			if err := t.take(b); err != nil {
				return err
			}
		case b = <-open:
			began := time.Now()
			if err := t.take(b); err != nil {
				return err
			}
			if wait := budget.spend(began, time.Now()); wait > 0 {
				open = nil
				pause.Reset(wait)
			}
		}
		if t.missed != nil && !waits {
			waits = true
			again.Reset(lookAgain)
		}
	}
	return nil
}

// A budget of time grows slower than time.
type budget struct {
	left time.Duration
	at   time.Time
}

// spend takes a time, and returns how long to do nothing.
func (b *budget) spend(from, to time.Time) time.Duration {
	b.left = min(atOnce, b.left+from.Sub(b.at)/share) - to.Sub(from)
	b.at = to
	return max(0, -b.left*share)
}

// take handles what happened.
func (t *tree) take(b batch) error {
	switch {
	case b.err != nil:
		return b.err
	case b.gone:
		return fmt.Errorf("watching cgroups: %s was unmounted", t.root)
	case b.lost:
		for _, n := range t.heads(b.of) {
			t.look(n)
		}
		t.tell()
		return nil
	}
	for _, o := range b.all {
		if n := t.watched[watch{b.of, o.watch}]; n != nil {
			t.examine(n, o.name, false)
		}
	}
	t.tellNews()
	return nil
}
