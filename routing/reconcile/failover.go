package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multihomed/internal/event"
	"multihomed/routing"
)

// StandingFailover is a [Failover] that never changes: for a process that does not stay to judge, as
// with [routing.Failover.Frozen], and for one that only looks.
func StandingFailover(f routing.Failover) Failover { return standing{f} }

type standing struct{ facts routing.Failover }

func (standing) Changed() <-chan struct{}     { return nil }
func (s standing) Failover() routing.Failover { return s.facts }

// judged is readable when there are new facts of failover; nil if nobody judges.
func (l *Loop) judged() <-chan struct{} {
	if l.Failover == nil {
		return nil
	}
	return l.Failover.Changed()
}

// takeFailover hands the planner what is judged, and what stands in table F while nobody has
// judged yet.
func (l *Loop) takeFailover() {
	if l.Failover == nil {
		return
	}
	facts := l.Failover.Failover()
	if table, has := l.Policy.FailoverTable(); has && (facts.Frozen || slices.Contains(facts.Unjudged[:], true)) {
		l.Mirror.View(func(k State) {
			held := k.OurRoutes(table)
			for _, f := range routing.Families() {
				l.planner.SetHeld(f, slices.DeleteFunc(slices.Clone(held), func(r routing.Route) bool { return r.Family != f }))
			}
		})
	}
	l.planner.SetFailover(facts)
}

// takeDefaults hands main's defaults to the planner.
func (l *Loop) takeDefaults(all bool, changed routing.ByFamily[bool]) {
	for i, f := range routing.Families() {
		if !all && !changed[i] {
			continue
		}
		var defaults []routing.Route
		l.Mirror.View(func(k State) { defaults = k.Defaults(f) })
		l.planner.SetDefaults(f, defaults)
	}
}

// takeThrown hands the planner what main throws.
func (l *Loop) takeThrown(all bool, changed routing.ByFamily[bool]) {
	for i, f := range routing.Families() {
		if !all && !changed[i] {
			continue
		}
		var thrown []netip.Prefix
		l.Mirror.View(func(k State) { thrown = k.Thrown(f) })
		l.planner.SetThrown(f, thrown)
	}
}

// doubtFailover looks who else uses table F.
func (l *Loop) doubtFailover() {
	table, has := l.Policy.FailoverTable()
	if !has {
		return
	}
	why, taken := l.Reserved(table)
	if !taken {
		if name, owned := l.owned.by(table); owned {
			why, taken = "the profile of "+name, true
		}
	}
	for _, f := range routing.Families() {
		by, is := why, taken
		if !is {
			l.Mirror.View(func(k State) { by, is = k.ForeignIn(f, table) })
		}
		if !is {
			by = ""
		}
		if l.planner.FailoverTaken(f) != by {
			l.planner.SetFailoverTaken(f, by)
			l.news = true
		}
	}
}

// failoverProblems says that failover has no table.
func (l *Loop) failoverProblems() []routing.Problem {
	var out []routing.Problem
	table, has := l.Policy.FailoverTable()
	for _, f := range routing.Families() {
		if c, _ := l.planner.Course(f); !has || c.Why != routing.CourseTaken || l.planner.FailoverTaken(f) == "" {
			continue
		}
		out = append(out, routing.Problem{
			Code: routing.FailoverTableInUse, Severity: routing.Warning, Object: fmt.Sprintf("table %s", table),
			Text: fmt.Sprintf("unbound %s traffic does not follow an uplink that works: table %s is for that, and somebody else uses it: %s", f.Name(), table, l.planner.FailoverTaken(f)),
			Fix:  "give that another table, or set another range in [tables]: the last number of it is for failover",
		})
	}
	return out
}

