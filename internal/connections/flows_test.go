package connections_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/connections"
)

// flows are the entries of the host, as "source > destination, answers to address".
func (w *world) flows() (out []string) {
	w.Helper()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		must(w, err)
		for _, e := range entries {
			from := net.TCPAddr{IP: e.Forward.SrcIP, Port: int(e.Forward.SrcPort)}
			out = append(out, fmt.Sprintf("%s > %s, answers to %s", &from, e.Forward.DstIP, e.Reverse.DstIP))
		}
	}
	slices.Sort(out)
	return out
}

func flowOf(c net.Conn, answersTo string) string {
	from, to := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of TCP
	return fmt.Sprintf("%s > %s, answers to %s", from, to.Addr(), answersTo)
}

// TestDelete: exactly the translated connections of a dead link's address go. `snat to` in a zone,
// masquerade and IPv6 are translated; the host's own connection and one of the other link's stay.
// The same is true for a kernel that must be asked one by one.
func TestDelete(t *testing.T) {
	for name, flows := range map[string]*connections.Flows{"at once": {}, "one by one": connections.OneByOne()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.sysctl("net/ipv6/conf/all/forwarding", "1")
			w.ip("rule add iif ctr ipproto tcp dport 9001 lookup 10001 pref 50")
			w.nft(`table inet t {
				chain pre {
					type filter hook prerouting priority raw
					tcp dport 9002 ct zone set 5
					tcp sport 9002 ct zone set 5
				}
				chain nat {
					type nat hook postrouting priority srcnat
					oifname wan0 ip daddr 203.0.113.1 tcp dport 9000 masquerade
					oifname wan0 ip daddr 203.0.113.1 tcp dport 9002 snat ip to 192.0.2.10
					oifname wan1 ip daddr 203.0.113.1 snat ip to 198.51.100.10
					oifname wan0 ip6 daddr 2001:db8:f::1 snat ip6 to 2001:db8:a::10
					oifname wan0 ip6 daddr 2001:db8:a::1 snat ip6 to 2001:db8:a::11
				}
			}`)
			first, zone := w.serve(w.wan0, "203.0.113.1:9000"), w.serve(w.wan0, "203.0.113.1:9002")
			plain := w.serve(w.wan0, "203.0.113.1:9003")
			second, six := w.serve(w.wan1, "203.0.113.1:9001"), w.serve(w.wan0, "[2001:db8:f::1]:9000")
			w.ip("addr add 2001:db8:a::11/64 dev wan0 nodad")
			router := w.serve(w.wan0, "[2001:db8:a::1]:0")
			var gone, stay []string
			stay = append(stay, flowOf(w.dial("192.0.2.10", first), "192.0.2.10"))
			w.in(w.container, func() {
				gone = append(gone, flowOf(w.dial("172.17.0.2", first), "192.0.2.10"), flowOf(w.dial("172.17.0.2", zone), "192.0.2.10"),
					flowOf(w.dial("fd00:17::2", six), "2001:db8:a::10"))
				stay = append(stay, flowOf(w.dial("172.17.0.2", second), "198.51.100.10"), flowOf(w.dial("172.17.0.2", plain), "172.17.0.2"),
					flowOf(w.dial("fd00:17::2", router), "2001:db8:a::11"))
			})
			before := w.flows()
			for _, f := range slices.Concat(gone, stay) {
				if !slices.Contains(before, f) {
					t.Fatalf("no entry %s in:\n%s", f, strings.Join(before, "\n"))
				}
			}
			n, err := flows.Delete(t.Context(), netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:a::10"), netip.MustParseAddr("192.0.2.99"))
			must(t, err)
			want := slices.DeleteFunc(slices.Clone(before), func(f string) bool { return slices.Contains(gone, f) })
			if after := w.flows(); n != len(gone) || !slices.Equal(after, want) {
				t.Errorf("deleted %d, left:\n%s\nwant:\n%s", n, strings.Join(after, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestDeleteStrays: of the flows with the address of a link, those go whose packets leave by another
// link now; what a rule keeps on it stays.
func TestDeleteStrays(t *testing.T) {
	w := newWorld(t)
	w.ip("rule add iif ctr ipproto tcp dport 9001 lookup 10001 pref 50")
	w.ip("rule add iif ctr ipproto tcp dport 9002 lookup 10001 pref 51")
	w.nft(`table ip t {
		chain nat {
			type nat hook postrouting priority srcnat
			oifname wan1 ip daddr 203.0.113.1 snat ip to 198.51.100.10
		}
	}`)
	kept, strays := w.serve(w.wan1, "203.0.113.1:9001"), w.serve(w.wan1, "203.0.113.1:9002")
	var gone, stay string
	w.in(w.container, func() {
		stay, gone = flowOf(w.dial("172.17.0.2", kept), "198.51.100.10"), flowOf(w.dial("172.17.0.2", strays), "198.51.100.10")
	})
	device, err := net.InterfaceByName("wan1")
	must(t, err)
	var flows connections.Flows
	address := netip.MustParseAddr("198.51.100.10")
	if n, err := flows.DeleteStrays(t.Context(), device.Index, address); n != 0 || err != nil {
		t.Errorf("before the switch: %d, %v", n, err)
	}
	w.ip("rule del pref 51")
	if n, err := flows.DeleteStrays(t.Context(), device.Index, address); n != 1 || err != nil {
		t.Errorf("after the switch: %d, %v", n, err)
	}
	if all := w.flows(); !slices.Contains(all, stay) || slices.Contains(all, gone) {
		t.Errorf("left:\n%s", strings.Join(all, "\n"))
	}
}

// TestDeleteClients: of the flows with the address of a link, those of some clients go.
func TestDeleteClients(t *testing.T) {
	w := newWorld(t)
	w.nft(`table ip t {
		chain nat {
			type nat hook postrouting priority srcnat
			oifname wan0 ip saddr { 172.17.0.2, 10.9.9.9 } snat ip to 192.0.2.10
		}
	}`)
	const others = 3
	w.ip("addr add 10.9.9.9/32 dev lo")
	w.fill(others)
	server := w.serve(w.wan0, "203.0.113.1:9000")
	var gone string
	w.in(w.container, func() { gone = flowOf(w.dial("172.17.0.2", server), "192.0.2.10") })
	device, err := net.InterfaceByName("ctr")
	must(t, err)
	before := w.flows()
	if !slices.Contains(before, gone) {
		t.Fatalf("no entry %s in:\n%s", gone, strings.Join(before, "\n"))
	}
	var flows connections.Flows
	n, err := flows.DeleteClients(t.Context(), func(client netip.Addr, behind int) bool {
		return client == netip.MustParseAddr("172.17.0.2") && behind == device.Index
	}, netip.MustParseAddr("192.0.2.10"))
	if after := w.flows(); n != 1 || err != nil || len(after) != len(before)-1 || slices.Contains(after, gone) {
		t.Errorf("deleted %d, %v, left:\n%s", n, err, strings.Join(after, "\n"))
	}
}

// TestDeleteNothing: where no connection is tracked there is nothing to do.
func TestDeleteNothing(t *testing.T) {
	newWorld(t)
	var flows connections.Flows
	if n, err := flows.Delete(t.Context(), netip.MustParseAddr("192.0.2.10")); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestMayTranslate(t *testing.T) {
	t.Parallel()
	for modules, want := range map[string]bool{
		"":                          true, // Built in, or a kernel without modules.
		"veth 45056 0 - Live 0x0\n": true,
		"nf_conntrack 204800 1 nf_conntrack_netlink, Live 0x0\n":          false,
		"nf_nat 65536 2 nft_masq\nnf_conntrack 204800 1 nf_nat, Live 0\n": true,
	} {
		if got := connections.MayTranslate(modules); got != want {
			t.Errorf("%q: %v", modules, got)
		}
	}
}

// BenchmarkDelete is the cost of a switch on a busy gateway.
func BenchmarkDelete(b *testing.B) {
	for name, flows := range map[string]*connections.Flows{"at once": {}, "one by one": connections.OneByOne()} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			w.nft(`table ip t {
				chain nat {
					type nat hook postrouting priority srcnat
					ip saddr 10.0.0.0/8 oifname wan0 snat to 192.0.2.10
				}
			}`)
			w.ip("addr add 10.9.9.9/32 dev lo")
			const entries = 8500
			var spent time.Duration
			for b.Loop() {
				b.StopTimer()
				w.fill(entries)
				before := spentByThread(b)
				b.StartTimer()
				n, err := flows.Delete(context.Background(), netip.MustParseAddr("192.0.2.10"))
				b.StopTimer()
				spent += spentByThread(b) - before
				must(b, err)
				if n != entries {
					b.Fatalf("%d deleted", n)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// spentByThread is the processor time of the thread, whatever else runs on the machine.
func spentByThread(tb testing.TB) time.Duration {
	tb.Helper()
	var r unix.Rusage
	must(tb, unix.Getrusage(unix.RUSAGE_THREAD, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// fill makes translated entries with datagrams to many ports.
func (w *world) fill(entries int) {
	w.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(w, err)
	defer unix.Close(fd)
	must(w, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 9, 9}}))
	for port := range entries {
		must(w, unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 1}, Port: 1024 + port}))
	}
}
