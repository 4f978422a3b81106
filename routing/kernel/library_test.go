package kernel_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// The benchmarks and the test of this file are why rules and routes are not read and
// written by vishvananda/netlink: see "Libraries" in ARCHITECTURE.md.

// BenchmarkLibraryDump lists 50,000 routes: the bytes alone, by our codec and by the
// library, which is what decoding adds.
func BenchmarkLibraryDump(b *testing.B) {
	const routes = 50_000
	h := newHost(b)
	wan := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(wan, routes)
	enough := func(n int, err error) error {
		if err == nil && n < routes {
			err = fmt.Errorf("%d routes", n)
		}
		return err
	}
	for _, way := range []struct {
		name string
		list func() (int, error)
	}{
		{"bytes", func() (int, error) { return h.raw.CountRoutes(routing.IPv4, routing.TableMain) }},
		{"ours", func() (int, error) { return h.raw.ReadRoutes(routing.IPv4, routing.TableMain) }},
		{"vishvananda", func() (int, error) {
			all, err := h.link.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			return len(all), err
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			h.enter()
			b.ReportAllocs()
			report := cpuTime(b)
			for b.Loop() {
				must(b, enough(way.list()))
			}
			report()
		})
	}
}

// BenchmarkLibraryEvent is a route that comes and goes: with nobody listening, followed by
// a mirror, and followed by the library's subscription, which keeps no state.
func BenchmarkLibraryEvent(b *testing.B) {
	for _, way := range []struct {
		name   string
		follow func(b *testing.B, h *host) (take func())
	}{
		{"nobody", func(*testing.B, *host) func() { return func() {} }},
		{"ours", func(b *testing.B, h *host) func() {
			m := h.mirror(kernel.Config{})
			return func() {
				must(b, m.Drain())
				if m.Take().Empty() {
					b.Fatal("the mirror has not seen the route")
				}
			}
		}},
		{"vishvananda", func(b *testing.B, _ *host) func() {
			updates, done := make(chan netlink.RouteUpdate, 64), make(chan struct{})
			b.Cleanup(func() { close(done) })
			must(b, netlink.RouteSubscribe(updates, done))
			return func() {
				for range 2 {
					<-updates
				}
			}
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			h := newHost(b)
			wan := h.veth("bgp0")
			h.address("bgp0", "198.51.100.10/24")
			take := way.follow(b, h)
			r := route(routing.TableMain, "10.0.0.0/8", "198.51.100.1", wan)
			b.ReportAllocs()
			report := cpuTime(b)
			for b.Loop() {
				must(b, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(r) }))
				must(b, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(r) }))
				take()
			}
			report()
		})
	}
}

// BenchmarkLibraryEncode writes the request that adds the main rung of a link.
func BenchmarkLibraryEncode(b *testing.B) {
	r := rule(routing.PrioritySource, "192.0.2.10/32", 10001)
	want := kernel.EncodeRule(r)
	b.Run("ours", func(b *testing.B) {
		encoder := kernel.NewEncoder()
		b.ReportAllocs()
		for b.Loop() {
			if got := encoder.Rule(unix.RTM_NEWRULE, r); len(got) != unix.SizeofNlMsghdr+len(want) {
				b.Fatalf("%d bytes", len(got))
			}
		}
	})
	b.Run("netlink's nl", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if got := byNL(r).Serialize(); len(got) != unix.SizeofNlMsghdr+len(want) {
				b.Fatalf("%d bytes, want %d", len(got), unix.SizeofNlMsghdr+len(want))
			}
		}
	})
}

// byNL is encodeRule for the main rung, by the attributes of netlink/nl.
func byNL(r routing.Rule) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	m := nl.NewRtMsg()
	m.Family, m.Src_len, m.Type = uint8(r.Family), uint8(r.From.Bits()), uint8(r.Action)
	m.Table, m.Protocol, m.Scope = unix.RT_TABLE_COMPAT, 0, 0
	q.AddData(m)
	q.AddData(nl.NewRtAttr(nl.FRA_SRC, r.From.Addr().AsSlice()))
	q.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))))
	q.AddData(nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.Table))))
	q.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(uint8(r.Protocol))))
	return q
}

// TestLibraryLoses fails when the library has learned what it is passed by for.
func TestLibraryLoses(t *testing.T) {
	h := newHost(t)
	wan := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")

	stray := rule(routing.PriorityUnreachable, "192.0.2.10/32", 0)
	stray.Action = routing.ActionUnreachable
	must(t, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(stray) }))
	guard := netlink.NewRule()
	guard.Priority, guard.Table, guard.SuppressPrefixlen = 9020, 10001, 7
	must(t, h.link.RuleAdd(guard))
	seen := 0
	rules, err := h.link.RuleList(unix.AF_INET)
	must(t, err)
	for _, r := range rules {
		switch r.Priority {
		case int(routing.PriorityUnreachable):
			seen++
			if r.Type == unix.RTN_UNREACHABLE || r.Type == uint8(routing.ActionUnreachable) {
				t.Error("the library reads actions of rules now: reconsider decodeRule")
			}
		case 9020:
			seen++
			if r.SuppressPrefixlen == 7 {
				t.Error("the library writes suppressors of tables above 255 now: reconsider encodeRule")
			}
		}
	}
	if seen != 2 {
		t.Fatalf("%d of 2 rules in %v", seen, rules)
	}

	h.ip("nexthop add id 7 via 192.0.2.1 dev wan0")
	h.ip("route add 10.9.0.0/16 nhid 7")
	h.ip("-6 route add 2001:db8:9::/48 dev wan0 pref high")
	decoded, err := h.raw.ListRoutes(routing.IPv6, routing.TableMain)
	must(t, err)
	preferred := 0
	for _, r := range decoded {
		if r.Destination == prefix("2001:db8:9::/48") && r.Device == wan && r.Preference != 0 {
			preferred++
		}
	}
	if preferred != 1 {
		t.Errorf("our codec finds the preference %d times in %v", preferred, decoded)
	}
	// netlink.Route has no field for RTA_PREF and RTA_NH_ID: a route that is written back
	// as it was read loses both.
	for family, destination := range map[int]string{unix.AF_INET: "10.9.0.0/16", unix.AF_INET6: "2001:db8:9::/48"} {
		to, err := netlink.ParseIPNet(destination)
		must(t, err)
		routes, err := h.link.RouteListFiltered(family, &netlink.Route{Dst: to}, netlink.RT_FILTER_DST)
		must(t, err)
		if len(routes) != 1 {
			t.Fatalf("%d routes to %s", len(routes), destination)
		}
		must(t, h.link.RouteReplace(&routes[0]))
	}
	for question, lost := range map[string]string{"route show 10.9.0.0/16": "nhid 7", "-6 route show 2001:db8:9::/48": "pref high"} {
		if answer := h.asked(question); answer == "" || strings.Contains(answer, lost) {
			t.Errorf("ip %s: %q: the library keeps %q now: reconsider decodeRoute", question, answer, lost)
		}
	}
}

// cpuTime begins to measure what all threads take, which a busy machine distorts less than
// the time on the wall.
func cpuTime(b *testing.B) (report func()) {
	taken := func() int64 {
		var usage unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
		return usage.Utime.Nano() + usage.Stime.Nano()
	}
	began := taken()
	return func() { b.ReportMetric(float64(taken()-began)/float64(b.N), "cpu-ns/op") }
}

// asked returns what ip(8) says here.
func (h *host) asked(args string) string {
	h.Helper()
	out, err := exec.CommandContext(h.Context(), "ip", strings.Fields(args)...).Output()
	must(h, err)
	return string(out)
}
