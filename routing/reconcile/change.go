package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/event"
	"multihomed/routing"
)

// moved counts the routes that came into a link's tables and went, besides the
// networks on the link and its gateways.
type moved struct{ added, removed int }

// has says whether a link has routing of its own.
func has(p routing.LinkPlan) bool { return len(p.Link.Tables) > 0 }

// describe says in a sentence how a link came from one plan to another, empty if
// nothing happened that matters to people. Reason says why, where the sentence does
// not. Removed is why a link has no routing any more.
func describe(was, is routing.LinkPlan, routes moved, removed string) (what event.Event, sentence, reason string) {
	switch {
	case !has(was) && !has(is):
		return "", "", ""
	case !has(was):
		sentence, reason = introduce(is)
		return event.LinkAdded, sentence, reason
	case !has(is):
		return event.LinkRemoved, fmt.Sprintf("%s removed (%s)", kind(was), removed), ""
	}
	parts := atMost(changes(was, is, routes), mostChanges, "more changes")
	roles, why := roleChanges(was, is)
	if parts = append(parts, roles...); why != "" {
		return event.LinkChanged, strings.Join(parts, ", "), why
	}
	for _, f := range is.Shown() {
		if is.Roles.In(f) == routing.Uplink && routing.HasMainDefault(was.Link, f) && !routing.HasMainDefault(is.Link, f) {
			// What made it an uplink went, and something else keeps it one.
			reason = is.Whys.In(f)
		}
	}
	return event.LinkChanged, strings.Join(parts, ", "), reason
}

// A line of the log names so many gateways of a network, and so many changes: an attacker
// advertises hundreds.
const (
	mostGateways = 4
	mostChanges  = 12
)

// atMost leaves the first few of a list, and counts the rest.
func atMost(list []string, most int, rest string) []string {
	if len(list) <= most {
		return list
	}
	return append(slices.Clip(list[:most]), fmt.Sprintf("%d %s", len(list)-most, rest))
}

// kind names what a link is.
func kind(p routing.LinkPlan) string {
	name := func(r routing.Role) string {
		if r == routing.Local {
			return "local link"
		}
		return r.String()
	}
	if !p.Mixed() {
		return name(p.Role())
	}
	up, local := routing.IPv4, routing.IPv6
	if p.Roles.In(up) == routing.Local {
		up, local = local, up
	}
	return fmt.Sprintf("%s for %s, %s for %s", name(routing.Uplink), up.Name(), name(routing.Local), local.Name())
}

// roleChanges says which roles changed, and why. Families that the link has an address of
// only now are no change, and what all of its families have in common is said once.
func roleChanges(was, is routing.LinkPlan) (parts []string, why string) {
	shown := is.Shown()
	if was.Role() != is.Role() && !was.Mixed() && !is.Mixed() {
		return []string{fmt.Sprintf("role %s -> %s", was.Role(), is.Role())}, is.Why()
	}
	for _, f := range shown {
		if !slices.Contains(was.Shown(), f) || was.Roles.In(f) == is.Roles.In(f) {
			continue
		}
		parts = append(parts, fmt.Sprintf("role for %s %s -> %s", f.Name(), was.Roles.In(f), is.Roles.In(f)))
		why = is.Whys.In(f)
	}
	if len(parts) == 0 && was.Role() != is.Role() {
		return []string{fmt.Sprintf("role %s -> %s", was.Role(), is.Role())}, is.Why()
	}
	return parts, why
}

