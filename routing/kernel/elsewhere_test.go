package kernel_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestElsewhere: what a link's network has besides the link's own addresses.
func TestElsewhere(t *testing.T) {
	h := newHost(t)
	wan, guests, other := h.veth("wan0"), h.veth("br0"), h.veth("lan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	must(t, h.link.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "vpn0"}, Mode: netlink.TUNTAP_MODE_TUN}))
	vpn := h.up("vpn0")
	h.ip("route add 192.0.2.50/32 dev br0")
	h.ip("-6 route add 2001:db8::50/128 dev br0")
	h.ip("route add 192.0.2.60/32 dev vpn0")
	h.ip("route add 198.51.100.1/32 dev br0")
	h.ip("route add local 203.0.113.9/32 dev wan0 proto 66")
	m := h.mirror(kernel.Config{Interest: func(name string) bool { return name == "wan0" }})
	networks := []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8::/64")}
	lo := 0
	m.View(func(s *kernel.State) {
		lo, _ = s.IndexOf("lo")
		for index, want := range map[int]bool{wan: false, guests: false, lo: false, vpn: true} {
			if l, _ := s.Link(index); l.PointToPoint != want {
				t.Errorf("%s: point to point %t", l.Name, l.PointToPoint)
			}
		}
	})
	expect := func(what string, changed []string, want ...routing.Elsewhere) {
		t.Helper()
		var have []routing.Elsewhere
		// An IPv6 address is announced some time later (addrconf_dad_work in
		// net/ipv6/addrconf.c).
		for end := time.Now().Add(20 * time.Second); ; {
			must(t, m.Sync(t.Context()))
			m.View(func(s *kernel.State) { have = s.Elsewhere(wan, networks) })
			for i := range have {
				if have[i].Why == "" {
					t.Errorf("%s: no reason for %v", what, have[i])
				}
				have[i].Why = ""
			}
			if cmp.Equal(want, have, compareAddr, cmpopts.EquateEmpty()) || time.Now().After(end) {
				break
			}
		}
		if diff := cmp.Diff(want, have, compareAddr, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +have):\n%s", what, diff)
		}
		var prefixes []string
		for p := range maps.Keys(m.Take().Elsewhere) {
			prefixes = append(prefixes, p.String())
		}
		slices.Sort(prefixes)
		if !slices.Equal(prefixes, changed) {
			t.Errorf("%s: changed %v, want %v", what, prefixes, changed)
		}
		audit(t, m)
	}
	local := routing.Elsewhere{Prefix: prefix("203.0.113.9/32"), Own: true, Device: wan}
	four := routing.Elsewhere{Prefix: prefix("192.0.2.50/32"), Device: guests}
	six := routing.Elsewhere{Prefix: prefix("2001:db8::50/128"), Device: guests}
	expect("before anybody asked", nil, local)
	must(t, m.SetNetworks(t.Context(), networks))
	expect("asked", []string{"192.0.2.50/32", "192.0.2.60/32", "2001:db8::50/128"}, four, local, six)

	onLo := routing.Elsewhere{Prefix: prefix("192.0.2.77/32"), Own: true, Device: lo}
	h.ip("addr add 192.0.2.77/32 dev lo")
	expect("address on lo", []string{"192.0.2.77/32"}, four, onLo, local, six)

	// A tunnel's address is no source of the link, in whatever network it lies.
	h.ip("addr add 2001:db8::77/66 dev vpn0 nodad")
	h.ip("addr add 192.0.2.78/32 dev vpn0")
	inside := routing.Elsewhere{Prefix: prefix("2001:db8::77/128"), Stranger: true, Device: vpn}
	expect("address on a tunnel", []string{"192.0.2.78/32", "2001:db8::77/128"}, four, onLo, local, six, inside)
	h.ip("addr del 2001:db8::77/66 dev vpn0")
	h.ip("addr del 192.0.2.78/32 dev vpn0")
	// With the last address of IPv4 go its routes.
	expect("no address on it", []string{"192.0.2.60/32", "192.0.2.78/32", "2001:db8::77/128"}, four, onLo, local, six)
	h.ip("addr del 192.0.2.77/32 dev lo")
	expect("no address on lo", []string{"192.0.2.77/32"}, four, local, six)

	h.ip("route add local 203.0.113.64/26 dev wan0 proto 66")
	h.ip("-6 route add local 2001:db8:9::/64 dev wan0")
	more := routing.Elsewhere{Prefix: prefix("203.0.113.64/26"), Own: true, Device: wan}
	more6 := routing.Elsewhere{Prefix: prefix("2001:db8:9::/64"), Own: true, Device: wan}
	expect("local networks", []string{"2001:db8:9::/64", "203.0.113.64/26"}, four, local, more, six, more6)
	h.ip("route del local 203.0.113.64/26 dev wan0")
	h.ip("-6 route del local 2001:db8:9::/64 dev wan0")
	expect("no local networks", []string{"2001:db8:9::/64", "203.0.113.64/26"}, four, local, six)

	// AnyIP: a part of the network is this host's. What lies outside of it is nobody's.
	h.ip("route add local 192.0.2.128/28 dev lo")
	h.ip("-6 route add local 2001:db8::a:0/112 dev lo")
	h.ip("route add local 198.51.100.0/24 dev lo")
	anyIP := routing.Elsewhere{Prefix: prefix("192.0.2.128/28"), Own: true, Device: lo}
	anyIP6 := routing.Elsewhere{Prefix: prefix("2001:db8::a:0/112"), Own: true, Device: lo}
	expect("AnyIP", []string{"192.0.2.128/28", "198.51.100.0/24", "2001:db8::a:0/112"}, four, anyIP, local, six, anyIP6)
	h.ip("route del local 192.0.2.128/28 dev lo")
	h.ip("-6 route del local 2001:db8::a:0/112 dev lo")
	h.ip("route del local 198.51.100.0/24 dev lo")
	expect("no AnyIP", []string{"192.0.2.128/28", "198.51.100.0/24", "2001:db8::a:0/112"}, four, local, six)

	// A guest on a tap is one until the tap has a network: then it is a VPN's.
	must(t, h.link.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP}))
	tap := h.up("tap0")
	h.ip("route add 192.0.2.65/32 dev tap0")
	h.ip("addr add 192.0.2.10/32 dev tap0")
	cable := routing.Elsewhere{Prefix: prefix("192.0.2.65/32"), Device: tap}
	expect("a guest's cable", []string{"192.0.2.10/32", "192.0.2.65/32"}, four, cable, local, six)
	h.ip("addr add 192.0.2.66/28 dev tap0")
	expect("a network on it", []string{"192.0.2.65/32", "192.0.2.66/32"}, four, local, six)
	h.ip("addr del 192.0.2.66/28 dev tap0")
	expect("no network on it", []string{"192.0.2.65/32", "192.0.2.66/32"}, four, cable, local, six)
	h.ip("link del tap0")
	expect("no cable", []string{"192.0.2.10/32", "192.0.2.65/32"}, four, local, six)

	h.ip("route replace 192.0.2.50/32 dev lan0")
	moved := routing.Elsewhere{Prefix: prefix("192.0.2.50/32"), Device: other}
	expect("the guest moved", []string{"192.0.2.50/32"}, moved, local, six)
	h.ip("link set lan0 down")
	expect("its bridge is down", []string{"192.0.2.50/32"}, local, six)
	h.ip("route add 192.0.2.51/32 dev br0")
	h.ip("-6 route del 2001:db8::50/128")
	five := routing.Elsewhere{Prefix: prefix("192.0.2.51/32"), Device: guests}
	expect("another guest", []string{"192.0.2.51/32", "2001:db8::50/128"}, five, local)
	must(t, m.Resync(t.Context()))
	m.Take()
	expect("read anew", nil, five, local)
	h.ip("link del br0")
	expect("no bridge", []string{"192.0.2.51/32"}, local)
	h.ip("addr del 192.0.2.10/24 dev wan0")
	expect("no address", []string{"203.0.113.9/32"})
	must(t, m.SetNetworks(t.Context(), nil))
	expect("nobody asks", nil)
}

