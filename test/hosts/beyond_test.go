package hosts_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/test/lab"
)

// thrownHost is a host with one provider and a second router in the provider's network, to
// which a table leads that says nothing of some networks (throw) and forbids others.
func thrownHost(name, rule string) Host {
	hides := strings.Contains(rule, "not ")
	forbidden := addrs("10.51.0.1", "10.52.0.1", "10.53.0.1", "fd51::1")
	return Host{
		Name: name, What: "A table that a rule reads for everything before main, with throw, unreachable, prohibit and blackhole routes.", Unpromised: true,
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.activate()
		},
		Build: func(w *world) {
			prefix6 := w.isps[0].Config().IPv6
			router6 := prefix6.Masked().Addr().Next().Next().Next().String()
			w.ip("-n isp0 addr add 100.64.0.3/24 dev lan", fmt.Sprintf("-n isp0 addr add %s/%d dev lan nodad", router6, prefix6.Bits()),
				"route add 10.50.0.0/16 via 100.64.0.4", "-6 route add fd50:1::/32 via "+router6+" dev wan0",
				"route add default via 100.64.0.3 table 61", "-6 route add default via "+router6+" dev wan0 table 61",
				"route add unreachable 10.51.0.0/16 table 61", "route add prohibit 10.52.0.0/16 table 61", "route add blackhole 10.53.0.0/16 table 61",
				"-6 route add unreachable fd51::/16 table 61")
			throwIt(w)
			w.both("rule add " + rule + " lookup 61")
		},
		Steps: []Step{
			{"nothing is thrown", func(w *world) {
				for _, to := range []string{"10.48.0.0/12", "172.16.0.0/12", "100.64.0.0/24", "-6 fd50::/16", "-6 fd54::/16"} {
					six, to := cutSix(to)
					w.ip(six + " route del throw " + to + " table 61")
				}
			}},
			{"it is thrown again", throwIt},
		},
		Promised: []Promise{{
			// IPv6 skips such routes for packets bound to a device: they are on lo. And a rule with inverted
			// selectors is not read before the link.
			Name: "forbidden or thrown for others", Steps: []string{},
			Of: func(_ *world, q Question) bool {
				l, is := q.(Lookup)
				return is && (slices.Contains(forbidden, l.Dst) && (l.Out != "" || hides && l.From.IsValid()) || l.Out != "" && toAny(q, "fd50::1", "fd54::1"))
			},
			Want: func(_ *world, _ Question, without, with string) string {
				if with == without || strings.HasPrefix(with, "dev wan0 via ") {
					return ""
				}
				return without
			},
		}, neighboursOnTheLink},
		Ask: func(w *world) []Question {
			return grid(append(forbidden, addrs("10.50.0.1", "10.49.0.1", "172.16.9.9", "fd50::1", "fd50:1::1", "fd54::1")...),
				append(w.senders(1), forwarded("wan0", "203.0.113.200")...))
		},
	}
}

func cutSix(to string) (family, rest string) {
	if rest, six := strings.CutPrefix(to, "-6 "); six {
		return "-6", rest
	}
	return "-4", to
}

func throwInMain(w *world) {
	w.ip("route add throw 198.18.0.0/15", "-6 route add throw fd60::/16")
}

// thrownAround are commands about throw routes that the networks of providers lie in.
func thrownAround(verb string) []string {
	return []string{"route " + verb + " throw 100.64.0.0/10", "route " + verb + " throw 10.0.0.0/8", "-6 route " + verb + " throw 2001:db8::/35"}
}

func throwAround(w *world) { w.ip(thrownAround("add")...) }

// neighboursOnTheLink is a promise of hosts whose only difference it is.
var neighboursOnTheLink = Promise{
	Name: "neighbours are on the link", Steps: []string{},
	Of: func(w *world, q Question) bool {
		l, is := q.(Lookup)
		return is && l.In == "" && (l.From.IsValid() || l.Out != "") &&
			(w.isps[0].IPv4().Contains(l.Dst) || w.isps[0].IPv6().Contains(l.Dst)) && w.owner(l.Dst) == nil
	},
	Want: func(_ *world, _ Question, _, with string) string {
		if with, _, _ = strings.Cut(with, " src "); with != "dev wan0" {
			return "dev wan0"
		}
		return ""
	},
}