// introduce describes a link that is new, network by network.
func introduce(p routing.LinkPlan) (sentence, reason string) {
	var networks []string
	gateways := gatewaysOf(p)
	for _, k := range p.Keys {
		t, leased := p.Link.Tables[k]
		if !leased {
			continue // A problem of its own says so.
		}
		text := k.Network()
		if addresses := addressesOf(p, k); len(addresses) > 0 {
			text = strings.Join(addresses, " and ")
		}
		var by []string
		for _, g := range gateways {
			if slices.Contains(g.tables, t) && g.hop.family == k.Family {
				by = append(by, g.String())
			}
		}
		if len(by) > 0 {
			text += " by " + strings.Join(atMost(by, mostGateways, "more"), " and ")
		}
		networks = append(networks, fmt.Sprintf("%s in table %s", text, t))
	}
	if p.Role() == routing.Local || len(gateways) == 0 || p.Link.Choice != routing.ByFacts {
		reason = p.Why()
	}
	return fmt.Sprintf("%s added, %s", kind(p), strings.Join(networks, ", ")), reason
}

// changes lists what differs, the cause before what follows of it.
func changes(was, is routing.LinkPlan, routes moved) []string {
	var out []string
	if was.Link.Name != is.Link.Name {
		out = append(out, "renamed from "+was.Link.Name)
	}
	if was.Link.Up != is.Link.Up {
		out = append(out, map[bool]string{true: "set up", false: "set down"}[is.Link.Up])
	}
	for _, f := range routing.Families() {
		out = append(out, differ("address ", addresses(was, f), addresses(is, f))...)
	}
	out = append(out, networkChanges(was, is)...)
	before, after := gatewaysOf(was), gatewaysOf(is)
	for _, g := range before {
		if i := slices.IndexFunc(after, func(o gateway) bool { return o.hop == g.hop }); i < 0 {
			out = append(out, fmt.Sprintf("%s removed", g.name()))
		} else if after[i].origin != g.origin && after[i].origin != "" {
			out = append(out, fmt.Sprintf("%s now named by %s", g.name(), after[i].origin))
		}
	}
	for _, g := range after {
		if !slices.ContainsFunc(before, func(o gateway) bool { return o.hop == g.hop }) {
			out = append(out, g.name()+" added"+g.by())
		}
	}
	if routes != (moved{}) {
		var counts []string
		if routes.added > 0 {
			counts = append(counts, fmt.Sprintf("+%d", routes.added))
		}
		if routes.removed > 0 {
			counts = append(counts, fmt.Sprintf("-%d", routes.removed))
		}
		out = append(out, "routes "+strings.Join(counts, " "))
	}
	if was.Group != is.Group && was.Roles == is.Roles {
		out = append(out, fmt.Sprintf("interface group %d -> %d", was.Group, is.Group))
	}
	return out
}

// differ says what was added to a sorted list, and what removed.
func differ(what string, was, is []string) []string {
	var out []string
	for _, s := range was {
		if !slices.Contains(is, s) {
			out = append(out, what+s+" removed")
		}
	}
	for _, s := range is {
		if !slices.Contains(was, s) {
			out = append(out, what+s+" added")
		}
	}
	return out
}

// networkChanges says which networks got a table, lost theirs, or gave way to another.
func networkChanges(was, is routing.LinkPlan) []string {
	var out []string
	before, after := tablesOf(was), tablesOf(is)
	for _, f := range routing.Families() {
		var gone, come []string
		for _, k := range was.Keys {
			switch now, still := after[network{f, k.Prefix}]; {
			case k.Family != f || before[network{f, k.Prefix}] == 0:
			case !still:
				gone = append(gone, fmt.Sprintf("%s (table %s)", k.Network(), before[network{f, k.Prefix}]))
			case now != before[network{f, k.Prefix}]:
				out = append(out, fmt.Sprintf("network %s moved from table %s to %s", k.Network(), before[network{f, k.Prefix}], now))
			}
		}
		for _, k := range is.Keys {
			if _, had := before[network{f, k.Prefix}]; k.Family == f && !had && after[network{f, k.Prefix}] != 0 {
				come = append(come, fmt.Sprintf("%s (table %s)", k.Network(), after[network{f, k.Prefix}]))
			}
		}
		if len(gone) == 1 && len(come) == 1 {
			out = append(out, fmt.Sprintf("network moved from %s to %s", gone[0], come[0]))
			continue
		}
		for _, n := range gone {
			out = append(out, "network "+n+" removed")
		}
		for _, n := range come {
			out = append(out, "network "+n+" added")
		}
	}
	return out
}

