package kerneltest

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// ProtocolKernel and ProtocolStatic are protocols of others (RTPROT_*).
const (
	ProtocolKernel routing.Protocol = 2
	ProtocolBoot   routing.Protocol = 3
	ProtocolStatic routing.Protocol = 4
	ProtocolRA     routing.Protocol = 9
	ProtocolDHCP   routing.Protocol = 16
)

// An Interface is one device of the host.
type Interface struct {
	Index int
	Name  string
	Up    bool
	// NotRunning says that it has no carrier.
	NotRunning bool
	Group      uint32
	Addresses  []routing.Address
}

// band is the rules of one family and priority: the kernel keeps them in the
// order in which they came (net/core/fib_rules.c, fib_nl_newrule).
type band struct {
	family   routing.Family
	priority routing.Priority
}

// fib is one table of one family.
type fib struct {
	family routing.Family
	table  routing.TableID
}

// A Kernel holds what a host's kernel holds. It implements routing.Kernel for
// the objects that the policy calls ours.
type Kernel struct {
	// Refuse, if set, is asked before every operation; an error of it is
	// returned in place of doing the operation.
	Refuse func(routing.Op) error
	// Step, if set, is called after every single change that an operation
	// makes: a rule that moves makes two.
	Step func(routing.Op)

	policy  routing.Policy
	mirrors []*Mirror
	// author is who makes the change that is being made.
	author     author
	interfaces map[int]*Interface
	bands      map[band][]routing.Rule
	counts     map[routing.Rule]int
	// came has the places of the copies of a rule in the order of additions, of which
	// additions is the last.
	came      map[routing.Rule][]uint64
	additions uint64
	routes    map[fib][]routing.Route
	own       map[routing.RouteKey]routing.Route
	// noted is what a subscriber would have heard of.
	noted routing.Touched
	// fuse counts down the changes until the kernel stops taking them; it is
	// negative where there is no end.
	fuse int
}

var _ routing.Kernel = (*Kernel)(nil)

// New returns the kernel of a host that has just booted: no interface, and the
// rules that lead to local, main and default.
func New(p routing.Policy) *Kernel {
	k := &Kernel{
		policy:     p,
		interfaces: map[int]*Interface{},
		bands:      map[band][]routing.Rule{},
		counts:     map[routing.Rule]int{},
		came:       map[routing.Rule][]uint64{},
		routes:     map[fib][]routing.Route{},
		own:        map[routing.RouteKey]routing.Route{},
		noted:      routing.NewTouched(),
		fuse:       -1,
	}
	for _, f := range routing.Families() {
		for priority, table := range map[routing.Priority]routing.TableID{
			0: routing.TableLocal, 32766: routing.TableMain, 32767: routing.TableDefault,
		} {
			if f == routing.IPv6 && table == routing.TableDefault {
				continue
			}
			k.insert(routing.Rule{Family: f, Priority: priority, Action: routing.ActionLookup, Table: table, Protocol: ProtocolKernel})
		}
	}
	return k
}

// Clone returns an independent kernel that holds the same, without the hooks.
func (k *Kernel) Clone() *Kernel {
	c := &Kernel{
		policy: k.policy, fuse: -1,
		interfaces: map[int]*Interface{}, bands: map[band][]routing.Rule{}, counts: maps.Clone(k.counts),
		routes: map[fib][]routing.Route{}, own: maps.Clone(k.own),
		came: maps.Clone(k.came), additions: k.additions,
		noted: routing.NewTouched(),
	}
	for index, i := range k.interfaces {
		c.interfaces[index] = &Interface{Index: i.Index, Name: i.Name, Up: i.Up, NotRunning: i.NotRunning, Group: i.Group, Addresses: slices.Clone(i.Addresses)}
	}
	for r, places := range c.came {
		c.came[r] = slices.Clone(places)
	}
	for b, rules := range k.bands {
		c.bands[b] = slices.Clone(rules)
	}
	for t, routes := range k.routes {
		c.routes[t] = slices.Clone(routes)
	}
	return c
}

// Rules yields our rules in the order in which the kernel reads them, IPv4
// first.
func (k *Kernel) Rules() iter.Seq[routing.Rule] {
	return func(yield func(routing.Rule) bool) {
		for r := range k.AllRules() {
			if k.policy.OwnsRule(r) && !yield(r) {
				return
			}
		}
	}
}

