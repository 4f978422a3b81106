package lookup

import (
	"net/netip"

	"multihomed/routing"
)

// Types of routes that nothing makes any more (linux/rtnetlink.h).
const (
	typeNAT      routing.RouteType = 10
	typeXResolve routing.RouteType = 11
)

// refusal is fib_props and fib6_prop: the error of a route that leads nowhere.
func refusal(t routing.RouteType) Refusal {
	switch t {
	case routing.RouteBlackhole, typeNAT, typeXResolve:
		return Invalid
	case routing.RouteUnreachable:
		return HostUnreachable
	case routing.RouteProhibit:
		return AccessDenied
	default:
		return None
	}
}

// A walk is one lookup under way: struct flowi after l3mdev_update_flow
// (net/l3mdev/l3mdev.c), and what has been read.
type walk struct {
	host   *Host
	flow   Flow
	family routing.Family
	// forwarded says that the packet is not this host's.
	forwarded bool
	// entry and exit are interfaces for rules to compare: zero if there is none, and the exit of a VRF.
	entry, exit Interface
	// in and out are indexes for routes to compare, zero for any.
	in, out int
	// vrf is the VRF of the packet, and byOIF says that the OIF is in it.
	vrf    Interface
	hasVRF bool
	byOIF  bool
	// vrfTable is what the last l3mdev rule that asked has found (arg->table):
	// an inverted one may find it there.
	vrfTable routing.TableID
	// strict is RT6_LOOKUP_F_IFACE.
	strict bool
	// found keeps what a table had: many rules may ask one table.
	found map[routing.TableID]found
	// lacking is Verdict.Lacking.
	lacking bool
	// suppressed is the answer that the last rule which looked up a table has suppressed, if the kernel takes it all the
	// same (fib6_result.rt6).
	suppressed Verdict
	// first is where each priority begins. It is made for the first goto.
	first map[routing.Priority]int
}

func (h *Host) newWalk(f Flow) walk {
	f.To, f.From = f.To.Unmap().WithZone(""), f.From.Unmap().WithZone("")
	if f.From.IsUnspecified() {
		f.From = netip.Addr{}
	}
	w := walk{
		host: h, flow: f, family: routing.FamilyOf(f.To), found: map[routing.TableID]found{},
		forwarded: f.IIF != "" && f.IIF != loopbackName,
	}
	if w.forwarded {
		w.flow.UID, w.flow.OIF = 0, ""
		in, ok := h.named(f.IIF)
		if !ok {
			w.in = absent
			return w
		}
		w.entry, w.in = in, in.Index
		w.vrf, w.hasVRF = h.master(in)
	} else {
		w.entry, _ = h.named(loopbackName)
	}
	if w.flow.OIF != "" {
		w.bind()
	}
	w.strict = w.flow.OIF != "" && (!f.LooseOIF || !f.From.IsValid()) || w.linkScope()
	return w
}

// bind sets the device of the socket. A VRF directs the lookup to its table and
// is not compared with the device of routes.
func (w *walk) bind() {
	out, ok := w.host.named(w.flow.OIF)
	if !ok {
		w.out = absent
		return
	}
	w.vrf, w.hasVRF = w.host.master(out)
	w.byOIF = w.hasVRF
	if out.Table == 0 {
		w.exit, w.out = out, out.Index
	}
}

// walk looks a packet up.
func (h *Host) walk(f Flow, note func(Step)) Verdict {
	if !f.To.IsValid() {
		return Verdict{Outcome: NoRoute, Refusal: Invalid}
	}
	w := h.newWalk(f)
	if w.family == routing.IPv6 {
		return w.ask6(note)
	}
	if v, done := w.before(); done {
		if !w.forwarded {
			w.keepLoopback(&v)
		}
		return v
	}
	v := w.rules(note)
	for one := &v; one != nil; one = one.Otherwise {
		w.after(one)
	}
	return v
}

