package routing

import (
	"maps"
	"net/netip"
	"slices"
)

// Unbound traffic follows main. While main's best default leads through a dead uplink, and
// another one lives, it follows table F instead: two rules in front of main read first what
// main knows besides its defaults, and then F. Main stays untouched, and an empty F changes
// nothing. See the rung "failover" of [Ladder].

// A Forwarded says whose traffic follows failover besides what this host itself sends.
type Forwarded uint8

// Whose traffic follows. A forwarded IPv6 packet has an address of a delegated prefix, which
// the provider of another link drops (RFC 2827).
const (
	// ForwardedIPv4 moves what this host forwards of IPv4, and not of IPv6.
	ForwardedIPv4 Forwarded = iota
	// ForwardedNone moves what this host sends itself.
	ForwardedNone
	// ForwardedAll moves all that this host forwards.
	ForwardedAll
)

// A Failover is what the planner must know to lead unbound traffic to a link that works.
// The zero Failover means off: there is no pair of rules, and table F is empty.
type Failover struct {
	Enabled bool
	// Dead are the uplinks judged dead in a family, by interface index. An uplink whose
	// interface is not running is dead whether it is here or not.
	Dead ByFamily[map[int]struct{}]
	// Unjudged says of a family that its uplinks have not been judged since the start: what
	// stands in F stays, as long as it leads through an uplink that is running.
	Unjudged ByFamily[bool]
	// Frozen is for a process that does not stay to judge again: what stands in F stays, as
	// with Unjudged, and nothing is put into it.
	Frozen bool
	// Prefer are interface indexes in the administrator's order of preference for the
	// replacement. The others come behind these, in main's order.
	Prefer []int
	// Metered are the interfaces that are the last choice, but for those in Prefer.
	Metered map[int]struct{}
	// Shares are the weights of uplinks that share unbound traffic, by interface index; nil
	// where nothing is shared. A weight is 1 to 255.
	Shares    map[int]uint8
	Forwarded Forwarded
	// HostRoutes moves also what main leads to single hosts by a dead uplink: VPN servers.
	HostRoutes bool
}

// equal reports whether the plan may stay.
func (f *Failover) equal(o *Failover) bool {
	return f.Enabled == o.Enabled && maps.Equal(f.Dead[0], o.Dead[0]) && maps.Equal(f.Dead[1], o.Dead[1]) &&
		f.Unjudged == o.Unjudged && f.Frozen == o.Frozen && slices.Equal(f.Prefer, o.Prefer) && maps.Equal(f.Metered, o.Metered) &&
		maps.Equal(f.Shares, o.Shares) && f.Forwarded == o.Forwarded && f.HostRoutes == o.HostRoutes
}

// clone returns an independent copy.
func (f Failover) clone() Failover {
	for i := range f.Dead {
		f.Dead[i] = maps.Clone(f.Dead[i])
	}
	f.Prefer, f.Metered, f.Shares = slices.Clone(f.Prefer), maps.Clone(f.Metered), maps.Clone(f.Shares)
	return f
}

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

// SetFailover takes what is judged and configured.
func (p *Planner) SetFailover(f Failover) {
	if f.equal(&p.failover.facts) {
		return
	}
	p.failover.facts = f.clone()
	p.chartAll()
}

// SetDefaults takes main's defaults of a family through any device, the best first: one for
// each leg, those of others that refuse packets included.
func (p *Planner) SetDefaults(f Family, defaults []Route) {
	i := familyIndex(f)
	if slices.Equal(p.failover.defaults[i], defaults) {
		return
	}
	p.failover.defaults[i] = slices.Clone(defaults)
	p.chart(i)
}

// SetHeld takes what stands in table F of ours. It counts while uplinks are not judged.
func (p *Planner) SetHeld(f Family, held []Route) {
	i := familyIndex(f)
	if slices.Equal(p.failover.held[i], held) {
		return
	}
	p.failover.held[i] = slices.Clone(held)
	if p.failover.keeps(i) {
		p.chart(i)
	}
}

// SetFailoverTaken takes who else uses table F in a family, empty if nobody does. Then there
// is no pair: his routes would be for unbound traffic.
func (p *Planner) SetFailoverTaken(f Family, by string) {
	i := familyIndex(f)
	if p.failover.taken[i] != by {
		p.failover.taken[i] = by
		p.chart(i)
	}
}

// FailoverTaken returns what SetFailoverTaken was given.
func (p *Planner) FailoverTaken(f Family) string { return p.failover.taken.In(f) }

