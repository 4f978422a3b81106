package lookup_test

import (
	"net/netip"
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

const (
	local       = routing.RouteType(2)
	broadcast   = routing.RouteType(3)
	blackhole   = routing.RouteType(6)
	unreachable = routing.RouteType(7)
	prohibit    = routing.RouteType(8)
	throw       = routing.RouteType(9)
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A change changes a rule or a route that a test makes.
type change[T any] func(*T)

func rule(f routing.Family, p routing.Priority, t routing.TableID, changes ...change[routing.Rule]) routing.Rule {
	r := routing.Rule{Family: f, Priority: p, Action: routing.ActionLookup, Table: t}
	for _, c := range changes {
		c(&r)
	}
	return r
}

func route(t routing.TableID, to string, device int, changes ...change[routing.Route]) routing.Route {
	r := routing.Route{Table: t, Destination: netip.MustParsePrefix(to), Type: routing.RouteUnicast, Device: device}
	r.Family = routing.FamilyOf(r.Destination.Addr())
	for _, c := range changes {
		c(&r)
	}
	return r
}

func kind(t routing.RouteType) change[routing.Route] { return func(r *routing.Route) { r.Type = t } }

func metric(m uint32) change[routing.Route] { return func(r *routing.Route) { r.Metric = m } }

func leg(r *routing.Route) { r.Weight = 1 }

func from(p string) change[routing.Route] {
	return func(r *routing.Route) { r.Source = netip.MustParsePrefix(p) }
}

func source(p string) change[routing.Rule] {
	return func(r *routing.Rule) { r.From = netip.MustParsePrefix(p) }
}

func invert(r *routing.Rule) { r.Invert = true }

func act(a routing.Action) change[routing.Rule] {
	return func(r *routing.Rule) { r.Action, r.Table = a, 0 }
}

func notGroup(g uint32) change[routing.Rule] {
	return func(r *routing.Rule) { r.SuppressGroup = routing.Some(g) }
}

func longer(n uint32) change[routing.Rule] {
	return func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(n) }
}

// host has eth2 and eth3, eth3 in group 28008, vrf0 with table 200 and its port
// eth5.
func host(rules []routing.Rule, routes ...routing.Route) *lookup.Host {
	h := &lookup.Host{
		Interfaces: []lookup.Interface{
			{Index: 2, Name: "eth2", Up: true},
			{Index: 3, Name: "eth3", Up: true, Group: 28008},
			{Index: 4, Name: "vrf0", Up: true, Table: 200},
			{Index: 5, Name: "eth5", Up: true, Master: 4},
			{Index: 6, Name: "down6"},
		},
		Rules:  rules,
		Tables: map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}},
	}
	for _, r := range routes {
		h.Tables[r.Family][r.Table] = append(h.Tables[r.Family][r.Table], r)
	}
	return h
}

// way is where a verdict leads: the devices of its legs, or none.
func way(v lookup.Verdict) []int {
	var out []int
	for _, l := range v.Legs {
		out = append(out, l.Device)
	}
	return out
}

const v4, v6 = routing.IPv4, routing.IPv6

