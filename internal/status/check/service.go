package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"multihomed/internal/status"
	"multihomed/internal/status/view"
	"multihomed/internal/unitfile"
	"multihomed/routing"
)

// removeAll is the other way out, for an administrator who does not want the daemon.
const removeAll = "; or remove what stands: multihomectl off"

// asleep says that nobody runs, and how to change that. Hooks do the work of a service that is
// stopped or has failed, but not of one that is disabled or masked: its routing may be unwanted.
func asleep(v *view.View) (text, fix string) {
	fix = cmp.Or(v.Start, unitfile.Enable)
	if v.Refused() {
		fix = v.Fault.Problem().Fix
	}
	switch {
	case v.Unit.Unwanted():
		return unitfile.Service + " is " + v.Unit.String(), fix
	case v.Refused():
		return "multihomed does not start with its configuration", fix
	default:
		return "multihomed is not running", fix
	}
}

// checkDaemon looks at the service itself.
func checkDaemon(v *view.View, _ files) []routing.Problem {
	switch {
	case v.Off.HostOff():
		return nil // It has nothing to do.
	case v.Silent:
		return []routing.Problem{{
			Severity: routing.Error, Object: "multihomed.service",
			Text: fmt.Sprintf("multihomed%s does not answer, so changes of links, addresses and routes may be missed; this status was read from the kernel", processOf(v.Daemon.PID)),
			Fix:  unitfile.Restart, Commands: unitfile.Restart,
		}}
	case !v.Running && outstandingOf(v).none():
		f := routing.Problem{Severity: routing.Warning}
		f.Text, f.Fix = asleep(v)
		switch {
		case v.Unit.Unwanted():
			f.Text += ": neither multihomed nor its hooks follow changes of links, addresses and routes, and what stands stays"
			f.Fix += removeAll
		case v.Refused():
			f.Text += ": neither it nor its hooks give links their routing"
		default:
			f.Commands = routing.CommandsOf(f.Fix)
			f.Text += ": its hooks follow links that come, go or get another lease, and nobody follows other changes of addresses, routes and rules"
		}
		return []routing.Problem{f}
	default:
		return nil
	}
}

func processOf(pid int) string {
	if pid == 0 {
		return "" // This user may not see which it is.
	}
	return fmt.Sprintf(" (process %d)", pid)
}

const startManager = "systemctl start NetworkManager"

// checkManager says that it is not known who the links are. The daemon gives a manager
// that starts some time, and says itself when that is over.
func checkManager(v *view.View, f files) []routing.Problem {
	isSaid := slices.ContainsFunc(v.Daemon.Problems, func(p routing.Problem) bool { return p.Code == routing.WaitsForOwners })
	switch {
	case v.Complete(), isSaid:
		return nil
	case v.ByDaemon:
		return []routing.Problem{{
			Severity: routing.Notice,
			Text:     "multihomed is waiting: " + cmp.Or(v.Daemon.Waiting, v.NM.Reason, "NetworkManager is not running") + "; existing routing is kept",
		}}
	case v.NM.Running:
		return []routing.Problem{{
			Severity: routing.Notice,
			Text:     "NetworkManager is not ready (" + v.NM.Reason + "): this status may be incomplete",
		}}
	case v.ManagerUnread != "":
		return []routing.Problem{{
			Severity: routing.Warning,
			Text:     "NetworkManager cannot be asked, so only links that already have rules are shown: " + v.ManagerUnread,
		}}
	case networkdOwnsAny(v, f):
		return nil // It is not needed here; who manages what says checkOwners.
	default:
		return []routing.Problem{{
			Severity: routing.Warning,
			Text:     "NetworkManager is not running: the routing of its links is kept, and its new links get none",
			Fix:      startManager, Commands: startManager,
		}}
	}
}

// plural puts a number before a phrase.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// outstanding counts what keeps the host from being as planned.
type outstanding struct {
	status.Count
	// bare are networks without a table, for which nothing can be planned.
	bare int
}