// AllRules yields the rules of everybody in the order in which the kernel reads
// them, IPv4 first.
func (k *Kernel) AllRules() iter.Seq[routing.Rule] {
	return func(yield func(routing.Rule) bool) {
		for _, f := range routing.Families() {
			for _, p := range k.priorities(f) {
				for _, r := range k.bands[band{f, p}] {
					if !yield(r) {
						return
					}
				}
			}
		}
	}
}

func (k *Kernel) priorities(f routing.Family) []routing.Priority {
	var out []routing.Priority
	for b, rules := range k.bands {
		if b.family == f && len(rules) > 0 {
			out = append(out, b.priority)
		}
	}
	slices.Sort(out)
	return out
}

// CountRule says how often one of our rules stands.
func (k *Kernel) CountRule(r routing.Rule) int {
	if !k.policy.OwnsRule(r) {
		return 0
	}
	return k.counts[r]
}

// RuleOrder yields our rules of one family and priority in kernel order.
func (k *Kernel) RuleOrder(f routing.Family, p routing.Priority) []routing.Rule {
	out := make([]routing.Rule, 0, len(k.bands[band{f, p}]))
	for _, r := range k.bands[band{f, p}] {
		if k.policy.OwnsRule(r) {
			out = append(out, r)
		}
	}
	return out
}

// BandOrder yields all rules of one family and priority in kernel order.
func (k *Kernel) BandOrder(f routing.Family, p routing.Priority) []routing.Rule {
	return slices.Clone(k.bands[band{f, p}])
}

