package kernel_test

import (
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestRouterAdvertisements lets the kernel follow a router by itself. It sets
// and changes the hop limit and the preference of the default route without a
// word.
func TestRouterAdvertisements(t *testing.T) {
	h := newHost(t)
	elsewhere, err := otherNamespace()
	must(t, err)
	must(t, h.link.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "isp0", PeerNamespace: netlink.NsFd(elsewhere.Fd()),
	}))
	index := h.up("wan0")
	advertise := router(t, elsewhere)
	m := h.mirror(kernel.Config{})
	for _, a := range []struct {
		hops       byte
		preference routing.Preference
		lifetime   uint16
	}{{64, 0, 1800}, {32, 0, 1800}, {32, 1, 1800}, {32, 3, 1800}, {64, 0, 1700}, {64, 0, 0}} {
		want := routing.Route{}
		if a.lifetime > 0 {
			setMetric(&want, unix.RTAX_HOPLIMIT, uint32(a.hops))
			want.Preference = a.preference
		}
		var have routing.Route
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			advertise(a.hops, byte(a.preference)<<3, a.lifetime)
			audit(t, m)
			have = routing.Route{}
			m.View(func(s *kernel.State) {
				l, _ := s.Link(index)
				for _, r := range l.Routes {
					if r.Family == routing.IPv6 && r.IsDefault() {
						have.Attributes, have.Preference = r.Attributes, r.Preference
					}
				}
			})
			if have == want {
				break
			}
		}
		if have != want {
			t.Errorf("after %+v the default route has metrics %v and preference %d", a, have.Attributes.Get().Metrics, have.Preference)
		}
	}
}

// router returns a function that advertises a router from the other end of
// the link.
func router(t *testing.T, namespace *os.File) func(hops, flags byte, lifetime uint16) {
	t.Helper()
	type opened struct {
		fd, index int
		err       error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		o := opened{err: unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)}
		defer func() { done <- o }()
		if o.err != nil {
			return
		}
		link, err := netlink.LinkByName("isp0")
		if err != nil {
			o.err = err
			return
		}
		o.index = link.Attrs().Index
		if o.err = os.WriteFile("/proc/sys/net/ipv6/conf/isp0/accept_dad", []byte("0"), 0); o.err != nil {
			return
		}
		if o.err = netlink.LinkSetUp(link); o.err != nil {
			return
		}
		o.fd, o.err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	}()
	o := <-done
	must(t, namespace.Close())
	must(t, o.err)
	t.Cleanup(func() { must(t, unix.Close(o.fd)) })
	must(t, unix.SetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
	must(t, unix.SetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, o.index))
	return func(hops, flags byte, lifetime uint16) {
		// RFC 4861, section 4.2, and a prefix, section 4.6.2.
		b := []byte{134, 0, 0, 0, hops, flags}
		b = binary.BigEndian.AppendUint16(b, lifetime)
		b = append(b, make([]byte, 8)...)
		b = append(b, 3, 4, 64, 0xc0)
		b = binary.BigEndian.AppendUint32(b, 3600)
		b = binary.BigEndian.AppendUint32(b, 1800)
		b = append(b, make([]byte, 4)...)
		b = append(b, net.ParseIP("2001:db8:aa::")...)
		to := &unix.SockaddrInet6{Addr: [16]byte(net.ParseIP("ff02::1")), ZoneId: uint32(o.index)}
		// Until the link has its own address there is nothing to send from.
		_ = unix.Sendto(o.fd, b, 0, to)
	}
}
