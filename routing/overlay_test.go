package routing_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"multihomed/routing"
)

// other adds a route of somebody else's table through the link.
func other(table routing.TableID, to, via string) part {
	return func(l *routing.Link) {
		route(to, via, 0)(l)
		r := l.Routes[len(l.Routes)-1]
		l.Routes = l.Routes[:len(l.Routes)-1]
		r.Table = table
		l.Others = append(l.Others, r)
	}
}

// throw adds what table 61 sends on to the next rule.
func throw(to string) part {
	return func(l *routing.Link) {
		l.Others = append(l.Others, routing.Route{Family: routing.IPv4, Type: routing.RouteThrow, Table: 61, Destination: prefix(to)})
	}
}

// TestTablesOfOthers: the table of a link has what rules that select nothing read before
// main, in their order; a default there hides what main has behind it.
func TestTablesOfOthers(t *testing.T) {
	t.Parallel()
	rule := func(p routing.Priority, table routing.TableID, change ...func(*routing.Rule)) routing.ForeignRule {
		r := routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table}
		for _, c := range change {
			c(&r)
		}
		return routing.ForeignRule{Rule: r}
	}
	suppress := func(bits uint32) func(*routing.Rule) {
		return func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(bits) }
	}
	const main = "192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.7.0/24 via .1"
	site := other(61, "10.61.0.0/16", "192.0.2.3")
	whole := other(61, "0.0.0.0/0", "192.0.2.3")
	for name, c := range map[string]struct {
		rules  []routing.ForeignRule
		others []part
		want   string
	}{
		"nobody reads it": {nil, []part{site}, main},
		"a rule that selects reads it": {
			[]routing.ForeignRule{rule(32000, 61, func(r *routing.Rule) { r.Mark = routing.Mark{Value: 1, Mask: 1} })}, []part{site}, main,
		},
		"a rule in front reads it": {[]routing.ForeignRule{rule(220, 61)}, []part{site}, main},
		"a site": {
			[]routing.ForeignRule{rule(32000, 61)},
			[]part{site},
			"192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"packets of this host": {
			[]routing.ForeignRule{rule(32000, 61, func(r *routing.Rule) { r.IIF = "lo" })},
			[]part{site},
			"192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"all but the tunnel's own": {
			[]routing.ForeignRule{rule(32000, 61, func(r *routing.Rule) { r.Invert, r.Mark = true, routing.Mark{Value: 1, Mask: 1} })},
			[]part{site},
			"192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"a rule that the kernel numbered": {
			[]routing.ForeignRule{{Rule: rule(9019, 61).Rule, Numbered: true, Natural: 32765}},
			[]part{site},
			"192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"a longer route inside of main's": {
			[]routing.ForeignRule{rule(32000, 61)}, []part{other(61, "10.61.7.128/25", "192.0.2.3")}, main + ", 10.61.7.128/25 via .3",
		},
		"a default hides main": {
			[]routing.ForeignRule{rule(32000, 61)}, []part{whole, site}, "192.0.2.0/24 on link, default via .3, 10.61.0.0/16 via .3",
		},
		"a suppressed default does not": {
			[]routing.ForeignRule{rule(32000, 61, suppress(0))},
			[]part{whole, site},
			"192.0.2.0/24 on link, default via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"nor what its group suppresses": {
			[]routing.ForeignRule{rule(32000, 61, func(r *routing.Rule) { r.SuppressGroup = routing.Some(9) })},
			[]part{group(9), whole, site},
			main,
		},
		"main but its default is read before": {
			[]routing.ForeignRule{rule(31000, routing.TableMain, suppress(0)), rule(32000, 61)},
			[]part{whole},
			"192.0.2.0/24 on link, default via .3, 10.50.0.0/16 via .1, 10.61.7.0/24 via .1",
		},
		"the order of rules goes before length": {
			[]routing.ForeignRule{rule(31000, 62), rule(32000, 61)},
			[]part{other(62, "10.0.0.0/8", "192.0.2.4"), site, other(61, "172.16.0.0/12", "192.0.2.3")},
			"192.0.2.0/24 on link, default via .1, 10.0.0.0/8 via .4, 172.16.0.0/12 via .3",
		},
		"a network that is thrown": {
			[]routing.ForeignRule{rule(32000, 61)},
			[]part{whole, throw("10.48.0.0/12"), throw("172.16.0.0/12")},
			"192.0.2.0/24 on link, default via .3, 10.48.0.0/12 via .1, 10.50.0.0/16 via .1, 10.61.7.0/24 via .1, 172.16.0.0/12 via .1",
		},
		"inside of what is thrown": {
			[]routing.ForeignRule{rule(32000, 61)},
			[]part{whole, throw("10.0.0.0/8"), site},
			"192.0.2.0/24 on link, default via .3, 10.0.0.0/8 via .1, 10.50.0.0/16 via .1, 10.61.0.0/16 via .3",
		},
		"thrown to the next table": {
			[]routing.ForeignRule{rule(31000, 61), rule(32000, 62)},
			[]part{whole, throw("10.0.0.0/8"), throw("172.16.0.0/12"), other(62, "10.0.0.0/7", "192.0.2.4"), other(62, "10.9.0.0/16", "192.0.2.5")},
			"192.0.2.0/24 on link, default via .3, 10.0.0.0/8 via .4, 10.9.0.0/16 via .5, 172.16.0.0/12 via .1",
		},
		"what is thrown and in no table before": {
			[]routing.ForeignRule{rule(32000, 61)}, []part{throw("10.50.0.0/16")}, main,
		},
		"what is thrown, while main but its default is read before": {
			[]routing.ForeignRule{rule(31000, routing.TableMain, suppress(0)), rule(32000, 61)},
			[]part{whole, throw("10.48.0.0/12"), throw("172.16.0.0/12")},
			"192.0.2.0/24 on link, default via .3, 10.48.0.0/12 via .1, 10.50.0.0/16 via .1, 10.61.7.0/24 via .1, 172.16.0.0/12 via .1",
		},
		"behind a rule that reads all of main": {
			[]routing.ForeignRule{rule(31000, routing.TableMain), rule(32000, 61)}, []part{site}, main,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts := append([]part{
				address("192.0.2.10/24", 100), route("0.0.0.0/0", "192.0.2.1", 100),
				route("10.50.0.0/16", "192.0.2.1", 100), route("10.61.7.0/24", "192.0.2.1", 100),
			}, c.others...)
			l := link(2, "wan0", parts...)
			l.Tables = leases{}.of(l)
			p := routing.NewPlanner(policy)
			p.Set(l)
			p.SetForeign(routing.IPv4, c.rules)
			check := func(want string) {
				t.Helper()
				have := tableText(p, 2)
				sorted := strings.Split(want, ", ")
				slices.Sort(sorted)
				if have != strings.Join(sorted, ", ") {
					t.Errorf("have %s\nwant %s", have, strings.Join(sorted, ", "))
				}
			}
			check(c.want)
			// A path that comes and goes finds the same as a plan that is made anew.
			to := routing.Destination{To: prefix("10.61.9.0/24")}
			path := link(2, "wan0", route("10.61.9.0/24", "192.0.2.5", 100)).Routes
			p.SetPaths(2, map[routing.Destination][]routing.Route{to: path})
			fresh := routing.NewPlanner(policy)
			fresh.SetForeign(routing.IPv4, c.rules)
			more := l
			more.Routes = append(slices.Clone(l.Routes), path...)
			fresh.Set(more)
			if have, want := tableText(p, 2), tableText(fresh, 2); have != want {
				t.Errorf("with a path\nhave  %s\nfresh %s", have, want)
			}
			for r := range fresh.Routes() {
				if now, ok := p.Route(r.Route.Key()); !ok || now.Route != r.Route {
					t.Errorf("%v is %v", r.Route, now.Route)
				}
			}
			p.SetPaths(2, map[routing.Destination][]routing.Route{to: nil})
			check(c.want)
			p.SetForeign(routing.IPv4, nil)
			check(main)
			p.SetForeign(routing.IPv4, c.rules)
			check(c.want)
		})
	}
}

// tableText is what the tables of a link have, in short.
func tableText(p *routing.Planner, index int) string {
	plan, _ := p.Link(index)
	var out []string
	for r := range plan.AllRoutes() {
		to, way := r.Route.Destination.String(), "on link"
		if r.Route.IsDefault() {
			to = "default"
		}
		if g := r.Route.Gateway; g.IsValid() {
			way = fmt.Sprintf("via .%d", g.As4()[3])
		}
		out = append(out, to+" "+way)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestLongTable is said.
func TestLongTable(t *testing.T) {
	t.Parallel()
	l := link(2, "wan0", address("192.0.2.10/24", 100), route("0.0.0.0/0", "192.0.2.1", 100))
	l.Tables, l.LongTables = leases{}.of(l), []routing.TableID{61}
	p := routing.Plan(policy, []routing.Link{l})
	plan, _ := p.Link(2)
	if len(plan.Problems) != 1 || plan.Problems[0].Code != routing.LongTable || plan.Problems[0].Fix == "" {
		t.Errorf("problems: %+v", plan.Problems)
	}
}
