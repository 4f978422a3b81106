package cgroups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"multihomed/internal/escape"
	"multihomed/internal/news"
)

// Options are what a Keeper works with.
type Options struct {
	Logger *slog.Logger
	// Mount is where cgroups are mounted, empty for [Mount].
	Mount string
	// Attach binds a cgroup, an open directory, to a link, for as long as the cgroup exists. It must not keep the file.
	Attach func(ctx context.Context, link string, cgroup *os.File) error
	// Remembered is what an earlier process of this boot had bound: it is not bound a second time.
	Remembered []Bound
	// Remember keeps what is bound for the next process. It may be nil.
	Remember func([]Bound) error
}

// A Keeper binds the cgroups of bindings. Its methods are for any goroutine, but for [Keeper.Run], which is for one.
type Keeper struct {
	o       Options
	changed news.Signal
	// places bounds how many cgroups are bound at a time, and few how many of those that other users made; pace bounds
	// how often.
	places, few chan struct{}
	pace        *rate.Limiter
	// lines bounds how often it logs; what other users make has a bound of its own.
	lines, theirLines *rate.Limiter
	tries             sync.WaitGroup
	writing           sync.Mutex // for Remember

	mu    sync.Mutex
	binds []Bind
	// ctx is that of Run, nil while it does not run.
	ctx      context.Context
	follower *Follower
	root     string
	looked   map[Selector]bool
	missed   error
	failed   error
	held     map[uint64]*held
	// trying are those for which a try runs. Such a one may be held no longer, and be held anew at the same time.
	trying map[uint64]*held
	bound  map[uint64]Bound
}

// held is a cgroup that exists and is selected.
type held struct {
	Cgroup
	by map[Selector]bool
	// directory is open until it is bound.
	directory *os.File
	gone      bool // no longer held: removed, or not selected
	removed   bool
	// link is what it is being bound to, while stop is not nil.
	link string
	stop context.CancelFunc
	err  error
}

const (
	// Pauses between tries.
	firstPause, longestPause = 100 * time.Millisecond, time.Minute
	// tries at a time: of all, and of those for cgroups that other users made.
	triesAtOnce, triesOfOthers = 8, 2
	// binds of the latter in a second, and in a row.
	paceOfOthers, burstOfOthers = 10, 20
)

// NewKeeper returns a Keeper that wants nothing.
func NewKeeper(o Options) *Keeper {
	k := &Keeper{
		o: o, changed: news.NewSignal(), places: make(chan struct{}, triesAtOnce), few: make(chan struct{}, triesOfOthers),
		pace: rate.NewLimiter(paceOfOthers, burstOfOthers), lines: rate.NewLimiter(1, 20), theirLines: rate.NewLimiter(1, 20),
		looked: map[Selector]bool{}, held: map[uint64]*held{}, trying: map[uint64]*held{}, bound: map[uint64]Bound{},
	}
	k.o.Mount = cmp.Or(o.Mount, Mount)
	for _, b := range o.Remembered {
		k.bound[b.ID] = b
	}
	return k
}

// Changed is readable when States returns something new.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Want replaces the bindings. If two select a cgroup, the first one counts. What is bound already remains so for as long as its
// cgroup exists: [Keeper.Left] names it.
func (k *Keeper) Want(binds ...Bind) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.binds = slices.Clone(binds)
	if k.follower != nil {
		k.follower.Want(k.selectors()...)
	}
	k.decideAll()
}

func (k *Keeper) selectors() []Selector {
	all := make([]Selector, 0, len(k.binds))
	for _, b := range k.binds {
		all = append(all, b.Selector)
	}
	return all
}

// Run binds cgroups until ctx is done.
func (k *Keeper) Run(ctx context.Context) error {
	pause := firstPause
	for {
		began := time.Now()
		err := k.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // It ended because it was told to.
		}
		k.mu.Lock()
		k.failed = err
		k.changed.Give()
		k.mu.Unlock()
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, longestPause)
	}
}

// follow is Run until the cgroups cannot be followed.
func (k *Keeper) follow(ctx context.Context) error {
	root, err := Root(k.o.Mount)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	k.mu.Lock()
	k.ctx, k.root, k.follower = ctx, root, NewFollower(root)
	clear(k.looked)
	k.follower.Want(k.selectors()...)
	follower := k.follower
	k.mu.Unlock()
	err = follower.Follow(ctx, receiver{k})
	cancel()
	k.tries.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ctx, k.follower = nil, nil
	for id := range k.held {
		k.let(id)
	}
	return err
}

// wait waits, and reports whether ctx is not done.
func wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// A receiver is told by the Follower.
type receiver struct{ k *Keeper }

