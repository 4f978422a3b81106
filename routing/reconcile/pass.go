package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// pass plans the dirty interfaces and applies what differs.
func (l *Loop) pass(ctx context.Context, tries map[string]int) {
	before := l.plan(ctx)
	planned := l.planner.Take()
	l.retire(planned)
	l.noteProblems(planned)
	l.touched.Merge(planned)

	var ops []routing.Op
	l.Mirror.View(func(k *kernel.State) { ops = routing.Diff(l.planner, k, l.touched, l.mayDelete) })
	l.touched = routing.NewTouched()
	ops = l.withoutEndless(ctx, ops, tries)
	errs := l.Writer.Apply(ctx, ops)
	failed := 0
	for i, op := range ops {
		if i < len(errs) && errs[i] != nil {
			failed++
			l.refused(ctx, op, errs[i])
			continue
		}
		l.applied(ctx, op)
		// What was written is compared once more when the mirror has it.
		l.touched.Add(op)
	}
	if failed == 0 && len(l.failures) == 0 {
		l.attempt = 0
	}
	l.logLinks(ctx, before, ops, failed)
}

// maxTries is how often the same operation may follow from one event.
const maxTries = 4

// withoutEndless drops operations that come back although the kernel said that
// it did them: trying again at once would not help.
func (l *Loop) withoutEndless(ctx context.Context, ops []routing.Op, tries map[string]int) []routing.Op {
	return slices.DeleteFunc(ops, func(op routing.Op) bool {
		name := op.String()
		tries[name]++
		if tries[name] <= maxTries {
			return false
		}
		l.refused(ctx, op, errUndone)
		return true
	})
}

var errUndone = errors.New("done several times, and undone each time")

// retire remembers which objects a known link has given up: they may be deleted
// however little is known of the rest.
func (l *Loop) retire(t routing.Touched) {
	if l.retired.Rules == nil {
		l.retired = routing.NewTouched()
	}
	for r := range t.Rules {
		if _, wanted := l.planner.Rule(r); wanted {
			delete(l.retired.Rules, r)
		} else {
			l.retired.Rules[r] = struct{}{}
		}
	}
	for k := range t.Routes {
		if _, wanted := l.planner.Route(k); wanted {
			delete(l.retired.Routes, k)
		} else {
			l.retired.Routes[k] = struct{}{}
		}
	}
	for index := range t.Groups {
		l.retired.Groups[index] = struct{}{}
	}
}

func (l *Loop) mayDelete(op routing.Op) bool {
	if l.complete {
		return true
	}
	switch op.Verb { //nolint:exhaustive // it is asked for deletions only
	case routing.DeleteRule:
		// One of two equal rules may always go.
		if _, wanted := l.planner.Rule(op.Rule); wanted {
			return true
		}
		_, retired := l.retired.Rules[op.Rule]
		return retired
	case routing.DeleteRoute:
		_, retired := l.retired.Routes[op.Route.Key()]
		return retired
	default:
		_, retired := l.retired.Groups[op.Index]
		return retired
	}
}

// subject is one interface in a pass.
type subject struct {
	link routing.Link
	keys []routing.Key
}

// plan hands the facts of the dirty interfaces to the planner, and returns the
// plans they had before.
func (l *Loop) plan(ctx context.Context) map[int]routing.LinkPlan {
	dirty := slices.Sorted(maps.Keys(l.dirty))
	clear(l.dirty)
	before := make(map[int]routing.LinkPlan, len(dirty))
	var links []subject
	var missing []routing.Key
	for _, index := range dirty {
		plan, planned := l.planner.Link(index)
		before[index] = plan
		l.touched.Groups[index] = struct{}{}
		s, is := l.subject(index)
		if !is {
			l.forget(index)
			continue
		}
		if planned && hasWay(plan.Link) && !hasWay(s.link) {
			// The owner may have changed its mind about the link being an uplink.
			l.Owners.Poke(s.link.Name)
		}
		links = append(links, s)
		for _, k := range s.keys {
			if _, held := l.held[index][k]; !held {
				missing = append(missing, k)
			}
		}
	}
	leased := l.lease(ctx, missing)
	for _, s := range links {
		s.link.Tables = l.hold(s, leased)
		l.planner.Set(s.link)
	}
	return before
}

