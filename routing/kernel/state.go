package kernel

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// A State is what the mirror holds. It may be used only inside
// [Mirror.View]; what its methods return may be kept. It implements
// [routing.Kernel].
type State struct {
	owns     routing.Ownership
	interest func(name string) bool
	links    map[int]*link
	names    map[string]int
	// departures counts the interfaces that went away.
	departures uint64
	// hosts counts the IPv4 addresses of the host.
	hosts map[netip.Addr]int
	// anyIP are local routes to more than an address: what they cover stays
	// local although no interface has it.
	anyIP     map[netip.Prefix]struct{}
	fib       fib
	elsewhere elsewhere
	// others are the tables of others that rules read which select nothing.
	others   map[otherKey]otherTable
	nexthops map[uint32]*nexthop
	rules    ruleBook
	authors  authors
	changes  routing.Changes
	doubts   doubts
	// events counts, by class, what was announced and mattered.
	events [classes]uint64
	// strange counts what was announced of routes that are not ours, whether they
	// mattered or not.
	strange uint64
	// whole says that the state is complete: see Complete.
	whole bool
	// crowded are the families with so many routes of no interest that they are not all
	// read to know a key whole.
	crowded map[routing.Family]bool
	// unread counts what could not be read, unreadable is the last of it.
	unread     int
	unreadable error
}

var _ routing.Kernel = (*State)(nil)

// class sorts announcements by the dump that would tell the same.
type class int

const (
	classLinks class = iota
	classAddresses
	classRoutes4
	classRoutes6
	classRules4
	classRules6
	classNexthops
	classes
)

func routeClass(f routing.Family) class {
	if f == routing.IPv4 {
		return classRoutes4
	}
	return classRoutes6
}

func ruleClass(f routing.Family) class {
	if f == routing.IPv4 {
		return classRules4
	}
	return classRules6
}

type link struct {
	index      int
	name       string
	flags      uint32
	group      uint32
	master     uint32
	mtu        uint32
	kind       string
	hardware   string
	interested bool
	addresses  map[addressKey]routing.Address
}

func (l *link) up() bool { return l.flags&unix.IFF_UP != 0 }

// addressKey is what an interface can have only once: an IPv6 address; an IPv4
// address with its network.
type addressKey struct {
	prefix netip.Prefix
	peer   netip.Addr
}

func keyOfAddress(a routing.Address) addressKey {
	addr := a.Prefix.Addr()
	if addr.Is6() {
		return addressKey{prefix: netip.PrefixFrom(addr, addr.BitLen())}
	}
	return addressKey{prefix: a.Prefix, peer: a.Peer}
}

func (l *link) has(f routing.Family) bool {
	for k := range l.addresses {
		if routing.FamilyOf(k.prefix.Addr()) == f {
			return true
		}
	}
	return false
}

func newState(owns routing.Ownership, interest func(string) bool) *State {
	return &State{
		owns: owns, interest: interest,
		links: map[int]*link{}, names: map[string]int{}, hosts: map[netip.Addr]int{},
		anyIP: map[netip.Prefix]struct{}{}, fib: newFIB(owns), elsewhere: newElsewhere(), others: map[otherKey]otherTable{}, nexthops: map[uint32]*nexthop{}, rules: newRuleBook(), changes: routing.NewChanges(), authors: authors{},
		doubts: newDoubts(), crowded: map[routing.Family]bool{},
	}
}

// Complete reports whether the state is all that the kernel holds. While it is
// not, absence proves nothing.
func (s *State) Complete() bool { return s.whole && s.doubts.none() }

// Moves changes with every announcement about interfaces, addresses, nexthop objects and
// routes of others, those that are not kept included.
func (s *State) Moves() uint64 {
	return s.strange + s.events[classLinks] + s.events[classAddresses] + s.events[classNexthops]
}

// Unread returns how many messages of the kernel could not be read, and the error of the
// last one. None of them is about an object of ours, so the rest is good.
func (s *State) Unread() (int, error) { return s.unread, s.unreadable }

func (s *State) misread(err error) { s.unread, s.unreadable = s.unread+1, err }

// Indexes returns the indexes of all interfaces, sorted.
func (s *State) Indexes() []int { return slices.Sorted(maps.Keys(s.links)) }

