package daemon_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/daemon"
)

// TestMemoryIsGivenBackWhenItIsQuiet: what a burst of changes took does not stay.
func TestMemoryIsGivenBackWhenItIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		changed, held := daemon.GiveBack(ctx)
		const burst = 64 << 20
		before := held()
		clear(make([]byte, burst))
		for range 20 {
			changed()
			<-time.After(daemon.Quiet / 2)
			if after := held(); after < before+burst/2 {
				t.Fatalf("%d MiB are held in the middle of the burst, %d before it", after>>20, before>>20)
			}
		}
		<-time.After(2 * daemon.Quiet)
		synctest.Wait()
		if after := held(); after > before+burst/4 {
			t.Errorf("%d MiB are held after the burst, %d before it", after>>20, before>>20)
		}
	})
}
