package routing_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/routing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestPlan holds the whole output of typical hosts in the words of `ip rule`
// and `ip route`. The files are meant to be read.
func TestPlan(t *testing.T) {
	t.Parallel()
	for name, links := range scenarios() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOf(t, links...)
			var b strings.Builder
			for plan := range h.planner.Links() {
				fmt.Fprintf(&b, "# %s %s\n", plan.Link.Name, plan.Role())
				for _, p := range plan.Problems {
					fmt.Fprintf(&b, "# %s: %s: %s\n", p.Link, p.Severity, p.Text)
				}
			}
			b.WriteString(h.kernel.Text())
			golden(t, "plan", name, b.String())
		})
	}
}

// TestFailoverPlan is TestPlan with failover on.
func TestFailoverPlan(t *testing.T) {
	t.Parallel()
	both := func(f *routing.Failover) { f.Dead[0], f.Dead[1] = map[int]struct{}{2: {}}, map[int]struct{}{2: {}} }
	dual := []routing.Link{
		wan0(linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
		wan1(linkLocal("fe80::b/64"), address("2001:db8:b::10/64", 101, dynamic), route(default6, "fe80::2", 101)),
	}
	for name, c := range map[string]struct {
		links []routing.Link
		facts routing.Failover
	}{
		"two uplinks":                        {dual, failover()},
		"two uplinks, one is dead":           {dual, failover(both)},
		"two nics in one subnet, one dead":   {scenarios()["two nics in one subnet"], failover(both)},
		"shares of two uplinks":              {dual, failover(func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} })},
		"two uplinks, all forwarded traffic": {dual, failover(both, func(f *routing.Failover) { f.Forwarded = routing.ForwardedAll })},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost()
			h.planner.SetFailover(c.facts)
			for _, l := range c.links {
				h.install(l)
			}
			h.converge(t)
			h.settled(t)
			golden(t, "failover", name, h.kernel.Text())
		})
	}
}

func golden(t *testing.T, kind, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", kind, name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update to accept:\n%s", path, diff)
	}
}

const (
	default4 = "0.0.0.0/0"
	default6 = "::/0"
)

func mtu(v uint32) func(*routing.Route) {
	return func(r *routing.Route) {
		r.Attributes = r.Attributes.With(func(a *routing.RareAttributes) { a.Metrics[2] = v })
	}
}

func source(s string) func(*routing.Route) {
	return func(r *routing.Route) { r.PreferredSource = addr(s) }
}
func onlink(r *routing.Route)              { r.OnLink = true }
func peer(s string) func(*routing.Address) { return func(a *routing.Address) { a.Peer = addr(s) } }
func prefer(p routing.Preference) func(*routing.Route) {
	return func(r *routing.Route) { r.Preference = p }
}

func wan0(more ...part) routing.Link {
	return link(2, "wan0", append([]part{
		address("192.0.2.10/24", 100, dynamic),
		route(default4, "192.0.2.1", 100, source("192.0.2.10")),
	}, more...)...)
}

func wan1(more ...part) routing.Link {
	return link(3, "wan1", append([]part{
		address("198.51.100.20/24", 101, dynamic),
		route(default4, "198.51.100.1", 101, source("198.51.100.20")),
	}, more...)...)
}

func lan0(more ...part) routing.Link {
	return link(4, "lan0", append([]part{address("10.0.0.1/24", 102)}, more...)...)
}

func linkLocal(s string) part { return address(s, 1024) }

