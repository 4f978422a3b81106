package routing

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// standing knows which links stand in which network, and finds the networks
// that overlap with one without looking at all of them.
type standing struct {
	at map[netip.Prefix]map[int]Role
	// sorted holds the networks of a family by address and length: those inside
	// a network are neighbours in it.
	sorted map[Family][]netip.Prefix
	// lengths counts the lengths in use: those around a network are looked up.
	lengths map[Family]map[int]int
	// version changes with the content.
	version uint64
}

func newStanding() *standing {
	return &standing{
		at:      map[netip.Prefix]map[int]Role{},
		sorted:  map[Family][]netip.Prefix{},
		lengths: map[Family]map[int]int{IPv4: {}, IPv6: {}},
	}
}

// networksOf returns the networks a plan stands in.
func networksOf(plan *LinkPlan) map[netip.Prefix]Role {
	out := map[netip.Prefix]Role{}
	if plan != nil {
		for _, k := range plan.Keys {
			if !k.OfHosts() {
				out[k.Prefix] = plan.Roles.In(k.Family)
				continue
			}
			for _, host := range hostsOf(plan.Link, k) {
				out[host] = plan.Roles.In(k.Family)
			}
		}
	}
	return out
}

// move replaces what a link stands in and reports which networks changed.
func (s *standing) move(index int, before, now map[netip.Prefix]Role) []netip.Prefix {
	if maps.Equal(before, now) {
		return nil
	}
	s.version++
	var changed []netip.Prefix
	for n, role := range before {
		if r, ok := now[n]; !ok || r != role {
			changed = append(changed, n)
		}
		if _, stays := now[n]; !stays {
			s.leave(index, n)
		}
	}
	for n, role := range now {
		if r, ok := before[n]; !ok || r != role {
			changed = append(changed, n)
		}
		s.enter(index, n, role)
	}
	return changed
}

func (s *standing) enter(index int, n netip.Prefix, role Role) {
	if s.at[n] == nil {
		s.at[n] = map[int]Role{}
		f := FamilyOf(n.Addr())
		at, _ := slices.BinarySearchFunc(s.sorted[f], n, netip.Prefix.Compare)
		s.sorted[f] = slices.Insert(s.sorted[f], at, n)
		s.lengths[f][n.Bits()]++
	}
	s.at[n][index] = role
}

func (s *standing) leave(index int, n netip.Prefix) {
	delete(s.at[n], index)
	if len(s.at[n]) > 0 {
		return
	}
	delete(s.at, n)
	f := FamilyOf(n.Addr())
	if at, found := slices.BinarySearchFunc(s.sorted[f], n, netip.Prefix.Compare); found {
		s.sorted[f] = slices.Delete(s.sorted[f], at, at+1)
	}
	if s.lengths[f][n.Bits()]--; s.lengths[f][n.Bits()] == 0 {
		delete(s.lengths[f], n.Bits())
	}
}

// overlapping yields every network in use that shares an address with n, with
// the links that stand in it.
func (s *standing) overlapping(n netip.Prefix) iter.Seq2[netip.Prefix, map[int]Role] {
	return func(yield func(netip.Prefix, map[int]Role) bool) {
		f := FamilyOf(n.Addr())
		for bits := range s.lengths[f] {
			if bits >= n.Bits() {
				continue
			}
			wider := netip.PrefixFrom(n.Addr(), bits).Masked()
			if who, ok := s.at[wider]; ok && !yield(wider, who) {
				return
			}
		}
		// netip orders prefixes by address, then by length: the networks inside
		// n are one run that starts at n.
		from, _ := slices.BinarySearchFunc(s.sorted[f], n, netip.Prefix.Compare)
		for _, inner := range s.sorted[f][from:] {
			if !n.Contains(inner.Addr()) || !yield(inner, s.at[inner]) {
				return
			}
		}
	}
}
