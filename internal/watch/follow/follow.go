// Package follow reads what package watch tells: it listens to the kernel, finds the processes behind
// its announcements, and asks for the status when something changed.
package follow

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/internal/news"
	"multihomed/internal/status"
	"multihomed/internal/watch"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A Question is what is wanted of the status.
type Question struct {
	// Whole wants all objects, which are most of a document.
	Whole bool
	// Changed says that the kernel has announced something since the last answer.
	Changed bool
}

// Options are what a follower needs.
type Options struct {
	// Ask returns the status, or nil if it is sure to be what it was. An answer is not changed
	// afterwards.
	Ask func(context.Context, Question) (*status.Status, error)
	// Limits are those of [watch.NewRecorder].
	Limits watch.Limits
	// ReceiveBuffer is that of [kernel.Listen].
	ReceiveBuffer int
}

// An Update is what happened since the last one.
type Update struct {
	Events []watch.Event
	// Document is the last status, nil if there was none yet.
	Document *status.Status
	// Fault says why the status could not be read, nil if it could.
	Fault error
}

const (
	// settle is how long changes may go on before the status is asked for: one answer explains
	// them all.
	settle = 100 * time.Millisecond
	// A question costs the daemon time, too. The next one after a change comes after changePause or
	// changeShare times as long as the last answer took, and after longestPause in any case. Without
	// a change it is pollPause and pollShare, and longestPoll: a daemon that hung may answer again.
	changePause  = 250 * time.Millisecond
	changeShare  = 10
	longestPause = 3 * time.Second
	pollPause    = time.Second
	pollShare    = 50
	longestPoll  = 10 * time.Second
)

// A Follower follows a host.
type Follower struct {
	Options
	listener *kernel.Listener
	authors  *authors
	changed  news.Signal
	updates  chan Update

	// mu guards what follows.
	mu       sync.Mutex
	recorder *watch.Recorder
	lost     bool
	daemon   int
}

// New opens the socket.
func New(o Options) (*Follower, error) {
	listener, err := kernel.Listen(o.ReceiveBuffer)
	if err != nil {
		return nil, err
	}
	return &Follower{
		Options: o, listener: listener, authors: newAuthors(), changed: news.NewSignal(),
		updates: make(chan Update), recorder: watch.NewRecorder(o.Limits),
	}, nil
}

// Updates has what happened. While nobody takes it, changes are counted and not kept.
func (f *Follower) Updates() <-chan Update { return f.updates }

// Run follows the host until ctx ends, and then returns nil. It is called once.
func (f *Follower) Run(ctx context.Context) (err error) {
	defer func() { _ = f.listener.Close() }() // Nothing is written by it.
	interfaces, err := f.listener.Interfaces(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	f.recorder.Interfaces(interfaces)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return guarded(func() error { return f.listener.Run(ctx, f.take) }) })
	tasks.Go(func() error { return guarded(func() error { return f.report(ctx) }) })
	return tasks.Wait()
}

// guarded makes an error of a panic: whoever runs it has a terminal to restore.
func guarded(task func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v\n%s", p, debug.Stack())
		}
	}()
	return task()
}

// take takes a burst in.
func (f *Follower) take(heard []routing.Announcement, lost bool) {
	f.mu.Lock()
	f.authors.daemon = f.daemon
	f.mu.Unlock()
	named := f.authors.name(heard)
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if lost {
		f.lost = true
		f.recorder.Lost(now)
	}
	f.recorder.Take(now, named)
	if f.recorder.Waiting() {
		f.changed.Give()
	}
}

// report asks for the status and hands out what happened.
func (f *Follower) report(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(d time.Duration) bool {
		timer.Reset(d)
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	isChanged := true
	for {
		took, err := f.once(ctx, isChanged)
		if err != nil || ctx.Err() != nil {
			return err
		}
		pause := min(max(changePause, changeShare*took), longestPause)
		if !wait(pause) {
			return nil
		}
		timer.Reset(min(max(pollPause, pollShare*took), longestPoll) - pause)
		select {
		case <-f.changed:
			isChanged = true
			if !wait(settle) {
				return nil
			}
		case <-timer.C:
			isChanged = false
		case <-ctx.Done():
			return nil
		}
	}
}

// once asks once, and returns how long the answer took.
func (f *Follower) once(ctx context.Context, isChanged bool) (time.Duration, error) {
	f.mu.Lock()
	lost, whole := f.lost, f.recorder.Explainable()
	f.lost = false
	f.mu.Unlock()
	if lost {
		interfaces, err := f.listener.Interfaces(ctx)
		if err != nil {
			return 0, err
		}
		f.mu.Lock()
		f.recorder.Interfaces(interfaces)
		f.mu.Unlock()
	}
	began := time.Now()
	answer, fault := f.Ask(ctx, Question{Whole: whole, Changed: isChanged})
	now := time.Now()
	if ctx.Err() != nil {
		return 0, nil //nolint:nilerr // it was told to end
	}
	u := Update{Document: answer, Fault: fault}
	f.mu.Lock()
	if answer != nil {
		f.daemon = answer.Daemon.PID
		u.Events = f.recorder.Document(now, answer)
	} else {
		u.Events = f.recorder.Flush()
	}
	f.mu.Unlock()
	select {
	case f.updates <- u:
	case <-ctx.Done():
	}
	return now.Sub(began), nil
}
