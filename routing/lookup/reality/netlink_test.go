package reality_test

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/lookup"
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
	routeFlowLabel          = 31

	ruleInvert  = 0x2
	lookupTable = 0x1000 // RTM_F_LOOKUP_TABLE
	fibMatch    = 0x2000 // RTM_F_FIB_MATCH
	noValue     = ^uint32(0)

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

func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
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

func decodeRule(b []byte) routing.Rule {
	r := routing.Rule{
		Family: routing.Family(b[0]), TOS: b[3], Table: routing.TableID(b[4]), Action: routing.Action(b[7]),
		Invert: ne.Uint32(b[8:])&ruleInvert != 0,
	}
	to, from := int(b[1]), int(b[2])
	ports := func(p *routing.PortRange, v []byte) { p.First, p.Last = ne.Uint16(v), ne.Uint16(v[2:]) }
	attributes(b[headerSize:], func(kind uint16, v []byte) {
		switch kind {
		case nl.FRA_DST:
			r.To = netip.PrefixFrom(address(v), to)
		case nl.FRA_SRC:
			r.From = netip.PrefixFrom(address(v), from)
		case nl.FRA_IIFNAME:
			r.IIF = strings.TrimRight(string(v), "\x00")
		case nl.FRA_OIFNAME:
			r.OIF = strings.TrimRight(string(v), "\x00")
		case nl.FRA_GOTO:
			r.Goto = routing.Priority(ne.Uint32(v))
		case nl.FRA_PRIORITY:
			r.Priority = routing.Priority(ne.Uint32(v))
		case nl.FRA_FWMARK:
			r.Mark.Value = ne.Uint32(v)
		case nl.FRA_FWMASK:
			r.Mark.Mask = ne.Uint32(v)
		case nl.FRA_TUN_ID:
			r.TunnelID = binary.BigEndian.Uint64(v)
		case nl.FRA_SUPPRESS_PREFIXLEN:
			if n := ne.Uint32(v); n != noValue {
				r.SuppressPrefixLength = routing.Some(n)
			}
		case nl.FRA_SUPPRESS_IFGROUP:
			if n := ne.Uint32(v); n != noValue {
				r.SuppressGroup = routing.Some(n)
			}
		case nl.FRA_TABLE:
			r.Table = routing.TableID(ne.Uint32(v))
		case nl.FRA_L3MDEV:
			r.L3MDev = v[0] != 0
		case nl.FRA_UID_RANGE:
			r.UIDs = routing.UIDRange{Set: true, First: ne.Uint32(v), Last: ne.Uint32(v[4:])}
		case nl.FRA_PROTOCOL:
			r.Protocol = routing.Protocol(v[0])
		case nl.FRA_IP_PROTO:
			r.IPProto = v[0]
		case nl.FRA_SPORT_RANGE:
			ports(&r.SourcePorts, v)
		case nl.FRA_DPORT_RANGE:
			ports(&r.DestinationPorts, v)
		case ruleSourcePortMask:
			r.SourcePorts.Mask = ne.Uint16(v)
		case ruleDestinationPortMask:
			r.DestinationPorts.Mask = ne.Uint16(v)
		case ruleDSCP:
			r.DSCP = routing.Some(uint32(v[0]))
		case ruleDSCPMask:
			r.DSCPMask = v[0]
		case ruleFlowLabel:
			r.FlowLabel = routing.Some(binary.BigEndian.Uint32(v))
		case ruleFlowLabelMask:
			r.FlowLabelMask = binary.BigEndian.Uint32(v)
		case nl.FRA_PAD:
		default:
			r.Unknown = true
		}
	})
	return r
}

