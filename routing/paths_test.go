package routing_test

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
)

// bird is RTPROT_BIRD.
const bird = 12

// nested are destinations around and inside one another: whether a daemon's route to
// one is needed depends on those around it. Some are networks of links, too.
var nested = map[routing.Family][]string{
	routing.IPv4: {"10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.128/25", "172.16.0.0/12", "172.16.5.0/24", "128.0.0.0/1", "192.0.2.0/24"},
	routing.IPv6: {"2001:db8::/32", "2001:db8:f::/48", "2001:db8:f:5::/64", "2001:db8:a::/48", "2001:db8:a::/64", "::/3", "::ffff:10.0.0.0/104"},
}

// genWays draws the routes of main to one destination through a link.
func genWays(t *rapid.T, index int, d routing.Destination) []routing.Route {
	f := routing.FamilyOf(d.To.Addr())
	var l routing.Link
	l.Index = index
	for range rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2}).Draw(t, "ways") {
		via := rapid.SampledFrom(append(gateways[f][:3:3], gateways[f][0], gateways[f][0], gateways[f][0], "")).Draw(t, "gateway")
		metric := rapid.SampledFrom([]uint32{0, 32, 100}).Draw(t, "metric")
		route(d.To.String(), via, metric, func(r *routing.Route) {
			r.TOS, r.Source = d.TOS, d.From
			r.Protocol = rapid.SampledFrom([]routing.Protocol{bird, bird, bird, 4, routing.Multihomed}).Draw(t, "protocol")
			if rapid.IntRange(0, 4).Draw(t, "sourced") == 0 && f == routing.IPv4 {
				r.PreferredSource = addr(fmt.Sprintf("192.0.2.%d", rapid.SampledFrom([]int{10, 70}).Draw(t, "source")))
			}
			if rapid.IntRange(0, 9).Draw(t, "mtu") == 0 {
				mtu(1400)(r)
			}
		})(&l)
	}
	return uniqueRoutes(l.Routes)
}

func genDestination(t *rapid.T) routing.Destination {
	f := rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(t, "family")
	d := routing.Destination{To: prefix(rapid.SampledFrom(append(nested[f], destinations[f][0])).Draw(t, "destination"))}
	switch rapid.IntRange(0, 14).Draw(t, "selects") {
	case 0:
		d.TOS = 4
	case 1:
		if f == routing.IPv6 {
			d.From = prefix("2001:db8::/32")
		}
	}
	return d
}

// TestPathsDependOnFactsAlone: a planner that is told of routes one by one plans what
// a fresh one does that is told of all at once, and names every change.
func TestPathsDependOnFactsAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := routing.NewPlanner(policy)
		facts, ls := map[int]routing.Link{}, leases{}
		before := map[routing.RouteKey]routing.Route{}
		for range rapid.IntRange(1, 15).Draw(t, "events") {
			index, name := genIndex(t)
			l, known := facts[index]
			switch kind := rapid.IntRange(0, 9).Draw(t, "event"); {
			case kind == 0:
				delete(facts, index)
				p.Remove(index)
			case kind <= 2 || !known:
				l = genLink(t, index, name)
				for range rapid.IntRange(0, 8).Draw(t, "paths") {
					l.Routes = append(l.Routes, genWays(t, index, genDestination(t))...)
				}
				l.Routes = uniqueRoutes(l.Routes)
				l.Tables = genTables(t, ls, l)
				facts[index] = l
				p.Set(l)
			case kind <= 4:
				// Something else changes, and the routes do not.
				other := genLink(t, index, l.Name)
				other.Routes = l.Routes
				switch rapid.IntRange(0, 3).Draw(t, "what") {
				case 0:
					other.Addresses, other.Known = l.Addresses, l.Known
				case 1:
					other.Addresses = l.Addresses
				case 2:
					other.Known, other.Intents = l.Known, l.Intents
				}
				other.Tables = genTables(t, ls, other)
				facts[index] = other
				other.Routes = p.Structure(index, nil)
				p.SetFacts(other)
			default:
				ways := map[routing.Destination][]routing.Route{}
				for range rapid.IntRange(1, 4).Draw(t, "destinations") {
					d := genDestination(t)
					ways[d] = genWays(t, index, d)
				}
				l.Routes = without(l.Routes, ways)
				for _, routes := range ways {
					l.Routes = append(l.Routes, routes...)
				}
				if refused := p.SetPaths(index, ways); len(refused) > 0 {
					maps.DeleteFunc(ways, func(d routing.Destination, _ []routing.Route) bool { return !slices.Contains(refused, d) })
					l.Tables = genTables(t, ls, l)
					only := l
					only.Routes = p.Structure(index, ways)
					p.SetFacts(only)
				}
				facts[index] = l
			}
			fresh := routing.Plan(policy, slices.Collect(maps.Values(facts)))
			samePlan(t, fresh, p)
			touched, now := p.Take(), map[routing.RouteKey]routing.Route{}
			for r := range p.Routes() {
				k := r.Route.Key()
				if asked, wanted := p.Route(k); !wanted || asked != r {
					t.Fatalf("%v is %v when asked for, %t", r, asked, wanted)
				}
				now[k] = r.Route
			}
			for k := range union(before, now) {
				if _, named := touched.Routes[k]; before[k] != now[k] && !named {
					t.Fatalf("not named: %v", k)
				}
			}
			before = now
			sameMain(t, facts, p)
		}
	})
}

// without returns routes but for those of some destinations.
func without(routes []routing.Route, ways map[routing.Destination][]routing.Route) []routing.Route {
	return slices.DeleteFunc(slices.Clone(routes), func(r routing.Route) bool {
		_, replaced := ways[routing.DestinationOf(r)]
		return replaced
	})
}

