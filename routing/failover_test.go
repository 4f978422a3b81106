package routing_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

const failoverTable routing.TableID = 10999

// deadIn makes uplinks dead in a family.
func deadIn(f routing.Family, indexes ...int) func(*routing.Failover) {
	return func(o *routing.Failover) {
		m := map[int]struct{}{}
		for _, i := range indexes {
			m[i] = struct{}{}
		}
		o.Dead.Set(f, m)
	}
}

func failover(change ...func(*routing.Failover)) routing.Failover {
	f := routing.Failover{Enabled: true}
	for _, c := range change {
		c(&f)
	}
	return f
}

// tunnel is a default of main through a VPN.
func tunnel(metric uint32, to string) routing.Route {
	return routing.Route{
		Family: routing.FamilyOf(prefix(to).Addr()), Table: routing.TableMain, Destination: prefix(to), Metric: metric,
		Type: routing.RouteUnicast, Scope: routing.ScopeLink, Device: 9, Protocol: kerneltest.ProtocolStatic,
	}
}

func both6() []routing.Link {
	return []routing.Link{
		link(2, "wan0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
		link(3, "wan1", linkLocal("fe80::b/64"), address("2001:db8:b::10/64", 101, dynamic), route(default6, "fe80::2", 101)),
	}
}

func deprecated(a *routing.Address) { a.Deprecated = true }
func tentative(a *routing.Address)  { a.Tentative = true }
func temporary(a *routing.Address)  { a.Temporary = true }
func noCarrier(l *routing.Link)     { l.NotRunning = true }

func with(l routing.Link, parts ...part) routing.Link {
	for _, p := range parts {
		p(&l)
	}
	return l
}

// otherUplink6 is another uplink of IPv6 with these addresses.
func otherUplink6(parts ...part) routing.Link {
	return link(3, "wan1", append([]part{linkLocal("fe80::b/64"), route(default6, "fe80::2", 101)}, parts...)...)
}

// TestCourses holds which way unbound traffic goes, and what table F and the rules of
// failover are then.
func TestCourses(t *testing.T) {
	t.Parallel()
	v4, v6 := routing.IPv4, routing.IPv6
	wan2 := link(5, "wan2", address("203.0.113.5/24", 102), route(default4, "203.0.113.1", 102))
	two := []routing.Link{wan0(), wan1()}
	three := []routing.Link{wan0(), wan1(), wan2}
	tests := map[string]struct {
		links    []routing.Link
		main     []routing.Route
		rules    []routing.Rule
		failover routing.Failover
		held     []routing.Route
		taken    string
		family   routing.Family

		why   routing.CourseReason
		moved bool
		// table is what F holds, rules what stands of the pair and at 18000.
		table []string
		pair  bool
		// inFront is where the pair stands, if not where it usually does.
		inFront string
		twins   []string
	}{
		"off":               {links: two, why: routing.CourseOff, failover: routing.Failover{Dead: failover(deadIn(v4, 2)).Dead}},
		"one uplink":        {links: two[:1], why: routing.CourseAlone, failover: failover(deadIn(v4, 2))},
		"a LAN is no exit":  {links: []routing.Link{wan0(), lan0()}, why: routing.CourseAlone, failover: failover(deadIn(v4, 2))},
		"alive":             {links: two, why: routing.CourseAlive, failover: failover(), pair: true},
		"the other is dead": {links: two, why: routing.CourseAlive, failover: failover(deadIn(v4, 3)), pair: true},
		"dead": {
			links: two, why: routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"main lacks the network of the other one": {
			links: []routing.Link{wan0(), link(3, "wan1", bare("198.51.100.20/24"), route(default4, "198.51.100.1", 101, onlink))}, why: routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824 onlink"},
		},
		"dead in the other family": {links: two, why: routing.CourseAlive, failover: failover(deadIn(v6, 2)), pair: true},
		"no carrier": {
			links: []routing.Link{wan0(noCarrier), wan1()}, why: routing.CourseDead, failover: failover(), pair: true, moved: true,
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"all dead":                  {links: two, why: routing.CourseNoneLives, failover: failover(deadIn(v4, 2, 3)), pair: true},
		"dead, the other is silent": {links: []routing.Link{wan0(), wan1(noCarrier)}, why: routing.CourseNoneLives, failover: failover(deadIn(v4, 2)), pair: true},
		"dead, the other is down":   {links: []routing.Link{wan0(), with(wan1(), down)}, why: routing.CourseAlone, failover: failover(deadIn(v4, 2))},
		"the next in main's order": {
			links: three, why: routing.CourseDead, failover: failover(deadIn(v4, 2, 3)), pair: true, moved: true,
			table: []string{"default via 203.0.113.1 dev wan2 table 10999 src 203.0.113.5 metric 1073741824"},
		},
		"prefer": {
			links: three, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2), func(f *routing.Failover) { f.Prefer = []int{2, 5} }),
			table:    []string{"default via 203.0.113.1 dev wan2 table 10999 src 203.0.113.5 metric 1073741824"},
		},
		"metered": {
			links: three, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2), func(f *routing.Failover) { f.Metered = map[int]struct{}{3: {}} }),
			table:    []string{"default via 203.0.113.1 dev wan2 table 10999 src 203.0.113.5 metric 1073741824"},
		},
		"metered is better than none": {
			links: three, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2, 5), func(f *routing.Failover) { f.Metered = map[int]struct{}{3: {}} }),
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"never-default is no exit": {
			links: []routing.Link{wan0(), link(3, "wan1", address("198.51.100.20/24", 101), intent(v4, routing.Intent{Gateway: addr("198.51.100.1"), NeverDefault: true}))},
			why:   routing.CourseAlone, failover: failover(deadIn(v4, 2)),
		},
		"a default that main lacks": {
			links: []routing.Link{wan0(), link(3, "wan1", address("198.51.100.20/24", 101), known(default4, "198.51.100.1", "198.51.100.20"))},
			why:   routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"a VPN by a better default": {
			links: two, main: []routing.Route{tunnel(50, default4)}, why: routing.CourseNoUplink, failover: failover(deadIn(v4, 2)), pair: true,
		},
		"a VPN by a worse default": {
			links: two, main: []routing.Route{tunnel(500, default4)}, why: routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"a default that refuses": {
			links: two, why: routing.CourseNoUplink, failover: failover(deadIn(v4, 2)), pair: true,
			main: []routing.Route{{Family: v4, Table: routing.TableMain, Destination: prefix(default4), Type: routing.RouteBlackhole, Protocol: kerneltest.ProtocolStatic}},
		},
		"main is not read next": {
			links: two, why: routing.CourseBlocked, failover: failover(deadIn(v4, 2)),
			rules: []routing.Rule{{Family: v4, Priority: routing.PriorityMain, Action: routing.ActionLookup, Table: 77, Protocol: kerneltest.ProtocolStatic}},
		},
		"a goto to the pair's priority": {
			links: two, why: routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table:   []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
			inFront: "32764",
			rules:   []routing.Rule{{Family: v4, Priority: 33, Action: routing.ActionGoto, Goto: routing.PriorityAgain, Mark: routing.Mark{Value: 5, Mask: 0xff}, Protocol: kerneltest.ProtocolStatic}},
		},
		"somebody uses the table": {links: two, why: routing.CourseTaken, failover: failover(deadIn(v4, 2)), taken: "the rule of somebody"},
		"forwarded none": {
			links: two, why: routing.CourseAlive, pair: true,
			failover: failover(func(f *routing.Failover) { f.Forwarded = routing.ForwardedNone }),
		},
		"forwarded all": {
			links: both6(), family: v6, why: routing.CourseAlive, pair: true,
			failover: failover(func(f *routing.Failover) { f.Forwarded = routing.ForwardedAll }),
		},
		"unjudged, and F leads to one that runs": {
			links: two, why: routing.CourseKept, pair: true, moved: true,
			failover: failover(func(f *routing.Failover) { f.Unjudged.Set(v4, true) }),
			held:     []routing.Route{{Family: v4, Table: failoverTable, Destination: prefix(default4), Device: 3}},
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"unjudged, and F leads to one that does not run": {
			links: []routing.Link{wan0(), wan1(noCarrier)}, why: routing.CourseAlive, pair: true,
			failover: failover(func(f *routing.Failover) { f.Unjudged.Set(v4, true) }),
			held:     []routing.Route{{Family: v4, Table: failoverTable, Destination: prefix(default4), Device: 3}},
		},
		"unjudged, and main leads where F leads": {
			links: two, why: routing.CourseAlive, pair: true,
			failover: failover(func(f *routing.Failover) { f.Unjudged.Set(v4, true) }),
			held:     []routing.Route{{Family: v4, Table: failoverTable, Destination: prefix(default4), Device: 2}},
		},
		"unjudged and without carrier": {
			links: []routing.Link{wan0(noCarrier), wan1()}, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(func(f *routing.Failover) { f.Unjudged.Set(v4, true) }),
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"frozen and without carrier": {
			links: []routing.Link{wan0(noCarrier), wan1()}, why: routing.CourseFrozen, pair: true,
			failover: failover(func(f *routing.Failover) { f.Frozen = true }),
		},
		"frozen, and F leads to one that runs": {
			links: two, why: routing.CourseKept, pair: true, moved: true,
			failover: failover(func(f *routing.Failover) { f.Frozen = true }),
			held:     []routing.Route{{Family: v4, Table: failoverTable, Destination: prefix(default4), Device: 3}},
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"shares": {
			links: three, why: routing.CourseShared, pair: true,
			failover: failover(func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} }),
			table:    []string{"default table 10999 metric 1073741824 nexthop via 192.0.2.1 dev wan0 weight 3 nexthop via 198.51.100.1 dev if3 weight 1"},
		},
		"shares, one is dead": {
			links: three, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2), func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} }),
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"shares, main's lives alone": {
			links: three, why: routing.CourseAlive, pair: true,
			failover: failover(deadIn(v4, 3), func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} }),
		},
		"shares, main's best is none of them": {
			links: three, why: routing.CourseAlive, pair: true,
			failover: failover(func(f *routing.Failover) { f.Shares = map[int]uint8{3: 3, 5: 1} }),
		},
		"shares, all of them are dead": {
			links: three, why: routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2, 3), func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} }),
			table:    []string{"default via 203.0.113.1 dev wan2 table 10999 src 203.0.113.5 metric 1073741824"},
		},
		"shares of IPv6": {
			links: both6(), family: v6, why: routing.CourseShared, pair: true,
			failover: failover(func(f *routing.Failover) { f.Shares = map[int]uint8{2: 3, 3: 1} }),
			table: []string{
				"default via fe80::1 dev wan0 table 10999 metric 1073741824",
				"default via fe80::2 dev wan1 table 10999 metric 1073741824",
			},
		},
		"IPv6": {
			links: both6(), family: v6, why: routing.CourseDead, failover: failover(deadIn(v6, 2)), pair: true, moved: true,
			table: []string{"default via fe80::2 dev wan1 table 10999 src 2001:db8:b::10 metric 1073741824"},
		},
		"IPv6, tentative": {
			links: []routing.Link{both6()[0], otherUplink6(address("2001:db8:b::10/64", 101, dynamic, tentative))}, family: v6,
			why: routing.CourseNoneLives, failover: failover(deadIn(v6, 2)), pair: true,
		},
		"IPv6, deprecated": {
			links: []routing.Link{both6()[0], otherUplink6(address("2001:db8:b::10/64", 101, dynamic, deprecated))}, family: v6,
			why: routing.CourseNoneLives, failover: failover(deadIn(v6, 2)), pair: true,
		},
		"IPv6, one is preferred": {
			links: []routing.Link{both6()[0], otherUplink6(address("2001:db8:b::10/64", 101, dynamic, deprecated), address("2001:db8:b::11/64", 101, dynamic))}, family: v6,
			why: routing.CourseDead, failover: failover(deadIn(v6, 2)), pair: true, moved: true,
			table: []string{"default via fe80::2 dev wan1 table 10999 src 2001:db8:b::11 metric 1073741824"},
		},
		"IPv6, renumbered": {
			links: []routing.Link{both6()[0], otherUplink6(address("2001:db8:b::10/64", 101, dynamic, deprecated), address("2001:db8:c::10/64", 101, dynamic))}, family: v6,
			why: routing.CourseDead, failover: failover(deadIn(v6, 2)), pair: true, moved: true,
			table: []string{"default via fe80::2 dev wan1 table 10999 src 2001:db8:c::10 metric 1073741824"},
		},
		"IPv6, temporary": {
			links: []routing.Link{both6()[0], otherUplink6(address("2001:db8:b::10/64", 101, dynamic), address("2001:db8:b::99/64", 101, dynamic, temporary))}, family: v6,
			why: routing.CourseDead, failover: failover(deadIn(v6, 2)), pair: true, moved: true,
			table: []string{"default via fe80::2 dev wan1 table 10999 src 2001:db8:b::99 metric 1073741824"},
		},
		"two of one network": {
			links: scenarios()["two nics in one subnet"], why: routing.CourseDead, failover: failover(deadIn(v4, 2)), pair: true, moved: true,
			table: []string{"default via 192.0.2.1 dev wan1 table 10999 src 192.0.2.11 metric 1073741824"},
			twins: []string{
				"18000: from all to 192.0.2.0/24 lookup main suppress_prefixlength 24",
				"18000: from all to 192.0.2.0/24 lookup 10002",
			},
		},
		"two of one network, main leads by the one that lives": {
			links: scenarios()["two nics in one subnet"], why: routing.CourseAlive, failover: failover(deadIn(v4, 3)), pair: true,
		},
		"two of one network, both dead": {
			links: scenarios()["two nics in one subnet"], why: routing.CourseNoneLives, failover: failover(deadIn(v4, 2, 3)), pair: true,
		},
		"host routes": {
			links: []routing.Link{wan0(route("203.0.113.77/32", "192.0.2.1", 100), route("203.0.113.88/32", "", 100)), wan1()},
			why:   routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2), func(f *routing.Failover) { f.HostRoutes = true }),
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
			twins:    []string{"18000: from all to 203.0.113.77 lookup 10999"},
		},
		"host routes stay by default": {
			links: []routing.Link{wan0(route("203.0.113.77/32", "192.0.2.1", 100)), wan1()},
			why:   routing.CourseDead, pair: true, moved: true, failover: failover(deadIn(v4, 2)),
			table: []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
		"a host route by one that lives": {
			links: []routing.Link{wan0(route("203.0.113.77/32", "192.0.2.1", 100)), wan1(route("203.0.113.77/32", "198.51.100.1", 50))},
			why:   routing.CourseDead, pair: true, moved: true,
			failover: failover(deadIn(v4, 2), func(f *routing.Failover) { f.HostRoutes = true }),
			table:    []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost()
			if tt.family == 0 {
				tt.family = v4
			}
			h.kernel.Install(routing.Link{Name: "tun0", Index: 9, Up: true})
			for _, r := range tt.main {
				h.foreignRoute(t, r)
			}
			for _, r := range tt.rules {
				if r.Priority == routing.PriorityMain {
					// It stands in front of the kernel's, which was taken away and put back.
					h.kernel.DropRule(routing.Rule{Family: v4, Priority: r.Priority, Action: routing.ActionLookup, Table: routing.TableMain, Protocol: kerneltest.ProtocolKernel})
				}
				if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatal(err)
				}
			}
			h.planner.SetFailover(tt.failover)
			h.planner.SetHeld(tt.family, tt.held)
			h.planner.SetFailoverTaken(tt.family, tt.taken)
			for _, l := range tt.links {
				h.install(l)
			}
			others := h.kernel.ForeignText()
			h.converge(t)
			h.settled(t)
			if now := h.kernel.ForeignText(); now != others {
				t.Errorf("what others have was:\n%s\nand is now:\n%s", others, now)
			}
			c, has := h.planner.Course(tt.family)
			if !has || c.Why != tt.why || c.Moved != tt.moved {
				t.Errorf("course %q, moved %t, of a table %t; want %q, %t", c.Why, c.Moved, has, tt.why, tt.moved)
			}
			equalLines(t, "table F", tt.table, h.failoverRoutes(tt.family))
			var twins []string
			for _, r := range h.kernel.RuleOrder(tt.family, routing.PriorityTwin) {
				twins = append(twins, r.String())
			}
			equalLines(t, "rung twin", tt.twins, twins)
			var pair []string
			if tt.pair {
				pair = wantPair(tt.family, tt.failover.Forwarded)
			}
			var have []string
			for p := routing.PriorityAgain; p > routing.PriorityAgain-5; p-- {
				for _, r := range h.kernel.RuleOrder(tt.family, p) {
					have = append(have, r.String())
				}
			}
			if tt.inFront != "" {
				for i := range pair {
					pair[i] = strings.Replace(pair[i], "32765", tt.inFront, 1)
				}
			}
			equalLines(t, "pair", pair, have)
		})
	}
}

