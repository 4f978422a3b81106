package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

func TestMirrorOfASmallHost(t *testing.T) {
	h := newHost(t)
	index := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	h.ip("route add default via 192.0.2.1 dev wan0 metric 600")
	h.ip("-6 route add default via 2001:db8::1 dev wan0 metric 600")
	m := h.mirror(kernel.Config{})
	audit(t, m)
	m.View(func(s *kernel.State) {
		l, ok := s.Link(index)
		if !ok || l.Name != "wan0" || !l.Up || l.Kind != "veth" {
			t.Errorf("wan0 is %+v", l)
		}
		if len(l.Addresses) != 3 || len(l.Routes) != 5 {
			t.Errorf("wan0 has %+v", l)
		}
		if l.Routes[0].Gateway != addr("192.0.2.1") || l.Routes[0].Metric != 600 {
			t.Errorf("the first route is %v", l.Routes[0])
		}
		if i, ok := s.IndexOf("wan0"); !ok || i != index {
			t.Errorf("wan0 has index %d", i)
		}
		if !s.Complete() || !slices.Contains(s.Indexes(), index) {
			t.Error("the state is not complete")
		}
		if foreign := s.ForeignRules(); len(foreign) != 5 {
			t.Errorf("the kernel's own rules: %v", foreign)
		}
	})
}

// links drains and returns which interfaces changed.
func links(t *testing.T, m *kernel.Mirror) []int {
	t.Helper()
	must(t, m.Drain())
	c := m.Take()
	for index := range c.Destinations {
		c.Links[index] = struct{}{}
	}
	return slices.Sorted(maps.Keys(c.Links))
}

// TestWhatCountsAsAChange: metrics do, lifetimes do not.
func TestWhatCountsAsAChange(t *testing.T) {
	h := newHost(t)
	// IPv6 does much on its own time.
	h.sysctl("ipv6/conf/default/disable_ipv6", "1")
	wan0, wan1 := h.veth("wan0"), h.veth("wan1")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan1", "198.51.100.10/24")
	m := h.mirror(kernel.Config{})
	expect := func(what string, want ...int) {
		t.Helper()
		if have := links(t, m); !slices.Equal(have, want) {
			t.Errorf("%s: changed %v, want %v", what, have, want)
		}
	}
	// So does the carrier: only when it has been announced is it quiet.
	for end := time.Now().Add(20 * time.Second); ; {
		must(t, m.Sync(t.Context()))
		waiting := false
		m.View(func(s *kernel.State) {
			for _, i := range s.Indexes() {
				l, _ := s.Link(i)
				waiting = waiting || l.Kind == "veth" && (!l.Carrier || !l.Running)
			}
		})
		if !waiting {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the links do not get ready")
		}
	}
	m.Take()
	h.ip("route add default via 192.0.2.1 dev wan0 metric 100")
	expect("default", wan0)
	h.ip("route del default")
	h.ip("route add default via 192.0.2.1 dev wan0 metric 20100")
	expect("metric", wan0)
	h.ip("route add 10.0.0.0/8 nexthop via 192.0.2.1 dev wan0 nexthop via 198.51.100.1 dev wan1")
	expect("multipath", wan0, wan1)
	h.ip("addr add 192.0.2.11/24 dev wan0 valid_lft 100 preferred_lft 100")
	expect("address", wan0)
	h.ip("addr change 192.0.2.11/24 dev wan0 valid_lft 200 preferred_lft 200")
	expect("lifetime")
	h.ip("addr change 192.0.2.11/24 dev wan0 valid_lft forever preferred_lft forever")
	expect("no longer dynamic", wan0)
	h.ip("link set wan1 group 7")
	expect("group", wan1)
	h.ip("route add 10.1.0.0/16 via 192.0.2.1 table 77")
	expect("another table")
	h.ip("route add blackhole 10.2.0.0/16")
	expect("no device")
	h.ip("link set wan0 down")
	have := links(t, m)
	if !slices.Contains(have, wan0) || !slices.Contains(have, wan1) { // wan1 shares the multipath route
		t.Errorf("down: changed %v", have)
	}
	h.ip("link del wan1")
	if have := links(t, m); !slices.Contains(have, wan1) {
		t.Errorf("deleted: %v", have)
	}
	audit(t, m)
}

