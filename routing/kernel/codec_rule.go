package kernel

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

const (
	// ruleHeaderSize is the size of struct fib_rule_hdr, which is laid out as struct rtmsg.
	ruleHeaderSize = unix.SizeofRtMsg
	noValue        = ^uint32(0)
)

// Attributes of linux/fib_rules.h that are younger than netlink/nl and x/sys.
const (
	ruleDSCP                = 25
	ruleFlowLabel           = 26
	ruleFlowLabelMask       = 27
	ruleSourcePortMask      = 28
	ruleDestinationPortMask = 29
	ruleDSCPMask            = 30

	// ruleFindSource is FIB_RULE_FIND_SADDR.
	ruleFindSource = 0x10000
	// ruleIIFDetached and ruleOIFDetached are FIB_RULE_IIF_DETACHED and FIB_RULE_OIF_DETACHED.
	ruleIIFDetached = 8
	ruleOIFDetached = 16

	fullDSCP      = 0x3f
	fullFlowLabel = 0xfffff
	fullPort      = 0xffff
)

// detachedFrom lists the names in a rule by which the kernel knows no interface.
func detachedFrom(b []byte, r *routing.Rule) (names []string) {
	flags := binary.NativeEndian.Uint32(b[8:])
	if flags&ruleIIFDetached != 0 {
		names = append(names, r.IIF)
	}
	if flags&ruleOIFDetached != 0 {
		names = append(names, r.OIF)
	}
	return names
}

// decodeRule reads struct fib_rule_hdr and its attributes.
func decodeRule(b []byte) (routing.Rule, error) {
	if len(b) < ruleHeaderSize {
		return routing.Rule{}, fmt.Errorf("reading a rule: %w", nlmsg.ErrTruncated)
	}
	r := routing.Rule{
		Family: routing.Family(b[0]),
		TOS:    b[3],
		Table:  routing.TableID(b[4]),
		Action: routing.Action(b[7]),
		// The other flags are the kernel's own notes (permanent, unresolved, detached)
		// and change by themselves.
		Invert: binary.NativeEndian.Uint32(b[8:])&unix.FIB_RULE_INVERT != 0,
	}
	r.FindSource = binary.NativeEndian.Uint32(b[8:])&ruleFindSource != 0
	fromBits, toBits := int(b[2]), int(b[1])
	for a := (nlmsg.Attributes{Rest: b[ruleHeaderSize:]}); a.Next(); {
		var err error
		switch a.Kind {
		case nl.FRA_SRC:
			r.From, err = decodePrefix(r.Family, a.Value, fromBits)
		case nl.FRA_DST:
			r.To, err = decodePrefix(r.Family, a.Value, toBits)
		default:
			err = decodeRuleAttribute(&r, &a)
		}
		if err != nil {
			return routing.Rule{}, fmt.Errorf("reading a rule: %w", err)
		}
	}
	if fromBits > 0 && !r.From.IsValid() || toBits > 0 && !r.To.IsValid() {
		return routing.Rule{}, fmt.Errorf("reading a rule: prefix without address: %w", nlmsg.ErrTruncated)
	}
	leaveOutFullMasks(&r)
	return r, nil
}

// leaveOutFullMasks writes down what selects the same in one way. Kernels name
// the mask of dscp and of a single port since 6.15 although nobody gave one
// (fib4_rule_fill, fib_nl_fill_rule).
func leaveOutFullMasks(r *routing.Rule) {
	if r.DSCPMask == fullDSCP || !r.DSCP.Set {
		r.DSCPMask = 0
	}
	if r.FlowLabelMask == fullFlowLabel || !r.FlowLabel.Set {
		r.FlowLabelMask = 0
	}
	for _, p := range []*routing.PortRange{&r.SourcePorts, &r.DestinationPorts} {
		if p.Mask == fullPort || p.First == 0 && p.Last == 0 {
			p.Mask = 0
		}
	}
}

