package kernel

import (
	"context"
	"errors"
	"maps"
	"slices"

	"multihomed/routing"
)

// verify settles the doubts there are: for each, one dump filtered by the
// kernel. A doubt stays if its subject kept changing meanwhile.
func (l loader) verify(ctx context.Context, s *State, drain func() error) error {
	if err := l.requests.barrier(ctx); err != nil {
		return err
	}
	if err := drain(); err != nil {
		return err
	}
	for _, f := range routing.Families() {
		if !s.doubts.rules[f] {
			continue
		}
		if err := l.verifyRules(ctx, s, f, drain); err != nil {
			return err
		}
	}
	if s.doubts.nexthops {
		before := s.events[classNexthops] + s.events[classLinks]
		if err := l.nexthops(ctx, s); err != nil {
			return err
		}
		if err := drain(); err != nil {
			return err
		}
		s.doubts.nexthops = s.events[classNexthops]+s.events[classLinks] != before
	}
	for f := range maps.Clone(s.doubts.guests) {
		if err := l.guests(ctx, s, f); err != nil {
			return err
		}
		// What was announced meanwhile comes on top.
		delete(s.doubts.guests, f)
	}
	if err := l.verifyOthers(ctx, s); err != nil {
		return err
	}
	for f := range maps.Clone(s.doubts.slots) {
		if err := l.verifySlots(ctx, s, f, drain); err != nil {
			return err
		}
	}
	for d := range maps.Clone(s.doubts.routes) {
		if err := l.verifyRoutes(ctx, s, d, drain); err != nil {
			return err
		}
	}
	return nil
}

// attempts is how often a question is asked again because its subject changed
// while it was answered.
const attempts = 3

func (l loader) verifyRules(ctx context.Context, s *State, f routing.Family, drain func() error) error {
	for range attempts {
		before := s.events[ruleClass(f)]
		fresh := newState(s.owns, s.interest)
		if err := l.rules(ctx, fresh, f); err != nil {
			return err
		}
		if err := drain(); err != nil {
			return err
		}
		if s.events[ruleClass(f)] != before {
			continue
		}
		delete(s.doubts.rules, f)
		s.adoptRules(f, fresh)
		return nil
	}
	// The doubt stays; whoever settles comes back to it.
	return nil
}

func (s *State) adoptRules(f routing.Family, fresh *State) {
	all := func(b *ruleBook) []routing.Rule {
		return order(func(yield func(*rung) bool) {
			for _, g := range b.rungs {
				if g.rule.Family == f && !yield(g) {
					return
				}
			}
		})
	}
	have, want := all(&s.rules), all(&fresh.rules)
	if slices.Equal(have, want) {
		return
	}
	for _, r := range have {
		if s.CountRule(r) != fresh.CountRule(r) {
			s.ruleTouched(r, s.ours(r), cause{})
		}
		if !s.ours(r) && fresh.CountRule(r) == 0 {
			s.changes.Gone[r] = struct{}{}
		}
	}
	for _, r := range want {
		s.ruleTouched(r, s.ours(r), cause{})
	}
	for _, r := range have {
		s.rules.remove(r)
	}
	for _, r := range want {
		s.rules.add(r, s.ours(r))
	}
	s.rules.loaded = s.rules.last
}

func (l loader) verifyRoutes(ctx context.Context, s *State, d doubt, drain func() error) error {
	for range attempts {
		if _, ok := s.doubts.routes[d]; !ok {
			return nil
		}
		before := s.events[routeClass(d.family)] + s.events[classLinks] + s.events[classAddresses]
		fresh, err := l.routesThrough(ctx, s, d)
		if err != nil {
			return err
		}
		if err := drain(); err != nil {
			return err
		}
		if s.events[routeClass(d.family)]+s.events[classLinks]+s.events[classAddresses] != before {
			continue
		}
		delete(s.doubts.routes, d)
		s.adoptRoutes(d, fresh)
		return nil
	}
	return nil
}

// readingCost is how many routes of no interest may be read for each route of ours:
// after it a replaced route is known without a question.
const readingCost = 20