// Foreign returns the rules of others of a family in kernel order.
func (k *Kernel) Foreign(f routing.Family) []routing.Rule {
	var out []routing.Rule
	for _, p := range k.priorities(f) {
		for _, r := range k.bands[band{f, p}] {
			if !k.policy.OwnsRule(r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// Routes yields our routes, in no order.
func (k *Kernel) Routes() iter.Seq[routing.Route] { return maps.Values(k.own) }

// Route returns our route of a key.
func (k *Kernel) Route(key routing.RouteKey) (routing.Route, bool) {
	r, ok := k.own[key]
	return r, ok
}

// OurRoutes returns our routes in a table.
func (k *Kernel) OurRoutes(t routing.TableID) []routing.Route {
	var out []routing.Route
	for _, f := range routing.Families() {
		for _, r := range k.AllRoutes(f, t) {
			if k.policy.OwnsRoute(r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// Defaults returns the default routes that main has of a family, the best first.
func (k *Kernel) Defaults(f routing.Family) []routing.Route {
	out := slices.DeleteFunc(slices.Clone(weighed(k.routes[fib{f, routing.TableMain}])), func(r routing.Route) bool { return !r.IsDefault() || r.TOS != 0 })
	slices.SortStableFunc(out, func(a, b routing.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	return out
}

// Thrown returns the destinations that main throws in a family, sorted.
func (k *Kernel) Thrown(f routing.Family) []netip.Prefix {
	var out []netip.Prefix
	main := k.routes[fib{f, routing.TableMain}]
	for i, r := range main {
		if r.Type != routing.RouteThrow || r.Source.IsValid() || r.TOS != 0 {
			continue
		}
		beaten := false
		for j, o := range main {
			if o.Type != routing.RouteThrow && routing.DestinationOf(o) == routing.DestinationOf(r) {
				beaten = beaten || o.Metric < r.Metric || o.Metric == r.Metric && j < i
			}
		}
		if !beaten {
			out = append(out, r.Destination)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// OwnAddresses returns the addresses of this host of a family.
func (k *Kernel) OwnAddresses(f routing.Family) []netip.Addr {
	var out []netip.Addr
	for _, index := range k.indexes() {
		for _, a := range k.interfaces[index].Addresses {
			if routing.FamilyOf(a.Prefix.Addr()) == f {
				out = append(out, a.Prefix.Addr())
			}
		}
	}
	return out
}

// SetRunning says whether an interface has its carrier, behind our back.
func (k *Kernel) SetRunning(index int, running bool) {
	defer k.actAs(nobody)()
	k.tell(event{index: index})
	k.interfaces[index].NotRunning = !running
}

// CountRoute says how often our route of a key stands: here never twice.
func (k *Kernel) CountRoute(key routing.RouteKey) int {
	if _, ok := k.own[key]; ok {
		return 1
	}
	return 0
}

// AllRoutes returns the routes of everybody in one table.
func (k *Kernel) AllRoutes(f routing.Family, t routing.TableID) []routing.Route {
	return slices.Clone(k.routes[fib{f, t}])
}

// Groups yields every interface index with its group.
func (k *Kernel) Groups() iter.Seq2[int, uint32] {
	return func(yield func(int, uint32) bool) {
		for index, i := range k.interfaces {
			if !yield(index, i.Group) {
				return
			}
		}
	}
}

// Group returns the group of an interface, false if there is none.
func (k *Kernel) Group(index int) (uint32, bool) {
	if i, ok := k.interfaces[index]; ok {
		return i.Group, true
	}
	return 0, false
}

// Interface returns one interface.
func (k *Kernel) Interface(index int) (Interface, bool) {
	if i, ok := k.interfaces[index]; ok {
		return *i, true
	}
	return Interface{}, false
}

// Facts returns the link as the kernel shows it: its state, its group, its
// addresses and the unicast routes that main has through it. What only the
// owner of the link knows is taken from l.
func (k *Kernel) Facts(l routing.Link) routing.Link {
	i, ok := k.interfaces[l.Index]
	if !ok {
		return l
	}
	l.Name, l.Up, l.NotRunning, l.Group, l.Addresses = i.Name, i.Up, i.NotRunning, i.Group, slices.Clone(i.Addresses)
	l.Routes = nil
	for _, f := range routing.Families() {
		for _, r := range k.routes[fib{f, routing.TableMain}] {
			if r.Device == l.Index && r.Type == routing.RouteUnicast {
				l.Routes = append(l.Routes, r)
			}
		}
	}
	return l
}

// Install makes the kernel hold the interface, the addresses and the routes of
// main that the link names, in place of what it held of the interface before.
// Main cannot hold every route of every link: what another link's route keeps
// out is left out, and Facts tells what came of it.
func (k *Kernel) Install(l routing.Link) {
	defer k.actAs(nobody)()
	k.tell(event{index: l.Index})
	k.noted.Groups[l.Index] = struct{}{}
	group := l.Group
	if old, ok := k.interfaces[l.Index]; ok {
		group = old.Group
	}
	k.interfaces[l.Index] = &Interface{Index: l.Index, Name: l.Name, Up: l.Up, NotRunning: l.NotRunning, Group: group, Addresses: slices.Clone(l.Addresses)}
	for _, f := range routing.Families() {
		k.flush(func(r routing.Route) bool {
			return r.Device == l.Index && r.Family == f && r.Table == routing.TableMain
		})
		if !l.Up || (f == routing.IPv4 && !k.hasAddress(l.Index, f)) {
			k.flush(func(r routing.Route) bool { return r.Device == l.Index && r.Family == f })
		}
	}
	if !l.Up {
		return
	}
	for _, r := range l.Routes {
		r.Table = routing.TableMain
		if r.Family == routing.IPv4 && !k.hasAddress(l.Index, routing.IPv4) {
			continue
		}
		_ = k.AddForeignRoute(r)
	}
}

// RemoveInterface takes an interface away, with all routes through it. Rules
// that name it stay (fib_rules_event).
func (k *Kernel) RemoveInterface(index int) {
	defer k.actAs(nobody)()
	k.tell(event{index: index})
	delete(k.interfaces, index)
	k.noted.Groups[index] = struct{}{}
	k.flush(func(r routing.Route) bool { return r.Device == index })
}

// SetGroup changes the group of an interface behind our back.
func (k *Kernel) SetGroup(index int, group uint32) {
	k.tell(event{index: index})
	k.interfaces[index].Group = group
	k.noted.Groups[index] = struct{}{}
}

// Take returns which objects of ours, and which interfaces, have changed since
// the last call, by whomever: what a subscriber to rtnetlink can know.
func (k *Kernel) Take() routing.Touched {
	t := k.noted
	k.noted = routing.NewTouched()
	return t
}

func (k *Kernel) hasAddress(index int, f routing.Family) bool {
	i, ok := k.interfaces[index]
	return ok && slices.ContainsFunc(i.Addresses, func(a routing.Address) bool { return routing.FamilyOf(a.Prefix.Addr()) == f })
}

func (k *Kernel) isLocal(a netip.Addr) bool {
	for _, i := range k.interfaces {
		for _, own := range i.Addresses {
			if own.Prefix.Addr() == a {
				return true
			}
		}
	}
	return false
}

func (k *Kernel) name(index int) string {
	if i, ok := k.interfaces[index]; ok {
		return i.Name
	}
	return ""
}

// indexes lists the interfaces in order.
func (k *Kernel) indexes() []int {
	return slices.SortedFunc(maps.Keys(k.interfaces), cmp.Compare[int])
}
