package routing_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// wan6 is wan0 with IPv6 as well.
func wan6(more ...part) routing.Link {
	return wan0(append([]part{linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)}, more...)...)
}

// hop is where a packet is expected to go, 0 if nowhere. One that a rule without an answer
// lifts over the ladder goes the same way.
func (h *host) hop(t tb, from, to string, device int) {
	t.Helper()
	for _, mark := range []uint32{0, unanswered} {
		v := h.kernel.Lookup(lookup.Flow{From: addr(from), To: addr(to), Mark: mark})
		got := 0
		if len(v.Legs) > 0 {
			got = v.Legs[0].Device
		}
		if got != device {
			t.Fatalf("from %s to %s, mark %d, by interface %d (%v, %s), want %d\n%s", from, to, mark, got, v.Outcome, v.Rule, device, h.kernel.Text())
		}
	}
}

// unanswered is a mark whose rule reads an empty table.
const unanswered = 5

// bothWays tests without a lift and with one that has no answer, which puts the rungs
// behind the ladder, too.
func bothWays(t *testing.T, test func(t *testing.T, lift func(*host))) {
	t.Helper()
	t.Run("nothing is lifted", func(t *testing.T) {
		t.Parallel()
		test(t, func(*host) {})
	})
	t.Run("lifted", func(t *testing.T) {
		t.Parallel()
		test(t, func(h *host) {
			for _, f := range routing.Families() {
				r := routing.Rule{Family: f, Priority: 31000, Action: routing.ActionLookup, Table: 78, Mark: routing.Mark{Value: unanswered, Mask: 1<<32 - 1}}
				if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatal(err)
				}
			}
			h.converge(t)
			h.settled(t)
		})
	})
}

// TestRolesDiffer: the default of one family says nothing of the other, whichever it is.
func TestRolesDiffer(t *testing.T) {
	t.Parallel()
	bothWays(t, rolesDiffer)
}

func rolesDiffer(t *testing.T, lift func(*host)) {
	t.Helper()
	lan := lan0(linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route("172.16.0.0/12", "10.0.0.254", 102))
	advertised := lan0(linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route("172.16.0.0/12", "10.0.0.254", 102), route(default6, "fe80::99", 102))
	h := hostOf(t, wan6(), wan1(address("fd00:5::1/64", 101), address("fd00:6::1/64", 101)), lan)
	lift(h)
	reach := func() {
		for _, from := range []string{"192.0.2.10", "198.51.100.20"} {
			for _, to := range []string{"10.0.0.9", "172.16.5.5"} {
				h.hop(t, from, to, 4)
			}
		}
		h.hop(t, "198.51.100.20", "192.0.2.9", 3)
		// The ULA of an IPv4 uplink is a local network.
		h.hop(t, "2001:db8:a::10", "fd00:5::9", 3)
		h.hop(t, "2001:db8:a::10", "fd00:6::9", 3)
	}
	reach()
	h.hop(t, "10.0.0.1", "8.8.8.8", 2)
	h.hop(t, "2001:db8:a::10", "2001:db8:1::9", 4)
	// The router comes: its network is an uplink's, at no moment is the IPv4 cut off.
	h.kernel.Step = func(routing.Op) { reach() }
	h.install(advertised)
	h.converge(t)
	h.settled(t)
	if now, _ := h.kernel.Group(4); now != policy.UplinkGroup {
		t.Error("the LAN is not in the group")
	}
	h.hop(t, "10.0.0.1", "8.8.8.8", 2)
	h.hop(t, "2001:db8:a::10", "2001:db8:1::9", 2)
	h.hop(t, "2001:db8:1::1", "2600::1", 4)
	// It goes, and the link remembers.
	lan.WasUplink.Set(routing.IPv6, true)
	h.install(lan)
	h.converge(t)
	h.settled(t)
	h.hop(t, "10.0.0.1", "8.8.8.8", 2)
	h.hop(t, "2001:db8:1::1", "2600::1", 0)
	// It has another profile.
	lan.WasUplink.Set(routing.IPv6, false)
	h.install(lan)
	h.converge(t)
	h.settled(t)
	h.hop(t, "2001:db8:a::10", "2001:db8:1::9", 4)
	for r := range h.planner.Rules() {
		if from := r.Rule.From; r.Rule.Priority == routing.PriorityOpening && from.IsValid() && from.Addr().Is4() {
			t.Errorf("%s is left", r.Rule)
		}
	}
}

