package routing_test

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// far are destinations inside and outside of every network of the generators
// and of the foreigners.
var far = []netip.Addr{
	addr("192.0.2.10"), addr("192.0.2.50"), addr("192.0.2.70"), addr("192.0.2.200"), addr("198.51.100.9"), addr("10.0.0.9"),
	addr("10.0.9.9"), addr("192.168.8.1"), addr("203.0.113.9"), addr("172.16.5.5"), addr("172.16.9.9"), addr("172.17.0.2"),
	addr("10.9.1.1"), addr("10.8.0.1"), addr("8.8.8.8"), addr("200.1.1.1"),
	addr("2001:db8:a::9"), addr("2001:db8:a::d:2"), addr("2001:db8:a:9::9"), addr("2001:db8:b::9"), addr("2001:db8:f::9"),
	addr("2001:db8:f:5::9"), addr("fd00::9"), addr("2600::1"),
}

// An end is what may become of a packet.
type end struct {
	outcome lookup.Outcome
	route   routing.Route
}

// ends are all that a verdict leaves to the hash of a packet.
func ends(v lookup.Verdict) map[end]bool {
	out := map[end]bool{}
	for one := &v; one != nil; one = one.Otherwise {
		for _, leg := range one.Legs {
			out[end{one.Outcome, leg}] = true
		}
		if len(one.Legs) == 0 {
			out[end{one.Outcome, one.Route}] = true
		}
	}
	return out
}

// unchanged fails where unbound traffic goes another way than without us.
//
// The ladder has a say about it in two cases only: main has nothing of a link's
// network, at most a default or a part of one that holds it (20000), or main has
// nothing at all (20000 and 91000).
func unchanged(t tb, k *kerneltest.Kernel, to netip.Addr, in string, late map[lookup.Flow]bool) {
	t.Helper()
	f := lookup.Flow{To: to, IIF: in}
	without, with := k.LookupWithoutUs(f), k.Lookup(f)
	if without.Outcome == lookup.NoRoute {
		for f := range throwable(k, to, in) {
			if !late[f] {
				thrown(t, k, f)
			}
		}
		return
	}
	if without.Outcome == lookup.Sent && with.Rule.Priority == routing.PriorityNetwork &&
		without.Legs[0].Destination.Bits() < with.Rule.To.Bits() {
		return
	}
	if !cmp.Equal(ends(without), ends(with), cmpopts.EquateComparable(end{})) {
		t.Fatalf("unbound to %s (in by %q): without us %v %v, with us %v %v by %s\n%s%s",
			to, in, without.Outcome, without.Legs, with.Outcome, with.Legs, with.Rule, k.Text(), k.ForeignText())
	}
}

// throwable yields the flows to a destination for which it is asked whether they are thrown: those
// that are bound to an address, too, as IPv6 looks up once more with one.
func throwable(k *kerneltest.Kernel, to netip.Addr, in string) iter.Seq[lookup.Flow] {
	return func(yield func(lookup.Flow) bool) {
		if !yield(lookup.Flow{To: to, IIF: in}) || in != "" {
			return
		}
		for _, from := range k.OwnAddresses(routing.FamilyOf(to)) {
			if !yield(lookup.Flow{From: from, To: to}) {
				return
			}
		}
	}
}

// thrown fails where something that main throws, and nobody else answers, goes by what is
// less particular than the throw route.
func thrown(t tb, k *kerneltest.Kernel, f lookup.Flow) {
	t.Helper()
	if with, follows := followsThrow(k, f); !follows {
		t.Fatalf("from %s to %s, which main throws: %v by %s\n%s%s", f.From, f.To, with.Legs, with.Rule, k.Text(), k.ForeignText())
	}
}

func followsThrow(k *kerneltest.Kernel, f lookup.Flow) (with lookup.Verdict, follows bool) {
	family, longest := routing.FamilyOf(f.To), -1
	for _, to := range k.Thrown(family) {
		if to.Contains(f.To) && (to.Bits() > 0 || family == routing.IPv6 || !f.From.IsValid()) {
			longest = max(longest, to.Bits())
		}
	}
	with = k.Lookup(f)
	return with, k.LookupWithoutUs(f).Outcome != lookup.NoRoute || with.Outcome != lookup.Sent || with.Legs[0].Destination.Bits() > longest
}

