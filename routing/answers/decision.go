package answers

import (
	"maps"
	"slices"
	"strings"
)

// A Decision names why a rule of the table exists. nft(8) shows it in the comment of the rule.
type Decision string

// Why a rule exists.
const (
	// SkipLoopback: packets of the host to itself are not marked.
	SkipLoopback Decision = "loopback"
	// SkipForeignMark: a rule of routing of another program selects the packet by its mark.
	SkipForeignMark Decision = "foreign-mark"
	// SkipUplink: the source of the packet is checked by its mark.
	SkipUplink Decision = "uplink"
	// Answer: the peer asked an address of the link.
	Answer Decision = "answer"
	// KeepLink: the connection got an address of the link.
	KeepLink Decision = "keep-link"
	// PassCheck: the source of the packet is checked by its mark.
	PassCheck Decision = "pass-check"
	// SetMark: the number of the routing table.
	SetMark Decision = "set-mark"
	// NoUplink: the fence is about uplinks.
	NoUplink Decision = "no-uplink"
	// Bound: something is bound to a link.
	Bound Decision = "bound"
	// OwnLink: the packet leaves by the link of its source.
	OwnLink Decision = "own-link"
	// Stray: the packet leaves by another uplink than that of its source.
	Stray Decision = "stray"
	// ForeignRule: a rule of routing of another program may have chosen the link.
	ForeignRule Decision = "foreign-rule"
	// LinkScope: the destination is not behind a router.
	LinkScope Decision = "link-scope"
	// DropStray: the end of the fence.
	DropStray Decision = "drop-stray"
)

var sentences = map[Decision]string{ //nolint:gochecknoglobals // a constant in all but name
	SkipLoopback:    "packets of this host to itself are not routed again",
	SkipForeignMark: "a rule of another program selects packets by this mark",
	SkipUplink:      "an uplink checks sources by mark: what comes in keeps its mark",
	Answer:          "an answer leaves by the link that was asked",
	KeepLink:        "a translated connection stays on the link whose address it has",
	PassCheck:       "the kernel looks for the sender behind this link",
	SetMark:         "the number of a routing table, for rule 9100",
	NoUplink:        "the fence is about uplinks",
	Bound:           "bound traffic leaves by no other uplink",
	OwnLink:         "the source is an address of the link",
	Stray:           "the source is an address of another uplink",
	ForeignRule:     "a rule of another program may have chosen the link",
	LinkScope:       "the destination is on the link",
	DropStray:       "nothing leaves by another uplink than that of its source",
}

// Decisions returns all of them, sorted.
func Decisions() []Decision { return slices.Sorted(maps.Keys(sentences)) }

// Sentence says what the decision means.
func (d Decision) Sentence() string {
	if s, known := sentences[d]; known {
		return s
	}
	return string(d)
}

// signature begins the comment of every rule of ours, of all versions.
const signature = "multihomed "

// Comment is the comment of a rule with the decision. It is shorter than the 128 bytes that nft(8)
// allows.
func (d Decision) Comment() string { return signature + string(d) + ": " + d.Sentence() }

// DecisionOf reads the decision out of the comment of a rule. It reports false for a comment that is
// not ours. A decision of another version may not be among [Decisions].
func DecisionOf(comment string) (Decision, bool) {
	rest, ours := strings.CutPrefix(comment, signature)
	name, _, _ := strings.Cut(rest, ":")
	return Decision(name), ours
}
