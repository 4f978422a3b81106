package answers_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	table "multihomed/internal/answers"
	"multihomed/routing"
	"multihomed/routing/answers"
)

// A host has two providers and a container, each in a network namespace, and rules 9099-9101 and 10000 as
// the daemon makes them. The ports 8080 of its addresses are the container's; port 8081 is that of a
// server in wan0's network. Main's default goes by wan0.
//
//	wan0 192.0.2.10, 2001:db8:a::10      provider .1, ::1
//	wan1 198.51.100.10, 2001:db8:b::10   provider .1, ::1
//	ctr  172.17.0.1, fd00:17::1          container .2, ::2
//
// Each provider has 203.0.113.1 and 2001:db8:f::1, and the second one 203.0.113.2.
type host struct {
	*world
	self, wan0, wan1, container netns.NsHandle
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func newHost(tb testing.TB) *host {
	tb.Helper()
	h := &host{world: newWorld(tb)}
	var err error
	h.self, err = netns.Get()
	h.must(err)
	for _, ns := range []*netns.NsHandle{&h.wan0, &h.wan1, &h.container} {
		*ns, err = netns.New()
		h.must(err)
		tb.Cleanup(func() { h.must(ns.Close()) })
	}
	// Nothing waits for duplicate address detection.
	for _, ns := range []netns.NsHandle{h.wan0, h.wan1, h.container, h.self} {
		h.in(ns, func() {
			h.sysctl("ipv6/conf/default/accept_dad", "0")
			h.sysctl("ipv6/conf/default/dad_transmits", "0")
		})
	}
	h.must(netns.Set(h.self))
	tb.Cleanup(func() { h.must(h.self.Close()) })
	h.ip("link set lo up")
	for _, side := range []struct {
		name, near, far, near6, far6 string
		ns                           netns.NsHandle
		there                        []string
	}{
		{"wan0", "192.0.2.10/24", "192.0.2.1/24", "2001:db8:a::10/64", "2001:db8:a::1/64", h.wan0, []string{"addr add 203.0.113.1/32 dev lo", "addr add 2001:db8:f::1/128 dev lo nodad", "route add 203.0.113.2/32 via 192.0.2.10"}},
		{"wan1", "198.51.100.10/24", "198.51.100.1/24", "2001:db8:b::10/64", "2001:db8:b::1/64", h.wan1, []string{"addr add 203.0.113.1/32 dev lo", "addr add 203.0.113.2/32 dev lo", "addr add 2001:db8:f::1/128 dev lo nodad"}},
		{"ctr", "172.17.0.1/24", "172.17.0.2/24", "fd00:17::1/64", "fd00:17::2/64", h.container, []string{"route add default via 172.17.0.1", "route add default via fd00:17::1"}},
	} {
		h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: side.name}, PeerName: "peer", PeerNamespace: netlink.NsFd(side.ns)}))
		h.ip("addr add "+side.near+" dev "+side.name, "addr add "+side.near6+" dev "+side.name+" nodad", "link set "+side.name+" up")
		h.in(side.ns, func() {
			h.ip(append([]string{"link set lo up", "addr add " + side.far + " dev peer", "addr add " + side.far6 + " dev peer nodad", "link set peer up"}, side.there...)...)
		})
	}
	h.in(h.wan0, func() { h.count("198.51.100.10", "2001:db8:b::10") })
	h.in(h.wan1, func() { h.count("192.0.2.10", "2001:db8:a::10") })
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		h.sysctl(s, "1")
	}
	h.ip("link set wan0 group 28008", "link set wan1 group 28008",
		"route add default via 192.0.2.1 metric 100", "route add default via 198.51.100.1 metric 101",
		"route add default via 2001:db8:a::1 metric 100", "route add default via 2001:db8:b::1 metric 101",
		"route add default via 192.0.2.1 table 10000", "route add 192.0.2.0/24 dev wan0 table 10000",
		"route add default via 198.51.100.1 table 10001", "route add 198.51.100.0/24 dev wan1 table 10001",
		"route add default via 2001:db8:a::1 table 10000", "route add default via 2001:db8:b::1 table 10001")
	for _, f := range []string{"", "-6 "} {
		h.ip(f+"rule add pref 9099 not fwmark 0/0xff000000 lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
			f+"rule add pref 9100 fwmark 0x01000000/0xff000000 lookup 10000", f+"rule add pref 9100 fwmark 0x02000000/0xff000000 lookup 10001",
			f+"rule add pref 9101 not fwmark 0/0xff000000 unreachable")
	}
	h.ip("rule add pref 10000 from 192.0.2.10 lookup 10000", "rule add pref 10000 from 198.51.100.10 lookup 10001",
		"-6 rule add pref 10000 from 2001:db8:a::10 lookup 10000", "-6 rule add pref 10000 from 2001:db8:b::10 lookup 10001")
	h.nft(`
table ip nat {
	chain pre {
		type nat hook prerouting priority dstnat
		iifname "wan*" meta l4proto { tcp, udp } th dport 8080 dnat to 172.17.0.2:7
		iifname "wan*" tcp dport 8081 dnat to 192.0.2.1:7
	}
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 172.17.0.0/24 oifname "wan*" masquerade
	}
}
table ip6 nat {
	chain pre {
		type nat hook prerouting priority dstnat
		iifname "wan*" meta l4proto { tcp, udp } th dport 8080 dnat to [fd00:17::2]:7
	}
}
`)
	return h
}

