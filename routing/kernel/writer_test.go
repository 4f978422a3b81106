package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

var compareAddr = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b routing.Attributes) bool { return a == b }),
}

func add(r routing.Route) routing.Op     { return routing.Op{Verb: routing.AddRoute, Route: r} }
func remove(r routing.Route) routing.Op  { return routing.Op{Verb: routing.DeleteRoute, Route: r} }
func addRule(r routing.Rule) routing.Op  { return routing.Op{Verb: routing.AddRule, Rule: r} }
func moveRule(r routing.Rule) routing.Op { return routing.Op{Verb: routing.MoveRule, Rule: r} }
func dropRule(r routing.Rule) routing.Op { return routing.Op{Verb: routing.DeleteRule, Rule: r} }

func setMetric(r *routing.Route, metric int, v uint32) {
	r.Attributes = r.Attributes.With(func(a *routing.RareAttributes) { a.Metrics[metric] = v })
}

// route is one of ours.
func route(table routing.TableID, destination, gateway string, device int) routing.Route {
	p := prefix(destination)
	r := routing.Route{
		Family: routing.FamilyOf(p.Addr()), Table: table, Destination: p, Type: routing.RouteUnicast,
		Device: device, Protocol: routing.Multihomed,
	}
	if gateway != "" {
		r.Gateway = addr(gateway)
	} else if r.Family == routing.IPv4 {
		r.Scope = routing.ScopeLink
	}
	if r.Family == routing.IPv6 {
		r.Metric = 1024
	}
	return r
}

func rule(p routing.Priority, from string, table routing.TableID) routing.Rule {
	r := routing.Rule{
		Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table, Protocol: routing.Multihomed,
	}
	if from != "" {
		r.From = prefix(from)
		r.Family = routing.FamilyOf(r.From.Addr())
	}
	return r
}

func both(r routing.Rule) []routing.Rule {
	six := r
	six.Family = routing.IPv6
	return []routing.Rule{r, six}
}

// TestRulesReadBackAsWritten writes every kind of rule and reads it back equal:
// by its announcement, and by a dump.
func TestRulesReadBackAsWritten(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	rules := make([]routing.Rule, 0, 24)
	for _, r := range both(routing.Rule{Family: routing.IPv4, Action: routing.ActionLookup, Protocol: routing.Multihomed}) {
		containers := r
		containers.Priority, containers.Table = routing.PriorityKnown, routing.TableMain
		containers.SuppressPrefixLength, containers.SuppressGroup = routing.Some(1), routing.Some(28008)
		keepMain := r
		keepMain.Priority, keepMain.Table, keepMain.SuppressPrefixLength = routing.PriorityNetworkMain, routing.TableMain, routing.Some(0)
		// vishvananda/netlink forgets this one.
		suppressed := r
		suppressed.Priority, suppressed.Table, suppressed.SuppressPrefixLength = routing.PriorityNetworkMain, 10007, routing.Some(3)
		group := r
		group.Priority, group.Table, group.SuppressGroup = routing.PriorityNetworkMain, 10007, routing.Some(0)
		device := r
		device.Priority, device.OIF, device.Table = routing.PriorityDevice, "wan0", 10001
		absent := device
		absent.OIF = "later"
		last := r
		last.Priority, last.IIF, last.Table = routing.PriorityMatchAll, "lo", 10001
		small := r
		small.Priority, small.Table = 123, 77
		rules = append(rules, containers, keepMain, suppressed, group, device, absent, last, small)
	}
	for _, p := range []string{"192.0.2.10/32", "2001:db8::/64"} {
		source := rule(routing.PrioritySource, p, 10001)
		stray := source
		stray.Priority, stray.Action, stray.Table = routing.PriorityUnreachable, routing.ActionUnreachable, 0
		network := source
		network.Priority, network.From, network.To = routing.PriorityNetwork, netip.Prefix{}, source.From
		overlap := source
		overlap.Priority, overlap.To = routing.PriorityOverlap, source.From
		rules = append(rules, source, stray, network, overlap)
	}
	ops := make([]routing.Op, len(rules))
	for i, r := range rules {
		ops[i] = addRule(r)
	}
	h.apply(w, ops...)
	h.apply(w, ops...) // standing already is no error
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		for _, r := range rules {
			if s.CountRule(r) != 1 {
				t.Errorf("%v stands %d times", r, s.CountRule(r))
			}
		}
	})
	audit(t, m)
	for i := range ops {
		ops[i].Verb = routing.DeleteRule
	}
	h.apply(w, ops...)
	h.apply(w, ops...) // gone already is no error
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if left := slices.Collect(s.Rules()); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	audit(t, m)
}

