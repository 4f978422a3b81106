package routing

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// A Planner holds the facts of all links and what follows from them. Setting
// one link costs what that link's change affects, not what the host holds; the
// outcome depends on the facts alone, never on the order in which they came.
//
// A Planner is not safe for concurrent use.
type Planner struct {
	policy Policy
	links  map[int]*planned

	// foreign are the rules of others by family, around what they mean, lifts the
	// rules that lift them; all in the order of Families.
	foreign [2][]ForeignRule
	around  [2]surrounding
	lifts   [2][]PlannedRule
	// gone are rules of others that went just now.
	gone [2][]Rule
	// members counts interfaces by groups that are not ours, markedIn uplinks by
	// the group they are in.
	members, markedIn map[uint32]int

	// opening are the links that may be openings, wide what is behind those that are, by
	// family.
	opening [2]map[int]struct{}
	wide    [2]wide

	// standing says which links stand in a network, in what role.
	standing *standing
	// tables counts the tables in force by family: the rules that serve all
	// links exist while there is one.
	tables map[Family]int

	rules map[Rule]*wanted[PlannedRule]
	// routes are those of the structure of links. Those of paths are found by
	// byTable, the links that have a table, sorted.
	routes  map[RouteKey]*wanted[PlannedRoute]
	byTable map[TableID][]int
	bands   map[band]*bandIndex

	failover  failing
	answering answering
	binding   binding

	touched Touched
}

// planned is a plan with what it was made from besides the link's own facts.
type planned struct {
	LinkPlan
	near neighbourhood
	// version is the state of standing that near describes.
	version uint64
}

// wanted is an object with the links that want it. Two links with the same
// address share the rule that stops their stray packets, for example: the lowest
// rank speaks for it. A route has two owners while an interface is created
// again: the newest, which has the highest index, speaks for it.
type wanted[T any] struct {
	// owners are sorted by interface index; almost always there is one.
	owners []owner[T]
	// best is the place of the owner who speaks.
	best int
}

type owner[T any] struct {
	index  int
	object T
}

func (w *wanted[T]) object() *T { return &w.owners[w.best].object }

func (w *wanted[T]) find(index int) (at int, found bool) {
	return slices.BinarySearchFunc(w.owners, index, func(o owner[T], index int) int { return cmp.Compare(o.index, index) })
}

// set makes the object one owner's, drop takes it from him. What the best owner
// says must be settled anew after both.
func (w *wanted[T]) set(index int, object T) {
	at, found := w.find(index)
	if found {
		w.owners[at].object = object
		return
	}
	w.owners = slices.Insert(w.owners, at, owner[T]{index, object})
}

func (w *wanted[T]) drop(index int) bool {
	at, found := w.find(index)
	if found {
		w.owners = slices.Delete(w.owners, at, at+1)
	}
	return found
}

// Plans is a plan for readers: a Planner, or a snapshot of one.
type Plans interface {
	// Links yields the plans of all links, by interface index.
	Links() iter.Seq[LinkPlan]
	Link(index int) (LinkPlan, bool)
	// Foreign returns the rules of others in a family, in the order of the kernel.
	Foreign(Family) []ForeignRule
	// Shared returns the rules that serve all links.
	Shared() []PlannedRule
	Rules() iter.Seq[PlannedRule]
	Routes() iter.Seq[PlannedRoute]
	// FailoverRoutes returns what must stand in table F.
	FailoverRoutes() []PlannedRoute
}

var _ Plans = (*Planner)(nil)

// NewPlanner returns a planner that knows no link.
func NewPlanner(p Policy) *Planner {
	alone, _ := survey(IPv4, nil, p.UplinkGroup)
	return &Planner{
		policy:   p,
		links:    map[int]*planned{},
		around:   [2]surrounding{alone, alone},
		markedIn: map[uint32]int{},
		opening:  [2]map[int]struct{}{{}, {}},
		standing: newStanding(),
		tables:   map[Family]int{},
		rules:    map[Rule]*wanted[PlannedRule]{},
		routes:   map[RouteKey]*wanted[PlannedRoute]{},
		byTable:  map[TableID][]int{},
		bands:    map[band]*bandIndex{},
		failover: newFailing(),
		touched:  NewTouched(),
	}
}

