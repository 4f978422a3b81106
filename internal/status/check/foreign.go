package check

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"multihomed/internal/status"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
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

// checkUnknown finds rules of others that have attributes which no kernel had when this
// version was written, and that stand behind the ladder or inside of it: what they select is
// not known, so they are not lifted, and traffic of links meets the ladder first.
func checkUnknown(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		var rules []string
		for _, o := range v.Planner.Foreign(f) {
			if r := o.Rule; r.Unknown && r.Priority >= routing.PriorityKnown && view.Decides(r) {
				rules = append(rules, strconv.Quote(r.String()))
			}
		}
		if len(rules) == 0 {
			continue
		}
		out = append(out, routing.Problem{
			Severity: routing.Warning,
			Text:     fmt.Sprintf("%s rules of other programs select by something that this version of multihomed does not know, and come after its rules: traffic bound to a link follows its link, also where they select it: %s", f, listed(rules)),
			Fix:      fmt.Sprintf("give these rules priorities below %d, or install a newer version of multihomed; multihomectl status -v lists all of them", routing.PriorityLocal),
		})
	}
	return out
}

// checkOvertaken finds rules of others that the kernel numbered while the ladder stood, and
// that come before others which would come first without multihomed.
func checkOvertaken(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		for _, o := range routing.Overtaken(f, v.Planner.Foreign(f)) {
			out = append(out, routing.Problem{
				Severity: routing.Warning, Object: o.Numbered.String(),
				Text:     fmt.Sprintf("the %s rule %q was added without a priority, and comes before %q: without multihomed it would come after it", f, o.Numbered, o.Overtaken),
				Fix:      fmt.Sprintf("delete it and add it again with a priority between %d and %d", o.Overtaken.Priority+1, routing.PriorityAgain),
				Commands: outcome.Move(o.Numbered, o.Overtaken.Priority+1),
			})
		}
	}
	return out
}

// checkGotos finds gotos of others that lead to a priority at which nobody has a rule but us:
// without us they do nothing.
func checkGotos(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		foreign := v.Planner.Foreign(f)
		for _, o := range foreign {
			r := o.Rule
			if r.Action != routing.ActionGoto || !routing.Dangles(foreign, r.Goto) {
				continue
			}
			for p := range v.Planner.Rules() {
				if p.Rule.Family != f || p.Rule.Priority != r.Goto {
					continue
				}
				nop := fmt.Sprintf("ip %s rule add priority %d nop", f.Flag(), r.Goto)
				out = append(out, routing.Problem{
					Severity: routing.Warning, Object: r.String(), Commands: routing.CommandsOf(nop),
					Text: fmt.Sprintf("the %s rule %q leads to priority %d, at which only multihomed has rules: packets jump there, and without multihomed they do not", f, r, r.Goto),
					Fix:  fmt.Sprintf("add a rule that does nothing at this priority (%s), to jump there in any case, or delete the rule", nop),
				})
				break
			}
		}
	}
	return out
}

// checkYielding finds lifts that stay away because the deletion of the lifted rule matched them.
func checkYielding(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, o := range v.Objects() {
		if !o.YieldsToLifted() {
			continue
		}
		out = append(out, routing.Problem{
			Severity: routing.Notice, Object: o.Text,
			Text: fmt.Sprintf("an `ip rule del` was probably for the %s rule %q, and deleted the rule %q of multihomed: the latter comes back %s unless the former is deleted too", o.Family, o.Lifts(), o.Text, back(o.Until)),
			Fix:  "to delete a rule, name its priority: ip rule del priority " + priorityOf(o.Lifts()),
		})
	}
	return out
}

// isDisputed reports whether the daemon said that somebody keeps deleting routing of a
// link.
func isDisputed(v *view.View, link string) bool {
	return slices.ContainsFunc(v.Daemon.Problems, func(p routing.Problem) bool { return p.Code == routing.Disputed && p.Link == link })
}

// priorityOf is the priority of a rule in the words of iproute2.
func priorityOf(rule string) string {
	priority, _, _ := strings.Cut(rule, ":")
	return priority
}

// back says when an object comes back.
func back(until time.Time) string {
	if until.IsZero() {
		return "within 10 seconds"
	}
	return "at " + until.Local().Format(time.TimeOnly)
}

// checkWaiting finds the other rules and routes that somebody deleted and that come back later:
// those that the deletion of another rule matched, and those that somebody keeps deleting. The
// daemon reports the latter itself, one problem for each link, and names the program.
func checkWaiting(v *view.View, _ files) []routing.Problem {
	type cause struct {
		link, his string
		family    routing.Family
	}
	var causes []cause
	texts, until := map[cause][]string{}, map[cause]time.Time{}
	for _, o := range v.Objects() {
		if o.State != status.Yielding || o.YieldsToLifted() {
			continue
		}
		c := cause{o.Link, o.His, o.Family}
		if c.his == "" && isDisputed(v, c.link) {
			continue
		}
		if texts[c] == nil {
			causes = append(causes, c)
		}
		texts[c] = append(texts[c], strconv.Quote(o.Text))
		if o.Until.After(until[c]) {
			until[c] = o.Until
		}
	}
	out := make([]routing.Problem, 0, len(causes))
	for _, c := range causes {
		f := routing.Problem{
			Severity: routing.Notice, Link: c.link,
			Text: fmt.Sprintf("an `ip rule del` was probably for the %s rule %q, and deleted rules of multihomed: they come back %s, when the deletions have ended: %s", c.family, c.his, back(until[c]), listed(texts[c])),
			Fix:  "to delete a rule, name its priority: ip rule del priority " + priorityOf(c.his),
		}
		if c.his == "" {
			f.Severity = routing.Warning
			f.Text = fmt.Sprintf("another program keeps deleting %s rules or routes of multihomed; they come back %s: %s", c.family, back(until[c]), listed(texts[c]))
			f.Fix = "find out which program does it: journalctl -u multihomed names it where it is known"
		}
		out = append(out, f)
	}
	return out
}
