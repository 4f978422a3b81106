package view

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// An Object is a rule, a route or the group of an interface: one that is planned, or one that
// is in the kernel without being planned.
type Object struct {
	Kind   Kind
	Family routing.Family
	State  status.State
	// Text is the object in the words of iproute2.
	Text   string
	Reason routing.Reason
	// Link is the interface that it serves, empty if it serves all.
	Link string
	// Until is when a deleted object comes back, zero if that is not known. His is the rule of
	// another program whose deletion matched the object too, empty if it was deleted too often.
	Until time.Time
	His   string

	// yields says that the object may stay away for a while, so that the rule that it lifts can be
	// deleted.
	yields bool
}

// Lifts is the rule of somebody else that an object lifts over the ladder, in the
// words of `ip rule`; empty for all other objects.
func (o Object) Lifts() string {
	if o.Reason.Decision == routing.LiftForeign {
		return o.Reason.Prefix
	}
	return ""
}

// YieldsToLifted reports whether the object stays away for the rule that it lifts.
func (o Object) YieldsToLifted() bool {
	return o.State == status.Yielding && o.Lifts() != "" && o.His != ""
}

// A Kind of objects.
type Kind string

// Kinds of objects.
const (
	Rule  Kind = "rule"
	Route Kind = "route"
	Group Kind = "group"
)

// Objects lists the planned objects, link by link in the order of the ladder, then the others
// of ours that are in the kernel.
func (v *View) Objects() []Object {
	if v.Snapshot == nil {
		all, _ := v.list()
		return all
	}
	if v.objects == nil {
		v.objects, v.odd = v.list()
	}
	return v.objects
}

// list lists the objects. Odd are the links whose objects are not just those of their
// plans, all in force.
func (v *View) list() (all []Object, odd map[string]bool) {
	states := map[objectKey]status.State{}
	routes := 0
	groups := map[int]status.State{}
	var extra []Object
	waiting := v.waitingPlaces()
	for _, op := range v.Missing {
		switch op.Verb {
		case routing.AddRule:
			states[objectKey{op.Rule.Family, op.Rule.String()}] = status.Missing
		case routing.MoveRule:
			// It moves behind rules that are restored later, and is in its place until then.
			if _, waits := waiting[placeOfRule(op.Rule)]; !waits {
				states[objectKey{op.Rule.Family, op.Rule.String()}] = status.Misplaced
			}
		case routing.AddRoute:
			routes++
			states[v.routeKey(op.Route)] = status.Missing
		case routing.ReplaceRoute:
			routes++
			states[v.routeKey(op.Route)] = status.Different
		case routing.DeleteRule:
			extra = append(extra, Object{Kind: Rule, Family: op.Rule.Family, State: status.Unexpected, Text: op.Rule.String(), Link: v.servedBy(op.Rule)})
		case routing.DeleteRoute:
			name := v.device(op.Route.Device)
			if op.Route.Type == routing.RouteThrow {
				name = "" // It leads by no interface.
			}
			extra = append(extra, Object{Kind: Route, Family: op.Route.Family, State: status.Unexpected, Text: op.Route.Text(name), Link: name})
		case routing.SetGroup:
			groups[op.Index] = status.Missing
		case routing.ResetGroup:
			name := v.device(op.Index)
			extra = append(extra, Object{Kind: Group, State: status.Unexpected, Text: v.groupText(name), Link: name})
		}
	}
	away := v.away()
	judged := len(states)+len(groups)+len(away) > 0
	odd = map[string]bool{}
	var links []*kept
	planned := 0
	for plan := range v.Planner.Links() {
		e := v.kept(&plan)
		links = append(links, e)
		planned += len(e.objects)
	}
	out, seen := make([]Object, 0, planned+len(v.Planner.Shared())+len(extra)), make(map[objectKey]struct{}, planned)
	found := 0
	take := func(index int, name string, objects []Object) {
		for _, o := range objects {
			k := objectKey{o.Family, o.Text}
			if o.Kind == Rule {
				if _, twice := seen[k]; twice {
					odd[name] = true // Another link has the same rule.
					continue
				}
				seen[k] = struct{}{}
			}
			if judged {
				if state, is := states[k]; is && o.Kind != Group {
					o.State = state
					if o.Kind == Route {
						found++
					}
				}
				if state, is := groups[index]; is && o.Kind == Group {
					o.State = state
				}
				o.waits(away)
				if o.State == status.Missing && o.yields && v.Running {
					// The daemon may not have said so yet.
					o.State, o.His = status.Yielding, o.Lifts()
				}
				odd[o.Link] = odd[o.Link] || o.State != status.InForce
			}
			out = append(out, o)
		}
	}
	for plan := range v.Planner.Links() {
		take(plan.Link.Index, plan.Link.Name, links[0].objects)
		links = links[1:]
	}
	shared := make([]Object, 0, len(v.Planner.Shared()))
	for _, r := range v.Planner.Shared() {
		shared = append(shared, ruleObject(r))
	}
	take(0, "", shared)
	if found < routes {
		extra = append(v.oddPaths(), extra...)
	}
	for _, o := range extra {
		odd[o.Link] = true
	}
	return append(out, extra...), odd
}

