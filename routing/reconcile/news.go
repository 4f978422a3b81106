package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"multihomed/internal/event"
	"multihomed/routing"
)

// An unwritten is what happened to a link and is not in the log yet. One activation
// is many events and one line: addresses, gateways and the role come one by one.
type unwritten struct {
	// was is the plan that the log knows.
	was routing.LinkPlan
	// first and last are when something changed.
	first, last time.Time
	routes      moved
	// structure says that more than routes changed.
	structure bool
}

const (
	// A line waits until nothing has changed for Options.LogDelay, but no longer than
	// so many of them; a link that is being brought up may take more.
	logAtMost        = 5
	logAtMostPending = 30
	// routesEvery bounds lines that say nothing but that routes came and went: routing
	// daemons change some all day long.
	routesEvery = time.Minute
)

// noteLinks takes note of what a pass changed: with the plans that it replaced, and what it writes.
func (l *Loop) noteLinks(before map[int]routing.LinkPlan, ops []routing.Op) {
	for index, was := range before {
		plan, _ := l.planner.Link(index)
		if l.standsAsPlanned(index, was, plan, ops) {
			continue
		}
		if earlier, is := l.told[index]; is && has(plan) {
			was = earlier
			delete(l.told, index)
		}
		if !samePlan(was, plan) {
			l.noteNews(index, was).structure = true
		}
	}
	if !l.complete {
		return
	}
	clear(l.inherited)
	// These are no links any more.
	for index, was := range l.told {
		l.noteNews(index, was).structure = true
	}
	l.told = nil
}

// standsAsPlanned reports whether the process before this one left all of a link in the kernel, so
// that its log says it already. Until the links are known, a link is put together step by step.
func (l *Loop) standsAsPlanned(index int, was, is routing.LinkPlan, ops []routing.Op) bool {
	_, inherited := l.inherited[index]
	_, told := l.told[index]
	delete(l.inherited, index)
	if told || l.unwritten[index] != nil || has(was) && !inherited || !has(is) {
		return false
	}
	for _, op := range ops {
		if concerns(op, was) || concerns(op, is) {
			return false
		}
	}
	l.inherited[index] = struct{}{}
	return true
}

// concerns reports whether an operation changes the routing of a link.
func concerns(op routing.Op, p routing.LinkPlan) bool {
	switch op.Verb {
	case routing.AddRule, routing.MoveRule, routing.DeleteRule:
		return p.Link.Name != "" && (op.Rule.OIF == p.Link.Name || op.Rule.IIF == p.Link.Name) || hasTable(p, op.Rule.Table)
	case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		return hasTable(p, op.Route.Table)
	default:
		return p.Link.Index != 0 && op.Index == p.Link.Index
	}
}

// noteNews returns what is not written of a link; was is its plan until now.
func (l *Loop) noteNews(index int, was routing.LinkPlan) *unwritten {
	u := l.unwritten[index]
	now := l.now()
	if u == nil {
		u = &unwritten{was: was, first: now}
		l.unwritten[index] = u
	}
	u.last = now
	return u
}

// noteRoute counts a route that was added or deleted. Networks on the link and
// defaults are told by the plan, and what somebody else deleted by its repair.
func (l *Loop) noteRoute(op routing.Op) {
	r := op.Route
	if op.Verb != routing.AddRoute && op.Verb != routing.DeleteRoute || r.IsDefault() || contains(l.restored, object{route: r.Key()}) {
		return
	}
	plan, planned := l.planner.Link(r.Device)
	was := plan
	if u := l.unwritten[r.Device]; u != nil {
		was = u.was
	}
	if !planned || !hasTable(was, r.Table) || !hasTable(plan, r.Table) || isOnLink(plan, r) {
		return
	}
	u := l.noteNews(r.Device, plan)
	if op.Verb == routing.AddRoute {
		u.routes.added++
	} else {
		u.routes.removed++
	}
}

// isOnLink reports whether a route leads to a network on the link. That of link-local addresses comes
// and goes with the addresses of the interface, and the kernel deletes it itself
// (addrconf_ifdown in net/ipv6/addrconf.c).
func isOnLink(p routing.LinkPlan, r routing.Route) bool {
	return !r.Gateway.IsValid() &&
		(r.Destination.Addr().IsLinkLocalUnicast() || slices.ContainsFunc(p.Keys, func(k routing.Key) bool { return k.Prefix == r.Destination }))
}

// hasTable reports whether a table is one of the link's: what is in a new one says
// nothing more.
func hasTable(p routing.LinkPlan, t routing.TableID) bool {
	for _, own := range p.Link.Tables {
		if own == t {
			return true
		}
	}
	return false
}

func samePlan(a, b routing.LinkPlan) bool {
	return a.Roles == b.Roles && a.Group == b.Group && a.Link.Name == b.Link.Name && slices.Equal(a.Rules, b.Rules) && slices.Equal(a.Routes, b.Routes)
}

// due is when the line of a link is written.
func (l *Loop) due(index int, u *unwritten) time.Time {
	plan, _ := l.planner.Link(index)
	if plan.Link.Pending {
		return u.first.Add(logAtMostPending * l.LogDelay)
	}
	due := u.last.Add(l.LogDelay)
	if latest := u.first.Add(logAtMost * l.LogDelay); latest.Before(due) {
		due = latest
	}
	if next := l.routesWritten[index].Add(routesEvery); !u.structure && due.Before(next) {
		due = next
	}
	return due
}

// writeNews writes the lines that are due, all of them if everything is to be written.
func (l *Loop) writeNews(ctx context.Context, everything bool) {
	now := l.now()
	for _, index := range slices.Sorted(maps.Keys(l.unwritten)) {
		u := l.unwritten[index]
		if !everything && now.Before(l.due(index, u)) {
			continue
		}
		delete(l.unwritten, index)
		plan, planned := l.planner.Link(index)
		what, sentence, reason := describe(u.was, plan, u.routes, l.whyRemoved(index, u.was.Link.Name))
		why, level := l.takeovers.told(index), slog.LevelInfo
		if sentence == "" {
			continue
		}
		if why != "" {
			reason, level = strings.Join(slices.DeleteFunc([]string{reason, why}, func(s string) bool { return s == "" }), "; "), event.LevelNotice
		}
		if u.structure {
			delete(l.routesWritten, index)
		} else {
			l.routesWritten[index] = now
		}
		if !planned {
			plan = u.was
			delete(l.routesWritten, index)
		}
		attrs := []slog.Attr{event.Is(what), slog.String("interface", plan.Link.Name)}
		if reason != "" {
			attrs = append(attrs, slog.String("reason", reason))
		}
		l.Logger.LogAttrs(ctx, level, sentence, append(attrs, forPrograms(plan)...)...) //nolint:sloglint // the sentence says what changed
	}
}

// forPrograms are fields of the journal that the sentence says in other words.
func forPrograms(plan routing.LinkPlan) []slog.Attr {
	var attrs []slog.Attr
	for _, k := range plan.Keys {
		if t, leased := plan.Link.Tables[k]; leased {
			attrs = append(attrs, event.Field("table", t.String()))
		}
	}
	return append(attrs, event.Field("role", plan.Role().String()))
}

// whyRemoved says why an interface is no link any more.
func (l *Loop) whyRemoved(index int, was string) string {
	name := was
	if exists := l.viewName(index, &name); !exists {
		return "the interface is gone"
	}
	var claim Claim
	l.Mirror.View(func(k State) { claim, _, _ = l.of(k, index) })
	if claim.Standing != Link {
		return claim.Why
	}
	return "it has no address"
}