func wantPair(f routing.Family, forwarded routing.Forwarded) []string {
	here := forwarded == routing.ForwardedNone || forwarded == routing.ForwardedIPv4 && f == routing.IPv6
	switch {
	case here:
		return []string{"32765: from all iif lo lookup main suppress_prefixlength 0", "32765: from all iif lo lookup 10999"}
	case f == routing.IPv4:
		return []string{"32765: not from 255.255.255.255 lookup main suppress_prefixlength 0", "32765: from all lookup 10999"}
	default:
		return []string{"32765: not from ff00::/8 lookup main suppress_prefixlength 0", "32765: from all lookup 10999"}
	}
}

func equalLines(t *testing.T, what string, want, have []string) {
	t.Helper()
	if !slices.Equal(want, have) {
		t.Errorf("%s is:\n%s\nwant:\n%s", what, strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

// failoverRoutes is table F as the kernel holds it.
func (h *host) failoverRoutes(f routing.Family) []string {
	var out []string
	for _, r := range h.kernel.AllRoutes(f, failoverTable) {
		i, _ := h.kernel.Interface(r.Device)
		out = append(out, r.Text(i.Name))
	}
	slices.Sort(out)
	return out
}

// foreignRoute adds a route of somebody else to main.
func (h *host) foreignRoute(t tb, r routing.Route) {
	t.Helper()
	if err := h.kernel.AddForeignRoute(r); err != nil {
		t.Fatal(err)
	}
}

// TestMultipathFailover: legs of main's default that live carry on with their shares.
func TestMultipathFailover(t *testing.T) {
	t.Parallel()
	h := newHost()
	a, b := wan0(), wan1()
	a.Routes, b.Routes = a.Routes[:1], b.Routes[:1]
	h.install(a)
	h.install(b)
	leg := func(device int, via string, weight uint16) routing.Route {
		return routing.Route{
			Family: routing.IPv4, Table: routing.TableMain, Destination: prefix(default4), Gateway: addr(via), Weight: weight,
			Type: routing.RouteUnicast, Device: device, Protocol: kerneltest.ProtocolStatic,
		}
	}
	if err := h.kernel.AddLegs(leg(2, "192.0.2.1", 1), leg(3, "198.51.100.1", 2)); err != nil {
		t.Fatal(err)
	}
	h.lookAll()
	for _, c := range []struct {
		dead []int
		why  routing.CourseReason
		want []string
	}{
		{nil, routing.CourseAlive, nil},
		{[]int{2}, routing.CourseDead, []string{"default via 198.51.100.1 dev wan1 table 10999 src 198.51.100.20 metric 1073741824"}},
		{[]int{3}, routing.CourseDead, []string{"default via 192.0.2.1 dev wan0 table 10999 src 192.0.2.10 metric 1073741824"}},
		{[]int{2, 3}, routing.CourseNoneLives, nil},
		{nil, routing.CourseAlive, nil},
	} {
		h.planner.SetFailover(failover(deadIn(routing.IPv4, c.dead...)))
		h.converge(t)
		h.settled(t)
		if now, _ := h.planner.Course(routing.IPv4); now.Why != c.why {
			t.Errorf("dead %v: %q, want %q", c.dead, now.Why, c.why)
		}
		equalLines(t, fmt.Sprintf("table F with dead %v", c.dead), c.want, h.failoverRoutes(routing.IPv4))
	}
}

// TestLeaseOfTheFailoverTable: while a link has the table, failover has none.
func TestLeaseOfTheFailoverTable(t *testing.T) {
	t.Parallel()
	h := newHost()
	old := wan1()
	old.Tables = map[routing.Key]routing.TableID{routing.Keys(old)[0]: failoverTable}
	h.planner.SetFailover(failover(deadIn(routing.IPv4, 2)))
	h.install(wan0())
	h.install(old)
	h.converge(t)
	if c, _ := h.planner.Course(routing.IPv4); c.Why != routing.CourseTaken {
		t.Errorf("course %q", c.Why)
	}
	h.install(wan1())
	h.converge(t)
	h.settled(t)
	if c, _ := h.planner.Course(routing.IPv4); c.Why != routing.CourseDead {
		t.Errorf("course %q when the lease has moved", c.Why)
	}
}

// TestPairBehindForeignRules: a rule of somebody else at the same priority keeps its say,
// whenever it comes, and at no step does F answer before main does.
func TestPairBehindForeignRules(t *testing.T) {
	t.Parallel()
	h := newHost()
	h.planner.SetFailover(failover(deadIn(routing.IPv4, 2)))
	h.install(wan0(route("172.16.0.0/12", "192.0.2.9", 100)))
	h.install(wan1())
	h.converge(t)
	his := routing.Rule{Family: routing.IPv4, Priority: routing.PriorityAgain, Action: routing.ActionLookup, Table: 77, From: prefix("203.0.113.0/24"), Protocol: kerneltest.ProtocolStatic}
	if err := h.kernel.AddForeignRule(his); err != nil {
		t.Fatal(err)
	}
	h.kernel.Step = func(op routing.Op) {
		for to, device := range map[string]int{"172.16.5.5": 2, "8.8.8.8": 3} {
			if v := h.kernel.Lookup(lookup.Flow{To: addr(to)}); !v.Through(device) {
				t.Errorf("after %s: unbound to %s: %v %v by %s", op, to, v.Outcome, v.Legs, v.Rule)
			}
		}
	}
	h.converge(t)
	h.settled(t)
	order := h.kernel.BandOrder(routing.IPv4, routing.PriorityAgain)
	if at := slices.Index(order, his); at < 0 || slices.ContainsFunc(order[:at], policy.OwnsRule) {
		t.Errorf("the order at 32765: %v", order)
	}
	h.kernel.Step = nil
}

// TestFailoverChangesInOneStep: where F leads elsewhere, no step leaves it empty, or leads
// traffic to two links.
func TestFailoverChangesInOneStep(t *testing.T) {
	t.Parallel()
	for _, f := range routing.Families() {
		h := newHost()
		links := append(both6(), link(5, "wan2", linkLocal("fe80::c/64"), address("2001:db8:c::10/64", 102, dynamic), route(default6, "fe80::3", 102)))
		to := addr("2600::1")
		if f == routing.IPv4 {
			links = []routing.Link{wan0(), wan1(), link(5, "wan2", address("203.0.113.5/24", 102), route(default4, "203.0.113.1", 102))}
			to = addr("8.8.8.8")
		}
		for _, l := range links {
			h.install(l)
		}
		h.planner.SetFailover(failover(deadIn(f, 2)))
		h.converge(t)
		steps := 0
		h.kernel.Step = func(op routing.Op) {
			steps++
			if v := h.kernel.Lookup(lookup.Flow{To: to}); !v.Through(5) {
				t.Errorf("%s: after %s unbound traffic goes %v %v", f, op, v.Outcome, v.Legs)
			}
		}
		h.planner.SetFailover(failover(deadIn(f, 2, 3)))
		h.converge(t)
		h.settled(t)
		if steps != 1 {
			t.Errorf("%s: %d steps", f, steps)
		}
		h.kernel.Step = nil
	}
}

// TestFailoverByShares: every way of F gets its share, and IPv6 changes them in one step.
func TestFailoverByShares(t *testing.T) {
	t.Parallel()
	for _, f := range routing.Families() {
		h := newHost()
		links, to := both6(), addr("2600::1")
		if f == routing.IPv4 {
			links, to = []routing.Link{wan0(), wan1()}, addr("8.8.8.8")
		}
		for _, l := range links {
			h.install(l)
		}
		share := func(a, b uint8) routing.Failover {
			return failover(func(f *routing.Failover) { f.Shares = map[int]uint8{2: a, 3: b} })
		}
		for _, weights := range [][2]uint8{{3, 1}, {1, 1}, {1, 200}} {
			h.planner.SetFailover(share(weights[0], weights[1]))
			h.converge(t)
			h.settled(t)
			got := map[int]uint16{}
			for _, l := range h.kernel.Lookup(lookup.Flow{To: to}).Legs {
				got[l.Device] = l.Weight
			}
			if want := (map[int]uint16{2: uint16(weights[0]), 3: uint16(weights[1])}); !maps.Equal(got, want) {
				t.Errorf("%s: weights %v, want %v", f, got, want)
			}
		}
	}
}

// genFailover draws judgements and a configuration.
func genFailover(t *rapid.T, dies bool) routing.Failover {
	f := routing.Failover{Enabled: rapid.IntRange(0, 5).Draw(t, "enabled") < 5}
	f.Forwarded = rapid.SampledFrom([]routing.Forwarded{routing.ForwardedIPv4, routing.ForwardedNone, routing.ForwardedAll}).Draw(t, "forwarded")
	f.HostRoutes = rapid.Bool().Draw(t, "host routes")
	shares := dies && rapid.IntRange(0, 3).Draw(t, "shares") == 0
	for _, index := range []int{2, 3, 4, 5} {
		if rapid.IntRange(0, 3).Draw(t, "preferred") == 0 {
			f.Prefer = append(f.Prefer, index)
		}
		if rapid.IntRange(0, 3).Draw(t, "metered") == 0 {
			if f.Metered == nil {
				f.Metered = map[int]struct{}{}
			}
			f.Metered[index] = struct{}{}
		}
		for i := range f.Dead {
			if dies && rapid.Bool().Draw(t, "dead") {
				if f.Dead[i] == nil {
					f.Dead[i] = map[int]struct{}{}
				}
				f.Dead[i][index] = struct{}{}
			}
		}
		if shares && rapid.IntRange(0, 2).Draw(t, "shared") > 0 {
			if f.Shares == nil {
				f.Shares = map[int]uint8{}
			}
			f.Shares[index] = uint8(rapid.IntRange(1, 9).Draw(t, "weight"))
		}
	}
	return f
}

// genUplink draws an uplink as a provider makes it, or one with an odd address or metric.
func genUplink(t *rapid.T, index int, name string) routing.Link {
	metric := uint32(100 + index)
	if rapid.IntRange(0, 4).Draw(t, "equal") == 0 {
		metric = 100
	}
	network := rapid.SampledFrom([]string{"192.0.2.%d/24", "198.51.100.%d/24"}).Draw(t, "network")
	parts := []part{address(fmt.Sprintf(network, 10+index), metric), linkLocal(fmt.Sprintf("fe80::%d/64", index+100))}
	parts = append(parts, route(default4, netip.MustParsePrefix(fmt.Sprintf(network, 1)).Addr().String(), metric))
	for range rapid.IntRange(0, 2).Draw(t, "addresses") {
		parts = append(parts, address(fmt.Sprintf("2001:db8:%x::%d/64", index, rapid.IntRange(10, 12).Draw(t, "host")), metric, func(a *routing.Address) {
			a.Tentative = rapid.IntRange(0, 4).Draw(t, "tentative") == 0
			a.Deprecated = rapid.IntRange(0, 4).Draw(t, "deprecated") == 0
			a.Temporary = rapid.IntRange(0, 4).Draw(t, "temporary") == 0
		}))
	}
	parts = append(parts, route(default6, fmt.Sprintf("fe80::%d", index), metric))
	if rapid.IntRange(0, 4).Draw(t, "to a host") == 0 {
		parts = append(parts, route("203.0.113.9/32", netip.MustParsePrefix(fmt.Sprintf(network, 1)).Addr().String(), metric))
	}
	l := link(index, name, parts...)
	l.Addresses, l.Routes = uniqueAddresses(l.Addresses), uniqueRoutes(l.Routes)
	l.NotRunning = rapid.IntRange(0, 5).Draw(t, "silent") == 0
	return l
}

// TestFailoverOnlyWhereItMust: F is not empty only if main's best default leads by a dead
// uplink, and then it leads by one that is up, runs, is not dead and has an address that
// unbound traffic may have; or shares are configured, and main's best is one of the sharers.
// What others have is never touched, what main knows besides its defaults goes as without
// us, and the outcome depends on the facts alone.
func TestFailoverOnlyWhereItMust(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		h.kernel.Install(routing.Link{Name: "tun0", Index: 9, Up: true})
		facts := genFailover(t, true)
		h.planner.SetFailover(facts)
		for index, name := range []string{"wan0", "wan1", "lan0"} {
			if rapid.IntRange(0, 5).Draw(t, "there") > 0 {
				h.install(genUplink(t, index+2, name))
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0, 1:
				facts = genFailover(t, true)
				h.planner.SetFailover(facts)
			case 2:
				index := rapid.IntRange(2, 5).Draw(t, "index")
				if h.links[index].Index != 0 {
					h.kernel.SetRunning(index, rapid.Bool().Draw(t, "running"))
				}
			case 3:
				f := rapid.SampledFrom([]string{default4, default6, "0.0.0.0/1"}).Draw(t, "destination")
				r := tunnel(rapid.SampledFrom([]uint32{50, 5000}).Draw(t, "metric"), f)
				if !h.kernel.DropRoute(r) {
					h.foreignRoute(t, r)
				}
			case 4:
				r := routing.Rule{
					Family: routing.IPv4, Priority: rapid.SampledFrom([]routing.Priority{32765, 32764, 100}).Draw(t, "priority"), Action: routing.ActionLookup,
					Table: 77, From: prefix("203.0.113.64/26"), Protocol: kerneltest.ProtocolStatic,
				}
				if !h.kernel.DropRule(r) {
					if err := h.kernel.AddForeignRule(r); err != nil {
						t.Fatal(err)
					}
				}
			default:
				index, name := genIndex(t)
				if name == names[index-2] {
					l := genUplink(t, index, name)
					if rapid.IntRange(0, 2).Draw(t, "odd") == 0 {
						l = genLink(t, index, name)
					}
					l.Tables = genTables(t, h.leases, l)
					h.install(l)
				}
			}
			h.lookAll()
			others := h.kernel.ForeignText()
			h.kernel.Step = func(op routing.Op) {
				if p := op.Rule.Priority; p != routing.PriorityAgain && p != routing.PriorityTwin && op.Route.Table != failoverTable {
					return
				}
				for _, to := range []string{"192.0.2.50", "192.0.2.12", "203.0.113.9", "172.16.5.5", "2001:db8:2::77", "fd00::9"} {
					knownStays(t, h.kernel, addr(to), op)
				}
			}
			h.converge(t)
			// A default that we put into main is one of main's.
			h.lookAll()
			h.converge(t)
			h.kernel.Step = nil
			h.settled(t)
			if now := h.kernel.ForeignText(); now != others {
				t.Fatalf("what others have was:\n%s\nand is now:\n%s", others, now)
			}
			for _, f := range routing.Families() {
				h.needed(t, f, facts)
			}
			h.fresh(t, facts)
		}
	})
}

// knownStays fails where main knows more than a default and unbound traffic goes elsewhere,
// but for the network of a dead uplink that a living one has too, and hosts.
func knownStays(t tb, k *kerneltest.Kernel, to netip.Addr, op routing.Op) {
	t.Helper()
	f := lookup.Flow{To: to}
	without, with := k.LookupWithoutUs(f), k.Lookup(f)
	if without.Outcome != lookup.Sent || without.Legs[0].Destination.Bits() == 0 {
		return
	}
	if with.Rule.Priority == routing.PriorityTwin || with.Rule.Priority == routing.PriorityNetwork {
		return
	}
	if !maps.Equal(ends(without), ends(with)) {
		t.Fatalf("after %s unbound to %s: without us %v, with us %v by %s\n%s%s", op, to, without.Legs, with.Legs, with.Rule, k.Text(), k.ForeignText())
	}
}

// needed fails unless table F holds what it must.
func (h *host) needed(t tb, f routing.Family, facts routing.Failover) {
	t.Helper()
	isDead := func(index int) bool {
		i, _ := h.kernel.Interface(index)
		_, dead := facts.Dead.In(f)[index]
		return dead || i.NotRunning
	}
	isUplink := func(index int) bool {
		plan, is := h.planner.Link(index)
		return is && plan.Roles.In(f) == routing.Uplink
	}
	defaults := h.kernel.Defaults(f)
	table := h.kernel.AllRoutes(f, failoverTable)
	course, _ := h.planner.Course(f)
	if (len(table) > 0) != (len(course.Ways.All()) > 0) {
		t.Fatalf("%s: F holds %v, the course %v", f, table, course.Ways.All())
	}
	if len(table) == 0 {
		return
	}
	if !facts.Enabled || len(defaults) == 0 {
		t.Fatalf("%s: F holds %v although there is nothing to replace", f, table)
	}
	bestIsDead, bestShares := false, true
	for _, r := range defaults {
		if r.Metric != defaults[0].Metric {
			break
		}
		if r.Preference == defaults[0].Preference && !isUplink(r.Device) {
			t.Fatalf("%s: F holds %v although main's best is no uplink's: %v", f, table, r)
		}
		bestIsDead = bestIsDead || isDead(r.Device)
		bestShares = bestShares && facts.Shares[r.Device] > 0
	}
	if !bestIsDead && !bestShares {
		t.Fatalf("%s: F holds %v although main's best lives: %v", f, table, defaults)
	}
	for _, index := range course.Devices() {
		i, exists := h.kernel.Interface(index)
		if !exists || !i.Up || isDead(index) || !isUplink(index) {
			t.Fatalf("%s: F leads by interface %d, which does not work", f, index)
		}
		if !slices.ContainsFunc(i.Addresses, func(a routing.Address) bool {
			return routing.FamilyOf(a.Prefix.Addr()) == f && !a.Prefix.Addr().IsLinkLocalUnicast() && (f == routing.IPv4 || !a.Failed && !a.Tentative && !a.Deprecated)
		}) {
			t.Fatalf("%s: F leads by %s, which has no address for it: %v", f, i.Name, i.Addresses)
		}
	}
}

// fresh fails unless a planner that is told the same facts in another order says the same.
func (h *host) fresh(t *rapid.T, facts routing.Failover) {
	p := routing.NewPlanner(policy)
	tell := []func(){
		func() { p.SetFailover(facts) },
		func() {
			for _, f := range routing.Families() {
				p.SetDefaults(f, h.kernel.Defaults(f))
				p.SetThrown(f, h.kernel.Thrown(f))
				p.SetForeign(f, h.planner.Foreign(f))
			}
		},
	}
	for index, l := range h.links {
		tell = append(tell, func() { p.Set(h.kernel.Facts(l)) })
		_ = index
	}
	for _, at := range rapid.Permutation(indexesOf(tell)).Draw(t, "order") {
		tell[at]()
	}
	members := map[uint32]int{}
	for _, group := range h.kernel.Groups() {
		if group != 0 {
			members[group]++
		}
	}
	p.SetGroups(members)
	samePlan(t, p, h.planner)
	for _, f := range routing.Families() {
		a, _ := p.Course(f)
		b, _ := h.planner.Course(f)
		if a.Why != b.Why || a.Moved != b.Moved || a.Used != b.Used || !slices.Equal(a.Ways.All(), b.Ways.All()) {
			t.Fatalf("%s: course %+v, in another order %+v", f, b, a)
		}
	}
}

func indexesOf[T any](all []T) []int {
	out := make([]int, len(all))
	for i := range out {
		out[i] = i
	}
	return out
}
