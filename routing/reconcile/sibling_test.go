package reconcile_test

import (
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// TestSiblingsOfOthers: the kernel joins an IPv6 route of somebody else in our table with
// ours of the same metric, and tells the author of one of them only. Theirs stays as
// it is, and ours stands beside it as long as it is wanted, and no longer.
func TestSiblingsOfOthers(t *testing.T) {
	const rank = "metric 1073741824"
	for name, c := range map[string]struct {
		theirs string
		// first says that theirs stands before ours comes, restart that we start anew
		// while both stand, twin that it has our next hop.
		first, restart, twin bool
	}{
		"theirs came later":             {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 " + rank},
		"theirs came first":             {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 " + rank, first: true},
		"later, with another MTU":       {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 mtu 1333 " + rank},
		"first, with another MTU":       {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 mtu 1333 " + rank, first: true},
		"later, restart":                {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 mtu 1333 " + rank, restart: true},
		"first, restart":                {theirs: "default proto static via 2001:db8::9 dev wan0 table 10001 mtu 1333 " + rank, first: true, restart: true},
		"first, with our next hop":      {theirs: "default proto static via 2001:db8::1 dev wan0 table 10001 mtu 1333 " + rank, first: true, twin: true},
		"a multipath route, came later": {theirs: "default proto static table 10001 " + rank + " nexthop via 2001:db8::8 dev wan0 nexthop via 2001:db8::9 dev wan0"},
		"a multipath route, came first": {theirs: "default proto static table 10001 " + rank + " nexthop via 2001:db8::8 dev wan0 nexthop via 2001:db8::9 dev wan0", first: true},
		"first, one of its legs ours":   {theirs: "default proto static table 10001 mtu 1333 " + rank + " nexthop via 2001:db8::1 dev wan0 nexthop via 2001:db8::9 dev wan0", first: true, twin: true},
		"so, restart":                   {theirs: "default proto static table 10001 mtu 1333 " + rank + " nexthop via 2001:db8::1 dev wan0 nexthop via 2001:db8::9 dev wan0", first: true, twin: true, restart: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			h.veth("wan0")
			h.address("wan0", "100.64.0.5/24")
			h.address("wan0", "2001:db8::5/64")
			claim := func(s reconcile.Standing) {
				h.owners.claim("wan0", s)
				h.owners.complete(true)
				h.pass()
			}
			table := func() string { return h.ip("-6 route show table 10001") }
			claim(reconcile.Link)
			theirs := func() { h.ip("-6 route append " + c.theirs) }
			if c.first {
				theirs()
				h.pass()
			}
			h.ip("-6 route add default via 2001:db8::1 dev wan0 metric 50")
			h.pass()
			if !c.first {
				theirs()
				h.pass()
			}
			stands := func(what, part string) {
				t.Helper()
				if now := table(); !strings.Contains(now, part) {
					t.Errorf("%s: no %s:\n%s\nlog:\n%s", what, part, now, h.log.String())
				}
			}
			if c.restart {
				h.restart()
				claim(reconcile.Link)
			}
			h.quiet()
			stands("beside", "2001:db8::1")
			if !c.twin {
				stands("beside", "2001:db8::9")
			}
			if reported := len(h.last.Problems) > 0; reported != c.twin {
				t.Errorf("reported: %+v", h.last.Problems)
			}
			if c.twin && !strings.Contains(h.last.Problems[0].Text, "somebody else") {
				t.Errorf("reported: %+v", h.last.Problems)
			}
			// Ours follows main.
			h.ip("-6 route change default via 2001:db8::1 dev wan0 metric 50 mtu 1280")
			h.ip("-6 route append default via 2001:db8::2 dev wan0 metric 50")
			h.pass()
			h.quiet()
			stands("changed", "2001:db8::2")
			h.ip("-6 route del default via 2001:db8::2 dev wan0 metric 50")
			h.pass()
			h.quiet()
			if strings.Contains(table(), "2001:db8::2 ") {
				t.Errorf("left:\n%s", table())
			}
			if c.twin {
				// Theirs is as it was. When it goes, ours comes at once.
				stands("refused", "proto static "+rank+" mtu 1333")
				h.ip("-6 route del default table 10001 proto static")
				h.pass()
				h.quiet()
				stands("alone", "default via 2001:db8::1 dev wan0 proto 150 "+rank)
				if len(h.last.Problems) > 0 {
					t.Errorf("still reported: %+v", h.last.Problems)
				}
				return
			}
			if c.restart {
				h.restart()
			}
			claim(reconcile.NoLink)
			h.quiet()
			// What is left is theirs, whatever was shown.
			have := strings.Join(strings.Fields(strings.ReplaceAll(table(), "nexthop ", "")), " ")
			for _, gateway := range []string{"2001:db8::8", "2001:db8::9", "2001:db8::1 "} {
				if strings.Contains(have, gateway) != strings.Contains(c.theirs, gateway) {
					t.Errorf("in the end:\n%s", have)
				}
			}
			if !strings.Contains(have, "proto static") || strings.Contains(have, "proto 150") || strings.Contains(c.theirs, "mtu") != strings.Contains(have, "mtu 1333") {
				t.Errorf("in the end:\n%s", have)
			}
		})
	}
}
