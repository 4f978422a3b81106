package routing_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// throwing adds a throw route to main.
func throwing(t *testing.T, h *host, to string, metric uint32) routing.Route {
	t.Helper()
	p := prefix(to)
	r := routing.Route{
		Family: routing.FamilyOf(p.Addr()), Table: routing.TableMain, Destination: p, Type: kerneltest.RouteThrow, Metric: metric,
		Protocol: kerneltest.ProtocolStatic,
	}
	if r.Family == routing.IPv6 {
		r.Device = 1
	}
	if err := h.kernel.AddForeignRoute(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// dual are two uplinks of both families.
func dual() []routing.Link {
	return []routing.Link{
		wan0(linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
		wan1(linkLocal("fe80::b/64"), address("2001:db8:b::20/64", 101, dynamic), route(default6, "fe80::2", 101)),
	}
}

// refusedAll fails where a packet is sent.
func (h *host) refusedAll(t *testing.T, what, to string, from ...string) {
	t.Helper()
	for _, source := range append(from, "") {
		f := lookup.Flow{To: addr(to)}
		if source != "" {
			f.From = addr(source)
		}
		if v := h.kernel.Lookup(f); v.Outcome == lookup.Sent {
			t.Errorf("%s: from %q to %s by %v (%s)", what, source, to, v.Legs, v.Rule)
		}
	}
}

func (h *host) sentBy(t *testing.T, what, to, from string, device int) {
	t.Helper()
	f := lookup.Flow{To: addr(to)}
	if from != "" {
		f.From = addr(from)
	}
	if v := h.kernel.Lookup(f); !v.Through(device) {
		t.Errorf("%s: from %q to %s: %v %v by %s, want device %d", what, from, to, v.Outcome, v.Legs, v.Rule, device)
	}
}

// throwsIn is what table 10000 throws.
func throwsIn(h *host, f routing.Family) string {
	var out []string
	for _, r := range h.kernel.AllRoutes(f, 10000) {
		if r.Type == kerneltest.RouteThrow {
			out = append(out, r.Text("?"))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestThrown: what main throws goes by no table of ours, whoever sends it, and the tables
// follow main.
func TestThrown(t *testing.T) {
	t.Parallel()
	h := hostOf(t, dual()...)
	four, six := throwing(t, h, "198.18.0.0/15", 0), throwing(t, h, "2600::/16", 1024)
	throwing(t, h, "198.18.9.0/24", 200)
	h.converge(t)
	h.settled(t)
	h.refusedAll(t, "thrown", "198.18.0.1", "192.0.2.10", "198.51.100.20")
	h.refusedAll(t, "thrown", "2600::1", "2001:db8:a::10", "2001:db8:b::20")
	h.sentBy(t, "beside it", "8.8.8.8", "198.51.100.20", 3)
	if got, want := throwsIn(h, routing.IPv4), "throw 198.18.0.0/15 table 10000 metric 1073741823, throw 198.18.9.0/24 table 10000 metric 1073741823"; got != want {
		t.Errorf("the table throws %q, want %q", got, want)
	}
	h.kernel.DropRoute(four)
	h.kernel.DropRoute(six)
	h.converge(t)
	h.settled(t)
	h.sentBy(t, "no longer thrown", "198.18.0.1", "198.51.100.20", 3)
	h.sentBy(t, "no longer thrown", "2600::1", "2001:db8:a::10", 2)
	h.remove(2)
	h.remove(3)
	h.converge(t)
	if left := throwsIn(h, routing.IPv4) + throwsIn(h, routing.IPv6); left != "" {
		t.Errorf("without links the table throws %q", left)
	}
}

// TestThrownBehind: a throw route that other routes to its destination go before throws
// nothing.
func TestThrownBehind(t *testing.T) {
	t.Parallel()
	h := newHost()
	a := wan0()
	a.Routes = append(a.Routes, one(route("172.16.0.0/12", "192.0.2.1", 100)))
	h.install(a)
	h.install(wan1())
	throwing(t, h, "172.16.0.0/12", 200)
	h.converge(t)
	h.settled(t)
	h.sentBy(t, "main leads there", "172.16.5.5", "192.0.2.10", 2)
	if got := throwsIn(h, routing.IPv4); got != "" {
		t.Errorf("the table throws %q", got)
	}
}

// one is the route that a part adds.
func one(p part) routing.Route {
	l := link(2, "wan0")
	p(&l)
	return l.Routes[0]
}

// TestThrownDefault: a default that is thrown is none. Of IPv4 what is bound to a link keeps
// it; the kernel looks IPv6 up once more with a source.
func TestThrownDefault(t *testing.T) {
	t.Parallel()
	h := hostOf(t, dual()...)
	throwing(t, h, default4, 1)
	throwing(t, h, default6, 1)
	h.converge(t)
	h.settled(t)
	h.refusedAll(t, "thrown", "8.8.8.8")
	h.refusedAll(t, "thrown", "2600::1", "2001:db8:a::10")
	h.sentBy(t, "bound", "8.8.8.8", "192.0.2.10", 2)
	h.sentBy(t, "a neighbour", "2001:db8:a::99", "2001:db8:a::10", 2)
}

// TestThrownFailover: traffic that was moved is thrown as before.
func TestThrownFailover(t *testing.T) {
	t.Parallel()
	h := hostOf(t, dual()...)
	throwing(t, h, "198.18.0.0/15", 0)
	throwing(t, h, "2600::/16", 1024)
	h.converge(t)
	h.planner.SetFailover(failover(deadIn(routing.IPv4, 2), deadIn(routing.IPv6, 2)))
	h.kernel.Step = func(routing.Op) {
		h.refusedAll(t, "on the way", "198.18.0.1")
	}
	h.converge(t)
	h.kernel.Step = nil
	h.settled(t)
	h.refusedAll(t, "moved", "198.18.0.1", "192.0.2.10", "198.51.100.20")
	h.refusedAll(t, "moved", "2600::1", "2001:db8:a::10", "2001:db8:b::20")
	h.sentBy(t, "moved", "8.8.8.8", "", 3)
	h.sentBy(t, "moved", "2a00::1", "", 3)
	h.planner.SetFailover(failover())
	h.converge(t)
	h.settled(t)
	for _, f := range routing.Families() {
		if left := h.kernel.AllRoutes(f, failoverTable); len(left) > 0 {
			t.Errorf("%s: F holds %v", f, left)
		}
	}
}

// TestManyThrown: tables do not grow without end, and what main would throw then goes by no
// last resort.
func TestManyThrown(t *testing.T) {
	t.Parallel()
	h := hostOf(t, dual()...)
	for i := range 257 {
		throwing(t, h, fmt.Sprintf("198.%d.%d.0/24", 18+i/256, i%256), 0)
	}
	h.converge(t)
	h.settled(t)
	if got := throwsIn(h, routing.IPv4); got != "" {
		t.Errorf("the table throws %q", got)
	}
	h.refusedAll(t, "one of many", "198.18.7.1")
	plan, _ := h.planner.Link(2)
	if !slices.ContainsFunc(plan.Problems, func(p routing.Problem) bool {
		return p.Code == routing.ManyThrown && p.Fix != "" && strings.Contains(p.Text, "257")
	}) {
		t.Errorf("problems: %v", plan.Problems)
	}
}

// TestThrownAroundRepetitions: a route of a routing daemon that says what the default says is
// copied where main throws what is around it.
func TestThrownAroundRepetitions(t *testing.T) {
	t.Parallel()
	h := newHost()
	a := wan0()
	daemon := one(route("10.77.5.0/24", "192.0.2.1", 20))
	daemon.Protocol = 186
	a.Routes = append(a.Routes, daemon)
	h.install(a)
	h.install(wan1())
	h.converge(t)
	copied := func() bool {
		return slices.ContainsFunc(h.kernel.AllRoutes(routing.IPv4, 10000), func(r routing.Route) bool { return r.Destination == daemon.Destination })
	}
	if copied() {
		t.Fatal("it is copied although it says what the default says")
	}
	throwing(t, h, "10.77.0.0/16", 0)
	h.converge(t)
	h.settled(t)
	if !copied() {
		t.Error("it is not copied, and main throws what is around it")
	}
	h.sentBy(t, "inside", "10.77.5.1", "192.0.2.10", 2)
	h.refusedAll(t, "around", "10.77.6.1", "192.0.2.10")
}

// TestThrownWhoeverLives: whatever uplinks die and come, and whatever main throws, nothing
// answers in place of main, and the plan depends on the facts alone.
func TestThrownWhoeverLives(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		var facts routing.Failover
		for range rapid.IntRange(1, 5).Draw(t, "events") {
			switch index := rapid.IntRange(2, 4).Draw(t, "index"); rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				genRefusals(t, h)
			case 1:
				for _, f := range routing.Families() {
					for _, r := range h.kernel.AllRoutes(f, routing.TableMain) {
						if r.Type != routing.RouteUnicast && rapid.Bool().Draw(t, "no more") {
							h.kernel.DropRoute(r)
						}
					}
				}
			case 2:
				facts = genFailover(t, true)
				h.planner.SetFailover(facts)
			default:
				l := genUplink(t, index, names[index-2])
				l.Tables = h.leases.of(l)
				h.install(l)
			}
			h.lookAll()
			h.converge(t)
			h.settled(t)
			for _, to := range far {
				thrown(t, h.kernel, lookup.Flow{To: to})
				for _, from := range h.kernel.OwnAddresses(routing.FamilyOf(to)) {
					thrown(t, h.kernel, lookup.Flow{From: from, To: to})
				}
			}
			h.fresh(t, facts)
		}
	})
}
