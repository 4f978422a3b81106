package routing_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"multihomed/routing"
)

// TestPlannerDependsOnFactsAlone: however the facts came, the plan is the one
// that a fresh planner makes of them.
func TestPlannerDependsOnFactsAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := routing.NewPlanner(policy)
		facts, ls := map[int]routing.Link{}, leases{}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			index, name := genIndex(t)
			if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				delete(facts, index)
				p.Remove(index)
			} else {
				l := genLink(t, index, name)
				l.Tables = genTables(t, ls, l)
				facts[index] = l
				p.Set(l)
			}
			order := slices.Sorted(maps.Keys(facts))
			if rapid.Bool().Draw(t, "reverse") {
				slices.Reverse(order)
			}
			all := make([]routing.Link, 0, len(order))
			for _, i := range order {
				all = append(all, facts[i])
			}
			samePlan(t, routing.Plan(policy, all), p)
		}
	})
}

func samePlan(t tb, want, got *routing.Planner) {
	t.Helper()
	if diff := cmp.Diff(slices.Collect(want.Links()), slices.Collect(got.Links()), compare); diff != "" {
		t.Fatalf("links of a fresh plan (-) and of this one (+):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(want.Rules()), slices.Collect(got.Rules()), compare); diff != "" {
		t.Fatalf("rules of a fresh plan (-) and of this one (+):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(want.Routes()), slices.Collect(got.Routes()), compare); diff != "" {
		t.Fatalf("routes of a fresh plan (-) and of this one (+):\n%s", diff)
	}
	for index := range 8 {
		for _, now := range []uint32{0, 5, policy.UplinkGroup} {
			if w, g := want.Group(index, now), got.Group(index, now); w != g {
				t.Fatalf("group of %d in %d: fresh %d, this %d", index, now, w, g)
			}
		}
	}
}

// TestTouchedNamesEveryChange: what Take does not name has not changed.
func TestTouchedNamesEveryChange(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := routing.NewPlanner(policy)
		ls := leases{}
		rules := func() map[routing.Rule]routing.PlannedRule {
			out := map[routing.Rule]routing.PlannedRule{}
			for r := range p.Rules() {
				out[r.Rule] = r
			}
			return out
		}
		routes := func() map[routing.RouteKey]routing.Route {
			out := map[routing.RouteKey]routing.Route{}
			for r := range p.Routes() {
				out[r.Route.Key()] = r.Route
			}
			return out
		}
		for range rapid.IntRange(1, 8).Draw(t, "events") {
			rulesBefore, routesBefore := rules(), routes()
			for range rapid.IntRange(1, 3).Draw(t, "links") {
				index, name := genIndex(t)
				if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
					p.Remove(index)
					continue
				}
				l := genLink(t, index, name)
				l.Tables = genTables(t, ls, l)
				p.Set(l)
			}
			touched := p.Take()
			if !p.Take().Empty() {
				t.Fatal("Take names what it has named already")
			}
			rulesNow, routesNow := rules(), routes()
			for r := range union(rulesBefore, rulesNow) {
				a, was := rulesBefore[r]
				b, is := rulesNow[r]
				if _, named := touched.Rules[r]; was != is && !named {
					t.Fatalf("not named: %s", r)
				}
				_, named := touched.Reranked[r]
				if _, whole := touched.Rules[r]; was && is && a.Rank != b.Rank && !named && !whole {
					t.Fatalf("rank not named: %s", r)
				}
			}
			for k := range union(routesBefore, routesNow) {
				if _, named := touched.Routes[k]; routesBefore[k] != routesNow[k] && !named {
					t.Fatalf("not named: %v", k)
				}
			}
		}
	})
}

func union[K comparable, V any](a, b map[K]V) map[K]struct{} {
	out := map[K]struct{}{}
	for k := range a {
		out[k] = struct{}{}
	}
	for k := range b {
		out[k] = struct{}{}
	}
	return out
}

// TestMetricsOfMainNeverTouchTables: NetworkManager adds 20000 to the metrics
// of a link that fails its connectivity check, and takes it away again.
func TestMetricsOfMainNeverTouchTables(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := routing.NewPlanner(policy)
		ls := leases{}
		var all []routing.Link
		for index := 2; index <= 5; index++ {
			l := genLink(t, index, names[index-2])
			l.Tables = ls.of(l)
			all = append(all, l)
			p.Set(l)
		}
		p.Take()
		penalised := rapid.SampledFrom(all).Draw(t, "penalised")
		penalised.Routes = slices.Clone(penalised.Routes)
		for i := range penalised.Routes {
			penalised.Routes[i].Metric += 20000
		}
		p.Set(penalised)
		touched := p.Take()
		// Which way main prefers into a network that two links have decides how others
		// reach it behind an opening. No table changes for it.
		for _, rules := range []map[routing.Rule]struct{}{touched.Rules, touched.Reranked} {
			maps.DeleteFunc(rules, func(r routing.Rule, _ struct{}) bool {
				return r.Priority == routing.PriorityNested || r.Priority == routing.PriorityOpening
			})
		}
		if len(touched.Routes)+len(touched.Rules)+len(touched.Groups) > 0 {
			t.Fatalf("a metric touches %v", touched)
		}
	})
}