// TestRoutesReadBackAsWritten does so for routes.
func TestRoutesReadBackAsWritten(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	other := h.veth("wan1")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan1", "198.51.100.10/24")
	h.address("wan0", "2001:db8::10/64")
	h.address("wan1", "2001:db8:1::10/64")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)

	connected := route(10001, "192.0.2.0/24", "", dev)
	connected.PreferredSource = addr("192.0.2.10")
	viaDefault := route(10001, "0.0.0.0/0", "192.0.2.1", dev)
	metrics := route(10001, "10.0.0.0/8", "192.0.2.1", dev)
	setMetric(&metrics, unix.RTAX_MTU, 1400)
	setMetric(&metrics, unix.RTAX_ADVMSS, 1300)
	setMetric(&metrics, unix.RTAX_INITCWND, 20)
	setMetric(&metrics, unix.RTAX_LOCK, 1<<unix.RTAX_MTU|1<<unix.RTAX_ADVMSS)
	metrics.Attributes = metrics.Attributes.With(func(a *routing.RareAttributes) { a.Congestion = "cubic" })
	metrics.Metric = 700
	onlink := route(10001, "10.1.0.0/16", "203.0.113.1", dev)
	onlink.OnLink = true
	tos := route(10001, "10.2.0.0/16", "192.0.2.1", dev)
	tos.TOS = 0x10
	via6 := route(10001, "10.3.0.0/16", "fe80::1", dev)
	hostScope := route(10001, "10.4.0.0/16", "", dev)
	hostScope.Scope = routing.ScopeHost
	encapsulated := route(10001, "10.5.0.0/16", "192.0.2.1", dev)
	// LWTUNNEL_ENCAP_IP with LWTUNNEL_IP_ID 7 and LWTUNNEL_IP_DST 192.0.2.7.
	encapsulation := "\x0c\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x07" + "\x08\x00\x02\x00\xc0\x00\x02\x07"
	encapsulated.Attributes = routing.RareAttributes{EncapsulationType: 2, Encapsulation: encapsulation}.Share()
	elsewhere := route(10002, "0.0.0.0/0", "198.51.100.1", other)

	connected6 := route(10001, "2001:db8::/64", "", dev)
	via := route(10001, "::/0", "2001:db8::1", dev)
	via.Preference = 1
	secondLeg := route(10001, "::/0", "2001:db8:1::1", other)
	secondLeg.Preference = 1
	via.Weight, secondLeg.Weight = 3, 1
	realm := route(10001, "10.8.0.0/16", "192.0.2.1", dev)
	realm.Attributes = routing.RareAttributes{Realm: 5}.Share()
	multipath := route(10001, "10.9.0.0/16", "192.0.2.1", dev)
	multipath.Weight = 7
	multipath.Attributes = routing.RareAttributes{
		Realm: 6,
		Legs: routing.PackLegs([]routing.Leg{
			{Gateway: addr("198.51.100.1"), Device: other, Weight: 1, Realm: 9},
			{Gateway: addr("203.0.113.1"), Device: other, Weight: 2, OnLink: true},
			{Gateway: addr("fe80::1"), Device: dev, Weight: 256},
		}),
	}.Share()
	setMetric(&multipath, unix.RTAX_MTU, 1400)
	linkLocal := route(10001, "2001:db8:5::/48", "fe80::1", dev)
	linkLocal.Preference = 3
	source6 := route(10001, "2001:db8:7::/48", "2001:db8::1", dev)
	source6.Source = prefix("2001:db8::/64")
	src6 := route(10001, "2001:db8:8::/48", "2001:db8::1", dev)
	src6.PreferredSource = addr("2001:db8::10")
	setMetric(&src6, unix.RTAX_MTU, 1400)
	setMetric(&src6, unix.RTAX_HOPLIMIT, 7)
	onlink6 := route(10001, "2001:db8:9::/48", "2001:db8:ffff::1", dev)
	onlink6.OnLink = true

	routes := []routing.Route{
		connected, viaDefault, metrics, onlink, tos, via6, hostScope, elsewhere,
		realm, multipath, connected6, via, secondLeg, linkLocal, src6, onlink6,
	}
	for name, optional := range map[string]routing.Route{"ip encapsulation": encapsulated, "source routes": source6} {
		err := errors.Join(w.Apply(t.Context(), []routing.Op{add(optional)})...)
		switch {
		case err == nil && optional.Attributes.Get().Encapsulation != "":
			// The kernel fills in what was left open. What it says then is
			// what a copy is made of.
			must(t, m.Drain())
			m.View(func(s *kernel.State) { optional, _ = s.Route(optional.Key()) })
			if have := optional.Attributes.Get().Encapsulation; !strings.HasPrefix(have, encapsulation) {
				t.Errorf("encapsulation: %x", have)
			}
			copied := optional
			copied.Destination = prefix("10.6.0.0/16")
			routes = append(routes, optional, copied)
		case err == nil:
			routes = append(routes, optional)
		case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL):
			t.Errorf("%s: %v", name, err)
		default:
			t.Logf("this kernel has no %s: %v", name, err)
		}
	}
	ops := make([]routing.Op, len(routes))
	for i, r := range routes {
		ops[i] = add(r)
	}
	for i, err := range w.Apply(t.Context(), ops) {
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Errorf("%d: %v", i, err)
		}
	}
	check := func() {
		t.Helper()
		m.View(func(s *kernel.State) {
			for _, want := range routes {
				have, ok := s.Route(want.Key())
				if !ok {
					t.Errorf("%v is not there", want)
				} else if diff := cmp.Diff(want, have, compareAddr); diff != "" {
					t.Errorf("%v (-want +have):\n%s", want, diff)
				}
			}
			if n := len(s.OurRoutes(10001)) + len(s.OurRoutes(10002)); n != len(routes) {
				t.Errorf("%d routes of %d", n, len(routes))
			}
		})
	}
	must(t, m.Drain())
	check()
	must(t, m.Resync(t.Context()))
	check()
	audit(t, m)
	for i := range ops {
		ops[i].Verb = routing.DeleteRoute
	}
	h.apply(w, ops...)
	h.apply(w, ops...)
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		for r := range s.Routes() {
			t.Errorf("left: %v", r)
		}
	})
	audit(t, m)
}

