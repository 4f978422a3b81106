package routing

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
)

// Touched names the objects that may differ between the plan and the kernel.
// Only they are compared, so a pass costs what changed.
type Touched struct {
	Rules  map[Rule]struct{}
	Routes map[RouteKey]struct{}
	// Reranked rules exist and must move to another place among their equals.
	Reranked map[Rule]struct{}
	// Groups names interfaces by index.
	Groups map[int]struct{}
	// Links names the links whose plan was made anew. Nothing is compared for
	// them; who shows plans looks at these.
	Links map[int]struct{}
	// Foreign says that rules of others came or went: ours may have to move
	// behind them.
	Foreign bool
}

// NewTouched returns a Touched that names nothing and can be added to.
func NewTouched() Touched {
	return Touched{
		Rules: map[Rule]struct{}{}, Routes: map[RouteKey]struct{}{},
		Reranked: map[Rule]struct{}{}, Groups: map[int]struct{}{}, Links: map[int]struct{}{},
	}
}

// Empty reports whether there is nothing to compare.
func (t Touched) Empty() bool {
	return len(t.Rules) == 0 && len(t.Routes) == 0 && len(t.Reranked) == 0 && len(t.Groups) == 0 && !t.Foreign
}

// Merge adds what u names.
func (t *Touched) Merge(u Touched) {
	if t.Rules == nil {
		*t = NewTouched()
	}
	for k := range u.Rules {
		t.Rules[k] = struct{}{}
	}
	for k := range u.Routes {
		t.Routes[k] = struct{}{}
	}
	for k := range u.Reranked {
		t.Reranked[k] = struct{}{}
	}
	for k := range u.Groups {
		t.Groups[k] = struct{}{}
	}
	for k := range u.Links {
		t.Links[k] = struct{}{}
	}
	t.Foreign = t.Foreign || u.Foreign
}

// Everything touches all that is planned and all of ours that the kernel holds.
func Everything(want *Planner, have Kernel) Touched {
	t := NewTouched()
	t.Foreign = true
	for r := range want.rules {
		t.Rules[r] = struct{}{}
	}
	for r := range have.Rules() {
		t.Rules[r] = struct{}{}
	}
	for r := range want.allRoutes() {
		t.Routes[r.Route.Key()] = struct{}{}
	}
	for r := range have.Routes() {
		t.Routes[r.Key()] = struct{}{}
	}
	for index := range have.Groups() {
		t.Groups[index] = struct{}{}
	}
	return t
}

// Kernel is what the differ needs to know of the kernel: our objects and the
// groups of interfaces.
type Kernel interface {
	// Rules yields our rules in the order in which the kernel reads them; a
	// rule that stands twice comes twice.
	Rules() iter.Seq[Rule]
	// CountRule says how often a rule stands.
	CountRule(Rule) int
	// RuleOrder yields our rules of one family and priority in kernel order.
	RuleOrder(Family, Priority) []Rule
	// BandOrder yields all rules of one family and priority in kernel order.
	BandOrder(Family, Priority) []Rule
	// Routes yields our routes.
	Routes() iter.Seq[Route]
	// Route returns our route of a key.
	Route(RouteKey) (Route, bool)
	// OurRoutes returns our routes in a table, of both families.
	OurRoutes(TableID) []Route
	// CountRoute says how often our route of a key stands: IPv4 can hold several.
	CountRoute(RouteKey) int
	// Groups yields every interface index with its group.
	Groups() iter.Seq2[int, uint32]
	// Group returns the group of an interface, false if there is none.
	Group(index int) (uint32, bool)
}

// A Verb is what an operation does.
type Verb uint8

// Verbs, in the order in which one pass applies them. New comes before old, a
// route before the rules that lead to it, a rule goes before its routes.
const (
	SetGroup Verb = iota
	AddRoute
	// ReplaceRoute changes a route in place, where the kernel cannot hold the
	// old and the new one side by side.
	ReplaceRoute
	AddRule
	// MoveRule puts a rule behind its equals: added once more, then deleted
	// once, so that it never stops standing.
	MoveRule
	DeleteRule
	DeleteRoute
	ResetGroup
)

