package routing_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// bindings are one of each selector, all to one interface.
func bindings(index int, strict bool) []routing.Binding {
	return []routing.Binding{
		{Name: "user alice", Users: routing.UIDRange{Set: true, First: 1001, Last: 1001}, Index: index, LinkName: "wan", Strict: strict},
		{Name: "mark 0x10", Mark: routing.Mark{Value: 0x10, Mask: 0xff}, Index: index, LinkName: "wan", Strict: strict},
		{Name: "interface docker0", Input: "docker0", Index: index, LinkName: "wan", Strict: strict},
		{Name: "source 10.77.0.0/16", Source: prefix("10.77.0.0/16"), Index: index, LinkName: "wan", Strict: strict},
	}
}

// boundFlows are the packets of these bindings to a destination.
func boundFlows(to netip.Addr) []lookup.Flow {
	out := []lookup.Flow{{To: to, UID: 1001}, {To: to, Mark: 0x10}, {To: to, From: guest(routing.FamilyOf(to)), IIF: "docker0"}}
	if to.Is4() {
		out = append(out, lookup.Flow{To: to, From: addr("10.77.1.1"), IIF: "br-inside"})
	}
	return out
}

// bindingsStray fails where what is bound may leave by another uplink.
func bindingsStray(t tb, h *host, own int, marked map[routing.Family][]int, why string) {
	t.Helper()
	for _, to := range far {
		uplinks := marked[routing.FamilyOf(to)]
		for _, f := range boundFlows(to) {
			whole := h.kernel.Lookup(f)
			for v := &whole; v != nil; v = v.Otherwise {
				if len(v.Legs) > 0 && !slices.Contains(uplinks, v.Legs[0].Device) {
					continue // As in strays.
				}
				for _, leg := range v.Legs {
					if slices.Contains(uplinks, leg.Device) && leg.Device != own {
						t.Fatalf("%s: %+v, bound to interface %d, leaves by %s (%s)\n%s", why, f, own, leg, v.Rule, h.kernel.Text())
					}
				}
			}
		}
	}
}

// TestBindingsNeverStray: at any step of any pass, what is strictly bound to a link leaves by no
// other uplink, whether the link is there or not.
func TestBindingsNeverStray(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		h.planner.SetFailover(genFailover(t, true))
		if rapid.Bool().Draw(t, "answers") {
			h.planner.SetAnswers(bothAnswered())
		}
		own := rapid.IntRange(2, 5).Draw(t, "bound to")
		wanted := bindings(own, true)
		for i := range wanted {
			wanted[i].Deny = rapid.Bool().Draw(t, "deny")
		}
		h.planner.SetBindings(wanted)
		h.converge(t)
		for range rapid.IntRange(1, 5).Draw(t, "events") {
			marked, happened := h.linkHappens(t)
			if !happened {
				continue
			}
			h.kernel.Step = func(op routing.Op) { bindingsStray(t, h, own, marked, "after "+op.String()) }
			h.converge(t)
			h.kernel.Step = nil
			h.settled(t)
			bindingsStray(t, h, own, bothUplinks(h), "at rest")
		}
	})
}

// TestBindings: what is bound leaves by its link with an address of it, reaches what main knows
// behind anything but an uplink, and only that when the link goes; others are not touched.
func TestBindings(t *testing.T) {
	t.Parallel()
	outside, container := addr("203.0.113.9"), addr("172.17.0.2")
	for name, c := range map[string]struct {
		strict bool
		// gone is the interface by which packets leave when the link has gone, 0 if by none.
		gone int
	}{"strict": {true, 0}, "not strict": {false, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOf(t, wan0(), wan1())
			foreigners(t, h)
			// What these throw into main is not for this test.
			h.kernel.RemoveInterface(92)
			h.planner.SetBindings(bindings(3, c.strict))
			h.converge(t)
			h.settled(t)
			leaves := func(f lookup.Flow, want int) {
				t.Helper()
				v := h.kernel.Lookup(f)
				if got := v.Route.Device; v.Outcome == lookup.Sent && got != want || v.Outcome != lookup.Sent && want != 0 {
					t.Errorf("%+v: %s by interface %d, not by %d (%s)", f, v.Outcome, got, want, v.Rule)
				}
			}
			for _, f := range boundFlows(outside) {
				leaves(f, 3)
			}
			leaves(lookup.Flow{To: outside, UID: 1001, From: addr("198.51.100.20")}, 3)
			if c.strict {
				leaves(lookup.Flow{To: outside, UID: 1001, From: addr("192.0.2.10")}, 0)
			}
			for _, f := range boundFlows(container) {
				leaves(f, 90)
			}
			for _, f := range []lookup.Flow{{To: outside}, {To: outside, UID: 1002}, {To: outside, Mark: 0x11}} {
				leaves(f, 2)
			}
			h.remove(3)
			h.converge(t)
			h.settled(t)
			for _, f := range boundFlows(outside) {
				leaves(f, c.gone)
			}
			for _, f := range boundFlows(container) {
				leaves(f, 90)
			}
			h.planner.SetBindings(nil)
			h.converge(t)
			h.settled(t)
			for _, f := range boundFlows(outside) {
				leaves(f, 2)
			}
		})
	}
}