// TestReplaceRoute changes a route in place.
func TestReplaceRoute(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	four, six := route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "::/0", "2001:db8::1", dev)
	h.apply(w, add(four), add(six))
	four.Gateway = addr("192.0.2.2")
	setMetric(&six, unix.RTAX_MTU, 1400)
	if err := errors.Join(w.Apply(t.Context(), []routing.Op{add(four)})...); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second route in place of the first: %v", err)
	}
	h.apply(w, routing.Op{Verb: routing.ReplaceRoute, Route: four}, routing.Op{Verb: routing.ReplaceRoute, Route: six})
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		for _, want := range []routing.Route{four, six} {
			if have, _ := s.Route(want.Key()); have != want {
				t.Errorf("want %v, have %v", want, have)
			}
		}
	})
	audit(t, m)
}

// TestMoveRule puts a rule behind its equals without ever taking it away, and
// in one call with rules that are added between.
func TestMoveRule(t *testing.T) {
	h := newHost(t)
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	rules := make([]routing.Rule, 4)
	ops := make([]routing.Op, len(rules))
	for i := range rules {
		rules[i] = rule(routing.PriorityMatchAll, "", routing.TableID(10000+i))
		ops[i] = addRule(rules[i])
	}
	h.apply(w, ops...)
	added := rule(routing.PriorityMatchAll, "", 10009)
	h.apply(w, moveRule(rules[1]), addRule(added), moveRule(rules[0]))
	must(t, m.Drain())
	want := []routing.Rule{rules[2], rules[3], rules[1], added, rules[0]}
	m.View(func(s *kernel.State) {
		if diff := cmp.Diff(want, s.RuleOrder(routing.IPv4, routing.PriorityMatchAll), compareAddr); diff != "" {
			t.Errorf("order (-want +have):\n%s", diff)
		}
		first, _ := s.RulePlace(rules[2])
		last, _ := s.RulePlace(rules[0])
		if first >= last {
			t.Errorf("places %d and %d", first, last)
		}
	})
	audit(t, m)
}

