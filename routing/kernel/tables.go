package kernel

import (
	"context"
	"errors"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Reader reads tables that the mirror does not keep: those of others, and what main
// has through interfaces that are no links. It has a socket of its own, and holds up
// nobody.
type Reader struct {
	loader loader
	// beforeAsking is for tests: it is called between reading and asking.
	beforeAsking func()
}

// OpenReader opens the socket.
func OpenReader() (*Reader, error) {
	requests, err := newRequester()
	if err != nil {
		return nil, err
	}
	return &Reader{loader: loader{requests: requests}, beforeAsking: func() {}}, nil
}

// Close closes the socket.
func (r *Reader) Close() error { return r.loader.requests.close() }

// Tables returns the routes of some tables of one family that are alive, of every kind
// and in the kernel's order, a route for each leg. Of a table that has more than most
// routes it returns none, and names it in partial: a router may hold a million.
func (r *Reader) Tables(ctx context.Context, f routing.Family, tables []routing.TableID, most int) (routes map[routing.TableID][]routing.Route, partial map[routing.TableID]bool, err error) {
	s, err := r.withObjects(ctx)
	if err != nil {
		return nil, nil, err
	}
	routes, partial = map[routing.TableID][]routing.Route{}, map[routing.TableID]bool{}
	for _, t := range tables {
		all, isPartial, err := r.table(ctx, s, routeQuestion{family: f, table: t}, most)
		switch {
		case err != nil:
			return nil, nil, err
		case isPartial:
			partial[t] = true
		}
		for _, c := range all {
			if !c.Dead {
				routes[t] = append(routes[t], c.Route)
			}
		}
	}
	return routes, partial, nil
}

// Candidates returns what lookups ask of one table, as [Reader.Facts] does, to all destinations. Of a table that has
// more than most routes it returns none, and partial.
func (r *Reader) Candidates(ctx context.Context, f routing.Family, t routing.TableID, most int) (all []lookup.Candidate, partial bool, err error) {
	s, err := r.withObjects(ctx)
	if err != nil {
		return nil, false, err
	}
	return r.table(ctx, s, routeQuestion{family: f, table: t}, most)
}

// withObjects is a state that knows the nexthop objects, to which routes refer.
func (r *Reader) withObjects(ctx context.Context) (*State, error) {
	s := newState(routing.Ownership{}, func(string) bool { return false })
	return s, r.loader.nexthops(ctx, s)
}

func (r *Reader) table(ctx context.Context, s *State, question routeQuestion, most int) (out []lookup.Candidate, partial bool, err error) {
	q := question.dump()
	q.restart = func() { out = out[:0] }
	q.each = func(payload []byte) bool {
		h, err := peekRoute(payload)
		if err != nil || h.key.family != question.family || h.key.table != question.table || h.flags&routeCloned != 0 {
			return true
		}
		a, err := s.read(payload)
		if err != nil {
			return true
		}
		for _, l := range a.legs {
			out = append(out, lookup.Candidate{Route: l.route, Dead: l.dead, Nexthop: a.nexthop})
		}
		return len(out) <= most
	}
	switch err := r.loader.requests.dump(ctx, q); {
	case errors.Is(err, errBudget):
		return nil, true, nil
	case absent(err):
		return nil, false, nil
	default:
		return out, false, err
	}
}
