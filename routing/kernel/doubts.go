package kernel

import (
	"multihomed/routing"
)

// doubts are what the mirror does not know for sure and has to ask: the routes
// of one family through one interface, or the rules of a family.
type doubts struct {
	routes map[doubt]struct{}
	rules  map[routing.Family]bool
}

type doubt struct {
	family routing.Family
	device int
}

func newDoubts() doubts {
	return doubts{routes: map[doubt]struct{}{}, rules: map[routing.Family]bool{}}
}

func (d *doubts) none() bool { return len(d.routes) == 0 && len(d.rules) == 0 }

func (d *doubts) add(f routing.Family, device int) { d.routes[doubt{f, device}] = struct{}{} }

func (d *doubts) forget(f routing.Family, device int) { delete(d.routes, doubt{f, device}) }

// doubt asks for everything that leads where an alias leads.
func (s *State) doubt(a *alias) {
	for _, l := range a.legs {
		if l.route.Device != 0 {
			s.doubts.add(a.key.family, l.route.Device)
		}
	}
}

// doubtElsewhere does so for all devices but one.
func (s *State) doubtElsewhere(a *alias, device int) {
	for _, l := range a.legs {
		if l.route.Device != 0 && l.route.Device != device {
			s.doubts.add(a.key.family, l.route.Device)
		}
	}
}
