package routing

import "slices"

// RoleOf decides whether a link is an uplink in a family, and says why: it is one if
// main has a default route of the family through it, or a gateway is known. A route
// with a next hop does not make one: a LAN with a static route, with a Thread border
// router or with routes of BGP is a local link, and what it has of others' addresses is
// main's business. The default of one family says nothing of addresses in the other that
// somebody set: a LAN may have an IPv6 router, or somebody who sends advertisements by
// mistake, while this host is the way out for its IPv4; an IPv4 uplink may have a network
// of IPv6 that a tunnel leads to. Global addresses that the network itself gave are those of
// an uplink in either family: other providers drop what carries them.
//
// Once an uplink by a default, a link stays one until its addresses, its profile or
// the interface go. A router whose lifetime ended may come again, and the rule that
// stops stray packets must not go exactly when it is needed.
//
// For the same reason a link that is being brought up is an uplink until it is
// known to be none: its address comes before its gateway.
func RoleOf(l Link, f Family) (Role, string) {
	role, why := knownRole(l, f)
	if other := otherFamily(f); role == Local && l.Choice == ByFacts && l.Intents[f].LeaveAlone == "" && givenByProvider(l, f) {
		if its, _ := knownRole(l, other); its == Uplink {
			return Uplink, "it is an uplink for " + other.Name() + ", and its network gave it an " + f.Name() + " address"
		}
	}
	if role == Local && l.Pending && l.Choice == ByFacts && l.Intents[f].LeaveAlone == "" && !l.KnownLocal.In(f) {
		return Uplink, "it is being brought up, and may get a default route"
	}
	return role, why
}

func otherFamily(f Family) Family {
	if f == IPv4 {
		return IPv6
	}
	return IPv4
}

// givenByProvider reports whether the network gave a link an address of a family that is
// not for use inside a site (RFC 1918, RFC 4193). One of RFC 6598 is a provider's, unless
// somebody set it.
func givenByProvider(l Link, f Family) bool {
	return l.Automatic(f) && slices.ContainsFunc(l.Addresses, func(a Address) bool {
		own := a.Prefix.Addr()
		return FamilyOf(own) == f && TakesPart(l, a) && own.IsGlobalUnicast() && !own.IsPrivate()
	})
}

// knownRole is the role by what is known, whatever may come.
func knownRole(l Link, f Family) (Role, string) {
	switch l.Choice {
	case AlwaysUplink:
		return Uplink, "the configuration says so"
	case AlwaysLocal:
		return Local, "the configuration says so"
	case ByFacts:
	}
	if r, has := mainDefault(l, f); has {
		return Uplink, "main has " + r.way() + " through it"
	}
	if in := l.Intents[f]; in.LeaveAlone == "" && in.Gateway.IsValid() {
		return Uplink, "its gateway is known: " + in.Gateway.String()
	}
	for _, r := range knownRoutes(l) {
		if r.Family == f && r.IsDefault() {
			return Uplink, "its owner knows " + r.way()
		}
	}
	if l.WasUplink.In(f) {
		return Uplink, formerUplink(l, f)
	}
	return Local, "main has no default route through it, and no gateway is known"
}

// formerUplink says why a link without a default is an uplink, and what ends that.
func formerUplink(l Link, f Family) string {
	until := ""
	if t := l.DefaultUntil.In(f); t != "" {
		until = " until " + t
	}
	return "main had a default route through it" + until + " and may get one again: it stays an uplink until " +
		"`nmcli connection up` starts its profile anew, the profile asks for no default route any more, or `role = \"local\"` in its [[link]] says otherwise"
}

// HasMainDefault reports whether main has a default route of a family through the
// link, and the family is not left alone.
func HasMainDefault(l Link, f Family) bool {
	_, has := mainDefault(l, f)
	return has
}

func mainDefault(l Link, f Family) (Route, bool) {
	for _, r := range l.Routes {
		if r.Family == f && isDefaultOf(l, r) && r.Type == RouteUnicast && r.Protocol != Multihomed && l.Intents[f].LeaveAlone == "" {
			return r, true
		}
	}
	return Route{}, false
}

// isDefaultOf reports whether a route is for every destination of all packets, or of
// those from an address of the link.
func isDefaultOf(l Link, r Route) bool {
	return r.Destination.Bits() == 0 && (!r.Source.IsValid() || slices.ContainsFunc(l.Addresses, func(a Address) bool {
		return TakesPart(l, a) && r.Source.Contains(a.Prefix.Addr())
	}))
}

// way names a default route for people.
func (r Route) way() string {
	if r.Gateway.IsValid() {
		return "a default route via " + r.Gateway.String()
	}
	return "a default route"
}

// decideRoles decides what the link is in both families.
func (plan *LinkPlan) decideRoles() {
	for i, f := range Families() {
		plan.Roles[i], plan.Whys[i] = RoleOf(plan.Link, f)
	}
}

// Shown are the families whose roles say something of the link: those in which it has
// an address, both if it has none yet.
func (plan *LinkPlan) Shown() []Family {
	var out []Family
	for _, f := range Families() {
		if plan.has(f) {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return []Family{IPv4, IPv6}
	}
	return out
}

// has reports whether the link has a network of a family.
func (plan *LinkPlan) has(f Family) bool {
	return slices.ContainsFunc(plan.Keys, func(k Key) bool { return k.Family == f })
}

// Role is what the link is to the host as a whole: an uplink if it is one in a family
// that is shown.
func (plan *LinkPlan) Role() Role {
	role, _ := plan.whole()
	return role
}

// Why says in words why the link has its role.
func (plan *LinkPlan) Why() string {
	_, why := plan.whole()
	return why
}

func (plan *LinkPlan) whole() (Role, string) {
	shown := plan.Shown()
	for _, f := range shown {
		if plan.Roles.In(f) == Uplink {
			return Uplink, plan.Whys.In(f)
		}
	}
	return Local, plan.Whys.In(shown[0])
}

// Mixed reports whether the link is an uplink in one family and a local link in the
// other.
func (plan *LinkPlan) Mixed() bool {
	return plan.has(IPv4) && plan.has(IPv6) && plan.Roles[0] != plan.Roles[1]
}

// neverDefault reports whether the owner wants no default of a family in main, and
// there is none.
func neverDefault(l Link, f Family) bool {
	return l.Intents[f].NeverDefault && !HasMainDefault(l, f)
}
