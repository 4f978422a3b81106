// Package outcome checks whether traffic of links leaves by them: every address and
// device of a link, to the outside, to its own gateway and to the networks of other
// links. It asks package lookup, and the kernel where a fact is missing. It is pure:
// facts go in, verdicts come out.
package outcome

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Facts are what outcomes depend on.
type Facts struct {
	Policy     routing.Policy
	Plans      routing.Plans
	Interfaces []lookup.Interface
	// Tables are local, main and those that rules of others lead to; of ours only those
	// that somebody else uses too. All others of ours are as planned.
	Tables map[routing.Family]map[routing.TableID][]routing.Route
	// Partial are tables that were not read, or not whole.
	Partial map[routing.Family]map[routing.TableID]bool
	// Mixed has the rules of priorities at which ours and those of others stand, in the
	// order of the kernel. Where it has none, those of others come first.
	Mixed map[routing.Family]map[routing.Priority][]routing.Rule
	// Missing is what keeps the kernel from being as planned.
	Missing []routing.Op
	// Unsettled reports links that are not to be judged: they come or go.
	Unsettled func(name string) bool
	// Ask asks the kernel, where the facts are not enough; nil if it cannot be asked.
	Ask func(Probe) (Answer, error)
}

// A Probe is one packet that is bound to a link, by its source or by its device.
type Probe struct {
	// From is zero for a socket that is bound to the device Device.
	From   netip.Addr
	To     netip.Addr
	Device string
}

// An Answer is what the kernel says of a probe.
type Answer struct {
	// Device is the index of the interface, zero where the packet is refused.
	Device int
	Table  routing.TableID
	// Bits is the length of the route's destination.
	Bits int
}

// A Goal is where a probe goes.
type Goal uint8

// Goals.
const (
	Outside Goal = iota
	Gateway
	OtherNetwork
)

func (g Goal) String() string {
	return [...]string{"the internet", "its own gateway", "the networks of other links"}[g]
}

// A target is a destination that stands for all that are treated alike.
type target struct {
	goal Goal
	to   netip.Addr
	// parts is how many parts of the outside it stands for.
	parts int
	// of is the link whose network it is in.
	of int
}

// A Stray is a probe that did not leave by its link.
type Stray struct {
	Probe
	Family routing.Family
	Link   string
	Goal   Goal
	// Parts of All parts of the outside are treated so.
	Parts, All int
	// Refused says that the packet is refused; else it leaves by Device.
	Refused bool
	// Assumed says that it is refused only so far: the kernel finds no route, and takes the
	// destination for a neighbor on the device that the socket is bound to.
	Assumed bool
	// Local says that the host keeps it to itself.
	Local  bool
	Device string
	// Rule is that of somebody else which decides, if one does.
	Rule routing.Rule
	// Route is what decides if no rule of somebody else does, Table where it is.
	Route routing.Route
	Table routing.TableID
	// Piece says that a route of its own decides, longer than the pieces in which
	// somebody writes a default.
	Piece bool
	// Missing is the rule or route of ours that would have decided, if it is missing.
	Missing string
}

// A Judge knows what is common to all links.
type Judge struct {
	facts Facts
	host  *lookup.Host
	// base are the rules that any packet may meet, by family in the order of the kernel.
	base []placed
	// last are the rungs behind main: what is bound to a link does not come so far.
	last    []placed
	missing map[routing.Rule]struct{}
	// at is the place of rules of Facts.Mixed, from 1 on.
	at     map[routing.Rule]int
	absent map[routing.RouteKey]struct{}
	// outside and others are by family.
	outside, others map[routing.Family][]target
	names           map[int]string
	// asked are the tables that are not a link's alone, by family.
	asked map[routing.Family][]routing.TableID
	// shared are addresses that several links have.
	shared map[netip.Addr]bool
	// owner is the link that has an address.
	owner map[netip.Addr]int
	roles map[int]routing.ByFamily[routing.Role]
	// byTable finds the planned routes of links.
	byTable map[routing.TableID][]routing.PlannedRoute
}

// placed is a rule with what orders those of one priority.
type placed struct {
	rule routing.Rule
	rank uint64
	ours bool
	// at is the place among the rules of its priority where others stand there too.
	at int
}

