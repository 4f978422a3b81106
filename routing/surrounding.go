package routing

import (
	"math"
	"net/netip"
	"slices"
)

// A surrounding is what the rules of others in one family mean for ours. It is
// made anew when they change; plans of links depend on what of it is not a lift.
type surrounding struct {
	// localMoved says that the kernel's rule for local stands behind the ladder.
	localMoved bool
	// tunnels are the tables that somebody sends everything to, or half of it, in the order
	// in which the kernel asks them.
	tunnels []tunnel
	// fullTunnel says that somebody decides for every packet behind the ladder.
	fullTunnel bool
	// mainUnread says that no rule reads main for whatever this host sends: the
	// administrator took the kernel's away.
	mainUnread bool
	// lifts says that rules are lifted over the ladder.
	lifts bool
	// inside are the priorities at which the rungs in front of them stand once more, apart from
	// the last: see insidePlaces.
	inside []Priority
	// last is the priority of what stands behind the ladder, last before main.
	last Priority
	step step
	// group is the interface group by which uplinks are told.
	group uint32
	// named are the sources that rules of others name, or named until just now. Whether a
	// link is planned again for them is for [Planner.name] to say.
	named map[netip.Prefix]struct{}
	// namedTo are the destinations that they name.
	namedTo map[netip.Prefix]struct{}
	// sender says that a rule of others is for what this host sends, or was until just now:
	// "iif lo" is a word of theirs.
	sender bool
	// entered are the tables of all rules that decide for every packet behind the
	// ladder, also of those that leave some packets out.
	entered []TableID
	// layers are the tables that are asked before main, as they would be without us.
	layers []layer
	// unbound is what the kernel does with packets that are bound to nothing. Whether a
	// link is planned again for it is for [Planner.SetUnbound] to say.
	unbound []Unbound
	// refused says who refuses what is bound to nothing. Whether a link is planned again for
	// it is for [Planner.SetRefused] to say.
	refused Refusal
	// thrown are the destinations that main throws, sorted. Whether a link is planned again for
	// them is for [Planner.SetThrown] to say.
	thrown []netip.Prefix
	// throws are those of them that tables throw.
	throws *prefixSet
	// excepted are the destinations inside of these that main does not throw. Whether a link is
	// planned again for them is for [Planner.except] to say.
	excepted exceptions
	// openings are the networks that others may reach behind interfaces of the group.
	// Whether a link is planned again for them is for [Planner.reopen] to say.
	openings
	// overtaken are the rules of others whose order is not the one without us.
	overtaken []Overtaking
}

// known lists the tables that bound traffic asks before its own, for what they know
// in particular. What stands in front of main without us stands in front of it here.
func (s *surrounding) known() []tunnel {
	return append(slices.Clip(s.tunnels), tunnel{table: TableMain})
}

// A tunnel is a table that a rule of somebody else reads for what this host sends.
type tunnel struct {
	table TableID
	// from and to are the halves of everything that the rule is for, zero for all.
	from, to netip.Prefix
	// suppress is the length of prefixes that the rule takes no answer from, nor from shorter ones.
	suppress uint32
}

// isFor reports whether the rule is for packets of a source.
func (t tunnel) isFor(source netip.Prefix) bool { return !names(t.from) || t.from.Overlaps(source) }

// enterTunnel notes a table that a rule reads. What a rule is for stands in other words:
// whoever deletes it by these, as in `ip rule del to 0.0.0.0/1`, must hit his own.
func (s *surrounding) enterTunnel(r Rule) {
	one := tunnel{table: r.Table, from: r.From, to: r.To, suppress: r.SuppressPrefixLength.Value}
	at := slices.IndexFunc(s.tunnels, func(t tunnel) bool { return t.table == r.Table })
	switch {
	case at >= 0 && (!names(r.To) || !names(s.tunnels[at].to)) && s.tunnels[at] != one:
		// The request for the one that says less would take the other.
		one.suppress, one.from, one.to = min(one.suppress, s.tunnels[at].suppress), netip.Prefix{}, netip.Prefix{}
		s.tunnels = slices.DeleteFunc(s.tunnels, func(t tunnel) bool { return t.table == r.Table })
		s.tunnels = slices.Insert(s.tunnels, at, one)
	case names(r.To):
		low, high := cut(r.To)
		for _, half := range [...]netip.Prefix{low, high} {
			if one.to = half; !slices.Contains(s.tunnels, one) {
				s.tunnels = append(s.tunnels, one)
			}
		}
	case !slices.Contains(s.tunnels, one):
		s.tunnels = append(s.tunnels, one)
	}
}

