package reconcile

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"multihomed/routing"
)

// A Snapshot is how the host stood after a pass: one value that never changes, for
// whoever reads in another goroutine. What did not change since the one before it
// is shared with that.
type Snapshot struct {
	// Generation tells snapshots apart: two with the same number are the same.
	Generation uint64
	Policy     routing.Policy
	Report     Report
	// Interfaces are those of the kernel, by index.
	Interfaces []*Interface
	// Claims are what owners say, by interface name.
	Claims map[string]Claim
	// Others are the rules of others by family, in the order of [routing.Families]
	// and of the kernel.
	Others [2][]routing.ForeignRule
	// Mixed has the rules of priorities at which ours and those of others stand, in the
	// order of the kernel, by family in the order of [routing.Families].
	Mixed [2]map[routing.Priority][]routing.Rule
	// Lifts are the rules that serve all links.
	Lifts []routing.PlannedRule
	// Courses say which way unbound traffic goes, in the order of [routing.Families]; one of
	// a family without a table is the zero Course.
	Courses [2]routing.Course
	// Failover is what must stand in table F.
	Failover []routing.PlannedRoute
	// Answering are the facts of answers that this snapshot was planned by.
	Answering routing.Answers
	// Answers are the numbers of the tables by which packets are answered; Unnumbered counts the tables of uplinks that got none.
	Answers    routing.ByFamily[[]routing.Answer]
	Unnumbered routing.ByFamily[int]
	// Bindings are what is bound to links, in the order in which the first one counts.
	Bindings []routing.Binding
	// UplinkGroup is the interface group by which uplinks are told: that of the policy, or one
	// of the administrator that holds all of them and nothing else.
	UplinkGroup uint32
	// Missing is what keeps the kernel from being as planned.
	Missing []routing.Op
	// Contested are the rules and routes that somebody else keeps taking away: they
	// come back when their time has come.
	Contested []routing.Op
	// ForeignIn says who else uses a table that a link holds, in the family of its lease.
	ForeignIn map[routing.TableID]string
	// Paths counts the routes in a table that are not in the plan of its link here, because
	// there are many of them, as those of BGP, where there are any.
	Paths map[routing.TableID]int
	// Unread counts messages of the kernel that could not be read, UnreadFault is
	// the last fault.
	Unread      int
	UnreadFault error
	// Moves changes with everything that happens to interfaces, addresses and to
	// routes that are not ours, also to those that nobody plans with.
	Moves uint64
}

// An Interface is one interface in a snapshot.
type Interface struct {
	// Facts have no routes.
	Facts routing.Interface
	// Claim is what its owner says of it, by the name Said, if Claimed.
	Claim   Claim
	Said    string
	Claimed bool
	// IsLink says that the interface is planned.
	IsLink bool
	// Plan has the structure of the link, and among its Routes those of its paths where
	// these are few: very many go on changing, and nobody reads them.
	Plan routing.LinkPlan
	// Since is when its role or its ladder changed last, as far as this process knows.
	Since time.Time
}

// Links yields the plans of all links, by interface index.
func (s *Snapshot) Links() iter.Seq[routing.LinkPlan] {
	return func(yield func(routing.LinkPlan) bool) {
		for _, i := range s.Interfaces {
			if i.IsLink && !yield(i.Plan) {
				return
			}
		}
	}
}

// Interface returns one interface.
func (s *Snapshot) Interface(index int) (*Interface, bool) {
	at, found := slices.BinarySearchFunc(s.Interfaces, index, func(i *Interface, index int) int { return cmp.Compare(i.Facts.Index, index) })
	if !found {
		return nil, false
	}
	return s.Interfaces[at], true
}

// Link returns the plan of a link.
func (s *Snapshot) Link(index int) (routing.LinkPlan, bool) {
	if i, known := s.Interface(index); known && i.IsLink {
		return i.Plan, true
	}
	return routing.LinkPlan{}, false
}

// Bound returns which interfaces owners mean by the names that they use.
func (s *Snapshot) Bound() map[string]int {
	out := make(map[string]int, len(s.Interfaces))
	for _, i := range s.Interfaces {
		if i.Claimed {
			out[i.Said] = i.Facts.Index
		}
	}
	return out
}

// Foreign returns the rules of others in a family.
func (s *Snapshot) Foreign(f routing.Family) []routing.ForeignRule {
	if f == routing.IPv4 {
		return s.Others[0]
	}
	return s.Others[1]
}

// Shared returns the rules that serve all links.
func (s *Snapshot) Shared() []routing.PlannedRule { return s.Lifts }

var _ routing.Plans = (*Snapshot)(nil)

// Rules yields the rules that must exist: those of each link in the order of the
// ladder, then those that serve all.
func (s *Snapshot) Rules() iter.Seq[routing.PlannedRule] {
	return func(yield func(routing.PlannedRule) bool) {
		seen := map[routing.Rule]struct{}{}
		for _, i := range s.Interfaces {
			if !i.IsLink {
				continue
			}
			for _, r := range slices.SortedStableFunc(slices.Values(i.Plan.Rules), routing.ComparePlanned) {
				if _, known := seen[r.Rule]; known {
					continue
				}
				seen[r.Rule] = struct{}{}
				if !yield(r) {
					return
				}
			}
		}
		for _, r := range s.Lifts {
			if !yield(r) {
				return
			}
		}
	}
}

