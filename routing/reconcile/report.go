package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"multihomed/routing"
)

func (l *Loop) applied(ctx context.Context, op routing.Op) {
	l.noteRoute(op)
	l.countChange(op)
	if !l.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	l.Logger.LogAttrs(ctx, slog.LevelDebug, "kernel changed", slog.String("operation", op.Text(l.nameOf)), slog.String("reason", op.Reason.String()))
}

// noteProblems takes over the problems of links that were planned anew.
func (l *Loop) noteProblems(t routing.Touched) {
	for index := range t.Links {
		plan, _ := l.planner.Link(index)
		if slices.Equal(l.problems[index], plan.Problems) {
			continue
		}
		l.news = true
		l.logAside(l.problems[index], plan.Problems)
		if len(plan.Problems) == 0 {
			delete(l.problems, index)
		} else {
			l.problems[index] = plan.Problems
		}
	}
}

// keepMemory writes down what the next process must know.
func (l *Loop) keepMemory() {
	unkept := ""
	if err := l.recall.keep(); err != nil {
		unkept = err.Error()
	}
	l.news = l.news || unkept != l.unkept
	l.unkept = unkept
}

// waitGrace is how long something may be missing before that is a problem: a manager
// that starts, or is upgraded, needs no attention.
const waitGrace = 10 * time.Second

// report tells who wants to know what changed in what there is to report.
func (l *Loop) report() {
	if due := l.waiting != "" && !l.waitsLong && l.now().Sub(l.incomplete) >= waitGrace; !l.news && !due {
		return
	}
	l.news = false
	if !l.waitsLong {
		l.waitsLong = l.waiting != "" && l.now().Sub(l.incomplete) >= waitGrace
	}
	l.waitsLong = l.waitsLong && l.waiting != ""
	l.picture.restructure()
	r := l.reportNow()
	if r.Ready == l.reported.Ready && r.Waiting == l.reported.Waiting && slices.Equal(r.Problems, l.reported.Problems) &&
		slices.Equal(r.Away, l.reported.Away) && slices.Equal(r.Gone, l.reported.Gone) {
		return
	}
	l.reported = r
	if l.Hooks.Report != nil {
		l.Hooks.Report(r)
	}
}

func (l *Loop) reportNow() Report {
	r := Report{Ready: l.ready, Waiting: l.waiting}
	for _, index := range slices.Sorted(maps.Keys(l.problems)) {
		r.Problems = append(r.Problems, l.problems[index]...)
	}
	for _, name := range slices.Sorted(maps.Keys(l.claims)) {
		for _, text := range l.claims[name].Problems {
			r.Problems = append(r.Problems, routing.Problem{Code: routing.NotUnderstood, Severity: routing.Warning, Link: name, Text: "NetworkManager: " + text})
		}
	}
	for _, about := range slices.Sorted(maps.Keys(l.failures)) {
		r.Problems = append(r.Problems, l.failures[about].Problem)
	}
	if l.waitsLong {
		r.Problems = append(r.Problems, routing.Problem{Code: routing.WaitsForOwners, Severity: routing.Warning, Text: "multihomed is waiting: " + l.waiting + "; existing routing is kept, and new links of NetworkManager get none"})
	}
	r.Problems = append(r.Problems, l.disputed()...)
	r.Problems = append(r.Problems, l.failoverProblems()...)
	if l.unkept != "" {
		r.Problems = append(r.Problems, routing.Problem{
			Code: routing.Forgetful, Severity: routing.Warning, Text: "after a restart, what happened before it will be unknown: " + l.unkept,
		})
	}
	r.Away, r.Gone = l.away(), l.guarded()
	return r
}
