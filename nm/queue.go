package nm

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// A queue holds signals in the order in which they came from the bus. It is
// godbus's signal handler in place of [dbus.NewSequentialSignalHandler]: that
// one keeps the order too, but moves its whole backlog for each signal it
// delivers and needs a goroutine, while this one lets its reader see whether
// a signal or a reply was first.
type queue struct {
	// filled has one slot; it is set when signals are there.
	filled chan struct{}

	mu      sync.Mutex
	signals []*dbus.Signal
	head    int
}

func newQueue() *queue { return &queue{filled: make(chan struct{}, 1)} }

// DeliverSignal implements [dbus.SignalHandler]. It never waits.
func (q *queue) DeliverSignal(_, _ string, s *dbus.Signal) {
	q.mu.Lock()
	q.signals = append(q.signals, s)
	q.mu.Unlock()
	trigger(q.filled)
}

// first returns the oldest signal without taking it, or nil.
func (q *queue) first() *dbus.Signal {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head == len(q.signals) {
		return nil
	}
	return q.signals[q.head]
}

// pop takes the oldest signal.
func (q *queue) pop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.signals[q.head] = nil
	q.head++
	if q.head == len(q.signals) {
		q.head = 0
		q.signals = q.signals[:0]
		if cap(q.signals) > 1024 {
			q.signals = nil // a storm is over
		}
	}
}
