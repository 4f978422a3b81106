package inspect

import (
	"fmt"

	"multihomed/routing"
)

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

// checkYielding finds lifts that stay away because somebody deleted them in the words
// of his own rule.
func checkYielding(v *View, _ files) []Finding {
	var out []Finding
	for _, o := range v.Objects() {
		if o.State != Yielding {
			continue
		}
		if o.Lifts() == "" {
			out = append(out, Finding{
				Severity: routing.Notice, Link: o.Link, Object: o.Text,
				Text: fmt.Sprintf("somebody deleted %s rule %q of multihomed in words that are also those of a rule of his own: it comes back within a second", o.Family, o.Text),
				Fix:  "delete that rule by its priority too, or wait",
			})
			continue
		}
		out = append(out, Finding{
			Severity: routing.Notice, Object: o.Text,
			Text: fmt.Sprintf("somebody deleted %s rule %q of multihomed in words that are also those of %q, which is left: it comes back within 10 seconds unless that rule is deleted too", o.Family, o.Text, o.Lifts()),
			Fix:  "delete the rule that is left by its priority too, or wait",
		})
	}
	return out
}
