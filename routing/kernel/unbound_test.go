package kernel_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestUnbound: which addresses the kernel gives to packets of devices that do not have
// them, and when that may have changed.
func TestUnbound(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	h.ip("route add default via 192.0.2.1 dev wan0 metric 100")
	tun := h.veth("tun0")
	m := h.mirror(kernel.Config{Interest: func(name string) bool { return name == "wan0" }})
	must(t, m.Sync(t.Context()))
	m.Take()
	do := func(news bool, commands ...string) {
		t.Helper()
		for _, c := range commands {
			h.ip(c)
		}
		must(t, m.Sync(t.Context()))
		if c := m.Take(); (c.Unbound || len(c.ForeignRules) > 0) != news {
			t.Errorf("%v: may have changed is %t: %+v", commands, !news, c)
		}
	}
	expect := func(f routing.Family, want ...routing.Unbound) {
		t.Helper()
		for i := range want {
			want[i].Device, want[i].Name = tun, "tun0"
		}
		have, _, err := m.Unbound(t.Context())
		must(t, err)
		if diff := cmp.Diff(want, have[f], compareAddr, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +have):\n%s", f, diff)
		}
		m.Take()
	}
	v4, v6 := addr("192.0.2.10"), addr("2001:db8::10")
	expect(routing.IPv4)
	do(false, "route add 10.9.0.0/16 dev tun0", "route add default dev tun0 table 42")
	expect(routing.IPv4)
	do(true, "route add 64.0.0.0/7 dev tun0")
	expect(routing.IPv4, routing.Unbound{Address: v4, Table: routing.TableMain, Length: 7})
	do(true, "rule add pref 32000 not fwmark 7 lookup 42")
	expect(routing.IPv4, routing.Unbound{Address: v4, Table: 42})
	do(true, "route add 203.0.113.0/24 dev tun0 table 42", "route del default table 42")
	expect(routing.IPv4, routing.Unbound{Address: v4, Table: 42, Length: 24}, routing.Unbound{Address: v4, Table: routing.TableMain, Length: 7})
	do(true, "rule del pref 32000", "rule add pref 32000 lookup 42")
	expect(routing.IPv4, routing.Unbound{Address: v4, Table: routing.TableMain, Length: 7})
	do(false, "route add 203.0.114.0/24 dev tun0 table 42")
	// Rules that select the user who asks say nothing of others.
	do(true, "route add default dev tun0 table 43", "rule add pref 31000 uidrange 0-4 lookup 43", "rule add pref 31000 uidrange 5-5 lookup 43")
	expect(routing.IPv4, routing.Unbound{Address: v4, Table: routing.TableMain, Length: 7})
	h.ip("addr add 10.8.0.2/32 dev tun0")
	expect(routing.IPv4)
	do(true, "-6 route add 2000::/3 dev tun0")
	expect(routing.IPv6, routing.Unbound{Address: v6, Table: routing.TableMain, Length: 3})
	h.ip("link set tun0 down")
	expect(routing.IPv6)
}

// BenchmarkUnbound is one question of both families, with a device that has no address.
func BenchmarkUnbound(b *testing.B) {
	for _, numbered := range []bool{true, false} {
		b.Run(fmt.Sprintf("numbered=%t", numbered), func(b *testing.B) {
			h := newHost(b)
			h.veth("wan0")
			h.address("wan0", "192.0.2.10/24")
			h.address("p-wan0", "192.0.2.11/24")
			h.address("wan0", "2001:db8::10/64")
			h.address("p-wan0", "2001:db8::11/64")
			if !numbered {
				h.veth("tun0")
				h.ip("route add 0.0.0.0/1 dev tun0")
			}
			m := h.mirror(kernel.Config{})
			must(b, m.Sync(b.Context()))
			for b.Loop() {
				_, _, err := m.Unbound(b.Context())
				must(b, err)
			}
		})
	}
}
