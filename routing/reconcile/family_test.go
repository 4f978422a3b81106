package reconcile_test

import (
	"fmt"
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// leaves wants the kernel to send a packet of this host by a device.
func (h *host) leaves(from, to, device string) {
	h.Helper()
	if got := h.ip(fmt.Sprintf("route get %s from %s", to, from)); !strings.Contains(got, " dev "+device+" ") {
		h.Errorf("from %s to %s: %s, want %s", from, to, got, device)
	}
}

// TestDefaultOfOneFamily: an uplink of one family is a local link in the other, whatever
// its addresses there: a tunnel leads to them, or they are of a LAN.
func TestDefaultOfOneFamily(t *testing.T) {
	for name, c := range map[string]struct {
		commands       []string
		from, to, path string
	}{
		"a network of IPv6 that a tunnel leads to": {
			[]string{"-6 addr add 2001:db8:64::1/64 dev wan0 nodad", "-6 addr add 2001:db8:77::2/64 dev tun0 nodad", "-6 route add default via 2001:db8:77::1 dev tun0"},
			"2001:db8:64::1", "2001:db8:fe::1", "tun0",
		},
		"a LAN of shared addresses with an IPv6 router": {
			[]string{"addr add 100.64.7.1/24 dev lan0", "-6 addr add 2001:db8:1::7/64 dev lan0 nodad", "-6 route add default via 2001:db8:1::1 dev lan0"},
			"100.64.7.1", "203.0.113.1", "wan0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			h.wan(0)
			h.veth("tun0")
			h.veth("lan0")
			h.owners.claim("lan0", reconcile.Link)
			h.owners.complete(true)
			for _, command := range c.commands {
				h.ip(command)
			}
			h.leaves(c.from, c.to, c.path)
			h.pass()
			h.leaves(c.from, c.to, c.path)
		})
	}
}

// TestOpeningTakesNothingOfMain: the packets of a local link go where main leads, although
// it leads into a network that lies inside of one behind an opening.
func TestOpeningTakesNothingOfMain(t *testing.T) {
	h := newHost(t)
	h.noLinkLocal()
	h.wan(1)
	h.veth("corp0")
	h.veth("lan0")
	for _, name := range []string{"corp0", "lan0"} {
		h.owners.claim(name, reconcile.Link)
	}
	h.owners.complete(true)
	for _, command := range []string{
		"addr add 172.20.0.5/24 dev corp0", "route add 10.0.0.0/8 via 172.20.0.1 dev corp0",
		"-6 addr add 2001:db8::5/64 dev corp0 nodad", "-6 route add default via 2001:db8::1 dev corp0",
		"route add 10.7.0.1/32 via 100.64.1.1 dev wan1",
		"addr add 10.1.0.1/16 dev lan0", "route add 10.1.200.0/24 via 10.1.0.9 dev lan0",
	} {
		h.ip(command)
	}
	check := func() {
		t.Helper()
		h.leaves("10.1.0.1", "10.7.0.1", "wan1")
		h.leaves("10.1.0.1", "10.8.0.1", "corp0")
		h.leaves("10.1.0.1", "10.1.200.5", "lan0")
		h.leaves("100.64.1.5", "10.8.0.1", "corp0")
	}
	check()
	h.pass()
	if !strings.Contains(h.ip("rule"), "9021:") {
		t.Fatalf("nothing is nested:\n%s", h.ip("rule"))
	}
	check()
	h.quiet()
}
