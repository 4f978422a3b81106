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
	Device  string
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
	absent  map[routing.RouteKey]struct{}
	// outside and others are by family.
	outside, others map[routing.Family][]target
	names           map[int]string
	// asked are the tables that are not a link's alone, by family.
	asked map[routing.Family][]routing.TableID
	// shared are addresses that several links have.
	shared map[netip.Addr]bool
	// owner is the link that has an address.
	owner map[netip.Addr]int
	// roles are those of links.
	roles map[int]routing.ByFamily[routing.Role]
	// byTable finds the planned routes of links.
	byTable map[routing.TableID][]routing.PlannedRoute
}

// placed is a rule with what orders those of one priority.
type placed struct {
	rule routing.Rule
	// foreign rules come first where the ladder stands behind them.
	rank uint64
	ours bool
}

// New makes a judge.
func New(f Facts) *Judge {
	j := &Judge{
		facts: f, missing: map[routing.Rule]struct{}{}, absent: map[routing.RouteKey]struct{}{},
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
			j.base = append(j.base, placed{rule: o.Rule})
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
		*to = append(*to, placed{rule: r.Rule, rank: r.Rank, ours: true})
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
	behind := func(p placed) int {
		switch {
		case !p.ours:
			return 1
		case p.rule.Priority == routing.PriorityAgain:
			return 2
		default:
			return 0
		}
	}
	slices.SortStableFunc(all, func(a, b placed) int {
		return cmp.Or(
			cmp.Compare(a.rule.Family, b.rule.Family), cmp.Compare(a.rule.Priority, b.rule.Priority),
			cmp.Compare(behind(a), behind(b)), cmp.Compare(a.rank, b.rank),
		)
	})
	return all
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
	tables         map[routing.Family]map[routing.TableID][]routing.Route
	partial        map[routing.Family]map[routing.TableID]bool
	outside, other map[routing.Family][]target
	missing        int
}

// Environment returns that of the judge.
func (j *Judge) Environment() Environment {
	e := Environment{base: j.base, partial: j.facts.Partial, outside: j.outside, other: j.others, missing: len(j.facts.Missing)}
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
	v := j.host.With(rules, tables).Lookup(lookup.Flow{To: most.to})
	if (v.Lacking || v.Uncertain) && j.facts.Ask != nil {
		a, err := j.facts.Ask(Probe{To: most.to})
		return j.names[a.Device], a.Table, err == nil && a.Device != 0
	}
	if v.Outcome != lookup.Sent || len(v.Legs) == 0 {
		return "", 0, false
	}
	return j.names[v.Legs[0].Device], v.Route.Table, true
}
