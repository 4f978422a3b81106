package connections

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/netfilter/nfnetlink_conntrack.h that nl does not have, and
// IPS_SRC_NAT of nf_conntrack_common.h.
const (
	ctaFilter     = 25 // CTA_FILTER
	ctaStatusMask = 26 // CTA_STATUS_MASK

	filterOrigFlags  = 1      // CTA_FILTER_ORIG_FLAGS
	filterReplyFlags = 2      // CTA_FILTER_REPLY_FLAGS
	filterIPDst      = 1 << 1 // CTA_FILTER_FLAG(CTA_IP_DST) of net/netfilter/nf_conntrack_netlink.c

	statusSourceNAT = 1 << 4 // IPS_SRC_NAT
)

// A flow is what matters of a conntrack entry.
type flow struct {
	// replyTo is where the peer sends its answers: with source NAT the address of our link.
	replyTo netip.Addr
	// sourceNAT says that the source was changed, by masquerade, snat or a clash of ports.
	sourceNAT bool
	// original, id and zone name the entry, in the kernel's own bytes: the tuple of the original
	// direction may exist once in each zone, and the id tells a new entry of the same tuple apart.
	original, id, zone []byte
	// client and peer are the ends as this host routes between them: before source NAT, and after
	// destination NAT. port is the peer's, 0 where the protocol has none; mark is the entry's.
	client, peer netip.Addr
	protocol     uint8
	port         uint16
	mark         uint32
}

// hangs reports whether a flow is translated to an address. A connection of this host has its address
// without NAT, and keeps its entry: a firewall that lets answers in by their entry would cut it off.
func (f *flow) hangs(address netip.Addr) bool { return f.sourceNAT && f.replyTo == address }

// decodeFlow reads the attributes of an entry, after its struct nfgenmsg. The flow points into b.
func decodeFlow(b []byte) (flow, bool) {
	if len(b) < nl.SizeofNfgenmsg {
		return flow{}, false
	}
	attributes, err := nl.ParseRouteAttr(b[nl.SizeofNfgenmsg:])
	if err != nil {
		return flow{}, false
	}
	var f flow
	for _, a := range attributes {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case nl.CTA_TUPLE_ORIG:
			f.original = a.Value
			f.client = readTuple(a.Value).source
		case nl.CTA_TUPLE_REPLY:
			t := readTuple(a.Value)
			f.replyTo, f.peer, f.protocol, f.port = t.destination, t.source, t.protocol, t.sourcePort
		case nl.CTA_MARK:
			if len(a.Value) == 4 {
				f.mark = binary.BigEndian.Uint32(a.Value)
			}
		case nl.CTA_STATUS:
			f.sourceNAT = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value)&statusSourceNAT != 0
		case nl.CTA_ID:
			f.id = a.Value
		case nl.CTA_ZONE:
			f.zone = a.Value
		}
	}
	return f, f.original != nil && f.replyTo.IsValid()
}

// A tuple is one direction of a flow. Addresses that are missing are invalid.
type tuple struct {
	source, destination netip.Addr
	protocol            uint8
	sourcePort          uint16
}

func readTuple(b []byte) (t tuple) {
	outer, err := nl.ParseRouteAttr(b)
	if err != nil {
		return tuple{}
	}
	for _, o := range outer {
		inner, err := nl.ParseRouteAttr(o.Value)
		if err != nil {
			return tuple{}
		}
		for _, i := range inner {
			is := [2]uint16{o.Attr.Type & nl.NLA_TYPE_MASK, i.Attr.Type & nl.NLA_TYPE_MASK}
			switch n := len(i.Value); {
			case is == [2]uint16{nl.CTA_TUPLE_IP, nl.CTA_IP_V4_SRC} && n == 4, is == [2]uint16{nl.CTA_TUPLE_IP, nl.CTA_IP_V6_SRC} && n == 16:
				t.source, _ = netip.AddrFromSlice(i.Value)
			case is == [2]uint16{nl.CTA_TUPLE_IP, nl.CTA_IP_V4_DST} && n == 4, is == [2]uint16{nl.CTA_TUPLE_IP, nl.CTA_IP_V6_DST} && n == 16:
				t.destination, _ = netip.AddrFromSlice(i.Value)
			case is == [2]uint16{nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_NUM} && n == 1:
				t.protocol = i.Value[0]
			case is == [2]uint16{nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_SRC_PORT} && n == 2:
				t.sourcePort = binary.BigEndian.Uint16(i.Value)
			}
		}
	}
	return t
}

// canFilter reports whether the kernel can select the flows of an address. Of IPv6 it selects those of
// every other address (ctnetlink_filter_match_tuple in net/netfilter/nf_conntrack_netlink.c takes
// ipv6_addr_cmp the wrong way round, from Linux 5.8 to at least 6.18), so it must never delete by it.
func canFilter(address netip.Addr) bool { return address.Is4() }

// selection are the attributes that select the flows that hang on an address. For a deletion,
// canFilter must be true. CTA_TUPLE_REPLY is among them then: a kernel that does not know CTA_FILTER
// takes a deletion for one of the entry with this tuple, which is incomplete, and refuses
// (ctnetlink_parse_tuple). Without the tuple it would take it for one of all entries. For a list, the
// attributes are a hint: an older kernel lists more.
func selection(address netip.Addr) []nl.NetlinkRequestData {
	translated := nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(statusSourceNAT))
	mask := nl.NewRtAttr(ctaStatusMask, nl.BEUint32Attr(statusSourceNAT))
	if !canFilter(address) {
		return []nl.NetlinkRequestData{translated, mask}
	}
	const nested = unix.NLA_F_NESTED
	reply := nl.NewRtAttr(nested|nl.CTA_TUPLE_REPLY, nil)
	reply.AddRtAttr(nested|nl.CTA_TUPLE_IP, nil).AddRtAttr(nl.CTA_IP_V4_DST, address.AsSlice())
	flags := nl.NewRtAttr(nested|ctaFilter, nil)
	flags.AddRtAttr(filterOrigFlags, nl.Uint32Attr(0))
	flags.AddRtAttr(filterReplyFlags, nl.Uint32Attr(filterIPDst))
	return []nl.NetlinkRequestData{translated, mask, reply, flags}
}
