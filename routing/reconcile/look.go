package reconcile

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/time/rate"

	"multihomed/routing"
)

// Look plans the host as the first pass of a [Loop] does and writes nothing: neither to
// the kernel nor to the memory. It returns how the host stands, with everything that
// stands compared. Of o, Writer, Repairs and Hooks are not needed.
func Look(ctx context.Context, o Options) (*Snapshot, error) {
	// What a Loop would say of what it does is not true of one that only looks.
	o.Logger, o.Hooks = slog.New(slog.DiscardHandler), Hooks{}
	o.Repairs = rate.NewLimiter(rate.Inf, 0)
	l := New(o)
	settled := false
	for range maxPasses {
		if err := l.take(ctx); err != nil {
			return nil, err
		}
		if !l.pending() {
			if l.askElsewhere(ctx) {
				continue
			}
			settled = true
			break
		}
		l.plan(ctx)
		planned := l.planner.Take()
		l.noteProblems(planned)
		l.dated(planned)
		l.touched = routing.NewTouched()
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case l.failed(aboutMirror):
		return nil, errors.New(l.failures[aboutMirror].Text)
	case !settled:
		return nil, errors.New("looking at the host: it changes all the time")
	}
	l.Mirror.View(func(k State) { l.touched = routing.Everything(l.planner, k) })
	return l.snapshot(), nil
}
