package routing

import (
	"fmt"
	"maps"
	"slices"
)

// A Decision names why an object exists. The names are what `multihomectl`
// shows and what ARCHITECTURE.md explains.
type Decision string

// Why a rule exists; see [Ladder].
const (
	// StepOver: bound traffic steps over rules that the kernel numbered below
	// the ladder.
	StepOver Decision = "step-over"
	// KeepLocal: the host's own addresses stay its own where the kernel's rule
	// for them was moved behind the ladder.
	KeepLocal Decision = "local"
	// KeepOverlap: two links share a prefix and main knows only one way into it.
	KeepOverlap Decision = "overlap"
	// LiftForeign: a rule of somebody else that selects packets has its say
	// before the ladder.
	LiftForeign Decision = "lift"
	// KeepKnown: what main, or a table that somebody sends everything to, knows
	// behind anything but an uplink stays reachable from bound sockets.
	KeepKnown Decision = "known"
	// Bind: an application, a container or a network is bound to a link.
	Bind Decision = "binding"
	// BindNever: where that link has no way, it has none.
	BindNever Decision = "binding-refused"
	// AnswerKnown: what is answered by a link reaches what main knows behind anything but
	// an uplink.
	AnswerKnown Decision = "answer-known"
	// AnswerLink: a packet that this host forwards or translates is answered by the link on
	// which it was asked.
	AnswerLink Decision = "answer"
	// AnswerNever: where that link has no way, such a packet has none.
	AnswerNever Decision = "answer-refused"
	// FollowDevice: a socket bound to the device uses the device's table.
	FollowDevice Decision = "device"
	// FollowSource: a packet from the link's address leaves by the link.
	FollowSource Decision = "source"
	// NeverStray: where the link has no way, its packets have none.
	NeverStray Decision = "never-stray"
	// ReachTwin: another link of the same network took over.
	ReachTwin Decision = "twin"
	// KeepMain: what main knows of a network goes before the link's table.
	KeepMain Decision = "main"
	// ReachNetwork: the link's network, which main does not know.
	ReachNetwork Decision = "network"
	// Again: a rung once more, for packets that were lifted over the ladder.
	Again Decision = "again"
	// FollowLiving: unbound traffic follows an uplink that works.
	FollowLiving Decision = "failover"
	// LastResort: unbound traffic when main has no default.
	LastResort Decision = "last-resort"
)

// Why a route exists.
const (
	// OnLink: the link's own network.
	OnLink Decision = "on-link"
	// Copied: main has it, and it belongs to the link's network.
	Copied Decision = "copied"
	// CopiedElsewhere: main has it through the device with a next hop of
	// another network of the device; this network has no such route itself.
	CopiedElsewhere Decision = "copied-from-other-network"
	// CopiedFromOther: a table of somebody else has it through the device, and a rule
	// reads that table for every packet before main.
	CopiedFromOther Decision = "copied-from-other-table"
	// KnownGateway: main has no default here, but the profile or DHCP names the
	// gateway.
	KnownGateway Decision = "known-gateway"
	// KnownRoute: main does not have it, but DHCP or the owner of the link names
	// it.
	KnownRoute Decision = "known-route"
	// ThrownByMain: main throws the destination, so nothing of ours answers in its place.
	ThrownByMain Decision = "thrown-by-main"
	// NotThrown: main has a route of another uplink inside of what it throws, so the table goes
	// on to say what it says without the throw route.
	NotThrown Decision = "not-thrown"
	// WithoutTable: the link could get no table, and main has no default of it;
	// this one, in main, comes after all others.
	WithoutTable Decision = "without-table"
)

// MarkUplink is why an interface is in our group: it tells uplinks from the rest.
const MarkUplink Decision = "uplink-group"

// A Reason says why one object exists and for which link; Link is empty for the
// rules that serve them all.
type Reason struct {
	Decision Decision
	Link     string
	Prefix   string
}

func (r Reason) String() string {
	switch {
	case r.Link == "":
		return string(r.Decision)
	case r.Prefix == "":
		return fmt.Sprintf("%s of %s", r.Decision, r.Link)
	default:
		return fmt.Sprintf("%s of %s %s", r.Decision, r.Link, r.Prefix)
	}
}

// A Role is what a link is to the host.
type Role uint8

// Roles. A link that is nobody's way out is a local link.
const (
	Local Role = iota
	Uplink
)

func (r Role) String() string {
	if r == Uplink {
		return "uplink"
	}
	return "local"
}

// sentences say what each decision means, for people.
var sentences = map[Decision]string{ //nolint:gochecknoglobals // a constant in all but name
	StepOver:        "bound traffic steps over a rule that the kernel numbered",
	KeepLocal:       "the addresses of this host stay its own",
	KeepOverlap:     "two links share the network, and this address keeps its own",
	LiftForeign:     "a rule of somebody else keeps its say",
	KeepKnown:       "bound traffic reaches containers, VPN networks and LANs",
	Bind:            "an application, a container or a network is bound to the link",
	BindNever:       "without a way by the link, what is bound to it goes nowhere",
	AnswerKnown:     "answers by a link reach containers, VPN networks and LANs",
	AnswerLink:      "forwarded packets are answered by the link that was asked",
	AnswerNever:     "without a way by the link, an answer goes nowhere",
	FollowDevice:    "sockets bound to the device use its table",
	FollowSource:    "packets from the address leave by the link",
	NeverStray:      "without a way by the link, its packets go nowhere",
	ReachTwin:       "another link of the network has taken over",
	KeepMain:        "what main knows of the network goes first",
	ReachNetwork:    "main does not know the network of the link",
	Again:           "once more, for packets that were lifted over the ladder",
	FollowLiving:    "unbound traffic follows an uplink that works",
	LastResort:      "unbound traffic when main has no default",
	OnLink:          "the network on the link",
	Copied:          "main has it, and it belongs to the network",
	CopiedElsewhere: "main has it by another network of the link",
	KnownGateway:    "the profile or DHCP names the gateway",
	KnownRoute:      "DHCP or the profile names the route",
	ThrownByMain:    "main throws the destination: no table of ours answers instead",
	NotThrown:       "main throws what is around the destination, and not the destination",
	WithoutTable:    "the link has no table, so its default is in main",
	MarkUplink:      "the group tells uplinks from other links",
}

// Decisions returns all reasons, sorted.
func Decisions() []Decision { return slices.Sorted(maps.Keys(sentences)) }

// Sentence says what the decision means; the manual says it too.
func (d Decision) Sentence() string {
	if s, known := sentences[d]; known {
		return s
	}
	return string(d)
}