// decodeRuleAttribute reads all that is not an address.
func decodeRuleAttribute(r *routing.Rule, a *nlmsg.Attributes) error {
	switch a.Kind {
	case nl.FRA_PAD, nl.FRA_UNSPEC:
	case nl.FRA_IIFNAME:
		r.IIF = a.Text()
	case nl.FRA_OIFNAME:
		r.OIF = a.Text()
	case nl.FRA_GOTO:
		r.Goto = routing.Priority(a.Uint32())
	case nl.FRA_PRIORITY:
		r.Priority = routing.Priority(a.Uint32())
	case nl.FRA_FWMARK:
		r.Mark.Value = a.Uint32()
	case nl.FRA_FWMASK:
		r.Mark.Mask = a.Uint32()
	case nl.FRA_FLOW:
		r.Realms = a.Uint32()
	case nl.FRA_TUN_ID:
		if len(a.Value) != 8 {
			return fmt.Errorf("tunnel of %d bytes: %w", len(a.Value), nlmsg.ErrTruncated)
		}
		r.TunnelID = binary.BigEndian.Uint64(a.Value)
	case nl.FRA_SUPPRESS_PREFIXLEN:
		if v := a.Uint32(); v != noValue {
			r.SuppressPrefixLength = routing.Some(v)
		}
	case nl.FRA_SUPPRESS_IFGROUP:
		if v := a.Uint32(); v != noValue {
			r.SuppressGroup = routing.Some(v)
		}
	case nl.FRA_TABLE:
		r.Table = routing.TableID(a.Uint32())
	case nl.FRA_L3MDEV:
		r.L3MDev = a.Uint8() != 0
	case nl.FRA_UID_RANGE:
		if len(a.Value) != 8 {
			return fmt.Errorf("users of %d bytes: %w", len(a.Value), nlmsg.ErrTruncated)
		}
		r.UIDs = routing.UIDRange{Set: true, First: binary.NativeEndian.Uint32(a.Value), Last: binary.NativeEndian.Uint32(a.Value[4:])}
	case nl.FRA_PROTOCOL:
		r.Protocol = routing.Protocol(a.Uint8())
	case nl.FRA_IP_PROTO:
		r.IPProto = a.Uint8()
	case nl.FRA_SPORT_RANGE:
		return decodePorts(&r.SourcePorts, a.Value)
	case nl.FRA_DPORT_RANGE:
		return decodePorts(&r.DestinationPorts, a.Value)
	case ruleSourcePortMask:
		r.SourcePorts.Mask = a.Uint16()
	case ruleDestinationPortMask:
		r.DestinationPorts.Mask = a.Uint16()
	case ruleDSCP:
		r.DSCP = routing.Some(uint32(a.Uint8()))
	case ruleDSCPMask:
		r.DSCPMask = a.Uint8()
	case ruleFlowLabel, ruleFlowLabelMask:
		if len(a.Value) != 4 {
			return fmt.Errorf("flow label of %d bytes: %w", len(a.Value), nlmsg.ErrTruncated)
		}
		if v := binary.BigEndian.Uint32(a.Value); a.Kind == ruleFlowLabel {
			r.FlowLabel = routing.Some(v)
		} else {
			r.FlowLabelMask = v
		}
	default:
		r.Unknown = true
	}
	return nil
}

func decodePorts(p *routing.PortRange, b []byte) error {
	if len(b) != 4 {
		return fmt.Errorf("ports of %d bytes: %w", len(b), nlmsg.ErrTruncated)
	}
	p.First, p.Last = binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:])
	return nil
}

