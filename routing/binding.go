package routing

import (
	"net/netip"
	"slices"
)

// A Binding leads some packets by one link: those of a user or with a mark that this host sends,
// or those that it forwards from an interface or a network. Exactly one selector is set.
type Binding struct {
	// Name is how the administrator calls it, for reasons.
	Name string
	// Users and Mark select what this host sends.
	Users UIDRange
	Mark  Mark
	// Input is the interface by which what this host forwards comes in, Source its network.
	Input  string
	Source netip.Prefix
	// Index is the interface of the link, 0 if there is none now. LinkName is what the
	// administrator calls it.
	Index    int
	LinkName string
	// Strict says that nothing leaves by another uplink when the link has no way.
	Strict bool
	// Deny says of what is forwarded that it answers nobody who asks by another link.
	Deny bool
}

// IsForwarded reports whether the binding is for what this host forwards.
func (b Binding) IsForwarded() bool { return b.Input != "" || b.Source.IsValid() }

// Priority is that of the rule that leads to the link.
func (b Binding) Priority() Priority {
	switch {
	case b.Deny && b.IsForwarded():
		return PriorityDenied
	case b.IsForwarded():
		return PriorityForward
	default:
		return PriorityBinding
	}
}

// families are those that the selector can have.
func (b Binding) families() []Family {
	if b.Source.IsValid() {
		return []Family{FamilyOf(b.Source.Addr())}
	}
	f := Families()
	return f[:]
}

// IsBinding reports whether a rule of ours is for what is bound to a link.
func (r Rule) IsBinding() bool { return r.Protocol == Multihomed && r.binds() }

// binds reports whether a rule has a priority of bindings.
func (r *Rule) binds() bool {
	return r.Priority >= PriorityBinding && r.Priority <= PriorityForwardNever && (r.Priority < PriorityAnswerKnown || r.Priority > PriorityAnswerNever)
}

// selected puts the selector into a rule.
func (b Binding) selected(r Rule) Rule {
	r.UIDs, r.Mark, r.IIF = b.Users, b.Mark, b.Input
	if b.Mark != (Mark{}) {
		r.IIF = Loopback // What this host forwards may have the mark of somebody else.
	}
	if b.Source.IsValid() {
		r.From = b.Source
	}
	return r
}

// binding is what the planner keeps of bindings.
type binding struct {
	wanted []Binding
	rules  [2][]PlannedRule
}

// SetBindings takes what is bound, in the order in which the first one counts, and reports whether
// that is new.
func (p *Planner) SetBindings(wanted []Binding) bool {
	if slices.Equal(wanted, p.binding.wanted) {
		return false
	}
	p.binding.wanted = slices.Clone(wanted)
	for i := range p.around {
		p.bind(i)
	}
	return true
}

// Bindings returns what SetBindings was given.
func (p *Planner) Bindings() []Binding { return p.binding.wanted }

// bindIf looks at bindings once more after the plan of a link changed.
func (p *Planner) bindIf(index int) {
	if slices.ContainsFunc(p.binding.wanted, func(b Binding) bool { return b.Index == index }) {
		for i := range p.around {
			p.bind(i)
		}
	}
}

// bind wants the rules of all bindings of a family.
func (p *Planner) bind(i int) {
	f, x := Families()[i], &p.binding
	var rules []PlannedRule
	for n, b := range x.wanted {
		if slices.Contains(b.families(), f) {
			rules = append(rules, p.bindingRules(i, b, uint64(n))...)
		}
	}
	x.rules[i] = p.replaceShared(x.rules[i], rules)
}

// bindingRules are those of one binding. Place orders the bindings: the first one counts where two
// select a packet.
func (p *Planner) bindingRules(i int, b Binding, place uint64) []PlannedRule {
	f, around := Families()[i], &p.around[i]
	lookup := b.Priority()
	never := lookup + 1 // PriorityBindingNever and the like
	var out []PlannedRule
	stage := uint64(0)
	add := func(d Decision, at Priority, network string, r Rule) {
		r.Family, r.Protocol, r.Priority = f, Multihomed, at
		out = append(out, PlannedRule{Rule: r, Rank: place<<16 | stage, Reason: Reason{Decision: d, Link: b.LinkName, Prefix: network}})
		stage++
	}
	if b.Strict {
		add(BindNever, never, b.Name, b.selected(Rule{Action: ActionUnreachable}))
	}
	plan, is := p.links[b.Index]
	leads := is && plan.has(f)
	if around.step.stands() && (leads || b.Strict) {
		r := b.selected(around.stepOver(Rule{Family: f, Protocol: Multihomed}))
		out = append(out, PlannedRule{Rule: r, Rank: rankStep, Reason: Reason{Decision: StepOver, Link: b.LinkName, Prefix: b.Name}})
	}
	if !leads && !b.Strict {
		return out
	}
	// Containers, LANs and VPN networks are reached as main knows them, also while the link has no way.
	add(Bind, lookup, b.Name, b.selected(Rule{
		Action: ActionLookup, Table: TableMain,
		SuppressPrefixLength: Some(p.policy.ContainerPrefixLength), SuppressGroup: Some(around.group),
	}))
	for _, o := range around.open {
		for _, t := range o.tables {
			add(Bind, lookup, b.Name, b.selected(Rule{Action: ActionLookup, Table: t, SuppressPrefixLength: Some(p.policy.ContainerPrefixLength)}))
		}
	}
	if !leads {
		return out
	}
	for n, k := range p.outward(plan, f) {
		t := plan.Link.Tables[k]
		switch {
		case b.IsForwarded() && n == 0:
			add(Bind, lookup, k.Network(), b.selected(Rule{Action: ActionLookup, Table: t}))
		case b.IsForwarded():
			// The first table leads to outside; the others are for packets that have an address.
		default:
			p.bindSources(plan, k, n == 0, func(r Rule) {
				r = b.selected(r)
				r.Action, r.Table = ActionLookup, t
				add(Bind, lookup, k.Network(), r)
			})
		}
	}
	return out
}

// outward are the leased networks of a link in a family, the one that its default belongs to first.
func (p *Planner) outward(plan *planned, f Family) []Key {
	var keys []Key
	for _, k := range plan.Keys {
		if _, leased := plan.Link.Tables[k]; leased && k.Family == f {
			keys = append(keys, k)
		}
	}
	if len(keys) < 2 {
		return keys
	}
	first := outside(plan.Link, keys, firstKey(plan.Link, keys))
	slices.SortStableFunc(keys, func(a, b Key) int { return compareBool(b == first, a == first) })
	return keys
}

// bindSources makes the rules for what is bound and has an address of a network, or none yet: IPv4
// looks up with 0.0.0.0 then, IPv6 with a rule that finds the source.
func (p *Planner) bindSources(plan *planned, k Key, first bool, add func(Rule)) {
	if k.Family == IPv4 && first {
		add(Rule{From: netip.PrefixFrom(netip.IPv4Unspecified(), k.Family.Bits())})
	}
	for _, s := range sourcesOf(plan.Link, k, plan.near.crowded[k.Prefix]) {
		add(Rule{From: s, FindSource: k.Family == IPv6})
	}
}
