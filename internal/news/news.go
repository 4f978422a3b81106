// Package news passes changes to one reader: that something changed (Signal), its newest value
// (Slot), or the names of what changed (Set).
package news

import (
	"maps"
	"slices"
	"sync"
)

// A Set holds the names of what has changed. It is safe for concurrent use; NewSet makes
// one.
type Set struct {
	changed Signal

	mu    sync.Mutex
	dirty map[string]struct{}
}

// NewSet returns an empty Set.
func NewSet() *Set { return &Set{changed: NewSignal(), dirty: map[string]struct{}{}} }

// Touch adds a name.
func (n *Set) Touch(name string) {
	n.mu.Lock()
	n.dirty[name] = struct{}{}
	n.mu.Unlock()
	n.changed.Give()
}

// Changed holds a value when Take has names.
func (n *Set) Changed() <-chan struct{} { return n.changed }

// Take returns the names that were added since the last call, sorted.
func (n *Set) Take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := slices.Sorted(maps.Keys(n.dirty))
	clear(n.dirty)
	return names
}

// IsEmpty reports whether Take has no names.
func (n *Set) IsEmpty() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dirty) == 0
}