var _ Receiver = receiver{}

// Found implements [Receiver].
func (r receiver) Found(s Selector, c Cgroup, directory *os.File) {
	k := r.k
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.held[c.ID]
	if h == nil {
		h = &held{Cgroup: c, by: map[Selector]bool{}}
		k.held[c.ID] = h
	}
	h.by[s] = true
	if b, is := k.bound[c.ID]; is && b.Path != c.Path {
		delete(k.bound, c.ID) // It is that of another boot.
	}
	if _, is := k.bound[c.ID]; is || h.directory != nil {
		_ = directory.Close() // It was only read.
	} else {
		h.directory = directory
	}
	k.decide(h)
	k.changed.Give()
}

// Gone implements [Receiver].
func (r receiver) Gone(s Selector, id uint64) {
	k := r.k
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.held[id]
	if h == nil {
		return
	}
	delete(k.bound, id)
	h.removed = true
	if delete(h.by, s); len(h.by) == 0 {
		k.let(id)
	}
	k.changed.Give()
}

// Looked implements [Receiver].
func (r receiver) Looked(selectors []Selector, missed error) {
	k := r.k
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.looked)
	for _, s := range selectors {
		k.looked[s] = true
	}
	k.missed, k.failed = missed, nil
	for id, h := range k.held {
		maps.DeleteFunc(h.by, func(s Selector, _ bool) bool { return !k.looked[s] })
		if len(h.by) == 0 {
			k.let(id)
		}
	}
	k.changed.Give()
}

// let gives up a cgroup: it has gone, or is no longer selected.
func (k *Keeper) let(id uint64) {
	h := k.held[id]
	delete(k.held, id)
	h.gone = true
	if h.stop != nil {
		h.stop() // The try closes the directory.
		return
	}
	h.close()
}

func (h *held) close() {
	if h.directory != nil {
		_ = h.directory.Close() // It was only read.
		h.directory = nil
	}
}

// wanted is the link that a cgroup is to be bound to.
func (k *Keeper) wanted(h *held) (link string, is bool) {
	at := slices.IndexFunc(k.binds, func(b Bind) bool { return h.by[b.Selector] })
	if at < 0 {
		return "", false
	}
	return k.binds[at].Link, true
}

func (k *Keeper) decideAll() {
	for _, h := range k.held {
		k.decide(h)
	}
	k.changed.Give()
}

// decide starts or ends tries to bind a cgroup.
func (k *Keeper) decide(h *held) {
	link, is := k.wanted(h)
	_, isBound := k.bound[h.ID]
	switch {
	case h.stop != nil:
		if !is || link != h.link {
			h.stop() // Another try decides anew.
		}
	case is && !isBound && !h.gone && k.trying[h.ID] == nil && h.directory != nil && k.ctx != nil && k.ctx.Err() == nil:
		whole := k.ctx
		ctx, stop := context.WithCancel(whole)
		directory := h.directory
		h.link, h.stop, h.err = link, stop, nil
		k.trying[h.ID] = h
		k.tries.Go(func() { k.bind(ctx, whole, h, link, directory) })
	}
}

// bind tries until a cgroup is bound, or ctx is done. What has begun goes on as long as whole: who gives up does not know whether
// the cgroup was bound.
func (k *Keeper) bind(ctx, whole context.Context, h *held, link string, directory *os.File) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := k.try(ctx, whole, h.Cgroup, link, directory)
		if err == nil {
			k.done(ctx, h, link, directory)
			break
		}
		if ctx.Err() == nil {
			k.fail(ctx, h, link, err)
		}
		if !wait(ctx, pause) {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	h.stop()
	h.stop = nil
	delete(k.trying, h.ID)
	if h.gone {
		h.close()
	}
	if now := k.held[h.ID]; now != nil {
		if _, is := k.bound[h.ID]; is {
			now.close()
		}
		k.decide(now)
	}
	k.changed.Give()
}