// TestForeignTwinsStay deletes our objects beside foreign ones that differ in
// nothing but the protocol.
func TestForeignTwinsStay(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	for _, ours := range []routing.Route{
		route(10001, "0.0.0.0/0", "192.0.2.1", dev), route(10001, "::/0", "2001:db8::1", dev),
		route(10001, "192.0.2.0/24", "", dev), route(10001, "2001:db8::/64", "", dev),
	} {
		foreign := ours
		foreign.Protocol = 4
		must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(foreign) }))
		// The two can stand side by side in IPv4.
		err := errors.Join(w.Apply(t.Context(), []routing.Op{add(ours)})...)
		if ours.Family == routing.IPv4 {
			must(t, err)
		} else if !errors.Is(err, unix.EEXIST) {
			t.Errorf("adding %v beside a twin: %v", ours, err)
		}
		h.apply(w, remove(ours), remove(ours))
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if _, ok := s.Route(ours.Key()); ok {
				t.Errorf("%v still stands", ours)
			}
			if what, ok := s.ForeignIn(ours.Family, 10001); !ok || !strings.Contains(what, " dev wan0 ") {
				t.Errorf("the foreign twin of %v is gone: %s", ours, what)
			}
			if what, used := s.ForeignIn(other(ours.Family), 10001); used {
				t.Errorf("%v is in the table of the other family: %s", foreign, what)
			}
		})
		audit(t, m)
		must(t, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(foreign) }))
	}
	for _, ours := range []routing.Rule{rule(routing.PrioritySource, "192.0.2.10/32", 10001), rule(routing.PrioritySource, "2001:db8::/64", 10001)} {
		foreign := ours
		foreign.Protocol = 4
		must(t, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(foreign) }))
		h.apply(w, addRule(ours), dropRule(ours), dropRule(ours))
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if s.CountRule(ours) != 0 || s.CountRule(foreign) != 1 {
				t.Errorf("%v: ours %d times, foreign %d times", ours, s.CountRule(ours), s.CountRule(foreign))
			}
			if what, ok := s.ForeignIn(ours.Family, 10001); !ok || !strings.Contains(what, "rule") {
				t.Errorf("the table is used by %q", what)
			}
			if used := s.ForeignTables(); !slices.Contains(used, 10001) {
				t.Errorf("tables in use: %v", used)
			}
		})
	}
	audit(t, m)
}

// other is the other family.
func other(f routing.Family) routing.Family {
	if f == routing.IPv4 {
		return routing.IPv6
	}
	return routing.IPv4
}

// TestOnlyOurs: what does not carry our protocol is not even sent.
func TestOnlyOurs(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	foreign := route(10001, "192.0.2.0/24", "", dev)
	foreign.Protocol = 4
	must(t, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(foreign) }))
	nobody := rule(10000, "", 10001)
	nobody.Protocol = 0
	ours := rule(10000, "192.0.2.1/32", 10001)
	ops := []routing.Op{
		remove(foreign), add(foreign),
		{Verb: routing.ReplaceRoute, Route: foreign},
		addRule(nobody), dropRule(nobody), moveRule(nobody),
		{Verb: 99},
		addRule(ours),
	}
	errs := w.Apply(t.Context(), ops)
	for i, err := range errs[:6] {
		if !errors.Is(err, kernel.ErrNotOurs) {
			t.Errorf("%v: %v", ops[i], err)
		}
	}
	if errs[6] == nil || errs[7] != nil {
		t.Errorf("the last two: %v, %v", errs[6], errs[7])
	}
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if what, ok := s.ForeignIn(routing.IPv4, 10001); !ok {
			t.Errorf("the foreign route is gone: %s", what)
		}
		if s.CountRule(ours) != 1 {
			t.Error("the operation after those that were refused was not done")
		}
	})
}

