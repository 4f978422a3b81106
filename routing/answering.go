package routing

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
)

// What this host forwards or translates is answered on the link on which it was asked: the
// table of package answers marks such packets with a number, and the rungs "answer" lead each
// number to the table of one link. A number is given to a table and not to a link: a device with
// two networks has two gateways.

// A MarkMask says which bits of the packet mark are ours: some neighbouring ones. The highest
// is for sockets that are bound, the others are a number.
type MarkMask uint32

// DefaultMarkMask is that of a host without a configuration. Others use the lower bits:
// kube-proxy, netavark, mwan3, Tailscale, OpenWrt's pbr.
const DefaultMarkMask MarkMask = 0xff000000

// fewestMarkBits leave one for bound sockets and numbers for three tables.
const fewestMarkBits = 3

// Check refuses a mask whose bits are no neighbours, or too few or too many.
func (m MarkMask) Check() error {
	switch n := bits.OnesCount32(uint32(m)); {
	case n < fewestMarkBits || n > 8:
		return fmt.Errorf("it has %d bits: %d to 8 are needed", n, fewestMarkBits)
	case !m.neighbours():
		return errors.New("its bits are not neighbours")
	default:
		return nil
	}
}

// Valid reports whether the bits are neighbours and hold a number.
func (m MarkMask) Valid() bool { return bits.OnesCount32(uint32(m)) >= 2 && m.neighbours() }

func (m MarkMask) neighbours() bool {
	return bits.Len32(uint32(m))-bits.TrailingZeros32(uint32(m)) == bits.OnesCount32(uint32(m))
}

// MaxNumber is the highest number of a table, with any mask.
const MaxNumber = 127

// Last is the highest number that the mask holds, 0 for a mask that is not valid.
func (m MarkMask) Last() uint8 {
	if !m.Valid() {
		return 0
	}
	return uint8(min(1<<(bits.OnesCount32(uint32(m))-1)-1, MaxNumber)) //nolint:gosec // at most 127
}

// Mark selects the packets that have a number, from 1 to Last: `fwmark VALUE/MASK` of rule 9100.
func (m MarkMask) Mark(number uint8) Mark {
	return Mark{Value: uint32(number) << bits.TrailingZeros32(uint32(m)), Mask: uint32(m)}
}

// Bound is the mark of the sockets that are bound to a number.
func (m MarkMask) Bound(number uint8) Mark {
	mark := m.Mark(number)
	mark.Value |= 1 << (bits.Len32(uint32(m)) - 1)
	return mark
}

// Answers is what the planner must know of answers. The zero value means off.
type Answers struct {
	// Families are those for which packets are answered where they were asked.
	Families ByFamily[bool]
	// Mask are the bits of ours; zero stands for [DefaultMarkMask].
	Mask MarkMask
	// Diverted are the numbers that packets are marked with now, by family. While they are, a
	// number that leads to no table is refused: its packets would leave by another link.
	Diverted ByFamily[map[uint8]struct{}]
}

// Equal reports whether two are the same.
func (a *Answers) Equal(o *Answers) bool {
	return a.Families == o.Families && a.Mask == o.Mask && maps.Equal(a.Diverted[0], o.Diverted[0]) && maps.Equal(a.Diverted[1], o.Diverted[1])
}

func (a *Answers) clone() Answers {
	out := *a
	for i := range out.Diverted {
		out.Diverted[i] = maps.Clone(out.Diverted[i])
	}
	return out
}

func (a *Answers) mask() MarkMask { return cmp.Or(a.Mask, DefaultMarkMask) }

// An Answer is the number of a table: packets that carry it are answered by the table's link.
type Answer struct {
	Number uint8
	Table  TableID
	// Index and Link are the interface, Network what the table is leased to.
	Index   int
	Link    string
	Network string
}

// answering is what the planner keeps of answers, by family.
type answering struct {
	facts   Answers
	answers [2][]Answer
	// left counts the tables that got no number.
	left  ByFamily[int]
	rules [2][]PlannedRule
}

// SetAnswers takes for what there are answers, and reports whether that is new.
func (p *Planner) SetAnswers(a Answers) bool {
	if a.Equal(&p.answering.facts) {
		return false
	}
	p.answering.facts = a.clone()
	for i := range p.around {
		p.answer(i)
	}
	return true
}

// Answers returns the numbers of a family, by table, and how many tables of uplinks got none
// because there are no more. They are for whoever marks packets.
func (p *Planner) Answers(f Family) (answers []Answer, left int) {
	i := familyIndex(f)
	return p.answering.answers[i], p.answering.left[i]
}

// Answering are the facts that SetAnswers took, with the mask that counts.
func (p *Planner) Answering() Answers {
	a := p.answering.facts.clone()
	a.Mask = a.mask()
	return a
}

// UplinkGroup is the interface group by which the rules tell uplinks.
func (p *Planner) UplinkGroup() uint32 { return p.group() }

// answerIf looks at answers once more after the plan of a link changed.
func (p *Planner) answerIf(old, now *planned) {
	for i, f := range Families() {
		x := &p.answering
		if !x.facts.Families[i] && len(x.rules[i]) == 0 {
			continue
		}
		if !slices.Equal(answerable(old, f), answerable(now, f)) {
			p.answer(i)
		}
	}
}

// answerable returns the tables of a link that answer for their addresses, without numbers: it
// is an uplink, so that the tables know a way to whoever asked.
func answerable(plan *planned, f Family) []Answer {
	if plan == nil || plan.Roles.In(f) != Uplink {
		return nil
	}
	var out []Answer
	for _, k := range plan.Keys {
		if t, leased := plan.Link.Tables[k]; leased && k.Family == f {
			out = append(out, Answer{Table: t, Index: plan.Link.Index, Link: plan.Link.Name, Network: k.Network()})
		}
	}
	return out
}

