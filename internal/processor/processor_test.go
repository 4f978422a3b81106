package processor_test

import (
	"os"
	"testing"
	"time"

	"multihomed/internal/processor"
)

// TestCost: work counts, and waiting does not.
func TestCost(t *testing.T) {
	t.Parallel()
	work := processor.Cost(func() {
		for sum, n := 0, 0; n < 200_000_000; n++ {
			sum += n ^ sum
		}
	})
	began := time.Now()
	wait := processor.Cost(func() {
		r, w, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		time.AfterFunc(500*time.Millisecond, func() { _ = w.Close() })
		_, _ = r.Read(make([]byte, 1))
		_ = r.Close()
	})
	if waited := time.Since(began); work <= 0 || wait < 0 || wait > waited/2 {
		t.Errorf("work cost %v, waiting for %v cost %v", work, waited, wait)
	}
}
