package reconcile_test

import (
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestCountingAllocatesNothing: it is done in every pass.
func TestCountingAllocatesNothing(t *testing.T) {
	counters := new(reconcile.Counters)
	l := reconcile.New(reconcile.Options{Counters: counters})
	began := time.Now()
	if n := testing.AllocsPerRun(100, func() { l.CountChange(routing.Op{Verb: routing.AddRule}, began) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if c := counters.Read(); c.Changes[routing.AddRule] == 0 || c.Convergence.Sum == 0 {
		t.Errorf("nothing was counted: %+v", c)
	}
}
