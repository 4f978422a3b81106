package routing

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// A band is the rules of one priority: the kernel keeps them in the order in
// which they were added (net/core/fib_rules.c, fib_nl_newrule), so where two of
// them could match the same packet that order has to be the right one.
type band struct {
	family   Family
	priority Priority
}

// selectorKey is what two rules of a band must share to compete: the prefix
// they match (the source or the destination, whichever the band selects by) and
// the device. Prefixes compete with those that contain them.
type selectorKey struct {
	prefix netip.Prefix
	oif    string
}

// bandIndex finds the rules that compete with one without looking at the rest.
type bandIndex struct {
	bySelector map[selectorKey][]PlannedRule
	// lengths counts the prefix lengths in use, so that only those are tried.
	lengths map[int]int
}

func (p *Planner) band(r Rule) *bandIndex {
	b := band{r.Family, r.Priority}
	if p.bands[b] == nil {
		p.bands[b] = &bandIndex{bySelector: map[selectorKey][]PlannedRule{}, lengths: map[int]int{}}
	}
	return p.bands[b]
}

func selects(r Rule) selectorKey {
	prefix := r.From
	if r.To.IsValid() {
		prefix = r.To
	}
	if !prefix.IsValid() {
		prefix = r.Family.Any()
	}
	return selectorKey{prefix: prefix, oif: r.OIF}
}

func compareRank(a, b PlannedRule) int {
	return cmp.Or(cmp.Compare(a.Rank, b.Rank), comparePlanned(a, b))
}

func (b *bandIndex) add(r PlannedRule) {
	k := selects(r.Rule)
	rules := b.bySelector[k]
	at, _ := slices.BinarySearchFunc(rules, r, compareRank)
	b.bySelector[k] = slices.Insert(rules, at, r)
	b.lengths[k.prefix.Bits()]++
}

func (b *bandIndex) remove(r PlannedRule) {
	k := selects(r.Rule)
	rules := b.bySelector[k]
	at, found := slices.BinarySearchFunc(rules, r, compareRank)
	if !found {
		return
	}
	if rules = slices.Delete(rules, at, at+1); len(rules) == 0 {
		delete(b.bySelector, k)
	} else {
		b.bySelector[k] = rules
	}
	if b.lengths[k.prefix.Bits()]--; b.lengths[k.prefix.Bits()] == 0 {
		delete(b.lengths, k.prefix.Bits())
	}
}

// after yields the rules that could match a packet of r and must stand behind
// it.
func (b *bandIndex) after(r PlannedRule) iter.Seq[PlannedRule] {
	return func(yield func(PlannedRule) bool) {
		k := selects(r.Rule)
		for bits := range b.lengths {
			if bits > k.prefix.Bits() {
				continue
			}
			wider := selectorKey{prefix: netip.PrefixFrom(k.prefix.Addr(), bits).Masked(), oif: k.oif}
			rules := b.bySelector[wider]
			from, _ := slices.BinarySearchFunc(rules, r.Rank, func(x PlannedRule, rank uint64) int {
				if x.Rank <= rank {
					return -1
				}
				return 1
			})
			for _, x := range rules[from:] {
				if !yield(x) {
					return
				}
			}
		}
	}
}

// before yields the rules of the same selector that must stand in front of r.
func (b *bandIndex) before(r PlannedRule) iter.Seq[PlannedRule] {
	return func(yield func(PlannedRule) bool) {
		for _, x := range b.bySelector[selects(r.Rule)] {
			if x.Rank >= r.Rank || !yield(x) {
				return
			}
		}
	}
}