func (v Verb) String() string {
	switch v {
	case SetGroup:
		return "set group"
	case AddRoute:
		return "add route"
	case ReplaceRoute:
		return "replace route"
	case AddRule:
		return "add rule"
	case MoveRule:
		return "move rule"
	case DeleteRule:
		return "delete rule"
	case DeleteRoute:
		return "delete route"
	case ResetGroup:
		return "reset group"
	default:
		return fmt.Sprintf("verb %d", uint8(v))
	}
}

// An Op is one change of the kernel.
type Op struct {
	Verb Verb
	// Rule, Route or Index and Group are what the verb is about.
	Rule  Rule
	Route Route
	Index int
	Group uint32
	// Reason says why the object exists; a deletion has none.
	Reason Reason

	rank uint64
	// again marks a route that is deleted only to be added anew.
	again bool
	// last marks a group that is set behind the rules.
	last bool
}

// String renders the operation with interface indexes in place of names.
func (o Op) String() string { return o.Text(numbered) }

// Text renders the operation in the words of iproute2, with the names of interfaces.
func (o Op) Text(name func(index int) string) string {
	switch o.Verb {
	case SetGroup, ResetGroup:
		return fmt.Sprintf("%s of %s", o.Verb, o.Object(name))
	default:
		return fmt.Sprintf("%s %s", o.Verb, o.Object(name))
	}
}

// Object renders the rule or the route of the operation in the words of iproute2, or the group.
func (o Op) Object(name func(index int) string) string {
	switch o.Verb {
	case AddRule, MoveRule, DeleteRule:
		return o.Rule.String()
	case AddRoute, ReplaceRoute, DeleteRoute:
		return o.Route.Text(name(o.Route.Device))
	default:
		return fmt.Sprintf("%s to %d", name(o.Index), o.Group)
	}
}

// Diff returns the operations that make the kernel hold what the plan says, for
// the objects touched. mayDelete is asked for every object of ours that no link
// wants: only complete knowledge may delete.
func Diff(want *Planner, have Kernel, t Touched, mayDelete func(Op) bool) []Op {
	var ops []Op
	for index := range t.Groups {
		ops = diffGroup(ops, want, have, index)
	}
	asked := false
	for k := range t.Routes {
		if f, has := want.policy.FailoverTable(); has && k.Table == f && k.Family == IPv6 && k.Metric != thrownMetric {
			asked = true
			continue
		}
		ops = diffRoute(ops, want, have, t, k)
	}
	if asked {
		ops = diffFailover(ops, want, have)
	}
	// Rules that are wanted and stand may stand in the wrong place.
	var standing []*wanted[PlannedRule]
	for r := range t.Rules {
		w, stands := want.rules[r], have.CountRule(r)
		ops = diffRule(ops, w, stands, r)
		if w != nil && stands > 0 {
			standing = append(standing, w)
		}
	}
	ops = slices.DeleteFunc(ops, func(o Op) bool {
		return (o.Verb == DeleteRule || o.Verb == DeleteRoute || o.Verb == ResetGroup) && !o.again && !mayDelete(o)
	})
	return sorted(append(ops, moves(want, have, ops, standing, t)...))
}

// sorted puts the operations in the order of a pass. They are large: their
// numbers are sorted, and they are moved once.
func sorted(ops []Op) []Op {
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return compareOps(&ops[a], &ops[b]) })
	out := make([]Op, len(ops))
	for i, at := range order {
		out[i] = ops[at]
	}
	return out
}

