package kerneltest

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"multihomed/routing"
)

// A State is what a [Mirror] shows: the kernel as it was when it was last read. Addresses on
// other interfaces and routes of the table local are not in its Elsewhere: interfaces have
// no kind here.
type State struct {
	*Kernel
	whole     bool
	networks  []netip.Prefix
	unwatched map[int]struct{}
	// listed is the last addition of a rule before everything was read.
	listed uint64
	moves  uint64
}

// Complete reports whether this is all that the kernel holds.
func (s *State) Complete() bool { return s.whole }

// Moves changes with everything that happens to interfaces and to routes of others.
func (s *State) Moves() uint64 { return s.moves }

// Unread counts the messages that could not be read: none, for there are no messages.
func (s *State) Unread() (int, error) { return 0, nil }

// Indexes returns the indexes of all interfaces, sorted.
func (s *State) Indexes() []int { return s.indexes() }

// IndexOf returns the index of the interface of a name.
func (s *State) IndexOf(name string) (int, bool) {
	for index, i := range s.interfaces {
		if i.Name == name {
			return index, true
		}
	}
	return 0, false
}

// NameOf returns the name of an interface.
func (s *State) NameOf(index int) (string, bool) {
	i, exists := s.Interface(index)
	return i.Name, exists
}

// Name returns the name of an interface for people: its index if it has gone.
func (s *State) Name(index int) string {
	if name, exists := s.NameOf(index); exists {
		return name
	}
	return "if" + strconv.Itoa(index)
}

// LinkFacts returns an interface without its routes.
func (s *State) LinkFacts(index int) (routing.Interface, bool) {
	i, exists := s.Interface(index)
	return routing.Interface{
		Index: i.Index, Name: i.Name, Up: i.Up, Carrier: i.Up && !i.NotRunning, Running: i.Up && !i.NotRunning, Group: i.Group, Addresses: slices.Clone(i.Addresses),
	}, exists
}

// Link returns an interface with the unicast routes of main through it.
func (s *State) Link(index int) (routing.Interface, bool) {
	i, exists := s.LinkFacts(index)
	if exists && s.Interested(index) {
		i.Routes = s.Facts(routing.Link{Index: index}).Routes
	}
	return i, exists
}

// Interested reports whether the routes of main through an interface are kept.
func (s *State) Interested(index int) bool {
	_, exists := s.interfaces[index]
	_, not := s.unwatched[index]
	return exists && !not
}

// Ways returns the unicast routes of main to one destination through an interface.
func (s *State) Ways(index int, d routing.Destination) []routing.Route {
	i, _ := s.Link(index)
	return slices.DeleteFunc(i.Routes, func(r routing.Route) bool { return routing.DestinationOf(r) != d })
}

// Elsewhere returns the host routes that main has behind other interfaces to addresses in
// the networks of an interface.
func (s *State) Elsewhere(index int, networks []netip.Prefix) []routing.Elsewhere {
	var out []routing.Elsewhere
	for _, f := range routing.Families() {
		for _, r := range s.AllRoutes(f, routing.TableMain) {
			if a := r.Destination.Addr(); r.Destination.IsSingleIP() && r.Device != index && insideOne(networks, a) && s.asked(a) {
				out = append(out, routing.Elsewhere{
					Prefix: r.Destination, Device: r.Device, Why: fmt.Sprintf("main has a host route to %s behind %s", a, s.Name(r.Device)),
				})
			}
		}
	}
	return out
}

// asked reports whether the host routes to an address are kept.
func (s *State) asked(a netip.Addr) bool { return insideOne(s.networks, a) }

func insideOne(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// CameAfter reports whether a rule is known to have been added after another one. Of those
// that stood when everything was read nothing is known.
func (s *State) CameAfter(rule, other routing.Rule) bool {
	first := func(r routing.Rule) uint64 {
		if places := s.came[r]; len(places) > 0 {
			return places[0]
		}
		return 0
	}
	return first(rule) > s.listed && first(rule) > first(other)
}

// RulesFrom yields our rules of a priority for a source.
func (s *State) RulesFrom(f routing.Family, p routing.Priority, from netip.Prefix) iter.Seq[routing.Rule] {
	return s.ourRules(f, p, func(r routing.Rule) bool { return r.From == from })
}

// RulesTo yields our rules of a priority that lead to a table.
func (s *State) RulesTo(f routing.Family, p routing.Priority, t routing.TableID) iter.Seq[routing.Rule] {
	return s.ourRules(f, p, func(r routing.Rule) bool { return r.Table == t })
}

func (s *State) ourRules(f routing.Family, p routing.Priority, is func(routing.Rule) bool) iter.Seq[routing.Rule] {
	return func(yield func(routing.Rule) bool) {
		for _, r := range s.RuleOrder(f, p) {
			if is(r) && !yield(r) {
				return
			}
		}
	}
}

// CountRoutes counts the routes in a table, whoever made them.
func (s *State) CountRoutes(t routing.TableID) int {
	n := 0
	for _, f := range routing.Families() {
		n += len(s.AllRoutes(f, t))
	}
	return n
}

// ForeignIn says who else uses a table of a family: a route in it or a rule that leads to it.
func (s *State) ForeignIn(f routing.Family, t routing.TableID) (what string, used bool) {
	for _, r := range s.AllRoutes(f, t) {
		if !s.policy.OwnsRoute(r) {
			return "the route " + r.Text(s.Name(r.Device)), true
		}
	}
	for _, r := range s.Foreign(f) {
		if r.Action == routing.ActionLookup && r.Table == t {
			return "the rule " + r.String(), true
		}
	}
	return "", false
}

// TakenBy says what makes the table of an interface somebody else's, see [routing.Takes].
func (s *State) TakenBy(f routing.Family, t routing.TableID, device int, widest uint32) (what string, taken bool) {
	rule := false
	for _, r := range s.Foreign(f) {
		rule = rule || r.Action == routing.ActionLookup && r.Table == t
	}
	for _, r := range s.AllRoutes(f, t) {
		if !s.policy.OwnsRoute(r) && routing.Takes(r, device, rule, widest) {
			return "the route " + r.Text(s.Name(r.Device)), true
		}
	}
	return "", false
}

// UseOf says what stands of a table, whoever made it.
func (s *State) UseOf(t routing.TableID) (what string, used bool) {
	for _, f := range routing.Families() {
		if what, used = s.ForeignIn(f, t); used {
			return what, true
		}
	}
	for r := range s.Rules() {
		if r.Table == t {
			return "a rule of multihomed", true
		}
	}
	if routes := s.OurRoutes(t); len(routes) > 0 {
		return "the route " + routes[0].Text(s.Name(routes[0].Device)), true
	}
	return "", false
}