// subject returns the facts of an interface, false if it is no link.
func (l *Loop) subject(index int) (subject, bool) {
	var facts kernel.Link
	var exists, was bool
	l.Mirror.View(func(k *kernel.State) {
		if facts, exists = k.Link(index); exists {
			was = l.was(k, index, facts.Name)
		}
	})
	if !exists {
		delete(l.known, index)
		return subject{}, false
	}
	claim, claimed := l.claims[facts.Name]
	if claimed {
		l.known[index] = facts.Name
	}
	s := subject{link: LinkOf(facts, claim)}
	s.keys = routing.Keys(s.link)
	switch claim.Standing {
	case Link:
		return s, true
	case Draining:
		return s, was && len(s.keys) > 0
	default:
		return s, false
	}
}

// LinkOf puts together what the kernel and the owner say of an interface.
func LinkOf(facts kernel.Link, claim Claim) routing.Link {
	return routing.Link{
		Name: facts.Name, Index: facts.Index, Up: facts.Up, Group: facts.Group,
		Addresses: facts.Addresses, Routes: facts.Routes, Intents: claim.Intents,
	}
}

// was reports whether the interface was a link until now: to this process, or
// to the one before it, which left a rule for the device.
func (l *Loop) was(k *kernel.State, index int, name string) bool {
	if _, seen := l.known[index]; seen {
		_, was := l.planner.Link(index)
		return was
	}
	return len(TablesOf(k, name)) > 0
}

// TablesOf returns the tables that our rules in the kernel give an interface.
func TablesOf(k *kernel.State, name string) []routing.TableID {
	var out []routing.TableID
	for _, f := range routing.Families() {
		for _, r := range k.RuleOrder(f, routing.PriorityDevice) {
			if r.OIF == name {
				out = append(out, r.Table)
			}
		}
	}
	return out
}

func hasWay(l routing.Link) bool {
	return slices.ContainsFunc(l.Routes, func(r routing.Route) bool { return r.Gateway.IsValid() || r.IsDefault() })
}

func (l *Loop) forget(index int) {
	l.planner.Remove(index)
	for k := range l.held[index] {
		l.unhold(k)
	}
	delete(l.held, index)
}

func (l *Loop) unhold(k routing.Key) {
	if l.holders[k]--; l.holders[k] <= 0 {
		delete(l.holders, k)
		l.released = append(l.released, k)
	}
}

// lease gets tables for keys, all in one transaction.
func (l *Loop) lease(ctx context.Context, keys []routing.Key) map[routing.Key]routing.TableID {
	if len(keys) == 0 {
		return nil
	}
	used := l.tablesInUse()
	leased, err := l.Leases.Acquire(ctx, keys, func(t routing.TableID) (string, bool) {
		if why, taken := l.Reserved(t); taken {
			return why, true
		}
		why, taken := used[t]
		return why, taken
	})
	if err == nil || ctx.Err() != nil {
		return leased
	}
	for _, k := range keys {
		if _, ok := leased[k]; !ok {
			l.fail(ctx, "table of "+k.String(), routing.Problem{Severity: routing.Error, Link: k.Interface, Text: err.Error()})
		}
	}
	return leased
}

// tablesInUse says of every table number that is in use by what. Ours count:
// what stands may be the rest of a link that holds no lease any more.
func (l *Loop) tablesInUse() map[routing.TableID]string {
	used := map[routing.TableID]string{}
	l.Mirror.View(func(k *kernel.State) {
		for r := range k.Rules() {
			used[r.Table] = "rule " + r.String()
		}
		for r := range k.Routes() {
			used[r.Table] = "route " + r.String()
		}
		for _, t := range k.ForeignTables() {
			used[t], _ = k.ForeignIn(t)
		}
	})
	for name, tables := range l.reserved {
		for _, t := range tables {
			used[t] = "the profile of " + name
		}
	}
	return used
}

// hold notes which keys an interface holds now, and returns their tables.
func (l *Loop) hold(s subject, leased map[routing.Key]routing.TableID) map[routing.Key]routing.TableID {
	before := l.held[s.link.Index]
	now := make(map[routing.Key]routing.TableID, len(s.keys))
	for _, k := range s.keys {
		if t, ok := before[k]; ok {
			now[k] = t
		} else if t, ok := leased[k]; ok {
			now[k] = t
			l.holders[k]++
		}
	}
	for k := range before {
		if _, keeps := now[k]; !keeps {
			l.unhold(k)
		}
	}
	l.held[s.link.Index] = now
	return now
}
