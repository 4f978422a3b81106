package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Explain says how a packet is routed. The flow's To must be valid.
func (f *Facts) Explain(flow lookup.Flow) Document { return f.explain(flow, false) }

// Touched are the rules of multihomed that matched, or that a goto led over, as [Rule.Text] with their priority. These
// are the ones whose notes are worth reading: there may be very many others.
func (f *Facts) Touched(flow lookup.Flow) []string {
	d := f.explain(flow, true)
	var out []string
	for _, l := range d.Lookups {
		for _, r := range l.Rules {
			if r.By == ByMultihomed {
				out = append(out, fmt.Sprintf("%d: %s", r.Priority, r.Text))
			}
		}
	}
	return out
}

func (f *Facts) explain(flow lookup.Flow, brief bool) Document {
	d := newDocument()
	d.Annotations = f.Notes.By
	for _, u := range f.Unread {
		d.Unread = append(d.Unread, escape.Text(u))
	}
	x := &explainer{brief: brief, facts: f, host: f.host(), doc: &d, names: make(map[int]string, len(f.Interfaces)), dead: map[routing.TableID]routing.Route{}}
	for _, i := range f.Interfaces {
		x.names[i.Index] = i.Name
	}
	for c := range f.candidates() {
		if _, twice := x.dead[c.Route.Table]; c.Dead && !twice && c.Route.Destination.Contains(flow.To) {
			x.dead[c.Route.Table] = c.Route
		}
	}
	d.WhatIf, d.Assumptions = append(d.WhatIf, f.whatIf...), append(d.Assumptions, f.assumptions...)
	d.Assumptions = append(d.Assumptions, f.unknown...)
	d.Complete = len(f.unknown) == 0
	d.Question = x.question(flow)
	x.explain(flow)
	return d
}

// Reaches reports whether the packet goes somewhere.
func (d *Document) Reaches() bool { return reaches(d.Outcome) }

type explainer struct {
	facts *Facts
	host  *lookup.Host
	doc   *Document
	// brief leaves out rules that do not match or are not asked.
	brief bool
	// names are those of the interfaces. dead has of each table a dead route to the destination.
	names map[int]string
	dead  map[routing.TableID]routing.Route
	// source is the address that a socket gets that is bound to none.
	source netip.Addr
}

// device is the name of an interface, not escaped.
func (x *explainer) device(index int) string {
	if name, known := x.names[index]; known {
		return name
	}
	if index == 0 {
		return ""
	}
	return "if" + strconv.Itoa(index)
}

// primary is the escaped name of an interface that goes by any of its names.
func (x *explainer) primary(name string) string {
	if i := slices.IndexFunc(x.facts.Interfaces, func(i lookup.Interface) bool { return i.Is(name) }); i >= 0 {
		name = x.facts.Interfaces[i].Name
	}
	return escape.Name(name)
}

func (x *explainer) question(f lookup.Flow) Question {
	q := Question{
		Destination: f.To, IIF: escape.Name(f.IIF), OIF: escape.Name(f.OIF), UID: f.UID, User: escape.Name(x.facts.Users[f.UID]), Mark: f.Mark, Protocol: f.IPProto,
		SourcePort: f.SourcePort, DestinationPort: f.DestinationPort, TOS: f.TOS, Text: x.asked(f),
	}
	if f.From.IsValid() {
		q.From = &f.From
	}
	return q
}

// asked is the question in words.
func (x *explainer) asked(f lookup.Flow) string {
	var b strings.Builder
	b.WriteString(f.To.String())
	if f.From.IsValid() {
		b.WriteString(" from " + f.From.String())
	}
	var how []string
	add := func(is bool, format string, args ...any) {
		if is {
			how = append(how, fmt.Sprintf(format, args...))
		}
	}
	add(f.IPProto != 0, "%s", protocol(f.IPProto))
	add(f.SourcePort != 0, "from port %d", f.SourcePort)
	add(f.DestinationPort != 0, "to port %d", f.DestinationPort)
	add(f.Mark != 0, "with mark %#x", f.Mark)
	add(f.TOS != 0, "with tos %#02x", f.TOS)
	add(f.OIF != "", "bound to %s", escape.Name(f.OIF))
	if x.forwards(f) {
		add(true, "coming in by %s", escape.Name(f.IIF))
	} else {
		add(true, "sent by %s", x.user(f.UID))
	}
	return b.String() + ", " + strings.Join(how, ", ")
}

