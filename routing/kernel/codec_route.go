package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

const (
	viaHeaderSize = 2
	// attributeNexthop is RTA_NH_ID of linux/rtnetlink.h, which neither library has.
	attributeNexthop = 30
)

// fibKey is what the routes that compete for a packet share. Within one key
// the kernel keeps a list: IPv4 aliases, IPv6 siblings.
type fibKey struct {
	family              routing.Family
	table               routing.TableID
	destination, source netip.Prefix
	tos                 uint8
	metric              uint32
}

// isDefault reports whether the key is that of a default route for packets from everywhere.
func (k fibKey) isDefault() bool { return k.destination.Bits() == 0 && k.source.Bits() <= 0 }

// routeHead is what can be said of a route without allocating.
type routeHead struct {
	key      fibKey
	kind     routing.RouteType
	protocol routing.Protocol
	flags    uint32
	device   int
	nexthop  uint32
	// legs says that the ways are in RTA_MULTIPATH.
	legs bool
}

// peekRoute reads as much of struct rtmsg and its attributes as it takes to
// know whether the route is of interest.
func peekRoute(b []byte) (routeHead, error) {
	if len(b) < unix.SizeofRtMsg {
		return routeHead{}, fmt.Errorf("reading a route: %w", nlmsg.ErrTruncated)
	}
	h := routeHead{
		key:  fibKey{family: routing.Family(b[0]), tos: b[3], table: routing.TableID(b[4])},
		kind: routing.RouteType(b[7]), protocol: routing.Protocol(b[5]),
		flags: binary.NativeEndian.Uint32(b[8:]),
	}
	if !knownFamily(b[0]) {
		return h, nil
	}
	var err error
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofRtMsg:]}); a.Next(); {
		switch a.Kind {
		case unix.RTA_DST:
			h.key.destination, err = decodePrefix(h.key.family, a.Value, int(b[1]))
		case unix.RTA_SRC:
			h.key.source, err = decodePrefix(h.key.family, a.Value, int(b[2]))
		case unix.RTA_TABLE:
			h.key.table = routing.TableID(a.Uint32())
		case unix.RTA_PRIORITY:
			h.key.metric = a.Uint32()
		case unix.RTA_OIF:
			h.device = int(int32(a.Uint32())) //nolint:gosec // an interface index is an int
		case unix.RTA_MULTIPATH:
			h.legs = true
		case attributeNexthop:
			h.nexthop = a.Uint32()
		}
		if err != nil {
			return routeHead{}, fmt.Errorf("reading a route: %w", err)
		}
	}
	if b[1] == 0 {
		h.key.destination = h.key.family.Any()
	} else if !h.key.destination.IsValid() {
		return routeHead{}, fmt.Errorf("reading a route: prefix without address: %w", nlmsg.ErrTruncated)
	}
	return h, nil
}

// alias is one entry of the kernel's list under a key: an IPv4 alias with all
// the legs of its fib_info, or an IPv6 route with its siblings.
type alias struct {
	key     fibKey
	kind    routing.RouteType
	nexthop uint32
	legs    []leg
}

// A leg is one way of a route. The kernel keeps a leg whose link is down, dead,
// until the link comes up again.
type leg struct {
	route routing.Route
	dead  bool
}

