package inspect

import (
	"fmt"
	"slices"
	"strings"

	"multihomed/routing"
)

// startDaemon is what mends most of it.
const startDaemon = "systemctl enable --now multihomed"

// checkDaemon looks at the service itself.
func checkDaemon(v *View, _ files) []Finding {
	switch {
	case v.Off.HostOff():
		return nil // It has nothing to do.
	case v.Silent:
		return []Finding{{
			Severity: routing.Error, Object: "multihomed.service",
			Text: fmt.Sprintf("multihomed is running (process %d) and does not answer: nothing follows changes of links, addresses and routes; what is shown was read from the host", v.Daemon.PID),
			Fix:  "systemctl restart multihomed",
		}}
	case !v.Running && v.outstanding().none():
		return []Finding{{
			Severity: routing.Warning,
			Text:     "multihomed is not running: nothing follows changes of links, addresses and routes",
			Fix:      startDaemon,
		}}
	case v.Running && v.Daemon.Waiting != "":
		return []Finding{{Severity: routing.Warning, Text: "multihomed waits: " + v.Daemon.Waiting}}
	default:
		return nil
	}
}

func checkManager(v *View, f files) []Finding {
	switch {
	case v.Complete():
		return nil
	case v.NM.Running:
		return []Finding{{
			Severity: routing.Notice,
			Text:     "NetworkManager is not ready (" + v.NM.Reason + "): what is shown may be incomplete",
		}}
	case v.ManagerUnread != "":
		return []Finding{{
			Severity: routing.Warning,
			Text:     "NetworkManager cannot be asked, so that only links whose routing stands are known: " + v.ManagerUnread,
		}}
	case v.networkdOwnsAny(f):
		return nil // It is not needed here; who manages what says checkOwners.
	default:
		return []Finding{{
			Severity: routing.Warning,
			Text:     "NetworkManager is not running: the routing of its links stands as it is, and new links get none",
			Fix:      "systemctl start NetworkManager",
		}}
	}
}

// outstanding is what keeps the host from being as planned.
type outstanding struct {
	// planned objects are there or absent; extra ones are not planned.
	planned, absent, extra int
	// bare are networks without a table, for which nothing can be planned.
	bare int
}

func (o outstanding) none() bool { return o.absent == 0 && o.extra == 0 && o.bare == 0 }

func (v *View) outstanding() outstanding {
	var out outstanding
	for _, o := range v.Objects() {
		switch o.State {
		case InForce:
			out.planned++
		case Unexpected:
			out.extra++
		case Yielding:
		case Missing, Different, Misplaced:
			out.absent++
			out.planned++
		}
	}
	for plan := range v.Planner.Links() {
		out.bare += len(plan.Keys) - len(plan.Link.Tables)
	}
	return out
}

// checkInForce says why something is missing, as far as can be told.
func checkInForce(v *View, _ files) []Finding {
	o := v.outstanding()
	if o.none() || o.absent == 0 && o.extra == 0 && v.Running {
		return nil
	}
	var what []string
	switch {
	case o.absent+o.bare > 0 && o.planned == o.absent:
		what = append(what, "nothing is in force: all traffic follows the main table")
	case o.absent > 0:
		what = append(what, fmt.Sprintf("%d of %d rules and routes are not in force", o.absent, o.planned))
	case o.bare > 0:
		what = append(what, fmt.Sprintf("%d networks have no table", o.bare))
	}
	if o.extra > 0 {
		what = append(what, fmt.Sprintf("%d of multihomed's rules and routes belong to no link", o.extra))
	}
	f := Finding{Severity: routing.Error, Text: strings.Join(what, ", and ")}
	switch {
	case v.Off.HostOff():
		f.Text = "multihomed is switched off, and " + f.Text
		f.Fix = "multihomectl off"
	case !v.Running:
		f.Text = "multihomed is not running, and " + f.Text
		f.Fix = startDaemon
	case len(v.Contested) > 0 && len(v.Contested) == o.absent:
		f.Object = v.Contested[0].String()
		f.Text += ": somebody else keeps taking them away, " + v.Contested[0].String() + " for one; multihomed puts them back, but does not fight about it"
		f.Fix = "find out who does it: ip monitor rule route label"
	case !v.Daemon.Ready && !v.Silent:
		f.Text += "; multihomed has not finished its first pass yet"
	default:
		f.Text += " although multihomed is running"
		f.Fix = "look for the reason in journalctl -u multihomed"
	}
	return []Finding{f}
}

// checkTables finds networks without a lease, and says why.
func checkTables(v *View, _ files) []Finding {
	if !v.Running {
		// They get theirs when it starts.
		return nil
	}
	var out []Finding
	for plan := range v.Planner.Links() {
		var bare []string
		for _, k := range plan.Keys {
			if _, has := plan.Link.Tables[k]; !has {
				bare = append(bare, k.Network())
			}
		}
		said := func(p routing.Problem) bool { return p.Code == routing.NoTable && p.Link == plan.Link.Name }
		if len(bare) == 0 || slices.ContainsFunc(v.Daemon.Problems, said) {
			continue // The daemon knows why.
		}
		f := Finding{
			Severity: routing.Error, Link: plan.Link.Name,
			Text: "no routing table for " + strings.Join(bare, " and ") + ": what is sent from there follows the main table",
		}
		if v.LeasesUnread != "" {
			f.Fix = "look again as root, who may read the leases: sudo multihomectl status"
		} else {
			f.Fix = "look for the reason in journalctl -u multihomed"
		}
		out = append(out, f)
	}
	return out
}

// checkDevices passes on what NetworkManager said and was not understood.
func checkDevices(v *View, _ files) []Finding {
	var out []Finding
	for _, name := range v.Interfaces() {
		for _, text := range v.Claims[name].Problems {
			out = append(out, Finding{Code: routing.NotUnderstood, Severity: routing.Warning, Link: name, Text: "NetworkManager: " + text})
		}
	}
	return out
}

// checkPlan passes on what the planner found.
func checkPlan(v *View, _ files) []Finding {
	var out []Finding
	for plan := range v.Planner.Links() {
		for _, p := range plan.Problems {
			switch p.Code {
			case routing.NoTable, routing.DuplicateAddress:
				// A check of its own knows more.
			case routing.LeftAlone:
				// Its owner's will, which is shown with the link.
			default:
				out = append(out, p)
			}
		}
	}
	return out
}

// checkDaemonProblems passes on what only the daemon can know: what the kernel
// refused, which lease could not be had.
func checkDaemonProblems(v *View, _ files) []Finding {
	return slices.Clone(v.Daemon.Problems)
}
