package reconcile_test

import (
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// identify claims links as an owner does who recognises interfaces by more than a name.
func identify(h *host, name, identity string) {
	h.Helper()
	h.say(name, reconcile.Claim{Standing: reconcile.Link, Watched: true, Identity: identity})
}

// TestRenamedWithoutAWord: owners that hang say nothing of a new name. The link stays
// one, and its rules never go.
func TestRenamedWithoutAWord(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	identify(h, "wan0", "A")
	identify(h, "wan1", "B")
	h.owners.complete(true)
	h.pass()
	unreachable := []string{"10500: from 100.64.0.5 7", "10500: from 100.64.1.5 7"}

	h.ip("link set wan0 name new")
	for _, op := range h.pass() {
		if strings.Contains(op, "delete") && strings.Contains(op, "10500") {
			t.Errorf("lost: %s", op)
		}
	}
	h.wants(append(unreachable, "10000: from 100.64.0.5 lookup 10002", "9500: from all oif new lookup 10002")...)

	// They change names with each other.
	h.ip("link set wan1 name wan0")
	h.ip("link set new name wan1")
	h.pass()
	h.wants(append(unreachable, "9500: from all oif wan0 lookup 10003")...)

	// The owner comes back to its senses, and says the names one after the other.
	for _, step := range []struct{ now, identity, before string }{{"new", "A", "wan0"}, {"wan0", "B", "wan1"}, {"wan1", "A", "new"}} {
		h.owners.next.Removed = []string{step.before}
		identify(h, step.now, step.identity)
		h.quiet()
	}

	// Now that the names are right, each claim is about its own.
	h.owners.next.Removed = []string{"wan0"}
	h.pass()
	h.wants("10500: from 100.64.0.5 7", "!10500: from 100.64.1.5 7")

	// A claim for an index is about no other interface of that name.
	h.say("wan0", reconcile.Claim{Standing: reconcile.Link, Watched: true, Index: 1 << 20})
	h.quiet()
	h.say("other", reconcile.Claim{Standing: reconcile.Link, Watched: true, Index: h.named("wan0").Attrs().Index})
	h.pass()
	h.wants("10500: from 100.64.1.5 7")
}

// TestLetGo: an owner that lets an interface go and leaves its addresses says nothing
// of its routes any more. They are followed all the same, and for nobody else.
func TestLetGo(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.claim("wan1", reconcile.NoLink)
	h.owners.complete(true)
	h.pass()
	for range 2 {
		for _, name := range []string{"wan0", "wan1"} {
			h.say(name, reconcile.Claim{Standing: reconcile.Draining})
		}
		h.owners.complete(true)
		h.quiet()
		h.wants("10500: from 100.64.0.5 7", "!10500: from 100.64.1.5 7")
		h.ip("route replace default via 100.64.0.2 dev wan0 metric 100")
		h.pass()
		if routes := h.ip("route show table 10000"); !strings.Contains(routes, "via 100.64.0.2") {
			t.Errorf("the table is not followed:\n%s", routes)
		}
		h.ip("route replace default via 100.64.0.1 dev wan0 metric 100")
		h.pass()
		// So does the next daemon.
		h.restart()
	}
}
