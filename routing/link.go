package routing

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// A PlannedRule is a rule that must exist, and why.
type PlannedRule struct {
	Rule   Rule
	Reason Reason
	// Rank orders rules of one priority that could match the same packet: the
	// lower must stand first in the kernel's list.
	Rank uint64
	// Yields says that the rule has the very words of one of somebody else. Who
	// deletes it may have meant his own: it stays away for a while.
	Yields bool
}

// A PlannedRoute is a route that must exist, and why.
type PlannedRoute struct {
	Route  Route
	Reason Reason
}

// A LinkPlan is what one link needs from the kernel.
type LinkPlan struct {
	// Link is what is known of the link. Its Routes are the structure alone:
	// MainRoutes yields all of them.
	Link Link
	// Roles are those of the families, Whys say in words why the link has them.
	Roles ByFamily[Role]
	Whys  ByFamily[string]
	Keys  []Key
	Rules []PlannedRule
	// Routes are those that follow from the structure of the link: the networks on
	// it, its defaults and what else Link.Routes holds. AllRoutes yields those of
	// paths, too.
	Routes []PlannedRoute
	// Group is the interface group the link must be in.
	Group    uint32
	Problems []Problem
	// Aside are the sources that have no rungs for the time being.
	Aside []Aside

	marked bool
	// devicesAside says in which families the device has no rungs.
	devicesAside ByFamily[bool]
	// paths are the other routes of main through the link; copiers plan what its
	// tables have of them.
	paths   *paths
	copiers []*copier
}

// neighbourhood is what a link's plan needs to know of the other links.
type neighbourhood struct {
	// crowded says that a network of another link shares addresses with this
	// one: the prefix alone does not tell whose address a packet carries.
	crowded map[netip.Prefix]bool
	// overlap says that another link's network holds this one and that main may
	// pick that link for it at the rung of containers.
	overlap map[netip.Prefix]bool
	// local says that a local link shares addresses with the network.
	local map[netip.Prefix]bool
}

// Automatic reports whether addresses of a family come from the network.
func (l Link) Automatic(f Family) bool {
	if in := l.Intents[f]; in.Automatic && in.LeaveAlone == "" {
		return true
	}
	return slices.ContainsFunc(l.Addresses, func(a Address) bool {
		return a.Dynamic && FamilyOf(a.Prefix.Addr()) == f && TakesPart(l, a)
	})
}

// plan decides what the link needs, from its facts, its neighbours and what others
// have on the host.
func (plan *LinkPlan) plan(p Policy, n neighbourhood, surroundings *[2]surrounding) {
	plan.planGroup(p)
	if plan.marked && plan.Group != p.UplinkGroup && plan.Group != surroundings[0].group {
		plan.problem(Problem{
			Code: ForeignGroup, Severity: Warning, Object: fmt.Sprintf("group %d", plan.Group),
			Text: fmt.Sprintf("interface group %d was set by somebody else and is kept: packets bound to other links reach the networks of %s through it", plan.Group, plan.Link.Name),
			Fix:  fmt.Sprintf("ip link set %s group default", plan.Link.Name),
		})
	}
	for _, t := range plan.Link.LongTables {
		plan.problem(Problem{
			Code: LongTable, Severity: Warning, Object: fmt.Sprintf("table %s", t),
			Text: fmt.Sprintf("table %s is too long for its routes through %s to be copied: packets bound to %s go as main says, and not as the table does", t, plan.Link.Name, plan.Link.Name),
			Fix:  "let its owner put the routes into main, or select the packets that the table is for in its rule",
		})
	}
	for i, f := range Families() {
		plan.closedProblem(f, &surroundings[i])
		plan.thrownProblem(f, &surroundings[i])
		plan.planFamily(p, f, n, &surroundings[i])
	}
}

// expectsWay reports whether a link that is being brought up is likely to become
// an uplink: IPv6 listens to routers nearly everywhere, so that says nothing.
func expectsWay(l Link, f Family) bool {
	in := l.Intents[f]
	return f == IPv4 && in.Automatic && in.LeaveAlone == "" && !in.NeverDefault
}

// planGroup marks what is an uplink in any family: an interface has one group, and
// without it packets of others would leave by the interface in that family. In a family
// in which they may, its networks have a rung of their own: see [LinkPlan.opens].
func (plan *LinkPlan) planGroup(p Policy) {
	plan.marked = plan.marks(IPv4) || plan.marks(IPv6)
	plan.Group = markedGroup(p, plan.marked, plan.Link.Group)
}

