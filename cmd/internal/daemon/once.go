package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/lockfile"
	"multihomed/routing/reconcile"
)

const (
	// onceTimeout bounds one pass with all that it waits for.
	onceTimeout = 10 * time.Second
	// askAgain is how often a lock is tried that is held.
	askAgain = 20 * time.Millisecond
)

// Once sees to it that what a message tells of is dealt with. With a daemon, that
// is told; without, this process does what the daemon does at its start: it
// brings the whole host in order, and ends. What stands, it leaves.
func Once(ctx context.Context, o Options, m hook.Message) error {
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		return err
	}
	o.Level.Set(cfg.LogLevel)
	ctx, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	lock, err := handOver(ctx, cfg, m)
	if lock == nil || err != nil {
		return err
	}
	defer lock.Close()
	return pass(ctx, o, cfg)
}

// handOver tells the daemon, or takes the lock if there is none. While somebody
// holds the lock who does not listen, it is another of us, or a daemon that
// starts: that may have looked before this event, or will listen in a moment.
func handOver(ctx context.Context, cfg config.Config, m hook.Message) (*lockfile.Lock, error) {
	if err := os.MkdirAll(cfg.RuntimeDir, 0o755); err != nil { //nolint:gosec // status.json is for everybody
		return nil, fmt.Errorf("creating the runtime directory: %w", err)
	}
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

// pass runs the parts until everything known is in force and nothing is on its
// way.
func pass(ctx context.Context, o Options, cfg config.Config) error {
	ready := false
	finished := newEvent()
	var waiting string
	var p *parts
	p, err := assemble(ctx, cfg, o.Logger, reconcile.Hooks{
		Ready: func() { ready = true },
		Settled: func() {
			if ready && len(p.loop.Unfinished()) == 0 {
				finished.give()
			}
		},
		Report: func(r reconcile.Report) { waiting = r.Waiting },
	})
	if err != nil {
		return err
	}
	defer p.close()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks, running := errgroup.WithContext(running)
	p.run(running, tasks)
	done := finished.await(running)
	cancel()
	if err := tasks.Wait(); err != nil {
		return err
	}
	switch {
	case done:
		return nil
	case !ready:
		return fmt.Errorf("bringing the host in order: not everything is known: %s; what stands was left", waiting)
	default:
		return errors.New("bringing the host in order: a link was still being brought up or taken down after " + onceTimeout.String())
	}
}
