package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"multihomed/internal/event"
	"multihomed/routing"
)

// takeClaims takes up what the owners say.
func (l *Loop) takeClaims(ctx context.Context) {
	c := l.Owners.Take()
	if len(c.Changed)+len(c.Removed) > 0 {
		l.picture.claims, l.unasked = nil, true
		l.picture.restructure()
	}
	for name, claim := range c.Changed {
		l.news = l.news || !slices.Equal(l.claims[name].Problems, claim.Problems)
		l.owned.set(name, claim.Tables)
		l.Mirror.View(func(k State) { l.claimChanged(l.set(k, name, claim)) })
		if claim.Released && !c.Complete {
			// What is left of it may stand although this process never knew it.
			l.everything()
		}
	}
	for _, name := range c.Removed {
		l.news = l.news || len(l.claims[name].Problems) > 0
		l.owned.set(name, nil)
		l.Mirror.View(func(k State) { l.claimChanged(l.remove(k, name)) })
	}
	if len(c.Changed)+len(c.Removed) > 0 {
		l.doubtFailover()
	}
	if c.Complete && !l.complete {
		// What nobody asked for while knowledge was incomplete may go now.
		l.everything()
		if l.told == nil { // The loop before this one said so otherwise.
			l.Logger.LogAttrs(ctx, slog.LevelInfo, "every link is known", event.Is(event.Ready))
		}
	}
	if !c.Complete && (l.complete || l.incomplete.IsZero()) {
		l.incomplete = l.now()
	}
	if c.Waiting != l.waiting && c.Waiting != "" {
		l.Logger.LogAttrs(ctx, slog.LevelDebug, "waiting", event.Is(event.Waiting), slog.String("for", c.Waiting))
	}
	l.news = l.news || l.complete != c.Complete || l.waiting != c.Waiting
	l.complete, l.waiting = c.Complete, c.Waiting
}

func (l *Loop) claimChanged(indexes []int) {
	for _, index := range indexes {
		l.dirty[index] = struct{}{}
	}
}

// setInterests tells the mirror of which dirty interfaces the routes of main
// matter: of those whose owner says so. What nobody speaks of stays as it is
// until knowledge is complete. All are told together, because the mirror may
// have to read routes for it; where it fails nothing may be planned.
func (l *Loop) setInterests(ctx context.Context) error {
	var interests map[int]bool
	l.Mirror.View(func(k State) {
		for index := range l.dirty {
			if !exists(k, index) {
				continue
			}
			claim, _, claimed := l.of(k, index)
			watched := claim.Watched
			if !watched && claim.Standing == Draining {
				name, _ := k.NameOf(index)
				watched = l.was(k, index, name)
			}
			if (claimed || l.complete) && watched != k.Interested(index) {
				if interests == nil {
					interests = map[int]bool{}
				}
				interests[index] = watched
			}
		}
	})
	if interests == nil {
		return nil
	}
	if err := l.Mirror.SetInterest(ctx, interests); err != nil {
		return err
	}
	for index := range interests {
		l.unread[index] = struct{}{}
	}
	l.takeChanges(ctx)
	return nil
}

// everything compares all that is planned with all that stands.
func (l *Loop) everything() {
	l.Mirror.View(func(k State) {
		for _, index := range k.Indexes() {
			l.dirty[index] = struct{}{}
		}
		l.touched.Merge(routing.Everything(l.planner, k))
	})
	for index := range l.known {
		l.dirty[index] = struct{}{}
	}
	for index := range l.recall.uplinks {
		l.dirty[index] = struct{}{}
	}
}

