package inspect

import (
	"fmt"
	"slices"

	"multihomed/routing"
)

// tableRoutedDNS is the table and the priority of NetworkManager's routed-dns.
const tableRoutedDNS routing.TableID = 20053

// checkMainRule finds that the kernel's rule for main is gone: unbound traffic
// then has no default route.
func checkMainRule(v *View, _ files) []Finding {
	var out []Finding
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
		out = append(out, Finding{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("the kernel's own rule %d (from all lookup main) is missing in %s: main's default route is not used, and unbound traffic takes the last resort at %d", routing.PriorityMain, f, routing.PriorityMatchAll),
			Fix:      fmt.Sprintf("ip %s rule add from all lookup main priority %d", flag, routing.PriorityMain),
		})
	}
	return out
}

// checkTableInUse finds that others use a table of ours.
func checkTableInUse(v *View, _ files) []Finding {
	var out []Finding
	for plan := range v.Planner.Links() {
		for _, k := range plan.Keys {
			t, has := plan.Link.Tables[k]
			what, used := v.ForeignIn[t]
			if !has || !used {
				continue
			}
			out = append(out, Finding{
				Severity: routing.Warning, Link: plan.Link.Name,
				Text: fmt.Sprintf("table %d is its own for %s, but somebody else uses it too: %s", t, k.Network(), what),
				Fix:  "give that another table, or move [tables] in the configuration of multihomed",
			})
		}
	}
	return out
}

// checkRoutedDNS notes NetworkManager's routes to its DNS servers.
func checkRoutedDNS(v *View, _ files) []Finding {
	for _, f := range routing.Families() {
		for _, o := range v.Planner.Foreign(f) {
			if o.Rule.Action == routing.ActionLookup && o.Rule.Table == tableRoutedDNS {
				return []Finding{{
					Severity: routing.Notice,
					Text:     fmt.Sprintf("NetworkManager routes its DNS servers by table %d (routed-dns): unbound traffic to them leaves by the link they came from, bound traffic follows its link as ever", tableRoutedDNS),
				}}
			}
		}
	}
	return nil
}
