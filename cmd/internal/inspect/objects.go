package inspect

import (
	"net/netip"
	"slices"
	"strconv"

	"multihomed/routing"
)

// A State says how an object of ours is in the kernel.
type State string

// States of objects.
const (
	InForce State = "in force"
	Missing State = "missing"
	// Different: a route stands with other attributes.
	Different State = "different"
	// Misplaced: a rule stands behind one that it must precede.
	Misplaced State = "misplaced"
	// Yielding: somebody deleted a rule of ours in words that are also those of a
	// rule of somebody else. It stays away for a while.
	Yielding State = "yields"
	// Unexpected: it carries our mark and nobody wants it.
	Unexpected State = "unexpected"
)

// An Object is a rule, a route or the group of an interface that is planned, or
// stands and is not.
type Object struct {
	Kind   Kind
	Family routing.Family
	State  State
	// Text is the object in the words of iproute2.
	Text   string
	Reason routing.Reason
	// Link is the interface that it serves, empty if all.
	Link string
}

// Lifts is the rule of somebody else that an object lifts over the ladder, in the
// words of `ip rule`; empty for all other objects.
func (o Object) Lifts() string {
	if o.Reason.Decision == routing.LiftForeign {
		return o.Reason.Prefix
	}
	return ""
}

// A Kind of objects.
type Kind string

// Kinds of objects.
const (
	Rule  Kind = "rule"
	Route Kind = "route"
	Group Kind = "group"
)

// Objects lists what is planned, in the order of the ladder, then what stands
// without being planned.
func (v *View) Objects() []Object {
	if v.snapshot == nil {
		return v.list()
	}
	if v.objects == nil {
		v.objects = v.list()
	}
	return v.objects
}

func (v *View) list() []Object {
	rules := map[routing.Rule]State{}
	routes := map[routing.RouteKey]State{}
	groups := map[int]State{}
	var extra []Object
	for _, op := range v.Missing {
		switch op.Verb {
		case routing.AddRule:
			rules[op.Rule] = Missing
		case routing.MoveRule:
			rules[op.Rule] = Misplaced
		case routing.AddRoute:
			routes[op.Route.Key()] = Missing
		case routing.ReplaceRoute:
			routes[op.Route.Key()] = Different
		case routing.DeleteRule:
			extra = append(extra, Object{Kind: Rule, Family: op.Rule.Family, State: Unexpected, Text: op.Rule.String(), Link: v.servedBy(op.Rule)})
		case routing.DeleteRoute:
			name := v.device(op.Route.Device)
			extra = append(extra, Object{Kind: Route, Family: op.Route.Family, State: Unexpected, Text: op.Route.Text(name), Link: name})
		case routing.SetGroup:
			groups[op.Index] = Missing
		case routing.ResetGroup:
			name := v.device(op.Index)
			extra = append(extra, Object{Kind: Group, State: Unexpected, Text: v.groupText(name), Link: name})
		}
	}
	var out []Object
	for r := range v.Planner.Rules() {
		state := stateOf(rules, r.Rule)
		if state == Missing && v.Running && v.yields(r.Rule) {
			state = Yielding
		}
		out = append(out, Object{Kind: Rule, Family: r.Rule.Family, State: state, Text: r.Rule.String(), Reason: r.Reason, Link: r.Reason.Link})
	}
	planned := 0
	for r := range v.Planner.Routes() {
		if _, odd := routes[r.Route.Key()]; odd {
			planned++
		}
		name := v.device(r.Route.Device)
		out = append(out, Object{Kind: Route, Family: r.Route.Family, State: stateOf(routes, r.Route.Key()), Text: r.Route.Text(name), Reason: r.Reason, Link: r.Reason.Link})
	}
	if planned < len(routes) {
		out = append(out, v.oddPaths()...)
	}
	for plan := range v.Planner.Links() {
		if plan.Group != v.Policy.UplinkGroup {
			continue
		}
		name := plan.Link.Name
		out = append(out, Object{
			Kind: Group, State: stateOf(groups, plan.Link.Index), Text: v.groupText(name), Link: name,
			Reason: routing.Reason{Decision: routing.MarkUplink, Link: name},
		})
	}
	return append(out, extra...)
}

// yields reports whether a rule that is missing stays away for the sake of a rule of
// somebody else that has its words: the daemon puts it back when its time has come.
func (v *View) yields(r routing.Rule) bool {
	if v.yielding == nil {
		v.yielding = map[routing.Rule]bool{}
		for _, p := range v.Planner.Shared() {
			if p.Yields {
				v.yielding[p.Rule] = true
			}
		}
	}
	if v.yielding[r] {
		return true
	}
	if v.snapshot == nil {
		return false
	}
	// The daemon knows what it defers, and for whom: what is not contested yields.
	return v.snapshot.Deferred[r]
}

// oddPaths lists routes that are not as planned and that the plan does not list, because
// there may be very many of them.
func (v *View) oddPaths() []Object {
	listed := map[routing.RouteKey]struct{}{}
	for r := range v.Planner.Routes() {
		listed[r.Route.Key()] = struct{}{}
	}
	var out []Object
	for _, op := range v.Missing {
		state := Missing
		switch op.Verb {
		case routing.AddRoute:
		case routing.ReplaceRoute:
			state = Different
		default:
			continue
		}
		if _, is := listed[op.Route.Key()]; is {
			continue
		}
		name := v.device(op.Route.Device)
		out = append(out, Object{Kind: Route, Family: op.Route.Family, State: state, Text: op.Route.Text(name), Reason: op.Reason, Link: name})
	}
	return out
}

func stateOf[K comparable](odd map[K]State, k K) State {
	if s, ok := odd[k]; ok {
		return s
	}
	return InForce
}

func (v *View) groupText(name string) string {
	return "link " + name + " group " + strconv.FormatUint(uint64(v.Policy.UplinkGroup), 10)
}

// device is the name of an interface.
func (v *View) device(index int) string {
	if plan, ok := v.Planner.Link(index); ok {
		return plan.Link.Name
	}
	for name, l := range v.Links {
		if l.Index == index {
			return name
		}
	}
	return "if" + strconv.Itoa(index)
}

// servedBy finds the link of a rule that nobody wants.
func (v *View) servedBy(r routing.Rule) string {
	if r.OIF != "" {
		return r.OIF
	}
	for plan := range v.Planner.Links() {
		for _, t := range plan.Link.Tables {
			if r.Action == routing.ActionLookup && t == r.Table {
				return plan.Link.Name
			}
		}
		if r.From.IsValid() && slices.ContainsFunc(plan.Link.Addresses, func(a routing.Address) bool { return holds(r.From, a) }) {
			return plan.Link.Name
		}
	}
	return ""
}

func holds(p netip.Prefix, a routing.Address) bool { return p.Contains(a.Prefix.Addr()) }