func throwIt(w *world) {
	w.ip("route add throw 10.48.0.0/12 table 61", "route add throw 172.16.0.0/12 table 61", "route add throw 100.64.0.0/24 table 61",
		"-6 route add throw fd50::/16 table 61", "-6 route add throw fd54::/16 table 61")
}

// static is a provider whose network is what the profile of its link says.
func (w *world) static(n int, isp netip.Prefix, settings ...string) {
	w.t.Helper()
	cfg := lab.DefaultISP(n)
	cfg.IPv4, cfg.NoDHCP = isp, true
	w.provider(cfg, append([]string{"ipv4.method=manual"}, settings...)...)
}

// metricsOf asks for what a connection to a destination is told of its way.
func metricsOf(dst, from string) Question {
	return Fact{"metrics of the way to " + dst + " from " + from, func(w *world) string {
		args := []string{"route", "get", dst}
		if from != "" {
			args = append(args, "from", from)
		}
		out, err := w.IP(w.t.Context(), args...)
		w.must(err)
		var found []string
		for _, key := range []string{"mtu", "advmss", "initcwnd", "initrwnd", "quickack", "congctl", "rto_min", "hoplimit"} {
			if v := word(out, key); v != "" {
				found = append(found, key+" "+v)
			}
		}
		return strings.Join(found, ", ")
	}}
}

const ruleOfMain = "pref 32766 lookup main"

// mainBack restores the kernel's rules after the test, in whatever state.
func mainBack(w *world) {
	w.t.Cleanup(func() {
		for _, f := range []string{"-4", "-6"} {
			if out, err := w.IP(w.ctx(), f, "rule", "show", "pref", "32766"); err == nil && strings.TrimSpace(out) == "" {
				_, _ = w.IP(w.ctx(), strings.Fields(f+" rule add "+ruleOfMain+" protocol kernel")...)
			}
		}
	})
}