// Course returns which way unbound traffic of a family goes, false if no link has a table of
// the family.
func (p *Planner) Course(f Family) (Course, bool) {
	return p.failover.course.In(f), p.tables[f] > 0
}

// FailoverRoutes returns what must stand in table F.
func (p *Planner) FailoverRoutes() []PlannedRoute {
	return slices.Concat(p.failover.table[0], p.failover.table[1])
}

// failing is what the planner keeps of failover, by family.
type failing struct {
	facts    Failover
	defaults ByFamily[[]Route]
	held     ByFamily[[]Route]
	taken    ByFamily[string]
	// leased counts the links whose lease is table F: a version that knew no failover gave
	// it away.
	leased ByFamily[int]
	// blocked says that the rules of others leave no place for the pair.
	blocked ByFamily[bool]
	// exits are the uplinks that have a default, silent those whose interface is not running.
	exits  [2]map[int]exit
	silent [2]map[int]struct{}

	course ByFamily[Course]
	rules  [2][]PlannedRule
	table  [2][]PlannedRoute
}

func newFailing() failing {
	f := failing{exits: [2]map[int]exit{{}, {}}, silent: [2]map[int]struct{}{{}, {}}}
	for i, family := range Families() {
		f.course[i] = Course{Family: family, Why: CourseOff}
	}
	return f
}

// keeps reports whether what stands in F stays.
func (x *failing) keeps(i int) bool { return x.facts.Frozen || x.facts.Unjudged[i] }

func (x *failing) dead(i, index int) bool {
	return contains(x.facts.Dead[i], index) || contains(x.silent[i], index)
}

func (x *failing) anyDead(i int) bool { return len(x.facts.Dead[i])+len(x.silent[i]) > 0 }

