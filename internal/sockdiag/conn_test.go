package sockdiag_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/sockdiag"
	"multihomed/test/lab/nettest"
)

// TestMain keeps the tests away from the machine's sockets.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// up moves the test's thread into a namespace of its own, whose lo is up and has addresses. The
// thread ends with the test.
func up(tb testing.TB, addresses ...string) {
	tb.Helper()
	runtime.LockOSThread()
	must(tb, unix.Unshare(unix.CLONE_NEWNET))
	lo, err := netlink.LinkByName("lo")
	must(tb, err)
	must(tb, netlink.LinkSetUp(lo))
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		must(tb, err)
		addr.Flags = unix.IFA_F_NODAD
		must(tb, netlink.AddrAdd(lo, addr))
	}
	// The kernel adds the routes of IPv6 addresses a moment later.
	deadline := time.Now().Add(20 * time.Second)
	for _, a := range addresses {
		for {
			routes, err := netlink.RouteGet(net.IP(netip.MustParsePrefix(a).Addr().AsSlice()))
			if err == nil && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				tb.Fatalf("%s is not local: %v, %v", a, routes, err)
			}
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func open(tb testing.TB) *sockdiag.Conn {
	tb.Helper()
	c, err := sockdiag.Open()
	must(tb, err)
	tb.Cleanup(func() { must(tb, c.Close()) })
	return c
}

// connect connects from one address to a listener of another.
func connect(tb testing.TB, from, to string) (client, server *net.TCPConn) {
	tb.Helper()
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	l, err := config.Listen(tb.Context(), "tcp", net.JoinHostPort(to, "0"))
	must(tb, err)
	defer func() { must(tb, l.Close()) }()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	c, err := d.DialContext(tb.Context(), "tcp", l.Addr().String())
	must(tb, err)
	s, err := l.Accept()
	must(tb, err)
	client, server = c.(*net.TCPConn), s.(*net.TCPConn) //nolint:forcetypeassert // of a TCP listener
	tb.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

func dump(tb testing.TB, c *sockdiag.Conn, q sockdiag.Query) (all []sockdiag.Socket) {
	tb.Helper()
	must(tb, c.Dump(tb.Context(), q, func(s *sockdiag.Socket) bool {
		all = append(all, *s)
		return true
	}))
	return all
}

func sources(all []sockdiag.Socket) (out []netip.AddrPort) {
	for _, s := range all {
		out = append(out, s.Source)
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func local(c net.Conn) netip.AddrPort {
	a := c.LocalAddr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of a TCP connection
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// TestDump: source addresses of both families, of sockets of either family, are filtered by the
// kernel; states are, too.
func TestDump(t *testing.T) {
	up(t, "192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128")
	diag := open(t)
	a, _ := connect(t, "192.0.2.1", "192.0.2.2")
	b, bs := connect(t, "192.0.2.2", "192.0.2.1")
	six, _ := connect(t, "2001:db8::1", "2001:db8::1")
	mapped := mappedConnection(t, "192.0.2.1")

	one := sockdiag.Query{Sources: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	got := sources(dump(t, diag, one))
	// Of the last one both ends have the address: the server's end is a socket of AF_INET.
	want := []netip.AddrPort{local(a), local(bs), mapped}
	for _, s := range dump(t, diag, one) {
		if s.Destination == mapped {
			want = append(want, s.Source)
		}
	}
	slices.SortFunc(want, netip.AddrPort.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("sockets of 192.0.2.1: %v, want %v", got, want)
	}
	many := sockdiag.Query{Sources: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2")}}
	if got := sources(dump(t, diag, many)); !slices.Contains(got, local(b)) || !slices.Contains(got, local(six)) || slices.Contains(got, local(a)) {
		t.Errorf("sockets of three sources: %v", got)
	}
	listeners := dump(t, diag, sockdiag.Query{States: sockdiag.Set(sockdiag.Listen)})
	if len(listeners) != 1 || listeners[0].State != sockdiag.Listen || listeners[0].Destination.IsValid() && listeners[0].Destination.Port() != 0 {
		t.Errorf("listeners: %+v", listeners)
	}
	all, chosen := dump(t, diag, sockdiag.Query{}), len(dump(t, diag, many))
	for range 300 {
		many.Sources = append(many.Sources, netip.MustParseAddr("203.0.113.1"))
	}
	if got := len(dump(t, diag, many)); len(all) != 8 || got != chosen {
		t.Errorf("%d sockets, %d of three sources, %d of more sources than the kernel takes", len(all), chosen, got)
	}
}

// mappedConnection connects a socket of AF_INET6 from an IPv4 address to itself.
func mappedConnection(tb testing.TB, address string) netip.AddrPort {
	tb.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(address)})
	must(tb, err)
	tb.Cleanup(func() { must(tb, l.Close()) })
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	tb.Cleanup(func() { must(tb, unix.Close(fd)) })
	to := l.Addr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of a TCP listener
	must(tb, unix.Bind(fd, &unix.SockaddrInet6{Addr: to.Addr().As16()}))
	must(tb, unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}))
	name, err := unix.Getsockname(fd)
	must(tb, err)
	return netip.AddrPortFrom(to.Addr(), uint16(name.(*unix.SockaddrInet6).Port)) //nolint:forcetypeassert // of a socket of AF_INET6
}

// TestInfo: what TCP_INFO says of a connection that spoke, and of one whose data nobody acknowledges.
func TestInfo(t *testing.T) {
	up(t, "192.0.2.1/32", "192.0.2.2/32")
	diag := open(t)
	client, server := connect(t, "192.0.2.1", "192.0.2.2")
	_, err := client.Write([]byte("x"))
	must(t, err)
	_, err = server.Read(make([]byte, 1))
	must(t, err)
	find := func() sockdiag.Socket {
		t.Helper()
		for _, s := range dump(t, diag, sockdiag.Query{Sources: []netip.Addr{local(client).Addr()}}) {
			if s.Source == local(client) {
				return s
			}
		}
		t.Fatal("no such socket")
		return sockdiag.Socket{}
	}
	s := find()
	if !s.HasInfo || s.State != sockdiag.Established || s.Inode == 0 || s.UID != 0 || s.Device != 0 || s.MPTCP ||
		s.RTT == 0 || s.RTTVar == 0 || s.Destination != local(server) {
		t.Errorf("a connection that spoke: %+v", s)
	}
	// Nobody answers from here on: the address is behind a device that drops everything.
	peer, err := netlink.ParseAddr("192.0.2.2/32")
	must(t, err)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.AddrDel(lo, peer))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}))
	for _, name := range []string{"here", "there"} {
		link, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(link))
	}
	here, err := netlink.LinkByName("here")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: peer.IPNet, LinkIndex: here.Attrs().Index}))
	must(t, netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: here.Attrs().Index, IP: peer.IP, State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}))
	_, _ = client.Write([]byte("x"))
	deadline := time.Now().Add(20 * time.Second)
	for s = find(); s.Unacked == 0 || s.Pending == 0 || s.LastAckRecv < 50*time.Millisecond; s = find() {
		if time.Now().After(deadline) {
			t.Fatalf("a connection whose peer is silent: %+v", s)
		}
	}
}

