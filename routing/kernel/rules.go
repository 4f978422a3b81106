package kernel

import (
	"cmp"
	"iter"
	"slices"

	"multihomed/routing"
)

// band is the rules of one priority, which the kernel keeps in the order in
// which they were added (fib_nl_newrule in net/core/fib_rules.c).
type band struct {
	family   routing.Family
	priority routing.Priority
}

// A rung is one rule as often as it stands.
type rung struct {
	rule routing.Rule
	// places are its places in the kernel's order, first to last.
	places []uint64
	ours   bool
}

// A ruleBook is all rules of both families.
type ruleBook struct {
	rungs map[routing.Rule]*rung
	bands map[band]map[*rung]struct{}
	// foreign are the rules of others.
	foreign map[routing.Family]map[*rung]struct{}
	// alike finds the rules of ours that the kernel may take for each other.
	alike map[likeness][]*rung
	// lookups counts the foreign rules that lead to a table, ours our own.
	lookups, ours map[routing.TableID]int
	// hidden counts the foreign rules that send nearly everything to a table which bound
	// traffic does not ask.
	hidden map[routing.TableID]int
	// all counts the foreign rules that read a table for every packet, or all but some.
	all  map[otherKey]int
	last uint64
	// loaded is the last place that the kernel's list gave. What has a higher one came
	// later, and in this order.
	loaded uint64
}

func newRuleBook() ruleBook {
	return ruleBook{
		rungs: map[routing.Rule]*rung{}, bands: map[band]map[*rung]struct{}{}, lookups: map[routing.TableID]int{},
		alike:   map[likeness][]*rung{},
		ours:    map[routing.TableID]int{},
		hidden:  map[routing.TableID]int{},
		all:     map[otherKey]int{},
		foreign: map[routing.Family]map[*rung]struct{}{routing.IPv4: {}, routing.IPv6: {}},
	}
}

// add appends a rule behind its equals.
func (b *ruleBook) add(r routing.Rule, ours bool) {
	g := b.rungs[r]
	if g == nil {
		g = &rung{rule: r, ours: ours}
		b.rungs[r] = g
		k := band{r.Family, r.Priority}
		if b.bands[k] == nil {
			b.bands[k] = map[*rung]struct{}{}
		}
		b.bands[k][g] = struct{}{}
		if !ours {
			b.foreign[r.Family][g] = struct{}{}
		} else {
			b.enlist(g)
		}
	}
	b.last++
	g.places = append(g.places, b.last)
	if r.Action == routing.ActionLookup {
		b.leading(g)[r.Table]++
	}
	if !ours && r.Hides() {
		b.hidden[r.Table]++
	}
	if !ours && r.TakesAll() {
		b.all[otherKey{r.Family, r.Table}]++
	}
}

// remove takes the first of equal rules away, as the kernel does.
func (b *ruleBook) remove(r routing.Rule) bool {
	g := b.rungs[r]
	if g == nil {
		return false
	}
	if r.Action == routing.ActionLookup {
		counts := b.leading(g)
		if counts[r.Table]--; counts[r.Table] == 0 {
			delete(counts, r.Table)
		}
	}
	if k := (otherKey{r.Family, r.Table}); !g.ours && r.TakesAll() {
		if b.all[k]--; b.all[k] == 0 {
			delete(b.all, k)
		}
	}
	if !g.ours && r.Hides() {
		if b.hidden[r.Table]--; b.hidden[r.Table] == 0 {
			delete(b.hidden, r.Table)
		}
	}
	if g.places = g.places[1:]; len(g.places) > 0 {
		return true
	}
	delete(b.rungs, r)
	k := band{r.Family, r.Priority}
	delete(b.bands[k], g)
	if g.ours {
		b.delist(g)
	} else {
		delete(b.foreign[r.Family], g)
	}
	if len(b.bands[k]) == 0 {
		delete(b.bands, k)
	}
	return true
}

// leading is the count that a rule's table is part of.
func (b *ruleBook) leading(g *rung) map[routing.TableID]int {
	if g.ours {
		return b.ours
	}
	return b.lookups
}

// order lists rungs in kernel order, a rule that stands twice twice.
func order(rungs iter.Seq[*rung]) []routing.Rule {
	type place struct {
		rule *routing.Rule
		at   uint64
	}
	var places []place
	for g := range rungs {
		for _, at := range g.places {
			places = append(places, place{&g.rule, at})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(
			cmp.Compare(a.rule.Family, b.rule.Family),
			cmp.Compare(a.rule.Priority, b.rule.Priority),
			cmp.Compare(a.at, b.at),
		)
	})
	out := make([]routing.Rule, len(places))
	for i, p := range places {
		out[i] = *p.rule
	}
	return out
}
