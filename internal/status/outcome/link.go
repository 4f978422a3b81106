package outcome

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
		if k.Family == f && slices.Contains(t.plan.Keys, k) && !t.plan.DevicesAside(f) {
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
		// Where its router is known, that is what matters, whoever else says where it is.
		routers := t.gateways(k)
		if to, found := t.judge.neighbour(t.plan, k); found && len(routers) == 0 {
			routers = append(routers, to)
		}
		for _, to := range routers {
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

// mostGateways bounds the routers of a network that are tried.
const mostGateways = 4

// Routers says what main and local know of the routers of a link. A verdict about the link is
// of no use when that has changed: a route through another link may cover one of them.
func (j *Judge) Routers(plan *routing.LinkPlan) string {
	var b strings.Builder
	t := trial{plan: plan}
	for _, k := range plan.Keys {
		if k.OfHosts() {
			continue
		}
		for _, g := range t.gateways(k) {
			for _, table := range [...]routing.TableID{routing.TableLocal, routing.TableMain} {
				v := j.in(k.Family, table, g)
				fmt.Fprintf(&b, "%s %d/%d/%d ", g, v.Route.Device, v.Route.Type, v.Route.Destination.Bits())
			}
		}
	}
	return b.String()
}

// in is what one table says of a destination.
func (j *Judge) in(f routing.Family, table routing.TableID, to netip.Addr) lookup.Verdict {
	h := *j.host
	h.Rules = []routing.Rule{{Family: f, Action: routing.ActionLookup, Table: table}}
	return h.Lookup(lookup.Flow{To: to})
}

// gateways are the routers of a network by which the table of a link has a default route.
func (t *trial) gateways(k routing.Key) []netip.Addr {
	var out []netip.Addr
	for _, r := range t.plan.Routes {
		g := r.Route.Gateway
		if r.Route.Family == k.Family && r.Route.Destination.Bits() == 0 && k.Prefix.Contains(g) && !slices.Contains(out, g) && len(out) < mostGateways {
			out = append(out, g)
		}
	}
	return out
}

// hasDefault reports whether a table of the link has a default route for any packet of it.
func (t *trial) hasDefault(f routing.Family) bool {
	return t.plainDefault(f) || t.sourceOf(f).IsValid()
}

// plainDefault reports whether a table of the link has a default route for all sources.
func (t *trial) plainDefault(f routing.Family) bool {
	return slices.ContainsFunc(t.plan.Routes, func(r routing.PlannedRoute) bool { return r.Route.Family == f && r.Route.IsDefault() })
}

// HasDefault reports whether the table of an address of a link has a default route for it by
// plan: one for all sources, or one for those that it belongs to (RFC 8028 and 8678 call
// such routes source-specific). A network of an uplink may have none: what is sent from there
// is answered with unreachable.
func HasDefault(plan *routing.LinkPlan, from netip.Addr) bool {
	k, _ := routing.KeyOf(plan.Link, from)
	table := plan.Link.Tables[k]
	return slices.ContainsFunc(plan.Routes, func(r routing.PlannedRoute) bool {
		return r.Route.Family == k.Family && r.Route.Table == table && r.Route.Destination.Bits() == 0 &&
			(!r.Route.Source.IsValid() || r.Route.Source.Contains(from))
	})
}

// sourceOf is the source that the kernel gives to a packet of a socket that is bound to the
// device alone, where only defaults for some sources are known. IPv6 looks for a route with
// that source then (ip6_dst_lookup_tail in net/ipv6/ip6_output.c). Zero where none is needed.
func (t *trial) sourceOf(f routing.Family) netip.Addr {
	if f != routing.IPv6 || t.plainDefault(f) {
		return netip.Addr{}
	}
	for _, from := range t.sources(f) {
		if from.IsValid() && HasDefault(t.plan, from) {
			return from
		}
	}
	return netip.Addr{}
}

// inside reports whether a target is in the network that a source belongs to.
func (t *trial) inside(from netip.Addr, to target) bool {
	k, is := routing.KeyOf(t.plan.Link, from)
	return is && !k.OfHosts() && k.Prefix.Contains(to.to)
}

func (t *trial) try(f routing.Family, from netip.Addr, to target) {
	if from.IsValid() && to.goal == Gateway && !t.inside(from, to) || to.goal != Gateway && from.IsValid() && !HasDefault(t.plan, from) {
		return
	}
	name := t.plan.Link.Name
	flow := lookup.Flow{From: from, To: to.to}
	probe := Probe{From: from, To: to.to}
	if !from.IsValid() {
		flow.OIF, probe.Device = name, name
		if to.goal != Gateway {
			flow.From = t.sourceOf(f)
			probe.From = flow.From
		}
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
	if v.Through(t.plan.Link.Index) || v.Outcome == lookup.Local && !t.taken(to, v) {
		return
	}
	t.judged(&s, v, steps)
}

// taken reports whether the host keeps what is for the router of a link to itself: a route
// makes the router's address one of the host, and no link has it.
func (t *trial) taken(to target, v lookup.Verdict) bool {
	_, own := t.judge.owner[to.to]
	return to.goal == Gateway && !own && v.Route.Type == routing.RouteLocal
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
	s.Local = v.Outcome == lookup.Local
	s.Refused, s.Assumed = v.Outcome != lookup.Sent && !s.Local, v.Assumed
	if v.Outcome == lookup.Sent {
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
	s.Piece = s.Route.Destination.IsValid() && s.Route.Destination.Bits() > int(t.judge.facts.Policy.ContainerPrefixLength)
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
