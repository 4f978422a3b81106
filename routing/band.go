package routing

import (
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
// they match (the source, or the destination where there is none) and the device. Prefixes compete with those that contain them.
type selectorKey struct {
	prefix netip.Prefix
	oif    string
}

// bandIndex finds the rules that compete with one without looking at the rest.
type bandIndex struct {
	bySelector map[selectorKey][]entry
	// lengths counts the prefix lengths in use, so that only those are tried.
	lengths map[int]int
}

// entry is a rule in the index, by its rank.
type entry struct {
	rank uint64
	rule *wanted[PlannedRule]
}

func (p *Planner) band(r Rule) *bandIndex {
	b := band{r.Family, r.Priority}
	if p.bands[b] == nil {
		p.bands[b] = &bandIndex{bySelector: map[selectorKey][]entry{}, lengths: map[int]int{}}
	}
	return p.bands[b]
}

// selects returns what a rule competes by. Bindings compete with all: what main knows goes before
// the sources. Gotos and what else stands in front of the
// ladder compete with all: their selectors are those of others, and their order is what
// the ladder depends on. Rules with a source compete by it, whatever destination they
// are for.
func selects(r Rule) selectorKey {
	if r.competesWithAll() {
		return selectorKey{prefix: r.Family.Any()}
	}
	prefix := r.To
	if r.From.IsValid() {
		prefix = r.From
	}
	if !prefix.IsValid() {
		prefix = r.Family.Any()
	}
	return selectorKey{prefix: prefix, oif: r.OIF}
}

func (r *Rule) competesWithAll() bool {
	return r.Action == ActionGoto || r.inFront() || r.ofFailover() || r.binds()
}

// above finds the first rule of a higher rank.
func above(rules []entry, rank uint64) int {
	at, _ := slices.BinarySearchFunc(rules, rank, func(x entry, rank uint64) int {
		if x.rank <= rank {
			return -1
		}
		return 1
	})
	return at
}

func (b *bandIndex) add(r *PlannedRule, w *wanted[PlannedRule]) {
	k := selects(r.Rule)
	rules := b.bySelector[k]
	b.bySelector[k] = slices.Insert(rules, above(rules, r.Rank), entry{r.Rank, w})
	b.lengths[k.prefix.Bits()]++
}

func (b *bandIndex) remove(r *PlannedRule, w *wanted[PlannedRule]) {
	k := selects(r.Rule)
	rules := b.bySelector[k]
	at := above(rules, r.Rank) - 1
	for at >= 0 && rules[at].rule != w {
		at--
	}
	if at < 0 {
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

// around yields the selectors in use that hold that of r, its own included.
func (b *bandIndex) around(r *PlannedRule) iter.Seq[selectorKey] {
	return func(yield func(selectorKey) bool) {
		if r.Rule.competesWithAll() {
			for k := range b.bySelector {
				if !yield(k) {
					return
				}
			}
			return
		}
		k := selects(r.Rule)
		if r.Rule.repeats() && k.oif != "" {
			// What is for a device stands before all sources there.
			for other := range b.bySelector {
				if (other.oif == "" || other.oif == k.oif) && !yield(other) {
					return
				}
			}
			return
		}
		for bits := range b.lengths {
			if bits > k.prefix.Bits() {
				continue
			}
			wider := selectorKey{prefix: netip.PrefixFrom(k.prefix.Addr(), bits).Masked(), oif: k.oif}
			if _, used := b.bySelector[wider]; used && !yield(wider) {
				return
			}
			// A rule for any device holds those for one.
			wider.oif = ""
			if _, used := b.bySelector[wider]; used && k.oif != "" && !yield(wider) {
				return
			}
		}
	}
}

// behind returns the rules of a selector whose rank is higher.
func (b *bandIndex) behind(k selectorKey, rank uint64) []entry {
	rules := b.bySelector[k]
	return rules[above(rules, rank):]
}