// TestChangesOfOurs tells what others did to our objects from what we did.
func TestChangesOfOurs(t *testing.T) {
	h := newHost(t)
	dev := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	four, six := route(10001, "192.0.2.0/24", "", dev), route(10001, "::/0", "2001:db8::1", dev)
	source := rule(routing.PrioritySource, "192.0.2.10/32", 10001)
	install := func() {
		t.Helper()
		h.apply(w, add(four), add(six), addRule(source))
		must(t, m.Drain())
		if c := m.Take(); len(c.Routes)+len(c.Rules)+len(c.Taken) > 0 {
			t.Errorf("our own writing is reported: %+v", c)
		}
	}
	taken := func(what string, want int, changed int) {
		t.Helper()
		must(t, m.Drain())
		c := m.Take()
		if len(c.Taken) != want || len(c.Routes)+len(c.Rules) != changed {
			t.Errorf("%s: taken %v, changed %v %v", what, c.Taken, c.Routes, c.Rules)
		}
		for _, x := range c.Taken {
			if x.Port == 0 || x.Port == w.Port() {
				t.Errorf("%s: taken by port %d", what, x.Port)
			}
		}
	}
	install()
	h.ip("route flush table 10001")
	h.ip("-6 route flush table 10001")
	h.ip("rule flush")
	taken("flush", 3, 3)
	install()
	h.ip("route replace 192.0.2.0/24 dev wan0 scope link table 10001 proto static")
	taken("replaced", 1, 1)
	if c := m.Take(); !c.Empty() {
		t.Errorf("taken twice: %+v", c)
	}
	h.ip("route flush table 10001")
	must(t, m.Drain())
	m.Take()
	h.apply(w, add(four))
	must(t, m.Drain())
	h.ip("link set wan0 down")
	// The kernel did it, and nobody is to blame.
	taken("down", 0, 2)
	audit(t, m)
}

// TestOverrun drops announcements on purpose.
func TestOverrun(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	overruns := 0
	m := h.mirror(kernel.Config{ReceiveBuffer: 1, Overrun: func() { overruns++ }})
	for round := range 3 {
		for i := range 200 {
			h.ipBatch(fmt.Sprintf("route add 10.%d.%d.0/24 via 192.0.2.1", round, i))
		}
		h.flushBatch()
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if s.Complete() {
				t.Error("nothing was lost")
			}
		})
		must(t, m.Sync(t.Context()))
		if c := m.Take(); !c.All {
			t.Error("a resynchronisation is not reported")
		}
		if overruns <= round {
			t.Errorf("%d overruns are told after %d", overruns, round+1)
		}
		m.View(func(s *kernel.State) {
			if !s.Complete() {
				t.Error("the state is not complete")
			}
		})
		audit(t, m)
	}
}

// TestRunKeepsUp has Run read while others write, with a queue that is much
// too small, and compares in the end.
func TestRunKeepsUp(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	m, err := kernel.Open(kernel.Config{Tables: tables, ReceiveBuffer: 8 << 10})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for i := range 3000 {
		kind, flags := uint16(unix.RTM_NEWROUTE), uint16(unix.NLM_F_CREATE)
		if i%3 == 2 {
			kind, flags = unix.RTM_DELROUTE, 0
		}
		r := route(routing.TableMain, fmt.Sprintf("10.%d.0.0/16", i/3%200), "192.0.2.1", 0)
		r.Protocol = 4
		_ = h.raw.Do(kind, flags, func(b kernel.Body) { b.Route(r) })
		ru := rule(routing.PrioritySource, fmt.Sprintf("10.0.0.%d/32", i%7), 10001)
		_ = h.raw.Do([]uint16{unix.RTM_NEWRULE, unix.RTM_DELRULE}[i%2], unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(ru) })
	}
	select {
	case <-m.Changed():
	case <-time.After(10 * time.Second):
		t.Error("no change was signalled")
	}
	audit(t, m)
	cancel()
	running.Wait()
	must(t, m.Close())
	if err := m.Drain(); err == nil {
		t.Error("a closed mirror drains")
	}
}

// TestRunEnds when its context does, while it waits.
func TestRunEnds(t *testing.T) {
	h := newHost(t)
	m := h.mirror(kernel.Config{})
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		cancel()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("Run does not end")
		}
	}
}

