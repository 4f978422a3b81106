package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// BenchmarkAnnouncement is what one announcement costs once it is read.
func BenchmarkAnnouncement(b *testing.B) {
	link := func(index byte, name string) []byte {
		p := append(make([]byte, 16), byte(5+len(name)), 0, 3, 0)
		p[4], p[8] = index, 1
		return append(append(p, name...), 0)
	}
	s := kernel.NewState(tables)
	must(b, s.Apply(unix.RTM_NEWLINK, 0, link(5, "wan0123")))
	kept := route(routing.TableMain, "10.0.0.0/8", "192.0.2.1", 5)
	foreign := route(routing.TableMain, "10.0.0.0/8", "192.0.2.1", 6)
	local := route(routing.TableLocal, "10.0.0.1/32", "", 5)
	source := rule(routing.PrioritySource, "192.0.2.10/32", 10001)
	pair := func(add, del uint16, payload []byte) func(*testing.B) {
		return func(b *testing.B) {
			b.Helper()
			b.ReportAllocs()
			for b.Loop() {
				_ = s.Apply(add, unix.NLM_F_EXCL, payload)
				_ = s.Apply(del, 0, payload)
			}
		}
	}
	b.Run("foreign route", pair(unix.RTM_NEWROUTE, unix.RTM_DELROUTE, kernel.EncodeRoute(foreign)))
	b.Run("local route", pair(unix.RTM_NEWROUTE, unix.RTM_DELROUTE, kernel.EncodeRoute(local)))
	b.Run("kept route", pair(unix.RTM_NEWROUTE, unix.RTM_DELROUTE, kernel.EncodeRoute(kept)))
	b.Run("rule", pair(unix.RTM_NEWRULE, unix.RTM_DELRULE, kernel.EncodeRule(source)))
}

// ladder is what one event of a link takes: two routes and five rules.
func ladder(dev int) []routing.Op {
	connected := route(10001, "192.0.2.0/24", "", dev)
	source := rule(routing.PrioritySource, "192.0.2.10/32", 10001)
	stray := source
	stray.Priority, stray.Action, stray.Table = routing.PriorityUnreachable, routing.ActionUnreachable, 0
	device := rule(routing.PriorityDevice, "", 10001)
	device.OIF = "wan0"
	network := rule(routing.PriorityNetwork, "", 10001)
	network.To = prefix("192.0.2.0/24")
	last := rule(routing.PriorityMatchAll, "", 10001)
	last.IIF = "lo"
	return []routing.Op{
		add(connected), add(route(10001, "0.0.0.0/0", "192.0.2.1", dev)),
		addRule(device), addRule(source), addRule(stray), addRule(network), addRule(last),
	}
}

func undo(ops []routing.Op) []routing.Op {
	out := make([]routing.Op, 0, len(ops))
	for _, op := range slices.Backward(ops) {
		if op.Verb == routing.AddRoute {
			op.Verb = routing.DeleteRoute
		} else {
			op.Verb = routing.DeleteRule
		}
		out = append(out, op)
	}
	return out
}

// BenchmarkLadder adds and removes the objects of one link: by the writer with
// the mirror following, and by a bare loop that sends the same messages one by
// one, with nobody listening.
func BenchmarkLadder(b *testing.B) {
	for _, standing := range []int{0, 1000} {
		prepare := func(b *testing.B) (*host, int) {
			b.Helper()
			h := newHost(b)
			dev := h.veth("wan0")
			h.address("wan0", "192.0.2.10/24")
			for i := range standing {
				r := rule(routing.PrioritySource, fmt.Sprintf("10.0.%d.%d/32", i/250, i%250), 77)
				must(b, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(r) }))
			}
			return h, dev
		}
		b.Run(fmt.Sprintf("writer and mirror, %d rules more", standing), func(b *testing.B) {
			h, dev := prepare(b)
			m := h.mirror(kernel.Config{})
			w := h.writer(m)
			add := ladder(dev)
			del := undo(add)
			b.ReportAllocs()
			for b.Loop() {
				for _, ops := range [][]routing.Op{add, del} {
					if errs := w.Apply(b.Context(), ops); errs != nil {
						b.Fatal(errors.Join(errs...))
					}
					must(b, m.Drain())
				}
			}
		})
		b.Run(fmt.Sprintf("bare loop, %d rules more", standing), func(b *testing.B) {
			h, dev := prepare(b)
			add := ladder(dev)
			del := undo(add)
			b.ReportAllocs()
			for b.Loop() {
				for _, ops := range [][]routing.Op{add, del} {
					for _, op := range ops {
						var err error
						switch op.Verb {
						case routing.AddRoute:
							err = h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b kernel.Body) { b.Route(op.Route) })
						case routing.DeleteRoute:
							err = h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(op.Route) })
						case routing.AddRule:
							err = h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b kernel.Body) { b.Rule(op.Rule) })
						default:
							err = h.raw.Do(unix.RTM_DELRULE, 0, func(b kernel.Body) { b.Rule(op.Rule) })
						}
						must(b, err)
					}
				}
			}
		})
	}
}

// bgp adds n routes through an interface.
func (h *host) bgp(dev, n int) {
	h.Helper()
	r := route(routing.TableMain, "0.0.0.0/0", "198.51.100.1", dev)
	r.Protocol = 186
	for i := range n {
		a := [4]byte{}
		binary.BigEndian.PutUint32(a[:], 0x20000000+uint32(i)<<8)
		r.Destination = netip.PrefixFrom(netip.AddrFrom4(a), 24)
		must(h, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b kernel.Body) { b.Route(r) }))
	}
}

