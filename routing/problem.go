package routing

import (
	"encoding/json"
	"fmt"
	"strings"
)

// A Severity orders problems for whoever reads them.
type Severity uint8

// Severities: a notice explains a choice, a warning needs a look, an error
// means that something promised is not in force.
const (
	Notice Severity = iota
	Warning
	Error
)

func (s Severity) String() string {
	switch s {
	case Notice:
		return "notice"
	case Warning:
		return "warning"
	case Error:
		return "error"
	default:
		return fmt.Sprintf("severity %d", uint8(s))
	}
}

// MarshalText writes the name of the severity, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name of a severity.
func (s *Severity) UnmarshalText(text []byte) error {
	for _, known := range []Severity{Notice, Warning, Error} {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("severity %q; there are notice, warning and error", text)
}

// A Code names a kind of problem. Codes are stable: programs select by them, and
// the manual explains each.
type Code string

// Codes of the planner and of the loop. Others belong to the parts that find the
// problem (package inspect, the daemon).
const (
	// LeftAlone: a family of the link is its owner's own will.
	LeftAlone Code = "left-alone"
	// DuplicateAddress: another host has an address of the link.
	DuplicateAddress Code = "duplicate-address"
	// NoTable: a network of the link got no routing table.
	NoTable Code = "no-table"
	// ForeignGroup: the interface is in a group that somebody else gave it.
	ForeignGroup Code = "foreign-group"
	// TooManyOpenings: networks behind an interface that is an uplink in the other family
	// alone are not reachable from the addresses of other links.
	TooManyOpenings Code = "too-many-openings"
	// SourceAside: the kernel gives an address of the link to unbound packets of a device
	// that has none, so packets bound to the address do not keep to the link.
	SourceAside Code = "source-aside"
	// UnboundRefused: somebody refuses packets that are bound to nothing, and those that are
	// bound to the link are refused with them.
	UnboundRefused Code = "unbound-refused"
	// LongTable: a table of somebody else, which a rule reads for every packet, is too long
	// for its routes through the link to be copied.
	LongTable Code = "long-table"
	// ManyThrown: main has more throw routes than tables of links can follow.
	ManyThrown Code = "many-thrown"
	// FailoverTableInUse: somebody else uses the table that failover needs. It is one of the
	// tables that others use, for whoever selects by codes.
	FailoverTableInUse Code = "table-in-use"
	// Refused: the kernel did not do what was planned.
	Refused Code = "kernel-refused"
	// Unread: the kernel could not be read.
	Unread Code = "kernel-unread"
	// WaitsForOwners: it is not known for long who the links are.
	WaitsForOwners Code = "waiting"
	// Disputed: somebody keeps deleting an object of ours.
	Disputed Code = "disputed"
	// Forgetful: what a restart must know cannot be written down.
	Forgetful Code = "memory"
	// OwnGateway: the gateway that is set for the link is the link's own address.
	OwnGateway Code = "own-gateway"
	// MatchesNothing: an entry of the configuration selects no interface.
	MatchesNothing Code = "matches-nothing"
	// NotUnderstood: something that NetworkManager said makes no sense.
	NotUnderstood Code = "not-understood"
)

// A Problem is something that an administrator should know, and what to do about
// it. It says the same wherever it is read: log, status, D-Bus.
type Problem struct {
	// Code names the kind of problem; multihomectl(8) explains each.
	Code Code `json:"code"`
	// Severity is "notice" for a choice that is explained, "warning" for what needs a look, "error" if something promised is
	// not in force.
	Severity Severity `json:"severity"`
	// Link is the interface that it is about, empty for the host.
	Link string `json:"link,omitempty"`
	// Object is the rule, route, table or file to blame, in the words of iproute2.
	Object string `json:"object,omitempty"`
	// Text is one sentence without a full stop.
	Text string `json:"text"`
	// Fix is a command or a sentence, empty where there is nothing to do.
	Fix string `json:"fix,omitempty"`
	// Commands fix it, empty where no command can.
	Commands Commands `json:"commands,omitzero"`
}

// Commands are lines for sh(1), one command on each, quoted where they have to be. They are a
// string so that problems can be compared; in JSON they are a list.
type Commands string

// CommandsOf are some commands. None has a newline.
func CommandsOf(lines ...string) Commands { return Commands(strings.Join(lines, "\n")) }

// Lines returns the commands, nil if there are none.
func (c Commands) Lines() []string {
	if c == "" {
		return nil
	}
	return strings.Split(string(c), "\n")
}

// MarshalJSON writes a list.
func (c Commands) MarshalJSON() ([]byte, error) {
	lines := c.Lines()
	if lines == nil {
		lines = []string{}
	}
	return json.Marshal(lines) //nolint:wrapcheck // a list of strings
}

// UnmarshalJSON reads a list.
func (c *Commands) UnmarshalJSON(text []byte) error {
	var lines []string
	if err := json.Unmarshal(text, &lines); err != nil {
		return fmt.Errorf("reading commands: %w", err)
	}
	*c = CommandsOf(lines...)
	return nil
}

// toFix separates what is wrong from the cure, in every error of this project.
const toFix = "; to fix: "

// ProblemOf makes a problem of an error, whose text may end with the cure.
func ProblemOf(code Code, s Severity, link string, err error) Problem {
	text, fix, _ := strings.Cut(err.Error(), toFix)
	return Problem{Code: code, Severity: s, Link: link, Text: text, Fix: fix}
}

// String is the problem in a line: the link, what is wrong, the cure.
func (p Problem) String() string {
	out := p.Text
	if p.Link != "" {
		out = p.Link + ": " + out
	}
	if p.Fix != "" {
		out += toFix + p.Fix
	}
	return out
}
