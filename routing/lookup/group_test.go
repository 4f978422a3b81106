package lookup_test

import (
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// TestToGroup: IPv4 sends to a group by the device of a default route, and not to its gateway.
func TestToGroup(t *testing.T) {
	t.Parallel()
	byRouter := func(r *routing.Route) { r.Gateway = addr("192.0.2.1") }
	h := host([]routing.Rule{rule(v4, 32766, routing.TableMain)}, route(routing.TableMain, "0.0.0.0/0", 2, byRouter))
	for to, gateway := range map[string]bool{"224.0.0.1": false, "255.255.255.255": false, "203.0.113.1": true} {
		f := lookup.Flow{To: addr(to)}
		v := h.Lookup(f)
		if v.Outcome != lookup.Sent || v.Legs[0].Device != 2 || v.Legs[0].Gateway.IsValid() != gateway {
			t.Errorf("%s: %+v", to, v)
		}
		matched, sent := v.Route, v.Legs[0]
		if !gateway {
			matched.Type = 5
		}
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{matched}, Sent: sent}); why != "" {
			t.Errorf("%s: %s", to, why)
		}
		sent.Device = 3
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{matched}, Sent: sent}); why == "" {
			t.Errorf("%s: another device is the same", to)
		}
	}
}

// TestMergedTables: before the first change of a rule the kernel calls local main.
func TestMergedTables(t *testing.T) {
	t.Parallel()
	h := host([]routing.Rule{rule(v4, 0, routing.TableLocal), rule(v4, 32766, routing.TableMain)}, route(routing.TableLocal, "192.0.2.5/32", 2, kind(local)))
	f := lookup.Flow{To: addr("192.0.2.5")}
	for _, merged := range []bool{false, true} {
		h.Merged = merged
		v := h.Lookup(f)
		got := v.Route
		got.Table = routing.TableMain
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{got}, Sent: got}); (why == "") != merged {
			t.Errorf("merged %v: %q", merged, why)
		}
	}
}

// TestOtherNames: a rule and a socket know an interface by any of its names, a rule only by one that it had when the
// rule was made.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	for _, detached := range []bool{false, true} {
		h := host([]routing.Rule{
			rule(v4, 1, 100, func(r *routing.Rule) { r.IIF = "enp2s0" }), rule(v4, 2, 101, func(r *routing.Rule) { r.OIF = "enp2s0" }), rule(v4, 3, 102),
		}, route(100, "0.0.0.0/0", 3), route(101, "0.0.0.0/0", 2), route(102, "0.0.0.0/0", 3), route(102, "0.0.0.0/0", 2))
		h.Interfaces[0].AltNames = []string{"enx00", "enp2s0"}
		if detached {
			h.Interfaces[0].Detached = []string{"enp2s0"}
		}
		for f, want := range map[lookup.Flow]routing.Priority{{IIF: "eth2"}: 1, {IIF: "enx00"}: 1, {OIF: "enp2s0"}: 2, {OIF: "eth2"}: 2, {OIF: "eth3"}: 3, {IIF: "eth3"}: 3} {
			f.To = addr("203.0.113.1")
			if detached {
				want = 3
			}
			if v := h.Lookup(f); v.Outcome != lookup.Sent || v.Rule.Priority != want {
				t.Errorf("detached %v, %+v: %s by rule %d, want %d", detached, f, v.Outcome, v.Rule.Priority, want)
			}
		}
	}
}

