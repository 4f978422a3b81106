package kernel_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestNexthopObjects: routes of main that name an object lead where the object
// does, whether the kernel spells that out or not.
func TestNexthopObjects(t *testing.T) {
	for _, mode := range []string{"1", "0"} {
		t.Run("nexthop_compat_mode="+mode, func(t *testing.T) {
			h := newHost(t)
			h.sysctl("ipv4/nexthop_compat_mode", mode)
			wan0, wan1 := h.veth("wan0"), h.veth("wan1")
			h.veth("far0")
			for i, name := range []string{"wan0", "wan1", "far0"} {
				h.address(name, fmt.Sprintf("10.%d.0.10/24", i))
				h.address(name, fmt.Sprintf("2001:db8:%d::10/64", i))
			}
			h.ip("nexthop add id 1 via 10.0.0.1 dev wan0")
			h.ip("nexthop add id 2 via 10.1.0.1 dev wan1")
			h.ip("nexthop add id 3 via 10.2.0.1 dev far0")
			h.ip("nexthop add id 61 via 2001:db8:0::1 dev wan0")
			h.ip("nexthop add id 100 group 1,5/2,2")
			h.ip("route add 192.0.2.0/24 nhid 1")
			h.ip("route add 198.51.100.0/24 nhid 100")
			h.ip("-6 route add 2001:db8:99::/48 nhid 61")
			m := h.mirror(kernel.Config{Interest: func(name string) bool { return name == "wan0" || name == "wan1" }})
			expect := func(what string, index int, destination string, gateways ...string) {
				t.Helper()
				must(t, m.Sync(t.Context()))
				m.View(func(s *kernel.State) {
					var have []string
					for _, r := range s.Ways(index, routing.Destination{To: netip.MustParsePrefix(destination)}) {
						if r.Device != index {
							t.Errorf("%s: %v", what, r)
						}
						have = append(have, fmt.Sprintf("%s weight %d", r.Gateway, r.Weight))
					}
					if !slices.Equal(have, gateways) {
						t.Errorf("%s: %s through %d by %q, want %q", what, destination, index, have, gateways)
					}
				})
				audit(t, m)
			}
			expect("an object", wan0, "192.0.2.0/24", "10.0.0.1 weight 0")
			expect("an object of IPv6", wan0, "2001:db8:99::/48", "2001:db8::1 weight 0")
			expect("a group", wan0, "198.51.100.0/24", "10.0.0.1 weight 5")
			expect("a group", wan1, "198.51.100.0/24", "10.1.0.1 weight 2")

			h.ip("nexthop replace id 1 via 10.1.0.9 dev wan1")
			expect("replaced", wan0, "192.0.2.0/24")
			expect("replaced", wan1, "192.0.2.0/24", "10.1.0.9 weight 0")
			expect("its group", wan0, "198.51.100.0/24")
			h.ip("nexthop replace id 1 via 10.2.0.9 dev far0")
			expect("now of no interest", wan1, "192.0.2.0/24")
			h.ip("nexthop replace id 1 via 10.0.0.7 dev wan0")
			expect("and back", wan0, "192.0.2.0/24", "10.0.0.7 weight 0")
			expect("and back in its group", wan0, "198.51.100.0/24", "10.0.0.7 weight 5")
			h.ip("nexthop replace id 100 group 2")
			expect("a smaller group", wan0, "198.51.100.0/24")
			expect("a smaller group", wan1, "198.51.100.0/24", "10.1.0.1 weight 0")
			h.ip("route add 203.0.113.0/24 nhid 1")
			expect("announced", wan0, "203.0.113.0/24", "10.0.0.7 weight 0")
			h.ip("route del 203.0.113.0/24 nhid 1")
			expect("and taken back", wan0, "203.0.113.0/24")
			must(t, m.Resync(t.Context()))
			expect("read anew", wan0, "192.0.2.0/24", "10.0.0.7 weight 0")
			h.ip("nexthop del id 1")
			expect("deleted", wan0, "192.0.2.0/24")
			h.down("wan1")
			expect("down", wan1, "198.51.100.0/24")
			h.ip("-6 route del 2001:db8:99::/48 nhid 61")
			expect("IPv6 deleted", wan0, "2001:db8:99::/48")
		})
	}
}
