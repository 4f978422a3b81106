package hosts_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"multihomed/test/lab"
)

// leavesBy promises that what has one of these sources leaves by a provider's
// link, forwarded or not: the second link.
func leavesBy(name string, sources ...string) Promise {
	const link = "wan1"
	list := addrs(sources...)
	has := func(a netip.Addr) bool { return slices.Contains(list, a) }
	return Promise{
		Name: name,
		Of: func(w *world, q Question) bool {
			switch q := q.(type) {
			case Lookup:
				return has(q.From) && q.Mark == 0 && q.UID == 0 && w.toOutside(q.Dst)
			case Dial:
				return has(q.From.Addr) && w.toOutside(q.Dst)
			case Call:
				return has(q.Dst) && q.By == w.link(link)
			}
			return false
		},
		Want: func(w *world, q Question, _, with string) string {
			isp := w.link(link)
			var want string
			switch q := q.(type) {
			case Lookup:
				want = w.by(isp, q.Dst)
			case Dial:
				want = fmt.Sprintf("seen by %s from %v, answered", isp.Name(), q.From.Addr)
			case Call:
				want = "answered by " + isp.Name()
			}
			if with == want {
				return ""
			}
			return want
		},
	}
}

// during restricts a promise's difference to steps.
func during(p Promise, steps ...string) Promise {
	p.Steps = steps
	return p
}

// toAny: the question is about one of these destinations.
func toAny(q Question, list ...string) bool {
	var dst netip.Addr
	switch q := q.(type) {
	case Lookup:
		dst = q.Dst
	case Dial:
		dst = q.Dst
	}
	return slices.Contains(list, dst.String())
}

// sources asks with sources that are not the links' own.
func sources(list ...string) []sender {
	var out []sender
	for _, a := range addrs(list...) {
		out = append(out, sender{From: a})
	}
	return out
}

const guest4, guest6 = "100.64.1.60", "2001:db8:0:2::60"

// Guests on a tap, as virtual machines have one.
const tapped4, tapped6 = "100.64.1.80", "2001:db8:0:2::80"