func (w *walk) ask6(note func(Step)) Verdict {
	for name, isSet := range map[string]bool{w.flow.IIF: w.forwarded, w.flow.OIF: w.flow.OIF != ""} {
		if _, known := w.host.named(name); isSet && !known && w.host.Checks {
			return Verdict{Refusal: NoDevice, Objection: DeviceMissing}
		}
	}
	if w.byOIF && w.linkScope() && !w.flow.To.IsLoopback() {
		return w.linkOfPort()
	}
	return w.rules(note)
}

// linkOfPort is vrf_link_scope_lookup (drivers/net/vrf.c): the table of the VRF is asked for the link of a port, and no rule.
func (w *walk) linkOfPort() Verdict {
	none := Verdict{Outcome: NoRoute, Refusal: NetUnreachable}
	if w.out == 0 {
		none.Objection = LinkOfVRF
		return none
	}
	v, s, _ := w.ask(&routing.Rule{Family: w.family, Action: routing.ActionLookup, Table: w.vrf.Table})
	if s.Result != Decided {
		v = none
	}
	v.Rule, v.Lacking = routing.Rule{}, w.lacking
	return v
}

// linkScope is rt6_need_strict.
func (w *walk) linkScope() bool {
	to := w.flow.To
	return to.IsLinkLocalUnicast() || to.IsMulticast() || to.IsLoopback()
}

// rules is fib_rules_lookup.
func (w *walk) rules(note func(Step)) Verdict {
	h := w.host
	v := Verdict{Outcome: NoRoute, Refusal: NetUnreachable}
	// answers are those of packets with different hashes; the last is that of
	// the rest.
	var answers []Verdict
	uncertain := false
	for i := 0; i < len(h.Rules); i++ {
		r := &h.Rules[i]
		if r.Family != w.family {
			continue
		}
		if r.Unknown {
			uncertain = true
			note(Step{Rule: *r, Result: NotUnderstood})
			continue
		}
		if selector := w.mismatch(r); (selector == NoSelector) == r.Invert {
			note(Step{Rule: *r, Result: Unmatched, Selector: selector})
			continue
		}
		if r.Action == routing.ActionGoto {
			target, ok := w.target(r.Goto)
			if !ok {
				note(Step{Rule: *r, Result: Unresolved})
				continue
			}
			note(Step{Rule: *r, Result: Jumped})
			// The kernel refuses to jump back (fib_nl2rule), and so does this.
			i = max(i, target-1)
			continue
		}
		answer, step, rest := w.act(r)
		note(step)
		if step.Result != Decided {
			continue
		}
		answer.Uncertain, answer.Lacking = uncertain, w.lacking
		answers = append(answers, answer)
		if !rest {
			return chain(answers)
		}
	}
	if w.suppressed.Suppressed {
		v = w.suppressed
	}
	v.Uncertain, v.Lacking = uncertain, w.lacking
	w.assume(&v)
	return chain(append(answers, v))
}

// chain makes one verdict of those of packets with different hashes.
func chain(answers []Verdict) Verdict {
	for i := len(answers) - 1; i > 0; i-- {
		answers[i-1].Otherwise = &answers[i]
	}
	return answers[0]
}

// target is the first rule of a priority: where goto leads
// (fib_nl_newrule, fib_nl_delrule).
func (w *walk) target(p routing.Priority) (int, bool) {
	if w.first == nil {
		w.first = map[routing.Priority]int{}
		for i := range w.host.Rules {
			r := &w.host.Rules[i]
			if _, known := w.first[r.Priority]; !known && r.Family == w.family {
				w.first[r.Priority] = i
			}
		}
	}
	i, ok := w.first[p]
	return i, ok
}

// assume marks a verdict without a route where the kernel sends all the same.
func (w *walk) assume(v *Verdict) {
	v.Assumed = w.family == routing.IPv4 && w.out > 0 && (!w.hasVRF || w.flow.To.IsMulticast())
}