// unthrown fails where something that is bound to an uplink, and that main has a longer route
// for than for what it throws, goes another way than if main threw nothing.
func unthrown(t tb, h *host, from, to netip.Addr) {
	t.Helper()
	family, throws, longest := routing.FamilyOf(to), -1, -1
	for _, p := range h.kernel.Thrown(family) {
		if p.Contains(to) && (p.Bits() > 0 || family == routing.IPv6) {
			throws = max(throws, p.Bits())
		}
	}
	for _, r := range h.kernel.AllRoutes(family, routing.TableMain) {
		_, isLink := h.planner.Link(r.Device)
		if r.Type == routing.RouteUnicast && r.Destination.Contains(to) && !r.Source.IsValid() && r.TOS == 0 && (isLink || r.Destination.Bits() > int(policy.ContainerPrefixLength)) {
			longest = max(longest, r.Destination.Bits())
		}
	}
	if throws < 0 || longest <= throws {
		return
	}
	type hop struct {
		outcome lookup.Outcome
		device  int
		gateway netip.Addr
	}
	hops := func(v lookup.Verdict) map[hop]bool {
		out := map[hop]bool{}
		for e := range ends(v) {
			out[hop{e.outcome, e.route.Device, e.route.Gateway}] = true
		}
		return out
	}
	f := lookup.Flow{From: from, To: to}
	with, without := h.kernel.Lookup(f), h.kernel.LookupUnthrown(f)
	if !maps.Equal(hops(with), hops(without)) {
		t.Fatalf("from %s to %s, which main does not throw: %v %v by %s, and %v %v by %s if it threw nothing\n%s%s",
			from, to, with.Outcome, with.Legs, with.Rule, without.Outcome, without.Legs, without.Rule, h.kernel.Text(), h.kernel.ForeignText())
	}
}

// unthrownAll is that for all uplinks in the group.
func unthrownAll(t tb, h *host) {
	t.Helper()
	for from, owners := range owned(h) {
		marked := uplinks(h, routing.FamilyOf(from))
		if slices.ContainsFunc(owners, func(index int) bool { return !slices.Contains(marked, index) }) {
			continue
		}
		for _, to := range far {
			if to.Is4() == from.Is4() {
				unthrown(t, h, from, to)
			}
		}
	}
}

// genRefusals puts routes that lead nowhere into main.
func genRefusals(t *rapid.T, h *host) {
	for range rapid.IntRange(0, 3).Draw(t, "refusals") {
		f := rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(t, "family")
		inside := map[routing.Family][]string{
			routing.IPv4: {"192.0.2.64/26", "192.0.0.0/16", "172.16.9.0/24", "8.0.0.0/8"},
			routing.IPv6: {"2001:db8:a::/63", "2001:db8:f:5::/65", "2600::/16"},
		}
		r := routing.Route{
			Family: f, Table: routing.TableMain, Protocol: kerneltest.ProtocolStatic,
			Destination: prefix(rapid.SampledFrom(append(inside[f], destinations[f]...)).Draw(t, "refused")),
			Type:        rapid.SampledFrom([]routing.RouteType{routing.RouteThrow, routing.RouteThrow, routing.RouteBlackhole, routing.RouteUnreachable, routing.RouteProhibit}).Draw(t, "type"),
			Metric:      rapid.SampledFrom([]uint32{1, 77, 4000}).Draw(t, "metric"),
		}
		if f == routing.IPv6 {
			r.Device = 1
		}
		_ = h.kernel.AddForeignRoute(r) // One of its metric may stand there.
	}
}

// TestUnboundTrafficIsUnchanged is promise 2, before, during and after a pass.
func TestUnboundTrafficIsUnchanged(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		genRefusals(t, h)
		h.planner.SetFailover(genFailover(t, false))
		if rapid.Bool().Draw(t, "answers") {
			h.planner.SetAnswers(bothAnswered())
		}
		// late is what main throws since its default went, until the pass is over.
		var late map[lookup.Flow]bool
		look := func(routing.Op) {
			for _, to := range far {
				unchanged(t, h.kernel, to, "", late)
				unchanged(t, h.kernel, to, "docker0", late)
			}
		}
		for range rapid.IntRange(1, 4).Draw(t, "events") {
			index, name := genIndex(t)
			if name == names[index-2] {
				l := genLink(t, index, name)
				l.Tables = genTables(t, h.leases, l)
				h.install(l)
				h.lookAll()
			}
			late = map[lookup.Flow]bool{}
			for _, to := range far {
				for f := range throwable(h.kernel, to, "") {
					if _, follows := followsThrow(h.kernel, f); !follows {
						late[f] = true
					}
				}
			}
			h.kernel.Step = look
			h.converge(t)
			h.kernel.Step, late = nil, nil
			look(routing.Op{})
		}
	})
}