// A step leads bound traffic over the rules that the kernel numbered below ours.
type step struct {
	priority, target Priority
	// apart says that its rules must be told from gotos in front of them: see tellApart.
	apart bool
}

func (s step) stands() bool { return s.priority != 0 }

// Ranks among rules of one priority: lifts first, then rungs; at the step, what is skipped
// comes before the step itself. What stands once more inside of the ladder comes in between:
// see rankInside.
const (
	rankRung     uint64 = 1 << 59
	rankStepRung uint64 = 1 << 60
	rankStep     uint64 = 1 << 61
)

func (s *surrounding) atStep(r Rule) Rule {
	r.Priority = s.step.priority
	return r
}

func (s *surrounding) stepOver(r Rule) Rule {
	r = s.atStep(r)
	r.Action, r.Goto = ActionGoto, s.step.target
	if s.step.apart {
		r.SuppressPrefixLength = Some(r.word())
	}
	return r
}

// equal reports whether the plans of links may stay.
func (s *surrounding) equal(o *surrounding) bool {
	return s.localMoved == o.localMoved && s.mainUnread == o.mainUnread && s.fullTunnel == o.fullTunnel && s.lifts == o.lifts &&
		s.step == o.step && s.group == o.group && slices.Equal(s.inside, o.inside) && s.last == o.last && slices.Equal(s.tunnels, o.tunnels) && slices.Equal(s.entered, o.entered) && slices.Equal(s.layers, o.layers)
}

// survey makes of the rules of others what it means for ours, and the rules that
// lift them.
func survey(f Family, foreign []ForeignRule, group uint32) (surrounding, []PlannedRule) {
	s := surrounding{group: group, last: behindLadder(foreign)}
	var others []ForeignRule
	localStands, localBefore := false, false
	for _, o := range foreign {
		switch r := o.Rule; {
		case r.Action == ActionNop:
			// It decides nothing.
		case r.isLookupOfAll() && r.Table == TableLocal:
			localStands = true
			localBefore = localBefore || r.Priority < PriorityLocal
			if !r.Kernels() {
				others = append(others, o)
			}
		case r.Priority > PriorityAgain:
			// main, default, and what stands behind them.
		default:
			others = append(others, o)
		}
	}
	s.localMoved = localStands && !localBefore
	s.mainUnread = len(foreign) > 0 && !MainIsRead(foreign)
	var stepped []Priority
	for _, o := range others {
		r := o.Rule
		switch isStepped := o.SteppedOver(); {
		case r.Selects():
			s.lifts = s.lifts || liftable(r, PriorityLift)
		case isStepped:
			stepped = append(stepped, r.Priority)
			s.enter(o)
		case r.Priority > PriorityKnown:
			s.enter(o)
		default:
			// Whoever stands in front has the first word.
		}
	}
	s.layers = orderLayers(s.layers)
	s.inside = insidePlaces(others)
	points := liftPoints(others, s.inside)
	lifts, overtaken := inOrder(f, others)
	s.overtaken = overtaken
	for i := range lifts {
		if p := lifts[i].Rule.Priority; p > PriorityLift {
			// Whom a complement of the front leaves out meets what is said again.
			points[0].end, points[0].last = min(points[0].end, p), min(points[0].last, p-1)
		}
	}
	if len(stepped) > 0 {
		p := stepPoint(others, slices.Min(stepped)-1)
		s.step = step{priority: p.end, target: s.target(slices.Max(stepped))}
		if p.first > PriorityLift {
			// Whom a complement of the front leaves out meets the step, too.
			points[0].end, points[0].last = min(points[0].end, p.first), min(points[0].last, p.first-1)
		}
		points = append(points, p)
	}
	for _, p := range points {
		rules, missed := p.lift(f, others, lifts)
		lifts, s.overtaken = append(lifts, rules...), append(s.overtaken, missed...)
	}
	tellApart(lifts, others)
	s.step.apart = slices.ContainsFunc(lifts, func(r PlannedRule) bool {
		return r.Rule.Priority == s.step.priority && r.Rule.Action == ActionGoto && (r.Rule.OIF != "" || r.Rule.IIF != "")
	})
	if s.step.stands() && slices.ContainsFunc(lifts, func(r PlannedRule) bool { return r.Rule.Goto == s.step.priority }) {
		// Without an uplink there is no step, and a goto that leads nowhere does nothing:
		// all would be taken for whom the complement leaves.
		lifts = append(lifts, PlannedRule{
			Rule:   s.atStep(Rule{Family: f, Action: ActionNop, Protocol: Multihomed}),
			Rank:   rankStepRung,
			Reason: Reason{Decision: StepOver, Prefix: "where complements lead"},
		})
	}
	return s, lifts
}

