package routing_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// covered reports whether a rule stands that keeps packets of the address from
// straying.
func covered(k *kerneltest.Kernel, a netip.Addr) bool {
	for _, p := range []routing.Priority{routing.PrioritySource, routing.PriorityUnreachable} {
		for _, r := range k.RuleOrder(routing.FamilyOf(a), p) {
			if r.From.Contains(a) {
				return true
			}
		}
	}
	return false
}

// foreigners puts objects of others into the kernel, also with our protocol, in
// our bands and in our tables.
func foreigners(t tb, h *host) {
	t.Helper()
	h.kernel.Install(link(90, "docker0", address("172.17.0.1/16", 0)))
	h.kernel.Install(link(91, "br-inside", address("192.0.2.129/25", 0), address("2001:db8:a::d:1/112", 0)))
	h.kernel.Install(link(92, "tun0", bare("10.8.0.2/32", peer("10.8.0.1")),
		route("0.0.0.0/1", "", 50), route("128.0.0.0/1", "", 50), route("10.9.0.0/16", "", 50)))
	for _, f := range routing.Families() {
		for _, r := range []routing.Rule{
			{Family: f, Priority: 9000, Action: routing.ActionLookup, Table: 77, Protocol: kerneltest.ProtocolStatic, IIF: "nowhere0"},
			{Family: f, Priority: 10000, Action: routing.ActionLookup, Table: 10000, Protocol: kerneltest.ProtocolStatic, IIF: "nowhere0"},
			{Family: f, Priority: 5, Action: routing.ActionLookup, Table: 77, Protocol: routing.Multihomed, IIF: "nowhere0"},
		} {
			if err := h.kernel.AddForeignRule(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, r := range []routing.Route{
		{Family: routing.IPv4, Table: 10000, Destination: prefix("203.0.113.128/25"), Type: routing.RouteUnicast, Device: 90, Protocol: kerneltest.ProtocolStatic},
		{Family: routing.IPv4, Table: 77, Destination: prefix("203.0.113.128/25"), Type: routing.RouteUnicast, Device: 90, Protocol: routing.Multihomed},
	} {
		if err := h.kernel.AddForeignRoute(r); err != nil {
			t.Fatal(err)
		}
	}
}

// A happening changes the host behind our back.
func happen(t *rapid.T, h *host) {
	switch rapid.IntRange(0, 12).Draw(t, "happening") {
	case 0:
		if index, _ := genIndex(t); h.links[index].Index != 0 {
			h.remove(index)
		}
	case 1:
		if rules := slices.Collect(h.kernel.Rules()); len(rules) > 0 {
			h.kernel.DropRule(rapid.SampledFrom(rules).Draw(t, "dropped"))
		}
	case 2:
		if rules := slices.Collect(h.kernel.Rules()); len(rules) > 0 {
			h.kernel.InsertRule(rapid.SampledFrom(rules).Draw(t, "doubled"))
		}
	case 3:
		// Deleted and added again: it stands, at the end.
		if rules := slices.Collect(h.kernel.Rules()); len(rules) > 0 {
			r := rapid.SampledFrom(rules).Draw(t, "again")
			h.kernel.DropRule(r)
			h.kernel.InsertRule(r)
		}
	case 4:
		h.kernel.FlushTable(routing.IPv4, policy.Tables.First+routing.TableID(rapid.IntRange(0, 3).Draw(t, "flushed")))
	case 5:
		if index, _ := genIndex(t); h.links[index].Index != 0 {
			h.kernel.SetGroup(index, rapid.SampledFrom([]uint32{0, 5, policy.UplinkGroup}).Draw(t, "group"))
			h.look(index)
		}
	case 6, 7, 8:
		if index, _ := genIndex(t); h.links[index].Index != 0 {
			l := genChange(t, h.links[index])
			l.Tables = genTables(t, h.leases, l)
			h.install(l)
		}
	default:
		index, name := genIndex(t)
		for _, l := range h.links {
			if l.Name == name && l.Index != index {
				return
			}
		}
		l := genLink(t, index, name)
		l.Tables = genTables(t, h.leases, l)
		h.install(l)
	}
	// Links fight for places in main: what one gives up another may have got.
	h.lookAll()
}

// TestConverges: after anything, comparing what was touched finds the same work
// as comparing everything; doing it makes the kernel hold the plan, in order,
// and leaves nothing to do; nothing of others changes.
func TestConverges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		if rapid.Bool().Draw(t, "answers") {
			h.planner.SetAnswers(bothAnswered())
		}
		for range rapid.IntRange(1, 10).Draw(t, "events") {
			for range rapid.IntRange(1, 2).Draw(t, "at once") {
				happen(t, h)
			}
			foreign := h.kernel.ForeignText()
			touched := h.planner.Take()
			touched.Merge(h.kernel.Take())
			ops := routing.Diff(h.planner, h.kernel, touched, always)
			full := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
			if diff := cmp.Diff(full, ops, compare); diff != "" {
				t.Fatalf("operations of a full comparison (-) and of the touched (+):\n%s", diff)
			}
			h.apply(t, ops)
			h.settled(t)
			if diff := cmp.Diff(foreign, h.kernel.ForeignText()); diff != "" {
				t.Fatalf("objects of others changed:\n%s", diff)
			}
			h.planner.Take()
		}
	})
}

