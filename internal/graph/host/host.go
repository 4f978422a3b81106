// Package host reads what package graph draws: rules, tables and interfaces of the kernel. Any user
// may read them.
package host

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"multihomed/internal/graph"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
)

// most is how many routes of a table are read.
const most = 20_000

// Read reads the kernel. It fails only where that cannot be read.
func Read(ctx context.Context, tables routing.TableRange) (graph.Facts, error) {
	mirror, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
	if err != nil {
		return graph.Facts{}, err
	}
	defer mirror.Close()
	if err := mirror.Sync(ctx); err != nil {
		return graph.Facts{}, err
	}
	facts := graph.Facts{Tables: map[routing.Family]map[routing.TableID][]routing.Route{}, Partial: map[routing.Family]map[routing.TableID]bool{}}
	mirror.View(func(k *kernel.State) {
		facts.Rules = rules(k)
		for _, index := range k.Indexes() {
			l, _ := k.LinkFacts(index)
			d := graph.Device{Index: index, Name: l.Name, Up: l.Up, Carrier: l.Carrier, Addresses: make([]netip.Prefix, 0, len(l.Addresses))}
			for _, a := range l.Addresses {
				d.Addresses = append(d.Addresses, a.Prefix)
			}
			facts.Devices = append(facts.Devices, d)
		}
	})
	reader, err := kernel.OpenReader()
	if err != nil {
		return facts, err
	}
	defer reader.Close()
	interfaces, err := reader.Interfaces(ctx)
	if err != nil {
		return facts, err
	}
	for i, d := range facts.Devices {
		for _, l := range interfaces {
			if l.Index == d.Index {
				facts.Devices[i].Table = l.Table
			}
		}
	}
	return facts, readTables(ctx, reader, &facts)
}

// Follow looks up the way of a packet, and asks the kernel too: the simulation names the rules,
// and where the kernel answers otherwise the flow says so. As in package explain, a socket insists on
// its device, which the kernel cannot be asked, and forwarding is checked after the lookup.
func Follow(ctx context.Context, packet lookup.Flow) (*graph.Flow, error) {
	reader, err := kernel.OpenReader()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	c, err := reader.Consult(ctx, packet)
	if err != nil {
		return nil, fmt.Errorf("looking up the way: %w", err)
	}
	h := c.Facts.Host()
	v, steps := h.Trace(c.Flow.Socket())
	return &graph.Flow{Flow: packet, Verdict: h.Forwarded(c.Flow, v), Steps: steps, Difference: c.Difference}, nil
}

// rules are all rules in the order of the kernel.
func rules(k *kernel.State) []routing.Rule {
	type place struct {
		family   routing.Family
		priority routing.Priority
	}
	var places []place
	note := func(r routing.Rule) { places = append(places, place{r.Family, r.Priority}) }
	for r := range k.Rules() {
		note(r)
	}
	for _, r := range k.ForeignRules() {
		note(r)
	}
	slices.SortFunc(places, func(a, b place) int {
		if a.family != b.family {
			return int(a.family) - int(b.family)
		}
		return int(a.priority) - int(b.priority)
	})
	out := make([]routing.Rule, 0, len(places))
	for _, p := range slices.Compact(places) {
		out = append(out, k.BandOrder(p.family, p.priority)...)
	}
	return out
}

func readTables(ctx context.Context, reader *kernel.Reader, facts *graph.Facts) (err error) {
	asked := map[routing.Family][]routing.TableID{}
	for _, r := range facts.Rules {
		if r.Action == routing.ActionLookup && !r.L3MDev {
			asked[r.Family] = append(asked[r.Family], r.Table)
		}
	}
	for _, f := range routing.Families() {
		for _, d := range facts.Devices {
			if d.Table != 0 {
				asked[f] = append(asked[f], d.Table)
			}
		}
		slices.Sort(asked[f])
		facts.Tables[f], facts.Partial[f], err = reader.Tables(ctx, f, slices.Compact(asked[f]), most)
		if err != nil {
			return err
		}
	}
	return nil
}
