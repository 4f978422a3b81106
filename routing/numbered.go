package routing

import (
	"cmp"
	"net/netip"
	"slices"
)

// A rule that the kernel numbered while the ladder stood is in front of everything, and
// without us it would stand behind the rules of others that have a lower number than it
// would get then. Those must keep their say before it. In front of it they are said again:
// for the packets that both select, and in other words.
//
// A rule that refuses packets is reached by a goto, because it always answers. One that
// reads a table is copied: it may have no answer, and a packet that followed a goto could
// never come back to the numbered rule. A VPN's traffic would leave in clear.

// An Overtaking is a rule that the kernel numbered, and one of somebody else that it comes
// before, though it would come after it without us.
type Overtaking struct {
	Numbered, Overtaken Rule
}

// ranks among the rules at one place in front of a numbered rule.
const (
	// rankLift is behind the rules that are said again there.
	rankLift uint64 = 1 << 32
	// rankLast is that of rules which select nothing: bound traffic has stepped over.
	rankLast uint64 = 1 << 62
)

// isNumbered reports whether a rule stands in front only because the kernel numbered it
// while the ladder stood.
func (o ForeignRule) isNumbered() bool {
	return o.Numbered && !o.Rule.Unknown && o.Rule.Priority >= PriorityNumbered && o.Rule.Priority < PriorityKnown
}

// precedes reports whether a rule would come before a numbered one without us and comes
// after it with us.
func (o ForeignRule) precedes(n ForeignRule) bool {
	r := o.Rule
	return n.isNumbered() && !o.Numbered && !r.Unknown && !r.L3MDev && r.Priority > n.Rule.Priority && r.Priority < n.Natural
}

// ahead is where the rules stand that must come before a numbered one.
func (o ForeignRule) ahead() Priority { return o.Rule.Priority - 1 }

// saidAgain reports whether a rule is said again at a place, before the numbered rule there.
func (o ForeignRule) saidAgain(at Priority, others []ForeignRule) bool {
	return slices.ContainsFunc(others, func(n ForeignRule) bool { return n.ahead() == at && o.precedes(n) })
}

// inOrder makes the rules that keep the order which others' rules have without us, and
// returns those of others for which there are none.
func inOrder(f Family, others []ForeignRule) (out []PlannedRule, overtaken []Overtaking) {
	for _, n := range others {
		rules, missed := n.again(f, saying{his: n.Rule, at: n.ahead(), standing: out}, others)
		out, overtaken = append(out, rules...), append(overtaken, missed...)
	}
	return out, overtaken
}

// A saying is what is said again, and where.
type saying struct {
	// his is the rule for whose packets it is. It is said in other words already if it is apart.
	his   Rule
	apart bool
	at    Priority
	// standing are the rules that come before.
	standing []PlannedRule
}

