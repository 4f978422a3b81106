package outcome

import (
	"fmt"
	"net/netip"
	"strings"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Parts are addresses all over the internet: one of every public /8 of IPv4, and one of
// every large block of IPv6 that IANA has handed out
// (https://www.iana.org/assignments/ipv6-unicast-address-assignments).
func Parts(f routing.Family) []netip.Addr {
	var out []netip.Addr
	if f == routing.IPv6 {
		for _, a := range [...]string{
			"2001:200::1", "2001:400::1", "2001:600::1", "2001:1200::1", "2003::1", "2400:1::1", "2600:1::1",
			"2610:1::1", "2620:1::1", "2630:1::1", "2800:1::1", "2a00:1::1", "2a10:1::1", "2c00:1::1",
		} {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	const firstMulticast = 224
	for first := byte(1); first < firstMulticast; first++ {
		if first != 10 && first != 127 { // RFC 1918, RFC 1122
			out = append(out, netip.AddrFrom4([4]byte{first, 1, 1, 1}))
		}
	}
	return out
}

// enoughParts is how many parts of the outside are tried where tables are not known and
// the kernel has to be asked for each.
const enoughParts = 16

// outsideOf puts the parts of the internet into classes: of one class are those for which
// every table that is not a link's has the same answer, and whose destination the same
// rules of others select.
func (j *Judge) outsideOf(f routing.Family) []target {
	parts := Parts(f)
	weight := 1
	if len(j.facts.Partial[f]) > 0 {
		step := max(1, len(parts)/enoughParts)
		weight = step
		var some []netip.Addr
		for i := 0; i < len(parts); i += step {
			some = append(some, parts[i])
		}
		parts = some
	}
	var out []target
	at := map[string]int{}
	for _, to := range parts {
		signature := j.signature(f, to)
		if len(j.facts.Partial[f]) > 0 {
			signature = to.String()
		}
		if i, known := at[signature]; known {
			out[i].parts += weight
			continue
		}
		at[signature] = len(out)
		out = append(out, target{goal: Outside, to: to, parts: weight})
	}
	return out
}

// signature is what the tables and the rules of others say of a destination.
func (j *Judge) signature(f routing.Family, to netip.Addr) string {
	var b strings.Builder
	ask := func(t routing.TableID) {
		v := j.in(f, t, to)
		fmt.Fprintf(&b, "%d:%d/%d/%d ", t, v.Route.Device, v.Route.Type, v.Route.Destination.Bits())
		if v.Outcome == lookup.NoRoute {
			b.WriteString("none ")
		}
	}
	for _, t := range j.asked[f] {
		ask(t)
	}
	for i, o := range j.facts.Plans.Foreign(f) {
		if o.Rule.To.IsValid() && o.Rule.To.Contains(to) {
			fmt.Fprintf(&b, "to%d ", i)
		}
	}
	return b.String()
}

// mostNetworks bounds the networks of other links that are tried.
const mostNetworks = 64

// networksOf puts the networks of links into classes, by the role and the group of the
// link and by what tables and rules of others say of them.
func (j *Judge) networksOf(f routing.Family) []target {
	var out []target
	seen := map[string]int{}
	for plan := range j.facts.Plans.Links() {
		for _, k := range plan.Keys {
			if k.Family != f || k.OfHosts() || !plan.Link.Up {
				continue
			}
			to, found := j.neighbour(&plan, k)
			if !found {
				continue
			}
			// A class has two links, so that each link has one that is another's.
			signature := fmt.Sprint(plan.Roles.In(f), plan.Group == j.facts.Policy.UplinkGroup, " ", j.alien(f, to, plan.Link.Index))
			if seen[signature]++; seen[signature] > 2 || len(out) >= mostNetworks {
				continue
			}
			out = append(out, target{goal: OtherNetwork, to: to, of: plan.Link.Index})
		}
	}
	return out
}

// alien is the signature of a destination, in which the link that it is a neighbour of
// is nobody in particular.
func (j *Judge) alien(f routing.Family, to netip.Addr, index int) string {
	own := fmt.Sprintf(":%d/", index)
	return strings.ReplaceAll(j.signature(f, to), own, ":own/")
}

// neighbour is an address in a network of a link that is not the host's own, and that
// main does not know elsewhere: its router's if that is there, else the first or second.
func (j *Judge) neighbour(plan *routing.LinkPlan, k routing.Key) (netip.Addr, bool) {
	var candidates []netip.Addr
	for _, r := range plan.Routes {
		if g := r.Route.Gateway; r.Route.Family == k.Family && g.IsValid() && k.Prefix.Contains(g) {
			candidates = append(candidates, g)
		}
	}
	for a := k.Prefix.Addr().Next(); a.IsValid() && k.Prefix.Contains(a) && len(candidates) < 4; a = a.Next() {
		candidates = append(candidates, a)
	}
	for _, to := range candidates {
		if !j.own(to) && !to.IsLinkLocalUnicast() && !j.elsewhere(plan, k, to) {
			return to, true
		}
	}
	return netip.Addr{}, false
}

// own reports whether an address is the host's, or a broadcast address.
func (j *Judge) own(to netip.Addr) bool {
	if v := j.in(routing.FamilyOf(to), routing.TableLocal, to); v.Outcome != lookup.NoRoute {
		return true
	}
	_, is := j.owner[to]
	return is
}

// elsewhere reports whether main has a longer route to an address than the network of
// the link, through something else: a bridge inside of a LAN.
func (j *Judge) elsewhere(plan *routing.LinkPlan, k routing.Key, to netip.Addr) bool {
	v := j.in(k.Family, routing.TableMain, to)
	return v.Outcome == lookup.Sent && v.Route.Destination.Bits() > k.Prefix.Bits() && v.Route.Device != plan.Link.Index
}