// FailoverRoutes is the field Failover, as [routing.Plans] has it.
func (s *Snapshot) FailoverRoutes() []routing.PlannedRoute { return s.Failover }

// Routes yields the routes that must exist, but for those that are left out of the plans
// here because they are many.
func (s *Snapshot) Routes() iter.Seq[routing.PlannedRoute] {
	return func(yield func(routing.PlannedRoute) bool) {
		for _, i := range s.Interfaces {
			if !i.IsLink {
				continue
			}
			for _, r := range i.Plan.Routes {
				if !yield(r) {
					return
				}
			}
		}
		for _, r := range s.Failover {
			if !yield(r) {
				return
			}
		}
	}
}

// Snapshot waits for a pass that takes up everything that happened so far and returns
// how the host stands then. Nothing is copied while nobody asks, and of what did not
// change nothing is made anew. Also, if not nil, is called in the loop's goroutine with
// the answer. Run must be running.
func (l *Loop) Snapshot(ctx context.Context, also func()) (*Snapshot, error) {
	answer := make(chan *Snapshot, 1)
	a := ask{look: func() {
		if also != nil {
			also()
		}
		answer <- l.snapshot()
	}}
	select {
	case l.asks <- a:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case s := <-answer:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A picture is what is kept for the next snapshot.
type picture struct {
	last *Snapshot
	// fresh says that nothing has happened since.
	fresh bool
	// announced is the generation that Hooks.Outdated was called for.
	announced uint64
	// structure changes with all that a snapshot has but routes of main and rules of others.
	structure uint64
	// interfaces are kept; those that are stale are made anew.
	interfaces map[int]*Interface
	stale      map[int]struct{}
	// claims are shared until one changes.
	claims map[string]Claim
	dates  Dates
	// earlier are those of the loop before, until every link is known.
	earlier Dates
}

// Dates are when links got their roles and their ladders, by the index of the interface.
type Dates map[int]date

type date struct {
	at    time.Time
	roles routing.ByFamily[routing.Role]
	rules []routing.PlannedRule
}

func newPicture(earlier Dates) picture {
	return picture{interfaces: map[int]*Interface{}, stale: map[int]struct{}{}, dates: Dates{}, earlier: earlier}
}

// Dates are for the next loop of this process. Run must have returned.
func (l *Loop) Dates() Dates {
	out := Dates{}
	maps.Copy(out, l.picture.earlier) // It may have ended before it knew of these.
	maps.Copy(out, l.picture.dates)
	return out
}

// spoil notes that the last snapshot is out of date.
func (p *picture) spoil() { p.fresh = false }

// restructure notes that it is out of date in more than routes: of some interfaces, or of what
// serves all.
func (p *picture) restructure(indexes ...int) {
	p.structure++
	p.spoilRoutes(indexes...)
}

// spoilRoutes notes that the routes of some interfaces are out of date in it.
func (p *picture) spoilRoutes(indexes ...int) {
	p.fresh = false
	for _, index := range indexes {
		p.stale[index] = struct{}{}
	}
}

func (d date) isOf(plan routing.LinkPlan) bool {
	return d.roles == plan.Roles && slices.Equal(d.rules, plan.Rules)
}

// dated notes when links got their roles and their ladders.
func (l *Loop) dated(t routing.Touched) {
	for index := range t.Links {
		l.picture.restructure(index)
		plan, is := l.planner.Link(index)
		if !is {
			delete(l.picture.dates, index)
			continue
		}
		old, known := l.picture.dates[index]
		if known && old.isOf(plan) {
			continue
		}
		now := date{at: l.now(), roles: plan.Roles, rules: plan.Rules}
		if old, known = l.picture.earlier[index]; known && old.isOf(plan) {
			now.at = old.at
			delete(l.picture.earlier, index) // Later it is a change.
		}
		l.picture.dates[index] = now
	}
}

// outdated reports whether something has happened since the last snapshot, or there is
// none.
func (l *Loop) outdated() bool {
	if !l.picture.fresh {
		return true
	}
	var moves uint64
	l.Mirror.View(func(k State) { moves = k.Moves() })
	return l.picture.last.Moves != moves
}

// Structure changes with interfaces, claims, links and the ways of unbound traffic, and not
// with routes of main or rules of others, of which there may be very many. It is for hooks,
// which the loop calls, and makes no snapshot.
func (l *Loop) Structure() uint64 { return l.picture.structure }

// OtherRules changes with the rules of others. It is for hooks, too.
func (l *Loop) OtherRules() uint64 { return l.otherRules }

// announce says that the next snapshot is another one than was announced last, whoever takes
// the snapshots.
func (l *Loop) announce() {
	next := uint64(1)
	if l.picture.last != nil {
		next = l.picture.last.Generation
		if l.outdated() {
			next++
		}
	}
	if next == l.picture.announced {
		return
	}
	l.picture.announced = next
	if l.Hooks.Outdated != nil {
		l.Hooks.Outdated()
	}
}

// snapshot returns the last one if nothing has happened since, or makes another.
func (l *Loop) snapshot() *Snapshot {
	p := &l.picture
	if !l.outdated() {
		return p.last
	}
	s := &Snapshot{
		Generation: 1, Policy: l.Policy, Report: l.reportNow(), Lifts: l.planner.Shared(),
		ForeignIn: map[routing.TableID]string{}, Paths: map[routing.TableID]int{},
	}
	if p.last != nil {
		s.Generation = p.last.Generation + 1
	}
	if p.claims == nil {
		p.claims = maps.Clone(l.claims)
	}
	s.Claims = p.claims
	for i, f := range routing.Families() {
		s.Others[i] = l.planner.Foreign(f)
		s.Courses[i], _ = l.planner.Course(f)
		s.Answers[i], s.Unnumbered[i] = l.planner.Answers(f)
	}
	s.Bindings = l.planner.Bindings()
	s.Failover, s.Answering, s.UplinkGroup = l.planner.FailoverRoutes(), l.planner.Answering(), l.planner.UplinkGroup()
	open, contested := l.open()
	l.Mirror.View(func(k State) {
		s.Moves = k.Moves()
		s.Unread, s.UnreadFault = k.Unread()
		for index := range p.stale {
			l.picturedAnew(k, index)
		}
		for i, f := range routing.Families() {
			s.Mixed[i] = mixed(k, f, s.Others[i])
		}
		s.Missing = routing.Diff(l.planner, k, open, func(op routing.Op) bool { return l.mayDelete(k, op) })
		for _, i := range p.interfaces {
			for key, t := range i.Plan.Link.Tables {
				if what, used := k.ForeignIn(key.Family, t); used {
					s.ForeignIn[t] = what
				}
				if n := k.CountRoutes(t) - structural(&i.Plan, t); n > 0 {
					s.Paths[t] = n
				}
			}
		}
	})
	clear(p.stale)
	for _, op := range s.Missing {
		o := object{rule: op.Rule}
		if op.Rule == (routing.Rule{}) {
			o = object{route: op.Route.Key()}
		}
		if _, is := contested[o]; is {
			s.Contested = append(s.Contested, op)
		}
	}
	s.Interfaces = slices.SortedFunc(maps.Values(p.interfaces), func(a, b *Interface) int { return cmp.Compare(a.Facts.Index, b.Facts.Index) })
	p.last, p.fresh = s, true
	return s
}

// mixed finds the priorities at which ours stand too, and says in which order.
func mixed(k State, f routing.Family, others []routing.ForeignRule) map[routing.Priority][]routing.Rule {
	out := map[routing.Priority][]routing.Rule{}
	for _, o := range others {
		p := o.Rule.Priority
		if _, known := out[p]; known {
			continue
		}
		out[p] = nil
		if len(k.RuleOrder(f, p)) > 0 {
			out[p] = k.BandOrder(f, p)
		}
	}
	maps.DeleteFunc(out, func(_ routing.Priority, order []routing.Rule) bool { return order == nil })
	return out
}

func (l *Loop) picturedAnew(k State, index int) {
	facts, exists := k.LinkFacts(index)
	if !exists {
		delete(l.picture.interfaces, index)
		return
	}
	i := &Interface{Facts: facts, Since: l.picture.dates[index].at}
	i.Claim, i.Said, i.Claimed = l.of(k, index)
	i.Plan, i.IsLink = l.planner.Link(index)
	i.Plan.Routes = slices.Concat(i.Plan.Routes, i.Plan.PathRoutes(fewPaths))
	l.picture.interfaces[index] = i
}

// fewPaths is how many paths of a link a snapshot has by themselves: more than anybody
// writes into a profile or a DHCP server, and fewer than a routing daemon brings.
const fewPaths = 100

// open names the objects that may differ from the plan after a pass: what was refused,
// what waits for its time, and what the mirror could not tell. All others were compared.
// Contested are those that somebody else takes away, and not for the sake of a rule of
// his own.
func (l *Loop) open() (open routing.Touched, contested map[object]struct{}) {
	open = routing.NewTouched()
	open.Merge(l.touched)
	for _, f := range l.failures {
		if f.op != (routing.Op{}) {
			touch(open, f.op)
		}
	}
	contested = map[object]struct{}{}
	for o, d := range l.deferred {
		open.Rules[o.rule] = struct{}{}
		open.Routes[o.route] = struct{}{}
		if d.his == (routing.Rule{}) {
			contested[o] = struct{}{}
		}
	}
	return open, contested
}

// structural counts the routes of a table that are in the plan of a link here.
func structural(plan *routing.LinkPlan, t routing.TableID) int {
	n := 0
	for i := range plan.Routes {
		if plan.Routes[i].Route.Table == t {
			n++
		}
	}
	return n
}
