package outcome

import (
	"net/netip"
	"slices"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// mostSources bounds the addresses of a link that are tried.
const mostSources = 64

// Link tries the packets of one link and returns those that stray.
func (j *Judge) Link(plan *routing.LinkPlan) []Stray {
	l := &plan.Link
	if !l.Up || l.Pending || j.facts.Unsettled != nil && j.facts.Unsettled(l.Name) {
		return nil
	}
	t := trial{judge: j, plan: plan, host: j.host.With(j.rules(plan), j.tables(plan))}
	for _, f := range routing.Families() {
		sources := t.sources(f)
		if len(sources) == 0 {
			continue
		}
		targets := t.targets(f)
		for _, from := range sources {
			for _, to := range targets {
				t.try(f, from, to)
			}
		}
	}
	return t.strays
}

// A trial is the probes of one link.
type trial struct {
	judge  *Judge
	plan   *routing.LinkPlan
	host   *lookup.Host
	strays []Stray
}

// sources are the addresses of a link that have a table, and the zero address for the
// device itself.
func (t *trial) sources(f routing.Family) []netip.Addr {
	var out []netip.Addr
	l := &t.plan.Link
	for _, a := range l.Addresses {
		k, is := routing.KeyOf(*l, a.Prefix.Addr())
		if _, leased := l.Tables[k]; !is || !leased || k.Family != f || a.Tentative || a.Failed || t.judge.shared[a.Prefix.Addr()] ||
			t.plan.StepsAside(a.Prefix.Addr()) { // said by the planner
			continue
		}
		if out = append(out, a.Prefix.Addr()); len(out) == mostSources {
			break
		}
	}
	for k := range l.Tables {
		if k.Family == f && slices.Contains(t.plan.Keys, k) {
			return append(out, netip.Addr{})
		}
	}
	return out
}

// targets are what the packets of a link are for.
func (t *trial) targets(f routing.Family) []target {
	var out []target
	uplink := t.plan.Roles.In(f) == routing.Uplink && t.hasDefault(f)
	if uplink {
		out = append(out, t.judge.outside[f]...)
	}
	for _, k := range t.plan.Keys {
		if _, leased := t.plan.Link.Tables[k]; !leased || k.Family != f || k.OfHosts() {
			continue
		}
		if to, found := t.judge.neighbour(t.plan, k); found {
			out = append(out, target{goal: Gateway, to: to})
		}
	}
	if !uplink {
		return out
	}
	one := map[int]bool{}
	for _, to := range t.judge.others[f] {
		inside := slices.ContainsFunc(t.plan.Keys, func(k routing.Key) bool { return k.Prefix.Contains(to.to) })
		if to.of == t.plan.Link.Index || inside || one[to.of] {
			continue
		}
		one[to.of] = true
		out = append(out, to)
	}
	return out
}

func (t *trial) hasDefault(f routing.Family) bool {
	return slices.ContainsFunc(t.plan.Routes, func(r routing.PlannedRoute) bool {
		return r.Route.Family == f && r.Route.IsDefault()
	})
}

// defaultOf reports whether the table of a source has a default route by plan. A network
// of an uplink may have none: what is sent from there is answered with unreachable.
func (t *trial) defaultOf(f routing.Family, from netip.Addr) bool {
	if !from.IsValid() {
		return true
	}
	k, _ := routing.KeyOf(t.plan.Link, from)
	table := t.plan.Link.Tables[k]
	return slices.ContainsFunc(t.plan.Routes, func(r routing.PlannedRoute) bool {
		return r.Route.Family == f && r.Route.Table == table && r.Route.IsDefault()
	})
}

// inside reports whether a target is in the network that a source belongs to.
func (t *trial) inside(from netip.Addr, to target) bool {
	k, is := routing.KeyOf(t.plan.Link, from)
	return is && !k.OfHosts() && k.Prefix.Contains(to.to)
}

func (t *trial) try(f routing.Family, from netip.Addr, to target) {
	if from.IsValid() && to.goal == Gateway && !t.inside(from, to) || to.goal != Gateway && !t.defaultOf(f, from) {
		return
	}
	name := t.plan.Link.Name
	flow := lookup.Flow{From: from, To: to.to}
	probe := Probe{From: from, To: to.to}
	if !from.IsValid() {
		flow.OIF, probe.Device = name, name
	}
	v, steps := t.host.Trace(flow)
	s := Stray{Probe: probe, Family: f, Link: name, Goal: to.goal, Parts: to.parts, All: t.judge.parts(f)}
	if v.Lacking || v.Uncertain {
		if t.judge.facts.Ask == nil {
			return // Nobody knows.
		}
		a, err := t.judge.facts.Ask(probe)
		if err != nil || a.Device == t.plan.Link.Index {
			return
		}
		t.answered(&s, a, steps)
		return
	}
	if v.Through(t.plan.Link.Index) || v.Outcome == lookup.Local {
		return
	}
	t.judged(&s, v, steps)
}

func (j *Judge) parts(f routing.Family) int {
	n := 0
	for _, t := range j.outside[f] {
		n += t.parts
	}
	return n
}

// judged says what the verdict of the simulation means.
func (t *trial) judged(s *Stray, v lookup.Verdict, steps []lookup.Step) {
	s.Refused = v.Outcome != lookup.Sent
	if !s.Refused {
		for _, leg := range v.Legs {
			if leg.Device != t.plan.Link.Index {
				s.Device = t.judge.names[leg.Device]
				break
			}
		}
	}
	s.Route, s.Table = v.Route, v.Route.Table
	ours := v.Rule.Protocol == routing.Multihomed
	switch {
	case !ours && v.Rule.Action != 0 && !kernels(v.Rule):
		s.Rule = v.Rule
	default:
		s.Rule = jumped(steps)
	}
	found := s.Route.Destination.IsValid()
	s.Piece = found && s.Route.Destination.Bits() > int(t.judge.facts.Policy.ContainerPrefixLength)
	if s.Goal != Gateway {
		switch {
		case s.Rule != (routing.Rule{}) && s.Rule.To.IsValid() && s.Rule.To.Bits() > 1 && !s.Rule.Invert:
			return // Its owner asked for just that.
		case s.Piece && s.Goal == OtherNetwork:
			return // As main, or a VPN's table, knows the network.
		case s.Goal == OtherNetwork && !s.Refused && t.local(s.Family, v):
			return
		}
	}
	s.Missing = t.missing(s)
	t.strays = append(t.strays, *s)
}

// local reports whether a packet leaves by a link that is no uplink in its family.
func (t *trial) local(f routing.Family, v lookup.Verdict) bool {
	for _, leg := range v.Legs {
		if roles, is := t.judge.roles[leg.Device]; !is || roles.In(f) == routing.Uplink {
			return false
		}
	}
	return true
}

// kernels reports whether a rule is one of those that the kernel makes itself.
func kernels(r routing.Rule) bool { return r.Kernels() }

// jumped is the last rule of somebody else that led elsewhere.
func jumped(steps []lookup.Step) routing.Rule {
	for _, s := range slices.Backward(steps) {
		if s.Result == lookup.Jumped && s.Rule.Protocol != routing.Multihomed {
			return s.Rule
		}
	}
	return routing.Rule{}
}

// missing names what of ours would have decided.
func (t *trial) missing(s *Stray) string {
	if s.Rule != (routing.Rule{}) {
		return ""
	}
	for _, op := range t.judge.facts.Missing {
		switch op.Verb {
		case routing.AddRule:
			r := op.Rule
			if r.Family != s.Family || r.Action != routing.ActionLookup || !slices.ContainsFunc(t.plan.Rules, func(p routing.PlannedRule) bool { return p.Rule == r }) {
				continue
			}
			if s.From.IsValid() && r.From.IsValid() && r.From.Contains(s.From) || !s.From.IsValid() && r.OIF == s.Link {
				return "rule " + r.String()
			}
		case routing.AddRoute, routing.ReplaceRoute:
			if op.Route.Family == s.Family && op.Route.Device == t.plan.Link.Index && op.Route.Destination.Contains(s.To) {
				return "route " + op.Route.Text(s.Link)
			}
		default:
			// Nothing that a packet would miss.
		}
	}
	return ""
}

// answered says what the kernel's answer means.
func (t *trial) answered(s *Stray, a Answer, steps []lookup.Step) {
	s.Refused, s.Device, s.Table = a.Device == 0, t.judge.names[a.Device], a.Table
	s.Piece = !s.Refused && a.Bits > int(t.judge.facts.Policy.ContainerPrefixLength)
	for _, step := range steps {
		r := step.Rule
		if r.Protocol != routing.Multihomed && !kernels(r) && step.Result != lookup.Unmatched && (s.Refused || step.Table == a.Table) {
			s.Rule = r
			break
		}
	}
	for _, o := range t.judge.facts.Plans.Foreign(s.Family) {
		// The rule whose attributes nobody knows is a likely one.
		if s.Rule == (routing.Rule{}) && o.Rule.Action == routing.ActionLookup && o.Rule.Table == a.Table && !kernels(o.Rule) {
			s.Rule = o.Rule
		}
	}
	if s.Goal == OtherNetwork && (s.Piece || s.Rule.To.IsValid()) || s.Goal == Outside && s.Rule.To.IsValid() && s.Rule.To.Bits() > 1 {
		return
	}
	if !s.Refused && s.Goal == OtherNetwork {
		if roles, is := t.judge.roles[a.Device]; is && roles.In(s.Family) == routing.Local {
			return
		}
	}
	s.Missing = t.missing(s)
	t.strays = append(t.strays, *s)
}