func (x *explainer) forwards(f lookup.Flow) bool { return f.IIF != "" && f.IIF != routing.Loopback }

func (x *explainer) user(uid uint32) string {
	if name := x.facts.Users[uid]; name != "" {
		return "user " + escape.Name(name)
	}
	return fmt.Sprintf("user %d", uid)
}

// a lookedUp is one walk with what came of it.
type lookedUp struct {
	verdict lookup.Verdict
	steps   []lookup.Step
	answer  lookup.Answer
	asked   bool
	differs bool
	// other says that the kernel answered another question than a socket has.
	other bool
}

func (x *explainer) explain(flow lookup.Flow) {
	first := x.lookup(ForRoute, "", flow)
	x.caveats(flow, &first)
	last := &first
	if second, did := x.second(flow, &first); did {
		last = second
	}
	x.reverse(flow, &first)
	x.caveat(CaveatBeyond, "netfilter, IPsec, BPF or a silent next hop may change or drop it")
	x.conclude(flow, &first, last)
}

// lookup walks the rules once and adds that to the document.
func (x *explainer) lookup(purpose, text string, flow lookup.Flow) lookedUp {
	out := lookedUp{}
	question, socket := flow.Question(), flow.Socket()
	found, steps := x.host.Trace(socket)
	out.verdict, out.steps = x.host.Forwarded(flow, found), steps
	out.answer, out.asked = x.facts.answer(flow)
	l := x.walked(purpose, text, socket, out.verdict, out.steps)
	if out.asked {
		asked := found
		if question != socket {
			asked = x.host.Lookup(question)
		}
		difference := x.host.Disagree(asked, question, out.answer)
		l.Kernel = x.kernel(flow, asked, out.answer, difference)
		x.doc.Asked = true
		if out.differs = difference != ""; out.differs {
			x.doc.Agrees = false
		} else if outcomeOf(asked) != outcomeOf(found) || !sameWays(x.ways(asked), x.ways(found)) {
			out.other, l.Kernel.PrefersDevice = true, true
			x.caveat(CaveatSocket, "the kernel was asked for a packet that prefers the device; a socket that is bound to the device insists on it, and its answer is the one above")
		}
	}
	if !out.asked && len(x.facts.whatIf) == 0 && question.HurtsKernel(found) {
		x.caveat(CaveatUnasked, "the kernel was not asked, because the question alone harms kernels before Linux 7.2: this answer is that of the simulation alone")
	}
	x.doc.Lookups = append(x.doc.Lookups, l)
	return out
}

// walked is a lookup in the document.
func (x *explainer) walked(purpose, text string, flow lookup.Flow, v lookup.Verdict, steps []lookup.Step) Lookup {
	l := Lookup{Purpose: purpose, Text: text, Outcome: outcomeOf(v), Routes: []string{}, Rules: x.rules(flow, v, steps)}
	if !reaches(l.Outcome) {
		l.Error = refusalText(v.Refusal)
	}
	if v.Objection != lookup.NoObjection && v.Objection != lookup.ReversePath {
		l.Objection = v.Objection.String()
	}
	ways := x.ways(v)
	if v.Outcome == lookup.Local && v.Route.Table != 0 {
		ways = []routing.Route{v.Route}
	}
	for _, r := range ways {
		l.Table = uint32(r.Table)
		l.Routes = append(l.Routes, x.routeText(r))
	}
	if v.Lacking {
		x.doc.Complete = false
		x.caveat(CaveatPartial, "of a table that was asked only a part is known")
	}
	if v.Uncertain {
		x.caveat(CaveatUnknownRule, "a rule before the answer has attributes that this program does not know")
	}
	return l
}

func reaches(outcome string) bool { return outcome == Sent || outcome == Local || outcome == OnLink }

// ways are all routes that packets of the question may take, with every hash.
func (x *explainer) ways(v lookup.Verdict) []routing.Route {
	var out []routing.Route
	for one := &v; one != nil; one = one.Otherwise {
		if one.Outcome == lookup.Sent {
			out = append(out, one.Legs...)
		}
	}
	return out
}

