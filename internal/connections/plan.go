package connections

import (
	"net/netip"
	"slices"

	"multihomed/routing"
)

// An Uplink is what [WantedEndpoints] knows of a link.
type Uplink struct {
	// Device is its interface index.
	Device int
	// Served says that NetworkManager makes the link's endpoints itself (it does since 1.40 where
	// net.mptcp.enabled is 1, see connection.mptcp-flags in nm-settings(5)).
	Served bool
	// Addresses are those of the families in which the link is an uplink, the preferred first.
	Addresses []routing.Address
}

// An Endpoint is an address that Multipath TCP may open further subflows from, by a device: what
// `ip mptcp endpoint add ADDRESS dev DEVICE subflow` makes.
type Endpoint struct {
	// ID is the kernel's number of it, 1 to 255.
	ID      uint8      `json:"id"`
	Address netip.Addr `json:"address"`
	Device  int        `json:"device"`
}

// same reports whether two are for the same address and device, whatever their numbers are.
func (e Endpoint) same(o Endpoint) bool { return e.Address == o.Address && e.Device == o.Device }

// maxEndpoints is how many endpoints a network namespace may have (MPTCP_PM_ADDR_MAX in
// net/mptcp/pm_netlink.c), those of others included. Newer kernels allow more; a connection uses two
// of them by default.
const maxEndpoints = 8

// WantedEndpoints chooses the endpoints of uplinks that nobody else serves: their global addresses
// that may be used as a source, neither temporary nor of a private network of IPv6. The first of each
// link and family come first, then the second of each: a link with many addresses leaves room for
// others.
func WantedEndpoints(uplinks []Uplink) []Endpoint {
	uplinks = slices.Clone(uplinks)
	slices.SortStableFunc(uplinks, func(a, b Uplink) int { return a.Device - b.Device })
	var rows [][]Endpoint
	for _, u := range uplinks {
		if u.Served {
			continue
		}
		for _, family := range routing.Families() {
			var row []Endpoint
			for _, a := range u.Addresses {
				if address := a.Prefix.Addr(); routing.FamilyOf(address) == family && usable(a) {
					row = append(row, Endpoint{Address: address, Device: u.Device})
				}
			}
			rows = append(rows, row)
		}
	}
	var out []Endpoint
	for column, more := 0, true; more; column++ {
		more = false
		for _, row := range rows {
			if column < len(row) {
				more = true
				out = append(out, row[column])
			}
		}
	}
	return out[:min(len(out), maxEndpoints)]
}

// usable reports whether a new subflow may have an address as its source.
func usable(a routing.Address) bool {
	address := a.Prefix.Addr()
	return a.Scope == routing.ScopeUniverse && address.IsGlobalUnicast() && (address.Is4() || !address.IsPrivate()) &&
		!a.Failed && !a.Tentative && !a.Deprecated && !a.Temporary
}

// planEndpoints compares the kernel's endpoints with those that we made and those that are wanted.
// Ours are those that have the number, the address and the device that we noted: a number alone may be
// somebody else's by now. Somebody's endpoint of a wanted address serves it.
func planEndpoints(kernel, noted, wanted []Endpoint) (add, remove, keep []Endpoint) {
	others := 0
	taken := map[uint8]bool{0: true}
	for _, k := range kernel {
		taken[k.ID] = true
		switch {
		case !slices.Contains(noted, k):
			others++
		case slices.ContainsFunc(wanted, k.same):
			keep = append(keep, k)
		default:
			remove = append(remove, k)
		}
	}
	for _, w := range wanted {
		if slices.ContainsFunc(keep, w.same) || others+len(keep)+len(add) >= maxEndpoints ||
			slices.ContainsFunc(kernel, func(k Endpoint) bool { return k.Address == w.Address && !slices.Contains(noted, k) }) {
			continue
		}
		// From above: the kernel and NetworkManager number from below.
		for w.ID = 255; taken[w.ID]; w.ID-- {
		}
		taken[w.ID] = true
		add = append(add, w)
	}
	return add, remove, keep
}