// noteCourses logs which way unbound traffic goes from now on.
func (l *Loop) noteCourses(ctx context.Context) {
	for i, f := range routing.Families() {
		now, _ := l.planner.Course(f)
		if now != l.courses[i] {
			l.courses[i], l.news = now, true
			l.picture.restructure()
		}
		before := l.said[i]
		if now == before {
			delete(l.undecided, f)
			continue
		}
		if l.inherits && before.Why != "" && !l.complete {
			// Until all links are known, it is no news where they do not lead yet.
			continue
		}
		was, is := l.leavesBy(before), l.leavesBy(now)
		if before.Moved && !now.Moved && was == is && now.Why != routing.CourseNoneLives && now.Why != routing.CourseThrown {
			// While a dead uplink is activated anew, main has the one that replaced it: the traffic
			// stays where it is, and with it what the log says of it.
			delete(l.undecided, f)
			continue
		}
		if before.Moved && l.backToDead(i, now) && l.waits(f) {
			continue
		}
		delete(l.undecided, f)
		l.said[i] = now
		switch {
		case now.Moved && (!before.Moved || was != is):
			l.Logger.LogAttrs(ctx, event.LevelNotice, fmt.Sprintf("unbound %s traffic leaves by %s, main says %s", f.Name(), is, l.nameOf(now.Main.Device)), //nolint:sloglint // the sentence is the event
				slog.String("family", f.String()), slog.String("reason", courseReason(now.Why)))
			l.Counters.moved[i].Add(1)
		case !now.Moved && before.Moved && was != is:
			by := is
			if by == "" {
				by = "nothing"
			}
			l.Logger.LogAttrs(ctx, event.LevelNotice, fmt.Sprintf("unbound %s traffic follows main again, by %s", f.Name(), by), //nolint:sloglint // the sentence is the event
				slog.String("family", f.String()), slog.String("reason", courseReason(now.Why)))
			l.Counters.returned[i].Add(1)
		case now.Why == routing.CourseNoneLives && before.Why != routing.CourseNoneLives:
			l.Logger.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("unbound %s traffic stays with %s: no uplink works", f.Name(), is), //nolint:sloglint // the sentence is the event
				slog.String("family", f.String()))
		case now.Why == routing.CourseThrown && before.Why != routing.CourseThrown:
			l.Logger.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("unbound %s traffic stays with %s: %s", f.Name(), is, courseReason(now.Why)), //nolint:sloglint // the sentence is the event
				slog.String("family", f.String()))
		}
	}
	l.inherits = l.inherits && !l.complete
}

// backToDead reports whether unbound traffic follows main to an uplink that does not work, although
// another one does.
func (l *Loop) backToDead(i int, now routing.Course) bool {
	return !now.Moved && now.Why != routing.CourseNoneLives && now.Why != routing.CourseThrown && now.Why != routing.CourseOff && l.Failover != nil &&
		contains(l.Failover.Failover().Dead[i], now.Main.Device)
}

// waits reports whether it is too early to say that traffic of a family went back to a dead uplink: while
// that is activated anew, main may have its default some milliseconds before its owner names it.
func (l *Loop) waits(f routing.Family) bool {
	since, is := l.undecided[f]
	if !is {
		since = l.now()
		l.undecided[f] = since
	}
	return l.now().Before(since.Add(l.LogDelay))
}

func courseReason(why routing.CourseReason) string {
	switch why {
	case routing.CourseDead:
		return "main's best default leads through an uplink that does not work"
	case routing.CourseKept:
		return "the process before this one moved it, and nothing has been judged since"
	case routing.CourseAlive, routing.CourseShared:
		return "main's best default leads through an uplink that works"
	case routing.CourseNoneLives:
		return "no other uplink works"
	case routing.CourseNoUplink:
		return "main's best default leads through an interface that is no uplink"
	case routing.CourseNoDefault:
		return "main has no default"
	case routing.CourseOff:
		return "failover is off"
	case routing.CourseAlone:
		return "fewer than two uplinks have a default"
	case routing.CourseTaken:
		return "somebody else uses the table of failover"
	case routing.CourseThrown:
		return "main has more throw routes than the table of failover can follow"
	case routing.CourseBlocked:
		return "rules of another program leave no place in front of main"
	default:
		return string(why)
	}
}

// leavesBy names the interfaces that unbound traffic leaves by.
func (l *Loop) leavesBy(c routing.Course) string {
	devices := c.Devices()
	names := make([]string, 0, len(devices))
	for _, index := range devices {
		names = append(names, l.nameOf(index))
	}
	return strings.Join(names, " and ")
}

// emptyTimeout bounds EmptyFailover.
const emptyTimeout = 2 * time.Second

// EmptyFailover takes what is ours out of table F, so that unbound traffic follows main. It
// is for a stop: nobody judges afterwards. Call it when Run has returned; ctx may be done.
func (l *Loop) EmptyFailover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emptyTimeout)
	defer cancel()
	table, has := l.Policy.FailoverTable()
	if !has {
		return nil
	}
	if err := l.Mirror.Sync(ctx); err != nil {
		return fmt.Errorf("emptying the table of failover: %w", err)
	}
	var ops []routing.Op
	l.Mirror.View(func(k State) {
		for _, r := range k.OurRoutes(table) {
			ops = append(ops, routing.Op{Verb: routing.DeleteRoute, Route: r})
		}
		for _, f := range routing.Families() {
			// These lead to the table, or to that of an uplink that works now.
			for _, r := range k.RuleOrder(f, routing.PriorityTwin) {
				ops = slices.Insert(ops, 0, routing.Op{Verb: routing.DeleteRule, Rule: r})
			}
		}
	})
	for _, err := range l.Writer.Apply(ctx, ops) {
		if err != nil {
			return fmt.Errorf("emptying the table of failover: %w", err)
		}
	}
	return nil
}
