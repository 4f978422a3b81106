// Package daemon is the service: it puts the parts together, keeps them running
// and tells systemd how they are.
package daemon

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/allocator"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/ownership"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Options are what the command line decides.
type Options struct {
	// ConfigPath is the configuration file; it need not exist.
	ConfigPath string
	Version    string
	Logger     *slog.Logger
	// Level is what the logger filters by; the configuration sets it.
	Level *slog.LevelVar
}

// managerTimeout is how long a NetworkManager that is not on the bus is waited for.
// The unit starts the daemon after it.
const managerTimeout = 10 * time.Second

// readyTimeout is how long one that is there, and does not come to an end with what
// it starts, is waited for: longer than a DHCP server that does not answer takes.
const readyTimeout = 2 * time.Minute

// lockTimeout is what a dispatcher needs to make way.
const lockTimeout = 5 * time.Second

// Run serves until ctx is done. It leaves the routing in place.
func Run(ctx context.Context, o Options) error {
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		return err
	}
	if err := ownership.MakeDirectory(cfg.RuntimeDir); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	lock, err := hook.TakeLock(waiting, cfg.RuntimeDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	unlock, err := lockNamespace(waiting, cfg, o.Logger)
	if err != nil {
		return err
	}
	defer unlock()

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	s := &service{Options: o, notify: newNotifier(o.Logger), started: time.Now(), faults: faults{}}
	if s.sockets, err = openSockets(); err != nil {
		return err
	}
	defer closing(o.Logger, "sockets", s.sockets.Close)
	if s.events, err = hook.Listen(cfg.RuntimeDir); err != nil {
		return err
	}
	defer closing(o.Logger, "socket for events", func() error {
		// Whoever starts next looks at everything.
		_, err := s.events.Close()
		return err
	})
	for {
		again, err := s.serve(ctx, cfg, hangup)
		if err != nil || again == nil {
			s.notify.stopping()
			return err
		}
		cfg = *again
	}
}

// service is what outlives a change of the configuration.
type service struct {
	Options
	notify  *notifier
	started time.Time
	sockets *sockets
	events  *hook.Listener

	mu sync.Mutex
	// faults are of parts other than the loop.
	faults faults
}

// Codes of parts that may not work.
const (
	leasesFault    routing.Code = "leases"
	namesFault     routing.Code = "dns-servers"
	allocatorFault routing.Code = "table-allocator"
	statusFault    routing.Code = "status-socket"
)

// faults are what is wrong with parts other than the loop.
type faults map[routing.Code]routing.Problem

// set takes what is wrong with a part, nothing if err is nil.
func (f faults) set(log *slog.Logger, code routing.Code, err error) {
	var p routing.Problem
	if err != nil {
		p = routing.ProblemOf(code, routing.Warning, "", err)
	}
	if f[code] == p {
		return
	}
	f[code] = p
	if err != nil {
		log.Warn("component unavailable", slog.String("component", string(code)), slog.String("error", err.Error()))
	} else {
		log.Info("component available again", slog.String("component", string(code)))
	}
}

