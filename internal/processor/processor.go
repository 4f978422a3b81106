// Package processor measures what work costs.
package processor

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Cost does something, and returns the CPU time of its thread for that. What other goroutines
// did for it does not count, nor how long it waited.
func Cost(do func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := used()
	do()
	return used() - before
}

// used is the CPU time of this thread so far.
func used() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // Every kernel has this clock (clock_gettime(2)).
	}
	return time.Duration(t.Nano())
}