// TestSyncUnderChange fills the mirror while routes and rules change: events
// overtake the dumps, and a list of rules read in pieces may have one twice or
// not at all (dump_rules in net/core/fib_rules.c does not notice).
func TestSyncUnderChange(t *testing.T) {
	h := newHost(t)
	for i := range 3 {
		h.veth(fmt.Sprintf("wan%d", i))
		h.address(fmt.Sprintf("wan%d", i), fmt.Sprintf("192.0.%d.10/24", i))
	}
	for i := range 1500 {
		r := rule(12000, fmt.Sprintf("10.1.%d.%d/32", i/250, i%250), 77)
		must(t, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(r) }))
	}
	m, err := kernel.Open(kernel.Config{Tables: tables})
	must(t, err)
	defer func() { must(t, m.Close()) }()
	other, err := kernel.NewRequester()
	must(t, err)
	next := 0
	change := func() {
		for i := next; i < next+600; i++ {
			ru := rule(routing.PrioritySource, fmt.Sprintf("10.0.0.%d/32", i%9), 10001)
			ru.Family = routing.IPv4
			_ = other.Do([]uint16{unix.RTM_NEWRULE, unix.RTM_DELRULE}[i/9%2], unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(ru) })
			r := route(routing.TableMain, fmt.Sprintf("10.%d.0.0/16", i%50), "", i%3+3)
			r.Protocol = 4
			_ = other.Do([]uint16{unix.RTM_NEWROUTE, unix.RTM_DELROUTE}[i/50%2], unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(r) })
		}
		next += 600
	}
	for range 20 {
		var changing sync.WaitGroup
		changing.Go(change)
		if err := m.Resync(t.Context()); err != nil {
			t.Error(err)
		}
		changing.Wait()
		audit(t, m)
	}
	must(t, other.Close())
	audit(t, m)
}

// TestInterest reads and forgets the routes of an interface in main.
func TestInterest(t *testing.T) {
	h := newHost(t)
	wan, bgp := h.veth("wan0"), h.veth("bgp0")
	h.address("wan0", "192.0.2.10/24")
	h.address("bgp0", "198.51.100.10/24")
	h.ip("route add 10.1.0.0/16 via 198.51.100.1")
	h.ip("route add 10.2.0.0/16 nexthop via 192.0.2.1 nexthop via 198.51.100.1")
	m := h.mirror(kernel.Config{Interest: func(name string) bool { return name == "wan0" }})
	routes := func(index int) []netip.Prefix {
		var out []netip.Prefix
		m.View(func(s *kernel.State) {
			l, _ := s.Link(index)
			for _, r := range l.Routes {
				if r.Family == routing.IPv4 {
					out = append(out, r.Destination)
				}
			}
		})
		return out
	}
	expect := func(index int, want ...string) {
		t.Helper()
		prefixes := make([]netip.Prefix, 0, len(want))
		for _, p := range want {
			prefixes = append(prefixes, prefix(p))
		}
		if diff := cmp.Diff(prefixes, routes(index), compareAddr, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("routes through %d (-want +have):\n%s", index, diff)
		}
	}
	expect(wan, "10.2.0.0/16", "192.0.2.0/24")
	expect(bgp)
	must(t, m.SetInterest(t.Context(), map[int]bool{bgp: true, 4242: true}))
	expect(bgp, "10.1.0.0/16", "10.2.0.0/16", "198.51.100.0/24")
	must(t, m.SetInterest(t.Context(), map[int]bool{bgp: false}))
	expect(bgp)
	expect(wan, "10.2.0.0/16", "192.0.2.0/24")
	h.ip("route add 10.3.0.0/16 via 198.51.100.1")
	must(t, m.Drain())
	before := m.Slots()
	h.ip("route add 10.4.0.0/16 via 198.51.100.1")
	must(t, m.Drain())
	if m.Slots() != before {
		t.Error("a route of no interest is kept")
	}
	// More interfaces at once than are worth a question each.
	many := map[int]bool{bgp: true}
	for i := range 30 {
		must(t, h.link.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("br%d", i)}}))
		l, err := h.link.LinkByName(fmt.Sprintf("br%d", i))
		must(t, err)
		many[l.Attrs().Index] = true
	}
	must(t, m.SetInterest(t.Context(), many))
	expect(bgp, "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "198.51.100.0/24")
	audit(t, m)
}

// TestNamesComeAndGo: an interface that is renamed, deleted and made again
// under the same name, or taken over by another.
func TestNamesComeAndGo(t *testing.T) {
	h := newHost(t)
	first := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	h.apply(w, add(route(10001, "192.0.2.0/24", "", first)), addRule(rule(routing.PriorityDevice, "", 10001)))
	index := func(name string) int {
		must(t, m.Drain())
		i := 0
		m.View(func(s *kernel.State) { i, _ = s.IndexOf(name) })
		return i
	}
	h.ip("link set wan0 down")
	h.ip("link set wan0 name old0")
	if index("wan0") != 0 || index("old0") != first {
		t.Errorf("after the renaming: wan0 %d, old0 %d", index("wan0"), index("old0"))
	}
	second := h.veth("wan0x")
	h.ip("link set wan0x down")
	h.ip("link set wan0x name wan0")
	if index("wan0") != second {
		t.Errorf("wan0 is %d, want %d", index("wan0"), second)
	}
	h.ip("link del wan0")
	if index("wan0") != 0 {
		t.Error("wan0 is still there")
	}
	h.ip("link del old0")
	third := h.veth("wan0")
	if index("wan0") != third {
		t.Errorf("wan0 is %d, want %d", index("wan0"), third)
	}
	audit(t, m)
}

