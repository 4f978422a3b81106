package lookup

import (
	"slices"

	"multihomed/routing"
)

// A Candidate is a route as the kernel lists it, or one leg of a multipath route.
type Candidate struct {
	Route routing.Route
	// Dead says that the kernel does not use it: its device is down, or has no carrier
	// and ignores such routes (RTNH_F_DEAD, as fib_nexthop_info and rt6_fill_node report it).
	// What leads through an interface without carrier is used all the same where it is not
	// dead ([Interface.NoCarrier]).
	Dead bool
	// Nexthop is the number of the nexthop object that the route leads to, 0 if it has its own ways.
	Nexthop uint32
}

// Facts are what lookups of one family depend on, read for some destinations. They are
// values: whoever asks "what if" copies and changes them.
type Facts struct {
	Family     routing.Family
	Interfaces []Interface
	// Rules are in the kernel's order.
	Rules []routing.Rule
	// Tables hold, in the kernel's order, what contains one of the addresses that were asked
	// for: of the tables that rules and VRFs name, and of local, main and default.
	Tables map[routing.TableID][]Candidate
	// Merged is [Host.Merged].
	Merged bool
	// Before615 is [Host.Before615].
	Before615 bool
	// Before72 is [Host.Before72].
	Before72 bool
}

// Otherwise lists what the facts may be instead: nothing tells what the kernel does, but its answers.
func (f *Facts) Otherwise() []*Facts {
	var out []*Facts
	if f.Unruled() {
		one := *f
		one.Merged = true
		out = append(out, &one)
	}
	isVRF := func(name string) bool {
		return name != "" && slices.ContainsFunc(f.Interfaces, func(i Interface) bool { return i.Table != 0 && i.Is(name) })
	}
	depends := func(r routing.Rule) bool {
		return isVRF(r.IIF) || isVRF(r.OIF) || r.Family == routing.IPv6 && r.DSCP == routing.Some(0)
	}
	// The version of the kernel is a hint: distributions take changes into older ones.
	if slices.ContainsFunc(f.Rules, depends) {
		one := *f
		one.Before615 = !f.Before615
		out = append(out, &one)
	}
	suppresses := func(r routing.Rule) bool {
		return r.Family == routing.IPv6 && (r.SuppressPrefixLength.Set || r.SuppressGroup.Set)
	}
	if slices.ContainsFunc(f.Rules, suppresses) {
		for _, other := range append([]*Facts{f}, out...) {
			one := *other
			one.Before72 = !f.Before72
			out = append(out, &one)
		}
	}
	return out
}

// Asked lists the tables that a lookup may ask: those that rules and VRFs name, and local, main and
// default.
func (f *Facts) Asked() []routing.TableID {
	out := []routing.TableID{routing.TableLocal, routing.TableMain, routing.TableDefault}
	for _, r := range f.Rules {
		// A rule for the table of a VRF names none.
		if r.Action == routing.ActionLookup && r.Table != 0 {
			out = append(out, r.Table)
		}
	}
	for _, i := range f.Interfaces {
		if i.Table != 0 {
			out = append(out, i.Table)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Host returns what lookups ask: the candidates that are not dead.
func (f *Facts) Host() *Host {
	h := &Host{Interfaces: f.Interfaces, Rules: f.Rules, Merged: f.Merged, Before615: f.Before615, Before72: f.Before72, Checks: true, objects: map[*routing.Route]uint32{}}
	tables := make(map[routing.TableID][]routing.Route, len(f.Tables))
	for id, candidates := range f.Tables {
		routes, nexthops := make([]routing.Route, 0, len(candidates)), make([]uint32, 0, len(candidates))
		for _, c := range candidates {
			if !c.Dead {
				routes, nexthops = append(routes, c.Route), append(nexthops, c.Nexthop)
			}
		}
		for i, n := range nexthops {
			if n != 0 {
				h.objects[&routes[i]] = n
			}
		}
		tables[id] = routes
	}
	h.Tables = map[routing.Family]map[routing.TableID][]routing.Route{f.Family: tables}
	return h
}

// Unruled reports whether the rules are those that the kernel begins with. Until somebody adds or
// deletes a rule of IPv4, the kernel asks none and keeps local and main in one trie, and
// nothing tells whether somebody has ([Host.Merged]).
func (f *Facts) Unruled() bool {
	want := []routing.Rule{
		{Family: routing.IPv4, Action: routing.ActionLookup, Table: routing.TableLocal},
		{Family: routing.IPv4, Priority: 32766, Action: routing.ActionLookup, Table: routing.TableMain},
		{Family: routing.IPv4, Priority: 32767, Action: routing.ActionLookup, Table: routing.TableDefault},
	}
	return f.Family == routing.IPv4 && slices.EqualFunc(f.Rules, want, func(have, want routing.Rule) bool {
		have.Protocol = 0 // RTPROT_KERNEL; older kernels say nothing.
		return have == want
	})
}
