package routing

import (
	"net/netip"
	"slices"
)

// Keys returns the leases a link needs: one per on-link prefix and family, and one
// for all its host addresses of a family, sorted. A family that its owner keeps for
// itself needs none.
func Keys(l Link) []Key {
	var keys []Key
	for _, a := range l.Addresses {
		if k, ok := keyOf(l, a); ok && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

// KeyOf returns the lease that an address of a link lives under, false if the
// link does not have it or it takes no part.
func KeyOf(l Link, address netip.Addr) (Key, bool) {
	for _, a := range l.Addresses {
		if a.Prefix.Addr() == address {
			return keyOf(l, a)
		}
	}
	return Key{}, false
}

// TakesPart reports whether an address of a link has a lease to live under.
func TakesPart(l Link, a Address) bool {
	_, takesPart := keyOf(l, a)
	return takesPart
}

// subnetBits6 is the length of an IPv6 network in which hosts make their own
// addresses (RFC 4862, RFC 7421).
const subnetBits6 = 64

func compareKeys(a, b Key) int {
	if a.Family != b.Family {
		return int(a.Family) - int(b.Family)
	}
	if a.Interface != b.Interface {
		if a.Interface < b.Interface {
			return -1
		}
		return 1
	}
	return a.Prefix.Compare(b.Prefix)
}

// keyOf returns the lease an address lives under, and false for an address that
// takes no part: link-local and loopback ones, and one that another host owns.
func keyOf(l Link, a Address) (Key, bool) {
	addr := a.Prefix.Addr()
	if !a.Prefix.IsValid() || a.Failed || a.Scope == ScopeHost ||
		addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() {
		return Key{}, false
	}
	// An IPv6 link-local address never leaves its link: nothing to choose. An
	// IPv4 one (RFC 3927) is an address like others to the routing tables.
	if addr.Is6() && addr.IsLinkLocalUnicast() {
		return Key{}, false
	}
	family := FamilyOf(addr)
	if l.Intents[family].LeaveAlone != "" {
		return Key{}, false
	}
	prefix := onLinkPrefix(l, a)
	if prefix.IsSingleIP() {
		prefix = family.HostAddresses()
	}
	return Key{Family: family, Interface: l.Name, Prefix: prefix}, true
}

// OfHosts reports whether the key is that of the host addresses of an interface.
func (k Key) OfHosts() bool { return k.Prefix.IsSingleIP() }

// onLinkPrefix is the network of an address: its own prefix; on a
// point-to-point link the address itself; and for an IPv6 /128, which is what
// DHCPv6 hands out, the network that router advertisements declared on-link
// around it (RFC 5942, section 4). Such a network is a /64 or longer: a route
// like `2000::/3 dev ppp0` is a way, not a network.
func onLinkPrefix(l Link, a Address) netip.Prefix {
	addr := a.Prefix.Addr()
	host := netip.PrefixFrom(addr, addr.BitLen())
	// The kernel takes an address with length 0, but no network is everything:
	// a rule for it would catch the packets of the whole host.
	if a.Peer.IsValid() || a.Prefix.Bits() == 0 {
		return host
	}
	if addr.Is4() || !a.Prefix.IsSingleIP() {
		return a.Prefix.Masked()
	}
	best := host
	for _, r := range l.Routes {
		d := r.Destination
		if r.Family != IPv6 || r.Gateway.IsValid() || r.Source.IsValid() || d.Bits() < subnetBits6 || d.IsSingleIP() || !d.Contains(addr) {
			continue
		}
		if best == host || d.Bits() > best.Bits() {
			best = d
		}
	}
	return best
}
