package reconcile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/routing/reconcile"
)

// TestTakenTable: a link leaves a table that somebody else took, new before old, and
// touches nothing of his.
func TestTakenTable(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000")
	h.ip("rule add pref 300 from 192.168.7.0/24 lookup 10000")
	h.quiet() // A rule alone takes nothing.
	h.ip("route add 10.9.0.0/16 via 100.64.0.9 dev wan0 table 10000")
	h.quiet() // Nor does a route through the link.
	h.ip("route add default via 100.64.1.1 dev wan1 table 10000 proto 194 metric 20")
	wrote := h.pass()
	at := func(what string) int {
		i := slices.IndexFunc(wrote, func(op string) bool { return strings.Contains(op, what) })
		if i < 0 {
			t.Fatalf("no %q in:\n%s", what, strings.Join(wrote, "\n"))
		}
		return i
	}
	route, rule := at("add route default via 100.64.0.1"), at("add rule 10000: from 100.64.0.5 lookup 10002")
	gone, left := at("delete rule 10000: from 100.64.0.5 lookup 10000"), at("delete route default via 100.64.0.1")
	if route > rule || rule > gone || gone > left {
		t.Errorf("the order is wrong:\n%s", strings.Join(wrote, "\n"))
	}
	h.wants("10000: from 100.64.0.5 lookup 10002", "!10000: from 100.64.0.5 lookup 10000", "9500: from all oif wan0 lookup 10002", "10000: from 100.64.1.5 lookup 10001")
	if routes := h.ip("-N route show table 10000"); strings.Contains(routes, "proto 150") || !strings.Contains(routes, "proto 194") || !strings.Contains(routes, "10.9.0.0/16") {
		t.Errorf("table 10000:\n%s", routes)
	}
	h.quiet()
	if n := strings.Count(h.log.String(), "moved from table 10000 to 10002"); n != 1 {
		t.Errorf("said %d times:\n%s", n, h.log.String())
	}
	if !strings.Contains(h.log.String(), "somebody else uses table 10000") || !strings.Contains(h.log.String(), "the route default via 100.64.1.1 dev wan1") {
		t.Errorf("the reason is missing:\n%s", h.log.String())
	}
}

// TestTakenWhileAway: a daemon that starts finds the table taken.
func TestTakenWhileAway(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	h.pass()
	h.ip("route add 128.0.0.0/1 via 100.64.1.1 dev wan1 table 10000")
	h.restart()
	for _, name := range []string{"wan0", "wan1"} {
		h.owners.claim(name, reconcile.Link)
	}
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10002")
	h.owners.complete(true)
	h.pass()
	h.wants("!10000: from 100.64.0.5 lookup 10000", "10000: from 100.64.0.5 lookup 10002")
	h.quiet()
}

// TestFollowedFromTableToTable: whoever follows a link from number to number makes it move
// three times an hour and no more.
func TestFollowedFromTableToTable(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	h.pass()
	table := func() (n int) {
		t.Helper()
		for _, r := range h.rules() {
			if _, err := fmt.Sscanf(r, "10000: from 100.64.0.5 lookup %d", &n); err == nil {
				return n
			}
		}
		t.Fatal("no rule")
		return 0
	}
	take := func() {
		t.Helper()
		h.ip(fmt.Sprintf("route add default via 100.64.1.1 dev wan1 table %d proto 194 metric 20", table()))
		h.pass()
		h.clock = h.clock.Add(time.Minute)
	}
	moves := 0
	for range 6 {
		before := table()
		if routes := h.ip(fmt.Sprintf("route show table %d proto 194", before)); routes == "" {
			take()
		} else {
			h.quiet()
		}
		if table() != before {
			moves++
		}
	}
	if moves != 3 {
		t.Errorf("%d moves", moves)
	}
	if n := strings.Count(h.log.String(), "stays in table"); n != 1 {
		t.Errorf("said %d times that it stays:\n%s", n, h.log.String())
	}
	if d := h.wait(); d > time.Hour {
		t.Errorf("looks again in %v", d)
	}
	before := table()
	h.pass()
	if table() == before {
		t.Error("an hour later it does not move")
	}
}
