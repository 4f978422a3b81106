package cgroups

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits. A host with hundreds of pods or sessions has as many slices.
const (
	// maxNodes is how many cgroups are known, and maxDelegated how many of them in directories of one other user.
	maxNodes, maxDelegated = 8192, 256
	// ofOthers is how many of all are in directories of others.
	ofOthers = 4096
	// maxEntries is how many names of a directory are read.
	maxEntries = 1 << 16
)

// A tree is what is known of the directories that matter: those that are selected, and those above them, which are
// watched.
type tree struct {
	root      string
	r         Receiver
	trusted   *watcher
	delegated *watcher
	selectors []Selector
	top       *node
	watched   map[watch]*node
	nodes     int
	others    int            // of these, how many are other users'
	byOwner   map[uint32]int // and whose
	missed    error
	told      error // what was told as missed last
}

// A watch is a number of an inotify instance.
type watch struct {
	of     *watcher
	number int32
}

// A node is a directory.
type node struct {
	Cgroup
	above    *node
	name     string
	parts    []string
	selected []Selector
	inside   map[string]*node
	// directory is open while it is watched.
	directory *os.File
	watch     watch
	// owner is 0, or the user to whom it or one above it was delegated.
	owner uint32
}

func newTree(root string, r Receiver, trusted, delegated chan<- batch) (*tree, error) {
	t := &tree{root: root, r: r, watched: map[watch]*node{}, byOwner: map[uint32]int{}}
	directory, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("opening the root of cgroups: %w", err)
	}
	t.top = &node{inside: map[string]*node{}, directory: directory}
	t.trusted, err = newWatcher(trusted)
	if err == nil {
		t.delegated, err = newWatcher(delegated)
	}
	if err == nil {
		t.top.watch.of = t.trusted
		t.top.watch.number, err = t.trusted.add(directory)
		t.watched[t.top.watch] = t.top
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// close gives up everything without telling.
func (t *tree) close() error {
	for _, n := range t.top.inside {
		t.drop(n, false)
	}
	err := t.top.directory.Close()
	for _, w := range []*watcher{t.trusted, t.delegated} {
		if w != nil {
			err = errors.Join(err, w.close())
		}
	}
	return err
}

// want replaces the selectors.
func (t *tree) want(selectors []Selector) {
	t.selectors = slices.Clone(selectors)
	t.look(t.top)
	t.tell()
}

// look reads a directory, and all watched ones in it.
func (t *tree) look(n *node) {
	if n == t.top {
		t.missed = nil
	}
	for name := range n.inside {
		t.examine(n, name, true)
	}
	if _, err := n.directory.Seek(0, io.SeekStart); err != nil {
		t.miss(fmt.Errorf("reading the cgroup /%s: %w", n.Path, err))
		return
	}
	const chunk = 512
	for read := 0; ; {
		names, err := n.directory.Readdirnames(chunk)
		for _, name := range names {
			if n.inside[name] == nil {
				t.examine(n, name, true)
			}
		}
		read += len(names)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) || len(names) == 0:
			return // The end, or it was removed.
		case err != nil:
			t.miss(fmt.Errorf("reading the cgroup /%s: %w", n.Path, err))
			return
		case read >= maxEntries:
			t.miss(fmt.Errorf("the cgroup /%s has more than %d entries, and the others were not looked at; to fix: remove some", n.Path, maxEntries))
			return
		}
	}
}

// interest says which selectors select a path, and whether one may select what is below it.
func (t *tree) interest(parts []string) (selected []Selector, above bool) {
	for _, s := range t.selectors {
		is, may := s.at(parts)
		if is {
			selected = append(selected, s)
		}
		above = above || may
	}
	return selected, above
}

// examine compares what has a name in a watched directory with what is known of it. On demand it looks into it, even
// if nothing seems to have changed.
func (t *tree) examine(above *node, name string, deep bool) {
	parts := append(slices.Clip(above.parts), name)
	selected, holds := t.interest(parts)
	old := above.inside[name]
	if old == nil && len(selected) == 0 && !holds {
		return
	}
	directory, stat, err := openIn(above.directory, name, strings.Join(parts, "/"))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.miss(fmt.Errorf("opening the cgroup /%s: %w", strings.Join(parts, "/"), err))
		return // It may be the one that is known.
	}
	if old != nil && (directory == nil || stat.Ino != old.ID) {
		t.drop(old, true)
		old = nil
	}
	if directory == nil {
		return
	}
	defer func() { _ = directory.Close() }()
	n := old
	if n == nil {
		if n = t.add(above, name, parts, stat); n == nil {
			return
		}
	}
	if len(selected) == 0 && !holds {
		t.drop(n, false)
		return
	}
	before := n.selected
	n.selected = selected
	for _, s := range selected {
		if !slices.Contains(before, s) {
			t.found(n, s, directory)
		}
	}
	switch {
	case holds && n.directory == nil:
		t.watch(n, directory)
	case holds && deep:
		t.look(n)
	case !holds && n.directory != nil:
		t.unwatch(n, false)
	}
}

