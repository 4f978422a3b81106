package reconcile

import (
	"net/netip"
	"slices"
	"time"

	"multihomed/routing"
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
	Index     int    `json:"index"`
	Interface string `json:"interface"`
	// Profile and UUID are empty where the owner named none.
	Profile string `json:"profile,omitempty"`
	UUID    string `json:"uuid,omitempty"`
	// Addresses are empty where none was known yet.
	Addresses []netip.Addr `json:"addresses"`
	// Families are those that it had a default of. Versions before wrote none: a link of
	// theirs counts for both, until main has a default of one and not of the other.
	Families []FormerFamily `json:"families,omitempty"`
	// Until is when main was first seen without any default, zero while it has one.
	Until time.Time `json:"until,omitzero"`
}

// A FormerFamily is a family in which a link was an uplink by a default.
type FormerFamily struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Asked says that the owner wanted a default then: the role ends when it wants none.
	Asked bool `json:"asked,omitempty"`
	// Until is when main was first seen without the default, zero while it has it.
	Until time.Time `json:"until,omitzero"`
}

// in returns what is known of a family, false if the link was no uplink in it.
func (u FormerUplink) in(f routing.Family) (FormerFamily, bool) {
	for _, o := range u.Families {
		if o.Family == f.String() {
			return o, true
		}
	}
	return FormerFamily{Family: f.String(), Until: u.Until}, len(u.Families) == 0
}

// noted is the same with what main says now of the families.
func (u FormerUplink) noted(l routing.Link) FormerUplink {
	var families []FormerFamily
	for _, f := range routing.Families() {
		old, was := u.in(f)
		switch {
		case routing.HasMainDefault(l, f):
			// Of a profile that is changed the owner may tell before the kernel tells of the
			// default: what was asked for stays so as long as the default stands.
			intent, known := l.Intents[f]
			families = append(families, FormerFamily{Family: f.String(), Asked: was && old.Asked || known && !intent.NoDefault})
		case was && len(u.Families) > 0:
			families = append(families, old)
		}
	}
	if len(families) > 0 {
		u.Families = families
	}
	return u.summed()
}

// summed has the end that versions before look for.
func (u FormerUplink) summed() FormerUplink {
	if len(u.Families) == 0 {
		return u
	}
	u.Until = u.Families[0].Until
	for _, f := range u.Families {
		if f.Until.IsZero() {
			u.Until = time.Time{}
			break
		}
		if f.Until.After(u.Until) {
			u.Until = f.Until
		}
	}
	return u
}

// anyDefault reports whether main has a default route of any family through a link.
func anyDefault(l routing.Link) bool {
	return routing.HasMainDefault(l, routing.IPv4) || routing.HasMainDefault(l, routing.IPv6)
}

// A Memory keeps a Recollection until the next boot.
type Memory interface {
	// Recall returns what was kept, the zero Recollection and false if nothing was.
	Recall() (Recollection, bool)
	Keep(Recollection) error
}

// A recall is a Recollection at work.
type recall struct {
	memory Memory
	// known are the rules in front of the ladder: those that the kernel numbered with
	// the priority that they would have without us, the others with zero.
	known   map[routing.Rule]routing.Priority
	uplinks map[int]FormerUplink
	changed bool
}

