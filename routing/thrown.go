package routing

import (
	"fmt"
	"net/netip"
	"slices"
)

// A throw route of main ends the lookup there: the next rule is asked, and where none has an
// answer, the packet goes nowhere. So whoever keeps a network off his providers writes `ip
// route add throw 198.18.0.0/15`. Our tables are asked behind main (rung "last resort", table
// F), and instead of it where the kernel looks up an IPv6 packet once more with a source of a
// link (ip6_dst_lookup_tail in net/ipv6/ip6_output.c). So they throw what main throws, and
// packets that are bound to a link are refused as main would refuse them.
//
// A default that is thrown says that main has no default. IPv4 has no second lookup: its
// tables keep their defaults, for what is bound to a link, and rung "last resort" goes.

// thrownMetric is the metric of what our tables throw. It comes before the copies of main's
// routes: SetThrown is told of what main throws in spite of other routes.
const thrownMetric = FirstMetric - 1

// mostThrown bounds what tables throw and what they except from it, for each of them has it all.
const mostThrown = 1024

// loopbackIndex is that of the loopback interface (LOOPBACK_IFINDEX of net/flow.h), which
// IPv6 shows as the device of routes that lead nowhere (ip6_route_info_create in
// net/ipv6/route.c).
const loopbackIndex = 1

// SetThrown takes the destinations that main throws in a family, sorted: those for which no
// other route of main goes before the throw route.
func (p *Planner) SetThrown(f Family, to []netip.Prefix) {
	i := familyIndex(f)
	if slices.Equal(p.around[i].thrown, to) {
		return
	}
	p.around[i].thrown = slices.Clone(to)
	throws := throwable(f, to)
	p.around[i].throws = &throws
	p.around[i].excepted = p.exceptionsOf(i)
	p.rethrow(i)
}

// throwsDefault reports whether main has no default, because it throws what others would be
// for.
func (s *surrounding) throwsDefault() bool { return len(s.thrown) > 0 && s.thrown[0].Bits() == 0 }

// throwsTooMuch reports whether tables cannot throw what main throws.
func (s *surrounding) throwsTooMuch() bool {
	return s.excepted.tooMany || len(s.thrown)+len(s.excepted.to) > mostThrown
}

// throwsOf returns what a table of the link throws: all that main throws. Where the table has
// nothing around it, the next rule is asked in any case, and a path may come.
func (plan *LinkPlan) throwsOf(k Key, t TableID, around *surrounding) []PlannedRoute {
	if around.throwsTooMuch() {
		return nil
	}
	out := make([]PlannedRoute, 0, len(around.thrown))
	reason := Reason{Decision: ThrownByMain, Link: plan.Link.Name, Prefix: k.Network()}
	for _, to := range around.thrown {
		if to.Bits() == 0 && (k.Family == IPv4 || plan.Link.LastResort) {
			continue
		}
		out = append(out, PlannedRoute{Route: throwRoute(k.Family, t, to), Reason: reason})
	}
	return out
}

// throwsOfFailover returns what table F throws while it leads anywhere.
func (p *Planner) throwsOfFailover(i int, table TableID) []PlannedRoute {
	around := &p.around[i]
	if around.throwsTooMuch() {
		return nil
	}
	var out []PlannedRoute
	for _, to := range around.thrown {
		if to.Bits() > 0 {
			out = append(out, PlannedRoute{Route: throwRoute(Families()[i], table, to), Reason: Reason{Decision: ThrownByMain}})
		}
	}
	return out
}

func throwRoute(f Family, t TableID, to netip.Prefix) Route {
	r := Route{Family: f, Table: t, Destination: to, Type: RouteThrow, Metric: thrownMetric, Protocol: Multihomed}
	if f == IPv6 {
		r.Device = loopbackIndex
	}
	return r
}

// except says that a table throws destinations: what lies inside of them does not go as the
// default says.
func (r *repetition) except(throws []PlannedRoute, around *prefixSet) {
	switch {
	case !r.enabled || len(throws) == 0:
	case throws[0].Route.Destination.Bits() == 0:
		*r = repetition{}
	default:
		r.thrown = around
	}
}

// thrownProblem says that main throws more than tables can.
func (plan *LinkPlan) thrownProblem(f Family, around *surrounding) {
	if !around.throwsTooMuch() || !plan.has(f) {
		return
	}
	name, inside := plan.Link.Name, ""
	switch {
	case around.excepted.tooMany:
		inside = fmt.Sprintf(" and more than %d routes by uplinks to networks inside of these", mostInside)
	case len(around.excepted.to) > 0:
		inside = fmt.Sprintf(" and routes by uplinks to %d networks inside of these", len(around.excepted.to))
	}
	// IPv6 asks once more with an address of a link: see above.
	who := "packets bound to " + name
	if f == IPv6 {
		who += ", and unbound ones,"
	}
	plan.problem(Problem{
		Code: ManyThrown, Severity: Warning, Object: "throw routes of table main",
		Text: fmt.Sprintf("main has %d throw routes of %s%s, and a table of %s can have %d: %s leave where main would throw them, and failover does not move unbound %s traffic",
			len(around.thrown), f.Name(), inside, name, mostThrown, who, f.Name()),
		Fix: "replace them by fewer, wider ones, or by unreachable routes, which main decides by itself",
	})
}