// absent counts what is planned and not there.
func (o outstanding) absent() int { return o.Planned - o.Present }

func (o outstanding) none() bool { return o.Complete() && o.bare == 0 }

func outstandingOf(v *view.View) outstanding {
	var out outstanding
	for _, o := range v.Objects() {
		out.Take(o.State)
	}
	for plan := range v.Planner.Links() {
		out.bare += len(plan.Keys) - len(plan.Link.Tables)
	}
	return out
}

// checkInForce says why something is missing, as far as can be told.
func checkInForce(v *view.View, _ files) []routing.Problem {
	o := outstandingOf(v)
	if o.none() || o.absent() == 0 && o.Unexpected == 0 && v.Running {
		return nil
	}
	var what []string
	switch {
	case o.absent()+o.bare > 0 && o.Planned == o.absent():
		what = append(what, "no rule or route of it is in force: all traffic follows the main table")
	case o.absent() > 0:
		what = append(what, fmt.Sprintf("%d of %d rules and routes are not in force", o.absent(), o.Planned))
	case o.bare > 0:
		what = append(what, plural(o.bare, "network has no table", "networks have no table"))
	}
	if o.Unexpected > 0 {
		what = append(what, plural(o.Unexpected, "rule or route of multihomed belongs to no link", "rules and routes of multihomed belong to no link"))
	}
	f := routing.Problem{Severity: routing.Error, Text: strings.Join(what, ", and ")}
	switch {
	case v.Off.HostOff():
		f.Text = "multihomed is switched off, and " + f.Text
		f.Fix = "multihomectl off"
	case !v.Running:
		var why string
		if why, f.Fix = asleep(v); v.Unit.Unwanted() && o.Planned > o.absent() {
			f.Fix += removeAll
		}
		f.Text = why + ", and " + f.Text
	case len(v.Contested) > 0 && len(v.Contested) == o.absent():
		f.Object = v.Contested[0].String()
		f.Text += ": another program keeps deleting them, for example " + v.Contested[0].String() + "; multihomed restores them, with pauses"
		f.Fix = "find out which program does it: ip monitor rule route label"
	case !v.Daemon.Ready && !v.Silent:
		f.Text += ": multihomed has just started and is not done yet"
	default:
		f.Text += " although multihomed is running"
		f.Fix = "look for the reason: journalctl -u multihomed"
	}
	return []routing.Problem{f}
}

// checkTables finds networks without a lease, and says why.
func checkTables(v *view.View, _ files) []routing.Problem {
	if !v.Running {
		// They get theirs when it starts.
		return nil
	}
	var out []routing.Problem
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
		f := routing.Problem{
			Severity: routing.Error, Link: plan.Link.Name,
			Text: "no routing table for " + strings.Join(bare, " and ") + ": packets from there follow the main table",
		}
		if v.LeasesUnread != "" {
			f.Fix = "look again as root, who may read the leases: sudo multihomectl status"
		} else {
			f.Fix = "look for the reason: journalctl -u multihomed"
		}
		out = append(out, f)
	}
	return out
}

// checkDevices passes on what NetworkManager said and was not understood.
func checkDevices(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, name := range v.Interfaces() {
		for _, text := range v.Claims[name].Problems {
			out = append(out, routing.Problem{Code: routing.NotUnderstood, Severity: routing.Warning, Link: name, Text: "NetworkManager: " + text})
		}
	}
	return out
}

// checkPlan passes on what the planner found.
func checkPlan(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
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
func checkDaemonProblems(v *view.View, _ files) []routing.Problem {
	out := slices.Clone(v.Daemon.Problems)
	for i := range out {
		if p := &out[i]; p.Code == routing.WaitsForOwners && p.Fix == "" && !v.NM.Running {
			p.Fix, p.Commands = startManager, startManager
		}
	}
	return out
}
