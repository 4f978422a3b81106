package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/handoff"
	"multihomed/internal/lockfile"
	"multihomed/internal/ownership"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

const (
	// handOverTimeout bounds how long a lock is waited for that somebody holds who
	// does not listen.
	handOverTimeout = 10 * time.Second
	// askAgain is how often such a lock is tried.
	askAgain = 20 * time.Millisecond
	// Linger is how long to stay after the last event. NetworkManager tells of a
	// link when one family is there, and nobody of a router advertisement that
	// comes later.
	Linger = 20 * time.Second
)

// Once sees to it that what a message tells of is dealt with. With a daemon, that
// is told; without, this process does for a while what the daemon does: it brings
// the whole host in order, follows what comes of the event, takes the messages of
// others like itself, and ends when nothing was heard for as long as it is to
// linger. It makes way for a daemon at once. What stands, it leaves.
//
// Settled is called when the first of this is done.
func Once(ctx context.Context, o Options, m handoff.Message, linger time.Duration, settled func()) error {
	cfg, err := find(ctx, o)
	if err != nil {
		return err
	}
	if err := mayRoute(); err != nil {
		return err
	}
	o.Level.Set(cfg.LogLevel)
	release, err := takePlace(ctx, cfg.Config, m, o.Logger)
	if release == nil || err != nil {
		return err
	}
	defer release()
	for {
		events, err := handoff.Listen(cfg.RuntimeDir)
		if err != nil {
			return err
		}
		wanted, err := (&standIn{Options: o, cfg: cfg, first: m, linger: linger, settled: settled, faults: faults{}, logged: problems{log: o.Logger}}).serve(ctx, events)
		left, closing := events.Close()
		if err = errors.Join(err, closing); err != nil || !wanted || !left {
			return err
		}
		// What they said is in the files of hooks, or NetworkManager knows it.
		m = handoff.Message{}
	}
}

// takePlace is handOver with the lock of the network namespace. A daemon whose runtime
// directory was removed has only that one: it makes the other one again, for which it
// must find it free, and is told then.
func takePlace(ctx context.Context, cfg config.Config, m handoff.Message, log *slog.Logger) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*handOverTimeout)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		lock, err := handOver(ctx, cfg, m)
		if lock == nil || err != nil {
			return nil, err
		}
		unlock, err := tryNamespace(ctx, lockfile.TrustedUsers(cfg.RuntimeDir, cfg.StateDir), log)
		if err == nil {
			return func() {
				unlock()
				closing(log, "lock", lock.Close)
			}, nil
		}
		closing(log, "lock", lock.Close)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("standing in for the daemon: %w", err)
		case <-ticker.C:
		}
	}
}

// handOver tells the daemon, or takes the lock if there is none. While somebody
// holds the lock who does not listen, it is another of us, or a daemon that
// starts: that may have looked before this event, or will listen in a moment.
func handOver(ctx context.Context, cfg config.Config, m handoff.Message) (*lockfile.Lock, error) {
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		err := handoff.Send(cfg.RuntimeDir, m)
		if !errors.Is(err, handoff.ErrNobody) {
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

// A standIn does the daemon's work for a while.
type standIn struct {
	Options
	cfg config.Loaded
	// first is what it was called for.
	first   handoff.Message
	linger  time.Duration
	settled func()
	mu      sync.Mutex
	faults  faults
	report  reconcile.Report
	logged  problems
}

// serve runs the parts until nothing has been heard for a while. It reports
// whether messages that came too late are ours to deal with.
func (s *standIn) serve(ctx context.Context, events *handoff.Listener) (wanted bool, err error) {
	var replaced atomic.Bool
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.AfterFunc(max(s.linger, firstPass), cancel)
	defer end.Stop()
	s.fault(config.FaultCode, faultOf(s.cfg))
	finish := func() {
		s.fault(lastGoodFault, s.cfg.Keep(time.Now()))
		s.settled()
		if s.linger == 0 {
			cancel()
		}
	}
	var p *parts
	var waiting string
	// known is given when the first pass is made that knows what there is to know.
	known := newLatch()
	p, err = assemble(ctx, s.cfg.Config, s.Logger, reconcile.Hooks{
		Ready: func() { waiting = "" },
		Settled: func() {
			if p.owners.ManagerKnown() {
				known.give()
			}
		},
		Report: func(r reconcile.Report) {
			waiting = r.Waiting
			s.reported(r)
		},
	}, extras{fault: s.fault})
	if err != nil {
		return false, err
	}
	defer p.close()
	p.take(ctx, s.first)
	tasks := append(p.tasks(s.fault), []task{
		{name: "caller", run: always(func(ctx context.Context) {
			if known.await(ctx) {
				p.followed(ctx)
				finish()
			}
		})},
		{name: "events", run: func(ctx context.Context) error {
			return events.Run(ctx, s.Logger, func(m handoff.Message) {
				if m.MakesWay() {
					m.Acknowledge()
					replaced.Store(true)
					cancel()
					return
				}
				end.Reset(max(s.linger, firstPass))
				p.take(ctx, m)
				p.acknowledge(m)
			})
		}},
	}...)
	if err := runAll(running, tasks, func() {}); err != nil {
		return false, err
	}
	if waiting != "" && ctx.Err() == nil && !replaced.Load() {
		s.Logger.LogAttrs(ctx, event.LevelNotice, "routing of other links left alone, because not every link is known", slog.String("reason", waiting))
	}
	return ctx.Err() == nil && !replaced.Load(), nil
}

// firstPass bounds the first pass of one who does not linger.
const firstPass = 5 * time.Second

// fault says what is wrong with a part.
func (s *standIn) fault(code routing.Code, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults.set(code, err) {
		s.logged.note(context.Background(), slices.Concat(s.report.Problems, s.faults.all()))
	}
}

// reported takes what the loop has to say.
func (s *standIn) reported(r reconcile.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = r
	s.logged.note(context.Background(), slices.Concat(r.Problems, s.faults.all()))
}
