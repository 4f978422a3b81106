package routing_test

import (
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// TestLeavingLink: while a rule of a leaving link stands, its packets do not
// stray and containers are reachable; the link that stays notices nothing.
func TestLeavingLink(t *testing.T) {
	t.Parallel()
	for name, emptied := range map[string]bool{"its table is complete": false, "the kernel has emptied its table": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost()
			foreigners(t, h)
			h.install(wan0())
			h.install(wan1())
			h.converge(t)
			if emptied {
				h.kernel.FlushTable(routing.IPv4, 10000)
			}
			h.kernel.Step = func(op routing.Op) {
				far, container := addr("8.8.8.8"), addr("172.17.0.2")
				if covered(h.kernel, addr("192.0.2.10")) {
					if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far}); v.Outcome == lookup.Sent && !v.Through(2) {
						t.Errorf("after %s it strays: %v by %s", op, v.Legs, v.Rule)
					}
				}
				for _, from := range []string{"192.0.2.10", "198.51.100.20"} {
					if v := h.kernel.Lookup(lookup.Flow{From: addr(from), To: container}); covered(h.kernel, addr(from)) && !v.Through(90) {
						t.Errorf("after %s %s does not reach a container: %v by %s", op, from, v.Legs, v.Rule)
					}
				}
				if _, stays := h.planner.Link(3); !stays {
					return
				}
				if v := h.kernel.Lookup(lookup.Flow{From: addr("198.51.100.20"), To: far}); !v.Through(3) {
					t.Errorf("after %s the other one: %v by %s", op, v.Legs, v.Rule)
				}
				if v := h.kernel.Lookup(lookup.Flow{From: addr("198.51.100.20"), To: addr("192.0.2.99")}); covered(h.kernel, addr("192.0.2.10")) && v.Through(2) {
					t.Errorf("after %s the other one uses the leaving one: %v by %s", op, v.Legs, v.Rule)
				}
			}
			for _, index := range []int{2, 3} {
				delete(h.links, index)
				h.planner.Remove(index)
				h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
				h.settled(t)
			}
			if text := h.kernel.Text(); text != "ip rule 5: from all iif nowhere0 lookup 77\n" && text != "" {
				t.Errorf("left behind:\n%s", text)
			}
		})
	}
}

// TestArrivingUplink: as soon as a rule of a new uplink stands, packets of the
// others do not leave by it.
func TestArrivingUplink(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0())
	h.install(wan1(route("172.16.0.0/12", "198.51.100.9", 101)))
	h.kernel.Step = func(op routing.Op) {
		v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: addr("172.16.5.5")})
		if (op.Verb == routing.AddRule || op.Verb == routing.AddRoute) && !v.Through(2) {
			t.Errorf("after %s: %v by %s", op, v.Legs, v.Rule)
		}
	}
	h.converge(t)
	h.settled(t)
}