// in calls f with the thread in another namespace.
func (h *host) in(ns netns.NsHandle, f func()) {
	h.Helper()
	h.must(netns.Set(ns))
	defer func() { h.must(netns.Set(h.self)) }()
	f()
}

// ip runs commands of ip(8), with "-6 " before those of IPv6 that do not show their family: rules.
func (h *host) ip(lines ...string) {
	h.Helper()
	for _, flag := range []string{"", "-6 "} {
		args, batch := []string{"-batch", "-"}, ""
		for _, l := range lines {
			if strings.HasPrefix(l, "-6 ") == (flag != "") {
				batch += strings.TrimPrefix(l, flag) + "\n"
			}
		}
		if flag != "" {
			args = append([]string{"-6"}, args...)
		}
		if batch == "" {
			continue
		}
		cmd := exec.CommandContext(h.Context(), "ip", args...)
		cmd.Stdin = strings.NewReader(batch)
		if out, err := cmd.CombinedOutput(); err != nil {
			h.Fatalf("ip: %v\n%s\n%s", err, batch, out)
		}
	}
}

func (h *host) sysctl(name, value string) {
	h.Helper()
	h.must(os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644))
}

// count counts what a provider gets with sources of the other link.
func (h *host) count(four, six string) {
	h.nft(`table inet strays { chain pre { type filter hook prerouting priority -300;
		ip saddr ` + four + ` counter
		ip6 saddr ` + six + ` counter
	} ; }`)
}

var counted = regexp.MustCompile(`counter packets ([0-9]+)`)

// noStrays wants no provider to have got a packet with a source of the other link.
func (h *host) noStrays() {
	h.Helper()
	for _, ns := range []netns.NsHandle{h.wan0, h.wan1} {
		h.in(ns, func() {
			out, err := exec.CommandContext(h.Context(), "nft", "list", "table", "inet", "strays").Output()
			h.must(err)
			counts := counted.FindAllStringSubmatch(string(out), -1)
			if len(counts) != 2 || counts[0][1] != "0" || counts[1][1] != "0" {
				h.Errorf("strays:\n%s", out)
			}
		})
	}
}

// serve echoes TCP and UDP at port 7 of a namespace.
func (h *host) serve(ns netns.NsHandle) {
	h.Helper()
	var listener net.Listener
	var packets net.PacketConn
	h.in(ns, func() {
		var err error
		var c net.ListenConfig
		listener, err = c.Listen(h.Context(), "tcp", ":7")
		h.must(err)
		packets, err = c.ListenPacket(h.Context(), "udp", ":7")
		h.must(err)
	})
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		var conns []net.Conn
		for {
			c, err := listener.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			go func() {
				b := make([]byte, 1)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 16)
		for {
			n, from, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(b[:n], from)
		}
	}()
	h.Cleanup(func() {
		_, _ = listener.Close(), packets.Close()
		<-done
		<-done
	})
}

// dial connects from an address of a namespace.
func (h *host) dial(ns netns.NsHandle, network, from, to string) net.Conn {
	h.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	local := netip.AddrPortFrom(netip.MustParseAddr(from), 0)
	d.LocalAddr = net.TCPAddrFromAddrPort(local)
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	var c net.Conn
	h.in(ns, func() {
		var err error
		c, err = d.DialContext(h.Context(), network, to)
		if err != nil {
			h.Fatalf("from %s: %v", from, err)
		}
	})
	h.Cleanup(func() { _ = c.Close() })
	return c
}

