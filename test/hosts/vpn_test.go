package hosts_test

import (
	"fmt"
	"net/netip"
	"strings"

	"multihomed/test/lab"
)

// wgUp does what `wg-quick up` does for AllowedIPs = 0.0.0.0/0, ::/0: a table of
// the tunnel's own and two rules without a priority (wg-quick, add_default).
func wgUp(w *world, dev, table string) {
	w.t.Helper()
	w.notes["deletions of "+dev] = "it is up"
	for _, f := range []string{"-4", "-6"} {
		w.ip(f+" route add default dev "+dev+" table "+table,
			f+" rule add not fwmark "+table+" table "+table,
			f+" rule add table main suppress_prefixlength 0")
	}
}

// wgDown does what `wg-quick down` does: it deletes rules as long as the listing
// has one that reads like its own (wg-quick, del_if). It notes how many commands
// that took.
func wgDown(w *world) {
	const dev, table = "wg0", "51820"
	w.t.Helper()
	n := 0
	for _, f := range []string{"-4", "-6"} {
		for pattern, del := range map[string]string{
			"lookup " + table: "table " + table,
			"from all lookup main suppress_prefixlength 0": "table main suppress_prefixlength 0",
		} {
			for strings.Contains(w.run("ip", f, "rule", "show"), pattern) {
				if n++; n > 100 {
					w.t.Fatalf("wg-quick down does not end: %q is still in the listing", pattern)
				}
				w.ip(f + " rule delete " + del)
			}
		}
		w.ip(f + " route flush table " + table)
	}
	w.notes["deletions of "+dev] = fmt.Sprint(n)
}

// deletions asks how many commands the last `wg-quick down` took.
func deletions(dev string) Question {
	return Fact{"rules that wg-quick down deleted for " + dev, func(w *world) string { return w.notes["deletions of "+dev] }}
}

// wgAddrs are the addresses that the VPN gave.
const wgAddr4, wgAddr6 = "10.2.0.2", "fd02::2"

func wgTun(w *world) { w.tun("wg0", wgAddr4+"/32", wgAddr6+"/128") }

// vpnSenders are the sockets of the VPN: the program's own, by mark, and those
// that are bound to the tunnel's address, as connect() is at its second lookup.
func vpnSenders(w *world, mark uint32, own ...string) []sender {
	list := w.senders(mark)
	for _, a := range addrs(own...) {
		list = append(list, sender{From: a})
	}
	return append(list, sender{UID: 1001})
}

// vpnAsk asks what a user of a VPN would, and how wg-quick fared.
func vpnAsk(mark uint32, own ...string) func(*world) []Question {
	return func(w *world) []Question {
		return append(grid(w.outside(), vpnSenders(w, mark, own...)), deletions("wg0"))
	}
}

// forwarded are packets of a client behind an interface.
func forwarded(dev string, sources ...string) []sender {
	var list []sender
	for _, a := range addrs(sources...) {
		list = append(list, sender{In: dev, From: a})
	}
	return list
}

var routing = lab.HostConfig{Sysctls: []string{"net.ipv4.ip_forward", "1", "net.ipv6.conf.all.forwarding", "1"}}

// lanOf is a LAN of NetworkManager on lan0 with one client, 192.168.7.5 and
// fd07::5.
func lanOf(w *world, settings ...string) {
	w.t.Helper()
	isp := w.lan(netip.MustParsePrefix("192.168.7.5/24"), netip.MustParseAddr("192.168.7.1"), nil)
	w.profile("lan0", append([]string{
		"ipv4.method=manual", "ipv4.address1=192.168.7.1/24", "ipv6.method=manual", "ipv6.address1=fd07::1/64",
	}, settings...)...)
	w.must(isp.Namespace().AddRoute(lab.DefaultVia(netip.MustParseAddr("fd07::1")), "lan"))
	w.lanClient = isp
}

