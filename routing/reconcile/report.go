package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"multihomed/routing"
)

func (l *Loop) applied(ctx context.Context, op routing.Op) {
	if !l.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	l.Logger.LogAttrs(ctx, slog.LevelDebug, "kernel changed", slog.String("operation", op.Text(l.nameOf)), slog.String("reason", op.Reason.String()))
}

// logLinks writes one line for every link that changed.
func (l *Loop) logLinks(ctx context.Context, before map[int]routing.LinkPlan, ops []routing.Op, failed int) {
	if len(ops) == 0 {
		return
	}
	for _, index := range slices.Sorted(maps.Keys(before)) {
		was := before[index]
		had := len(was.Link.Tables) > 0
		plan, has := l.planner.Link(index)
		has = has && len(plan.Link.Tables) > 0
		switch {
		case has && !had && failed > 0:
			l.Logger.LogAttrs(ctx, slog.LevelWarn, "routing of link is not complete", append(linkAttrs(plan, failed), slog.String("because", plan.Why))...)
		case has && !had:
			l.Logger.LogAttrs(ctx, slog.LevelInfo, "link has its own routing", append(linkAttrs(plan, failed), slog.String("because", plan.Why))...)
		case had && !has:
			l.Logger.LogAttrs(ctx, slog.LevelInfo, "link has gone", slog.String("interface", was.Link.Name), slog.String("role", was.Role.String()))
		case has && was.Role != plan.Role:
			l.Logger.LogAttrs(ctx, slog.LevelInfo, "role of link changed", append(linkAttrs(plan, failed), slog.String("because", plan.Why))...)
		case has && !samePlan(was, plan):
			attrs := linkAttrs(plan, failed)
			if was.Why != plan.Why {
				attrs = append(attrs, slog.String("because", plan.Why))
			}
			l.Logger.LogAttrs(ctx, slog.LevelInfo, "link changed", attrs...)
		}
	}
}

func samePlan(a, b routing.LinkPlan) bool {
	return a.Role == b.Role && slices.Equal(a.Rules, b.Rules) && slices.Equal(a.Routes, b.Routes)
}

func linkAttrs(plan routing.LinkPlan, failed int) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("interface", plan.Link.Name),
		slog.String("role", plan.Role.String()),
	}
	for _, k := range plan.Keys {
		t, ok := plan.Link.Tables[k]
		if !ok {
			continue
		}
		var gateways []string
		for _, r := range plan.Routes {
			if r.Route.Table == t && r.Route.Family == k.Family && r.Route.IsDefault() {
				gateways = append(gateways, nextHop(r.Route))
			}
		}
		attrs = append(attrs, slog.Group(k.Network(), slog.Uint64("table", uint64(t)), slog.String("default", strings.Join(gateways, " "))))
	}
	if failed > 0 {
		attrs = append(attrs, slog.Int("failed", failed))
	}
	return attrs
}

func nextHop(r routing.Route) string {
	if r.Gateway.IsValid() {
		return r.Gateway.String()
	}
	return "on link"
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

// report tells who wants to know what changed in what there is to report.
func (l *Loop) report() {
	if !l.news {
		return
	}
	l.news = false
	l.picture.spoil()
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
	r.Away, r.Gone = l.away(), l.guarded()
	return r
}
