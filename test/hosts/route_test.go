package hosts_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"multihomed/internal/lab"
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

var routeHosts = []Host{
	{
		Name: "BGP through an uplink",
		What: "An edge host that learns networks by BGP from its second provider; the session ends and comes back.",
		Lab:  routing,
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
