// Package viewtest makes views and snapshots of hosts that do not exist, for tests of what
// becomes of them.
package viewtest

import (
	"net/netip"

	"multihomed/internal/status/view"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Of is the view of a host with some links, on which everything is in force. Its planner is a
// [routing.Planner]. Links without tables get the first ones of the range.
func Of(links ...routing.Link) *view.View {
	policy := routing.DefaultPolicy()
	table := policy.Tables.First
	v := &view.View{
		Policy: policy, Links: map[string]routing.Interface{}, Claims: map[string]reconcile.Claim{},
		ForeignIn: map[routing.TableID]string{},
		Running:   true, Daemon: view.Daemon{Ready: true},
		NM: nm.Snapshot{Status: nm.Status{Running: true, Complete: true}},
	}
	planner := routing.NewPlanner(policy)
	v.Planner = planner
	for _, l := range links {
		if l.Tables == nil {
			l.Tables = map[routing.Key]routing.TableID{}
			for _, k := range routing.Keys(l) {
				l.Tables[k] = table
				table++
			}
		}
		v.Links[l.Name] = routing.Interface{Index: l.Index, Name: l.Name, Up: l.Up, Carrier: true}
		v.Claims[l.Name] = reconcile.Claim{Standing: reconcile.Link}
		planner.Set(l)
	}
	for _, f := range routing.Families() {
		planner.SetForeign(f, Kernels(f))
	}
	return v
}

// Kernels are the rules of a family that the kernel makes itself.
func Kernels(f routing.Family) []routing.ForeignRule {
	return []routing.ForeignRule{
		{Rule: routing.Rule{Family: f, Priority: 0, Action: routing.ActionLookup, Table: routing.TableLocal}},
		{Rule: routing.Rule{Family: f, Priority: 32766, Action: routing.ActionLookup, Table: routing.TableMain}},
		{Rule: routing.Rule{Family: f, Priority: 32767, Action: routing.ActionLookup, Table: routing.TableDefault}},
	}
}

// Snapshot is how the daemon sees some links on which everything is in force.
func Snapshot(links ...routing.Link) *reconcile.Snapshot {
	v := Of(links...)
	s := &reconcile.Snapshot{Policy: v.Policy, Claims: v.Claims}
	for i, f := range routing.Families() {
		s.Others[i] = Kernels(f)
	}
	for plan := range v.Planner.Links() {
		facts := v.Links[plan.Link.Name]
		facts.Addresses = plan.Link.Addresses
		s.Interfaces = append(s.Interfaces, &reconcile.Interface{Facts: facts, IsLink: true, Plan: plan})
	}
	return s
}

// Uplink is an interface with an address and a default route.
func Uplink(name string, index int, prefix, gateway string) routing.Link {
	p := netip.MustParsePrefix(prefix)
	f := routing.FamilyOf(p.Addr())
	l := routing.Link{
		Name: name, Index: index, Up: true, Group: 28008,
		Addresses: []routing.Address{{Prefix: p, Dynamic: true}},
		Routes: []routing.Route{
			{Family: f, Table: routing.TableMain, Destination: p.Masked(), Type: routing.RouteUnicast, Device: index, Scope: routing.ScopeLink},
		},
	}
	if gateway != "" {
		l.Routes = append(l.Routes, routing.Route{
			Family: f, Table: routing.TableMain, Destination: f.Any(), Type: routing.RouteUnicast, Device: index,
			Gateway: netip.MustParseAddr(gateway),
		})
	}
	return l
}

// WAN is the first or the second of two such uplinks, wan0 and wan1.
func WAN(n int) routing.Link {
	return [...]routing.Link{
		Uplink("wan0", 2, "198.51.100.7/24", "198.51.100.1"),
		Uplink("wan1", 3, "203.0.113.7/24", "203.0.113.1"),
	}[n]
}
