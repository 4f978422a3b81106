package kernel

import (
	"net/netip"
	"slices"

	"multihomed/routing"
)

// throws reports whether an alias is a throw route of main.
func (a *alias) throws() bool {
	return a.key.table == routing.TableMain && a.kind == routing.RouteThrow
}

// mayThrow reports whether what becomes of an alias may change what main throws.
func (s *State) mayThrow(a *alias) bool {
	if a.throws() {
		return true
	}
	if a.key.table != routing.TableMain || len(s.fib.thrown) == 0 {
		return false
	}
	for slot := s.fib.slots[a.key.competing()]; slot != nil; slot = slot.next {
		if slices.ContainsFunc(slot.aliases, (*alias).throws) {
			return true
		}
	}
	return false
}

// Thrown returns the destinations that main throws in a family, sorted: those of its throw
// routes in front of which no other route to the same destination stands, as far as they are
// kept. One that is for packets of a source or a type of service is not among them.
func (s *State) Thrown(f routing.Family) []netip.Prefix {
	var out []netip.Prefix
	for a := range s.fib.thrown {
		if a.key.family == f && a.key.source.Bits() <= 0 && a.key.tos == 0 && s.throwsFirst(a) {
			out = append(out, a.key.destination)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// throwsFirst reports whether no way of the same destination goes before a throw route: of a
// lower metric, or in front of it in the kernel's list.
func (s *State) throwsFirst(a *alias) bool {
	for slot := s.fib.slots[a.key.competing()]; slot != nil; slot = slot.next {
		if slot.metric > a.key.metric {
			continue
		}
		for _, o := range slot.aliases {
			if o == a {
				break
			}
			if !o.throws() && slices.ContainsFunc(o.legs, func(l leg) bool { return !l.dead }) {
				return false
			}
		}
	}
	return true
}