// target is the lowest of our rungs behind all that is stepped over.
func (s *surrounding) target(last Priority) Priority {
	switch {
	case s.localMoved && last < PriorityLocal:
		return PriorityLocal
	case s.lifts && last < PriorityLift:
		return PriorityLift
	default:
		return PriorityKnown
	}
}

// SteppedOver reports whether bound traffic steps over a rule: one that would
// stand behind the ladder, had it come before us.
func (o ForeignRule) SteppedOver() bool {
	return o.Numbered && !o.Rule.Selects() && o.Rule.Priority >= PriorityNumbered && o.Rule.Priority < PriorityKnown &&
		(o.Rule.Action != ActionLookup || o.Rule.Table != TableLocal)
}

// enter notes a rule that decides about every packet behind the ladder.
func (s *surrounding) enter(o ForeignRule) {
	r := o.Rule
	if r.isLayer() {
		s.layers = append(s.layers, layerOf(o))
	}
	switch r.Action {
	case ActionLookup:
	case ActionBlackhole, ActionUnreachable, ActionProhibit:
		s.fullTunnel = true
		return
	default:
		return
	}
	if !r.leadsElsewhere() {
		return
	}
	s.fullTunnel = true
	if !slices.Contains(s.entered, r.Table) {
		s.entered = append(s.entered, r.Table)
	}
	// What a rule leaves out is its tunnel's own traffic, and a rule of ours could not
	// leave it out. Those are full tunnels: their table is a default and nothing
	// else. Besides, wg-quick deletes what says "lookup TABLE" until nothing does.
	if r.Invert || r.Mark.Mask != 0 {
		return
	}
	s.enterTunnel(r)
}

// liftable reports whether a rule of somebody else is lifted at a priority: it
// selects, and stands behind it and before main.
func liftable(r Rule, at Priority) bool {
	return r.Selects() && !r.Unknown && r.Action != ActionNop && r.Priority > at && r.Priority <= PriorityAgain
}

// A point is a place at which the rules of others that stand behind it are lifted.
type point struct {
	// first is the priority of its first lifts.
	first Priority
	// behind is the priority behind which rules are lifted.
	behind Priority
	// last is the highest priority of its lifts, end where complements at the last
	// place lead: a rule stands there.
	last, end Priority
	// exact says that a lift must take no packet but those of its rule: behind the lifts
	// stands what is for everybody.
	exact bool
}

// rungsOfSources are the rungs, apart from the step, that have something to say to
// a packet that a rule of somebody else selects.
var rungsOfSources = [...]Priority{ //nolint:gochecknoglobals // a constant in all but name
	PriorityOverlap, PriorityKnown, PriorityNested, PriorityOpening, PriorityDeviceSource, PriorityDevice, PrioritySource, PriorityUnreachable,
	PriorityTwin, PriorityNetworkMain, PriorityNetwork,
}

// liftPoints are the places where rules have to be lifted: in front of the ladder,
// and inside of it wherever rules of others stand among ours. A packet that was
// lifted to one of these goes on from there, and must not meet our rungs before
// the next one that selects it, nor what stands inside of the ladder before that.
func liftPoints(others []ForeignRule, inside []Priority) []point {
	front := point{first: PriorityLift, behind: PriorityLift, last: priorityLastLift, end: PriorityKnown}
	points := []point{front}
	from := PriorityLift
	for _, rung := range rungsOfSources {
		last := Priority(0)
		for _, o := range others {
			if p := o.Rule.Priority; p > from && p <= rung {
				last = max(last, p)
				points[0].end, points[0].last = min(points[0].end, p), min(points[0].last, p-1)
			}
		}
		if last != 0 {
			points = append(points, point{first: last, behind: last, last: last, end: last})
		}
		from = rung
	}
	for _, p := range inside {
		if !slices.ContainsFunc(points, func(at point) bool { return at.behind == p }) {
			points = append(points, point{first: p, behind: p, last: p, end: p})
		}
	}
	return points
}