// Plan returns a planner that knows these links: the complete plan of a state.
func Plan(p Policy, links []Link) *Planner {
	pl := NewPlanner(p)
	for _, l := range links {
		pl.Set(l)
	}
	return pl
}

// SetForeign takes the rules of others in one family, in the order in which the
// kernel reads them.
func (p *Planner) SetForeign(f Family, rules []ForeignRule) {
	i := familyIndex(f)
	if slices.Equal(p.foreign[i], rules) {
		return
	}
	p.foreign[i] = slices.Clone(rules)
	p.touched.Foreign = true
	p.survey(i)
	p.name(i)
	p.noteBlocked(i)
	p.answer(i)
}

// SetGone takes rules of others that went just now: whoever deletes them may go on
// until nothing has their words any more.
func (p *Planner) SetGone(f Family, rules []Rule) {
	i := familyIndex(f)
	p.gone[i] = slices.Clone(rules)
	p.name(i)
}

// MeantBy returns a rule of somebody else, one that stands or went just now, whose words
// are also those of a rule of ours: see [Rule.MeantBy].
func (p *Planner) MeantBy(r Rule) (his Rule, found bool) {
	i := familyIndex(r.Family)
	for _, o := range p.foreign[i] {
		if r.MeantBy(o.Rule) {
			return o.Rule, true
		}
	}
	for _, his := range p.gone[i] {
		if r.MeantBy(his) {
			return his, true
		}
	}
	return Rule{}, false
}

// Names reports whether there are guards while a rule of somebody else stands: it names a
// source that has some, or what this host sends.
func (p *Planner) Names(his Rule) bool {
	_, is := p.rules[unreachable(his.Family, his.From)]
	return is && names(his.From) || his.IIF == Loopback && p.tables[his.Family] > 0
}

// unreachable is rung "unreachable" of a source.
func unreachable(f Family, source netip.Prefix) Rule {
	return Rule{Family: f, Priority: PriorityUnreachable, From: source, IIF: sender(f), Action: ActionUnreachable, Protocol: Multihomed}
}

// name notes the sources and destinations that rules of others name. Only links that have a
// source which is new, or is no longer named, are planned again, and all if a network is one
// inside of an opening.
func (p *Planner) name(i int) {
	now, to, sender := map[netip.Prefix]struct{}{}, map[netip.Prefix]struct{}{}, false
	add := func(r Rule) {
		if names(r.From) {
			now[r.From] = struct{}{}
		}
		if names(r.To) {
			to[r.To] = struct{}{}
		}
		sender = sender || r.IIF == Loopback
	}
	for _, o := range p.foreign[i] {
		add(o.Rule)
	}
	for _, r := range p.gone[i] {
		add(r)
	}
	before, wasTo := p.around[i].named, p.around[i].namedTo
	p.around[i].named, p.around[i].namedTo = now, to
	nested := slices.ContainsFunc(p.around[i].nested, func(n nested) bool {
		return contains(wasTo, n.network) != contains(to, n.network)
	})
	if p.around[i].sender != sender || nested {
		if p.around[i].sender != sender {
			p.around[i].sender = sender
			p.chart(i)
		}
		for _, index := range p.indexes() {
			p.replanAsIs(index)
		}
	}
	affected := map[int]struct{}{}
	changed := func(a, b map[netip.Prefix]struct{}) {
		for prefix := range a {
			if contains(b, prefix) {
				continue
			}
			if w, ok := p.rules[unreachable(Families()[i], prefix)]; ok {
				for _, o := range w.owners {
					affected[o.index] = struct{}{}
				}
			}
		}
	}
	changed(before, now)
	changed(now, before)
	for _, index := range slices.Sorted(maps.Keys(affected)) {
		p.replanAsIs(index)
	}
}

// Foreign returns what SetForeign was given.
func (p *Planner) Foreign(f Family) []ForeignRule { return p.foreign[familyIndex(f)] }

// SetGroups takes how many interfaces are in each interface group.
func (p *Planner) SetGroups(members map[uint32]int) {
	p.members = members
	p.regroup()
}

