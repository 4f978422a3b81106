package view

import (
	"cmp"
	"io/fs"
	"slices"

	"multihomed/routing"
)

// A Finding is something that is wrong, or that explains a surprise, with what to
// do about it.
type Finding = routing.Problem

// A check looks for one thing. It reads nothing but the view and the files of
// the host.
type check struct {
	code routing.Code
	run  func(*View, files) []Finding
}

// NotInForce is the code of what says that rules or routes are missing.
const NotInForce routing.Code = "not-in-force"

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
		{"unchecked", checkUnchecked},
		{"rule-unknown", checkUnknown},
		{"rule-overtakes", checkOvertaken},
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

// Findings runs all checks. Root is the host's root directory.
func (v *View) Findings(root fs.FS) []Finding {
	f := files{root}
	var out []Finding
	for _, c := range checks() {
		for _, found := range c.run(v, f) {
			if found.Code == "" {
				found.Code = c.code
			}
			// The planner and the daemon may say some of it too.
			same := func(o Finding) bool { return o.Link == found.Link && o.Text == found.Text }
			if !slices.ContainsFunc(out, same) {
				out = append(out, found)
			}
		}
	}
	all := slices.Clone(out)
	out = slices.DeleteFunc(out, func(f Finding) bool { return isSaidWithOutcome(f, all) })
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return out
}
