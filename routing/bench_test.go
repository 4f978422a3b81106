package routing_test

import (
	"fmt"
	"net/netip"
	"testing"

	"multihomed/routing"
)

// crowd is a host with many uplinks of both families, each in networks of its
// own, and all in force.
func crowd(b *testing.B, n int) (*host, []routing.Link) {
	b.Helper()
	wide := policy
	wide.Tables.Last = wide.Tables.First + 10_000
	h, out := newHostOf(wide), make([]routing.Link, n)
	for i := range out {
		out[i] = oneOfMany(i, 0)
		out[i].Tables = h.leases.of(out[i])
		out[i].Group = policy.UplinkGroup
		h.install(out[i])
	}
	h.converge(b)
	return h, out
}

// oneOfMany is the i-th of many links; turn tells apart the addresses it has
// one after the other.
func oneOfMany(i, turn int) routing.Link {
	v4 := netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), byte(10 + turn)})
	gateway := netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), 1})
	metric := uint32(100 + i)
	return link(i+2, fmt.Sprintf("wan%d", i),
		address(v4.String()+"/24", metric, dynamic), route(default4, gateway.String(), metric, source(v4.String())),
		linkLocal(fmt.Sprintf("fe80::1:%x/64", i+1)),
		address(fmt.Sprintf("2001:db8:%x::%x/64", i+1, 16+turn), metric, dynamic), route(default6, "fe80::1", metric),
	)
}

// BenchmarkChange is one event: a DHCP lease with another address on one link,
// from the facts to the operations.
func BenchmarkChange(b *testing.B) {
	for _, others := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			h, links := crowd(b, others+1)
			middle := others / 2
			turns := [2]routing.Link{}
			for turn := range turns {
				turns[turn] = oneOfMany(middle, turn)
				turns[turn].Tables = links[middle].Tables
				turns[turn].Group = policy.UplinkGroup
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				h.planner.Set(turns[1-n%2])
				routing.Diff(h.planner, h.kernel, h.planner.Take(), always)
			}
		})
	}
}

// BenchmarkFlap is the most expensive event of one link: it goes and comes.
func BenchmarkFlap(b *testing.B) {
	for _, others := range []int{10, 100, 1000} {
		for _, where := range []string{"last", "first"} {
			b.Run(fmt.Sprintf("others=%d/%s", others, where), func(b *testing.B) {
				h, links := crowd(b, others+1)
				l := links[len(links)-1]
				if where == "first" {
					l = links[0]
				}
				b.ReportAllocs()
				for b.Loop() {
					h.planner.Remove(l.Index)
					routing.Diff(h.planner, h.kernel, h.planner.Take(), always)
					h.planner.Set(l)
					routing.Diff(h.planner, h.kernel, h.planner.Take(), always)
				}
			})
		}
	}
}

// BenchmarkPlan plans from nothing, and compares with an empty and with a
// complete kernel.
func BenchmarkPlan(b *testing.B) {
	h, links := crowd(b, 1000)
	b.Run("plan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			routing.Plan(h.planner.Policy(), links)
		}
	})
	b.Run("diff of nothing", func(b *testing.B) {
		empty := newHostOf(h.planner.Policy())
		b.ReportAllocs()
		for b.Loop() {
			routing.Diff(h.planner, empty.kernel, routing.Everything(h.planner, empty.kernel), always)
		}
	})
	b.Run("diff of everything", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
		}
	})
}

// BenchmarkThrown is one more throw route of main, where ten uplinks follow nearly as many as they
// can.
func BenchmarkThrown(b *testing.B) {
	h := newHost()
	for i := range 10 {
		network := fmt.Sprintf("10.%d.0.%%d", i)
		h.install(link(2+i, fmt.Sprintf("wan%d", i), address(fmt.Sprintf(network, 10)+"/24", uint32(100+i)), route(default4, fmt.Sprintf(network, 1), uint32(100+i))))
	}
	thrown := make([]netip.Prefix, 0, mostThrown)
	for i := range mostThrown {
		thrown = append(thrown, prefix(fmt.Sprintf("198.%d.%d.0/24", 18+i/256, i%256)))
	}
	h.planner.SetThrown(routing.IPv4, thrown)
	h.planner.Take()
	b.ReportAllocs()
	for i := range b.N {
		h.planner.SetThrown(routing.IPv4, thrown[:mostThrown-1-i%2])
		h.planner.Take()
	}
}
