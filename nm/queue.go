package nm

import (
	"slices"
	"sync"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"
)

// A queue holds signals in the order in which they came from the bus. It is
// godbus's signal handler in place of [dbus.NewSequentialSignalHandler]: that
// one keeps the order too, but moves its whole backlog for each signal it
// delivers and needs a goroutine, while this one lets its reader see whether
// a signal or a reply was first.
//
// Whoever sends router advertisements decides how often an IP configuration changes, and
// each change is told with up to a thousand routes. So of these signals nothing is kept
// that nobody reads, and of several in a row for one object that say nothing else, one.
type queue struct {
	// filled has one slot; it is set when signals are there.
	filled chan struct{}
	// keeps are the properties of IP configurations that are read, nil for all.
	keeps []string

	mu      sync.Mutex
	signals []*dbus.Signal
	head    int
	// bare are the objects of which a signal without properties waits.
	bare map[dbus.ObjectPath]*dbus.Signal
}

// newQueue returns an empty queue, which keeps some properties of IP configurations, or all
// if keeps is nil.
func newQueue(keeps []string) *queue {
	return &queue{filled: make(chan struct{}, 1), keeps: keeps, bare: map[dbus.ObjectPath]*dbus.Signal{}}
}

// DeliverSignal implements [dbus.SignalHandler]. It never waits.
func (q *queue) DeliverSignal(_, _ string, s *dbus.Signal) {
	isBare := q.keeps != nil && lighten(s, q.keeps)
	q.mu.Lock()
	if isBare {
		if q.bare[s.Path] != nil {
			// Who takes the one that waits reads the profile after this one.
			q.mu.Unlock()
			return
		}
		q.bare[s.Path] = s
	}
	q.signals = append(q.signals, s)
	q.mu.Unlock()
	trigger(q.filled)
}

// lighten takes out of a change of an IP configuration what is not kept, and reports
// whether nothing is left.
func lighten(s *dbus.Signal, keeps []string) (isBare bool) {
	if s.Name != signalChanged || len(s.Body) < 2 {
		return false
	}
	iface, _ := s.Body[0].(string)
	changed, is := s.Body[1].(map[string]dbus.Variant)
	if !is || iface != gnm.IP4ConfigInterface && iface != gnm.IP6ConfigInterface {
		return false
	}
	for name := range changed {
		if !slices.Contains(keeps, name) {
			delete(changed, name)
		}
	}
	return len(changed) == 0
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
	if s := q.signals[q.head]; q.bare[s.Path] == s {
		delete(q.bare, s.Path)
	}
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
