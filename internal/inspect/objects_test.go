package inspect_test

import (
	"net/netip"
	"slices"
	"testing"

	"multihomed/internal/inspect"
	"multihomed/routing"
)

func TestObjects(t *testing.T) {
	v := view(wan(0), wan(1))
	count := func() map[inspect.State]int {
		out := map[inspect.State]int{}
		for _, o := range v.Objects() {
			out[o.State]++
		}
		return out
	}
	if got := count(); len(got) != 1 || got[inspect.InForce] == 0 {
		t.Fatalf("a sound host has %v", got)
	}
	planned := count()[inspect.InForce]

	rules, routes := slices.Collect(v.Planner.Rules()), slices.Collect(v.Planner.Routes())
	stray := routing.Rule{Family: routing.IPv4, Priority: routing.PrioritySource, From: netip.MustParsePrefix("203.0.113.9/32"), Action: routing.ActionLookup, Table: 10001, Protocol: routing.Multihomed}
	other := routing.Route{Family: routing.IPv4, Table: 10500, Destination: netip.MustParsePrefix("10.0.0.0/8"), Device: 99, Protocol: routing.Multihomed}
	v.Missing = []routing.Op{
		{Verb: routing.SetGroup, Index: 2, Group: 28008},
		{Verb: routing.AddRoute, Route: routes[0].Route},
		{Verb: routing.ReplaceRoute, Route: routes[1].Route},
		{Verb: routing.AddRule, Rule: rules[1].Rule},
		{Verb: routing.MoveRule, Rule: rules[2].Rule},
		{Verb: routing.DeleteRule, Rule: stray},
		{Verb: routing.DeleteRoute, Route: other},
		{Verb: routing.ResetGroup, Index: 98},
	}
	want := map[inspect.State]int{
		inspect.InForce: planned - 5, inspect.Missing: 3, inspect.Different: 1, inspect.Misplaced: 1, inspect.Unexpected: 3,
	}
	for state, n := range want {
		if got := count()[state]; got != n {
			t.Errorf("%d objects are %s, want %d", got, state, n)
		}
	}
	for _, w := range []inspect.Object{
		{Kind: inspect.Group, State: inspect.Missing, Text: "link wan0 group 28008", Link: "wan0", Reason: routing.Reason{Decision: routing.MarkUplink, Link: "wan0"}},
		{Kind: inspect.Group, State: inspect.InForce, Text: "link wan1 group 28008", Link: "wan1", Reason: routing.Reason{Decision: routing.MarkUplink, Link: "wan1"}},
		{Kind: inspect.Rule, Family: routing.IPv4, State: inspect.Unexpected, Text: "10000: from 203.0.113.9 lookup 10001", Link: "wan1"},
		{Kind: inspect.Route, Family: routing.IPv4, State: inspect.Unexpected, Text: "10.0.0.0/8 dev if99 table 10500", Link: "if99"},
		{Kind: inspect.Group, State: inspect.Unexpected, Text: "link if98 group 28008", Link: "if98"},
	} {
		if !slices.Contains(v.Objects(), w) {
			t.Errorf("no %+v in %+v", w, v.Objects())
		}
	}
}
