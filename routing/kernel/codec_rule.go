package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/routing"
)

const (
	ruleHeaderSize = 12
	// FIB_RULE_INVERT of linux/fib_rules.h. The other flags are the kernel's
	// own notes (permanent, unresolved, detached) and change by themselves.
	ruleInvert = 0x2
	// tableCompat is RT_TABLE_COMPAT: the number does not fit the header.
	tableCompat = 252
	noValue     = ^uint32(0)
)

// decodeRule reads struct fib_rule_hdr and its attributes. Attributes that
// routing.Rule has no name for end up in Other.
func decodeRule(b []byte) (routing.Rule, error) {
	if len(b) < ruleHeaderSize {
		return routing.Rule{}, fmt.Errorf("reading a rule: %w", errTruncated)
	}
	r := routing.Rule{
		Family: routing.Family(b[0]),
		Table:  routing.TableID(b[4]),
		Action: routing.Action(b[7]),
	}
	fromBits, toBits, tos := int(b[2]), int(b[1]), b[3]
	invert := binary.NativeEndian.Uint32(b[8:]) & ruleInvert
	other := tos != 0 || invert != 0
	for a := (attributes{rest: b[ruleHeaderSize:]}); a.next(); {
		var err error
		switch a.kind {
		case nl.FRA_PAD, nl.FRA_UNSPEC:
		case nl.FRA_SRC:
			r.From, err = decodePrefix(r.Family, a.value, fromBits)
		case nl.FRA_DST:
			r.To, err = decodePrefix(r.Family, a.value, toBits)
		case nl.FRA_IIFNAME:
			r.IIF = a.string()
		case nl.FRA_OIFNAME:
			r.OIF = a.string()
		case nl.FRA_PRIORITY:
			r.Priority = routing.Priority(a.uint32())
		case nl.FRA_TABLE:
			r.Table = routing.TableID(a.uint32())
		case nl.FRA_PROTOCOL:
			r.Protocol = routing.Protocol(a.uint8())
		case nl.FRA_SUPPRESS_PREFIXLEN:
			if v := a.uint32(); v != noValue {
				r.SuppressPrefixLength = routing.Some(v)
			}
		case nl.FRA_SUPPRESS_IFGROUP:
			if v := a.uint32(); v != noValue {
				r.SuppressGroup = routing.Some(v)
			}
		default:
			other = true
		}
		if err != nil {
			return routing.Rule{}, fmt.Errorf("reading a rule: %w", err)
		}
	}
	if fromBits > 0 && !r.From.IsValid() || toBits > 0 && !r.To.IsValid() {
		return routing.Rule{}, fmt.Errorf("reading a rule: prefix without address: %w", errTruncated)
	}
	if other {
		raw := append([]byte(nil), b...)
		binary.NativeEndian.PutUint32(raw[8:], invert)
		r.Other = string(raw)
	}
	return r, nil
}

// encodeRule appends the rule as the payload of a request. vishvananda/netlink
// cannot be used for it: it drops the suppressor where the table is above 255
// (rule_linux.go) and knows no action but lookup when it reads.
func encodeRule(m *builder, r routing.Rule) {
	if r.Other != "" {
		m.b = append(m.b, r.Other...)
		return
	}
	table := byte(tableCompat)
	if r.Table < 256 {
		table = byte(r.Table)
	}
	m.bytes(byte(r.Family), bits(r.To), bits(r.From), 0, table, 0, 0, byte(r.Action))
	m.word(0)
	if bits(r.From) > 0 {
		m.attribute(nl.FRA_SRC, r.From.Addr().AsSlice())
	}
	if bits(r.To) > 0 {
		m.attribute(nl.FRA_DST, r.To.Addr().AsSlice())
	}
	m.attribute32(nl.FRA_PRIORITY, uint32(r.Priority))
	if r.IIF != "" {
		m.text(nl.FRA_IIFNAME, r.IIF)
	}
	if r.OIF != "" {
		m.text(nl.FRA_OIFNAME, r.OIF)
	}
	m.attribute32(nl.FRA_TABLE, uint32(r.Table))
	if r.SuppressPrefixLength.Set {
		m.attribute32(nl.FRA_SUPPRESS_PREFIXLEN, r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		m.attribute32(nl.FRA_SUPPRESS_IFGROUP, r.SuppressGroup.Value)
	}
	m.attribute8(nl.FRA_PROTOCOL, uint8(r.Protocol))
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
