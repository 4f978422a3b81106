// Package status is the model of `multihomectl status`: one value that says what multihomed does on
// a host and what is wrong, with one JSON form, and names escaped for both. Package view makes it,
// check finds the problems in it, socket carries it from the daemon, and offline reads the host
// where no daemon answers.
package status

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/routing"
)

// Schema is the version of the JSON of everything that multihomectl prints. Fields may be
// added; if one goes or changes its meaning, this number goes up.
const Schema = 1

// A Status is what `multihomectl status --json` prints. Lists are never null. Names of
// interfaces and profiles may hold any bytes: here they are escaped, see [Status.Escape].
type Status struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// OK says that everything planned is in force, that bound traffic leaves by its
	// link wherever that was checked, and that no problem is an error: the exit status
	// is 0.
	OK bool `json:"ok"`
	// By says who looked at the host: [ByDaemon] or [ByHost].
	By string `json:"by"`
	// Version is that of the program that looked.
	Version string `json:"version"`
	// Daemon is the service.
	Daemon Daemon `json:"daemon"`
	// NetworkManager is the one on the system bus.
	NetworkManager Manager `json:"network_manager"`
	// InForce counts rules, routes and interface groups of all links; what yields does not count.
	InForce Count `json:"in_force"`
	// Tables is the range that the tables of links come from.
	Tables Range `json:"tables"`
	// UplinkGroup is the interface group that uplinks are put into.
	UplinkGroup uint32 `json:"uplink_group"`
	// Unbound says by family ("ipv4") which way packets leave that are bound to no
	// link; a family without a way has no entry.
	Unbound map[string]Unbound `json:"unbound"`
	// Failover says which uplinks work; absent if no daemon says so.
	Failover *Failover `json:"failover,omitempty"`
	// Answers says on which link forwarded packets are answered; absent if no daemon says so.
	Answers *Answers `json:"answers,omitempty"`
	// Bindings are what is bound to links.
	Bindings []Binding `json:"bindings,omitempty"`
	// Counters are what the daemon has counted; absent if no daemon says so.
	Counters *Counters `json:"counters,omitempty"`
	// Unchecked counts links of which it is not known whether their traffic leaves by
	// them: they changed a moment ago, or there are too many without the daemon.
	Unchecked int `json:"unchecked_links"`
	// Links are the interfaces that have their own routing, uplinks first.
	Links []Link `json:"links"`
	// Shared are the objects that serve all links, lifts of rules of others, and
	// those that no link wants.
	Shared []Object `json:"shared"`
	// OtherRules are the rules of somebody else that have a say.
	OtherRules []OtherRule `json:"other_rules"`
	// Off says since when all of multihomed is switched off, and by whom; absent if it is not.
	Off *Off `json:"off,omitempty"`
	// OffLinks are the links that are switched off by themselves.
	OffLinks []OffLink `json:"off_links,omitempty"`
	// Others are the interfaces that are no links.
	Others []Other `json:"other_interfaces"`
	// Problems are what to know or to fix.
	Problems []Problem `json:"problems"`
	// Unread are what could not be read, in sentences.
	Unread []string `json:"unread"`
}

// Who looked at the host.
const (
	ByDaemon = "daemon"
	// ByHost: the daemon does not run or does not answer, and multihomectl read the host.
	ByHost = "multihomectl"
)

// Off is the administrator's word that something is switched off.
type Off struct {
	// Since is nil, and By empty, if that is not known.
	Since *time.Time `json:"since"`
	By    string     `json:"by"`
}

// Text continues the words "switched off".
func (o Off) Text() string {
	text := ""
	if o.Since != nil {
		text += " since " + o.Since.Local().Format(time.DateTime)
	}
	if o.By != "" {
		text += " by " + escape.Text(o.By)
	}
	return text
}

// OffLink is a link that is switched off.
type OffLink struct {
	// Interface is its name, escaped.
	Interface string `json:"interface"`
	// UUID is that of its profile, empty for one that has none.
	UUID string `json:"uuid"`
	Off
}

// Daemon is the service. Its fields beside Running come from itself.
type Daemon struct {
	// Running says that a daemon holds the lock of this host.
	Running bool `json:"running"`
	// PID is its process, Version that of its program, Started when it began.
	PID     int        `json:"pid,omitempty"`
	Version string     `json:"version,omitempty"`
	Started *time.Time `json:"started,omitempty"`
	// Ready says that a pass with complete knowledge was made.
	Ready bool `json:"ready"`
	// Waiting says what it waits for.
	Waiting string `json:"waiting,omitempty"`
	// Kept is "disabled" or "masked" where the daemon does not run and the administrator
	// keeps its service from running, so that nobody stands in for it.
	Kept string `json:"kept,omitempty"`
	// Refused says that the daemon does not run because it does not start with its configuration.
	// Hooks do nothing then, too.
	Refused bool `json:"refused,omitempty"`
	// StateDir and RuntimeDir are the directories that the daemon works in, whatever its file says
	// by now.
	StateDir   string `json:"state_dir,omitempty"`
	RuntimeDir string `json:"runtime_dir,omitempty"`
}

