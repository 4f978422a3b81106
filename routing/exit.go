package routing

import (
	"net/netip"
	"slices"
)

// An exit is the default of an uplink's table.
type exit struct {
	index int
	name  string
	// network is that of the table.
	network string
	route   Route
	// source is the address that unbound traffic gets, zero if the uplink has none that may
	// be used: IPv6 takes the address of another link where the only one is tentative or
	// deprecated (ipv6_get_saddr_eval in net/ipv6/addrconf.c).
	source netip.Addr
	// metric is main's, of the uplink's best default.
	metric uint32
}

// exitOf returns the way out of an uplink of a family, false if it is none.
func exitOf(plan *LinkPlan, f Family) (exit, bool) {
	l := &plan.Link
	if plan.Roles.In(f) != Uplink || !l.Up || neverDefault(*l, f) {
		return exit{}, false
	}
	var best PlannedRoute
	var source netip.Addr
	found := false
	first := firstKey(*l, slices.DeleteFunc(slices.Clone(plan.Keys), func(k Key) bool { return k.Family != f }))
	// A provider that renumbers leaves the old network deprecated beside the new one for as long
	// as it is valid (RFC 9096, section 3.5): the link works by the new one.
	worse := func(r PlannedRoute, source netip.Addr) int {
		switch {
		case r.Reason.Decision == CopiedElsewhere:
			return 3
		case !source.IsValid():
			return 2
		case first != Key{} && r.Reason.Prefix != first.Network():
			return 1
		default:
			return 0
		}
	}
	for _, r := range plan.Routes {
		if r.Route.Family != f || !r.Route.IsDefault() || r.Route.TOS != 0 || r.Route.Type != RouteUnicast || r.Route.Table == TableMain || r.Reason.Decision == CopiedFromOther {
			continue
		}
		from := usableSource(plan, r.Route)
		if a, b := worse(r, from), worse(best, source); !found || a < b || a == b && r.Route.Metric < best.Route.Metric {
			best, source, found = r, from, true
		}
	}
	if !found {
		return exit{}, false
	}
	route := best.Route
	if route.Gateway.IsValid() && !route.Gateway.IsLinkLocalUnicast() && !l.covers(f, route.Gateway) {
		// The network of the gateway is in the link's table alone, and the kernel looks for the
		// gateway of a route in table F there, and in main (fib_check_nh_v4_gw in
		// net/ipv4/fib_semantics.c, ip6_route_check_nh in net/ipv6/route.c).
		route.OnLink = true
	}
	return exit{
		index: l.Index, name: l.Name, network: best.Reason.Prefix, route: route,
		source: source, metric: defaultMetric(*l, f),
	}, true
}

// usableSource is the address that unbound traffic by a route of a table gets: the one that
// the route names, else one of the table's network that may be used. Who has temporary
// addresses wants them for what this host sends (RFC 8981).
func usableSource(plan *LinkPlan, r Route) netip.Addr {
	var best Address
	rank := func(a Address) int {
		switch {
		case a.Prefix.Addr() == r.PreferredSource:
			return 0
		case a.Temporary:
			return 1
		default:
			return 2
		}
	}
	for _, a := range plan.Link.Addresses {
		k, takesPart := keyOf(plan.Link, a)
		if !takesPart || k.Family != r.Family || plan.Link.Tables[k] != r.Table || !a.usable() {
			continue
		}
		if x, y := rank(a), rank(best); !best.Prefix.IsValid() || x < y || x == y && a.Prefix.Addr().Less(best.Prefix.Addr()) {
			best = a
		}
	}
	return best.Prefix.Addr()
}

// usable reports whether the kernel gives the address to unbound traffic that leaves by its
// interface. IPv4 knows none of these states (inet_select_addr in net/ipv4/devinet.c).
func (a Address) usable() bool {
	return a.Prefix.Addr().Is4() || !a.Failed && !a.Tentative && !a.Deprecated
}

// An Exit is the way out of an uplink in one family: what failover leads unbound traffic to.
type Exit struct {
	// Route is the default of the uplink's table.
	Route Route
	// Source is the address that packets by it get, zero if the uplink has none that may be
	// used.
	Source netip.Addr
	// Metric is that of the uplink's best default in main.
	Metric uint32
}

// ExitOf returns the way out of an uplink, false if the link is no uplink of the family or has
// no default.
func ExitOf(plan *LinkPlan, f Family) (Exit, bool) {
	e, is := exitOf(plan, f)
	return Exit{Route: e.route, Source: e.source, Metric: e.metric}, is
}