func familyIndex(f Family) int {
	if f == IPv4 {
		return 0
	}
	return 1
}

// group is the interface group by which uplinks are told: ours, or that of the
// administrator if he has put them all into one that holds nothing else.
func (p *Planner) group() uint32 {
	if len(p.markedIn) != 1 {
		return p.policy.UplinkGroup
	}
	for group, uplinks := range p.markedIn {
		if p.members[group] == uplinks {
			return group
		}
	}
	return p.policy.UplinkGroup
}

func (p *Planner) regroup() {
	if p.group() == p.around[0].group {
		return
	}
	for i := range p.around {
		p.survey(i)
	}
	p.reopen()
	for i := range p.around {
		p.except(i)
	}
}

// survey looks at the rules of others anew. Where they mean something else for the
// links, those are planned again.
func (p *Planner) survey(i int) {
	before := p.around[i]
	var lifts []PlannedRule
	p.around[i], lifts = survey(Families()[i], p.foreign[i], p.group())
	p.around[i].named, p.around[i].namedTo, p.around[i].sender, p.around[i].unbound = before.named, before.namedTo, before.sender, before.unbound
	p.around[i].openings, p.around[i].refused, p.around[i].thrown = before.openings, before.refused, before.thrown
	p.around[i].throws, p.around[i].excepted = before.throws, before.excepted
	if p.tables[Families()[i]] > 0 {
		p.lift(i, lifts)
	}
	p.answer(i)
	p.bind(i)
	if before.equal(&p.around[i]) {
		return
	}
	if before.fullTunnel != p.around[i].fullTunnel || before.last != p.around[i].last {
		p.chart(i)
	}
	for _, index := range p.indexes() {
		p.replanAsIs(index)
	}
}

// indexes are those of all links, sorted.
func (p *Planner) indexes() []int { return slices.Sorted(maps.Keys(p.links)) }

// lift wants these lifts and no others in a family.
func (p *Planner) lift(i int, lifts []PlannedRule) {
	p.lifts[i] = p.replaceShared(p.lifts[i], lifts)
}

// Policy returns the policy the planner was made with.
func (p *Planner) Policy() Policy { return p.policy }

// Set takes the facts of one link in place of those it had. Its Routes are all that
// main has through the link.
func (p *Planner) Set(l Link) {
	var now *paths
	l.Routes, now = split(&l, Keys(l))
	if old, known := p.links[l.Index]; known && old.paths.equal(now) {
		now = old.paths
	}
	p.set(l, now)
}

// SetFacts is Set for a link whose paths are as they were: its Routes are the
// structure alone, as [Planner.Structure] returns it.
func (p *Planner) SetFacts(l Link) {
	old, known := p.links[l.Index]
	if !known {
		p.Set(l)
		return
	}
	keys := Keys(l)
	given := make(map[Destination]struct{}, len(l.Routes))
	for i := range l.Routes {
		given[DestinationOf(l.Routes[i])] = struct{}{}
	}
	s := p.shift(old)
	// A path whose destination decides something from now on is structure.
	l.Routes = slices.Clip(l.Routes)
	for to := range decisive(&l, keys) {
		if path, is := old.pathTo(to); is && !contains(given, Destination{To: to}) {
			l.Routes = path.routes(l.Routes, to)
		}
	}
	structure, loose := split(&l, keys)
	for i := range structure {
		if d := DestinationOf(structure[i]); d.plain() {
			if _, is := old.pathTo(d.To); is {
				s.set(pathKeyOf(d.To), nil)
			}
		}
	}
	s.end()
	l.Routes = structure
	p.set(l, old.paths)
	s = p.shift(p.links[l.Index])
	hadNone := len(old.paths.by) == 0
	var moved []netip.Prefix
	for k, path := range loose.by {
		s.set(k, path.routes(nil, k.prefix()))
		moved = append(moved, k.prefix())
	}
	s.end()
	p.repathed(l.Index, moved, hadNone)
	p.exceptPaths(l.Index, moved)
}