// verifySlots reads all routes of a family, so that every key that has something
// wanted is known whole. Where that is too much, the interfaces in doubt are asked for
// one by one, now and each time, until everything is read anew.
func (l loader) verifySlots(ctx context.Context, s *State, f routing.Family, drain func() error) error {
	delete(s.doubts.slots, f)
	if s.crowded[f] {
		return nil
	}
	for range attempts {
		before := s.events[routeClass(f)] + s.events[classLinks] + s.events[classAddresses]
		listed, err := l.allRoutes(ctx, s, f, max(l.budget, readingCost*s.fib.keys))
		if errors.Is(err, errBudget) {
			s.crowded[f] = true
			return nil
		}
		if err != nil {
			return err
		}
		if err := drain(); err != nil {
			return err
		}
		if s.events[routeClass(f)]+s.events[classLinks]+s.events[classAddresses] != before {
			continue
		}
		s.adoptSlots(f, listed)
		maps.DeleteFunc(s.doubts.routes, func(d doubt, _ map[routing.TableID]struct{}) bool { return d.family == f })
		return nil
	}
	s.doubts.slots[f] = true
	return nil
}

// adoptSlots makes every key of a family what the kernel said.
func (s *State) adoptSlots(f routing.Family, listed map[fibKey][]*alias) {
	var known []fibKey
	for k := range s.fib.all() {
		if k.family == f {
			known = append(known, k)
		}
	}
	for _, k := range known {
		slot := s.fib.at(k)
		have, want := slices.Clone(slot.aliases), listed[k]
		if slices.EqualFunc(have, want, identical) {
			slot.whole = true
			delete(listed, k)
			continue
		}
		without := func(all []*alias) func(*alias) bool {
			return func(a *alias) bool { return !slices.ContainsFunc(all, func(o *alias) bool { return identical(a, o) }) }
		}
		for _, a := range have {
			if without(want)(a) {
				s.touched(a, cause{})
			}
			s.fib.remove(a)
		}
		for _, a := range want {
			if without(have)(a) {
				s.touched(a, cause{})
			}
			s.loaded(a, true)
		}
		s.settle(k)
		delete(listed, k)
	}
	for k, news := range listed {
		for _, a := range news {
			s.touched(a, cause{})
			s.loaded(a, true)
		}
		s.settle(k)
	}
}

// routesThrough asks for the routes of a family that lead through an interface:
// everywhere if it is of interest, else in the tables that are kept and in
// which some are known.
func (l loader) routesThrough(ctx context.Context, s *State, d doubt) ([]*alias, error) {
	link := s.links[d.device]
	if link == nil {
		return nil, nil
	}
	if link.interested {
		return l.ask(ctx, s, routeQuestion{family: d.family, device: d.device})
	}
	// Nothing of it was wanted in other tables, and nothing new came unseen.
	s.doubtDevice(d.family, d.device)
	var out []*alias
	for t := range s.doubts.routes[d] {
		aliases, err := l.ask(ctx, s, routeQuestion{family: d.family, table: t, device: d.device})
		if err != nil {
			return nil, err
		}
		for _, a := range aliases {
			// Of main only what is of interest for another leg of it, or shares
			// a key with something that is.
			if t != routing.TableMain || s.wanted(a) || s.fib.at(a.key) != nil {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// adoptRoutes makes what leads through an interface what the kernel said.
func (s *State) adoptRoutes(d doubt, fresh []*alias) {
	have := map[fibKey][]*alias{}
	want := map[fibKey][]*alias{}
	for a := range s.fib.byDevice[d.device] {
		if a.key.family == d.family && have[a.key] == nil {
			for _, o := range s.fib.at(a.key).aliases {
				if o.leads(d.device) {
					have[a.key] = append(have[a.key], o)
				}
			}
		}
	}
	for _, a := range fresh {
		want[a.key] = append(want[a.key], a)
	}
	for k, olds := range have {
		if slices.EqualFunc(olds, want[k], identical) {
			delete(want, k)
			continue
		}
		for _, o := range olds {
			if !slices.ContainsFunc(want[k], func(a *alias) bool { return identical(a, o) }) {
				s.touched(o, cause{})
				// Its other legs may stand on by themselves.
				s.doubtElsewhere(o, d.device)
			}
			s.fib.remove(o)
		}
		s.fib.at(k).whole = k.table != routing.TableMain
	}
	for k, news := range want {
		for _, a := range news {
			if !slices.ContainsFunc(have[k], func(o *alias) bool { return identical(a, o) }) {
				s.touched(a, cause{})
			}
			s.loaded(a, k.table != routing.TableMain)
		}
	}
	for k := range have {
		s.settle(k)
	}
	for k := range want {
		s.settle(k)
	}
}

// identical compares dead legs too.
func identical(a, b *alias) bool {
	return sameAlias(a, b) && slices.EqualFunc(a.legs, b.legs, func(x, y leg) bool { return x.dead == y.dead })
}