// TestDumpsThatAreGivenUp leaves the socket fit for the next question.
func TestDumpsThatAreGivenUp(t *testing.T) {
	h := newHost(t)
	wan := h.veth("wan0")
	far := h.veth("bgp0")
	h.address("wan0", "192.0.2.10/24")
	h.address("bgp0", "198.51.100.10/24")
	for i := range 3000 {
		h.ipBatch(fmt.Sprintf("route add 10.%d.%d.0/24 via 198.51.100.1", i/250, i%250))
	}
	h.flushBatch()
	m, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(name string) bool { return name == "wan0" }})
	must(t, err)
	defer func() { must(t, m.Close()) }()
	w := h.writer(m)
	h.apply(w, add(route(10003, "192.0.2.0/24", "", wan)), add(route(10099, "10.0.0.0/8", "", far)))
	h.ip("route add 10.0.0.0/24 via 192.0.2.1 metric 5")
	h.ip("route add local 10.200.0.0/16 dev lo")
	m.SetBudget(100)
	for range 3 {
		must(t, m.Resync(t.Context()))
		audit(t, m)
	}
	if n := m.Slots(); n > 10 {
		t.Errorf("%d keys are kept", n)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Resync(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	m.View(func(s *kernel.State) {
		if s.Complete() {
			t.Error("a state that could not be read is complete")
		}
		if _, ok := s.Link(wan); !ok {
			t.Error("what was known is forgotten")
		}
	})
	must(t, m.Sync(t.Context()))
	audit(t, m)
}

// TestForeignRulesAreKeptWhole: attributes without a name here are echoed when
// the rule is deleted.
func TestForeignRulesAreKeptWhole(t *testing.T) {
	h := newHost(t)
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	for _, args := range []string{
		"from all fwmark 0x7/0xff lookup 10001 priority 10000 protocol 150",
		"not from 10.0.0.0/8 lookup 10001 priority 10000 protocol 150",
		"from all tos 0x10 lookup 10001 priority 10000 protocol 150",
		"from all ipproto 6 dport 80 lookup 10001 priority 10000 protocol 150",
		"from all uidrange 0-99 lookup 10001 priority 10000 protocol 150",
		"from all goto 19000 priority 10000 protocol 150",
	} {
		plain := rule(10000, "", 10001)
		h.apply(w, addRule(plain))
		h.ip("rule add " + args)
		must(t, m.Drain())
		audit(t, m)
		m.View(func(s *kernel.State) {
			rules := s.RuleOrder(routing.IPv4, 10000)
			if len(rules) != 2 || rules[1] == plain || rules[1].Unknown || rules[0] != plain {
				t.Fatalf("%s: %v", args, rules)
			}
			plain = rules[1]
		})
		h.apply(w, dropRule(plain))
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if rules := s.RuleOrder(routing.IPv4, 10000); len(rules) != 1 || rules[0] != rule(10000, "", 10001) {
				t.Errorf("%s: after the deletion %v", args, rules)
			}
		})
		h.apply(w, dropRule(rule(10000, "", 10001)))
	}
}

// TestInterruptedDumps reads a list that changes while it is read: the kernel
// says so, and the list is read again.
func TestInterruptedDumps(t *testing.T) {
	const addresses = 2000
	h := newHost(t)
	address := func(kind uint16, b2, b3 byte) error {
		return h.raw.Do(kind, unix.NLM_F_CREATE, func(b kernel.Body) {
			b.Bytes(unix.AF_INET, 32, 0, 0)
			b.Word(1)
			b.Attribute(unix.IFA_LOCAL, []byte{10, 0, b2, b3})
		})
	}
	for i := range addresses {
		must(t, address(unix.RTM_NEWADDR, byte(i/250), byte(i%250)))
	}
	lister, err := kernel.NewRequester()
	must(t, err)
	defer func() { must(t, lister.Close()) }()
	stop, ended := make(chan struct{}), make(chan struct{})
	var interrupted atomic.Int64
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			have, readings, err := lister.ListAddresses()
			interrupted.Add(int64(readings) - 1)
			if err != nil && !errors.Is(err, unix.EINTR) || err == nil && have < addresses {
				t.Errorf("%d addresses: %v", have, err)
				return
			}
		}
	}()
	for begin := time.Now(); time.Since(begin) < 2*time.Second || interrupted.Load() == 0; {
		must(t, address(unix.RTM_NEWADDR, 99, 1))
		must(t, address(unix.RTM_DELADDR, 99, 1))
		if time.Since(begin) > 30*time.Second {
			t.Error("no dump was interrupted")
			break
		}
	}
	close(stop)
	<-ended
}
