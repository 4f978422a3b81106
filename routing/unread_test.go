package routing_test

import (
	"slices"
	"testing"

	"multihomed/routing"
)

// TestNoLastResortWhereNobodyReadsMain: the rung changes nothing while main is read, and
// would be a way where the administrator has taken that away.
func TestNoLastResortWhereNobodyReadsMain(t *testing.T) {
	t.Parallel()
	rule := func(p routing.Priority, table routing.TableID, change ...func(*routing.Rule)) routing.ForeignRule {
		r := routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table}
		for _, c := range change {
			c(&r)
		}
		return routing.ForeignRule{Rule: r}
	}
	iif := func(r *routing.Rule) { r.IIF = "lo" }
	marked := func(r *routing.Rule) { r.Mark = routing.Mark{Value: 1, Mask: 1} }
	suppressed := func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(0) }
	over := func(r *routing.Rule) { r.Action, r.Goto = routing.ActionGoto, 40000 }
	nop := func(r *routing.Rule) { r.Action = routing.ActionNop }
	local := rule(0, routing.TableLocal)
	last := func(p *routing.Planner) bool {
		return slices.ContainsFunc(slices.Collect(p.Rules()), func(r routing.PlannedRule) bool {
			return r.Rule.Family == routing.IPv4 && r.Rule.Priority == routing.PriorityMatchAll
		})
	}
	for name, c := range map[string]struct {
		rules []routing.ForeignRule
		want  bool
	}{
		"the kernel's":          {[]routing.ForeignRule{local, rule(routing.PriorityMain, routing.TableMain)}, true},
		"elsewhere":             {[]routing.ForeignRule{local, rule(40000, routing.TableMain)}, true},
		"for what is sent here": {[]routing.ForeignRule{local, rule(40000, routing.TableMain, iif)}, true},
		"none":                  {[]routing.ForeignRule{local}, false},
		"for a mark":            {[]routing.ForeignRule{local, rule(40000, routing.TableMain, marked)}, false},
		"all but its default":   {[]routing.ForeignRule{local, rule(40000, routing.TableMain, suppressed)}, false},
		"behind":                {[]routing.ForeignRule{local, rule(91001, routing.TableMain)}, false},
		"stepped over":          {[]routing.ForeignRule{local, rule(31000, 0, over), rule(routing.PriorityMain, routing.TableMain), rule(40000, 0, nop)}, false},
		"before what is":        {[]routing.ForeignRule{local, rule(31000, 0, over), rule(40000, routing.TableMain)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := routing.Plan(policy, hostOf(t, wan0()).facts())
			p.SetForeign(routing.IPv4, c.rules)
			if last(p) != c.want {
				t.Errorf("the last resort stands: %t", !c.want)
			}
			resort := wan0()
			resort.LastResort, resort.Tables = true, leases{}.of(resort)
			p.Set(resort)
			if !last(p) {
				t.Error("it is asked for, and does not stand")
			}
		})
	}
}

// facts are those of the links of a host.
func (h *host) facts() []routing.Link {
	out := make([]routing.Link, 0, len(h.links))
	for _, l := range h.links {
		out = append(out, h.kernel.Facts(l))
	}
	return out
}
