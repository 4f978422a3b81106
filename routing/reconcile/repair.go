package reconcile

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// An object is a rule or a route of ours; the other is zero.
type object struct {
	rule  routing.Rule
	route routing.RouteKey
}

func objectOf(t kernel.Taken) object {
	if t.Rule != (routing.Rule{}) {
		return object{rule: t.Rule}
	}
	return object{route: t.Route.Key()}
}

// disputes are what somebody else took away lately. Every object has a budget of
// its own: two programs that disagree about one must not fight at full speed, but
// `ip rule flush`, which takes away hundreds one by one, is repaired at once.
type disputes struct {
	limits map[object]*rate.Limiter
	pruned time.Time
	// silent counts what was repaired without a line in the log.
	silent int
}

// pruneEvery is how often budgets that are whole again are forgotten.
const pruneEvery = time.Second

// delay takes from the budget of an object and returns how long its repair has to
// wait.
func (d *disputes) delay(o object, budget *rate.Limiter, now time.Time) time.Duration {
	if d.limits == nil {
		d.limits = map[object]*rate.Limiter{}
	}
	if now.Sub(d.pruned) >= pruneEvery {
		d.pruned = now
		for other, limit := range d.limits {
			if limit.TokensAt(now) >= float64(limit.Burst()) {
				delete(d.limits, other)
			}
		}
	}
	limit := d.limits[o]
	if limit == nil {
		limit = rate.NewLimiter(budget.Limit(), budget.Burst())
		d.limits[o] = limit
	}
	return limit.ReserveN(now, 1).DelayFrom(now)
}

// mustWait returns the objects whose repair is made later.
func (l *Loop) mustWait(ctx context.Context, taken []kernel.Taken) []object {
	var wait []object
	var first kernel.Taken
	repaired, quarrel := 0, len(l.deferred) > 0
	now := l.now()
	for _, t := range taken {
		o := objectOf(t)
		_, rule := l.planner.Rule(o.rule)
		_, route := l.planner.Route(o.route)
		if !rule && !route {
			continue
		}
		if _, deferred := l.deferred[o]; deferred {
			wait = append(wait, o)
			continue
		}
		if his, away := l.yields(o); away > 0 {
			l.yield(o, deferral{due: now.Add(away), his: his})
			wait = append(wait, o)
			l.Logger.LogAttrs(ctx, slog.LevelWarn, "somebody deleted a rule of ours in the words of another rule, it stays away",
				append(l.attrsOf(t), slog.Duration("delay", away))...)
			continue
		}
		if delay := l.disputes.delay(o, l.Repairs, now); delay > 0 {
			l.deferred[o], l.news = deferral{due: now.Add(delay)}, true
			wait = append(wait, o)
			if !quarrel {
				quarrel = true
				l.Logger.LogAttrs(ctx, slog.LevelWarn, "somebody keeps deleting routing of ours, repairing later",
					append(l.attrsOf(t), slog.Duration("delay", delay))...)
			}
			continue
		}
		if repaired++; repaired == 1 {
			first = t
		}
	}
	if repaired == 0 {
		return wait
	}
	if l.disputes.silent += repaired; l.Repairs.AllowN(now, 1) {
		l.Logger.LogAttrs(ctx, slog.LevelWarn, "somebody deleted routing of ours, repairing",
			append(l.attrsOf(first), slog.Int("objects", l.disputes.silent))...)
		l.disputes.silent = 0
	}
	return wait
}

// A deferral is a repair that waits.
type deferral struct {
	due time.Time
	// his is the rule of somebody else in whose words ours was deleted, zero if it was
	// deleted too often.
	his routing.Rule
}

// How long a rule stays away that was deleted by words which are also those of a
// rule of somebody else. Who deletes by words deletes the first rule that has them,
// often until none is left: `while ip rule del from 192.0.2.5; do :; done` must come
// to an end, and deletes each of ours once. A rung of a link is needed more than a lift:
// it is back that long after the last deletion. Meanwhile the guards of the source stand
// (see routing.rules.guards).
const (
	liftStaysAway = 10 * time.Second
	rungStaysAway = time.Second
)

// yields returns how long an object stays away because its deletion may have been
// meant for a rule of somebody else, and that rule.
func (l *Loop) yields(o object) (his routing.Rule, away time.Duration) {
	planned, is := l.planner.Rule(o.rule)
	if !is {
		return routing.Rule{}, 0
	}
	his, meant := l.planner.MeantBy(o.rule)
	switch {
	case !meant:
		return routing.Rule{}, 0
	case planned.Yields, planned.Reason.Decision == routing.LiftForeign:
		return his, liftStaysAway
	default:
		return his, rungStaysAway
	}
}

