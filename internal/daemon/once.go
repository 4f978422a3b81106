package daemon

import (
	"cmp"
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
	// handOverTimeout bounds the wait for a lock whose holder does not listen.
	handOverTimeout = 10 * time.Second
	// askAgain is the pause between two attempts to take a lock.
	askAgain = 20 * time.Millisecond
	// Linger is how long a stand-in stays after the last event. NetworkManager announces a
	// link when one family is ready, and nobody announces a router advertisement that comes
	// later.
	Linger = 20 * time.Second
)

// Once handles a message. A running daemon gets it. Without a daemon this process stands in
// for it: it repairs the routing of the whole host, follows further events, takes the
// messages of other hooks, and ends when nothing has happened for the time linger. It makes
// way for a daemon at once, and leaves the routing in place.
//
// Once calls done after the first complete pass.
func Once(ctx context.Context, o Options, m handoff.Message, linger time.Duration, done func()) error {
	if err := mayRoute(); err != nil {
		return err
	}
	cfg, release, err := takePlace(ctx, o, m)
	if release == nil || err != nil {
		return err
	}
	defer release()
	for {
		events, err := handoff.Listen(cfg.RuntimeDir)
		if err != nil {
			return err
		}
		wanted, err := (&standIn{Options: o, cfg: cfg, first: m, linger: linger, done: done, faults: faults{}, logged: problems{log: o.Logger}}).serve(ctx, events)
		left, closing := events.Close()
		if err = errors.Join(err, closing); err != nil || !wanted || !left {
			return err
		}
		// Their content is in the files of hooks, or NetworkManager knows it.
		m = handoff.Message{}
	}
}

// takePlace is handOver with the lock of the network namespace. A daemon whose runtime
// directory was removed holds only that lock. It makes the other one again, which must be
// free then, and gets the message. A daemon that starts or ends meanwhile may work in other
// directories than the file names, so takePlace looks each time. It returns the configuration to
// work with.
func takePlace(ctx context.Context, o Options, m handoff.Message) (cfg config.Loaded, release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*handOverTimeout)
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		here, err := may(ctx, o, config.FindHere(o.ConfigPath))
		if err != nil {
			return here, nil, err
		}
		o.Level.Set(here.LogLevel)
		lock, err := handOver(ctx, here.Config, m)
		if lock == nil || err != nil {
			return here, nil, err
		}
		unlock, err := tryNamespace(ctx, lockfile.TrustedUsers(here.RuntimeDir, here.StateDir), o.Logger)
		if err == nil {
			release := func() {
				unlock()
				closing(o.Logger, "lock", lock.Close)
			}
			// Nobody else works here now, so the file counts.
			cfg, err := find(ctx, o)
			if err == nil && cfg.Switch() == here.Switch() {
				if cfg.Fault != nil {
					Idle(cfg.Fault)
				}
				return cfg, release, nil
			}
			release()
			if err != nil {
				return cfg, nil, err
			}
		} else {
			closing(o.Logger, "lock", lock.Close)
		}
		select {
		case <-ctx.Done():
			return here, nil, fmt.Errorf("standing in for the daemon: %w", cmp.Or(err, context.Cause(ctx)))
		case <-ticker.C:
		}
	}
}

// handOver sends the message to the daemon, or takes the lock if there is none. A holder of
// the lock that does not listen is another stand-in or a daemon that starts. It may have read
// the host before this event, or will listen in a moment, so handOver tries again.
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
	// first is the message that started it.
	first   handoff.Message
	linger  time.Duration
	done    func()
	mu      sync.Mutex
	faults  faults
	answers []routing.Problem
	unbound []routing.Problem
	report  reconcile.Report
	logged  problems
}

// serve runs the parts until nothing has happened for a while. It reports whether messages
// that come too late are for this process.
func (s *standIn) serve(ctx context.Context, events *handoff.Listener) (wanted bool, err error) {
	var replaced atomic.Bool
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.AfterFunc(max(s.linger, firstPass), cancel)
	defer end.Stop()
	s.fault(config.FaultCode, faultOf(s.cfg))
	finish := func() {
		s.fault(lastGoodFault, s.cfg.Keep(time.Now()))
		s.done()
		if s.linger == 0 {
			cancel()
		}
	}
	var p *parts
	var waiting string
	// known is given after the first pass with complete knowledge.
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
	}, extras{fault: s.fault, problems: s.answered, unbound: s.notBound})
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
				if m.Failover != "" {
					m.Refuse("the daemon does not run, so no link is watched; to fix: systemctl start multihomed")
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

// firstPass bounds the first pass of a stand-in that does not linger.
const firstPass = 5 * time.Second

// fault notes the problem of a part, none if err is nil.
func (s *standIn) fault(code routing.Code, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults.set(code, err) {
		s.note()
	}
}

func (s *standIn) answered(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = problems
	s.note()
}

func (s *standIn) notBound(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbound = problems
	s.note()
}

// reported takes a report of the loop.
func (s *standIn) reported(r reconcile.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = r
	s.note()
}

// note logs changed problems. The caller holds mu.
func (s *standIn) note() {
	s.logged.note(context.Background(), slices.Concat(s.report.Problems, s.faults.all(), s.answers, s.unbound))
}
