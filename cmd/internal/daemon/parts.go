package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"multihomed/allocator"
	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/declared"
	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/hooked"
	"multihomed/cmd/internal/presence"
	"multihomed/cmd/internal/rttables"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/event"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// parts are what reconciles, put together.
type parts struct {
	log     *slog.Logger
	leases  *allocator.Allocator
	mirror  *kernel.Mirror
	writer  *kernel.Writer
	watcher *nm.Watcher
	hooks   *hooked.Store
	owners  *claims.Owners
	names   *names
	router  *router
	loop    *reconcile.Loop
}

// extras tell the daemon from one who stands in for it.
type extras struct {
	// fault takes what is wrong with a part; nil says that nothing is.
	fault func(code routing.Code, err error)
	// withoutLeases goes on where the database cannot be had. No link gets a table
	// then, and nothing that stands is deleted.
	withoutLeases bool
}

// assemble opens everything. The caller must hold the lock, and close the parts.
func assemble(ctx context.Context, cfg config.Config, log *slog.Logger, hooks reconcile.Hooks, more extras) (*parts, error) {
	p := &parts{log: log}
	if err := p.open(ctx, cfg, hooks, more); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *parts) open(ctx context.Context, cfg config.Config, hooks reconcile.Hooks, more extras) (err error) {
	policy, log := cfg.RoutingPolicy(), p.log
	var leases reconcile.Leases
	p.leases, err = allocator.Open(ctx, allocator.Options{
		Path: filepath.Join(cfg.StateDir, allocator.DefaultName), Range: policy.Tables,
	})
	switch {
	case err == nil:
		leases = p.leases
	case more.withoutLeases && ctx.Err() == nil:
		more.fault(leasesFault, err)
		leases = noLeases{fmt.Errorf("the leases of tables cannot be had: %w", err)}
	default:
		return err
	}
	names, err := rttables.Load()
	if err != nil {
		// A file that cannot be read may reserve any number; it is the
		// administrator's, and the numbers of ours are ours in practice.
		err = fmt.Errorf("reading the names of routing tables, whose numbers may be leased to links: %w", err)
	}
	more.fault(tableNamesFault, err)
	past := openHistory(ctx, log, cfg.StateDir, policy)
	past.moveGroups(ctx)
	// Routes of main are read when an owner says that an interface matters: a
	// host may have a million of others.
	p.mirror, err = kernel.Open(kernel.Config{Tables: policy.Tables, Interest: func(string) bool { return false }})
	if err != nil {
		return err
	}
	if p.writer, err = p.mirror.OpenWriter(); err != nil {
		return err
	}
	links, errs := declared.Open(cfg.RuntimeDir)
	for _, err := range errs {
		log.LogAttrs(ctx, event.LevelNotice, "routed lease lost", slog.String("error", err.Error()))
	}
	p.router = &router{log: log, mirror: p.mirror, links: links, policy: cfg.NMPolicy(), ignored: cfg.IsIgnored}
	p.watcher = nm.New(nm.Options{
		Logger: log, DNS: cfg.DNS.ServersFile != "",
	})
	if p.hooks, errs = hooked.Open(cfg.RuntimeDir); len(errs) > 0 {
		log.LogAttrs(ctx, event.LevelNotice, "report of a hook lost", slog.String("error", errors.Join(errs...).Error()))
	}
	p.owners = claims.Join(claims.Sources{
		Manager: p.watcher, Policy: cfg.NMPolicy(), Links: cfg.Links, Hooked: p.hooks, Declared: links, Kind: p.kindOf,
		Expected: func() bool { return presence.NetworkManager(cfg.NetworkManager) },
		Blind:    p.leases == nil,
	})

	p.names = newNames(cfg.DNS, log, p.owners, more.fault)
	move := &mover{log: log, runtime: cfg.RuntimeDir, enabled: cfg.MoveRoutes, hooks: p.hooks, owners: p.owners, mirror: p.mirror}
	ready, settled := hooks.Ready, hooks.Settled
	hooks.Ready = func() {
		past.clean(ctx)
		ready()
	}
	hooks.Settled = func() {
		p.router.settled(ctx)
		p.forget(ctx)
		move.settled(ctx, p.loop.Plans())
		p.names.settled(ctx, p.loop.Plans())
		settled()
	}
	p.loop = reconcile.New(reconcile.Options{
		Policy: policy, Logger: log, Mirror: p.mirror, Writer: p.writer,
		Owners: p.owners, Leases: leases, Reserved: names.Lookup,
		Repairs:  rate.NewLimiter(rate.Limit(cfg.RepairsPerSecond), cfg.RepairBurst),
		Hooks:    hooks,
		Memory:   runstate.Memory{Directory: cfg.RuntimeDir},
		LogDelay: logDelay, Suspect: suspect,
	})
	p.router.loop = p.loop
	return nil
}