// newRecall starts from what was kept; a nil Memory kept nothing and keeps nothing.
func newRecall(m Memory) *recall {
	r := &recall{memory: m, known: map[routing.Rule]routing.Priority{}, uplinks: map[int]FormerUplink{}}
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
func (r *recall) Foreign(k State) [2][]routing.ForeignRule {
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
// it, and the protocol that iproute2 and libraries give it who say none. Of one that somebody
// numbered just so by hand nothing else is different: the kernel tells of both alike.
func (r *recall) foreign(k State, f routing.Family) []routing.ForeignRule {
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
		if stands && (rule.Protocol == 0 || rule.Protocol == routing.ProtocolBoot) && len(k.BandOrder(f, rule.Priority+1)) > 0 && !chosen(k, rule, foreign) {
			natural = r.natural(k, rule, foreign)
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

// chosen reports whether the kernel cannot have numbered a rule: two that came before it have
// no higher number, and the kernel goes below the second one.
func chosen(k State, one routing.Rule, foreign []routing.Rule) bool {
	lower := 0
	count := func(r routing.Rule) {
		if r.Family == one.Family && r.Priority <= one.Priority && k.CameAfter(one, r) {
			lower++
		}
	}
	for r := range k.Rules() {
		count(r)
	}
	for _, r := range foreign {
		count(r)
	}
	return lower > 1
}

// inFront reports whether the kernel may have numbered a rule below the ladder.
func inFront(r routing.Rule) bool {
	return r.Priority >= routing.PriorityNumbered && r.Priority < routing.PriorityKnown
}

// natural is the number that the kernel would have given a rule without us: one below the
// second rule of the family (fib_default_rule_pref). Those that it numbered before stand
// where they would; those that came later it could not know.
func (r *recall) natural(k State, one routing.Rule, foreign []routing.Rule) routing.Priority {
	second := routing.PriorityMain
	for _, rule := range foreign[min(1, len(foreign)):] {
		if k.CameAfter(rule, one) {
			continue
		}
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

// WasUplink reports in which families a link was an uplink by a default and is still the
// same: it has its profile, which still wants a default if it did then, and at least one of
// its addresses or an owner that gets them from the network and may just be replacing them.
// Until says when main was first
// seen without the default, empty if that is not known.
//
// As long as knowledge is not complete the link counts as the same: a claim that came
// early may name no profile, or a few of the addresses. One that is being taken down
// says nothing of its profile any more, and keeps its role until its addresses have
// gone.
//
// Addresses are all that the interface has, also those that take no part.
func (r *recall) WasUplink(l routing.Link, addresses []routing.Address, c Claim, complete bool) (was routing.ByFamily[bool], until routing.ByFamily[string]) {
	u, known := r.uplinks[l.Index]
	if !known || complete && !u.same(l, addresses, c) {
		return was, until
	}
	for _, f := range routing.Families() {
		former, is := u.in(f)
		is = is && (!complete || u.keeps(f, l, addresses, c))
		was.Set(f, is)
		if is && !former.Until.IsZero() {
			until.Set(f, former.Until.Format(time.DateTime))
		}
	}
	return was, until
}

func (u FormerUplink) same(l routing.Link, addresses []routing.Address, c Claim) bool {
	stands := u.stands(addresses)
	if u.Interface != l.Name && !stands {
		return false // Another interface has the index now. One that was renamed has an address.
	}
	return u.sameProfile(c) && (c.Standing == Draining || len(u.Addresses) == 0 || l.Automatic(routing.IPv4) || l.Automatic(routing.IPv6) || stands)
}

// keeps reports whether the link is still the same in a family: it has one of its addresses
// of it, or gets them from the network, and its profile was not changed so that it wants no
// default any more (`nmcli device reapply`).
func (u FormerUplink) keeps(f routing.Family, l routing.Link, now []routing.Address, c Claim) bool {
	if former, _ := u.in(f); former.Asked && l.Intents[f].NoDefault && c.Standing != Draining {
		return false
	}
	had := slices.DeleteFunc(slices.Clone(u.Addresses), func(a netip.Addr) bool { return routing.FamilyOf(a) != f })
	return len(had) == 0 || c.Standing == Draining || l.Automatic(f) || FormerUplink{Addresses: had}.stands(now)
}

// sameProfile compares what both sides know of the profile. A name may change while the
// profile is in force, and an owner of another kind names none.
func (u FormerUplink) sameProfile(c Claim) bool {
	if u.UUID != "" && c.UUID != "" {
		return u.UUID == c.UUID
	}
	return u.Profile == "" || c.Profile == "" || u.Profile == c.Profile
}

func (u FormerUplink) stands(now []routing.Address) bool {
	return slices.ContainsFunc(now, func(a routing.Address) bool { return slices.Contains(u.Addresses, a.Prefix.Addr()) })
}

// lost notes when main is first seen without a default of a former uplink.
func (r *recall) lost(l routing.Link, now time.Time) {
	u, was := r.uplinks[l.Index]
	if !was {
		return
	}
	changed := false
	u.Families = slices.Clone(u.Families)
	for i, former := range u.Families {
		for _, f := range routing.Families() {
			if former.Family == f.String() && former.Until.IsZero() && !routing.HasMainDefault(l, f) {
				u.Families[i].Until, changed = now, true
			}
		}
	}
	if len(u.Families) == 0 && u.Until.IsZero() && !anyDefault(l) {
		u.Until, changed = now, true
	}
	if changed {
		r.uplinks[l.Index], r.changed = u.summed(), true
	}
}

// learn notes an uplink by a default, and when a link is another one now.
func (r *recall) learn(l routing.Link, addresses []routing.Address, c Claim, complete bool) {
	old, was := r.uplinks[l.Index]
	if was && complete && !old.same(l, addresses, c) {
		r.forget(l.Index)
		was = false
	}
	u := FormerUplink{Index: l.Index, Interface: l.Name, Profile: c.Profile, UUID: c.UUID}
	for _, a := range addresses {
		if routing.TakesPart(l, a) {
			u.Addresses = append(u.Addresses, a.Prefix.Addr())
		}
	}
	switch {
	case anyDefault(l):
		if was && c.Profile == "" && c.UUID == "" {
			// Who speaks for it now knows no profile.
			u.Profile, u.UUID = old.Profile, old.UUID
		}
	case !was:
		return
	default:
		if len(old.Addresses) > 0 {
			u.Addresses = old.Addresses
		}
		u.Interface, u.Profile, u.UUID, u.Until = l.Name, old.Profile, old.UUID, old.Until
	}
	for _, former := range old.Families {
		f := routing.IPv4
		if former.Family == routing.IPv6.String() {
			f = routing.IPv6
		}
		if was && (!complete || old.keeps(f, l, addresses, c) || routing.HasMainDefault(l, f)) {
			u.Families = append(u.Families, former)
		}
	}
	if was && len(u.Families) == 0 && len(old.Families) > 0 && !anyDefault(l) {
		r.forget(l.Index)
		return
	}
	u = u.noted(l)
	if !was || !u.equal(old) {
		r.uplinks[l.Index], r.changed = u, true
	}
}

func (u FormerUplink) equal(o FormerUplink) bool {
	return u.Index == o.Index && u.Interface == o.Interface && u.Profile == o.Profile && u.UUID == o.UUID &&
		slices.Equal(u.Addresses, o.Addresses) && u.Until.Equal(o.Until) &&
		slices.EqualFunc(u.Families, o.Families, func(a, b FormerFamily) bool {
			return a.Family == b.Family && a.Asked == b.Asked && a.Until.Equal(b.Until)
		})
}

// noLink drops the memory of an interface that is no link, once its addresses have
// gone: one that becomes a link again with the same ones is the same. A nil facts
// means that the interface does not exist.
func (r *recall) noLink(index int, facts *routing.Interface) {
	if u, was := r.uplinks[index]; was && (facts == nil || !u.stands(facts.Addresses)) {
		r.forget(index)
	}
}

func (r *recall) forget(index int) {
	if _, was := r.uplinks[index]; was {
		delete(r.uplinks, index)
		r.changed = true
	}
}

// keep writes down what changed. What could not be written is tried again with the
// next pass.
func (r *recall) keep() error {
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
