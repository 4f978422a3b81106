package lookup

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// found is what a table has for a packet; without legs it has nothing.
type found struct {
	// first is the first leg of the route, which need not be usable.
	first routing.Route
	// legs are those that the packet may take.
	legs []routing.Route
	// nexthop is Verdict.Nexthop.
	nexthop uint32
	// alternatives are Verdict.Alternatives, fallbacks Verdict.Fallbacks.
	alternatives, fallbacks []routing.Route
	// settled says that no other prefix is asked, whatever routers answer.
	settled bool
}

// A fib is a table that can be asked without reading the whole of it.
type fib struct {
	// lengths are those of the prefixes, the longest first.
	lengths  []int
	byPrefix map[netip.Prefix][]*routing.Route
}

// Index is for many lookups: each then takes time for the rules, and for each
// table in proportion to its different prefix lengths. Without it a lookup reads
// each table that it asks once. After Index the host must not change.
func (h *Host) Index() {
	h.fibs = map[routing.Family]map[routing.TableID]*fib{}
	for family, tables := range h.Tables {
		h.fibs[family] = map[routing.TableID]*fib{}
		for id, routes := range tables {
			h.fibs[family][id] = newFIB(routes)
		}
	}
}

func newFIB(routes []routing.Route) *fib {
	t := &fib{byPrefix: map[netip.Prefix][]*routing.Route{}}
	for i := range routes {
		d := routes[i].Destination
		if !slices.Contains(t.lengths, d.Bits()) {
			t.lengths = append(t.lengths, d.Bits())
		}
		t.byPrefix[d] = append(t.byPrefix[d], &routes[i])
	}
	slices.SortFunc(t.lengths, func(a, b int) int { return cmp.Compare(b, a) })
	return t
}

// With returns a host with other rules, and with these tables besides those that h has.
// The others are shared and not indexed again: h must have been, and must not change.
func (h *Host) With(rules []routing.Rule, tables map[routing.Family]map[routing.TableID][]routing.Route) *Host {
	out := &Host{Interfaces: h.Interfaces, Rules: rules, Partial: h.Partial, Merged: h.Merged, Before615: h.Before615, Before72: h.Before72, Checks: h.Checks, objects: h.objects, fibs: map[routing.Family]map[routing.TableID]*fib{}}
	for _, f := range routing.Families() {
		out.fibs[f] = maps.Clone(h.fibs[f])
		if out.fibs[f] == nil {
			out.fibs[f] = map[routing.TableID]*fib{}
		}
		for id, routes := range tables[f] {
			out.fibs[f][id] = newFIB(routes)
		}
	}
	return out
}

// read looks the packet up in a table, once for each lookup.
func (w *walk) read(t routing.TableID) found {
	f, ok := w.found[t]
	if !ok {
		if candidates := w.candidates(t); w.family == routing.IPv4 {
			f = w.select4(candidates)
		} else {
			f = w.select6(candidates)
		}
		w.found[t] = f
	}
	return f
}

// candidates lists the routes whose destination contains that of the packet, in
// the order in which the kernel tries them: the longest destination, the longest
// source (IPv6) or the highest TOS (IPv4), the lowest metric, the oldest.
func (w *walk) candidates(t routing.TableID) []*routing.Route {
	out := w.containing(nil, t)
	if w.merged(t) {
		out = w.containing(out, routing.TableMain)
	}
	sortCandidates(out)
	return out
}

func sortCandidates(out []*routing.Route) {
	slices.SortStableFunc(out, func(a, b *routing.Route) int {
		return cmp.Or(
			cmp.Compare(b.Destination.Bits(), a.Destination.Bits()),
			cmp.Compare(sourceBits(b), sourceBits(a)),
			cmp.Compare(b.TOS, a.TOS),
			cmp.Compare(a.Metric, b.Metric),
		)
	})
}

// merged reports whether a table is local, which has the routes of main too.
func (w *walk) merged(t routing.TableID) bool {
	return w.host.Merged && w.family == routing.IPv4 && t == routing.TableLocal
}

// containing appends the routes of a table whose destination contains that of the packet.
func (w *walk) containing(out []*routing.Route, t routing.TableID) []*routing.Route {
	if w.host.fibs == nil {
		routes := w.host.Tables[w.family][t]
		for i := range routes {
			if routes[i].Destination.Contains(w.flow.To) {
				out = append(out, &routes[i])
			}
		}
		return out
	}
	table := w.host.fibs[w.family][t]
	if table == nil {
		return out
	}
	for _, bits := range table.lengths {
		out = append(out, table.byPrefix[netip.PrefixFrom(w.flow.To, bits).Masked()]...)
	}
	return out
}

