package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
	"multihomed/test/lab"
)

// openReader opens a reader in the namespace of this thread.
func openReader(tb testing.TB) *kernel.Reader {
	tb.Helper()
	r, err := kernel.OpenReader()
	must(tb, err)
	tb.Cleanup(func() { must(tb, r.Close()) })
	return r
}

// changing is a host on which somebody can let one packet take one way or the other.
type changing struct {
	*host
	rule  *netlink.Rule
	route *netlink.Route
}

func newChanging(t *testing.T) *changing {
	t.Helper()
	h := newHost(t)
	one := h.veth("one")
	h.veth("other")
	h.address("one", "192.0.2.10/24")
	h.address("other", "198.51.100.10/24")
	h.ip("route add default dev one table 100")
	h.ip("route add default dev other")
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Family = 100, 100, unix.AF_INET
	return &changing{host: h, rule: rule, route: &netlink.Route{
		Dst: &net.IPNet{IP: net.IPv4(203, 0, 113, 0), Mask: net.CIDRMask(24, 32)}, LinkIndex: one, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_LINK,
	}}
}

// change makes and unmakes the nth change.
func (c *changing) change(n int) error {
	switch n % 4 {
	case 0:
		return c.link.RuleAdd(c.rule)
	case 1:
		return c.link.RouteAdd(c.route)
	case 2:
		return c.link.RuleDel(c.rule)
	default:
		return c.link.RouteDel(c.route)
	}
}

// TestConsultWhileRulesChange: whatever changes while it is read, the answer is one that the host has had,
// and simulation and kernel have the same one.
func TestConsultWhileRulesChange(t *testing.T) {
	c := newChanging(t)
	r := openReader(t)
	const rounds = 400
	begin, ended := make(chan int), make(chan error)
	go func() {
		for n := range begin {
			ended <- c.change(n)
		}
	}()
	defer close(begin)
	flow := lookup.Flow{To: netip.MustParseAddr("203.0.113.7")}
	ways := map[string]int{}
	for n := range rounds {
		begin <- n // From here on it changes at any time.
		have, err := r.Consult(t.Context(), flow)
		must(t, <-ended)
		must(t, err)
		if have.Difference != "" || have.Again == nil || have.Again.Difference != "" {
			t.Fatalf("round %d: %q, again %+v", n, have.Difference, have.Again)
		}
		ways[have.Verdict.Rule.String()+" "+have.Verdict.Route.Destination.String()]++
	}
	if len(ways) < 3 {
		t.Errorf("only these answers: %v", ways)
	}
	t.Log(ways)
}

// TestReleases: what is known of a kernel by its release.
func TestReleases(t *testing.T) {
	t.Parallel()
	for release, want := range map[string][2]bool{
		"6.1.0-50-amd64": {true, true}, "6.12.117+deb13-amd64": {true, false}, "6.12.74": {true, true},
		"6.14.0-generic": {true, true}, "6.15.0": {false, true}, "6.18.44-x": {false, false}, "6.18.0": {false, true}, "6.19.3": {false, true},
		"7.1.2": {false, true}, "7.2.0": {false, false}, "7.2-rc1": {false, false}, "8.0": {false, false}, "": {}, "x": {}, "7": {},
	} {
		if got := [2]bool{kernel.IsBefore615(release), kernel.IsBefore72(release)}; got != want {
			t.Errorf("%q: before 6.15 and 7.2: %v, want %v", release, got, want)
		}
	}
}

// TestConsultUnsettled: where something changes each time, that is the answer.
func TestConsultUnsettled(t *testing.T) {
	c := newChanging(t)
	r := openReader(t)
	r.BeforeAsking(func() { must(t, c.change(0)); must(t, c.change(2)) })
	if have, err := r.Consult(t.Context(), lookup.Flow{To: netip.MustParseAddr("203.0.113.7")}); !errors.Is(err, kernel.ErrUnsettled) {
		t.Errorf("%+v, %v", have, err)
	}
	r.BeforeAsking(func() { c.ip("route add 10.9.0.0/16 dev one"); c.ip("route del 10.9.0.0/16") })
	if _, err := r.Consult(t.Context(), lookup.Flow{To: netip.MustParseAddr("203.0.113.7")}); err != nil {
		t.Errorf("a change of another destination: %v", err)
	}
}

