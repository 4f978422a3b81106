package kernel_test

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestBesideOthers: whatever is done to a route of ours, one of somebody else
// with the same key stays as it is, wherever it stands.
func TestBesideOthers(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	for _, c := range []struct {
		name          string
		foreign, ours routing.Route
		first         bool
	}{
		{"IPv4, behind", route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "0.0.0.0/0", "192.0.2.2", dev), false},
		{"IPv4, in front", route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "0.0.0.0/0", "192.0.2.2", dev), true},
		{"IPv4, a twin", route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "0.0.0.0/0", "192.0.2.1", dev), false},
		{"IPv6, on the link", route(10001, "2001:db8:5::/48", "", dev), route(10001, "2001:db8:5::/48", "2001:db8::2", dev), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.TB = t
			c.foreign.Protocol = 4
			setMetric(&c.foreign, unix.RTAX_MTU, 1333)
			foreign := func() {
				must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(b kernel.Body) { b.Route(c.foreign) }))
			}
			expect := func(what string, ours ...routing.Route) {
				t.Helper()
				must(t, m.Drain())
				have, err := h.raw.ListRoutes(c.foreign.Family, 10001)
				must(t, err)
				n := 0
				for _, r := range have {
					if r.Protocol == 4 && r.Gateway == c.foreign.Gateway {
						n++
						if r.Attributes.Get().Metrics[unix.RTAX_MTU] != 1333 {
							t.Errorf("%s: the foreign route is now %v", what, r)
						}
					}
				}
				// Siblings are listed with the attributes of one of them.
				if c.foreign.Family == routing.IPv4 && n != 1 {
					t.Errorf("%s: %d foreign routes: %v", what, n, have)
				}
				if len(have) != 1+len(ours) {
					t.Errorf("%s: %v", what, have)
				}
				m.View(func(s *kernel.State) {
					if r, ok := s.ForeignAt(c.ours.Key()); !ok || c.foreign.Family == routing.IPv4 && r != c.foreign {
						t.Errorf("%s: the foreign route is %v", what, r)
					}
				})
				if c.foreign.Family == routing.IPv4 {
					m.View(func(s *kernel.State) {
						if s.CountRoute(c.ours.Key()) != len(ours) {
							t.Errorf("%s: ours stands %d times", what, s.CountRoute(c.ours.Key()))
						}
						if r, ok := s.Route(c.ours.Key()); ok != (len(ours) > 0) || ok && r != ours[0] {
							t.Errorf("%s: ours is %v", what, r)
						}
					})
				}
				audit(t, m)
			}
			if c.first {
				h.apply(w, add(c.ours))
				foreign()
			} else {
				foreign()
				h.apply(w, add(c.ours))
			}
			expect("added", c.ours)
			changed := c.ours
			setMetric(&changed, unix.RTAX_MTU, 1400)
			h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: changed})
			expect("replaced", changed)
			h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: changed})
			expect("replaced by itself", changed)
			h.apply(w, remove(changed))
			expect("deleted")
			h.apply(w, remove(changed))
			expect("deleted again")
			h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: changed})
			expect("replaced what is not there", changed)
			h.apply(w, remove(changed))
			must(t, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(c.foreign) }))
			must(t, m.Drain())
		})
		h.TB = t
	}
	siblingsOfOthers(t, h, m, w, dev)
	// Two of ours with one key are seen, and go one by one.
	one, two := route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "0.0.0.0/0", "192.0.2.2", dev)
	for _, r := range []routing.Route{one, two} {
		must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(b kernel.Body) { b.Route(r) }))
	}
	for left := 2; left > 0; left-- {
		must(t, m.Drain())
		var r routing.Route
		m.View(func(s *kernel.State) {
			if n := s.CountRoute(one.Key()); n != left {
				t.Errorf("%d times, want %d", n, left)
			}
			r, _ = s.Route(one.Key())
		})
		h.apply(w, remove(r))
	}
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if n := s.CountRoute(one.Key()); n != 0 {
			t.Errorf("%d times after all were deleted", n)
		}
	})
}

// siblingsOfOthers: the kernel joins IPv6 routes of one metric, and tells the
// author of one of them only. So ForeignAt warns of it, and whatever is done to
// ours leaves the other.
func siblingsOfOthers(t *testing.T, h *host, m *kernel.Mirror, w *kernel.Writer, dev int) {
	t.Helper()
	foreign, ours := route(10001, "::/0", "2001:db8::1", dev), route(10001, "::/0", "2001:db8::2", dev)
	foreign.Protocol = 4
	setMetric(&foreign, unix.RTAX_MTU, 1333)
	changed := ours
	setMetric(&changed, unix.RTAX_MTU, 1400)
	for _, first := range []bool{false, true} {
		if first {
			h.apply(w, add(ours))
		}
		must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(b kernel.Body) { b.Route(foreign) }))
		must(t, m.Sync(t.Context()))
		m.View(func(s *kernel.State) {
			if _, warned := s.ForeignAt(ours.Key()); !first && !warned {
				t.Error("nobody knows of the foreign route")
			}
		})
		for _, verb := range []routing.Verb{routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute, routing.DeleteRoute} {
			for _, err := range w.Apply(t.Context(), []routing.Op{{Verb: verb, Route: changed}}) {
				if err != nil && !errors.Is(err, unix.EEXIST) {
					t.Errorf("%v: %v", verb, err)
				}
			}
			must(t, m.Sync(t.Context()))
			have, err := h.raw.ListRoutes(routing.IPv6, 10001)
			must(t, err)
			if !slices.ContainsFunc(have, func(r routing.Route) bool { return r.Gateway == foreign.Gateway }) {
				t.Errorf("after %v the foreign route is gone: %v", verb, have)
			}
			if verb == routing.DeleteRoute && (len(have) != 1 || have[0] != foreign) {
				t.Errorf("after %v: %v", verb, have)
			}
			audit(t, m)
		}
		must(t, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(foreign) }))
		must(t, m.Drain())
	}
}