// Unbound is the way of packets that are bound to no link.
type Unbound struct {
	// Interface is the one that they leave by.
	Interface string `json:"interface"`
	// Table is what says so.
	Table uint32 `json:"table"`
	// Main is the interface of main's best default where failover moved the traffic to
	// another one; empty if it did not.
	Main string `json:"main,omitempty"`
	// Why says in one sentence why it moved, or why it did not although it should.
	Why string `json:"why,omitempty"`
	// Shares are the uplinks that share the traffic; fewer than two are none.
	Shares []Leg `json:"shares,omitempty"`
}

// Places of rules of somebody else.
const (
	// Ahead: it stands before the ladder and selects nothing.
	Ahead = "ahead"
	// Selects: it selects packets and keeps its say, wherever it stands.
	Selects = "selects"
	// Behind: unbound traffic follows it, bound traffic its link.
	Behind = "behind"
	// SteppedOver: the kernel numbered it; it counts as one behind the ladder.
	SteppedOver = "stepped over"
)

// OtherRule is a rule of somebody else.
type OtherRule struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Text is the rule in the words of iproute2.
	Text string `json:"text"`
	// Place is "ahead", "selects", "behind" or "stepped over".
	Place string `json:"place"`
}

// Manager is NetworkManager.
type Manager struct {
	// Running says that it has its name on the bus, Version which one it is.
	Running bool   `json:"running"`
	Version string `json:"version,omitempty"`
	// Complete says that everything about its devices is known.
	Complete bool `json:"complete"`
	// None says that this host has no NetworkManager, and needs none.
	None bool `json:"none,omitempty"`
	// Unwanted says how the administrator keeps one from running that is installed:
	// "disabled" or "masked".
	Unwanted string `json:"unwanted,omitempty"`
	// Waiting says what it has not said yet.
	Waiting string `json:"waiting,omitempty"`
	// Error says why it could not be asked.
	Error string `json:"error,omitempty"`
}

// Count is of rules, routes and interface groups; what yields does not count.
type Count struct {
	// Planned are those that should exist, Present those of them that do.
	Planned int `json:"planned"`
	Present int `json:"present"`
	// Unexpected stand and are not planned.
	Unexpected int `json:"unexpected"`
}

// Range is a range of tables, both ends included.
type Range struct {
	// First is the lowest number, Last the highest.
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// Link is one interface that has its own routing.
type Link struct {
	// Interface is its name, escaped, and Index the kernel's number of it.
	Interface string `json:"interface"`
	Index     int    `json:"index"`
	// Role is "uplink" or "local", RoleWhy says in words why. A link that is an uplink in
	// one family alone is one.
	Role    string `json:"role"`
	RoleWhy string `json:"role_why"`
	// Roles are those of the families ("ipv4"), where they differ.
	Roles map[string]FamilyRole `json:"roles,omitempty"`
	// Draining says that it is going down: its routing stays until its
	// addresses are gone. It is false while NetworkManager starts or ends, and for ten
	// seconds after it let go of the link: that says nothing of the link yet.
	Draining bool `json:"draining"`
	// Pending says that it is being brought up: it may get more addresses and a gateway,
	// and its role is not final.
	Pending bool `json:"pending"`
	// Why says in words why it is a link.
	Why string `json:"why"`
	// Profile is the name of its profile in NetworkManager, escaped.
	Profile string `json:"profile,omitempty"`
	// Type is NetworkManager's name of the kind of device.
	Type string `json:"type,omitempty"`
	// Up says that it is set up, Carrier that it has a carrier.
	Up      bool `json:"up"`
	Carrier bool `json:"carrier"`
	// Group is the interface group.
	Group uint32 `json:"group"`
	// Since is when its role or its rules changed last, as far as the daemon has been
	// running.
	Since *time.Time `json:"since,omitempty"`
	// InForce counts its objects.
	InForce Count `json:"in_force"`
	// Networks are its on-link prefixes, each with its table.
	Networks []Network `json:"networks"`
	// LeftAlone says by family ("ipv4") why it is its owner's.
	LeftAlone map[string]string `json:"left_alone"`
	// Unused are addresses that have no part in it: another host has them.
	Unused []Address `json:"unused_addresses"`
	// Objects are its rules, its routes and its interface group.
	Objects []Object `json:"objects"`
}

// RoleIn is the role in a family.
func (l Link) RoleIn(family string) string {
	if r, differs := l.Roles[family]; differs {
		return r.Role
	}
	return l.Role
}

// A FamilyRole is what a link is in one family.
type FamilyRole struct {
	// Role is "uplink" or "local", Why says in words why.
	Role string `json:"role"`
	Why  string `json:"why"`
}

// Network is one on-link prefix, or all host addresses of a link, with its table.
type Network struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Prefix is absent where HostAddresses is true: addresses that have no network
	// (/32, /128, point to point).
	Prefix        netip.Prefix `json:"prefix,omitzero"`
	HostAddresses bool         `json:"host_addresses,omitempty"`
	// Table is 0 if the network has none.
	Table uint32 `json:"table"`
	// Routes counts the routes in the table that are not among the objects, because main
	// has very many through the link, as with BGP. They count as in force.
	Routes int `json:"routes,omitempty"`
	// Addresses are those of the interface in this network.
	Addresses []Address `json:"addresses"`
	// Gateways are those of the default routes in the table, best first.
	Gateways []Gateway `json:"gateways"`
}

