package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestDefaults: main's defaults are known through any device, of interest or not, of one
// metric, as legs and by nexthop objects, and whoever follows the changes is told.
func TestDefaults(t *testing.T) {
	for _, f := range routing.Families() {
		t.Run(f.String(), func(t *testing.T) {
			h := newHost(t)
			v4 := f == routing.IPv4
			ip := func(format string, arguments ...any) {
				h.ip(f.Flag() + " " + fmt.Sprintf(format, arguments...))
			}
			at := func(n, host int) string {
				if v4 {
					return fmt.Sprintf("10.%d.0.%d", n, host)
				}
				return fmt.Sprintf("2001:db8:%d::%d", n+1, host)
			}
			index := map[string]int{}
			for n, name := range []string{"wan0", "wan1", "far0", "bare0"} {
				index[name] = h.veth(name)
				if name != "bare0" || v4 {
					h.address(name, at(n, 10)+map[bool]string{true: "/24", false: "/64"}[v4])
				}
			}
			m := h.mirror(kernel.Config{Interest: func(name string) bool { return strings.HasPrefix(name, "wan") }})
			var followed []string
			expect := func(what string, want ...string) {
				t.Helper()
				must(t, m.Sync(t.Context()))
				c := m.Take()
				m.View(func(s *kernel.State) {
					var have []string
					for _, r := range s.Defaults(f) {
						line := fmt.Sprintf("%s %s", s.Name(r.Device), r.Gateway)
						if r.Type != routing.RouteUnicast {
							line = r.Refuses()
						}
						if r.Weight > 0 {
							line += fmt.Sprintf(" weight %d", r.Weight)
						}
						have = append(have, line)
					}
					if !slices.Equal(have, want) {
						t.Errorf("%s: %q, want %q", what, have, want)
					}
					if c.All || c.Defaults.In(f) {
						followed = have
					}
					if !slices.Equal(followed, have) {
						t.Errorf("%s: who follows the changes has %q, and there is %q", what, followed, have)
					}
					// Those of no interest are nobody's facts.
					for _, name := range []string{"far0", "bare0"} {
						if l, _ := s.Link(index[name]); len(l.Routes) > 0 {
							t.Errorf("%s: %s has %v", what, name, l.Routes)
						}
					}
				})
				audit(t, m)
			}
			expect("none")
			ip("route add default via %s dev wan0 metric 100", at(0, 1))
			ip("route add default via %s dev wan1 metric 101", at(1, 1))
			expect("two uplinks", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route add default via %s dev far0 metric 50", at(2, 1))
			expect("one of no interest, in front", "far0 "+at(2, 1), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route add default dev bare0 metric 40")
			expect("one without a next hop", "bare0 invalid IP", "far0 "+at(2, 1), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			h.down("bare0")
			expect("its interface is down", "far0 "+at(2, 1), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route replace default via %s dev far0 metric 50", at(2, 9))
			expect("replaced", "far0 "+at(2, 9), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route add unreachable default metric 20")
			expect("one that refuses", "unreachable", "far0 "+at(2, 9), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route del unreachable default metric 20")
			ip("route del default via %s dev far0 metric 50", at(2, 9))
			expect("gone", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route add default metric 30 nexthop via %s dev far0 weight 2 nexthop via %s dev wan1 weight 3", at(2, 1), at(1, 2))
			expect("legs", "far0 "+at(2, 1)+" weight 2", "wan1 "+at(1, 2)+" weight 3", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			h.down("far0")
			expect("a leg is dead", "wan1 "+at(1, 2)+" weight 3", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			h.up("far0")
			if !v4 {
				h.address("far0", at(2, 10)+"/64") // IPv6 loses addresses with its interface.
			}
			ip("route del default metric 30")
			h.ip(fmt.Sprintf("%s nexthop add id 7 via %s dev far0", f.Flag(), at(2, 1)))
			ip("route add default nhid 7 metric 10")
			expect("an object", "far0 "+at(2, 1), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			h.ip(fmt.Sprintf("%s nexthop replace id 7 via %s dev wan1", f.Flag(), at(1, 3)))
			expect("another way of it", "wan1 "+at(1, 3), "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			h.ip("nexthop del id 7")
			expect("no object", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			must(t, m.SetInterest(t.Context(), map[int]bool{index["wan0"]: false}))
			expect("no interest any more", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			must(t, m.Resync(t.Context()))
			expect("read anew", "wan0 "+at(0, 1), "wan1 "+at(1, 1))
			ip("route del default via %s dev wan0 metric 100", at(0, 1))
			expect("and gone", "wan1 "+at(1, 1))
		})
	}
}

// TestFailoverTableIsReplaced: while F leads to one link and then to another, 400 times, and
// shares traffic in between, no socket that connects finds it without a way, and what stands
// is what was written.
func TestFailoverTableIsReplaced(t *testing.T) {
	table := tables.Last
	for _, f := range routing.Families() {
		t.Run(f.String(), func(t *testing.T) {
			h := newHost(t)
			wan := [2]int{h.veth("wan0"), h.veth("wan1")}
			at := func(n, host int) string {
				if f == routing.IPv4 {
					return fmt.Sprintf("10.%d.0.%d", n, host)
				}
				return fmt.Sprintf("2001:db8:%d::%d", n+1, host)
			}
			to := "203.0.113.1"
			if f == routing.IPv6 {
				to = "2600::1"
			}
			for n := range 2 {
				h.address(fmt.Sprintf("wan%d", n), at(n, 10)+map[bool]string{true: "/24", false: "/64"}[f == routing.IPv4])
			}
			m := h.mirror(kernel.Config{})
			w := h.writer(m)
			// As the pair does: next hops are looked up through the rules, too.
			h.ip(fmt.Sprintf("%s rule add pref 99 lookup main suppress_prefixlength 0 protocol 150", f.Flag()))
			h.ip(fmt.Sprintf("%s rule add pref 100 lookup %d protocol 150", f.Flag(), table))
			way := func(n int) routing.Route {
				return routing.Route{
					Family: f, Type: routing.RouteUnicast, Table: table, Destination: f.Any(), Metric: routing.FirstMetric, Device: wan[n],
					Gateway: addr(at(n, 1)), PreferredSource: addr(at(n, 10)), Protocol: routing.Multihomed,
				}
			}
			shared := way(0)
			shared.PreferredSource, shared.Weight = netip.Addr{}, 3
			shared.Attributes = routing.RareAttributes{Legs: routing.PackLegs([]routing.Leg{{Gateway: addr(at(1, 1)), Device: wan[1], Weight: 1}})}.Share()
			h.apply(w, routing.Op{Verb: routing.AddRoute, Route: way(0)})
			must(t, m.Drain())

			stop, failed, tried := make(chan struct{}), []string(nil), 0
			var busy sync.WaitGroup
			started := make(chan struct{})
			busy.Go(func() {
				h.enter()
				for {
					c, err := net.Dial("udp", net.JoinHostPort(to, "9"))
					if err != nil {
						failed = append(failed, err.Error())
					} else {
						_ = c.Close()
					}
					if tried++; tried == 1 {
						close(started)
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			<-started
			messages := 0
			for n := range 400 {
				r := way(n % 2)
				if n%8 == 7 {
					r = shared
				}
				h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: r})
				must(t, m.Drain())
				messages++
				want := []routing.Route{r}
				if f == routing.IPv6 {
					want = r.Ways()
				}
				m.View(func(s *kernel.State) {
					have := s.OurRoutes(table)
					if len(have) != len(want) || slices.ContainsFunc(want, func(r routing.Route) bool { return !slices.Contains(have, r) }) {
						t.Fatalf("written %v, there is %v", want, have)
					}
				})
			}
			close(stop)
			busy.Wait()
			if len(failed) > 0 {
				t.Errorf("%d of %d sockets found no way, as: %s", len(failed), tried, failed[0])
			}
			if tried < messages/4 {
				t.Errorf("only %d sockets connected", tried)
			}
			audit(t, m)
		})
	}
}

// TestFailoverTableKeepsOthers: a route of somebody else in F is not replaced.
func TestFailoverTableKeepsOthers(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	his := route(tables.Last, "0.0.0.0/0", "192.0.2.1", dev)
	his.Metric, his.Protocol = routing.FirstMetric, 4
	must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(his) }))
	must(t, m.Drain())
	ours := route(tables.Last, "0.0.0.0/0", "192.0.2.2", dev)
	ours.Metric = routing.FirstMetric
	h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: ours})
	have, err := h.raw.ListRoutes(routing.IPv4, tables.Last)
	must(t, err)
	if !slices.ContainsFunc(have, func(r routing.Route) bool { return r.Protocol == 4 && r.Gateway == his.Gateway }) || len(have) != 2 {
		t.Errorf("there is %v", have)
	}
}

// TestRunning: an interface that loses its carrier is not running, and whoever follows the
// changes is told.
func TestRunning(t *testing.T) {
	h := newHost(t)
	index := h.veth("wan0")
	m := h.mirror(kernel.Config{})
	running := func() (is bool) {
		m.View(func(s *kernel.State) {
			l, _ := s.LinkFacts(index)
			is = l.Carrier && l.Running
		})
		return is
	}
	// The kernel tells of the carrier in its own time (linkwatch).
	await := func(want bool) {
		t.Helper()
		for running() != want {
			select {
			case <-m.Changed():
			case <-t.Context().Done():
				t.Fatalf("running is not %t", want)
			}
			must(t, m.Sync(t.Context()))
			m.Take()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-done)
	}()
	await(true)
	h.down("p-wan0")
	await(false)
	h.up("p-wan0")
	await(true)
}