// again says the rules that must come before a numbered one in front of it, for the packets
// of a rule, in the order in which they must stand.
func (o ForeignRule) again(f Family, in saying, others []ForeignRule) (out []PlannedRule, overtaken []Overtaking) {
	add := func(x, w Rule, rank uint64) {
		w.Family, w.Protocol, w.Priority = f, Multihomed, in.at
		w.Mark = w.told()
		for _, other := range slices.Concat(in.standing, out) {
			switch {
			case sameButPrefixes(w, other.Rule) && w.From == other.Rule.From && w.To == other.Rule.To && w.Invert == other.Rule.Invert:
				return // The first one answers.
			case sameButPrefixes(w, other.Rule):
				overtaken = append(overtaken, Overtaking{Numbered: o.Rule, Overtaken: x})
				return
			}
		}
		out = append(out, PlannedRule{
			Rule: w, Rank: rank, Yields: w.MeantBy(x) || w.MeantBy(o.Rule),
			Reason: Reason{Decision: LiftForeign, Prefix: x.String()},
		})
	}
	rank := uint64(0)
	say := func(x, his Rule) {
		var other Rule
		if in.apart {
			other = words(his)
		}
		both, some, exact := meet(x, his)
		if !exact {
			overtaken = append(overtaken, Overtaking{Numbered: o.Rule, Overtaken: x})
		}
		if !some {
			return
		}
		rank++
		at := rank
		if !both.Selects() {
			at |= rankLast
		}
		all, except := copied(both, other, !his.Invert && his == o.Rule && his.Mark == both.Mark)
		for _, w := range except {
			w.Action, w.Goto = ActionGoto, o.Rule.Priority
			if !slices.ContainsFunc(out, func(r PlannedRule) bool { return r.Rank == 0 && r.Rule.Mark == w.Mark }) {
				add(x, w, 0)
			}
		}
		for _, w := range all {
			w.say(x)
			add(x, w, at)
		}
	}
	for place, x := range others {
		if !x.precedes(o) {
			continue
		}
		if x.Rule.Selects() && !in.his.Selects() {
			// What is for everybody is said again behind all that selects. Before this one
			// it is for those that this one selects.
			for _, q := range others[:place] {
				if q.precedes(o) && !q.Rule.Selects() {
					say(q.Rule, x.Rule)
				}
			}
		}
		say(x.Rule, in.his)
	}
	slices.SortStableFunc(out, func(a, b PlannedRule) int { return cmp.Compare(a.Rank, b.Rank) })
	return out, overtaken
}

// told is the mark of a rule with a word, in bits that are not compared, of which prefixes
// it has and whether it is inverted: the kernel takes a rule without a prefix for equal to one
// with any, and compares no inversion (rule_exists in net/core/fib_rules.c). Besides, whoever deletes "from all lookup main" must not mean it.
func (r Rule) told() Mark {
	m := r.Mark
	if m == (Mark{}) {
		m = anyMark
	}
	free := ^m.Mask
	for _, has := range [...]bool{r.From.IsValid(), r.To.IsValid(), r.Invert} {
		lowest := free & -free
		if free &^= lowest; has {
			m.Value ^= lowest
		}
	}
	return m
}

// sameButPrefixes reports whether the kernel may take two rules of one priority for equal.
func sameButPrefixes(a, b Rule) bool {
	alike := func(p, q netip.Prefix) bool { return !names(p) || !names(q) || p == q }
	some := alike(a.From, b.From) && alike(a.To, b.To)
	a.From, a.To, a.Goto, a.Invert = b.From, b.To, b.Goto, b.Invert
	return some && a == b
}

// copied returns rules for the packets that one is for, in other words where these are
// exact, and rules for those that are in the other words but not in its own. A goto must be
// exact, too: what it takes besides would skip the numbered rule. Only packets that the
// numbered rule is not for may be left out, as it is the next that they meet: hisMark says so
// of the mark. Selectors that are other words already stay as they are.
func copied(both, other Rule, hisMark bool) (all, except []Rule) {
	if both.Invert {
		return []Rule{both}, nil
	}
	his := both // What needs other words.
	keep(&his.From, other.From)
	keep(&his.To, other.To)
	keep(&his.UIDs, other.UIDs)
	keep(&his.SourcePorts, other.SourcePorts)
	keep(&his.DestinationPorts, other.DestinationPorts)
	switch {
	case !both.Mark.whole():
	case hisMark:
		except = []Rule{{Mark: both.Mark.other()}}
	default:
		his.Mark = Mark{}
	}
	return disguise(his, both), except
}

// keep takes away what is other words already.
func keep[T comparable](selector *T, other T) {
	var none T
	if *selector == other {
		*selector = none
	}
}

// say gives a rule the say of another one.
func (r *Rule) say(o Rule) {
	if o.Action != ActionLookup {
		r.Action, r.Goto = ActionGoto, o.Priority
		return
	}
	r.Action, r.Table, r.Realms = o.Action, o.Table, o.Realms
	r.SuppressPrefixLength, r.SuppressGroup = o.SuppressPrefixLength, o.SuppressGroup
}

