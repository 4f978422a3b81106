package routing

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// An interface has one group, and a role in each family. One that is an uplink in a
// family is in the group of uplinks, so that packets of other links do not leave by it in
// that family; the rung of what main knows then leaves out its networks in the other
// family, too, where it is a LAN or is never a default. An opening gives these networks
// back: sources of other links ask its tables behind main. What is there is what main has
// through the interface, so the answer is main's own, but for one thing: where a network
// of another interface of the group lies inside of a wider one, main leads to the inner
// one, and a table that knows the wider one alone would not. Those are nested.

const (
	// mostOpen bounds the openings of a family: each is a rule for every source.
	mostOpen = 64
	// mostNested bounds the networks that lie inside of those of openings.
	mostNested = 64
)

// An opening is a link in the group whose networks of a family others may reach.
type opening struct {
	index  int
	tables []TableID
	// around says that something is nested in a network behind it.
	around bool
}

// A nested network belongs to a link in the group, and lies inside of a network behind
// an opening, or is one that main prefers to reach by that link.
type nested struct {
	network netip.Prefix
	// index is the opening whose network it is, 0 if it is an uplink's.
	index  int
	tables []TableID
}

// openings are those of a family.
type openings struct {
	// open is sorted by interface index, nested has the longest networks first.
	open   []opening
	nested []nested
	// closed are links that have none although they should, because there would be too
	// many rules.
	closed map[int]struct{}
}

func (o *openings) equal(other *openings) bool {
	return slices.EqualFunc(o.open, other.open, func(a, b opening) bool {
		return a.index == b.index && a.around == b.around && slices.Equal(a.tables, b.tables)
	}) &&
		slices.EqualFunc(o.nested, other.nested, func(a, b nested) bool {
			return a.network == b.network && a.index == b.index && slices.Equal(a.tables, b.tables)
		}) && maps.Equal(o.closed, other.closed)
}

func (o *openings) empty() bool { return len(o.open) == 0 && len(o.closed) == 0 }

// grouped reports whether the link must be in a group.
func (plan *LinkPlan) grouped(group uint32) bool { return plan.marked && plan.Group == group }

// opens reports whether packets of other links may go to the link's networks of a family
// as main says, although the interface may be in the group.
func (plan *LinkPlan) opens(f Family) bool {
	return plan.has(f) && (plan.Roles.In(f) == Local || plan.Link.Choice != AlwaysUplink && neverDefault(plan.Link, f))
}

