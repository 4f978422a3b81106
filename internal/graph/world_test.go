package graph_test

import (
	"fmt"
	"net/netip"
	"slices"

	"multihomed/internal/graph"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// world is a host with some uplinks in both families, a bridge of containers and a rule of
// somebody else that is lifted.
func world(links int) graph.Facts {
	f := graph.Facts{
		Tables: map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}},
		Devices: []graph.Device{
			{Index: 1, Name: "lo", Up: true, Carrier: true, Addresses: []netip.Prefix{prefix("127.0.0.1/8"), prefix("::1/128")}},
			{Index: 90, Name: "docker0", Up: true, Carrier: true, Addresses: []netip.Prefix{prefix("172.17.0.1/16")}},
			{Index: 91, Name: "wg0", Up: true, Carrier: true, Addresses: []netip.Prefix{prefix("10.8.0.2/32")}},
		},
	}
	for _, family := range routing.Families() {
		addLinks(&f, family, links)
	}
	f.Annotate(document(links))
	return f
}

func addresses(family routing.Family, n int) (own, router netip.Addr, network netip.Prefix) {
	if family == routing.IPv4 {
		network = prefix(fmt.Sprintf("10.%d.0.0/24", 90+n))
		return netip.MustParseAddr(fmt.Sprintf("10.%d.0.120", 90+n)), netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", 90+n)), network
	}
	network = prefix(fmt.Sprintf("2001:db8:%x::/64", 0x90+n))
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::120", 0x90+n)), netip.MustParseAddr("fe80::1"), network
}

func addLinks(f *graph.Facts, family routing.Family, links int) {
	tables := f.Tables[family]
	rule := func(p routing.Priority, change func(*routing.Rule)) {
		r := routing.Rule{Family: family, Priority: p, Action: routing.ActionLookup, Protocol: routing.Multihomed}
		change(&r)
		f.Rules = append(f.Rules, r)
	}
	route := func(t routing.TableID, to netip.Prefix, via netip.Addr, device int, kind routing.RouteType) {
		tables[t] = append(tables[t], routing.Route{Family: family, Table: t, Type: kind, Destination: to, Gateway: via, Device: device})
	}
	each := func(do func(n int, name string, t routing.TableID, own, router netip.Addr, network netip.Prefix)) {
		for n := range links {
			own, router, network := addresses(family, n)
			do(n, fmt.Sprintf("wan%d", n), routing.TableID(10000+n+50*int(family)), own, router, network)
		}
	}
	kernels := func(p routing.Priority, t routing.TableID) {
		rule(p, func(r *routing.Rule) { r.Protocol, r.Table = routing.ProtocolKernel, t })
	}
	kernels(0, routing.TableLocal)
	rule(8500, func(r *routing.Rule) {
		r.Mark, r.Action, r.Goto = routing.Mark{Value: 0x80000001, Mask: 0x7fffffff}, routing.ActionGoto, 20500
	})
	source := func(own netip.Addr, network netip.Prefix) netip.Prefix {
		if family == routing.IPv6 {
			return network
		}
		return netip.PrefixFrom(own, own.BitLen())
	}
	each(func(_ int, _ string, _ routing.TableID, own, _ netip.Addr, network netip.Prefix) {
		rule(9020, func(r *routing.Rule) {
			r.From, r.Table = source(own, network), routing.TableMain
			r.SuppressPrefixLength, r.SuppressGroup = routing.Some(7), routing.Some(28008)
		})
	})
	each(func(_ int, name string, t routing.TableID, _, _ netip.Addr, _ netip.Prefix) {
		rule(9500, func(r *routing.Rule) { r.OIF, r.Table = name, t })
	})
	each(func(_ int, _ string, t routing.TableID, own, _ netip.Addr, network netip.Prefix) {
		rule(10000, func(r *routing.Rule) { r.From, r.Table = source(own, network), t })
	})
	each(func(_ int, _ string, _ routing.TableID, own, _ netip.Addr, network netip.Prefix) {
		rule(10500, func(r *routing.Rule) { r.From, r.Action = source(own, network), routing.ActionUnreachable })
	})
	rule(20500, func(r *routing.Rule) {
		r.Protocol, r.Mark, r.Table = routing.ProtocolStatic, routing.Mark{Value: 1, Mask: 0xffffffff}, 51820
	})
	rule(32765, func(r *routing.Rule) {
		r.Table, r.SuppressPrefixLength, r.Invert, r.From = routing.TableMain, routing.Some(0), true, netip.PrefixFrom(family.Any().Addr().Next(), family.Bits())
	})
	rule(32765, func(r *routing.Rule) { r.Table = 10999 })
	kernels(32766, routing.TableMain)
	if family == routing.IPv4 {
		kernels(32767, routing.TableDefault)
		route(routing.TableMain, prefix("172.17.0.0/16"), netip.Addr{}, 90, routing.RouteUnicast)
	}
	route(51820, family.Any(), netip.Addr{}, 91, routing.RouteUnicast)
	each(func(n int, name string, t routing.TableID, own, router netip.Addr, network netip.Prefix) {
		route(routing.TableLocal, netip.PrefixFrom(own, own.BitLen()), netip.Addr{}, 2+n, 2)
		route(routing.TableMain, network, netip.Addr{}, 2+n, routing.RouteUnicast)
		route(t, family.Any(), router, 2+n, routing.RouteUnicast)
		route(t, network, netip.Addr{}, 2+n, routing.RouteUnicast)
		if n < 4 {
			tables[routing.TableMain] = slices.Insert(tables[routing.TableMain], n, routing.Route{
				Family: family, Table: routing.TableMain, Type: routing.RouteUnicast, Destination: family.Any(), Gateway: router, Device: 2 + n, Metric: uint32(100 + n),
			})
		}
		own2 := netip.PrefixFrom(own, network.Bits())
		if i := slices.IndexFunc(f.Devices, func(d graph.Device) bool { return d.Name == name }); i >= 0 {
			f.Devices[i].Addresses = append(f.Devices[i].Addresses, own2)
		} else {
			f.Devices = append(f.Devices, graph.Device{Index: 2 + n, Name: name, Up: true, Carrier: n != 3, Addresses: []netip.Prefix{own2}})
		}
	})
}

