package routing_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// numberFor is the number that the kernel gives a rule without one: one below the second rule
// of its list (fib_default_rule_pref in net/core/fib_rules.c).
func numberFor(rules []routing.Rule) routing.Priority {
	slices.SortStableFunc(rules, func(a, b routing.Rule) int { return int(a.Priority) - int(b.Priority) })
	return rules[1].Priority - 1
}

func ofFamily(k *kerneltest.Kernel, f routing.Family) []routing.Rule {
	var out []routing.Rule
	for r := range k.AllRules() {
		if r.Family == f {
			out = append(out, r)
		}
	}
	return out
}

// withoutUs is the kernel as it would be had we never been there: what it numbered while
// the ladder stood has its natural number.
func (h *host) withoutUs() *kerneltest.Kernel {
	k := h.kernel.Clone()
	for r, natural := range h.naturals {
		if k.DropRule(r) {
			r.Priority = natural
			k.InsertRule(r)
		}
	}
	return k
}

// number adds a rule of somebody else as the kernel does if he names no priority.
func (h *host) number(r routing.Rule) {
	natural := numberFor(h.withoutUs().Foreign(r.Family))
	r.Priority = numberFor(ofFamily(h.kernel, r.Family))
	if h.kernel.AddForeignRule(r) == nil {
		h.naturals[r] = natural
	}
}

// numbering is a host on which rules of others may be numbered, with tables of others.
func numbering(t tb) *host {
	t.Helper()
	h := newHost()
	h.naturals = map[routing.Rule]routing.Priority{}
	foreigners(t, h)
	for _, r := range h.kernel.Foreign(routing.IPv4) {
		if !r.Kernels() {
			h.kernel.DropRule(r) // It would be the second of the list.
		}
	}
	for table, r := range map[routing.TableID]routing.Route{
		77: {Destination: prefix(default4), Device: 92}, 78: {Destination: prefix("8.8.8.0/24"), Device: 92},
		79: {Destination: prefix("172.16.0.0/12"), Device: 90},
	} {
		r.Family, r.Table, r.Type, r.Protocol = routing.IPv4, table, routing.RouteUnicast, kerneltest.ProtocolStatic
		if err := h.kernel.AddForeignRoute(r); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// TestOrderOfStarts is promise 2 for rules that the kernel numbers while the ladder
// stands, among others that have numbers: whatever came first, packets go as without us.
func TestOrderOfStarts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := numbering(t)
		h.install(wan0())
		h.install(wan1())
		h.repeat(t)
		h.settled(t)
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			switch r := genForeign(t, routing.IPv4); rapid.IntRange(0, 4).Draw(t, "change") {
			case 0:
				if rules := h.kernel.Foreign(routing.IPv4); len(rules) > 3 {
					if gone := rapid.SampledFrom(rules).Draw(t, "gone"); !gone.Kernels() {
						h.kernel.DropRule(gone)
						delete(h.naturals, gone)
					}
				}
			case 1, 2:
				h.number(r)
			default:
				r.Priority = rapid.SampledFrom([]routing.Priority{9100, 10200, 12000, 18500, 25000, 30000, 32000}).Draw(t, "explicit")
				taken := slices.ContainsFunc(h.withoutUs().Foreign(routing.IPv4), func(o routing.Rule) bool { return o.Priority == r.Priority })
				if !taken {
					_ = h.kernel.AddForeignRule(r)
				}
			}
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.repeat(t)
			h.settled(t)
			if len(routing.Overtaken(routing.IPv4, h.planner.Foreign(routing.IPv4))) > 0 {
				continue // The documented exception.
			}
			without := h.withoutUs()
			for range 30 {
				f := genFlow(t, h)
				if f.To.Is4() {
					h.saysAs(t, f, without.LookupWithoutUs(f))
				}
			}
		}
	})
}