// insidePlaces are the priorities inside of the ladder, and behind it, at which the rungs in
// front of them stand once more. Rules of others stand there to which packets come that skipped
// these rungs: they were lifted, or a goto of somebody else leads there. If the rule has no
// answer, they must find their link before the rungs behind it take or refuse them, and before a
// rule of somebody else that is for everybody does. There is one place in front of each of these,
// directly behind the last rule that selects: the next ones have their say first.
func insidePlaces(others []ForeignRule) []Priority {
	targets := map[Priority]struct{}{}
	// A cut is a place between the rules of a priority and those of the next one.
	var cuts []Priority
	for _, o := range others {
		r := o.Rule
		if r.Action == ActionGoto {
			targets[r.Goto] = struct{}{}
		}
		if !r.Selects() && !o.SteppedOver() && r.Priority > PriorityKnown {
			cuts = append(cuts, r.Priority-1)
		}
	}
	for _, rung := range rungsOfSources {
		if rung > PriorityOverlap && rung <= PriorityUnreachable {
			cuts = append(cuts, rung)
		}
	}
	slices.Sort(cuts)
	var out []Priority
	from := PriorityOverlap
	for _, cut := range cuts {
		last := Priority(0)
		for _, o := range others {
			if p := o.Rule.Priority; p > from && p <= cut && (liftable(o.Rule, PriorityLift) || contains(targets, p)) {
				last = max(last, p)
			}
		}
		if last != 0 {
			out = append(out, last)
		}
		from = cut
	}
	return out
}

// behind reports whether a priority is one of those last before main.
func (p Priority) behind() bool { return p >= firstAgain && p <= PriorityAgain }

// behindLadder is the priority of what stands behind the ladder: the last before main. A goto
// of somebody else that leads to a priority at which nothing stands does nothing, and would
// find ours there: then ours stand in front of that, which is the same place.
func behindLadder(foreign []ForeignRule) Priority {
	at := PriorityAgain
	for at > firstAgain && Dangles(foreign, at) {
		at--
	}
	return at
}

// Dangles reports whether a goto of somebody else leads to a priority at which nobody has a
// rule but us.
func Dangles(foreign []ForeignRule, at Priority) bool {
	leads := slices.ContainsFunc(foreign, func(o ForeignRule) bool { return o.Rule.Action == ActionGoto && o.Rule.Goto == at })
	return leads && !slices.ContainsFunc(foreign, func(o ForeignRule) bool { return o.Rule.Priority == at })
}

// A site is a place at which the rungs of a link stand. That without a priority is the ladder
// itself, where each rung has its own. At the others they share one.
type site struct {
	at Priority
	// last says that it is the one behind all that others have before main.
	last bool
}

// sites are those of a family, in the order of the kernel but for the first.
func (s *surrounding) sites() []site {
	out := make([]site, 1, 2+len(s.inside))
	for _, p := range s.inside {
		out = append(out, site{at: p})
	}
	if s.lifts {
		out = append(out, site{at: s.last, last: true})
	}
	return out
}

// again reports whether the rungs stand there once more.
func (s site) again() bool { return s.at != 0 }

// has reports whether a rung stands at the site: inside of the ladder, only those do that may
// have been skipped.
func (s site) has(rung Priority) bool { return !s.again() || s.at > rung }

// priority is that of a rung at the site.
func (s site) priority(rung Priority) Priority {
	if !s.again() {
		return rung
	}
	return s.at
}

func (s site) decision(d Decision) Decision {
	if !s.again() {
		return d
	}
	return Again
}

// rank orders the rungs of one source at the site, rank is that in the ladder.
func (s site) rank(rank, stage uint64) uint64 {
	switch {
	case !s.again():
		return rank
	case s.last:
		return rankAgain(rank, stage)
	default:
		return rankInside(rank, stage)
	}
}