// marks reports whether packets of other links must not leave by this one as main says,
// in a family. One that got no table is marked too. One that is never a default for
// others is not: the networks behind it stay reachable from the addresses of other
// links, as main says.
func (plan *LinkPlan) marks(f Family) bool {
	l := plan.Link
	if plan.Roles.In(f) != Uplink || !plan.has(f) && !l.Pending || l.Choice != AlwaysUplink && neverDefault(l, f) {
		return false
	}
	known, _ := knownRole(l, f)
	return !l.Pending || expectsWay(l, f) || known == Uplink
}

// markedGroup is the group an interface of group now must be in. A group that
// somebody else gave it is never changed.
func markedGroup(p Policy, marked bool, now uint32) uint32 {
	switch {
	case marked && now == 0:
		return p.UplinkGroup
	case !marked && now == p.UplinkGroup:
		return 0
	default:
		return now
	}
}

func (plan *LinkPlan) problem(p Problem) {
	p.Link = plan.Link.Name
	plan.Problems = append(plan.Problems, p)
}

// noDefault is the metric of what main does not have.
const noDefault = math.MaxUint32

// defaultMetric is the metric of the best default that main has through the
// link; a link that has one only by hint, or none, comes after all that do.
func defaultMetric(l Link, f Family) uint32 {
	best := uint32(noDefault)
	for _, r := range l.Routes {
		if r.Family == f && r.IsDefault() && r.Protocol != Multihomed {
			best = min(best, r.Metric)
		}
	}
	return best
}

func (plan *LinkPlan) planFamily(p Policy, f Family, n neighbourhood, around *surrounding) {
	l := plan.Link
	if why := l.Intents[f].LeaveAlone; why != "" {
		plan.problem(Problem{Code: LeftAlone, Severity: Notice, Text: fmt.Sprintf("%s is left alone: %s", f, why)})
		return
	}
	var keys []Key
	for _, k := range plan.Keys {
		if k.Family == f {
			keys = append(keys, k)
		}
	}
	for _, a := range l.Addresses {
		if a.Failed && FamilyOf(a.Prefix.Addr()) == f {
			plan.problem(Problem{
				Code: DuplicateAddress, Severity: Error, Object: a.Prefix.Addr().String(),
				Text: fmt.Sprintf("address %s is used by another host (duplicate address detection failed)", a.Prefix.Addr()),
				Fix:  fmt.Sprintf("give one of the two another address, then: nmcli device reapply %s", l.Name),
			})
		}
	}
	if r := around.refused; r != (Refusal{}) && len(keys) > 0 {
		plan.refusedProblem(f, r)
		plan.devicesAside.Set(f, r.Devices)
	}
	metric := defaultMetric(l, f)
	first := firstKey(l, keys)
	elsewhere := elsewhereByKey(l, keys, first)
	for i, k := range keys {
		t, ok := l.Tables[k]
		if !ok {
			plan.planWithoutTable(keys, k)
			continue
		}
		routes, copies := tableRoutes(&plan.Link, keys, k, t, around.layers)
		ownDefault := slices.ContainsFunc(routes, func(r PlannedRoute) bool {
			return r.Route.IsDefault() && r.Reason.Decision != CopiedElsewhere
		})
		if l.Up {
			throws := plan.throwsOf(k, t, around)
			copies.repeated.except(throws, around.throws)
			plan.Routes = slices.Concat(plan.Routes, routes, plan.exceptionsIn(copies, routes, throws, around), throws)
			plan.copiers = append(plan.copiers, copies)
		}
		r := rungs{
			policy: p, around: around, sources: sourcesOf(l, k, n.crowded[k.Prefix] || slices.ContainsFunc(elsewhere[k], isStranger)), elsewhere: elsewhere[k],
			metric: metric, order: i, ownDefault: ownDefault, several: len(keys) > 1, first: k == first,
			overlap: n.overlap[k.Prefix], local: n.local[k.Prefix],
			network: !k.OfHosts() && slices.ContainsFunc(routes, func(r PlannedRoute) bool {
				return r.Route.Destination == k.Prefix && !r.Route.Gateway.IsValid()
			}),
			inMain: slices.ContainsFunc(l.Routes, func(r Route) bool {
				return r.Destination == k.Prefix && !r.Gateway.IsValid() && r.Type == RouteUnicast && r.Protocol != Multihomed
			}),
			knowsMore: n.crowded[k.Prefix] || len(plan.paths.by) > 0 || slices.ContainsFunc(routes, func(r PlannedRoute) bool {
				return r.Route.Destination != k.Prefix
			}),
		}
		plan.planRules(k, t, r)
	}
}