func diffGroup(ops []Op, want *Planner, have Kernel, index int) []Op {
	now, ok := have.Group(index)
	if !ok {
		return ops
	}
	then := want.Group(index, now)
	if then == now {
		return ops
	}
	op := Op{Verb: ResetGroup, Index: index, Group: then}
	if then != 0 {
		op.Verb = SetGroup
		op.Reason = Reason{Decision: MarkUplink, Link: want.links[index].Link.Name}
		plan := want.links[index]
		op.last = standsFor(want, have, index) || plan.opens(IPv4) || plan.opens(IPv6)
	}
	return append(ops, op)
}

// standsFor reports whether a source of a link has rungs already. Its packets may go as
// main knows until the link is in the group: the table must be complete before. A link
// that has none is in the group before its rules, so that no packet of others meets it,
// unless it is an opening: packets of others that go to it as main knows must find the
// rungs of openings when main's are suppressed.
func standsFor(want *Planner, have Kernel, index int) bool {
	return slices.ContainsFunc(want.links[index].Rules, func(r PlannedRule) bool {
		return r.Rule.From.IsValid() && have.CountRule(r.Rule) > 0
	})
}

func diffRoute(ops []Op, want *Planner, have Kernel, t Touched, k RouteKey) []Op {
	w, wanted := want.Route(k)
	h, stands := have.Route(k)
	switch {
	case wanted && have.CountRoute(k) > 1:
		// An old one stands beside it. What is left is compared in the next pass.
		return append(ops, Op{Verb: DeleteRoute, Route: h, again: true})
	case wanted && !stands:
		return append(ops, Op{Verb: AddRoute, Route: w.Route, Reason: w.Reason})
	case wanted && h != w.Route && hasLegs(want, have, t, k):
		return append(ops,
			Op{Verb: DeleteRoute, Route: h, again: true},
			Op{Verb: AddRoute, Route: w.Route, Reason: w.Reason},
		)
	case wanted && h != w.Route:
		return append(ops, Op{Verb: ReplaceRoute, Route: w.Route, Reason: w.Reason})
	case !wanted && stands:
		return append(ops, Op{Verb: DeleteRoute, Route: h})
	default:
		return ops
	}
}

// diffFailover compares the ways of table F of IPv6 as a whole. Where it leads elsewhere one message
// replaces all of its ways: added beside them, the new ones would share the traffic with the
// old ones (fib6_add_rt2node in net/ipv6/ip6_fib.c).
func diffFailover(ops []Op, want *Planner, have Kernel) []Op {
	table, _ := want.policy.FailoverTable()
	planned := slices.DeleteFunc(slices.Clone(want.failover.table[familyIndex(IPv6)]), func(r PlannedRoute) bool { return r.Route.Metric == thrownMetric })
	missing, replaces := slices.Clone(planned), false
	var extra []Route
	for _, h := range have.OurRoutes(table) {
		if h.Family != IPv6 || h.Metric == thrownMetric {
			continue
		}
		if at := slices.IndexFunc(missing, func(w PlannedRoute) bool { return w.Route == h }); at >= 0 {
			missing = slices.Delete(missing, at, at+1)
			continue
		}
		extra = append(extra, h)
		replaces = replaces || h.IsDefault() && h.Metric == FirstMetric
	}
	switch {
	case len(missing) > 0 && (replaces || len(missing) < len(planned)):
		r := planned[0].Route
		legs := make([]Leg, 0, len(planned)-1)
		for _, w := range planned[1:] {
			legs = append(legs, Leg{Gateway: w.Route.Gateway, Device: w.Route.Device, OnLink: w.Route.OnLink, Weight: w.Route.Weight})
		}
		if len(legs) > 0 {
			r.Attributes = r.Attributes.With(func(rare *RareAttributes) { rare.Legs = PackLegs(legs) })
		}
		ops = append(ops, Op{Verb: ReplaceRoute, Route: r, Reason: planned[0].Reason})
		extra = slices.DeleteFunc(extra, func(h Route) bool { return h.IsDefault() && h.Metric == FirstMetric })
	default:
		for _, w := range missing {
			ops = append(ops, Op{Verb: AddRoute, Route: w.Route, Reason: w.Reason})
		}
	}
	for _, h := range extra {
		ops = append(ops, Op{Verb: DeleteRoute, Route: h})
	}
	return ops
}

