package routing

import (
	"maps"
	"slices"
)

// A CourseReason names why unbound traffic goes the way that it goes.
type CourseReason string

// Why unbound traffic goes its way.
const (
	// CourseOff: failover is not enabled.
	CourseOff CourseReason = "off"
	// CourseAlone: fewer than two uplinks have a default of the family.
	CourseAlone CourseReason = "one-uplink"
	// CourseTaken: somebody else uses table F.
	CourseTaken CourseReason = "table-in-use"
	// CourseBlocked: a rule of somebody else stands where the pair would have to stand, or
	// main is not what the kernel reads next.
	CourseBlocked CourseReason = "foreign-rule"
	// CourseNoDefault: main has no default of the family.
	CourseNoDefault CourseReason = "no-default"
	// CourseNoUplink: main's best default leads through an interface that is no uplink, as
	// that of a VPN.
	CourseNoUplink CourseReason = "no-uplink"
	// CourseAlive: main's best default leads through an uplink that is not dead.
	CourseAlive CourseReason = "alive"
	// CourseDead: main's best default leads through a dead uplink, and another one lives.
	CourseDead CourseReason = "dead"
	// CourseNoneLives: main's best default leads through a dead uplink, and no other lives
	// that has a usable address.
	CourseNoneLives CourseReason = "none-lives"
	// CourseKept: what a process before this one put into F stays until uplinks are judged.
	CourseKept CourseReason = "kept"
	// CourseFrozen: main's best default leads through a dead uplink, and this process does
	// not stay to judge.
	CourseFrozen CourseReason = "frozen"
	// CourseThrown: table F would lead elsewhere, but main throws more than tables can follow, and
	// what it throws would leave, too.
	CourseThrown CourseReason = "many-thrown"
	// CourseShared: several uplinks share unbound traffic.
	CourseShared CourseReason = "shared"
)

// A Course says which way unbound traffic of a family goes, and why.
type Course struct {
	Family Family
	// Main is main's best default, zero if there is none. Used is what unbound traffic uses:
	// main's, or the first way of table F.
	Main, Used Route
	// Ways are all of table F; none if unbound traffic follows main. IPv4 has one route,
	// with legs if it leads several ways, IPv6 one for each way.
	Ways RouteList
	// Moved says that unbound traffic does not follow main because main's best default is
	// dead.
	Moved bool
	Why   CourseReason
}

// A RouteList is a few routes that are never changed, so that what has one can be compared.
type RouteList struct{ shared *[]Route }

// All returns the routes. They must not be changed.
func (l RouteList) All() []Route {
	if l.shared == nil {
		return nil
	}
	return *l.shared
}

