package answering

import (
	"slices"

	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// FactsOf puts together what the plan of the table depends on. It has numbers for the tables whose
// rungs stand, as far as the snapshot knows.
func FactsOf(decided routing.ByFamily[Decision], host Host, s *reconcile.Snapshot) answers.Facts {
	facts := answers.Facts{Mask: s.Answering.Mask, Group: s.UplinkGroup}
	for i, f := range routing.Families() {
		// Whoever refuses what is bound to nothing wants no answers either: then there are none.
		facts.Answers.Set(f, decided[i].Answers && s.Answering.Families[i] && len(s.Answers[i])+s.Unnumbered[i] > 0)
		facts.Fence.Set(f, decided[i].Fence)
		for _, o := range s.Others[i] {
			facts.Foreign = append(facts.Foreign, o.Rule)
		}
	}
	for _, b := range s.Bindings {
		facts.Bindings = append(facts.Bindings, boundTo(s, b))
	}
	for plan := range s.Links() {
		link := answers.Link{Name: plan.Link.Name, Check: host.Checks[plan.Link.Name]}
		for _, a := range plan.Link.Addresses {
			k, takesPart := routing.KeyOf(plan.Link, a.Prefix.Addr())
			if !takesPart || a.Failed || plan.Roles.In(k.Family) != routing.Uplink {
				continue
			}
			if t, leased := plan.Link.Tables[k]; leased {
				link.Sources = append(link.Sources, answers.Source{Address: a.Prefix.Addr(), Number: numberOf(s, k.Family, t)})
			}
		}
		if len(link.Sources) > 0 {
			facts.Links = append(facts.Links, link)
		}
		if plan.Group != s.UplinkGroup {
			continue
		}
		for i, f := range routing.Families() {
			if plan.Roles.In(f) != routing.Uplink {
				facts.Open[i] = append(facts.Open[i], plan.Link.Name)
			}
		}
	}
	return facts
}

// boundTo is a binding as the fence has it.
func boundTo(s *reconcile.Snapshot, b routing.Binding) answers.Binding {
	out := answers.Binding{
		Name: b.Name, Users: b.Users, Mark: b.Mark, Input: b.Input, Source: b.Source, Strict: b.Strict, Priority: b.Priority(),
	}
	if i, known := s.Interface(b.Index); known {
		out.Link = i.Facts.Name
	}
	return out
}

// Dropped counts the packets of a binding that the fence dropped. The counters begin anew with the
// table.
func Dropped(held answers.Held, s *reconcile.Snapshot, name string) (packets uint64) {
	at := slices.IndexFunc(s.Bindings, func(b routing.Binding) bool { return b.Name == name })
	if at < 0 {
		return 0
	}
	lines := boundTo(s, s.Bindings[at]).Fenced()
	for _, r := range held.Rules {
		if slices.Contains(lines, r.Rule) {
			packets += r.Packets
		}
	}
	return packets
}

func numberOf(s *reconcile.Snapshot, f routing.Family, t routing.TableID) uint8 {
	for _, a := range s.Answers.In(f) {
		if a.Table == t {
			return a.Number
		}
	}
	return 0
}

// missing are the numbers of which a rung does not stand, by family: nothing may be marked with
// them.
func missing(s *reconcile.Snapshot) (out routing.ByFamily[map[uint8]struct{}]) {
	for _, op := range s.Missing {
		if op.Verb != routing.AddRule || !op.Rule.IsAnswer() {
			continue
		}
		f := op.Rule.Family
		at := slices.IndexFunc(s.Answers.In(f), func(a routing.Answer) bool { return s.Answering.Mask.Mark(a.Number) == op.Rule.Mark })
		if at < 0 {
			continue
		}
		if out.In(f) == nil {
			out.Set(f, map[uint8]struct{}{})
		}
		out.In(f)[s.Answers.In(f)[at].Number] = struct{}{}
	}
	return out
}
