package answers

import (
	"cmp"
	"fmt"
	"slices"
)

// A Phase says when operations are done, relative to rules 9099-9101 of routing. The operations of a
// phase are one transaction.
type Phase uint8

// Phases. The rules of routing change between the first and the second.
const (
	// BeforeRules takes packets away from numbers whose rules may go or change, and lets packets pass
	// that leave by a link to which an address has moved.
	BeforeRules Phase = iota
	// AfterRules adds everything that is missing, and replaces what is altered.
	AfterRules
	// Leftovers deletes what is not planned any more. It is a transaction of its own: some kernels
	// refuse to delete a chain in the transaction that deletes the last element that leads there (EBUSY).
	Leftovers
)

func (p Phase) String() string {
	switch p {
	case BeforeRules:
		return "before the rules"
	case AfterRules:
		return "after the rules"
	case Leftovers:
		return "leftovers"
	default:
		return fmt.Sprintf("phase %d", uint8(p))
	}
}

// A Verb is what an operation does.
type Verb uint8

// Verbs, in the order in which a transaction applies them: what is deleted goes before what takes its
// place, and an object stands before others refer to it.
const (
	AddTable Verb = iota
	DeleteRule
	DeleteElement
	DeleteChain
	DeleteSet
	AddSet
	AddChain
	// AddRule appends a rule to its chain, or inserts it before the one with the handle.
	AddRule
	AddElement
	DeleteTable
)

func (v Verb) String() string {
	names := [...]string{"add table", "delete rule", "delete element", "delete chain", "delete set", "add set", "add chain", "add rule", "add element", "delete table"}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("verb %d", uint8(v))
}

// An Op is one change of the table. Its verb says which fields have a meaning.
type Op struct {
	Phase   Phase
	Verb    Verb
	Chain   Chain
	Set     Set
	Element Element
	// Rule is what is added, or what a rule of ours that is deleted said.
	Rule Rule
	// Handle is that of the rule that is deleted, or before which one is added; 0 appends.
	Handle uint64
}

// String says in words of nft(8) what it does.
func (o Op) String() string {
	switch o.Verb {
	case AddRule:
		return fmt.Sprintf("add rule %s %s", o.Rule.Chain, o.Rule)
	case DeleteRule:
		return fmt.Sprintf("delete rule %s handle %d", o.Rule.Chain, o.Handle)
	case AddElement, DeleteElement:
		return o.Verb.String() + " " + o.Element.String()
	case AddChain, DeleteChain:
		return o.Verb.String() + " " + o.Chain.Name
	case AddSet, DeleteSet:
		return o.Verb.String() + " " + o.Set.Name
	default:
		return o.Verb.String()
	}
}

// Of returns the operations of a phase.
func Of(ops []Op, phase Phase) []Op {
	var out []Op
	for _, o := range ops {
		if o.Phase == phase {
			out = append(out, o)
		}
	}
	return out
}

// Diff returns the operations, in their order, that make the kernel hold what is planned. mayDelete is
// asked for every object that is not planned: only complete knowledge may delete. It is not asked about
// what takes the place of something, and about what somebody altered: neither is a question of knowledge.
// After a transaction that fails, read again and ask Diff again.
//
// An element of a map that is not planned, or whose number changes, goes before the rules of routing
// change; so does one whose chain sets another mark than is planned. An element that may not be deleted
// keeps its chain: while knowledge is incomplete, nobody may give its number to another table.
func Diff(planned Table, held Held, mayDelete func(Op) bool) []Op {
	d := diff{planned: planned, held: held, mayDelete: mayDelete, foreign: held.foreign()}
	if !planned.Empty() && (!held.Exists || held.Dormant) {
		d.add(Op{Phase: AfterRules, Verb: AddTable})
	}
	if held.Exists || !planned.Empty() {
		d.remake()
		d.elements()
		d.rules()
		d.leftovers()
	}
	// The order inside of a phase, a verb and a chain is that in which they were found.
	slices.SortStableFunc(d.ops, func(a, b Op) int {
		return cmp.Or(cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Verb, b.Verb), lastDiverts(a, b))
	})
	return d.ops
}

