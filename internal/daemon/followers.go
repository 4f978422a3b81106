package daemon

import (
	"context"
	"errors"
	"maps"
	"time"

	"multihomed/internal/dnsmasq"
	"multihomed/internal/mainroutes"
	"multihomed/internal/news"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// retryEvery is the pause before a follower that failed tries again.
const retryEvery = 10 * time.Second

// followers act on the results of the loop's passes. Each has its own goroutine and a slot
// for the last result, so that a file, process or lock that one waits for does not delay the
// next pass. A slot stays empty if there is nothing to do, which saves the snapshot.
type followers struct {
	dns      *news.Slot[dnsmasq.Pass]
	leases   *news.Slot[*reconcile.Snapshot]
	departed *news.Slot[*reconcile.Snapshot]
	moves    *news.Slot[mainroutes.Moves]
	tables   *news.Slot[tableNames]
	// listed is the generation of the leases at the last naming of tables, unlisted says that
	// everything was switched off then.
	listed   uint64
	unlisted bool
	// named is the state of the owners at the last DNS pass, with its snapshot and the uplinks
	// that were dead.
	named    uint64
	dead     routing.ByFamily[map[int]struct{}]
	snapshot *reconcile.Snapshot
}

func newFollowers() *followers {
	return &followers{
		dns: news.NewSlot[dnsmasq.Pass](), leases: news.NewSlot[*reconcile.Snapshot](),
		departed: news.NewSlot[*reconcile.Snapshot](), moves: news.NewSlot[mainroutes.Moves](),
		tables: news.NewSlot[tableNames](),
	}
}

// afterPass is called by the loop when nothing is left to do.
func (p *parts) afterPass() {
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
		p.unsaved.Give() // Do not wait for the next check.
	}
	if now, is := p.namesOf(); is {
		f.tables.Put(now)
	}
	// During a move the same routes would be found again.
	if f.moves.IsIdle() {
		if todo, is := p.mover.Look(p.loop.Plans()); is {
			f.moves.Put(todo)
		}
	}
	// When everything is off the servers stay in the file: dnsmasq would have none.
	if p.dns != nil && !p.owners.HostOff() {
		now, generation, dead := p.loop.Current(), p.owners.Generation(), p.deadUplinks()
		if now != f.snapshot || generation != f.named || !maps.Equal(dead[0], f.dead[0]) || !maps.Equal(dead[1], f.dead[1]) {
			f.snapshot, f.named, f.dead = now, generation, dead
			f.dns.Put(dnsmasq.Pass{Snapshot: now, DNS: p.owners.DNS(), Dead: dead})
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

// tasks are those of the followers.
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