// document is what multihomed says of the host.
func document(links int) *status.Status {
	s := &status.Status{Tables: status.Range{First: 10000, Last: 10999}, Failover: &status.Failover{Enabled: true}}
	for n := range links {
		name := fmt.Sprintf("wan%d", n)
		l := status.Link{Interface: name, Profile: [...]string{"Fibre of the office", "LTE", "DSL"}[n%3], Role: "uplink"}
		for _, family := range routing.Families() {
			_, _, network := addresses(family, n)
			l.Networks = append(l.Networks, status.Network{Family: family.String(), Prefix: network, Table: uint32(10000 + n + 50*int(family))})
			state := [...]status.HealthState{status.HealthUp, status.HealthDown, status.HealthSuspect, status.HealthUp, status.HealthUnprobed}[n%5]
			s.Failover.Uplinks = append(s.Failover.Uplinks, status.Health{Interface: name, Family: family.String(), State: state, Why: "192.0.2.53 answers"})
		}
		s.Links = append(s.Links, l)
	}
	return s
}

// follow looks up the way of a packet on a host.
func follow(f graph.Facts, packet lookup.Flow) *graph.Flow {
	h := &lookup.Host{Rules: f.Rules, Tables: f.Tables, Partial: f.Partial}
	for _, d := range f.Devices {
		h.Interfaces = append(h.Interfaces, lookup.Interface{Index: d.Index, Name: d.Name, Up: d.Up})
	}
	v, steps := h.Trace(packet)
	return &graph.Flow{Flow: packet, Verdict: v, Steps: steps}
}