// New makes a judge.
func New(f Facts) *Judge {
	j := &Judge{
		facts: f, missing: map[routing.Rule]struct{}{}, at: map[routing.Rule]int{}, absent: map[routing.RouteKey]struct{}{},
		outside: map[routing.Family][]target{}, others: map[routing.Family][]target{}, names: map[int]string{}, asked: map[routing.Family][]routing.TableID{},
		shared: map[netip.Addr]bool{}, owner: map[netip.Addr]int{}, roles: map[int]routing.ByFamily[routing.Role]{}, byTable: map[routing.TableID][]routing.PlannedRoute{},
	}
	for _, op := range f.Missing {
		switch op.Verb {
		case routing.AddRule:
			j.missing[op.Rule] = struct{}{}
		case routing.AddRoute, routing.ReplaceRoute:
			j.absent[op.Route.Key()] = struct{}{}
		default:
			// It stands, in the wrong place or too much.
		}
	}
	for _, priorities := range f.Mixed {
		for _, rules := range priorities {
			for i, r := range slices.Backward(rules) {
				j.at[r] = i + 1 // A rule that stands twice is asked where it stands first.
			}
		}
	}
	for _, i := range f.Interfaces {
		j.names[i.Index] = i.Name
	}
	j.host = &lookup.Host{Interfaces: f.Interfaces, Tables: f.Tables, Partial: f.Partial}
	j.host.Index()
	j.collect()
	for _, family := range routing.Families() {
		j.asked[family] = slices.Sorted(maps.Keys(f.Tables[family]))
		j.outside[family] = j.outsideOf(family)
		j.others[family] = j.networksOf(family)
	}
	return j
}

// collect finds the rules that are not for one link alone, and what links share.
func (j *Judge) collect() {
	for _, f := range routing.Families() {
		for _, o := range j.facts.Plans.Foreign(f) {
			j.base = append(j.base, placed{rule: o.Rule, at: j.at[o.Rule]})
		}
	}
	for _, r := range j.facts.Plans.Shared() {
		j.add(&j.base, r)
	}
	for plan := range j.facts.Plans.Links() {
		j.roles[plan.Link.Index] = plan.Roles
		for _, t := range plan.Link.Tables {
			j.byTable[t] = plan.Routes
		}
		for _, r := range plan.Rules {
			switch {
			case r.Rule.From.IsValid() || r.Rule.OIF != "":
			case r.Rule.Priority > routing.PriorityMain:
				j.add(&j.last, r)
			default:
				j.add(&j.base, r)
			}
		}
		for _, a := range plan.Link.Addresses {
			if other, known := j.owner[a.Prefix.Addr()]; known && other != plan.Link.Index {
				j.shared[a.Prefix.Addr()] = true
			}
			j.owner[a.Prefix.Addr()] = plan.Link.Index
		}
	}
}

func (j *Judge) add(to *[]placed, r routing.PlannedRule) {
	if _, missing := j.missing[r.Rule]; !missing {
		*to = append(*to, placed{rule: r.Rule, rank: r.Rank, ours: true, at: j.at[r.Rule]})
	}
}

// rules merges the rules of a link with those of all.
func (j *Judge) rules(plan *routing.LinkPlan) []routing.Rule {
	all := slices.Clip(j.base)
	for _, r := range plan.Rules {
		if r.Rule.From.IsValid() || r.Rule.OIF != "" {
			j.add(&all, r)
		}
	}
	out := make([]routing.Rule, 0, len(all))
	for _, p := range sorted(slices.Clone(all)) {
		out = append(out, p.rule)
	}
	return out
}

// sorted puts rules into the order of the kernel.
func sorted(all []placed) []placed {
	slices.SortStableFunc(all, func(a, b placed) int {
		return cmp.Or(
			cmp.Compare(a.rule.Family, b.rule.Family), cmp.Compare(a.rule.Priority, b.rule.Priority), cmp.Compare(a.at, b.at),
			compareBool(a.ours, b.ours), cmp.Compare(a.rank, b.rank),
		)
	})
	return all
}

// compareBool puts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// tables are those of a link as planned, and those of other links that its rules lead to,
// without what is missing, but for those that were read.
func (j *Judge) tables(plan *routing.LinkPlan) map[routing.Family]map[routing.TableID][]routing.Route {
	out := map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}}
	add := func(r routing.PlannedRoute) {
		if _, absent := j.absent[r.Route.Key()]; absent {
			return
		}
		if _, read := j.facts.Tables[r.Route.Family][r.Route.Table]; read {
			return
		}
		out[r.Route.Family][r.Route.Table] = append(out[r.Route.Family][r.Route.Table], r.Route)
	}
	seen := map[routing.TableID]bool{}
	for _, t := range plan.Link.Tables {
		seen[t] = true
	}
	for _, r := range plan.Routes {
		add(r)
	}
	for _, r := range plan.Rules {
		if t := r.Rule.Table; r.Rule.Action == routing.ActionLookup && !seen[t] {
			seen[t] = true
			for _, route := range j.byTable[t] {
				if route.Route.Table == t {
					add(route)
				}
			}
		}
	}
	return out
}

