package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// foreverValid is INFINITY_LIFE_TIME of include/net/addrconf.h.
const foreverValid = ^uint32(0)

// linkMessage is RTM_NEWLINK or RTM_DELLINK. Not every announcement carries
// every attribute (wireless events name the interface and little more), so the
// optional ones say whether they were there.
type linkMessage struct {
	index int
	// bridge says that the message is about the port of a bridge: the port
	// leaving is an RTM_DELLINK too (br_ifinfo_notify in
	// net/bridge/br_netlink.c), and the interface stays.
	bridge bool
	flags  uint32
	name   string
	// others are its other names.
	others []string
	group  routing.Optional
	master routing.Optional
	// lower is IFLA_LINK, away says that it is in another network namespace.
	lower   routing.Optional
	away    bool
	mtu     routing.Optional
	kind    string
	address string
	info    bool
	// table is that of a VRF.
	table routing.TableID
}

// kindVRF is the kind of a VRF (DRV_NAME in drivers/net/vrf.c).
const kindVRF = "vrf"

// stands reports whether IFLA_LINK is the interface that carries this one. Of a veth it is its peer.
func (m *linkMessage) stands() bool {
	switch m.kind {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		return !m.away
	default:
		return false
	}
}

// vrfTable reads IFLA_VRF_TABLE.
func vrfTable(b []byte) (t routing.TableID) {
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		if a.Kind == nl.IFLA_VRF_TABLE {
			t = routing.TableID(a.Uint32())
		}
	}
	return t
}

func decodeLink(b []byte) (linkMessage, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return linkMessage{}, fmt.Errorf("reading an interface: %w", nlmsg.ErrTruncated)
	}
	ne := binary.NativeEndian
	l := linkMessage{
		index:  int(int32(ne.Uint32(b[4:]))), //nolint:gosec // ifi_index is an int
		bridge: b[0] != unix.AF_UNSPEC,
		flags:  ne.Uint32(b[8:]),
	}
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofIfInfomsg:]}); a.Next(); {
		switch a.Kind {
		case unix.IFLA_IFNAME:
			l.name = a.Text()
		case unix.IFLA_PROP_LIST:
			for i := (nlmsg.Attributes{Rest: a.Value}); i.Next(); {
				if i.Kind == unix.IFLA_ALT_IFNAME {
					l.others = append(l.others, i.Text())
				}
			}
		case unix.IFLA_GROUP:
			l.group = routing.Some(a.Uint32())
			// IFLA_GROUP is in every complete description; IFLA_MASTER only
			// where there is one.
			l.info = true
		case unix.IFLA_MASTER:
			l.master = routing.Some(a.Uint32())
		case unix.IFLA_LINK:
			l.lower = routing.Some(a.Uint32())
		case unix.IFLA_LINK_NETNSID:
			l.away = true
		case unix.IFLA_MTU:
			l.mtu = routing.Some(a.Uint32())
		case unix.IFLA_ADDRESS:
			l.address = string(a.Value)
		case unix.IFLA_LINKINFO:
			var data []byte
			for i := (nlmsg.Attributes{Rest: a.Value}); i.Next(); {
				switch i.Kind {
				case unix.IFLA_INFO_KIND:
					l.kind = i.Text()
				case unix.IFLA_INFO_DATA:
					data = i.Value
				}
			}
			if l.kind == kindVRF {
				l.table = vrfTable(data)
			}
		}
	}
	return l, nil
}

// addressMessage is RTM_NEWADDR or RTM_DELADDR.
type addressMessage struct {
	family  routing.Family
	index   int
	address routing.Address
}

func decodeAddress(b []byte) (addressMessage, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return addressMessage{}, fmt.Errorf("reading an address: %w", nlmsg.ErrTruncated)
	}
	if !knownFamily(b[0]) {
		return addressMessage{}, nil
	}
	ne := binary.NativeEndian
	m := addressMessage{
		family:  routing.Family(b[0]),
		index:   int(ne.Uint32(b[4:])),
		address: routing.Address{Scope: routing.Scope(b[3])},
	}
	flags := uint32(b[2])
	var local, other netip.Addr
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofIfAddrmsg:]}); a.Next(); {
		var err error
		switch a.Kind {
		case unix.IFA_LOCAL:
			local, err = decodeAddr(m.family, a.Value)
		case unix.IFA_ADDRESS:
			other, err = decodeAddr(m.family, a.Value)
		case unix.IFA_FLAGS:
			flags = a.Uint32()
		case unix.IFA_CACHEINFO:
			if len(a.Value) >= 8 {
				m.address.Dynamic = ne.Uint32(a.Value[4:]) != foreverValid
			}
		}
		if err != nil {
			return addressMessage{}, fmt.Errorf("reading an address: %w", err)
		}
	}
	// IFA_ADDRESS is the prefix address, and the peer where the two differ;
	// IPv6 sends IFA_LOCAL only then (inet6_fill_ifaddr in
	// net/ipv6/addrconf.c).
	switch {
	case !local.IsValid():
		local = other
	case other.IsValid() && other != local:
		m.address.Peer = other
	}
	if !local.IsValid() || int(b[1]) > m.family.Bits() {
		return addressMessage{}, fmt.Errorf("reading an address: no address of length %d", b[1])
	}
	m.address.Prefix = netip.PrefixFrom(local, int(b[1]))
	m.address.Failed = flags&unix.IFA_F_DADFAILED != 0
	if m.family == routing.IPv6 {
		// IPv4 uses the same bit for secondary addresses.
		m.address.Temporary = flags&unix.IFA_F_TEMPORARY != 0
		m.address.Tentative = flags&unix.IFA_F_TENTATIVE != 0
		m.address.Deprecated = flags&unix.IFA_F_DEPRECATED != 0
	}
	return m, nil
}