var addressHosts = []Host{
	{
		Name:      "a routed guest",
		What:      "LXD with a routed NIC: a guest has an address of the second uplink's network, by a host route, proxy ARP and proxy NDP. Another one is a virtual machine on a tap.",
		Lab:       routing,
		Publishes: true,
		Build: func(w *world) {
			b, err := w.NewBridge("br-guest", netip.MustParsePrefix("169.254.0.1/16"))
			w.must(err)
			w.must(b.AddAddr(netip.MustParsePrefix("fd99::1/64")))
			c, err := b.Container("guest", netip.MustParsePrefix("169.254.0.2/16"))
			w.must(err)
			for _, a := range []string{guest4 + "/32", guest6 + "/128", "fd99::2/64"} {
				w.must(c.AddAddr("eth0", netip.MustParsePrefix(a)))
			}
			w.must(c.AddRoute(lab.DefaultVia(netip.MustParseAddr("fd99::1")), "eth0"))
			w.sysctl("net.ipv4.conf.wan1.proxy_arp", "1", "net.ipv6.conf.wan1.proxy_ndp", "1",
				"net.ipv4.neigh.wan1.proxy_delay", "0", "net.ipv6.neigh.wan1.proxy_delay", "0")
			w.ip("tuntap add dev tap9 mode tap", "link set tap9 up", "route add "+tapped4+" dev tap9", "-6 route add "+tapped6+" dev tap9")
			w.ip("route add "+guest4+" dev br-guest", "-6 route add "+guest6+" dev br-guest", "-6 neigh add proxy "+guest6+" dev wan1")
		},
		Promised: []Promise{leavesBy("the guest's packets leave by its uplink", guest4, guest6, tapped4, tapped6)},
		Selects:  func(w *world, q Question) bool { return particular(w, q) || toAny(q, guest4, guest6, tapped4, tapped6) },
		Ask: func(w *world) []Question {
			return append(append(grid(w.outside(), forwarded("br-guest", guest4, guest6)), grid(w.outside(), forwarded("tap9", tapped4, tapped6))...),
				append(grid(addrs(guest4, guest6, tapped4, tapped6), w.senders()),
					Call{By: w.isps[1], Dst: netip.MustParseAddr(guest4)},
					Dial{From: lab.From{Addr: w.addr("wan0", lab.IPv4)}, Dst: netip.MustParseAddr(guest4)})...)
		},
	},
	{
		Name: "published addresses",
		What: "Additional addresses of the second uplink's network on lo (a load balancer's), one on a bridge, and AnyIP: parts of the network that are this host's.",
		Build: func(w *world) {
			w.ip("addr add 100.64.1.61/32 dev lo", "addr add 100.64.1.62/32 dev lo",
				"route add local 100.64.1.96/28 dev lo", "-6 route add local 2001:db8:0:2::a:0/112 dev lo")
			_, err := w.NewBridge("br-pub", netip.MustParsePrefix("100.64.1.63/32"))
			w.must(err)
			w.cleanLo()
		},
		Promised: []Promise{leavesBy("published addresses leave by their uplink", "100.64.1.61", "100.64.1.62", "100.64.1.99", "2001:db8:0:2::a:9")},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), sources("100.64.1.61", "100.64.1.62", "100.64.1.63", "100.64.1.99", "2001:db8:0:2::a:9")),
				Call{By: w.isps[1], Dst: netip.MustParseAddr("100.64.1.99")},
				Dial{From: lab.From{Addr: netip.MustParseAddr("100.64.1.99")}, Dst: lab.InternetAddr4},
				Call{By: w.isps[1], Dst: netip.MustParseAddr("100.64.1.61")},
				Call{By: w.isps[1], Dst: netip.MustParseAddr("100.64.1.62")},
				Dial{From: lab.From{Addr: netip.MustParseAddr("100.64.1.61")}, Dst: lab.InternetAddr4})
		},
	},
	{
		Name:     "an address of cloud forwarding",
		What:     "A cloud guest agent adds a `local` route for a forwarded address, outside the link's network.",
		Build:    func(w *world) { w.ip("route add local 192.0.2.63/32 dev wan1 proto 66 table local") },
		Promised: []Promise{during(leavesBy("the forwarded address leaves by its link", "192.0.2.63"), "", "forwarding starts")},
		Steps: []Step{
			{"forwarding ends", func(w *world) { w.ip("route del local 192.0.2.63/32 dev wan1 table local") }},
			{"forwarding starts", func(w *world) { w.ip("route add local 192.0.2.63/32 dev wan1 proto 66 table local") }},
		},
		Ask: func(w *world) []Question {
			if w.step == "forwarding ends" {
				return nil
			}
			return grid(w.outside(), sources("192.0.2.63"))
		},
	},
	{
		Name: "a second network on a link",
		What: "A server with two networks of one provider on one interface, each with a router, by a static profile.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.provider(lab.DefaultISP(1), "ipv4.address1=10.50.1.5/24")
			w.activate()
			_, err := w.WaitAddrIn(w.t.Context(), "wan1", netip.MustParsePrefix("10.50.1.0/24"))
			w.must(err)
			w.must(w.isps[1].Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("10.50.1.0/24")}, "lan"))
		},
		Promised: []Promise{{
			Name: "the other uplink's address to the second network",
			Of: func(w *world, q Question) bool {
				l, ok := q.(Lookup)
				return ok && toAny(q, "10.50.1.9") && w.owner(l.From) == w.isps[0]
			},
			Want: func(w *world, _ Question, _, with string) string {
				if want := w.by(w.isps[0], lab.InternetAddr4); with != want {
					return want
				}
				return ""
			},
		}},
		Ask: func(w *world) []Question { return grid(addrs("10.50.1.9"), w.senders()) },
	},
	{
		Name: "main's own source",
		What: "The provider routes a public /32 over a transfer network; the profile's default says src=PUBLIC.",
		Network: func(w *world) {
			cfg := lab.DefaultISP(1)
			w.provider(lab.DefaultISP(0))
			w.provider(cfg)
			w.must(w.WriteProfile("wan1", "wan1", "ipv4.method=manual", "ipv4.address1=100.64.1.50/24", "ipv4.address2=192.0.2.7/32",
				"ipv4.route1=0.0.0.0/0,100.64.1.1,50", "ipv4.route1_options=src=192.0.2.7",
				"ipv6.method=auto", "ipv6.route-metric=101", "ipv6.addr-gen-mode=eui64", "ipv6.ip6-privacy=0"))
			w.activate()
			w.must(w.isps[1].RouteTo(netip.MustParsePrefix("192.0.2.7/32"), netip.MustParseAddr("100.64.1.50")))
		},
		Promised: []Promise{{
			Name: "a socket bound to the device uses main's source",
			Of: func(_ *world, q Question) bool {
				l, ok := q.(Lookup)
				return ok && l.Out == "wan1" && l.Dst.Is4()
			},
			Want: func(_ *world, q Question, without, with string) string {
				if q.(Lookup).Dst == lab.InternetAddr4 && with != without {
					return without
				}
				return ""
			},
			Steps: []string{},
		}, leavesBy("the public address leaves by its link", "192.0.2.7", "100.64.1.50")},
		Ask: func(w *world) []Question {
			return []Question{
				Dial{From: lab.From{Device: "wan1"}, Dst: lab.InternetAddr4},
				Call{By: w.isps[1], Dst: netip.MustParseAddr("192.0.2.7")},
			}
		},
	},
	{
		Name: "keepalived",
		What: "A virtual address of keepalived on the second uplink, which moves to another machine and back.",
		Build: func(w *world) {
			path := filepath.Join(w.t.TempDir(), "keepalived.conf")
			w.must(os.WriteFile(path, []byte(keepalivedConf), 0o600))
			w.notes["keepalived"] = path
			w.vip(true)
		},
		Steps: []Step{
			{"the address moves away", func(w *world) { w.vip(false) }},
			{"the address comes back", func(w *world) { w.vip(true) }},
		},
		// It has no address for the wire's other end to tell from ours, so the
		// standard promises speak about it, too.
		Ask: func(w *world) []Question {
			if w.step == "the address moves away" {
				return nil
			}
			return []Question{
				Call{By: w.isps[1], Dst: netip.MustParseAddr("100.64.1.240")},
				Dial{From: lab.From{Addr: netip.MustParseAddr("100.64.1.240")}, Dst: lab.InternetAddr4},
			}
		},
	},
}

const keepalivedConf = `global_defs { vrrp_version 3
}
vrrp_instance v { state MASTER
 interface wan1
 virtual_router_id 7
 priority 200
 advert_int 0.05
 virtual_ipaddress { 100.64.1.240/32 dev wan1
 }
}
`

// vip starts or ends keepalived and waits for its address to come or go.
func (w *world) vip(up bool) {
	w.t.Helper()
	if !up {
		w.must(w.near.Stop(w.t.Context()))
	} else {
		dir := w.t.TempDir()
		p, err := w.Start(lab.ProcessConfig{Path: "keepalived", Args: []string{
			"-n", "-l", "-P", "-f", w.notes["keepalived"], "-p", filepath.Join(dir, "k.pid"), "-r", filepath.Join(dir, "v.pid"),
		}})
		w.must(err)
		w.near = p
	}
	w.eventually(fmt.Sprintf("the virtual address: %t", up), func() error {
		out, err := w.IP(w.t.Context(), "-4", "-o", "addr", "show", "dev", "wan1")
		if err == nil && strings.Contains(out, "100.64.1.240") != up {
			err = fmt.Errorf("wan1 has %s", out)
		}
		return err
	})
}