// mark returns the words of a rung at the site; last is its mark at the last one. At the
// others all have a word, by which they are known: see [Rule.inside].
func (s site) mark(last, inside Mark) Mark {
	switch {
	case !s.again():
		return Mark{}
	case s.last:
		return last
	default:
		return inside
	}
}

// ownMark returns the words of a rung in the ladder that says little: at a priority at which
// others are repeated, its request would take these.
func (s *surrounding) ownMark(rung Priority) Mark {
	if slices.Contains(s.inside, rung) {
		return anyMarkOwn
	}
	return Mark{}
}

// inside reports whether a rule of ours stands at the priority of a rule of somebody else,
// besides the rung that it repeats.
func (r *Rule) inside() bool {
	return r.Protocol == Multihomed && r.Priority > PriorityOverlap && r.Priority < firstAgain &&
		r.Mark.Mask == 0 && r.Mark.Value != 0 && r.Mark != anyMarkOwn && (r.Priority != PriorityNested || r.Mark != anyMarkInner) &&
		(r.Priority != PriorityKnown || r.Mark != anyMarkHalf)
}

// repeats reports whether a rule of ours repeats a rung, inside of the ladder or behind it.
func (r *Rule) repeats() bool { return r.Priority.behind() || r.inside() }

// lowestStep is how far down the rules of a step may begin.
const lowestStep Priority = 6900

// stepPoint is the point in front of a step at the given priority.
func stepPoint(others []ForeignRule, at Priority) point {
	p := point{first: at, behind: at, last: at, end: at, exact: true}
	for _, o := range others {
		if liftable(o.Rule, at) && p.needsTwo(o.Rule) && !o.saidAgain(at, others) {
			p.first -= 2
		}
	}
	// Whom a complement leaves stands at an odd priority: see Rule.complemented.
	if p.first < at {
		p.first -= p.first % 2
	}
	if p.first < lowestStep || slices.ContainsFunc(others, func(o ForeignRule) bool {
		return o.Rule.Priority >= p.first && o.Rule.Priority <= at
	}) {
		p.first = at // There is no room for complements.
	}
	return p
}

// lift makes the rules of one point, in the order of the rules that they lift, and returns
// what could not be kept in order. Some rules stand there already.
func (p point) lift(f Family, others []ForeignRule, standing []PlannedRule) (out []PlannedRule, overtaken []Overtaking) {
	add := func(r, o Rule, yields bool) {
		r.Family, r.Protocol, r.Action = f, Multihomed, ActionGoto
		out = append(out, PlannedRule{
			Rule: r, Rank: rankLift | uint64(len(out)), Yields: yields,
			Reason: Reason{Decision: LiftForeign, Prefix: o.String()},
		})
	}
	// lead makes the packets of a rule, said in other words, go on at a target.
	lead := func(r Rule, at, target Priority) {
		all := disguised(r)
		if p.exact {
			all, _ = copied(words(r), Rule{}, false)
		}
		for _, w := range all {
			yields := w.MeantBy(r)
			w.Priority, w.Goto = at, target
			add(w, r, yields)
		}
	}
	at := p.first
	var unlifted []ForeignRule
	lifted := map[Rule]struct{}{}
	for _, o := range others {
		r := o.Rule
		switch {
		case r.Priority <= p.behind:
			continue
		case !liftable(r, p.behind):
			unlifted = append(unlifted, o)
			continue
		case o.saidAgain(p.behind, others):
			continue // See inOrder.
		}
		// The first rule for some packets leads to all that are for them.
		if _, done := lifted[words(r)]; done {
			continue
		}
		lifted[words(r)] = struct{}{}
		before := o
		// What stood before it without us stands before it with us.
		if i := slices.IndexFunc(unlifted, func(q ForeignRule) bool { return !q.SteppedOver() || q.withoutUs() < o.withoutUs() }); i >= 0 {
			before = unlifted[i]
		}
		target := before.Rule.Priority
		overtakes := slices.ContainsFunc(others, func(q ForeignRule) bool { return q.precedes(before) })
		// A goto to a priority at which nothing stands does nothing. Before a rule that bound
		// traffic steps over something does.
		isThere := before.SteppedOver() || slices.ContainsFunc(standing, func(r PlannedRule) bool { return r.Rule.Priority == before.ahead() })
		if overtakes && isThere && before.ahead() > p.behind {
			target = before.ahead()
		}
		// What is said again for everybody stands behind the lifts. Before a lift it is for those
		// that this selects. It may have no answer: then these go on to the numbered rule, and
		// not over it with the step.
		sayAgain := func(his Rule, at Priority, apart bool) {
			if !overtakes || before.ahead() != p.behind {
				return
			}
			again, missed := before.again(f, saying{his: his, at: at, apart: apart, standing: slices.Concat(standing, out)}, others)
			for _, x := range again {
				x.Rank = rankLift | uint64(len(out))
				out = append(out, x)
			}
			overtaken = append(overtaken, missed...)
		}
		// One that has no answer goes on to what the kernel numbered and is for everybody.
		for _, n := range others {
			if _, some, _ := meet(r, n.Rule); some && n.SteppedOver() && o.precedes(n) && n.ahead() > p.behind {
				target = min(target, n.ahead())
			}
		}
		if next := at + 2; p.needsTwo(r) && next <= p.last {
			rests, wide := r.leftOut(p.exact)
			for _, rest := range rests {
				rest.Priority, rest.Goto = at, next
				add(rest, r, false)
			}
			sayAgain(wide, at+1, true)
			for _, w := range disguise(r, wide) {
				w.Priority, w.Goto = at+1, target
				add(w, r, w.MeantBy(r))
			}
			at = next
			continue
		}
		sayAgain(r, at, false)
		lead(r, at, target)
	}
	if !slices.ContainsFunc(out, func(r PlannedRule) bool { return r.Rule.Priority == at }) {
		// The last was a complement: it leads to what stands behind the point.
		for i := range out {
			if out[i].Rule.Goto == at && out[i].Rule.Priority == at-2 {
				out[i].Rule.Goto = p.end
			}
		}
	}
	return out, overtaken
}

