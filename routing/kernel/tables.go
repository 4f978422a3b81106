package kernel

import (
	"context"
	"errors"

	"multihomed/routing"
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
	s := newState(routing.Ownership{}, func(string) bool { return false })
	if err := r.loader.nexthops(ctx, s); err != nil {
		return nil, nil, err
	}
	routes, partial = map[routing.TableID][]routing.Route{}, map[routing.TableID]bool{}
	for _, t := range tables {
		some, err := r.table(ctx, s, routeQuestion{family: f, table: t}, most)
		switch {
		case errors.Is(err, errBudget):
			partial[t] = true
		case absent(err):
		case err != nil:
			return nil, nil, err
		default:
			routes[t] = some
		}
	}
	return routes, partial, nil
}

func (r *Reader) table(ctx context.Context, s *State, question routeQuestion, most int) ([]routing.Route, error) {
	var out []routing.Route
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
			if !l.dead {
				out = append(out, l.route)
			}
		}
		return len(out) <= most
	}
	err := r.loader.requests.dump(ctx, q)
	return out, err
}
