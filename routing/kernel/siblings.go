package kernel

import (
	"errors"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// This file tells our routes from those of others where the kernel does not. It joins
// IPv6 routes of one key that have next hops, and lists them as one, with the protocol
// and the metrics of the first, or of the one that came last (rt6_fill_node in
// net/ipv6/route.c). Who made the others is not to be asked. It is to be tried: a
// deletion that names our protocol skips what is not ours (ip6_route_del).
//
// So what is listed as a sibling of others at a metric of ours counts as ours until a
// deletion fails. What was written beside siblings is known as it was written.

// authors are, by key, the siblings of which it is known who made them: ours as we wrote
// them, the zero Route for those of others.
type authors map[fibKey]map[routing.RouteKey]routing.Route

// siblings reports whether what is listed of an alias may be true of one leg only.
func (a *alias) siblings() bool {
	return a.key.family == routing.IPv6 && a.key.table != routing.TableMain && a.nexthop == 0 && len(a.legs) > 1
}

// own returns the route of ours that a leg is, false if it is none.
func (s *State) own(a *alias, l leg) (routing.Route, bool) {
	if !a.siblings() {
		return l.route, s.fib.owned(l)
	}
	r := l.route
	if known, is := s.authors[a.key][r.Key()]; is {
		return known, known != (routing.Route{})
	}
	if s.fib.owned(l) {
		return r, true
	}
	r.Protocol = routing.Multihomed
	return r, a.key.metric >= routing.FirstMetric
}

// wrote notes what came of operations of ours. It must be called when the mirror has
// their effects.
func (s *State) wrote(ops []routing.Op, errs []error) {
	for i, op := range ops {
		switch op.Verb {
		case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		default:
			continue
		}
		if op.Route.Family != routing.IPv6 || !op.Route.Gateway.IsValid() {
			continue
		}
		var err error
		if i < len(errs) {
			err = errs[i]
		}
		for _, r := range op.Route.Ways() {
			s.wroteWay(op.Verb, r, err)
		}
	}
}

func (s *State) wroteWay(v routing.Verb, r routing.Route, err error) {
	k := r.Key()
	slot := s.slotOf(k)
	if slot == nil {
		return
	}
	skipped := v == routing.ReplaceRoute && (errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EEXIST))
	for _, a := range slot.aliases {
		if !a.siblings() || !slices.ContainsFunc(a.legs, func(l leg) bool { return l.route.Key() == k }) {
			continue
		}
		if s.authors[a.key] == nil {
			s.authors[a.key] = map[routing.RouteKey]routing.Route{}
		}
		switch {
		case v == routing.DeleteRoute && err == nil, skipped:
			// It stands all the same.
			s.authors[a.key][k] = routing.Route{}
		case err == nil:
			s.authors[a.key][k] = r
		}
	}
}

// forgetAuthors drops what is known of siblings that are none any more.
func (s *State) forgetAuthors(k fibKey, slot *slot) {
	known := s.authors[k]
	if known == nil {
		return
	}
	maps.DeleteFunc(known, func(r routing.RouteKey, _ routing.Route) bool {
		return slot == nil || !slices.ContainsFunc(slot.aliases, func(a *alias) bool {
			return a.siblings() && slices.ContainsFunc(a.legs, func(l leg) bool { return l.route.Key() == r })
		})
	})
	if len(known) == 0 {
		delete(s.authors, k)
	}
}

// inherit takes over what the state before a new reading knew of siblings.
func (s *State) inherit(old authors) {
	for k, known := range old {
		s.authors[k] = maps.Clone(known)
		s.forgetAuthors(k, s.fib.at(k))
	}
}