func decodeRoute(b []byte) (*alias, error) {
	h, err := peekRoute(b)
	if err != nil {
		return nil, err
	}
	// Nearly all routes have one way: that is one allocation.
	both := new(struct {
		alias
		way [1]leg
	})
	out := &both.alias
	*out = alias{key: h.key, kind: h.kind, nexthop: h.nexthop, legs: both.way[:0:0]}
	common := routing.Route{
		Family: h.key.family, Table: h.key.table, Destination: h.key.destination, Source: h.key.source,
		TOS: h.key.tos, Metric: h.key.metric, Type: h.kind,
		Protocol: routing.Protocol(b[5]), Scope: routing.Scope(b[6]), Device: h.device,
	}
	var rare routing.RareAttributes
	var ways []byte
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofRtMsg:]}); a.Next(); {
		switch a.Kind {
		case unix.RTA_PREFSRC:
			common.PreferredSource, err = decodeAddr(common.Family, a.Value)
		case unix.RTA_PREF:
			common.Preference = routing.Preference(a.Uint8())
		case unix.RTA_METRICS:
			decodeMetrics(&rare, a.Value)
		case unix.RTA_MULTIPATH:
			ways = a.Value
		default:
			err = decodeWay(&common, &rare, &a)
		}
		if err != nil {
			return nil, fmt.Errorf("reading a route: %w", err)
		}
	}
	if ways == nil {
		common.Attributes = rare.Share()
		common.OnLink = h.flags&unix.RTNH_F_ONLINK != 0
		both.way[0] = leg{route: common, dead: h.flags&unix.RTNH_F_DEAD != 0}
		out.legs = both.way[:]
		return out, nil
	}
	for len(ways) > 0 {
		if len(ways) < unix.SizeofRtNexthop {
			return nil, fmt.Errorf("reading a next hop: %w", nlmsg.ErrTruncated)
		}
		n := int(binary.NativeEndian.Uint16(ways))
		if n < unix.SizeofRtNexthop || n > len(ways) {
			return nil, fmt.Errorf("reading a next hop: %w", nlmsg.ErrTruncated)
		}
		l := leg{route: common, dead: ways[2]&unix.RTNH_F_DEAD != 0}
		l.route.OnLink = ways[2]&unix.RTNH_F_ONLINK != 0
		l.route.Weight = uint16(ways[3]) + 1
		l.route.Device = int(int32(binary.NativeEndian.Uint32(ways[4:]))) //nolint:gosec // rtnh_ifindex is an int
		own := rare
		for a := (nlmsg.Attributes{Rest: ways[unix.SizeofRtNexthop:n]}); a.Next(); {
			if err := decodeWay(&l.route, &own, &a); err != nil {
				return nil, fmt.Errorf("reading a next hop: %w", err)
			}
		}
		l.route.Attributes = own.Share()
		out.legs = append(out.legs, l)
		ways = ways[min(nlmsg.Align(n), len(ways)):]
	}
	if len(out.legs) == 0 {
		return nil, fmt.Errorf("reading a route: no next hop: %w", nlmsg.ErrTruncated)
	}
	if len(out.legs) == 1 {
		out.legs[0].route.Weight = 0
	}
	return out, nil
}

// decodeWay reads an attribute that a route has once and a multipath route
// once for each leg.
func decodeWay(r *routing.Route, rare *routing.RareAttributes, a *nlmsg.Attributes) (err error) {
	switch a.Kind {
	case unix.RTA_GATEWAY:
		r.Gateway, err = decodeAddr(r.Family, a.Value)
	case unix.RTA_VIA:
		if len(a.Value) < viaHeaderSize {
			return fmt.Errorf("gateway of another family: %w", nlmsg.ErrTruncated)
		}
		r.Gateway, err = decodeAddr(routing.Family(a.Uint16()&0xff), a.Value[viaHeaderSize:])
	case unix.RTA_FLOW:
		rare.Realm = a.Uint32()
	case unix.RTA_ENCAP_TYPE:
		rare.EncapsulationType = a.Uint16()
	case unix.RTA_ENCAP:
		rare.Encapsulation = string(a.Value)
	}
	return err
}

func decodeMetrics(r *routing.RareAttributes, b []byte) {
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		switch {
		case a.Kind == unix.RTAX_CC_ALGO:
			r.Congestion = a.Text()
		case a.Kind != unix.RTAX_UNSPEC && int(a.Kind) < len(r.Metrics):
			r.Metrics[a.Kind] = a.Uint32()
		}
	}
}

// encodeRoute appends the route as the payload of RTM_NEWROUTE.
func encodeRoute(m *nlmsg.Builder, r routing.Route) {
	if r.Family == routing.IPv6 && r.Weight > 0 {
		// The share of an IPv6 route can be told in RTA_MULTIPATH alone.
		encodeRouteKey(m, r, 0)
		encodeLegs(m, r.Family, append([]routing.Leg{firstLeg(r)}, r.Attributes.Get().Legs.All()...))
	} else {
		encodeRouteIdentity(m, r)
	}
	if r.PreferredSource.IsValid() {
		m.Attribute(unix.RTA_PREFSRC, r.PreferredSource.AsSlice())
	}
	if r.Preference != 0 {
		m.Attribute8(unix.RTA_PREF, uint8(r.Preference))
	}
	rare := r.Attributes.Get()
	if rare.Realm != 0 && rare.Legs == (routing.Legs{}) {
		m.Attribute32(unix.RTA_FLOW, rare.Realm)
	}
	if rare.Metrics != (routing.Metrics{}) || rare.Congestion != "" {
		at := m.Open(unix.RTA_METRICS)
		for i, v := range rare.Metrics {
			if v != 0 && i != unix.RTAX_CC_ALGO {
				m.Attribute32(uint16(i), v)
			}
		}
		if rare.Congestion != "" {
			m.Text(unix.RTAX_CC_ALGO, rare.Congestion)
		}
		m.Close(at)
	}
	if rare.EncapsulationType != 0 {
		at := m.Open(unix.RTA_ENCAP_TYPE)
		m.B = binary.NativeEndian.AppendUint16(m.B, rare.EncapsulationType)
		m.Close(at)
		m.Attribute(unix.RTA_ENCAP|unix.NLA_F_NESTED, []byte(rare.Encapsulation))
	}
}

