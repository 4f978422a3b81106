package hosts_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"multihomed/test/lab"
)

// oursAtMost promises that we have some routes, but not more than this.
func oursAtMost(most int) Promise {
	return Promise{
		Name: "our routes are few",
		Of:   func(_ *world, q Question) bool { return q.String() == ourRoutes },
		Want: func(_ *world, _ Question, _, with string) string {
			var n int
			if _, err := fmt.Sscan(with, &n); err == nil && n > 0 && n <= most {
				return ""
			}
			return fmt.Sprintf("at most %d", most)
		},
	}
}

const ourRoutes = "how many routes of multihomed there are"

func countOurs(w *world) string {
	out, err := w.IP(w.t.Context(), "-4", "route", "show", "table", "all", "proto", fmt.Sprint(lab.Ours))
	w.must(err)
	return fmt.Sprint(strings.Count(out, "\n"))
}

// siteHost is a host with one provider and a second router in the provider's network,
// behind which a site is: its routes are in a table of their own, which a rule reads.
func siteHost(name, what, rule string) Host {
	return Host{
		Name: name, What: what, Unpromised: true, Renumbered: rule == "",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			w.activate()
		},
		Build: func(w *world) {
			prefix6 := w.isps[0].Config().IPv6
			router6 := prefix6.Masked().Addr().Next().Next().Next()
			w.ip("-n isp0 addr add 100.64.0.3/24 dev lan", "-n isp0 addr add 10.61.0.1/16 dev lo",
				fmt.Sprintf("-n isp0 addr add %s/%d dev lan nodad", router6, prefix6.Bits()), "-n isp0 addr add fd61::1/64 dev lo nodad",
				"route add 10.61.0.0/16 via 100.64.0.3 table 61", "-6 route add fd61::/16 via "+router6.String()+" dev wan0 table 61")
			w.both("rule add " + rule + " lookup 61")
		},
		Steps: []Step{
			{"the table has a default", func(w *world) { w.ip("route add default via 100.64.0.3 table 61") }},
			{"it has none", func(w *world) { w.ip("route del default table 61") }},
			{"the rule goes", func(w *world) {
				// By its number: "table 61" is what rules of multihomed say, too.
				for _, f := range []string{"-4", "-6"} {
					for line := range strings.Lines(w.run("ip", f, "rule", "show")) {
						if number, rest, _ := strings.Cut(line, ":"); strings.Contains(rest, "lookup 61") && !strings.Contains(rest, "proto 150") {
							w.ip(f + " rule del pref " + number + " lookup 61")
						}
					}
				}
			}},
			{"the rule comes", func(w *world) { w.both("rule add " + rule + " lookup 61") }},
		},
		Promised: []Promise{{
			Name: "neighbours are on the link", Steps: []string{"the table has a default"},
			Of: func(w *world, q Question) bool {
				look, is := q.(Lookup)
				return is && w.step == "the table has a default" && look.In == "" && w.isps[0].IPv4().Contains(look.Dst) && w.owner(look.Dst) == nil &&
					(look.From.IsValid() || look.Out != "")
			},
			Want: func(_ *world, _ Question, _, with string) string {
				if with, _, _ = strings.Cut(with, " src "); with != "dev wan0" {
					return "dev wan0"
				}
				return ""
			},
		}},
		Ask: func(w *world) []Question {
			questions := grid(addrs("10.61.0.1", "10.61.9.9", "fd61::1"), w.senders(1))
			return append(questions,
				Dial{Dst: netip.MustParseAddr("10.61.0.1")}, Dial{Dst: netip.MustParseAddr("fd61::1")},
				Dial{Dst: netip.MustParseAddr("10.61.0.1"), From: lab.From{Addr: w.addr("wan0", lab.IPv4)}},
				Call{By: w.isps[0], Src: netip.MustParseAddr("10.61.0.1"), Dst: w.addr("wan0", lab.IPv4)},
				Call{By: w.isps[0], Src: netip.MustParseAddr("fd61::1"), Dst: w.addr("wan0", lab.IPv6)})
		},
	}
}

var routeHosts = []Host{
	siteHost("a site in a table of its own", "A site behind a second router of the provider's network: bird's `kernel table 61` and a rule for everything.", "pref 32000"),
	siteHost("a site in a table for packets of the host", "The same with a rule that says iif lo.", "pref 32000 iif lo"),
	siteHost("a site in a table by a rule without a number", "The same with a rule that the kernel numbers.", ""),
	{
		Name:      "BGP through an uplink",
		What:      "An edge host that learns networks by BGP from its second provider; the session ends and comes back.",
		Lab:       routing,
		Publishes: true,
		Build: func(w *world) {
			w.beyond = addrs("10.200.7.1")
			w.peers(w.addr("wan1", lab.IPv4), netip.MustParseAddr("100.64.1.1"), w.isps[1].Namespace(), "10.200.0.0/16", "10.200.0.0/16", "10.201.0.0/16")
		},
		Steps: []Step{
			{"the session ends", func(w *world) { w.silence("10.200.0.0/16") }},
			{"the session is back", func(w *world) { w.speak() }},
		},
		Ask: func(w *world) []Question { return grid(addrs("10.200.7.1"), w.senders()) },
	},
	{
		Name: "a routing daemon's many routes",
		What: "FRR has put 1,000 routes through the second uplink into main, and a few into a table of its own.",
		Lab:  routing,
		Build: func(w *world) {
			var b strings.Builder
			for i := range 1000 {
				fmt.Fprintf(&b, "route add 20.%d.%d.0/24 via 100.64.1.1 dev wan1 proto 186 metric 20\n", i/250, i%250)
				if i < 20 {
					fmt.Fprintf(&b, "route add 30.0.%d.0/24 via 100.64.1.1 dev wan1 proto 186 metric 20 table 1001\n", i)
				}
			}
			path := filepath.Join(w.t.TempDir(), "routes")
			w.must(os.WriteFile(path, []byte(b.String()), 0o600))
			w.run("ip", "-batch", path)
			w.beyond = addrs("20.1.7.1")
		},
		Promised: []Promise{oursAtMost(60)},
		Ask: func(w *world) []Question {
			return append(grid(addrs("20.1.7.1"), append(w.senders(), forwarded("wan0", "203.0.113.200")...)), Fact{ourRoutes, countOurs})
		},
	},
}