// tablesOf are the tables that the link has in a family, in the order of its networks.
func (plan *LinkPlan) tablesOf(f Family) []TableID {
	var out []TableID
	for _, k := range plan.Keys {
		if t, leased := plan.Link.Tables[k]; leased && k.Family == f && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// destinations calls a function for everything that main, or a table of the link, knows
// through the link and that is longer than a default in pieces, with the metric that main
// has for it. IPv6 link-local destinations are none: every link has them, and their packets
// name the device.
func (plan *LinkPlan) destinations(f Family, longest int, each func(to netip.Prefix, metric uint32)) {
	visit := func(to netip.Prefix, metric uint32) {
		if f == IPv4 || !to.Addr().IsLinkLocalUnicast() {
			each(to, metric)
		}
	}
	for _, k := range plan.Keys {
		if k.Family == f && !k.OfHosts() && k.Prefix.Bits() > longest {
			visit(k.Prefix, noDefault)
		}
	}
	for i := range plan.Link.Routes {
		r := &plan.Link.Routes[i]
		if r.Family == f && r.Type == RouteUnicast && r.Protocol != Multihomed && !r.Source.IsValid() && r.Destination.Bits() > longest {
			visit(r.Destination, r.Metric)
		}
	}
	for _, r := range knownRoutes(plan.Link) {
		if r.Family == f && r.Type == RouteUnicast && r.Destination.Bits() > longest {
			visit(r.Destination, noDefault)
		}
	}
	for k, path := range plan.paths.by {
		if to := k.prefix(); k.family() == f && to.Bits() > longest {
			visit(to, path.metric())
		}
	}
}

// metric is the best that main has.
func (p path) metric() uint32 {
	best := p.first.rest.Value().Metric
	for _, w := range p.others() {
		best = min(best, w.rest.Value().Metric)
	}
	return best
}

// openingsOf finds the openings of a family, and what is nested in them.
func (p *Planner) openingsOf(f Family) openings {
	var out openings
	group, longest := p.group(), int(p.policy.ContainerPrefixLength)
	open := map[int]*planned{}
	for _, index := range slices.Sorted(maps.Keys(p.opening[familyIndex(f)])) {
		plan := p.links[index]
		switch tables := plan.tablesOf(f); {
		case !plan.grouped(group) || len(tables) == 0:
		case len(out.open) == mostOpen:
			out.close(index)
		default:
			out.open = append(out.open, opening{index: index, tables: tables})
			open[index] = plan
		}
	}
	if len(out.open) == 0 {
		return out
	}
	behind := wide{at: map[netip.Prefix]map[int]uint32{}, lengths: map[int]struct{}{}}
	for _, o := range out.open {
		open[o.index].destinations(f, longest, func(to netip.Prefix, metric uint32) { behind.add(to, o.index, metric) })
	}
	p.wide[familyIndex(f)] = behind
	found := map[netip.Prefix]*inside{}
	for _, index := range p.indexes() {
		plan := p.links[index]
		if !plan.grouped(group) {
			continue
		}
		plan.destinations(f, longest, func(to netip.Prefix, metric uint32) {
			for bits, o := range behind.around(to, metric) {
				if o != index {
					note(found, to, index, bits, o)
				}
			}
		})
	}
	out.nest(found, open, f)
	return out
}

// wide are the destinations behind openings, with the metrics that main has for them.
type wide struct {
	at      map[netip.Prefix]map[int]uint32
	lengths map[int]struct{}
}

func (w *wide) add(to netip.Prefix, index int, metric uint32) {
	if w.at[to] == nil {
		w.at[to] = map[int]uint32{}
	}
	if old, is := w.at[to][index]; !is || metric < old {
		w.at[to][index] = metric
	}
	w.lengths[to.Bits()] = struct{}{}
}

// around yields the openings behind which a network lies in a wider one, or is itself but
// main prefers another way to it, with the length of that.
func (w *wide) around(to netip.Prefix, metric uint32) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for bits := range w.lengths {
			if bits > to.Bits() {
				continue
			}
			for index, theirs := range w.at[netip.PrefixFrom(to.Addr(), bits).Masked()] {
				if (bits < to.Bits() || metric != noDefault && metric <= theirs) && !yield(bits, index) {
					return
				}
			}
		}
	}
}

func (w *wide) holds(to netip.Prefix) bool {
	for range w.around(to, 0) {
		return true
	}
	return false
}

// An inside is a network that lies in some of those behind openings.
type inside struct {
	owners, around map[int]struct{}
	// wider is the length of the narrowest network around it.
	wider int
}

func note(found map[netip.Prefix]*inside, to netip.Prefix, owner, bits, opening int) {
	in := found[to]
	if in == nil {
		in = &inside{owners: map[int]struct{}{}, around: map[int]struct{}{}}
		found[to] = in
	}
	in.owners[owner], in.around[opening] = struct{}{}, struct{}{}
	in.wider = max(in.wider, bits)
}