// firstKey is the network that a socket bound to the device gets: the one whose
// address main itself prefers for its default route.
func firstKey(l Link, keys []Key) Key {
	var best Route
	for _, r := range l.Routes {
		if len(keys) == 0 || r.Family != keys[0].Family || !r.IsDefault() || !r.PreferredSource.IsValid() || r.Protocol == Multihomed {
			continue
		}
		if !best.PreferredSource.IsValid() || compareNextHops(r, best) < 0 {
			best = r
		}
	}
	if k, ok := KeyOf(l, best.PreferredSource); ok {
		return k
	}
	return Key{}
}

// elsewhereByKey says which table the sources that are no addresses belong to:
// that of the network they lie in, the narrowest if there are several, else the
// one that leads to the outside.
func elsewhereByKey(l Link, keys []Key, first Key) map[Key][]Elsewhere {
	if len(l.Elsewhere) == 0 || len(keys) == 0 {
		return nil
	}
	out := map[Key][]Elsewhere{}
	for _, e := range l.Elsewhere {
		if FamilyOf(e.Prefix.Addr()) != keys[0].Family || isAddress(l, e.Prefix) {
			continue
		}
		var own Key
		for _, k := range keys {
			if !k.OfHosts() && k.Prefix.Bits() <= e.Prefix.Bits() && k.Prefix.Contains(e.Prefix.Addr()) && (own == Key{} || k.Prefix.Bits() > own.Prefix.Bits()) {
				own = k
			}
		}
		if own == (Key{}) {
			own = outside(l, keys, first)
		}
		out[own] = append(out[own], e)
	}
	return out
}

func isStranger(e Elsewhere) bool { return e.Stranger }

// outside is the network of the device that the default of main belongs to.
func outside(l Link, keys []Key, first Key) Key {
	if first != (Key{}) {
		return first
	}
	for _, r := range l.Routes {
		for _, k := range keys {
			if r.Family == k.Family && r.IsDefault() && r.Gateway.IsValid() && k.Prefix.Contains(r.Gateway) {
				return k
			}
		}
	}
	return keys[0]
}

func isAddress(l Link, p netip.Prefix) bool {
	return p.IsSingleIP() && slices.ContainsFunc(l.Addresses, func(a Address) bool { return a.Prefix.Addr() == p.Addr() })
}

// planWithoutTable makes the best of a network that got no table: its packets
// follow main. Where nobody manages main's metrics its default may be missing
// there, because another link's was in the way; then it gets one behind all
// others, so that the host can be reached at least where it is the only one.
func (plan *LinkPlan) planWithoutTable(keys []Key, k Key) {
	text := fmt.Sprintf("no routing table for %s: its packets follow the main table", k.Network())
	if r, ok := defaultWithoutTable(plan.Link, keys, k); ok {
		plan.Routes = append(plan.Routes, PlannedRoute{
			Route: r, Reason: Reason{Decision: WithoutTable, Link: plan.Link.Name, Prefix: k.Network()},
		})
		text += fmt.Sprintf(", to which its default was added with metric %d", r.Metric)
	}
	plan.problem(Problem{Code: NoTable, Severity: Error, Object: k.Network(), Text: text})
}

// rungs is what the rules of one table depend on besides its key.
type rungs struct {
	policy     Policy
	around     *surrounding
	sources    []netip.Prefix
	elsewhere  []Elsewhere
	metric     uint32
	order      int
	ownDefault bool
	several    bool
	// first says that main itself prefers an address of this network.
	first   bool
	overlap bool
	// local says that a local link shares addresses with the network.
	local bool
	// network says that the table knows the prefix as a network on the link.
	// IPv6 prefixes need not be one (RFC 5942): then main's default is the way.
	network bool
	// inMain says that main knows the prefix as a network on the link.
	inMain bool
	// knowsMore says that the table has more than the network that it is for, or that
	// this shares addresses with others.
	knowsMore bool
}