// TestErrorsSayWhatFailed: per operation, in the kernel's words.
func TestErrorsSayWhatFailed(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	good := route(10001, "192.0.2.0/24", "", dev)
	unreachable := route(10001, "0.0.0.0/0", "203.0.113.1", dev)
	nowhere := route(10001, "10.0.0.0/8", "", 4242)
	errs := w.Apply(t.Context(), []routing.Op{add(good), add(unreachable), add(nowhere), {Verb: routing.SetGroup, Index: 4242, Group: 1}, add(good)})
	if len(errs) != 5 || errs[0] != nil {
		t.Fatalf("errors: %v", errs)
	}
	if !errors.Is(errs[1], unix.ENETUNREACH) || !strings.Contains(errs[1].Error(), "Nexthop has invalid gateway") ||
		!strings.Contains(errs[1].Error(), "default via 203.0.113.1 dev wan0 ") {
		t.Errorf("unreachable gateway: %v", errs[1])
	}
	if !errors.Is(errs[2], unix.ENODEV) {
		t.Errorf("no device: %v", errs[2])
	}
	if !errors.Is(errs[3], unix.ENODEV) {
		t.Errorf("group: %v", errs[3])
	}
	if !errors.Is(errs[4], unix.EEXIST) {
		t.Errorf("second add: %v", errs[4])
	}
	cancelled, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	errs = w.Apply(cancelled, []routing.Op{addRule(rule(10000, "", 10001))})
	if len(errs) != 1 || !errors.Is(errs[0], cause) {
		t.Errorf("cancelled: %v", errs)
	}
	h.apply(w) // nothing
}

// TestManyOperations is more than one message to the kernel holds.
func TestManyOperations(t *testing.T) {
	h := newHost(t)
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	var ops []routing.Op
	for i := range 3000 {
		r := rule(routing.PrioritySource, fmt.Sprintf("10.0.%d.%d/32", i/250, i%250), 10001)
		ops = append(ops, addRule(r))
		if i%100 == 50 {
			r.Protocol = 3
			ops = append(ops, addRule(r))
		}
	}
	for i, err := range w.Apply(t.Context(), ops) {
		if refused := ops[i].Rule.Protocol != routing.Multihomed; refused != (err != nil) {
			t.Fatalf("%d: %v", i, err)
		}
	}
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if n := len(slices.Collect(s.Rules())); n != 3000 {
			t.Errorf("%d rules", n)
		}
	})
	var moves []routing.Op
	for _, op := range ops {
		if op.Rule.Protocol == routing.Multihomed {
			moves = append(moves, moveRule(op.Rule))
		}
	}
	h.apply(w, moves...)
	must(t, m.Drain())
	m.View(func(s *kernel.State) {
		if have := s.RuleOrder(routing.IPv4, routing.PrioritySource); len(have) != 3000 || have[0] != moves[0].Rule || have[2999] != moves[2999].Rule {
			t.Errorf("%d rules", len(have))
		}
	})
	for i := range moves {
		moves[i].Verb = routing.DeleteRule
	}
	h.apply(w, moves...)
	audit(t, m)
}

// TestSetGroup also where the kernel does not announce it.
func TestSetGroup(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	group := func() uint32 {
		must(t, m.Drain())
		var g uint32
		m.View(func(s *kernel.State) { g, _ = s.Group(dev) })
		return g
	}
	h.apply(w, routing.Op{Verb: routing.SetGroup, Index: dev, Group: 28008})
	if g := group(); g != 28008 {
		t.Errorf("group %d", g)
	}
	h.down("wan0")
	must(t, m.Drain())
	h.apply(w, routing.Op{Verb: routing.ResetGroup, Index: dev})
	if g := group(); g != 0 {
		t.Errorf("group %d while down", g)
	}
	h.apply(w, routing.Op{Verb: routing.SetGroup, Index: dev, Group: 28008})
	h.up("wan0")
	if g := group(); g != 28008 {
		t.Errorf("group %d after up", g)
	}
	audit(t, m)
	h.ip("link del wan0")
	h.apply(w, routing.Op{Verb: routing.ResetGroup, Index: dev})
}
