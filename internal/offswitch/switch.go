package offswitch

import (
	"sync"

	"multihomed/internal/news"
)

// A Switch is what a process knows of what is off, and whether that changed. It is safe
// for concurrent use.
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

// State is what is off, and how often that has changed.
func (s *Switch) State() (State, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.generation
}

// Changed holds a value when the state has changed.
func (s *Switch) Changed() <-chan struct{} { return s.changed }

// Reload reads it again. Where that cannot be read now, what was known holds.
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