// Address is one address of an interface.
type Address struct {
	// Address is without the length of its prefix.
	Address netip.Addr `json:"address"`
	// Length is that of the prefix it was given with.
	Length int `json:"prefix_length"`
	// Peer is the other end of a point-to-point address.
	Peer *netip.Addr `json:"peer,omitempty"`
	// Flags are of "tentative", "duplicate", "deprecated", "temporary" and
	// "dynamic".
	Flags []string `json:"flags"`
}

// Gateway is one default route of a table.
type Gateway struct {
	// Via is absent where the default needs no next hop.
	Via *netip.Addr `json:"via,omitempty"`
}

// Object is one rule, route or interface group.
type Object struct {
	// Kind is "rule", "route" or "group".
	Kind string `json:"kind"`
	// Family is "ipv4" or "ipv6", absent for a group.
	Family string `json:"family,omitempty"`
	// State says how it is in the kernel; what yields stays away for a while because somebody deletes it.
	State State `json:"state"`
	// Text is the object in the words of iproute2.
	Text string `json:"text"`
	// Reason names why it exists.
	Reason string `json:"reason,omitempty"`
	// Lifts is the rule of somebody else that a rule of the reason "lift" leads to.
	Lifts string `json:"lifts,omitempty"`
}

// A State says how an object of ours is in the kernel.
type State string

// States of objects.
const (
	InForce State = "in force"
	Missing State = "missing"
	// Different: a route stands with other attributes.
	Different State = "different"
	// Misplaced: a rule stands behind one that it must precede.
	Misplaced State = "misplaced"
	// Yielding: somebody deleted a rule of ours in words that are also those of a
	// rule of somebody else, or deleted it too often. It stays away for a while.
	Yielding State = "yields"
	// Unexpected: it carries our mark and nobody wants it.
	Unexpected State = "unexpected"
)

// Other is an interface that is no link.
type Other struct {
	// Interface is its name, escaped, and Why says in words why it is none.
	Interface string `json:"interface"`
	Why       string `json:"why"`
}

// Problem is something to know or to fix. Its JSON has code, severity ("error",
// "warning", "notice"), link, object, text, fix, commands and since.
type Problem struct {
	routing.Problem
	// Since is when the daemon saw it first.
	Since *time.Time `json:"since,omitempty"`
}

// Tell puts problems in place of those that the status has, and escapes them.
func (s *Status) Tell(problems []routing.Problem) {
	s.Problems = make([]Problem, 0, len(problems))
	for _, p := range problems {
		s.Problems = append(s.Problems, ProblemOf(p))
	}
	s.OK = s.Sound()
}

// ProblemOf is a problem as a status has it: the name of its link is escaped as that of
// the link itself, and the rest as sentences.
func ProblemOf(p routing.Problem) Problem {
	p.Link, p.Object, p.Text, p.Fix = escape.Name(p.Link), escape.Text(p.Object), escape.Text(p.Text), escape.Text(p.Fix)
	lines := p.Commands.Lines() // Quoted words print already.
	for i := range lines {
		lines[i] = escape.Text(lines[i])
	}
	p.Commands = routing.CommandsOf(lines...)
	return Problem{Problem: p}
}

// Sound reports whether the exit status is 0.
func (s *Status) Sound() bool {
	return s.InForce.Complete() && !slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Severity == routing.Error })
}

// Complete reports whether everything is as planned.
func (c Count) Complete() bool { return c.Present == c.Planned && c.Unexpected == 0 }

// Take counts an object in a state.
func (c *Count) Take(s State) {
	switch s {
	case Unexpected:
		c.Unexpected++
	case InForce:
		c.Planned++
		c.Present++
	case Missing, Different, Misplaced:
		c.Planned++
	case Yielding:
	}
}

// Add counts what another count counts, too.
func (c *Count) Add(o Count) {
	c.Planned += o.Planned
	c.Present += o.Present
	c.Unexpected += o.Unexpected
}

// CompareLinks puts uplinks first, then goes by name as people do.
func CompareLinks(a, b Link) int {
	return cmp.Or(-cmp.Compare(a.Role, b.Role), CompareNames(a.Interface, b.Interface))
}

// CompareNames orders wan2 before wan10.
func CompareNames(a, b string) int {
	at, an := splitNumber(a)
	bt, bn := splitNumber(b)
	return cmp.Or(strings.Compare(at, bt), cmp.Compare(len(an), len(bn)), strings.Compare(an, bn))
}

func splitNumber(name string) (text, number string) {
	text = strings.TrimRight(name, "0123456789")
	return text, strings.TrimLeft(name[len(text):], "0")
}