// yield lets an object stay away. What was deleted in the same words stays away with it,
// because the deletions go on, and a rule of somebody else that went is remembered for as
// long.
func (l *Loop) yield(o object, d deferral) {
	l.deferred[o], l.news = d, true
	again := l.now().Add(rungStaysAway)
	for other, waits := range l.deferred {
		if waits.due.Before(again) && (waits.his == d.his || other.rule.MeantBy(d.his)) {
			waits.due = again
			l.deferred[other] = waits
		}
	}
	for his := range l.gone {
		if his.Family == o.rule.Family && o.rule.MeantBy(his) {
			l.gone[his] = again
		}
	}
}

// leaveAway keeps what waits for its time from being compared before, and forgets what
// nobody wants any more.
func (l *Loop) leaveAway() {
	for o := range l.deferred {
		_, rule := l.planner.Rule(o.rule)
		_, route := l.planner.Route(o.route)
		if !rule && !route {
			delete(l.deferred, o)
			l.news = true
			continue
		}
		delete(l.touched.Rules, o.rule)
		delete(l.touched.Routes, o.route)
	}
}

// takeGone remembers the rules of others that went: whoever deleted them may go on until
// no rule has their words.
func (l *Loop) takeGone(rules map[routing.Rule]struct{}) {
	if len(rules) == 0 {
		return
	}
	until := l.now().Add(rungStaysAway)
	for r := range rules {
		l.gone[r] = until
	}
	l.tellGone()
}

// forgetGone forgets the rules of others that went long enough ago.
func (l *Loop) forgetGone(now time.Time) {
	before := len(l.gone)
	maps.DeleteFunc(l.gone, func(_ routing.Rule, until time.Time) bool { return !now.Before(until) })
	if len(l.gone) != before {
		l.tellGone()
	}
}

func (l *Loop) tellGone() {
	l.news = true
	for _, f := range routing.Families() {
		var rules []routing.Rule
		for r := range l.gone {
			if r.Family == f {
				rules = append(rules, r)
			}
		}
		l.planner.SetGone(f, rules)
	}
}

// away lists what waits for its time, in the order of the ladder.
func (l *Loop) away() []Away {
	out := make([]Away, 0, len(l.deferred))
	for _, o := range slices.SortedFunc(maps.Keys(l.deferred), compareObjects) {
		d := l.deferred[o]
		a := Away{Family: o.rule.Family, Text: o.rule.String(), Until: d.due}
		if o.rule == (routing.Rule{}) {
			r, _ := l.planner.Route(o.route)
			a.Family, a.Text = o.route.Family, r.Route.Text(l.nameOf(r.Route.Device))
		}
		if d.his != (routing.Rule{}) {
			a.His = d.his.String()
		}
		out = append(out, a)
	}
	return out[:min(len(out), mostAway)]
}

func compareObjects(a, b object) int {
	return cmp.Or(
		cmp.Compare(a.rule.Family, b.rule.Family), cmp.Compare(a.rule.Priority, b.rule.Priority),
		cmp.Compare(a.rule.String(), b.rule.String()),
		cmp.Compare(a.route.Family, b.route.Family), cmp.Compare(a.route.Table, b.route.Table),
		a.route.Destination.Compare(b.route.Destination), cmp.Compare(a.route.Metric, b.route.Metric),
		a.route.Gateway.Compare(b.route.Gateway), cmp.Compare(a.route.Device, b.route.Device),
	)
}

// guarded lists the rules of others that went just now and for which guards stand: who
// makes the plan anew needs them.
func (l *Loop) guarded() []routing.Rule {
	var out []routing.Rule
	for r := range l.gone {
		if l.planner.Names(r) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b routing.Rule) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.String(), b.String()))
	})
	return out[:min(len(out), mostGone)]
}

// nameOf is the name of an interface.
func (l *Loop) nameOf(index int) string {
	if plan, is := l.planner.Link(index); is {
		return plan.Link.Name
	}
	name := ""
	l.Mirror.View(func(k *kernel.State) { name = k.Name(index) })
	return name
}

func (l *Loop) attrsOf(t kernel.Taken) []slog.Attr {
	what := t.Rule.String()
	if t.Rule == (routing.Rule{}) {
		what = t.Route.Text(l.nameOf(t.Route.Device))
	}
	return []slog.Attr{slog.String("first", what), slog.Uint64("netlink_port", uint64(t.Port))}
}
