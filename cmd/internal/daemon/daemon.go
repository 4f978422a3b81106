// Package daemon is the service: it puts the parts together, keeps them running
// and tells systemd how they are.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"multihomed/allocator"
	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/declared"
	"multihomed/cmd/internal/lockfile"
	"multihomed/cmd/internal/rttables"
	"multihomed/cmd/internal/runstate"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
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

// Run serves until ctx is done. It leaves the routing in place.
func Run(ctx context.Context, o Options) error {
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RuntimeDir, 0o755); err != nil { //nolint:gosec // status.json is for everybody
		return fmt.Errorf("creating the runtime directory: %w", err)
	}
	lock, err := lockfile.TryLock(filepath.Join(cfg.RuntimeDir, lockfile.Name))
	if err != nil {
		return err
	}
	defer lock.Close()

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	s := &service{Options: o, notify: newNotifier(o.Logger), started: time.Now()}
	if s.sockets, err = openSockets(); err != nil {
		return err
	}
	defer s.closing("sockets", s.sockets.Close)
	for {
		again, err := s.serve(ctx, cfg, hangup)
		if err != nil || again == nil {
			s.notify.stopping()
			return errors.Join(err, runstate.Remove(cfg.RuntimeDir))
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

	mu sync.Mutex
	// report is the loop's last; faults are of other parts.
	report reconcile.Report
	faults map[string]string
}

// serve runs all parts under one configuration. It returns the next one when
// that changed, nil when ctx is done.
func (s *service) serve(ctx context.Context, cfg config.Config, hangup <-chan os.Signal) (*config.Config, error) {
	s.Level.Set(cfg.LogLevel)
	policy := cfg.RoutingPolicy()

	leases, err := allocator.Open(ctx, allocator.Options{
		Path: filepath.Join(cfg.StateDir, allocator.DefaultName), Range: policy.Tables,
	})
	if err != nil {
		return nil, err
	}
	defer s.closing("leases", leases.Close)

	names, err := rttables.Load()
	if err != nil {
		// A file that cannot be read may reserve any number; it is the
		// administrator's, and the numbers of ours are ours in practice.
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "names of routing tables are unknown", slog.String("error", err.Error()))
	}

	past := openHistory(ctx, s.Logger, cfg.StateDir, policy)
	past.moveGroups(ctx)
	// Routes of main are read when an owner says that an interface matters: a
	// host may have a million of others.
	mirror, err := kernel.Open(kernel.Config{Tables: policy.Tables, Interest: func(string) bool { return false }})
	if err != nil {
		return nil, err
	}
	defer s.closing("mirror", mirror.Close)
	writer, err := mirror.OpenWriter()
	if err != nil {
		return nil, err
	}
	defer s.closing("writer", writer.Close)

	links, errs := declared.Open(cfg.RuntimeDir)
	for _, err := range errs {
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "a routed lease is lost", slog.String("error", err.Error()))
	}
	router := &router{log: s.Logger, mirror: mirror, links: links, policy: cfg.NMPolicy()}
	watcher := nm.New(nm.Options{Logger: s.Logger})
	owners := claims.Join(claims.New(watcher, cfg.NMPolicy()), links)
	settled := newEvent()
	loop := reconcile.New(reconcile.Options{
		Policy: policy, Logger: s.Logger,
		Mirror: mirror, Writer: writer,
		Owners: owners, Leases: leases,
		Reserved: names.Lookup,
		Repairs:  rate.NewLimiter(rate.Limit(cfg.RepairsPerSecond), cfg.RepairBurst),
		Hooks: reconcile.Hooks{
			Ready: func() {
				past.clean(ctx)
				s.notify.ready()
			},
			Settled: func() {
				router.settled(ctx)
				settled.give()
			},
			Alive: s.notify.alive, Beat: s.notify.beat(),
			Report: func(r reconcile.Report) { s.reported(cfg.RuntimeDir, r) },
		},
	})
	router.loop = loop

	running, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks, running := errgroup.WithContext(running)
	tasks.Go(func() error { return mirror.Run(running) })
	tasks.Go(func() error { return watcher.Run(running) })
	tasks.Go(func() error { return owners.Run(running) })
	tasks.Go(func() error { return loop.Run(running) })
	tasks.Go(func() error {
		// Not before the kernel has been read: any table may be in use.
		if !settled.await(running) {
			return nil
		}
		return s.lease(running, cfg, leases, &tableView{mirror: mirror, loop: loop, tables: policy.Tables}, router)
	})
	tasks.Go(func() error { return flushLeases(running, leases, s.Logger) })

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

// reported takes what the loop has to say.
func (s *service) reported(directory string, r reconcile.Report) {
	s.notify.status(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = r
	s.publish(directory)
}

// fault notes what is wrong with a part other than the loop, nothing if text is
// empty.
func (s *service) fault(directory, part, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults[part] == text {
		return
	}
	if s.faults == nil {
		s.faults = map[string]string{}
	}
	s.faults[part] = text
	if text != "" {
		s.Logger.Warn("a part is not in service", slog.String("part", part), slog.String("error", text))
	}
	s.publish(directory)
}

// publish writes what status can only learn from the daemon.
func (s *service) publish(directory string) {
	problems := runstate.Problems(s.report.Problems)
	for _, part := range slices.Sorted(maps.Keys(s.faults)) {
		if text := s.faults[part]; text != "" {
			problems = append(problems, runstate.Problem{Severity: routing.Warning.String(), Text: part + ": " + text})
		}
	}
	err := runstate.Write(directory, runstate.State{
		Version: s.Version, PID: os.Getpid(), Started: s.started,
		Ready: s.report.Ready, Waiting: s.report.Waiting, Problems: problems,
	})
	if err != nil {
		s.Logger.Warn("status is not published", slog.String("error", err.Error()))
	}
}

func (s *service) closing(what string, do func() error) {
	if err := do(); err != nil {
		s.Logger.Warn("ending was not clean", slog.String("part", what), slog.String("error", err.Error()))
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
