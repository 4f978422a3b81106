package kerneltest

import (
	"net/netip"
	"slices"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Lookup says what becomes of a packet.
func (k *Kernel) Lookup(f lookup.Flow) lookup.Verdict {
	return k.host(f, func(routing.Rule) bool { return true }).Lookup(f)
}

// LookupWithoutUs is Lookup on a kernel that holds no rule of ours.
func (k *Kernel) LookupWithoutUs(f lookup.Flow) lookup.Verdict {
	return k.host(f, func(r routing.Rule) bool { return !k.policy.OwnsRule(r) }).Lookup(f)
}

// LookupIf is Lookup on a kernel that holds some of its rules only.
func (k *Kernel) LookupIf(f lookup.Flow, stands func(routing.Rule) bool) lookup.Verdict {
	return k.host(f, stands).Lookup(f)
}

// LookupUnthrown is Lookup on a kernel without the throw routes of main and of our tables, and
// without what these tables except from them.
func (k *Kernel) LookupUnthrown(f lookup.Flow) lookup.Verdict {
	h := k.host(f, func(routing.Rule) bool { return true })
	for _, tables := range h.Tables {
		for table, routes := range tables {
			tables[table] = slices.DeleteFunc(slices.Clone(routes), func(r routing.Route) bool {
				return r.Type == routing.RouteThrow && (table == routing.TableMain || r.Protocol == routing.Multihomed) ||
					r.Protocol == routing.Multihomed && r.Metric >= 2*routing.FirstMetric
			})
		}
	}
	return h.Lookup(f)
}

// Trace is LookupIf with all that was asked on the way.
func (k *Kernel) Trace(f lookup.Flow, stands func(routing.Rule) bool) (lookup.Verdict, []lookup.Step) {
	return k.host(f, stands).Trace(f)
}

// host is what the answer to a flow depends on.
func (k *Kernel) host(f lookup.Flow, stands func(routing.Rule) bool) *lookup.Host {
	family := routing.FamilyOf(f.To)
	h := &lookup.Host{}
	tables := map[routing.TableID][]routing.Route{}
	for t, routes := range k.routes {
		if t.family == family {
			tables[t.table] = weighed(routes)
		}
	}
	for _, index := range k.indexes() {
		i := k.interfaces[index]
		h.Interfaces = append(h.Interfaces, lookup.Interface{Index: i.Index, Name: i.Name, Group: i.Group, Up: i.Up})
		for _, a := range i.Addresses {
			if own := a.Prefix.Addr(); routing.FamilyOf(own) == family {
				tables[routing.TableLocal] = append(tables[routing.TableLocal], routing.Route{
					Family: family, Table: routing.TableLocal, Destination: netip.PrefixFrom(own, own.BitLen()), Type: routing.RouteLocal,
					Scope: routing.ScopeHost, Device: i.Index, Protocol: ProtocolKernel,
				})
			}
		}
	}
	h.Tables = map[routing.Family]map[routing.TableID][]routing.Route{family: tables}
	for _, p := range k.priorities(family) {
		for _, r := range k.bands[band{family, p}] {
			if stands(r) {
				h.Rules = append(h.Rules, r)
			}
		}
	}
	return h
}

// weighed gives a weight to the legs of multipath routes: here they are routes
// that the kernel could not hold side by side (fib_table_insert), or of IPv6 what
// it joins by itself (rt6_qualify_for_ecmp).
func weighed(routes []routing.Route) []routing.Route {
	out := routes
	counts := map[routing.RouteKey]int{}
	for i := range routes {
		counts[legKey(&routes[i])]++
	}
	for i := range routes {
		if counts[legKey(&routes[i])] < 2 || routes[i].Weight > 0 || routes[i].Family == routing.IPv6 && !routes[i].Gateway.IsValid() {
			continue
		}
		if &out[0] == &routes[0] {
			out = slices.Clone(routes)
		}
		out[i].Weight = 1
	}
	return out
}

// legKey is what the legs of one route share.
func legKey(r *routing.Route) routing.RouteKey {
	k := r.Key()
	if r.Gateway.IsValid() {
		k.Gateway = netip.Addr{}
		k.Device = 0
	}
	return k
}
