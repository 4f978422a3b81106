package routing

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Main throws nothing of what it has a longer route for. Where that route leads through an
// interface that is no uplink, rung "known" answers bound packets, too. Networks of other
// uplinks are not for them: they leave by their own link, as without the throw route. So what
// main has through uplinks inside of what it throws is excepted: a table has the routes for
// it that it would use if it threw nothing, almost always its default.

// exceptedMetric is added to the metrics of such routes: whatever main has to the same
// destination through the link goes before.
const exceptedMetric = 1 << 30

// mostInside bounds the destinations of main that are looked at.
const mostInside = 4 * mostThrown

// A prefixSet finds the longest of some destinations around another one.
type prefixSet struct {
	at map[netip.Prefix]struct{}
	// lengths are those of the destinations, the longest first.
	lengths []int
}

func (s *prefixSet) add(to netip.Prefix) {
	if s.at == nil {
		s.at = map[netip.Prefix]struct{}{}
	}
	s.at[to] = struct{}{}
	at, found := slices.BinarySearchFunc(s.lengths, to.Bits(), func(have, want int) int { return cmp.Compare(want, have) })
	if !found {
		s.lengths = slices.Insert(s.lengths, at, to.Bits())
	}
}

// longest returns the length of the longest destination around one, or -1.
func (s *prefixSet) longest(to netip.Prefix) int {
	if s == nil {
		return -1
	}
	for _, bits := range s.lengths {
		if bits <= to.Bits() && contains(s.at, netip.PrefixFrom(to.Addr(), bits).Masked()) {
			return bits
		}
	}
	return -1
}

func (s *prefixSet) equal(o *prefixSet) bool {
	return s == o || s != nil && o != nil && maps.Equal(s.at, o.at)
}

// exceptions are what main has through uplinks inside of what it throws.
type exceptions struct {
	// to are the destinations, sorted. One that lies in another one, with nothing that is
	// thrown in between, goes where that one goes, and is none of them.
	to []netip.Prefix
	// tooMany says that there are more than anybody looked at.
	tooMany bool
}

func (e *exceptions) equal(o *exceptions) bool {
	return e.tooMany == o.tooMany && slices.Equal(e.to, o.to)
}

// throwable returns those of some destinations that tables throw: those of IPv4 do not throw the
// default.
func throwable(f Family, thrown []netip.Prefix) prefixSet {
	var out prefixSet
	for _, to := range thrown[:min(len(thrown), mostThrown)] {
		if to.Bits() > 0 || f == IPv6 {
			out.add(to)
		}
	}
	return out
}

// near reports whether a destination lies inside of one that main throws, or around one.
func (s *surrounding) near(to netip.Prefix) bool {
	if s.throws.longest(to) >= 0 {
		return true
	}
	at, _ := slices.BinarySearchFunc(s.thrown, to, netip.Prefix.Compare)
	return at < len(s.thrown) && to.Contains(s.thrown[at].Addr())
}

// exceptionsOf finds what is excepted in a family.
func (p *Planner) exceptionsOf(i int) exceptions {
	f, around := Families()[i], &p.around[i]
	if len(around.thrown) == 0 || len(around.thrown) > mostThrown {
		return exceptions{}
	}
	group := p.group()
	found := map[netip.Prefix]struct{}{}
	for _, plan := range p.links {
		isUplink := plan.grouped(group)
		for to := range plan.destinationsInMain(f) {
			// Rung "known" takes no answer that is as short as a part of a default.
			if isUplink || to.Bits() <= int(p.policy.ContainerPrefixLength) {
				if longest := around.throws.longest(to); longest >= 0 && longest < to.Bits() {
					found[to] = struct{}{}
				}
			}
			if len(found) > mostInside {
				return exceptions{tooMany: true}
			}
		}
	}
	var out exceptions
	var kept prefixSet
	for _, to := range slices.SortedFunc(maps.Keys(found), func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) }) {
		if around.throws.longest(to) > kept.longest(to) {
			kept.add(to)
			out.to = append(out.to, to)
		}
	}
	slices.SortFunc(out.to, netip.Prefix.Compare)
	return out
}

// destinationsInMain yields what main has through the link for packets of any source, but
// for defaults and networks that every link has.
func (plan *LinkPlan) destinationsInMain(f Family) func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for i := range plan.Link.Routes {
			r := &plan.Link.Routes[i]
			if r.Family == f && r.Type == RouteUnicast && r.Protocol != Multihomed && DestinationOf(*r).plain() &&
				!r.Destination.Addr().IsLinkLocalUnicast() && !yield(r.Destination) {
				return
			}
		}
		for k := range plan.paths.by {
			if k.family() == f && !yield(k.prefix()) {
				return
			}
		}
	}
}

