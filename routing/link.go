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
}

// A PlannedRoute is a route that must exist, and why.
type PlannedRoute struct {
	Route  Route
	Reason Reason
}

// A LinkPlan is what one link needs from the kernel.
type LinkPlan struct {
	Link   Link
	Role   Role
	Keys   []Key
	Rules  []PlannedRule
	Routes []PlannedRoute
	// Group is the interface group the link must be in.
	Group    uint32
	Problems []Problem

	marked bool
}

// neighbourhood is what a link's plan needs to know of the other links.
type neighbourhood struct {
	// crowded says that a network of another link shares addresses with this
	// one: the prefix alone does not tell whose address a packet carries.
	crowded map[netip.Prefix]bool
	// overlap says that another link's network holds this one and that main may
	// pick that link for it at the rung of containers.
	overlap map[netip.Prefix]bool
}

// RoleOf decides whether a link is an uplink: something has, or is known to
// have, a next hop through it.
//
// An uplink does not stop being one in the moments without a route: while the
// link is down, while it has no address, or while a router's advertisement or a
// DHCP lease that gave the way has ended and may come again. The kernel
// remembers it for us in the interface group. Otherwise the rule that stops
// stray packets would go exactly when it is needed.
//
// For the same reason a link that is being brought up is an uplink until it is
// known to be none: its address comes before its gateway, and its network is in
// main before anybody could have marked it.
func RoleOf(p Policy, l Link) Role {
	if l.Pending && !leftAlone(l) {
		return Uplink
	}
	return knownRole(p, l)
}

// knownRole is the role by what is known, whatever may come.
func knownRole(p Policy, l Link) Role {
	for _, f := range Families() {
		if in := l.Intents[f]; in.LeaveAlone == "" && in.Gateway.IsValid() {
			return Uplink
		}
	}
	isWay := func(r Route) bool { return r.Gateway.IsValid() || r.IsDefault() }
	if slices.ContainsFunc(l.Routes, isWay) || slices.ContainsFunc(knownRoutes(l), isWay) {
		return Uplink
	}
	if l.Group == p.UplinkGroup && (!l.Up || awaitsRoutes(l)) {
		return Uplink
	}
	return Local
}

// awaitsRoutes reports whether a link without a way may get one by itself: its
// addresses come from somebody who gives routes too, or have yet to come.
func awaitsRoutes(l Link) bool {
	takesPart := false
	for _, a := range l.Addresses {
		if _, ok := keyOf(l, a); ok {
			// An address by hand beside those that a router gives waits for the
			// same routes.
			if a.Dynamic || l.Intents[FamilyOf(a.Prefix.Addr())].Automatic {
				return true
			}
			takesPart = true
		}
	}
	return !takesPart && !leftAlone(l)
}

// leftAlone reports whether the owner keeps both families for itself.
func leftAlone(l Link) bool {
	return l.Intents[IPv4].LeaveAlone != "" && l.Intents[IPv6].LeaveAlone != ""
}

// plan decides what the link needs, from its facts and its neighbours.
func (plan *LinkPlan) plan(p Policy, n neighbourhood) {
	plan.planGroup(p)
	for _, f := range Families() {
		plan.planFamily(f, n)
	}
}

// expectsWay reports whether a link that is being brought up is likely to become
// an uplink. The kernel keeps marks for longer than this process lives, so one
// must not be set on a mere possibility: IPv6 listens to routers nearly
// everywhere.
func expectsWay(l Link) bool {
	in := l.Intents[IPv4]
	return in.Automatic && in.LeaveAlone == ""
}