// nest keeps the networks that need rules of their own. One that lies in another nested
// one of the same owner, with nothing of an opening in between, goes where that one goes.
// Links around which there would be too many are closed.
func (o *openings) nest(found map[netip.Prefix]*inside, open map[int]*planned, f Family) {
	order := slices.SortedFunc(maps.Keys(found), func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Compare(b))
	})
	kept := map[netip.Prefix]nested{}
	counts := map[int]int{}
	for _, network := range order {
		in := found[network]
		n := nested{network: network}
		if len(in.owners) == 1 {
			for index := range in.owners {
				if plan, is := open[index]; is {
					n.index, n.tables = index, plan.tablesOf(f)
				}
			}
		}
		if covered(kept, n, in.wider) {
			continue
		}
		kept[network] = n
		for index := range in.around {
			counts[index]++
		}
	}
	for index, n := range counts {
		if n > mostNested {
			o.close(index)
		}
	}
	o.open = slices.DeleteFunc(o.open, func(x opening) bool { return contains(o.closed, x.index) })
	for network, n := range kept {
		needed := false
		for index := range found[network].around {
			i := slices.IndexFunc(o.open, func(x opening) bool { return x.index == index })
			if i >= 0 {
				o.open[i].around, needed = true, true
			}
		}
		if needed {
			if contains(o.closed, n.index) {
				n.index, n.tables = 0, nil
			}
			o.nested = append(o.nested, n)
		}
	}
	slices.SortFunc(o.nested, func(a, b nested) int {
		return cmp.Or(cmp.Compare(b.network.Bits(), a.network.Bits()), a.network.Compare(b.network))
	})
}

func covered(kept map[netip.Prefix]nested, n nested, wider int) bool {
	for bits := n.network.Bits() - 1; bits >= wider; bits-- {
		if around, is := kept[netip.PrefixFrom(n.network.Addr(), bits).Masked()]; is {
			return around.index == n.index
		}
	}
	return false
}

func (o *openings) close(index int) {
	if o.closed == nil {
		o.closed = map[int]struct{}{}
	}
	o.closed[index] = struct{}{}
}

// reopen looks at the openings anew, and plans links again where they changed.
func (p *Planner) reopen() {
	for i, f := range Families() {
		now := openings{}
		if len(p.opening[i]) > 0 {
			now = p.openingsOf(f)
		}
		if now.equal(&p.around[i].openings) {
			continue
		}
		p.around[i].openings = now
		p.answer(i)
		p.bind(i)
		for _, index := range p.indexes() {
			if p.links[index].has(f) {
				p.replanAsIs(index)
			}
		}
	}
}

// listOpening keeps the links that are openings if the group that they are in is that of
// uplinks; a nil plan means that there is no link.
func (p *Planner) listOpening(index int, now *planned) {
	for i, f := range Families() {
		if now != nil && now.marked && now.opens(f) {
			p.opening[i][index] = struct{}{}
		} else {
			delete(p.opening[i], index)
		}
	}
}

// anyOpening reports whether there are such links.
func (p *Planner) anyOpening() bool { return len(p.opening[0])+len(p.opening[1]) > 0 }

// reopenIf looks at the openings anew where a link is not what it was for them.
func (p *Planner) reopenIf(old, now *planned) {
	are := p.anyOpening() || !p.around[0].empty() || !p.around[1].empty()
	if are && !sameOpening(old, now) {
		p.reopen()
	}
}

// repathed looks at the openings anew where paths of a link, which came, went or got
// another metric, are behind an opening or lie in a network behind one.
func (p *Planner) repathed(index int, moved []netip.Prefix, hadNone bool) {
	if !p.anyOpening() || len(moved) == 0 {
		return
	}
	plan := p.links[index]
	if plan.grouped(p.group()) && slices.ContainsFunc(moved, func(to netip.Prefix) bool {
		i := familyIndex(FamilyOf(to.Addr()))
		return contains(p.opening[i], index) || p.wide[i].holds(to)
	}) {
		p.reopen()
	}
	if none := len(plan.paths.by) == 0; none != hadNone {
		p.replanAsIs(index)
	}
}

