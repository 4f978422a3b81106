package reconcile

import (
	"net/netip"
	"slices"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A Recollection is what a process that starts while the ladder stands must know of
// the time before it: the kernel does not tell.
type Recollection struct {
	// Chosen and Numbered are rules of others in front of the ladder: those that
	// somebody put there, and those whose priority the kernel chose while the
	// ladder stood.
	Chosen   []routing.Rule `json:"chosen,omitempty"`
	Numbered []NumberedRule `json:"numbered,omitempty"`
	// Uplinks are the links that main had a default route through.
	Uplinks []FormerUplink `json:"uplinks,omitempty"`
}

// A NumberedRule is a rule whose priority the kernel chose while the ladder stood, with
// the one that it would have chosen without us.
type NumberedRule struct {
	Rule    routing.Rule     `json:"rule"`
	Natural routing.Priority `json:"natural"`
}

// A FormerUplink is a link that was an uplink by a default, with the addresses and
// the profile that it had then.
type FormerUplink struct {
	Index     int          `json:"index"`
	Interface string       `json:"interface"`
	Profile   string       `json:"profile,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
}

// A Memory keeps a Recollection until the next boot.
type Memory interface {
	// Recall returns what was kept, the zero Recollection and false if nothing was.
	Recall() (Recollection, bool)
	Keep(Recollection) error
}

// A Recall is a Recollection at work: the loop's, which goes on to learn, or that of
// somebody who only looks.
type Recall struct {
	memory Memory
	// known are the rules in front of the ladder: those that the kernel numbered with
	// the priority that they would have without us, the others with zero.
	known   map[routing.Rule]routing.Priority
	uplinks map[int]FormerUplink
	changed bool
}

// NewRecall starts from what was kept; a nil Memory kept nothing and keeps nothing.
func NewRecall(m Memory) *Recall {
	r := &Recall{memory: m, known: map[routing.Rule]routing.Priority{}, uplinks: map[int]FormerUplink{}}
	if m == nil {
		return r
	}
	kept, _ := m.Recall()
	for _, rule := range kept.Chosen {
		r.known[rule] = 0
	}
	for _, n := range kept.Numbered {
		r.known[n.Rule] = n.Natural
	}
	for _, u := range kept.Uplinks {
		r.uplinks[u.Index] = u
	}
	return r
}

// Foreign returns the rules of others in both families, in the order of
// [routing.Families], with what is known of their numbers.
func (r *Recall) Foreign(k *kernel.State) [2][]routing.ForeignRule {
	var out [2][]routing.ForeignRule
	for i, f := range routing.Families() {
		out[i] = r.foreign(k, f)
	}
	return out
}

// foreign sorts the rules of others. What stands in front when there is no ladder was
// put there by somebody. While the ladder stands, the kernel gives a rule without a
// priority the number below the lowest rule but that of local
// (fib_default_rule_pref in net/core/fib_rules.c): such a rule has a neighbour above
// it, and the protocol that iproute2 and libraries give it who say none.
func (r *Recall) foreign(k *kernel.State, f routing.Family) []routing.ForeignRule {
	stands := false
	for rule := range k.Rules() {
		if stands = rule.Family == f; stands {
			break
		}
	}
	foreign := k.Foreign(f)
	// The kernel numbers downwards: of two that are new, the one with the higher number
	// came first.
	for _, rule := range slices.Backward(foreign) {
		if _, known := r.known[rule]; known || !inFront(rule) {
			continue
		}
		natural := routing.Priority(0)
		if stands && (rule.Protocol == 0 || rule.Protocol == routing.ProtocolBoot) && len(k.BandOrder(f, rule.Priority+1)) > 0 {
			natural = r.natural(foreign)
		}
		r.known[rule], r.changed = natural, true
	}
	out := make([]routing.ForeignRule, 0, len(foreign))
	seen := map[routing.Rule]bool{}
	for _, rule := range foreign {
		o := routing.ForeignRule{Rule: rule}
		if inFront(rule) {
			o.Natural, seen[rule] = r.known[rule], true
			o.Numbered = o.Natural != 0
		}
		out = append(out, o)
	}
	for rule := range r.known {
		if rule.Family == f && !seen[rule] {
			delete(r.known, rule)
			r.changed = true
		}
	}
	return out
}

// inFront reports whether the kernel may have numbered a rule below the ladder.
func inFront(r routing.Rule) bool {
	return r.Priority >= routing.PriorityNumbered && r.Priority < routing.PriorityKnown
}

// natural is the number that the kernel would give a rule without us: one below the
// second rule of the family (fib_default_rule_pref). Those that it numbered before stand
// where they would.
func (r *Recall) natural(foreign []routing.Rule) routing.Priority {
	second := routing.PriorityMain
	for _, rule := range foreign[min(1, len(foreign)):] {
		p := rule.Priority
		switch natural, known := r.known[rule]; {
		case known && natural != 0:
			p = natural
		case !known && inFront(rule):
			continue // It came with this one, and is not placed yet.
		}
		second = min(second, p)
	}
	return second - 1
}

// WasUplink reports whether a link was an uplink by a default and is still the same:
// it has its profile, and at least one of its addresses or an owner that gets them
// from the network and may just be replacing them.
// One that is being taken down says nothing of its profile any more, and keeps its
// role until its addresses have gone.
func (r *Recall) WasUplink(l routing.Link, c Claim) bool {
	u, was := r.uplinks[l.Index]
	if !was {
		return false
	}
	same := u.Interface == l.Name && (u.Profile == c.Profile || c.Profile == "") && (c.Standing == Draining || l.Automatic() || slices.ContainsFunc(l.Addresses, func(a routing.Address) bool {
		return slices.Contains(u.Addresses, a.Prefix.Addr())
	}))
	if !same {
		r.forget(l.Index)
	}
	return same
}

// remember notes an uplink by a default.
func (r *Recall) remember(l routing.Link, profile string) {
	if !routing.HasMainDefault(l) {
		return
	}
	u := FormerUplink{Index: l.Index, Interface: l.Name, Profile: profile}
	for _, a := range l.Addresses {
		if routing.TakesPart(l, a) {
			u.Addresses = append(u.Addresses, a.Prefix.Addr())
		}
	}
	old := r.uplinks[l.Index]
	if old.Interface == u.Interface && old.Profile == u.Profile && slices.Equal(old.Addresses, u.Addresses) {
		return
	}
	r.uplinks[l.Index], r.changed = u, true
}

func (r *Recall) forget(index int) {
	if _, was := r.uplinks[index]; was {
		delete(r.uplinks, index)
		r.changed = true
	}
}

// keep writes down what changed.
func (r *Recall) keep() error {
	if !r.changed || r.memory == nil {
		return nil
	}
	var all Recollection
	for rule, natural := range r.known {
		if natural != 0 {
			all.Numbered = append(all.Numbered, NumberedRule{rule, natural})
		} else {
			all.Chosen = append(all.Chosen, rule)
		}
	}
	for _, u := range r.uplinks {
		all.Uplinks = append(all.Uplinks, u)
	}
	slices.SortFunc(all.Uplinks, func(a, b FormerUplink) int { return a.Index - b.Index })
	if err := r.memory.Keep(all); err != nil {
		return err
	}
	r.changed = false
	return nil
}