// TestNeverDefaultInOneFamily: the networks behind a link that is never a default for
// IPv4 stay reachable, although it is an uplink for IPv6.
func TestNeverDefaultInOneFamily(t *testing.T) {
	t.Parallel()
	edge := lan0(linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route(default6, "fe80::99", 102),
		route("172.16.0.0/12", "10.0.0.254", 102), intent(routing.IPv4, routing.Intent{NeverDefault: true, Gateway: addr("10.0.0.254")}))
	h := hostOf(t, wan6(), edge)
	h.hop(t, "192.0.2.10", "172.16.5.5", 4)
	h.hop(t, "192.0.2.10", "8.8.8.8", 2)
	h.hop(t, "10.0.0.1", "8.8.8.8", 4)
	h.hop(t, "2001:db8:a::10", "2001:db8:1::9", 2)
}

// TestNestedForLocalLinks: what main sends by an uplink, inside of a network behind an
// opening, goes there from the address of a local link, too.
func TestNestedForLocalLinks(t *testing.T) {
	t.Parallel()
	bothWays(t, nestedForLocalLinks)
}

func nestedForLocalLinks(t *testing.T, lift func(*host)) {
	t.Helper()
	corp := lan0(linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route(default6, "fe80::99", 102), route("172.16.0.0/12", "10.0.0.254", 102),
		intent(routing.IPv4, routing.Intent{NeverDefault: true}))
	h := hostOf(t, wan6(), wan1(route("172.16.7.0/24", "198.51.100.1", 101)), corp,
		link(5, "lan1", address("192.168.5.1/24", 103), route("192.168.9.0/24", "192.168.5.254", 103)),
		link(6, "lan2", address("192.168.6.1/24", 104), route("172.16.0.0/12", "192.168.6.254", 104)))
	lift(h)
	for _, hop := range []struct {
		from, to string
		device   int
	}{
		{"192.168.5.1", "172.16.7.9", 3}, // main's
		{"192.168.5.1", "172.16.8.9", 4}, // the opening's, as main says
		{"192.168.5.1", "192.168.9.9", 5},
		{"192.168.6.1", "172.16.7.9", 3}, // main's, as the next one
		{"192.168.6.1", "172.16.8.9", 4},
		{"10.0.0.1", "172.16.7.9", 4}, // bound to the opening
		{"192.0.2.10", "172.16.7.9", 2},
		{"198.51.100.20", "172.16.7.9", 3},
	} {
		h.hop(t, hop.from, hop.to, hop.device)
	}
}

// TestNested: a LAN of all private addresses, behind which others of the group are not.
func TestNested(t *testing.T) {
	t.Parallel()
	bothWays(t, innerNetworks)
}

func innerNetworks(t *testing.T, lift func(*host)) {
	t.Helper()
	lan := link(4, "lan0", address("10.0.0.1/16", 102), route("10.0.0.0/8", "10.0.0.254", 102), route("10.91.7.0/25", "10.0.0.253", 102),
		linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route(default6, "fe80::99", 102))
	carrier := link(3, "wan1", address("10.91.0.20/16", 101, dynamic), route(default4, "10.91.0.1", 101), route("10.200.0.0/16", "10.91.0.2", 101),
		route("10.91.7.0/24", "10.91.0.3", 101))
	h := hostOf(t, wan0(), carrier, lan)
	lift(h)
	check := func() {
		t.Helper()
		for _, tt := range []struct {
			from, to string
			device   int
		}{
			{"192.0.2.10", "10.5.5.5", 4},
			{"192.0.2.10", "10.0.0.9", 4},
			{"192.0.2.10", "10.91.0.1", 2},
			{"192.0.2.10", "10.200.1.1", 2},
			{"192.0.2.10", "10.91.7.9", 4},
			{"192.0.2.10", "10.91.7.200", 2},
			{"10.91.0.20", "10.91.0.1", 3},
			{"10.91.0.20", "10.200.1.1", 3},
			{"10.91.0.20", "10.91.7.9", 4},
			{"10.91.0.20", "10.91.7.200", 3},
			{"10.91.0.20", "10.5.5.5", 4},
			{"10.91.0.20", "8.8.8.8", 3},
		} {
			h.hop(t, tt.from, tt.to, tt.device)
		}
	}
	check()
	// One path comes and goes by itself.
	to := routing.Destination{To: prefix("10.201.0.0/16")}
	l := h.links[3]
	more := link(3, "wan1", route("10.201.0.0/16", "10.91.0.2", 101)).Routes
	l.Routes = append(slices.Clone(l.Routes), more...)
	h.kernel.Install(l)
	if refused := h.planner.SetPaths(3, map[routing.Destination][]routing.Route{to: more}); len(refused) > 0 {
		t.Fatalf("refused: %v", refused)
	}
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	h.settled(t)
	h.hop(t, "192.0.2.10", "10.201.1.1", 2)
	h.hop(t, "10.91.0.20", "10.201.1.1", 3)
	check()
	h.install(carrier)
	h.converge(t)
	h.settled(t)
	h.hop(t, "192.0.2.10", "10.201.1.1", 4)
}

