package reconcile

import (
	"context"
	"log/slog"
	"slices"

	"multihomed/routing"
)

// askUnbound hands the planner what the kernel does with packets that are bound to
// nothing, if that may have changed. It comes before the next pass: a rung that catches
// them must not be put up, and must go at once where it stands.
func (l *Loop) askUnbound(ctx context.Context) error {
	if !l.unasked {
		return nil
	}
	found, err := l.Mirror.Unbound(ctx)
	if err != nil {
		return err
	}
	l.unasked = false
	// What was announced meanwhile belongs to what was asked.
	l.takeChanges(ctx)
	for _, f := range routing.Families() {
		l.planner.SetUnbound(f, found[f])
	}
	return nil
}

// logAside says which sources of a link step aside from now on, and which no longer do.
func (l *Loop) logAside(before, now []routing.Problem) {
	attrs := func(p routing.Problem) []slog.Attr {
		return []slog.Attr{slog.String("interface", p.Link), slog.String("address", p.Object), slog.String("because", p.Text)}
	}
	for _, p := range now {
		if p.Code == routing.SourceAside && !slices.Contains(before, p) {
			l.Logger.LogAttrs(context.Background(), slog.LevelWarn, "packets bound to an address do not keep to their link", attrs(p)...)
		}
	}
	for _, p := range before {
		if p.Code == routing.SourceAside && !slices.Contains(now, p) {
			l.Logger.LogAttrs(context.Background(), slog.LevelInfo, "packets bound to an address keep to their link again", attrs(p)[:2]...)
		}
	}
}
