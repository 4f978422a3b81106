// Package doctor finds what disturbs the links of a host, and the commands that fix it. The checks of
// the status say what goes wrong; the patterns here say why, and find what no lookup shows: firewalls
// that mark or translate, parameters of the kernel, programs that do the same work.
//
// It is pure: the status and the facts of the host ([Host]) go in, findings come out. Package gather
// reads the facts, and package probe those that need packets.
package doctor

import (
	"cmp"
	"encoding/json"
	"io"
	"slices"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// A Finding is a problem with what was seen of it.
type Finding struct {
	routing.Problem
	// Evidence are the lines that were seen: a rule, a route, a parameter, a counter.
	Evidence []string `json:"evidence"`
}

// An Unlooked says what could not be looked at.
type Unlooked struct {
	// Codes are the findings that may exist nevertheless, none if that cannot be said.
	Codes []routing.Code `json:"codes"`
	// Why says in one sentence why.
	Why string `json:"why"`
}

// A Report is what the doctor found. Lists are never null. Names are escaped, as in a status.
type Report struct {
	// Schema is [status.Schema].
	Schema int `json:"schema"`
	// OK says that no finding is an error or a warning: the exit status is 0.
	OK bool `json:"ok"`
	// Complete says that everything was looked at.
	Complete bool `json:"complete"`
	// Probed says that packets were sent.
	Probed bool `json:"probed"`
	// Findings are in the order of their severity, errors first.
	Findings []Finding `json:"findings"`
	// Unlooked are what could not be looked at.
	Unlooked []Unlooked `json:"not_looked"`
}

// A pattern looks for one thing.
type pattern struct {
	code routing.Code
	run  func(*facts) []Finding
}

// patterns are in the order of their harm.
func patterns() []pattern {
	return []pattern{
		{LocalRule, checkLocalRule},
		{KernelOption, checkKernelOptions},
		{SNATAddress, checkSNAT},
		{FirewallMark, checkMarks},
		{UpstreamDead, checkUpstream},
		{MTUHole, checkMTU},
		{DuplicateAddress, checkConflicts},
		{StrictMarks, checkStrictMarks},
		{PublishedPort, checkPublished},
		{MainSource, checkMainSource},
		{SourceSpecific, checkSourceSpecific},
		{MasqueradeMissing, checkMasquerade},
		{SameMAC, checkHardware},
		{AcceptRA, checkAcceptRA},
		{NeighborTable, checkNeighbors},
		{RouteLimit6, checkRouteLimit},
		{TablesNearlyFull, checkTables},
		{MPTCPLimits, checkMPTCP},
		{LinkdownRoutes, checkLinkdown},
		{Resolver, checkResolvers},
		{CloudAgent, checkAgents},
		{RPFilter6, checkRPFilter6},
		{NexthopCompat, checkNexthops},
		{SocketOverrun, checkSockets},
	}
}

// Codes of what the doctor alone finds. Its other findings are problems of the status.
const (
	// LocalRule: no rule reads the table of local addresses.
	LocalRule routing.Code = "local-rule"
	// KernelOption: the kernel was built without something.
	KernelOption routing.Code = "kernel-option"
	// SNATAddress: packets that leave by a link get the address of another one.
	SNATAddress routing.Code = "snat-address"
	// FirewallMark: a firewall marks packets of links, and a rule leads the mark elsewhere.
	FirewallMark routing.Code = "firewall-mark"
	// UpstreamDead: the router of a link answers, and nothing behind it does.
	UpstreamDead routing.Code = "upstream-dead"
	// MTUHole: large packets vanish on the way.
	MTUHole routing.Code = "mtu-hole"
	// DuplicateAddress: another host has an address of a link.
	DuplicateAddress = routing.DuplicateAddress
	// StrictMarks: a strict reverse path filter looks up marks that lead elsewhere.
	StrictMarks routing.Code = "src-valid-mark"
	// PublishedPort: answers of a published port leave by another link.
	PublishedPort routing.Code = "published-port"
	// MainSource: main gives unbound packets the address of another link.
	MainSource routing.Code = "main-src"
	// SourceSpecific: a source-specific route hides a plain one.
	SourceSpecific routing.Code = "source-specific"
	// MasqueradeMissing: packets are masqueraded on one uplink and not on another.
	MasqueradeMissing routing.Code = "masquerade-missing"
	// SameMAC: two links have one hardware address.
	SameMAC routing.Code = "same-mac"
	// AcceptRA: the kernel ignores routers because the host forwards.
	AcceptRA routing.Code = "accept-ra"
	// NeighborTable: the table of neighbors is nearly full.
	NeighborTable routing.Code = "neighbor-table"
	// RouteLimit6: the kernel has nearly as many IPv6 routes as it may.
	RouteLimit6 routing.Code = "ipv6-max-size"
	// TablesNearlyFull: few numbers of tables are left.
	TablesNearlyFull routing.Code = "tables-nearly-full"
	// MPTCPLimits: Multipath TCP may use fewer links than there are.
	MPTCPLimits routing.Code = "mptcp-limits"
	// LinkdownRoutes: routes of a link without carrier are ignored.
	LinkdownRoutes routing.Code = "linkdown-routes"
	// Resolver: a DNS server is asked by a link that did not name it.
	Resolver routing.Code = "resolver-elsewhere"
	// CloudAgent: another program makes rules for the addresses of links.
	CloudAgent routing.Code = "cloud-agent"
	// RPFilter6: a firewall checks the sources of IPv6 packets strictly.
	RPFilter6 routing.Code = "ipv6-rpfilter"
	// NexthopCompat: routes by nexthop objects are shown without their next hops.
	NexthopCompat routing.Code = "nexthop-compat"
	// SocketOverrun: the kernel dropped messages to the daemon.
	SocketOverrun routing.Code = "socket-overrun"
)

// Codes returns the codes of all patterns, sorted.
func Codes() []routing.Code {
	all := patterns()
	out := make([]routing.Code, 0, len(all))
	for _, p := range all {
		out = append(out, p.code)
	}
	slices.Sort(out)
	return out
}

// Diagnose finds what disturbs the links: the problems of a status, with evidence and commands, and
// the patterns. What both find is one finding. The worst come first.
func Diagnose(s status.Status, h Host) Report {
	f := newFacts(s, h)
	r := Report{Schema: status.Schema, OK: true, Probed: h.Probed, Findings: []Finding{}, Unlooked: []Unlooked{}}
	for _, p := range s.Problems {
		r.Findings = append(r.Findings, f.explain(p.Problem))
	}
	for _, p := range patterns() {
		for _, found := range p.run(f) {
			found.Code = p.code
			if !f.isSaid(found) {
				r.Findings = append(r.Findings, found.escaped())
			}
		}
	}
	for i := range r.Findings {
		if r.Findings[i].Evidence == nil {
			r.Findings[i].Evidence = []string{}
		}
		r.OK = r.OK && r.Findings[i].Severity < routing.Warning
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	for _, u := range h.Unlooked {
		if u.Codes == nil {
			u.Codes = []routing.Code{}
		}
		u.Why = escape.Text(u.Why)
		r.Unlooked = append(r.Unlooked, u)
	}
	for _, why := range s.Unread {
		r.Unlooked = append(r.Unlooked, Unlooked{Codes: []routing.Code{}, Why: why})
	}
	r.Complete = len(r.Unlooked) == 0
	return r
}

// Of returns the findings with a code.
func (r Report) Of(code routing.Code) []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Code == code {
			out = append(out, f)
		}
	}
	return out
}

// escaped makes a finding printable.
func (f Finding) escaped() Finding {
	f.Problem = status.ProblemOf(f.Problem).Problem
	for i := range f.Evidence {
		f.Evidence[i] = escape.Text(f.Evidence[i])
	}
	return f
}

// WriteJSON writes it as `multihomectl doctor --json` prints it.
func (r Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}
