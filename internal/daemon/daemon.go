// Package daemon is the service: it assembles the parts, keeps them running and reports
// their state to systemd.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/server"
	"multihomed/internal/event"
	"multihomed/internal/failover"
	"multihomed/internal/handoff"
	"multihomed/internal/holding"
	"multihomed/internal/lockfile"
	"multihomed/internal/news"
	"multihomed/internal/notify"
	"multihomed/internal/offswitch"
	"multihomed/internal/ownership"
	"multihomed/internal/recollection"
	"multihomed/internal/standin"
	"multihomed/internal/status/view"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Options are what the command line decides.
type Options struct {
	// ConfigPath is the configuration file; it need not exist.
	ConfigPath string
	Version    string
	Logger     *slog.Logger
	// Hangup asks the daemon to read its configuration again. One that comes before the start is
	// complete, waits.
	Hangup <-chan os.Signal
	// Level is what the logger filters by; the configuration sets it.
	Level *slog.LevelVar
}

// managerTimeout is how long the start waits for a NetworkManager that is not on the bus.
// The unit starts the daemon after it.
const managerTimeout = 10 * time.Second

// readyTimeout is how long the start waits for a NetworkManager that is still activating
// devices: longer than its timeout for a DHCP server that does not answer.
const readyTimeout = 2 * time.Minute

// lockTimeout is how long a stand-in may take to make way.
const lockTimeout = 5 * time.Second

// Run serves until ctx is done. It leaves the routing in place.
func Run(ctx context.Context, o Options) error {
	cfg, err := find(ctx, o)
	if err != nil {
		return err
	}
	if err := mayRoute(); err != nil {
		return err
	}
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	s := &service{Options: o, notify: notify.New(o.Logger), started: time.Now(), works: cfg.Switch(), faults: faults{}, logged: problems{log: o.Logger}, memory: &memory{file: recollection.File{Directory: cfg.RuntimeDir}}}
	if s.lock, err = handoff.TakeLock(waiting, cfg.RuntimeDir, standin.Runs); err != nil {
		return err
	}
	defer func() { closing(o.Logger, "lock", s.lock.Close) }()
	unlock, err := lockNamespace(waiting, cfg.Config, o.Logger)
	if err != nil {
		return err
	}
	defer unlock()
	defer announce(ctx, cfg, o.Logger)()

	s.maps = &holding.Maps{Store: s.notify.Keep}
	defer closing(o.Logger, "DNS maps", s.maps.Close)
	s.users = &userLinks{store: s.notify.Keep, forget: s.notify.Forget}
	defer closing(o.Logger, "programs of bound users", s.users.close)
	stored := func(name string, f *os.File) bool { return s.maps.TakeStored(name, f) || s.users.takeStored(name, f) }
	if s.sockets, err = openSockets(stored); err != nil {
		return err
	}
	defer closing(o.Logger, "sockets", s.sockets.Close)
	if err := s.listen(cfg.Config); err != nil {
		return err
	}
	defer closing(o.Logger, "socket for events", func() error {
		if s.events == nil {
			return nil
		}
		// The next process reads everything, so messages that are left do not matter.
		_, err := s.events.Close()
		return err
	})
	s.desk = newDesk()
	defer s.desk.close()
	s.openBus()
	var serving sync.WaitGroup
	defer serving.Wait()
	staying, leave := context.WithCancel(ctx)
	defer leave()
	serving.Go(func() { s.bus.Run(staying) })
	o.Logger.LogAttrs(ctx, slog.LevelInfo, "multihomed "+o.Version+" started", event.Is(event.Started)) //nolint:sloglint // the version
	for {
		again, err := s.serve(ctx, cfg, o.Hangup)
		if err == nil && again != nil {
			cfg = *again
			if err = s.stayFound(ctx, cfg.Config); ctx.Err() != nil {
				again, err = nil, nil
			}
		}
		if err != nil || again == nil {
			s.notify.Stopping()
			letGoIfMasked(ctx, o.Logger)
			if err == nil {
				o.Logger.LogAttrs(ctx, slog.LevelInfo, lastWords(context.WithoutCancel(ctx)), event.Is(event.Stopped)) //nolint:sloglint // one of three sentences
			}
			return err
		}
	}
}

// lastWords say what stays in the kernel.
func lastWords(ctx context.Context) string {
	switch stands, err := cleanup.Stands(ctx); {
	case err != nil:
		return "multihomed stopped"
	case stands:
		return "multihomed stopped, the routing of links stays active"
	default:
		return "multihomed stopped, no link has its own routing"
	}
}

