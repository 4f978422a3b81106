package reconcile_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestUnnumberedTunnel: what the kernel sends through a device without an address carries
// that of a link. It must go where it goes without us, and the link must get its rungs
// back with the tunnel's end.
func TestUnnumberedTunnel(t *testing.T) {
	for _, c := range []struct {
		name string
		// before makes what stands before the links, up the tunnel, down ends it.
		before, up, down []string
		// source is whose rungs go, to a destination, device where unbound packets go;
		// keeps a source that keeps its own.
		source, to, device, keeps string
	}{
		{
			name: "rule that leaves the tunnel's own out", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"route add default dev tun0 table 51820", "rule add not fwmark 51820 lookup 51820"},
			down: []string{"rule del not fwmark 51820 lookup 51820"},
		},
		{
			name: "the rule before the route", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"rule add not fwmark 51820 lookup 51820", "route add default dev tun0 table 51820"},
			down: []string{"route del default table 51820"},
		},
		{
			name: "rule for all", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"rule add pref 32000 lookup 42", "route add default dev tun0 table 42"},
			down: []string{"link set tun0 down"},
		},
		{
			name: "two halves in main", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0"},
			down: []string{"route del 0.0.0.0/1", "route del 128.0.0.0/1"},
		},
		{
			name: "the tunnel gets an address", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"route add 128.0.0.0/1 dev tun0"},
			down: []string{"addr add 10.8.0.2/32 dev tun0"},
		},
		{
			name: "the tunnel goes", source: "100.64.0.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"route add 200.0.0.0/5 dev tun0"},
			down: []string{"link del tun0"},
		},
		{
			name: "a network behind the tunnel, in a table that bound traffic does not ask", source: "100.64.0.5", to: "10.9.0.1", device: "tun0", keeps: "100.64.1.5",
			up:   []string{"rule add not fwmark 51820 lookup 51820", "route add 10.9.0.0/16 dev tun0 table 51820"},
			down: []string{"route flush table 51820"},
		},
		{
			name: "the default names the link's address", source: "100.64.1.5", to: "203.0.113.1", device: "tun0", keeps: "100.64.0.5",
			up:   []string{"route add default dev tun0 src 100.64.1.5 metric 1"},
			down: []string{"route del default dev tun0"},
		},
		{
			name: "a link's default without an address of it", source: "100.64.0.5", to: "203.0.113.1", device: "wan2", keeps: "100.64.1.5",
			before: []string{"link add wan2 type veth peer name p-wan2", "link set p-wan2 up", "link set wan2 up"},
			up:     []string{"route add default dev wan2 metric 1"},
			down:   []string{"addr add 100.64.2.5/24 dev wan2"},
		},
		{
			name: "an address of the link's network on lo", source: "100.64.0.77", to: "203.0.113.1", device: "tun0", keeps: "100.64.0.5",
			before: []string{"addr add 100.64.0.77/32 dev lo"},
			up:     []string{"route add 128.0.0.0/1 dev tun0"},
			down:   []string{"route del 128.0.0.0/1"},
		},
		{
			name: "IPv6", source: "2001:db8::/64", to: "2001:db8:ff::1", device: "tun0", keeps: "2001:db8:1::/64",
			up:   []string{"-6 route add default dev tun0 table 51820", "-6 rule add not fwmark 51820 lookup 51820"},
			down: []string{"-6 rule del not fwmark 51820 lookup 51820"},
		},
		{
			name: "IPv6 in pieces", source: "2001:db8::/64", to: "2001:db8:ff::1", device: "tun0", keeps: "2001:db8:1::/64",
			up:   []string{"-6 route add 2000::/4 dev tun0", "-6 route add 3000::/4 dev tun0"},
			down: []string{"-6 addr add 2001:db8:f::1/64 dev tun0 nodad"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			build := func(t *testing.T) *host {
				t.Helper()
				h := newHost(t)
				h.noLinkLocal()
				for _, command := range c.before {
					h.ip(command)
				}
				if len(c.before) > 0 && strings.Contains(c.before[0], "wan2") {
					h.owners.claim("wan2", reconcile.Link)
				}
				for n := range 2 {
					h.wan(n)
					h.ip(fmt.Sprintf("-6 addr add 2001:db8:%x::5/64 dev wan%d nodad", n, n))
					h.ip(fmt.Sprintf("-6 route add default via 2001:db8:%x::1 dev wan%d metric %d", n, n, 100+n))
				}
				h.veth("tun0")
				h.owners.complete(true)
				return h
			}
			stands := func(h *host, source string) bool {
				f := "-4"
				if strings.Contains(source, ":") {
					f = "-6"
				}
				return slices.ContainsFunc(strings.Split(h.ip(f+" rule"), "\n"), func(r string) bool {
					return strings.Contains(r, "from "+source+" ") && strings.Contains(r, "proto 150")
				})
			}
			aside := func(h *host, is bool) {
				t.Helper()
				if stands(h, c.source) == is {
					t.Errorf("rungs of %s: stand is %t; rules:\n%s%s\nlog:\n%s", c.source, !is, h.ip("rule"), h.ip("-6 rule"), h.log.String())
				}
				if !stands(h, c.keeps) {
					t.Errorf("%s has no rungs", c.keeps)
				}
				if !strings.Contains(h.ip("-4 rule")+h.ip("-6 rule"), "9500:	from all oif wan0 lookup ") {
					t.Errorf("no rung of the device:\n%s", h.ip("rule"))
				}
				if said := slices.ContainsFunc(h.last.Problems, func(p routing.Problem) bool {
					return p.Code == routing.SourceAside && strings.Contains(p.Text, c.device) && p.Fix != ""
				}); said != is {
					t.Errorf("reported is %t: %+v", said, h.last.Problems)
				}
				if !is {
					return
				}
				// The two lookups of connect(2).
				first := h.ip("route get " + c.to)
				_, source, _ := strings.Cut(first, " src ")
				source = strings.Fields(source)[0]
				if second := h.ip("route get " + c.to + " from " + source); !strings.Contains(first, "dev "+c.device) || !strings.Contains(second, "dev "+c.device) {
					t.Errorf("unbound: first %ssecond %s", first, second)
				}
			}
			t.Run("tunnel last", func(t *testing.T) {
				h := build(t)
				h.pass()
				aside(h, false)
				for _, command := range c.up {
					h.ip(command)
				}
				h.pass()
				aside(h, true)
				h.quiet()
				for _, command := range c.down {
					h.ip(command)
				}
				h.pass()
				if strings.HasPrefix(c.down[0], "-6 addr") {
					// The kernel uses a new address a moment later, and tells.
					for !stands(h, c.source) && h.changed() {
						h.pass()
					}
				}
				aside(h, false)
				h.quiet()
			})
			t.Run("tunnel first", func(t *testing.T) {
				h := build(t)
				for _, command := range c.up {
					h.ip(command)
				}
				for _, op := range h.pass() {
					if strings.Contains(op, "from "+c.source+" ") {
						t.Errorf("done: %s", op)
					}
				}
				aside(h, true)
				h.restart()
				for n := range 2 {
					h.owners.claim(fmt.Sprintf("wan%d", n), reconcile.Link)
				}
				if len(c.before) > 0 {
					h.owners.claim("wan2", reconcile.Link)
				}
				h.owners.complete(true)
				h.quiet()
				aside(h, true)
			})
		})
	}
}

