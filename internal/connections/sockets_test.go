package connections_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/connections"
	"multihomed/internal/sockdiag"
)

func controlled(control []func(int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var fault error
		err := raw.Control(func(fd uintptr) {
			for _, f := range control {
				fault = errors.Join(fault, f(int(fd)))
			}
		})
		return errors.Join(err, fault)
	}
}

func openSockets(tb testing.TB) *connections.Sockets {
	tb.Helper()
	s, err := connections.OpenSockets()
	must(tb, err)
	tb.Cleanup(func() { must(tb, s.Shut()) })
	return s
}

// dead is wan0 as the failover knows it.
func (w *world) dead(since time.Time) connections.Dead {
	link, err := net.InterfaceByName("wan0")
	must(w, err)
	d := *wan0()
	d.Device, d.For = link.Index, time.Since(since)
	return d
}

// TestClose: what hangs on the dead link is closed and its owner is told; all else goes on.
func TestClose(t *testing.T) {
	w := newWorld(t)
	sockets := openSockets(t)
	internet, six := w.serve(w.wan0, "203.0.113.1:0"), w.serve(w.wan0, "[2001:db8:f::1]:0")
	second := w.serve(w.wan1, "203.0.113.1:0")
	neighbour, container := w.serve(w.wan0, "192.0.2.1:0"), w.serve(w.container, "172.17.0.2:0")
	self := w.serve(w.host, "192.0.2.10:0")

	hang := map[string]*net.TCPConn{
		"IPv4": w.dial("192.0.2.10", internet),
		"IPv6": w.dial("2001:db8:a::10", six),
	}
	stay := map[string]*net.TCPConn{
		"by the other link": w.dial("198.51.100.10", second),
		"to a neighbour":    w.dial("192.0.2.10", neighbour),
		"to a container":    w.dial("192.0.2.10", container),
		"to the host":       w.dial("192.0.2.10", self),
		"bound to a device": w.dial("192.0.2.10", internet, func(fd int) error { return unix.BindToDevice(fd, "wan0") }),
		"a rule of the administrator's": func() *net.TCPConn {
			w.ip("rule add fwmark 7 lookup 77 pref 100", "route add default via 172.17.0.2 table 77")
			w.in(w.container, func() { w.ip("addr add 203.0.113.1/32 dev lo") })
			return w.dial("192.0.2.10", w.serve(w.container, "203.0.113.1:0"), func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 7) })
		}(),
	}
	heard := w.dial("192.0.2.10", internet)
	udp, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IP{192, 0, 2, 10}}, net.UDPAddrFromAddrPort(internet))
	must(t, err)
	t.Cleanup(func() { _ = udp.Close() })
	// A connection that nobody answers.
	connecting := make(chan error, 1)
	w.in(w.wan0, func() { w.ip("route add blackhole 203.0.113.9") })
	file := w.socket(unix.AF_INET)
	must(t, unix.Bind(file, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 10}}))
	go func() { connecting <- unix.Connect(file, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 9}, Port: 9}) }()
	told := map[string]chan error{}
	for name, c := range hang {
		answer := make(chan error, 1)
		told[name] = answer
		go func() {
			_, err := c.Read(make([]byte, 1))
			answer <- err
		}()
	}

	diag, err := sockdiag.Open()
	must(t, err)
	defer func() { must(t, diag.Close()) }()
	w.await(func() bool {
		must(t, speak(heard))
		quiet, asking := 0, 0
		must(t, diag.Dump(t.Context(), sockdiag.Query{Sources: wan0().Sources}, func(s *sockdiag.Socket) bool {
			if s.LastAckRecv > 100*time.Millisecond {
				quiet++
			}
			if s.State == sockdiag.SynSent {
				asking++
			}
			return true
		}))
		// Of the connection to the host itself both ends have the address.
		return quiet == len(hang)+len(stay) && asking == 1
	}, "all but one connection is quiet")
	death := time.Now()
	// Whoever compares the two may be held up between the reading of the clock and that of the sockets.
	w.await(func() bool { must(t, speak(heard)); return time.Since(death) > time.Second }, "one is heard long after the death")

	closed, err := sockets.Close(t.Context(), w.dead(death))
	must(t, err)
	for name := range hang {
		if err := <-told[name]; !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: its owner was told: %v", name, err)
		}
	}
	if err := <-connecting; !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("connecting: its owner was told: %v", err)
	}
	if closed[connections.Close] != 3 || closed[connections.Heard] != 1 || closed[connections.Bound] != 1 {
		t.Errorf("closed %d, heard %d, bound %d: %v", closed[connections.Close], closed[connections.Heard], closed[connections.Bound], closed)
	}
	for name, c := range stay {
		if err := speak(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, speak(heard))
	if _, err := udp.Write([]byte("x")); err != nil {
		t.Errorf("UDP: %v", err)
	}
}

// socket is a TCP socket that waits in connect(2).
func (w *world) socket(family int) int {
	w.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(w, err)
	w.Cleanup(func() { must(w, unix.Close(fd)) })
	return fd
}

// TestCloseWithoutRoute: when the cable is out and the table is empty, or the address has gone, the
// packets of a connection have no way at all. A socket of AF_INET6 that speaks IPv4 is closed, too.
func TestCloseWithoutRoute(t *testing.T) {
	w := newWorld(t)
	sockets := openSockets(t)
	internet := w.serve(w.wan0, "203.0.113.1:0")
	w.dial("192.0.2.10", internet)
	mapped := w.socket(unix.AF_INET6)
	must(t, unix.Bind(mapped, &unix.SockaddrInet6{Addr: netip.MustParseAddr("::ffff:192.0.2.10").As16()}))
	must(t, unix.Connect(mapped, &unix.SockaddrInet6{Addr: netip.AddrFrom4(internet.Addr().As4()).As16(), Port: int(internet.Port())}))
	w.ip("route flush table 10000")
	d := w.dead(time.Now())
	d.For = 0 // The connections have just been heard.
	closed, err := sockets.Close(t.Context(), d)
	must(t, err)
	if closed[connections.Close] != 2 {
		t.Errorf("the table is empty: %v", closed)
	}
	w.ip("route add default via 192.0.2.1 table 10000")
	w.dial("192.0.2.10", internet)
	w.ip("addr del 192.0.2.10/24 dev wan0")
	closed, err = sockets.Close(t.Context(), d)
	must(t, err)
	if closed[connections.Close] != 1 {
		t.Errorf("the address has gone: %v", closed)
	}
}