// serve runs all parts under one configuration. It returns the next one when
// that changed, nil when ctx is done.
func (s *service) serve(ctx context.Context, cfg config.Config, hangup <-chan os.Signal) (*config.Config, error) {
	s.Level.Set(cfg.LogLevel)
	settled, ready := newEvent(), newEvent()
	var alone atomic.Bool
	var p *parts
	p, err := assemble(ctx, cfg, s.Logger, reconcile.Hooks{
		Ready: func() { ready.do(s.notify.ready) },
		Settled: func() {
			settled.give()
			alone.Store(p.owners.Alone())
		},
		Alive: s.notify.alive, Beat: s.notify.beat(),
		Report: s.notify.status,
	}, extras{fault: s.fault})
	if err != nil {
		return nil, err
	}
	defer p.close()

	running, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks, running := errgroup.WithContext(running)
	p.run(running, tasks)
	// The boot waits for READY=1, and NetworkManager may be installed and never
	// come. What is left of its links stands until it does.
	giveUp := func(isDue func() bool) func() {
		return func() {
			if isDue() {
				ready.do(func() {
					s.Logger.LogAttrs(ctx, slog.LevelWarn, "ready is said although not all links are known", slog.Duration("after", time.Since(s.started)))
					s.notify.ready()
				})
			}
		}
	}
	absent := time.AfterFunc(managerTimeout, giveUp(alone.Load))
	defer absent.Stop()
	unready := time.AfterFunc(readyTimeout, giveUp(func() bool { return true }))
	defer unready.Stop()
	tasks.Go(func() error {
		// Not before the kernel has been read: any table may be in use.
		if !settled.await(running) {
			return nil
		}
		return s.lease(running, cfg, p.leases, &tableView{mirror: p.mirror, loop: p.loop, tables: cfg.Tables}, p.router)
	})
	tasks.Go(func() error {
		return s.events.Run(running, s.Logger, func(m hook.Message) {
			p.take(running, m)
		})
	})
	tellers, err := newTeller(s, cfg, p)
	if err != nil {
		// The routing goes on, and multihomectl reads the host by itself.
		s.fault(statusFault, err)
	} else {
		s.fault(statusFault, nil)
		tellers.run(running, tasks)
	}
	tasks.Go(func() error { return flushLeases(running, p.leases, s.Logger) })

	var next *config.Config
	tasks.Go(func() error {
		defer cancel()
		next = s.awaitChange(running, cfg, hangup)
		return nil
	})
	if err := tasks.Wait(); err != nil {
		return nil, err
	}
	return next, nil
}

// awaitChange returns the configuration that replaces cfg, nil when ctx is done.
func (s *service) awaitChange(ctx context.Context, cfg config.Config, hangup <-chan os.Signal) *config.Config {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		}
		ready := s.notify.reloading()
		next, err := config.Load(s.ConfigPath)
		switch {
		case err != nil:
			s.Logger.LogAttrs(ctx, slog.LevelError, "configuration refused, the old one stays", slog.String("error", err.Error()))
		case next.StateDir != cfg.StateDir || next.RuntimeDir != cfg.RuntimeDir:
			s.Logger.LogAttrs(ctx, slog.LevelError, "configuration refused, the old one stays", slog.String("error", "state_dir and runtime_dir need a restart"))
		case reflect.DeepEqual(next, cfg):
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "configuration unchanged")
		default:
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "configuration changed")
			return &next
		}
		if ready {
			s.notify.ready()
		}
	}
}

// fault notes what is wrong with a part other than the loop, nothing if err is nil.
func (s *service) fault(code routing.Code, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.set(s.Logger, code, err)
}

// state is what the daemon says of itself, with the loop's report.
func (s *service) state(r reconcile.Report) runstate.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems := slices.Clone(r.Problems)
	for _, code := range slices.Sorted(maps.Keys(s.faults)) {
		if p := s.faults[code]; p.Code != "" {
			problems = append(problems, p)
		}
	}
	away := make([]runstate.Away, len(r.Away))
	for i, a := range r.Away {
		away[i] = runstate.Away(a)
	}
	return runstate.State{
		Version: s.Version, PID: os.Getpid(), Started: s.started,
		Ready: r.Ready, Waiting: r.Waiting, Problems: problems, Away: away, Gone: r.Gone,
	}
}

// flushEvery is how long the lazy bookkeeping of leases may lag behind.
const flushEvery = time.Minute

func flushLeases(ctx context.Context, leases *allocator.Allocator, log *slog.Logger) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := leases.Flush(ctx); err != nil && ctx.Err() == nil {
				log.LogAttrs(ctx, slog.LevelWarn, "bookkeeping of leases is delayed", slog.String("error", err.Error()))
			}
		}
	}
}
