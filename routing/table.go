package routing

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// firstMetric is where metrics in our tables begin. They are ranks, not main's
// metrics: NetworkManager adds 20000 to a link that fails its connectivity check,
// and that must not touch a table. They are worse than any of main: programs that
// read the routes of all tables and ignore the rules, as strongSwan does, take the
// best metric.
const firstMetric = 1 << 30

// A Destination is what routes of main compete for.
type Destination struct {
	// To is masked; From is zero where packets from everywhere may go.
	To, From netip.Prefix
	TOS      uint8
}

// DestinationOf returns what a route is for.
func DestinationOf(r Route) Destination {
	return Destination{To: r.Destination, From: r.Source, TOS: r.TOS}
}

// Compare orders destinations.
func (d Destination) Compare(o Destination) int {
	return cmp.Or(d.To.Compare(o.To), d.From.Compare(o.From), cmp.Compare(d.TOS, o.TOS))
}

// tableRoutes returns the routes of one table that follow from the structure of the
// link: its network and what main knows through it, in the order in which they can
// be added. What it has of paths is planned by the copier.
func tableRoutes(facts *Link, keys []Key, k Key, t TableID) ([]PlannedRoute, *copier) {
	l := *facts
	source := primarySource(l, k)
	var order []Destination
	ways := map[Destination][]Route{}
	for _, r := range l.Routes {
		if r.Family != k.Family || r.Type != RouteUnicast || r.Protocol == Multihomed {
			continue
		}
		d := DestinationOf(r)
		if _, seen := ways[d]; !seen {
			order = append(order, d)
		}
		ways[d] = append(ways[d], r)
	}

	network := k.Network()
	reason := func(d Decision) Reason {
		return Reason{Decision: d, Link: l.Name, Prefix: network}
	}
	routes := make([]PlannedRoute, 0, len(l.Routes)+2)
	own, known := Destination{To: k.Prefix}, knownWays(l, keys, k)
	if len(ways[own]) == 0 && len(known[own]) == 0 && k.Family == IPv4 && !k.OfHosts() {
		// An IPv4 network is on its link by definition; an IPv6 one only if a
		// router or the administrator said so, which main shows (RFC 5942).
		routes = append(routes, PlannedRoute{
			Route: Route{
				Family: IPv4, Table: t, Destination: k.Prefix, Type: RouteUnicast, Scope: ScopeLink, Metric: firstMetric,
				Device: l.Index, PreferredSource: source, Protocol: Multihomed,
			},
			Reason: reason(OnLink),
		})
	}
	hasDefault := false
	for d := range known {
		if _, seen := ways[d]; !seen {
			order = append(order, d)
		}
	}
	slices.SortFunc(order, Destination.Compare)
	choose := func(d Destination) ([]Route, Decision) {
		chosen, why := belonging(ways[d], keys, k)
		if len(known[d]) > 0 && why == CopiedElsewhere {
			return known[d], KnownRoute
		}
		return chosen, why
	}
	copies := &copier{
		link: facts, key: k, table: t, keys: keys, source: source, network: network,
		repeated: repetitions(order, k.Family, choose),
	}
	for _, d := range order {
		chosen, why := choose(d)
		hasDefault = hasDefault || d == Destination{To: k.Family.Any()}
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
				Family: k.Family, Table: t, Destination: k.Family.Any(), Type: RouteUnicast, Metric: firstMetric,
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
	return routes, copies
}

// A repetition finds the routes of routing daemons that say nothing but what the
// table's default says: a full BGP table adds none of its 100,000 routes. Only paths
// are left out.
type repetition struct {
	way     Route
	enabled bool
	// others are the destinations of the structure that say something else, lengths
	// theirs.
	others  map[netip.Prefix]struct{}
	lengths map[int]struct{}
}

func repetitions(order []Destination, f Family, choose func(Destination) ([]Route, Decision)) repetition {
	var r repetition
	ways, _ := choose(Destination{To: f.Any()})
	if len(ways) == 0 || !slices.ContainsFunc(order, func(d Destination) bool { return d == Destination{To: f.Any()} }) {
		return r
	}
	r = repetition{way: slices.MinFunc(ways, compareNextHops), enabled: true, others: map[netip.Prefix]struct{}{}, lengths: map[int]struct{}{}}
	for _, d := range order {
		if d.To.Bits() == 0 {
			continue
		}
		chosen, _ := choose(d)
		if slices.ContainsFunc(chosen, func(o Route) bool { return !r.same(o) }) {
			r.others[d.To], r.lengths[d.To.Bits()] = struct{}{}, struct{}{}
		}
	}
	return r
}

// same reports whether a route leads where the default leads, and in the same manner.
func (r *repetition) same(o Route) bool {
	return o.Gateway.IsValid() && o.Gateway == r.way.Gateway && o.Attributes == r.way.Attributes
}

// sameWay is same for what is kept of a path.
func (r *repetition) sameWay(w way) bool {
	return r.way.Gateway.IsValid() && w.gateway == r.way.Gateway.As16() && w.rest.Value().Attributes == r.way.Attributes
}

// repeats reports whether all ways to a destination are a daemon's and say only what
// the default says.
func (r *repetition) repeats(ways []Route) bool {
	return !slices.ContainsFunc(ways, func(o Route) bool {
		return !o.Protocol.ofDaemon() || !r.same(o) || o.PreferredSource != r.way.PreferredSource && o.PreferredSource.IsValid()
	})
}

// repeatsWay is repeats for what is kept of a path.
func (r *repetition) repeatsWay(w way) bool {
	o := w.rest.Value()
	return o.Protocol.ofDaemon() && r.sameWay(w) && (o.PreferredSource == r.way.PreferredSource || !o.PreferredSource.IsValid())
}

// covered reports whether the structure has something around a destination that
// says something else.
func (r *repetition) covered(to netip.Prefix) bool {
	for bits := range r.lengths {
		if bits > to.Bits() {
			continue
		}
		if _, other := r.others[netip.PrefixFrom(to.Addr(), bits).Masked()]; other {
			return true
		}
	}
	return false
}

// equal reports whether the same paths are repetitions of both.
func (r *repetition) equal(o *repetition) bool {
	if !r.enabled || !o.enabled {
		return r.enabled == o.enabled
	}
	return r.way.Gateway == o.way.Gateway && r.way.Attributes == o.way.Attributes &&
		r.way.PreferredSource == o.way.PreferredSource && maps.Equal(r.others, o.others)
}

// ofDaemon reports whether routes of a protocol are those of a routing daemon
// (RTPROT_GATED to RTPROT_EIGRP of linux/rtnetlink.h).
func (p Protocol) ofDaemon() bool {
	switch p {
	case 8, 10, 11, 12, 14, 17, 42, 99, 186, 187, 188, 189, 192:
		return true
	default:
		return false
	}
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

// knownRoutes are those the owner knows, as far as the link has the address that
// they are for.
func knownRoutes(l Link) []Route {
	var out []Route
	for _, r := range l.Known {
		if l.Intents[r.Family].LeaveAlone != "" {
			continue
		}
		_, has := KeyOf(l, r.PreferredSource)
		if has || !r.PreferredSource.IsValid() {
			out = append(out, r)
		}
	}
	return out
}

// knownWays are the routes of a network that its owner knows, by destination.
// Main's own go before them.
func knownWays(l Link, keys []Key, k Key) map[Destination][]Route {
	var ways map[Destination][]Route
	for _, r := range knownRoutes(l) {
		if r.Family != k.Family || r.Type != RouteUnicast {
			continue
		}
		if r.PreferredSource.IsValid() {
			if own, _ := KeyOf(l, r.PreferredSource); own != k {
				continue
			}
		} else if r.Gateway.IsValid() && !k.Prefix.Contains(r.Gateway) && inAny(keys, r.Gateway) {
			continue
		}
		r.OnLink = r.Gateway.IsValid() && !reachable(l, k, r.Gateway)
		if ways == nil {
			ways = map[Destination][]Route{}
		}
		d := DestinationOf(r)
		ways[d] = append(ways[d], r)
	}
	return ways
}

// defaultWithoutTable is the route that main gets for a network without a table,
// unless somebody else has put a default of the link there.
func defaultWithoutTable(l Link, keys []Key, k Key) (Route, bool) {
	ways := knownWays(l, keys, k)[Destination{To: k.Family.Any()}]
	if !l.Up || !l.Reach || len(ways) == 0 || defaultMetric(l, k.Family) != noDefault {
		return Route{}, false
	}
	r := copyRoute(ways[0], l, k, TableMain, primarySource(l, k))
	r.Metric = standInMetric(l.Index)
	// Main need not have the network that our table would have.
	r.OnLink = r.Gateway.IsValid() && !l.covers(k.Family, r.Gateway)
	return r, true
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
	if k.Family == IPv4 && k.Prefix.Contains(gateway) && !k.OfHosts() {
		return true
	}
	if k.Family == IPv6 && gateway.IsLinkLocalUnicast() {
		return true
	}
	return l.covers(k.Family, gateway) || slices.ContainsFunc(knownRoutes(l), func(r Route) bool {
		// Where main has another way there, that one is copied.
		return r.covers(k.Family, gateway) && !slices.ContainsFunc(l.Routes, func(m Route) bool {
			return m.Destination == r.Destination && m.Protocol != Multihomed
		})
	})
}

// covers reports whether main has a network on the link that holds an address.
func (l Link) covers(f Family, a netip.Addr) bool {
	return slices.ContainsFunc(l.Routes, func(r Route) bool { return r.covers(f, a) })
}

func (r Route) covers(f Family, a netip.Addr) bool {
	return r.Family == f && !r.Gateway.IsValid() && !r.IsDefault() && r.Destination.Contains(a)
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
	rank, last := uint32(firstMetric), ways[0]
	for _, r := range ways {
		twin := slices.ContainsFunc(out, func(o Route) bool {
			return o.Gateway == r.Gateway && o.Attributes.Get().Encapsulation == r.Attributes.Get().Encapsulation
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
	// A share means something among routes of one metric, which IPv4 has not.
	for i := range out {
		same := func(o Route) bool { return o.Metric == out[i].Metric && (o.Gateway != out[i].Gateway) }
		switch {
		case out[i].Family == IPv4 || !slices.ContainsFunc(out, same):
			out[i].Weight = 0
		case out[i].Weight == 0:
			out[i].Weight = 1
		}
	}
	return out
}

// copyRoute makes main's route one of table t. No table ever leads through a
// device that is not its link's.
func copyRoute(r Route, l Link, k Key, t TableID, source netip.Addr) Route {
	r.Table, r.Protocol, r.Device = t, Multihomed, l.Index
	if k.Family == IPv4 {
		r.PreferredSource = copiedSource(r, l, source)
	}
	return r
}

// copiedSource keeps the source that main's route names if the link has it; others
// carry the address of this network.
func copiedSource(r Route, l Link, source netip.Addr) netip.Addr {
	if _, own := KeyOf(l, r.PreferredSource); own && r.PreferredSource.IsValid() {
		return r.PreferredSource
	}
	return source
}