// TestForeignRulesByFamily tells of which family rules changed.
func TestForeignRulesByFamily(t *testing.T) {
	h := newHost(t)
	m := h.mirror(kernel.Config{})
	h.ip("-6 rule add fwmark 1 lookup 77 priority 100")
	must(t, m.Drain())
	c := m.Take()
	if _, four := c.ForeignRules[routing.IPv4]; four || len(c.ForeignRules) != 1 || !c.Foreign {
		t.Errorf("changes: %+v", c)
	}
	m.View(func(s *kernel.State) {
		if rules := s.Foreign(routing.IPv6); len(rules) != 3 || rules[1].Mark.Value != 1 {
			t.Errorf("rules: %v", rules)
		}
		if rules := s.Foreign(routing.IPv4); len(rules) != 3 {
			t.Errorf("rules: %v", rules)
		}
	})
	ours, foreign := rule(100, "", 10001), rule(100, "", 78)
	foreign.Protocol = 4
	w := h.writer(m)
	h.apply(w, addRule(ours))
	must(t, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(foreign) }))
	h.apply(w, moveRule(ours))
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if have := s.BandOrder(routing.IPv4, 100); !slices.Equal(have, []routing.Rule{foreign, ours}) {
			t.Errorf("order: %v", have)
		}
	})
}

