package routing

import (
	"fmt"
	"iter"
	"net/netip"
)

// IPv6 looks a route up twice for a packet that is bound to nothing. Where the first
// lookup fails, the kernel chooses a source all the same and looks up once more with it:
// "pretend it never existed and let the SA enabled version take over"
// (ip6_dst_lookup_tail in net/ipv6/ip6_output.c). The second packet cannot be told from one
// that is bound to the address. So where somebody refuses what is bound to nothing, a rung
// of the source would let it out. IPv4 does not look up again after a refusal
// (ip_route_connect in include/net/route.h).

// An Unanswered is a destination outside to which the kernel would send nothing that is
// bound to nothing, but for rung "last resort".
type Unanswered struct {
	To netip.Addr
	// UID is the user that the kernel was asked for: one whom no rule names.
	UID uint32
	// Resort says that rung "last resort" has an answer.
	Resort bool
	// Routes are those that refuse it in tables which bound traffic does not ask.
	Routes []Route
	// Main is the route that main has for the destination through a link, zero if there is
	// none.
	Main Route
}

// A Refusal is somebody's decision that this host sends nothing outside that is bound to
// nothing. The zero Refusal means that there is none.
type Refusal struct {
	// By says in words what refuses, and Object is the rule or the route.
	By, Object string
	// Fix is a command that ends it.
	Fix string
	// Devices says that it is also for sockets that are bound to a device. IPv6 skips a
	// route that refuses for these, because its device is another (rt6_score_route in
	// net/ipv6/route.c).
	Devices bool
}

// MayRefuse reports whether rules of others in a family may refuse what is bound to
// nothing although bound traffic would find a way: only then is it worth asking.
func MayRefuse(foreign iter.Seq[Rule]) bool {
	known, mainRead := false, false
	for r := range foreign {
		known, mainRead = true, mainRead || r.readsMain()
		switch {
		case r.Selects():
		case r.rejects(), r.Action == ActionGoto, r.Hides():
			return true
		}
	}
	return known && !mainRead // A host without IPv6 has no rules.
}

// rejects reports whether a rule says no by itself.
func (r Rule) rejects() bool {
	return r.Action == ActionBlackhole || r.Action == ActionUnreachable || r.Action == ActionProhibit
}

// Refuses returns the word of iproute2 for a route that says no, empty if it does not.
func (r Route) Refuses() string {
	switch r.Type {
	case RouteBlackhole:
		return "blackhole"
	case RouteUnreachable:
		return "unreachable"
	case RouteProhibit:
		return "prohibit"
	default:
		return ""
	}
}

// SetRefused takes the decision of somebody that refuses what is bound to nothing in a
// family. All sources of the family have no rungs while it stands: what is bound to them is
// refused, too, as without us.
func (p *Planner) SetRefused(f Family, r Refusal) {
	i := familyIndex(f)
	if p.around[i].refused == r {
		return
	}
	p.around[i].refused = r
	p.answer(i)
	for _, index := range p.indexes() {
		if p.links[index].has(f) {
			p.replanAsIs(index)
		}
	}
}

// refusedProblem says that the sources of a family step aside, and for what.
func (plan *LinkPlan) refusedProblem(f Family, r Refusal) {
	plan.problem(Problem{
		Code: UnboundRefused, Severity: Notice, Object: r.Object,
		Text: fmt.Sprintf("%s refuses %s packets that are bound to nothing; packets that are bound to an address of %s cannot be told from these, so they are refused, too",
			r.By, f.Name(), plan.Link.Name),
		Fix: fmt.Sprintf("if this host is to use %s: %s", f.Name(), r.Fix),
	})
}

// DevicesAside reports whether sockets of a family that are bound to the device of the
// link follow the rules of others for the time being.
func (plan *LinkPlan) DevicesAside(f Family) bool { return plan.devicesAside.In(f) }