// IndexOf returns the index of the interface of that name.
func (s *State) IndexOf(name string) (int, bool) {
	i, ok := s.names[name]
	return i, ok
}

// Departures changes whenever interfaces may have gone away, so that a caller need look for
// missing ones only then.
func (s *State) Departures() uint64 { return s.departures }

// NameOf returns the name of an interface.
func (s *State) NameOf(index int) (string, bool) {
	l := s.links[index]
	if l == nil {
		return "", false
	}
	return l.name, true
}

// Name returns the name of an interface for messages, or its index if it has gone.
func (s *State) Name(index int) string {
	if name, exists := s.NameOf(index); exists {
		return name
	}
	return "if" + strconv.Itoa(index)
}

func (s *State) textOf(r routing.Route) string { return r.Text(s.Name(r.Device)) }

// Link returns one interface.
func (s *State) Link(index int) (routing.Interface, bool) {
	out, ok := s.LinkFacts(index)
	if ok && s.links[index].interested {
		for a := range s.fib.byDevice[index] {
			if a.key.table == routing.TableMain && a.kind == routing.RouteUnicast {
				out.Routes = appendAlive(out.Routes, a, index)
			}
		}
		slices.SortFunc(out.Routes, compareRoutes)
	}
	return out, ok
}

// Ways returns the unicast routes of main to one destination through an interface of
// interest, one for each leg that is alive, in the order of Link.Routes. The cost follows
// their number.
func (s *State) Ways(index int, d routing.Destination) []routing.Route {
	if !s.Interested(index) {
		return nil
	}
	k := fibKey{
		family: routing.FamilyOf(d.To.Addr()), table: routing.TableMain, destination: d.To, source: d.From, tos: d.TOS,
	}
	var out []routing.Route
	for slot := s.fib.slots[k.competing()]; slot != nil; slot = slot.next {
		for _, a := range slot.aliases {
			if a.kind == routing.RouteUnicast {
				out = appendAlive(out, a, index)
			}
		}
	}
	slices.SortFunc(out, compareRoutes)
	return out
}

// Defaults returns the default routes that main has of a family through any interface, the
// best first: one for each leg that is alive. Those that refuse packets are among them, those for
// a type of service are not. The order of one metric is the kernel's.
func (s *State) Defaults(f routing.Family) []routing.Route {
	var out []routing.Route
	k := fibKey{family: f, table: routing.TableMain, destination: f.Any()}
	for slot := s.fib.slots[k.competing()]; slot != nil; slot = slot.next {
		for _, a := range slot.aliases {
			for _, l := range a.legs {
				if !l.dead {
					out = append(out, l.route)
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b routing.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	return out
}

// LinkFacts returns one interface without its routes, whose number costs
// nothing then.
func (s *State) LinkFacts(index int) (routing.Interface, bool) {
	l := s.links[index]
	if l == nil {
		return routing.Interface{}, false
	}
	others, long := s.Others(index)
	return routing.Interface{
		Others: others, LongTables: long,
		Index: l.index, Name: l.name, Up: l.up(), Carrier: l.flags&unix.IFF_LOWER_UP != 0, Running: l.flags&unix.IFF_RUNNING != 0,
		Group: l.group, Kind: l.kind, PointToPoint: l.pointToPoint(), Master: int(l.master), MTU: l.mtu, Hardware: l.hardware,
		Addresses: slices.SortedFunc(maps.Values(l.addresses), compareAddresses),
	}, true
}

// Interested reports whether the routes of main through an interface are kept.
func (s *State) Interested(index int) bool {
	l := s.links[index]
	return l != nil && l.interested
}

func appendAlive(out []routing.Route, a *alias, device int) []routing.Route {
	for _, l := range a.legs {
		if !l.dead && l.route.Device == device {
			out = append(out, l.route)
		}
	}
	return out
}

func compareAddresses(a, b routing.Address) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.Peer.Compare(b.Peer))
}

func compareRoutes(a, b routing.Route) int {
	return cmp.Or(
		cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table),
		a.Destination.Compare(b.Destination), cmp.Compare(a.Metric, b.Metric),
		a.Source.Compare(b.Source), cmp.Compare(a.TOS, b.TOS),
		a.Gateway.Compare(b.Gateway), cmp.Compare(a.Device, b.Device),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Type, b.Type),
		a.PreferredSource.Compare(b.PreferredSource), cmp.Compare(a.Preference, b.Preference),
		cmp.Compare(a.Weight, b.Weight), a.Attributes.Compare(b.Attributes),
	)
}

