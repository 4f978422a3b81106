package routing_test

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"multihomed/routing"
)

// The generators draw from a small world on purpose: a few networks, nested and
// equal, a few gateways and metrics, so that links collide often.

var networks = []string{
	"192.0.2.%d/24", "192.0.2.%d/26", "198.51.100.%d/24", "10.0.0.%d/16", "10.0.0.%d/24", "192.168.8.%d/24", "203.0.113.%d/32",
	"2001:db8:a::%x/64", "2001:db8:b::%x/64", "2001:db8:a::%x/48", "2001:db8:a::%x/128", "fd00::%x/64",
}

// gateways by the network they lie in; the empty ones belong to none.
var gateways = map[routing.Family][]string{
	routing.IPv4: {"192.0.2.1", "192.0.2.2", "198.51.100.1", "10.0.0.254", "192.168.8.1", "172.31.1.1"},
	routing.IPv6: {"fe80::1", "fe80::2", "2001:db8:a::ff", "2001:db8:b::ff"},
}

var destinations = map[routing.Family][]string{
	routing.IPv4: {"0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0", "172.16.0.0/12", "172.16.5.0/24", "0.0.0.0/1"},
	routing.IPv6: {"::/0", "::/0", "::/0", "2001:db8:f::/48", "2001:db8:f:5::/64"},
}

// genLink draws the facts of one link. Its metrics are its own, as
// NetworkManager makes them, or those of everybody.
func genLink(t *rapid.T, index int, name string) routing.Link {
	metric := uint32(100 + index)
	if rapid.IntRange(0, 3).Draw(t, "metric") == 0 {
		metric = rapid.SampledFrom([]uint32{0, 50, 100, 20100}).Draw(t, "metric")
	}
	var parts []part
	if rapid.Bool().Draw(t, "link-local") {
		parts = append(parts, address(fmt.Sprintf("fe80::%d/64", index+100), 1024))
	}
	for range rapid.IntRange(0, 3).Draw(t, "addresses") {
		host := rapid.SampledFrom([]int{10, 10 + index, 70}).Draw(t, "host")
		s := fmt.Sprintf(rapid.SampledFrom(networks).Draw(t, "network"), host)
		change := []func(*routing.Address){func(a *routing.Address) {
			a.Dynamic = rapid.Bool().Draw(t, "dynamic")
			a.Failed = rapid.IntRange(0, 9).Draw(t, "failed") == 0
			a.Deprecated = rapid.IntRange(0, 9).Draw(t, "deprecated") == 0
		}}
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			parts = append(parts, bare(s, change...))
		case 1:
			parts = append(parts, bare(s, append(change, peer(map[bool]string{true: "100.64.0.1", false: "fd01::1"}[prefix(s).Addr().Is4()]))...))
		default:
			parts = append(parts, address(s, metric, change...))
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "routes") {
		f := rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(t, "family")
		to := rapid.SampledFrom(destinations[f]).Draw(t, "destination")
		via := rapid.SampledFrom(append(gateways[f], "")).Draw(t, "gateway")
		// Not the index of an interface: that is the metric of a stand-in in main.
		m := metric + rapid.SampledFrom([]uint32{0, 0, 1, 7}).Draw(t, "more")
		var change []func(*routing.Route)
		if via != "" {
			change = append(change, onlink)
		}
		switch rapid.IntRange(0, 9).Draw(t, "attribute") {
		case 0:
			change = append(change, mtu(1400))
		case 1:
			change = append(change, prefer(rapid.SampledFrom([]routing.Preference{routing.PreferenceHigh, routing.PreferenceLow}).Draw(t, "preference")))
		}
		parts = append(parts, route(to, via, m, change...))
	}
	for range rapid.IntRange(0, 2).Draw(t, "known") {
		f := rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(t, "family")
		to := rapid.SampledFrom(destinations[f]).Draw(t, "destination")
		via := rapid.SampledFrom(append(gateways[f], "")).Draw(t, "gateway")
		var source string
		if f == routing.IPv4 && rapid.Bool().Draw(t, "sourced") {
			source = fmt.Sprintf("192.0.2.%d", rapid.SampledFrom([]int{10, 10 + index}).Draw(t, "source"))
		}
		parts = append(parts, known(to, via, source))
	}
	l := link(index, name, parts...)
	for _, f := range routing.Families() {
		switch rapid.IntRange(0, 12).Draw(t, "intent") {
		case 0:
			l.Intents[f] = routing.Intent{LeaveAlone: "its owner says so"}
		case 1:
			l.Intents[f] = routing.Intent{Gateway: addr(gateways[f][0])}
		case 2:
			l.Intents[f] = routing.Intent{NeverDefault: true}
		}
	}
	l.Group = rapid.SampledFrom([]uint32{0, 0, 0, policy.UplinkGroup, 5}).Draw(t, "group")
	l.Addresses = uniqueAddresses(l.Addresses)
	l.Routes = uniqueRoutes(l.Routes)
	if rapid.IntRange(0, 9).Draw(t, "down") == 0 {
		down(&l)
	}
	return l
}