// TestOrderOfRulesThatDifferInASuppressor: a pass has one order, whatever rules differ in.
func TestOrderOfRulesThatDifferInASuppressor(t *testing.T) {
	t.Parallel()
	h := newHost()
	for length := range uint32(9) {
		h.kernel.InsertRule(routing.Rule{
			Family: routing.IPv4, Priority: routing.PriorityNested, From: prefix("192.0.2.70/32"), To: prefix("192.0.2.0/24"),
			Action: routing.ActionLookup, Table: 10000, SuppressPrefixLength: routing.Optional{Set: length > 0, Value: 20 + length}, Protocol: routing.Multihomed,
		})
	}
	pass := func() []routing.Op {
		return routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
	}
	first := pass()
	if len(first) != 9 {
		t.Fatalf("%d operations, want 9:\n%s", len(first), opsText(first))
	}
	for range 20 {
		if diff := cmp.Diff(first, pass(), compare); diff != "" {
			t.Fatalf("the same pass once (-) and once more (+):\n%s", diff)
		}
	}
}

// TestSurvivesBeingKilled: whatever part of a pass was done, the next process
// finishes the work.
func TestSurvivesBeingKilled(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		for range rapid.IntRange(1, 3).Draw(t, "before") {
			happen(t, h)
		}
		h.converge(t)
		happen(t, h)
		happen(t, h)
		ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
		for n := 0; ; n++ {
			k := h.kernel.Clone()
			k.StopAfter(n)
			killed := false
			for _, op := range ops {
				if err := k.Apply(op); errors.Is(err, kerneltest.ErrStopped) {
					killed = true
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			k.StopAfter(-1)
			next := &host{kernel: k, planner: routing.NewPlanner(policy), leases: h.leases, links: h.links}
			next.lookAll()
			next.converge(t)
			next.settled(t)
			if !killed {
				return
			}
		}
	})
}

// TestCarriesOnPastRefusals: what the kernel refused once is done by the next
// pass.
func TestCarriesOnPastRefusals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		happen(t, h)
		h.converge(t)
		happen(t, h)
		refused := errors.New("refused")
		h.kernel.Refuse = func(routing.Op) error {
			if rapid.IntRange(0, 3).Draw(t, "refuse") == 0 {
				return refused
			}
			return nil
		}
		h.kernel.ApplyAll(routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always))
		h.kernel.Refuse = nil
		h.lookAll()
		h.converge(t)
		h.settled(t)
	})
}

