package kernel

import (
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

const (
	// routeCloned is RTM_F_CLONED: an entry of the route cache.
	routeCloned = unix.RTM_F_CLONED
	protocolRA  = routing.Protocol(unix.RTPROT_RA)
)

// apply takes one announcement in.
func (s *State) apply(h nlmsg.Header, payload []byte, why cause) error {
	switch h.Kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return s.applyRoute(h, payload, why)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		m, err := decodeAddress(payload)
		if err != nil || m.family == 0 {
			return err
		}
		s.events[classAddresses]++
		if h.Kind == unix.RTM_NEWADDR {
			s.addressAdded(m)
		} else {
			s.addressDeleted(m)
		}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		m, err := decodeLink(payload)
		if err != nil || m.bridge {
			return err
		}
		s.events[classLinks]++
		if h.Kind == unix.RTM_NEWLINK {
			s.linkSeen(m)
		} else {
			s.linkGone(m.index)
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(payload) > 0 && !knownFamily(payload[0]) {
			return nil
		}
		r, err := decodeRule(payload)
		if err != nil {
			return err
		}
		s.events[ruleClass(r.Family)]++
		if h.Kind == unix.RTM_NEWRULE {
			s.ruleAdded(r, why)
		} else {
			s.ruleDeleted(r, why)
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return s.nexthopChanged(h.Kind, payload)
	}
	return nil
}

func (s *State) applyRoute(h nlmsg.Header, payload []byte, why cause) error {
	head, err := peekRoute(payload)
	if err != nil {
		return err
	}
	if !knownFamily(byte(head.key.family)) || head.flags&routeCloned != 0 {
		return nil
	}
	if !s.owns.OwnsTable(head.key.table) || head.protocol != routing.Multihomed {
		s.strange++
	}
	if head.key.table == routing.TableLocal {
		s.localRoute(h.Kind, head)
		s.local(h.Kind, h.Flags, head)
		return nil
	}
	s.changes.Unbound = s.changes.Unbound || s.wide(head.key)
	s.otherChanged(head.key)
	s.guest(h.Kind, h.Flags, head, payload)
	if !s.keeps(head) {
		return nil
	}
	s.events[routeClass(head.key.family)]++
	a, err := s.read(payload)
	if err != nil {
		return err
	}
	if h.Kind == unix.RTM_DELROUTE {
		s.routeDeleted(a, why)
		return nil
	}
	if a.key.family == routing.IPv6 && a.protocol() == protocolRA && why.port == 0 {
		// The kernel sets the hop limit of the default route after it has
		// announced it (ndisc_router_discovery in net/ipv6/ndisc.c).
		s.doubt(a)
	}
	s.routeAdded(a, h.Flags, why)
	return nil
}

// keeps is the cheap question: can the route matter? Almost all of a million
// routes end here.
func (s *State) keeps(head routeHead) bool {
	if s.owns.OwnsTable(head.key.table) {
		return true
	}
	if head.key.table != routing.TableMain {
		return false
	}
	if head.key.isDefault() || head.kind == routing.RouteThrow || head.kind == routing.RouteUnicast && s.leads(head) {
		return true
	}
	return s.fib.at(head.key) != nil
}

// wanted reports whether an alias is a reason to keep its slot.
func (s *State) wanted(a *alias) bool {
	if a.key.table != routing.TableMain || a.key.isDefault() || a.throws() {
		return true
	}
	return a.kind == routing.RouteUnicast &&
		slices.ContainsFunc(a.legs, func(l leg) bool { return s.Interested(l.route.Device) })
}

func (s *State) routeAdded(a *alias, flags uint16, why cause) {
	slot := s.fib.at(a.key)
	if slot == nil {
		if !s.wanted(a) {
			return
		}
		// NLM_F_EXCL in an announcement says that the entry is the first of
		// its key (fib_table_insert, fib6_add_rt2node).
		s.fib.insert(a, 0).whole = flags&unix.NLM_F_EXCL != 0 || a.key.table != routing.TableMain
		s.touched(a, why)
		if a.key.family == routing.IPv6 && len(a.legs) > 1 {
			// A sibling that was here before, through an interface of no
			// interest, lends its attributes to all in a dump.
			s.doubt(a)
		}
		return
	}
	switch {
	case flags&unix.NLM_F_REPLACE != 0:
		s.routeReplaced(slot, a, why)
	case flags&unix.NLM_F_EXCL != 0:
		for _, old := range slices.Clone(slot.aliases) {
			if !sameAlias(old, a) {
				s.touched(old, cause{})
			}
			s.fib.remove(old)
		}
		s.fib.insert(a, 0)
		slot.whole = true
		s.touched(a, why)
	case a.key.family == routing.IPv6:
		s.siblingsSeen(slot, a, why)
	default:
		if i := slices.IndexFunc(slot.aliases, func(o *alias) bool { return sameAlias(o, a) }); i >= 0 {
			// Seen by a dump before it was announced.
			s.fib.replace(slot.aliases[i], a)
			break
		}
		at := 0
		if flags&unix.NLM_F_APPEND != 0 {
			at = len(slot.aliases)
		}
		s.fib.insert(a, at)
		s.touched(a, why)
	}
	s.settle(a.key)
}

// siblingsSeen takes in an IPv6 route. Its announcement lists all siblings
// (rt6_fill_node in net/ipv6/route.c), with the attributes of one of them.
func (s *State) siblingsSeen(slot *slot, a *alias, why cause) {
	var absorbed []*alias
	for _, old := range slot.aliases {
		if old.kind == a.kind && old.nexthop == a.nexthop && contains(a.legs, old.legs) {
			absorbed = append(absorbed, old)
		}
	}
	if len(absorbed) == 0 {
		s.fib.insert(a, len(slot.aliases))
		s.touched(a, why)
		return
	}
	if len(absorbed) == 1 && sameAlias(absorbed[0], a) {
		s.fib.replace(absorbed[0], a)
		return
	}
	for _, old := range absorbed {
		s.touched(old, why)
	}
	first := absorbed[0].legs[0].route
	for _, old := range absorbed[1:] {
		s.fib.remove(old)
	}
	s.fib.replace(absorbed[0], a)
	s.touched(a, why)
	if len(a.legs) > 1 && !sameManner(first, a.legs[0].route) {
		// A dump shows the attributes of another sibling than this message.
		s.doubt(a)
	}
}

func contains(all, some []leg) bool {
	for _, l := range some {
		if !slices.ContainsFunc(all, func(o leg) bool { return sameWay(l.route, o.route) }) {
			return false
		}
	}
	return true
}

// sameManner compares what siblings may have different and messages show once.
func sameManner(a, b routing.Route) bool {
	return a.Protocol == b.Protocol && a.PreferredSource == b.PreferredSource && a.Preference == b.Preference &&
		sameMetrics(a.Attributes, b.Attributes)
}

// sameMetrics compares without what each way has of its own.
func sameMetrics(a, b routing.Attributes) bool {
	if a == b {
		return true
	}
	x, y := a.Get(), b.Get()
	return x.Metrics == y.Metrics && x.Congestion == y.Congestion
}

// routeReplaced takes NLM_F_REPLACE in: nothing else announces what was there
// before. IPv4 replaces the first entry of the key (fib_table_insert), IPv6 all
// siblings, or the first entry of the same sort (fib6_add_rt2node).
func (s *State) routeReplaced(slot *slot, a *alias, why cause) {
	sure := slot.whole && a.nexthop == 0 && (a.key.family == routing.IPv4 || len(slot.aliases) == 1)
	victims := slot.aliases[:1]
	same := func(o *alias) bool { return o.gatewayed() == a.gatewayed() }
	if i := slices.IndexFunc(slot.aliases, func(o *alias) bool { return a.nexthop != 0 && o.nexthop == a.nexthop }); i >= 0 {
		// A nexthop object changed, and every route of it is announced so
		// (fib_info_notify_update in net/ipv4/fib_trie.c).
		victims = slot.aliases[i : i+1]
	} else if a.key.family == routing.IPv6 {
		if i := slices.IndexFunc(slot.aliases, same); i >= 0 {
			victims = slot.aliases[i : i+1]
			if a.gatewayed() {
				victims = slices.DeleteFunc(slices.Clone(slot.aliases), func(o *alias) bool { return !same(o) })
			}
		}
	}
	victims = slices.Clone(victims)
	if !sure {
		for _, o := range slot.aliases {
			s.doubt(o)
		}
		s.doubt(a)
		if !slot.whole {
			s.doubts.slots[a.key.family] = true
		}
	}
	for _, o := range victims {
		if !sameAlias(o, a) {
			s.touched(o, why)
			s.taken(o, why)
		}
	}
	for _, o := range victims[1:] {
		s.fib.remove(o)
	}
	s.fib.replace(victims[0], a)
	s.touched(a, why)
}

func (s *State) routeDeleted(a *alias, why cause) {
	slot := s.fib.at(a.key)
	if slot == nil {
		return
	}
	if a.key.family == routing.IPv6 {
		s.siblingsDeleted(slot, a, why)
	} else if i := slices.IndexFunc(slot.aliases, func(o *alias) bool {
		return sameAlias(o, a) || a.nexthop != 0 && o.nexthop == a.nexthop && o.kind == a.kind && o.protocol() == a.protocol()
	}); i >= 0 {
		o := slot.aliases[i]
		s.touched(o, why)
		s.taken(o, why)
		s.fib.remove(o)
	} else if slot.whole {
		// It was inferred to be gone, or the slot is not what it seemed.
		for _, o := range slot.aliases {
			s.doubt(o)
		}
	}
	s.settle(a.key)
}

// siblingsDeleted takes out the legs that the message lists: one where one
// route went, all where all went (__ip6_del_rt_siblings).
func (s *State) siblingsDeleted(slot *slot, a *alias, why cause) {
	if a.nexthop != 0 {
		for _, o := range slices.Clone(slot.aliases) {
			if o.kind == a.kind && o.nexthop == a.nexthop {
				s.touched(o, why)
				s.taken(o, why)
				s.fib.remove(o)
			}
		}
		return
	}
	for _, l := range a.legs {
		for _, o := range slices.Clone(slot.aliases) {
			if o.kind != a.kind || o.nexthop != a.nexthop {
				continue
			}
			i := slices.IndexFunc(o.legs, func(x leg) bool { return sameWay(x.route, l.route) })
			if i < 0 {
				continue
			}
			was := o.legs[i]
			if r, ours := s.own(o, was); ours {
				was.route = r
			} else if s.fib.owned(was) {
				was.route.Protocol = 0
			}
			gone := &alias{key: o.key, kind: o.kind, legs: []leg{was}}
			s.touched(gone, why)
			s.taken(gone, why)
			if len(o.legs) == 1 {
				s.fib.remove(o)
			} else {
				s.fib.change(o, func() { o.legs = slices.Delete(slices.Clone(o.legs), i, i+1) })
				// What was shown were the attributes of one of them.
				s.doubt(o)
			}
		}
	}
}

// settle drops a slot that nothing wanted is left in.
func (s *State) settle(k fibKey) {
	slot := s.fib.at(k)
	s.forgetAuthors(k, slot)
	if slot == nil || slices.ContainsFunc(slot.aliases, s.wanted) {
		return
	}
	for _, a := range slot.aliases {
		s.fib.forget(a)
	}
	s.fib.drop(k)
}

// localRoute remembers the local routes that cover more than an address.
func (s *State) localRoute(kind uint16, head routeHead) {
	d := head.key.destination
	if head.kind != routing.RouteLocal || head.key.family != routing.IPv4 || d.IsSingleIP() {
		return
	}
	if kind == unix.RTM_NEWROUTE {
		s.anyIP[d] = struct{}{}
	} else {
		delete(s.anyIP, d)
	}
}

// touched notes that an alias appeared, changed or went.
func (s *State) touched(a *alias, why cause) {
	if a.key.table == routing.TableMain && a.key.isDefault() {
		s.changes.Defaults.Set(a.key.family, true)
	}
	if s.mayThrow(a) {
		s.changes.Thrown.Set(a.key.family, true)
	}
	for _, l := range a.legs {
		if a.key.table == routing.TableMain {
			s.changes.Unbound = s.changes.Unbound || s.wide(a.key)
			if a.kind == routing.RouteUnicast && s.Interested(l.route.Device) {
				enlistIn(s.changes.Destinations, l.route.Device, routing.DestinationOf(l.route))
			}
			if s.fib.owned(l) && !why.own {
				s.changes.Routes[l.route.Key()] = struct{}{}
			}
			continue
		}
		if l.route.Protocol != routing.Multihomed {
			s.changes.Foreign = true
			s.changes.Tables[a.key.table] = struct{}{}
		}
		// What others have may have been in the way of ours.
		if !why.own && (l.route.Protocol == routing.Multihomed || a.key.family == routing.IPv6) {
			s.changes.Routes[l.route.Key()] = struct{}{}
		}
	}
}

// taken notes that a process other than us took routes of ours away.
func (s *State) taken(a *alias, why cause) {
	if why.port == 0 || why.own || a.key.table == routing.TableMain {
		return
	}
	if a.whole() {
		if r, ok := a.multipath(); ok && r.Protocol == routing.Multihomed {
			s.changes.Taken = append(s.changes.Taken, routing.Taken{Route: r, Port: why.port})
		}
		return
	}
	for _, l := range a.legs {
		if l.route.Protocol == routing.Multihomed {
			s.changes.Taken = append(s.changes.Taken, routing.Taken{Route: l.route, Port: why.port})
		}
	}
}

func (s *State) ruleAdded(r routing.Rule, why cause) {
	ours := s.ours(r)
	s.rules.add(r, ours)
	s.ruleTouched(r, ours, why)
}

func (s *State) ruleDeleted(r routing.Rule, why cause) {
	ours := s.ours(r)
	if !s.rules.remove(r) {
		// The mirror is behind its own back: ask.
		s.doubts.rules[r.Family] = true
		return
	}
	s.ruleTouched(r, ours, why)
	if !ours {
		s.changes.Gone[r] = struct{}{}
	}
	if ours && why.port != 0 && !why.own {
		s.changes.Taken = append(s.changes.Taken, routing.Taken{Rule: r, Port: why.port})
	}
}

func (s *State) ruleTouched(r routing.Rule, ours bool, why cause) {
	switch {
	case !ours:
		s.changes.Foreign = true
		s.changes.ForeignRules[r.Family] = struct{}{}
		if r.Action == routing.ActionLookup && s.owns.OwnsTable(r.Table) {
			s.changes.Tables[r.Table] = struct{}{}
		}
		if r.TakesAll() {
			s.doubts.others[otherKey{r.Family, r.Table}] = struct{}{}
		}
	case !why.own:
		s.changes.Rules[r] = struct{}{}
	}
}