func outcomeOf(v lookup.Verdict) string {
	switch {
	case v.Assumed:
		return OnLink
	case v.Outcome == lookup.Sent:
		return Sent
	case v.Outcome == lookup.Local:
		return Local
	case v.Outcome == lookup.Rejected:
		return Refused
	default:
		return NoRoute
	}
}

func refusalText(r lookup.Refusal) string {
	switch r {
	case lookup.NetUnreachable:
		return "network unreachable (ENETUNREACH)"
	case lookup.HostUnreachable:
		return "host unreachable (EHOSTUNREACH)"
	case lookup.AccessDenied:
		return "permission denied (EACCES)"
	case lookup.Invalid:
		return "invalid argument (EINVAL)"
	case lookup.CrossDevice:
		return "invalid cross-device link (EXDEV)"
	case lookup.NoDevice:
		return "no such device (ENODEV)"
	case lookup.Other:
		return "another error"
	default:
		return ""
	}
}

func (x *explainer) kernel(flow lookup.Flow, v lookup.Verdict, a lookup.Answer, difference string) *Kernel {
	k := &Kernel{Difference: escape.Text(difference)}
	if r := cmp.Or(a.Unsent, a.Missed); r != lookup.None && a.Sent.Device == 0 {
		k.Error = refusalText(r)
		if r == lookup.Other {
			k.Error = fmt.Sprintf("error %d", a.Errno)
		}
	}
	if len(a.Matched) > 0 {
		k.Table = uint32(a.Matched[0].Table)
		if x.facts.Merged && k.Table == uint32(routing.TableMain) {
			k.Table = uint32(v.Route.Table) // The kernel names main for both ([lookup.Host.Merged]).
		}
		texts := make([]string, 0, len(a.Matched))
		for _, r := range a.Matched {
			texts = append(texts, x.routeText(r))
		}
		k.Route = strings.Join(texts, ", ")
	}
	if a.Sent.Device != 0 {
		k.Sent = x.wayText(a.Sent)
	}
	if s := a.Sent.PreferredSource; s.IsValid() && !flow.From.IsValid() {
		k.Source = s.String()
	}
	return k
}

// second is the second lookup of connect(2). IPv4 makes it with the address that the first one
// chose (ip_route_connect in include/net/route.h); IPv6 where the first one failed
// (ip6_dst_lookup_tail in net/ipv6/ip6_output.c).
func (x *explainer) second(flow lookup.Flow, first *lookedUp) (*lookedUp, bool) {
	ipv4, outcome := flow.To.Is4(), outcomeOf(first.verdict)
	if x.forwards(flow) || flow.From.IsValid() || ipv4 && outcome != Sent || !ipv4 && reaches(outcome) || first.verdict.Direct {
		return nil, false
	}
	source, known := first.answer.Sent.PreferredSource, true
	if !source.IsValid() {
		source, known = x.chosenSource(first)
	}
	if !known {
		if source.IsValid() {
			x.caveat(CaveatSource, "the socket gets an address, and connect() looks up again with it; which address is not known here: ask with --from")
		}
		return nil, false
	}
	with := flow
	with.From = source
	v := x.host.Lookup(with.Question())
	if outcomeOf(v) == outcome && sameWays(x.ways(v), x.ways(first.verdict)) && (v.Direct || v.Rule == first.verdict.Rule) {
		x.source = source
		return nil, false // It says the same: nothing to show.
	}
	text := fmt.Sprintf("connect() looks up again with the address that it chose, %s", source)
	if !ipv4 {
		text = fmt.Sprintf("the first lookup failed: the kernel chooses an address, %s, and looks up again", source)
	}
	x.source = source
	out := x.lookup(ForSource, text, with)
	if ipv4 {
		x.caveat(CaveatSource, "a UDP socket that is not connected makes no second lookup: it follows the first one")
	}
	return &out, true
}

func sameWays(a, b []routing.Route) bool {
	return slices.EqualFunc(a, b, func(p, q routing.Route) bool { return p.Device == q.Device && p.Gateway == q.Gateway })
}