// act is fib4_rule_action and fib6_rule_action, and what suppresses their
// result. rest says that only some packets have this answer.
func (w *walk) act(r *routing.Rule) (v Verdict, s Step, rest bool) {
	v = Verdict{Outcome: Rejected, Rule: *r}
	s = Step{Rule: *r, Result: Decided}
	switch r.Action {
	case routing.ActionNop:
		s.Result = Nothing
		return v, s, false
	case routing.ActionLookup:
		return w.ask(r)
	case routing.ActionUnreachable:
		v.Refusal = NetUnreachable
	case routing.ActionProhibit:
		v.Refusal = AccessDenied
	default:
		v.Refusal = Invalid
	}
	w.assume(&v)
	return v, s, false
}

// ask does "lookup TABLE".
func (w *walk) ask(r *routing.Rule) (v Verdict, s Step, rest bool) {
	table := r.Table
	if r.L3MDev {
		table = w.vrfTable
	}
	if table == 0 {
		table = routing.TableMain // fib_get_table, fib6_get_table
	}
	s = Step{Rule: *r, Table: table}
	w.suppressed.Suppressed = false
	w.lacking = w.lacking || w.host.Partial[w.family][table]
	have := w.read(table)
	if len(have.legs) == 0 {
		s.Result = Empty
		return v, s, false
	}
	s.Route = have.first
	if w.merged(table) && have.first.Table == routing.TableMain {
		s.Result = Outranked
		return v, s, false
	}
	v = Verdict{Rule: *r, Route: have.first, Alternatives: have.alternatives, Fallbacks: have.fallbacks, Nexthop: have.nexthop}
	switch kind := have.first.Type; {
	case kind == routing.RouteThrow:
		s.Result = Thrown
		return v, s, false
	case refusal(kind) != None:
		// A route that says no is an error, and errors are not suppressed.
		s.Result, v.Outcome, v.Refusal = Decided, Rejected, refusal(kind)
		w.assume(&v)
		return v, s, false
	}
	legs, away := have.legs, []routing.Route(nil)
	switch {
	case r.SuppressPrefixLength.Set && have.first.Destination.Bits() <= int(r.SuppressPrefixLength.Value):
		s.Result = TooShort
		w.suppress(v, have.legs)
		return v, s, false
	case !r.SuppressGroup.Set:
	case w.family == routing.IPv4:
		// fib4_rule_suppress looks at the first leg, whichever is used.
		if w.inGroup(&have.first, r.SuppressGroup.Value) {
			legs = nil
		}
	default:
		legs, away = w.split(have.legs, r.SuppressGroup.Value)
	}
	if len(legs) == 0 {
		s.Result = InGroup
		w.suppress(v, have.legs)
		return v, s, false
	}
	if len(away) > 0 {
		w.suppress(v, away)
		// The rest finds this route again only with the same hash.
		w.found[table] = found{first: have.first, legs: away, nexthop: have.nexthop}
	}
	s.Result = Decided
	v.Outcome = w.outcome(have.first.Type)
	if v.Outcome == Sent {
		v.Legs = legs
	}
	return v, s, len(away) > 0
}

// suppress keeps an answer that a rule suppresses, for packets that have these legs.
func (w *walk) suppress(v Verdict, legs []routing.Route) {
	if w.family == routing.IPv4 || !w.host.Before72 {
		return
	}
	v.Suppressed, v.Outcome = true, w.outcome(v.Route.Type)
	if v.Outcome == Sent {
		v.Legs = legs
	}
	w.suppressed = v
}

// outcome says where a route leads that is no error.
func (w *walk) outcome(t routing.RouteType) Outcome {
	if t == routing.RouteLocal || t == routing.RouteAnycast || w.forwarded && (t == routing.RouteBroadcast || t == routing.RouteMulticast && w.family == routing.IPv6) {
		return Local
	}
	return Sent
}

func (w *walk) inGroup(r *routing.Route, group uint32) bool {
	i, ok := w.host.numbered(r.Device)
	return ok && i.Group == group
}

// split parts the legs that a group suppresses from the others.
func (w *walk) split(legs []routing.Route, group uint32) (stay, away []routing.Route) {
	for i := range legs {
		if w.inGroup(&legs[i], group) {
			away = append(away, legs[i])
		} else {
			stay = append(stay, legs[i])
		}
	}
	return stay, away
}
