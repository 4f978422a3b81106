package unprivileged_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// sum is the number of times that were measured.
func sum(l reconcile.Latencies) (n uint64) {
	for _, in := range l.Buckets {
		n += in
	}
	return n
}

// TestCounters: each thing is counted once, nothing is counted while nothing happens, and the next loop
// goes on.
func TestCounters(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		first := h.counters.Read()
		rules := uint64(len(slices.Collect(h.kernel.Rules())))
		if first.Passes == 0 || first.Changes[routing.AddRule] != rules || first.Changes[routing.AddRoute] == 0 || first.Changes[routing.SetGroup] != 2 || sum(first.Convergence) == 0 {
			t.Errorf("at the start: %+v", first)
		}
		if first.RefusedByKernel+first.RefusedByDatabase+first.RepairedRules+first.RepairedRoutes != 0 {
			t.Errorf("at the start: %+v", first)
		}
		h.quiet(time.Hour)
		if now := h.counters.Read(); now.Passes != first.Passes || sum(now.Convergence) != sum(first.Convergence) {
			t.Errorf("in an hour without an event: %+v, then %+v", first, now)
		}

		h.kernel.DropRule(h.sourceRule(source(0)))
		h.settle()
		now := h.counters.Read()
		if now.RepairedRules != 1 || now.Changes[routing.AddRule] != rules+1 || now.Changes[routing.DeleteRule] != 0 || sum(now.Convergence) != sum(first.Convergence)+1 {
			t.Errorf("a repair: %+v, then %+v", first, now)
		}
		h.kernel.FlushTable(routing.IPv4, policy.Tables.First)
		h.settle()
		if now = h.counters.Read(); now.RepairedRules != 1 || now.RepairedRoutes == 0 {
			t.Errorf("a flush: %+v", now)
		}

		h.kill()
		h.start(func() {})
		for n := range 2 {
			h.owners.claim(name(n), reconcile.Link)
		}
		h.owners.complete(true)
		h.settle()
		if again := h.counters.Read(); again.RepairedRules != 1 || again.Passes <= now.Passes || again.Changes[routing.AddRule] != now.Changes[routing.AddRule] {
			t.Errorf("another loop: %+v, then %+v", now, again)
		}
	})
}

// TestConvergenceCountsFromTheFirstAttempt: what the kernel refuses for a while took as long as it was
// refused, and the events of other links meanwhile do not.
func TestConvergenceCountsFromTheFirstAttempt(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(h *host) {
		refused := uplink(1)
		h.kernel.Refuse = func(op routing.Op) error {
			if op.Verb == routing.AddRoute && op.Route.Device == refused.Index && op.Route.IsDefault() {
				return syscall.ENOBUFS
			}
			return nil
		}
		h.install(refused)
		h.owners.claim(refused.Name, reconcile.Link)
		h.settle()
		h.pass(time.Second)
		h.install(uplink(0, "100.64.0.6/24"))
		h.settle()
		before := h.counters.Read()
		if before.RefusedByKernel < 4 || before.Convergence.Sum != 0 {
			t.Errorf("while it is refused: %+v", before)
		}
		h.kernel.Refuse = nil
		h.pass(time.Minute)
		now := h.counters.Read()
		if took := now.Convergence.Sum; took < time.Second || took > 4*time.Second || sum(now.Convergence) != sum(before.Convergence)+1 {
			t.Errorf("it took %v: %+v", took, now.Convergence)
		}
		i := slices.IndexFunc(now.Convergence.Bounds, func(bound time.Duration) bool { return bound >= now.Convergence.Sum })
		if now.Convergence.Buckets[i] != before.Convergence.Buckets[i]+1 || len(now.Convergence.Buckets) != len(now.Convergence.Bounds)+1 {
			t.Errorf("%v is not in its bucket: %+v", now.Convergence.Sum, now.Convergence)
		}
	})
}

// TestFullRangeCounts: a network that gets no table is a refusal of the database.
func TestFullRangeCounts(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(h *host) {
		for table := policy.Tables.First; policy.Tables.Contains(table); table++ {
			h.leases.held[routing.Key{Family: routing.IPv6, Interface: "other" + table.String()}] = table
		}
		h.install(uplink(1))
		h.owners.claim(name(1), reconcile.Link)
		h.settle()
		h.wantProblems(routing.NoTable, routing.NoTable)
		// Each attempt counts.
		n := h.counters.Read().RefusedByDatabase
		if n == 0 {
			t.Error("no refusal")
		}
		h.pass(200 * time.Millisecond)
		if now := h.counters.Read().RefusedByDatabase; now <= n {
			t.Errorf("%d refusals after %d", now, n)
		}
	})
}

// TestSwitchesCount: a move to another uplink and the return count once each.
func TestSwitchesCount(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		if c := h.counters.Read(); c.Moved != [2]uint64{1, 0} || c.Returned != [2]uint64{} {
			t.Errorf("moved: %+v", c)
		}
		h.dead()
		h.unboundBy(name(0))
		h.quiet(time.Hour)
		if c := h.counters.Read(); c.Moved != [2]uint64{1, 0} || c.Returned != [2]uint64{1, 0} {
			t.Errorf("returned: %+v", c)
		}
	})
}
