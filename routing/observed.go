package routing

import (
	"maps"
	"net/netip"
)

// What the kernel is seen to hold, and what happened to it: the words that a mirror of
// the kernel and the loop that reconciles have in common.

// An Interface is one of the host as the kernel has it.
type Interface struct {
	Index int
	Name  string
	// Up is IFF_UP, administratively up; Carrier is IFF_LOWER_UP; Running is IFF_RUNNING: the
	// interface is operational, or its driver does not tell (RFC 2863, netif_oper_up).
	Up, Carrier, Running bool
	// Group is IFLA_GROUP. The kernel does not announce a change of it while
	// the interface is down (netdev_state_change in net/core/dev.c): what
	// somebody else set meanwhile is seen when the interface comes up.
	Group uint32
	// Kind is the driver's name for virtual interfaces: "bridge", "veth".
	Kind string
	// PointToPoint says that it leads to one peer or into a tunnel.
	PointToPoint bool
	// Master is the index of the bridge, bond or VRF the interface belongs to.
	Master int
	MTU    uint32
	// Hardware is the link-layer address, raw.
	Hardware string
	// Addresses are sorted by family, then address.
	Addresses []Address
	// Routes are the unicast routes of main through the interface, one for
	// each leg that is alive, sorted; none if the interface is of no interest.
	Routes []Route
	// Others are the unicast and throw routes through the interface in tables of others that a rule
	// reads which selects nothing; LongTables those that are too long to be read.
	Others     []Route
	LongTables []TableID
}

// Changes is what happened since it was last asked. What our own writer did is
// not news: whoever writes drains and compares again.
type Changes struct {
	// All says that everything may have changed: the mirror was filled anew.
	All bool
	// Links are the interfaces whose state or addresses changed, also those that
	// are gone and those whose routes became of interest or no longer are.
	Links map[int]struct{}
	// Destinations are, by interface, what main's unicast routes through it
	// changed for: State.Ways tells how they are now.
	Destinations map[int]map[Destination]struct{}
	// Rules and Routes are objects of ours that somebody else touched, or that
	// the kernel took away.
	Rules  map[Rule]struct{}
	Routes map[RouteKey]struct{}
	// Foreign says that other rules, or other routes in our tables, changed;
	// ForeignRules of which families rules did.
	Foreign      bool
	ForeignRules map[Family]struct{}
	// Tables are those of ours in which other routes changed, or to which other rules that
	// changed lead.
	Tables map[TableID]struct{}
	// Gone are rules of others that went, as often as they may have come and gone since.
	Gone map[Rule]struct{}
	// Elsewhere are the addresses and prefixes that appeared or went as
	// State.Elsewhere returns them.
	Elsewhere map[netip.Prefix]struct{}
	// Unbound says that unbound packets may go elsewhere, or get another source: rules and
	// interfaces apart, which have fields of their own.
	Unbound bool
	// Defaults are the families whose defaults in main changed, whatever they lead through.
	Defaults ByFamily[bool]
	// Thrown are the families whose throw routes in main changed, or what goes before them.
	Thrown ByFamily[bool]
	// Taken are objects of ours that another process deleted or replaced.
	Taken []Taken
}

// Taken is one object of ours that another process took away.
type Taken struct {
	// Rule or Route is what is gone; the other is zero.
	Rule  Rule
	Route Route
	// Port is the netlink port of who did it: usually the process id.
	Port uint32
}

// Empty reports whether nothing changed.
func (c Changes) Empty() bool {
	return !c.All && !c.Foreign && !c.Unbound && c.Defaults == (ByFamily[bool]{}) && c.Thrown == (ByFamily[bool]{}) && len(c.Links) == 0 && len(c.Rules) == 0 && len(c.Routes) == 0 && len(c.Taken) == 0 &&
		len(c.Destinations) == 0 && len(c.ForeignRules) == 0 && len(c.Gone) == 0 && len(c.Elsewhere) == 0
}

// NewChanges returns no changes, to be filled.
func NewChanges() Changes {
	return Changes{
		Links: map[int]struct{}{}, Rules: map[Rule]struct{}{}, Routes: map[RouteKey]struct{}{},
		Destinations: map[int]map[Destination]struct{}{}, Tables: map[TableID]struct{}{},
		ForeignRules: map[Family]struct{}{}, Gone: map[Rule]struct{}{}, Elsewhere: map[netip.Prefix]struct{}{},
	}
}

// Merge adds what happened besides.
func (c *Changes) Merge(o Changes) {
	c.All = c.All || o.All
	c.Foreign = c.Foreign || o.Foreign
	c.Unbound = c.Unbound || o.Unbound
	for i := range c.Defaults {
		c.Defaults[i] = c.Defaults[i] || o.Defaults[i]
		c.Thrown[i] = c.Thrown[i] || o.Thrown[i]
	}
	maps.Copy(c.ForeignRules, o.ForeignRules)
	maps.Copy(c.Tables, o.Tables)
	maps.Copy(c.Gone, o.Gone)
	maps.Copy(c.Elsewhere, o.Elsewhere)
	maps.Copy(c.Links, o.Links)
	for index, destinations := range o.Destinations {
		if c.Destinations[index] == nil {
			c.Destinations[index] = map[Destination]struct{}{}
		}
		maps.Copy(c.Destinations[index], destinations)
	}
	maps.Copy(c.Rules, o.Rules)
	maps.Copy(c.Routes, o.Routes)
	c.Taken = append(c.Taken, o.Taken...)
}
