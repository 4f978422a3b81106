package kernel

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// A fib is the part of the kernel's routing tables that is kept: our tables
// whole, and of main what leads through interfaces of interest.
type fib struct {
	// slots are chains of the metrics of one destination.
	slots map[destinationKey]*slot
	owns  routing.Ownership
	// keys counts the slots.
	keys     int
	byDevice map[int]map[*alias]struct{}
	bySource map[netip.Addr]map[*alias]struct{}
	// byTable leaves out what others have in main.
	byTable map[routing.TableID]map[*alias]struct{}
	// wide are the routes of main that are a part of everything rather than to a network.
	wide map[*alias]struct{}
	// thrown are the throw routes of main.
	thrown map[*alias]struct{}
	// nexthops are the aliases that use nexthop objects.
	nexthops map[*alias]struct{}
}

// A slot is the kernel's list of one key, in its order. It is kept as long as
// one of its entries is wanted, and then holds every entry that was seen,
// because NLM_F_REPLACE replaces the first one and does not say which that was.
type slot struct {
	aliases []*alias
	next    *slot
	metric  uint32
	// whole says that the kernel's list has no entry that is not here.
	whole bool
}

// A destinationKey is a fibKey without its metric and without pointers.
type destinationKey struct {
	to, from prefixKey
	family   routing.Family
	tos      uint8
	table    routing.TableID
}

func (k fibKey) competing() destinationKey {
	return destinationKey{
		to: keyOfPrefix(k.destination), from: keyOfPrefix(k.source), family: k.family, tos: k.tos, table: k.table,
	}
}

// at returns the slot of a key, nil if there is none.
func (f *fib) at(k fibKey) *slot {
	s := f.slots[k.competing()]
	for s != nil && s.metric != k.metric {
		s = s.next
	}
	return s
}

// drop takes a slot away.
func (f *fib) drop(k fibKey) {
	at := k.competing()
	first := f.slots[at]
	if first == nil {
		return
	}
	if first.metric == k.metric {
		f.keys--
		if first.next == nil {
			delete(f.slots, at)
		} else {
			f.slots[at] = first.next
		}
		return
	}
	for s := first; s.next != nil; s = s.next {
		if s.next.metric == k.metric {
			f.keys--
			s.next = s.next.next
			return
		}
	}
}

// all yields the slots that are not empty, with their keys.
func (f *fib) all() iter.Seq2[fibKey, *slot] {
	return func(yield func(fibKey, *slot) bool) {
		for _, s := range f.slots {
			for ; s != nil; s = s.next {
				if len(s.aliases) > 0 && !yield(s.aliases[0].key, s) {
					return
				}
			}
		}
	}
}

func newFIB(owns routing.Ownership) fib {
	return fib{
		owns:     owns,
		slots:    map[destinationKey]*slot{},
		byDevice: map[int]map[*alias]struct{}{},
		bySource: map[netip.Addr]map[*alias]struct{}{},
		byTable:  map[routing.TableID]map[*alias]struct{}{},
		wide:     map[*alias]struct{}{},
		thrown:   map[*alias]struct{}{},
		nexthops: map[*alias]struct{}{},
	}
}

// sameWay reports whether two legs are one way out.
func sameWay(a, b routing.Route) bool {
	if a.Device != b.Device || a.Gateway != b.Gateway {
		return false
	}
	if a.Attributes == b.Attributes {
		return true
	}
	x, y := a.Attributes.Get(), b.Attributes.Get()
	return x.EncapsulationType == y.EncapsulationType && x.Encapsulation == y.Encapsulation
}

// sameAlias reports whether two descriptions are of one entry, whatever legs
// are dead at the moment.
func sameAlias(a, b *alias) bool {
	return a.key == b.key && a.kind == b.kind && a.nexthop == b.nexthop &&
		slices.EqualFunc(a.legs, b.legs, func(x, y leg) bool { return x.route == y.route })
}

func (a *alias) leads(device int) bool {
	return slices.ContainsFunc(a.legs, func(l leg) bool { return l.route.Device == device })
}

// listed reports whether the index of tables has the alias: all of our tables,
// and of main what is ours.
func (f *fib) listed(a *alias) bool {
	return a.key.table != routing.TableMain || slices.ContainsFunc(a.legs, f.owned)
}

// owned reports whether a route is one of ours. In main the protocol is not enough.
func (f *fib) owned(l leg) bool { return f.owns.OwnsRoute(l.route) }

