// Package check finds what is wrong with a host, or explains a surprise. [Outcomes] tries where
// the traffic of each link goes, and [Problems] runs every check on the view: a check is a
// function of the view and of files of the host, with a code of its own. It changes nothing.
package check

import (
	"cmp"
	"io/fs"
	"slices"

	"multihomed/internal/shell"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/answers"
)

// A check looks for one thing. It reads nothing but the view and the files of
// the host.
type check struct {
	code routing.Code
	run  func(*view.View, files) []routing.Problem
}

// NotInForce says that rules or routes are missing, or unexpected.
const NotInForce routing.Code = "not-in-force"

// WithoutDaemon is for how many links outcomes are checked without the daemon, where they are
// not named.
const WithoutDaemon = 50

// checks are in the order of what has to be fixed first.
func checks() []check {
	return []check{
		{"switched-off", checkOff},
		{"daemon", checkDaemon},
		{"network-manager", checkManager},
		{NotInForce, checkInForce},
		{"no-table", checkTables},
		{"duplicate-address", checkDuplicates},
		{routing.OwnGateway, checkGateways},
		{"main-rule", checkMainRule},
		{"table-in-use", checkTableInUse},
		{"manager", checkOwners},
		{"networkd", checkNetworkd},
		{"dispatcher", checkDispatcher},
		{"rp-filter", checkReversePath},
		{"arp", checkARP},
		{"astray", checkOutcomes},
		{outcome.SharedAddress, checkShared},
		{AllDead, checkAllDead},
		{UplinkDead, checkUplinks},
		{NeverAnswered, checkNeverAnswered},
		{DeadServers, checkResolvConf},
		{FailoverBlocked, checkBlocked},
		{NotWatched, checkWatched},
		{"unchecked", checkUnchecked},
		{"rule-unknown", checkUnknown},
		{"rule-overtakes", checkOvertaken},
		{"goto-resolved", checkGotos},
		{"lift-yields", checkYielding},
		{"put-back-later", checkWaiting},
		{"routed-dns", checkRoutedDNS},
		{"no-default", checkDefaults},
		{"", checkDevices},
		{"", checkPlan},
		{"", checkDaemonProblems},
		{routing.MatchesNothing, checkEntries},
	}
}

// Codes returns the codes of all checks, sorted. Some checks pass on what others found
// and have none.
func Codes() []routing.Code {
	var out []routing.Code
	for _, c := range checks() {
		if c.code != "" {
			out = append(out, c.code)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// commandsOf fix what the planner and the daemon find, who know no commands.
func commandsOf(p routing.Problem) routing.Commands {
	switch {
	case p.Link == "":
		return ""
	case p.Code == routing.ForeignGroup:
		return routing.CommandsOf(shell.Command("ip", "link", "set", "dev", p.Link, "group", "default"))
	case p.Code == answers.SourceChecked:
		return routing.CommandsOf(shell.Command("sysctl", "-w", SysctlOf("net.ipv4.conf", p.Link, "rp_filter")+"=2"))
	default:
		return ""
	}
}

// Problems runs all checks on a host and returns what is wrong or explains a surprise, the worst
// first. Root is the host's root directory.
func Problems(v *view.View, root fs.FS) []routing.Problem {
	f := files{root}
	var out []routing.Problem
	for _, c := range checks() {
		for _, found := range c.run(v, f) {
			if found.Code == "" {
				found.Code = c.code
			}
			if found.Commands == "" {
				found.Commands = commandsOf(found)
			}
			// The planner and the daemon may report some of them too.
			same := func(o routing.Problem) bool { return o.Link == found.Link && o.Text == found.Text }
			if !slices.ContainsFunc(out, same) {
				out = append(out, found)
			}
		}
	}
	all := slices.Clone(out)
	out = slices.DeleteFunc(out, func(p routing.Problem) bool { return isSaidWithOutcome(p, all) })
	slices.SortStableFunc(out, func(a, b routing.Problem) int { return cmp.Compare(b.Severity, a.Severity) })
	return out
}