// strays fails where a packet from an address of an uplink may leave by
// another uplink that does not have the address.
func strays(t tb, k *kerneltest.Kernel, from netip.Addr, owners, uplinks []int, why string) {
	t.Helper()
	for _, to := range far {
		if to.Is4() != from.Is4() {
			continue
		}
		whole := k.Lookup(lookup.Flow{From: from, To: to})
		for v := &whole; v != nil; v = v.Otherwise {
			if len(v.Legs) > 0 && !slices.Contains(uplinks, v.Legs[0].Device) {
				// A multipath route of main whose first leg is no uplink: IPv4
				// looks at no other leg when it suppresses. Nothing to do.
				continue
			}
			for _, leg := range v.Legs {
				if slices.Contains(uplinks, leg.Device) && !slices.Contains(owners, leg.Device) {
					t.Fatalf("%s: from %s of %v to %s leaves by %s (%s)\n%s%s", why, from, owners, to, leg, v.Rule, k.Text(), k.ForeignText())
				}
			}
		}
	}
}

// owned lists the devices of uplinks by the addresses they have and have rules
// for.
func owned(h *host) map[netip.Addr][]int {
	out := map[netip.Addr][]int{}
	for plan := range h.planner.Links() {
		l := plan.Link
		for _, a := range l.Addresses {
			if plan.Roles.In(routing.FamilyOf(a.Prefix.Addr())) != routing.Uplink {
				continue
			}
			one := link(l.Index, l.Name)
			one.Addresses, one.Routes, one.Intents = []routing.Address{a}, l.Routes, l.Intents
			for _, k := range routing.Keys(one) {
				if _, leased := l.Tables[k]; leased {
					out[a.Prefix.Addr()] = append(out[a.Prefix.Addr()], l.Index)
				}
			}
		}
	}
	return out
}

// uplinks lists the uplinks of a family that others' packets must not leave by. One
// that somebody else put into a group of his, one whose owner keeps all its addresses
// for himself, and one that is never a default are the documented exceptions.
func uplinks(h *host, f routing.Family) []int {
	var out []int
	for plan := range h.planner.Links() {
		has := slices.ContainsFunc(plan.Keys, func(k routing.Key) bool { return k.Family == f })
		if plan.Roles.In(f) == routing.Uplink && has && !plan.Link.Intents[f].NeverDefault && (plan.Link.Group == 0 || plan.Link.Group == policy.UplinkGroup) {
			out = append(out, plan.Link.Index)
		}
	}
	return out
}

func bothUplinks(h *host) map[routing.Family][]int {
	return map[routing.Family][]int{routing.IPv4: uplinks(h, routing.IPv4), routing.IPv6: uplinks(h, routing.IPv6)}
}

// linkHappens lets a link come, change or go, and returns the uplinks of both moments by family: at
// the steps in between, nothing must stray to these. It reports false if nothing was done.
func (h *host) linkHappens(t *rapid.T) (marked map[routing.Family][]int, happened bool) {
	index, name := genIndex(t)
	if name != names[index-2] {
		return nil, false
	}
	marked = bothUplinks(h)
	if rapid.IntRange(0, 4).Draw(t, "remove") == 0 {
		if h.links[index].Index != 0 {
			h.remove(index)
		}
	} else {
		l := genLink(t, index, name)
		l.Tables = genTables(t, h.leases, l)
		h.install(l)
	}
	h.lookAll()
	after := bothUplinks(h)
	for f := range marked {
		marked[f] = slices.DeleteFunc(marked[f], func(i int) bool { return !slices.Contains(after[f], i) })
	}
	return marked, true
}

// TestBoundTrafficNeverStrays is promise 3: once the rules of a link stand, and
// as long as they are wanted, no packet of its addresses leaves by another
// uplink, at any step of any pass.
func TestBoundTrafficNeverStrays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		genRefusals(t, h)
		h.planner.SetFailover(genFailover(t, true))
		for range rapid.IntRange(2, 6).Draw(t, "events") {
			before := owned(h)
			marked, happened := h.linkHappens(t)
			if !happened {
				continue
			}
			after := owned(h)
			h.kernel.Step = func(op routing.Op) {
				for from := range before {
					if after[from] != nil {
						strays(t, h.kernel, from, slices.Concat(before[from], after[from]), marked[routing.FamilyOf(from)], "after "+op.String())
					}
				}
			}
			h.converge(t)
			h.kernel.Step = nil
			unthrownAll(t, h)
			for from, owners := range owned(h) {
				strays(t, h.kernel, from, owners, uplinks(h, routing.FamilyOf(from)), "at rest")
				if !covered(h.kernel, from) {
					t.Fatalf("%s is not covered", from)
				}
			}
		}
	})
}