// answer gives numbers to the tables of a family, and wants what leads marked packets there.
func (p *Planner) answer(i int) {
	f, x := Families()[i], &p.answering
	var tables []Answer
	// Whoever refuses what is bound to nothing wants nothing to leave.
	if x.facts.Families[i] && p.around[i].refused == (Refusal{}) {
		for _, plan := range p.links {
			tables = append(tables, answerable(plan, f)...)
		}
	}
	x.answers[i] = numberTables(tables, p.policy.Tables.First, x.facts.mask(), p.foreign[i])
	x.left[i] = len(tables) - len(x.answers[i])
	x.rules[i] = p.replaceShared(x.rules[i], p.answerRules(i))
}

// numberTables gives each table the number of its place in the range, or the next free one. So
// a table keeps its number while others come and go, unless there are more tables than numbers.
func numberTables(tables []Answer, first TableID, mask MarkMask, foreign []ForeignRule) []Answer {
	free := make([]uint8, 0, mask.Last())
	for number := uint8(1); number <= mask.Last(); number++ {
		if !slices.ContainsFunc(foreign, func(o ForeignRule) bool { return o.Rule.MeansNumber(mask, number) }) {
			free = append(free, number)
		}
	}
	taken := make(map[uint8]struct{}, len(tables))
	var out []Answer
	slices.SortFunc(tables, func(a, b Answer) int { return cmp.Compare(a.Table, b.Table) })
	tables = slices.CompactFunc(tables, func(a, b Answer) bool { return a.Table == b.Table })
	for _, a := range tables {
		for n := range free {
			number := free[(int(a.Table-first)+n)%len(free)]
			if contains(taken, number) {
				continue
			}
			taken[number] = struct{}{}
			a.Number = number
			out = append(out, a)
			break
		}
	}
	return out
}

// MeansNumber reports whether a rule of somebody else would select a packet, or leave one out,
// because of a number in its mark. Such a number must not be given to a table.
func (r Rule) MeansNumber(mask MarkMask, number uint8) bool {
	ours := r.Mark.Mask & uint32(mask)
	return r.Mark.Value&ours != 0 && (mask.Mark(number).Value^r.Mark.Value)&ours == 0
}

// SelectsByMark reports whether a rule of somebody else selects by bits of a mask. To mark a packet
// that it selects would take the packet from the rule.
func (r Rule) SelectsByMark(mask MarkMask) bool {
	return r.Mark.Mask&uint32(mask) != 0 && r.Mark.Value&r.Mark.Mask != 0
}

// IsAnswer reports whether a rule of ours is for packets that are answered by a link.
func (r Rule) IsAnswer() bool {
	at := r.Priority >= PriorityAnswerKnown && r.Priority <= PriorityAnswerNever || r.Priority.behind()
	return at && r.Protocol == Multihomed && r.Mark.Mask != 0 && r.Action != ActionGoto
}

// rankAnswer is that of the rungs of answers behind the ladder: after all that is for bound
// traffic, and before failover.
const rankAnswer uint64 = 0xc0 << 56

// answerRules returns the rungs of a family: for each number what main knows, the table, and
// the end; and what leads there over rules that the kernel numbered below ours. All have one rank, for no packet has two numbers.
func (p *Planner) answerRules(i int) []PlannedRule {
	x, around := &p.answering, &p.around[i]
	var out []PlannedRule
	add := func(a Answer, d Decision, at Priority, place uint64, r Rule) {
		r.Family, r.Protocol, r.Mark = Families()[i], Multihomed, x.facts.mask().Mark(a.Number)
		one := PlannedRule{Rule: r, Reason: Reason{Decision: d, Link: a.Link, Prefix: a.Network}}
		one.Rule.Priority = at
		out = append(out, one)
		if around.lifts {
			one.Rule.Priority, one.Rank, one.Reason.Decision = around.last, rankAnswer|place, Again
			out = append(out, one)
		}
	}
	for _, a := range x.answers[i] {
		add(a, AnswerKnown, PriorityAnswerKnown, 0, Rule{
			Action: ActionLookup, Table: TableMain,
			SuppressPrefixLength: Some(p.policy.ContainerPrefixLength), SuppressGroup: Some(around.group),
		})
		// A LAN with an IPv6 router is in the group, and open for IPv4 as main knows it.
		for _, o := range around.open {
			for _, t := range o.tables {
				add(a, AnswerKnown, PriorityAnswerKnown, 0, Rule{Action: ActionLookup, Table: t, SuppressPrefixLength: Some(p.policy.ContainerPrefixLength)})
			}
		}
		add(a, AnswerLink, PriorityAnswer, 1, Rule{Action: ActionLookup, Table: a.Table})
		add(a, AnswerNever, PriorityAnswerNever, 2, Rule{Action: ActionUnreachable})
	}
	step := func(a Answer) {
		if around.step.stands() {
			r := around.stepOver(Rule{Family: Families()[i], Protocol: Multihomed, Mark: x.facts.mask().Mark(a.Number)})
			out = append(out, PlannedRule{Rule: r, Rank: rankStep, Reason: Reason{Decision: StepOver, Link: a.Link, Prefix: a.Network}})
		}
	}
	for _, a := range x.answers[i] {
		step(a)
	}
	for _, number := range slices.Sorted(maps.Keys(x.facts.Diverted[i])) {
		if slices.ContainsFunc(x.answers[i], func(a Answer) bool { return a.Number == number }) {
			continue
		}
		add(Answer{Number: number}, AnswerNever, PriorityAnswerNever, 2, Rule{Action: ActionUnreachable})
		step(Answer{Number: number})
	}
	return out
}
