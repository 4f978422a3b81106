package news

import (
	"context"
	"sync"
	"time"
)

// A Slot is a Signal with a value: one goroutine puts values, another one follows them. Put
// never waits, and the follower gets only the newest value. NewSlot makes one.
type Slot[T any] struct {
	given Signal

	mu    sync.Mutex
	value *T
	// busy says that the follower handles a value; idle is closed when it has finished, and
	// nil while nobody waits for that.
	busy bool
	idle chan struct{}
}

// NewSlot returns an empty Slot.
func NewSlot[T any]() *Slot[T] { return &Slot[T]{given: NewSignal()} }

// Put replaces the value.
func (s *Slot[T]) Put(value T) {
	s.mu.Lock()
	s.value = &value
	s.mu.Unlock()
	s.given.Give()
}

// IsIdle reports whether the follower has handled all values.
func (s *Slot[T]) IsIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isIdle()
}

func (s *Slot[T]) isIdle() bool { return s.value == nil && !s.busy }

// Idle waits until the follower has handled all values, or ctx is done.
func (s *Slot[T]) Idle(ctx context.Context) {
	for {
		s.mu.Lock()
		if s.isIdle() {
			s.mu.Unlock()
			return
		}
		if s.idle == nil {
			s.idle = make(chan struct{})
		}
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return
		}
	}
}

// take returns the value, if there is one.
func (s *Slot[T]) take() (value T, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == nil {
		return value, false
	}
	value, s.value, s.busy = *s.value, nil, true
	return value, true
}

// done says that a value was handled.
func (s *Slot[T]) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	if s.value == nil && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Follow handles each value until ctx is done. A value that fails is handled again after the
// time retry, unless there is a newer one by then. A value that is left when ctx is done is
// for [Slot.Rest].
func (s *Slot[T]) Follow(ctx context.Context, retry time.Duration, deal func(context.Context, T) error) error {
	var last T
	again := time.NewTimer(retry)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.given:
			value, is := s.take()
			if !is {
				continue
			}
			last = value
		case <-again.C:
		}
		again.Stop()
		err := deal(ctx, last)
		s.done()
		if err != nil {
			again.Reset(retry)
		}
	}
}

// Rest handles the value that is left after Follow has returned and the last Put.
func (s *Slot[T]) Rest(deal func(T)) {
	if value, is := s.take(); is {
		deal(value)
		s.done()
	}
}
