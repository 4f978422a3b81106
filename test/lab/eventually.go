package lab

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// SlowEnv is the environment variable for machines that are slower than the bounds
// of the lab and its tests expect, such as emulated ones: all of them are multiplied
// by its value, at least 1.
const SlowEnv = "MULTIHOMED_TEST_SLOW"

func slowness() (float64, error) {
	value := os.Getenv(SlowEnv)
	if value == "" {
		return 1, nil
	}
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || !(f >= 1 && f <= 1000) {
		return 1, fmt.Errorf("%s=%s: not a number from 1 to 1000", SlowEnv, value)
	}
	return f, nil
}

// Stretched is a bound for this machine: d, or more if SlowEnv is set.
func Stretched(d time.Duration) time.Duration {
	f, _ := slowness() // Main has refused another value.
	return time.Duration(f * float64(d))
}

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

// Within bounds a wait whose caller may have given no deadline, by d as Stretched.
func Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, Stretched(d))
}