// beyondHosts have addresses, routes and rules beyond the usual.
var beyondHosts = []Host{
	thrownHost("a table that throws", "pref 32000"),
	thrownHost("a table that throws, for all but a mark", "pref 32000 not fwmark 9"),
	{
		Name: "a throw in main", Unpromised: true,
		What: "An administrator keeps private networks off his provider by throw routes in main; nothing stands behind.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.activate()
		},
		Build: throwInMain,
		Steps: []Step{
			{"nothing is thrown", func(w *world) { w.ip("route del throw 198.18.0.0/15", "-6 route del throw fd60::/16") }},
			{"it is thrown again", throwInMain},
		},
		Promised: []Promise{neighboursOnTheLink},
		Ask: func(w *world) []Question {
			return append(grid(addrs("198.18.0.1", "fd60::1", "8.8.8.8", "2600::1"), append(w.senders(1), sender{}, sender{Mark: 1}, sender{UID: 1001})),
				Dial{Dst: netip.MustParseAddr("198.18.0.1")}, Dial{Dst: netip.MustParseAddr("fd60::1")},
				Dial{Dst: netip.MustParseAddr("198.18.0.1"), From: lab.From{Addr: w.addr("wan0", lab.IPv4)}})
		},
	},
	{
		Name: "a throw around both providers",
		What: "An administrator keeps private networks off his providers by wide throw routes in main, and the providers' own networks, and one that he reaches by a router of the first one, lie inside of these.",
		Build: func(w *world) {
			throwAround(w)
			w.ip("route add 10.48.0.0/16 via 100.64.0.1 dev wan0", "-6 route add 2001:db8:48::/48 via "+w.via6["wan0"].String()+" dev wan0")
			w.beyond = addrs("10.48.0.1", "2001:db8:48::1")
		},
		Steps: []Step{
			{"nothing is thrown", func(w *world) { w.ip(thrownAround("del")...) }},
			{"it is thrown again", throwAround},
			{"a network inside goes", func(w *world) { w.ip("route del 10.48.0.0/16", "-6 route del 2001:db8:48::/48") }},
			{"and comes", func(w *world) {
				w.ip("route add 10.48.0.0/16 via 100.64.0.1 dev wan0", "-6 route add 2001:db8:48::/48 via "+w.via6["wan0"].String()+" dev wan0")
			}},
		},
		Ask: func(w *world) []Question {
			thrown := grid(addrs("10.49.0.1", "100.65.0.1", "2001:db8:49::1"), []sender{{}, {Mark: 1}})
			if w.step == "a network inside goes" {
				return thrown
			}
			return append(thrown, grid(w.beyond, w.senders())...)
		},
	},
	{
		Name: "point-to-point networks of two addresses",
		What: "Both uplinks have a /31 of RFC 3021.",
		Network: func(w *world) {
			for n := range 2 {
				w.static(n, netip.MustParsePrefix(fmt.Sprintf("100.64.%d.2/31", n)),
					fmt.Sprintf("ipv4.address1=100.64.%d.3/31,100.64.%d.2", n, n))
			}
			w.activate()
			w.beyond = addrs("100.64.0.79", "100.64.1.79")
		},
	},
	{
		Name: "a gateway outside of the network",
		What: "A rented server: a /32 and a gateway that no network of the host holds.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.static(1, netip.MustParsePrefix("100.64.1.1/24"), "ipv4.address1=192.0.2.7/32,100.64.1.1")
			w.activate()
			w.must(w.isps[1].RouteTo(netip.MustParsePrefix("192.0.2.7/32"), netip.Addr{}))
		},
		// The /32 is on no network: neighbours are reached as the provider routes.
		Promised: []Promise{{
			Name: "neighbours by the gateway", Steps: []string{},
			Of: func(w *world, q Question) bool {
				l, is := q.(Lookup)
				return is && l.In == "" && w.isps[1].IPv4().Contains(l.Dst) && (l.From.String() == "192.0.2.7" || l.Out == "wan1")
			},
			Want: func(_ *world, q Question, _, with string) string {
				want := "dev wan1 via 100.64.1.1"
				if q.(Lookup).Dst.String() == "100.64.1.1" {
					want = "dev wan1"
				}
				if with, _, _ = strings.Cut(with, " src "); with != want {
					return want
				}
				return ""
			},
		}, {
			Name: "from elsewhere, by its own link", Steps: []string{},
			Of: func(w *world, q Question) bool {
				l, is := q.(Lookup)
				return is && l.In == "" && w.isps[1].IPv4().Contains(l.Dst) && (w.owner(l.From) == w.isps[0] || l.Out == "wan0")
			},
			Want: func(w *world, _ Question, _, with string) string {
				want := w.by(w.isps[0], lab.InternetAddr4)
				if with, _, _ = strings.Cut(with, " src "); with != want {
					return want
				}
				return ""
			},
		}},
	},
	{
		Name: "the same gateway twice",
		What: "Two providers' boxes that both call themselves 100.64.0.1, each on a wire of its own.",
		Network: func(w *world) {
			for n := range 2 {
				w.static(n, netip.MustParsePrefix("100.64.0.1/24"), fmt.Sprintf("ipv4.address1=100.64.0.%d/24,100.64.0.1", 50+n))
			}
			w.activate()
		},
	},
	{
		Name: "many kinds of addresses",
		What: "An uplink with a ULA, a deprecated address beside that of its router's network, and IPv4 addresses of several networks.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.provider(lab.DefaultISP(1), "ipv6.address1=fd33::5/64", "ipv4.address1=10.50.1.5/24", "ipv4.address2=192.0.2.9/32")
			w.activate()
			for _, n := range []string{"10.50.1.0/24", "192.0.2.9/32", "fd33::/64"} {
				_, err := w.WaitAddrIn(w.t.Context(), "wan1", netip.MustParsePrefix(n))
				w.must(err)
			}
			w.must(w.isps[1].Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("10.50.1.0/24")}, "lan"))
			w.must(w.isps[1].Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("192.0.2.9/32")}, "lan"))
			w.must(w.isps[1].Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("fd33::/64")}, "lan"))
		},
		Build: oldAddress,
		Steps: []Step{
			{"the old address goes", func(w *world) { w.ip("-6 addr del " + oldAddr + "/64 dev wan1") }},
			{"the old address comes", oldAddress},
		},
		Ask: func(w *world) []Question {
			questions := []Question{Call{By: w.isps[1], Dst: netip.MustParseAddr("10.50.1.5")}, Call{By: w.isps[1], Dst: netip.MustParseAddr("192.0.2.9")}}
			if w.step != "the old address goes" {
				questions = append(questions, Call{By: w.isps[1], Dst: netip.MustParseAddr(oldAddr)})
			}
			return questions
		},
	},
	{
		Name: "a name for a moment",
		What: "udev or an administrator renames an uplink that is up, and back.",
		Steps: []Step{
			{"renamed and back", func(w *world) {
				w.ip("link set wan1 name other7")
				w.eventually("the other name", func() error {
					_, err := w.IP(w.t.Context(), "link", "show", "other7")
					return err
				})
				w.ip("link set other7 name wan1")
			}},
			{"as it was", func(*world) {}},
		},
	},
	{
		Name: "metrics of a way",
		What: "A satellite link whose default route says how connections behave.",
		Build: func(w *world) {
			w.ip("route add 198.18.0.0/16 via 100.64.0.1 dev wan0 mtu 1400 advmss 1300 initcwnd 20 initrwnd 30 quickack 1 congctl reno rto_min 1s hoplimit 44",
				"route add 198.19.0.0/16 via 100.64.0.1 dev wan0 mtu lock 1300")
			w.beyond = addrs("198.18.0.1", "198.19.0.1")
		},
		Steps: []Step{
			{"it changes", func(w *world) { w.ip("route change 198.18.0.0/16 via 100.64.0.1 dev wan0 mtu 1280 congctl cubic") }},
			{"and back", func(w *world) {
				w.ip("route change 198.18.0.0/16 via 100.64.0.1 dev wan0 mtu 1400 advmss 1300 initcwnd 20 initrwnd 30 quickack 1 congctl reno rto_min 1s hoplimit 44")
			}},
		},
		Ask: func(w *world) []Question {
			own := w.addr("wan0", lab.IPv4).String()
			return append(grid(w.beyond, w.senders()), metricsOf("198.18.0.1", ""), metricsOf("198.18.0.1", own), metricsOf("198.19.0.1", own))
		},
	},
	{
		Name: "a source that is no link's",
		What: "A router whose defaults carry the address of lo as their source, as routing daemons set it.",
		Build: func(w *world) {
			w.cleanLo()
			w.ip("addr add 192.0.2.44/32 dev lo", "-n isp0 route add 192.0.2.44/32 via "+w.addr("wan0", lab.IPv4).String(),
				"route add default via 100.64.0.1 dev wan0 src 192.0.2.44 metric 20", "route add default via 100.64.1.1 dev wan1 src 192.0.2.44 metric 30")
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), sources("192.0.2.44")), Dial{From: lab.From{Addr: netip.MustParseAddr("192.0.2.44")}, Dst: lab.InternetAddr4},
				Call{By: w.isps[0], Dst: netip.MustParseAddr("192.0.2.44")})
		},
	},
	{
		Name: "both uplinks at once",
		What: "Main has a default with two legs, one by each uplink, and one by a group of nexthop objects that loses a leg.",
		Build: func(w *world) {
			w.ip("route add default metric 10 nexthop via 100.64.0.1 dev wan0 nexthop via 100.64.1.1 dev wan1 weight 3",
				"nexthop add id 71 via 100.64.0.1 dev wan0", "nexthop add id 72 via 100.64.1.1 dev wan1", "nexthop add id 73 group 71/72",
				"route add 198.18.0.0/15 nhid 73")
			w.beyond = addrs("198.18.0.1", "198.18.7.1", "198.19.8.8")
		},
		Steps: []Step{
			{"a leg is dead", func(w *world) { w.ip("nexthop replace id 73 group 71") }},
			{"it is back", func(w *world) { w.ip("nexthop replace id 73 group 71/72") }},
		},
		Ask: func(w *world) []Question { return grid(w.beyond, w.senders()) },
	},
	{
		Name:    "rules by what is rare",
		What:    "Rules by protocol, by type of service and by tunnel key.",
		Selects: func(_ *world, q Question) bool { l, is := q.(Lookup); return is && l.Prot == 1 },
		Build: func(w *world) {
			vpn0(w, "200")
			w.ip("rule add pref 32000 ipproto icmp lookup 200", "rule add pref 32001 tos 0x10 lookup 200", "rule add pref 32002 tun_id 7 lookup 200")
		},
		Steps: []Step{
			{"they go", func(w *world) {
				// Each command must delete the owner's rule, or end.
				w.ip("rule del pref 32000 ipproto icmp", "rule del pref 32001 tos 0x10", "rule del pref 32002 tun_id 7")
			}},
			{"they come", func(w *world) {
				w.ip("rule add pref 32000 ipproto icmp lookup 200", "rule add pref 32001 tos 0x10 lookup 200", "rule add pref 32002 tun_id 7 lookup 200")
			}},
		},
		Ask: func(w *world) []Question {
			var senders []sender
			for _, s := range w.senders() {
				for _, p := range []uint8{1, 17, 58} {
					s.Prot = p
					senders = append(senders, s)
				}
			}
			if w.step == "they go" {
				return nil
			}
			return slices.DeleteFunc(grid(w.outside(), senders), func(q Question) bool {
				// The kernel refuses the other family's ICMP.
				l, _ := q.(Lookup)
				return l.Prot == 1 && l.Dst.Is6() || l.Prot == 58 && l.Dst.Is4()
			})
		},
	},
	{
		Name:  "no rule of main",
		What:  "An administrator has replaced the rule of main: it goes, comes at another place, and a rule of his stands at 32766.",
		Build: mainBack,
		Steps: []Step{
			{"it stands elsewhere", func(w *world) { w.both("rule add pref 40000 lookup main", "rule del pref 32766 lookup main") }},
			{"somebody is at its place", func(w *world) { w.both("rule add pref 32766 iif lo lookup main") }},
			{"there is none", func(w *world) { w.both("rule del pref 40000", "rule del pref 32766") }},
			{"it is back", func(w *world) { w.both("rule add " + ruleOfMain + " protocol kernel") }},
		},
		Promised: []Promise{{
			// Where IPv6 finds no way it takes an address of the host and looks again
			// (ip6_dst_lookup_tail in net/ipv6/ip6_output.c). From then on nothing tells the
			// packet from one that is bound.
			Name: "IPv6 looks again with an address", Steps: []string{},
			Of: func(w *world, q Question) bool {
				d, is := q.(Dial)
				return is && w.step == "there is none" && d.Dst.Is6() && d.From == lab.From{}
			},
			Want: func(w *world, _ Question, without, with string) string {
				for _, isp := range w.isps {
					if with == fmt.Sprintf("seen by %s from %v, answered", isp.Name(), w.addr(isp.Config().Link, lab.IPv6)) {
						return ""
					}
				}
				if with == without {
					return ""
				}
				return without
			},
		}},
	},
	{
		Name: "defaults in table default",
		What: "Somebody has moved the defaults of main to table `default`, which is asked behind it.",
		Steps: []Step{
			{"moved", func(w *world) {
				takeDefaults(w)
				w.ip("route add default via 100.64.0.1 dev wan0 metric 100 table default", "route add default via 100.64.1.1 dev wan1 metric 101 table default")
			}},
			{"back", func(w *world) {
				w.ip("route flush table default")
				giveDefaults(w)
			}},
		},
		Promised: []Promise{strayless(func(w *world) bool { return w.step == "moved" }, "wan0", "wan1")},
	},
	{
		Name: "routes without a default",
		What: "The second provider's router is none by its advertisements: they name some networks (RFC 4191).",
		Network: func(w *world) {
			cfg := lab.DefaultISP(1)
			ra := lab.DefaultRA(cfg.IPv6)
			ra.RouterLifetime = 0
			ra.Routes = []lab.RARoute{{Prefix: netip.MustParsePrefix("2600:7::/32"), Lifetime: lab.Forever}}
			cfg.RA = &ra
			w.provider(lab.DefaultISP(0))
			w.neverDefault = []string{"wan1"} // there is none to wait for
			w.provider(cfg)
			w.activate()
			w.neverDefault = nil
			w.eventually("the route", func() error {
				out, err := w.IP(w.t.Context(), "-6", "route", "show", "2600:7::/32")
				if err == nil && !strings.Contains(out, "wan1") {
					err = fmt.Errorf("none yet: %s", out)
				}
				return err
			})
			w.beyond = addrs("2600:7::1")
		},
		Promised: []Promise{{
			Name: "the networks that the router names",
			Of: func(w *world, q Question) bool {
				l, is := q.(Lookup)
				return is && toAny(q, "2600:7::1") && (w.owner(l.From) == w.isps[1] || l.Out == "wan1")
			},
			Want: func(w *world, _ Question, _, with string) string {
				if with, _, _ = strings.Cut(with, " src "); with != w.by(w.isps[1], netip.MustParseAddr("2600:7::1")) {
					return w.by(w.isps[1], netip.MustParseAddr("2600:7::1"))
				}
				return ""
			},
			Steps: []string{},
		}, strayless(always, "wan1")},
		Ask: func(w *world) []Question { return grid(w.beyond, w.senders()) },
	},
}

const oldAddr = "2001:db8:0:2::77"

func oldAddress(w *world) { w.ip("-6 addr add " + oldAddr + "/64 dev wan1 nodad preferred_lft 0") }