func (p *Planner) set(l Link, ps *paths) {
	old := p.links[l.Index]
	changed := p.replan(l, ps)
	p.regroup()
	p.replanAround(l.Index, changed)
	p.reopenIf(old, p.links[l.Index])
	p.exceptIf(old, p.links[l.Index])
}

// replanAsIs makes the plan of a link anew because of something else.
func (p *Planner) replanAsIs(index int) { p.replan(p.links[index].Link, p.links[index].paths) }

// Remove forgets a link: nothing of it is wanted any more.
func (p *Planner) Remove(index int) {
	old, ok := p.links[index]
	if !ok {
		return
	}
	delete(p.links, index)
	changed := p.standing.move(index, networksOf(&old.LinkPlan), nil)
	p.withdraw(index, &old.LinkPlan, nil)
	p.listTables(index, old, nil)
	p.repath(old, nil)
	p.count(&old.LinkPlan, nil)
	p.touched.Groups[index] = struct{}{}
	p.touched.Links[index] = struct{}{}
	p.listOpening(index, nil)
	p.noteExit(index, old, nil)
	p.answerIf(old, nil)
	p.bindIf(index)
	p.regroup()
	p.replanAround(index, changed)
	p.reopenIf(old, nil)
	p.exceptIf(old, nil)
}

// Link returns the plan of a link.
func (p *Planner) Link(index int) (LinkPlan, bool) {
	if plan, ok := p.links[index]; ok {
		return plan.LinkPlan, true
	}
	return LinkPlan{}, false
}

// Links yields the plans of all links, by interface index.
func (p *Planner) Links() iter.Seq[LinkPlan] {
	return func(yield func(LinkPlan) bool) {
		for _, index := range slices.Sorted(maps.Keys(p.links)) {
			if !yield(p.links[index].LinkPlan) {
				return
			}
		}
	}
}

// Rules yields the rules that must exist, in the order of the ladder.
func (p *Planner) Rules() iter.Seq[PlannedRule] {
	all := make([]PlannedRule, 0, len(p.rules))
	for _, w := range p.rules {
		all = append(all, *w.object())
	}
	slices.SortFunc(all, comparePlanned)
	return slices.Values(all)
}

// Shared returns the rules that serve all links, in the order of the ladder.
func (p *Planner) Shared() []PlannedRule {
	return slices.Concat(
		p.lifts[0], p.binding.rules[0], p.answering.rules[0], p.failover.rules[0],
		p.lifts[1], p.binding.rules[1], p.answering.rules[1], p.failover.rules[1])
}

// ComparePlanned orders rules as the ladder does.
func ComparePlanned(a, b PlannedRule) int { return comparePlanned(a, b) }

func comparePlanned(a, b PlannedRule) int {
	if c := cmp.Compare(a.Rule.Family, b.Rule.Family); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Rule.Priority, b.Rule.Priority); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Rank, b.Rank); c != 0 {
		return c
	}
	return compareSelectors(&a.Rule, &b.Rule)
}

// compareSelectors orders rules of one priority that nothing else orders. It finds an order
// for any two rules, so that the same plan and the same kernel give the same pass.
func compareSelectors(a, b *Rule) int {
	if c := cmp.Compare(a.Table, b.Table); c != 0 {
		return c
	}
	if c := cmp.Or(
		a.From.Compare(b.From),
		a.To.Compare(b.To),
		cmp.Compare(a.OIF, b.OIF),
		cmp.Compare(a.IIF, b.IIF),
	); c != 0 || *a == *b {
		return c
	}
	// Few rules differ in nothing but their other words: a suppressor, a mark, ports.
	return cmp.Compare(a.String(), b.String())
}

// Routes yields the routes that must exist, in the order in which they can be
// added.
func (p *Planner) Routes() iter.Seq[PlannedRoute] {
	all := slices.Collect(p.allRoutes())
	slices.SortFunc(all, func(a, b PlannedRoute) int {
		if c := cmp.Compare(a.Route.Family, b.Route.Family); c != 0 {
			return c
		}
		return compareRoutes(&a.Route, &b.Route, addOrder(&a.Route, &b.Route))
	})
	return slices.Values(all)
}

// Rule returns the wanted rule that is equal to r.
func (p *Planner) Rule(r Rule) (PlannedRule, bool) {
	if w, ok := p.rules[r]; ok {
		return *w.object(), true
	}
	return PlannedRule{}, false
}