// TestTraps: what a first simulator gets wrong.
func TestTraps(t *testing.T) {
	t.Parallel()
	to4, to6, me6 := addr("203.0.113.9"), addr("2600::1"), addr("2001:db8::1")
	both4 := []routing.Route{route(100, "0.0.0.0/0", 2), route(101, "0.0.0.0/0", 3)}
	both6 := []routing.Route{route(100, "::/0", 2), route(101, "::/0", 3)}
	second := func(f routing.Family, changes ...change[routing.Rule]) []routing.Rule {
		return []routing.Rule{rule(f, 1, 100, changes...), rule(f, 2, 101)}
	}
	legs4 := []routing.Route{route(100, "0.0.0.0/0", 2, leg), route(100, "0.0.0.0/0", 3, leg), route(101, "0.0.0.0/0", 3)}
	split := []routing.Route{route(100, "::/0", 2, leg), route(100, "::/0", 3, leg)}
	for name, tt := range map[string]struct {
		rules   []routing.Rule
		routes  []routing.Route
		flow    lookup.Flow
		outcome lookup.Outcome
		refusal lookup.Refusal
		way     []int
	}{
		"a flow without a protocol is not UDP": {
			second(v4, func(r *routing.Rule) { r.IPProto = 17 }), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{3},
		},
		"IPv4: the group of the first leg counts": {second(v4, notGroup(28008)), legs4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{2, 3}},
		"IPv4: and not that of the leg on the device": {
			second(v4, notGroup(28008)), legs4, lookup.Flow{To: to4, OIF: "eth3"}, lookup.Sent, 0, []int{3},
		},
		"IPv4: a first leg in the group takes all away": {second(v4, notGroup(0)), legs4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{3}},
		"a reject route is not suppressed": {
			second(v4, longer(24), notGroup(0)), append(both4[1:2:2], route(100, "0.0.0.0/0", 0, kind(unreachable))),
			lookup.Flow{To: to4},
			lookup.Rejected, lookup.HostUnreachable, nil,
		},
		"a throw route goes on": {
			second(v4), append(both4[1:2:2], route(100, "203.0.113.0/24", 0, kind(throw)), route(100, "0.0.0.0/0", 2)),
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{3},
		},
		"IPv6: a source-specific route hides the plain one": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{route(100, "2600::/16", 2), route(100, "2600::/16", 3, from("2001:db8:f::/48")), route(100, "::/0", 5)},
			lookup.Flow{To: to6, From: me6},
			lookup.Sent, 0,
			[]int{5},
		},
		"IPv6: but not a default": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{route(100, "::/0", 2), route(100, "::/0", 3, from("2001:db8:f::/48"))},
			lookup.Flow{To: to6, From: me6},
			lookup.Sent, 0,
			[]int{2},
		},
		"IPv6: nor once the search has begun": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{
				route(100, "2600::/32", 3), route(100, "2600::/16", 2), route(100, "2600::/16", 3, from("2001:db8:f::/48")), route(100, "::/0", 5),
			},
			lookup.Flow{To: to6, From: me6, OIF: "eth2"},
			lookup.Sent, 0,
			[]int{2},
		},
		"IPv6: a source-specific route matches no source as ::": {
			[]routing.Rule{rule(v6, 1, 100)}, []routing.Route{route(100, "::/0", 2, from("::/8"))}, lookup.Flow{To: to6}, lookup.Sent, 0, []int{2},
		},
		"IPv6: no rule with a source matches none": {second(v6, source("::/8")), both6, lookup.Flow{To: to6}, lookup.Sent, 0, []int{3}},
		"IPv4: 0.0.0.0/1 holds the missing source": {second(v4, source("0.0.0.0/1")), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{2}},
		"IPv4: another prefix does not":            {second(v4, source("10.0.0.0/8")), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{3}},
		"IPv6: a bound socket is strict": {
			second(v6), both6, lookup.Flow{To: to6, From: me6, OIF: "eth3"}, lookup.Sent, 0, []int{3},
		},
		"IPv6: a device that is preferred is not": {
			second(v6), both6, lookup.Flow{To: to6, From: me6, OIF: "eth3", LooseOIF: true}, lookup.Sent, 0, []int{2},
		},
		"IPv6: without a source it is": {second(v6), both6, lookup.Flow{To: to6, OIF: "eth3", LooseOIF: true}, lookup.Sent, 0, []int{3}},
		"IPv6: a strict lookup skips reject routes": {
			second(v6), append(both6[1:2:2], route(100, "::/0", 1, kind(unreachable))), lookup.Flow{To: to6, OIF: "eth3"}, lookup.Sent, 0, []int{3},
		},
		"IPv4: a bound socket does not": {
			second(v4), append(both4[1:2:2], route(100, "0.0.0.0/0", 0, kind(prohibit))),
			lookup.Flow{To: to4, OIF: "eth3"},
			lookup.Rejected, lookup.AccessDenied, nil,
		},
		"IPv6: behind the lowest metric the preference counts, not the metric": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{
				route(100, "::/0", 2, metric(1)), route(100, "::/0", 3, metric(2)),
				route(100, "::/0", 3, metric(3), func(r *routing.Route) { r.Preference, r.Gateway = routing.PreferenceHigh, me6 }),
			},
			lookup.Flow{To: to6, OIF: "eth3"},
			lookup.Sent, 0,
			[]int{3},
		},
		"an inverted l3mdev rule looks up main": {
			[]routing.Rule{rule(v4, 1, 0, invert, func(r *routing.Rule) { r.L3MDev = true })},
			[]routing.Route{route(254, "0.0.0.0/0", 2), route(200, "0.0.0.0/0", 5)},
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{2},
		},
		"a port of a VRF uses its table": {
			[]routing.Rule{rule(v4, 1, 0, func(r *routing.Rule) { r.L3MDev = true }), rule(v4, 2, 100)},
			append(both4, route(200, "0.0.0.0/0", 5)),
			lookup.Flow{To: to4, IIF: "eth5"},
			lookup.Sent, 0,
			[]int{5},
		},
		"IPv6: a VRF has no link": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{route(100, "fe80::/64", 5)},
			lookup.Flow{To: addr("fe80::1"), OIF: "vrf0"},
			lookup.NoRoute, lookup.NetUnreachable, nil,
		},
		"IPv6: a port of a VRF has one": {
			[]routing.Rule{rule(v6, 1, 0, act(routing.ActionUnreachable))},
			[]routing.Route{route(200, "fe80::/64", 5)},
			lookup.Flow{To: addr("fe80::1"), OIF: "eth5"},
			lookup.Sent, 0,
			[]int{5},
		},
		"a socket in a VRF is not bound to the device of routes": {
			[]routing.Rule{rule(v4, 1, 0, func(r *routing.Rule) { r.L3MDev = true })},
			[]routing.Route{route(200, "0.0.0.0/0", 5)},
			lookup.Flow{To: to4, OIF: "vrf0"},
			lookup.Sent, 0,
			[]int{5},
		},
		"a forwarded packet is root's": {
			second(v4, func(r *routing.Rule) { r.UIDs = routing.UIDRange{Set: true, First: 1, Last: 2000} }), both4,
			lookup.Flow{To: to4, IIF: "eth2", UID: 1000},
			lookup.Sent, 0,
			[]int{3},
		},
		"IPv4: tos leaves three bits out": {
			second(v4, func(r *routing.Rule) { r.TOS = 0x10 }), both4, lookup.Flow{To: to4, TOS: 0xf0}, lookup.Sent, 0, []int{2},
		},
		"IPv6: tos leaves none out": {
			second(v6, func(r *routing.Rule) { r.TOS = 0x10 }), both6, lookup.Flow{To: to6, TOS: 0xf0}, lookup.Sent, 0, []int{3},
		},
		"dscp compares six bits": {
			second(v4, func(r *routing.Rule) { r.DSCP = routing.Some(4) }), both4, lookup.Flow{To: to4, TOS: 0xf0}, lookup.Sent, 0, []int{3},
		},
		"IPv4: a route's tos": {
			[]routing.Rule{rule(v4, 1, 100)},
			[]routing.Route{route(100, "0.0.0.0/0", 2), route(100, "0.0.0.0/0", 3, func(r *routing.Route) { r.TOS = 0x10 })},
			lookup.Flow{To: to4, TOS: 0x10},
			lookup.Sent, 0,
			[]int{3},
		},
		"a rule for an interface that is not there": {
			second(v4, func(r *routing.Rule) { r.OIF = "gone0" }), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{3},
		},
		"and inverted": {second(v4, invert, func(r *routing.Rule) { r.IIF = "gone0" }), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{2}},
		"iif lo is this host": {
			second(v4, func(r *routing.Rule) { r.IIF = "lo" }), both4, lookup.Flow{To: to4}, lookup.Sent, 0, []int{2},
		},
		"iif lo is nothing forwarded": {
			second(v4, func(r *routing.Rule) { r.IIF = "lo" }), both4, lookup.Flow{To: to4, IIF: "eth2"}, lookup.Sent, 0, []int{3},
		},
		"goto leads to the first rule of a priority": {
			[]routing.Rule{
				rule(v4, 1, 0, act(routing.ActionGoto), func(r *routing.Rule) { r.Goto = 3 }), rule(v4, 2, 100), rule(v4, 3, 101), rule(v4, 3, 100),
			},
			both4,
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{3},
		},
		"goto to nowhere and nop do nothing": {
			[]routing.Rule{
				rule(v4, 1, 0, act(routing.ActionGoto), func(r *routing.Rule) { r.Goto = 5 }), rule(v4, 2, 0, act(routing.ActionNop)), rule(v4, 3, 100),
			},
			both4,
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{2},
		},
		"a rule unreachable": {
			[]routing.Rule{rule(v4, 1, 0, act(routing.ActionUnreachable))}, both4, lookup.Flow{To: to4}, lookup.Rejected, lookup.NetUnreachable, nil,
		},
		"a rule prohibit": {
			[]routing.Rule{rule(v6, 1, 0, act(routing.ActionProhibit))}, both6, lookup.Flow{To: to6}, lookup.Rejected, lookup.AccessDenied, nil,
		},
		"a rule blackhole": {
			[]routing.Rule{rule(v6, 1, 0, act(routing.ActionBlackhole))}, both6, lookup.Flow{To: to6}, lookup.Rejected, lookup.Invalid, nil,
		},
		"a route blackhole": {
			[]routing.Rule{rule(v4, 1, 100)},
			[]routing.Route{route(100, "0.0.0.0/0", 0, kind(blackhole))},
			lookup.Flow{To: to4},
			lookup.Rejected, lookup.Invalid, nil,
		},
		"no rule": {nil, both4, lookup.Flow{To: to4}, lookup.NoRoute, lookup.NetUnreachable, nil},
		"a local address": {
			[]routing.Rule{rule(v4, 0, 255)}, []routing.Route{route(255, "203.0.113.9/32", 2, kind(local))}, lookup.Flow{To: to4}, lookup.Local, 0, nil,
		},
		"IPv4: a local address of another device than the socket's": {
			[]routing.Rule{rule(v4, 0, 255), rule(v4, 1, 101)},
			append(both4, route(255, "203.0.113.9/32", 2, kind(local))),
			lookup.Flow{To: to4, OIF: "eth3"},
			lookup.Sent, 0,
			[]int{3},
		},
		"a broadcast that is sent": {
			[]routing.Rule{rule(v4, 0, 255)},
			[]routing.Route{route(255, "203.0.113.9/32", 2, kind(broadcast))},
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{2},
		},
		"a broadcast that is received": {
			[]routing.Rule{rule(v4, 0, 255)},
			[]routing.Route{route(255, "203.0.113.9/32", 2, kind(broadcast))},
			lookup.Flow{To: to4, IIF: "eth2"},
			lookup.Local, 0, nil,
		},
		"IPv4: a device that is down": {second(v4), both4, lookup.Flow{To: to4, OIF: "down6"}, lookup.NoRoute, lookup.NetUnreachable, nil},
		"packed legs": {
			[]routing.Rule{rule(v4, 1, 100)},
			[]routing.Route{route(100, "0.0.0.0/0", 2, leg, func(r *routing.Route) {
				r.Attributes = routing.RareAttributes{Legs: routing.PackLegs([]routing.Leg{{Device: 3, Weight: 1}})}.Share()
			})},
			lookup.Flow{To: to4},
			lookup.Sent, 0,
			[]int{2, 3},
		},
		"IPv6: some legs are in the group": {second(v6, notGroup(28008)), split, lookup.Flow{To: to6}, lookup.Sent, 0, []int{2}},
		"IPv6: a forwarded packet prefers the device it came in by": {
			[]routing.Rule{rule(v6, 1, 100)},
			[]routing.Route{route(100, "::/0", 2), route(100, "::/0", 3)},
			lookup.Flow{To: to6, From: me6, IIF: "eth3"},
			lookup.Sent, 0,
			[]int{3},
		},
		"a tunnel": {
			second(v4, func(r *routing.Rule) { r.TunnelID = 7 }), both4, lookup.Flow{To: to4, IIF: "eth2", TunnelID: 7}, lookup.Sent, 0, []int{2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := host(tt.rules, tt.routes...)
			for range 2 {
				v := h.Lookup(tt.flow)
				if v.Outcome != tt.outcome || v.Refusal != tt.refusal && tt.refusal != lookup.None || !slices.Equal(way(v), tt.way) {
					_, steps := h.Trace(tt.flow)
					t.Errorf("%s %s by %v, want %s %s by %v\n%+v", v.Outcome, v.Refusal, way(v), tt.outcome, tt.refusal, tt.way, steps)
				}
				h.Index()
			}
		})
	}
}

