package outcome

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// SharedAddress says that several uplinks have one address.
const SharedAddress routing.Code = "shared-address"

// mostShared bounds the addresses that are looked at.
const mostShared = 16

// A Shared is an address that several uplinks have, each with a default route for it: two
// modems that give their hosts the same one. The address does not tell one link from the other,
// and no rule can. Sockets that are bound to a device are not affected.
type Shared struct {
	Address netip.Addr
	// Links are in the order of interfaces.
	Links []string
	// Device is where packets with the address leave to the outside, empty if nowhere or
	// unknown.
	Device string
}

// Shared finds addresses that several uplinks have.
func (j *Judge) Shared() []Shared {
	if len(j.shared) == 0 {
		return nil
	}
	plans := map[netip.Addr][]routing.LinkPlan{}
	for plan := range j.facts.Plans.Links() {
		if l := &plan.Link; !l.Up || l.Pending || j.facts.Unsettled != nil && j.facts.Unsettled(l.Name) {
			continue
		}
		for _, a := range plan.Link.Addresses {
			if from := a.Prefix.Addr(); j.shared[from] && !a.Tentative && !a.Failed && plan.Roles.In(routing.FamilyOf(from)) == routing.Uplink && HasDefault(&plan, from) {
				plans[from] = append(plans[from], plan)
			}
		}
	}
	var out []Shared
	for from, some := range plans {
		if len(some) < 2 {
			continue
		}
		slices.SortFunc(some, func(a, b routing.LinkPlan) int { return a.Link.Index - b.Link.Index })
		s := Shared{Address: from}
		for _, plan := range some {
			s.Links = append(s.Links, plan.Link.Name)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Shared) int { return a.Address.Compare(b.Address) })
	out = out[:min(len(out), mostShared)]
	for i := range out {
		out[i].Device = j.leaves(out[i].Address, plans[out[i].Address])
	}
	return out
}

// leaves is the device by which packets with an address of some links leave to most of the
// outside.
func (j *Judge) leaves(from netip.Addr, plans []routing.LinkPlan) string {
	f := routing.FamilyOf(from)
	if len(j.outside[f]) == 0 {
		return ""
	}
	to := slices.MaxFunc(j.outside[f], func(a, b target) int { return cmp.Compare(a.parts, b.parts) }).to
	all := slices.Clone(j.base)
	tables := map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}}
	for i := range plans {
		for _, r := range plans[i].Rules {
			if r.Rule.From.IsValid() {
				j.add(&all, r)
			}
		}
		maps.Copy(tables[f], j.tables(&plans[i])[f])
	}
	rules := make([]routing.Rule, 0, len(all))
	for _, p := range sorted(all) {
		rules = append(rules, p.rule)
	}
	v := j.host.With(rules, tables).Lookup(lookup.Flow{From: from, To: to})
	switch {
	case (v.Lacking || v.Uncertain) && j.facts.Ask != nil:
		a, err := j.facts.Ask(Probe{From: from, To: to})
		if err != nil {
			return ""
		}
		return j.names[a.Device]
	case v.Outcome == lookup.Sent && len(v.Legs) > 0:
		return j.names[v.Legs[0].Device]
	default:
		return ""
	}
}

// Problem says what comes of it. Nothing that this host does can help: another network on one
// of the wires does.
func (s Shared) Problem() routing.Problem {
	// The link that its owner misses something of.
	others := slices.DeleteFunc(slices.Clone(s.Links), func(name string) bool { return name == s.Device })
	way := "the address does not tell by which of them a packet leaves"
	if s.Device != "" {
		way = fmt.Sprintf("packets with that address leave by %s alone, also answers to what arrives by %s", s.Device, listed(others))
	}
	return routing.Problem{
		Code: SharedAddress, Severity: routing.Warning, Link: others[0], Object: s.Address.String(),
		Text: fmt.Sprintf("%s have the same address %s: %s", listed(s.Links), s.Address, way),
		Fix: fmt.Sprintf("set up another network in the modem or router of one of them; until then bind programs to the device and not to the address, as `curl --interface %s` does",
			others[0]),
	}
}
