package kernel_test

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestMultipath: of ours one route with all its legs, of main one for each leg.
func TestMultipath(t *testing.T) {
	h := newHost(t)
	one, two := h.veth("wan0"), h.veth("wan1")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan1", "198.51.100.10/24")
	h.ip("route add 10.0.0.0/8 nexthop via 192.0.2.1 dev wan0 weight 3 nexthop via 198.51.100.1 dev wan1 weight 2")
	h.ip("route add 10.1.0.0/16 via 192.0.2.1 realm 5")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	m.View(func(s *kernel.State) {
		for index, weight := range map[int]uint16{one: 3, two: 2} {
			ways := s.Ways(index, routing.Destination{To: prefix("10.0.0.0/8")})
			if len(ways) != 1 || ways[0].Weight != weight || ways[0].Attributes.Get().Legs != (routing.Legs{}) {
				t.Errorf("main's legs through %d: %+v", index, ways)
			}
		}
		ways := s.Ways(one, routing.Destination{To: prefix("10.1.0.0/16")})
		if len(ways) != 1 || ways[0].Weight != 0 || ways[0].Attributes.Get().Realm != 5 {
			t.Errorf("main's route: %+v", ways)
		}
	})
	r := route(10001, "0.0.0.0/0", "192.0.2.1", one)
	r.Weight = 2
	legs := func(weight uint16) {
		r.Attributes = routing.RareAttributes{
			Legs: routing.PackLegs([]routing.Leg{{Gateway: addr("198.51.100.1"), Device: two, Weight: weight}}),
		}.Share()
	}
	expect := func(what string, want ...routing.Route) {
		t.Helper()
		must(t, m.Sync(t.Context()))
		m.View(func(s *kernel.State) {
			if have := s.OurRoutes(10001); !slices.Equal(have, want) {
				t.Errorf("%s: %v", what, have)
			}
			if all := slices.Collect(s.Routes()); !slices.Equal(all, want) {
				t.Errorf("%s: all %v", what, all)
			}
			have, ok := s.Route(r.Key())
			if ok != (len(want) > 0) || ok && have != want[0] {
				t.Errorf("%s: %v", what, have)
			}
			if s.CountRoute(r.Key()) != len(want) {
				t.Errorf("%s: stands %d times", what, s.CountRoute(r.Key()))
			}
		})
		audit(t, m)
	}
	legs(1)
	h.apply(w, add(r))
	expect("added", r)
	legs(9)
	h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: r})
	expect("another weight", r)
	h.down("wan1")
	expect("one leg is dead", r)
	h.up("wan1")
	expect("and lives again", r)
	m.Take()
	must(t, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(r) }))
	must(t, m.Drain())
	if c := m.Take(); len(c.Taken) != 1 || c.Taken[0].Route != r {
		t.Errorf("taken: %+v", c.Taken)
	}
	h.apply(w, add(r), remove(r), remove(r))
	expect("deleted")
}
