// Package graph draws the policy routing of a host: the rules in the order of the kernel, the
// tables that they lead to, and the devices that the tables lead to, as SVG or in the language of
// Graphviz. It is pure: facts go in, a document comes out. Package graph/host reads the facts.
package graph

import (
	"net/netip"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Facts are what a picture is made of. Names are raw: the pictures escape them.
type Facts struct {
	// Rules are those of both families, each family in the order of the kernel.
	Rules []routing.Rule
	// Tables are the routes of the tables that rules lead to, a route for each leg.
	Tables map[routing.Family]map[routing.TableID][]routing.Route
	// Partial are the tables that have more routes than were read.
	Partial map[routing.Family]map[routing.TableID]bool
	Devices []Device
	// Links are what multihomed says of interfaces, by name. It is empty on a host without
	// multihomed.
	Links map[string]Link
	// Owners name the network that a table is for, in the words of a person.
	Owners map[routing.Family]map[routing.TableID]string
	// Reasons say why a rule of multihomed exists. A rule without one has the reason of its
	// priority.
	Reasons map[routing.Rule]Reason
	// Unread are what could not be read, in sentences.
	Unread []string
}

// A Device is an interface.
type Device struct {
	Index int
	Name  string
	// Up is IFF_UP, Carrier IFF_LOWER_UP.
	Up, Carrier bool
	Addresses   []netip.Prefix
	// Table is the table of a VRF (IFLA_VRF_TABLE), zero for all others.
	Table routing.TableID
}

// A Link is what multihomed says of an interface.
type Link struct {
	Profile string
	// Roles are "uplink" or "local", by family.
	Roles map[routing.Family]string
	// Health is the state of an uplink, by family; only uplinks that are watched have one.
	Health map[routing.Family]Health
}

// Health says whether an uplink works.
type Health struct {
	// State is in the words of multihomectl status.
	State string
	Level Level
	Why   string
}

// A Level is how good a state is.
type Level uint8

// Levels.
const (
	Neutral Level = iota
	Good
	Doubtful
	Bad
)

// A Reason says why a rule exists.
type Reason struct {
	Decision routing.Decision
	// Link is the interface that it serves, empty for rules that serve all.
	Link string
}

// Options say what is drawn.
type Options struct {
	// Families are drawn one below the other; none means both.
	Families []routing.Family
	// All draws each rule. Otherwise rules that belong together are one box.
	All bool
	// Flow is highlighted, if there is one.
	Flow *Flow
}

// A Flow is a packet with its way through the rules.
type Flow struct {
	lookup.Flow
	Verdict lookup.Verdict
	Steps   []lookup.Step
	// Difference says where the kernel itself answers otherwise, empty if it agrees.
	Difference string
}
