package kernel_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestThrown: the mirror knows what main throws, told or listed, and whoever follows the
// changes hears of each.
func TestThrown(t *testing.T) {
	for _, f := range routing.Families() {
		t.Run(f.String(), func(t *testing.T) {
			h := newHost(t)
			at := map[routing.Family][]string{
				routing.IPv4: {"10.0.0.10/24", "10.0.0.1", "198.18.0.0/15", "198.18.9.0/24", "10.9.0.10/24", "0.0.0.0/0", "10.%d.0.0/16"},
				routing.IPv6: {"2001:db8:1::10/64", "2001:db8:1::1", "2600::/16", "2600:9::/64", "2001:db8:9::10/64", "::/0", "2001:db8:%d::/64"},
			}[f]
			ip := func(format string, arguments ...any) {
				h.ip(f.Flag() + " " + fmt.Sprintf(format, arguments...))
			}
			h.veth("wan0")
			h.veth("far0")
			h.address("wan0", at[0])
			h.address("far0", at[4])
			m := h.mirror(kernel.Config{Interest: func(name string) bool { return strings.HasPrefix(name, "wan") }})
			var followed []netip.Prefix
			expect := func(what string, want ...string) {
				t.Helper()
				must(t, m.Sync(t.Context()))
				c := m.Take()
				m.View(func(s *kernel.State) {
					thrown := s.Thrown(f)
					var have []string
					for _, to := range thrown {
						have = append(have, to.String())
					}
					slices.Sort(want)
					slices.Sort(have)
					if !slices.Equal(have, want) {
						t.Errorf("%s: %q, want %q", what, have, want)
					}
					if c.All || c.Thrown.In(f) {
						followed = thrown
					}
					if !slices.Equal(followed, thrown) {
						t.Errorf("%s: who follows the changes has %v, and there is %v", what, followed, thrown)
					}
				})
				audit(t, m)
			}
			expect("none")
			ip("route add throw %s metric 50", at[2])
			ip("route add throw %s metric 50", at[3])
			expect("two", at[2], at[3])
			ip("route add %s via %s metric 100", at[3], at[1])
			expect("a way behind one", at[2], at[3])
			ip("route add %s via %s metric 40", at[3], at[1])
			expect("a way in front of it", at[2])
			ip("route del %s via %s metric 40", at[3], at[1])
			expect("it is gone", at[2], at[3])
			ip("route replace %s dev far0 metric 50", at[2])
			expect("replaced by a way of no interest", at[3])
			ip("route replace throw %s metric 50", at[2])
			expect("replaced back", at[2], at[3])
			ip("route add unreachable %s metric 60", at[5])
			ip("route add throw %s metric 55", at[5])
			expect("a default", at[2], at[3], at[5])
			for i := range 5 {
				ip("route add %s dev far0", fmt.Sprintf(at[6], 20+i))
			}
			// One that reads everything, and one that asks for what it needs.
			for _, budget := range []int{1000, 1} {
				fresh, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
				must(t, err)
				fresh.SetBudget(budget)
				must(t, fresh.Sync(t.Context()))
				var listed, told []netip.Prefix
				fresh.View(func(s *kernel.State) { listed = s.Thrown(f) })
				m.View(func(s *kernel.State) { told = s.Thrown(f) })
				if !slices.Equal(listed, told) {
					t.Errorf("budget %d: listed %v, told %v", budget, listed, told)
				}
				must(t, fresh.Close())
			}
			h.down("wan0")
			expect("a link is down", at[2], at[3], at[5])
			for _, to := range []string{at[2], at[3]} {
				ip("route del throw %s", to)
			}
			expect("the default is left", at[5])
		})
	}
}

// TestThrowOfOurs: what our tables throw is written, found again and deleted.
func TestThrowOfOurs(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	h.address("wan0", "10.0.0.10/24")
	m := h.mirror(kernel.Config{Tables: tables})
	w, err := m.OpenWriter()
	must(t, err)
	t.Cleanup(func() { must(t, w.Close()) })
	for _, f := range routing.Families() {
		to := map[routing.Family]string{routing.IPv4: "198.18.0.0/15", routing.IPv6: "2600::/16"}[f]
		r := routing.Route{
			Family: f, Table: tables.First, Destination: netip.MustParsePrefix(to), Type: routing.RouteThrow, Metric: routing.FirstMetric - 1,
			Protocol: routing.Multihomed,
		}
		if f == routing.IPv6 {
			r.Device = 1
		}
		apply := func(v routing.Verb) {
			t.Helper()
			for _, err := range w.Apply(t.Context(), []routing.Op{{Verb: v, Route: r}}) {
				must(t, err)
			}
			must(t, m.Sync(t.Context()))
			audit(t, m)
		}
		held := func() (out routing.Route, is bool) {
			m.View(func(s *kernel.State) { out, is = s.Route(r.Key()) })
			return out, is
		}
		apply(routing.AddRoute)
		if got, is := held(); !is || got != r {
			t.Errorf("%s: the mirror has %#v, %v, want %#v", f, got, is, r)
		}
		h.down("wan0")
		must(t, m.Sync(t.Context()))
		if _, is := held(); !is {
			t.Errorf("%s: it went with an interface", f)
		}
		h.up("wan0")
		apply(routing.DeleteRoute)
		if got, is := held(); is {
			t.Errorf("%s: the mirror still has %v", f, got)
		}
	}
}