// addRoute adds a route whose legs are the given ones.
func addRoute(flags int, legs ...routing.Route) error {
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
	switch {
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

// decodeRoute returns the legs of a route.
func decodeRoute(b []byte) []routing.Route {
	r := routing.Route{
		Family: routing.Family(b[0]), TOS: b[3], Table: routing.TableID(b[4]), Protocol: routing.Protocol(b[5]),
		Scope: routing.Scope(b[6]), Type: routing.RouteType(b[7]),
	}
	to, from := int(b[1]), int(b[2])
	r.Destination = r.Family.Any()
	var legs []routing.Route
	var ways []byte
	attributes(b[headerSize:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			r.Destination = netip.PrefixFrom(address(v), to)
		case unix.RTA_SRC:
			r.Source = netip.PrefixFrom(address(v), from)
		case unix.RTA_OIF:
			r.Device = int(ne.Uint32(v))
		case unix.RTA_GATEWAY:
			r.Gateway = address(v)
		case unix.RTA_PRIORITY:
			r.Metric = ne.Uint32(v)
		case unix.RTA_TABLE:
			r.Table = routing.TableID(ne.Uint32(v))
		case unix.RTA_PREF:
			r.Preference = routing.Preference(v[0])
		case unix.RTA_MULTIPATH:
			ways = v
		}
	})
	for len(ways) >= 8 {
		n := int(ne.Uint16(ways))
		leg := r
		leg.Weight, leg.Device = uint16(ways[3])+1, int(ne.Uint32(ways[4:]))
		attributes(ways[8:n], func(kind uint16, v []byte) {
			if kind == unix.RTA_GATEWAY {
				leg.Gateway = address(v)
			}
		})
		legs = append(legs, leg)
		ways = ways[min((n+3)&^3, len(ways)):]
	}
	if legs == nil {
		legs = []routing.Route{r}
	}
	return legs
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

func rulesOf(tb testing.TB, family routing.Family) []routing.Rule {
	tb.Helper()
	var out []routing.Rule
	for _, b := range dump(tb, unix.RTM_GETRULE, unix.RTM_NEWRULE, family) {
		out = append(out, decodeRule(b))
	}
	return out
}

// read reads all that a lookup depends on.
func read(tb testing.TB, interfaces []lookup.Interface) *lookup.Host {
	tb.Helper()
	h := &lookup.Host{Interfaces: interfaces, Tables: map[routing.Family]map[routing.TableID][]routing.Route{}}
	for _, family := range routing.Families() {
		h.Rules = append(h.Rules, rulesOf(tb, family)...)
		tables := map[routing.TableID][]routing.Route{}
		for _, b := range dump(tb, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, family) {
			legs := decodeRoute(b)
			tables[legs[0].Table] = append(tables[legs[0].Table], legs...)
		}
		h.Tables[family] = tables
	}
	return h
}

// flush deletes all rules, and all routes of ours.
func flush(tb testing.TB) {
	tb.Helper()
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

func flushRoutes(tb testing.TB, family routing.Family, is func(b []byte) bool) {
	tb.Helper()
	for _, b := range dump(tb, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, family) {
		if b[5] == unix.RTPROT_STATIC && is(b) {
			_, err := send(unix.RTM_DELROUTE, 0, unix.NLM_F_ACK, &message{b: b})
			must(tb, err)
		}
	}
}

// ask is RTM_GETROUTE. A flow without a protocol is asked for without one.
func ask(f lookup.Flow, index map[string]int, flags uint32) ([]routing.Route, error) {
	family := routing.FamilyOf(f.To)
	m := &message{b: []byte{byte(family), byte(family.Bits()), 0, f.TOS, 0, 0, 0, 0, 0, 0, 0, 0}}
	ne.PutUint32(m.b[8:], flags)
	m.bytes(unix.RTA_DST, f.To.AsSlice()...)
	if f.From.IsValid() {
		m.b[2] = byte(family.Bits())
		m.bytes(unix.RTA_SRC, f.From.AsSlice()...)
	}
	if f.IIF != "" {
		m.word(unix.RTA_IIF, uint32(index[f.IIF]))
	}
	if f.OIF != "" {
		m.word(unix.RTA_OIF, uint32(index[f.OIF]))
	}
	if f.Mark != 0 {
		m.word(unix.RTA_MARK, f.Mark)
	}
	m.word(unix.RTA_UID, f.UID)
	if f.IPProto != 0 {
		m.bytes(unix.RTA_IP_PROTO, f.IPProto)
	}
	if f.SourcePort != 0 {
		m.bytes(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, f.SourcePort)...)
	}
	if f.DestinationPort != 0 {
		m.bytes(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, f.DestinationPort)...)
	}
	if f.FlowLabel != 0 {
		m.bytes(routeFlowLabel, binary.BigEndian.AppendUint32(nil, f.FlowLabel)...)
	}
	list, err := send(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, 0, m)
	if err != nil {
		return nil, err
	}
	return decodeRoute(list[0]), nil
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