// TestAssumed: the on-link assumption of IPv4 is told, and is no route.
func TestAssumed(t *testing.T) {
	t.Parallel()
	to4, to6 := addr("203.0.113.9"), addr("2600::1")
	reject := []routing.Rule{rule(v4, 1, 0, act(routing.ActionUnreachable)), rule(v6, 1, 0, act(routing.ActionUnreachable))}
	for _, tt := range []struct {
		flow lookup.Flow
		want bool
	}{
		{lookup.Flow{To: to4, OIF: "eth2"}, true},
		{lookup.Flow{To: to4}, false},
		{lookup.Flow{To: to6, OIF: "eth2"}, false},
		{lookup.Flow{To: to4, OIF: "eth5"}, false},
		{lookup.Flow{To: addr("239.1.1.1"), OIF: "eth5"}, true},
		{lookup.Flow{To: addr("239.1.1.1"), OIF: "vrf0"}, false},
		{lookup.Flow{To: to4, OIF: "vrf0"}, false},
		{lookup.Flow{To: to4, OIF: "gone0"}, false},
		{lookup.Flow{To: to4, OIF: "eth2", IIF: "eth3"}, false},
	} {
		for _, rules := range [][]routing.Rule{nil, reject} {
			if v := host(rules).Lookup(tt.flow); v.Assumed != tt.want || v.Outcome == lookup.Sent || v.Through(2) {
				t.Errorf("%+v: %s, assumed %v, want %v", tt.flow, v.Outcome, v.Assumed, tt.want)
			}
		}
	}
}

