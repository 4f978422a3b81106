package kernel

import (
	"context"
	"errors"
	"maps"
	"slices"

	"multihomed/routing"
)

// This file keeps what tables of others have through interfaces of interest: tables that a
// rule reads which selects nothing. They are small, nearly always, so one that changes is
// read again; whatever the kernel does to it without a word, too.

// mostOthers is how many routes through interfaces of interest are kept of one table. A
// table that has more, or is longer than worthReading, is not kept: a full BGP table in a
// table of its own.
const mostOthers = 4096

// An otherKey is a table of others in one family.
type otherKey struct {
	family routing.Family
	table  routing.TableID
}

// An otherTable is what is kept of one.
type otherTable struct {
	// byDevice are its unicast routes through interfaces of interest, sorted.
	byDevice map[int][]routing.Route
	// thrown are its routes that send packets on to the next rule, sorted.
	thrown []routing.Route
	// long says that it is too long to be kept.
	long bool
}

// doubtOthers questions the tables of others that are kept.
func (s *State) doubtOthers() {
	for k, t := range s.others {
		if !t.long {
			s.doubts.others[k] = struct{}{}
		}
	}
}

// otherChanged questions a table of others in which a route came or went.
func (s *State) otherChanged(k fibKey) {
	if o := (otherKey{k.family, k.table}); s.rules.all[o] > 0 && !s.others[o].long {
		s.doubts.others[o] = struct{}{}
	}
}

// verifyOthers reads the tables of others that are in question.
func (l loader) verifyOthers(ctx context.Context, s *State) error {
	for k := range maps.Clone(s.doubts.others) {
		var now otherTable
		if s.rules.all[k] > 0 {
			var err error
			if now, err = l.other(ctx, s, k); err != nil {
				return err
			}
		}
		before := s.others[k]
		for device := range before.byDevice {
			if !slices.Equal(before.byDevice[device], now.byDevice[device]) || !slices.Equal(before.thrown, now.thrown) {
				s.changes.Links[device] = struct{}{}
			}
		}
		for device := range now.byDevice {
			if _, known := before.byDevice[device]; !known {
				s.changes.Links[device] = struct{}{}
			}
		}
		if before.long != now.long {
			for index, link := range s.links {
				if link.interested {
					s.changes.Links[index] = struct{}{}
				}
			}
		}
		if s.rules.all[k] > 0 {
			s.others[k] = now
		} else {
			delete(s.others, k)
		}
		// What is announced from here on comes on top: the doubt comes back.
		delete(s.doubts.others, k)
	}
	return nil
}

func (l loader) other(ctx context.Context, s *State, k otherKey) (otherTable, error) {
	var t otherTable
	read, kept := 0, 0
	var faults []error
	q := routeQuestion{family: k.family, table: k.table}.dump()
	q.restart = func() { t, read, kept, faults = otherTable{byDevice: map[int][]routing.Route{}}, 0, 0, nil }
	q.each = func(payload []byte) bool {
		read++
		a, err := s.read(payload)
		if err != nil {
			faults = append(faults, err)
			return true
		}
		if a.key.table != k.table {
			return true
		}
		if a.kind == routing.RouteThrow {
			t.thrown = append(t.thrown, routing.Route{
				Family: k.family, Type: a.kind, Table: k.table, Destination: a.key.destination, Source: a.key.source, TOS: a.key.tos,
			})
			kept++
		}
		if a.kind != routing.RouteUnicast {
			return read <= worthReading && kept <= mostOthers
		}
		for _, l := range a.legs {
			if !l.dead && s.Interested(l.route.Device) && l.route.Protocol != routing.Multihomed {
				t.byDevice[l.route.Device] = append(t.byDevice[l.route.Device], l.route)
				kept++
			}
		}
		return read <= worthReading && kept <= mostOthers
	}
	err := l.requests.dump(ctx, q)
	switch {
	case errors.Is(err, errBudget):
		return otherTable{long: true}, nil
	case err != nil && !absent(err):
		return otherTable{}, err
	}
	for _, fault := range faults {
		s.misread(fault)
	}
	for _, routes := range t.byDevice {
		slices.SortFunc(routes, compareRoutes)
	}
	slices.SortFunc(t.thrown, compareRoutes)
	return t, nil
}

// Others is about tables of others that a rule reads which selects nothing. It returns
// their unicast routes through an interface of interest and their throw routes, and names
// in long the tables that have too many routes to be read.
func (s *State) Others(index int) (routes []routing.Route, long []routing.TableID) {
	for k, t := range s.others {
		if through := t.byDevice[index]; len(through) > 0 {
			routes = append(append(routes, through...), t.thrown...)
		}
		if t.long && s.Interested(index) {
			long = append(long, k.table)
		}
	}
	slices.SortFunc(routes, compareRoutes)
	slices.Sort(long)
	return routes, slices.Compact(long)
}