// hasLegs reports whether other legs of the same IPv6 route stand. NLM_F_REPLACE
// would take the place of them all (net/ipv6/ip6_fib.c, fib6_add_rt2node), so
// one that changes is deleted and added: the others carry on.
func hasLegs(want *Planner, have Kernel, t Touched, k RouteKey) bool {
	if k.Family != IPv6 || !k.Gateway.IsValid() {
		return false
	}
	isLeg := func(o RouteKey) bool {
		if o == k || !o.Gateway.IsValid() {
			return false
		}
		o.Gateway, o.Device = k.Gateway, k.Device
		return o == k
	}
	for leg := range want.besides(k) {
		if isLeg(leg) {
			if _, stands := have.Route(leg); stands {
				return true
			}
		}
	}
	for leg := range t.Routes {
		if isLeg(leg) {
			if _, stands := have.Route(leg); stands {
				return true
			}
		}
	}
	return false
}

func diffRule(ops []Op, w *wanted[PlannedRule], stands int, r Rule) []Op {
	if w != nil && stands == 0 {
		return append(ops, Op{Verb: AddRule, Rule: r, Reason: w.object().Reason, rank: w.object().Rank})
	}
	keep := 0
	if w != nil {
		keep = 1
	}
	for range stands - keep {
		ops = append(ops, Op{Verb: DeleteRule, Rule: r})
	}
	return ops
}

// compareOps is the order of a pass. Where an uplink leaves, its source rules go
// before the rules that stop its stray packets, and the rules that protect
// everybody go last.
func compareOps(a, b *Op) int {
	if c := cmp.Compare(a.phase(), b.phase()); c != 0 {
		return c
	}
	switch a.phase() {
	case AddRoute:
		if c := compareDestinations(&a.Route, &b.Route, addOrder(&a.Route, &b.Route)); c != 0 {
			return c
		}
		// What is replaced comes before legs that are added to it, a deletion
		// before the addition of the same route.
		return cmp.Or(
			compareBool(b.Verb == ReplaceRoute, a.Verb == ReplaceRoute),
			compareNextHop(&a.Route, &b.Route),
			compareBool(b.again, a.again),
		)
	case DeleteRoute:
		return compareRoutes(&a.Route, &b.Route, addOrder(&b.Route, &a.Route))
	case AddRule:
		return cmp.Or(
			cmp.Compare(a.Rule.arriving(), b.Rule.arriving()),
			// A goto's target comes before it.
			compareArriving(&a.Rule, &b.Rule),
			cmp.Compare(a.Rule.Family, b.Rule.Family),
			cmp.Compare(a.rank, b.rank),
			compareSelectors(&a.Rule, &b.Rule),
		)
	case DeleteRule, behindGroups:
		return cmp.Or(
			cmp.Compare(a.Rule.leaving(), b.Rule.leaving()),
			cmp.Compare(a.Rule.Priority, b.Rule.Priority),
			cmp.Compare(a.Rule.Family, b.Rule.Family),
			compareSelectors(&a.Rule, &b.Rule),
		)
	case SetGroup, ResetGroup, behindRules:
		return cmp.Compare(a.Index, b.Index)
	default:
		return 0
	}
}

// compareRoutes orders routes of a table by the order that the kernel needs,
// and breaks ties.
func compareRoutes(a, b *Route, needed int) int {
	if c := compareDestinations(a, b, needed); c != 0 {
		return c
	}
	return compareNextHop(a, b)
}

func compareDestinations(a, b *Route, needed int) int {
	if c := cmp.Compare(a.Table, b.Table); c != 0 {
		return c
	}
	if needed != 0 {
		return needed
	}
	if c := a.Destination.Compare(b.Destination); c != 0 {
		return c
	}
	return cmp.Or(
		cmp.Compare(a.Family, b.Family),
		a.Source.Compare(b.Source),
		cmp.Compare(a.TOS, b.TOS),
		cmp.Compare(a.Metric, b.Metric),
	)
}

