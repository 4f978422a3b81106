package reconcile_test

import (
	"slices"
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// say claims an interface in full.
func (h *host) say(name string, c reconcile.Claim) {
	h.owners.claim(name, c.Standing)
	h.owners.next.Changed[name] = c
}

// TestAbandoned wants a daemon that does not know every owner yet to take away
// what is certainly nobody's, and nothing else: wan1 was a link of the one before.
func TestAbandoned(t *testing.T) {
	gone := func(h *host) { must(h.T, h.nl.LinkDel(h.named("wan1"))) }
	drain := func(h *host) {
		h.say("wan1", reconcile.Claim{Standing: reconcile.Draining, Watched: true, Released: true})
	}
	const (
		source      = "10000: from 100.64.1.5 lookup 10001"
		unreachable = "10500: from 100.64.1.5 7"
		device      = "9500: from all oif wan1 lookup 10001"
		detached    = "9500: from all oif wan1 [detached] lookup 10001"
		network     = "20000: from all to 100.64.1.0/24 lookup 10001"
	)
	for _, c := range []struct {
		name string
		// before the daemon starts, and what it hears then.
		before, then func(h *host)
		left         []string
	}{
		{name: "nobody spoke", left: []string{source, unreachable, device, network}},
		{name: "gone", before: gone},
		{
			name: "no link, and not let go", left: []string{source, unreachable, device, network},
			then: func(h *host) { h.owners.claim("wan1", reconcile.NoLink) },
		},
		{name: "let go", then: func(h *host) { h.say("wan1", reconcile.Claim{Released: true}) }},
		{name: "let go, and its addresses are left", then: drain, left: []string{source, unreachable, device, network}},
		{
			name: "let go, and its addresses are gone",
			then: func(h *host) {
				drain(h)
				h.pass()
				h.deleteAddress("wan1", "100.64.1.5/24")
			},
		},
		{
			name: "renamed", before: rename, left: []string{source, unreachable, detached, network},
		},
		{
			name: "renamed, and let go", before: rename,
			then: func(h *host) { h.say("wan9", reconcile.Claim{Released: true}) },
		},
		{
			name: "renamed, and nothing is left in its table",
			before: func(h *host) {
				rename(h)
				h.ip("route flush table 10001 proto 150")
			},
		},
		{
			name: "gone, and its table is another's too", left: []string{source, unreachable, detached, network},
			before: func(h *host) {
				gone(h)
				h.ip("rule add priority 9500 oif p-wan0 lookup 10001 protocol 150")
			},
		},
		{
			name: "gone, and nothing says whose the table was", left: []string{source, unreachable, network},
			before: func(h *host) {
				gone(h)
				h.ip("rule delete priority 9500 oif wan1")
			},
		},
		{
			name: "gone, and nothing says by what table it was unreachable", left: []string{unreachable},
			before: func(h *host) {
				gone(h)
				h.ip("rule delete priority 10000 from 100.64.1.5")
			},
		},
		{
			name: "gone, and back before the daemon knows of it", left: []string{source, unreachable, device, network},
			before: func(h *host) {
				gone(h)
				h.veth("wan1")
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.wan(1)
			h.owners.complete(true)
			h.pass()
			h.wants(source, unreachable, device, network)
			if c.before != nil {
				c.before(h)
			}
			h.restart()
			h.owners.claim("wan0", reconcile.Link)
			if c.then != nil {
				c.then(h)
			}
			h.pass()
			all := []string{source, unreachable, device, detached, network}
			for i, rule := range all {
				if !slices.Contains(c.left, rule) {
					all[i] = "!" + rule
				}
			}
			// What every link needs, and what the other one has, stays.
			h.wants(append(all, "19000: from all to 100.64.0.0/24 lookup 254 suppress_prefixlength 23", "10000: from 100.64.0.5 lookup 10000", "10500: from 100.64.0.5 7")...)
			h.quiet()
			if routes := h.ip("-N route show table 10001 proto 150"); len(c.left) == 0 && routes != "" {
				t.Errorf("routes are left:\n%s", routes)
			}
			if links := h.ip("-o link show group 28008"); len(c.left) == 0 && c.then != nil && (strings.Contains(links, ": wan1@") || strings.Contains(links, ": wan9@") || !strings.Contains(links, ": wan0@")) {
				t.Errorf("uplinks:\n%s", links)
			}
			if h.readies > 0 {
				t.Error("ready without knowledge")
			}
		})
	}
}

// rename gives wan1 another name. It loses its routes over that, so that ours are
// put back, as on a kernel that renames what is up.
func rename(h *host) {
	h.Helper()
	h.setUp("wan1", false)
	must(h.T, h.nl.LinkSetName(h.named("wan1"), "wan9"))
	h.setUp("wan9", true)
	h.ip("route add default via 100.64.1.1 dev wan9 table 10001 proto 150")
}

// TestReleasedLater wants what is left of an interface to go also when its owner
// lets it go after the first pass.
func TestReleasedLater(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	const main = "9500: from all oif gone [detached] lookup 254"
	h.ip("rule add priority 9500 oif gone lookup main protocol 150")
	h.restart()
	h.quiet()
	h.say("wan0", reconcile.Claim{Released: true})
	h.pass()
	// Of others nothing is known yet.
	if rules := h.rules(); !slices.Equal(rules, []string{main}) {
		t.Errorf("left: %q", rules)
	}
	h.quiet()
	// It is a link again.
	h.owners.claim("wan0", reconcile.Link)
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000", "9500: from all oif wan0 lookup 10000")
}