// Environment is what the verdicts about a link depend on besides the link's own plan.
// While two of them are the same, only links that changed need to be judged anew.
type Environment struct {
	base           []placed
	mixed          map[routing.Family]map[routing.Priority][]routing.Rule
	tables         map[routing.Family]map[routing.TableID][]routing.Route
	partial        map[routing.Family]map[routing.TableID]bool
	outside, other map[routing.Family][]target
	// names are the other names of interfaces.
	names   []lookup.Interface
	missing int
}

// Environment returns that of the judge.
func (j *Judge) Environment() Environment {
	e := Environment{base: j.base, mixed: j.facts.Mixed, partial: j.facts.Partial, outside: j.outside, other: j.others, missing: len(j.facts.Missing)}
	for _, i := range j.facts.Interfaces {
		if len(i.AltNames) > 0 {
			e.names = append(e.names, lookup.Interface{Index: i.Index, AltNames: i.AltNames, Detached: i.Detached})
		}
	}
	e.tables = map[routing.Family]map[routing.TableID][]routing.Route{}
	for f, tables := range j.facts.Tables {
		e.tables[f] = map[routing.TableID][]routing.Route{}
		for t, routes := range tables {
			switch t {
			case routing.TableLocal:
			case routing.TableMain:
				// What main has through links that are as they were is as it was.
				e.tables[f][t] = slices.DeleteFunc(slices.Clone(routes), func(r routing.Route) bool {
					_, is := j.roles[r.Device]
					return is
				})
			default:
				e.tables[f][t] = routes
			}
		}
	}
	return e
}

// Same reports whether verdicts of the one are those of the other.
func (e Environment) Same(o Environment) bool {
	return e.missing == 0 && o.missing == 0 && reflect.DeepEqual(e, o)
}

// Unbound returns the interface that packets bound to nothing leave by to the outside,
// with the table that says so; false where they do not leave.
func (j *Judge) Unbound(f routing.Family) (device string, table routing.TableID, sent bool) {
	var most target
	for _, t := range j.outside[f] {
		if t.parts > most.parts {
			most = t
		}
	}
	if most.parts == 0 {
		return "", 0, false
	}
	rules := make([]routing.Rule, 0, len(j.base)+len(j.last))
	for _, p := range sorted(slices.Concat(j.base, j.last)) {
		rules = append(rules, p.rule)
	}
	tables := map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}}
	for plan := range j.facts.Plans.Links() {
		for family, some := range j.tables(&plan) {
			maps.Copy(tables[family], some)
		}
	}
	for _, r := range j.facts.Plans.FailoverRoutes() {
		if _, absent := j.absent[r.Route.Key()]; !absent {
			in := tables[r.Route.Family]
			in[r.Route.Table] = append(in[r.Route.Table], r.Route)
		}
	}
	host := j.host.With(rules, tables)
	v := host.Lookup(lookup.Flow{To: most.to})
	if from := j.sourceFor(most.to); f == routing.IPv6 && v.Outcome != lookup.Sent && from.IsValid() {
		// Its default may be for some sources only.
		v = host.Lookup(lookup.Flow{From: from, To: most.to})
	}
	if (v.Lacking || v.Uncertain) && j.facts.Ask != nil {
		a, err := j.facts.Ask(Probe{To: most.to})
		return j.names[a.Device], a.Table, err == nil && a.Device != 0
	}
	if v.Outcome != lookup.Sent || len(v.Legs) == 0 {
		return "", 0, false
	}
	return j.names[v.Legs[0].Device], v.Route.Table, true
}

// sourceFor is the address that the kernel gives to an IPv6 packet which has none while no
// route for it is known: RFC 6724, section 5, as far as addresses of links differ in it.
func (j *Judge) sourceFor(to netip.Addr) netip.Addr {
	var best routing.Address
	for plan := range j.facts.Plans.Links() {
		for _, a := range plan.Link.Addresses {
			from := a.Prefix.Addr()
			if !plan.Link.Up || !from.Is6() || from.IsLinkLocalUnicast() || a.Tentative || a.Failed {
				continue
			}
			if !best.Prefix.IsValid() || cmp.Or(
				compareBool(a.Deprecated, best.Deprecated), compareBool(from.IsPrivate(), best.Prefix.Addr().IsPrivate()),
				cmp.Compare(common(best.Prefix, to), common(a.Prefix, to)),
			) < 0 {
				best = a
			}
		}
	}
	return best.Prefix.Addr()
}

// common is how many bits of an address's prefix a destination shares (RFC 6724, section 2.2).
func common(p netip.Prefix, to netip.Addr) int {
	n := 0
	for n < p.Bits() && netip.PrefixFrom(p.Addr(), n+1).Masked().Contains(to) {
		n++
	}
	return n
}
