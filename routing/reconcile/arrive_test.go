package reconcile_test

import (
	"fmt"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestArrive wants links that come one by one, each better than those before, to
// be no quarrel: the rules of the others move behind it every time.
func TestArrive(t *testing.T) {
	const links = 8
	h := newHost(t)
	for n := range links {
		h.wan(n)
	}
	h.owners.next.Changed = nil
	next := links - 1
	arrive := func() {
		h.owners.claim(fmt.Sprintf("wan%d", next), reconcile.Link)
		next--
	}
	arrive()
	h.owners.complete(true)
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.Priority == routing.PriorityMatchAll && next >= 0 {
			arrive()
		}
		return nil
	}
	h.pass()
	if next >= 0 {
		t.Fatalf("%d links have not been claimed", next+1)
	}
	if len(h.last.Problems) > 0 || len(h.appeared) > 0 {
		t.Errorf("reported: %+v\n%s", h.last.Problems, h.log.String())
	}
	h.quiet()
}