func scenarios() map[string][]routing.Link {
	return map[string][]routing.Link{
		"dhcp uplink of both families": {wan0(
			linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100, mtu(1480)),
		)},
		"two uplinks and a lan": {wan0(), wan1(), lan0()},
		"local link":            {lan0(linkLocal("fe80::4/64"), address("fd00:1::1/64", 102))},
		"never-default with the gateway of its profile": {
			wan0(), link(3, "wan1", address("198.51.100.20/24", 101), gatewayHint("198.51.100.1")),
		},
		"never-default with an off-subnet gateway": {
			link(2, "wan0", address("192.0.2.10/32", 100), gatewayHint("172.31.1.1")),
		},
		"never-default ipv6": {
			link(2, "wan0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100), gatewayHint("fe80::1")),
		},
		"off-subnet gateway onlink": {
			link(2, "wan0", address("192.0.2.10/32", 100), route(default4, "172.31.1.1", 100, onlink)),
		},
		"off-subnet gateway by a link route": {
			link(2, "wan0", address("192.0.2.10/32", 100), route("172.31.1.1/32", "", 100), route(default4, "172.31.1.1", 100)),
		},
		"option 121 with a default": {link(2, "wan0", address("192.0.2.10/24", 100, dynamic),
			route(default4, "192.0.2.1", 100), route("10.8.0.0/16", "192.0.2.254", 100), route("10.9.0.0/16", "192.0.2.253", 100))},
		"option 121 without a default": {link(2, "wan0", address("192.0.2.10/24", 100, dynamic),
			route("10.8.0.0/16", "192.0.2.254", 100))},
		"two addresses in one network": {wan0(bare("192.0.2.11/24"))},
		"two networks with two gateways": {wan0(
			address("198.51.100.20/24", 100), route(default4, "198.51.100.1", 101), route("10.8.0.0/16", "198.51.100.9", 100),
		)},
		"additional network without a gateway": {wan0(address("203.0.113.5/29", 100), address("203.0.113.200/32", 100))},
		"ppp": {link(2, "ppp0", bare("100.64.0.5/32", peer("100.64.0.1")),
			route("100.64.0.1/32", "", 0, source("100.64.0.5")), route(default4, "", 700))},
		"dhcpv6 host address in an advertised network": {link(2, "wan0", linkLocal("fe80::a/64"),
			bare("2001:db8:a::1234/128", dynamic), address("2001:db8:a:0:aa::1/64", 100, dynamic), route(default6, "fe80::1", 100))},
		"dhcpv6 host address without an on-link network": {link(2, "wan0", linkLocal("fe80::a/64"),
			bare("2001:db8:a::1234/128", dynamic), route(default6, "fe80::1", 100))},
		"ipv6 prefix that is not on-link": {link(2, "wan0", linkLocal("fe80::a/64"),
			bare("2001:db8:a::10/64", dynamic), route(default6, "fe80::1", 100))},
		"wide ipv6 networks": {link(2, "lan0", address("fd00::1/8", 100), bare("2001:db8::1/128"), route("2000::/3", "", 100))},
		"temporary deprecated tentative and duplicate": {link(2, "wan0", linkLocal("fe80::a/64"),
			address("2001:db8:a::10/64", 100, dynamic),
			address("2001:db8:a::11/64", 100, dynamic, func(a *routing.Address) { a.Temporary = true }),
			address("2001:db8:a::12/64", 100, dynamic, func(a *routing.Address) { a.Deprecated = true }),
			address("2001:db8:b::13/64", 100, dynamic, func(a *routing.Address) { a.Tentative = true }),
			bare("2001:db8:c::14/64", dynamic, func(a *routing.Address) { a.Failed = true }),
			route(default6, "fe80::1", 100))},
		"legs of a multipath route": {
			wan0(route("10.8.0.0/16", "192.0.2.3", 50), linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100),
				route("2001:db8:f::/48", "fe80::3", 50)),
			wan1(linkLocal("fe80::b/64"), address("2001:db8:b::10/64", 101), route("2001:db8:f::/48", "fe80::4", 50)),
		},
		"two modems with the same address": {
			link(2, "modem0", address("192.168.8.100/24", 100, dynamic), route(default4, "192.168.8.1", 100)),
			link(3, "modem1", address("192.168.8.100/24", 101, dynamic), route(default4, "192.168.8.1", 101)),
		},
		"two nics in one subnet": {
			link(2, "wan0", address("192.0.2.10/24", 100), route(default4, "192.0.2.1", 100),
				linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
			link(3, "wan1", address("192.0.2.11/24", 101), route(default4, "192.0.2.1", 101),
				linkLocal("fe80::b/64"), address("2001:db8:a::11/64", 101, dynamic), route(default6, "fe80::1", 101)),
		},
		"two local links in one subnet": {
			link(2, "lan0", address("10.0.0.1/24", 100), address("fd00:1::1/64", 100)),
			link(3, "lan1", address("10.0.0.2/24", 101), address("fd00:1::2/64", 101)),
		},
		"an uplink and a local link in one subnet": {
			wan0(), link(3, "lan0", address("192.0.2.77/24", 90)),
		},
		"a local network inside a local network": {
			link(2, "lan0", address("10.0.0.1/16", 100), address("fd00:1::1/48", 100)),
			link(3, "lan1", address("10.0.5.1/24", 101), address("fd00:1:0:5::1/64", 101)),
		},
		"a local network inside an uplink's": {
			wan0(), link(3, "lan0", address("192.0.2.65/26", 90)),
		},
		"family left alone": {wan0(
			linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100), route(default6, "fe80::1", 100),
			intent(routing.IPv4, routing.Intent{LeaveAlone: "the profile sets ipv4.route-table"}),
		)},
		"no table left": {
			wan0(), wan1(func(l *routing.Link) { l.Tables = map[routing.Key]routing.TableID{} }),
		},
		"known default that main refused": {
			link(2, "eth0", address("192.0.2.10/24", 0, dynamic), route(default4, "192.0.2.1", 0), known(default4, "192.0.2.1", "192.0.2.10")),
			link(3, "eth1", address("198.51.100.20/24", 0, dynamic), known(default4, "198.51.100.1", "198.51.100.20")),
		},
		"known routes of option 121": {link(2, "eth0", address("192.0.2.10/32", 0, dynamic),
			known("172.31.1.0/24", "", "192.0.2.10"), known("10.8.0.0/16", "172.31.1.9", "192.0.2.10"), known(default4, "172.31.1.1", "192.0.2.10"))},
		"known routes of two networks": {link(2, "eth0",
			address("192.0.2.10/24", 0), route(default4, "192.0.2.1", 0), known(default4, "192.0.2.1", "192.0.2.10"),
			address("203.0.113.20/24", 0), known(default4, "203.0.113.1", "203.0.113.20"))},
		"known routes of an address that is not there": {link(2, "eth0", address("198.51.100.20/24", 0, dynamic),
			known(default4, "192.0.2.1", "192.0.2.10"))},
		"known routes that were moved out of main": {link(2, "eth0", bare("192.0.2.10/24"),
			known("192.0.2.0/24", "", "192.0.2.10"), known(default4, "192.0.2.1", "192.0.2.10"))},
		"known router of ipv6": {link(2, "eth0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 256, dynamic), known(default6, "fe80::1", ""))},
		"known default and no table left": {
			wan0(), link(3, "eth1", address("198.51.100.20/24", 0, dynamic), known(default4, "198.51.100.1", "198.51.100.20"),
				func(l *routing.Link) { l.Tables = map[routing.Key]routing.TableID{} }),
		},
		"foreign interface group": {wan0(group(5))},
		"link down":               {wan0(group(policy.UplinkGroup), down)},
		"router lifetime ended": {link(2, "wan0", group(policy.UplinkGroup),
			linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic))},
		"waiting for an address": {link(2, "wan0", group(policy.UplinkGroup), linkLocal("fe80::a/64"))},
		"an uplink became local": {link(2, "lan0", group(policy.UplinkGroup), address("10.0.0.1/24", 100))},
		"two routers on one link": {wan0(
			route(default4, "192.0.2.2", 200),
			linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic),
			route(default6, "fe80::1", 100), route(default6, "fe80::2", 100),
			route("2001:db8:f::/48", "fe80::1", 100, prefer(routing.PreferenceLow)),
			route("2001:db8:f::/48", "fe80::2", 100, prefer(routing.PreferenceHigh)),
		)},
		"ipv4 by an ipv6 next hop": {link(2, "wan0", address("192.0.2.10/32", 100), linkLocal("fe80::a/64"),
			route(default4, "fe80::1", 100))},
		"address of length zero": {link(2, "lan0", bare("10.0.0.1/0"), bare("2001:db8::1/0"))},
	}
}
