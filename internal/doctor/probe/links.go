package probe

import (
	"net/netip"
	"slices"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// Links are those of a status, with what probes need.
func Links(s status.Status, interfaces []routing.Interface) []Link {
	var out []Link
	for _, l := range s.Links {
		i := slices.IndexFunc(interfaces, func(i routing.Interface) bool { return i.Index == l.Index })
		if i < 0 || !l.Up || !l.Carrier {
			continue
		}
		p := Link{Name: escape.Original(l.Interface), MTU: int(interfaces[i].MTU), Addresses: map[routing.Family][]netip.Addr{}, Gateways: map[routing.Family]netip.Addr{}}
		for _, f := range routing.Families() {
			for _, n := range l.Networks {
				if n.Family != f.String() {
					continue
				}
				for _, a := range n.Addresses {
					if !slices.Contains(a.Flags, "tentative") && !slices.Contains(a.Flags, "duplicate") {
						p.Addresses[f] = append(p.Addresses[f], a.Address)
					}
				}
				for _, g := range n.Gateways {
					if g.Via != nil && !p.Gateways[f].IsValid() {
						p.Gateways[f] = *g.Via
					}
				}
			}
		}
		out = append(out, p)
	}
	return out
}