// takeChanges takes up what happened in the kernel.
func (l *Loop) takeChanges(ctx context.Context) {
	c := l.Mirror.Take()
	if !c.Empty() {
		l.picture.spoil()
	}
	if c.All {
		for index := range l.picture.interfaces {
			l.picture.spoilRoutes(index)
		}
		l.everything()
		for index := range l.dirty {
			l.unread[index] = struct{}{}
		}
	}
	for index := range c.Links {
		l.dirty[index] = struct{}{}
	}
	l.takeGone(c.Gone)
	if c.All || len(c.ForeignRules) > 0 {
		l.takeForeign(ctx)
	}
	l.doubtTables(c.All, c.Tables)
	if table, _ := l.Policy.FailoverTable(); c.All || contains(c.Tables, table) {
		l.doubtFailover()
	}
	l.takeDefaults(c.All, c.Defaults)
	l.takeThrown(c.All, c.Thrown)
	l.takeElsewhere(c.Elsewhere)
	l.unasked = l.unasked || c.All || c.Unbound || len(c.Links) > 0 || len(c.ForeignRules) > 0
	if c.All || len(c.Links) > 0 {
		l.takeGroups()
	}
	for index, destinations := range c.Destinations {
		if l.rerouted[index] == nil {
			l.rerouted[index] = destinations
		} else {
			maps.Copy(l.rerouted[index], destinations)
		}
	}
	seen := routing.NewTouched()
	maps.Copy(seen.Rules, c.Rules)
	maps.Copy(seen.Routes, c.Routes)
	l.touched.Merge(seen)
	for _, o := range l.mustWait(ctx, c.Taken) {
		// Also where it was just written and would be compared once more: the
		// comparison would put it back without asking the budget.
		delete(l.touched.Rules, o.rule)
		delete(l.touched.Routes, o.route)
	}
}

// takeForeign hands the rules of others to the planner.
func (l *Loop) takeForeign(ctx context.Context) {
	var foreign [2][]routing.ForeignRule
	l.Mirror.View(func(k State) { foreign = l.recall.Foreign(k) })
	for i, f := range routing.Families() {
		l.planner.SetForeign(f, foreign[i])
	}
	l.otherRules++
	l.noteStepped(ctx)
}

// noteStepped says which rules of others bound traffic steps over.
func (l *Loop) noteStepped(ctx context.Context) {
	for _, f := range routing.Families() {
		now := map[routing.Rule]struct{}{}
		for _, o := range l.planner.Foreign(f) {
			if !o.SteppedOver() {
				continue
			}
			now[o.Rule] = struct{}{}
			if _, known := l.stepped[f][o.Rule]; !known {
				l.Logger.LogAttrs(ctx, event.LevelNotice, fmt.Sprintf("traffic bound to links steps over %s rule %q", f, o.Rule), //nolint:sloglint // the rule is the sentence
					event.Is(event.SteppedOver),
					slog.String("reason", "the kernel numbered it: without multihomed it would stand behind the rules of links"))
			}
		}
		l.stepped[f] = now
	}
}

// takeGroups counts the interfaces in groups of the administrator.
func (l *Loop) takeGroups() {
	var members map[uint32]int
	l.Mirror.View(func(k State) { members = groupsOf(k) })
	l.planner.SetGroups(members)
}

// groupsOf counts the interfaces by group.
func groupsOf(k State) map[uint32]int {
	members := map[uint32]int{}
	for _, group := range k.Groups() {
		if group != 0 {
			members[group]++
		}
	}
	return members
}

// takeDue takes up what waited for its time.
func (l *Loop) takeDue() {
	now := l.now()
	for o, q := range l.quarrels {
		if !now.Before(q.over) {
			delete(l.quarrels, o)
			l.news = true
		}
	}
	for o, d := range l.deferred {
		if now.Before(d.due) {
			continue
		}
		delete(l.deferred, o)
		l.news = true
		l.picture.spoil()
		l.restored[o] = struct{}{}
		l.touched.Rules[o.rule] = struct{}{}
		l.touched.Routes[o.route] = struct{}{}
	}
	l.holdPairs()
	l.forgetGone(now)
	for index, due := range l.takeovers.due {
		if !now.Before(due) {
			delete(l.takeovers.due, index)
			l.takeovers.suspects[index], l.dirty[index] = struct{}{}, struct{}{}
		}
	}
	for about, f := range l.failures {
		if now.Before(f.due) {
			continue
		}
		delete(l.failures, about)
		l.retrying[about] = retry{f.attempt, f.first}
		l.news = true
		switch {
		case f.index != 0:
			l.dirty[f.index] = struct{}{}
		case f.op != (routing.Op{}):
			touch(l.touched, f.op)
		}
	}
}