// genChange draws a small change of a link.
func genChange(t *rapid.T, l routing.Link) routing.Link {
	l.Addresses, l.Routes = slices.Clone(l.Addresses), slices.Clone(l.Routes)
	address := func() int { return rapid.IntRange(0, len(l.Addresses)-1).Draw(t, "address") }
	route := func() int { return rapid.IntRange(0, len(l.Routes)-1).Draw(t, "route") }
	switch kind := rapid.IntRange(0, 6).Draw(t, "change"); {
	case kind == 0 && len(l.Addresses) > 0:
		at := address()
		l.Addresses = slices.Delete(l.Addresses, at, at+1)
	case kind == 1 && len(l.Routes) > 0:
		at := route()
		l.Routes = slices.Delete(l.Routes, at, at+1)
	case kind == 2 && len(l.Routes) > 0:
		mtu(rapid.SampledFrom([]uint32{1280, 1400}).Draw(t, "mtu"))(&l.Routes[route()])
	case kind == 3 && len(l.Routes) > 0:
		// Another router for the same destination.
		r := l.Routes[route()]
		r.OnLink = true
		r.Gateway = addr(rapid.SampledFrom(gateways[r.Family]).Draw(t, "gateway"))
		l.Routes = uniqueRoutes(append(l.Routes, r))
	case kind == 4:
		for i := range l.Routes {
			l.Routes[i].Metric += 20000
		}
	case kind == 5:
		l.Up = !l.Up
	}
	return l
}

// uniqueAddresses keeps the first of equal addresses: an interface has one once.
func uniqueAddresses(all []routing.Address) []routing.Address {
	seen := map[netip.Addr]bool{}
	var out []routing.Address
	for _, a := range all {
		if !seen[a.Prefix.Addr()] {
			seen[a.Prefix.Addr()] = true
			out = append(out, a)
		}
	}
	return out
}

func uniqueRoutes(all []routing.Route) []routing.Route {
	seen := map[routing.RouteKey]bool{}
	var out []routing.Route
	for _, r := range all {
		if !seen[r.Key()] {
			seen[r.Key()] = true
			out = append(out, r)
		}
	}
	return out
}

// genTables leases tables for the keys of a link, now and then none.
func genTables(t *rapid.T, ls leases, l routing.Link) map[routing.Key]routing.TableID {
	all := ls.of(l)
	for _, k := range routing.Keys(l) {
		if rapid.IntRange(0, 14).Draw(t, "exhausted") == 0 {
			delete(all, k)
		}
	}
	return all
}

var names = []string{"wan0", "wan1", "lan0", "lan1"}

// genIndex draws an interface. Index and name mostly go together; a renamed or
// re-created interface is what happens when they do not.
func genIndex(t *rapid.T) (int, string) {
	index := rapid.IntRange(2, 5).Draw(t, "index")
	if rapid.IntRange(0, 7).Draw(t, "renamed") == 0 {
		return index, rapid.SampledFrom(names).Draw(t, "name")
	}
	return index, names[index-2]
}
