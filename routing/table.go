package routing

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// FirstMetric is where metrics in our tables begin. They are ranks, not main's
// metrics: NetworkManager adds 20000 to a link that fails its connectivity check,
// and that must not touch a table. They are worse than any of main: programs that
// read the routes of all tables and ignore the rules, as strongSwan does, take the
// best metric.
const FirstMetric = 1 << 30

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
func tableRoutes(facts *Link, keys []Key, k Key, t TableID, layers []layer) ([]PlannedRoute, *copier) {
	l := *facts
	source := primarySource(l, k)
	var order []Destination
	ways := map[Destination][]Route{}
	add := func(r Route) {
		d := DestinationOf(r)
		if _, seen := ways[d]; !seen {
			order = append(order, d)
		}
		ways[d] = append(ways[d], r)
	}
	others := overlayOf(facts, k.Family, layers)
	for i := range l.Routes {
		r := &l.Routes[i]
		if r.Family != k.Family || r.Type != RouteUnicast || r.Protocol == Multihomed || others.hidesRoute(r) {
			continue
		}
		add(*r)
	}
	for _, r := range others.routes {
		add(r)
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
				Family: IPv4, Table: t, Destination: k.Prefix, Type: RouteUnicast, Scope: ScopeLink, Metric: FirstMetric,
				Device: l.Index, PreferredSource: source, Protocol: Multihomed,
			},
			Reason: reason(OnLink),
		})
	}
	maps.DeleteFunc(known, func(_ Destination, routes []Route) bool {
		return !slices.ContainsFunc(routes, func(r Route) bool { return !others.hidesRoute(&r) })
	})
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
		repeated: repetitions(order, k.Family, choose), hidden: others,
	}
	for _, d := range order {
		chosen, why := choose(d)
		hasDefault = hasDefault || d == Destination{To: k.Family.Any()}
		for _, r := range ranked(chosen) {
			why := why
			if _, is := others.hidden[d.To]; is && d.From == (netip.Prefix{}) {
				why = CopiedFromOther
			}
			if d == own && !r.Gateway.IsValid() {
				why = OnLink
			}
			routes = append(routes, PlannedRoute{Route: copyRoute(r, l, k, t, source), Reason: reason(why)})
		}
	}
	if gateway := l.Intents[k.Family].Gateway; !hasDefault && gateway.IsValid() && !gateway.IsUnspecified() && FamilyOf(gateway) == k.Family {
		routes = append(routes, PlannedRoute{
			Route: Route{
				Family: k.Family, Table: t, Destination: k.Family.Any(), Type: RouteUnicast, Metric: FirstMetric,
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
	// ways are the best of the default: one, or legs.
	ways    []Route
	enabled bool
	// others are the destinations of the structure that say something else, lengths
	// theirs.
	others  map[netip.Prefix]struct{}
	lengths map[int]struct{}
	// thrown are the destinations that the table throws, nil if there are none.
	thrown *prefixSet
}

func repetitions(order []Destination, f Family, choose func(Destination) ([]Route, Decision)) repetition {
	var r repetition
	ways, _ := choose(Destination{To: f.Any()})
	if len(ways) == 0 || !slices.ContainsFunc(order, func(d Destination) bool { return d == Destination{To: f.Any()} }) {
		return r
	}
	best := slices.DeleteFunc(ranked(ways), func(o Route) bool { return o.Metric != FirstMetric })
	r = repetition{ways: best, enabled: true, others: map[netip.Prefix]struct{}{}, lengths: map[int]struct{}{}}
	for _, d := range order {
		if d.To.Bits() == 0 {
			continue
		}
		if chosen, _ := choose(d); !r.same(chosen) {
			r.others[d.To], r.lengths[d.To.Bits()] = struct{}{}, struct{}{}
		}
	}
	return r
}

// same reports whether all ways to a destination are those of the default, in the same
// manner and with the same shares.
func (r *repetition) same(ways []Route) bool {
	return slices.EqualFunc(ranked(ways), r.ways, func(o, way Route) bool {
		return o.Gateway.IsValid() && o.Gateway == way.Gateway && o.Attributes == way.Attributes && o.Weight == way.Weight
	})
}

// sameWay is same for what is kept of a path of one way.
func (r *repetition) sameWay(w way) bool {
	return len(r.ways) == 1 && r.ways[0].Gateway.IsValid() && w.gateway == r.ways[0].Gateway.As16() &&
		w.rest.Value().Attributes == r.ways[0].Attributes
}

// repeats reports whether all ways to a destination are a daemon's and say only what
// the default says.
func (r *repetition) repeats(ways []Route) bool {
	return r.same(ways) && !slices.ContainsFunc(ways, func(o Route) bool { return !r.repeatable(o) })
}

// repeatsWay is repeats for what is kept of a path of one way.
func (r *repetition) repeatsWay(w way) bool {
	return r.sameWay(w) && r.repeatable(w.rest.Value())
}

func (r *repetition) repeatable(o Route) bool {
	return o.Protocol.ofDaemon() && (o.PreferredSource == r.ways[0].PreferredSource || !o.PreferredSource.IsValid())
}

// covered reports whether the structure has something around a destination that
// says something else, or the table throws that.
func (r *repetition) covered(to netip.Prefix) bool {
	if r.thrown.longest(to) >= 0 {
		return true
	}
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
	return slices.EqualFunc(r.ways, o.ways, func(a, b Route) bool {
		return a.Gateway == b.Gateway && a.Attributes == b.Attributes && a.Weight == b.Weight && a.PreferredSource == b.PreferredSource
	}) && maps.Equal(r.others, o.others) && r.thrown.equal(o.thrown)
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

// addOrder orders routes so that the kernel takes them, and that what is thrown is not thrown
// before its exceptions stand, nor led elsewhere before it is thrown.
func addOrder(a, b *Route) int {
	return cmp.Or(cmp.Compare(a.addStage(), b.addStage()), b.Destination.Bits()-a.Destination.Bits())
}

func (r *Route) addStage() int {
	switch {
	case r.Type == RouteThrow:
		return 2
	case r.Metric >= FirstMetric+exceptedMetric:
		return 1
	case !r.Gateway.IsValid():
		return 0
	default:
		return 3
	}
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
	if !l.Up || !l.DefaultMayBeMissing || len(ways) == 0 || defaultMetric(l, k.Family) != noDefault {
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
	if l.covers(k.Family, gateway) {
		return true // The kernel asks main when the table has no answer.
	}
	known := knownRoutes(l)
	return slices.ContainsFunc(known, func(r Route) bool {
		if own, _ := KeyOf(l, r.PreferredSource); r.PreferredSource.IsValid() && own != k {
			return false // That is for the table of another network.
		}
		alike := func(o Route) bool { return DestinationOf(o) == DestinationOf(r) }
		// Where main has another way there, that one is copied. With one by a gateway it
		// is a leg of a route that is not on the link.
		return r.Type == RouteUnicast && r.covers(k.Family, gateway) &&
			!slices.ContainsFunc(l.Routes, func(m Route) bool { return m.Protocol != Multihomed && alike(m) }) &&
			!slices.ContainsFunc(known, func(o Route) bool { return o.Gateway.IsValid() && alike(o) })
	})
}

// covers reports whether main has a network on the link that holds an address.
func (l Link) covers(f Family, a netip.Addr) bool {
	return slices.ContainsFunc(l.Routes, func(r Route) bool { return r.covers(f, a) })
}

func (r Route) covers(f Family, a netip.Addr) bool {
	return r.Family == f && r.Type == RouteUnicast && !r.Gateway.IsValid() && !r.IsDefault() && r.Destination.Contains(a)
}

// ranked replaces main's metrics by ranks and drops what would stand twice. IPv4
// routes of one metric are one multipath route if they are legs of one in main: then
// the first has the others as its legs. Those that are not get ranks of their own,
// because IPv4 holds one route of a metric only. IPv6 has a route for each leg, and those
// of one metric stay together. Legs keep their shares.
//
// IPv6 routers of different preference get ranks of their own: in main the kernel
// weighs the preference of every route that a router advertised, but copies of one
// metric become legs, among which it does not look at preferences
// (net/ipv6/route.c, fib6_select_path).
func ranked(ways []Route) []Route {
	if len(ways) == 0 {
		return nil
	}
	ways = slices.Clone(ways)
	slices.SortFunc(ways, compareNextHops)
	var groups [][]Route
	for i, r := range ways {
		group := slices.IndexFunc(groups, func(g []Route) bool { return together(g[0], r) })
		twin := slices.ContainsFunc(groups, func(g []Route) bool {
			return (r.Family == IPv6 || !together(g[0], r)) && slices.ContainsFunc(g, func(o Route) bool {
				return o.Gateway == r.Gateway && o.Attributes.Get().Encapsulation == r.Attributes.Get().Encapsulation
			})
		})
		switch {
		case twin:
		case group >= 0:
			groups[group] = append(groups[group], r)
		default:
			groups = append(groups, ways[i:i+1:i+1])
		}
	}
	out := make([]Route, 0, len(ways))
	for i, group := range groups {
		share(group)
		for j := range group {
			group[j].Metric = FirstMetric + uint32(i)
		}
		if group[0].Family == IPv6 {
			out = append(out, group...)
		} else {
			out = append(out, joined(group))
		}
	}
	return out
}

// together reports whether two routes of main are legs of one in our table.
func together(a, b Route) bool {
	if a.Metric != b.Metric || a.Family != b.Family {
		return false
	}
	if a.Family == IPv6 {
		// The kernel joins routes with a next hop (rt6_qualify_for_ecmp in
		// include/net/ip6_route.h), and tells what one of them has for all.
		return a.Gateway.IsValid() && b.Gateway.IsValid() && a.Preference == b.Preference &&
			a.PreferredSource == b.PreferredSource && a.Attributes == b.Attributes
	}
	// What few routes have is the same for all legs but for their realms;
	// rtnetlink encapsulates either all or each, and a Leg holds none.
	common := func(r *RareAttributes) { r.Realm = 0 }
	return a.Weight > 0 && b.Weight > 0 && a.Protocol == b.Protocol && a.Scope == b.Scope && a.PreferredSource == b.PreferredSource &&
		a.Attributes.Get().EncapsulationType == 0 && a.Attributes.With(common) == b.Attributes.With(common)
}

// maxWeight is the largest share of a leg (rtnh_hops is a byte). Groups of nexthop
// objects may have larger ones.
const maxWeight = 256

// share sets the shares of the legs of one route: none where there is only one.
func share(legs []Route) {
	if len(legs) == 1 {
		legs[0].Weight = 0
		return
	}
	most := uint32(0)
	for _, r := range legs {
		most = max(most, uint32(r.Weight))
	}
	for i := range legs {
		w := uint32(legs[i].Weight)
		if most > maxWeight {
			w = w * maxWeight / most
		}
		legs[i].Weight = uint16(max(w, 1)) //nolint:gosec // at most maxWeight
	}
}

// joined makes one route of the legs of an IPv4 multipath route.
func joined(legs []Route) Route {
	r := legs[0]
	if len(legs) == 1 {
		return r
	}
	others := make([]Leg, 0, len(legs)-1)
	for _, l := range legs[1:] {
		others = append(others, Leg{Gateway: l.Gateway, Device: l.Device, OnLink: l.OnLink, Realm: l.Attributes.Get().Realm, Weight: l.Weight})
	}
	r.Attributes = r.Attributes.With(func(rare *RareAttributes) { rare.Legs = PackLegs(others) })
	return r
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