// lastDiverts puts elements that divert packets behind all others.
func lastDiverts(a, b Op) int {
	switch x, y := a.Element.diverts(), b.Element.diverts(); {
	case x == y:
		return 0
	case x:
		return 1
	default:
		return -1
	}
}

// A diff is one that is being made.
type diff struct {
	planned   Table
	held      Held
	mayDelete func(Op) bool
	foreign   bool
	ops       []Op

	// keptRules and keptElements are not planned, and may not be deleted. What they refer to stays.
	keptRules    []Rule
	keptElements []Element
	// remadeChains and remadeSets are deleted and added anew.
	remadeChains, remadeSets map[string]bool
}

func (d *diff) add(o Op) { d.ops = append(d.ops, o) }

// may deletes what is not planned, if that is allowed.
func (d *diff) may(o Op) bool {
	o.Phase = Leftovers
	if !d.mayDelete(o) {
		return false
	}
	d.add(o)
	return true
}

// remake adds chains and sets that are missing, and makes those anew that somebody altered.
func (d *diff) remake() {
	d.remadeChains, d.remadeSets = map[string]bool{}, map[string]bool{}
	for _, c := range d.planned.Chains {
		at := slices.IndexFunc(d.held.Chains, func(h HeldChain) bool { return h.Name == c.Name })
		switch {
		case at < 0:
			d.add(Op{Phase: AfterRules, Verb: AddChain, Chain: c})
		case d.held.Chains[at].Altered && !d.hasForeignRules(c.Name):
			d.remadeChains[c.Name] = true
			d.add(Op{Phase: AfterRules, Verb: DeleteChain, Chain: c})
			d.add(Op{Phase: AfterRules, Verb: AddChain, Chain: c})
		}
	}
	for _, s := range d.planned.Sets {
		at := slices.IndexFunc(d.held.Sets, func(h HeldSet) bool { return h.Name == s.Name })
		switch {
		case at < 0:
			d.add(Op{Phase: AfterRules, Verb: AddSet, Set: s})
		case d.held.Sets[at].Altered:
			d.remadeSets[s.Name] = true
			d.add(Op{Phase: AfterRules, Verb: DeleteSet, Set: s})
			d.add(Op{Phase: AfterRules, Verb: AddSet, Set: s})
		}
	}
}

func (d *diff) hasForeignRules(chain string) bool {
	return slices.ContainsFunc(d.held.Rules, func(r HeldRule) bool { return r.Chain == chain && r.Origin == Foreign })
}

// mustGo reports whether a rule cannot stay where it is, because its chain, or a set or a chain that it
// refers to, is made anew.
func (d *diff) mustGo(r HeldRule) bool {
	return d.remadeChains[r.Chain] || d.remadeChains[r.Rule.Goto] || slices.ContainsFunc(r.Rule.sets(), func(s string) bool { return d.remadeSets[s] })
}

// replaced reports whether another mark takes the place of the one that a rule sets. Both would add up.
func (d *diff) replaced(r HeldRule) bool {
	return r.Rule.Action == ActionMark && slices.ContainsFunc(d.planned.Chains, func(c Chain) bool { return c.Name == r.Chain })
}

