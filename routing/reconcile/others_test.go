package reconcile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestTablesOfOthers: what a rule that selects nothing reads through a link's device is in
// the link's table, and follows every change; silent ones of the kernel, too.
func TestTablesOfOthers(t *testing.T) {
	h := newHost(t)
	h.noLinkLocal()
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	h.pass()
	table := func(n int) string { return h.ip(fmt.Sprintf("route show table %d", 10000+n)) }
	has := func(n int, route string, is bool) {
		t.Helper()
		h.pass()
		if strings.Contains(table(n), route) != is {
			t.Errorf("%q in the table of wan%d: %t; it has\n%s", route, n, !is, table(n))
		}
		h.quiet()
	}
	h.ip("route add 10.61.0.0/16 via 100.64.0.3 table 61")
	has(0, "10.61.0.0/16", false)
	h.ip("rule add pref 32000 lookup 61")
	has(0, "10.61.0.0/16 via 100.64.0.3 dev wan0 ", true)
	has(1, "10.61.0.0/16", false)
	h.ip("route replace 10.61.0.0/16 via 100.64.0.4 table 61")
	has(0, "10.61.0.0/16 via 100.64.0.4 dev wan0 ", true)
	h.ip("route replace 10.61.0.0/16 via 100.64.1.4 table 61")
	has(0, "10.61.0.0/16", false)
	has(1, "10.61.0.0/16 via 100.64.1.4 dev wan1 ", true)
	h.ip("route add default via 100.64.0.3 table 61")
	has(0, "default via 100.64.0.3 dev wan0 ", true)
	has(0, "100.64.0.1", false)
	has(1, "default via 100.64.1.1 dev wan1 ", true)
	// The kernel tells nothing of the routes that go with a link.
	h.setUp("wan1", false)
	h.pass()
	h.setUp("wan1", true)
	has(1, "10.61.0.0/16", false)
	h.ip("route add table 61 10.62.0.0/16 nexthop via 100.64.0.3 nexthop via 100.64.1.3")
	has(0, "10.62.0.0/16 via 100.64.0.3 dev wan0 ", true)
	has(1, "10.62.0.0/16 via 100.64.1.3 dev wan1 ", true)
	// A daemon that starts finds the same.
	h.restart()
	h.owners.claim("wan0", reconcile.Link)
	h.owners.claim("wan1", reconcile.Link)
	h.owners.complete(true)
	h.quiet()
	h.ip("rule del pref 32000")
	has(0, "default via 100.64.0.1 dev wan0 ", true)
	has(0, "10.62.0.0/16", false)
	h.ip("rule add lookup 61")
	has(0, "default via 100.64.0.3 dev wan0 ", true)
}

// TestLongTableOfOthers: a table that is too long is not copied, and the report says so.
func TestLongTableOfOthers(t *testing.T) {
	h := newHost(t)
	h.noLinkLocal()
	h.wan(0)
	h.owners.complete(true)
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "route add 11.%d.%d.0/24 via 100.64.0.3 table 61\n", i/250, i%250)
	}
	file := filepath.Join(t.TempDir(), "routes")
	must(t, os.WriteFile(file, []byte(b.String()), 0o600))
	h.ip("-batch " + file)
	h.pass()
	h.ip("rule add pref 32000 lookup 61")
	h.pass()
	if strings.Contains(h.ip("route show table 10000"), "11.") {
		t.Error("routes of a long table were copied")
	}
	said := false
	for _, p := range h.last.Problems {
		said = said || p.Code == routing.LongTable && strings.Contains(p.Text, "table 61")
	}
	if !said {
		t.Errorf("reported: %+v", h.last.Problems)
	}
	h.ip("route flush table 61")
	h.ip("rule del pref 32000")
	h.ip("route add 10.61.0.0/16 via 100.64.0.3 table 61")
	h.ip("rule add pref 32000 lookup 61")
	h.pass()
	if !strings.Contains(h.ip("route show table 10000"), "10.61.0.0/16 via 100.64.0.3") {
		t.Error("the route of a table that is short again is missing")
	}
	h.quiet()
}
