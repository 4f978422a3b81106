package inspect

import (
	"fmt"
	"slices"
	"strings"

	"multihomed/routing"
)

// The kernel's own rules (fib_default_rules_init in net/ipv4/fib_rules.c), that
// of VRFs (vrf_add_fib_rules in drivers/net/vrf.c), and the table and priority
// of NetworkManager's routed-dns.
const (
	priorityLocal   routing.Priority = 0
	priorityVRF     routing.Priority = 1000
	priorityMain    routing.Priority = 32766
	tableRoutedDNS  routing.TableID  = 20053
	mostRulesToList                  = 4
)

// checkMainRule finds that the kernel's rule for main is gone: unbound traffic
// then has no default route.
func checkMainRule(v *View, _ files) []Finding {
	var out []Finding
	for _, f := range routing.Families() {
		// A kernel without the family has no rules of it at all.
		if !slices.ContainsFunc(v.Foreign, func(r routing.Rule) bool { return r.Family == f }) || slices.ContainsFunc(v.Foreign, func(r routing.Rule) bool {
			return r.Family == f && r.Action == routing.ActionLookup && r.Table == routing.TableMain &&
				!r.From.IsValid() && !r.To.IsValid() && r.IIF == "" && r.OIF == "" && !r.SuppressPrefixLength.Set
		}) {
			continue
		}
		flag := "-4"
		if f == routing.IPv6 {
			flag = "-6"
		}
		out = append(out, Finding{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("the kernel's own rule %d (from all lookup main) is missing in %s: main's default route is not used, and unbound traffic takes the last resort at %d", priorityMain, f, routing.PriorityMatchAll),
			Fix:      fmt.Sprintf("ip %s rule add from all lookup main priority %d", flag, priorityMain),
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
				Text: fmt.Sprintf("table %d is its own for %s, but somebody else uses it too: %s", t, k.Prefix, what),
				Fix:  "give that another table, or move [tables] in the configuration of multihomed",
			})
		}
	}
	return out
}

// checkRulesAhead finds rules that are read before ours: what they catch does
// not follow its link.
func checkRulesAhead(v *View, _ files) []Finding {
	byFamily := map[routing.Family][]string{}
	for _, r := range v.Foreign {
		switch {
		case r.Priority >= routing.PriorityOverlap, r.Priority == priorityLocal, r.Priority == priorityVRF:
		default:
			byFamily[r.Family] = append(byFamily[r.Family], r.String())
		}
	}
	var out []Finding
	for _, f := range routing.Families() {
		rules := byFamily[f]
		if len(rules) == 0 {
			continue
		}
		more := ""
		if n := len(rules) - mostRulesToList; n > 0 {
			rules = rules[:mostRulesToList]
			more = fmt.Sprintf(" and %d more", n)
		}
		out = append(out, Finding{
			Severity: routing.Notice,
			Text:     fmt.Sprintf("%s rules of others are read before those of multihomed, and what they match does not follow its link: %s%s", f, strings.Join(rules, "; "), more),
		})
	}
	return out
}

// checkRoutedDNS notes NetworkManager's routes to its DNS servers.
func checkRoutedDNS(v *View, _ files) []Finding {
	for _, r := range v.Foreign {
		if r.Action == routing.ActionLookup && r.Table == tableRoutedDNS {
			return []Finding{{
				Severity: routing.Notice,
				Text:     fmt.Sprintf("NetworkManager routes its DNS servers by table %d (routed-dns): unbound traffic to them leaves by the link they came from, bound traffic follows its link as ever", tableRoutedDNS),
			}}
		}
	}
	return nil
}