// openIn opens a directory that is in another one.
func openIn(above *os.File, name, path string) (*os.File, unix.Stat_t, error) {
	var stat unix.Stat_t
	fd, err := unix.Openat(int(above.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, stat, err
	}
	f := os.NewFile(uintptr(fd), "/"+path)
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, stat, errors.Join(err, f.Close())
	}
	return f, stat, nil
}

// add notes a directory, if there is room for it.
func (t *tree) add(above *node, name string, parts []string, stat unix.Stat_t) *node {
	n := &node{above: above, name: name, parts: parts, inside: map[string]*node{}, owner: stat.Uid}
	now := time.Now()
	n.Cgroup = Cgroup{ID: stat.Ino, Path: strings.Join(parts, "/"), Born: time.Unix(stat.Ctim.Unix()), Delegated: above.owner != 0}
	if n.Born.After(now) {
		n.Born = now
	}
	if n.Delegated {
		n.owner = above.owner
	}
	if t.nodes >= maxNodes || n.owner != 0 && (t.others >= ofOthers || t.byOwner[n.owner] >= maxDelegated) {
		t.miss(fmt.Errorf("there are too many cgroups to follow, and /%s is not; to fix: select by slice or cgroup instead of unit, or have fewer slices", n.Path))
		return nil
	}
	t.nodes++
	if n.owner != 0 {
		t.others++
		t.byOwner[n.owner]++
	}
	above.inside[name] = n
	return n
}

// found tells of a cgroup, with a directory that is the receiver's.
func (t *tree) found(n *node, s Selector, directory *os.File) {
	fd, err := unix.FcntlInt(directory.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.miss(fmt.Errorf("opening the cgroup /%s: %w", n.Path, err))
		n.selected = slices.DeleteFunc(slices.Clone(n.selected), func(other Selector) bool { return other == s })
		return
	}
	t.r.Found(s, n.Cgroup, os.NewFile(uintptr(fd), filepath.Join(t.root, n.Path)))
}

// watch watches a directory, and looks into it.
func (t *tree) watch(n *node, directory *os.File) {
	fd, err := unix.FcntlInt(directory.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.miss(fmt.Errorf("opening the cgroup /%s: %w", n.Path, err))
		return
	}
	n.directory = os.NewFile(uintptr(fd), "/"+n.Path)
	n.watch.of = t.trusted
	if n.owner != 0 {
		n.watch.of = t.delegated
	}
	if n.watch.number, err = n.watch.of.add(directory); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			t.miss(err)
		}
	} else {
		t.watched[n.watch] = n
	}
	t.look(n) // What was made before.
	if t.watched[n.watch] != n {
		// It is watched when there is room.
		_ = n.directory.Close()
		n.directory = nil
	}
}

// unwatch forgets what is in a directory.
func (t *tree) unwatch(n *node, tell bool) {
	for _, in := range n.inside {
		t.drop(in, tell)
	}
	if n.directory == nil {
		return
	}
	if t.watched[n.watch] == n {
		n.watch.of.remove(n.watch.number)
		delete(t.watched, n.watch)
	}
	_ = n.directory.Close() // It was only read.
	n.directory = nil
}

// drop forgets a directory and what is in it, and tells that it has gone.
func (t *tree) drop(n *node, tell bool) {
	t.unwatch(n, tell)
	delete(n.above.inside, n.name)
	t.nodes--
	if n.owner != 0 {
		t.others--
		if t.byOwner[n.owner]--; t.byOwner[n.owner] == 0 {
			delete(t.byOwner, n.owner)
		}
	}
	for _, s := range n.selected {
		if tell {
			t.r.Gone(s, n.ID)
		}
	}
}

// heads are the topmost directories of a watcher.
func (t *tree) heads(of *watcher) (heads []*node) {
	for _, n := range t.watched {
		if n.watch.of == of && (n.above == nil || n.above.watch.of != of) {
			heads = append(heads, n)
		}
	}
	return heads
}

// miss notes what could not be looked at.
func (t *tree) miss(err error) {
	if t.missed == nil {
		t.missed = err // One is enough to act on.
	}
}

// tell says that everything was looked at.
func (t *tree) tell() {
	t.told = t.missed
	t.r.Looked(t.selectors, t.missed)
}

// tellNews tells if something new is missed.
func (t *tree) tellNews() {
	if t.missed != nil && t.told == nil {
		t.tell()
	}
}