// speak sends a byte until it comes back: a packet of UDP may be lost while neighbours are looked for.
func (h *host) speak(c net.Conn) {
	h.Helper()
	var err error
	for range 20 {
		h.must(c.SetDeadline(time.Now().Add(time.Second)))
		if _, err = c.Write([]byte("x")); err == nil {
			if _, err = c.Read(make([]byte, 1)); err == nil {
				return
			}
		}
	}
	h.Fatalf("no answer from %s: %v", c.RemoteAddr(), err)
}

func hostFacts(check answers.SourceCheck) answers.Facts {
	of := func(name string, number uint8, addresses ...string) answers.Link {
		l := answers.Link{Name: name, Check: check}
		for _, a := range addresses {
			l.Sources = append(l.Sources, answers.Source{Address: netip.MustParseAddr(a), Number: number})
		}
		return l
	}
	return answers.Facts{
		Group: 28008, Answers: routing.ByFamily[bool]{true, true}, Fence: routing.ByFamily[bool]{true, true},
		Links: []answers.Link{of("wan0", 1, "192.0.2.10", "2001:db8:a::10"), of("wan1", 2, "198.51.100.10", "2001:db8:b::10")},
	}
}

// TestPublished: a published port is answered on the link that was asked, also by a server behind the other
// uplink.
func TestPublished(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.converge(planned(hostFacts(answers.CheckLoose)))
	h.serve(h.container)
	h.serve(h.wan0)
	for _, network := range []string{"tcp", "udp"} {
		h.speak(h.dial(h.wan0, network, "203.0.113.1", "192.0.2.10:8080"))
		h.speak(h.dial(h.wan1, network, "203.0.113.1", "198.51.100.10:8080"))
		h.speak(h.dial(h.wan0, network, "2001:db8:f::1", "[2001:db8:a::10]:8080"))
		h.speak(h.dial(h.wan1, network, "2001:db8:f::1", "[2001:db8:b::10]:8080"))
	}
	h.speak(h.dial(h.wan1, "tcp", "203.0.113.2", "198.51.100.10:8081"))
	h.noStrays()
}

// TestStrictFilters: a strict reverse path filter with src_valid_mark lets requests pass on the link that
// main does not prefer, and answers of the container as well.
func TestStrictFilters(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, name := range []string{"rp_filter", "src_valid_mark"} {
		h.sysctl("ipv4/conf/all/"+name, "1")
	}
	check, err := table.SourceCheck("wan1")
	h.must(err)
	h.converge(planned(hostFacts(check)))
	h.serve(h.container)
	for _, network := range []string{"tcp", "udp"} {
		h.speak(h.dial(h.wan0, network, "203.0.113.1", "192.0.2.10:8080"))
		h.speak(h.dial(h.wan1, network, "203.0.113.1", "198.51.100.10:8080"))
	}
	h.noStrays()
}

// TestMasquerade: a connection of a container stays on its link when unbound traffic moves.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.converge(planned(hostFacts(answers.CheckLoose)))
	h.serve(h.wan0)
	h.serve(h.wan1)
	first := h.dial(h.container, "tcp", "172.17.0.2", "203.0.113.1:7")
	h.speak(first)
	h.ip("route add default via 198.51.100.1 metric 1")
	h.speak(first)
	second := h.dial(h.container, "tcp", "172.17.0.2", "203.0.113.1:7")
	h.speak(second)
	h.ip("route del default via 198.51.100.1 metric 1")
	h.speak(first)
	h.speak(second)
	h.noStrays()
}

// TestFence: what a socket sends by an uplink with the address of the other one is dropped and counted.
func TestFence(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.converge(planned(hostFacts(answers.CheckLoose)))
	for _, c := range []struct{ network, device, from, to string }{
		{"udp4", "wan1", "192.0.2.10:0", "203.0.113.1:7"},
		{"udp6", "wan1", "[2001:db8:a::10]:0", "[2001:db8:f::1]:7"},
	} {
		// Every try is a packet or an error.
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			return raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), c.device) })
		}}
		socket, err := config.ListenPacket(context.Background(), c.network, c.from)
		h.must(err)
		_, _ = socket.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.to)))
		h.must(socket.Close())
	}
	h.noStrays()
	held := h.held()
	var dropped uint64
	for _, r := range held.Rules {
		if r.Rule.Decision == answers.DropStray {
			dropped += r.Packets
		}
	}
	if dropped == 0 {
		t.Errorf("nothing was dropped: %+v", held.Rules)
	}
}
