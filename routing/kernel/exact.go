package kernel

import (
	"iter"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// This file makes additions and deletions of rules exact. The kernel takes an
// attribute that a request leaves out for "any": it deletes the first rule that
// has what the request names, whatever else that rule has (rule_find in
// net/core/fib_rules.c), and refuses to add a rule where one stands that has
// more prefixes or another target (rule_exists). What FIB_RULE_INVERT and
// FRA_GOTO say is compared by neither.

// A likeness is what two rules share at least if a deletion of one can hit the
// other: the source where there is one, else the table.
type likeness struct {
	band
	routing.TableID
	from prefixKey
}

// likenesses are those under which a rule is found.
func likenesses(r routing.Rule) [2]likeness {
	k := band{r.Family, r.Priority}
	return [2]likeness{{band: k, from: keyOfPrefix(r.From)}, {band: k, TableID: r.Table}}
}

// prefixKey is a prefix without pointers: the garbage collector passes by.
type prefixKey struct {
	addr [16]byte
	bits uint8
}

func (b *ruleBook) enlist(g *rung) {
	for _, l := range likenesses(g.rule) {
		b.alike[l] = append(b.alike[l], g)
	}
}

func (b *ruleBook) delist(g *rung) {
	for _, l := range likenesses(g.rule) {
		at := b.alike[l]
		if i := slices.Index(at, g); i >= 0 {
			at[i] = at[len(at)-1]
			at[len(at)-1] = nil
			b.alike[l] = at[:len(at)-1]
		}
		if len(b.alike[l]) == 0 {
			delete(b.alike, l)
		}
	}
}

// RulesFrom yields our rules of one family and priority from a source, in no order. It
// costs what it yields.
func (s *State) RulesFrom(f routing.Family, p routing.Priority, from netip.Prefix) iter.Seq[routing.Rule] {
	return s.rules.like(likeness{band: band{f, p}, from: keyOfPrefix(from)}, func(r routing.Rule) bool { return r.From == from })
}

// RulesTo yields our rules of one family and priority that lead to a table, in no order.
// It costs what it yields.
func (s *State) RulesTo(f routing.Family, p routing.Priority, table routing.TableID) iter.Seq[routing.Rule] {
	return s.rules.like(likeness{band: band{f, p}, TableID: table}, func(r routing.Rule) bool { return r.Table == table })
}

func (b *ruleBook) like(l likeness, is func(routing.Rule) bool) iter.Seq[routing.Rule] {
	return func(yield func(routing.Rule) bool) {
		for _, g := range b.alike[l] {
			if is(g.rule) && !yield(g.rule) {
				return
			}
		}
	}
}

// firstHit returns the rule of ours that the kernel would delete for another,
// and how many there are that it could.
func (b *ruleBook) firstHit(r routing.Rule) (first *rung, hits int) {
	at := likenesses(r)[0]
	if !r.From.IsValid() {
		at = likenesses(r)[1]
	}
	for _, g := range b.alike[at] {
		if !hit(r, g.rule) {
			continue
		}
		hits++
		if first == nil || g.places[0] < first.places[0] {
			first = g
		}
	}
	return first, hits
}

// hit reports whether a request to delete one rule fits another of the same
// family, priority and protocol.
func hit(request, r routing.Rule) bool {
	a, b := request, r
	// What is left out is not compared, and these never are.
	a.Invert, a.Goto, a.Unknown = b.Invert, b.Goto, b.Unknown
	anyOf(&a.From, &b.From)
	anyOf(&a.To, &b.To)
	anyOf(&a.TOS, &b.TOS)
	anyOf(&a.DSCP, &b.DSCP)
	if !request.DSCP.Set || request.DSCPMask == 0 {
		// The kernel fills in a mask that was not given, or compares none.
		a.DSCPMask = b.DSCPMask
	}
	anyOf(&a.FlowLabel, &b.FlowLabel)
	if !request.FlowLabel.Set {
		a.FlowLabelMask = b.FlowLabelMask
	}
	anyOf(&a.Mark.Value, &b.Mark.Value)
	anyOf(&a.Mark.Mask, &b.Mark.Mask)
	anyOf(&a.IIF, &b.IIF)
	anyOf(&a.OIF, &b.OIF)
	anyOf(&a.UIDs, &b.UIDs)
	anyOf(&a.IPProto, &b.IPProto)
	for _, p := range [][2]*routing.PortRange{{&a.SourcePorts, &b.SourcePorts}, {&a.DestinationPorts, &b.DestinationPorts}} {
		if p[0].First == 0 && p[0].Last == 0 {
			*p[0] = *p[1]
		}
	}
	anyOf(&a.TunnelID, &b.TunnelID)
	anyOf(&a.L3MDev, &b.L3MDev)
	anyOf(&a.Table, &b.Table)
	anyOf(&a.Realms, &b.Realms)
	anyOf(&a.SuppressPrefixLength, &b.SuppressPrefixLength)
	anyOf(&a.SuppressGroup, &b.SuppressGroup)
	return a == b
}

// anyOf makes a field that selects nothing equal to its counterpart.
func anyOf[T comparable](request, r *T) {
	var none T
	if *request == none {
		*request = *r
	}
}

// deleteRule deletes exactly one copy of a rule, the first.
func (b *batch) deleteRule(i int, r routing.Rule) {
	first, hits := b.firstHit(r)
	if first == r || first == (routing.Rule{}) {
		b.add(i, func(m *nlmsg.Builder) { encodeRule(m, r) }, unix.RTM_DELRULE, 0)
		return
	}
	// Whatever the kernel would take for it steps behind first: added once more,
	// then deleted once, so that it never stops standing.
	b.flush()
	for range hits {
		if err := b.mirror.Drain(); err != nil {
			b.fail(i, err)
			return
		}
		if first, _ = b.firstHit(r); first == r || first == (routing.Rule{}) {
			break
		}
		b.add(i, func(m *nlmsg.Builder) { encodeRule(m, first) }, unix.RTM_NEWRULE, unix.NLM_F_CREATE)
		b.flush()
		if b.errs != nil && b.errs[i] != nil {
			return
		}
		b.add(i, func(m *nlmsg.Builder) { encodeRule(m, r) }, unix.RTM_DELRULE, 0)
		b.flush()
		b.stirred(first)
	}
	b.add(i, func(m *nlmsg.Builder) { encodeRule(m, r) }, unix.RTM_DELRULE, 0)
}

// firstHit returns the rule that the kernel would delete for another and how
// many there are that it could, as far as the mirror knows.
func (b *batch) firstHit(r routing.Rule) (first routing.Rule, hits int) {
	b.mirror.View(func(s *State) {
		g, n := s.rules.firstHit(r)
		if hits = n; g != nil {
			first = g.rule
		}
	})
	return first, hits
}

// stirred tells that a rule changed its place: whoever keeps an order looks.
func (b *batch) stirred(r routing.Rule) {
	b.mirror.mu.Lock()
	defer b.mirror.mu.Unlock()
	b.mirror.state.changes.Rules[r] = struct{}{}
	b.mirror.signal()
}

// addRefused adds the rules that the kernel took for others that stand, and the
// routes whose key somebody else has.
func (b *batch) addRefused() {
	if len(b.refused) == 0 {
		return
	}
	refused := b.refused
	b.refused = nil
	if err := b.mirror.Drain(); err != nil {
		for _, i := range refused {
			b.fail(i, err)
		}
		return
	}
	again := map[routing.Rule]struct{}{}
	for _, i := range refused {
		if b.ops[i].Verb == routing.AddRoute {
			b.addBeside(i)
			continue
		}
		r := b.ops[i].Rule
		stands := false
		b.mirror.View(func(s *State) { stands = s.CountRule(r) > 0 })
		if _, sent := again[r]; stands || sent {
			continue
		}
		again[r] = struct{}{}
		b.add(i, func(m *nlmsg.Builder) { encodeRule(m, r) }, unix.RTM_NEWRULE, unix.NLM_F_CREATE)
	}
	b.flush()
}

// keyOfPrefix of no prefix is the zero key.
func keyOfPrefix(p netip.Prefix) prefixKey {
	if !p.IsValid() {
		return prefixKey{}
	}
	return prefixKey{addr: p.Addr().As16(), bits: uint8(p.Bits()) + 1} //nolint:gosec // at most 128
}
