package daemon

import (
	"context"
	"errors"
	"time"

	"multihomed/internal/dnsmasq"
	"multihomed/internal/mainroutes"
	"multihomed/internal/news"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// retryEvery is how often is tried again what follows a pass and failed.
const retryEvery = 10 * time.Second

// followers are those who follow the passes of the loop. Each has a goroutine and a slot of
// its own for what the last pass left behind, so that no file, process or lock that one of
// them waits for keeps the loop from the next pass. Nothing is put where there is nothing to
// do: then nobody pays for a snapshot.
type followers struct {
	dns      *news.Slot[dnsmasq.Pass]
	leases   *news.Slot[*reconcile.Snapshot]
	departed *news.Slot[*reconcile.Snapshot]
	moves    *news.Slot[mainroutes.Moves]
	tables   *news.Slot[tableNames]
	// listed is the generation of the leases whose tables were named last, unlisted says that
	// everything was switched off then.
	listed   uint64
	unlisted bool
	// named is the state of the owners at the last DNS pass, with its snapshot.
	named    uint64
	snapshot *reconcile.Snapshot
}

func newFollowers() *followers {
	return &followers{
		dns: news.NewSlot[dnsmasq.Pass](), leases: news.NewSlot[*reconcile.Snapshot](),
		departed: news.NewSlot[*reconcile.Snapshot](), moves: news.NewSlot[mainroutes.Moves](),
		tables: news.NewSlot[tableNames](),
	}
}

// settled is called by the loop when it has dealt with all it knows.
func (p *parts) settled() {
	complete := false
	p.mirror.View(func(k *kernel.State) { complete = k.Complete() })
	if !complete {
		return // Not knowing is not emptiness.
	}
	f := p.followers
	if p.owners.Declared.Len() > 0 {
		f.leases.Put(p.loop.Current())
	}
	if p.departed.IsDue() {
		f.departed.Put(p.loop.Current())
	}
	if p.leases.Fault() != nil {
		p.unsaved.Give() // Not only when it is looked next.
	}
	if now, is := p.namesOf(); is {
		f.tables.Put(now)
	}
	// While some move, what they move would be found once more.
	if f.moves.IsIdle() {
		if todo, is := p.mover.Look(p.loop.Plans()); is {
			f.moves.Put(todo)
		}
	}
	// Where all is off the servers stay named: dnsmasq would have none.
	if p.dns != nil && !p.owners.HostOff() {
		now, generation := p.loop.Current(), p.owners.Generation()
		if now != f.snapshot || generation != f.named {
			f.snapshot, f.named = now, generation
			f.dns.Put(dnsmasq.Pass{Snapshot: now, DNS: p.owners.DNS()})
		}
	}
}

// idle waits until the followers have dealt with the passes so far, or ctx is done.
func (f *followers) idle(ctx context.Context) {
	f.leases.Idle(ctx)
	f.departed.Idle(ctx)
	f.moves.Idle(ctx)
	f.dns.Idle(ctx)
	f.tables.Idle(ctx)
}

// tasks are the followers that run.
func (f *followers) tasks(p *parts, fault func(code routing.Code, err error)) []task {
	return []task{
		{name: "routed leases", run: func(ctx context.Context) error {
			return f.leases.Follow(ctx, retryEvery, func(ctx context.Context, now *reconcile.Snapshot) error {
				p.router.Follow(ctx, now)
				return nil
			})
		}},
		{name: "interfaces that have gone", run: func(ctx context.Context) error {
			return f.departed.Follow(ctx, retryEvery, func(ctx context.Context, now *reconcile.Snapshot) error {
				p.departed.Forget(ctx, now)
				return nil
			})
		}},
		{name: "routes of main", run: func(ctx context.Context) error {
			return f.moves.Follow(ctx, retryEvery, func(ctx context.Context, todo mainroutes.Moves) error {
				p.mover.Move(ctx, todo)
				return nil
			})
		}},
		{name: "names of tables", run: func(ctx context.Context) error {
			return f.tables.Follow(ctx, retryEvery, func(ctx context.Context, now tableNames) error {
				now.write(ctx, p.runtime, p.log)
				return nil
			})
		}},
		{name: "DNS servers", run: func(ctx context.Context) error {
			return f.dns.Follow(ctx, retryEvery, func(ctx context.Context, pass dnsmasq.Pass) error {
				err := p.dns.Keep(ctx, pass)
				if !errors.Is(err, context.Canceled) {
					fault(namesFault, err)
				}
				return err
			})
		}},
	}
}