// service is the state that outlives a change of the configuration.
type service struct {
	Options
	notify  *notify.Notifier
	started time.Time
	sockets *sockets
	// maps are the DNS maps of bound programs.
	maps *holding.Maps
	// users are the programs that lead the DNS queries of bound users.
	users *userLinks
	// lock and events are made again with the runtime directory; memory outlives it.
	lock     *lockfile.Lock
	events   *handoff.Listener
	memory   *memory
	restored time.Time
	// works is where this process keeps its state, until it ends.
	works offswitch.Directories
	// at is where it works, as D-Bus says.
	at dbusapi.Place
	// files writes again what earlier parts kept in the runtime directory, if it is gone;
	// nil until the directory was removed once.
	files func() error
	// written is what the log says already, from the previous configuration; uplinks is who
	// watched the uplinks under it, manager who followed NetworkManager; counts is what was counted
	// under all of them.
	written *written
	uplinks *failover.Controller
	manager *nm.Watcher
	counts  counts
	// since is when problems that are there were first found.
	since map[about]time.Time

	mu sync.Mutex
	// report is the last one of the loop; faults are those of other parts.
	report reconcile.Report
	faults faults
	// answers are those of what is forwarded; found are further problems that the checks of status found.
	answers, found []routing.Problem
	// unbound are those of bindings, unattached those of control groups.
	unbound, unattached []routing.Problem
	// logged are the problems in the log.
	logged problems

	// desk answers on the socket of the status.
	desk *desk
	// bus answers on D-Bus; stale is given when it has something to tell, wrote are changes of the
	// kernel that it tells.
	bus   *server.Server
	stale news.Signal
	wrote *changes
	// reloads ask for the configuration to be read again; reloading is the one that waits until the
	// new one is active, nil for none.
	reloads   chan reload
	reloading *reload
	// switching is held by who changes what is off or bound.
	switching chan struct{}
}

// Codes of the problems of parts.
const (
	leasesFault     routing.Code = "leases"
	namesFault      routing.Code = "dns-servers"
	allocatorFault  routing.Code = "table-allocator"
	tableNamesFault routing.Code = "table-names"
	statusFault     routing.Code = "status-socket"
	runFault        routing.Code = "binder-socket"
	boundNamesFault routing.Code = "bound-dns-servers"
	userNamesFault  routing.Code = "bound-users-dns"
	lastGoodFault   routing.Code = "last-good-configuration"
)

// faults are the problems of parts other than the loop, by code.
type faults map[routing.Code]routing.Problem

// set notes the problem of a part, none if err is nil, and reports whether it changed.
func (f faults) set(code routing.Code, err error) bool {
	var p routing.Problem
	bad, is := errors.AsType[*config.Fault](err)
	switch {
	case is:
		p = bad.Problem()
	case err != nil:
		p = routing.ProblemOf(code, routing.Warning, "", err)
	}
	return f.put(code, p)
}

// put notes the problem of a part, none if it is zero, and reports whether it changed.
func (f faults) put(code routing.Code, p routing.Problem) bool {
	if f[code] == p {
		return false
	}
	f[code] = p
	return true
}

// all returns the problems, sorted by code.
func (f faults) all() []routing.Problem {
	var out []routing.Problem
	for _, code := range slices.Sorted(maps.Keys(f)) {
		if p := f[code]; p.Code != "" {
			out = append(out, p)
		}
	}
	return out
}