// firstLeg is the way that a route itself is.
func firstLeg(r routing.Route) routing.Leg {
	return routing.Leg{
		Gateway: r.Gateway, Device: r.Device, OnLink: r.OnLink, Realm: r.Attributes.Get().Realm, Weight: r.Weight,
	}
}

// encodeLegs appends RTA_MULTIPATH: struct rtnexthop, each with its attributes.
func encodeLegs(m *nlmsg.Builder, f routing.Family, legs []routing.Leg) {
	at := m.Open(unix.RTA_MULTIPATH)
	for _, l := range legs {
		start := len(m.B)
		var flags, hops byte
		if l.OnLink {
			flags = unix.RTNH_F_ONLINK
		}
		if l.Weight > 0 {
			hops = byte(l.Weight - 1) //nolint:gosec // at most 256
		}
		m.Bytes(0, 0, flags, hops)
		m.Word(uint32(l.Device)) //nolint:gosec // an interface index
		encodeGateway(m, f, l.Gateway)
		if l.Realm != 0 {
			m.Attribute32(unix.RTA_FLOW, l.Realm)
		}
		binary.NativeEndian.PutUint16(m.B[start:], uint16(len(m.B)-start)) //nolint:gosec // some 40 bytes
	}
	m.Close(at)
}

func encodeGateway(m *nlmsg.Builder, f routing.Family, gateway netip.Addr) {
	switch {
	case !gateway.IsValid():
	case routing.FamilyOf(gateway) == f:
		m.Attribute(unix.RTA_GATEWAY, gateway.AsSlice())
	default:
		at := m.Open(unix.RTA_VIA)
		m.B = binary.NativeEndian.AppendUint16(m.B, uint16(routing.FamilyOf(gateway)))
		m.B = append(m.B, gateway.AsSlice()...)
		m.Close(at)
	}
}

// encodeRouteIdentity appends what tells the route from all others, protocol
// included: the payload of RTM_DELROUTE. The kernel skips what carries another
// protocol (fib_table_delete in net/ipv4/fib_trie.c, ip6_route_del in
// net/ipv6/route.c).
func encodeRouteIdentity(m *nlmsg.Builder, r routing.Route) {
	if legs := r.Attributes.Get().Legs.All(); len(legs) > 0 {
		encodeRouteKey(m, r, 0)
		encodeLegs(m, r.Family, append([]routing.Leg{firstLeg(r)}, legs...))
		return
	}
	var flags uint32
	if r.OnLink {
		flags = unix.RTNH_F_ONLINK
	}
	encodeRouteKey(m, r, flags)
	encodeGateway(m, r.Family, r.Gateway)
	if r.Device != 0 {
		m.Attribute32(unix.RTA_OIF, uint32(r.Device)) //nolint:gosec // an interface index
	}
}

// encodeRouteKey appends all but the ways.
func encodeRouteKey(m *nlmsg.Builder, r routing.Route, flags uint32) {
	table := byte(unix.RT_TABLE_COMPAT)
	if r.Table < 256 {
		table = byte(r.Table)
	}
	m.Bytes(byte(r.Family), bits(r.Destination), bits(r.Source), r.TOS,
		table, byte(r.Protocol), byte(r.Scope), byte(r.Type))
	m.Word(flags)
	m.Attribute32(unix.RTA_TABLE, uint32(r.Table))
	if bits(r.Destination) > 0 {
		m.Attribute(unix.RTA_DST, r.Destination.Addr().AsSlice())
	}
	if bits(r.Source) > 0 {
		m.Attribute(unix.RTA_SRC, r.Source.Addr().AsSlice())
	}
	if r.Metric != 0 {
		m.Attribute32(unix.RTA_PRIORITY, r.Metric)
	}
}