// lives reports whether an uplink may replace another one.
func (x *failing) lives(i, index int) (exit, bool) {
	e, is := x.exits[i][index]
	return e, is && e.source.IsValid() && !x.dead(i, index)
}

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
	found := false
	first := firstKey(*l, slices.DeleteFunc(slices.Clone(plan.Keys), func(k Key) bool { return k.Family != f }))
	worse := func(r PlannedRoute) int {
		switch {
		case r.Reason.Decision == CopiedElsewhere:
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
		if a, b := worse(r), worse(best); !found || a < b || a == b && r.Route.Metric < best.Route.Metric {
			best, found = r, true
		}
	}
	if !found {
		return exit{}, false
	}
	return exit{
		index: l.Index, name: l.Name, network: best.Reason.Prefix, route: best.Route,
		source: usableSource(plan, best.Route), metric: defaultMetric(*l, f),
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

// noteExit takes the plan of a link, nil if it has gone.
func (p *Planner) noteExit(index int, old, now *planned) {
	x := &p.failover
	for i, f := range Families() {
		changed := x.anyDead(i) || len(x.rules[i]) > 0 || x.course[i].Why == CourseTaken
		e, is := exit{}, false
		silent := false
		if now != nil {
			e, is = exitOf(&now.LinkPlan, f)
			silent = now.Link.NotRunning && now.Roles.In(f) == Uplink
		}
		if before, was := x.exits[i][index]; was != is || before != e {
			changed = true
			if is {
				x.exits[i][index] = e
			} else {
				delete(x.exits[i], index)
			}
		}
		if silent != contains(x.silent[i], index) {
			changed = true
			if silent {
				x.silent[i][index] = struct{}{}
			} else {
				delete(x.silent[i], index)
			}
		}
		was := old != nil && old.Roles.In(f) == Uplink
		if changed || was != (now != nil && now.Roles.In(f) == Uplink) {
			p.chart(i)
		}
	}
}

// countFailover counts the links whose lease is table F.
func (p *Planner) countFailover(l *Link, by int) {
	f, has := p.policy.FailoverTable()
	if !has {
		return
	}
	for k, t := range l.Tables {
		if t == f {
			p.failover.leased[familyIndex(k.Family)] += by
		}
	}
}

// noteBlocked looks whether main is what the kernel reads next behind the pair. Where a rule
// of somebody else comes between, or main is not read there, the pair would answer in place
// of what he wants. Where a goto of his leads to the pair's priority and finds nothing there,
// it would find the pair.
func (p *Planner) noteBlocked(i int) {
	foreign := p.foreign[i]
	blocked, next, leads, stands := false, false, false, false
	for _, o := range foreign {
		r := o.Rule
		leads = leads || r.Action == ActionGoto && r.Goto == PriorityAgain
		stands = stands || r.Priority == PriorityAgain
		if r.Priority > PriorityAgain && !next {
			next = true
			blocked = !r.isLookupOfAll() || r.Table != TableMain
		}
	}
	blocked = blocked || len(foreign) > 0 && !next || leads && !stands
	if p.failover.blocked[i] != blocked {
		p.failover.blocked[i] = blocked
		p.chart(i)
	}
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
	x.course[i] = c
	var rules []PlannedRule
	if c.paired() {
		rules = p.pair(i, table)
		rules = append(rules, p.twins(i)...)
		if c.Moved {
			rules = append(rules, p.hostRoutes(i, table)...)
		}
	}
	if !slices.Equal(rules, x.rules[i]) {
		keep := map[Rule]struct{}{}
		for _, r := range rules {
			keep[r.Rule] = struct{}{}
			p.wantRule(shared, r)
		}
		for _, r := range x.rules[i] {
			if !contains(keep, r.Rule) {
				p.dropRule(shared, r.Rule)
			}
		}
		x.rules[i] = rules
	}
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

// Ranks of failover among the rules of its priority: behind all others, the one that reads
// main in front.
const (
	rankFailover uint64 = 0xff << 56
	// rankFailoverTable is that of the rule which reads F.
	rankFailoverTable = rankFailover + 1<<8
)

// Sources that no packet has. A rule that leaves one out is for all, and does not read "from
// all lookup main suppress_prefixlength 0": `wg-quick down` deletes what reads so until
// nothing does. (RFC 919, RFC 4291.)
var nobody = ByFamily[netip.Prefix]{ //nolint:gochecknoglobals // a constant in all but name
	netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("ff00::/8"),
}

// ofFailover reports whether a rule is one of the pair.
func (r *Rule) ofFailover() bool {
	return r.Priority == PriorityAgain && r.Protocol == Multihomed && r.Action == ActionLookup && r.To == (netip.Prefix{}) &&
		(r.Invert && r.Table == TableMain || !names(r.From) && r.OIF == "" && r.Mark == (Mark{}) && !r.SuppressGroup.Set)
}

// sentHere reports whether failover of a family is for what this host sends alone.
func (x *failing) sentHere(f Family) bool {
	return x.facts.Forwarded == ForwardedNone || x.facts.Forwarded == ForwardedIPv4 && f == IPv6
}

// alike returns a rule, and the same in other words while somebody else says "iif lo".
func (p *Planner) alike(i int, r PlannedRule) []PlannedRule {
	r.Rule.Family, r.Rule.Protocol = Families()[i], Multihomed
	out := []PlannedRule{r}
	if r.Rule.IIF == Loopback && p.around[i].sender {
		r.Rule.IIF = LoopbackAlias
		r.Rank++
		out = append(out, r)
	}
	return out
}

// pair returns the two rules.
func (p *Planner) pair(i int, table TableID) []PlannedRule {
	reason := Reason{Decision: FollowLiving}
	main := Rule{Priority: PriorityAgain, Action: ActionLookup, Table: TableMain, SuppressPrefixLength: Some(0)}
	other := Rule{Priority: PriorityAgain, Action: ActionLookup, Table: table}
	if p.failover.sentHere(Families()[i]) {
		main.IIF, other.IIF = Loopback, Loopback
	} else {
		main.Invert, main.From = true, nobody[i]
	}
	return append(
		p.alike(i, PlannedRule{Rule: main, Rank: rankFailover, Reason: reason}),
		p.alike(i, PlannedRule{Rule: other, Rank: rankFailoverTable, Reason: reason})...)
}

// twins returns the rungs that lead to the network of a dead uplink by a living one of the
// same network. What main knows inside of the network goes first. While somebody sends
// everything elsewhere there are none: his rules stand behind them.
func (p *Planner) twins(i int) []PlannedRule {
	x := &p.failover
	f := Families()[i]
	if !x.anyDead(i) || p.around[i].fullTunnel {
		return nil
	}
	dead := map[int]struct{}{}
	maps.Copy(dead, x.facts.Dead[i])
	maps.Copy(dead, x.silent[i])
	done := map[netip.Prefix]struct{}{}
	var out []PlannedRule
	for _, index := range slices.Sorted(maps.Keys(dead)) {
		plan, is := p.links[index]
		if !is || plan.Roles[i] != Uplink {
			continue
		}
		for _, k := range plan.Keys {
			if k.Family != f || k.OfHosts() || contains(done, k.Prefix) {
				continue
			}
			done[k.Prefix] = struct{}{}
			way, table, is := p.twin(i, k.Prefix)
			if !is {
				continue
			}
			name := p.links[way].Link.Name
			shorter := uint64(f.Bits() - k.Prefix.Bits()) //nolint:gosec // 0 to 128
			rule := func(r Rule, rank uint64) {
				r.Priority, r.To, r.Action = PriorityTwin, k.Prefix, ActionLookup
				out = append(out, p.alike(i, PlannedRule{
					Rule: r, Rank: shorter<<16 | rank, Reason: Reason{Decision: ReachTwin, Link: name, Prefix: k.Network()},
				})...)
			}
			rule(Rule{Table: TableMain, SuppressPrefixLength: Some(uint32(k.Prefix.Bits()))}, 0) //nolint:gosec // 0 to 128
			rule(Rule{Table: table}, 1<<8)
		}
	}
	return out
}

// twin returns the living uplink that reaches a network which main leads to by a dead one,
// and its table.
func (p *Planner) twin(i int, network netip.Prefix) (index int, table TableID, found bool) {
	x := &p.failover
	best, metric, dead := 0, uint32(noDefault), uint32(noDefault)
	for _, other := range slices.Sorted(maps.Keys(p.standing.at[network])) {
		plan := p.links[other]
		if plan == nil || !plan.Link.Up {
			continue
		}
		at := metricTo(&plan.Link, network)
		if plan.Roles[i] == Uplink && x.dead(i, other) {
			dead = min(dead, at)
			continue
		}
		for _, k := range plan.Keys {
			if t, leased := plan.Link.Tables[k]; leased && k.Prefix == network && at < metric && at != noDefault {
				best, table, metric = other, t, at
			}
		}
	}
	return best, table, best != 0 && dead <= metric && dead != noDefault
}

// metricTo is what main has for a network on the link.
func metricTo(l *Link, network netip.Prefix) uint32 {
	best := uint32(noDefault)
	for i := range l.Routes {
		if r := &l.Routes[i]; r.Destination == network && !r.Gateway.IsValid() && r.Type == RouteUnicast && !r.Source.IsValid() {
			best = min(best, r.Metric)
		}
	}
	return best
}

// mostHostRoutes bounds the single hosts that are moved. Whoever has more routes to hosts by
// one uplink has them from a routing daemon.
const mostHostRoutes = 64

// hostRoutes returns rungs for the single hosts that main leads to by dead uplinks.
func (p *Planner) hostRoutes(i int, table TableID) []PlannedRule {
	x := &p.failover
	if !x.facts.HostRoutes || p.around[i].fullTunnel {
		return nil
	}
	f := Families()[i]
	hosts := map[netip.Prefix]uint32{}
	each := func(index int, visit func(Route)) {
		if plan, is := p.links[index]; is && plan.Roles[i] == Uplink {
			for r := range plan.MainRoutes() {
				if r.Family == f && r.Type == RouteUnicast && r.Destination.IsSingleIP() && r.Gateway.IsValid() && !r.Source.IsValid() && !r.Protocol.ofDaemon() {
					visit(r)
				}
			}
		}
	}
	for _, d := range [...]map[int]struct{}{x.facts.Dead[i], x.silent[i]} {
		for index := range d {
			each(index, func(r Route) {
				if m, known := hosts[r.Destination]; !known || r.Metric < m {
					hosts[r.Destination] = r.Metric
				}
			})
		}
	}
	for index := range x.exits[i] {
		if x.dead(i, index) {
			continue
		}
		each(index, func(r Route) {
			if m, known := hosts[r.Destination]; known && r.Metric < m {
				delete(hosts, r.Destination) // Main leads there by a living one.
			}
		})
	}
	if len(hosts) > mostHostRoutes {
		return nil
	}
	var out []PlannedRule
	for _, host := range slices.SortedFunc(maps.Keys(hosts), netip.Prefix.Compare) {
		r := Rule{Priority: PriorityTwin, To: host, Action: ActionLookup, Table: table}
		if x.sentHere(f) {
			r.IIF = Loopback
		}
		out = append(out, p.alike(i, PlannedRule{Rule: r, Rank: 2 << 8, Reason: Reason{Decision: FollowLiving, Prefix: host.String()}})...)
	}
	return out
}
