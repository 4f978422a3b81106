package news_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/news"
)

func TestSignal(t *testing.T) {
	t.Parallel()
	s := news.NewSignal()
	s.Give()
	s.Give()
	<-s
	select {
	case <-s:
		t.Error("given once, and there twice")
	default:
	}
}

// TestSlot: who follows gets the newest value alone, a failed one again, and who waits for
// idleness waits for all.
func TestSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := news.NewSlot[int]()
		if s.Idle(ctx); !s.IsIdle() {
			t.Error("it is empty and not idle")
		}
		s.Put(1)
		s.Put(2)
		var (
			mu  sync.Mutex
			got []int
		)
		dealt := func() []int {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(got)
		}
		ended := make(chan error)
		go func() {
			ended <- s.Follow(ctx, time.Minute, func(_ context.Context, n int) error {
				<-time.After(time.Second)
				mu.Lock()
				defer mu.Unlock()
				if got = append(got, n); n == 2 && len(got) < 3 {
					return errors.New("not yet")
				}
				return nil
			})
		}()
		began := time.Now()
		s.Idle(ctx)
		if took := time.Since(began); took != time.Second || !slices.Equal(dealt(), []int{2}) {
			t.Errorf("idle after %v, with %v", took, dealt())
		}
		<-time.After(3 * time.Minute)
		synctest.Wait()
		if !slices.Equal(dealt(), []int{2, 2, 2}) {
			t.Errorf("a value that fails twice was dealt with as %v", dealt())
		}
		s.Put(3)
		s.Idle(ctx)
		cancel()
		if err := <-ended; err != nil || !slices.Equal(dealt(), []int{2, 2, 2, 3}) {
			t.Errorf("in the end %v, %v", dealt(), err)
		}
	})
}