// TestPenaltyMovesTheLastResort: after main, the best link comes first.
func TestPenaltyMovesTheLastResort(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	lastResort := func() []routing.TableID {
		rules := h.kernel.RuleOrder(routing.IPv4, routing.PriorityMatchAll)
		out := make([]routing.TableID, 0, len(rules))
		for _, r := range rules {
			out = append(out, r.Table)
		}
		return out
	}
	step := func(l routing.Link, wantOps int, want ...routing.TableID) {
		t.Helper()
		h.install(l)
		ops := routing.Diff(h.planner, h.kernel, h.planner.Take(), always)
		if len(ops) != wantOps {
			t.Errorf("%d operations, want %d:\n%s", len(ops), wantOps, opsText(ops))
		}
		h.apply(t, ops)
		h.settled(t)
		if diff := cmp.Diff(want, lastResort()); diff != "" {
			t.Errorf("order at 91000 (-want +got):\n%s", diff)
		}
	}
	worse := wan0()
	for i := range worse.Routes {
		worse.Routes[i].Metric += 20000
	}
	step(worse, 1, 10001, 10000)
	step(wan0(), 1, 10000, 10001)
}

// TestRecreatedInterface: an interface that comes back under another index
// keeps its tables, in whatever order its old and new self are noticed.
func TestRecreatedInterface(t *testing.T) {
	t.Parallel()
	again := func() routing.Link {
		l := wan0()
		l.Index = 9
		for i := range l.Routes {
			l.Routes[i].Device = 9
		}
		return l
	}
	for name, removeFirst := range map[string]bool{"old one goes first": true, "new one comes first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOf(t, wan0(), wan1())
			h.kernel.RemoveInterface(2)
			delete(h.links, 2)
			touched := routing.Everything(h.planner, h.kernel)
			if removeFirst {
				h.planner.Remove(2)
			}
			h.install(again())
			if !removeFirst {
				// The routes of the new one are right at once.
				ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
				h.apply(t, ops)
				h.planner.Remove(2)
			}
			touched.Merge(h.planner.Take())
			h.apply(t, routing.Diff(h.planner, h.kernel, touched, always))
			h.settled(t)
		})
	}
}

// TestRenamedInterface: the rules follow the name, and the address never stands
// without one.
func TestRenamedInterface(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	l := wan0()
	l.Name = "uplink0"
	h.install(l)
	h.kernel.Step = func(op routing.Op) {
		if !covered(h.kernel, addr("192.0.2.10")) {
			t.Errorf("uncovered after %s", op)
		}
	}
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	h.settled(t)
}

