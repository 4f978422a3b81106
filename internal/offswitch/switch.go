package offswitch

import (
	"sync"

	"multihomed/internal/news"
)

// A Switch is the state of the off switch as a process last read it, with a signal for changes.
// It is safe for concurrent use.
type Switch struct {
	directories Directories
	changed     news.Signal

	mu    sync.Mutex
	state State
	// generation counts the changes.
	generation uint64
}

// Open reads what is off.
func Open(d Directories) *Switch {
	return &Switch{directories: d, changed: news.NewSignal(), state: Load(d)}
}

// State is what is off, and the number of changes so far.
func (s *Switch) State() (State, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.generation
}

// Changed holds a value when the state has changed.
func (s *Switch) Changed() <-chan struct{} { return s.changed }

// Reload reads the files again. If that fails it keeps the last state.
func (s *Switch) Reload() error {
	now := Load(s.directories)
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Damaged != nil && s.state.Damaged == nil {
		return now.Damaged
	}
	if same(now, s.state) && now.Damaged == nil && s.state.Damaged == nil {
		return nil
	}
	s.state = now
	s.generation++
	s.changed.Give()
	return nil
}
