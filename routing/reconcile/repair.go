package reconcile

import (
	"context"
	"log/slog"
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
		if away := l.yields(o); away > 0 {
			l.deferred[o] = now.Add(away)
			wait = append(wait, o)
			l.Logger.LogAttrs(ctx, slog.LevelWarn, "somebody deleted a rule of ours in the words of another rule, it stays away",
				append(attrsOf(t), slog.Duration("delay", away))...)
			continue
		}
		if delay := l.disputes.delay(o, l.Repairs, now); delay > 0 {
			l.deferred[o] = now.Add(delay)
			wait = append(wait, o)
			if !quarrel {
				quarrel = true
				l.Logger.LogAttrs(ctx, slog.LevelWarn, "somebody keeps deleting routing of ours, repairing later",
					append(attrsOf(t), slog.Duration("delay", delay))...)
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
			append(attrsOf(first), slog.Int("objects", l.disputes.silent))...)
		l.disputes.silent = 0
	}
	return wait
}

// How long a rule stays away that was deleted by words which are also those of a
// rule of somebody else. Who deletes by words deletes the first rule that has them,
// often until none is left: `while ip rule del from 192.0.2.5; do :; done` must come
// to an end. A rung of a link is needed more than a lift.
const (
	liftStaysAway = 10 * time.Second
	rungStaysAway = time.Second
)

// yields returns how long an object stays away because its deletion may have been
// meant for another rule.
func (l *Loop) yields(o object) time.Duration {
	planned, is := l.planner.Rule(o.rule)
	switch {
	case !is:
		return 0
	case planned.Yields:
		return liftStaysAway
	case slices.ContainsFunc(l.planner.Foreign(o.rule.Family), func(f routing.ForeignRule) bool {
		return f.Rule.Selects() && f.Rule.SelectsLike(o.rule)
	}):
		return rungStaysAway
	default:
		return 0
	}
}

func attrsOf(t kernel.Taken) []slog.Attr {
	what := t.Route.String()
	if t.Rule != (routing.Rule{}) {
		what = t.Rule.String()
	}
	return []slog.Attr{slog.String("first", what), slog.Uint64("netlink_port", uint64(t.Port))}
}
