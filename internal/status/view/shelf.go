package view

import (
	"encoding/json"
	"fmt"
	"slices"

	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A Shelf keeps the status of interfaces that do not change, from one view of the daemon to the
// next.
type Shelf struct {
	entries map[*reconcile.Interface]*kept
	// shared are the rules outside of the plans of links, by the link that they name: those of bindings
	// and answers change while the interface does not.
	shared map[string][]routing.PlannedRule
}

// NewShelf returns an empty one.
func NewShelf() *Shelf { return &Shelf{entries: map[*reconcile.Interface]*kept{}} }

// kept is what the status says of a link while its whole plan is in force.
type kept struct {
	objects []Object
	// link, its names escaped, and its JSON are empty until they were asked for.
	link    status.Link
	encoded []byte
}

// Use makes a view take from the shelf what it can. The shelf forgets interfaces that the view
// does not know.
func (s *Shelf) Use(v *View) {
	entries := make(map[*reconcile.Interface]*kept, len(v.Snapshot.Interfaces))
	shared := map[string][]routing.PlannedRule{}
	for _, r := range v.Planner.Shared() {
		shared[r.Reason.Link] = append(shared[r.Reason.Link], r)
	}
	for _, i := range v.Snapshot.Interfaces {
		if e, known := s.entries[i]; known {
			entries[i] = e
			if name := i.Facts.Name; !slices.Equal(s.shared[name], shared[name]) {
				e.link, e.encoded = status.Link{}, nil
			}
		}
	}
	s.entries, s.shared, v.shelf = entries, shared, s
}

// kept returns what is kept of a link. Without a shelf it is made anew.
func (v *View) kept(plan *routing.LinkPlan) *kept {
	if v.shelf == nil {
		return &kept{objects: v.plannedObjects(plan)}
	}
	i, known := v.Snapshot.Interface(plan.Link.Index)
	if !known {
		return &kept{objects: v.plannedObjects(plan)}
	}
	e := v.shelf.entries[i]
	if e == nil {
		e = &kept{objects: v.plannedObjects(plan)}
		v.shelf.entries[i] = e
	}
	return e
}

// keptLink returns the link of the status where nothing of it is odd, false if it has to be
// made anew.
func (v *View) keptLink(plan *routing.LinkPlan) (*kept, bool) {
	if v.shelf == nil || v.odd[plan.Link.Name] {
		return nil, false
	}
	e := v.kept(plan)
	for _, n := range e.link.Networks {
		if n.Routes != v.Snapshot.Paths[routing.TableID(n.Table)] {
			return nil, false
		}
	}
	return e, e.link.Interface != ""
}

// Document is a status in JSON, with a line feed at its end. Links on the shelf are not encoded
// again.
func (v *View) Document(s status.Status) ([]byte, error) {
	links := make(map[string][]byte, len(s.Links))
	for plan := range v.Planner.Links() {
		if e, is := v.keptLink(&plan); is {
			if e.encoded == nil {
				var err error
				if e.encoded, err = json.Marshal(e.link); err != nil {
					return nil, fmt.Errorf("encoding the status of %s: %w", plan.Link.Name, err)
				}
			}
			links[e.link.Interface] = e.encoded
		}
	}
	return status.Encode(s, func(l status.Link) []byte { return links[l.Interface] })
}
