package inspect

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"multihomed/cmd/internal/runstate"
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
	// rule of somebody else, or deleted it too often. It stays away for a while.
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
	// Until is when an object that stays away is put back, zero if that is not known; His
	// is the rule of somebody else in whose words it was deleted, empty if it was deleted
	// too often.
	Until time.Time
	His   string
}

// Lifts is the rule of somebody else that an object lifts over the ladder, in the
// words of `ip rule`; empty for all other objects.
func (o Object) Lifts() string {
	if o.Reason.Decision == routing.LiftForeign {
		return o.Reason.Prefix
	}
	return ""
}

// yieldsToLifted reports whether the object stays away for the rule that it lifts.
func (o Object) yieldsToLifted() bool { return o.State == Yielding && o.Lifts() != "" && o.His != "" }

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
	waiting := v.waitingPlaces()
	for _, op := range v.Missing {
		switch op.Verb {
		case routing.AddRule:
			rules[op.Rule] = Missing
		case routing.MoveRule:
			// It moves behind what is put back later, and is in its place until then.
			if _, waits := waiting[placeOfRule(op.Rule)]; !waits {
				rules[op.Rule] = Misplaced
			}
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
	away := v.away()
	for r := range v.Planner.Rules() {
		o := Object{Kind: Rule, Family: r.Rule.Family, State: stateOf(rules, r.Rule), Text: r.Rule.String(), Reason: r.Reason, Link: r.Reason.Link}
		o.waits(away)
		if o.State == Missing && r.Yields && v.Running {
			// The daemon may not have said so yet.
			o.State, o.His = Yielding, o.Lifts()
		}
		out = append(out, o)
	}
	planned := 0
	for r := range v.Planner.Routes() {
		if _, odd := routes[r.Route.Key()]; odd {
			planned++
		}
		name := v.device(r.Route.Device)
		o := Object{Kind: Route, Family: r.Route.Family, State: stateOf(routes, r.Route.Key()), Text: r.Route.Text(name), Reason: r.Reason, Link: r.Reason.Link}
		o.waits(away)
		out = append(out, o)
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

// objectKey tells objects apart that the daemon names.
type objectKey struct {
	family routing.Family
	text   string
}

// away is what the daemon says of objects that it puts back later.
func (v *View) away() map[objectKey]runstate.Away {
	out := map[objectKey]runstate.Away{}
	if !v.Running {
		return out
	}
	for _, a := range v.Daemon.Away {
		k := objectKey{a.Family, a.Text}
		if known, is := out[k]; !is || a.Until.After(known.Until) {
			out[k] = a
		}
	}
	return out
}

// A rulePlace is what rules share that have an order among themselves.
type rulePlace struct {
	family   routing.Family
	priority routing.Priority
}

func placeOfRule(r routing.Rule) rulePlace { return rulePlace{r.Family, r.Priority} }

// waitingPlaces are the priorities at which a rule is put back later.
func (v *View) waitingPlaces() map[rulePlace]struct{} {
	out := map[rulePlace]struct{}{}
	away := v.away()
	if len(v.Missing) == 0 || !v.Running {
		return out
	}
	yielding := map[routing.Rule]bool{}
	for _, r := range v.Planner.Shared() {
		yielding[r.Rule] = r.Yields
	}
	for _, op := range v.Missing {
		if _, waits := away[objectKey{op.Rule.Family, op.Rule.String()}]; op.Verb == routing.AddRule && (waits || yielding[op.Rule]) {
			out[placeOfRule(op.Rule)] = struct{}{}
		}
	}
	return out
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

// waits notes that a missing object is put back later.
func (o *Object) waits(away map[objectKey]runstate.Away) {
	if a, is := away[objectKey{o.Family, o.Text}]; is && o.State == Missing {
		o.State, o.Until, o.His = Yielding, a.Until, a.His
	}
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
