package check

import (
	"fmt"
	"slices"
	"strings"

	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// checkMainRule finds that the kernel's rule for main is gone: unbound traffic
// then has no default route.
func checkMainRule(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		// A kernel without the family has no rules of it at all.
		rules := v.Planner.Foreign(f)
		if len(rules) == 0 || slices.ContainsFunc(rules, func(o routing.ForeignRule) bool {
			r := o.Rule
			return r.Action == routing.ActionLookup && r.Table == routing.TableMain && !r.Invert && !r.Selects() &&
				!r.From.IsValid() && !r.To.IsValid() && !r.SuppressPrefixLength.Set && !r.SuppressGroup.Set
		}) {
			continue
		}
		flag := "-4"
		if f == routing.IPv6 {
			flag = "-6"
		}
		out = append(out, routing.Problem{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("the kernel's own rule %d (from all lookup main) is missing in %s: the default route of the main table is not used, and traffic that is bound to no link takes the rule at %d", routing.PriorityMain, f, routing.PriorityMatchAll),
			Fix:      fmt.Sprintf("ip %s rule add from all lookup main priority %d", flag, routing.PriorityMain),
		})
	}
	return out
}

// checkTableInUse finds that others use a table of ours.
func checkTableInUse(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for plan := range v.Planner.Links() {
		for _, k := range plan.Keys {
			t, has := plan.Link.Tables[k]
			what, used := v.ForeignIn[t]
			if !has || !used {
				continue
			}
			out = append(out, routing.Problem{
				Severity: routing.Warning, Link: plan.Link.Name,
				Text: fmt.Sprintf("table %d belongs to %s, and another program uses it too: %s", t, k.Network(), what),
				Fix:  "give the other program another table, or change first and last in [tables] of /etc/multihomed/multihomed.toml",
			})
		}
	}
	return out
}

// isSaidWithOutcome reports whether an outcome check names a route in the same table: then
// that is the problem, and it says what comes of it.
func isSaidWithOutcome(f routing.Problem, all []routing.Problem) bool {
	return f.Code == outcome.TableInUse && f.Link != "" && f.Object == "" && slices.ContainsFunc(all, func(o routing.Problem) bool {
		_, table, _ := strings.Cut(o.Object, " in table ")
		return o.Code == outcome.TableInUse && table != "" && strings.HasPrefix(f.Text, "table "+table+" ")
	})
}

// checkRoutedDNS notes NetworkManager's routes to its DNS servers.
func checkRoutedDNS(v *view.View, _ files) []routing.Problem {
	for _, f := range routing.Families() {
		for _, o := range v.Planner.Foreign(f) {
			if o.Rule.Action == routing.ActionLookup && o.Rule.Table == view.TableRoutedDNS {
				return []routing.Problem{{
					Severity: routing.Notice,
					Text:     fmt.Sprintf("NetworkManager routes DNS servers by table %d (routed-dns): traffic that is bound to no link reaches each server by the link that named it", view.TableRoutedDNS),
				}}
			}
		}
	}
	return nil
}