// TestBefore615: what older kernels make of two kinds of rules.
func TestBefore615(t *testing.T) {
	t.Parallel()
	facts := &lookup.Facts{
		Family: routing.IPv6, Interfaces: host(nil).Interfaces,
		Rules:  []routing.Rule{rule(v6, 1, 100, func(r *routing.Rule) { r.IIF = "vrf0" }), rule(v6, 2, 101, func(r *routing.Rule) { r.DSCP = routing.Some(0) }), rule(v6, 3, 102)},
		Tables: map[routing.TableID][]lookup.Candidate{},
	}
	for table := routing.TableID(100); table < 103; table++ {
		facts.Tables[table] = []lookup.Candidate{{Route: route(table, "::/0", 5)}}
	}
	for older, want := range map[bool][2]routing.Priority{false: {1, 3}, true: {2, 2}} {
		f := *facts
		f.Before615 = older
		others := f.Otherwise()
		if len(others) != 1 || others[0].Before615 == older {
			t.Fatalf("before 6.15 %v: otherwise %+v", older, others)
		}
		port, marked := f.Host().Lookup(lookup.Flow{To: addr("2600::1"), IIF: "eth5"}), f.Host().Lookup(lookup.Flow{To: addr("2600::1"), TOS: 0x20})
		if got := [2]routing.Priority{port.Rule.Priority, marked.Rule.Priority}; got != want {
			t.Errorf("before 6.15 %v: rules %v, want %v", older, got, want)
		}
	}
	facts.Rules = facts.Rules[2:]
	if others := facts.Otherwise(); len(others) > 0 {
		t.Errorf("no rule depends on the version: %+v", others)
	}
}

// TestBefore72: older kernels take an IPv6 route that a rule suppresses, unless a later rule looks up a table.
func TestBefore72(t *testing.T) {
	t.Parallel()
	nop := func(r *routing.Rule) { r.Action, r.Table = routing.ActionNop, 0 }
	legs := []lookup.Candidate{{Route: route(100, "::/0", 2, leg)}, {Route: route(100, "::/0", 3, leg)}}
	for name, tt := range map[string]struct {
		rules []routing.Rule
		table []lookup.Candidate
		older []int
	}{
		"nothing after it":           {[]routing.Rule{rule(v6, 1, 100, longer(0))}, legs[:1], []int{2}},
		"a group, nothing after it":  {[]routing.Rule{rule(v6, 1, 100, notGroup(0))}, legs[:1], []int{2}},
		"all legs":                   {[]routing.Rule{rule(v6, 1, 100, longer(0))}, legs, []int{2, 3}},
		"a rule that does not match": {[]routing.Rule{rule(v6, 1, 100, longer(0)), rule(v6, 2, 101, source("2001:db8::/32"))}, legs[:1], []int{2}},
		"a rule that does nothing":   {[]routing.Rule{rule(v6, 1, 100, longer(0)), rule(v6, 2, 0, nop)}, legs[:1], []int{2}},
		"an empty table":             {[]routing.Rule{rule(v6, 1, 100, longer(0)), rule(v6, 2, 101)}, legs[:1], nil},
		"another one is suppressed":  {[]routing.Rule{rule(v6, 1, 100, longer(0)), rule(v6, 2, 102, longer(0))}, legs[:1], []int{5}},
	} {
		for _, older := range []bool{false, true} {
			facts := &lookup.Facts{
				Family: routing.IPv6, Interfaces: host(nil).Interfaces, Rules: tt.rules, Before72: older,
				Tables: map[routing.TableID][]lookup.Candidate{100: tt.table, 102: {{Route: route(102, "::/0", 5)}}},
			}
			if others := facts.Otherwise(); len(others) != 1 || others[0].Before72 == older {
				t.Errorf("%s, older %v: otherwise %+v", name, older, others)
			}
			v := facts.Host().Lookup(lookup.Flow{To: addr("2600::1")})
			var want []int
			outcome := lookup.NoRoute
			if older && tt.older != nil {
				want, outcome = tt.older, lookup.Sent
			}
			if v.Outcome != outcome || v.Suppressed != (want != nil) || !slices.Equal(way(v), want) {
				t.Errorf("%s, older %v: %s by %v, want %v", name, older, v.Outcome, way(v), want)
			}
		}
	}
	// A hash decides which leg the rule looks at.
	facts := &lookup.Facts{
		Family: routing.IPv6, Interfaces: host(nil).Interfaces, Rules: []routing.Rule{rule(v6, 1, 100, notGroup(28008))}, Before72: true,
		Tables: map[routing.TableID][]lookup.Candidate{100: legs},
	}
	v := facts.Host().Lookup(lookup.Flow{To: addr("2600::1")})
	if !slices.Equal(way(v), []int{2}) || v.Suppressed || v.Otherwise == nil || !v.Otherwise.Suppressed || !slices.Equal(way(*v.Otherwise), []int{3}) {
		t.Errorf("a part of the legs: %+v, otherwise %+v", v, v.Otherwise)
	}
	// IPv4 has never done so.
	ipv4 := host([]routing.Rule{rule(v4, 1, 100, longer(0))}, route(100, "0.0.0.0/0", 2))
	ipv4.Before72 = true
	if v := ipv4.Lookup(lookup.Flow{To: addr("203.0.113.1")}); v.Outcome != lookup.NoRoute {
		t.Errorf("IPv4: %s", v.Outcome)
	}
}