// TestDestinations: a route that changes names its destination and not its link.
func TestDestinations(t *testing.T) {
	h := newHost(t)
	wan0, wan1 := h.veth("wan0"), h.veth("wan1")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan1", "198.51.100.10/24")
	h.ip("route add 10.0.0.0/8 via 192.0.2.1 metric 7")
	m := h.mirror(kernel.Config{Interest: func(name string) bool { return name == "wan0" || name == "wan1" }})
	to := routing.Destination{To: prefix("10.0.0.0/8")}
	expect := func(what string, index int, metrics ...uint32) {
		t.Helper()
		must(t, m.Sync(t.Context()))
		var have []uint32
		m.View(func(s *kernel.State) {
			for _, r := range s.Ways(index, to) {
				if r.Destination != to.To || r.Device != index {
					t.Errorf("%s: %v", what, r)
				}
				have = append(have, r.Metric)
			}
			facts, _ := s.LinkFacts(index)
			link, _ := s.Link(index)
			if len(facts.Routes) > 0 || facts.Name != link.Name || len(link.Routes) == 0 {
				t.Errorf("%s: facts %+v", what, facts)
			}
		})
		if !slices.Equal(have, metrics) {
			t.Errorf("%s: metrics %v, want %v", what, have, metrics)
		}
		audit(t, m)
	}
	expect("at first", wan0, 7)
	m.Take()
	h.ip("route add 10.0.0.0/8 metric 5 nexthop via 192.0.2.1 nexthop via 198.51.100.1")
	h.ip("route add 10.0.0.0/8 via 198.51.100.1 metric 9")
	expect("more metrics", wan0, 5, 7)
	expect("more metrics", wan1, 5, 9)
	c := m.Take()
	want := map[int]map[routing.Destination]struct{}{wan0: {to: {}}, wan1: {to: {}}}
	if diff := cmp.Diff(want, c.Destinations, compareAddr); diff != "" {
		t.Errorf("destinations (-want +have):\n%s", diff)
	}
	for _, metric := range []string{"7", "5", "9"} {
		h.ip("route del 10.0.0.0/8 metric " + metric)
	}
	expect("none left", wan0)
	expect("none left", wan1)
}
