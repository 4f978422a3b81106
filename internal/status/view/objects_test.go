package view_test

import (
	"net/netip"
	"slices"
	"testing"

	"multihomed/internal/status"
	"multihomed/internal/status/view"
	"multihomed/internal/status/view/viewtest"
	"multihomed/routing"
)

func TestObjects(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0), viewtest.WAN(1))
	count := func() map[status.State]int {
		out := map[status.State]int{}
		for _, o := range v.Objects() {
			out[o.State]++
		}
		return out
	}
	if got := count(); len(got) != 1 || got[status.InForce] == 0 {
		t.Fatalf("a sound host has %v", got)
	}
	planned := count()[status.InForce]

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
	want := map[status.State]int{
		status.InForce: planned - 5, status.Missing: 3, status.Different: 1, status.Misplaced: 1, status.Unexpected: 3,
	}
	for state, n := range want {
		if got := count()[state]; got != n {
			t.Errorf("%d objects are %s, want %d", got, state, n)
		}
	}
	for _, w := range []view.Object{
		{Kind: view.Group, State: status.Missing, Text: "link wan0 group 28008", Link: "wan0", Reason: routing.Reason{Decision: routing.MarkUplink, Link: "wan0"}},
		{Kind: view.Group, State: status.InForce, Text: "link wan1 group 28008", Link: "wan1", Reason: routing.Reason{Decision: routing.MarkUplink, Link: "wan1"}},
		{Kind: view.Rule, Family: routing.IPv4, State: status.Unexpected, Text: "10000: from 203.0.113.9 lookup 10001", Link: "wan1"},
		{Kind: view.Route, Family: routing.IPv4, State: status.Unexpected, Text: "10.0.0.0/8 dev if99 table 10500", Link: "if99"},
		{Kind: view.Group, State: status.Unexpected, Text: "link if98 group 28008", Link: "if98"},
	} {
		if !slices.Contains(v.Objects(), w) {
			t.Errorf("no %+v in %+v", w, v.Objects())
		}
	}
}