// Route returns the wanted route of a key.
func (p *Planner) Route(k RouteKey) (PlannedRoute, bool) {
	r, index, found := p.pathRoute(k)
	if w, ok := p.routes[k]; ok && (!found || w.owners[w.best].index > index) {
		return *w.object(), true
	}
	return r, found
}

// allRoutes yields the wanted routes in no order.
func (p *Planner) allRoutes() iter.Seq[PlannedRoute] {
	return func(yield func(PlannedRoute) bool) {
		for k, w := range p.routes {
			r := *w.object()
			if len(p.byTable[k.Table]) > 1 {
				r, _ = p.Route(k)
			}
			if !yield(r) {
				return
			}
		}
		for index, plan := range p.links {
			for r := range plan.pathRoutes() {
				if len(p.byTable[r.Route.Table]) > 1 && !p.speaks(index, r.Route.Key()) {
					continue
				}
				if !yield(r) {
					return
				}
			}
		}
	}
}

// speaks reports whether it is for a link's path to say what a route is like, which
// no structure wants.
func (p *Planner) speaks(index int, k RouteKey) bool {
	if _, wanted := p.routes[k]; wanted {
		return false
	}
	_, best, _ := p.pathRoute(k)
	return best == index
}

// besides yields the keys of the routes that the links which want a route want to
// the same destination.
func (p *Planner) besides(k RouteKey) iter.Seq[RouteKey] {
	return func(yield func(RouteKey) bool) {
		if w, ok := p.routes[k]; ok {
			for _, o := range w.owners {
				for i := range p.links[o.index].Routes {
					if !yield(p.links[o.index].Routes[i].Route.Key()) {
						return
					}
				}
			}
		}
		for _, index := range p.byTable[k.Table] {
			plan := p.links[index]
			if _, is := plan.pathTo(k.Destination); !is {
				continue
			}
			for _, r := range plan.routesTo(nil, pathKeyOf(k.Destination)) {
				if !yield(r.Route.Key()) {
					return
				}
			}
		}
	}
}

// Group returns the interface group a link must be in. An interface that is no
// link must not be in ours.
func (p *Planner) Group(index int, now uint32) uint32 {
	plan, ok := p.links[index]
	return markedGroup(p.policy, ok && plan.marked, now)
}

// Take returns what of the plan has changed since the last call.
func (p *Planner) Take() Touched {
	t := p.touched
	p.touched = NewTouched()
	return t
}

// Changed reports whether Take would return something to compare.
func (p *Planner) Changed() bool { return !p.touched.Empty() }

// replan makes the plan of one link from its facts, puts it in force, and
// returns the networks in which it came, went or changed its role.
func (p *Planner) replan(l Link, ps *paths) []netip.Prefix {
	old := p.links[l.Index]
	now := &planned{LinkPlan: LinkPlan{Link: l, Keys: Keys(l), paths: ps}}
	now.decideRoles()
	var before *LinkPlan
	if old != nil {
		before = &old.LinkPlan
	}
	changed := p.standing.move(l.Index, networksOf(before), networksOf(&now.LinkPlan))
	if old != nil && len(changed) == 0 && old.version == p.standing.version {
		now.near = old.near
	} else {
		now.near = p.neighbourhoodOf(&now.LinkPlan)
	}
	now.version = p.standing.version
	now.plan(p.policy, now.near, &p.around)
	p.links[l.Index] = now
	p.listOpening(l.Index, now)
	p.count(before, &now.LinkPlan)
	p.touched.Links[l.Index] = struct{}{}
	p.enforce(l.Index, before, &now.LinkPlan)
	p.withdraw(l.Index, before, &now.LinkPlan)
	p.listTables(l.Index, old, now)
	p.repath(old, now)
	if before == nil || before.Group != now.Group || before.Link.Group != l.Group {
		p.touched.Groups[l.Index] = struct{}{}
	}
	p.noteExit(l.Index, old, now)
	p.answerIf(old, now)
	p.bindIf(l.Index)
	return changed
}