// try attaches once, when there is a place.
func (k *Keeper) try(ctx, whole context.Context, c Cgroup, link string, directory *os.File) error {
	for _, places := range []chan struct{}{k.few, k.places} {
		if !c.Delegated && cap(places) == triesOfOthers {
			continue
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if c.Delegated {
		if err := k.pace.Wait(ctx); err != nil {
			return err
		}
	}
	return k.o.Attach(whole, link, directory)
}

// done notes that a cgroup is bound.
func (k *Keeper) done(ctx context.Context, h *held, link string, directory *os.File) {
	b := Bound{ID: h.ID, Path: h.Path, Link: link, At: time.Now()}
	b.Window = max(0, b.At.Sub(h.Born))
	early, err := processes(directory)
	b.Early = early
	k.mu.Lock()
	h.err = nil
	if !h.removed {
		k.bound[h.ID] = b
	}
	k.changed.Give()
	k.mu.Unlock()
	if k.mayLog(h) {
		k.o.Logger.LogAttrs(ctx, slog.LevelInfo, "cgroup bound", slog.String("cgroup", escape.Name(b.Path)), slog.String("link", escape.Name(link)),
			slog.Duration("unbound_for", b.Window), slog.Int("processes_before", b.Early))
	}
	if err = errors.Join(err, k.remember()); err != nil && k.mayLog(h) {
		k.o.Logger.LogAttrs(ctx, slog.LevelWarn, "cgroup bound, with an error", slog.String("cgroup", escape.Name(b.Path)), slog.String("error", err.Error()))
	}
}

// fail notes why a cgroup is not bound.
func (k *Keeper) fail(ctx context.Context, h *held, link string, err error) {
	k.mu.Lock()
	isNew := h.err == nil || h.err.Error() != err.Error()
	h.err = err
	isGone := h.gone
	k.changed.Give()
	k.mu.Unlock()
	if isNew && !isGone && k.mayLog(h) {
		k.o.Logger.LogAttrs(ctx, slog.LevelWarn, "cgroup not bound, trying again", slog.String("cgroup", escape.Name(h.Path)), slog.String("link", escape.Name(link)),
			slog.String("error", err.Error()))
	}
}

func (k *Keeper) mayLog(h *held) bool {
	if h.Delegated {
		return k.theirLines.Allow()
	}
	return k.lines.Allow()
}

// remember keeps what is bound and exists.
func (k *Keeper) remember() error {
	if k.o.Remember == nil {
		return nil
	}
	k.writing.Lock()
	defer k.writing.Unlock()
	if err := k.o.Remember(k.existing()); err != nil {
		return fmt.Errorf("keeping what is bound for the next process: %w", err)
	}
	return nil
}

// existing returns what is bound and exists, by path. It forgets the others.
func (k *Keeper) existing() (all []Bound) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, b := range k.bound {
		if k.held[id] == nil && !k.exists(b) {
			delete(k.bound, id)
			continue
		}
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b Bound) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.ID, b.ID)) })
	return all
}

func (k *Keeper) exists(b Bound) bool {
	if k.root == "" {
		return true // It does not know.
	}
	var stat unix.Stat_t
	err := unix.Lstat(filepath.Join(k.root, b.Path), &stat)
	return err == nil && stat.Ino == b.ID
}

// Left returns what remains bound and is no longer wanted so, until its cgroup is made anew.
func (k *Keeper) Left() []Bound {
	all := k.existing()
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(all, func(b Bound) bool {
		parts := split(b.Path)
		return slices.ContainsFunc(k.binds, func(want Bind) bool {
			is, _ := want.Selector.at(parts)
			return is && want.Link == b.Link
		})
	})
}

// States returns what is known of each binding, in their order.
func (k *Keeper) States() []State {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]State, 0, len(k.binds))
	for _, b := range k.binds {
		all = append(all, k.state(b))
	}
	return all
}

func (k *Keeper) state(b Bind) State {
	s := State{Bind: b}
	if k.looked[b.Selector] {
		s.Standing = Waiting
	}
	for _, h := range k.held {
		if !h.by[b.Selector] {
			continue
		}
		link, _ := k.wanted(h)
		bound, isBound := k.bound[h.ID]
		switch {
		case isBound && bound.Link == b.Link:
			s.Bound++
			s.Standing = max(s.Standing, Bonded)
			if bound.At.After(s.Last.At) {
				s.Last = bound
			}
			continue
		case isBound:
			s.fail(fmt.Sprintf("/%s is bound to %s for as long as it exists; to fix: %s", escape.Name(h.Path), escape.Name(bound.Link), b.Selector.Anew()))
		case link != b.Link:
			s.fail(fmt.Sprintf("/%s is for %s by another binding; to fix: remove one of them", escape.Name(h.Path), escape.Name(link)))
		case h.err != nil:
			s.fail(h.err.Error())
		default:
			s.Standing = max(s.Standing, Binding)
		}
		s.Unbound++
	}
	if k.failed != nil {
		s.fail(k.failed.Error())
	}
	if k.missed != nil {
		s.Missed = k.missed.Error()
	}
	return s
}

// fail notes one error; of several the same one each time.
func (s *State) fail(text string) {
	if s.Error == "" || text < s.Error {
		s.Error = text
	}
	s.Standing = Failing
}
