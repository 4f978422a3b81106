package hosts_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/test/lab"
)

// vpn0 is a tunnel whose table routes the packets that foreign rules select.
func vpn0(w *world, table string) {
	w.t.Helper()
	w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
	w.both("route add default dev tun0 table " + table)
}

// selected are the senders of a host with marks and users, to everywhere.
func selected(marks []uint32, users []uint32, more ...netip.Addr) func(*world) []Question {
	return func(w *world) []Question {
		senders := w.senders(marks...)
		for _, s := range w.senders() {
			for _, uid := range users {
				s.UID = uid
				senders = append(senders, s)
			}
		}
		return grid(append(w.outside(), more...), senders)
	}
}

// dialsOf are connections of user 1001.
func dialsOf(w *world) []Question {
	const uid = 1001
	list := []Question{Dial{UID: uid, Dst: lab.InternetAddr4}, Dial{UID: uid, Dst: lab.InternetAddr6}}
	for _, link := range []string{"wan0", "wan1"} {
		list = append(list, Dial{UID: uid, From: lab.From{Addr: w.addr(link, lab.IPv4)}, Dst: lab.InternetAddr4})
	}
	return list
}

// only4 is a Selects of rules that exist for IPv4 alone.
func only4(selects func(*world, Question) bool) func(*world, Question) bool {
	return func(w *world, q Question) bool { return familyOf(q) == lab.IPv4 && selects(w, q) }
}

func familyOf(q Question) lab.Family {
	var dst netip.Addr
	switch q := q.(type) {
	case Lookup:
		dst = q.Dst
	case Dial:
		dst = q.Dst
	case Call:
		dst = q.Dst
	}
	if dst.Is6() {
		return lab.IPv6
	}
	return lab.IPv4
}

// except is a Selects of rules by these marks and users.
func except(marks []uint32, users []uint32) func(*world, Question) bool {
	return func(_ *world, q Question) bool {
		has := func(mark, uid uint32) bool {
			return slices.Contains(marks, mark) || slices.Contains(users, uid)
		}
		switch q := q.(type) {
		case Lookup:
			return has(q.Mark, q.UID)
		case Dial:
			return has(q.From.Mark, uint32(q.UID))
		}
		return false
	}
}

