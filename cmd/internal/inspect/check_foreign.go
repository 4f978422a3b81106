package inspect

import (
	"fmt"
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

// checkYielding finds lifts that stay away because somebody deleted them in the words
// of his own rule.
func checkYielding(v *View, _ files) []Finding {
	var out []Finding
	for _, o := range v.Objects() {
		if !o.yieldsToLifted() {
			continue
		}
		out = append(out, Finding{
			Severity: routing.Notice, Object: o.Text,
			Text: fmt.Sprintf("somebody deleted %s rule %q of multihomed in words that are also those of %q, which is left: it comes back %s unless that rule is deleted too", o.Family, o.Text, o.Lifts(), back(o.Until)),
			Fix:  "delete the rule that is left by its priority too, or wait",
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
