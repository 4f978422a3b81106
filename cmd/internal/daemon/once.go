package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/lockfile"
	"multihomed/routing/reconcile"
)

const (
	// handOverTimeout bounds how long a lock is waited for that somebody holds who
	// does not listen.
	handOverTimeout = 10 * time.Second
	// askAgain is how often such a lock is tried.
	askAgain = 20 * time.Millisecond
	// linger is how long a pass stays after the last event. NetworkManager tells
	// of a link when one family is there, and nobody of a router advertisement
	// that comes later.
	linger = 20 * time.Second
)

// Once sees to it that what a message tells of is dealt with. With a daemon, that
// is told; without, this process does for a while what the daemon does: it brings
// the whole host in order, follows what comes of the event, takes the messages of
// others like itself, and ends. It makes way for a daemon at once. What stands, it
// leaves.
func Once(ctx context.Context, o Options, m hook.Message) error {
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		return err
	}
	o.Level.Set(cfg.LogLevel)
	lock, err := handOver(ctx, cfg, m)
	if lock == nil || err != nil {
		return err
	}
	defer lock.Close()
	for {
		events, err := hook.Listen(cfg.RuntimeDir)
		if err != nil {
			return err
		}
		wanted, err := stay(ctx, o, cfg, events)
		left, closing := events.Close()
		if err = errors.Join(err, closing); err != nil || !wanted || !left {
			return err
		}
	}
}

// handOver tells the daemon, or takes the lock if there is none. While somebody
// holds the lock who does not listen, it is another of us, or a daemon that
// starts: that may have looked before this event, or will listen in a moment.
func handOver(ctx context.Context, cfg config.Config, m hook.Message) (*lockfile.Lock, error) {
	if err := os.MkdirAll(cfg.RuntimeDir, 0o755); err != nil { //nolint:gosec // status.json is for everybody
		return nil, fmt.Errorf("creating the runtime directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		err := hook.Send(cfg.RuntimeDir, m)
		if !errors.Is(err, hook.ErrNobody) {
			return nil, err
		}
		lock, err := lockfile.TryLock(filepath.Join(cfg.RuntimeDir, lockfile.Name))
		if _, held := errors.AsType[*lockfile.HeldError](err); !held {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-ticker.C:
		}
	}
}

// stay runs the parts until nothing has been heard for a while. It reports whether
// messages that came too late are ours to deal with.
func stay(ctx context.Context, o Options, cfg config.Config, events *hook.Listener) (wanted bool, err error) {
	var ready, replaced atomic.Bool
	var waiting atomic.Pointer[string]
	p, err := assemble(ctx, cfg, o.Logger, reconcile.Hooks{
		Ready: func() { ready.Store(true) }, Settled: func() {},
		Report: func(r reconcile.Report) { waiting.Store(&r.Waiting) },
	})
	if err != nil {
		return false, err
	}
	defer p.close()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks, running := errgroup.WithContext(running)
	p.run(running, tasks)
	end := time.AfterFunc(linger, cancel)
	defer end.Stop()
	tasks.Go(func() error {
		return events.Run(running, o.Logger, func(m hook.Message) {
			if m == hook.MakeWay() {
				replaced.Store(true)
				cancel()
				return
			}
			end.Reset(linger)
			p.owners.Poke(m.Interface)
		})
	})
	if err := tasks.Wait(); err != nil {
		return false, err
	}
	if ctx.Err() != nil || replaced.Load() {
		return false, nil
	}
	if why := waiting.Load(); !ready.Load() && why != nil {
		return false, fmt.Errorf("bringing the host in order: not everything is known, and what stands was left: %s", *why)
	}
	return true, nil
}