// serve runs all parts under one configuration. It returns the next configuration when that
// changed, nil when ctx is done.
func (s *service) serve(ctx context.Context, loaded config.Loaded, hangup <-chan os.Signal) (*config.Loaded, error) {
	cfg := loaded.Config
	s.Level.Set(cfg.LogLevel)
	reloading := s.reloading
	s.reloading = nil
	s.fault(config.FaultCode, faultOf(loaded))
	// passed is given after the first pass, known when the links are known or the wait for
	// them has ended.
	// alone is given when there is no NetworkManager to wait for.
	passed, known, leasing, alone := newLatch(), newLatch(), newLatch(), newLatch()
	var noManager atomic.Bool
	var p *parts
	var held *holder
	outdated, changed := news.NewSignal(), news.NewSignal()
	reports := news.NewSlot[reconcile.Report]()
	names := newUserNames(s)
	p, err := assemble(ctx, cfg, s.Logger, reconcile.Hooks{
		Ready: known.give,
		Settled: func() {
			passed.give()
			changed.Give()
			held.afterPass()
			noManager.Store(p.owners.NoManager())
			if p.owners.NoManager() {
				alone.give()
			}
		},
		Alive: s.notify.Alive, Beat: s.notify.Beat(),
		Report: reports.Put,
		Outdated: func() {
			outdated.Give()
			s.stale.Give()
		},
		Wrote: func(ops []routing.Op) {
			s.wrote.add(ops)
			s.stale.Give()
		},
	}, extras{judged: s.stale.Give, fault: s.fault, problems: s.answered, unbound: s.notBound, names: names, memory: s.memory, written: s.written, manager: s.manager, watches: true, uplinks: s.uplinks, counts: &s.counts})
	// A normal stop before the first pass is no fault of the configuration: it becomes the
	// last good one, so that a restart does not bring back an older one.
	keepUnpassed := func() { passed.do(func() { s.fault(lastGoodFault, loaded.Keep(time.Now())) }) }
	if err != nil && ctx.Err() != nil {
		keepUnpassed()
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer p.close()
	s.uplinks, s.manager = nil, nil // They have been taken over, and hold the parts before.
	tellers := newTeller(s, cfg, p, outdated, changed)
	// Without the socket the routing goes on, and multihomectl reads the host by itself.
	s.fault(statusFault, s.desk.listen(cfg.RuntimeDir, s.Logger))
	p.cgroups = newBoundCgroups(cfg, p, s.notAttached)
	held = newHolder(s, cfg, p)
	s.fault(runFault, held.listen())
	names.of(p, held)

	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var next *config.Loaded
	lost := false
	tasks := append(p.tasks(s.fault), []task{
		{name: "problems", run: func(ctx context.Context) error {
			return reports.Follow(ctx, retryEvery, func(_ context.Context, r reconcile.Report) error {
				s.reported(r)
				return nil
			})
		}},
		{name: "start", ready: known, run: always(func(ctx context.Context) { s.startAnyway(ctx, p, known, &noManager) })},
		{name: "table allocator", ready: leasing, run: func(ctx context.Context) error {
			// The kernel must have been read first: any table may be in use.
			if !passed.await(ctx) {
				return nil
			}
			return s.serveLeases(ctx, cfg, p, leasing)
		}},
		{name: "events", run: func(ctx context.Context) error {
			return s.events.Run(ctx, s.Logger, func(m handoff.Message) {
				if m.Failover != "" {
					p.carryOut(m)
					return
				}
				p.take(ctx, m)
				p.acknowledge(m)
			})
		}},
		{name: "status", run: func(ctx context.Context) error { return tellers.run(ctx, known, alone) }},
		{name: "reload", run: always(func(ctx context.Context) {
			switch {
			case reloading == nil:
			case passed.await(ctx):
				tellers.awaitLinks(ctx)
				reloading.done <- nil
			default:
				reloading.done <- errors.New("before this configuration was active, it was read again; to see whether it is active: multihomectl status")
			}
		})},
		{name: "D-Bus", run: (&onBus{service: s, cfg: cfg, parts: p, teller: tellers}).run},
		{name: "bound programs", run: held.run},
		{name: "control groups", run: p.cgroups.run},
		{name: "DNS of bound users", run: names.run},
		{name: "bookkeeping of leases", run: always(func(ctx context.Context) { p.keepLeases(ctx, s.fault) })},
		{name: "memory", run: always(func(ctx context.Context) { giveBack(ctx, changed) })},
		{name: "last good configuration", run: always(func(ctx context.Context) {
			// A configuration is good once a pass was made with it.
			if passed.await(ctx) {
				keep(ctx, loaded, func(err error) { s.fault(lastGoodFault, err) })
			}
		})},
		{name: "runtime directory", run: func(ctx context.Context) (err error) {
			if lost, err = s.guard(ctx, cfg, p, held); lost || err != nil {
				cancel()
			}
			return err
		}},
		{name: "configuration", run: always(func(ctx context.Context) {
			defer cancel()
			next = s.awaitChange(ctx, cfg, hangup)
		})},
	}...)
	err = runAll(running, tasks, s.notify.Ready)
	reports.Rest(s.reported)
	if err != nil {
		return nil, err
	}
	keepUnpassed()
	s.written, s.uplinks, s.manager, s.since = p.written(), p.uplinks, p.watcher, tellers.dates()
	if ctx.Err() != nil && next == nil {
		p.emptyFailover(ctx)
	}
	if lost && next == nil && ctx.Err() == nil {
		return &loaded, nil
	}
	return next, nil
}

// startAnyway ends the wait for the owners of links: the boot waits for READY=1, and an
// installed NetworkManager may never start. The routing of its links stays until it does.
func (s *service) startAnyway(ctx context.Context, p *parts, known *latch, noManager *atomic.Bool) {
	absent, unready := time.NewTimer(managerTimeout), time.NewTimer(readyTimeout)
	defer absent.Stop()
	defer unready.Stop()
	for {
		select {
		case <-known.given:
			return
		case <-ctx.Done():
			return
		case <-absent.C:
			if !noManager.Load() {
				continue
			}
		case <-unready.C:
		}
		known.do(func() {
			s.Logger.LogAttrs(ctx, event.LevelNotice, "starting without knowing all links", slog.Duration("after", time.Since(s.started).Round(time.Second)))
		})
		p.isPast.give()
		return
	}
}

// awaitChange returns the configuration that replaces cfg, nil when ctx is done. A bad file
// only makes a problem.
func (s *service) awaitChange(ctx context.Context, cfg config.Config, hangup <-chan os.Signal) *config.Loaded {
	for {
		asked := reload{done: make(chan error, 1)} // Of a signal nobody waits for the answer.
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		case asked = <-s.reloads:
		}
		ready := s.notify.Reloading()
		next := config.Find(s.ConfigPath)
		needsRestart := next.Reloadable(cfg.Switch())
		switch {
		case next.Fault != nil:
			s.refuse(config.Refused(next.Fault.File, next.Fault.Err))
			asked.done <- next.Fault
		case needsRestart != nil:
			s.refuse(config.Refused(s.ConfigPath, needsRestart))
			asked.done <- needsRestart
		case reflect.DeepEqual(next.Config, cfg):
			s.fault(config.FaultCode, nil)
			s.Level.Set(cfg.LogLevel) // D-Bus may have changed it.
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "configuration unchanged", event.Is(event.ConfigLoaded))
			s.fault(lastGoodFault, next.Keep(time.Now()))
			s.stale.Give()
			asked.done <- nil
		default:
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "configuration changed", event.Is(event.ConfigLoaded))
			s.reloading = &asked
			return &next
		}
		if ready {
			s.notify.Ready()
		}
	}
}