// lastUser is the highest user there is: the next one is INVALID_UID of
// include/linux/uidgid.h.
const lastUser = math.MaxUint32 - 1

// complement returns the users that a range leaves out.
func complement(u UIDRange) []UIDRange {
	var out []UIDRange
	if u.First > 0 {
		out = append(out, UIDRange{Set: true, Last: u.First - 1})
	}
	if u.Last < lastUser {
		out = append(out, UIDRange{Set: true, First: u.Last + 1, Last: lastUser})
	}
	return out
}

// words returns the selectors of a rule.
func words(r Rule) Rule {
	return Rule{
		From: r.From, To: r.To, TOS: r.TOS, DSCP: r.DSCP, DSCPMask: r.DSCPMask, FlowLabel: r.FlowLabel, FlowLabelMask: r.FlowLabelMask,
		Mark: r.Mark, IIF: r.IIF, OIF: r.OIF, UIDs: r.UIDs, IPProto: r.IPProto,
		SourcePorts: r.SourcePorts, DestinationPorts: r.DestinationPorts, TunnelID: r.TunnelID, L3MDev: r.L3MDev,
	}
}

// MeantBy reports whether somebody who deletes a rule of his by words of it may hit r:
// the kernel deletes the first rule that has what the request names, whatever else the
// rule has, and compares no inversion (rule_find in net/core/fib_rules.c). That is so if r
// has a selector of his rule, leads to the same table of his, or reads one of the kernel's with
// the same suppressor ("table main suppress_prefixlength 0"). What says "iif lo" stands in
// other words, too, while his rule says it: see [LoopbackAlias].
func (r Rule) MeantBy(his Rule) bool {
	return names(his.From) && his.From == r.From ||
		names(his.To) && his.To == r.To ||
		his.TOS != 0 && his.TOS == r.TOS ||
		his.DSCP.Set && his.DSCP == r.DSCP && his.DSCPMask == r.DSCPMask ||
		his.FlowLabel.Set && his.FlowLabel == r.FlowLabel && his.FlowLabelMask == r.FlowLabelMask ||
		his.Mark != Mark{} && his.Mark == r.Mark ||
		his.IIF != "" && his.IIF == r.IIF ||
		his.OIF != "" && his.OIF == r.OIF ||
		his.UIDs.Set && his.UIDs == r.UIDs ||
		his.IPProto != 0 && his.IPProto == r.IPProto ||
		his.SourcePorts != PortRange{} && his.SourcePorts == r.SourcePorts ||
		his.DestinationPorts != PortRange{} && his.DestinationPorts == r.DestinationPorts ||
		his.TunnelID != 0 && his.TunnelID == r.TunnelID ||
		his.L3MDev && r.L3MDev ||
		r.Action == ActionLookup && his.Action == ActionLookup && his.Table == r.Table &&
			(his.leadsElsewhere() || his.SuppressPrefixLength.Set && his.SuppressPrefixLength == r.SuppressPrefixLength)
}