// chosenSource is the address that an unbound socket gets, where that can be told without the kernel:
// that of the route, or the only address of its device.
func (x *explainer) chosenSource(first *lookedUp) (a netip.Addr, known bool) {
	ways := x.ways(first.verdict)
	if len(ways) == 0 {
		var own []netip.Addr
		for _, addresses := range x.facts.Addresses {
			for _, p := range addresses {
				if p.Addr().IsGlobalUnicast() {
					own = append(own, p.Addr())
				}
			}
		}
		switch len(own) {
		case 0:
			return netip.Addr{}, false
		case 1:
			return own[0], true
		default:
			return own[0], false
		}
	}
	if s := ways[0].PreferredSource; s.IsValid() {
		return s, true
	}
	var own []netip.Addr
	for _, p := range x.facts.Addresses[ways[0].Device] {
		if p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if g := ways[0].Gateway; g.IsValid() && p.Contains(g) {
			return p.Addr(), true // inet_select_addr takes the first of the gateway's network.
		}
		own = append(own, p.Addr())
	}
	if len(own) > 0 {
		return own[0], len(own) == 1
	}
	return netip.Addr{}, false
}

// reverse shows how the source of a packet that came in is checked.
func (x *explainer) reverse(flow lookup.Flow, first *lookedUp) {
	r := first.verdict.Reverse
	if r == nil || r.Mode == 0 && r.Passed {
		return
	}
	mode := "rp_filter 0: it may be anything but an address of this host"
	switch r.Mode {
	case 1:
		mode = "rp_filter 1, strict: the way back must lead through the same interface"
	case 2:
		mode = "rp_filter 2, loose: there must be a way back"
	}
	l := x.walked(ForReverse, fmt.Sprintf("the check of the source on %s (%s)", x.primary(flow.IIF), mode), r.Flow, r.Verdict, r.Steps)
	l.Error = ""
	x.doc.Lookups = append(x.doc.Lookups, l)
}

// packet names the packet in the summary.
func (x *explainer) packet(f lookup.Flow) string {
	text := f.To.String()
	if f.From.IsValid() {
		text += " from " + f.From.String()
	}
	return text
}

// conclude writes the summary.
func (x *explainer) conclude(flow lookup.Flow, first, last *lookedUp) {
	d, v := x.doc, last.verdict
	d.Outcome = outcomeOf(v)
	source := x.source
	if s := last.answer.Sent.PreferredSource; s.IsValid() && last == first && !last.differs {
		source = s
	}
	if source.IsValid() && !flow.From.IsValid() && !x.forwards(flow) && d.Outcome == Sent {
		d.Source = &source
	}
	what := x.packet(flow)
	if last != first && source.IsValid() {
		what += fmt.Sprintf(" gets the address %s and", source)
	}
	switch d.Outcome {
	case Sent:
		d.Summary = fmt.Sprintf("%s leaves by %s", what, x.leaves(last))
		if d.Source != nil && last == first {
			d.Summary += fmt.Sprintf(" with the address %s", source)
		}
		d.Summary += x.by(v)
	case Local:
		d.Summary = x.local(flow, what, last)
	case OnLink:
		d.Interface = x.primary(flow.OIF)
		d.Summary = fmt.Sprintf("%s leaves by %s: no rule has a route, and the kernel takes the destination for a neighbour there", what, escape.Name(flow.OIF))
	case Refused, NoRoute:
		d.Summary = x.refused(flow, what, v)
	}
	if !d.Complete {
		d.Summary += "; this is not certain, because facts are missing"
	}
}

// local says how a packet is for this host.
func (x *explainer) local(flow lookup.Flow, what string, l *lookedUp) string {
	switch {
	case flow.To.IsMulticast() && l.asked && l.answer.Unsent == lookup.Invalid:
		x.doc.Outcome = Refused
		return fmt.Sprintf("%s is dropped: nobody on this host is a member of the group on %s", what, escape.Name(flow.IIF))
	case flow.To.IsMulticast():
		return fmt.Sprintf("%s is for the members of the group on this host%s", what, x.by(l.verdict))
	case flow.To.IsUnspecified():
		return fmt.Sprintf("%s is for this host: it takes %s for itself", what, flow.To)
	default:
		return fmt.Sprintf("%s is for this host%s", what, x.by(l.verdict))
	}
}

