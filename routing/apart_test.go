package routing_test

import (
	"slices"
	"testing"

	"multihomed/routing"
)

// TestRulesAreToldApart: a request to delete a rule of ours deletes that one and leaves the
// others in their order, also where one stands in front that says the same and more.
func TestRulesAreToldApart(t *testing.T) {
	t.Parallel()
	const all = 1<<32 - 1
	at := func(p routing.Priority, r routing.Rule) routing.Rule { r.Priority = p; return r }
	for name, tt := range map[string]struct {
		// before stands from the beginning, late comes when all is in order; the kernel
		// numbers what has no priority.
		before, late []routing.Rule
	}{
		"a step by device behind a lift that names it": {
			[]routing.Rule{{Action: routing.ActionLookup, Table: 77}, at(9020, routing.Rule{OIF: "wan0", Mark: routing.Mark{Mask: 1 << 31}, Action: routing.ActionUnreachable})},
			[]routing.Rule{at(8600, routing.Rule{To: prefix("8.0.0.0/8"), IIF: "lo", OIF: "wan0", Action: routing.ActionUnreachable})},
		},
		"a lift behind what is said again before it": {
			[]routing.Rule{
				{Action: routing.ActionUnreachable},
				{IPProto: 17, Action: routing.ActionLookup, Table: 78},
				{Action: routing.ActionProhibit},
				at(18500, routing.Rule{To: prefix("10.0.0.0/16"), OIF: "wan0", Action: routing.ActionUnreachable}),
			},
			[]routing.Rule{at(10200, routing.Rule{From: prefix("192.0.2.10/32"), Mark: routing.Mark{Value: 0xca6c, Mask: all}, Action: routing.ActionProhibit})},
		},
		"copies that read one table": {
			[]routing.Rule{{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1010}, Action: routing.ActionLookup, Table: 78}, at(25000, routing.Rule{IPProto: 17, Action: routing.ActionLookup, Table: 77})},
			[]routing.Rule{at(20500, routing.Rule{IPProto: 17, IIF: "lo", OIF: "wan0", Action: routing.ActionLookup, Table: 77})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := numbering(t)
			h.install(wan0())
			h.install(wan1())
			h.repeat(t)
			for _, r := range slices.Concat(tt.before, tt.late) {
				r.Family, r.Protocol = routing.IPv4, routing.ProtocolBoot
				if r.Priority == 0 {
					h.number(r)
				} else if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatal(err)
				}
				h.lookAround()
				h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
				h.settled(t)
			}
			for r := range h.planner.Rules() {
				if r.Rule.Family != routing.IPv4 || r.Rule.Priority >= routing.PriorityKnown {
					continue
				}
				kernel := h.kernel.Clone()
				want := slices.DeleteFunc(slices.Clone(kernel.RuleOrder(routing.IPv4, r.Rule.Priority)), func(o routing.Rule) bool { return o == r.Rule })
				if err := kernel.Apply(routing.Op{Verb: routing.DeleteRule, Rule: r.Rule}); err != nil {
					t.Fatal(err)
				}
				if got := kernel.RuleOrder(routing.IPv4, r.Rule.Priority); !slices.Equal(got, want) {
					t.Errorf("without %s:\n%v\nwant\n%v", r.Rule, got, want)
				}
			}
		})
	}
}