// TestOtherwise: of an IPv6 route with a leg in the group, the packets of that
// leg go on, and find the same route again by that leg only.
func TestOtherwise(t *testing.T) {
	t.Parallel()
	h := host([]routing.Rule{rule(v6, 1, 100, notGroup(28008)), rule(v6, 2, 100)}, route(100, "::/0", 2, leg), route(100, "::/0", 3, leg))
	v, steps := h.Trace(lookup.Flow{To: addr("2600::1")})
	if v.Otherwise == nil || !slices.Equal(way(v), []int{2}) || !slices.Equal(way(*v.Otherwise), []int{3}) || v.Otherwise.Rule.Priority != 2 {
		t.Errorf("%+v by %+v", v, steps)
	}
	if v.Through(2) || !v.Through(2, 3) {
		t.Error("not every packet leaves by eth2, but all by one of the two")
	}
}

// TestTrace names what happened at each rule.
func TestTrace(t *testing.T) {
	t.Parallel()
	h := host([]routing.Rule{
		rule(v4, 0, 255), rule(v6, 0, 255),
		rule(v4, 1, 100, func(r *routing.Rule) { r.Unknown = true }),
		rule(v4, 2, 100, func(r *routing.Rule) { r.Mark = routing.Mark{Value: 1, Mask: 1} }),
		rule(v4, 3, 100, invert),
		rule(v4, 4, 100, longer(0)),
		rule(v4, 5, 100, notGroup(0)),
		rule(v4, 6, 101),
		rule(v4, 7, 100),
		rule(v4, 8, 101),
	}, route(100, "0.0.0.0/0", 2), route(101, "0.0.0.0/0", 0, kind(throw)))
	v, steps := h.Trace(lookup.Flow{To: addr("203.0.113.9")})
	var got []lookup.Result
	for _, s := range steps {
		got = append(got, s.Result)
	}
	want := []lookup.Result{
		lookup.Empty, lookup.NotUnderstood, lookup.Unmatched, lookup.Unmatched, lookup.TooShort, lookup.InGroup, lookup.Thrown, lookup.Decided,
	}
	if !slices.Equal(got, want) || steps[2].Selector != lookup.ByMark || steps[3].Selector != lookup.NoSelector {
		t.Errorf("got %v, want %v\n%+v", got, want, steps)
	}
	if !v.Uncertain || v.Rule.Priority != 7 || v.Route.Device != 2 {
		t.Errorf("%+v", v)
	}
}