// except looks at what is excepted anew, and plans links again where it changed.
func (p *Planner) except(i int) {
	now := p.exceptionsOf(i)
	if now.equal(&p.around[i].excepted) {
		return
	}
	p.around[i].excepted = now
	p.rethrow(i)
}

// rethrow plans again what depends on what main throws.
func (p *Planner) rethrow(i int) {
	f := Families()[i]
	for _, index := range p.indexes() {
		if p.links[index].has(f) {
			p.replanAsIs(index)
		}
	}
	p.chart(i)
}

// exceptIf looks at what is excepted anew where a link is not what it was for that; nil is a
// link that is not there.
func (p *Planner) exceptIf(old, now *planned) {
	if len(p.around[0].thrown)+len(p.around[1].thrown) == 0 {
		return
	}
	if old != nil && now != nil && old.marked == now.marked && old.Group == now.Group && old.paths == now.paths && slices.Equal(old.Link.Routes, now.Link.Routes) {
		return
	}
	for i := range p.around {
		p.except(i)
	}
}

// exceptPaths does so where paths of a link changed.
func (p *Planner) exceptPaths(index int, changed []netip.Prefix) {
	for i, f := range Families() {
		near := func(to netip.Prefix) bool { return FamilyOf(to.Addr()) == f && p.around[i].near(to) }
		if len(p.around[i].thrown) == 0 || len(p.around[i].thrown) > mostThrown || !slices.ContainsFunc(changed, near) {
			continue
		}
		p.except(i)
		if len(p.around[i].excepted.to) > 0 {
			p.replanAsIs(index) // Its paths say what its tables have for what is excepted.
		}
	}
}

// exceptionsIn returns what a table has for what is excepted. Some of its routes are those of
// its structure.
func (plan *LinkPlan) exceptionsIn(c *copier, routes, throws []PlannedRoute, around *surrounding) []PlannedRoute {
	if len(throws) == 0 || len(around.excepted.to) == 0 || plan.marked && plan.opens(c.key.Family) {
		// Packets of other links may ask the table of an opening: see [LinkPlan.opens].
		return nil
	}
	var thrown, own prefixSet
	for _, r := range throws {
		thrown.add(r.Route.Destination)
	}
	for _, r := range routes {
		if !r.Route.Source.IsValid() && r.Route.TOS == 0 {
			own.add(r.Route.Destination)
		}
	}
	var out []PlannedRoute
	for _, to := range around.excepted.to {
		longest := thrown.longest(to)
		if longest < 0 || own.longest(to) > longest || c.pathAround(plan.paths, to, to.Bits(), longest) != nil {
			continue
		}
		ways := c.pathAround(plan.paths, to, longest, own.longest(to))
		if ways == nil {
			ways = longestAround(routes, to)
		}
		for _, r := range ways {
			r.Route.Destination = to
			r.Route.Metric += exceptedMetric
			r.Reason.Decision = NotThrown
			out = append(out, r)
		}
	}
	return out
}

// longestAround returns the routes of a table to the longest destination around one.
func longestAround(routes []PlannedRoute, to netip.Prefix) []PlannedRoute {
	var out []PlannedRoute
	for _, r := range routes {
		if !around(r.Route.Destination, to) {
			continue
		}
		if len(out) > 0 && r.Route.Destination.Bits() > out[0].Route.Destination.Bits() {
			out = nil
		}
		if len(out) == 0 || r.Route.Destination == out[0].Route.Destination {
			out = append(out, r)
		}
	}
	return out
}

// pathAround returns what a table would have of the longest path around a destination that is
// no longer than most and longer than least, nil if there is none.
func (c *copier) pathAround(ps *paths, to netip.Prefix, most, least int) []PlannedRoute {
	if len(ps.by) == 0 {
		return nil
	}
	for bits := most; bits > max(least, 0); bits-- {
		k := pathKeyOf(netip.PrefixFrom(to.Addr(), bits).Masked())
		p, has := ps.by[k]
		if !has || len(c.hidden.hidden) > 0 && c.hidden.hides(k.prefix()) {
			continue
		}
		ways, why := c.chosen(k, p)
		var out []PlannedRoute
		for _, r := range ranked(ways) {
			out = append(out, c.planned(r, why))
		}
		return out
	}
	return nil
}