// TestNumberedRuleComesInOrder: the answers of a host whose owner adds rules with and
// without a number after the ladder.
func TestNumberedRuleComesInOrder(t *testing.T) {
	t.Parallel()
	const all = 1<<32 - 1
	marked := routing.Rule{Mark: routing.Mark{Value: 1, Mask: all}, Action: routing.ActionLookup, Table: 77}
	users := routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1010}, Action: routing.ActionLookup, Table: 77}
	at := func(p routing.Priority, r routing.Rule) routing.Rule { r.Priority = p; return r }
	lan := routing.Rule{To: prefix("10.0.0.0/16"), Action: routing.ActionLookup, Table: routing.TableMain}
	known := routing.Rule{Mark: routing.Mark{Value: 1, Mask: all}, Action: routing.ActionLookup, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}
	locked := routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1000}, Action: routing.ActionProhibit}
	forbidden := routing.Rule{Mark: routing.Mark{Value: 1, Mask: all}, Action: routing.ActionProhibit}
	everybody := routing.Rule{Action: routing.ActionLookup, Table: 77}
	noHTTP := routing.Rule{IPProto: 6, DestinationPorts: routing.PortRange{First: 80, Last: 90}, Action: routing.ActionProhibit}
	source := routing.Rule{From: prefix("192.0.2.10/32"), Action: routing.ActionLookup, Table: 77}
	noGRE := routing.Rule{Invert: true, IPProto: 6, Action: routing.ActionUnreachable}
	tunnel := routing.Rule{Invert: true, Mark: routing.Mark{Value: 1, Mask: all}, Action: routing.ActionLookup, Table: 77}
	for name, tt := range map[string]struct {
		rules  []routing.Rule // those with priority 0 are numbered by the kernel
		flow   lookup.Flow
		device int // 0: refused
	}{
		"a destination that a numbered rule of main has": {[]routing.Rule{marked, at(20000, lan)}, lookup.Flow{To: addr("10.0.0.9"), Mark: 1}, 4},
		"a destination that no rule but the mark has":    {[]routing.Rule{marked, at(20000, lan)}, lookup.Flow{To: addr("8.8.8.8"), Mark: 1}, 92},
		"forwarded to a destination by a rule of main":   {[]routing.Rule{marked, at(20000, lan)}, lookup.Flow{From: addr("172.17.0.9"), IIF: "docker0", To: addr("10.0.0.9"), Mark: 1}, 4},
		"numbered after the other: it comes before":      {[]routing.Rule{at(20000, lan), marked}, lookup.Flow{To: addr("10.0.0.9"), Mark: 1}, 92},
		"a user that is refused":                         {[]routing.Rule{users, at(18000, locked)}, lookup.Flow{To: addr("8.8.8.8"), UID: 1000}, 0},
		"another user":                                   {[]routing.Rule{users, at(18000, locked)}, lookup.Flow{To: addr("8.8.8.8"), UID: 1001}, 92},
		"no answer: on to the numbered rule":             {[]routing.Rule{marked, at(20000, known)}, lookup.Flow{To: addr("8.8.8.8"), Mark: 1}, 92},
		"an answer of the same":                          {[]routing.Rule{marked, at(20000, known)}, lookup.Flow{To: addr("10.0.0.9"), Mark: 1}, 4},
		"a rule for everybody that refuses":              {[]routing.Rule{marked, at(20000, routing.Rule{Action: routing.ActionUnreachable})}, lookup.Flow{To: addr("8.8.8.8"), Mark: 1}, 0},
		"all but a mark, for a numbered mark":            {[]routing.Rule{marked, at(20000, routing.Rule{Invert: true, Mark: routing.Mark{Value: 2, Mask: all}, Action: routing.ActionProhibit})}, lookup.Flow{To: addr("8.8.8.8"), Mark: 1}, 0},
		"a full tunnel without a number, unbound":        {[]routing.Rule{{Invert: true, Mark: routing.Mark{Value: 0xca6c, Mask: all}, Action: routing.ActionLookup, Table: 77}, at(20000, lan)}, lookup.Flow{To: addr("10.0.0.9")}, 4},
		"no answer: on to a full tunnel":                 {[]routing.Rule{{Action: routing.ActionLookup, Table: 77}, at(20000, routing.Rule{To: prefix("8.0.0.0/8"), Action: routing.ActionLookup, Table: 79})}, lookup.Flow{To: addr("8.8.8.8")}, 92},
		"a mark that another one looks like, forwarded":  {[]routing.Rule{noGRE, at(25000, forbidden)}, lookup.Flow{From: addr("172.17.0.9"), IIF: "lan1", To: addr("10.0.0.9"), IPProto: 47, Mark: 1<<31 | 1}, 0},
		"a mark that another one looks like, of a user":  {[]routing.Rule{users, at(25000, forbidden)}, lookup.Flow{To: addr("10.0.0.9"), UID: 1001, Mark: 1<<31 | 1}, 92},
		"a mark that the one left out looks like, bound": {[]routing.Rule{tunnel, at(25000, marked)}, lookup.Flow{From: addr("198.51.100.20"), To: addr("8.8.8.8"), Mark: 1<<31 | 1}, 3},
		"a mark that a numbered one looks like": {
			[]routing.Rule{forbidden, {Invert: true, To: prefix("192.0.2.0/24"), Action: routing.ActionProhibit}, at(18500, everybody)}, lookup.Flow{To: addr("198.51.100.9"), Mark: 1<<31 | 1}, 92,
		},
		"a numbered protocol, and a rule for everybody": {
			[]routing.Rule{locked, noHTTP, {Invert: true, To: prefix("172.17.0.0/16"), Action: routing.ActionLookup, Table: 77}, at(9100, routing.Rule{Action: routing.ActionProhibit})},
			lookup.Flow{To: addr("192.0.2.50"), IPProto: 6, DestinationPort: 80},
			0,
		},
		"a numbered source, bound, and a rule for everybody": {
			[]routing.Rule{{Invert: true, From: prefix("10.0.0.0/16"), Action: routing.ActionLookup, Table: 79}, source, {Invert: true, From: prefix("10.0.0.0/16"), Action: routing.ActionLookup, Table: 79}, at(9100, routing.Rule{Action: routing.ActionProhibit, Mark: routing.Mark{Value: 1, Mask: all}})},
			lookup.Flow{From: addr("192.0.2.10"), To: addr("8.8.8.8"), Mark: 2},
			92,
		},
		"behind one user, and a rule for everybody": {
			[]routing.Rule{everybody, at(9100, locked), at(30000, routing.Rule{Action: routing.ActionUnreachable}), {IIF: "lo", Action: routing.ActionProhibit}},
			lookup.Flow{From: addr("172.17.0.9"), IIF: "docker0", To: addr("192.0.2.50")},
			0,
		},
		"a mark that another one looks like, of a device": {
			[]routing.Rule{{Mark: routing.Mark{Value: 1 << 31, Mask: 1 << 31}, OIF: "wan0", Action: routing.ActionUnreachable}, at(10200, routing.Rule{Mark: routing.Mark{Value: 1, Mask: all}, Action: routing.ActionLookup, Table: 79})},
			lookup.Flow{To: addr("8.8.8.8"), OIF: "wan0", Mark: 1<<31 | 1},
			0,
		},
		"behind what is for nobody": {
			[]routing.Rule{{Invert: true, From: prefix("192.0.2.10/32"), Action: routing.ActionLookup, Table: 77}, at(18500, routing.Rule{Invert: true, Action: routing.ActionProhibit}), at(32000, routing.Rule{Action: routing.ActionUnreachable})},
			lookup.Flow{To: addr("192.0.2.50")},
			0,
		},
		"bound, between a full tunnel and another one": {[]routing.Rule{{Action: routing.ActionLookup, Table: 77}, at(20000, routing.Rule{Action: routing.ActionLookup, Table: 79})}, lookup.Flow{From: addr("198.51.100.20"), To: addr("172.16.5.5")}, 90},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := numbering(t)
			for _, l := range []routing.Link{wan0(), wan1(), link(4, "lan0", address("10.0.0.1/16", 102))} {
				h.install(l)
			}
			h.repeat(t)
			before := h.kernel.Text()
			for _, r := range tt.rules {
				r.Family, r.Protocol = routing.IPv4, routing.ProtocolBoot
				if r.Priority == 0 {
					h.number(r)
				} else if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatal(err)
				}
				h.repeat(t)
			}
			h.settled(t)
			without, with := h.withoutUs().LookupWithoutUs(tt.flow), h.kernel.Lookup(tt.flow)
			reached := func(v lookup.Verdict) bool {
				if tt.device == 0 {
					return v.Outcome == lookup.Rejected
				}
				return v.Through(tt.device)
			}
			if !reached(with) || !tt.flow.From.IsValid() && !reached(without) {
				t.Errorf("without us %v %v by %s\nwith us %v %v by %s, want device %d\n%s%s",
					without.Outcome, without.Legs, without.Rule, with.Outcome, with.Legs, with.Rule, tt.device, h.kernel.Text(), h.kernel.ForeignText())
			}
			for r := range h.naturals {
				h.kernel.DropRule(r)
			}
			for _, r := range h.kernel.Foreign(routing.IPv4) {
				if slices.ContainsFunc(tt.rules, func(o routing.Rule) bool { return o.Priority != 0 && o.Priority == r.Priority }) {
					h.kernel.DropRule(r)
				}
			}
			h.repeat(t)
			if after := h.kernel.Text(); after != before {
				t.Errorf("when the rules have gone:\n%s\nbefore them:\n%s", after, before)
			}
		})
	}
}

// TestOvertaken: what cannot be brought into order is named.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	lookup := func(p routing.Priority, r routing.Rule) routing.Rule {
		r.Family, r.Priority, r.Action, r.Table = routing.IPv4, p, routing.ActionLookup, 77
		return r
	}
	users := lookup(9019, routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1010}})
	tunnel := lookup(31000, routing.Rule{Invert: true, Mark: routing.Mark{Value: 0xca6c, Mask: 1<<32 - 1}})
	for natural, want := range map[routing.Priority][]routing.Overtaking{
		32765: {{Numbered: users, Overtaken: tunnel}}, 30999: nil,
	} {
		got := routing.Overtaken(routing.IPv4, []routing.ForeignRule{{Rule: users, Numbered: true, Natural: natural}, {Rule: tunnel}})
		if !slices.Equal(got, want) {
			t.Errorf("with %d as its number without us: %v, want %v", natural, got, want)
		}
	}
}
