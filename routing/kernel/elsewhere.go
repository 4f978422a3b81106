package kernel

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// This file keeps what a host has of a link's network elsewhere: addresses on lo
// or a dummy, local routes, and host routes of main. Of the host routes only
// those inside networks that were asked for are kept: a host may have a million
// others.

// A hostRoute is one way to a single address of main.
type hostRoute struct {
	address netip.Addr
	device  int
	metric  uint32
	tos     uint8
}

// A localKey is a route of the table local that somebody made.
type localKey struct {
	prefix netip.Prefix
	metric uint32
	tos    uint8
}

// elsewhere is what is kept for State.Elsewhere.
type elsewhere struct {
	networks map[netip.Prefix]struct{}
	// lengths counts the networks of each family and length: what has to be
	// looked up for an address.
	lengths map[routing.Family]map[int]int
	guests  map[netip.Addr]map[hostRoute]struct{}
	locals  map[int]map[localKey]struct{}
	// multipath says that there was a host route with several ways.
	multipath bool
	// holders are the interfaces whose addresses may be in another's network: lo and the
	// dummies, where they are that network's, and tunnels, where they are not.
	holders map[int]struct{}
}

func newElsewhere() elsewhere {
	return elsewhere{
		networks: map[netip.Prefix]struct{}{}, lengths: map[routing.Family]map[int]int{},
		guests: map[netip.Addr]map[hostRoute]struct{}{}, locals: map[int]map[localKey]struct{}{},
		holders: map[int]struct{}{},
	}
}

func (e *elsewhere) want(networks []netip.Prefix) {
	clear(e.networks)
	clear(e.lengths)
	for _, p := range networks {
		p = p.Masked()
		if _, known := e.networks[p]; known || !p.IsValid() {
			continue
		}
		e.networks[p] = struct{}{}
		f := routing.FamilyOf(p.Addr())
		if e.lengths[f] == nil {
			e.lengths[f] = map[int]int{}
		}
		e.lengths[f][p.Bits()]++
	}
	for a := range e.guests {
		if !e.wants(a) {
			delete(e.guests, a)
		}
	}
}

// wants reports whether an address is in a network that was asked for.
func (e *elsewhere) wants(a netip.Addr) bool {
	for bits := range e.lengths[routing.FamilyOf(a)] {
		if p, err := a.Prefix(bits); err == nil {
			if _, ok := e.networks[p]; ok {
				return true
			}
		}
	}
	return false
}

// SetNetworks sets the networks in which the host routes of main are kept. A new network
// makes the mirror read all of main once: no filter of the kernel selects by destination.
func (m *Mirror) SetNetworks(ctx context.Context, networks []netip.Prefix) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	if err := m.drain(); err != nil {
		return err
	}
	fresh := map[routing.Family]bool{}
	for _, p := range networks {
		if _, known := m.state.elsewhere.networks[p.Masked()]; !known && p.IsValid() {
			fresh[routing.FamilyOf(p.Addr())] = true
		}
	}
	m.state.elsewhere.want(networks)
	for f := range fresh {
		m.state.doubts.guests[f] = true
	}
	return m.sync(ctx)
}