// meet returns a rule for the packets that two rules select. It is not exact if no single
// rule can be: all that some packets have but others of the kind lack.
func meet(o, n Rule) (both Rule, some, exact bool) {
	its := words(o)
	switch {
	case n.Invert, o.Selects() && !n.Selects():
		// Whom the numbered rule leaves out comes to the other one in any case, and bound
		// traffic steps over both.
		its.Invert = o.Invert
		return its, true, true
	case !o.Invert:
		both, some = intersect(its, words(n))
		return both, some, true
	}
	switch common, is := intersect(its, words(n)); {
	case !is:
		return words(n), true, true
	case common == words(n):
		return Rule{}, false, true
	case n.matchesAll():
		its.Invert = true
		return its, true, true
	default:
		return Rule{}, false, false
	}
}

// intersect returns the selectors of packets that two sets of selectors match, and whether
// there may be any.
func intersect(a, b Rule) (both Rule, some bool) {
	both, some = a, true
	one := func(ok bool) { some = some && ok }
	both.From = intersectPrefixes(a.From, b.From, one)
	both.To = intersectPrefixes(a.To, b.To, one)
	both.Mark = intersectMarks(a.Mark, b.Mark, one)
	both.UIDs = intersectUIDs(a.UIDs, b.UIDs, one)
	both.SourcePorts = intersectPorts(a.SourcePorts, b.SourcePorts, one)
	both.DestinationPorts = intersectPorts(a.DestinationPorts, b.DestinationPorts, one)
	both.IIF = either(a.IIF, b.IIF, one)
	both.OIF = either(a.OIF, b.OIF, one)
	both.IPProto = either(a.IPProto, b.IPProto, one)
	both.TOS = either(a.TOS, b.TOS, one)
	both.TunnelID = either(a.TunnelID, b.TunnelID, one)
	both.DSCP = either(a.DSCP, b.DSCP, one)
	both.DSCPMask = max(a.DSCPMask, b.DSCPMask)
	both.FlowLabel = either(a.FlowLabel, b.FlowLabel, one)
	both.FlowLabelMask = max(a.FlowLabelMask, b.FlowLabelMask)
	both.L3MDev = a.L3MDev || b.L3MDev
	return both, some
}

// either returns the value that a selector of two rules must have; zero is any.
func either[T comparable](a, b T, one func(bool)) T {
	var anything T
	switch {
	case b == anything:
		return a
	case a != anything:
		one(a == b)
	}
	return b
}

func intersectPrefixes(a, b netip.Prefix, one func(bool)) netip.Prefix {
	switch {
	case !names(b):
		return a
	case !names(a):
		return b
	}
	one(a.Overlaps(b))
	if a.Bits() > b.Bits() {
		return a
	}
	return b
}

func intersectMarks(a, b Mark, one func(bool)) Mark {
	one((a.Value^b.Value)&a.Mask&b.Mask == 0)
	return Mark{Value: a.Value&a.Mask | b.Value&b.Mask, Mask: a.Mask | b.Mask}
}

func intersectUIDs(a, b UIDRange, one func(bool)) UIDRange {
	switch {
	case !b.Set:
		return a
	case !a.Set:
		return b
	}
	both := UIDRange{Set: true, First: max(a.First, b.First), Last: min(a.Last, b.Last)}
	one(both.First <= both.Last)
	return both
}

func intersectPorts(a, b PortRange, one func(bool)) PortRange {
	switch {
	case b == PortRange{}:
		return a
	case a == PortRange{}:
		return b
	case a.Mask != 0 || b.Mask != 0:
		return either(a, b, one)
	}
	both := PortRange{First: max(a.First, b.First), Last: min(a.Last, b.Last)}
	one(both.First <= both.Last)
	return both
}

// Overtaken returns the rules of others in a family that a rule which the kernel numbered
// comes before, though it would come after them without us, and that cannot be helped.
func Overtaken(f Family, foreign []ForeignRule) []Overtaking {
	s, _ := survey(f, foreign, 0)
	return s.overtaken
}