// whole reports whether several ways are one route: IPv4, in our tables.
func (a *alias) whole() bool {
	return len(a.legs) > 1 && a.key.family == routing.IPv4 && a.key.table != routing.TableMain
}

// multipath returns the route whose ways are the legs of an alias, dead ones
// included: it stands as long as one of them is alive.
func (a *alias) multipath() (routing.Route, bool) {
	if !slices.ContainsFunc(a.legs, func(l leg) bool { return !l.dead }) {
		return routing.Route{}, false
	}
	legs := make([]routing.Leg, 0, len(a.legs)-1)
	for _, l := range a.legs[1:] {
		legs = append(legs, firstLeg(l.route))
	}
	r := a.legs[0].route
	r.Attributes = r.Attributes.With(func(rare *routing.RareAttributes) { rare.Legs = routing.PackLegs(legs) })
	return r, true
}

func (a *alias) protocol() routing.Protocol { return a.legs[0].route.Protocol }

// gatewayed reports whether the kernel may join an IPv6 route with others to a
// multipath one (rt6_qualify_for_ecmp in include/net/ip6_route.h). Routes that
// the kernel made from router advertisements do not qualify, and cannot be told
// from those that NetworkManager made.
func (a *alias) gatewayed() bool {
	return a.nexthop == 0 && !slices.ContainsFunc(a.legs, func(l leg) bool { return !l.route.Gateway.IsValid() })
}

// insert puts an alias at a place of its slot's list, which it makes if needed.
func (f *fib) insert(a *alias, at int) *slot {
	s := f.at(a.key)
	if s == nil {
		k := a.key.competing()
		s = &slot{metric: a.key.metric, next: f.slots[k]}
		f.slots[k] = s
		f.keys++
	}
	s.aliases = slices.Insert(s.aliases, at, a)
	f.index(a)
	return s
}

// remove takes an alias out; the slot stays, empty if need be.
func (f *fib) remove(a *alias) {
	s := f.at(a.key)
	if i := slices.Index(s.aliases, a); i >= 0 {
		s.aliases = slices.Delete(s.aliases, i, i+1)
	}
	f.forget(a)
}

// replace puts one alias where another was.
func (f *fib) replace(old, a *alias) {
	s := f.at(old.key)
	s.aliases[slices.Index(s.aliases, old)] = a
	f.forget(old)
	f.index(a)
}

func (f *fib) index(a *alias) {
	for _, l := range a.legs {
		enlist(f.byDevice, l.route.Device, a)
		if l.route.PreferredSource.IsValid() {
			enlist(f.bySource, l.route.PreferredSource, a)
		}
	}
	if f.listed(a) {
		enlist(f.byTable, a.key.table, a)
	}
	if a.key.table == routing.TableMain && a.key.destination.Bits() <= wideRoute {
		f.wide[a] = struct{}{}
	}
	if a.throws() {
		f.thrown[a] = struct{}{}
	}
	if a.nexthop != 0 {
		f.nexthops[a] = struct{}{}
	}
}

func (f *fib) forget(a *alias) {
	for _, l := range a.legs {
		delist(f.byDevice, l.route.Device, a)
		if l.route.PreferredSource.IsValid() {
			delist(f.bySource, l.route.PreferredSource, a)
		}
	}
	if f.listed(a) {
		delist(f.byTable, a.key.table, a)
	}
	delete(f.wide, a)
	delete(f.thrown, a)
	delete(f.nexthops, a)
}

// eachHeld yields the aliases of a set, which may change meanwhile: one that has
// been taken out by the time its turn comes is left out.
func (f *fib) eachHeld(set map[*alias]struct{}) iter.Seq[*alias] {
	return func(yield func(*alias) bool) {
		for a := range maps.Clone(set) {
			if slot := f.at(a.key); slot != nil && slices.Contains(slot.aliases, a) && !yield(a) {
				return
			}
		}
	}
}

// change edits the legs of an alias and keeps the indexes right.
func (f *fib) change(a *alias, edit func()) {
	f.forget(a)
	edit()
	f.index(a)
}

func enlist[K comparable](m map[K]map[*alias]struct{}, k K, a *alias) {
	if m[k] == nil {
		m[k] = map[*alias]struct{}{}
	}
	m[k][a] = struct{}{}
}

func delist[K comparable](m map[K]map[*alias]struct{}, k K, a *alias) {
	delete(m[k], a)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
