package kernel

import (
	"multihomed/routing"
)

// doubts are what the mirror does not know for sure and has to ask: the routes
// of one family through one interface, or the rules of a family.
type doubts struct {
	// routes holds the tables in question. They matter where the interface is
	// of no interest, so that not all it has is asked for.
	routes map[doubt]map[routing.TableID]struct{}
	// slots are the families of which a key may have entries that are not here.
	slots map[routing.Family]bool
	rules map[routing.Family]bool
	// guests are the families whose host routes in main have to be read.
	guests map[routing.Family]bool
	// others are the tables of others that have to be read.
	others map[otherKey]struct{}
	// nexthops says that the nexthop objects have to be read.
	nexthops bool
}

type doubt struct {
	family routing.Family
	device int
}

func newDoubts() doubts {
	return doubts{
		routes: map[doubt]map[routing.TableID]struct{}{}, slots: map[routing.Family]bool{}, rules: map[routing.Family]bool{},
		guests: map[routing.Family]bool{}, others: map[otherKey]struct{}{},
	}
}

func (d *doubts) none() bool {
	return len(d.routes) == 0 && len(d.slots) == 0 && len(d.rules) == 0 && len(d.guests) == 0 && len(d.others) == 0 && !d.nexthops
}

// add questions one table.
func (d *doubts) add(f routing.Family, device int, table routing.TableID) {
	k := doubt{f, device}
	if d.routes[k] == nil {
		d.routes[k] = map[routing.TableID]struct{}{}
	}
	d.routes[k][table] = struct{}{}
}

// doubtDevice questions all that is known through an interface.
func (s *State) doubtDevice(f routing.Family, device int) {
	s.doubts.add(f, device, routing.TableMain)
	for a := range s.fib.byDevice[device] {
		if a.key.family == f {
			s.doubts.add(f, device, a.key.table)
		}
	}
}

// doubt questions everything that leads where an alias leads.
func (s *State) doubt(a *alias) { s.doubtElsewhere(a, 0) }

// doubtElsewhere does so for all devices but one.
func (s *State) doubtElsewhere(a *alias, device int) {
	for _, l := range a.legs {
		if l.route.Device != 0 && l.route.Device != device {
			s.doubts.add(a.key.family, l.route.Device, a.key.table)
		}
	}
}