func sourceBits(r *routing.Route) int { return max(r.Source.Bits(), 0) }

// select4 is fib_table_lookup: the first route that is for the packet's TOS, and
// is an error or has a leg on the device that the socket is bound to.
func (w *walk) select4(all []*routing.Route) found {
	routes := slices.Clone(all)
	for len(routes) > 0 {
		n := w.ways(routes)
		route := routes[:n]
		routes = routes[n:]
		first := route[0]
		switch {
		case first.TOS != 0 && first.TOS != w.tos():
			continue
		case first.Type == routing.RouteThrow || refusal(first.Type) != None:
			return found{first: *first, legs: []routing.Route{*first}}
		}
		legs := expand(route)
		f := found{first: legs[0], nexthop: w.host.objects[first]}
		for i := range legs {
			if w.out == 0 || legs[i].Device == w.out {
				f.legs = append(f.legs, legs[i])
			}
		}
		if len(f.legs) > 0 {
			if n == 1 && first.Destination.Bits() == 0 {
				f.alternatives = w.alternatives(first, all)
			}
			return f
		}
		if w.host.objects[first] != 0 {
			// No way of the object is for the packet: the rest of the leaf is not asked
			// (fib_table_lookup), which has all prefixes that begin at this address.
			leaf := first.Destination.Addr()
			routes = slices.DeleteFunc(routes, func(r *routing.Route) bool { return r.Destination.Addr() == leaf })
		}
	}
	return found{}
}

// alternatives is fib_select_default: the default routes by a router from which the kernel takes
// one, besides the one that was found. It does not ask by which device they lead, and of a multipath
// route it takes the first leg.
func (w *walk) alternatives(found *routing.Route, all []*routing.Route) []routing.Route {
	var out []*routing.Route
	var last *routing.Route
	for len(all) > 0 {
		r := all[0]
		all = all[w.ways(all):]
		if r.Destination.Bits() > 0 || r.TOS != 0 && r.TOS != w.tos() {
			continue
		}
		if last != nil && r.TOS == last.TOS && r.Metric > last.Metric {
			if r.TOS == 0 {
				break
			}
			continue
		}
		last = r
		if r.Scope == found.Scope && r.Type == routing.RouteUnicast && r.Gateway.IsValid() {
			out = append(out, r)
		}
	}
	if len(out) < 2 || out[0] != found {
		return nil
	}
	rest := make([]routing.Route, 0, len(out)-1)
	for _, r := range out[1:] {
		rest = append(rest, *r)
	}
	return rest
}

// ways counts the routes that are legs of the first one.
func (w *walk) ways(routes []*routing.Route) int {
	n := 1
	for n < len(routes) && w.siblings(routes[0], routes[n]) {
		n++
	}
	return n
}

// siblings reports whether two routes of one destination are legs of one.
func (w *walk) siblings(a, b *routing.Route) bool {
	return w.host.objects[a] == w.host.objects[b] && a.Weight > 0 && b.Weight > 0 && a.Destination == b.Destination && a.Source == b.Source && a.TOS == b.TOS &&
		a.Metric == b.Metric && a.Type == b.Type
}

// expand makes a route of every leg, those of routing.Legs too.
func expand(routes []*routing.Route) []routing.Route {
	out := make([]routing.Route, 0, len(routes))
	for _, r := range routes {
		legs := r.Attributes.Get().Legs
		one := *r
		if legs != (routing.Legs{}) {
			one.Attributes = r.Attributes.With(func(a *routing.RareAttributes) { a.Legs = routing.Legs{} })
		}
		out = append(out, one)
		for _, l := range legs.All() {
			leg := one
			leg.Gateway, leg.Device, leg.OnLink, leg.Weight = l.Gateway, l.Device, l.OnLink, l.Weight
			leg.Attributes = one.Attributes.With(func(a *routing.RareAttributes) { a.Realm = l.Realm })
			out = append(out, leg)
		}
	}
	return out
}

