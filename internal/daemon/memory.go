package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"multihomed/internal/news"
)

const (
	// quiet is how long nothing must happen before memory is given back: a collection would
	// delay a change.
	quiet = time.Second
	// worthGivingBack is the growth that is worth a collection, in bytes.
	worthGivingBack = 8 << 20
)

// giveBack returns memory to the system when a burst of changes is over. The runtime would
// keep twice the memory in use (GOGC) until something else happens.
func giveBack(ctx context.Context, changed news.Signal) {
	var kept uint64
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if !isQuiet(ctx, changed) {
			return
		}
		if held := heldMemory(); held > kept+max(kept/4, worthGivingBack) {
			debug.FreeOSMemory()
			kept = heldMemory()
		}
	}
}

// isQuiet waits until nothing has changed for a while, and returns false if ctx is done.
func isQuiet(ctx context.Context, changed news.Signal) bool {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for {
		select {
		case <-changed:
			timer.Reset(quiet)
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// heldMemory is the memory that the runtime has from the system, in bytes.
func heldMemory() uint64 {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(held)
	return held[0].Value.Uint64() - held[1].Value.Uint64()
}