// rules compares the rules of each chain, and restores their order: as many as possible stay where they
// are, with what they have counted.
func (d *diff) rules() {
	planned := map[Rule]int{}
	for i, r := range d.planned.Rules {
		planned[r] = i
	}
	places := map[string][]place{}
	seen := map[Rule]bool{}
	for _, r := range d.held.Rules {
		at, is := planned[r.Rule]
		switch {
		case r.Origin == Foreign:
		case r.Origin == Altered:
			d.add(Op{Phase: AfterRules, Verb: DeleteRule, Rule: Rule{Chain: r.Chain}, Handle: r.Handle})
		case d.mustGo(r) || is && seen[r.Rule] || !is && d.replaced(r):
			d.add(Op{Phase: AfterRules, Verb: DeleteRule, Rule: r.Rule, Handle: r.Handle})
		case is:
			seen[r.Rule] = true
			places[r.Chain] = append(places[r.Chain], place{at, r.Handle})
		case d.leadsHere(r.Chain) || !d.may(Op{Verb: DeleteRule, Rule: r.Rule, Handle: r.Handle}):
			d.keptRules = append(d.keptRules, r.Rule)
		}
	}
	handles := map[int]uint64{}
	for _, c := range d.planned.Chains {
		stay := increasing(places[c.Name])
		for _, p := range stay {
			handles[p.at] = p.handle
		}
		for _, p := range places[c.Name] {
			if _, stays := handles[p.at]; !stays {
				d.add(Op{Phase: AfterRules, Verb: DeleteRule, Rule: d.planned.Rules[p.at], Handle: p.handle})
			}
		}
	}
	for i, r := range d.planned.Rules {
		if _, stands := handles[i]; !stands {
			d.add(Op{Phase: AfterRules, Verb: AddRule, Rule: r, Handle: d.next(handles, i)})
		}
	}
}

// next is the handle of the first rule behind a planned one, in its chain, that stays; 0 if there is none.
func (d *diff) next(handles map[int]uint64, i int) uint64 {
	for j := i + 1; j < len(d.planned.Rules) && d.planned.Rules[j].Chain == d.planned.Rules[i].Chain; j++ {
		if h, stands := handles[j]; stands {
			return h
		}
	}
	return 0
}

// A place is where a planned rule stands.
type place struct {
	at     int
	handle uint64
}

// increasing returns a longest part of the places, in their order, whose numbers increase.
func increasing(places []place) []place {
	// tails has, for each length, the index of the lowest end of a part that is so long.
	tails := make([]int, 0, len(places))
	before := make([]int, len(places))
	for i, p := range places {
		n, _ := slices.BinarySearchFunc(tails, p.at, func(t, at int) int { return cmp.Compare(places[t].at, at) })
		before[i] = -1
		if n > 0 {
			before[i] = tails[n-1]
		}
		if n == len(tails) {
			tails = append(tails, i)
		} else {
			tails[n] = i
		}
	}
	out := make([]place, len(tails))
	for n, i := len(tails)-1, lastOf(tails); n >= 0; n, i = n-1, before[i] {
		out[n] = places[i]
	}
	return out
}

func lastOf(indexes []int) int {
	if len(indexes) == 0 {
		return -1
	}
	return indexes[len(indexes)-1]
}

// elements compares elements by their keys.
func (d *diff) elements() {
	wanted := map[Element]Element{}
	for _, e := range d.planned.Elements {
		wanted[e.Key()] = e
	}
	marks := d.marksAsPlanned()
	// held has the keys of the kernel's elements, true for those that are as ours.
	held, stands := map[Element]bool{}, map[Element]bool{}
	for _, h := range d.held.Elements {
		if d.remadeSets[h.Element.Set] {
			continue // It goes with its set.
		}
		key := h.Element.Key()
		held[key] = !h.Altered
		set, _ := SetNamed(key.Set)
		phase := AfterRules
		if set.Kind == Verdicts {
			phase = BeforeRules
		}
		switch w, is := wanted[key]; {
		case is && !h.Altered && w == h.Element && (!w.diverts() || marks[LinkChain(w.Number)]):
			stands[key] = true
		case is || h.Altered || h.Element.diverts() && d.remadeChains[LinkChain(h.Element.Number)]:
			d.add(Op{Phase: phase, Verb: DeleteElement, Element: h.Element})
		default:
			o := Op{Phase: Leftovers, Verb: DeleteElement, Element: h.Element}
			if !d.mayDelete(o) {
				d.keptElements = append(d.keptElements, h.Element)
				continue
			}
			if phase == BeforeRules {
				o.Phase = BeforeRules
			}
			d.add(o)
		}
	}
	for _, e := range d.planned.Elements {
		if stands[e.Key()] {
			continue
		}
		o := Op{Phase: AfterRules, Verb: AddElement, Element: e}
		if d.movesHere(e, held) {
			o.Phase = BeforeRules
		}
		d.add(o)
	}
}