// TestEmptyTableRejects: the kernel empties a table by itself.
func TestEmptyTableRejects(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	h.kernel.FlushTable(routing.IPv4, 10000)
	v := h.kernel.Lookup(lookup.Flow{From: addr("192.0.2.10"), To: addr("8.8.8.8")})
	if v.Outcome != lookup.Rejected {
		t.Errorf("from a link with an empty table: %v by %s", v.Outcome, v.Rule)
	}
}

// TestReach holds where typical packets go.
func TestReach(t *testing.T) {
	t.Parallel()
	const none = -1
	type flow struct {
		from, to, oif string
		device        int
		via           string
	}
	states := scenarios()
	ipv6 := func(l routing.Link, parts ...part) routing.Link {
		for _, p := range parts {
			p(&l)
		}
		return l
	}
	tests := map[string]struct {
		links []routing.Link
		flows []flow
	}{
		"two uplinks and a lan": {states["two uplinks and a lan"], []flow{
			// The VPN of the foreigners takes what is not bound to an uplink.
			{"", "8.8.8.8", "", 92, ""},
			{"10.0.0.1", "8.8.8.8", "", 92, ""},
			{"192.0.2.10", "8.8.8.8", "", 2, "192.0.2.1"},
			{"198.51.100.20", "8.8.8.8", "", 3, "198.51.100.1"},
			{"", "8.8.8.8", "wan1", 3, "198.51.100.1"},
			{"198.51.100.20", "192.0.2.99", "", 3, "198.51.100.1"},
			{"198.51.100.20", "10.0.0.9", "", 4, ""},
			// Containers, a bridge inside an uplink's network, and a VPN.
			{"192.0.2.10", "172.17.0.2", "", 90, ""},
			{"198.51.100.20", "192.0.2.200", "", 91, ""},
			{"192.0.2.10", "192.0.2.200", "", 91, ""},
			{"192.0.2.10", "192.0.2.20", "", 2, ""},
			{"198.51.100.20", "10.9.0.1", "", 92, ""},
			{"", "10.9.0.1", "", 92, ""},
		}},
		"two modems with the same address": {states["two modems with the same address"], []flow{
			{"", "8.8.8.8", "modem0", 2, "192.168.8.1"},
			{"", "8.8.8.8", "modem1", 3, "192.168.8.1"},
			{"192.168.8.100", "8.8.8.8", "modem1", 3, "192.168.8.1"},
			{"192.168.8.100", "192.168.8.1", "modem1", 3, ""},
			{"192.168.8.100", "8.8.8.8", "", 2, "192.168.8.1"},
		}},
		"two nics in one subnet": {states["two nics in one subnet"], []flow{
			{"192.0.2.10", "192.0.2.99", "", 2, ""},
			{"192.0.2.11", "192.0.2.99", "", 3, ""},
			{"192.0.2.11", "8.8.8.8", "", 3, "192.0.2.1"},
			{"2001:db8:a::10", "2001:db8:a::99", "", 2, ""},
			{"2001:db8:a::11", "2001:db8:a::99", "", 3, ""},
			{"2001:db8:a::11", "2600::1", "", 3, "fe80::1"},
		}},
		"two local links in one subnet": {states["two local links in one subnet"], []flow{
			{"10.0.0.1", "10.0.0.99", "", 2, ""},
			{"10.0.0.2", "10.0.0.99", "", 3, ""},
			{"fd00:1::2", "fd00:1::99", "", 3, ""},
			{"", "10.0.0.99", "", 2, ""},
		}},
		"an uplink and a local link in one subnet": {states["an uplink and a local link in one subnet"], []flow{
			{"192.0.2.10", "192.0.2.20", "", 2, ""},
			{"192.0.2.77", "192.0.2.20", "", 3, ""},
			{"", "192.0.2.20", "", 3, ""},
		}},
		"a socket bound to a device and an address": {states["two networks with two gateways"], []flow{
			{"192.0.2.10", "8.8.8.8", "wan0", 2, "192.0.2.1"},
			{"198.51.100.20", "8.8.8.8", "wan0", 2, "198.51.100.1"},
			{"198.51.100.20", "8.8.8.8", "", 2, "198.51.100.1"},
			{"", "8.8.8.8", "wan0", 2, "192.0.2.1"},
		}},
		"never-default": {states["never-default with the gateway of its profile"], []flow{
			{"", "8.8.8.8", "", 92, ""},
			{"198.51.100.20", "8.8.8.8", "", 3, "198.51.100.1"},
		}},
		"only never-default links": {[]routing.Link{
			link(3, "wan1", address("198.51.100.20/24", 101), gatewayHint("198.51.100.1")),
		}, []flow{
			{"", "200.1.1.1", "wan1", 3, "198.51.100.1"},
			{"", "2600::1", "", none, ""},
		}},
		"a container in an uplink's ipv6 network": {[]routing.Link{
			ipv6(wan0(), linkLocal("fe80::a/64"),
				address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
			ipv6(wan1(), linkLocal("fe80::b/64"), address("2001:db8:b::10/64", 50, dynamic), route(default6, "fe80::2", 50)),
		}, []flow{
			{"2001:db8:a::10", "2001:db8:a::d:2", "", 91, ""},
			{"2001:db8:b::10", "2001:db8:a::d:2", "", 91, ""},
			{"2001:db8:a::10", "2600::1", "", 2, "fe80::1"},
			{"2001:db8:b::10", "2001:db8:a::9", "", 3, "fe80::2"},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost()
			foreigners(t, h)
			for _, l := range tt.links {
				h.install(l)
			}
			h.converge(t)
			for _, f := range tt.flows {
				in := lookup.Flow{To: addr(f.to), OIF: f.oif}
				if f.from != "" {
					in.From = addr(f.from)
				}
				v := h.kernel.Lookup(in)
				device, via := none, ""
				if len(v.Legs) > 0 {
					device = v.Legs[0].Device
					if v.Legs[0].Gateway.IsValid() {
						via = v.Legs[0].Gateway.String()
					}
				}
				if device != f.device || via != f.via {
					t.Errorf("from %q to %s oif %q: if%d via %q by %s, want if%d via %q", f.from, f.to, f.oif, device, via, v.Rule, f.device, f.via)
				}
			}
		})
	}
}

// TestForwardedTrafficOfARouter: a LAN that has a next hop is an uplink by
// definition, and still the hosts behind this router reach what main reaches.
func TestForwardedTrafficOfARouter(t *testing.T) {
	t.Parallel()
	h := hostOf(t,
		link(2, "wan0", linkLocal("fe80::a/64"), address("2001:db8:a::10/64", 100, dynamic), route(default6, "fe80::1", 100)),
		link(4, "lan0", linkLocal("fe80::4/64"), address("2001:db8:1::1/64", 102), route("2001:db8:99::/48", "fe80::99", 102)),
	)
	v := h.kernel.Lookup(lookup.Flow{From: addr("2001:db8:1::77"), To: addr("2600::1"), IIF: "lan0"})
	if !v.Through(2) {
		t.Errorf("from a host of the LAN: %v %v by %s", v.Outcome, v.Legs, v.Rule)
	}
}

// TestMultipathOfMain: main's own multipath routes go on for unbound traffic,
// bound traffic takes its own leg.
func TestMultipathOfMain(t *testing.T) {
	t.Parallel()
	h := newHost()
	a, b := wan0(), wan1()
	a.Routes, b.Routes = a.Routes[:1], b.Routes[:1]
	h.install(a)
	h.install(b)
	leg := func(device int, via string) routing.Route {
		return routing.Route{
			Family: routing.IPv4, Table: routing.TableMain, Destination: prefix(default4), Gateway: addr(via),
			Type: routing.RouteUnicast, Device: device, Protocol: kerneltest.ProtocolStatic,
		}
	}
	if err := h.kernel.AddLegs(leg(2, "192.0.2.1"), leg(2, "192.0.2.2"), leg(3, "198.51.100.1")); err != nil {
		t.Fatal(err)
	}
	h.lookAll()
	h.converge(t)
	h.settled(t)
	for from, want := range map[string][]string{
		"":              {"192.0.2.1", "192.0.2.2", "198.51.100.1"},
		"192.0.2.10":    {"192.0.2.1"},
		"198.51.100.20": {"198.51.100.1"},
	} {
		f := lookup.Flow{To: addr("8.8.8.8")}
		if from != "" {
			f.From = addr(from)
		}
		legs := h.kernel.Lookup(f).Legs
		got := make([]string, 0, len(legs))
		for _, r := range legs {
			got = append(got, r.Gateway.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("from %q (-want +got):\n%s", from, diff)
		}
	}
}