// names reports whether a prefix is a word of a request: a length of zero is none
// (fib4_rule_compare, fib6_rule_compare).
func names(p netip.Prefix) bool { return p.IsValid() && p.Bits() > 0 }

// leadsElsewhere reports whether a rule reads a table that is not the kernel's.
func (r Rule) leadsElsewhere() bool {
	if r.Action != ActionLookup {
		return false
	}
	switch r.Table {
	case TableMain, TableLocal, TableDefault, 0:
		return false
	default:
		return true
	}
}

// needsTwo reports whether a rule can be told from its lift only by leaving others out: it
// is for one user, one port or one address.
func (r Rule) needsTwo() bool {
	return r.oneUser() || r.DestinationPorts.one() || r.SourcePorts.one() || oneHost(r.From) || oneHost(r.To)
}

// needsTwo reports whether a rule is lifted at two priorities.
func (p point) needsTwo(r Rule) bool { return r.needsTwo() || p.exact && r.Mark.whole() }

func (r Rule) oneUser() bool { return r.UIDs.limits() && r.UIDs.First == r.UIDs.Last }

func oneHost(p netip.Prefix) bool { return p.IsValid() && p.IsSingleIP() }

// leftOut returns rules for whom a rule leaves out, and some for whoever comes after them
// and is its own. A user is what all others leave. A port or an address is one of two
// neighbours, of which the other is left out: the kernel knows no range that holds the
// ports 0 and 65535 (fib_rule_port_range_valid in include/net/fib_rules.h), and no port is
// 0 in what asks for a way before it has one. Whom a rule for others selects besides has
// nothing to do with the rule, so they name nothing but what is left out. The other words of
// a mark may take another one, too, which is left out if the rule must be exact.
func (r Rule) leftOut(exact bool) (others []Rule, wide Rule) {
	wide = words(r)
	if exact && r.Mark.whole() {
		others = append(others, Rule{Mark: r.Mark.other()})
	}
	if r.oneUser() {
		for _, rest := range complement(r.UIDs) {
			others = append(others, Rule{UIDs: rest})
		}
		wide.UIDs = UIDRange{}
	}
	port := func(of *PortRange, leave func(PortRange) Rule) {
		if of.one() {
			both, other := of.pair()
			others = append(others, leave(other))
			*of = both
		}
	}
	port(&wide.DestinationPorts, func(p PortRange) Rule { return Rule{DestinationPorts: p} })
	port(&wide.SourcePorts, func(p PortRange) Rule { return Rule{SourcePorts: p} })
	host := func(of *netip.Prefix, leave func(netip.Prefix) Rule) {
		if oneHost(*of) {
			both, other := neighbours(of.Addr())
			others = append(others, leave(other))
			*of = both
		}
	}
	host(&wide.From, func(p netip.Prefix) Rule { return Rule{From: p} })
	host(&wide.To, func(p netip.Prefix) Rule { return Rule{To: p} })
	return others, wide
}

// neighbours returns the block of two that an address is in, and the other one of it.
func neighbours(a netip.Addr) (both, other netip.Prefix) {
	both = netip.PrefixFrom(a, a.BitLen()-1).Masked()
	low, high := cut(both)
	if low.Addr() == a {
		return both, high
	}
	return both, low
}

// one reports whether a range is one port that has a neighbour the kernel takes.
func (p PortRange) one() bool {
	return p.Mask == 0 && p.First == p.Last && p.First > 0 && p.First < math.MaxUint16
}

// pair returns the port with a neighbour, and the neighbour.
func (p PortRange) pair() (both, other PortRange) {
	if p.First == math.MaxUint16-1 {
		other = PortRange{First: p.First - 1, Last: p.First - 1}
		return PortRange{First: other.First, Last: p.First}, other
	}
	other = PortRange{First: p.First + 1, Last: p.First + 1}
	return PortRange{First: p.First, Last: other.First}, other
}