// marksAsPlanned says of each chain of a number whether it sets the planned mark.
func (d *diff) marksAsPlanned() map[string]bool {
	planned, held := map[string][]Rule{}, map[string][]Rule{}
	for _, r := range d.planned.Rules {
		planned[r.Chain] = append(planned[r.Chain], r)
	}
	for _, r := range d.held.Rules {
		if r.Origin != Foreign {
			held[r.Chain] = append(held[r.Chain], r.Rule)
		}
	}
	out := map[string]bool{}
	for _, c := range d.planned.Chains {
		out[c.Name] = !d.remadeChains[c.Name] && slices.Equal(planned[c.Name], held[c.Name])
	}
	return out
}

// movesHere reports whether an element lets an address pass by a link, and the fence knows the address
// from another link. The sooner it stands, the fewer packets are dropped.
func (d *diff) movesHere(e Element, held map[Element]bool) bool {
	set, _ := SetNamed(e.Set)
	_, inTheWay := held[e]
	own := Element{Set: nameOf(setOwn, set.Family), Address: e.Address}
	return e.Set == nameOf(setPair, set.Family) && slices.Contains(d.held.Sets, HeldSet{Name: e.Set}) && held[own] && !inTheWay
}

// leftovers deletes chains and sets that are not planned, and that nothing needs, or the whole table. While
// something of somebody else is in the table, chains and sets to which it may refer stay, empty.
func (d *diff) leftovers() {
	if d.planned.Empty() && d.table() {
		return
	}
	for _, c := range d.held.Chains {
		chain, _ := ChainNamed(c.Name)
		if !slices.Contains(d.planned.Chains, chain) && !d.hasForeignRules(c.Name) && (!d.foreign || chain.Hook != NoHook) && !d.chainNeeded(c.Name) {
			d.may(Op{Verb: DeleteChain, Chain: chain})
		}
	}
	for _, s := range d.held.Sets {
		set, _ := SetNamed(s.Name)
		if !slices.Contains(d.planned.Sets, set) && !d.foreign && !d.setNeeded(s.Name) {
			d.may(Op{Verb: DeleteSet, Set: set})
		}
	}
}

// table deletes everything at once, if everything may go.
func (d *diff) table() bool {
	o := Op{Phase: Leftovers, Verb: DeleteTable}
	if d.foreign || len(d.keptRules) > 0 || len(d.keptElements) > 0 || !d.mayDelete(o) {
		return false
	}
	d.ops = append(slices.DeleteFunc(d.ops, func(o Op) bool { return o.Phase == Leftovers }), o)
	return true
}

// chainNeeded reports whether something that stays is in a chain, or leads there.
func (d *diff) chainNeeded(name string) bool {
	return d.leadsHere(name) || slices.ContainsFunc(d.keptRules, func(r Rule) bool { return r.Chain == name || r.Goto == name })
}

// leadsHere reports whether an element that stays leads to a chain.
func (d *diff) leadsHere(chain string) bool {
	return slices.ContainsFunc(d.keptElements, func(e Element) bool { return e.diverts() && LinkChain(e.Number) == chain })
}

// setNeeded reports whether something that stays is in a set, or asks it.
func (d *diff) setNeeded(name string) bool {
	return slices.ContainsFunc(d.keptRules, func(r Rule) bool { return slices.Contains(r.sets(), name) }) ||
		slices.ContainsFunc(d.keptElements, func(e Element) bool { return e.Set == name })
}

// Everything lets [Diff] delete whatever is not planned.
func Everything(Op) bool { return true }