// TestOpeningsFollowFacts: a link changes in nothing but what decides about openings, or
// about what is nested in them.
func TestOpeningsFollowFacts(t *testing.T) {
	t.Parallel()
	lan := func(more ...part) routing.Link {
		return lan0(append([]part{
			route("10.0.0.0/8", "10.0.0.254", 102), linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route(default6, "fe80::99", 102),
		}, more...)...)
	}
	inner := func(host string) routing.Link {
		return link(3, "wan1", address("198.51.100.30/24", 101), bare(host+"/24"), route(default4, "198.51.100.1", 101), known("10.91.0.0/16", "198.51.100.2", "198.51.100.20"))
	}
	only6 := func(more ...part) routing.Link {
		return link(3, "wan1", append([]part{address("2001:db8:b::10/64", 101), route(default6, "fe80::2", 101), known("10.91.0.0/16", "198.51.100.2", "")}, more...)...)
	}
	for name, tt := range map[string]struct {
		before, after routing.Link
		others        []routing.Link
	}{
		"the address of a known route goes":  {inner("198.51.100.20"), inner("198.51.100.21"), []routing.Link{wan6(), lan()}},
		"the address of a known route comes": {inner("198.51.100.21"), inner("198.51.100.20"), []routing.Link{wan6(), lan()}},
		"a family without an address is left alone": {
			only6(), only6(intent(routing.IPv4, routing.Intent{LeaveAlone: "its owner says so"})), []routing.Link{wan6(), lan()},
		},
		"a link becomes never a default": {
			lan(gatewayHint("10.0.0.254")), lan(intent(routing.IPv4, routing.Intent{Gateway: addr("10.0.0.254"), NeverDefault: true})),
			[]routing.Link{wan6(), inner("198.51.100.20")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ls := leases{}
			leased := func(l routing.Link) routing.Link {
				l.Tables = ls.of(l)
				return l
			}
			var all []routing.Link
			for _, l := range tt.others {
				all = append(all, leased(l))
			}
			before, after := leased(tt.before), leased(tt.after)
			p := routing.Plan(policy, append(slices.Clip(all), before))
			was := slices.Collect(p.Rules())
			p.Set(after)
			samePlan(t, routing.Plan(policy, append(slices.Clip(all), after)), p)
			about := func(rules []routing.PlannedRule) int {
				n := 0
				for _, r := range rules {
					if r.Rule.Priority == routing.PriorityNested || r.Rule.Priority == routing.PriorityOpening {
						n++
					}
				}
				return n
			}
			if now := about(slices.Collect(p.Rules())); now == about(was) {
				t.Errorf("%d rungs of openings before and after: the case tests nothing", now)
			}
		})
	}
}