// TestConsultFacts: what is read of a host: a VRF is for test/vm.
func TestConsultFacts(t *testing.T) {
	c := newChanging(t)
	c.sysctl("ipv4/conf/one/rp_filter", "2")
	c.sysctl("ipv4/conf/other/forwarding", "1")
	c.sysctl("ipv4/conf/other/ignore_routes_with_linkdown", "1")
	c.down("p-other")
	r := openReader(t)
	var facts *lookup.Facts
	ctx, cancel := lab.Within(t.Context(), 10*time.Second)
	defer cancel()
	must(t, lab.Eventually(ctx, func() (err error) { // The kernel notes a lost carrier some time later.
		facts, err = r.Facts(ctx, routing.IPv4, netip.MustParseAddr("203.0.113.7"))
		if err != nil {
			return err
		}
		if main := facts.Tables[routing.TableMain]; len(main) != 1 || !main[0].Dead {
			return fmt.Errorf("main: %+v", main)
		}
		return nil
	}))
	if !facts.Unruled() {
		t.Errorf("rules: %v", facts.Rules)
	}
	found := map[string]lookup.Interface{}
	for _, i := range facts.Interfaces {
		found[i.Name] = i
	}
	one, other := found["one"], found["other"]
	if one.Config.ReversePath != 2 || one.Config.Forwards.In(routing.IPv4) || !one.Config.Addressed || one.NoCarrier || !one.Up {
		t.Errorf("%+v", one)
	}
	if !other.Config.Forwards.In(routing.IPv4) || !other.Config.IgnoreLinkDown.In(routing.IPv4) || !other.NoCarrier {
		t.Errorf("%+v", other)
	}
	if main := facts.Tables[routing.TableMain]; main[0].Route.Device != other.Index {
		t.Errorf("main: %+v", main)
	}
	if v := facts.Host().Lookup(lookup.Flow{To: netip.MustParseAddr("203.0.113.7")}); v.Outcome != lookup.NoRoute {
		t.Errorf("by a dead route: %+v", v)
	}
	// Only what contains the destination.
	if len(facts.Tables[routing.TableLocal]) != 0 {
		t.Errorf("local: %+v", facts.Tables[routing.TableLocal])
	}
	for _, f := range []lookup.Flow{
		{To: netip.MustParseAddr("203.0.113.7"), IPProto: unix.IPPROTO_GRE}, {To: netip.MustParseAddr("203.0.113.7"), TunnelID: 1},
	} {
		if _, err := r.Ask(t.Context(), facts.Interfaces, f); !errors.Is(err, kernel.ErrNoQuestion) {
			t.Errorf("%+v: %v", f, err)
		}
		if have, err := r.Consult(t.Context(), f); err != nil || have.Asked || have.Difference != "" {
			t.Errorf("%+v: %+v, %v", f, have, err)
		}
	}
	if a, err := r.Ask(t.Context(), facts.Interfaces, lookup.Flow{To: netip.MustParseAddr("203.0.113.7"), OIF: "none"}); err != nil || a.Unsent != lookup.NoDevice {
		t.Errorf("%+v, %v", a, err)
	}
}

// BenchmarkConsult is one question on a host with a million routes in main.
//
// MB is by how much the memory grew that the runtime has of the kernel.
func BenchmarkConsult(b *testing.B) {
	const routes = 1_000_000
	h := newHost(b)
	bgp := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(bgp, routes)
	h.enter()
	r := openReader(b)
	taken := func() uint64 {
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		return mem.Sys
	}
	before := taken()
	b.ReportAllocs()
	for b.Loop() {
		c, err := r.Consult(b.Context(), lookup.Flow{To: netip.MustParseAddr("32.1.1.1")})
		must(b, err)
		if c.Difference != "" || c.Verdict.Route.Destination.Bits() != 24 {
			b.Fatalf("%+v", c)
		}
	}
	b.ReportMetric(float64(taken()-before)/1e6, "MB")
}