// changed waits for the kernel to tell of a change, false if it does not in time.
func (h *host) changed() bool {
	ctx, cancel := context.WithTimeout(h.Context(), 5*time.Second)
	defer cancel()
	for {
		must(h, h.mirror.Sync(ctx))
		select {
		case <-h.mirror.Changed():
			return true
		case <-ctx.Done():
			return false
		default:
			runtime.Gosched()
		}
	}
}

// TestNumberedTunnel: a tunnel that has addresses changes nothing, and neither does one
// that is no way for everything.
func TestNumberedTunnel(t *testing.T) {
	for name, commands := range map[string][]string{
		"numbered":               {"addr add 10.8.0.2/32 dev tun0", "route add default dev tun0 table 51820", "rule add not fwmark 51820 lookup 51820"},
		"source of its own":      {"addr add 10.8.0.2/32 dev lo", "route add 0.0.0.0/1 dev tun0 src 10.8.0.2", "route add 128.0.0.0/1 dev tun0 src 10.8.0.2"},
		"a network":              {"route add 11.0.0.0/8 dev tun0", "route add 11.157.0.0/16 dev tun0 table 42", "rule add pref 32000 lookup 42"},
		"a rule in front":        {"route add default dev tun0 table 52", "rule add pref 5270 lookup 52"},
		"a rule that selects":    {"route add default dev tun0 table 42", "rule add fwmark 1 lookup 42", "rule add uidrange 0-0 lookup 42"},
		"a route that does less": {"route add default dev tun0 metric 4000"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			h.wan(0)
			h.veth("tun0")
			h.owners.complete(true)
			for _, command := range commands {
				h.ip(command)
			}
			h.pass()
			h.wants("10000: from 100.64.0.5 lookup 10000", "10500: from 100.64.0.5 7")
			if len(h.last.Problems) > 0 {
				t.Errorf("reported: %+v", h.last.Problems)
			}
		})
	}
}