// guests reads the host routes of main that are inside the networks.
func (l loader) guests(ctx context.Context, s *State, f routing.Family) error {
	if len(s.elsewhere.lengths[f]) == 0 {
		return nil
	}
	var found []hostRoute
	q := routeQuestion{family: f, table: routing.TableMain, kind: routing.RouteUnicast}.dump()
	q.restart = func() { found = found[:0] }
	q.each = func(payload []byte) bool {
		if h, err := peekRoute(payload); err == nil && s.isGuest(h) {
			found = append(found, s.ways(h, payload)...)
		}
		return true
	}
	if err := l.requests.dump(ctx, q); err != nil && !absent(err) {
		return err
	}
	before := map[netip.Addr]map[hostRoute]struct{}{}
	for a, ways := range s.elsewhere.guests {
		if routing.FamilyOf(a) == f {
			before[a] = ways
			delete(s.elsewhere.guests, a)
		}
	}
	for _, g := range found {
		enlistIn(s.elsewhere.guests, g.address, g)
	}
	for a := range before {
		for g := range before[a] {
			if _, still := s.elsewhere.guests[a][g]; !still {
				s.elsewhereChanged(single(a))
			}
		}
	}
	for _, g := range found {
		if _, known := before[g.address][g]; !known {
			s.elsewhereChanged(single(g.address))
		}
	}
	return nil
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (s *State) elsewhereChanged(p netip.Prefix) { s.changes.Elsewhere[p] = struct{}{} }

func (s *State) isGuest(h routeHead) bool {
	d := h.key.destination
	return h.key.table == routing.TableMain && d.IsSingleIP() && h.kind == routing.RouteUnicast &&
		h.flags&routeCloned == 0 && knownFamily(byte(h.key.family)) && s.elsewhere.wants(d.Addr())
}

// ways lists the devices of a route to one address.
func (s *State) ways(h routeHead, payload []byte) []hostRoute {
	g := hostRoute{address: h.key.destination.Addr(), device: h.device, metric: h.key.metric, tos: h.key.tos}
	if !h.legs && !h.bare() {
		return []hostRoute{g}
	}
	a, err := s.read(payload)
	if err != nil {
		s.misread(err)
		return nil
	}
	out := make([]hostRoute, 0, len(a.legs))
	s.elsewhere.multipath = true
	for _, l := range a.legs {
		if !l.dead {
			g.device = l.route.Device
			out = append(out, g)
		}
	}
	return out
}

// guest takes a host route of main in.
func (s *State) guest(kind uint16, flags uint16, h routeHead, payload []byte) {
	if !s.isGuest(h) {
		return
	}
	a := h.key.destination.Addr()
	ways := s.ways(h, payload)
	if kind == unix.RTM_NEWROUTE && flags&unix.NLM_F_REPLACE != 0 {
		for g := range s.elsewhere.guests[a] {
			if g.metric == h.key.metric && g.tos == h.key.tos && !slices.Contains(ways, g) {
				delistFrom(s.elsewhere.guests, a, g)
				s.elsewhereChanged(single(a))
			}
		}
	}
	for _, g := range ways {
		_, known := s.elsewhere.guests[a][g]
		switch {
		case kind == unix.RTM_NEWROUTE && !known:
			enlistIn(s.elsewhere.guests, a, g)
			s.elsewhereChanged(single(a))
		case kind == unix.RTM_DELROUTE && known:
			delistFrom(s.elsewhere.guests, a, g)
			s.elsewhereChanged(single(a))
		}
	}
}

// local takes a route of the table local in that somebody made by hand: the
// kernel's own are those of addresses.
func (s *State) local(kind, flags uint16, h routeHead) {
	if h.kind != routing.RouteLocal || h.protocol == routing.ProtocolKernel || h.flags&routeCloned != 0 {
		return
	}
	k := localKey{h.key.destination, h.key.metric, h.key.tos}
	if kind == unix.RTM_DELROUTE || flags&unix.NLM_F_REPLACE != 0 {
		for device, keys := range s.elsewhere.locals {
			_, known := keys[k]
			if known && (device == h.device) == (kind == unix.RTM_DELROUTE) {
				delistFrom(s.elsewhere.locals, device, k)
				s.elsewhereChanged(k.prefix)
			}
		}
	}
	if _, known := s.elsewhere.locals[h.device][k]; !known && kind == unix.RTM_NEWROUTE {
		enlistIn(s.elsewhere.locals, h.device, k)
		s.elsewhereChanged(k.prefix)
	}
}

// elsewhereDown forgets what went with an interface: see waysDown.
func (s *State) elsewhereDown(f routing.Family, device int, how down) {
	for k := range s.elsewhere.locals[device] {
		if routing.FamilyOf(k.prefix.Addr()) == f && (f == routing.IPv6 || how.forced) {
			delistFrom(s.elsewhere.locals, device, k)
			s.elsewhereChanged(k.prefix)
		}
	}
	for a, ways := range s.elsewhere.guests {
		if routing.FamilyOf(a) != f {
			continue
		}
		for g := range ways {
			if g.device == device {
				delistFrom(s.elsewhere.guests, a, g)
				s.elsewhereChanged(single(a))
			}
		}
	}
}

// Elsewhere returns what the host has of a link's networks besides the link's
// own addresses, or others have of them through this host: addresses on lo or a
// dummy, local routes of the interface, of lo or a dummy, and host routes of main behind
// other interfaces. Tunnels and point-to-point interfaces have no part in it. Host
// routes are known inside the networks of SetNetworks alone.
func (s *State) Elsewhere(index int, networks []netip.Prefix) []routing.Elsewhere {
	var out []routing.Elsewhere
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for holder := range s.elsewhere.holders {
		if l := s.links[holder]; holder != index && l != nil {
			for _, a := range l.addresses {
				addr := a.Prefix.Addr()
				if !inside(addr) || l.pointToPoint() && addr.Is4() {
					continue // Sources of IPv4 are addresses anyhow.
				}
				out = append(out, routing.Elsewhere{
					Prefix: single(addr), Own: !l.pointToPoint(), Stranger: l.pointToPoint(), Device: holder,
					Why: fmt.Sprintf("the address %s stands on %s", addr, l.name),
				})
			}
		}
	}
	for device, keys := range s.elsewhere.locals {
		l := s.links[device]
		// AnyIP: `ip route add local PREFIX dev lo` makes a part of a link's network the host's.
		if l == nil || device != index && (!l.holder() || l.pointToPoint()) {
			continue
		}
		for k := range keys {
			if k.prefix.IsSingleIP() && l.holds(k.prefix.Addr()) || device != index && !within(networks, k.prefix) {
				continue
			}
			out = append(out, routing.Elsewhere{
				Prefix: k.prefix, Own: true, Device: device,
				Why: fmt.Sprintf("the table local has %s on %s", k.prefix, l.name),
			})
		}
	}
	for a, ways := range s.elsewhere.guests {
		if !inside(a) {
			continue
		}
		for g := range ways {
			l := s.links[g.device]
			if l == nil || g.device == index || !l.leadsToGuests(routing.FamilyOf(a)) {
				continue
			}
			out = append(out, routing.Elsewhere{
				Prefix: single(a), Device: g.device, Why: fmt.Sprintf("main has a host route to %s behind %s", a, l.name),
			})
		}
	}
	slices.SortFunc(out, func(a, b routing.Elsewhere) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Device, b.Device), strings.Compare(a.Why, b.Why))
	})
	return slices.Compact(out)
}

