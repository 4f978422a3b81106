package explain

import (
	"fmt"
	"net/netip"
	"strconv"

	"multihomed/internal/escape"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Packet is a question as somebody writes it. Names of interfaces may be escaped.
type Packet struct {
	// To may be empty where a question without a destination has a meaning.
	To, From string
	OIF, IIF string
	UID      uint32
	Mark     uint32
	// Protocol is a name or a number.
	Protocol                    string
	SourcePort, DestinationPort uint16
	TOS                         uint8
}

// Fields of a packet, for who words what is wrong with one.
const (
	FieldFrom     = "source"
	FieldOIF      = "oif"
	FieldIIF      = "iif"
	FieldProtocol = "protocol"
)

// Flow makes a packet of a question. Say names a field as the user knows it.
func (p Packet) Flow(say func(field string) string) (lookup.Flow, error) {
	f := lookup.Flow{
		IIF: escape.Original(p.IIF), OIF: escape.Original(p.OIF), UID: p.UID, Mark: p.Mark,
		SourcePort: p.SourcePort, DestinationPort: p.DestinationPort, TOS: p.TOS,
	}
	bad := func(field, value, valid string) error {
		return fmt.Errorf("%s cannot be %q: %s", say(field), escape.Text(value), valid)
	}
	if f.IIF == routing.Loopback {
		f.IIF = "" // As rules mean it: sent by this host.
	}
	if p.To != "" {
		to, err := netip.ParseAddr(p.To)
		if err != nil {
			return f, fmt.Errorf("%q is no address; give one such as 203.0.113.1 or 2001:db8::1, names are not resolved", escape.Text(p.To))
		}
		if zone := to.Zone(); zone != "" {
			for _, by := range []struct{ field, name string }{{FieldIIF, f.IIF}, {FieldOIF, f.OIF}} {
				if by.name != "" && by.name != zone {
					return f, fmt.Errorf("the address is on %s, and %s says %s", escape.Name(zone), say(by.field), escape.Name(by.name))
				}
			}
			if to = to.WithZone(""); f.IIF == "" {
				f.OIF = zone
			}
		}
		f.To = to.Unmap()
		if f.To == netip.IPv6Unspecified() && f.IIF == "" {
			f.To = netip.IPv6Loopback() // As sockets mean it (tcp_v6_connect in net/ipv6/tcp_ipv6.c).
		}
	}
	if p.From != "" {
		from, err := netip.ParseAddr(p.From)
		switch {
		case err != nil:
			return f, bad(FieldFrom, p.From, "it is an address such as 192.0.2.10")
		case f.To.IsValid() && from.Unmap().Is4() != f.To.Is4():
			return f, bad(FieldFrom, p.From, "it is of another family than "+f.To.String())
		}
		f.From = from.Unmap().WithZone("")
	}
	if f.IIF != "" && !f.From.IsValid() {
		return f, fmt.Errorf("%s needs %s: a packet that comes in has a source", say(FieldIIF), say(FieldFrom))
	}
	if f.IIF != "" && f.OIF != "" {
		return f, fmt.Errorf("%s and %s exclude each other: a packet that comes in is bound to no interface", say(FieldIIF), say(FieldOIF))
	}
	if p.Protocol != "" {
		number, known := ParseProtocol(p.Protocol)
		if n, err := strconv.ParseUint(p.Protocol, 0, 8); err == nil && n > 0 {
			number, known = uint8(n), true
		}
		if !known {
			return f, bad(FieldProtocol, p.Protocol, "it is a name such as tcp, udp or icmp, or a number from 1 to 255")
		}
		f.IPProto = number
	}
	return f, nil
}