// TestLookupIsLinear: 5,000 rules that look one table of 50,000 routes up read
// it once. Quadratic, this would be 250 million comparisons for each lookup.
func TestLookupIsLinear(t *testing.T) {
	var rules []routing.Rule
	for p := range 5000 {
		rules = append(rules, rule(v4, routing.Priority(p), 254, longer(24)))
	}
	var routes []routing.Route
	for n := range 50_000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(n >> 8), byte(n), 0}), 24)
		routes = append(routes, route(254, p.String(), 2))
	}
	h := host(rules, routes...)
	allocations := func() float64 {
		return testing.AllocsPerRun(5, func() {
			if v := h.Lookup(lookup.Flow{To: addr("20.1.1.1")}); v.Outcome != lookup.NoRoute {
				t.Errorf("%s", v.Outcome)
			}
		})
	}
	plain := allocations()
	h.Index()
	if indexed := allocations(); plain > 50 || indexed > 50 {
		t.Errorf("%g allocations without index, %g with it: each rule reads the table", plain, indexed)
	}
}

// TestPairOfFailover: a rule that leaves out a source which nobody has is for all, with and
// without a source; what main knows besides its default comes before table F, and forwarded
// packets of IPv6 pass both rules by.
func TestPairOfFailover(t *testing.T) {
	t.Parallel()
	const f routing.TableID = 10999
	suppressed := func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(0) }
	here := func(r *routing.Rule) { r.IIF = "lo" }
	h := &lookup.Host{
		Interfaces: []lookup.Interface{{Index: 2, Name: "wan0", Up: true}, {Index: 3, Name: "wan1", Up: true}, {Index: 4, Name: "lan0", Up: true}},
		Rules: []routing.Rule{
			rule(routing.IPv4, 32765, routing.TableMain, source("255.255.255.255/32"), invert, suppressed), rule(routing.IPv4, 32765, f),
			rule(routing.IPv4, 32766, routing.TableMain),
			rule(routing.IPv6, 32765, routing.TableMain, here, suppressed), rule(routing.IPv6, 32765, f, here), rule(routing.IPv6, 32766, routing.TableMain),
		},
		Tables: map[routing.Family]map[routing.TableID][]routing.Route{
			routing.IPv4: {
				routing.TableMain: {route(routing.TableMain, "0.0.0.0/0", 2), route(routing.TableMain, "10.0.0.0/8", 4)},
				f:                 {route(f, "0.0.0.0/0", 3)},
			},
			routing.IPv6: {
				routing.TableMain: {route(routing.TableMain, "::/0", 2), route(routing.TableMain, "fd00::/8", 4)},
				f:                 {route(f, "::/0", 3)},
			},
		},
	}
	for _, c := range []struct {
		from, to, iif string
		device        int
	}{
		{"", "8.8.8.8", "", 3},
		{"192.0.2.1", "8.8.8.8", "", 3},
		{"10.0.0.9", "8.8.8.8", "lan0", 3},
		{"", "10.1.1.1", "", 4},
		{"", "2600::1", "", 3},
		{"2001:db8::1", "2600::1", "", 3},
		{"fd00::9", "2600::1", "lan0", 2},
		{"", "fd00::1", "", 4},
	} {
		flow := lookup.Flow{To: addr(c.to), IIF: c.iif}
		if c.from != "" {
			flow.From = addr(c.from)
		}
		if v := h.Lookup(flow); !v.Through(c.device) {
			t.Errorf("from %q to %s by %q: %v %v by %s", c.from, c.to, c.iif, v.Outcome, v.Legs, v.Rule)
		}
	}
}