func (v *View) routeKey(r routing.Route) objectKey {
	return objectKey{r.Family, r.Text(v.device(r.Device))}
}

func ruleObject(r routing.PlannedRule) Object {
	return Object{Kind: Rule, Family: r.Rule.Family, State: status.InForce, Text: r.Rule.String(), Reason: r.Reason, Link: r.Reason.Link, yields: r.Yields}
}

// plannedObjects are the objects of a link's plan, as if all were in force.
func (v *View) plannedObjects(plan *routing.LinkPlan) []Object {
	rules := slices.SortedStableFunc(slices.Values(plan.Rules), routing.ComparePlanned)
	out := make([]Object, 0, len(rules)+len(plan.Routes)+1)
	for _, r := range rules {
		out = append(out, ruleObject(r))
	}
	for _, r := range plan.Routes {
		out = append(out, Object{Kind: Route, Family: r.Route.Family, State: status.InForce, Text: r.Route.Text(v.device(r.Route.Device)), Reason: r.Reason, Link: r.Reason.Link})
	}
	if plan.Group == v.Policy.UplinkGroup {
		out = append(out, Object{
			Kind: Group, State: status.InForce, Text: v.groupText(plan.Link.Name), Link: plan.Link.Name,
			Reason: routing.Reason{Decision: routing.MarkUplink, Link: plan.Link.Name},
		})
	}
	return out
}

// objectKey tells objects apart that the daemon names.
type objectKey struct {
	family routing.Family
	text   string
}

// away are the objects that the daemon restores later.
func (v *View) away() map[objectKey]reconcile.Away {
	out := map[objectKey]reconcile.Away{}
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

// waitingPlaces are the priorities at which a rule is restored later.
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

// Unplanned are the missing changes, without those of objects that stay away on purpose.
func (v *View) Unplanned() []routing.Op {
	if len(v.Missing) == 0 {
		return nil
	}
	away := v.away()
	yielding := map[routing.Rule]bool{}
	for _, p := range v.Planner.Shared() {
		yielding[p.Rule] = p.Yields && v.Running
	}
	var out []routing.Op
	for _, op := range v.Missing {
		_, waits := away[objectKey{op.Rule.Family, op.Rule.String()}]
		if op.Verb != routing.AddRule || !waits && !yielding[op.Rule] {
			out = append(out, op)
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
		state := status.Missing
		switch op.Verb {
		case routing.AddRoute:
		case routing.ReplaceRoute:
			state = status.Different
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

// waits notes that a missing object is restored later.
func (o *Object) waits(away map[objectKey]reconcile.Away) {
	if a, is := away[objectKey{o.Family, o.Text}]; is && o.State == status.Missing {
		o.State, o.Until, o.His = status.Yielding, a.Until, a.His
	}
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