// TestRoleOf: a default or a known gateway makes an uplink in its family, and nothing
// else does.
func TestRoleOf(t *testing.T) {
	t.Parallel()
	alone := routing.Intent{LeaveAlone: "its owner says so"}
	was := func(l *routing.Link) { l.WasUplink.Set(routing.IPv4, true) }
	choice := func(c routing.RoleChoice) part { return func(l *routing.Link) { l.Choice = c } }
	// from adds an IPv6 default for the packets of a network alone.
	from := func(source string) part {
		return func(l *routing.Link) {
			route(default6, "fe80::1", 100)(l)
			l.Addresses = append(l.Addresses, routing.Address{Prefix: prefix("2001:db8:1::7/64")})
			l.Routes[len(l.Routes)-1].Source = prefix(source)
		}
	}
	const l, u = routing.Local, routing.Uplink
	local, four, six, both := routing.ByFamily[routing.Role]{l, l}, routing.ByFamily[routing.Role]{u, l}, routing.ByFamily[routing.Role]{l, u}, routing.ByFamily[routing.Role]{u, u}
	tests := map[string]struct {
		link routing.Link
		want routing.ByFamily[routing.Role]
	}{
		"nothing":                                  {link(2, "eth0"), local},
		"an address":                               {lan0(), local},
		"a default":                                {wan0(), four},
		"a default without a next hop":             {lan0(route(default4, "", 100)), four},
		"a route with a next hop":                  {lan0(route("172.16.0.0/12", "10.0.0.254", 100)), local},
		"a route without a next hop":               {lan0(route("172.16.0.0/12", "", 100)), local},
		"routes of a border router":                {lan0(route("fd12::/64", "fe80::1", 100)), local},
		"a gateway known otherwise":                {lan0(gatewayHint("10.0.0.254")), four},
		"a default known otherwise":                {lan0(known(default4, "10.0.0.254", "")), four},
		"a route known otherwise":                  {lan0(known("172.16.0.0/12", "10.0.0.254", "")), local},
		"a gateway of a family left alone":         {lan0(intent(routing.IPv4, routing.Intent{LeaveAlone: "x", Gateway: addr("10.0.0.254")})), local},
		"a default of a family left alone":         {lan0(route(default4, "10.0.0.254", 100), intent(routing.IPv4, alone)), local},
		"marked, by whomever":                      {lan0(group(policy.UplinkGroup)), local},
		"had a default":                            {lan0(was), four},
		"had a default, down":                      {lan0(was, down), four},
		"being brought up":                         {lan0(pending), both},
		"being brought up, all left alone":         {lan0(pending, intent(routing.IPv4, alone), intent(routing.IPv6, alone)), local},
		"a default, local by configuration":        {lan0(route(default4, "10.0.0.254", 100), choice(routing.AlwaysLocal)), local},
		"nothing, uplink by configuration":         {lan0(choice(routing.AlwaysUplink)), both},
		"being brought up, local by choice":        {lan0(pending, choice(routing.AlwaysLocal)), local},
		"never a default, with a gateway":          {lan0(intent(routing.IPv4, routing.Intent{NeverDefault: true, Gateway: addr("10.0.0.254")})), four},
		"a network of IPv6 that a tunnel leads to": {wan0(address("2001:db8:64::1/64", 100)), four},
		"a LAN of shared addresses and a router":   {link(2, "eth0", address("100.64.7.1/24", 100), address("2001:db8:1::7/64", 100), route(default6, "fe80::1", 100)), six},
		"an IPv6 default":                          {lan0(route(default6, "fe80::1", 100)), six},
		"an IPv6 default, IPv4 left alone":         {lan0(route(default6, "fe80::1", 100), intent(routing.IPv4, alone)), six},
		"a default of both":                        {lan0(route(default4, "10.0.0.254", 100), route(default6, "fe80::1", 100)), both},
		"had an IPv6 default":                      {lan0(func(l *routing.Link) { l.WasUplink.Set(routing.IPv6, true) }), six},
		"brought up again, known in IPv4":          {lan0(pending, func(l *routing.Link) { l.KnownLocal.Set(routing.IPv4, true) }), six},
		"an IPv6 gateway known otherwise":          {lan0(gatewayHint("fd00:1::1")), six},
		"an IPv6 default known otherwise":          {lan0(known(default6, "fe80::1", "")), six},
		"an IPv6 default for its own":              {lan0(from("2001:db8:1::/56")), six},
		"an IPv6 default for others":               {lan0(from("2001:db8:2::/56")), local},
		"never a default, without a gateway":       {lan0(intent(routing.IPv4, routing.Intent{NeverDefault: true})), local},
	}
	for name, tt := range tests {
		for _, f := range routing.Families() {
			if got, why := routing.RoleOf(tt.link, f); got != tt.want.In(f) || why == "" {
				t.Errorf("%s: for %s %s because %q, want %s", name, f, got, why, tt.want.In(f))
			}
		}
	}
}

// TestBeingBroughtUp: a link that may become an uplink stops stray packets from
// the start; the mark, which outlives the process, is set if it is likely one.
func TestBeingBroughtUp(t *testing.T) {
	t.Parallel()
	automatic := routing.Intent{Automatic: true}
	for name, tt := range map[string]struct {
		link   routing.Link
		marked bool
		stops  bool
	}{
		"asks DHCP, no address yet":      {link(2, "eth0", pending, intent(routing.IPv4, automatic)), true, false},
		"asks DHCP":                      {lan0(pending, intent(routing.IPv4, automatic)), true, true},
		"static, listens to routers":     {lan0(pending, intent(routing.IPv6, automatic)), false, true},
		"static, with a gateway":         {lan0(pending, gatewayHint("10.0.0.254")), true, true},
		"static, up":                     {lan0(intent(routing.IPv6, automatic)), false, false},
		"asks DHCP, which left us alone": {lan0(pending, intent(routing.IPv4, routing.Intent{Automatic: true, LeaveAlone: "x"})), false, false},
	} {
		p := routing.NewPlanner(policy)
		l := tt.link
		l.Tables = map[routing.Key]routing.TableID{}
		for i, k := range routing.Keys(l) {
			l.Tables[k] = policy.Tables.First + routing.TableID(i)
		}
		p.Set(l)
		if marked := p.Group(l.Index, 0) == policy.UplinkGroup; marked != tt.marked {
			t.Errorf("%s: marked is %t", name, marked)
		}
		plan, _ := p.Link(l.Index)
		stops := slices.ContainsFunc(plan.Rules, func(r routing.PlannedRule) bool { return r.Rule.Priority == routing.PriorityUnreachable })
		if stops != tt.stops {
			t.Errorf("%s: stops stray packets is %t", name, stops)
		}
	}
}