// planGroup marks an uplink. One that got no table is marked too: the mark
// keeps the packets of other links away from it.
func (plan *LinkPlan) planGroup(p Policy) {
	l := plan.Link
	plan.marked = plan.Role == Uplink && (len(plan.Keys) > 0 || l.Group == p.UplinkGroup || l.Pending) &&
		(!l.Pending || expectsWay(l) || knownRole(p, l) == Uplink)
	plan.Group = markedGroup(p, plan.marked, l.Group)
	if plan.marked && plan.Group != p.UplinkGroup {
		plan.problem(Warning, "interface group %d was set by somebody else and is kept: packets bound to other links reach the networks of %s through it; `ip link set %s group default` lets multihomed mark it", l.Group, l.Name, l.Name)
	}
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

func (plan *LinkPlan) problem(s Severity, format string, args ...any) {
	plan.Problems = append(plan.Problems, Problem{Severity: s, Link: plan.Link.Name, Text: fmt.Sprintf(format, args...)})
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

func (plan *LinkPlan) planFamily(f Family, n neighbourhood) {
	l := plan.Link
	if why := l.Intents[f].LeaveAlone; why != "" {
		plan.problem(Notice, "%s is left alone: %s", f, why)
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
			plan.problem(Error, "address %s is used by another host (duplicate address detection failed)", a.Prefix.Addr())
		}
	}
	metric := defaultMetric(l, f)
	for i, k := range keys {
		t, ok := l.Tables[k]
		if !ok {
			plan.planWithoutTable(keys, k)
			continue
		}
		routes := tableRoutes(l, keys, k, t)
		ownDefault := slices.ContainsFunc(routes, func(r PlannedRoute) bool {
			return r.Route.IsDefault() && r.Reason.Decision != CopiedElsewhere
		})
		if l.Up {
			plan.Routes = append(slices.Grow(plan.Routes, len(routes)), routes...)
		}
		plan.planRules(k, t, rungs{
			metric: metric, order: i, ownDefault: ownDefault, several: len(keys) > 1,
			crowded: n.crowded[k.Prefix], overlap: n.overlap[k.Prefix],
			network: !k.Prefix.IsSingleIP() && slices.ContainsFunc(routes, func(r PlannedRoute) bool {
				return r.Route.Destination == k.Prefix && !r.Route.Gateway.IsValid()
			}),
		})
	}
}

// planWithoutTable makes the best of a network that got no table: its packets
// follow main. Where nobody manages main's metrics its default may be missing
// there, because another link's was in the way; then it gets one behind all
// others, so that the host can be reached at least where it is the only one.
func (plan *LinkPlan) planWithoutTable(keys []Key, k Key) {
	text := fmt.Sprintf("no routing table for %s: its packets follow the main table", k.Prefix)
	if r, ok := defaultWithoutTable(plan.Link, keys, k); ok {
		plan.Routes = append(plan.Routes, PlannedRoute{
			Route: r, Reason: Reason{Decision: WithoutTable, Link: plan.Link.Name, Prefix: k.Prefix.String()},
		})
		text += fmt.Sprintf(", to which its default was added with metric %d", r.Metric)
	}
	plan.problem(Error, "%s", text)
}

// rungs is what the rules of one table depend on besides its key.
type rungs struct {
	metric     uint32
	order      int
	ownDefault bool
	several    bool
	crowded    bool
	overlap    bool
	// network says that the table knows the prefix as a network on the link.
	// IPv6 prefixes need not be one (RFC 5942): then main's default is the way.
	network bool
}

func (plan *LinkPlan) planRules(k Key, t TableID, in rungs) {
	l, network := plan.Link, k.Prefix.String()
	add := func(d Decision, rank uint64, r Rule) {
		r.Family, r.Protocol = k.Family, Multihomed
		if r.Action == 0 {
			r.Action, r.Table = ActionLookup, t
		}
		plan.Rules = append(plan.Rules, PlannedRule{
			Rule: r, Rank: rank,
			Reason: Reason{Decision: d, Link: l.Name, Prefix: network},
		})
	}
	// Tables of one link are told apart last: those with a default first.
	order := uint64(in.order) //nolint:gosec // the place in a list
	if !in.ownDefault {
		order |= 1 << 15
	}
	byLength := func(p netip.Prefix) uint64 {
		shorter := uint64(k.Family.Bits() - p.Bits()) //nolint:gosec // 0 to 128
		return shorter<<48 | uint64(in.metric)<<16 | order
	}
	sources := sourcesOf(l, k, in.crowded)
	host := k.Prefix.IsSingleIP()
	plan.Rules = slices.Grow(plan.Rules, 4+3*len(sources))

	for _, s := range sources {
		if in.overlap && !host {
			add(KeepOverlap, byLength(s), Rule{Priority: PriorityOverlap, From: s, To: k.Prefix})
		}
	}
	// Where a device has several tables, a bound socket that also has an
	// address must not get the gateway of another network of the device. This
	// has a rung of its own: at 9500 the kernel could not tell the two kinds
	// apart when one is added or deleted (see kerneltest, Kernel.exists).
	if in.several {
		add(FollowDevice, byLength(k.Prefix), Rule{Priority: PriorityDeviceSource, From: k.Prefix, OIF: l.Name})
	}
	add(FollowDevice, order, Rule{Priority: PriorityDevice, OIF: l.Name})
	for _, s := range sources {
		add(FollowSource, byLength(s), Rule{Priority: PrioritySource, From: s})
		if plan.Role == Uplink {
			// The order of rules that all say no does not matter: no rank.
			add(NeverStray, 0, Rule{Priority: PriorityUnreachable, From: s, IIF: sender(s), Action: ActionUnreachable})
		}
	}
	if in.network {
		add(ReachNetwork, byLength(k.Prefix), Rule{Priority: PriorityNetwork, To: k.Prefix})
	}
	if plan.Role == Uplink {
		add(LastResort, uint64(in.metric)<<16|order, Rule{Priority: PriorityMatchAll, IIF: "lo"})
	}
}

// sender restricts the rule that stops stray packets to those of this host
// where it selects by prefix: hosts behind a router have addresses of that
// prefix too, and what it forwards for them is main's business.
func sender(source netip.Prefix) string {
	if source.IsSingleIP() {
		return ""
	}
	return "lo"
}

// sourcesOf returns the source selectors of a table: every IPv4 address; the
// IPv6 network, so that temporary addresses come and go without a change, or
// every IPv6 address where the network is another link's too, or is so wide
// that it holds networks of others and no temporary addresses.
func sourcesOf(l Link, k Key, crowded bool) []netip.Prefix {
	if k.Family == IPv6 && !crowded && k.Prefix.Bits() >= subnetBits6 {
		return []netip.Prefix{k.Prefix}
	}
	var sources []netip.Prefix
	for _, a := range l.Addresses {
		s := netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen())
		if own, ok := keyOf(l, a); ok && own == k && !slices.Contains(sources, s) {
			sources = append(sources, s)
		}
	}
	slices.SortFunc(sources, netip.Prefix.Compare)
	return sources
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