// neighbourhoodOf compares the networks of a link with those of all others.
func (p *Planner) neighbourhoodOf(plan *LinkPlan) neighbourhood {
	n := neighbourhood{crowded: map[netip.Prefix]bool{}, overlap: map[netip.Prefix]bool{}, local: map[netip.Prefix]bool{}}
	for _, k := range plan.Keys {
		if k.OfHosts() {
			continue // By address in any case.
		}
		for other, who := range p.standing.overlapping(k.Prefix) {
			for index, role := range who {
				if index == plan.Link.Index {
					continue
				}
				n.crowded[k.Prefix] = true
				n.local[k.Prefix] = n.local[k.Prefix] || role == Local
				// The same network twice: main knows one way into it, and at
				// the rung of containers that way wins where it is no uplink.
				// A network inside another one needs no help on the outer
				// link: the longer prefix wins in main, which is what keeps a
				// bridge inside a LAN's network reachable.
				own := plan.Roles.In(k.Family)
				same := other == k.Prefix && (role == Local || own == Local)
				inner := other.Bits() < k.Prefix.Bits() && role == Local && own == Local
				if same || inner {
					n.overlap[k.Prefix] = true
				}
			}
		}
	}
	return n
}

// replanAround makes new plans for the links that share addresses with networks
// in which one link came, went or changed its role.
func (p *Planner) replanAround(index int, changed []netip.Prefix) {
	affected := map[int]struct{}{}
	for _, n := range changed {
		for _, who := range p.standing.overlapping(n) {
			for i := range who {
				if i != index {
					affected[i] = struct{}{}
				}
			}
		}
	}
	for _, i := range slices.Sorted(maps.Keys(affected)) {
		p.replanAsIs(i)
	}
}

// enforce wants what the new plan needs.
func (p *Planner) enforce(index int, old, now *LinkPlan) {
	if old == nil || !slices.Equal(old.Rules, now.Rules) {
		for _, r := range now.Rules {
			p.wantRule(index, r)
		}
	}
	routes := now.Routes
	if old != nil {
		_, routes = differing(old.Routes, now.Routes)
	}
	for _, r := range routes {
		p.wantRoute(index, r)
	}
	p.countTables(old, now)
}

// withdraw drops what the old plan wanted and the new one does not.
func (p *Planner) withdraw(index int, old, now *LinkPlan) {
	switch {
	case old == nil:
		return
	case now == nil:
		p.countTables(old, nil)
		now = &LinkPlan{}
	}
	if !slices.Equal(old.Rules, now.Rules) {
		keep := make(map[Rule]struct{}, len(now.Rules))
		for i := range now.Rules {
			keep[now.Rules[i].Rule] = struct{}{}
		}
		for i := range old.Rules {
			if _, kept := keep[old.Rules[i].Rule]; !kept {
				p.dropRule(index, old.Rules[i].Rule)
			}
		}
	}
	if before, after := differing(old.Routes, now.Routes); len(before) > 0 {
		keep := make(map[RouteKey]struct{}, len(after))
		for i := range after {
			keep[after[i].Route.Key()] = struct{}{}
		}
		for i := range before {
			if k := before[i].Route.Key(); !contains(keep, k) {
				p.dropRoute(index, k)
			}
		}
	}
}

// differing returns what is left of two lists of routes without what both begin and end with: a
// table may throw a thousand routes, of which one comes or goes.
func differing(a, b []PlannedRoute) (restOfA, restOfB []PlannedRoute) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

func contains[K comparable](set map[K]struct{}, k K) bool {
	_, ok := set[k]
	return ok
}

// replaceShared wants these rules that serve all links in place of others, and returns them.
func (p *Planner) replaceShared(before, now []PlannedRule) []PlannedRule {
	if slices.Equal(before, now) {
		return before
	}
	keep := make(map[Rule]struct{}, len(now))
	for _, r := range now {
		keep[r.Rule] = struct{}{}
		p.wantRule(shared, r)
	}
	for _, r := range before {
		if !contains(keep, r.Rule) {
			p.dropRule(shared, r.Rule)
		}
	}
	return now
}

// shared is the owner of the rules that serve all links. Interface indexes
// start at 1.
const shared = 0