// TestDeletesOnlyWhatItMay: a refused deletion keeps the object and all else is
// done.
func TestDeletesOnlyWhatItMay(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	rules, routes := len(slices.Collect(h.kernel.Rules())), len(slices.Collect(h.kernel.Routes()))
	empty := routing.NewPlanner(policy)
	var asked int
	ops := routing.Diff(empty, h.kernel, routing.Everything(empty, h.kernel), func(routing.Op) bool { asked++; return false })
	if len(ops) != 0 || asked != rules+routes+2 {
		t.Errorf("%d operations, asked %d times, want 0 and %d", len(ops), asked, rules+routes+2)
	}
}

// TestTransitions goes from every scenario to every other one.
func TestTransitions(t *testing.T) {
	t.Parallel()
	states := scenarios()
	names := slices.Sorted(maps.Keys(states))
	for _, from := range names {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			for _, to := range names {
				h := hostOf(t, states[from]...)
				known := maps.Clone(h.links)
				for _, l := range states[to] {
					delete(known, l.Index)
					h.install(l)
					h.kernel.SetGroup(l.Index, l.Group)
				}
				for index := range known {
					h.remove(index)
				}
				for _, l := range states[to] {
					// Main has room now for what it refused.
					h.install(l)
				}
				h.lookAll()
				h.converge(t)
				h.settled(t)
				if want, got := ownPart(hostOf(t, states[to]...)), ownPart(h); len(want) != len(got) {
					t.Errorf("to %q: %s", to, cmp.Diff(want, got))
				}
			}
		})
	}
}

// ownPart lists what is ours without the numbers of tables.
func ownPart(h *host) []string {
	var out []string
	for r := range h.kernel.Rules() {
		r.Table = 0
		out = append(out, r.String())
	}
	for r := range h.kernel.Routes() {
		r.Table = 0
		out = append(out, fmt.Sprint(r))
	}
	slices.Sort(out)
	return out
}

// A hop is what matters of the way of a packet that has a source.
type hop struct {
	device  int
	gateway netip.Addr
}

// hopsOf are the first hop, and the others that the hash of a packet may choose.
func hopsOf(v lookup.Verdict) []hop {
	hops := make([]hop, 0, len(v.Legs)+1)
	for _, r := range v.Legs {
		hops = append(hops, hop{r.Device, r.Gateway})
	}
	if len(hops) == 0 {
		hops = append(hops, hop{v.Route.Device, v.Route.Gateway})
	}
	return hops
}

// standing counts the links that have each address.
func standing(h *host) map[netip.Addr]int {
	out := map[netip.Addr]int{}
	for _, l := range h.links {
		for _, a := range l.Addresses {
			out[a.Prefix.Addr()]++
		}
	}
	return out
}

// TestOrderOfChanges: a rule that is added finds its table complete, a route
// that is deleted has no rule leading to it any more, and what a socket bound to
// an address gets before and after a pass it also gets during it.
func TestOrderOfChanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		for range rapid.IntRange(1, 3).Draw(t, "before") {
			happen(t, h)
		}
		h.converge(t)
		before, several := owned(h), standing(h)
		happen(t, h)
		for a, n := range standing(h) {
			several[a] = max(several[a], n)
		}
		ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
		after := h.kernel.Clone()
		after.ApplyAll(ops)
		same := map[lookup.Flow][]hop{}
		for from, owners := range owned(h) {
			if several[from] > 1 || !slices.Equal(owners, before[from]) {
				continue // an address that moves, or stands on two links
			}
			for _, to := range far {
				f := lookup.Flow{From: from, To: to}
				if to.Is4() != from.Is4() {
					continue
				}
				now, then := h.kernel.Lookup(f), after.Lookup(f)
				if hops := hopsOf(now); now.Outcome == lookup.Sent && then.Outcome == lookup.Sent && hops[0] == hopsOf(then)[0] {
					same[f] = append(hops, hopsOf(then)...)
				}
			}
		}
		h.kernel.Step = func(op routing.Op) {
			for f, want := range same {
				if v := h.kernel.Lookup(f); v.Outcome != lookup.Sent || !slices.Contains(want, hopsOf(v)[0]) {
					t.Fatalf("after %s, from %s to %s: %v %v, before and after the pass %v\n%s", op, f.From, f.To, v.Outcome, v.Legs, want, opsText(ops))
				}
			}
			switch op.Verb { //nolint:exhaustive // the others make no promise
			case routing.AddRule:
				for r := range h.planner.Routes() {
					if have, ok := h.kernel.Route(r.Route.Key()); r.Route.Table == op.Rule.Table && (!ok || have != r.Route) {
						t.Fatalf("%s before its route %s", op, r.Route)
					}
				}
			case routing.DeleteRoute:
				if _, wanted := h.planner.Route(op.Route.Key()); wanted {
					break // It is added anew at once.
				}
				for r := range h.kernel.Rules() {
					if _, wanted := h.planner.Rule(r); !wanted && r.Table == op.Route.Table {
						t.Fatalf("%s before its rule %s", op, r)
					}
				}
			}
		}
		h.apply(t, ops)
	})
}