// A network is a key without the name of the interface, which may change.
type network struct {
	family routing.Family
	prefix netip.Prefix
}

func tablesOf(p routing.LinkPlan) map[network]routing.TableID {
	out := make(map[network]routing.TableID, len(p.Link.Tables))
	for k, t := range p.Link.Tables {
		out[network{k.Family, k.Prefix}] = t
	}
	return out
}

// addresses lists those of a family that take part. Temporary ones come and go every
// day, and no rule depends on them.
func addresses(p routing.LinkPlan, f routing.Family) []string {
	var out []string
	for _, a := range p.Link.Addresses {
		if routing.FamilyOf(a.Prefix.Addr()) == f && !a.Temporary && routing.TakesPart(p.Link, a) {
			out = append(out, a.Prefix.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// addressesOf lists those of one network.
func addressesOf(p routing.LinkPlan, k routing.Key) []string {
	var out []string
	for _, text := range addresses(p, k.Family) {
		if own, ok := routing.KeyOf(p.Link, netip.MustParsePrefix(text).Addr()); ok && own == k {
			out = append(out, text)
		}
	}
	return out
}

// A hop is a default's next hop; without an address it is the link itself.
type hop struct {
	family routing.Family
	via    netip.Addr
}

// A gateway is a default of the link's tables, and who named it.
type gateway struct {
	hop    hop
	origin string
	tables []routing.TableID
}

func (g gateway) name() string {
	if g.hop.via.IsValid() {
		return "gateway " + g.hop.via.String()
	}
	return fmt.Sprintf("%s default without a gateway", g.hop.family)
}

func (g gateway) by() string {
	if g.origin == "" {
		return ""
	}
	return " (" + g.origin + ")"
}

func (g gateway) String() string { return g.name() + g.by() }

// gatewaysOf returns the defaults that a link's tables have, sorted.
func gatewaysOf(p routing.LinkPlan) []gateway {
	found := map[hop]*gateway{}
	for _, r := range p.Routes {
		if !r.Route.IsDefault() || r.Route.Type != routing.RouteUnicast || r.Reason.Decision == routing.WithoutTable {
			continue
		}
		h := hop{r.Route.Family, r.Route.Gateway}
		if found[h] == nil {
			found[h] = &gateway{hop: h, origin: originOf(p.Link, h)}
		}
		if t := r.Route.Table; !slices.Contains(found[h].tables, t) {
			found[h].tables = append(found[h].tables, t)
		}
	}
	out := make([]gateway, 0, len(found))
	for _, g := range found {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b gateway) int {
		return cmp.Or(cmp.Compare(a.hop.family, b.hop.family), a.hop.via.Compare(b.hop.via))
	})
	return out
}

// originOf says who named a gateway.
func originOf(l routing.Link, h hop) string {
	for _, routes := range [][]routing.Route{l.Routes, l.Known} {
		for _, r := range routes {
			if r.IsDefault() && r.Family == h.family && r.Gateway == h.via && r.Protocol != routing.Multihomed {
				return origin(r)
			}
		}
	}
	if in := l.Intents[h.family]; h.via.IsValid() && in.Gateway == h.via {
		if in.Automatic {
			return "DHCP"
		}
		return "profile"
	}
	return ""
}

// protocolDHCP is what DHCP clients mark their routes with (rt_protos of iproute2).
const protocolDHCP routing.Protocol = 16

// origin says who made a route.
func origin(r routing.Route) string {
	switch r.Protocol {
	case protocolDHCP:
		return "DHCP"
	case routing.ProtocolRA:
		return "router advertisement"
	case routing.ProtocolStatic:
		return "static"
	case routing.ProtocolBoot:
		return "set by hand or a script"
	case 0, routing.ProtocolKernel:
		return ""
	default:
		return r.Protocol.String()
	}
}
