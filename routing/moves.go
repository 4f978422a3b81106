package routing

import "slices"

// The kernel puts a rule behind those of its priority, and has no way to put it
// elsewhere. So what has to stand behind a rule that is added, and stands
// already, must be moved behind it: rules of a higher rank that could match the
// same packet. Among the rules that stand, those are kept whose order is right,
// from the lowest rank on, and the rest is moved.

// place is one selector of one band.
type place struct {
	band
	selectorKey
}

// mover finds the rules that have to move.
type mover struct {
	want *Planner
	have Kernel
	// positions of the rules that stand, by band; read when first needed.
	positions map[band]map[Rule]int
	// floors are the ranks above which all rules of a selector move.
	floors map[place]uint64
	// moved are rules found in the wrong place.
	moved   map[Rule]*PlannedRule
	scanned map[place]struct{}
}

// moves returns the rules that have to move, given what the pass does besides.
func moves(want *Planner, have Kernel, ops []Op, standing []*wanted[PlannedRule], t Touched) []Op {
	m := mover{want: want, have: have}
	m.behindOthers(t)
	for i := range ops {
		if ops[i].Verb == AddRule {
			m.pushBehind(want.rules[ops[i].Rule].object())
		}
	}
	// A rule that stands may have got there behind our back, and be in front
	// of rules that it stood behind.
	for _, w := range standing {
		m.inspect(w.object(), false)
	}
	for r := range t.Reranked {
		if w, ok := want.rules[r]; ok && have.CountRule(r) > 0 {
			m.inspect(w.object(), true)
		}
	}
	return m.ops()
}

// behindOthers moves our rules behind those of others that have the same priority, where
// they must not be asked before them.
func (m *mover) behindOthers(t Touched) {
	touched := map[band]struct{}{}
	for r := range t.Rules {
		touched[band{r.Family, r.Priority}] = struct{}{}
	}
	for i, f := range Families() {
		seen := map[band]struct{}{}
		for _, o := range m.want.foreign[i] {
			b := band{f, o.Rule.Priority}
			_, done := seen[b]
			if _, is := touched[b]; done || m.want.bands[b] == nil || !is && !t.Foreign {
				continue
			}
			seen[b] = struct{}{}
			m.behindIn(b, m.want.isTarget(i, b.priority))
		}
	}
}

// behindIn moves our rules of one priority. A rule of somebody else that selects nothing and
// stands behind a rung for bound traffic stays there, because the kernel put it there: the
// rung takes no other packets, and these keep their link. Where a goto leads to the priority
// all of ours come behind: it must land on the rule of somebody else.
func (m *mover) behindIn(b band, target bool) {
	order := m.have.BandOrder(b.family, b.priority)
	last, selecting := -1, -1
	for i, r := range order {
		if m.want.policy.OwnsRule(r) {
			continue
		}
		last = i
		if target || r.Selects() {
			selecting = i
		}
	}
	for i, r := range order[:max(last, 0)] {
		if i > selecting && r.forBoundTraffic() {
			continue
		}
		if w, ok := m.want.rules[r]; ok {
			m.move(w.object())
		}
	}
}

// forBoundTraffic reports whether a rule of ours is a rung in front of the rules of others
// that takes only what is bound to a link.
func (r *Rule) forBoundTraffic() bool {
	return r.Action != ActionGoto && r.Priority < firstAgain && (r.From.IsValid() || r.OIF != "")
}

// isTarget reports whether a goto leads to a priority for the sake of the rules of others
// there: one of theirs, or a lift.
func (p *Planner) isTarget(family int, priority Priority) bool {
	leads := func(r Rule) bool { return r.Action == ActionGoto && r.Goto == priority }
	return slices.ContainsFunc(p.foreign[family], func(o ForeignRule) bool { return leads(o.Rule) }) ||
		slices.ContainsFunc(p.lifts[family], func(r PlannedRule) bool { return leads(r.Rule) })
}

// pushBehind moves what has to stand behind a rule that goes to the end. The
// relation is transitive, so one step finds everything.
func (m *mover) pushBehind(r *PlannedRule) {
	if m.floors == nil {
		m.floors = map[place]uint64{}
	}
	b := m.want.band(r.Rule)
	for k := range b.around(r) {
		p := place{band{r.Rule.Family, r.Rule.Priority}, k}
		if floor, ok := m.floors[p]; !ok || r.Rank < floor {
			m.floors[p] = r.Rank
		}
	}
}

func (m *mover) move(r *PlannedRule) {
	if _, done := m.moved[r.Rule]; !done {
		if m.moved == nil {
			m.moved = map[Rule]*PlannedRule{}
		}
		m.moved[r.Rule] = r
		m.pushBehind(r)
	}
}

// inspect compares the place of a rule with those of the rules it competes
// with. A rule whose rank did not change stands behind those of lower rank: they
// would have been touched had they moved.
func (m *mover) inspect(r *PlannedRule, reranked bool) {
	b, own := m.want.band(r.Rule), selects(r.Rule)
	for k := range b.around(r) {
		behind := b.behind(k, r.Rank)
		switch {
		case k == own && (reranked || len(behind) > 0):
			m.scan(place{band{r.Rule.Family, r.Rule.Priority}, k}, b.bySelector[k])
		case k != own:
			for _, x := range behind {
				if m.precedes(x.rule.object().Rule, r.Rule) {
					m.move(x.rule.object())
				}
			}
		}
	}
}

// scan goes through the rules of one selector by rank and moves those that
// stand before one of lower rank.
func (m *mover) scan(p place, rules []entry) {
	if _, done := m.scanned[p]; done || len(rules) < 2 {
		return
	}
	if m.scanned == nil {
		m.scanned = map[place]struct{}{}
	}
	m.scanned[p] = struct{}{}
	lower, last := -1, -1
	for i, x := range rules {
		if i > 0 && rules[i-1].rank != x.rank {
			lower = last
		}
		at, stands := m.position(x.rule.object().Rule)
		switch {
		case !stands:
		case at < lower:
			m.move(x.rule.object())
		default:
			last = max(last, at)
		}
	}
}

func (m *mover) precedes(a, b Rule) bool {
	i, ok := m.position(a)
	if !ok {
		return false
	}
	j, ok := m.position(b)
	return ok && i < j
}

// position is where a rule stands among those of its priority; where it stands
// twice the first goes in this pass, and the last counts.
func (m *mover) position(r Rule) (int, bool) {
	b := band{r.Family, r.Priority}
	at := m.positions[b]
	if at == nil {
		order := m.have.RuleOrder(b.family, b.priority)
		at = make(map[Rule]int, len(order))
		for i, rule := range order {
			at[rule] = i
		}
		if m.positions == nil {
			m.positions = map[band]map[Rule]int{}
		}
		m.positions[b] = at
	}
	i, ok := at[r]
	return i, ok
}

func (m *mover) ops() []Op {
	for p, floor := range m.floors {
		for _, x := range m.want.bands[p.band].behind(p.selectorKey, floor) {
			if r := x.rule.object(); m.have.CountRule(r.Rule) > 0 {
				if m.moved == nil {
					m.moved = map[Rule]*PlannedRule{}
				}
				m.moved[r.Rule] = r
			}
		}
	}
	out := make([]Op, 0, len(m.moved))
	for _, r := range m.moved {
		out = append(out, Op{Verb: MoveRule, Rule: r.Rule, Reason: r.Reason, rank: r.Rank})
	}
	return out
}