// BenchmarkMemory is what a route of main through an interface of interest takes
// in the mirror.
func BenchmarkMemory(b *testing.B) {
	const routes = 50_000
	h := newHost(b)
	wan := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(wan, routes)
	h.enter()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		return mem.HeapAlloc
	}
	var taken uint64
	for b.Loop() {
		before := heap()
		m, err := kernel.Open(kernel.Config{Tables: tables})
		must(b, err)
		must(b, m.Sync(b.Context()))
		m.Take()
		taken = heap() - before
		if m.Slots() < routes {
			b.Fatalf("%d keys", m.Slots())
		}
		must(b, m.Close())
	}
	b.ReportMetric(float64(taken)/routes, "B/route")
}

// BenchmarkOneOfMany is a route that changes beside 50,000 others, and how its
// destination looks then.
func BenchmarkOneOfMany(b *testing.B) {
	h := newHost(b)
	wan := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(wan, 50_000)
	m := h.mirror(kernel.Config{})
	r := route(routing.TableMain, "10.0.0.0/8", "198.51.100.1", wan)
	r.Protocol = 186
	add, del := kernel.EncodeRoute(r), kernel.EncodeRoute(r)
	b.ReportAllocs()
	for b.Loop() {
		m.View(func(s *kernel.State) {
			must(b, s.Apply(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, add))
			if len(s.Ways(wan, routing.DestinationOf(r))) != 1 {
				b.Fatal("the route is not there")
			}
			must(b, s.Apply(unix.RTM_DELROUTE, 0, del))
		})
		m.Take()
	}
}

// BenchmarkLoad fills a mirror on a host with a million routes of no interest.
func BenchmarkLoad(b *testing.B) {
	const routes = 1_000_000
	h := newHost(b)
	h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	bgp := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(bgp, routes)
	for name, budget := range map[string]int{"everything": 0, "as decided": 20_000} {
		b.Run(name, func(b *testing.B) {
			h.enter()
			m, err := kernel.Open(kernel.Config{
				Tables:   routing.TableRange{First: 10000, Last: 10999},
				Interest: func(name string) bool { return name == "wan0" },
			})
			must(b, err)
			defer func() { must(b, m.Close()) }()
			m.SetBudget(budget)
			b.ReportAllocs()
			for b.Loop() {
				must(b, m.Resync(b.Context()))
			}
			runtime.GC()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			b.ReportMetric(float64(mem.HeapAlloc)/1e6, "MB-heap")
			b.ReportMetric(float64(m.Slots()), "keys")
		})
	}
	b.Run("one interface becomes of interest", func(b *testing.B) {
		h.enter()
		m, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
		must(b, err)
		defer func() { must(b, m.Close()) }()
		must(b, m.Sync(b.Context()))
		index := 0
		m.View(func(s *kernel.State) { index, _ = s.IndexOf("wan0") })
		for b.Loop() {
			must(b, m.SetInterest(b.Context(), map[int]bool{index: true}))
			must(b, m.SetInterest(b.Context(), map[int]bool{index: false}))
		}
	})
}

// BenchmarkForeignRoutes is a million routes of no interest arriving one by one
// with the mirror listening, and without.
func BenchmarkForeignRoutes(b *testing.B) {
	for _, listening := range []bool{false, true} {
		b.Run(fmt.Sprintf("listening=%t", listening), func(b *testing.B) {
			h := newHost(b)
			bgp := h.veth("bgp0")
			h.address("bgp0", "198.51.100.10/24")
			var m *kernel.Mirror
			if listening {
				m = h.mirror(kernel.Config{Interest: func(string) bool { return false }})
			}
			r := route(routing.TableMain, "10.0.0.0/8", "198.51.100.1", bgp)
			b.ReportAllocs()
			for b.Loop() {
				must(b, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(r) }))
				must(b, h.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(r) }))
				if m != nil {
					must(b, m.Drain())
				}
			}
		})
	}
}

// BenchmarkMemoryInAll is what a route of main through a link takes in the whole
// daemon: in the mirror, which has our copy too, and in the planner.
func BenchmarkMemoryInAll(b *testing.B) {
	const routes = 50_000
	h := newHost(b)
	wan := h.veth("bgp0")
	h.address("bgp0", "198.51.100.10/24")
	h.bgp(wan, routes)
	key := routing.Key{Family: routing.IPv4, Interface: "bgp0", Prefix: prefix("198.51.100.0/24")}
	plan := func(m *kernel.Mirror) *routing.Planner {
		p := routing.NewPlanner(routing.DefaultPolicy())
		m.View(func(s *kernel.State) {
			l, _ := s.Link(wan)
			p.Set(routing.Link{
				Name: l.Name, Index: l.Index, Up: l.Up, Addresses: l.Addresses, Routes: l.Routes,
				Tables: map[routing.Key]routing.TableID{key: tables.First},
			})
		})
		p.Take()
		return p
	}
	first := h.mirror(kernel.Config{Tables: tables})
	for r := range plan(first).Routes() {
		must(b, h.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b kernel.Body) { b.Route(r.Route) }))
	}
	must(b, first.Close())
	h.enter()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		return mem.HeapAlloc
	}
	var taken uint64
	for b.Loop() {
		before := heap()
		m, err := kernel.Open(kernel.Config{Tables: tables})
		must(b, err)
		must(b, m.Sync(b.Context()))
		m.Take()
		p := plan(m)
		taken = heap() - before
		if m.Slots() < 2*routes {
			b.Fatalf("%d keys", m.Slots())
		}
		runtime.KeepAlive(p)
		must(b, m.Close())
	}
	b.ReportMetric(float64(taken)/routes, "B/route")
}
