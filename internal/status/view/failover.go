package view

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"multihomed/internal/english"
	"multihomed/internal/health"
	"multihomed/internal/status"
	"multihomed/routing"
)

// Failover is which uplinks work, as the daemon judges them.
type Failover struct {
	// Enabled is the key of the configuration.
	Enabled bool
	// Prober says why no probes are sent, empty if they are or if none are needed.
	Prober string
	// ProberFix is a command that may help then.
	ProberFix string
	// Uplinks are those with a default route, by index and family.
	Uplinks []Uplink
}

// An Uplink is what is known of one in one family. Its fields are those of failover.Link, which
// is converted to it.
type Uplink struct {
	Index  int
	Name   string
	Family routing.Family
	health.Report
	// Unwatched says why nothing is asked, as a clause, empty if something is.
	Unwatched string
	// Unsent says why its probes cannot be sent, with the fix where there is one.
	Unsent string
	// Metered says that its probes are rare because they cost money.
	Metered bool
	// RouterOnly says that all targets that answer are neighbours.
	RouterOnly bool
	// Tested is when a test of the administrator ends, zero if there is none.
	Tested time.Time
	// Servers are the DNS servers that the link's owner names.
	Servers []netip.Addr
}

// Sentence says what the state was judged by, with the numbers.
func (u Uplink) Sentence() string {
	e := u.Evidence
	switch {
	case e.Kind == health.BySilence && e.Silence > 0:
		return fmt.Sprintf("%s: silent for %.2f s, %s overdue (%d are enough)", u.Why, e.Silence.Seconds(), english.Count(e.Overdue, "answer"), e.Needed)
	case u.State == health.Recovering && e.Answered+e.Lost > 0:
		return fmt.Sprintf("%s: %s, %d lost", u.Why, english.Count(e.Answered, "answer"), e.Lost)
	default:
		return u.Why
	}
}

// NotWatched says why the uplink is judged by its carrier alone, empty if it is not.
func (u Uplink) NotWatched() string {
	switch {
	case u.State.IsDead():
		return "" // It was judged, and its own sentence says by what.
	case u.State == health.Unprobed:
		return cmp.Or(u.Unwatched, u.Why)
	default:
		return u.Unwatched
	}
}

// In are the uplinks of a family.
func (f *Failover) In(family routing.Family) []Uplink {
	if f == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(f.Uplinks), func(u Uplink) bool { return u.Family != family })
}

// Watches reports whether failover can act in a family: it needs two uplinks.
func (f *Failover) Watches(family routing.Family) bool {
	return f != nil && f.Enabled && len(f.In(family)) > 1
}

// Course is which way unbound traffic of a family goes, false where the daemon does not say so.
func (v *View) Course(f routing.Family) (routing.Course, bool) {
	if v.Snapshot == nil {
		return routing.Course{}, false
	}
	for i, family := range routing.Families() {
		if family == f {
			return v.Snapshot.Courses[i], v.Snapshot.Courses[i] != routing.Course{}
		}
	}
	return routing.Course{}, false
}

// Judged is the health of an interface in a family.
func (v *View) Judged(index int, f routing.Family) (Uplink, bool) {
	for _, u := range v.Failover.In(f) {
		if u.Index == index {
			return u, true
		}
	}
	return Uplink{}, false
}

// FailoverStatus is the failover of a status, nil if the daemon does not say so.
func (v *View) FailoverStatus() *status.Failover {
	if v.Failover == nil {
		return nil
	}
	out := &status.Failover{Enabled: v.Failover.Enabled, Prober: v.Failover.Prober, Uplinks: []status.Health{}}
	for _, u := range v.Failover.Uplinks {
		out.Uplinks = append(out.Uplinks, healthOf(u))
	}
	slices.SortStableFunc(out.Uplinks, func(a, b status.Health) int {
		return cmp.Or(status.CompareNames(a.Interface, b.Interface), cmp.Compare(a.Family, b.Family))
	})
	out.Escape()
	return out
}

func healthOf(u Uplink) status.Health {
	h := status.Health{
		Interface: u.Name, Family: u.Family.String(), State: status.HealthState(u.State.String()),
		Since: moment(u.Since), Why: u.Sentence(), Verdict: u.Why, NotWatched: u.NotWatched(), RouterOnly: u.RouterOnly, Metered: u.Metered,
		Tested: moment(u.Tested), LastProof: moment(u.LastProof), Recovered: moment(u.Recovered),
		DeathsToday: u.DeathsToday, Targets: []status.HealthTarget{}, Interval: u.Interval.Milliseconds(),
	}
	if u.RTT > 0 {
		rtt, loss := float64(u.RTT.Microseconds())/float64(time.Millisecond/time.Microsecond), u.Loss
		h.RTT, h.Loss = &rtt, &loss
	}
	for _, t := range u.Targets {
		h.Targets = append(h.Targets, status.HealthTarget{Target: t.Name, OnLink: t.OnLink, Answered: t.Answered, Silent: t.Silent})
	}
	return h
}

// moment is a time of a status, nil for none.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Truncate(time.Millisecond)
	return &t
}

// unboundIn is the way of unbound traffic, with what failover makes of it.
func (v *View) unboundIn(f routing.Family, u status.Unbound) status.Unbound {
	c, known := v.Course(f)
	if !known {
		return u
	}
	u.Why = v.whyCourse(c)
	if decides := v.decidesInstead(f, u); decides != "" {
		// Failover may lead where it will: these packets never ask it.
		if u.Why != "" {
			u.Why = decides
		}
		return u
	}
	for _, r := range c.Ways.All() {
		for _, way := range r.Ways() {
			u.Shares = append(u.Shares, status.Leg{Interface: v.device(way.Device), Weight: max(way.Weight, 1)})
		}
	}
	if len(u.Shares) < 2 {
		u.Shares = nil
	}
	if main := v.device(c.Main.Device); c.Moved && main != u.Interface {
		u.Main = main
	}
	return u
}

// decidesInstead says what sends unbound traffic of a family by another table than main or that of
// failover, empty if nothing does.
func (v *View) decidesInstead(f routing.Family, u status.Unbound) string {
	table := routing.TableID(u.Table)
	if own, has := v.Policy.FailoverTable(); table == routing.TableMain || table == 0 || has && table == own {
		return ""
	}
	for _, o := range v.Planner.Foreign(f) {
		if o.Rule.Action == routing.ActionLookup && o.Rule.Table == table && Decides(o.Rule) {
			return fmt.Sprintf("the rule %q of another program decides", o.Rule.String())
		}
	}
	return fmt.Sprintf("table %d decides", table)
}

// whyCourse says why unbound traffic does not follow main, or why it does although its uplink
// is dead.
func (v *View) whyCourse(c routing.Course) string {
	main := v.device(c.Main.Device)
	switch c.Why {
	case routing.CourseDead:
		return main + " does not work"
	case routing.CourseNoneLives:
		return main + " does not work, and neither does another uplink"
	case routing.CourseShared:
		return "shared by weight"
	case routing.CourseKept:
		return main + " did not work before the daemon started, and nothing has been judged since"
	case routing.CourseFrozen:
		return main + " does not work, and nobody stays to move the traffic back"
	case routing.CourseTaken:
		return "somebody else uses the table of failover"
	case routing.CourseThrown:
		return "main has more throw routes than the table of failover can follow"
	case routing.CourseBlocked:
		return "rules of other programs leave no place in front of main"
	default:
		return ""
	}
}