// reported takes a report of the loop.
func (s *service) reported(r reconcile.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = r
	s.tell(r)
}

// fault notes the problem of a part other than the loop, none if err is nil.
func (s *service) fault(code routing.Code, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults.set(code, err) {
		s.tell(s.report)
	}
}

// problem notes the problem of a part other than the loop, none if it is zero.
func (s *service) problem(part routing.Code, p routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults.put(part, p) {
		s.tell(s.report)
	}
}

// refuse notes the fault of a configuration that a reload found, and logs it each time: a reload
// that fails must say why.
func (s *service) refuse(fault *config.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.set(config.FaultCode, fault)
	s.logged.again(config.FaultCode)
	s.tell(s.report)
}

// tell logs changed problems and updates the status line of systemd. The caller holds mu.
func (s *service) tell(r reconcile.Report) {
	problems := slices.Concat(s.faults.all(), r.Problems, s.answers, s.unbound, s.unattached, s.found)
	s.logged.note(context.Background(), problems)
	s.notify.Status(summary(r.Waiting, problems))
	s.stale.Give()
}

// answered takes the problems of what is forwarded.
func (s *service) answered(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = problems
	s.tell(s.report)
}

// notBound takes the problems of bindings.
func (s *service) notBound(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbound = problems
	s.tell(s.report)
}

// notAttached takes the problems of control groups.
func (s *service) notAttached(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(problems, s.unattached) {
		s.unattached = problems
		s.tell(s.report)
	}
}

// checked takes the problems that checks found.
func (s *service) checked(problems []routing.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.found, problems) {
		s.found = problems
		s.tell(s.report)
	}
}

// state is what status shows of the daemon itself, with the report of the loop.
func (s *service) state(r reconcile.Report) view.Daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems := slices.Concat(s.faults.all(), r.Problems, s.answers, s.unbound, s.unattached)
	return view.Daemon{
		Version: s.Version, PID: os.Getpid(), Started: s.started,
		Ready: r.Ready, Waiting: r.Waiting, Problems: problems, Away: r.Away,
		Directories: s.works,
	}
}

const (
	// flushEvery bounds how long changed leases stay unwritten.
	flushEvery = time.Minute
	// checkEvery is how often to check whether leases can be written.
	checkEvery = 5 * time.Second
)

// keepLeases writes leases, and reports a fault while they cannot be written.
func (p *parts) keepLeases(ctx context.Context, fault func(routing.Code, error)) {
	flush, check := time.NewTicker(flushEvery), time.NewTicker(checkEvery)
	defer flush.Stop()
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			p.checkLeases(ctx, fault)
		case <-p.unsaved:
			p.checkLeases(ctx, fault)
		case <-flush.C:
			if err := p.leases.Flush(ctx); err != nil && ctx.Err() == nil {
				p.log.LogAttrs(ctx, event.LevelNotice, "bookkeeping of leases delayed", slog.String("error", err.Error()))
			}
		}
	}
}