// logDelay is how long a link must be quiet before its changes become a line: longer
// than what an activation does in one go, and short enough for people who look.
const logDelay = time.Second

// noLeases are those of nobody.
type noLeases struct{ why error }

func (n noLeases) Acquire(context.Context, []routing.Key, func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	return nil, n.why
}

func (noLeases) Release(...routing.Key) {}

// kindOf returns the driver's name of a virtual interface.
func (p *parts) kindOf(name string) (kind string) {
	p.mirror.View(func(k *kernel.State) {
		if index, exists := k.IndexOf(name); exists {
			facts, _ := k.Link(index)
			kind = facts.Kind
		}
	})
	return kind
}

// reload reads again what hooks said of an interface.
func reload(ctx context.Context, log *slog.Logger, hooks *hooked.Store, name string) {
	for _, err := range hooks.Reload(name) {
		log.LogAttrs(ctx, event.LevelNotice, "report of a hook lost", slog.String("interface", name), slog.String("error", err.Error()))
	}
}

// take takes what a dispatcher says.
func (p *parts) take(ctx context.Context, m hook.Message) {
	if m.Interface == "" {
		return
	}
	reload(ctx, p.log, p.hooks, m.Interface)
	switch {
	case m.Gone:
		p.hooks.Release(m.Interface)
	case len(m.Hints) > 0:
		p.hooks.Hint(m.Interface, m.Hints)
	}
	p.owners.Poke(m.Interface)
}

// forget drops what hooks said of interfaces that have gone without a word.
func (p *parts) forget(ctx context.Context) {
	if len(p.hooks.Interfaces()) == 0 {
		return
	}
	dropped, err := p.hooks.Keep(hooked.Index)
	if err != nil {
		p.log.LogAttrs(ctx, event.LevelNotice, "report of a hook on a removed interface kept", slog.String("error", err.Error()))
	}
	for _, c := range dropped {
		p.log.LogAttrs(ctx, slog.LevelInfo, "forgotten by hooks, because the interface is gone", slog.String("interface", c.Interface), slog.String("caller", c.Caller), slog.String("family", c.Family.String()))
	}
}

// run starts everything that follows something.
func (p *parts) run(ctx context.Context, tasks *errgroup.Group) {
	tasks.Go(func() error { return p.mirror.Run(ctx) })
	tasks.Go(func() error { return p.watcher.Run(ctx) })
	tasks.Go(func() error { return p.owners.Run(ctx) })
	tasks.Go(func() error { return p.loop.Run(ctx) })
}

// close closes what was opened, the last first.
func (p *parts) close() {
	if p.writer != nil {
		closing(p.log, "writer", p.writer.Close)
	}
	if p.mirror != nil {
		closing(p.log, "mirror", p.mirror.Close)
	}
	if p.leases != nil {
		closing(p.log, "leases", p.leases.Close)
	}
}

func closing(log *slog.Logger, what string, do func() error) {
	if err := do(); err != nil {
		log.LogAttrs(context.Background(), event.LevelNotice, "ended with an error", slog.String("part", what), slog.String("error", err.Error()))
	}
}
