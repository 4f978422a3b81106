// Package kerneltables finds the table of each network by our rules and routes in the kernel:
// those of a device name its tables, and their prefixes name the network of each. The daemon
// recovers lost leases with it, and status shows the tables to users that may not read the
// database.
package kerneltables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"multihomed/allocator"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// Tables are those that our rules and routes name, by interface, at one moment.
type Tables struct {
	byName  map[nameKey][]routing.TableID
	byIndex map[indexKey][]routing.TableID
	// ruled and routed are the prefixes of the rules and of the routes of a table. Routes say less: the
	// tables of an interface with several networks have a route to each of them.
	ruled, routed map[tableKey][]netip.Prefix
}

type nameKey struct {
	family routing.Family
	name   string
}

type indexKey struct {
	family routing.Family
	index  int
}

type tableKey struct {
	family routing.Family
	table  routing.TableID
}

// Read takes the tables of a range from the kernel's state.
func Read(tables routing.TableRange, k *kernel.State) *Tables {
	s := &Tables{
		byName: map[nameKey][]routing.TableID{}, byIndex: map[indexKey][]routing.TableID{},
		ruled: map[tableKey][]netip.Prefix{}, routed: map[tableKey][]netip.Prefix{},
	}
	failover, _ := routing.Ownership{Tables: tables}.FailoverTable()
	for r := range k.Rules() {
		if r.Action != routing.ActionLookup || !tables.Contains(r.Table) || r.Table == failover {
			continue
		}
		if r.OIF != "" {
			enter(s.byName, nameKey{r.Family, r.OIF}, r.Table)
		}
		for _, prefix := range []netip.Prefix{r.From, r.To} {
			if prefix.IsValid() {
				enter(s.ruled, tableKey{r.Family, r.Table}, prefix)
			}
		}
	}
	for r := range k.Routes() {
		if r.Table == failover || r.Type != routing.RouteUnicast {
			continue // It leads by whichever link works, or nowhere.
		}
		enter(s.byIndex, indexKey{r.Family, r.Device}, r.Table)
		if !r.IsDefault() && !r.Gateway.IsValid() {
			enter(s.routed, tableKey{r.Family, r.Table}, r.Destination)
		}
	}
	return s
}

func enter[K, V comparable](m map[K][]V, k K, v V) {
	if !slices.Contains(m[k], v) {
		m[k] = append(m[k], v)
	}
}

// Of returns the tables of an interface and family, sorted.
func (s *Tables) Of(name string, index int, f routing.Family) []routing.TableID {
	out := slices.Clone(s.byName[nameKey{f, name}])
	for _, t := range s.byIndex[indexKey{f, index}] {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out
}

// Any reports whether an interface has a table.
func (s *Tables) Any(l routing.Interface) bool {
	return len(s.Of(l.Name, l.Index, routing.IPv4)) > 0 || len(s.Of(l.Name, l.Index, routing.IPv6)) > 0
}

// table finds the table of a key among those of its interface: the one whose
// rules or routes name its network or an address of it, or the only one of an
// interface that has only one network.
func (s *Tables) table(l routing.Link, key routing.Key, keys []routing.Key) (routing.TableID, bool) {
	candidates := s.Of(l.Name, l.Index, key.Family)
	for _, prefixes := range []map[tableKey][]netip.Prefix{s.ruled, s.routed} {
		for _, t := range candidates {
			if slices.ContainsFunc(prefixes[tableKey{key.Family, t}], func(p netip.Prefix) bool { return isOf(l, key, p) }) {
				return t, true
			}
		}
	}
	same := 0
	for _, k := range keys {
		if k.Family == key.Family {
			same++
		}
	}
	if same == 1 && len(candidates) == 1 {
		return candidates[0], true
	}
	return 0, false
}

// isOf reports whether a prefix of a rule or a route is the network of a key, or one of its
// addresses. An address that is gone counts for the network that contains it.
func isOf(l routing.Link, key routing.Key, p netip.Prefix) bool {
	if !p.IsSingleIP() {
		return p == key.Prefix
	}
	if own, has := routing.KeyOf(l, p.Addr()); has {
		return own == key
	}
	return !key.OfHosts() && key.Prefix.Contains(p.Addr())
}

// Leases returns the tables of all networks that can be found, of the current interfaces. No
// table and no key is in it twice: a table that two networks could claim is left out.
func (s *Tables) Leases(k *kernel.State) []allocator.Standing {
	var all []allocator.Standing
	claimed := map[routing.TableID]int{}
	for _, index := range k.Indexes() {
		facts, ok := k.Link(index)
		if !ok || !s.Any(facts) {
			continue
		}
		link := routing.Link{Name: facts.Name, Index: facts.Index, Up: facts.Up, Addresses: facts.Addresses, Routes: facts.Routes}
		keys := routing.Keys(link)
		for _, key := range keys {
			if t, ok := s.table(link, key, keys); ok {
				claimed[t]++
				all = append(all, allocator.Standing{Key: key, Table: t})
			}
		}
	}
	return slices.DeleteFunc(all, func(l allocator.Standing) bool { return claimed[l.Table] > 1 })
}

// Find reads the kernel and returns the leases of a range of tables. If rules name only leased
// tables it reads nothing else: a link may have 50,000 routes. The routes of main decide which
// network a DHCPv6 address belongs to, so it reads them for interfaces that have tables.
func Find(ctx context.Context, tables routing.TableRange, leased func(routing.TableID) bool) (leases []allocator.Standing, err error) {
	rules, err := kernel.ReadRules(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's rules: %w", err)
	}
	if !slices.ContainsFunc(rules, func(r routing.Rule) bool {
		return r.Protocol == routing.Multihomed && tables.Contains(r.Table) && !leased(r.Table)
	}) {
		return nil, nil
	}
	mirror, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mirror.Close()) }()
	if err := mirror.Sync(ctx); err != nil {
		return nil, fmt.Errorf("reading the kernel: %w", err)
	}
	interest := map[int]bool{}
	mirror.View(func(k *kernel.State) {
		stands := Read(tables, k)
		for _, index := range k.Indexes() {
			if facts, ok := k.LinkFacts(index); ok && stands.Any(facts) {
				interest[index] = true
			}
		}
	})
	if len(interest) == 0 {
		return nil, nil
	}
	if err := mirror.SetInterest(ctx, interest); err != nil {
		return nil, fmt.Errorf("reading the kernel: %w", err)
	}
	mirror.View(func(k *kernel.State) { leases = Read(tables, k).Leases(k) })
	return leases, nil
}
