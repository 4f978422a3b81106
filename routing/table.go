package routing

import (
	"net/netip"
	"slices"
)

// Metrics in our tables are ranks, not main's metrics: NetworkManager adds
// 20000 to a link that fails its connectivity check, and that must not touch a
// table. IPv6 starts at what the kernel makes of no metric (IP6_RT_PRIO_USER).
const firstMetric6 = 1024

func firstMetric(f Family) uint32 {
	if f == IPv6 {
		return firstMetric6
	}
	return 0
}

// destination is what routes of main compete for.
type destination struct {
	to, from netip.Prefix
	tos      uint8
}

// tableRoutes returns the routes of one table: the link's network and what main
// knows through the link, in the order in which they can be added.
func tableRoutes(l Link, keys []Key, k Key, t TableID) []PlannedRoute {
	source := primarySource(l, k)
	var order []destination
	ways := map[destination][]Route{}
	for _, r := range l.Routes {
		if r.Family != k.Family || r.Type != RouteUnicast || r.Protocol == Multihomed {
			continue
		}
		d := destination{to: r.Destination, from: r.Source, tos: r.TOS}
		if _, seen := ways[d]; !seen {
			order = append(order, d)
		}
		ways[d] = append(ways[d], r)
	}
	slices.SortFunc(order, func(a, b destination) int {
		if c := a.to.Compare(b.to); c != 0 {
			return c
		}
		if c := a.from.Compare(b.from); c != 0 {
			return c
		}
		return int(a.tos) - int(b.tos)
	})

	network := k.Prefix.String()
	reason := func(d Decision) Reason {
		return Reason{Decision: d, Link: l.Name, Prefix: network}
	}
	routes := make([]PlannedRoute, 0, len(l.Routes)+2)
	own := destination{to: k.Prefix}
	if _, known := ways[own]; !known && k.Family == IPv4 && !k.Prefix.IsSingleIP() {
		// An IPv4 network is on its link by definition; an IPv6 one only if a
		// router or the administrator said so, which main shows (RFC 5942).
		routes = append(routes, PlannedRoute{
			Route: Route{
				Family: IPv4, Table: t, Destination: k.Prefix, Type: RouteUnicast, Scope: ScopeLink,
				Device: l.Index, PreferredSource: source, Protocol: Multihomed,
			},
			Reason: reason(OnLink),
		})
	}
	hasDefault := false
	for _, d := range order {
		chosen, why := belonging(ways[d], keys, k)
		hasDefault = hasDefault || d == destination{to: k.Family.Any()}
		for _, r := range ranked(chosen) {
			why := why
			if d == own && !r.Gateway.IsValid() {
				why = OnLink
			}
			routes = append(routes, PlannedRoute{Route: copyRoute(r, l, k, t, source), Reason: reason(why)})
		}
	}
	if gateway := l.Intents[k.Family].Gateway; !hasDefault && gateway.IsValid() && !gateway.IsUnspecified() && FamilyOf(gateway) == k.Family {
		routes = append(routes, PlannedRoute{
			Route: Route{
				Family: k.Family, Table: t, Destination: k.Family.Any(), Type: RouteUnicast, Metric: firstMetric(k.Family),
				Device: l.Index, Gateway: gateway, OnLink: !reachable(l, k, gateway),
				PreferredSource: sourceFor(k, source), Protocol: Multihomed,
			},
			Reason: reason(KnownGateway),
		})
	}
	// The kernel refuses a next hop that it cannot reach yet: networks on the
	// link come first, and the widest last (net/ipv4/fib_semantics.c,
	// fib_check_nh).
	slices.SortStableFunc(routes, func(a, b PlannedRoute) int { return addOrder(&a.Route, &b.Route) })
	return routes
}

func addOrder(a, b *Route) int {
	if a.Gateway.IsValid() != b.Gateway.IsValid() {
		if a.Gateway.IsValid() {
			return 1
		}
		return -1
	}
	return b.Destination.Bits() - a.Destination.Bits()
}