// leaves names the ways of a packet, and takes the one that the kernel chose into the document.
func (x *explainer) leaves(l *lookedUp) string {
	ways := x.ways(l.verdict)
	chosen := ways[0]
	if l.asked && l.answer.Sent.Device != 0 && !l.differs && !l.other {
		chosen = l.answer.Sent
		if !slices.ContainsFunc(ways, func(w routing.Route) bool { return w.Device == chosen.Device && w.Gateway == chosen.Gateway }) {
			// Of equal routes, or because the router of the first does not answer.
			ways = []routing.Route{chosen}
		}
	}
	x.doc.Interface = escape.Name(x.device(chosen.Device))
	if g := chosen.Gateway; g.IsValid() {
		x.doc.Via = &g
	}
	texts := make([]string, 0, len(ways))
	for _, w := range ways {
		text := escape.Name(x.device(w.Device))
		if w.Gateway.IsValid() {
			text += " via " + w.Gateway.String()
		}
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, " or ")
}

// by names the rule and the table that decide.
func (x *explainer) by(v lookup.Verdict) string {
	switch {
	case v.Rule.Action == 0:
		return ""
	case v.Route.Table == 0:
		return fmt.Sprintf(" (rule %d)", v.Rule.Priority)
	case v.Suppressed:
		return fmt.Sprintf(" (rule %d, table %s): %s", v.Rule.Priority, v.Route.Table, v.WhySuppressed())
	default:
		return fmt.Sprintf(" (rule %d, table %s)", v.Rule.Priority, v.Route.Table)
	}
}

// refused says why a packet goes nowhere.
func (x *explainer) refused(flow lookup.Flow, what string, v lookup.Verdict) string {
	switch v.Objection {
	case lookup.NoObjection:
		if v.Outcome == lookup.NoRoute {
			return what + " cannot be reached: no rule has a route"
		}
		return fmt.Sprintf("%s is refused: %s%s", what, refusalText(v.Refusal), x.by(v))
	case lookup.ReversePath:
		why := v.Reverse.Reason.String()
		if ways := x.ways(v.Reverse.Verdict); v.Reverse.Reason == lookup.ByOtherInterface && len(ways) > 0 {
			why = "the way back leads by " + escape.Name(x.device(ways[0].Device))
		}
		return fmt.Sprintf("%s is dropped when it comes in by %s: %s (rp_filter %d)", what, x.primary(flow.IIF), why, v.Reverse.Mode)
	case lookup.NotForwarding:
		if flow.To.Is6() {
			return what + " is dropped: this host does not forward IPv6 (net.ipv6.conf.all.forwarding)"
		}
		return fmt.Sprintf("%s is dropped: %s does not forward (net.ipv4.conf.%[2]s.forwarding)", what, x.primary(flow.IIF))
	case lookup.SourceOfLink:
		return fmt.Sprintf("%s is dropped: %s", what, v.Objection)
	case lookup.DeviceMissing, lookup.DeviceDown:
		name := flow.OIF
		if x.forwards(flow) {
			name = flow.IIF
		}
		return fmt.Sprintf("%s is refused: %s (%s)", what, v.Objection, escape.Name(name))
	default:
		return fmt.Sprintf("%s is refused: %s", what, v.Objection)
	}
}

func (x *explainer) caveat(code, text string) {
	c := Caveat{code, text}
	if !slices.Contains(x.doc.MayDiffer, c) {
		x.doc.MayDiffer = append(x.doc.MayDiffer, c)
	}
}

