package routing_test

import (
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// TestRefusedStepsAside: where somebody refuses what is bound to nothing, no packet with a
// source of ours gets out, and it is so at every step on the way there and back to all that
// was.
func TestRefusedStepsAside(t *testing.T) {
	t.Parallel()
	h := hostOf(t,
		wan0(address("2001:db8:1::10/64", 100), route("::/0", "fe80::1", 100)),
		wan1(address("2001:db8:2::20/64", 101), route("::/0", "fe80::2", 101)))
	rule := routing.ForeignRule{Rule: routing.Rule{Family: routing.IPv6, Priority: 31000, Action: routing.ActionUnreachable}}
	if err := h.kernel.AddForeignRule(rule.Rule); err != nil {
		t.Fatal(err)
	}
	h.planner.SetForeign(routing.IPv6, []routing.ForeignRule{rule})
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	bound := lookup.Flow{From: addr("2001:db8:1::10"), To: addr("2001:db8:ff::1")}
	device := lookup.Flow{To: bound.To, OIF: "wan0"}
	if v := h.kernel.Lookup(bound); !v.Through(2) {
		t.Fatalf("the rung does not stand: %s, %v", v.Outcome, v.Legs)
	}
	before := slices.Collect(h.planner.Rules())
	refusal := routing.Refusal{By: "the rule", Object: rule.Rule.String(), Fix: "ip -6 rule del", Devices: true}
	for _, c := range []struct {
		refusal routing.Refusal
		device  lookup.Outcome
		notices int
	}{
		{refusal, lookup.Rejected, 1},
		{routing.Refusal{By: "the route", Object: "unreachable default table 51", Fix: "ip -6 route del"}, lookup.Sent, 1},
		{routing.Refusal{}, lookup.Sent, 0},
	} {
		h.planner.SetRefused(routing.IPv6, c.refusal)
		h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
		want := lookup.Rejected
		if c.notices == 0 {
			want = lookup.Sent
		}
		for _, to := range []string{"2001:db8:ff::1", "2001:db8:2::77"} {
			flow := bound
			flow.To = addr(to)
			if v := h.kernel.Lookup(flow); v.Outcome != want {
				t.Errorf("%+v: bound to an address, to %s: %s by %s", c.refusal, to, v.Outcome, v.Rule)
			}
		}
		if v := h.kernel.Lookup(device); v.Outcome != c.device {
			t.Errorf("%+v: bound to the device: %s by %s", c.refusal, v.Outcome, v.Rule)
		}
		if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: addr("8.8.8.8")}); !v.Through(2) {
			t.Errorf("%+v: IPv4 leaves by %v", c.refusal, v.Legs)
		}
		plan, _ := h.planner.Link(2)
		notices := 0
		for _, p := range plan.Problems {
			if p.Code == routing.UnboundRefused && p.Severity == routing.Notice && p.Object == c.refusal.Object && p.Fix != "" {
				notices++
			}
		}
		if notices != c.notices || plan.StepsAside(bound.From) != (c.notices > 0) || plan.DevicesAside(routing.IPv6) != c.refusal.Devices {
			t.Errorf("%+v: %d notices, aside %t, devices aside %t", c.refusal, notices, plan.StepsAside(bound.From), plan.DevicesAside(routing.IPv6))
		}
		// It stays while the link is planned anew.
		h.look(2)
		if plan, _ := h.planner.Link(2); plan.StepsAside(bound.From) != (c.notices > 0) {
			t.Errorf("%+v: planned anew, aside %t", c.refusal, plan.StepsAside(bound.From))
		}
	}
	if after := slices.Collect(h.planner.Rules()); len(after) != len(before) {
		t.Errorf("%d rules, there were %d", len(after), len(before))
	}
}

// TestMayRefuse: the kernel is asked only where a rule of others may refuse what bound
// traffic would find.
func TestMayRefuse(t *testing.T) {
	t.Parallel()
	rule := func(r routing.Rule) routing.Rule { r.Family = routing.IPv6; return r }
	main := rule(routing.Rule{Priority: routing.PriorityMain, Action: routing.ActionLookup, Table: routing.TableMain})
	some := main
	some.SuppressPrefixLength = routing.Some(0)
	mark := routing.Mark{Value: 1, Mask: ^uint32(0)}
	for name, c := range map[string]struct {
		rules []routing.Rule
		want  bool
	}{
		"the kernel's":           {[]routing.Rule{main}, false},
		"none":                   {nil, false},
		"nobody reads main":      {[]routing.Rule{rule(routing.Rule{Action: routing.ActionLookup, Table: routing.TableLocal})}, true},
		"all but its default":    {[]routing.Rule{some}, true},
		"and then all":           {[]routing.Rule{some, main}, false},
		"says no":                {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionProhibit}), main}, true},
		"says no behind":         {[]routing.Rule{main, rule(routing.Rule{Priority: 40000, Action: routing.ActionBlackhole})}, true},
		"says no to some":        {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionUnreachable, Mark: mark}), main}, false},
		"says no to all but":     {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionUnreachable, Mark: mark, Invert: true}), main}, true},
		"a table for all":        {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionLookup, Table: 51}), main}, false},
		"a table for all but":    {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionLookup, Table: 51, Mark: mark, Invert: true}), main}, true},
		"goes on somewhere else": {[]routing.Rule{rule(routing.Rule{Priority: 31000, Action: routing.ActionGoto, Goto: 40000}), main}, true},
	} {
		if routing.MayRefuse(slices.Values(c.rules)) != c.want {
			t.Errorf("%s: want %t", name, c.want)
		}
	}
}