// lanCalls are connections of the LAN's client to every address of the host.
func lanCalls(w *world, lan *lab.ISP) []Question {
	var questions []Question
	for _, link := range []string{"wan0", "wan1", "lan0"} {
		questions = append(questions,
			Call{By: lan, Src: netip.MustParseAddr("192.168.7.5"), Dst: w.addr(link, lab.IPv4)},
			Call{By: lan, Src: netip.MustParseAddr("fd07::5"), Dst: w.addr(link, lab.IPv6)})
	}
	return questions
}

var vpnHosts = []Host{
	{
		Name:       "wg-quick full tunnel",
		What:       "A laptop whose whole traffic goes through WireGuard; wg-quick is restarted now and then.",
		Renumbered: true,
		Selects:    nobody,
		Build:      func(w *world) { wgTun(w); wgUp(w, "wg0", "51820") },
		Steps: []Step{
			{"wg-quick down", func(w *world) { wgDown(w) }},
			{"wg-quick up", func(w *world) { wgUp(w, "wg0", "51820") }},
			{"wg-quick down again", func(w *world) { wgDown(w) }},
			{"wg-quick up again", func(w *world) { wgUp(w, "wg0", "51820") }},
		},
		Ask: vpnAsk(51820, wgAddr4, wgAddr6),
	},
	{
		Name:       "two full tunnels",
		What:       "A host with two WireGuard tunnels, of which the second is restarted several times.",
		Renumbered: true,
		Selects:    nobody,
		Build: func(w *world) {
			wgTun(w)
			w.tun("wg1", "10.3.0.2/32", "fd03::2/128")
			wgUp(w, "wg0", "51820")
		},
		Steps: []Step{
			{"the second up", func(w *world) { wgUp(w, "wg1", "51821") }},
			{"the second down", func(w *world) {
				w.both("rule del table 51821", "rule del table main suppress_prefixlength 0", "route flush table 51821")
			}},
			{"the second up again", func(w *world) { wgUp(w, "wg1", "51821") }},
			{"the second down again", func(w *world) {
				w.both("rule del table 51821", "rule del table main suppress_prefixlength 0", "route flush table 51821")
			}},
		},
		Ask: vpnAsk(51820, wgAddr4, wgAddr6, "10.3.0.2"),
	},
	{
		Name:    "WireGuard with a list of AllowedIPs",
		Selects: nobody,
		What:    "A phone-like configuration: AllowedIPs that cover the internet in pieces but not the private networks.",
		Build: func(w *world) {
			wgTun(w)
			for _, p := range []string{"0.0.0.0/5", "64.0.0.0/2", "128.0.0.0/3", "192.0.0.0/9", "196.0.0.0/6", "200.0.0.0/5"} {
				w.ip("route add " + p + " dev wg0")
			}
			for _, p := range []string{"::/1", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "2000::/3"} {
				w.ip("-6 route add " + p + " dev wg0 metric 50")
			}
		},
		Ask: vpnAsk(51820, wgAddr4, wgAddr6),
	},
	{
		Name: "OpenVPN redirect-gateway def1 ipv6",
		What: "OpenVPN with `redirect-gateway def1 ipv6`: two halves of IPv4, and four pieces of IPv6 longer than /1.",
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
			openVPN(w)
		},
		Steps: []Step{
			{"OpenVPN ends", func(w *world) {
				w.ip("route del 0.0.0.0/1", "route del 128.0.0.0/1")
				for _, p := range []string{"::/3", "2000::/4", "3000::/4", "fc00::/7"} {
					w.ip("-6 route del " + p + " dev tun0")
				}
			}},
			{"OpenVPN starts again", openVPN},
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), vpnSenders(w, 1, "10.8.0.2", "fd08::2")),
				grid(addrs("10.8.0.1", "fd08::1"), w.senders())...)
		},
		Selects: nobody,
	},
	{
		Name: "a VPN that is the best default",
		What: "A VPN client that only adds a default route of metric 50.",
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
			w.ip("route add default dev tun0 metric 50", "-6 route add default dev tun0 metric 50")
		},
		Ask:     func(w *world) []Question { return grid(w.outside(), vpnSenders(w, 1, "10.8.0.2", "fd08::2")) },
		Selects: nobody,
	},
	{
		Name: "VPN address inside an uplink's network",
		What: "An uplink with a /10 of the provider, and a VPN that gave an address out of it; a container network lies in it too.",
		Lab:  routing,
		Network: func(w *world) {
			cfg := lab.DefaultISP(0)
			cfg.IPv4 = netip.MustParsePrefix("10.0.0.1/8")
			w.provider(cfg)
			w.provider(lab.DefaultISP(1))
			w.activate()
		},
		Renumbered: true,
		Selects:    func(_ *world, q Question) bool { return toAny(q, "10.88.0.2") }, // as main says
		Build: func(w *world) {
			wgTun(w)
			b, err := w.NewBridge("docker0", netip.MustParsePrefix("10.88.0.1/16"))
			w.must(err)
			_, err = b.Container("c0", netip.MustParsePrefix("10.88.0.2/16"))
			w.must(err)
			wgUp(w, "wg0", "51820")
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), vpnSenders(w, 51820, wgAddr4, wgAddr6, "10.88.0.1")),
				append(grid(append(w.outside(), addrs("10.2.0.2", "10.2.0.9")...), forwarded("docker0", "10.88.0.2")),
					Dial{Dst: netip.MustParseAddr("10.88.0.2"), From: lab.From{Addr: w.addr("wan1", lab.IPv4)}},
					Dial{Dst: netip.MustParseAddr("10.88.0.2"), From: lab.From{Addr: w.addr("wan0", lab.IPv4)}})...)
		},
	},
	{
		Name: "VPN address inside an uplink's IPv6 network",
		What: "A VPN that gave an address out of the /64 of an uplink, and is main's best default.",
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", vpnInside+"/66")
			w.ip("route add default dev tun0 metric 1", "-6 route add default dev tun0 metric 1")
		},
		Steps: []Step{
			{"the VPN goes", func(w *world) { w.ip("link set tun0 down") }},
			{"the VPN comes", func(w *world) {
				w.ip("link set tun0 up", "-6 addr add "+vpnInside+"/66 dev tun0 nodad")
				w.ip("route add default dev tun0 metric 1", "-6 route add default dev tun0 metric 1")
			}},
		},
		Ask:     func(w *world) []Question { return grid(w.outside(), vpnSenders(w, 1, "10.8.0.2", vpnInside)) },
		Selects: nobody,
	},
	{
		Name:       "LAN and containers behind a VPN",
		What:       "A home router whose LAN and containers use the internet by a WireGuard tunnel that covers everything.",
		Lab:        routing,
		Publishes:  true,
		Renumbered: true,
		Selects:    nobody,
		Network: func(w *world) {
			w.providers()
			lanOf(w)
		},
		Build: func(w *world) {
			w.must(w.AddAddr("docker0", "2001:db8:b::1/64")) // delegated by a provider
			wgTun(w)
			wgUp(w, "wg0", "51820")
		},
		Steps: []Step{
			{"the VPN goes", func(w *world) { wgDown(w) }},
			{"the VPN comes", func(w *world) { wgUp(w, "wg0", "51820") }},
		},
		Ask: func(w *world) []Question {
			clients := append(forwarded("lan0", "192.168.7.5", "fd07::5"), forwarded("docker0", "172.17.0.2", "2001:db8:b::55")...)
			local := []sender{{From: netip.MustParseAddr("192.168.7.1")}, {From: netip.MustParseAddr("fd07::1")}, {From: netip.MustParseAddr("172.17.0.1")}}
			return append(grid(w.outside(), append(vpnSenders(w, 51820, wgAddr4, wgAddr6), append(clients, local...)...)),
				grid(addrs("192.168.7.5", "fd07::5", "172.17.0.2"), w.senders())...)
		},
	},
	{
		Name: "Tailscale",
		What: "Tailscale with its four rules from 5210 to 5270; sometimes with an exit node.",
		Build: func(w *world) {
			w.tun("tun9", "100.101.102.103/32", "fd7a:115c:a1e0::1/128")
			w.ip("route add 100.99.98.97 dev tun9 table 52", "-6 route add fd7a:115c:a1e0::/48 dev tun9 table 52")
			w.both("rule add pref 5210 fwmark 0x80000/0xff0000 lookup main",
				"rule add pref 5230 fwmark 0x80000/0xff0000 lookup default",
				"rule add pref 5250 fwmark 0x80000/0xff0000 unreachable",
				"rule add pref 5270 lookup 52")
		},
		Steps: []Step{
			{"an exit node", func(w *world) { w.both("route add default dev tun9 table 52") }},
			{"no exit node", func(w *world) { w.both("route del default dev tun9 table 52") }},
		},
		Taken: []string{"an exit node"},
		Selects: func(w *world, q Question) bool {
			// A table in front of ours that has a default decides about everything.
			return w.step == "an exit node" || particular(w, q)
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), vpnSenders(w, 0x80000, "100.101.102.103", "fd7a:115c:a1e0::1")),
				grid(addrs("100.99.98.97", "fd7a:115c:a1e0::99"), w.senders(0x80000))...)
		},
	},
	{
		Name:       "Mullvad",
		What:       "The Mullvad app: rules without a priority that lead everything but its own packets into its table.",
		Renumbered: true,
		Selects:    nobody,
		Build: func(w *world) {
			w.tun("wg-mullvad", "10.64.7.2/32", "fc00:bbbb:bbbb:bb01::2/128")
			wgUp(w, "wg-mullvad", "1836018789")
			w.beyond = addrs("10.64.0.1") // only by the default
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), vpnSenders(w, 1836018789, "10.64.7.2")),
				grid(addrs("10.64.0.1"), w.senders())...)
		},
	},
	{
		Name:    "NordVPN",
		What:    "A VPN client whose two rules have the numbers 32764 and 32765.",
		Selects: nobody,
		Build: func(w *world) {
			w.tun("tun1", "10.5.0.2/32")
			w.ip("route add default dev tun1 table 205",
				"rule add pref 32764 lookup main suppress_prefixlength 0",
				"rule add pref 32765 not fwmark 0xe1f1 lookup 205")
		},
		Ask: func(w *world) []Question { return grid(w.outside(), vpnSenders(w, 0xe1f1, "10.5.0.2")) },
	},
	{
		Name:       "full tunnel without an address",
		What:       "An unnumbered tunnel (GRE, IPIP, XFRM, WireGuard) that takes everything but its own packets: the host's addresses are those of its provider, also inside.",
		Renumbered: true,
		Selects:    unbindable,
		Build: func(w *world) {
			w.tun("tun9")
			w.both("route add default dev tun9 table 51820", "rule add not fwmark 51820 lookup 51820")
		},
		Steps: []Step{
			{"the rules go", func(w *world) { w.both("rule del table 51820") }},
			{"the rules come", func(w *world) { w.both("rule add not fwmark 51820 lookup 51820") }},
		},
		Ask: unnumberedAsk,
	},
	{
		Name:    "full tunnel without an address, by a rule of its own place",
		What:    "The same with `ip rule add pref 32000 lookup 42`.",
		Selects: unbindable,
		Build: func(w *world) {
			w.tun("tun9")
			w.both("route add default dev tun9 table 42", "rule add pref 32000 lookup 42")
		},
		Steps: []Step{
			{"the tunnel goes", func(w *world) { w.both("route del default table 42") }},
			{"the tunnel comes", func(w *world) { w.both("route add default dev tun9 table 42") }},
		},
		Ask: unnumberedAsk,
	},
	{
		Name:    "two halves through a tunnel without an address",
		What:    "A script that sends the halves of the internet through an unnumbered tunnel.",
		Selects: unbindable,
		Build: func(w *world) {
			w.tun("tun9")
			halvesUp(w)
		},
		Steps: []Step{
			{"the halves go", func(w *world) {
				w.ip("route del 0.0.0.0/1", "route del 128.0.0.0/1", "-6 route del 2000::/4 dev tun9", "-6 route del 3000::/4 dev tun9")
			}},
			{"the halves come", halvesUp},
		},
		Ask: unnumberedAsk,
	},
	{
		Name: "strongSwan's table 220",
		What: "An IPsec gateway: strongSwan's rule 220 and the route of a tunnel in its table.",
		Build: func(w *world) {
			w.cleanLo()
			w.ip("addr add 192.168.77.1/24 dev lo", "rule add pref 220 lookup 220",
				"route add 10.99.0.0/16 via 100.64.0.1 dev wan0 proto static src 192.168.77.1 table 220")
		},
		Ask: func(w *world) []Question {
			return grid(append(w.outside(), addrs("10.99.0.1")...), append(w.senders(), sender{From: netip.MustParseAddr("192.168.77.1")}))
		},
	},
	{
		Name: "site-to-site by a rule of its own",
		What: "A tunnel to another office whose routes stand in table 42, reached by `ip rule add pref 20000 lookup 42`; they carry the host's address as source.",
		Build: func(w *world) {
			w.tun("tun9")
			w.ip("route add 10.9.0.0/16 dev tun9 src "+w.addr("wan0", lab.IPv4).String()+" table 42", "rule add pref 20000 lookup 42")
		},
		Ask: func(w *world) []Question {
			return append(grid(addrs("10.9.0.1"), w.senders()), Dial{Dst: netip.MustParseAddr("10.9.0.1")},
				Dial{Dst: netip.MustParseAddr("10.9.0.1"), From: lab.From{Addr: w.addr("wan1", lab.IPv4)}})
		},
	},
}

