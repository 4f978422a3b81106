package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// networksOf returns the networks of a link in which sources may lie that are no
// addresses of it.
func networksOf(l routing.Link) []netip.Prefix {
	var out []netip.Prefix
	for _, k := range routing.Keys(l) {
		if !k.OfHosts() {
			out = append(out, k.Prefix)
		}
	}
	return out
}

// elsewhereOf returns the sources of a link that are no addresses of it: what the
// network routes to this host, and what the kernel has of the link's networks
// elsewhere. A host route behind another link is that link's matter.
func elsewhereOf(k State, l routing.Link, c Claim, isLink func(index int) bool) []routing.Elsewhere {
	var out []routing.Elsewhere
	for _, p := range c.Delegated {
		out = append(out, routing.Elsewhere{Prefix: p, Why: "the network routes the prefix to this host"})
	}
	for _, e := range k.Elsewhere(l.Index, networksOf(l)) {
		if e.Own && !e.Stranger || !isLink(e.Device) {
			out = append(out, e)
		}
	}
	return out
}

// networks are the networks of all links, by how many have them.
type networks struct {
	count   map[netip.Prefix]int
	byLink  map[int][]netip.Prefix
	changed bool
}

// set takes the networks of one link.
func (n *networks) set(index int, now []netip.Prefix) {
	before := n.byLink[index]
	if slices.Equal(before, now) {
		return
	}
	for _, p := range now {
		if n.count[p]++; n.count[p] == 1 {
			n.changed = true
		}
	}
	for _, p := range before {
		if n.count[p]--; n.count[p] == 0 {
			delete(n.count, p)
			n.changed = true
		}
	}
	if len(now) == 0 {
		delete(n.byLink, index)
	} else {
		n.byLink[index] = now
	}
}

// askElsewhere tells the mirror in which networks host routes matter, and reports
// whether it had to. It comes after the passes: main may be long, and no link waits
// for it.
func (l *Loop) askElsewhere(ctx context.Context) bool {
	if !l.networks.changed {
		return false
	}
	l.networks.changed = false
	if err := l.Mirror.SetNetworks(ctx, slices.Collect(maps.Keys(l.networks.count))); err != nil && ctx.Err() == nil {
		l.networks.changed = true
		l.fail(aboutMirror, failure{Problem: routing.Problem{Code: routing.Unread, Severity: routing.Error, Text: fmt.Sprintf("reading the kernel: %v", err)}})
		return false
	}
	return true
}

// takeElsewhere plans the links anew that have something elsewhere which changed.
func (l *Loop) takeElsewhere(changed map[netip.Prefix]struct{}) {
	for p := range changed {
		found := false
		for index, networks := range l.networks.byLink {
			if slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(p.Addr()) }) {
				l.dirty[index], found = struct{}{}, true
			}
		}
		if found {
			continue
		}
		// A local route outside of the link's networks: its device has it.
		for plan := range l.planner.Links() {
			l.dirty[plan.Link.Index] = struct{}{}
		}
	}
}

// isLink reports whether somebody brought an interface up as a link. One that nobody
// manages is draining if it was one.
func (l *Loop) isLink(k State) func(index int) bool {
	return func(index int) bool {
		claim, _, claimed := l.of(k, index)
		name, _ := k.NameOf(index)
		return claimed && (claim.Standing == Link || claim.Standing == Draining && l.was(k, index, name))
	}
}