// ours reports whether a rule is one of ours.
func (s *State) ours(r routing.Rule) bool { return s.owns.OwnsRule(r) }

// Rules yields our rules in the order in which the kernel reads them; a rule
// that stands twice comes twice.
func (s *State) Rules() iter.Seq[routing.Rule] {
	return slices.Values(order(func(yield func(*rung) bool) {
		for _, g := range s.rules.rungs {
			if g.ours && !yield(g) {
				return
			}
		}
	}))
}

// ForeignRules returns all other rules of both families in kernel order.
func (s *State) ForeignRules() []routing.Rule {
	return slices.Concat(s.Foreign(routing.IPv4), s.Foreign(routing.IPv6))
}

// CountRule says how often a rule stands, whoever made it.
func (s *State) CountRule(r routing.Rule) int {
	if g := s.rules.rungs[r]; g != nil {
		return len(g.places)
	}
	return 0
}

// RuleOrder returns our rules of one family and priority in kernel order.
func (s *State) RuleOrder(f routing.Family, p routing.Priority) []routing.Rule {
	return order(func(yield func(*rung) bool) {
		for g := range s.rules.bands[band{f, p}] {
			if g.ours && !yield(g) {
				return
			}
		}
	})
}

// Foreign returns the rules of a family that are not ours, in kernel order.
func (s *State) Foreign(f routing.Family) []routing.Rule {
	return order(func(yield func(*rung) bool) {
		for g := range s.rules.foreign[f] {
			if !yield(g) {
				return
			}
		}
	})
}

// BandOrder returns all rules of one family and priority in kernel order, ours
// and those of others.
func (s *State) BandOrder(f routing.Family, p routing.Priority) []routing.Rule {
	return order(maps.Keys(s.rules.bands[band{f, p}]))
}

// CameAfter reports whether a rule is known to have been added after another one. Of those
// that stood when the rules were listed nothing is known.
func (s *State) CameAfter(r, other routing.Rule) bool {
	a, stands := s.RulePlace(r)
	b, _ := s.RulePlace(other)
	return stands && a > s.rules.loaded && a > b
}

// RulePlace returns where the first copy of a rule stands among those of its
// family and priority: the lower comes first. Unlike RuleOrder it costs nothing.
func (s *State) RulePlace(r routing.Rule) (uint64, bool) {
	if g := s.rules.rungs[r]; g != nil {
		return g.places[0], true
	}
	return 0, false
}