// Devices are the interfaces that unbound traffic leaves by, sorted; main's if it follows
// main.
func (c Course) Devices() []int {
	var out []int
	for _, r := range c.Ways.All() {
		out = append(out, r.Device)
		for _, l := range r.Attributes.Get().Legs.All() {
			out = append(out, l.Device)
		}
	}
	if len(out) == 0 && c.Used != (Route{}) {
		out = append(out, c.Used.Device)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *Planner) chartAll() {
	for i := range p.failover.course {
		p.chart(i)
	}
}

// chart decides which way unbound traffic of a family goes, and wants what leads it there.
func (p *Planner) chart(i int) {
	f := Families()[i]
	x := &p.failover
	table, has := p.policy.FailoverTable()
	var c Course
	var ways []exit
	var weights []uint16
	if has {
		c, ways, weights = p.decide(i)
	} else {
		c = Course{Family: f, Why: CourseOff}
	}
	routes := lead(table, ways, weights)
	if len(routes) > 0 {
		c.Used = routes[0].Route
		list := make([]Route, 0, len(routes))
		for _, r := range routes {
			list = append(list, r.Route)
		}
		if before := x.course[i].Ways; slices.Equal(before.All(), list) {
			c.Ways = before
		} else {
			c.Ways = RouteList{&list}
		}
	}
	if len(routes) > 0 {
		routes = append(routes, p.throwsOfFailover(i, table)...)
	}
	x.course[i] = c
	var rules []PlannedRule
	if c.paired() {
		if !x.away[i] {
			rules = p.pair(i, table)
		}
		rules = append(rules, p.twins(i)...)
		if c.Moved {
			rules = append(rules, p.hostRoutes(i, table)...)
		}
	}
	x.rules[i] = p.replaceShared(x.rules[i], rules)
	if !slices.Equal(routes, x.table[i]) {
		keep := map[RouteKey]struct{}{}
		for _, r := range routes {
			keep[r.Route.Key()] = struct{}{}
			p.wantRoute(shared, r)
		}
		for _, r := range x.table[i] {
			if k := r.Route.Key(); !contains(keep, k) {
				p.dropRoute(shared, k)
			}
		}
		x.table[i] = routes
	}
}

// paired reports whether the pair of rules stands.
func (c *Course) paired() bool {
	switch c.Why {
	case CourseOff, CourseAlone, CourseTaken, CourseBlocked:
		return false
	default:
		return true
	}
}

// decide returns the course of a family, and the ways of F with their weights.
func (p *Planner) decide(i int) (c Course, ways []exit, weights []uint16) {
	x := &p.failover
	c = Course{Family: Families()[i]}
	best := bestDefaults(x.defaults[i])
	if len(best) > 0 {
		c.Main, c.Used = best[0], best[0]
	}
	switch {
	case !x.facts.Enabled:
		c.Why = CourseOff
	case len(x.exits[i]) < 2:
		c.Why = CourseAlone
	case x.taken[i] != "" || x.leased[i] > 0:
		c.Why = CourseTaken
	case x.blocked[i]:
		c.Why = CourseBlocked
	case len(best) == 0:
		c.Why = CourseNoDefault
	case slices.ContainsFunc(best, func(r Route) bool { return !p.leadsToUplink(i, r) }):
		c.Why = CourseNoUplink
	default:
		c.Why, c.Moved, ways, weights = p.replace(i, best)
		if len(ways) > 0 && p.around[i].throwsTooMuch() {
			c.Why, c.Moved, ways, weights = CourseThrown, false, nil, nil
		}
	}
	return c, ways, weights
}

// bestDefaults are those that the kernel may take: the best, with the other legs of a
// multipath route. Of several IPv6 routes of one metric it takes one that it finds reachable
// (find_rr_leaf in net/ipv6/route.c), or each for some packets.
func bestDefaults(defaults []Route) []Route {
	for i, r := range defaults {
		if r.TOS != 0 || !r.IsDefault() {
			continue
		}
		best := []Route{r}
		for _, o := range defaults[i+1:] {
			legs := r.Family == IPv6 && o.Preference.order() == r.Preference.order() || r.Weight > 0 && o.Weight > 0
			if o.Metric == r.Metric && o.TOS == 0 && o.IsDefault() && legs {
				best = append(best, o)
			}
		}
		return best
	}
	return nil
}

func (p *Planner) leadsToUplink(i int, r Route) bool {
	plan, is := p.links[r.Device]
	return is && r.Type == RouteUnicast && plan.Roles[i] == Uplink
}

// replace finds what takes the place of main's best default, all of which leads through
// uplinks.
func (p *Planner) replace(i int, best []Route) (why CourseReason, moved bool, ways []exit, weights []uint16) {
	x := &p.failover
	dead := slices.ContainsFunc(best, func(r Route) bool { return x.dead(i, r.Device) })
	if x.keeps(i) {
		if ways = x.kept(i, best); len(ways) > 0 {
			return CourseKept, true, ways, x.weights(ways)
		}
		switch {
		case !x.facts.Frozen:
		case dead:
			return CourseFrozen, false, nil, nil
		default:
			return CourseAlive, false, nil, nil
		}
	}
	shares := len(x.facts.Shares) > 0 && !slices.ContainsFunc(best, func(r Route) bool { return x.facts.Shares[r.Device] == 0 })
	if shares {
		for _, index := range slices.Sorted(maps.Keys(x.facts.Shares)) {
			if e, lives := x.lives(i, index); lives && x.facts.Shares[index] > 0 {
				ways = append(ways, e)
			}
		}
		switch {
		case len(ways) > 1 && !dead:
			return CourseShared, false, ways, x.weights(ways)
		case len(ways) > 0 && dead:
			return CourseDead, true, ways, x.weights(ways)
		}
	}
	if !dead {
		return CourseAlive, false, nil, nil
	}
	// Legs of main's that live carry on.
	ways = nil
	for _, r := range best {
		e, lives := x.lives(i, r.Device)
		if !lives {
			continue
		}
		at := slices.IndexFunc(ways, func(o exit) bool { return o.index == e.index })
		if at < 0 {
			at, ways, weights = len(ways), append(ways, e), append(weights, 0)
		}
		weights[at] = min(weights[at]+max(r.Weight, 1), mostWeight)
	}
	if len(ways) > 0 {
		return CourseDead, true, ways, weights
	}
	if e, lives := x.choose(i); lives {
		return CourseDead, true, []exit{e}, nil
	}
	return CourseNoneLives, false, nil, nil
}

// mostWeight is the highest share of a leg (rtnh_hops of linux/rtnetlink.h, which is one
// less).
const mostWeight = 256

func (x *failing) weights(ways []exit) []uint16 {
	out := make([]uint16, 0, len(ways))
	for _, e := range ways {
		out = append(out, max(uint16(x.facts.Shares[e.index]), 1))
	}
	return out
}

// kept are the ways of what stands in F, as their uplinks have them now; none if one of them
// does not work any more, or main leads there itself.
func (x *failing) kept(i int, best []Route) []exit {
	var ways []exit
	for _, r := range x.held[i] {
		if r.Type == RouteThrow {
			continue // It leads by no uplink.
		}
		devices := []int{r.Device}
		for _, l := range r.Attributes.Get().Legs.All() {
			devices = append(devices, l.Device)
		}
		for _, index := range devices {
			e, lives := x.lives(i, index)
			if !lives {
				return nil
			}
			if !slices.ContainsFunc(ways, func(o exit) bool { return o.index == index }) {
				ways = append(ways, e)
			}
		}
	}
	if len(ways) == 1 && !slices.ContainsFunc(best, func(r Route) bool { return r.Device != ways[0].index }) {
		return nil
	}
	slices.SortFunc(ways, func(a, b exit) int { return a.index - b.index })
	return ways
}

// choose returns the uplink that replaces a dead one: the first one that the administrator
// prefers, else main's best, those that are metered last.
func (x *failing) choose(i int) (best exit, found bool) {
	place := func(e exit) [2]int {
		at := slices.Index(x.facts.Prefer, e.index)
		switch {
		case at >= 0:
			return [2]int{0, at}
		case contains(x.facts.Metered, e.index):
			return [2]int{2, int(e.metric)}
		default:
			return [2]int{1, int(e.metric)}
		}
	}
	for index := range x.exits[i] {
		e, lives := x.lives(i, index)
		if !lives {
			continue
		}
		if !found {
			best, found = e, true
			continue
		}
		a, b := place(e), place(best)
		if c := slices.Compare(a[:], b[:]); c < 0 || c == 0 && e.index < best.index {
			best = e
		}
	}
	return best, found
}

// lead makes the routes of F. A single way is as in the uplink's table, and names its source.
// Of several ways the kernel chooses the source by the way that a packet takes.
func lead(table TableID, ways []exit, weights []uint16) []PlannedRoute {
	planned := func(r Route, e exit) PlannedRoute {
		r.Table, r.Protocol, r.Metric = table, Multihomed, FirstMetric
		return PlannedRoute{Route: r, Reason: Reason{Decision: FollowLiving, Link: e.name, Prefix: e.network}}
	}
	switch len(ways) {
	case 0:
		return nil
	case 1:
		r := ways[0].route
		r.PreferredSource, r.Weight = ways[0].source, 0
		if r.Attributes.Get().Legs != (Legs{}) {
			r.Weight = ways[0].route.Weight
		}
		return []PlannedRoute{planned(r, ways[0])}
	}
	var out []PlannedRoute
	var legs []Leg
	for n, e := range ways {
		r := Route{
			Family: e.route.Family, Type: RouteUnicast, Destination: e.route.Destination,
			Gateway: e.route.Gateway, Device: e.index, OnLink: e.route.OnLink, Weight: weights[n],
		}
		if r.Family == IPv6 || n == 0 {
			out = append(out, planned(r, e))
			continue
		}
		legs = append(legs, Leg{Gateway: r.Gateway, Device: r.Device, OnLink: r.OnLink, Weight: r.Weight})
	}
	if len(legs) > 0 {
		r := &out[0].Route
		r.Attributes = RareAttributes{Legs: PackLegs(legs)}.Share()
	}
	return out
}