var markHosts = []Host{
	{
		Name:       "rules with and without a priority",
		What:       "Marked traffic by a VPN, without a priority, but a network directly and some users nowhere: exceptions with priorities, which the kernel's number for the others would come before once the daemon runs.",
		Renumbered: true,
		Overtakes:  true,
		Selects:    except([]uint32{1}, []uint32{1000, 1001}),
		Build: func(w *world) {
			vpn0(w, "200")
			w.both("rule add fwmark 1 lookup 200")
			w.ip("rule add to 198.18.0.0/15 lookup main pref 31800", "-6 rule add to fd99::/16 lookup main pref 31800")
			w.both("rule add fwmark 1 lookup main suppress_prefixlength 0 pref 31900",
				"rule add uidrange 1000-1010 lookup 200", "rule add uidrange 1000-1000 prohibit pref 31500")
		},
		Ask: selected([]uint32{1, 2}, []uint32{1000, 1001}, addrs("198.18.0.1", "10.8.0.9", "fd08::9")...),
	},
	{
		Name:    "rules among ours whose tables have no answer",
		What:    "A user's VPN by a rule at 10100, whose table is empty while the VPN is down, and a network by one at 10002, whose table knows a part of it.",
		Selects: nobody,
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
			w.both("rule add pref 10100 uidrange 1001-1001 lookup 77")
			w.ip("route add 10.21.0.0/16 dev tun0 table 78", "rule add pref 10002 to 10.20.0.0/15 lookup 78")
			w.beyond = addrs("10.20.0.1")
		},
		Ask: func(w *world) []Question {
			dials := append(dialsOf(w), Dial{Dst: netip.MustParseAddr("10.20.0.1")})
			return append(dials, selected(nil, []uint32{1001}, addrs("10.20.0.1")...)(w)...)
		},
	},
	{
		Name:    "a rule without an answer before a full tunnel",
		What:    "A user's table is empty for now, a mark's knows one network, and a VPN's rules in wg-quick's words follow.",
		Selects: nobody,
		Build: func(w *world) {
			vpn0(w, "77")
			w.both("rule add pref 30000 uidrange 1001-1001 lookup 79", "rule add pref 32763 fwmark 7 lookup 79",
				"rule add pref 32764 lookup main suppress_prefixlength 0", "rule add pref 32765 not fwmark 51820 lookup 77")
			w.ip("route add 10.99.0.0/16 dev wan0 table 79")
		},
		Ask: func(w *world) []Question {
			return append(selected([]uint32{7}, []uint32{1001}, addrs("10.8.0.9", "fd08::9")...)(w), dialsOf(w)...)
		},
	},
	{
		Name:    "a goto that leads nowhere",
		What:    "A script's marked packets jump to 32765, where nothing stands, and so meet the prohibit that comes before.",
		Selects: particular,
		Build: func(w *world) {
			w.both("rule add pref 20 fwmark 1 goto 32765", "rule add pref 32000 fwmark 1 prohibit")
		},
		Ask: func(w *world) []Question { return grid(w.outside(), []sender{{Mark: 1}, {}}) },
	},
	{
		Name:    "half of everything by a rule",
		What:    "A rule for the lower half of the internet, whose table knows a network of the upper half, too.",
		Selects: nobody,
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
			w.ip("route add 198.18.0.0/15 dev tun0 table 77", "rule add pref 32000 to 0.0.0.0/1 lookup 77")
			w.beyond = addrs("198.18.0.1")
		},
		Ask: func(w *world) []Question { return grid(addrs("198.18.0.1"), w.senders(1)) },
	},
	{
		Name: "a rule by user without an answer",
		What: "A rule for users reads a table that knows one network: what is bound to a device or an address keeps its link.",
		Selects: func(_ *world, q Question) bool {
			l, ok := q.(Lookup)
			return ok && slices.Contains(addrs("10.77.0.1", "fd77::1"), l.Dst)
		},
		Build: func(w *world) {
			w.tun("tun0", "10.8.0.2/24", "fd08::2/64")
			w.ip("route add 10.77.0.0/16 dev tun0 table 200", "-6 route add fd77::/64 dev tun0 table 200")
			w.both("rule add uidrange 0-1001 table 200 pref 31000")
		},
		Ask: selected(nil, []uint32{1001}, addrs("10.77.0.1", "fd77::1")...),
	},
	{
		Name:    "a rule at our priority",
		What:    "A VPN's script adds `from all lookup 200` with priorities that happen to be those of multihomed, and takes them away.",
		Selects: nobody,
		Build:   func(w *world) { vpn0(w, "200") },
		Steps: []Step{
			{"at the sources", func(w *world) { w.both("rule add priority 10000 lookup 200") }},
			{"behind them, too", func(w *world) { w.both("rule add priority 10500 lookup 200") }},
			{"behind them", func(w *world) { w.both("rule del priority 10000 lookup 200") }},
			{"none", func(w *world) { w.both("rule del priority 10500 lookup 200") }},
		},
		Ask: func(w *world) []Question { return append(selected([]uint32{1}, nil)(w), dialsOf(w)...) },
	},
	{
		Name:       "a user by mark",
		What:       "One user's traffic goes through a VPN: nftables marks it by its user, `ip rule add fwmark 1 lookup 200` without a priority.",
		Renumbered: true,
		Build: func(w *world) {
			vpn0(w, "200")
			w.both("rule add fwmark 1 lookup 200")
			w.nft(`table inet m {
 chain out { type route hook output priority -150; meta skuid 1001 meta mark set 1
 }
 chain post { type nat hook postrouting priority 100; oifname "tun0" masquerade
 }
}`)
		},
		Steps: []Step{
			{"the rule goes", func(w *world) { w.both("rule del fwmark 1") }},
			{"the rule comes", func(w *world) { w.both("rule add fwmark 1 lookup 200") }},
		},
		Selects: func(w *world, q Question) bool {
			if d, ok := q.(Dial); ok && w.step == "the rule goes" {
				return d.From.Mark != 0
			}
			return except([]uint32{1}, []uint32{1001})(w, q) && w.step != "the rule goes"
		},
		Ask: func(w *world) []Question {
			return append(selected([]uint32{1, 2}, nil)(w), dialsOf(w)...)
		},
	},
	{
		Name:       "a user by uidrange",
		What:       "One user's traffic goes through a VPN by `ip rule add uidrange 1001-1001 lookup 200`; main has a specific route.",
		Renumbered: true,
		Selects:    except(nil, []uint32{1001}),
		Build: func(w *world) {
			vpn0(w, "200")
			w.ip("route add 10.7.0.0/16 via 100.64.0.1 dev wan0")
			w.beyond = addrs("10.7.0.1")
			w.both("rule add uidrange 1001-1001 lookup 200")
		},
		Ask: func(w *world) []Question {
			return append(selected(nil, []uint32{1001, 1002}, addrs("10.7.0.1")...)(w), dialsOf(w)...)
		},
	},
	{
		Name:    "a user that may go nowhere",
		What:    "A kill switch: `ip rule add pref 32000 uidrange 1001-1001 prohibit`, with the LAN allowed before it.",
		Selects: except(nil, []uint32{1001}),
		Build: func(w *world) {
			w.both("rule add pref 32000 uidrange 1001-1001 prohibit")
			w.ip("rule add pref 31999 uidrange 1001-1001 to 100.64.1.0/24 lookup main")
		},
		Ask: func(w *world) []Question {
			return append(selected(nil, []uint32{1001})(w), dialsOf(w)...)
		},
	},
	{
		Name:       "a kill switch, a mark and a VPN",
		What:       "A user's kill switch at 32000, a mark rule without a priority, and a full-tunnel VPN that comes and goes.",
		Renumbered: true,
		Selects:    except([]uint32{1}, []uint32{1001}),
		Build: func(w *world) {
			w.both("rule add pref 32000 uidrange 1001-1001 prohibit", "rule add fwmark 1 lookup 100")
			w.ip("route add default via 100.64.1.1 dev wan1 table 100", "-6 route add default via "+w.via6["wan1"].String()+" dev wan1 table 100")
			wgTun(w)
			wgUp(w, "wg0", "51820")
		},
		Steps: []Step{
			{"the VPN goes", func(w *world) { wgDown(w) }},
			{"the VPN comes", func(w *world) { wgUp(w, "wg0", "51820") }},
		},
		Ask: func(w *world) []Question { return append(selected([]uint32{1}, []uint32{1001})(w), deletions("wg0")) },
	},
	{
		Name:       "an old mark rule before a VPN",
		What:       "A boot script's mark rule and a user's rule at 32765, and a full-tunnel VPN whose rules the kernel put before them.",
		Renumbered: true,
		Selects:    only4(except([]uint32{1}, []uint32{1001})),
		Build: func(w *world) {
			w.ip("route add default via 100.64.1.1 dev wan1 table 100", "rule add pref 32765 fwmark 1 lookup 100",
				"rule add pref 32764 not fwmark 51820 lookup 51820", "rule add pref 32763 lookup main suppress_prefixlength 0",
				"rule add pref 32765 uidrange 1001-1001 lookup 100")
			wgTun(w)
			w.ip("route add default dev wg0 table 51820")
		},
		Ask: selected([]uint32{1}, []uint32{1001}),
	},
	{
		Name:    "marks of one bit",
		What:    "Policies by the highest bit, by a byte of the mark, and by all but one mark.",
		Selects: except([]uint32{0x80000000, 0x10, 0x1f, 0x80000010}, nil),
		Build: func(w *world) {
			vpn0(w, "200")
			w.both("rule add pref 32010 fwmark 0x80000000 lookup 200", "rule add pref 32011 fwmark 0x10/0xf0 lookup 200")
		},
		Ask: selected([]uint32{0x80000000, 0x80000001, 0x10, 0x1f, 0x20, 0x80000010}, nil),
	},
	{
		Name:       "a transparent proxy",
		What:       "squid's TPROXY: `ip rule add fwmark 1 lookup 100` and a table 100 that delivers everything here.",
		Lab:        routing,
		Publishes:  true,
		Renumbered: true,
		Network: func(w *world) {
			w.providers()
			lanOf(w)
		},
		Build: func(w *world) {
			w.both("rule add fwmark 1 lookup 100")
			w.ip("route add local 0.0.0.0/0 dev lo table 100", "-6 route add local ::/0 dev lo table 100")
		},
		Ask: func(w *world) []Question {
			var marked []sender
			for _, s := range append(forwarded("lan0", "192.168.7.5", "fd07::5"), forwarded("wan0", "203.0.113.200", "2001:db8:fffe::99")...) {
				marked = append(marked, s)
				s.Mark = 1
				marked = append(marked, s)
			}
			return append(selected([]uint32{1}, nil, addrs("192.168.7.5", "fd07::5")...)(w),
				grid(append(w.outside(), addrs("192.168.7.5", "fd07::5")...), marked)...)
		},
	},
	{
		Name: "guests kept out",
		What: "A gateway whose guests' network may not reach the LAN: `ip rule add from 10.66.0.0/24 iif guest lookup 66`.",
		Lab:  routing,
		Network: func(w *world) {
			w.providers()
			lanOf(w)
			_, err := w.NewLink(lab.LinkConfig{Name: "vethguest", Up: true})
			w.must(err)
			w.must(w.AddAddr("vethguest", "10.66.0.1/24"))
		},
		Build: func(w *world) {
			w.ip("route add default via 100.64.1.1 dev wan1 table 66", "route add unreachable 192.168.0.0/16 table 66", "route add 10.66.0.0/24 dev vethguest table 66",
				"rule add pref 32000 from 10.66.0.0/24 iif vethguest lookup 66")
		},
		Ask: func(w *world) []Question {
			return append(grid(append(w.outside(), addrs("192.168.7.5", "192.168.7.1")...), append(forwarded("vethguest", "10.66.0.9"), forwarded("lan0", "192.168.7.5")...)),
				grid(addrs("192.168.7.5", "10.66.0.9"), w.senders())...)
		},
	},
	{
		Name: "routing-rules of a profile",
		What: "NetworkManager profiles with routing-rules at 100, 9600, 30000 and 32000: by destination, mark and source.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0), "ipv4.route1=10.80.0.0/16,100.64.0.1")
			w.provider(lab.DefaultISP(1), "ipv4.route1=10.80.0.0/16,100.64.1.1", "ipv4.route1_options=table=200",
				"ipv4.route2=0.0.0.0/0,100.64.1.1", "ipv4.route2_options=table=200",
				"ipv4.routing-rule1=priority 32000 to 10.80.0.0/16 table 200",
				"ipv4.routing-rule2=priority 30000 from 0.0.0.0/0 fwmark 5 table 200",
				"ipv4.routing-rule3=priority 9600 from 0.0.0.0/0 fwmark 6 table 200",
				"ipv4.routing-rule4=priority 100 from 0.0.0.0/0 fwmark 7 table 200",
				"ipv4.routing-rule5=priority 32002 from 100.64.1.250 table 200")
			w.activate()
		},
		Selects: only4(except([]uint32{5, 6, 7}, nil)),
		Ask:     selected([]uint32{5, 6, 7}, nil, addrs("10.80.0.1")...),
	},
	{
		Name: "a table by source, by hand",
		What: "A server whose second address has a table by hand, as netplan and cloud images write it: `from ADDRESS table 101`.",
		Build: func(w *world) {
			w.ip("route add default via 100.64.1.1 dev wan1 table 101", "route add 100.64.1.0/24 dev wan1 table 101",
				"rule add pref 30400 from "+w.addr("wan1", lab.IPv4).String()+" lookup 101")
		},
		// The administrator's rule makes the difference before we do; to the network
		// of wan0 it says the same as ours.
		Ask: selected([]uint32{1}, nil),
		Selects: func(w *world, q Question) bool {
			from := netip.Addr{}
			switch q := q.(type) {
			case Lookup:
				from = q.From
			case Dial:
				from = q.From.Addr
			case Call:
				from = q.Dst
			}
			return from.IsValid() && from == w.addr("wan1", lab.IPv4)
		},
	},
	{
		Name:      "the VPC CNI",
		What:      "A Kubernetes node on a cloud: 512 to pods, 1024 by mark, 1536 from pods by the second interface.",
		Lab:       routing,
		Publishes: true,
		Build: func(w *world) {
			_, err := w.NewLink(lab.LinkConfig{Name: "vethpod", Up: true})
			w.must(err)
			w.ip("route add 100.64.1.60 dev vethpod table main", "route add default via 100.64.1.1 dev wan1 table 2", "route add 100.64.1.1 dev wan1 table 2",
				"rule add pref 512 to 100.64.1.60 lookup main", "rule add pref 1024 fwmark 0x80/0x80 lookup main", "rule add pref 1536 from 100.64.1.60 lookup 2")
		},
		Selects: only4(except([]uint32{0x80, 0x81}, nil)),
		Ask: func(w *world) []Question {
			return append(selected([]uint32{0x80, 0x81}, nil, addrs("100.64.1.60")...)(w), grid(w.outside(), forwarded("vethpod", "100.64.1.60"))...)
		},
		Promised: []Promise{{
			Name: "from the other uplink to a pod, as main says",
			Of: func(_ *world, q Question) bool {
				l, ok := q.(Lookup)
				return ok && l.Dst.String() == "100.64.1.60" && l.In == "" && l.Out == ""
			},
			Want: func(_ *world, _ Question, without, with string) string {
				if with != without {
					return without
				}
				return ""
			},
			Steps: []string{},
		}},
	},
	{
		Name: "mwan3",
		What: "A multi-WAN script with rules by interface (1001), by bits of a mark (2001) and a blackhole behind.",
		Lab:  routing,
		Build: func(w *world) {
			for i, link := range []string{"wan0", "wan1"} {
				n := i + 1
				w.ip(fmt.Sprintf("route add default via 100.64.%d.1 dev %s table %d", i, link, n),
					fmt.Sprintf("rule add pref %d iif %s lookup %d", 1000+n, link, n),
					fmt.Sprintf("rule add pref %d fwmark %#x/0x3f00 lookup %d", 2000+n, n<<8, n))
			}
			w.ip("rule add pref 2061 fwmark 0x3d00/0x3f00 blackhole", "rule add pref 2062 fwmark 0x3e00/0x3f00 unreachable")
		},
		Selects: only4(except([]uint32{0x100, 0x200, 0x3d00, 0x3e00}, nil)),
		Ask: func(w *world) []Question {
			return append(selected([]uint32{0x100, 0x200, 0x3d00, 0x3e00}, nil)(w),
				grid(w.outside(), append(forwarded("wan0", "203.0.113.200"), forwarded("wan1", "203.0.113.200")...))...)
		},
	},
	{
		Name:       "a rule without a priority, before and after",
		What:       "A script adds `fwmark 1 lookup 200` and later `to 10.5.0.0/16 lookup 200`, both without a priority.",
		Renumbered: true,
		Selects:    only4(except([]uint32{1}, nil)),
		Build: func(w *world) {
			w.ip("route add default via 100.64.1.1 dev wan1 table 200", "rule add fwmark 1 lookup 200", "rule add to 10.5.0.0/16 lookup 200")
		},
		Steps: []Step{
			{"one more", func(w *world) { w.ip("rule add fwmark 2 lookup 200") }},
			{"one less", func(w *world) { w.ip("rule del fwmark 2") }},
		},
		Ask: selected([]uint32{1}, nil, addrs("10.5.0.1", "10.5.200.1")...),
	},
	{
		Name:    "a rule in the middle of the ladder",
		What:    "Rules of other programs at 9002, 10001 (amazon-ec2-net-utils) and 10086.",
		Selects: except([]uint32{7, 8}, []uint32{1001}),
		Build: func(w *world) {
			vpn0(w, "77")
			w.both("rule add pref 10001 uidrange 1001-1001 lookup 77", "rule add pref 9002 fwmark 7 lookup 77", "rule add pref 10086 fwmark 8 lookup 77")
		},
		Ask: selected([]uint32{7, 8, 9}, []uint32{1001}),
	},
	{
		Name: "a selecting rule without an answer",
		What: "Rules by source and by user whose table knows only one network.",
		Build: func(w *world) {
			w.tun("tun9")
			w.ip("route add 10.99.0.0/16 dev tun9 table 200", "rule add pref 32000 from 100.64.1.0/24 lookup 200", "rule add pref 32001 uidrange 1001-1001 lookup 200")
		},
		// Where the table has no answer, bound traffic goes on by its link.
		Selects: nobody,
		Ask: func(w *world) []Question {
			return append(selected(nil, []uint32{1001}, addrs("10.99.1.1")...)(w), dialsOf(w)...)
		},
	},
	{
		Name:       "the owner deletes by his own words",
		What:       "An administrator deletes each rule by its selector alone and adds it again.",
		Selects:    only4(except([]uint32{1, 0x10}, []uint32{1001})),
		Renumbered: true,
		Build: func(w *world) {
			vpn0(w, "200")
			ownRules(w)
		},
		Steps: []Step{
			{"deleted", func(w *world) {
				// Each command must delete the owner's rule, at once.
				w.ip("rule del fwmark 1", "rule del fwmark 0x10/0xf0", "rule del to 10.5.0.0/16", "rule del uidrange 1001-1001")
			}},
			{"added again", ownRules},
		},
		Ask: func(w *world) []Question {
			if w.step == "deleted" {
				return grid(w.outside(), w.senders())
			}
			return selected([]uint32{1, 0x10}, []uint32{1001}, addrs("10.5.0.1", "10.5.200.1")...)(w)
		},
	},
	{
		Name: "deleting until it is gone",
		What: "`while ip rule del from ADDRESS; do :; done`, of a rule that selects by an address of a link.",
		Build: func(w *world) {
			w.ip("route add 10.99.0.0/16 via 100.64.1.1 dev wan1 table 300", "rule add pref 32000 from "+w.addr("wan1", lab.IPv4).String()+" lookup 300")
		},
		Steps: []Step{
			{"deleted", func(w *world) {
				a := w.addr("wan1", lab.IPv4).String()
				for n := 0; ; n++ {
					if _, err := w.IP(w.t.Context(), "rule", "del", "pref", "32000", "from", a); err != nil {
						break
					}
					if n > 20 {
						w.t.Fatal("the loop does not end")
					}
				}
			}},
			{"added again", func(w *world) { w.ip("rule add pref 32000 from " + w.addr("wan1", lab.IPv4).String() + " lookup 300") }},
		},
		Ask: selected(nil, nil, addrs("10.99.1.1")...),
		Promised: []Promise{{
			Name: "the administrator's table, or the link",
			Of: func(_ *world, q Question) bool {
				l, ok := q.(Lookup)
				return ok && l.Dst.String() == "10.99.1.1" && l.From.IsValid()
			},
			Want: func(w *world, q Question, _, with string) string {
				want := w.by(w.owner(q.(Lookup).From), lab.InternetAddr4)
				if with == want {
					return ""
				}
				return want
			},
			Steps: []string{"deleted"},
		}},
	},
	{
		Name:    "sing-box",
		What:    "sing-box (sing-tun) deletes every rule from 9000 to 9010 when it starts and stops, and adds its own.",
		Selects: nobody,
		Build: func(w *world) {
			w.tun("tun7", "172.18.0.1/30")
			w.ip("route add default dev tun7 table 2022")
			singUp(w)
		},
		Steps: []Step{
			{"sing-box stops", singDown},
			{"sing-box starts", singUp},
		},
		Ask: func(w *world) []Question { return grid(w.outside(), w.senders()) },
		// Its rule stands in front of ours, as its numbers say: it takes what is bound, too.
		Promised: []Promise{{
			Name: "sing-box's numbers are in front",
			Of: func(w *world, q Question) bool {
				if w.step == "sing-box stops" {
					return false
				}
				l, ok := q.(Lookup)
				if !ok {
					d, ok := q.(Dial)
					c, isCall := q.(Call)
					return ok && d.Dst.Is4() || isCall && c.Dst.Is4()
				}
				return l.Dst.Is4()
			},
			Want: func(_ *world, _ Question, without, with string) string {
				if with != without {
					return without
				}
				return ""
			},
			Steps: []string{},
		}},
	},
}

func singUp(w *world) {
	w.t.Helper()
	singDown(w)
	w.ip("rule add pref 9000 to 172.18.0.0/30 lookup 2022", "rule add pref 9001 not fwmark 0x2024 lookup 2022")
}

func singDown(w *world) {
	w.t.Helper()
	for {
		out := w.run("ip", "-4", "rule", "show")
		found := false
		for line := range strings.Lines(out) {
			var pref int
			if _, err := fmt.Sscanf(line, "%d:", &pref); err == nil && pref >= 9000 && pref <= 9010 {
				w.ip(fmt.Sprintf("rule del pref %d", pref))
				found = true
				break
			}
		}
		if !found {
			return
		}
	}
}

func ownRules(w *world) {
	w.ip("rule add fwmark 1 lookup 200", "rule add fwmark 0x10/0xf0 lookup 200", "rule add to 10.5.0.0/16 lookup 200", "rule add uidrange 1001-1001 lookup 200")
}