func compareNextHop(a, b *Route) int {
	return cmp.Or(a.Gateway.Compare(b.Gateway), cmp.Compare(a.Device, b.Device))
}

// behindRules is the step between rules that are added or moved and those that are
// deleted: no other step has the number of MoveRule.
const behindRules = MoveRule

// behindGroups is the last step: what is behind an interface in the group has rungs of
// its own as long as the group stands.
const behindGroups = ResetGroup + 1

// phase puts routes that are added and replaced, and rules that are added and
// moved, into one step each.
func (o *Op) phase() Verb {
	switch {
	case o.last:
		return behindRules
	case o.Verb == ReplaceRoute || o.again:
		return AddRoute
	case o.Verb == MoveRule:
		return AddRule
	case o.Verb == DeleteRule && o.Rule.opens():
		return behindGroups
	default:
		return o.Verb
	}
}

// arriving is the stage in which a rule is added, the same for all of a priority.
// What is lifted over the ladder must find its link behind it or inside of it, and whoever is
// lifted keeps his say from the first moment of the ladder.
func (r *Rule) arriving() int {
	switch {
	case r.ofFailover():
		return arrivingLast
	case r.Priority.behind():
		return 0
	case !r.inFront() && (r.inside() || r.Mark == anyMarkOwn || r.Action == ActionGoto):
		return 1
	case !r.inFront():
		return 4
	case r.Priority%2 == 1:
		// Whoever a complement leaves comes after it.
		return 3
	default:
		return 2
	}
}

// arrivingLast is the stage of the pair of failover: bound traffic has its rungs before.
const arrivingLast = 5

// inFront reports whether a priority is one of those at which gotos stand in front of
// the ladder.
func (r *Rule) inFront() bool {
	return r.Priority >= lowestStep && r.Priority < PriorityKnown && r.Priority != PriorityLocal && r.Priority != PriorityOverlap
}

// compareArriving orders rules of one stage: gotos from the back to the front, so
// that where they lead stands before them.
func compareArriving(a, b *Rule) int {
	if a.inFront() {
		return cmp.Compare(b.Priority, a.Priority)
	}
	return cmp.Compare(a.Priority, b.Priority)
}

// complemented reports whether a rule is for whoever a complement in front of it
// leaves: it is deleted before that. Such rules stand at odd priorities.
func (r *Rule) complemented() bool {
	return r.Action == ActionGoto && r.inFront() && r.Priority%2 == 1
}

// opens reports whether a rule is one of those of openings.
func (r *Rule) opens() bool {
	return r.Priority == PriorityOpening && !r.inside() || r.repeats() && r.Mark == anyMarkOpening || r.nested()
}

// nested reports whether a rule leads to a network inside of one behind an opening.
func (r *Rule) nested() bool {
	return r.Priority == PriorityNested && !r.inside() || r.repeats() && (r.Mark == anyMarkNested || r.Mark == anyMarkInner)
}

// leaving is the stage in which a rule is deleted: what leads to a link's table
// goes before the rule that stops stray packets, and that before the rules that
// protect everybody. Lifts go when there is nothing left to be lifted over.
func (r *Rule) leaving() int {
	stage := 0
	switch {
	case r.ofFailover():
		// The one that reads main goes last: without it F would answer for all.
		if r.Table == TableMain {
			return 1
		}
		return 0
	case r.complemented():
		return 3
	case r.Action == ActionGoto || r.Action == ActionNop:
		return 4
	case r.Action == ActionUnreachable || r.nested():
		// What is nested goes after the rungs that it stands in front of.
		stage = 1
	case r.Action == ActionLookup && (r.Table == TableMain || r.Table == TableLocal || r.SuppressGroup.Set):
		stage = 2
	}
	switch {
	case r.inside():
		return 5 + stage/2
	case r.Priority.behind():
		return 7 + stage
	default:
		return stage
	}
}
