package kernel

import (
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// This file is what the kernel does without a word. IPv4 flushes routes
// silently: "IPv4 does not generate this message", says
// Documentation/networking/ip-sysctl.rst of skip_notify_on_dev_down, which
// makes IPv6 do the same. Every statement here is checked against the running
// kernel by TestMirrorFollowsTheKernel.

const carrierFlags = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING

// leastMTU6 is IPV6_MIN_MTU.
const leastMTU6 = 1280

func (s *State) linkSeen(m linkMessage) {
	l := s.links[m.index]
	if l == nil {
		l = &link{index: m.index, addresses: map[addressKey]routing.Address{}, interested: s.interest(m.name)}
		s.links[m.index] = l
		s.changes.Links[m.index] = struct{}{}
	}
	before := *l
	l.flags = m.flags
	if m.name != "" && m.name != l.name {
		if s.names[l.name] == l.index {
			delete(s.names, l.name)
		}
		l.name = m.name
		s.names[l.name] = l.index
	}
	if m.group.Set {
		l.group = m.group.Value
	}
	if m.mtu.Set {
		l.mtu = m.mtu.Value
	}
	if m.kind != "" {
		l.kind = m.kind
	}
	if m.address != "" {
		l.hardware = m.address
	}
	if m.info {
		l.master = m.master.Value
	}
	const matter = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING
	if before.name != l.name || before.group != l.group || before.flags&matter != l.flags&matter {
		s.changes.Links[l.index] = struct{}{}
	}
	if l.holder() {
		s.elsewhere.holders[l.index] = struct{}{}
	}
	switch {
	case before.up() && !l.up():
		s.waysDown(routing.IPv4, l.index, down{})
		s.waysDown(routing.IPv6, l.index, down{})
	case !before.up() && l.up():
		s.waysUp4(l.index)
		if s.elsewhere.multipath {
			// Dead ways live again, without a word in IPv4.
			s.doubts.guests = map[routing.Family]bool{routing.IPv4: true, routing.IPv6: true}
		}
	}
	if l.up() {
		s.waysUp6(l.index)
	}
	if before.flags&carrierFlags != l.flags&carrierFlags {
		s.doubtOthers()
		s.nexthopsDoubtful()
	}
	for a := range s.fib.nexthops {
		// A nexthop object goes with the carrier of its interface, and its
		// routes with it (nexthop_flush_dev in net/ipv4/nexthop.c).
		if a.leads(l.index) {
			s.doubt(a)
		}
	}
	if before.mtu >= leastMTU6 && l.mtu < leastMTU6 {
		// All of IPv6 goes, from an interface that is down as well
		// (addrconf_notify, NETDEV_CHANGEMTU).
		s.doubtDevice(routing.IPv6, l.index)
	}
	if before.master != l.master {
		s.changes.Unbound = true
		s.doubtOthers()
		// Entering or leaving a VRF flushes the routes of the interface
		// (fib_netdev_event, NETDEV_CHANGEUPPER, in
		// net/ipv4/fib_frontend.c); a bridge or bond does not.
		for _, f := range routing.Families() {
			s.doubtDevice(f, l.index)
		}
	}
}

func (s *State) linkGone(index int) {
	l := s.links[index]
	if l == nil {
		return
	}
	for _, a := range slices.Collect(maps.Values(l.addresses)) {
		s.addressDeleted(addressMessage{family: routing.FamilyOf(a.Prefix.Addr()), index: index, address: a})
	}
	for _, f := range routing.Families() {
		s.waysDown(f, index, down{forced: true, unregistered: true})
	}
	if s.names[l.name] == index {
		delete(s.names, l.name)
	}
	s.nexthopsDoubtful()
	s.doubtOthers()
	delete(s.links, index)
	s.departures++
	delete(s.elsewhere.holders, index)
	s.changes.Links[index] = struct{}{}
}

func (s *State) addressAdded(m addressMessage) {
	l := s.links[m.index]
	if l == nil {
		return
	}
	k := keyOfAddress(m.address)
	old, known := l.addresses[k]
	l.addresses[k] = m.address
	if m.family == routing.IPv4 {
		if !known {
			s.hosts[m.address.Prefix.Addr()]++
		}
		// fib_inetaddr_event, NETDEV_UP: fib_sync_up.
		if l.up() {
			s.waysUp4(l.index)
		}
	} else if !known {
		// The first sign of disable_ipv6 being taken back.
		s.waysUp6(l.index)
	}
	if known && old == m.address {
		// Only lifetimes changed. Where the kernel follows router
		// advertisements itself, this is the sign that one came: it changes
		// preference and hop limit of the router's route without a word
		// (ndisc_router_discovery).
		if m.family == routing.IPv6 && m.address.Dynamic && s.advertised(l.index) {
			s.doubtDevice(routing.IPv6, l.index)
		}
		return
	}
	s.changes.Links[l.index] = struct{}{}
	s.guestsOf(l)
	if l.holder() && !known {
		s.elsewhereChanged(single(m.address.Prefix.Addr()))
	}
}

func (s *State) advertised(device int) bool {
	for a := range s.fib.byDevice[device] {
		if a.key.family == routing.IPv6 && a.protocol() == protocolRA {
			return true
		}
	}
	return false
}

func (s *State) addressDeleted(m addressMessage) {
	l := s.links[m.index]
	if l == nil {
		return
	}
	addr := m.address.Prefix.Addr()
	k := keyOfAddress(m.address)
	if _, known := l.addresses[k]; known {
		delete(l.addresses, k)
		s.doubtOthers()
		s.changes.Links[l.index] = struct{}{}
		s.guestsOf(l)
		if l.holder() {
			s.elsewhereChanged(single(addr))
		}
		if m.family == routing.IPv4 {
			if s.hosts[addr]--; s.hosts[addr] == 0 {
				delete(s.hosts, addr)
			}
		}
	}
	if m.family == routing.IPv6 {
		s.sourceGone6(addr, l)
		if !l.has(routing.IPv6) && l.up() && len(s.fib.byDevice[l.index]) > 0 {
			// disable_ipv6, or an MTU below 1280: the routes go too, silently
			// if skip_notify_on_dev_down says so (addrconf_ifdown).
			s.doubtDevice(routing.IPv6, l.index)
		}
		return
	}
	if !l.has(routing.IPv4) {
		// fib_inetaddr_event, NETDEV_DOWN: with the last address all routes of
		// the device go, in every table.
		s.waysDown(routing.IPv4, l.index, down{forced: true})
	}
	s.sourceGone4(addr, l)
}

// sourceGone4 is fib_sync_down_addr in net/ipv4/fib_semantics.c: routes of main
// whose preferred source the host no longer has go away. Those in other tables
// stay.
func (s *State) sourceGone4(addr netip.Addr, l *link) {
	if s.hosts[addr] > 0 {
		return
	}
	unsure := l.master != 0 // the table is that of the VRF, if it is one
	for p := range s.anyIP {
		unsure = unsure || p.Contains(addr)
	}
	for a := range s.fib.eachHeld(s.fib.bySource[addr]) {
		switch {
		case a.key.family != routing.IPv4 || a.key.table != routing.TableMain:
		case unsure:
			s.doubt(a)
		default:
			s.touched(a, cause{})
			s.fib.remove(a)
			s.settle(a.key)
		}
	}
}

// sourceGone6 is rt6_remove_prefsrc in net/ipv6/route.c: routes keep standing
// and lose the address. Until 6.5 only those of the same device, later those of
// all devices from which the address is not reachable elsewhere; so this only
// asks, and assumes the common case until the answer is there.
func (s *State) sourceGone6(addr netip.Addr, l *link) {
	for a := range s.fib.eachHeld(s.fib.bySource[addr]) {
		if a.key.family != routing.IPv6 {
			continue
		}
		s.doubt(a)
		if !a.leads(l.index) {
			continue
		}
		s.touched(a, cause{})
		s.fib.change(a, func() {
			a.legs = slices.Clone(a.legs)
			for i := range a.legs {
				a.legs[i].route.PreferredSource = netip.Addr{}
			}
		})
		s.touched(a, cause{})
	}
}

// down says how the ways through an interface ended.
type down struct {
	// forced: the last address went, so routes of scope host go too.
	forced bool
	// unregistered: the interface is gone.
	unregistered bool
}

// waysDown is fib_sync_down_dev in net/ipv4/fib_semantics.c and fib6_ifdown in
// net/ipv6/route.c: a route through the interface goes, a multipath route loses
// the leg, which is dead until the interface is up again.
func (s *State) waysDown(f routing.Family, device int, how down) {
	s.elsewhereDown(f, device, how)
	for a := range s.fib.eachHeld(s.fib.byDevice[device]) {
		if a.key.family != f {
			continue
		}
		if a.nexthop != 0 {
			// Such a route stands as long as its nexthop object, which follows
			// rules of its own (nexthop_flush_dev).
			s.doubt(a)
			continue
		}
		alive := 0
		legs := slices.Clone(a.legs)
		for i, l := range legs {
			switch {
			case l.dead:
			case l.route.Device != device:
				alive++
			case f == routing.IPv4 && !how.forced && l.route.Scope == routing.ScopeHost:
				// Such a next hop is of scope nowhere and survives
				// (fib_check_nh, fib_sync_down_dev).
				alive++
			default:
				legs[i].dead = true
			}
		}
		s.touched(a, cause{})
		switch {
		case alive == 0, how.unregistered && f == routing.IPv4:
			if f == routing.IPv6 {
				// A dead leg elsewhere may have come to life already: its
				// interface gets ready on the kernel's own time (waysUp6).
				s.doubtElsewhere(a, device)
			}
			s.fib.remove(a)
		case how.unregistered:
			s.fib.change(a, func() {
				a.legs = slices.DeleteFunc(legs, func(l leg) bool { return l.route.Device == device })
			})
			s.doubt(a)
		default:
			a.legs = legs
		}
		s.settle(a.key)
	}
}

// waysUp4 is fib_sync_up: dead legs through the interface live again.
func (s *State) waysUp4(device int) {
	for a := range s.fib.byDevice[device] {
		if a.key.family == routing.IPv4 {
			s.revive(a, device)
		}
	}
}

// waysUp6 is rt6_sync_up, which the kernel calls when it finds the interface
// ready, some time between up and carrier (addrconf_notify in
// net/ipv6/addrconf.c). A description of the interface follows, be it the same
// as the last one.
func (s *State) waysUp6(device int) {
	for a := range s.fib.byDevice[device] {
		if a.key.family == routing.IPv6 && slices.ContainsFunc(a.legs, func(l leg) bool { return l.dead }) {
			s.doubtDevice(routing.IPv6, device)
		}
	}
}

func (s *State) revive(a *alias, device int) {
	isDead := func(l leg) bool { return l.dead && l.route.Device == device }
	if !slices.ContainsFunc(a.legs, isDead) {
		return
	}
	legs := slices.Clone(a.legs)
	for i := range legs {
		if isDead(legs[i]) {
			legs[i].dead = false
		}
	}
	a.legs = legs
	s.touched(a, cause{})
}
