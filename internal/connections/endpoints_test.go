package connections_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"multihomed/internal/connections"
	"multihomed/internal/sockdiag"
	"multihomed/routing"
)

func address(prefix string, change ...func(*routing.Address)) routing.Address {
	a := routing.Address{Prefix: netip.MustParsePrefix(prefix)}
	for _, f := range change {
		f(&a)
	}
	return a
}

func endpoint(id uint8, a string, device int) connections.Endpoint {
	return connections.Endpoint{ID: id, Address: netip.MustParseAddr(a), Device: device}
}

var compare = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}

func TestWantedEndpoints(t *testing.T) {
	t.Parallel()
	many := connections.Uplink{Device: 3}
	for i := range 20 {
		many.Addresses = append(many.Addresses, address(fmt.Sprintf("198.51.100.%d/24", i+1)))
	}
	for name, c := range map[string]struct {
		uplinks []connections.Uplink
		want    []connections.Endpoint
	}{
		"nothing":                  {},
		"served by NetworkManager": {uplinks: []connections.Uplink{{Device: 2, Served: true, Addresses: []routing.Address{address("192.0.2.10/24")}}}},
		"both families": {
			uplinks: []connections.Uplink{{Device: 2, Addresses: []routing.Address{address("2001:db8::10/64"), address("192.168.1.10/24"), address("2001:db8::11/64")}}},
			want:    []connections.Endpoint{endpoint(0, "192.168.1.10", 2), endpoint(0, "2001:db8::10", 2), endpoint(0, "2001:db8::11", 2)},
		},
		"what is no source": {
			uplinks: []connections.Uplink{{Device: 2, Addresses: []routing.Address{
				address("169.254.1.1/16"), address("fe80::1/64"), address("fd00::1/64"), address("127.0.0.1/8"),
				address("192.0.2.1/24", func(a *routing.Address) { a.Scope = 200 }),
				address("2001:db8::1/64", func(a *routing.Address) { a.Temporary = true }),
				address("2001:db8::2/64", func(a *routing.Address) { a.Tentative = true }),
				address("2001:db8::3/64", func(a *routing.Address) { a.Deprecated = true }),
				address("2001:db8::4/64", func(a *routing.Address) { a.Failed = true }),
			}}},
		},
		"a link with many addresses": {
			uplinks: []connections.Uplink{many, {Device: 2, Addresses: []routing.Address{address("192.0.2.10/24")}}},
			want: []connections.Endpoint{
				endpoint(0, "192.0.2.10", 2), endpoint(0, "198.51.100.1", 3), endpoint(0, "198.51.100.2", 3), endpoint(0, "198.51.100.3", 3),
				endpoint(0, "198.51.100.4", 3), endpoint(0, "198.51.100.5", 3), endpoint(0, "198.51.100.6", 3), endpoint(0, "198.51.100.7", 3),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, connections.WantedEndpoints(c.uplinks), compare); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlanEndpoints(t *testing.T) {
	t.Parallel()
	type list = []connections.Endpoint
	var full list
	for i := range 7 {
		full = append(full, endpoint(uint8(i+1), fmt.Sprintf("10.0.0.%d", i+1), 9))
	}
	for name, c := range map[string]struct {
		kernel, noted, wanted list
		add, remove, keep     list
	}{
		"nothing":            {},
		"the first":          {wanted: list{endpoint(0, "192.0.2.10", 2)}, add: list{endpoint(255, "192.0.2.10", 2)}},
		"all stands":         {kernel: list{endpoint(255, "192.0.2.10", 2)}, noted: list{endpoint(255, "192.0.2.10", 2)}, wanted: list{endpoint(0, "192.0.2.10", 2)}, keep: list{endpoint(255, "192.0.2.10", 2)}},
		"the address moved":  {kernel: list{endpoint(255, "192.0.2.10", 2)}, noted: list{endpoint(255, "192.0.2.10", 2)}, wanted: list{endpoint(0, "192.0.2.10", 3)}, add: list{endpoint(254, "192.0.2.10", 3)}, remove: list{endpoint(255, "192.0.2.10", 2)}},
		"somebody serves it": {kernel: list{endpoint(1, "192.0.2.10", 0)}, wanted: list{endpoint(0, "192.0.2.10", 2)}},
		"somebody has our number now": {
			kernel: list{endpoint(255, "10.0.0.1", 9)}, noted: list{endpoint(255, "192.0.2.10", 2)}, wanted: list{endpoint(0, "192.0.2.10", 2)},
			add: list{endpoint(254, "192.0.2.10", 2)},
		},
		"somebody flushed ours": {noted: list{endpoint(255, "192.0.2.10", 2)}, wanted: list{endpoint(0, "192.0.2.10", 2)}, add: list{endpoint(255, "192.0.2.10", 2)}},
		"nothing is wanted":     {kernel: list{endpoint(1, "10.0.0.1", 9), endpoint(255, "192.0.2.10", 2)}, noted: list{endpoint(255, "192.0.2.10", 2)}, remove: list{endpoint(255, "192.0.2.10", 2)}},
		"others leave one place": {
			kernel: full, wanted: list{endpoint(0, "192.0.2.10", 2), endpoint(0, "198.51.100.10", 3)}, add: list{endpoint(255, "192.0.2.10", 2)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			add, remove, keep := connections.PlanEndpoints(c.kernel, c.noted, c.wanted)
			for what, pair := range map[string][2]list{"add": {c.add, add}, "remove": {c.remove, remove}, "keep": {c.keep, keep}} {
				if diff := cmp.Diff(pair[0], pair[1], compare); diff != "" {
					t.Errorf("%s: %s", what, diff)
				}
			}
		})
	}
}

// shown are the kernel's endpoints as ip(8) writes them.
func (w *world) shown() (out []string) {
	w.Helper()
	text, err := exec.CommandContext(w.Context(), "ip", "mptcp", "endpoint", "show").Output()
	must(w, err)
	for line := range strings.Lines(string(text)) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(out)
	return out
}

// TestFollow: endpoints come, stay, move and go; those of others stay, and limits are not touched.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	e := connections.Endpoints{Directory: t.TempDir()}
	w.sysctl("net/mptcp/enabled", "1")
	w.ip("mptcp endpoint add 172.17.0.1 dev ctr id 3 signal")
	limits, err := exec.CommandContext(t.Context(), "ip", "mptcp", "limits", "show").Output()
	must(t, err)
	index := func(name string) int {
		link, err := net.InterfaceByName(name)
		must(t, err)
		return link.Index
	}
	one := connections.Endpoint{Address: netip.MustParseAddr("192.0.2.10"), Device: index("wan0")}
	two := connections.Endpoint{Address: netip.MustParseAddr("2001:db8:b::10"), Device: index("wan1")}
	const theirs = "172.17.0.1 id 3 signal dev ctr"
	for n, step := range []struct {
		do             func()
		wanted         []connections.Endpoint
		added, removed int
		shown          []string
	}{
		{nil, []connections.Endpoint{one, two}, 2, 0, []string{theirs, "192.0.2.10 id 255 subflow dev wan0", "2001:db8:b::10 id 254 subflow dev wan1"}},
		{nil, []connections.Endpoint{one, two}, 0, 0, []string{theirs, "192.0.2.10 id 255 subflow dev wan0", "2001:db8:b::10 id 254 subflow dev wan1"}},
		{nil, []connections.Endpoint{two}, 0, 1, []string{theirs, "2001:db8:b::10 id 254 subflow dev wan1"}},
		{func() { w.ip("mptcp endpoint delete id 254") }, []connections.Endpoint{one, two}, 2, 0, []string{theirs, "192.0.2.10 id 255 subflow dev wan0", "2001:db8:b::10 id 254 subflow dev wan1"}},
		{func() { w.ip("mptcp endpoint change id 255 backup") }, []connections.Endpoint{one}, 0, 1, []string{theirs, "192.0.2.10 id 255 subflow backup dev wan0"}},
		{func() { w.sysctl("net/mptcp/enabled", "0") }, []connections.Endpoint{one}, 0, 1, []string{theirs}},
		{nil, []connections.Endpoint{one}, 0, 0, []string{theirs}},
		{func() { w.sysctl("net/mptcp/enabled", "1") }, []connections.Endpoint{one, two}, 2, 0, []string{theirs, "192.0.2.10 id 255 subflow dev wan0", "2001:db8:b::10 id 254 subflow dev wan1"}},
	} {
		if step.do != nil {
			step.do()
		}
		added, removed, err := e.Follow(t.Context(), step.wanted)
		must(t, err)
		if shown := w.shown(); added != step.added || removed != step.removed || !slices.Equal(shown, step.shown) {
			t.Fatalf("step %d: %d added, %d removed:\n%s", n, added, removed, strings.Join(shown, "\n"))
		}
	}
	left, err := e.Left(t.Context(), two.Device)
	must(t, err)
	if len(left) != 1 || left[0].Address != two.Address {
		t.Errorf("left: %v", left)
	}
	for _, step := range []struct{ device, removed, left int }{{99, 0, 3}, {two.Device, 1, 2}, {0, 1, 1}, {0, 0, 1}} {
		removed, err := e.Remove(t.Context(), step.device)
		must(t, err)
		if removed != step.removed || len(w.shown()) != step.left {
			t.Errorf("removing %d: %d removed, left: %v", step.device, removed, w.shown())
		}
	}
	if _, err := os.Stat(filepath.Join(e.Directory, connections.EndpointsFile)); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
	after, err := exec.CommandContext(t.Context(), "ip", "mptcp", "limits", "show").Output()
	must(t, err)
	if string(after) != string(limits) {
		t.Errorf("limits: %s before, %s after", limits, after)
	}
	// A damaged file forgets, and breaks nothing.
	must(t, os.WriteFile(filepath.Join(e.Directory, connections.EndpointsFile), []byte(`[{"id":`), 0o600))
	if removed, err := e.Remove(t.Context(), 0); removed != 0 || err != nil {
		t.Errorf("of a damaged file: %d, %v", removed, err)
	}
}

// TestMultipath: a connection with a subflow by each link goes on when one is dead: its subflow is not
// closed, and what is written arrives. A connection that has no other subflow is closed.
func TestMultipath(t *testing.T) {
	w := newWorld(t)
	w.sysctl("net/mptcp/enabled", "1")
	sockets := openSockets(t)
	// Both providers lead to one host.
	w.in(w.wan1, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "between"}, PeerName: "between", PeerNamespace: netlink.NsFd(w.wan0)}))
		w.ip("addr del 203.0.113.1/32 dev lo", "addr add 10.1.1.1/30 dev between", "link set between up", "route add 203.0.113.1 via 10.1.1.2", "route add blackhole 203.0.113.2")
		w.sysctl("net/ipv4/ip_forward", "1")
	})
	w.in(w.wan0, func() {
		w.ip("addr add 203.0.113.2/32 dev lo", "addr add 10.1.1.2/30 dev between", "link set between up", "route add 198.51.100.0/24 via 10.1.1.1")
	})
	w.mptcp = true
	internet := w.serve(w.wan0, "203.0.113.1:0")
	alone := w.dial("192.0.2.10", w.serve(w.wan0, "203.0.113.2:0"))
	e := connections.Endpoints{Directory: t.TempDir()}
	second, err := net.InterfaceByName("wan1")
	must(t, err)
	_, _, err = e.Follow(t.Context(), []connections.Endpoint{{Address: netip.MustParseAddr("198.51.100.10"), Device: second.Index}})
	must(t, err)
	both := w.dial("192.0.2.10", internet)

	diag, err := sockdiag.Open()
	must(t, err)
	defer func() { must(t, diag.Close()) }()
	w.await(func() bool {
		must(t, speak(both))
		n := 0
		must(t, diag.Dump(t.Context(), sockdiag.Query{
			Sources: []netip.Addr{netip.MustParseAddr("198.51.100.10")}, States: sockdiag.Set(sockdiag.Established),
		}, func(s *sockdiag.Socket) bool {
			if s.MPTCP && s.Destination == internet {
				n++
			}
			return true
		}))
		return n == 1
	}, "a subflow leaves by wan1")

	w.in(w.wan0, func() {
		w.nft("table ip t {\nchain i {\ntype filter hook input priority 0\niifname peer drop\n}\n}\n")
	})
	d := w.dead(time.Now())
	d.For = 0
	closed, err := sockets.Close(t.Context(), d)
	must(t, err)
	if closed[connections.Close] != 1 || closed[connections.Multipath] != 1 {
		t.Errorf("%d closed, %d left to Multipath TCP: %v", closed[connections.Close], closed[connections.Multipath], closed)
	}
	for range 10 {
		if err := speak(both); err != nil {
			t.Fatalf("by the other link: %v", err)
		}
	}
	n := 0
	must(t, diag.Dump(t.Context(), sockdiag.Query{Sources: d.Sources}, func(s *sockdiag.Socket) bool {
		if s.Source.Port() == local(alone).Port() {
			t.Errorf("a subflow of a connection that has no other is left: %+v", s)
		}
		n++
		return true
	}))
	if n != 1 {
		t.Errorf("%d subflows are left at the dead link, want that of the connection that goes on", n)
	}
}

func local(c net.Conn) netip.AddrPort {
	return c.LocalAddr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of TCP
}
