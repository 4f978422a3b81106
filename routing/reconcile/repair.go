package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"multihomed/internal/event"
	"multihomed/routing"
)

// An object is a rule or a route of ours; the other is zero.
type object struct {
	rule  routing.Rule
	route routing.RouteKey
}

func objectOf(t routing.Taken) object {
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
func (l *Loop) mustWait(ctx context.Context, taken []routing.Taken) []object {
	var wait []object
	var first routing.Taken
	repaired := 0
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
			l.repairLine(ctx, t, fmt.Sprintf("restored in %s", away), "the words of the deletion are those of a rule of somebody else, too")
			continue
		}
		if delay := l.disputes.delay(o, l.Repairs, now); delay > 0 {
			l.deferred[o] = deferral{due: now.Add(delay)}
			l.quarrels[o] = quarrel{taken: t, over: now.Add(delay + quarrelOver)}
			l.news = true
			wait = append(wait, o)
			continue
		}
		l.restored[o] = struct{}{}
		if repaired++; repaired == 1 {
			first = t
		}
	}
	l.holdPairs()
	if repaired == 0 {
		return wait
	}
	if l.disputes.silent += repaired; l.Repairs.AllowN(now, 1) {
		what := "restored"
		if others := l.disputes.silent - 1; others > 0 {
			what += fmt.Sprintf(", with %d more", others)
		}
		l.repairLine(ctx, first, what, "")
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

// repairLine says that somebody deleted an object, and what becomes of it.
func (l *Loop) repairLine(ctx context.Context, t routing.Taken, what, reason string) {
	object, link := l.nameObject(t)
	attrs := []slog.Attr{event.Is(event.Repaired), slog.String("interface", link)}
	if reason != "" {
		attrs = append(attrs, slog.String("reason", reason))
	}
	attrs = append(attrs, event.Field("object", object), event.Field("netlink_port", strconv.FormatUint(uint64(t.Port), 10)))
	l.Logger.LogAttrs(ctx, event.LevelNotice, fmt.Sprintf("%s deleted by %s, %s", object, l.suspect(t.Port), what), attrs...) //nolint:sloglint // the object is the sentence
}

// nameObject names an object in the words of ip(8), and the link that it is for.
func (l *Loop) nameObject(t routing.Taken) (what, link string) {
	if t.Rule != (routing.Rule{}) {
		planned, _ := l.planner.Rule(t.Rule)
		return fmt.Sprintf("%s rule %q", t.Rule.Family, t.Rule), planned.Reason.Link
	}
	planned, _ := l.planner.Route(t.Route.Key())
	device := planned.Reason.Link
	if device == "" {
		device = "if" + strconv.Itoa(t.Route.Device)
	}
	l.viewName(t.Route.Device, &device)
	return fmt.Sprintf("%s route %q", t.Route.Family, t.Route.Text(device)), planned.Reason.Link
}

// viewName replaces the name of an interface by that which it has, and reports whether
// it is there.
func (l *Loop) viewName(index int, name *string) (exists bool) {
	l.Mirror.View(func(k State) {
		if now, is := k.NameOf(index); is {
			*name, exists = now, true
		}
	})
	return exists
}

// suspect names who sits behind a netlink port.
func (l *Loop) suspect(port uint32) string {
	if l.Suspect != nil {
		if who := l.Suspect(port); who != "" {
			return who
		}
	}
	return "somebody else"
}

// A quarrel is about an object that somebody keeps deleting. It is over when that has
// not happened for a while.
type quarrel struct {
	taken routing.Taken
	over  time.Time
}

// quarrelOver is how long an object must stand before a quarrel about it is over.
const quarrelOver = 10 * time.Second

// disputed are the problems of objects that somebody keeps deleting: one for each
// link, however many objects.
func (l *Loop) disputed() []routing.Problem {
	byLink := map[string]*routing.Problem{}
	count := map[string]int{}
	for _, d := range l.quarrels {
		object, link := l.nameObject(d.taken)
		count[link]++
		if p := byLink[link]; p == nil || object < p.Object {
			byLink[link] = &routing.Problem{
				Code: routing.Disputed, Severity: routing.Warning, Link: link, Object: object,
				Text: fmt.Sprintf("%s keeps deleting %s", l.suspect(d.taken.Port), object),
				Fix:  "find out which program runs `ip rule` or `ip route` commands here, and stop it; `ip monitor` shows each deletion",
			}
		}
	}
	out := make([]routing.Problem, 0, len(byLink))
	for _, link := range slices.Sorted(maps.Keys(byLink)) {
		p := *byLink[link]
		if others := count[link] - 1; others > 0 {
			p.Text += fmt.Sprintf(" and %d more", others)
		}
		out = append(out, p)
	}
	return out
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

// holdPairs keeps the rules of failover whole: while one of the pair waits for its time, there
// is none.
func (l *Loop) holdPairs() {
	for _, f := range routing.Families() {
		away := false
		for o := range l.deferred {
			away = away || o.rule.OfPair() && o.rule.Family == f
		}
		l.planner.HoldPair(f, away)
	}
}

// leaveAway keeps what waits for its time from being compared before, and forgets what
// nobody wants any more.
func (l *Loop) leaveAway() {
	for o := range l.deferred {
		_, rule := l.planner.Rule(o.rule)
		_, route := l.planner.Route(o.route)
		if !rule && !route && (!o.rule.OfPair() || !l.planner.PairIsAway(o.rule.Family)) {
			delete(l.deferred, o)
			l.news = true
			continue
		}
		delete(l.touched.Rules, o.rule)
		delete(l.touched.Routes, o.route)
	}
	l.holdPairs()
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
	l.Mirror.View(func(k State) { name = k.Name(index) })
	return name
}
