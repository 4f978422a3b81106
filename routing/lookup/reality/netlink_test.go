package reality_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// Attributes and flags that are younger than the libraries, and flags of rules
// (linux/fib_rules.h, linux/rtnetlink.h).
const (
	ruleDSCP                = 25
	ruleFlowLabel           = 26
	ruleFlowLabelMask       = 27
	ruleSourcePortMask      = 28
	ruleDestinationPortMask = 29
	ruleDSCPMask            = 30

	routeNexthop = 30

	ruleInvert = 0x2
	noValue    = ^uint32(0)

	headerSize = 12
)

var ne = binary.NativeEndian

// A message is the payload of a request under way.
type message struct{ b []byte }

// Len and Serialize make it a nl.NetlinkRequestData.
func (m *message) Len() int          { return len(m.b) }
func (m *message) Serialize() []byte { return m.b }

func (m *message) bytes(kind uint16, v ...byte) {
	m.b = ne.AppendUint16(m.b, uint16(4+len(v)))
	m.b = ne.AppendUint16(m.b, kind)
	m.b = append(m.b, v...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) word(kind uint16, v uint32) { m.bytes(kind, ne.AppendUint32(nil, v)...) }

func (m *message) text(kind uint16, v string) { m.bytes(kind, append([]byte(v), 0)...) }

// send does one request on a socket of the current network namespace.
func send(kind, answer uint16, flags int, m *message) ([][]byte, error) {
	request := nl.NewNetlinkRequest(int(kind), flags)
	request.AddData(m)
	return request.Execute(unix.NETLINK_ROUTE, answer)
}

// attributes walks the attributes of a message.
func attributes(b []byte, each func(kind uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		each(ne.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func bitsOf(p netip.Prefix) byte { return byte(max(p.Bits(), 0)) }

func addRule(r routing.Rule) error {
	m := &message{b: []byte{byte(r.Family), bitsOf(r.To), bitsOf(r.From), r.TOS, 0, 0, 0, byte(r.Action), 0, 0, 0, 0}}
	if r.Invert {
		ne.PutUint32(m.b[8:], ruleInvert)
	}
	if r.From.IsValid() {
		m.bytes(nl.FRA_SRC, r.From.Addr().AsSlice()...)
	}
	if r.To.IsValid() {
		m.bytes(nl.FRA_DST, r.To.Addr().AsSlice()...)
	}
	m.word(nl.FRA_PRIORITY, uint32(r.Priority))
	if r.IIF != "" {
		m.text(nl.FRA_IIFNAME, r.IIF)
	}
	if r.OIF != "" {
		m.text(nl.FRA_OIFNAME, r.OIF)
	}
	if r.Mark != (routing.Mark{}) {
		m.word(nl.FRA_FWMARK, r.Mark.Value)
		m.word(nl.FRA_FWMASK, r.Mark.Mask)
	}
	if r.UIDs.Set {
		m.bytes(nl.FRA_UID_RANGE, ne.AppendUint32(ne.AppendUint32(nil, r.UIDs.First), r.UIDs.Last)...)
	}
	if r.IPProto != 0 {
		m.bytes(nl.FRA_IP_PROTO, r.IPProto)
	}
	ports := func(p routing.PortRange, kind, mask uint16) {
		if p == (routing.PortRange{}) {
			return
		}
		m.bytes(kind, ne.AppendUint16(ne.AppendUint16(nil, p.First), p.Last)...)
		if p.Mask != 0 {
			m.bytes(mask, ne.AppendUint16(nil, p.Mask)...)
		}
	}
	ports(r.SourcePorts, nl.FRA_SPORT_RANGE, ruleSourcePortMask)
	ports(r.DestinationPorts, nl.FRA_DPORT_RANGE, ruleDestinationPortMask)
	if r.TunnelID != 0 {
		m.bytes(nl.FRA_TUN_ID, binary.BigEndian.AppendUint64(nil, r.TunnelID)...)
	}
	if r.DSCP.Set {
		m.bytes(ruleDSCP, byte(r.DSCP.Value))
		if r.DSCPMask != 0 {
			m.bytes(ruleDSCPMask, r.DSCPMask)
		}
	}
	if r.FlowLabel.Set {
		m.bytes(ruleFlowLabel, binary.BigEndian.AppendUint32(nil, r.FlowLabel.Value)...)
		m.bytes(ruleFlowLabelMask, binary.BigEndian.AppendUint32(nil, r.FlowLabelMask)...)
	}
	if r.L3MDev {
		m.bytes(nl.FRA_L3MDEV, 1)
	}
	if r.Action == routing.ActionGoto {
		m.word(nl.FRA_GOTO, uint32(r.Goto))
	}
	if r.Table != 0 {
		m.word(nl.FRA_TABLE, uint32(r.Table))
	}
	if r.SuppressPrefixLength.Set {
		m.word(nl.FRA_SUPPRESS_PREFIXLEN, r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		m.word(nl.FRA_SUPPRESS_IFGROUP, r.SuppressGroup.Value)
	}
	_, err := send(unix.RTM_NEWRULE, 0, unix.NLM_F_CREATE|unix.NLM_F_ACK, m)
	return err
}

// addRoute adds a route whose legs are the given ones.
func addRoute(legs ...routing.Route) error { return addRouteBy(0, 0, legs...) }

// addRouteBy adds one that leads to a nexthop object if there is a number.
func addRouteBy(nexthop uint32, flags int, legs ...routing.Route) error {
	r := legs[0]
	m := &message{b: []byte{
		byte(r.Family), bitsOf(r.Destination), bitsOf(r.Source), r.TOS, 0, unix.RTPROT_STATIC, byte(r.Scope), byte(r.Type), 0, 0, 0, 0,
	}}
	m.word(unix.RTA_TABLE, uint32(r.Table))
	if r.Destination.Bits() > 0 {
		m.bytes(unix.RTA_DST, r.Destination.Addr().AsSlice()...)
	}
	if r.Source.IsValid() {
		m.bytes(unix.RTA_SRC, r.Source.Addr().AsSlice()...)
	}
	if r.Metric != 0 {
		m.word(unix.RTA_PRIORITY, r.Metric)
	}
	if r.Preference != 0 {
		m.bytes(unix.RTA_PREF, byte(r.Preference))
	}
	if r.PreferredSource.IsValid() {
		m.bytes(unix.RTA_PREFSRC, r.PreferredSource.AsSlice()...)
	}
	switch {
	case nexthop != 0:
		m.word(routeNexthop, nexthop)
	case len(legs) > 1:
		ways := &message{}
		for _, l := range legs {
			one := &message{b: []byte{0, 0, unix.RTNH_F_ONLINK, 0}}
			one.b = ne.AppendUint32(one.b, uint32(l.Device))
			one.bytes(unix.RTA_GATEWAY, l.Gateway.AsSlice()...)
			ne.PutUint16(one.b, uint16(len(one.b)))
			ways.b = append(ways.b, one.b...)
		}
		m.bytes(unix.RTA_MULTIPATH, ways.b...)
	case r.Device != 0:
		m.word(unix.RTA_OIF, uint32(r.Device))
		if r.Gateway.IsValid() {
			ne.PutUint32(m.b[8:], unix.RTNH_F_ONLINK)
			m.bytes(unix.RTA_GATEWAY, r.Gateway.AsSlice()...)
		}
	}
	_, err := send(unix.RTM_NEWROUTE, 0, flags|unix.NLM_F_CREATE|unix.NLM_F_ACK, m)
	return err
}

// dump lists what the kernel has of one family.
func dump(tb testing.TB, kind, answer uint16, family routing.Family) [][]byte {
	tb.Helper()
	m := &message{b: make([]byte, headerSize)}
	m.b[0] = byte(family)
	list, err := send(kind, answer, unix.NLM_F_DUMP, m)
	must(tb, err)
	return list
}

// flush deletes all rules, and all routes of ours.
func flush(tb testing.TB) {
	tb.Helper()
	list, err := send(unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, unix.NLM_F_DUMP, &message{b: make([]byte, unix.SizeofNhmsg)})
	must(tb, err)
	for _, b := range list {
		attributes(b[unix.SizeofNhmsg:], func(kind uint16, v []byte) {
			if kind == unix.NHA_ID {
				m := &message{b: make([]byte, unix.SizeofNhmsg)}
				m.bytes(kind, v...)
				// A group goes with its last member.
				if _, err := send(unix.RTM_DELNEXTHOP, 0, unix.NLM_F_ACK, m); !errors.Is(err, unix.ENOENT) {
					must(tb, err)
				}
			}
		})
	}
	for _, family := range routing.Families() {
		for _, b := range dump(tb, unix.RTM_GETRULE, unix.RTM_NEWRULE, family) {
			_, err := send(unix.RTM_DELRULE, 0, unix.NLM_F_ACK, &message{b: b})
			must(tb, err)
		}
		flushRoutes(tb, family, func([]byte) bool { return true })
	}
}

// flushTable removes what install put into a table.
func flushTable(tb testing.TB, family routing.Family, table routing.TableID) {
	tb.Helper()
	flushRoutes(tb, family, func(b []byte) bool {
		attributes, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
		must(tb, err)
		for _, a := range attributes {
			if a.Attr.Type == unix.RTA_TABLE {
				return ne.Uint32(a.Value) == uint32(table)
			}
		}
		return uint32(b[4]) == uint32(table)
	})
}

// deletion is what deletes a listed route. One by a nexthop object is listed with its ways, which
// may not be said beside the number.
func deletion(b []byte) *message {
	out := &message{b: slices.Clone(b[:headerSize])}
	byNumber := false
	attributes(b[headerSize:], func(kind uint16, _ []byte) { byNumber = byNumber || kind == routeNexthop })
	attributes(b[headerSize:], func(kind uint16, v []byte) {
		if !byNumber || kind != unix.RTA_OIF && kind != unix.RTA_GATEWAY && kind != unix.RTA_MULTIPATH {
			out.bytes(kind, v...)
		}
	})
	return out
}

func flushRoutes(tb testing.TB, family routing.Family, is func(b []byte) bool) {
	tb.Helper()
	for _, b := range dump(tb, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, family) {
		if b[5] == unix.RTPROT_STATIC && is(b) {
			if _, err := send(unix.RTM_DELROUTE, 0, unix.NLM_F_ACK, deletion(b)); err != nil {
				tb.Fatalf("deleting a route of table %d: %v: %x", b[4], err, b)
			}
		}
	}
}

// addNexthop makes a nexthop object: one way, or a group of others.
func addNexthop(id uint32, family routing.Family, device int, gateway netip.Addr, members ...uint32) error {
	m := &message{b: []byte{byte(family), 0, unix.RTPROT_STATIC, 0, unix.RTNH_F_ONLINK, 0, 0, 0}}
	if len(members) > 0 {
		m.b[0], m.b[4] = unix.AF_UNSPEC, 0
	}
	m.word(unix.NHA_ID, id)
	switch {
	case len(members) > 0:
		var group []byte
		for _, member := range members {
			group = append(ne.AppendUint32(group, member), 0, 0, 0, 0)
		}
		m.bytes(unix.NHA_GROUP, group...)
	case device == 0:
		m.b[4] = 0
		m.bytes(unix.NHA_BLACKHOLE)
	default:
		m.word(unix.NHA_OIF, uint32(device))
		m.bytes(unix.NHA_GATEWAY, gateway.AsSlice()...)
	}
	_, err := send(unix.RTM_NEWNEXTHOP, 0, unix.NLM_F_CREATE|unix.NLM_F_ACK, m)
	return err
}

// openReader opens the product's reader in the namespace of this thread.
func openReader(tb testing.TB) *kernel.Reader {
	tb.Helper()
	r, err := kernel.OpenReader()
	must(tb, err)
	tb.Cleanup(func() { must(tb, r.Close()) })
	return r
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
