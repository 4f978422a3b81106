package kernel

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// This file keeps routes of others in our tables standing. NLM_F_REPLACE takes
// the first IPv4 route of its key, whoever made it (fib_table_insert in
// net/ipv4/fib_trie.c), and all IPv6 siblings (fib6_add_rt2node in
// net/ipv6/ip6_fib.c). Deletions name our protocol, which both compare.

// besides are the flags with which ours goes behind whatever has its key. IPv6
// makes it a sibling, or refuses it as the same next hop.
const besides = unix.NLM_F_CREATE | unix.NLM_F_APPEND

// slotOf returns what stands at a key, whatever the next hop.
func (s *State) slotOf(k routing.RouteKey) *slot {
	return s.fib.at(fibKey{k.Family, k.Table, k.Destination, k.Source, k.TOS, k.Metric})
}

// ForeignAt returns the route of somebody else that stands where one of ours of
// that key would, the one with its next hop first. In IPv6 another next hop
// makes a sibling of it, which stands there too. It is meant for our tables: of
// main not all is kept.
func (s *State) ForeignAt(k routing.RouteKey) (routing.Route, bool) {
	slot := s.slotOf(k)
	if slot == nil {
		return routing.Route{}, false
	}
	var found routing.Route
	ok := false
	for _, a := range slot.aliases {
		for _, l := range a.legs {
			_, ours := s.own(a, l)
			switch {
			case ours:
			case l.route.Key() == k:
				return l.route, true
			case !ok:
				found, ok = l.route, true
			}
		}
	}
	return found, ok
}

// CountRoute says how often our route of a key stands. Deleting it takes one
// away.
func (s *State) CountRoute(k routing.RouteKey) int {
	slot := s.slotOf(k)
	if slot == nil {
		return 0
	}
	n := 0
	for _, a := range slot.aliases {
		for _, l := range a.legs {
			if l.dead || l.route.Key() != k {
				continue
			}
			if _, ours := s.own(a, l); ours {
				n++
				if k.Family == routing.IPv4 {
					break // its other legs are the same entry
				}
			}
		}
	}
	return n
}

// replaceRoute puts a route where another of ours is, and touches no third.
func (b *batch) replaceRoute(i int, r routing.Route) {
	if err := b.mirror.Drain(); err != nil {
		b.fail(i, err)
		return
	}
	if b.replaceFailover(i, r) {
		return
	}
	k := r.Key()
	var old routing.Route
	var stands, alone bool
	b.mirror.View(func(s *State) {
		old, stands = s.Route(k)
		slot := s.slotOf(k)
		alone = slot == nil || len(slot.aliases) == 1 && len(slot.aliases[0].legs) == 1 && r.Weight == 0
	})
	add := func(flags uint16) { b.add(i, func(m *nlmsg.Builder) { encodeRoute(m, r) }, unix.RTM_NEWROUTE, flags) }
	remove := func() { b.add(i, func(m *nlmsg.Builder) { encodeRouteIdentity(m, old) }, unix.RTM_DELROUTE, 0) }
	switch {
	case stands && old == r:
	case !stands:
		add(besides)
	case r.Family == routing.IPv4:
		// The new one behind the old, then the old one: of two that fit, the
		// kernel deletes the first.
		add(besides)
		b.flush()
		if b.errs == nil || b.errs[i] == nil {
			remove()
		}
	case alone:
		add(unix.NLM_F_CREATE | unix.NLM_F_REPLACE)
	default:
		// One next hop cannot stand twice.
		remove()
		b.flush()
		add(unix.NLM_F_CREATE)
	}
}

// replaceFailover puts a route into table F in the place of all that is ours there, in one
// message: no packet finds F without a way. It does nothing and returns false if something of
// somebody else is there, which the message would replace.
func (b *batch) replaceFailover(i int, r routing.Route) bool {
	alone := false
	b.mirror.View(func(s *State) {
		f, has := s.owns.FailoverTable()
		slot := s.slotOf(r.Key())
		if !has || r.Table != f || slot == nil {
			return
		}
		alone = !slices.ContainsFunc(slot.aliases, func(a *alias) bool {
			return slices.ContainsFunc(a.legs, func(l leg) bool {
				_, ours := s.own(a, l)
				return !ours
			})
		})
	})
	if alone {
		b.add(i, func(m *nlmsg.Builder) { encodeRoute(m, r) }, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	return alone
}

// tooSoon reports whether a route was refused because something has its key.
func tooSoon(op routing.Op, err error) bool {
	return op.Verb == routing.AddRoute && errors.Is(err, unix.EEXIST)
}

// addBeside adds a refused route where only others have its key. In IPv6 that is
// their next hop too, which cannot stand twice.
func (b *batch) addBeside(i int) {
	r := b.ops[i].Route
	k := r.Key()
	var other routing.Route
	beside := false
	b.mirror.View(func(s *State) {
		other, beside = s.ForeignAt(k)
		beside = beside && s.CountRoute(k) == 0
	})
	switch {
	case !beside:
		b.fail(i, unix.EEXIST)
		return
	case r.Family == routing.IPv6:
		b.fail(i, fmt.Errorf("%w: the route of somebody else, protocol %s", unix.EEXIST, other.Protocol))
		return
	}
	b.add(i, func(m *nlmsg.Builder) { encodeRoute(m, r) }, unix.RTM_NEWROUTE, besides)
}