// rules collects the rules of one table.
type rules struct {
	plan *LinkPlan
	rungs
	key     Key
	table   TableID
	network string
	// order tells tables of one link apart, last: those with a default first,
	// before them the one that main prefers.
	order uint64
}

func (plan *LinkPlan) planRules(k Key, t TableID, in rungs) {
	order := uint64(in.order) //nolint:gosec // the place in a list
	if !in.ownDefault {
		order |= 1 << 14
	}
	if !in.first {
		order |= 1 << 15
	}
	m := rules{plan: plan, rungs: in, key: k, table: t, network: k.Network(), order: order}
	plan.Rules = slices.Grow(plan.Rules, 4+(4+len(in.around.tunnels))*(len(in.sources)+len(in.elsewhere)))
	for _, s := range in.sources {
		m.source(source{prefix: s, own: true, iif: sender(k.Family)})
	}
	for _, e := range in.elsewhere {
		// What is forwarded steps aside for whoever sends everything elsewhere: a
		// full tunnel is for the guests too.
		switch {
		case e.Stranger:
		case e.Own:
			m.source(source{prefix: e.Prefix, own: true, iif: sender(k.Family)})
		case !in.around.fullTunnel:
			m.source(source{prefix: e.Prefix})
		}
	}
	if !plan.devicesAside.In(k.Family) {
		m.devices()
	}
	uplink := plan.Roles.In(k.Family) == Uplink
	if in.network && (!in.inMain || in.policy.NetworksAlways) {
		m.add(KeepMain, m.byLength(k.Prefix), Rule{
			Priority: PriorityNetworkMain, To: k.Prefix, Action: ActionLookup, Table: TableMain, Mark: in.around.ownMark(PriorityNetworkMain),
			SuppressPrefixLength: Some(uint32(max(k.Prefix.Bits()-1, 0))), //nolint:gosec // 0 to 127
		})
		m.add(ReachNetwork, m.byLength(k.Prefix), Rule{Priority: PriorityNetwork, To: k.Prefix, Mark: in.around.ownMark(PriorityNetwork)})
	}
	if uplink && m.lastResort() {
		m.add(LastResort, uint64(in.metric)<<16|order, Rule{Priority: PriorityMatchAll, IIF: Loopback})
	}
}

// devices adds the rungs for sockets that are bound to the device.
func (m *rules) devices() {
	plan, in, k, l := m.plan, m.rungs, m.key, m.plan.Link
	// Where a device has several tables, a bound socket that also has an
	// address must not get the gateway of another network of the device. This
	// has a rung of its own: at 9500 the kernel could not tell the two kinds
	// apart when one is added or deleted (see kerneltest, Kernel.exists).
	switch {
	case !in.several:
	case k.OfHosts():
		for _, s := range in.sources {
			m.device(PriorityDeviceSource, s, m.byLength(s))
		}
	default:
		m.device(PriorityDeviceSource, k.Prefix, m.byLength(k.Prefix))
	}
	m.device(PriorityDevice, netip.Prefix{}, rankRung|m.order)
	local := Rule{Priority: PriorityLocal, OIF: l.Name, Action: ActionLookup, Table: TableLocal}
	if in.around.localMoved {
		m.add(KeepLocal, 0, local)
	}
	if plan.Roles.In(k.Family) == Uplink && in.around.step.stands() {
		if in.around.localMoved && in.around.step.target > PriorityLocal {
			m.add(KeepLocal, rankStepRung, in.around.atStep(local))
		}
		m.add(StepOver, rankStep, in.around.stepOver(Rule{OIF: l.Name}))
	}
}

// lastResort reports whether unbound traffic may leave by the link when main has no
// default. Where somebody looks after main's default and takes it away, as a kill
// switch does, main's word counts: the rule is then there only as long as it
// changes nothing. It would change something where no rule reads main, and where main throws
// what the table does not.
func (m *rules) lastResort() bool {
	l, f := m.plan.Link, m.key.Family
	switch {
	case l.LastResort:
		return true
	case l.Intents[f].NeverDefault, m.around.throwsDefault(), m.around.throwsTooMuch():
		return false
	default:
		return !m.around.mainUnread && (l.DefaultMayBeMissing || m.metric != noDefault)
	}
}

