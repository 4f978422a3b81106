package routing

import (
	"hash/fnv"
	"net/netip"
	"slices"
)

// A request to delete a rule matches the first one of its priority that has what the request
// names (rule_find in net/core/fib_rules.c). Where a rule that says more stands in front,
// "oif wan0 iif lo" before "oif wan0", the request for the second one would take the first.
// The writer then puts the first one behind all others and tries again: both stand, but in
// the wrong order, and what moves them back into order does the same once more. So the
// second one says something else that the first does not.

// tellApart gives a word of its own to each lift whose request would match another one in
// front of it. For a goto that is a suppressor: the kernel keeps and compares it, and asks
// it only where a table was read (fib_rules_lookup in net/core/fib_rules.c). For a copy that
// reads a table it is a mark in bits that are not compared, as far as the mask leaves some.
func tellApart(lifts []PlannedRule, others []ForeignRule) {
	at := map[Priority][]*PlannedRule{}
	for i := range lifts {
		at[lifts[i].Rule.Priority] = append(at[lifts[i].Rule.Priority], &lifts[i])
	}
	for _, all := range at {
		var same []*PlannedRule
		for _, r := range all {
			if slices.ContainsFunc(all, func(x *PlannedRule) bool {
				return x.Rank <= r.Rank && x.Rule != r.Rule && r.Rule.requests(&x.Rule)
			}) {
				same = append(same, r)
			}
		}
		for _, r := range same {
			word := r.Rule.word()
			if r.Rule.Action == ActionGoto {
				r.Rule.SuppressPrefixLength = Some(word)
				continue
			}
			m := &r.Rule.Mark
			m.Value = m.Value&m.Mask | word&^m.Mask
			r.Yields = r.Yields || slices.ContainsFunc(others, func(o ForeignRule) bool { return r.Rule.MeantBy(o.Rule) })
		}
	}
}

// word returns a number made of all that a rule says, which no other rule has. It is
// positive for the kernel, and higher than any length of a prefix.
func (r Rule) word() uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(r.String())) // A hash takes everything.
	return h.Sum32()>>2 | 1<<30
}

// requests reports whether a request to delete one rule of ours matches another one of the
// same priority. Inversion and the target of a goto are not compared.
func (r *Rule) requests(x *Rule) bool {
	return r.Action == x.Action && is(r.Table, x.Table) && prefixIs(r.From, x.From) && prefixIs(r.To, x.To) &&
		is(r.Mark.Value, x.Mark.Value) && is(r.Mark.Mask, x.Mark.Mask) &&
		is(r.IIF, x.IIF) && is(r.OIF, x.OIF) && is(r.UIDs, x.UIDs) && is(r.IPProto, x.IPProto) &&
		is(r.SourcePorts, x.SourcePorts) && is(r.DestinationPorts, x.DestinationPorts) &&
		is(r.TunnelID, x.TunnelID) && is(r.L3MDev, x.L3MDev) && is(r.TOS, x.TOS) &&
		is(r.DSCP, x.DSCP) && is(r.DSCPMask, x.DSCPMask) && is(r.FlowLabel, x.FlowLabel) && is(r.FlowLabelMask, x.FlowLabelMask) &&
		is(r.SuppressPrefixLength, x.SuppressPrefixLength) && is(r.SuppressGroup, x.SuppressGroup)
}

// is reports whether a request that names a value, or none, matches a rule that has another.
func is[T comparable](named, has T) bool {
	var none T
	return named == none || named == has
}

func prefixIs(named, has netip.Prefix) bool { return !names(named) || named == has }
