package lab

import (
	"context"
	"fmt"
	"time"
)

// Eventually calls f until it returns nil or the context ends, whose error then
// wraps f's last one. The first calls follow one another closely, later ones at
// most 50 ms apart. Give the context a deadline that is generous: a failure
// waits for all of it, a success for none.
func Eventually(ctx context.Context, f func() error) error {
	pause := time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-timer.C:
		}
		pause = min(pause*3/2+time.Millisecond, 50*time.Millisecond)
		timer.Reset(pause)
	}
}

// Within bounds a wait whose caller may have given no deadline.
func Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
