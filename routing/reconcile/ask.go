package reconcile

import (
	"context"
	"slices"
	"sync"

	"multihomed/routing"
)

// A LinkState is how an interface stands after a pass.
type LinkState struct {
	// Plan is the zero LinkPlan if the interface is no link.
	Plan routing.LinkPlan
	// Claim is what its owner says of the interface, the zero Claim if nobody does.
	Claim Claim
	// Waiting says what keeps the knowledge of owners from being complete, empty if
	// nothing does.
	Waiting string
	// Problems are what keeps the plan, or a part of it, from being in force.
	Problems []routing.Problem
	// Unread says that the kernel could not be read: nothing was done.
	Unread bool
}

// An ask is a question of another goroutine. It is answered after the pass that
// follows it, so that the answer covers all that happened before it was asked.
type ask struct {
	name   string
	answer chan LinkState
	// look, if not nil, is called in place of an answer.
	look func()
}

// Settled waits for a pass that takes up everything that happened so far and
// returns how the interface stands then. Run must be running.
func (l *Loop) Settled(ctx context.Context, name string) (LinkState, error) {
	a := ask{name: name, answer: make(chan LinkState, 1)}
	select {
	case l.asks <- a:
	case <-ctx.Done():
		return LinkState{}, context.Cause(ctx)
	}
	select {
	case s := <-a.answer:
		return s, nil
	case <-ctx.Done():
		return LinkState{}, context.Cause(ctx)
	}
}

func (l *Loop) answer(a ask) {
	if a.look != nil {
		a.look()
		return
	}
	if a.answer == nil {
		return // Something else woke the loop.
	}
	s := LinkState{Unread: l.failed(aboutMirror), Waiting: l.waiting}
	l.Mirror.View(func(k State) {
		if index, is := k.IndexOf(a.name); is {
			s.Claim, _, _ = l.of(k, index)
		}
	})
	for plan := range l.planner.Links() {
		if plan.Link.Name == a.name {
			s.Plan = plan
			s.Problems = slices.Clone(plan.Problems)
		}
	}
	for _, f := range l.failures {
		if f.Link == a.name {
			s.Problems = append(s.Problems, f.Problem)
		}
	}
	a.answer <- s
}

// ownedTables are the numbers that the owners of links use themselves.
type ownedTables struct {
	mu     sync.Mutex
	byLink map[string][]routing.TableID
}

func (o *ownedTables) set(name string, tables []routing.TableID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(tables) == 0 {
		delete(o.byLink, name)
	} else {
		o.byLink[name] = tables
	}
}

// by returns the link whose owner uses a number.
func (o *ownedTables) by(t routing.TableID) (name string, used bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, tables := range o.byLink {
		if slices.Contains(tables, t) {
			return name, true
		}
	}
	return "", false
}