func (m *rules) add(d Decision, rank uint64, r Rule) { m.addThat(d, rank, r, false) }

// addThat adds a rule that may yield. What says "iif lo" stands in other words, too, while
// somebody else has these words: `while ip rule del iif lo; do :; done` leaves the second.
func (m *rules) addThat(d Decision, rank uint64, r Rule, yields bool) {
	r.Family, r.Protocol = m.key.Family, Multihomed
	if r.Action == 0 {
		r.Action, r.Table = ActionLookup, m.table
	}
	one := PlannedRule{
		Rule: r, Rank: rank, Yields: yields,
		Reason: Reason{Decision: d, Link: m.plan.Link.Name, Prefix: m.network},
	}
	m.plan.Rules = append(m.plan.Rules, one)
	if r.IIF == Loopback && m.around.sender {
		one.Rule.IIF = LoopbackAlias
		m.plan.Rules = append(m.plan.Rules, one)
	}
}

func (m *rules) byLength(p netip.Prefix) uint64 {
	shorter := uint64(m.key.Family.Bits() - p.Bits()) //nolint:gosec // 0 to 128
	return rankRung | shorter<<48 | uint64(m.metric)<<16 | m.order
}

// device adds a rung for sockets that are bound to the device, and the same once more
// where it may have been skipped.
func (m *rules) device(p Priority, from netip.Prefix, rank uint64) {
	for _, s := range m.around.sites() {
		if !s.has(p) {
			continue
		}
		r := Rule{Priority: s.priority(p), From: from, OIF: m.plan.Link.Name}
		behind, inside, narrower := anyMark, anyMark, rankDeviceAgain
		if p == PriorityDeviceSource {
			behind, inside, narrower = Mark{}, anyMarkDevice, rank>>48&0xff<<16
		}
		r.Mark = s.mark(behind, inside)
		switch {
		case !s.again():
			r.Mark = m.around.ownMark(p)
			m.add(FollowDevice, rank, r)
		case s.last:
			m.add(Again, narrower|m.order, r)
		default:
			m.add(Again, rankDeviceInside|narrower|m.order, r)
		}
	}
}

// Ranks behind the ladder, where all rungs share a priority: sockets that are bound to a
// device come first, as no rung that says no may stand before those of any device. Sources
// follow, by the length of their prefix, each with its rungs by stage. That a device comes
// before what main knows changes nothing: its table has what main has through it.
const rankDeviceAgain uint64 = 1 << 32

// rankDeviceInside is that of what is for devices inside of the ladder: behind the lifts.
const rankDeviceInside uint64 = 1 << 40

const (
	againOverlap uint64 = iota + 1
	againKnown
	againSource
	againUnreachable
	againGuard
	// againRung is a rung at whose priority others are repeated.
	againRung
)

// anyMark takes no packet away, because nothing of the mark is compared, and is a word that
// tells rules apart: among rules of one priority the kernel takes one without a source or
// destination for equal to one with any (rule_exists and rule_find in
// net/core/fib_rules.c).
var anyMark = Mark{Value: 0x6d68} //nolint:gochecknoglobals // a constant in all but name

// Behind the ladder the rungs of openings have words of their own, too. A request to delete
// matches rules with a suppressor or a destination that it does not name: the one for the
// source rung of a link with the same address would take an opening, and the one for an
// opening what is nested. Likewise the one for the table of what is nested would take what
// is narrower in it, so that it has its word in front of the ladder, too.
var (
	anyMarkNested  = Mark{Value: 0x6d69} //nolint:gochecknoglobals // a constant in all but name
	anyMarkOpening = Mark{Value: 0x6d6a} //nolint:gochecknoglobals // a constant in all but name
	anyMarkInner   = Mark{Value: 0x6d6b} //nolint:gochecknoglobals // a constant in all but name
)

// Inside of the ladder all rungs have such words, and these have their own: the one for the
// source rung of a link would take one for a device and the source, or for a network.
var (
	anyMarkOverlap = Mark{Value: 0x6d6c} //nolint:gochecknoglobals // a constant in all but name
	anyMarkDevice  = Mark{Value: 0x6d6d} //nolint:gochecknoglobals // a constant in all but name
	// anyMarkOwn is that of a rung at whose priority others are repeated.
	anyMarkOwn = Mark{Value: 0x6d6e} //nolint:gochecknoglobals // a constant in all but name
	// anyMarkHalf is that of a rung "known" for a part of everything: one for all may take
	// its place.
	anyMarkHalf = Mark{Value: 0x6d6f} //nolint:gochecknoglobals // a constant in all but name
)

