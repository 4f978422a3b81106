package lookup

// A Doubt is why the kernel may do something else than a verdict says, by what cannot be simulated.
type Doubt uint8

// Doubts. Those that concern every packet have none: neighbours, path MTU, netfilter, XFRM, and BPF.
const (
	// OfLeg: a hash of the packet chooses among several legs, or says whether a rule suppresses
	// the route.
	OfLeg Doubt = iota
	// OfRouter: the kernel chooses among equal routes by what it knows of their routers
	// ([Verdict.Alternatives]).
	OfRouter
	// OfSource: an IPv6 socket whose lookup without a source fails gets a source all the same
	// (RFC 6724), and asks again with it (ip6_dst_lookup_tail in net/ipv6/ip6_output.c).
	OfSource
	// OfGroup: for multicast, the kernel also asks who is a member, and chooses a source first.
	OfGroup
	// OfRule: a rule with attributes that are unknown here came before the answer, or one that finds
	// a source (FIB_RULE_FIND_SADDR).
	OfRule
	// OfObject: IPv6 routes by one nexthop object share its copies of routes ([Verdict.Nexthop]).
	OfObject
	// OfTable: only a part of a table is known.
	OfTable
)

func (d Doubt) String() string {
	return [...]string{
		"a hash of the packet chooses the leg", "the reachability of the routers chooses among equal routes",
		"the kernel chooses a source and asks again", "the kernel asks for members of the group",
		"a rule cannot be simulated", "the route may be taken for another one by the same nexthop object", "a table is known in part",
	}[d]
}

// Doubts lists why the kernel may do something else with f than v says.
func (h *Host) Doubts(f Flow, v Verdict) []Doubt {
	var out []Doubt
	add := func(d Doubt, is bool) {
		if is {
			out = append(out, d)
		}
	}
	isIPv6 := !f.To.Unmap().Is4()
	add(OfLeg, len(v.Legs) > 1 || v.Otherwise != nil)
	add(OfRouter, len(v.Alternatives) > 0)
	add(OfSource, isIPv6 && !f.From.IsValid() && f.IIF == "" && (v.Outcome == NoRoute || v.Outcome == Rejected))
	add(OfGroup, f.To.IsMulticast() && !v.Direct)
	add(OfRule, v.Uncertain || isIPv6 && !f.From.IsValid() && v.Rule.FindSource)
	add(OfObject, isIPv6 && v.Nexthop != 0)
	add(OfTable, v.Lacking)
	return out
}

// Again returns the second question of connect(2), if there is one: an IPv4 socket that is bound to no
// address asks once more with the source that the first answer chose (ip_route_connect in
// include/net/route.h). An IPv6 socket and sendto(2) stay with the first answer.
func (f Flow) Again(first Answer) (Flow, bool) {
	if !f.To.Unmap().Is4() || f.IIF != "" || f.From.IsValid() && !f.From.IsUnspecified() || first.Unsent != None || !first.Sent.PreferredSource.IsValid() {
		return Flow{}, false
	}
	f.From = first.Sent.PreferredSource
	return f, true
}