// primarySource is the IPv4 address that unbound traffic into the network gets:
// the one main's own route names, else the first of the network.
func primarySource(l Link, k Key) netip.Addr {
	if k.Family != IPv4 {
		return netip.Addr{}
	}
	var first netip.Addr
	has := map[netip.Addr]bool{}
	for _, a := range l.Addresses {
		if own, ok := keyOf(l, a); ok && own == k {
			has[a.Prefix.Addr()] = true
			if !first.IsValid() {
				first = a.Prefix.Addr()
			}
		}
	}
	for _, r := range l.Routes {
		if r.Family == IPv4 && r.Destination == k.Prefix && !r.Gateway.IsValid() && has[r.PreferredSource] {
			return r.PreferredSource
		}
	}
	return first
}

func sourceFor(k Key, source netip.Addr) netip.Addr {
	if k.Family == IPv4 {
		return source
	}
	return netip.Addr{}
}

// belonging picks, among main's routes to one destination, those of this
// network: without a next hop, with one inside the network, or with one outside
// every network of the device. A destination that has none of these is reached
// as main reaches it, through another network of the device: additional
// addresses without a gateway of their own are routed that way by providers.
func belonging(ways []Route, keys []Key, k Key) ([]Route, Decision) {
	var own []Route
	for _, r := range ways {
		if !r.Gateway.IsValid() || k.Prefix.Contains(r.Gateway) || !inAny(keys, r.Gateway) {
			own = append(own, r)
		}
	}
	if len(own) > 0 {
		return own, Copied
	}
	return ways, CopiedElsewhere
}

func inAny(keys []Key, a netip.Addr) bool {
	return slices.ContainsFunc(keys, func(k Key) bool { return k.Prefix.Contains(a) })
}

// reachable reports whether the table will hold a way to the gateway.
func reachable(l Link, k Key, gateway netip.Addr) bool {
	if k.Family == IPv4 && k.Prefix.Contains(gateway) && !k.Prefix.IsSingleIP() {
		return true
	}
	if k.Family == IPv6 && gateway.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc(l.Routes, func(r Route) bool {
		return r.Family == k.Family && !r.Gateway.IsValid() && !r.IsDefault() && r.Destination.Contains(gateway)
	})
}

// ranked replaces main's metrics by ranks and drops what would stand twice.
// IPv6 routes of one metric stay together, they are legs of one multipath
// route; IPv4 cannot hold two routes of one metric, so each gets its own rank.
// So do IPv6 routers of different preference: in main the kernel weighs the
// preference of every route that a router advertised, but copies of one metric
// become legs, among which it does not look at preferences
// (net/ipv6/route.c, fib6_select_path).
func ranked(ways []Route) []Route {
	ways = slices.Clone(ways)
	slices.SortFunc(ways, compareNextHops)
	var out []Route
	rank, last := firstMetric(ways[0].Family), ways[0]
	for _, r := range ways {
		twin := slices.ContainsFunc(out, func(o Route) bool {
			return o.Gateway == r.Gateway && o.Encapsulation == r.Encapsulation
		})
		if twin {
			continue
		}
		if len(out) > 0 && (r.Family == IPv4 || r.Metric != last.Metric || r.Preference.order() != last.Preference.order()) {
			rank++
		}
		last = r
		r.Metric = rank
		out = append(out, r)
	}
	return out
}

// copyRoute makes main's route one of table t. No table ever leads through a
// device that is not its link's.
func copyRoute(r Route, l Link, k Key, t TableID, source netip.Addr) Route {
	r.Table, r.Protocol, r.Device = t, Multihomed, l.Index
	if k.Family == IPv4 {
		r.PreferredSource = copiedSource(r, l, k, source)
	}
	return r
}

// copiedSource keeps the source that main's route names if the link has it and
// it fits the table: a route into another network of the device keeps that
// network's address, all others carry this one's.
func copiedSource(r Route, l Link, k Key, source netip.Addr) netip.Addr {
	for _, a := range l.Addresses {
		own, ok := keyOf(l, a)
		if !ok || a.Prefix.Addr() != r.PreferredSource {
			continue
		}
		if own == k || (!r.Gateway.IsValid() && r.Destination.Contains(r.PreferredSource)) {
			return r.PreferredSource
		}
	}
	return source
}