// openMark returns the words of a rung of openings, where it is repeated if again.
func openMark(p Priority, r Rule, again bool) Mark {
	switch {
	case p == PriorityNested && !r.SuppressPrefixLength.Set:
		return anyMarkInner
	case !again:
		return Mark{}
	case p == PriorityNested:
		return anyMarkNested
	default:
		return anyMarkOpening
	}
}

func rankAgain(rank, stage uint64) uint64 { return rank>>48<<56 | stage<<48 | rank&(1<<48-1) }

// rankInside is rankAgain inside of the ladder, where what is repeated stands behind lifts and
// in front of the rung whose priority it may be.
func rankInside(rank, stage uint64) uint64 {
	return rank>>48&0xff<<51 | stage<<48 | rank&(1<<48-1)
}

// A source is what packets of a link carry.
type source struct {
	prefix netip.Prefix
	// own says that the host itself sends from it.
	own bool
	// iif is "lo" where the rules are for packets of this host alone.
	iif string
}

// source adds the rungs that are per source.
func (m *rules) source(s source) {
	around, uplink := m.around, m.plan.Roles.In(m.key.Family) == Uplink
	from := func(p Priority) Rule { return Rule{Priority: p, From: s.prefix, IIF: s.iif} }
	rank := m.byLength(s.prefix)
	if around.refused != (Refusal{}) {
		m.plan.Aside = append(m.plan.Aside, Aside{Source: s.prefix})
		return
	}
	if u, aside := around.takes(s.prefix, m.plan.Link.Index, m.policy.ContainerPrefixLength); aside {
		m.plan.stepAside(s, u)
		return
	}
	if around.localMoved {
		r := from(PriorityLocal)
		r.Action, r.Table = ActionLookup, TableLocal
		m.add(KeepLocal, rank, r)
	}
	for _, here := range around.sites() {
		again, decision := here.again(), here.decision
		// Where they are repeated, the rungs of one source share a priority.
		at := func(p Priority, stage uint64) (Rule, uint64) {
			if !again && slices.Contains(around.inside, p) {
				return from(p), rankInside(rank, againRung)
			}
			return from(here.priority(p)), here.rank(rank, stage)
		}
		if m.overlap && !m.key.OfHosts() && here.has(PriorityOverlap) {
			r, rank := at(PriorityOverlap, againOverlap)
			r.To, r.Mark = m.key.Prefix, here.mark(Mark{}, anyMarkOverlap)
			m.add(decision(KeepOverlap), rank, r)
		}
		for i, known := range around.known() {
			if !here.has(PriorityKnown) || !known.isFor(s.prefix) {
				continue
			}
			r, rank := at(PriorityKnown, againKnown)
			if r.Mark = here.mark(Mark{}, anyMark); names(known.to) {
				r.Mark = anyMarkHalf
			}
			r.Action, r.Table, r.To = ActionLookup, known.table, known.to
			r.SuppressPrefixLength, r.SuppressGroup = Some(max(m.policy.ContainerPrefixLength, known.suppress)), Some(around.group)
			// `ip rule del table 42` takes the first rule that leads there.
			m.addThat(decision(KeepKnown), rankKnown(rank, i), r, known.table != TableMain)
		}
		m.opened(func(p Priority, place int, open Rule) {
			if !here.has(p) {
				return
			}
			r, rank := at(p, againKnown)
			r.Mark = openMark(p, open, again)
			r.To, r.Action, r.Table, r.SuppressPrefixLength = open.To, open.Action, open.Table, open.SuppressPrefixLength
			m.add(decision(KeepKnown), rankKnown(rank, place), r)
		})
		if here.has(PrioritySource) {
			r, rank := at(PrioritySource, againSource)
			if r.Mark = here.mark(anyMark, anyMark); !again {
				r.Mark = around.ownMark(PrioritySource)
			}
			m.add(decision(FollowSource), rank, r)
		}
		if uplink && s.own && here.has(PriorityUnreachable) {
			// The order of rules that all say no does not matter: they have one rank.
			r, rank := at(PriorityUnreachable, againUnreachable)
			r.Action, r.Mark = ActionUnreachable, here.mark(Mark{}, anyMark)
			if !again {
				rank = rankRung
			}
			m.add(decision(NeverStray), rank, r)
			for _, w := range m.guards(s) {
				r, rank := at(PriorityUnreachable, againGuard)
				r.From, r.IIF, r.Action, r.Mark = w.prefix, w.iif, ActionUnreachable, here.mark(Mark{}, anyMark)
				if !again {
					rank = rankRung
				} else if w.prefix.Bits() < s.prefix.Bits() {
					// It stands behind all that its other address has.
					rank += 1 << 56
				}
				m.add(decision(NeverStray), rank, r)
			}
		}
	}
	if uplink && s.own && around.step.stands() {
		if around.localMoved && around.step.target > PriorityLocal {
			r := around.atStep(from(0))
			r.Action, r.Table = ActionLookup, TableLocal
			m.add(KeepLocal, rankStepRung, r)
		}
		if m.overlap && !m.key.OfHosts() && around.step.target > PriorityOverlap {
			r := around.atStep(from(0))
			r.To = m.key.Prefix
			m.add(KeepOverlap, rankStepRung, r)
		}
		r := around.stepOver(from(0))
		r.IIF = Loopback
		m.add(StepOver, rankStep, r)
	}
}

