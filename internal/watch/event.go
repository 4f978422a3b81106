package watch

import (
	"fmt"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/internal/status"
)

// A Kind says what changed. Kinds are stable.
type Kind string

// Kinds of events.
const (
	// Watching is the first event: it says what there is.
	Watching Kind = "watching"
	// Lost says that changes were not seen.
	Lost Kind = "changes-lost"

	InterfaceAdded   Kind = "interface-added"
	InterfaceRemoved Kind = "interface-removed"
	InterfaceChanged Kind = "interface-changed"
	AddressAdded     Kind = "address-added"
	AddressRemoved   Kind = "address-removed"
	AddressChanged   Kind = "address-changed"
	RouteAdded       Kind = "route-added"
	RouteReplaced    Kind = "route-replaced"
	RouteRemoved     Kind = "route-removed"
	RuleAdded        Kind = "rule-added"
	RuleRemoved      Kind = "rule-removed"

	LinkAdded      Kind = "link-added"
	LinkRemoved    Kind = "link-removed"
	LinkChanged    Kind = "link-changed"
	RoleChanged    Kind = "role-changed"
	GatewayAdded   Kind = "gateway-added"
	GatewayRemoved Kind = "gateway-removed"
	HealthChanged  Kind = "health-changed"
	DefaultMoved   Kind = "default-route-moved"
	ProblemFound   Kind = "problem"
	ProblemFixed   Kind = "problem-fixed"
	BindingChanged Kind = "binding-changed"
	AnswersChanged Kind = "answers-changed"
	Switched       Kind = "switched"
	ServiceChanged Kind = "service-changed"
)

// Kinds returns all of them, for the manual.
func Kinds() []Kind {
	return []Kind{
		Watching, Lost, InterfaceAdded, InterfaceRemoved, InterfaceChanged, AddressAdded, AddressRemoved, AddressChanged,
		RouteAdded, RouteReplaced, RouteRemoved, RuleAdded, RuleRemoved, LinkAdded, LinkRemoved, LinkChanged, RoleChanged,
		GatewayAdded, GatewayRemoved, HealthChanged, DefaultMoved, ProblemFound, ProblemFixed, BindingChanged, AnswersChanged,
		Switched, ServiceChanged,
	}
}

// A Party is who changes things on a host.
type Party string

// Parties. Other is a process that is none of the first two.
const (
	Multihomed     Party = "multihomed"
	NetworkManager Party = "networkmanager"
	Kernel         Party = "kernel"
	Other          Party = "other"
	Unknown        Party = "unknown"
)

// An Author is who made a change. Authors are comparable.
type Author struct {
	// Party is who made the change.
	Party Party `json:"who"`
	// Process is the command name of a process (proc_pid_comm(5)), escaped, and PID its number; empty
	// and 0 if they are not known.
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"`
	// Probable says that circumstances tell it, and no socket that was found.
	Probable bool `json:"probable,omitempty"`
}

// String names the author in a sentence.
func (a Author) String() string {
	name := ""
	switch a.Party {
	case Multihomed:
		name = "multihomed"
	case NetworkManager:
		name = "NetworkManager"
	case Kernel:
		name = "kernel"
	case Other:
		name = fmt.Sprintf("%s (process %d)", a.Process, a.PID)
	case Unknown:
		if a.PID != 0 {
			return fmt.Sprintf("not known, process %d has ended", a.PID)
		}
		return "not known"
	}
	if a.Probable {
		name = "probably " + name
	}
	return name
}

// An Event is one change. Its texts are escaped.
type Event struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Time is when it was seen.
	Time time.Time `json:"time"`
	// Kind says what changed.
	Kind Kind `json:"event"`
	// Link is the interface that it is about, empty for the host.
	Link string `json:"link,omitempty"`
	// Family is "ipv4" or "ipv6", empty if it is about none or both.
	Family string `json:"family,omitempty"`
	// Object is what changed: an address, a gateway, a rule or a route in the words of iproute2, the
	// code of a problem.
	Object string `json:"object,omitempty"`
	// Text says what changed, Why says why, empty if that is not known. Fix fixes a problem.
	Text string `json:"text"`
	Why  string `json:"why,omitempty"`
	Fix  string `json:"fix,omitempty"`
	// Reason names why a rule or a route of multihomed exists ([multihomed/routing.Decision]).
	Reason string `json:"reason,omitempty"`
	Author
	// Count is the number of changes: more than 1 where many of one sort are told as one.
	Count int `json:"count"`
	// isSummary says that it stands for all changes of a link.
	isSummary bool
}

// clean makes every text of an event printable: what a daemon says is not trusted either.
func (e Event) clean() Event {
	for _, text := range []*string{&e.Link, &e.Family, &e.Object, &e.Text, &e.Why, &e.Fix, &e.Reason, &e.Process} {
		*text = escape.Text(*text)
	}
	e.Schema = status.Schema
	e.Count = max(e.Count, 1)
	if e.Party == "" {
		e.Party = Unknown
	}
	return e
}

// Sentence is the event without its time: what changed, and in brackets who did it and why.
func (e Event) Sentence() string {
	var b strings.Builder
	if e.Link != "" {
		b.WriteString(e.Link + ": ")
	}
	b.WriteString(e.Text)
	if who := e.tail(); who != "" {
		b.WriteString(" [" + who + "]")
	}
	return b.String()
}

func (e Event) tail() string {
	if e.Kind == Watching || e.Kind == Lost {
		return ""
	}
	who := e.String()
	if e.Why == "" {
		return who
	}
	return who + ": " + e.Why
}

// Line is the event as one line of a log, in local time.
func (e Event) Line() string {
	return e.Time.Local().Format("2006-01-02 15:04:05.000") + " " + e.Sentence()
}
