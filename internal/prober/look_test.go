package prober_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
)

// TestLook: connections to hosts behind a link prove that it works, and show when it falls silent; those to
// near hosts and of other devices prove nothing. Counters of devices are the kernel's.
func TestLook(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	look := wire.Look{
		Sources: []wire.Source{{Addr: addr(host4), Device: w.wan0}, {Addr: addr(second4), Device: w.wan1}, {Addr: addr(host6), Device: w.wan0}},
		Near:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Devices: []int{w.wan0, 4711},
	}
	if seen := c.look(look); seen.Cost <= 0 || seen.Cost > time.Second || seen.Connections[addr(host4)] != (client.Connections{}) || seen.Devices[4711] != (wire.Counters{}) {
		t.Errorf("without connections: %+v", seen)
	}
	far := dialFrom(t, host4, resolver4+":443")
	began := time.Now()
	dialFrom(t, host4, gateway4+":443")
	dialFrom(t, host6, "["+resolver6+"]:443")
	// Connections of this host with itself never leave it.
	must(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: w.wan1}}))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", second4+":80")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	dialFrom(t, host4, second4+":80")

	seen := c.look(look)
	of := seen.Connections[addr(host4)]
	// The kernel counts milliseconds and ticks.
	if of.Count != 1 || of.Silence != 0 || of.Proof.Before(began.Add(-time.Second)) || of.Proof.After(time.Now()) {
		t.Errorf("at %v: %+v", began, of)
	}
	if of := seen.Connections[addr(host6)]; of.Count != 1 || of.Proof.IsZero() {
		t.Errorf("by IPv6: %+v", of)
	}
	if of := seen.Connections[addr(second4)]; of != (client.Connections{}) {
		t.Errorf("connections with this host: %+v", of)
	}
	look.Near = nil
	if of := c.look(look).Connections[addr(host4)]; of.Count != 2 {
		t.Errorf("with those to near hosts: %+v", of)
	}
	sent := seen.Devices[w.wan0]
	_, err = far.Write([]byte("x"))
	must(t, err)
	for deadline := time.Now().Add(patience); c.look(look).Devices[w.wan0].TxPackets <= sent.TxPackets; {
		if time.Now().After(deadline) {
			t.Fatal("the counter stands still")
		}
	}

	// The provider dies.
	look.Near = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	w.at(t, func() {
		run(t, `nft add chain inet f dead { type filter hook prerouting priority -500; policy drop; }`)
	})
	proof := c.look(look).Connections[addr(host4)].Proof
	_, err = far.Write([]byte("x"))
	must(t, err)
	for deadline := time.Now().Add(patience); ; {
		of = c.look(look).Connections[addr(host4)]
		if of.Silence >= 300*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a silent provider: %+v", of)
		}
	}
	// The proof comes from two clocks that are read one after the other. A silence that counted would be all of it.
	if moved := of.Proof.Sub(proof); moved.Abs() > 150*time.Millisecond {
		t.Errorf("a proof of the silence, %v later", moved)
	}
}

// look does a look.
func (c connection) look(l wire.Look) client.Looked {
	c.t.Helper()
	id, err := c.Look(l)
	must(c.t, err)
	r, is := c.next().Report.(client.Looked)
	if !is || r.ID != id {
		c.t.Fatalf("%+v, for %d", r, id)
	}
	return r
}

func dialFrom(t *testing.T, source, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(source), 0)), KeepAlive: -1, Timeout: patience}
	c, err := d.DialContext(t.Context(), "tcp", to)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() }) // Its peer may be gone.
	return c
}

func linkLocal(t *testing.T, device string) string {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		addresses, err := netlink.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index(t, device)}}, unix.AF_INET6) //nolint:forbidigo // a few addresses in a namespace of the test's
		must(t, err)
		for _, a := range addresses {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return a.IP.String()
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has no link-local address: %v", device, addresses)
		}
	}
}
