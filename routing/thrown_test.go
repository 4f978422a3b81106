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
		Family: routing.FamilyOf(p.Addr()), Table: routing.TableMain, Destination: p, Type: routing.RouteThrow, Metric: metric,
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
		if r.Type == routing.RouteThrow {
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

// mostThrown is how much a table throws.
const mostThrown = 1024

// throwMany adds that many throw routes to main.
func throwMany(t *testing.T, h *host, n int) {
	t.Helper()
	for i := range n {
		throwing(t, h, fmt.Sprintf("198.%d.%d.0/24", 18+i/256, i%256), 0)
		throwing(t, h, fmt.Sprintf("2600:%x::/32", i), 1024)
	}
}

// manyThrown are the texts of such problems.
func manyThrown(h *host, index int) []string {
	plan, _ := h.planner.Link(index)
	var out []string
	for _, p := range plan.Problems {
		if p.Code == routing.ManyThrown && p.Fix != "" {
			out = append(out, p.Text)
		}
	}
	return out
}

// TestManyThrown: tables do not grow without end. What main would throw then goes by no
// last resort and not by table F, and the problem names who still leaves.
func TestManyThrown(t *testing.T) {
	t.Parallel()
	h := hostOf(t, dual()...)
	throwMany(t, h, mostThrown)
	h.converge(t)
	h.settled(t)
	if got := manyThrown(h, 2); len(got) > 0 {
		t.Errorf("problems: %q", got)
	}
	h.refusedAll(t, "the most", "198.18.7.1", "192.0.2.10", "198.51.100.20")
	h.planner.SetFailover(failover(deadIn(routing.IPv4, 2), deadIn(routing.IPv6, 2)))
	h.converge(t)
	h.settled(t)
	h.refusedAll(t, "the most, moved", "198.18.7.1", "192.0.2.10", "198.51.100.20")
	h.sentBy(t, "moved", "8.8.8.8", "", 3)
	h.kernel.Step = func(routing.Op) { h.refusedAll(t, "on the way", "198.18.7.1") }
	four, six := throwing(t, h, "203.0.113.0/24", 0), throwing(t, h, "2400::/32", 1024)
	h.converge(t)
	h.settled(t)
	if got := throwsIn(h, routing.IPv4) + throwsIn(h, routing.IPv6); got != "" {
		t.Errorf("the table throws %q", got)
	}
	h.refusedAll(t, "one too many", "198.18.7.1")
	for _, f := range routing.Families() {
		if c, _ := h.planner.Course(f); c.Why != routing.CourseThrown || c.Moved || len(c.Ways.All()) > 0 {
			t.Errorf("%s: course %+v", f, c)
		}
		if held := h.kernel.AllRoutes(f, failoverTable); len(held) > 0 {
			t.Errorf("%s: F holds %v", f, held)
		}
	}
	h.sentBy(t, "not moved", "8.8.8.8", "", 2)
	got := manyThrown(h, 2)
	if len(got) != 2 || strings.Contains(got[0], "unbound ones") || !strings.Contains(got[1], "and unbound ones") {
		t.Fatalf("problems: %q", got)
	}
	for _, text := range got {
		if !strings.Contains(text, "1025") || !strings.Contains(text, "bound to wan0") || !strings.Contains(text, "failover") {
			t.Errorf("problem: %q", text)
		}
	}
	h.kernel.DropRoute(four)
	h.kernel.DropRoute(six)
	h.converge(t)
	h.kernel.Step = nil
	h.settled(t)
	h.sentBy(t, "moved again", "8.8.8.8", "", 3)
	h.refusedAll(t, "moved again", "198.18.7.1", "192.0.2.10", "198.51.100.20")
}

// exceptedIn is what a table excepts from what it throws.
func exceptedIn(h *host, f routing.Family, table routing.TableID) string {
	var out []string
	for _, r := range h.kernel.AllRoutes(f, table) {
		if r.Type == routing.RouteUnicast && r.Metric >= 2*routing.FirstMetric {
			out = append(out, r.Destination.String()+" via "+r.Gateway.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestThrownAroundLinks: a table throws nothing that main answers by a longer route. Where that
// leads through another uplink, its packets go as if main threw nothing.
func TestThrownAroundLinks(t *testing.T) {
	t.Parallel()
	links := func() []routing.Link {
		return []routing.Link{
			link(2, "wan0", address("10.90.0.10/24", 100), route(default4, "10.90.0.1", 100), linkLocal("fe80::a/64"),
				address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
			link(3, "wan1", address("10.91.0.20/24", 101), route(default4, "10.91.0.1", 101), linkLocal("fe80::b/64"),
				address("2001:db8:b::20/64", 101, dynamic), route(default6, "fe80::2", 101)),
		}
	}
	const w0, w1, v0, v1 = "10.90.0.10", "10.91.0.20", "2001:db8:a::10", "2001:db8:b::20"
	type hop struct {
		from, to string
		device   int // 0: refused
	}
	tests := map[string]struct {
		links  []routing.Link
		throws []string
		hops   []hop
		// table is what the second link's table excepts of IPv4.
		table string
	}{
		"their networks": {
			links(), []string{"10.0.0.0/8", "2001:db8::/32"}, []hop{
				{w1, "10.90.0.1", 3},
				{w0, "10.91.0.1", 2},
				{w1, "10.91.0.1", 3},
				{w1, "10.92.0.1", 0},
				{"", "10.90.0.1", 2},
				{"", "10.91.0.1", 3},
				{v1, "2001:db8:a::1", 3},
				{v0, "2001:db8:b::1", 2},
				{v1, "2001:db8:b::1", 3},
				{v1, "2001:db8:c::1", 0},
				{"", "2001:db8:a::1", 2},
			}, "10.90.0.0/24 via 10.91.0.1",
		},
		"a default of IPv6": {
			links(), []string{default6}, []hop{{v1, "2001:db8:a::1", 3}, {v0, "2001:db8:b::1", 2}, {v1, "2600::1", 0}, {v1, "2001:db8:b::1", 3}}, "",
		},
		"halves": {links(), []string{"0.0.0.0/1", "128.0.0.0/1"}, []hop{{w1, "10.90.0.1", 3}, {w1, "8.8.8.8", 0}, {w1, "200.1.1.1", 0}}, "10.90.0.0/24 via 10.91.0.1"},
		"throws inside of throws": {
			links(), []string{"10.0.0.0/8", "10.90.0.128/25"}, []hop{{w1, "10.90.0.1", 3}, {w1, "10.90.0.200", 0}, {w0, "10.90.0.200", 0}}, "10.90.0.0/24 via 10.91.0.1",
		},
		"thrown itself": {links(), []string{"10.0.0.0/8", "10.90.0.0/24"}, []hop{{w1, "10.90.0.1", 0}, {w1, "10.91.0.1", 3}}, ""},
		"static routes by others": {
			append(links()[:0:0], with(links()[0], route("10.5.0.0/16", "10.90.0.1", 100), route("10.5.7.0/24", "10.90.0.1", 100)), links()[1]),
			[]string{"10.0.0.0/8"},
			[]hop{{w1, "10.5.7.1", 3}, {w1, "10.5.8.1", 3}, {w0, "10.5.7.1", 2}, {w1, "10.6.0.1", 0}, {"", "10.5.7.1", 2}},
			"10.5.0.0/16 via 10.91.0.1, 10.90.0.0/24 via 10.91.0.1",
		},
		"inside of what it has itself": {
			append(links()[:0:0], with(links()[0], route("10.5.7.0/24", "10.90.0.1", 100)), with(links()[1], route("10.5.0.0/16", "10.91.0.9", 101))),
			[]string{"10.0.0.0/8"},
			[]hop{{w1, "10.5.7.1", 3}, {w0, "10.5.8.1", 2}},
			"10.90.0.0/24 via 10.91.0.1",
		},
		"around what is thrown": {
			append(links()[:0:0], links()[0], with(links()[1], route("10.0.0.0/7", "10.91.0.9", 101))),
			[]string{"10.0.0.0/8"},
			[]hop{{w1, "10.90.0.1", 3}, {w1, "11.0.0.1", 3}},
			"10.90.0.0/24 via 10.91.0.9",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOf(t, tt.links...)
			throws := make([]routing.Route, 0, len(tt.throws))
			for _, to := range tt.throws {
				throws = append(throws, throwing(t, h, to, 50))
			}
			h.kernel.Step = func(op routing.Op) {
				for _, p := range tt.hops {
					if p.device != 0 {
						h.sentBy(t, "after "+op.String(), p.to, p.from, p.device)
					}
				}
			}
			h.converge(t)
			h.settled(t)
			for _, p := range tt.hops {
				if p.device == 0 {
					h.refusedAll(t, "at rest", p.to, p.from)
				}
			}
			if got := exceptedIn(h, routing.IPv4, h.leases[routing.Keys(tt.links[1])[0]]); got != tt.table {
				t.Errorf("the table excepts %q, want %q", got, tt.table)
			}
			unthrownAll(t, h)
			for _, r := range throws {
				h.kernel.DropRoute(r)
			}
			h.converge(t)
			h.settled(t)
			for _, table := range h.leases {
				for _, f := range routing.Families() {
					if got := exceptedIn(h, f, table); got != "" {
						t.Errorf("nothing is thrown, and table %d of %s excepts %q", table, f, got)
					}
				}
			}
		})
	}
}

// TestExceptionsFollow: what is excepted follows the other links, whose paths are told one by one.
func TestExceptionsFollow(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	throwing(t, h, "10.0.0.0/8", 0)
	h.converge(t)
	check := func(what, want string, device int) {
		t.Helper()
		h.converge(t)
		h.settled(t)
		if got := exceptedIn(h, routing.IPv4, 10001); got != want {
			t.Errorf("%s: the table excepts %q, want %q", what, got, want)
		}
		if device > 0 {
			h.sentBy(t, what, "10.5.0.1", "198.51.100.20", device)
		} else {
			h.refusedAll(t, what, "10.5.0.1", "198.51.100.20")
		}
	}
	path := func(index int, to, via string, there bool) {
		r := one(route(to, via, 100))
		r.Device = index
		var ways []routing.Route
		if there {
			ways = []routing.Route{r}
			h.foreignRoute(t, r)
		} else {
			h.kernel.DropRoute(r)
		}
		if refused := h.planner.SetPaths(index, map[routing.Destination][]routing.Route{routing.DestinationOf(r): ways}); len(refused) > 0 {
			t.Fatalf("refused: %v", refused)
		}
	}
	check("nothing inside", "", 0)
	path(2, "10.5.0.0/24", "192.0.2.1", true)
	check("a path comes", "10.5.0.0/24 via 198.51.100.1", 3)
	path(3, "10.0.0.0/7", "198.51.100.9", true)
	check("a path around it comes", "10.5.0.0/24 via 198.51.100.9", 3)
	path(3, "10.5.0.0/16", "198.51.100.8", true)
	check("an own path comes", "", 3)
	path(3, "10.5.0.0/16", "198.51.100.8", false)
	path(3, "10.0.0.0/7", "198.51.100.9", false)
	check("these go", "10.5.0.0/24 via 198.51.100.1", 3)
	path(2, "10.5.0.0/24", "192.0.2.1", false)
	check("it goes", "", 0)
	path(2, "10.5.0.0/24", "192.0.2.1", true)
	h.remove(2)
	check("its link goes", "", 0)
}

// TestManyExceptions: what is excepted counts, and where there is too much of it, tables throw
// nothing.
func TestManyExceptions(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct {
		n    int
		text string
	}{
		"counted": {mostThrown, "1 throw routes of IPv4 and routes by uplinks to 1024 networks inside"},
		"many":    {4*mostThrown + 1, "1 throw routes of IPv4 and more than 4096 routes by uplinks"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := wan0()
			for i := range tt.n {
				a.Routes = append(a.Routes, one(route(fmt.Sprintf("10.%d.%d.0/25", i/256, i%256), "192.0.2.1", 100)))
			}
			h := hostOf(t, a, wan1())
			throwing(t, h, "10.0.0.0/8", 0)
			h.converge(t)
			h.settled(t)
			got := manyThrown(h, 3)
			if len(got) != 1 || !strings.Contains(got[0], tt.text) {
				t.Errorf("problems %q, want one with %q", got, tt.text)
			}
			h.sentBy(t, what, "10.0.1.1", "198.51.100.20", 3)
			if rest := throwsIn(h, routing.IPv4) + exceptedIn(h, routing.IPv4, 10001); rest != "" {
				t.Errorf("the tables have %q", rest)
			}
			a.Routes = a.Routes[:len(a.Routes)-tt.n+mostThrown-1]
			h.kernel.RemoveInterface(2)
			h.install(a)
			h.converge(t)
			h.settled(t)
			if got := manyThrown(h, 3); len(got) > 0 {
				t.Errorf("problems with fewer: %q", got)
			}
			h.sentBy(t, "fewer", "10.0.1.1", "198.51.100.20", 3)
			h.refusedAll(t, "fewer", "10.200.0.1", "198.51.100.20")
		})
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
			unthrownAll(t, h)
			h.fresh(t, facts)
		}
	})
}
