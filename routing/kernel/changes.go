package kernel

import (
	"maps"
	"net/netip"

	"multihomed/routing"
)

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
	Destinations map[int]map[routing.Destination]struct{}
	// Rules and Routes are objects of ours that somebody else touched, or that
	// the kernel took away.
	Rules  map[routing.Rule]struct{}
	Routes map[routing.RouteKey]struct{}
	// Foreign says that other rules, or other routes in our tables, changed;
	// ForeignRules of which families rules did.
	Foreign      bool
	ForeignRules map[routing.Family]struct{}
	// Tables are those of ours in which other routes changed, or to which other rules that
	// changed lead.
	Tables map[routing.TableID]struct{}
	// Gone are rules of others that went, as often as they may have come and gone since.
	Gone map[routing.Rule]struct{}
	// Elsewhere are the addresses and prefixes that appeared or went as
	// State.Elsewhere returns them.
	Elsewhere map[netip.Prefix]struct{}
	// Unbound says that unbound packets may go elsewhere, or get another source: rules and
	// interfaces apart, which have fields of their own.
	Unbound bool
	// Taken are objects of ours that another process deleted or replaced.
	Taken []Taken
}

// Taken is one object of ours that another process took away.
type Taken struct {
	// Rule or Route is what is gone; the other is zero.
	Rule  routing.Rule
	Route routing.Route
	// Port is the netlink port of who did it: usually the process id.
	Port uint32
}

// Empty reports whether nothing changed.
func (c Changes) Empty() bool {
	return !c.All && !c.Foreign && !c.Unbound && len(c.Links) == 0 && len(c.Rules) == 0 && len(c.Routes) == 0 && len(c.Taken) == 0 &&
		len(c.Destinations) == 0 && len(c.ForeignRules) == 0 && len(c.Gone) == 0 && len(c.Elsewhere) == 0
}

func newChanges() Changes {
	return Changes{
		Links: map[int]struct{}{}, Rules: map[routing.Rule]struct{}{}, Routes: map[routing.RouteKey]struct{}{},
		Destinations: map[int]map[routing.Destination]struct{}{}, Tables: map[routing.TableID]struct{}{},
		ForeignRules: map[routing.Family]struct{}{}, Gone: map[routing.Rule]struct{}{}, Elsewhere: map[netip.Prefix]struct{}{},
	}
}

func (c *Changes) merge(o Changes) {
	c.All = c.All || o.All
	c.Foreign = c.Foreign || o.Foreign
	c.Unbound = c.Unbound || o.Unbound
	maps.Copy(c.ForeignRules, o.ForeignRules)
	maps.Copy(c.Tables, o.Tables)
	maps.Copy(c.Gone, o.Gone)
	maps.Copy(c.Elsewhere, o.Elsewhere)
	maps.Copy(c.Links, o.Links)
	for index, destinations := range o.Destinations {
		if c.Destinations[index] == nil {
			c.Destinations[index] = map[routing.Destination]struct{}{}
		}
		maps.Copy(c.Destinations[index], destinations)
	}
	maps.Copy(c.Rules, o.Rules)
	maps.Copy(c.Routes, o.Routes)
	c.Taken = append(c.Taken, o.Taken...)
}

// A cause is why something changed.
type cause struct {
	// port is the netlink port of whoever asked for it, zero for the kernel.
	port uint32
	// own says that this was us.
	own bool
}
