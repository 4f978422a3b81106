package daemon

import (
	"context"
	"log/slog"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"multihomed/allocator"
	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/declared"
	"multihomed/cmd/internal/rttables"
	"multihomed/nm"
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
	owners  *claims.Owners
	router  *router
	loop    *reconcile.Loop
}

// assemble opens everything. The caller must hold the lock, and close the parts.
func assemble(ctx context.Context, cfg config.Config, log *slog.Logger, hooks reconcile.Hooks) (*parts, error) {
	p := &parts{log: log}
	if err := p.open(ctx, cfg, hooks); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *parts) open(ctx context.Context, cfg config.Config, hooks reconcile.Hooks) (err error) {
	policy, log := cfg.RoutingPolicy(), p.log
	p.leases, err = allocator.Open(ctx, allocator.Options{
		Path: filepath.Join(cfg.StateDir, allocator.DefaultName), Range: policy.Tables,
	})
	if err != nil {
		return err
	}
	names, err := rttables.Load()
	if err != nil {
		// A file that cannot be read may reserve any number; it is the
		// administrator's, and the numbers of ours are ours in practice.
		log.LogAttrs(ctx, slog.LevelWarn, "names of routing tables are unknown", slog.String("error", err.Error()))
	}
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
		log.LogAttrs(ctx, slog.LevelWarn, "a routed lease is lost", slog.String("error", err.Error()))
	}
	p.router = &router{log: log, mirror: p.mirror, links: links, policy: cfg.NMPolicy()}
	p.watcher = nm.New(nm.Options{Logger: log})
	p.owners = claims.Join(claims.New(p.watcher, cfg.NMPolicy()), links)

	ready, settled := hooks.Ready, hooks.Settled
	hooks.Ready = func() {
		past.clean(ctx)
		ready()
	}
	hooks.Settled = func() {
		p.router.settled(ctx)
		settled()
	}
	p.loop = reconcile.New(reconcile.Options{
		Policy: policy, Logger: log, Mirror: p.mirror, Writer: p.writer,
		Owners: p.owners, Leases: p.leases, Reserved: names.Lookup,
		Repairs: rate.NewLimiter(rate.Limit(cfg.RepairsPerSecond), cfg.RepairBurst),
		Hooks:   hooks,
	})
	p.router.loop = p.loop
	return nil
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
		log.Warn("ending was not clean", slog.String("part", what), slog.String("error", err.Error()))
	}
}