// guards are what no packet of a source gets past while its rungs are deleted one after the
// other by somebody who deletes a rule of his that names the source: `while ip rule del
// from 192.0.2.5; do :; done`. So they say the same in other words. A network is cut in two.
// An address has no other words than the block of two that it is in, and the other one of
// the two must not be a local link's, which may go on to main.
func (m *rules) guards(s source) []source {
	switch {
	case !contains(m.around.named, s.prefix):
		return nil
	case !s.prefix.IsSingleIP():
		low, high := cut(s.prefix)
		return []source{{prefix: low, iif: s.iif}, {prefix: high, iif: s.iif}}
	case m.local:
		return nil
	default:
		return []source{{prefix: netip.PrefixFrom(s.prefix.Addr(), s.prefix.Bits()-1).Masked(), iif: Loopback}}
	}
}

// rankKnown orders the lookups of one source among themselves. The length of the
// prefix, which is in the upper bits, goes before.
func rankKnown(rank uint64, place int) uint64 {
	return rank&^0xffff | uint64(place) //nolint:gosec // the place in a list
}

// sender restricts the rules of IPv6 to packets of this host: they select by
// prefix, hosts behind a router have addresses of that prefix too, and what it
// forwards for them is main's business.
func sender(f Family) string {
	if f == IPv6 {
		return Loopback
	}
	return ""
}

// sourcesOf returns the source selectors of a table: every IPv4 address; the
// IPv6 network, so that temporary addresses come and go without a change, or
// every IPv6 address where the network is another link's too, or is so wide
// that it holds networks of others and no temporary addresses.
func sourcesOf(l Link, k Key, crowded bool) []netip.Prefix {
	if k.Family == IPv6 && !crowded && k.Prefix.Bits() >= subnetBits6 && !k.OfHosts() {
		return []netip.Prefix{k.Prefix}
	}
	return hostsOf(l, k)
}

// hostsOf returns the addresses of a table, sorted.
func hostsOf(l Link, k Key) []netip.Prefix {
	var hosts []netip.Prefix
	seen := map[netip.Prefix]struct{}{}
	for _, a := range l.Addresses {
		s := netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen())
		if _, known := seen[s]; known {
			continue
		}
		if own, ok := keyOf(l, a); ok && own == k {
			hosts = append(hosts, s)
			seen[s] = struct{}{}
		}
	}
	slices.SortFunc(hosts, netip.Prefix.Compare)
	return hosts
}

// compareNextHops orders routes to one destination as main would choose them,
// and breaks ties by what is left, so that equal facts give equal tables.
func compareNextHops(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Metric, b.Metric),
		cmp.Compare(a.Preference.order(), b.Preference.order()),
		a.Gateway.Compare(b.Gateway),
		a.PreferredSource.Compare(b.PreferredSource),
		a.Attributes.Compare(b.Attributes),
		compareBool(a.OnLink, b.OnLink),
		cmp.Compare(a.Weight, b.Weight),
		cmp.Compare(a.Scope, b.Scope),
		cmp.Compare(a.Protocol, b.Protocol),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}