// sameMain fails unless the plans have all routes of main.
func sameMain(t tb, facts map[int]routing.Link, p *routing.Planner) {
	t.Helper()
	for index, l := range facts {
		plan, _ := p.Link(index)
		have := map[routing.Route]int{}
		for r := range plan.MainRoutes() {
			have[r]++
		}
		for _, r := range l.Routes {
			have[r]--
		}
		for r, n := range have {
			if n != 0 {
				t.Fatalf("%s has %s %+d times", l.Name, r, n)
			}
		}
	}
}

// TestRepeatedPaths: a daemon's route is left out as long as nothing around it says
// something else than the default.
func TestRepeatedPaths(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(from(bird, route("20.1.2.0/24", "192.0.2.1", 32))))
	l := h.links[2]
	has := func(to string, want bool) {
		t.Helper()
		found := false
		for r := range h.planner.Routes() {
			found = found || r.Route.Destination == prefix(to)
		}
		if found != want {
			t.Errorf("%s is planned: %t, want %t", to, found, want)
		}
	}
	set := func(to, via string) routing.Touched {
		t.Helper()
		ways := map[routing.Destination][]routing.Route{{To: prefix(to)}: nil}
		if via != "" {
			ways[routing.Destination{To: prefix(to)}] = link(2, "wan0", from(bird, route(to, via, 32))).Routes
		}
		if refused := h.planner.SetPaths(l.Index, ways); len(refused) > 0 {
			t.Fatalf("%v is no path", refused)
		}
		return h.planner.Take()
	}
	has("20.1.2.0/24", false)
	if touched := set("20.9.0.0/16", "192.0.2.1"); len(touched.Routes) > 0 {
		t.Errorf("a redundant route touches %v", touched.Routes)
	}
	set("20.1.0.0/16", "192.0.2.2")
	has("20.1.0.0/16", true)
	has("20.1.2.0/24", true)
	set("20.1.0.0/16", "192.0.2.1")
	has("20.1.0.0/16", false)
	has("20.1.2.0/24", false)
	set("20.1.2.0/24", "192.0.2.2")
	has("20.1.2.0/24", true)
	set("20.1.2.0/24", "")
	has("20.1.2.0/24", false)
}

// from gives the routes of a part a protocol.
func from(p routing.Protocol, parts ...part) part {
	return func(l *routing.Link) {
		var other routing.Link
		other.Index = l.Index
		for _, part := range parts {
			part(&other)
		}
		for _, r := range other.Routes {
			r.Protocol = p
			l.Routes = append(l.Routes, r)
		}
	}
}

// manyPaths is a link with n routes with next hops, and the tables for it.
func manyPaths(n int, gateway func(i int) netip.Addr) routing.Link {
	l := link(2, "wan0", address("10.0.0.10/16", 100), route(default4, "10.0.0.1", 100, source("10.0.0.10")))
	l.Tables = leases{}.of(l)
	for i := range n {
		l.Routes = append(l.Routes, routing.Route{
			Family: routing.IPv4, Table: routing.TableMain, Type: routing.RouteUnicast, Protocol: bird, Metric: 32, Device: 2,
			Destination: netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24),
			Gateway:     gateway(i),
		})
	}
	return l
}

// BenchmarkOneRouteOf50000 is a route of main that changes beside 50,000 others
// through the same link, from the facts to the operations: one that is copied, one
// that the default covers, and one around others that it covers.
func BenchmarkOneRouteOf50000(b *testing.B) {
	const routes = 50_000
	for name, tt := range map[string]struct {
		gateway [4]byte
		to      string
		turns   [2]string
	}{
		"copied":    {[4]byte{10, 0, 0, 2}, "19.0.0.0/24", [2]string{"10.0.0.2", "10.0.0.3"}},
		"redundant": {[4]byte{10, 0, 0, 1}, "19.0.0.0/24", [2]string{"10.0.0.1", "10.0.0.2"}},
		"around":    {[4]byte{10, 0, 0, 1}, "19.0.0.0/16", [2]string{"10.0.0.1", "10.0.0.2"}},
	} {
		b.Run(name, func(b *testing.B) {
			h := newHost()
			h.planner.Set(manyPaths(routes, func(int) netip.Addr { return netip.AddrFrom4(tt.gateway) }))
			h.planner.Take()
			d := routing.Destination{To: prefix(tt.to)}
			var turns [2][]routing.Route
			for i, via := range tt.turns {
				turns[i] = link(2, "wan0", from(bird, route(tt.to, via, 32))).Routes
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if refused := h.planner.SetPaths(2, map[routing.Destination][]routing.Route{d: turns[n%2]}); len(refused) > 0 {
					b.Fatal("it is no path")
				}
				routing.Diff(h.planner, h.kernel, h.planner.Take(), always)
			}
		})
	}
}

// BenchmarkPathMemory is what a route through a link takes in the planner, above the
// mirror's own two entries (kernel_test.BenchmarkMemory): with next hops of its own
// each, with one that all share, and where the default says the same.
func BenchmarkPathMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		return mem.HeapAlloc
	}
	for name, tt := range map[string]struct {
		routes  int
		gateway func(i int) netip.Addr
	}{
		"distinct":  {50_000, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }},
		"shared":    {50_000, func(int) netip.Addr { return addr("10.0.0.2") }},
		"redundant": {30_000, func(int) netip.Addr { return addr("10.0.0.1") }},
	} {
		b.Run(name, func(b *testing.B) {
			var taken uint64
			for b.Loop() {
				before := heap()
				p := routing.NewPlanner(policy)
				p.Set(manyPaths(tt.routes, tt.gateway))
				p.Take()
				taken = heap() - before
				runtime.KeepAlive(p)
			}
			b.ReportMetric(float64(taken)/float64(tt.routes), "B/route")
		})
	}
}
