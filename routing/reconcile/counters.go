package reconcile

import (
	"sync/atomic"
	"time"

	"multihomed/routing"
)

// Counters count what a loop does. One value serves loops that follow one another in a
// process, so that no count goes back when the configuration changes. Counting allocates nothing
// and waits for nobody; any goroutine may call [Counters.Read].
type Counters struct {
	passes   atomic.Uint64
	changes  [routing.ResetGroup + 1]atomic.Uint64
	kernel   atomic.Uint64
	database atomic.Uint64
	rules    atomic.Uint64
	routes   atomic.Uint64
	moved    [2]atomic.Uint64
	returned [2]atomic.Uint64
	// within counts by bucket, the last one what is slower than all bounds.
	within [len(latencyBounds) + 1]atomic.Uint64
	spent  atomic.Int64
}

// latencyBounds are the upper bounds of the buckets of [Counted.Convergence].
var latencyBounds = [...]time.Duration{ //nolint:gochecknoglobals // a constant in all but name
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, time.Minute,
}

// Counted is what was counted until a moment.
type Counted struct {
	// Passes are plans that were made and compared with the kernel.
	Passes uint64
	// Changes are what the kernel did, by verb.
	Changes [routing.ResetGroup + 1]uint64
	// RefusedByKernel are changes that the kernel refused, each attempt by itself;
	// RefusedByDatabase are attempts to lease tables after which a network had none.
	RefusedByKernel, RefusedByDatabase uint64
	// RepairedRules and RepairedRoutes were restored after somebody else had deleted or
	// replaced them.
	RepairedRules, RepairedRoutes uint64
	// Moved counts, in the order of [routing.Families], how often unbound traffic was moved to
	// another uplink than that of main, Returned how often it went back.
	Moved, Returned [2]uint64
	Convergence     Latencies
}

// Latencies are the times from an event until the kernel was as planned, for the events after
// which it had to be changed. What the kernel refused at first counts from its first attempt.
type Latencies struct {
	// Bounds are the upper bounds of the buckets, ascending.
	Bounds []time.Duration
	// Buckets count the times up to each bound and above the bound before; the last one those
	// above all.
	Buckets []uint64
	Sum     time.Duration
}

// Read returns what was counted until now.
func (c *Counters) Read() Counted {
	out := Counted{
		Passes: c.passes.Load(), RefusedByKernel: c.kernel.Load(), RefusedByDatabase: c.database.Load(),
		RepairedRules: c.rules.Load(), RepairedRoutes: c.routes.Load(),
		Convergence: Latencies{Bounds: latencyBounds[:], Buckets: make([]uint64, len(c.within)), Sum: time.Duration(c.spent.Load())},
	}
	for i := range c.changes {
		out.Changes[i] = c.changes[i].Load()
	}
	for i := range c.moved {
		out.Moved[i], out.Returned[i] = c.moved[i].Load(), c.returned[i].Load()
	}
	for i := range c.within {
		out.Convergence.Buckets[i] = c.within[i].Load()
	}
	return out
}

func (c *Counters) converged(after time.Duration) {
	i := 0
	for i < len(latencyBounds) && after > latencyBounds[i] {
		i++
	}
	c.within[i].Add(1)
	c.spent.Add(int64(after))
}

// countChange counts an operation that the kernel did.
func (l *Loop) countChange(op routing.Op) {
	l.wrote = true
	l.Counters.changes[op.Verb].Add(1)
	switch op.Verb {
	case routing.AddRule, routing.MoveRule:
		if contains(l.restored, object{rule: op.Rule}) {
			l.Counters.rules.Add(1)
		}
	case routing.AddRoute, routing.ReplaceRoute:
		if contains(l.restored, object{route: op.Route.Key()}) {
			l.Counters.routes.Add(1)
		}
	case routing.DeleteRule, routing.DeleteRoute, routing.SetGroup, routing.ResetGroup:
	}
}

// countConverged counts how long it took until the kernel was as planned, for passes that began
// at a moment.
func (l *Loop) countConverged(began time.Time) {
	if !l.wrote {
		return
	}
	l.wrote = false
	for about, r := range l.retrying {
		if !l.failed(about) && r.first.Before(began) {
			began = r.first
		}
	}
	l.Counters.converged(max(l.now().Sub(began), 0))
}