// TestDestroy: whoever waits is told at once, and the socket is gone.
func TestDestroy(t *testing.T) {
	up(t, "192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128")
	diag := open(t)
	for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
		client, _ := connect(t, address, address)
		told := make(chan error, 1)
		go func() {
			_, err := client.Read(make([]byte, 1))
			told <- err
		}()
		var chosen sockdiag.Socket
		for _, s := range dump(t, diag, sockdiag.Query{Sources: []netip.Addr{netip.MustParseAddr(address)}}) {
			if s.Source == local(client) {
				chosen = s
			}
		}
		must(t, diag.Destroy(t.Context(), &chosen))
		if err := <-told; !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: the application reads %v", address, err)
		}
		if err := diag.Destroy(t.Context(), &chosen); !errors.Is(err, sockdiag.ErrGone) {
			t.Errorf("%s: again: %v", address, err)
		}
	}
}

// TestStop: a dump that stops half way, or is cancelled, leaves the connection usable.
func TestStop(t *testing.T) {
	up(t, "192.0.2.1/32")
	diag := open(t)
	for range 200 {
		connect(t, "192.0.2.1", "192.0.2.1")
	}
	n := 0
	must(t, diag.Dump(t.Context(), sockdiag.Query{}, func(*sockdiag.Socket) bool {
		n++
		return n < 3
	}))
	ctx, cancel := context.WithCancelCause(t.Context())
	err := diag.Dump(ctx, sockdiag.Query{}, func(*sockdiag.Socket) bool {
		n++
		cancel(net.ErrClosed)
		return true
	})
	if !errors.Is(err, net.ErrClosed) || n >= 400 {
		t.Errorf("after %d sockets: %v", n, err)
	}
	if all := dump(t, diag, sockdiag.Query{}); len(all) != 400 {
		t.Errorf("%d sockets", len(all))
	}
}

// TestMark: SO_MARK, the device and what belongs to Multipath TCP are told.
func TestMark(t *testing.T) {
	up(t, "192.0.2.1/32")

	diag := open(t)
	listener := net.ListenConfig{}
	listener.SetMultipathTCP(true)
	l, err := listener.Listen(t.Context(), "tcp", "192.0.2.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var fault error
		err := raw.Control(func(fd uintptr) {
			fault = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 7), unix.BindToDevice(int(fd), "lo"))
		})
		return errors.Join(err, fault)
	}}
	dialer.SetMultipathTCP(true)
	client, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	server, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	both := dump(t, diag, sockdiag.Query{})
	if len(both) != 2 {
		t.Errorf("%d sockets", len(both))
	}
	for _, s := range both {
		switch {
		case s.Source == local(client) && (s.Mark != 7 || s.Device != 1 || !s.MPTCP || s.Token == 0):
			t.Errorf("the client: %+v", s)
		case s.Source == local(server) && (s.Mark != 0 || !s.MPTCP || s.Token == 0):
			t.Errorf("the server: %+v", s)
		}
	}
}
