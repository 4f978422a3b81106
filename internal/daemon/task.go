package daemon

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// A task is a part of the daemon with a goroutine.
type task struct {
	// name is for errors.
	name string
	// run returns nil when it has ended because ctx is done, or because nothing is left to
	// be done; an error ends all tasks.
	run func(ctx context.Context) error
	// ready is given when the task serves; nil if it serves at once.
	ready *latch
}

// always makes the run of a task that cannot fail.
func always(run func(ctx context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		run(ctx)
		return nil
	}
}

// runAll runs tasks until all have ended, and calls ready once when all are ready.
func runAll(ctx context.Context, tasks []task, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error {
			if err := t.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		for _, t := range tasks {
			if t.ready != nil && !t.ready.await(ctx) {
				return nil
			}
		}
		ready()
		return nil
	})
	return group.Wait()
}

// A latch is given once.
type latch struct {
	once  sync.Once
	given chan struct{}
}

func newLatch() *latch { return &latch{given: make(chan struct{})} }

// do does something with the latch, unless it was given before.
func (s *latch) do(something func()) {
	s.once.Do(func() {
		something()
		close(s.given)
	})
}

func (s *latch) give() { s.once.Do(func() { close(s.given) }) }

// await reports whether the signal was given before ctx was done.
func (s *latch) await(ctx context.Context) bool {
	select {
	case <-s.given:
		return true
	case <-ctx.Done():
		// Both may have come.
		select {
		case <-s.given:
			return true
		default:
			return false
		}
	}
}