func splits(p netip.Prefix) bool { return p.IsValid() && p.Bits() > 0 && !p.IsSingleIP() }

// disguised returns rules that select what r selects, each selector in other words.
// Whoever deletes r by one of its selectors, as in `ip rule del fwmark 1`, deletes the
// first rule that carries it (fib_nl_delrule in net/core/fib_rules.c): that must be his
// own, not ours. A selector that has no other words keeps its own.
func disguised(r Rule) []Rule { return disguise(r, words(r)) }

// disguise says in other words what of r has some. The rest is w's.
func disguise(r, w Rule) []Rule {
	if r.Mark.limits() {
		w.Mark = r.Mark.disguised()
	}
	out := []Rule{w}
	halve := func(can bool, halves func(Rule) []Rule) {
		if !can {
			return
		}
		var all []Rule
		for _, w := range out {
			all = append(all, halves(w)...)
		}
		out = all
	}
	halve(splits(r.From), func(w Rule) []Rule {
		return halves(w, r.From, func(w *Rule, p netip.Prefix) { w.From = p })
	})
	halve(splits(r.To), func(w Rule) []Rule {
		return halves(w, r.To, func(w *Rule, p netip.Prefix) { w.To = p })
	})
	halve(r.UIDs.limits() && !r.oneUser(), func(w Rule) []Rule {
		low, high := w, w
		middle := r.UIDs.First + (r.UIDs.Last-r.UIDs.First)/2
		low.UIDs.Last, high.UIDs.First = middle, middle+1
		return []Rule{low, high}
	})
	halve(r.DestinationPorts.splits(), func(w Rule) []Rule {
		return r.DestinationPorts.halves(w, func(w *Rule, p PortRange) { w.DestinationPorts = p })
	})
	halve(r.SourcePorts.splits(), func(w Rule) []Rule {
		return r.SourcePorts.halves(w, func(w *Rule, p PortRange) { w.SourcePorts = p })
	})
	return out
}

func (p PortRange) splits() bool { return p.limits() && p.Mask == 0 && p.First < p.Last }

func (p PortRange) halves(w Rule, set func(*Rule, PortRange)) []Rule {
	low, high := w, w
	middle := p.First + (p.Last-p.First)/2
	set(&low, PortRange{First: p.First, Last: middle})
	set(&high, PortRange{First: middle + 1, Last: p.Last})
	return []Rule{low, high}
}

func halves(w Rule, p netip.Prefix, set func(*Rule, netip.Prefix)) []Rule {
	low, high := w, w
	first, second := cut(p)
	set(&low, first)
	set(&high, second)
	return []Rule{low, high}
}

// cut cuts a network in two.
func cut(p netip.Prefix) (low, high netip.Prefix) {
	low = netip.PrefixFrom(p.Addr(), p.Bits()+1).Masked()
	return low, netip.PrefixFrom(withBit(p.Masked().Addr(), p.Bits()), p.Bits()+1)
}

// withBit sets a bit of an address, counted from the front.
func withBit(a netip.Addr, bit int) netip.Addr {
	b := a.AsSlice()
	b[bit/8] |= 0x80 >> (bit % 8)
	out, _ := netip.AddrFromSlice(b) // It has the length of an address.
	return out
}

// whole reports whether a mark limits packets to one mark.
func (m Mark) whole() bool { return m.limits() && ^m.Mask == 0 }

// other is the mark that the other words of a whole one take besides.
func (m Mark) other() Mark { return Mark{Value: m.disguised().Value, Mask: m.Mask} }

// disguised is another mark for the same packets: one that has a bit which the mask
// leaves out. Where the mask leaves none out it loses one, such that something is
// left to compare: packets with that bit are lifted too, find that the rule is not
// for them, and go on behind the ladder.
func (m Mark) disguised() Mark {
	const highest = 1 << 31
	if free := ^m.Mask; free != 0 {
		bit := uint32(highest)
		for free&bit == 0 {
			bit >>= 1
		}
		return Mark{Value: m.Value ^ bit, Mask: m.Mask}
	}
	bit := uint32(highest)
	if m.Value&^bit == 0 {
		bit = 1 // 0x80000000 becomes 0x80000001/0xfffffffe
	}
	return Mark{Value: m.Value ^ bit, Mask: m.Mask &^ bit}
}
