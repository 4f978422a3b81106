package inspect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"multihomed/routing"
)

// mostRulesToList bounds a list in a sentence.
const mostRulesToList = 4

// listed puts rules or routes into a sentence.
func listed(texts []string) string {
	more := ""
	if n := len(texts) - mostRulesToList; n > 0 {
		texts, more = texts[:mostRulesToList], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(texts, "; ") + more
}

// decides reports whether a rule of somebody else may say where packets go that this
// host sends to somewhere else. The rule for local does not, nor do that of VRFs
// (vrf_add_fib_rules in drivers/net/vrf.c), what is for forwarded packets alone, main
// without its default, and what stands behind the ladder's last rung before main.
func decides(r routing.Rule) bool {
	if r.Priority > routing.PriorityAgain || r.IIF != "" && r.IIF != "lo" {
		return false
	}
	switch r.Action {
	case routing.ActionLookup:
		return !r.L3MDev && r.Table != routing.TableLocal && r.Table != tableRoutedDNS &&
			(r.Table != routing.TableMain || !r.SuppressPrefixLength.Set)
	case routing.ActionGoto, routing.ActionBlackhole, routing.ActionUnreachable, routing.ActionProhibit:
		return true
	default:
		return false
	}
}

// goesFirst reports whether a rule that selects is asked before the tables of links:
// it stands before them, or is lifted.
func goesFirst(r routing.Rule) bool {
	return r.Selects() && decides(r) && (!r.Unknown || r.Priority < routing.PriorityKnown)
}

// checkRulesAhead finds rules that select nothing and that somebody put in front of
// the ladder: bound traffic meets them first.
func checkRulesAhead(v *View, _ files) []Finding {
	var out []Finding
	for _, f := range routing.Families() {
		var some []string
		for _, o := range v.Planner.Foreign(f) {
			r := o.Rule
			if r.Priority >= routing.PrioritySource || r.Selects() || o.SteppedOver() || !decides(r) {
				continue
			}
			if !v.takesAll(r) {
				some = append(some, r.String())
				continue
			}
			what := "bound traffic is refused"
			if r.Action == routing.ActionLookup {
				what = "bound traffic follows it, and not its link"
			}
			out = append(out, Finding{
				Severity: routing.Warning,
				Text:     fmt.Sprintf("the %s rule %q of somebody else selects nothing and stands before those of multihomed: %s", f, r, what),
				Fix:      fmt.Sprintf("give it a priority between %d and %d: unbound traffic follows it there too, and bound traffic follows its link", routing.PriorityNetwork+1, routing.PriorityAgain-1),
			})
		}
		if len(some) > 0 {
			out = append(out, Finding{
				Severity: routing.Notice,
				Text:     fmt.Sprintf("%s rules of others select nothing and stand before those of multihomed: bound traffic goes where their tables know a way, and follows its link elsewhere: %s", f, listed(some)),
			})
		}
	}
	return out
}

// takesAll reports whether bound traffic to the internet follows a rule that selects
// nothing.
func (v *View) takesAll(r routing.Rule) bool {
	if r.Action != routing.ActionLookup {
		return r.Action != routing.ActionGoto
	}
	if r.Table == routing.TableMain {
		return !r.SuppressGroup.Set
	}
	return slices.ContainsFunc(v.Outcomes, func(o Outcome) bool {
		return routing.FamilyOf(o.To) == r.Family && !o.Refused && o.Table == r.Table
	})
}

// checkRulesOfSources finds rules of others that are for packets of a link.
func checkRulesOfSources(v *View, _ files) []Finding {
	var out []Finding
	for plan := range v.Planner.Links() {
		for _, f := range routing.Families() {
			for _, o := range v.Planner.Foreign(f) {
				if a := v.selectedOf(plan, o.Rule); a != "" {
					out = append(out, Finding{
						Severity: routing.Notice, Link: plan.Link.Name,
						Text: fmt.Sprintf("the %s rule %q of somebody else selects packets from %s: they follow it, and the link only where it has no answer", f, o.Rule, a),
					})
				}
			}
		}
	}
	return out
}

// selectedOf returns an address of a link whose packets a rule of somebody else
// selects by their source, empty if there is none.
func (v *View) selectedOf(plan routing.LinkPlan, r routing.Rule) string {
	if !r.From.IsValid() || !goesFirst(r) {
		return ""
	}
	for _, a := range plan.Link.Addresses {
		addr := a.Prefix.Addr()
		if k, is := routing.KeyOf(plan.Link, addr); is && k.Family == r.Family && r.From.Contains(addr) && plan.Link.Tables[k] != r.Table {
			return addr.String()
		}
	}
	return ""
}

// checkLifted names the other rules that keep their say before the tables of links.
func checkLifted(v *View, _ files) []Finding {
	return v.noticeOthers(func(o routing.ForeignRule) bool {
		if !goesFirst(o.Rule) {
			return false
		}
		for plan := range v.Planner.Links() {
			if v.selectedOf(plan, o.Rule) != "" {
				return false // said of the link
			}
		}
		return true
	}, "%s rules of others keep their say: what they select follows them, and a link only where they have no answer: %s")
}

// checkUnknown finds rules of others that have attributes which no kernel had when this
// version was written, and that stand behind the ladder or inside of it: what they select is
// not known, so they are not lifted, and traffic of links meets the ladder first.
func checkUnknown(v *View, _ files) []Finding {
	var out []Finding
	for _, f := range routing.Families() {
		var rules []string
		for _, o := range v.Planner.Foreign(f) {
			if r := o.Rule; r.Unknown && r.Priority >= routing.PriorityKnown && decides(r) {
				rules = append(rules, strconv.Quote(r.String()))
			}
		}
		if len(rules) == 0 {
			continue
		}
		out = append(out, Finding{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("%s rules of others select by something that this version of multihomed does not know; they stand behind its rules, so traffic bound to a link follows its link although they may select it: %s", f, listed(rules)),
			Fix:      fmt.Sprintf("give them priorities below %d, where they are asked first, or install a newer version of multihomed", routing.PriorityLocal),
		})
	}
	return out
}

// checkSteppedOver names the rules that bound traffic steps over.
func checkSteppedOver(v *View, _ files) []Finding {
	return v.noticeOthers(func(o routing.ForeignRule) bool {
		return o.SteppedOver() && o.Rule.Action != routing.ActionNop
	}, "%s rules of others got their numbers from the kernel while multihomed's stood: unbound traffic follows them, traffic bound to an uplink steps over them: %s")
}

// noticeOthers says the same of all rules of others that are picked, family by
// family. The text takes the family and the rules.
func (v *View) noticeOthers(picked func(routing.ForeignRule) bool, text string) []Finding {
	var out []Finding
	for _, f := range routing.Families() {
		var rules []string
		for _, o := range v.Planner.Foreign(f) {
			if picked(o) {
				rules = append(rules, o.Rule.String())
			}
		}
		if len(rules) > 0 {
			out = append(out, Finding{Severity: routing.Notice, Text: fmt.Sprintf(text, f, listed(rules))})
		}
	}
	return out
}

// checkYielding finds lifts that stay away because somebody deleted them in the words
// of his own rule.
func checkYielding(v *View, _ files) []Finding {
	var out []Finding
	for _, o := range v.Objects() {
		if !o.yieldsToLifted() {
			continue
		}
		out = append(out, Finding{
			Severity: routing.Notice,
			Text:     fmt.Sprintf("somebody deleted %s rule %q of multihomed in words that are also those of %q, which is left: it comes back %s unless that rule is deleted too", o.Family, o.Text, o.Lifts(), back(o.Until)),
			Fix:      "delete the rule that is left by its priority too, or wait",
		})
	}
	return out
}

// back says when something is put back.
func back(until time.Time) string {
	if until.IsZero() {
		return "within 10 seconds"
	}
	return "at " + until.Local().Format(time.TimeOnly)
}

// checkWaiting finds the other rules and routes that somebody deleted and that are put back
// later: by whose words, or because he deletes them again and again.
func checkWaiting(v *View, _ files) []Finding {
	type cause struct {
		link, his string
		family    routing.Family
	}
	var causes []cause
	texts, until := map[cause][]string{}, map[cause]time.Time{}
	for _, o := range v.Objects() {
		if o.State != Yielding || o.yieldsToLifted() {
			continue
		}
		c := cause{o.Link, o.His, o.Family}
		if texts[c] == nil {
			causes = append(causes, c)
		}
		texts[c] = append(texts[c], strconv.Quote(o.Text))
		if o.Until.After(until[c]) {
			until[c] = o.Until
		}
	}
	out := make([]Finding, 0, len(causes))
	for _, c := range causes {
		f := Finding{
			Severity: routing.Notice, Link: c.link,
			Text: fmt.Sprintf("somebody deleted routing of multihomed in words that are also those of the %s rule %q; it stays away until the deletions have ended and comes back %s: %s", c.family, c.his, back(until[c]), listed(texts[c])),
			Fix:  "wait, and delete rules by their priority too",
		}
		if c.his == "" {
			f.Severity = routing.Warning
			f.Text = fmt.Sprintf("somebody keeps deleting %s routing of multihomed; it comes back %s: %s", c.family, back(until[c]), listed(texts[c]))
			f.Fix = "find out who does it: journalctl -u multihomed names the netlink port, which is mostly a process id"
		}
		out = append(out, f)
	}
	return out
}

// checkRejects finds default routes of main that refuse bound traffic: the rung of
// what main knows meets them, and the kernel suppresses routes, not errors
// (fib_rules_lookup in net/core/fib_rules.c).
func checkRejects(v *View, _ files) []Finding {
	out := make([]Finding, 0, len(v.Rejects))
	for _, r := range v.Rejects {
		flag := "-4"
		if r.Family == routing.IPv6 {
			flag = "-6"
		}
		out = append(out, Finding{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("main has %q in %s, and no default before it: traffic bound to a link is refused too", r.Text, r.Family),
			Fix:      fmt.Sprintf("ip %s route del %s", flag, r.Text),
		})
	}
	return out
}

// enoughPieces is how many of the blocks that are tried must go astray: less is a
// network of somebody, and not a default route in pieces.
const enoughPieces = 3

// checkRoutesAhead finds routes of main that are together as good as a default, and
// too long to be taken for pieces of one (suppress_prefixlength of rung "known").
func checkRoutesAhead(v *View, _ files) []Finding {
	longest := int(v.Policy.ContainerPrefixLength)
	var out []Finding
	for _, f := range routing.Families() {
		astray, tried := map[string]int{}, 0
		for _, o := range v.Outcomes {
			if routing.FamilyOf(o.To) != f {
				continue
			}
			tried++
			if l, known := v.Links[o.Device]; known && !o.Refused && o.Table == routing.TableMain && o.Length > longest && o.Length < 17 {
				if _, is := v.Planner.Link(l.Index); !is {
					astray[o.Device]++
				}
			}
		}
		for _, device := range v.names() {
			if n := astray[device]; n >= enoughPieces {
				out = append(out, Finding{
					Severity: routing.Notice,
					Text:     fmt.Sprintf("main has %s routes of /%d to /16 through %s to %d of %d parts of the internet that were tried: bound traffic to there follows them, and not its link", f, longest+1, device, n, tried),
					Fix:      "let " + device + " have a default route, or two of /1, in place of a list of routes (AllowedIPs of WireGuard)",
				})
			}
		}
	}
	return out
}