// TestLegsOfAnIPv6Route: the kernel would replace all legs of a route where one
// of them changes; the others must not go even for a moment.
func TestLegsOfAnIPv6Route(t *testing.T) {
	t.Parallel()
	uplink := func(mtus ...uint32) routing.Link {
		l := link(2, "wan0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100))
		for i, v := range mtus {
			route(default6, fmt.Sprintf("fe80::%d", i+1), 100, mtu(v))(&l)
		}
		return l
	}
	h := hostOf(t, link(2, "wan0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100), route(default6, "fe80::2", 100)))
	h.install(uplink(1500, 1400))
	h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
	h.settled(t)
	for _, to := range [][]uint32{{1400, 1500, 1500}, {1500, 1400, 1500}, {1400, 1400, 1400}, {1500, 1400}, {1400}, {1500, 1500, 1400, 1400}} {
		h := hostOf(t, uplink(1500, 1500, 1500))
		h.install(uplink(to...))
		h.kernel.Step = func(op routing.Op) {
			legs := 0
			for r := range h.kernel.Routes() {
				if r.IsDefault() {
					legs++
				}
			}
			if legs < min(3, len(to))-1 || legs == 0 {
				t.Errorf("to %v: %d legs after %s", to, legs, op)
			}
		}
		h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
		h.settled(t)
	}
}

// TestAGroupComesBehindTheTable: an interface is renamed and becomes an uplink in one pass.
// What its address reached as main knows it is in the new table before the group hides main.
func TestAGroupComesBehindTheTable(t *testing.T) {
	t.Parallel()
	h := newHost()
	h.install(link(3, "wan0", bare("192.0.2.13/24", peer("100.64.0.1")), bare("fd00::d/64"), known(default6, "fd00::1", ""),
		intent(routing.IPv4, routing.Intent{NeverDefault: true}), intent(routing.IPv6, routing.Intent{NeverDefault: true})))
	h.converge(t)
	h.settled(t)
	h.install(link(3, "wan1", address("192.0.2.10/26", 2), address("192.0.2.13/24", 2), known(default4, "192.0.2.2", "192.0.2.13")))
	h.lookAll()
	f := lookup.Flow{From: addr("192.0.2.13"), To: addr("192.0.2.50")}
	if v := h.kernel.Lookup(f); v.Outcome != lookup.Sent {
		t.Fatalf("before the pass: %v by %s", v.Outcome, v.Rule)
	}
	ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
	if !slices.ContainsFunc(ops, func(op routing.Op) bool { return op.Verb == routing.SetGroup }) {
		t.Fatalf("the pass sets no group:\n%s", opsText(ops))
	}
	h.kernel.Step = func(op routing.Op) {
		if v := h.kernel.Lookup(f); v.Outcome != lookup.Sent {
			t.Errorf("after %s: %v by %s", op, v.Outcome, v.Rule)
		}
	}
	h.apply(t, ops)
}
