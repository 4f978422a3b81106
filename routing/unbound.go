package routing

import (
	"fmt"
	"net/netip"
	"slices"
)

// An Unbound is what the kernel does with packets of this host that are bound to nothing
// and leave through a device that has no address for them: it gives them the address of
// another interface (inet_select_addr in net/ipv4/devinet.c, ipv6_dev_get_saddr in
// net/ipv6/addrconf.c). A socket that connects asks for its route twice, the second time
// with that address: its packets cannot be told from those that are bound to it.
type Unbound struct {
	// Address is the source that the kernel chose.
	Address netip.Addr
	// Device is the index of the interface that the packets leave by, Name its name and
	// Group its interface group. The interface does not have the address.
	Device int
	Name   string
	Group  uint32
	// Table is where the route stands, Length that of its destination.
	Table  TableID
	Length int
}

// SetUnbound takes what the kernel does with unbound packets in one family. A source
// that it gives to packets of another device has no rungs while that is so: they follow
// the rules of others, and so do those that are bound to the address, as without us.
func (p *Planner) SetUnbound(f Family, found []Unbound) {
	i := familyIndex(f)
	before := p.around[i].unbound
	if slices.Equal(before, found) {
		return
	}
	p.around[i].unbound = slices.Clone(found)
	for _, index := range p.indexes() {
		l := &p.links[index].Link
		if slices.ContainsFunc(before, l.mayHave) || slices.ContainsFunc(found, l.mayHave) {
			p.replanAsIs(index)
		}
	}
}

// mayHave reports whether an address may be a source of the link.
func (l *Link) mayHave(u Unbound) bool {
	return slices.ContainsFunc(l.Addresses, func(a Address) bool { return a.Prefix.Masked().Contains(u.Address) }) ||
		slices.ContainsFunc(l.Elsewhere, func(e Elsewhere) bool { return e.Prefix.Contains(u.Address) })
}

// takes reports whether unbound packets of a source are another device's: they meet the
// rung of the source at their second lookup, unless a rung in front of it leads them where
// the first one did.
func (s *surrounding) takes(source netip.Prefix, device int, longest uint32) (Unbound, bool) {
	for _, u := range s.unbound {
		if u.Device == device || !source.Contains(u.Address) || !slices.Contains(s.behind(), u.Table) {
			continue
		}
		known := slices.ContainsFunc(s.known(), func(t tunnel) bool { return t.table == u.Table }) && u.Length > int(longest) && u.Group != s.group
		if !known {
			return u, true
		}
	}
	return Unbound{}, false
}

// behind are the tables that decide for every packet behind the ladder. What rules in
// front of it decide, and rules that select, is the same at both lookups.
func (s *surrounding) behind() []TableID {
	return append(slices.Clip(s.entered), TableMain, TableDefault)
}

// stepAside says that a source has no rungs, and why.
func (plan *LinkPlan) stepAside(s source, u Unbound) {
	if slices.ContainsFunc(plan.Aside, func(o Aside) bool { return o.Source == s.prefix }) {
		return
	}
	plan.Aside = append(plan.Aside, Aside{Source: s.prefix, Because: u})
	f := FamilyOf(u.Address)
	plan.problem(Problem{
		Code: SourceAside, Severity: Warning, Object: u.Address.String(),
		Text: fmt.Sprintf("packets bound to %s do not keep to %s: %s has no %s address of its own, so the kernel gives %s to unbound packets that leave by it, and the two cannot be told apart",
			plainPrefix(s.prefix), plan.Link.Name, u.Name, f, u.Address),
		Fix: fmt.Sprintf("give %s an %s address that its other end knows (ip address add ADDRESS dev %s), or name one that is not of %s as the source of its routes in table %s (ip route change … src ADDRESS)",
			u.Name, f, u.Name, plan.Link.Name, u.Table),
	})
}

// An Aside is a source of a link that has no rungs for the time being. Because is zero
// where all of the family step aside: see [Refusal].
type Aside struct {
	Source  netip.Prefix
	Because Unbound
}

// StepsAside reports whether packets bound to an address of the link follow the rules of
// others for the time being.
func (plan *LinkPlan) StepsAside(a netip.Addr) bool {
	return slices.ContainsFunc(plan.Aside, func(s Aside) bool { return s.Source.Contains(a) })
}

func plainPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
