package connections_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"multihomed/test/lab/nettest"
)

// TestMain keeps the tests away from the machine's network.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A world is a host with two providers and a container, each in a network namespace, and the test's
// thread in one of them. Each provider has the internet, 203.0.113.1 and 2001:db8:f::1, on its lo.
//
//	wan0 192.0.2.10/24, 2001:db8:a::10/64      gateways .1, ::1
//	wan1 198.51.100.10/24, 2001:db8:b::10/64   gateways .1, ::1
//	ctr  172.17.0.1/24                         the container is .2, and the host its gateway
//
// Main's default goes by wan0, and the rules of sources stand as the daemon makes them.
type world struct {
	testing.TB
	host, wan0, wan1, container netns.NsHandle

	// mptcp makes serve and dial use Multipath TCP.
	mptcp bool
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	runtime.LockOSThread() // The thread ends with the test.
	w := &world{TB: tb}
	for _, ns := range []*netns.NsHandle{&w.wan0, &w.wan1, &w.container, &w.host} {
		var err error
		*ns, err = netns.New()
		must(tb, err)
		tb.Cleanup(func() { must(tb, ns.Close()) })
	}
	lines := []string{"link set lo up"}
	for _, side := range []struct {
		name, net, six string
		ns             netns.NsHandle
	}{{"wan0", "192.0.2", "2001:db8:a", w.wan0}, {"wan1", "198.51.100", "2001:db8:b", w.wan1}, {"ctr", "172.17.0", "fd00:17", w.container}} {
		must(tb, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: side.name}, PeerName: "peer", PeerNamespace: netlink.NsFd(side.ns),
		}))
		near, far := "10", "1"
		if side.name == "ctr" {
			near, far = "1", "2"
		}
		lines = append(lines, "addr add "+side.net+"."+near+"/24 dev "+side.name, "addr add "+side.six+"::"+near+"/64 dev "+side.name+" nodad", "link set "+side.name+" up")
		w.in(side.ns, func() {
			there := []string{"link set lo up", "addr add " + side.net + "." + far + "/24 dev peer", "addr add " + side.six + "::" + far + "/64 dev peer nodad", "link set peer up"}
			if side.name == "ctr" {
				there = append(there, "route add default via 172.17.0.1", "route add default via fd00:17::1")
			} else {
				there = append(there, "addr add 203.0.113.1/32 dev lo", "addr add 2001:db8:f::1/128 dev lo nodad", "route add 172.17.0.0/24 via "+side.net+".10")
			}
			w.ip(there...)
		})
	}
	w.sysctl("net/ipv4/ip_forward", "1")
	lines = append(lines, "route add default via 192.0.2.1 metric 100", "route add default via 198.51.100.1 metric 101",
		"route add default via 2001:db8:a::1 metric 100", "route add default via 2001:db8:b::1 metric 101",
		"route add default via 192.0.2.1 table 10000", "route add default via 198.51.100.1 table 10001",
		"route add default via 2001:db8:a::1 table 10000", "route add default via 2001:db8:b::1 table 10001")
	for _, source := range [][2]string{{"192.0.2.10", "10000"}, {"198.51.100.10", "10001"}, {"2001:db8:a::10", "10000"}, {"2001:db8:b::10", "10001"}} {
		family := ""
		if strings.Contains(source[0], ":") {
			family = "-6 "
		}
		from := family + "rule add from " + source[0]
		lines = append(lines, from+" lookup main suppress_prefixlength 0 pref 9020", from+" lookup "+source[1]+" pref 10000", from+" unreachable pref 10500")
	}
	w.ip(lines...)
	w.await(func() bool {
		routes, err := netlink.RouteGetWithOptions(net.ParseIP("2001:db8:f::1"), &netlink.RouteGetOptions{SrcAddr: net.ParseIP("2001:db8:b::10")})
		return err == nil && len(routes) == 1
	}, "IPv6 works")
	return w
}

// in calls f with the thread in another namespace.
func (w *world) in(ns netns.NsHandle, f func()) {
	w.Helper()
	must(w, netns.Set(ns))
	defer func() { must(w, netns.Set(w.host)) }()
	f()
}

// ip runs commands of ip(8) in the thread's namespace, with "-6 " before those of IPv6 that do not show
// their family: rules. An emulated machine needs up to half a second for a program, so few are run.
func (w *world) ip(lines ...string) {
	w.Helper()
	for len(lines) > 0 {
		six := strings.HasPrefix(lines[0], "-6 ")
		var batch strings.Builder
		for len(lines) > 0 && strings.HasPrefix(lines[0], "-6 ") == six {
			batch.WriteString(strings.TrimPrefix(lines[0], "-6 ") + "\n")
			lines = lines[1:]
		}
		if six {
			w.run("ip", "-6", "-batch", "-", batch.String())
		} else {
			w.run("ip", "-batch", "-", batch.String())
		}
	}
}

func (w *world) nft(script string) { w.Helper(); w.run("nft", "-f", "-", script) }

// run runs a program with its last argument as its input.
func (w *world) run(name string, args ...string) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), name, args[:len(args)-1]...)
	cmd.Stdin = strings.NewReader(args[len(args)-1])
	if out, err := cmd.CombinedOutput(); err != nil {
		w.Fatalf("%s: %v\n%s\n%s", name, err, args[len(args)-1], out)
	}
}

// sysctl sets a parameter of the thread's namespace.
func (w *world) sysctl(name, value string) {
	w.Helper()
	must(w, os.WriteFile("/proc/sys/"+name, []byte(value), 0o644))
}

// await waits until something is so.
func (w *world) await(so func() bool, what string) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); {
		if time.Now().After(deadline) {
			w.Fatalf("it never came that %s", what)
		}
	}
}

// serve answers every byte with itself at an address of a namespace.
func (w *world) serve(ns netns.NsHandle, address string) netip.AddrPort {
	w.Helper()
	var listener net.Listener
	w.in(ns, func() {
		config := net.ListenConfig{}
		config.SetMultipathTCP(w.mptcp)
		var err error
		listener, err = config.Listen(w.Context(), "tcp", address)
		must(w, err)
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var served []net.Conn
		for {
			c, err := listener.Accept()
			if err != nil {
				break
			}
			served = append(served, c)
			go echo(c)
		}
		for _, c := range served {
			_ = c.Close()
		}
	}()
	w.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of a TCP listener
}

func echo(c net.Conn) {
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// dial connects from an address, and speaks once.
func (w *world) dial(from string, to netip.AddrPort, control ...func(int) error) *net.TCPConn {
	w.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), Timeout: 10 * time.Second}
	d.SetMultipathTCP(w.mptcp)
	d.Control = controlled(control)
	c, err := d.DialContext(w.Context(), "tcp", to.String())
	must(w, err)
	w.Cleanup(func() { _ = c.Close() })
	must(w, speak(c))
	return c.(*net.TCPConn) //nolint:forcetypeassert // of a TCP dialer
}

func speak(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