// encodeRule appends the rule as the payload of a request. vishvananda/netlink
// v1.3.1 drops the suppressor where the table is above 255, and reads no action
// (rule_linux.go; TestLibraryLoses).
func encodeRule(m *nlmsg.Builder, r routing.Rule) {
	table := byte(unix.RT_TABLE_COMPAT)
	if r.Table < 256 {
		table = byte(r.Table)
	}
	m.Bytes(byte(r.Family), bits(r.To), bits(r.From), r.TOS, table, 0, 0, byte(r.Action))
	var flags uint32
	if r.Invert {
		flags = unix.FIB_RULE_INVERT
	}
	if r.FindSource {
		flags |= ruleFindSource
	}
	m.Word(flags)
	if bits(r.From) > 0 {
		m.Attribute(nl.FRA_SRC, r.From.Addr().AsSlice())
	}
	if bits(r.To) > 0 {
		m.Attribute(nl.FRA_DST, r.To.Addr().AsSlice())
	}
	m.Attribute32(nl.FRA_PRIORITY, uint32(r.Priority))
	encodeSelectors(m, r)
	if r.Action == routing.ActionGoto {
		m.Attribute32(nl.FRA_GOTO, uint32(r.Goto))
	}
	if r.L3MDev {
		m.Attribute8(nl.FRA_L3MDEV, 1)
	}
	m.Attribute32(nl.FRA_TABLE, uint32(r.Table))
	if r.Realms != 0 {
		m.Attribute32(nl.FRA_FLOW, r.Realms)
	}
	if r.SuppressPrefixLength.Set {
		m.Attribute32(nl.FRA_SUPPRESS_PREFIXLEN, r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		m.Attribute32(nl.FRA_SUPPRESS_IFGROUP, r.SuppressGroup.Value)
	}
	m.Attribute8(nl.FRA_PROTOCOL, uint8(r.Protocol))
}

// encodeSelectors appends all selectors but the prefixes and tos. An attribute
// that selects nothing is left out: an older kernel refuses what it does not
// know.
func encodeSelectors(m *nlmsg.Builder, r routing.Rule) {
	if r.IIF != "" {
		m.Text(nl.FRA_IIFNAME, r.IIF)
	}
	if r.OIF != "" {
		m.Text(nl.FRA_OIFNAME, r.OIF)
	}
	if r.Mark != (routing.Mark{}) {
		m.Attribute32(nl.FRA_FWMARK, r.Mark.Value)
		m.Attribute32(nl.FRA_FWMASK, r.Mark.Mask)
	}
	if r.TunnelID != 0 {
		m.Attribute(nl.FRA_TUN_ID, binary.BigEndian.AppendUint64(nil, r.TunnelID))
	}
	if r.UIDs.Set {
		m.Attribute(nl.FRA_UID_RANGE, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, r.UIDs.First), r.UIDs.Last))
	}
	if r.IPProto != 0 {
		m.Attribute8(nl.FRA_IP_PROTO, r.IPProto)
	}
	ports := func(p routing.PortRange, kind, mask uint16) {
		if p == (routing.PortRange{}) {
			return
		}
		m.Attribute(kind, binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, p.First), p.Last))
		if p.Mask != 0 {
			m.Attribute(mask, binary.NativeEndian.AppendUint16(nil, p.Mask))
		}
	}
	ports(r.SourcePorts, nl.FRA_SPORT_RANGE, ruleSourcePortMask)
	ports(r.DestinationPorts, nl.FRA_DPORT_RANGE, ruleDestinationPortMask)
	if r.DSCP.Set {
		m.Attribute8(ruleDSCP, uint8(r.DSCP.Value)) //nolint:gosec // six bits
		if r.DSCPMask != 0 {
			m.Attribute8(ruleDSCPMask, r.DSCPMask)
		}
	}
	if r.FlowLabel.Set {
		m.Attribute(ruleFlowLabel, binary.BigEndian.AppendUint32(nil, r.FlowLabel.Value))
		// The kernel wants both (fib6_nl2rule_flowlabel in net/ipv6/fib6_rules.c).
		m.Attribute(ruleFlowLabelMask, binary.BigEndian.AppendUint32(nil, cmp.Or(r.FlowLabelMask, fullFlowLabel)))
	}
}

func bits(p netip.Prefix) byte {
	if !p.IsValid() {
		return 0
	}
	return byte(p.Bits()) //nolint:gosec // at most 128
}

// decodeAddr reads an address of the length its family has.
func decodeAddr(f routing.Family, b []byte) (netip.Addr, error) {
	switch {
	case f == routing.IPv4 && len(b) == 4:
		return netip.AddrFrom4([4]byte(b)), nil
	case f == routing.IPv6 && len(b) == 16:
		return netip.AddrFrom16([16]byte(b)), nil
	default:
		return netip.Addr{}, fmt.Errorf("address of %d bytes in %s", len(b), f)
	}
}

// decodePrefix returns the zero prefix for everything.
func decodePrefix(f routing.Family, b []byte, length int) (netip.Prefix, error) {
	addr, err := decodeAddr(f, b)
	if err != nil || length == 0 {
		return netip.Prefix{}, err
	}
	if length > f.Bits() {
		return netip.Prefix{}, fmt.Errorf("prefix length %d in %s", length, f)
	}
	return netip.PrefixFrom(addr, length), nil
}

// knownFamily tells the families that have routing rules here from the others
// that share the message types (multicast routing rules, MPLS routes).
func knownFamily(b byte) bool { return b == unix.AF_INET || b == unix.AF_INET6 }