// sameOpening reports whether two plans of a link mean the same for openings.
func sameOpening(a, b *planned) bool {
	if a == nil || b == nil {
		return false
	}
	return a.Roles == b.Roles && a.opens(IPv4) == b.opens(IPv4) && a.opens(IPv6) == b.opens(IPv6) && a.marked == b.marked && a.Group == b.Group &&
		slices.Equal(a.Keys, b.Keys) && maps.Equal(a.Link.Tables, b.Link.Tables) && slices.Equal(a.Link.Routes, b.Link.Routes) &&
		// What the owner knows counts only while the link has the address that it is for.
		slices.Equal(knownRoutes(a.Link), knownRoutes(b.Link)) && a.paths == b.paths
}

// opened adds the rungs of openings for a source. In front of them are those of what is
// nested: packets for it go where main leads, unless an opening has something narrower.
//
// Nested networks have a priority of their own. The kernel takes a rule without a
// destination for one with any, and a deletion that names no suppressor for one with any
// (rule_exists, rule_find and fib4_rule_compare). Behind the ladder, where all rungs share
// a priority, marks that match everything tell them apart (openMark). Where two links have
// one address, what they say of a table must be the same rule.
func (m *rules) opened(add func(p Priority, place int, r Rule)) {
	if !m.needsOpenings() {
		return
	}
	own, place := m.plan.Link.Index, len(m.around.known())
	lookup := func(p Priority, to netip.Prefix, t TableID, suppress Optional) {
		halves := []netip.Prefix{to}
		if contains(m.around.namedTo, to) && !to.IsSingleIP() {
			// Whoever deletes his rule by its destination must hit his own.
			low, high := cut(to)
			halves = []netip.Prefix{low, high}
		}
		for _, half := range halves {
			add(p, place, Rule{To: half, Action: ActionLookup, Table: t, SuppressPrefixLength: suppress})
			place++
		}
	}
	self := slices.ContainsFunc(m.around.open, func(o opening) bool { return o.index == own })
	for _, n := range m.around.nested {
		for _, o := range m.around.open {
			for _, t := range o.tables {
				if o.index != n.index && o.around {
					lookup(PriorityNested, n.network, t, Some(uint32(n.network.Bits()))) //nolint:gosec // 8 to 128
				}
			}
		}
		switch {
		case n.index != 0:
			for _, t := range n.tables {
				lookup(PriorityNested, n.network, t, Optional{})
			}
		case m.plan.Roles.In(m.key.Family) == Uplink:
			lookup(PriorityNested, n.network, m.table, Optional{})
		default:
			// The table of a local link cannot know the network of an uplink, but for
			// that of an opening, around it: where main leads, an opening must not take
			// it.
			if self {
				lookup(PriorityNested, n.network, m.table, Optional{})
			}
			lookup(PriorityNested, n.network, TableMain, Optional{})
		}
	}
	for _, o := range m.around.open {
		for _, t := range o.tables {
			if o.index != own {
				lookup(PriorityOpening, netip.Prefix{}, t, Some(m.policy.ContainerPrefixLength))
			}
		}
	}
}

// needsOpenings reports whether packets of the table may go another way than by main
// before they come to main: the table of a local link may know nothing but its own
// network.
func (m *rules) needsOpenings() bool {
	return len(m.around.open) > 0 && (m.plan.Roles.In(m.key.Family) == Uplink || m.knowsMore)
}

// closedProblem says what it costs that a link in the group has no opening.
func (plan *LinkPlan) closedProblem(f Family, around *surrounding) {
	if !contains(around.closed, plan.Link.Index) {
		return
	}
	plan.problem(Problem{
		Code: TooManyOpenings, Severity: Warning, Object: plan.Link.Name,
		Text: fmt.Sprintf("%s is an uplink in one family and a local link for %s, and the host has too many such links, or networks inside of theirs, to tell them apart: packets bound to other links do not reach the %s networks behind %s",
			plan.Link.Name, f.Name(), f.Name(), plan.Link.Name),
		Fix: fmt.Sprintf("set `role = \"local\"` or `role = \"uplink\"` in a [[link]] for %s", plan.Link.Name),
	})
}