// TestNotYetNumbered: a better uplink whose address is still tested for duplicates, or that
// is just being brought up or taken down, lends nobody's address for long: the other link
// keeps its rungs. They go where that lasts.
func TestNotYetNumbered(t *testing.T) {
	h := newHost(t)
	h.noLinkLocal()
	h.wan(1)
	h.ip("-6 addr add 2001:db8:1::5/64 dev wan1 nodad")
	h.ip("-6 route add default via 2001:db8:1::1 dev wan1 metric 101")
	h.veth("wan0")
	h.owners.claim("wan0", reconcile.Link)
	h.owners.complete(true)
	h.pass()
	stands := func(when string, want bool) {
		t.Helper()
		h.pass()
		if is := strings.Contains(h.ip("-6 rule"), "from 2001:db8:1::/64 iif lo lookup 1"); is != want {
			t.Errorf("%s: the rungs of wan1 stand: %t\n%s", when, is, h.ip("-6 rule"))
		}
		if is := len(h.last.Problems) == 0; is != want {
			t.Errorf("%s: reported %+v", when, h.last.Problems)
		}
	}
	// Duplicate address detection takes a minute here: it is not over while this runs.
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/wan0/accept_dad", []byte("1"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/wan0/dad_transmits", []byte("60"), 0))
	h.ip("-6 addr add 2001:db8::5/64 dev wan0")
	h.ip("-6 addr add fe80::5/64 dev wan0 nodad")
	h.ip("-6 route add default via fe80::1 dev wan0 metric 1")
	if !strings.Contains(h.ip("-6 addr show dev wan0 tentative"), "2001:db8::5") {
		t.Fatal("the address is not tentative")
	}
	if get := h.ip("route get 2001:db8:ff::1"); !strings.Contains(get, "dev wan0") || !strings.Contains(get, "src 2001:db8:1::5") {
		t.Fatalf("the kernel does not lend the address of wan1: %s", get)
	}
	stands("tentative", true)
	h.ip("-6 addr del 2001:db8::5/64 dev wan0")
	stands("without an address", false)
	for _, standing := range []reconcile.Standing{reconcile.Link, reconcile.Draining} {
		h.owners.claim("wan0", standing)
		claim := h.owners.next.Changed["wan0"]
		claim.Pending = standing == reconcile.Link
		h.owners.next.Changed["wan0"] = claim
		stands("in between", true)
		h.owners.claim("wan0", reconcile.Link)
		stands("for good", false)
	}
	h.ip("-6 addr add 2001:db8::5/64 dev wan0 nodad")
	for h.pass(); !strings.Contains(h.ip("-6 rule"), "from 2001:db8:1::/64 iif lo lookup 1") && h.changed(); {
		h.pass()
	}
	stands("numbered", true)
	h.quiet()
}
