// Package news tells one reader of what something has changed.
package news

import (
	"maps"
	"slices"
	"sync"
)

// Names are the names of what has changed. They are safe for concurrent use; New
// makes them.
type Names struct {
	changed chan struct{}

	mu    sync.Mutex
	dirty map[string]struct{}
}

// New returns names of nothing.
func New() *Names { return &Names{changed: make(chan struct{}, 1), dirty: map[string]struct{}{}} }

// Touch adds a name.
func (n *Names) Touch(name string) {
	n.mu.Lock()
	n.dirty[name] = struct{}{}
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Changed holds a value when Take has something to say.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Take returns the names that were added since it was called last, sorted.
func (n *Names) Take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := slices.Sorted(maps.Keys(n.dirty))
	clear(n.dirty)
	return names
}
