package explain

import (
	"encoding/json"
	"io"
	"net/netip"

	"multihomed/internal/status"
)

// Outcomes of an explanation.
const (
	// Sent: the packet leaves by an interface.
	Sent = "sent"
	// Local: it is for this host.
	Local = "local"
	// Refused: a rule or a route says no, or the check of the source does.
	Refused = "refused"
	// NoRoute: no rule has an answer.
	NoRoute = "no route"
	// OnLink: no rule has an answer, and the kernel takes the destination for a neighbour on
	// the device that the socket is bound to.
	OnLink = "assumed on-link"
)

// Results of rules.
const (
	// No: the rule is not for this packet.
	No = "no"
	// NotUnderstood: it has attributes that this program does not know.
	NotUnderstood = "not understood"
	// Jumps: the lookup goes on at the rule that it names.
	Jumps = "goto"
	// JumpsNowhere: the rule that it names does not exist.
	JumpsNowhere = "goto nowhere"
	// Nothing: it says that nothing happens (nop).
	Nothing = "nothing"
	// Empty: its table has no route to the destination.
	Empty = "no route"
	// Thrown: its table has a throw route.
	Thrown = "throw"
	// Suppressed: its table has a route, which a suppressor of the rule rejects.
	Suppressed = "suppressed"
	// Outranked: main has a longer route, and counts before any rule was added or deleted.
	Outranked = "outranked"
	// Answers: this is the answer.
	Answers = "answer"
	// SteppedOver: a goto leads over it.
	SteppedOver = "stepped over"
	// NotAsked: the answer came before.
	NotAsked = "not asked"
)

// Makers of rules.
const (
	ByMultihomed = "multihomed"
	// ByKernel: the three rules that every host begins with.
	ByKernel = "kernel"
	ByOthers = "other"
)

// Purposes of lookups.
const (
	// ForRoute: the packet, as it was asked for.
	ForRoute = "route"
	// ForSource: the second lookup of connect(2), with the address that the first one chose.
	ForSource = "source"
	// ForReverse: the check of the source of what comes in.
	ForReverse = "reverse path"
)

// A Document is an explanation: what `multihomectl explain --json` prints. Lists are never null.
// Names of interfaces and profiles are escaped (package escape).
type Document struct {
	// Schema is [status.Schema].
	Schema int `json:"schema"`
	// Question is the packet that was asked for.
	Question Question `json:"question"`
	// Summary is the answer in one sentence.
	Summary string `json:"summary"`
	// Outcome is what becomes of the packet; "assumed on-link" says that no rule has an answer, and the kernel takes the
	// destination for a neighbour on the device that the socket is bound to.
	Outcome string `json:"outcome"`
	// Interface, Via and Source are of the packet that leaves; of several legs, those that the
	// kernel chose for its own question.
	Interface string      `json:"interface,omitempty"`
	Via       *netip.Addr `json:"via,omitempty"`
	Source    *netip.Addr `json:"source,omitempty"`
	// Asked says that the kernel was asked, Agrees that it says what the simulation says.
	Asked  bool `json:"kernel_asked"`
	Agrees bool `json:"kernel_agrees"`
	// Complete is false if the answer rests on something that is not known.
	Complete bool `json:"complete"`
	// Lookups are the walks through the rules, in their order.
	Lookups []Lookup `json:"lookups"`
	// MayDiffer is what the simulation does not know and this packet may depend on.
	MayDiffer []Caveat `json:"may_differ"`
	// WhatIf are the changes that were assumed, Assumptions what they were taken to mean.
	WhatIf      []string `json:"what_if"`
	Assumptions []string `json:"assumptions"`
	// Snapshot says when the facts were read, as in RFC 3339, if they come from a file.
	Snapshot string `json:"snapshot,omitempty"`
	// Annotations say who named the rules: "daemon", "multihomectl", or empty.
	Annotations string `json:"annotations"`
	// Unread are what could not be read, in sentences.
	Unread []string `json:"unread"`
}

// A Question is what was asked.
type Question struct {
	// Destination is the address that the packet is for.
	Destination netip.Addr `json:"destination"`
	// From is absent for a socket that is bound to no address.
	From *netip.Addr `json:"from,omitempty"`
	// IIF is the interface that a forwarded packet comes in by, OIF the one that the socket is bound to.
	IIF string `json:"iif,omitempty"`
	OIF string `json:"oif,omitempty"`
	// UID is the user who sends.
	UID uint32 `json:"uid"`
	// User is the name of the user, empty if it is not known.
	User string `json:"user,omitempty"`
	// Mark is that of the packet (fwmark), 0 for none.
	Mark uint32 `json:"mark"`
	// Protocol is a number of IANA's, 0 if it was not given.
	Protocol uint8 `json:"protocol"`
	// SourcePort and DestinationPort are 0 if they were not given.
	SourcePort      uint16 `json:"sport"`
	DestinationPort uint16 `json:"dport"`
	// TOS is the type of service or the traffic class.
	TOS uint8 `json:"tos"`
	// Text is the question in words.
	Text string `json:"text"`
}