// Routes yields our routes.
func (s *State) Routes() iter.Seq[routing.Route] {
	return func(yield func(routing.Route) bool) {
		for table := range s.fib.byTable {
			for _, r := range s.OurRoutes(table) {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// OurRoutes returns our routes in one table, sorted; of main, those through
// interfaces of interest.
func (s *State) OurRoutes(table routing.TableID) []routing.Route {
	var out []routing.Route
	for a := range s.fib.byTable[table] {
		if a.whole() {
			if r, ok := a.multipath(); ok && r.Protocol == routing.Multihomed {
				out = append(out, r)
			}
			continue
		}
		for _, l := range a.legs {
			if table == routing.TableMain && !s.Interested(l.route.Device) {
				continue // kept for another entry of the same key
			}
			if r, ours := s.own(a, l); !l.dead && ours {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, compareRoutes)
	return out
}

// Route returns our route of a key.
func (s *State) Route(k routing.RouteKey) (routing.Route, bool) {
	slot := s.fib.at(fibKey{k.Family, k.Table, k.Destination, k.Source, k.TOS, k.Metric})
	if slot == nil {
		return routing.Route{}, false
	}
	for _, a := range slot.aliases {
		if a.whole() {
			if r, ok := a.multipath(); ok && r.Protocol == routing.Multihomed {
				return r, true
			}
			continue
		}
		for _, l := range a.legs {
			if l.dead || l.route.Key() != k {
				continue
			}
			if r, ours := s.own(a, l); ours {
				return r, true
			}
		}
	}
	return routing.Route{}, false
}

// CountRoutes says how many routes stand in a table of ours, whoever made them. It costs
// nothing.
func (s *State) CountRoutes(table routing.TableID) int { return len(s.fib.byTable[table]) }

// ForeignIn says who else uses a table of a family: a rule that leads to it or a route in
// it. IPv4 and IPv6 have tables of their own, whose numbers mean nothing to each other.
func (s *State) ForeignIn(f routing.Family, table routing.TableID) (what string, used bool) {
	routes := 0
	var example routing.Route
	for r := range s.foreignRoutes(f, table) {
		if routes == 0 || compareRoutes(r, example) < 0 {
			example = r
		}
		routes++
	}
	switch n := s.rules.lookups[table]; {
	case routes > 1:
		return fmt.Sprintf("%d routes, one of them %s", routes, s.textOf(example)), true
	case routes == 1:
		return fmt.Sprintf("the route %s", s.textOf(example)), true
	case n == 0:
		return "", false
	}
	for _, r := range s.Foreign(f) {
		if r.Action == routing.ActionLookup && r.Table == table {
			return fmt.Sprintf("the rule %s", r), true
		}
	}
	return "", false
}

// foreignRoutes yields the routes of others in a table of a family, one for each leg.
func (s *State) foreignRoutes(f routing.Family, table routing.TableID) iter.Seq[routing.Route] {
	return func(yield func(routing.Route) bool) {
		for a := range s.fib.byTable[table] {
			for _, l := range a.legs {
				known, is := s.authors[a.key][l.route.Key()]
				if l.route.Family != f {
					continue
				}
				his := l.route.Protocol != routing.Multihomed && known == (routing.Route{}) || is && known == (routing.Route{})
				if his && !yield(l.route) {
					return
				}
			}
		}
	}
}

// TakenBy reports whether the table of an interface is somebody else's, and which rule or
// route makes it so; see [routing.Takes].
func (s *State) TakenBy(f routing.Family, table routing.TableID, device int, widest uint32) (what string, taken bool) {
	var his *routing.Rule
	if s.rules.lookups[table] > 0 {
		for _, r := range s.Foreign(f) {
			if r.Action == routing.ActionLookup && r.Table == table {
				his = &r
				break
			}
		}
	}
	var example routing.Route
	for r := range s.foreignRoutes(f, table) {
		if routing.Takes(r, device, his != nil, widest) && (!taken || compareRoutes(r, example) < 0) {
			example, taken = r, true
		}
	}
	switch {
	case !taken:
		return "", false
	case his != nil:
		return fmt.Sprintf("the rule %s and the route %s", his, s.textOf(example)), true
	default:
		return fmt.Sprintf("the route %s", s.textOf(example)), true
	}
}

// UseOf reports whether a table is in use, and by what, whoever made it: a rule that leads
// to it, or a route in it if it is one of ours.
func (s *State) UseOf(table routing.TableID) (what string, used bool) {
	for _, f := range routing.Families() {
		if what, used = s.ForeignIn(f, table); used {
			return what, true
		}
	}
	if s.rules.ours[table] > 0 {
		return "a rule of multihomed", true
	}
	if routes := s.OurRoutes(table); len(routes) > 0 {
		return fmt.Sprintf("the route %s", s.textOf(routes[0])), true
	}
	return "", false
}

// ForeignTables returns the tables that somebody else's rules lead to or routes
// stand in, as far as they are kept: all for rules, our range for routes.
func (s *State) ForeignTables() []routing.TableID {
	tables := map[routing.TableID]struct{}{}
	for t := range s.rules.lookups {
		tables[t] = struct{}{}
	}
	for t, aliases := range s.fib.byTable {
		for a := range aliases {
			if a.protocol() != routing.Multihomed {
				tables[t] = struct{}{}
				break
			}
		}
	}
	return slices.Sorted(maps.Keys(tables))
}

// Groups yields every interface index with its group.
func (s *State) Groups() iter.Seq2[int, uint32] {
	return func(yield func(int, uint32) bool) {
		for index, l := range s.links {
			if !yield(index, l.group) {
				return
			}
		}
	}
}

// Group returns the group of an interface.
func (s *State) Group(index int) (uint32, bool) {
	l := s.links[index]
	if l == nil {
		return 0, false
	}
	return l.group, true
}

// OwnsTable reports whether a table is one of those that are kept as ours.
func (s *State) OwnsTable(t routing.TableID) bool { return s.owns.OwnsTable(t) }
