package inspect

import (
	"fmt"
	"strings"

	"multihomed/routing"
)

// checkDaemon looks at the service itself.
func checkDaemon(v *View, _ files) []Finding {
	switch {
	case !v.Running:
		return []Finding{{
			Severity: routing.Warning,
			Text:     "multihomed is not running: nothing follows changes of links, addresses and routes",
			Fix:      "systemctl enable --now multihomed",
		}}
	case v.Daemon.Waiting != "":
		return []Finding{{Severity: routing.Warning, Text: "multihomed waits: " + v.Daemon.Waiting}}
	default:
		return nil
	}
}

func checkManager(v *View, _ files) []Finding {
	switch {
	case v.NM.Complete:
		return nil
	case v.NM.Running:
		return []Finding{{
			Severity: routing.Notice,
			Text:     "NetworkManager is not ready (" + v.NM.Reason + "): what is shown may be incomplete",
		}}
	default:
		return []Finding{{
			Severity: routing.Warning,
			Text:     "NetworkManager does not answer: the routing of its links stands as it is, and new links get none",
			Fix:      "systemctl start NetworkManager",
		}}
	}
}

// checkInForce says why something is missing, as far as can be told.
func checkInForce(v *View, _ files) []Finding {
	absent, extra, planned := 0, 0, 0
	for _, o := range v.Objects() {
		switch o.State {
		case InForce:
			planned++
		case Unexpected:
			extra++
		case Missing, Different, Misplaced:
			absent++
			planned++
		}
	}
	if absent == 0 && extra == 0 {
		return nil
	}
	var what []string
	if absent > 0 {
		what = append(what, fmt.Sprintf("%d of %d rules and routes are not in force", absent, planned))
	}
	if extra > 0 {
		what = append(what, fmt.Sprintf("%d of multihomed stand and belong to no link", extra))
	}
	f := Finding{Severity: routing.Error, Text: strings.Join(what, ", ")}
	switch {
	case !v.Running:
		f.Text += ", and multihomed is not running to mend it"
		f.Fix = "systemctl enable --now multihomed"
	case !v.Daemon.Ready:
		f.Text += " yet: multihomed has not finished its first pass"
	default:
		f.Text += " although multihomed is running: the kernel refused it, or somebody else keeps taking it away"
		f.Fix = "look for the reason in journalctl -u multihomed"
	}
	return []Finding{f}
}

// checkTables finds networks without a lease.
func checkTables(v *View, _ files) []Finding {
	var out []Finding
	for plan := range v.Planner.Links() {
		for _, k := range plan.Keys {
			if _, has := plan.Link.Tables[k]; has {
				continue
			}
			f := Finding{
				Severity: routing.Error, Link: plan.Link.Name,
				// In the planner's words, so that it is not said twice.
				Text: fmt.Sprintf("no routing table for %s: its packets follow the main table", k.Prefix),
			}
			switch {
			case !v.Running:
				f.Fix = "start multihomed, which leases one: systemctl enable --now multihomed"
			case v.LeasesUnread != "":
				f.Fix = "look again as root, who may read the leases: sudo multihomectl status"
			default:
				f.Fix = "see what the daemon says below and in journalctl -u multihomed"
			}
			out = append(out, f)
		}
	}
	return out
}

// checkDevices passes on what NetworkManager said and was not understood.
func checkDevices(v *View, _ files) []Finding {
	var out []Finding
	for _, name := range v.Interfaces() {
		for _, text := range v.Claims[name].Problems {
			out = append(out, Finding{Severity: routing.Warning, Link: name, Text: "NetworkManager says something unknown: " + text})
		}
	}
	return out
}

// checkPlan passes on what the planner found.
func checkPlan(v *View, _ files) []Finding {
	var out []Finding
	for plan := range v.Planner.Links() {
		for _, p := range plan.Problems {
			out = append(out, Finding{Severity: p.Severity, Link: p.Link, Text: p.Text})
		}
	}
	return out
}

// checkDaemonProblems passes on what only the daemon can know: what the kernel
// refused, which lease could not be had.
func checkDaemonProblems(v *View, _ files) []Finding {
	var out []Finding
	for _, p := range v.Daemon.Problems {
		text, fix, _ := strings.Cut(p.Text, "; to fix: ")
		f := Finding{Severity: routing.Notice, Link: p.Link, Text: text, Fix: fix}
		for _, s := range []routing.Severity{routing.Warning, routing.Error} {
			if p.Severity == s.String() {
				f.Severity = s
			}
		}
		out = append(out, f)
	}
	return out
}