// TestSharedObject: two groups with an object in common share its copy of a route, whatever legs they have.
func TestSharedObject(t *testing.T) {
	t.Parallel()
	leg := func(to string, device int) routing.Route { return route(routing.TableMain, to, device, leg) }
	facts := &lookup.Facts{
		Family: routing.IPv6, Interfaces: host(nil).Interfaces, Rules: []routing.Rule{rule(v6, 32766, routing.TableMain)},
		Tables: map[routing.TableID][]lookup.Candidate{routing.TableMain: {{Route: leg("2600::/16", 2), Nexthop: 35}}},
	}
	f := lookup.Flow{To: addr("2600::1")}
	h := facts.Host()
	v := h.Lookup(f)
	for _, other := range []string{"2700::/16", "2600::/16"} {
		answer := lookup.Answer{Matched: []routing.Route{leg(other, 3), leg(other, 2)}, Sent: leg(other, 2)}
		if why := h.Disagree(v, f, answer); (why == "") != (other == "2700::/16") {
			t.Errorf("the kernel names %s: %q", other, why)
		}
	}
}

// TestLegsAreNoFallbacks: a route with several legs whose routers answer is no way that the kernel falls back to, and one of
// its legs alone is another route.
func TestLegsAreNoFallbacks(t *testing.T) {
	t.Parallel()
	via := func(device int) routing.Route {
		return route(routing.TableMain, "2600::/16", device, leg, func(r *routing.Route) { r.Gateway = addr("fe80::1") })
	}
	h := host([]routing.Rule{rule(v6, 32766, routing.TableMain)}, via(2), via(3))
	f := lookup.Flow{To: addr("2600::1")}
	v := h.Lookup(f)
	both := lookup.Answer{Matched: []routing.Route{via(2), via(3)}, Sent: via(3)}
	if why := h.Disagree(v, f, both); why != "" || v.FellBack(both) {
		t.Errorf("both legs: %q, a fallback %v", why, v.FellBack(both))
	}
	if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{via(3)}, Sent: via(3)}); why == "" {
		t.Error("that a leg is missing is not noticed")
	}
}

// TestLoopbackInVRF: ::1 is no link-local address, for which a VRF asks no rule.
func TestLoopbackInVRF(t *testing.T) {
	t.Parallel()
	h := host([]routing.Rule{rule(v6, 1000, 200)}, route(200, "::1/128", 4, kind(local)), route(200, "fe80::/64", 5))
	if v := h.Lookup(lookup.Flow{To: addr("::1"), OIF: "vrf0"}); v.Rule.Priority != 1000 {
		t.Errorf("loopback: %+v", v)
	}
	if v := h.Lookup(lookup.Flow{To: addr("fe80::1"), OIF: "vrf0"}); v.Objection != lookup.LinkOfVRF {
		t.Errorf("link-local: %+v", v)
	}
}