// select6 is fib6_table_lookup: the nodes of the tree from the longest prefix on
// until one has a route.
func (w *walk) select6(routes []*routing.Route) found {
	from := w.flow.From
	if !from.IsValid() {
		from = netip.IPv6Unspecified()
	}
	// begun: the search has a node to begin from. Until then a prefix that has
	// routes for some sources hides its routes for all sources from the others
	// (fib6_node_lookup_1), except at the root of the tree. From then on they
	// count (fib6_backtrack).
	begun := false
	var out found
	for len(routes) > 0 && (!out.settled && w.asksRouters() || len(out.legs) == 0) {
		destination := routes[0].Destination
		n := 1
		for n < len(routes) && routes[n].Destination == destination {
			n++
		}
		nodes := routes[:n]
		routes = routes[n:]
		hides := sourceBits(nodes[0]) > 0 && destination.Bits() > 0
		for len(nodes) > 0 {
			n := 1
			for n < len(nodes) && nodes[n].Source == nodes[0].Source {
				n++
			}
			node := nodes[:n]
			nodes = nodes[n:]
			if sourceBits(node[0]) > 0 && !node[0].Source.Contains(from) || !begun && hides && sourceBits(node[0]) == 0 {
				continue
			}
			begun = true
			switch f := w.node(node); {
			case len(f.legs) == 0:
			case len(out.legs) == 0:
				out = f
			case !out.settled && w.asksRouters():
				out.settled, out.fallbacks = f.settled, slices.Concat(out.fallbacks, f.legs, f.alternatives, f.fallbacks)
			}
		}
	}
	return out
}

// asksRouters reports whether the host passes over IPv6 routes whose router is known not to answer
// (RT6_LOOKUP_F_REACHABLE in net/ipv6/route.c): one that forwards does not.
func (w *walk) asksRouters() bool {
	return slices.ContainsFunc(w.host.Interfaces, func(i Interface) bool { return !i.Config.Forwards.In(routing.IPv6) })
}

// fallBack finds what of a node the kernel takes while the router of the best does not answer: the others of the lowest
// metric, and then all others.
func (w *walk) fallBack(f *found, lowest, rest []*routing.Route, best *routing.Route) {
	for _, group := range [][]*routing.Route{lowest, rest} {
		for _, r := range group {
			if w.score(r) < 0 {
				continue
			}
			f.settled = f.settled || !r.Gateway.IsValid() && w.host.objects[r] == 0
			isAlternative := best.Gateway.IsValid() && r.Metric == best.Metric && w.score(r) == w.score(best)
			if r != best && !isAlternative && !w.siblings(best, r) {
				f.fallbacks = append(f.fallbacks, *r)
			}
		}
		if f.settled {
			return
		}
	}
}

// node is rt6_select and find_rr_leaf: the best of the lowest metric, or if
// there is none the best of all others, whatever their metrics. It is not the
// last word about a multipath route: its legs are chosen by a hash
// (fib6_select_path).
func (w *walk) node(routes []*routing.Route) found {
	n := 1
	for n < len(routes) && routes[n].Metric == routes[0].Metric {
		n++
	}
	best := w.best(routes[:n])
	if best == nil {
		best = w.best(routes[n:])
	}
	if best == nil {
		return found{}
	}
	var legs []*routing.Route
	var others []routing.Route
	for _, r := range routes {
		if best.Gateway.IsValid() && r != best && r.Metric == best.Metric && !w.siblings(best, r) && w.score(r) == w.score(best) {
			others = append(others, *r)
		}
		if r == best || w.siblings(best, r) {
			legs = append(legs, r)
		}
	}
	all := expand(legs)
	f := found{first: all[0], nexthop: w.host.objects[best], alternatives: others}
	// By a nexthop object the hash chooses among all legs, also of a socket that is bound to a device
	// (nexthop_path_fib6_result in include/net/nexthop.h, called by fib6_select_path).
	every := w.host.objects[best] != 0
	for i := range all {
		if every || w.score(&all[i]) >= 0 {
			f.legs = append(f.legs, all[i])
		}
	}
	w.fallBack(&f, routes[:n], routes[n:], best)
	return f
}

func (w *walk) best(routes []*routing.Route) (best *routing.Route) {
	highest := -1
	for _, r := range routes {
		if w.host.objects[r] != 0 && refusal(r.Type) != None {
			// An object that is a blackhole is taken whatever the device (__find_rr_leaf).
			return r
		}
		if s := w.score(r); s > highest {
			best, highest = r, s
		}
	}
	return best
}

// score is rt6_score_route without reachability; it is negative for a route
// that cannot be taken. A route that leads nowhere is on the loopback interface.
// For a forwarded packet the device is that it came in by (ip6_pol_route_input).
func (w *walk) score(r *routing.Route) int {
	const onDevice, preferenceBits = 2, 2
	want := w.out
	if w.forwarded {
		want = w.in
	}
	device := r.Device
	if device == 0 {
		device = loopback
	}
	score := 0
	switch {
	case want == 0 || device == want:
		score = onDevice
	case w.strict:
		return -1
	}
	switch r.Preference {
	case routing.PreferenceHigh:
		return score | 3<<preferenceBits
	case routing.PreferenceLow:
		return score | 1<<preferenceBits
	default:
		return score | 2<<preferenceBits
	}
}
