package check

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// checkMainRule finds that no rule reads main for all packets: unbound traffic then has no
// default route of main. Where rules of others say who may use main instead, that is their
// owner's choice, as a kill switch makes it, and the kernel's own rule would undo it.
func checkMainRule(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		rules := v.Planner.Foreign(f)
		// A kernel without the family has no rules of it at all.
		if len(rules) == 0 || routing.MainIsRead(rules) {
			continue
		}
		missing := fmt.Sprintf("the kernel's own rule %d (from all lookup main) is missing in %s", routing.PriorityMain, f)
		if p, chosen := mainRuleReplaced(v, f, rules, missing); chosen {
			out = append(out, p)
			continue
		}
		add := fmt.Sprintf("ip %s rule add from all lookup main priority %d", f.Flag(), routing.PriorityMain)
		out = append(out, routing.Problem{
			Severity: routing.Warning,
			Text:     missing + ": traffic that is bound to no link uses neither the networks nor the default route of the main table" + leavesAnyway(v, f),
			Fix:      add, Commands: routing.CommandsOf(add),
		})
	}
	return out
}

// mainRuleReplaced says which rules of others decide in place of the kernel's rule for main,
// false if none does. There is nothing to fix, unless a rule of ours lets packets out.
func mainRuleReplaced(v *view.View, f routing.Family, rules []routing.ForeignRule, missing string) (routing.Problem, bool) {
	var readers, others []string
	for _, o := range rules {
		switch r := o.Rule; {
		case r.Kernels() || r.L3MDev || r.IIF != "" && r.IIF != routing.Loopback || r.Table == view.TableRoutedDNS:
			// It says nothing of what this host sends, or of a few packets.
		case r.Action == routing.ActionLookup && r.Table == routing.TableMain:
			readers = append(readers, r.String())
		case r.Selects():
		case r.TakesAll() || r.Action == routing.ActionUnreachable || r.Action == routing.ActionProhibit || r.Action == routing.ActionBlackhole:
			others = append(others, r.String())
		}
	}
	p := routing.Problem{Severity: routing.Notice}
	switch {
	case len(readers) > 0:
		p.Object = readers[0]
		p.Text = fmt.Sprintf("%s, and main is read only by %s: traffic that is bound to no link gets main's default route only as these rules allow, as a kill switch intends",
			missing, inWords(readers))
	case len(others) > 0:
		p.Object = others[0]
		p.Text = fmt.Sprintf("%s, and in its place stand %s: traffic that is bound to no link does not use the main table, as a kill switch intends", missing, inWords(others))
	default:
		return p, false
	}
	if anyway := leavesAnyway(v, f); anyway != "" {
		p.Severity, p.Text = routing.Warning, p.Text+anyway
		p.Fix = lastResortFix(v, v.Unbound[f].Interface)
	}
	return p, true
}

// leavesAnyway says that unbound traffic leaves by a table of ours, empty where it does not
// or where that is not known.
func leavesAnyway(v *view.View, f routing.Family) string {
	way, leaves := v.Unbound[f]
	if _, ours := leasedIn(v)[f][routing.TableID(way.Table)]; !leaves || !ours {
		return ""
	}
	return fmt.Sprintf("; it leaves by %s all the same, by table %d of multihomed", way.Interface, way.Table)
}

// inWords quotes rules and puts them into a sentence.
func inWords(rules []string) string {
	quoted := make([]string, 0, len(rules))
	for _, r := range rules {
		quoted = append(quoted, strconv.Quote(r))
	}
	return outcome.Enumerate(quoted, mostRulesToList)
}

// lastResortFix is how unbound traffic is kept from leaving by a link when main has no
// default, empty if the configuration did not ask for it.
func lastResortFix(v *view.View, link string) string {
	if claim, _ := v.ClaimOf(v.Links[link]); !claim.LastResort {
		return ""
	}
	return fmt.Sprintf("if that is not intended, take last_resort out of the [[link]] of %s in /etc/multihomed/multihomed.toml", link)
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