// caveats says what the simulation does not know and this packet may depend on.
func (x *explainer) caveats(flow lookup.Flow, l *lookedUp) {
	ways := x.ways(l.verdict)
	if len(ways) > 1 {
		x.caveat(CaveatHash, fmt.Sprintf("a hash chooses among the %d ways of the route", len(ways)))
	}
	fellBack := l.asked && !l.differs && l.verdict.FellBack(l.answer)
	if len(l.verdict.Alternatives) > 0 && !fellBack {
		x.caveat(CaveatReachability, "the table has other default routes with the same metric: the kernel prefers one whose router answers")
	}
	if fellBack {
		x.caveat(CaveatReachability, "the router of the route that matches does not answer: the kernel takes another one as long as that lasts")
	}
	if !flow.Question().Answerable() {
		subject := protocol(flow.IPProto)
		if flow.To.IsMulticast() && x.forwards(flow) {
			subject = "IPv6 multicast that comes in"
		}
		x.caveat(CaveatProtocol, "the kernel cannot be asked about "+subject+" (RTM_GETROUTE): this answer is that of the simulation alone")
	}
	if flow.To.IsMulticast() && !l.verdict.Direct {
		x.caveat(CaveatGroup, "multicast also goes to members of the group on this host")
	}
	by := map[lookup.Selector][]string{}
	for _, s := range l.steps {
		if selector := x.selectorOf(s, flow); selector != "" {
			p := fmt.Sprint(s.Rule.Priority)
			if !slices.Contains(by[selector], p) {
				by[selector] = append(by[selector], p)
			}
		}
	}
	for _, c := range []struct {
		selector   lookup.Selector
		code, text string
	}{
		{lookup.ByMark, CaveatMark, "select by mark, which a program or netfilter may set: ask with --mark"},
		{lookup.ByProtocol, CaveatProtocol, "select by protocol: ask with --proto"},
		{lookup.BySourcePort, CaveatPort, "select by source port: ask with --sport"},
		{lookup.ByDestinationPort, CaveatPort, "select by destination port: ask with --dport"},
	} {
		if at := by[c.selector]; len(at) > 0 {
			x.caveat(c.code, "rules at "+list(at, 5)+" "+c.text)
		}
	}
	if at := by[lookup.ByUID]; len(at) > 0 && !x.forwards(flow) {
		x.caveat(CaveatUser, fmt.Sprintf("rules at %s select by user; this is the answer for %s: ask for others with --uid", list(at, 5), x.user(flow.UID)))
	}
	if x.forwards(flow) && flow.Mark == 0 {
		for _, s := range l.steps {
			if d := x.decision(s.Rule); d == routing.AnswerLink {
				x.caveat(CaveatAnswers, "if the packet is an answer of a connection that came by a link, the nftables table inet multihomed gives it that link's mark, and a rule at "+fmt.Sprint(s.Rule.Priority)+" its table: ask with --mark")
				break
			}
		}
	}
	if f := flow.From; f.Is6() && !f.IsUnspecified() && !x.forwards(flow) && !x.isOwn(f) {
		x.caveat(CaveatSource, "the source is not an address of this host: a socket may have it only with IPV6_FREEBIND or IPV6_TRANSPARENT")
	}
}

// isOwn reports whether an address is one of this host.
func (x *explainer) isOwn(a netip.Addr) bool {
	for c := range x.facts.candidates() {
		if c.Route.Type == routing.RouteLocal && c.Route.Destination.Contains(a) {
			return true
		}
	}
	for _, addresses := range x.facts.Addresses {
		if slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return true
		}
	}
	return false
}

// selectorOf is what a rule selects by that the question leaves open.
func (x *explainer) selectorOf(s lookup.Step, f lookup.Flow) lookup.Selector {
	r := s.Rule
	switch {
	case s.Result == lookup.Unmatched && s.Selector != "" && !slices.Contains([]lookup.Selector{lookup.ByMark, lookup.ByUID, lookup.ByProtocol, lookup.BySourcePort, lookup.ByDestinationPort}, s.Selector):
		return "" // Whatever the mark is, it does not match.
	case f.Mark == 0 && r.Mark.Mask != 0:
		return lookup.ByMark
	case r.UIDs.Set:
		return lookup.ByUID
	case f.IPProto == 0 && r.IPProto != 0:
		return lookup.ByProtocol
	case f.SourcePort == 0 && r.SourcePorts != (routing.PortRange{}):
		return lookup.BySourcePort
	case f.DestinationPort == 0 && r.DestinationPorts != (routing.PortRange{}):
		return lookup.ByDestinationPort
	default:
		return ""
	}
}

func list(words []string, most int) string {
	if len(words) > most {
		return strings.Join(words[:most], ", ") + fmt.Sprintf(" and %d more", len(words)-most)
	}
	if n := len(words); n > 1 {
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
	return strings.Join(words, "")
}