// countTables keeps the rules that serve all links of a family while a table of
// it is in force.
func (p *Planner) countTables(old, now *LinkPlan) {
	count := func(plan *LinkPlan, by int) {
		if plan == nil {
			return
		}
		for _, k := range plan.Keys {
			if _, ok := plan.Link.Tables[k]; ok {
				p.tables[k.Family] += by
			}
		}
	}
	before := [...]bool{p.tables[IPv4] > 0, p.tables[IPv6] > 0}
	count(now, 1)
	count(old, -1)
	if now != nil {
		p.countFailover(&now.Link, 1)
	}
	if old != nil {
		p.countFailover(&old.Link, -1)
	}
	for i, f := range Families() {
		if now := p.tables[f] > 0; now != before[i] {
			var lifts []PlannedRule
			if now {
				_, lifts = survey(f, p.foreign[i], p.group())
			}
			p.lift(i, lifts)
		}
	}
}

// count keeps the number of uplinks by the group they are in.
func (p *Planner) count(old, now *LinkPlan) {
	group := func(plan *LinkPlan) (uint32, bool) {
		if plan == nil || !plan.marked {
			return 0, false
		}
		return plan.Group, true
	}
	if g, marked := group(now); marked {
		p.markedIn[g]++
	}
	if g, marked := group(old); marked {
		if p.markedIn[g]--; p.markedIn[g] == 0 {
			delete(p.markedIn, g)
		}
	}
}

func (p *Planner) wantRule(index int, r PlannedRule) {
	w, known := p.rules[r.Rule]
	if !known {
		w = &wanted[PlannedRule]{}
		p.rules[r.Rule] = w
		p.touched.Rules[r.Rule] = struct{}{}
	} else if at, ok := w.find(index); ok && w.owners[at].object == r {
		return
	}
	p.settleRule(w, func() { w.set(index, r) })
}

func (p *Planner) dropRule(index int, r Rule) {
	w, ok := p.rules[r]
	if !ok {
		return
	}
	if _, owns := w.find(index); !owns {
		return
	}
	p.settleRule(w, func() { w.drop(index) })
	if len(w.owners) == 0 {
		delete(p.rules, r)
		p.touched.Rules[r] = struct{}{}
	}
}

// settleRule changes the owners of a rule, chooses who speaks for it, and notes
// a change of its rank: the kernel keeps rules of one priority in the order in
// which they were added.
func (p *Planner) settleRule(w *wanted[PlannedRule], change func()) {
	known := len(w.owners) > 0
	var before PlannedRule
	if known {
		before = *w.object()
	}
	change()
	w.best = 0
	for i := range w.owners {
		if w.owners[i].object.Rank < w.object().Rank {
			w.best = i
		}
	}
	stays := len(w.owners) > 0
	if known && stays && w.object().Rank == before.Rank {
		return
	}
	if known {
		p.band(before.Rule).remove(&before, w)
	}
	if stays {
		p.band(w.object().Rule).add(w.object(), w)
	}
	if known && stays {
		p.touched.Reranked[before.Rule] = struct{}{}
	}
}

func (p *Planner) wantRoute(index int, r PlannedRoute) {
	k := r.Route.Key()
	w, known := p.routes[k]
	if !known {
		w = &wanted[PlannedRoute]{}
		p.routes[k] = w
	} else if at, ok := w.find(index); ok && w.owners[at].object == r {
		return
	}
	p.settleRoute(k, w, func() { w.set(index, r) })
}

func (p *Planner) dropRoute(index int, k RouteKey) {
	w, ok := p.routes[k]
	if !ok {
		return
	}
	p.settleRoute(k, w, func() { w.drop(index) })
	if len(w.owners) == 0 {
		delete(p.routes, k)
	}
}

func (p *Planner) settleRoute(k RouteKey, w *wanted[PlannedRoute], change func()) {
	var before, now Route
	if len(w.owners) > 0 {
		before = w.object().Route
	}
	change()
	w.best = len(w.owners) - 1
	if len(w.owners) > 0 {
		now = w.object().Route
	}
	if before != now {
		p.touched.Routes[k] = struct{}{}
	}
}