// within reports whether a prefix lies in one of the networks.
func within(networks []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
}

func (l *link) holds(a netip.Addr) bool {
	for _, o := range l.addresses {
		if o.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// holder reports whether addresses in other interfaces' networks may stand here.
func (l *link) holder() bool {
	return l.flags&unix.IFF_LOOPBACK != 0 || l.kind == "dummy" || l.pointToPoint()
}

// pointToPoint reports whether an interface leads to one peer, or into a tunnel.
// The kinds are those of rtnl_link_ops in drivers/net and net/ipv4, net/ipv6.
func (l *link) pointToPoint() bool {
	if l.flags&unix.IFF_POINTOPOINT != 0 {
		return true
	}
	switch l.kind {
	case "tun", "wireguard", "amneziawg", "ipip", "sit", "gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ip6tnl",
		"vti", "vti6", "xfrm", "vxlan", "geneve", "bareudp", "gtp", "ppp", "ovpn", "fou", "l2tp", "rmnet", "nlmon":
		return true
	default:
		return false
	}
}

// leadsToGuests reports whether an address of a link's network that main has behind an
// interface is that of a guest. A tap (drivers/net/tun.c gives its kind as "tun", too, and
// no IFF_POINTOPOINT) is a virtual machine's cable, or the end of a VPN. The VPN has a network
// on it, and what lies there is not ours; the cable has no address, or one that is no network.
func (l *link) leadsToGuests(f routing.Family) bool {
	if !l.pointToPoint() {
		return true
	}
	for _, a := range l.addresses {
		p := a.Prefix
		if routing.FamilyOf(p.Addr()) == f && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
			return false
		}
	}
	return l.tap()
}

// guestsOf questions the addresses that main has behind a tap: what they are depends on
// the addresses of the tap.
func (s *State) guestsOf(l *link) {
	if !l.tap() {
		return
	}
	for a, ways := range s.elsewhere.guests {
		for g := range ways {
			if g.device == l.index {
				s.elsewhereChanged(single(a))
			}
		}
	}
}

func (l *link) tap() bool { return l.kind == "tun" && l.flags&unix.IFF_POINTOPOINT == 0 }

func enlistIn[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]struct{}{}
	}
	m[k][v] = struct{}{}
}

func delistFrom[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
