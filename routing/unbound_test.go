package routing_test

import (
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// TestUnboundOfAnotherDevice: packets that the kernel gives a link's address and another
// device keep to that device; all else keeps to its link.
func TestUnboundOfAnotherDevice(t *testing.T) {
	t.Parallel()
	full := routing.ForeignRule{Rule: routing.Rule{
		Family: routing.IPv4, Priority: 32764, Action: routing.ActionLookup, Table: 51820, Invert: true, Mark: routing.Mark{Value: 51820, Mask: ^uint32(0)},
	}}
	all := routing.ForeignRule{Rule: routing.Rule{Family: routing.IPv4, Priority: 32764, Action: routing.ActionLookup, Table: 51820}}
	front := routing.ForeignRule{Rule: routing.Rule{Family: routing.IPv4, Priority: 5270, Action: routing.ActionLookup, Table: 51820}}
	wide := routing.Unbound{Address: addr("192.0.2.10"), Device: 90, Name: "tun0", Table: 51820}
	for name, c := range map[string]struct {
		foreign []routing.ForeignRule
		found   routing.Unbound
		aside   bool
	}{
		"full tunnel":                               {[]routing.ForeignRule{full}, wide, true},
		"rule for all":                              {[]routing.ForeignRule{all}, wide, true},
		"main":                                      {nil, routing.Unbound{Address: wide.Address, Device: 90, Name: "tun0", Table: routing.TableMain, Length: 1}, true},
		"network that the rung known knows":         {[]routing.ForeignRule{all}, routing.Unbound{Address: wide.Address, Device: 90, Name: "tun0", Table: 51820, Length: 8}, false},
		"network of a table that is not asked":      {[]routing.ForeignRule{full}, routing.Unbound{Address: wide.Address, Device: 90, Name: "tun0", Table: 51820, Length: 8}, true},
		"network behind an uplink":                  {nil, routing.Unbound{Address: wide.Address, Device: 90, Name: "wan2", Group: policy.UplinkGroup, Table: routing.TableMain, Length: 8}, true},
		"rule in front":                             {[]routing.ForeignRule{front}, wide, false},
		"the link itself, by an address of a dummy": {nil, routing.Unbound{Address: wide.Address, Device: 2, Name: "wan0", Table: routing.TableMain}, false},
		"address of nobody here":                    {nil, routing.Unbound{Address: addr("203.0.113.9"), Device: 90, Name: "tun0", Table: routing.TableMain}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hostOf(t, wan0(), wan1())
			h.planner.SetForeign(routing.IPv4, c.foreign)
			found := []routing.Unbound{c.found}
			check := func(aside bool) {
				t.Helper()
				plan, _ := h.planner.Link(2)
				if is := len(plan.Aside) > 0; is != aside || plan.StepsAside(addr("192.0.2.10")) != aside {
					t.Errorf("aside: %+v, want %t", plan.Aside, aside)
				}
				for _, r := range plan.Rules {
					if aside && r.Rule.From.IsValid() && r.Rule.Family == routing.IPv4 && r.Rule.OIF == "" {
						t.Errorf("a rule of the source: %s", r.Rule)
					}
				}
				said := 0
				for _, p := range plan.Problems {
					if p.Code == routing.SourceAside {
						said++
					}
				}
				if want := map[bool]int{true: 1}[aside]; said != want {
					t.Errorf("said %d times, want %d: %+v", said, want, plan.Problems)
				}
				if other, _ := h.planner.Link(3); len(other.Aside) > 0 {
					t.Errorf("the other link: %+v", other.Aside)
				}
			}
			h.planner.SetUnbound(routing.IPv4, found)
			check(c.aside)
			// It stays while rules of others change, and while the link is planned anew.
			h.planner.SetForeign(routing.IPv4, append(slices.Clip(c.foreign), routing.ForeignRule{Rule: routing.Rule{
				Family: routing.IPv4, Priority: 32765, Action: routing.ActionLookup, Table: 77, Mark: routing.Mark{Value: 1, Mask: 1},
			}}))
			check(c.aside)
			h.look(2)
			check(c.aside)
			h.planner.SetUnbound(routing.IPv4, nil)
			check(false)
		})
	}
}

// TestStepAside: on the way out of its rungs a packet of the source may die, but never
// leaves by the link; the other family and the other link notice nothing.
func TestStepAside(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	// The fake kernel routes through nothing without an address; which it is plays no part here.
	h.kernel.Install(link(90, "tun0", bare("10.8.0.2/32"), route("0.0.0.0/1", "", 0), route("128.0.0.0/1", "", 0)))
	far := addr("8.8.8.8")
	if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far}); !v.Through(2) {
		t.Fatalf("it does not keep to its link: %v", v.Legs)
	}
	wasByLink := true
	h.kernel.Step = func(op routing.Op) {
		v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far})
		if v.Outcome == lookup.Sent && v.Through(2) && !wasByLink {
			t.Errorf("after %s it is back on its link", op)
		}
		wasByLink = v.Outcome == lookup.Sent && v.Through(2)
		if v := h.kernel.Lookup(lookup.Flow{From: addr("198.51.100.20"), To: far}); !v.Through(3) {
			t.Errorf("after %s the other one: %v by %s", op, v.Legs, v.Rule)
		}
	}
	h.planner.SetUnbound(routing.IPv4, []routing.Unbound{{Address: addr("192.0.2.10"), Device: 90, Name: "tun0", Table: routing.TableMain, Length: 1}})
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far}); !v.Through(90) {
		t.Errorf("unbound packets leave by %v", v.Legs)
	}
	if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far, OIF: "wan0"}); !v.Through(2) {
		t.Errorf("what is bound to the device leaves by %v", v.Legs)
	}
	h.planner.SetUnbound(routing.IPv4, nil)
	h.kernel.Step = nil
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	if v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: far}); !v.Through(2) {
		t.Errorf("it does not keep to its link again: %v", v.Legs)
	}
}