// A Lookup is one walk through the rules.
type Lookup struct {
	// Purpose is "route" for the packet as it was asked for, "source" for the second lookup of connect(2) with the address
	// that the first one chose, "reverse path" for the check of the source of what comes in.
	Purpose string `json:"purpose"`
	// Text says what is looked up.
	Text string `json:"text"`
	// Outcome is that of this walk.
	Outcome string `json:"outcome"`
	// Error is what the sender gets where the packet is refused.
	Error string `json:"error,omitempty"`
	// Objection is why the kernel refuses or drops the packet whatever the rules say.
	Objection string `json:"objection,omitempty"`
	// Table is the one that has the answer, absent if none has.
	Table uint32 `json:"table,omitempty"`
	// Routes are the ways that the packet may take.
	Routes []string `json:"routes"`
	// Rules are all rules of the family, in the order of the kernel.
	Rules []Rule `json:"rules"`
	// Kernel is what the kernel itself says, absent if it was not asked.
	Kernel *Kernel `json:"kernel,omitempty"`
}

// A Rule is one rule on the way.
type Rule struct {
	// Priority is the kernel's: lower ones are asked first.
	Priority uint32 `json:"priority"`
	// Text is the rule in the words of ip-rule(8), without its priority.
	Text string `json:"text"`
	// Result is what came of it.
	Result string `json:"result"`
	// Why says why it matches or does not; Selector is the first one that does not match.
	Why      string `json:"why"`
	Selector string `json:"selector,omitempty"`
	// Table is what was asked, Route what it had, Rejected what keeps that from being the
	// answer: a suppressor of the rule, or a reason in words.
	Table    uint32 `json:"table,omitempty"`
	Route    string `json:"route,omitempty"`
	Rejected string `json:"rejected,omitempty"`
	// By is "multihomed", "kernel" or "other"; Maker names another program that is known to
	// make such rules.
	By    string `json:"by"`
	Maker string `json:"maker,omitempty"`
	// Reason names why a rule of multihomed exists, Sentence says it; Link, Profile and Lifts
	// are what it is for.
	Reason   string `json:"reason,omitempty"`
	Sentence string `json:"sentence,omitempty"`
	Link     string `json:"link,omitempty"`
	Profile  string `json:"profile,omitempty"`
	Lifts    string `json:"lifts,omitempty"`
	// Binding is what the rule binds to the link, in words.
	Binding string `json:"binding,omitempty"`
}

// Kernel is the kernel's answer.
type Kernel struct {
	// Error is how it refuses, empty if it has a route.
	Error string `json:"error,omitempty"`
	// Table has the Route that it found, in the words of ip-route(8).
	Table uint32 `json:"table,omitempty"`
	Route string `json:"route,omitempty"`
	// Sent is the interface that it sends by, Source the address that it chose.
	Sent   string `json:"sent,omitempty"`
	Source string `json:"source,omitempty"`
	// PrefersDevice says that this is the answer for a packet that prefers the device. The kernel cannot be
	// asked for one that is bound to it, and the lookup has another answer for that.
	PrefersDevice bool `json:"prefers_device,omitempty"`
	// Difference says where the simulation does not agree, empty if it does.
	Difference string `json:"difference,omitempty"`
}

// A Caveat is something that may lead to another answer.
type Caveat struct {
	// Code names it, for programs; more may be added.
	Code string `json:"code"`
	// Text says it in a sentence.
	Text string `json:"text"`
}

// Codes of caveats.
const (
	CaveatHash         = "hash"
	CaveatReachability = "reachability"
	CaveatMark         = "mark"
	CaveatUser         = "user"
	CaveatProtocol     = "protocol"
	CaveatPort         = "port"
	CaveatSource       = "source"
	CaveatSocket       = "socket"
	CaveatGroup        = "group"
	CaveatPartial      = "partial"
	CaveatUnknownRule  = "unknown-rule"
	CaveatAnswers      = "answers"
	CaveatUnasked      = "not-asked"
	// CaveatBeyond is what routing never knows: netfilter, XFRM, BPF.
	CaveatBeyond = "beyond-routing"
)

// newDocument has no nil list.
func newDocument() Document {
	return Document{
		Schema: status.Schema, Complete: true, Agrees: true, Lookups: []Lookup{}, MayDiffer: []Caveat{}, WhatIf: []string{},
		Assumptions: []string{}, Unread: []string{},
	}
}

// WriteJSON writes it as `multihomectl explain --json` prints it.
func (d Document) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(d)
}
