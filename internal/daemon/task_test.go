package daemon_test

import (
	"context"
	"errors"
	"testing"

	"multihomed/internal/daemon"
)

// TestTasks: the daemon is ready when all of its tasks are, and an error says whose it is.
func TestTasks(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	failure := errors.New("out of order")
	turn, fail, ready := make(chan struct{}), make(chan struct{}), make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- daemon.RunAll(ctx, func() { close(ready) },
			daemon.Part{Name: "at once", Run: func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }, AtOnce: true},
			daemon.Part{Name: "later", Run: func(_ context.Context, isReady func()) error {
				<-turn
				isReady()
				isReady()
				<-fail
				return failure
			}})
	}()
	select {
	case <-ready:
		t.Error("ready before a task was")
	case turn <- struct{}{}:
	}
	<-ready
	close(fail)
	if err := <-ended; !errors.Is(err, failure) || err.Error() != "later: out of order" {
		t.Errorf("it ended with %v", err)
	}
	cancel()
	// Ended before all were ready.
	err := daemon.RunAll(ctx, func() { t.Error("ready, and never was") },
		daemon.Part{Name: "never", Run: func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }})
	if err != nil {
		t.Error(err)
	}
}