// TestTooManyOpenings: beyond a bound the networks are hidden, as those of uplinks are,
// and the link says so.
func TestTooManyOpenings(t *testing.T) {
	t.Parallel()
	problem := func(h *host, index int) bool {
		plan, _ := h.planner.Link(index)
		return slices.ContainsFunc(plan.Problems, func(p routing.Problem) bool { return p.Code == routing.TooManyOpenings })
	}
	h := newHost()
	h.install(wan6())
	const links = 70
	for i := range links {
		metric := uint32(200 + i)
		h.install(link(100+i, fmt.Sprintf("u%d", i), address(fmt.Sprintf("10.%d.0.2/24", i), metric), route(default4, fmt.Sprintf("10.%d.0.1", i), metric),
			address(fmt.Sprintf("fd00:%x::2/64", i+1), metric)))
	}
	h.converge(t)
	h.settled(t)
	h.hop(t, "2001:db8:a::10", "fd00:1::9", 100)
	h.hop(t, "2001:db8:a::10", "fd00:46::9", 2)
	if problem(h, 100) || !problem(h, 169) {
		t.Error("the bound is not where it is said")
	}
	// What knows nothing but its own network has no rungs for them.
	opened := 0
	for r := range h.planner.Rules() {
		if r.Rule.Priority == routing.PriorityOpening {
			opened++
		}
	}
	if opened != 64 {
		t.Errorf("%d rungs", opened)
	}

	h = newHost()
	h.install(wan6())
	lan := lan0(route("10.0.0.0/8", "10.0.0.254", 102), address("2001:db8:1::1/64", 102), route(default6, "fe80::99", 102, onlink))
	many := []part{}
	for i := range links {
		many = append(many, route(fmt.Sprintf("10.%d.0.0/16", 100+i), "192.0.2.1", 100))
	}
	h.install(lan)
	h.install(wan6(many...))
	h.converge(t)
	h.settled(t)
	h.hop(t, "192.0.2.10", "10.5.5.5", 2)
	if !problem(h, 4) {
		t.Error("nobody says that the LAN is hidden")
	}
}

// TestOpeningsLeadWhereMainDoes: what an uplink's address sends to a network that main
// knows behind a link which is local in the family arrives there, and what main knows
// behind an uplink is not sent there.
func TestOpeningsLeadWhereMainDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		for range rapid.IntRange(2, 5).Draw(t, "events") {
			index, name := genIndex(t)
			if name != names[index-2] {
				continue
			}
			l := genLink(t, index, name)
			l.Group, l.Tables = 0, nil
			h.install(l)
			h.lookAll()
			h.converge(t)
		}
		open := map[routing.Family][]int{}
		for plan := range h.planner.Links() {
			for _, f := range routing.Families() {
				has := slices.ContainsFunc(plan.Keys, func(k routing.Key) bool { return k.Family == f })
				if has && plan.Roles.In(f) == routing.Local && plan.Group == policy.UplinkGroup {
					open[f] = append(open[f], plan.Link.Index)
				}
			}
		}
		for from, owners := range owned(h) {
			f := routing.FamilyOf(from)
			for _, to := range far {
				if routing.FamilyOf(to) == f {
					h.asMain(t, from, to, owners, open[f], uplinks(h, f))
				}
			}
		}
	})
}

func (h *host) asMain(t tb, from, to netip.Addr, owners, open, marked []int) {
	t.Helper()
	main, with := h.kernel.LookupWithoutUs(lookup.Flow{To: to}), h.kernel.Lookup(lookup.Flow{From: from, To: to})
	if len(main.Legs) != 1 || main.Legs[0].Destination.Bits() <= int(policy.ContainerPrefixLength) || len(with.Legs) == 0 || with.Uncertain || main.Uncertain {
		return
	}
	there := main.Legs[0]
	for plan := range h.planner.Links() {
		if !slices.Contains(owners, plan.Link.Index) && slices.ContainsFunc(plan.Link.Addresses, func(a routing.Address) bool { return a.Prefix.Addr() == from }) {
			return // It is the address of a local link, too.
		}
		for _, k := range plan.Keys {
			// A network on two links is each one's own.
			if slices.Contains(owners, plan.Link.Index) && k.Prefix.Contains(to) {
				return
			}
			if k.Prefix.Contains(to) && k.Prefix.Bits() > there.Destination.Bits() {
				return // A network that main does not have: unbound packets go there, too.
			}
		}
		for _, r := range plan.Link.Known {
			if r.Destination.Contains(to) && r.Destination.Bits() > there.Destination.Bits() {
				return
			}
		}
		for r := range plan.MainRoutes() {
			if plan.Link.Index != there.Device && r.Destination == there.Destination {
				return // Two links have it, and only one of them may be asked.
			}
		}
	}
	got := with.Legs[0].Device
	switch {
	case slices.Contains(open, there.Device) && !slices.Contains(owners, there.Device) && got != there.Device:
		t.Fatalf("from %s to %s by interface %d (%s), main says %s\n%s", from, to, got, with.Rule, there, h.kernel.Text())
	case slices.Contains(marked, there.Device) && slices.Contains(open, got) && !slices.Contains(owners, got):
		t.Fatalf("from %s to %s by interface %d (%s), which main does not say: %s\n%s", from, to, got, with.Rule, there, h.kernel.Text())
	}
}