func halvesUp(w *world) {
	w.ip("route add 0.0.0.0/1 dev tun9", "route add 128.0.0.0/1 dev tun9",
		"-6 route add 2000::/4 dev tun9 metric 200", "-6 route add 3000::/4 dev tun9 metric 200")
}

// lent is the address of each family that the kernel gives to packets of a tunnel which
// has none: that of the first link (inet_select_addr, ipv6_dev_get_saddr).
func lent(w *world, a netip.Addr) bool {
	return a.IsValid() && (a == w.addr("wan0", lab.IPv4) || a == w.addr("wan0", lab.IPv6))
}

// unbindable are the questions about packets that cannot be told from unbound ones, while
// the tunnel takes those: they are as without us. Those that come in are answered so, too.
func unbindable(w *world, q Question) bool {
	if strings.HasSuffix(w.step, " go") || strings.HasSuffix(w.step, " goes") {
		return false
	}
	switch q := q.(type) {
	case Lookup:
		return q.In == "" && q.Out == "" && lent(w, q.From)
	case Dial:
		return lent(w, q.From.Addr)
	case Call:
		return lent(w, q.Dst)
	}
	return false
}

// unnumberedAsk asks with all senders, and with real sockets: a TCP connection looks its
// route up twice, the second time with the address that it got.
func unnumberedAsk(w *world) []Question {
	return append(grid(w.outside(), append(w.senders(51820), sender{UID: 1001})),
		Dial{Dst: lab.InternetAddr4, UID: 1001}, Dial{Dst: lab.InternetAddr6, UID: 1001})
}

func openVPN(w *world) {
	w.ip("route add 0.0.0.0/1 via 10.8.0.1 dev tun0", "route add 128.0.0.0/1 via 10.8.0.1 dev tun0")
	for _, p := range []string{"::/3", "2000::/4", "3000::/4", "fc00::/7"} {
		w.ip("-6 route add " + p + " dev tun0 metric 200")
	}
}

// vpnInside is an address in the network of the first provider.
const vpnInside = "2001:db8:0:0:8000::2"
