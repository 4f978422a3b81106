package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// UDP is the protocol that the kernel takes an IPv4 question for that names none
// (inet_rtm_getroute in net/ipv4/route.c).
const udp, tcp = 17, 6

// Explain says how a packet is routed. The flow's To must be valid.
func (f *Facts) Explain(flow lookup.Flow) Document {
	d := newDocument()
	d.Annotations = f.Notes.By
	for _, u := range f.Unread {
		d.Unread = append(d.Unread, escape.Text(u))
	}
	x := &explainer{facts: f, host: f.host(), doc: &d, names: make(map[int]string, len(f.Interfaces)), dead: map[routing.TableID]routing.Route{}}
	for _, i := range f.Interfaces {
		x.names[i.Index] = i.Name
	}
	for _, r := range f.Routes {
		if _, twice := x.dead[r.Table]; r.Dead && !twice && r.Destination.Contains(flow.To.WithZone("")) {
			x.dead[r.Table] = r.Route
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
func (d *Document) Reaches() bool {
	return d.Outcome == Sent || d.Outcome == Local || d.Outcome == OnLink
}

type explainer struct {
	facts *Facts
	host  *lookup.Host
	doc   *Document
	// names are those of the interfaces. dead has of each table a dead route to the destination.
	names map[int]string
	dead  map[routing.TableID]routing.Route
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
		add(true, "forwarded from %s", escape.Name(f.IIF))
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
	answer  Answer
	asked   bool
}

func (x *explainer) explain(flow lookup.Flow) {
	first := x.lookup(ForRoute, "", flow, true)
	x.caveats(flow, &first)
	last := &first
	forwarded := x.forwards(flow)
	switch {
	case forwarded:
		x.reverse(flow, &first)
	case flow.From.IsValid():
	default:
		if second, did := x.second(flow, &first); did {
			last = second
		}
	}
	x.conclude(flow, &first, last)
}

// lookup walks the rules once and adds that to the document.
func (x *explainer) lookup(purpose, text string, flow lookup.Flow, ask bool) lookedUp {
	var out lookedUp
	out.verdict, out.steps = x.host.Trace(flow)
	if ask && x.facts.Ask != nil {
		out.answer, out.asked = x.facts.Ask(flow)
	}
	l := Lookup{Purpose: purpose, Text: text, Outcome: outcomeOf(out.verdict), Routes: []string{}, Rules: x.rules(flow, out.steps)}
	if v := out.verdict; v.Outcome == lookup.NoRoute && !v.Assumed || v.Outcome == lookup.Rejected && !v.Assumed {
		l.Error = refusalText(v.Refusal)
	}
	for _, r := range x.ways(out.verdict) {
		l.Table = uint32(r.Table)
		l.Routes = append(l.Routes, x.routeText(r))
	}
	if out.verdict.Outcome == lookup.Local {
		l.Table = uint32(out.verdict.Route.Table)
		l.Routes = append(l.Routes, x.routeText(out.verdict.Route))
	}
	if out.asked {
		l.Kernel = x.kernel(out.answer)
		x.doc.Asked = true
		if out.answer.Difference != "" {
			x.doc.Agrees = false
		}
	}
	if out.verdict.Lacking {
		x.doc.Complete = false
		x.caveat(CaveatPartial, "of a table that was asked only a part is known")
	}
	if out.verdict.Uncertain {
		x.caveat(CaveatUnknownRule, "a rule before the answer has attributes that this program does not know")
	}
	x.doc.Lookups = append(x.doc.Lookups, l)
	return out
}

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
	default:
		return ""
	}
}

func (x *explainer) kernel(a Answer) *Kernel {
	k := &Kernel{Error: escape.Text(a.Refused), Difference: escape.Text(a.Difference)}
	if len(a.Routes) > 0 {
		k.Table = uint32(a.Routes[0].Table)
		texts := make([]string, 0, len(a.Routes))
		for _, r := range a.Routes {
			texts = append(texts, x.routeText(r))
		}
		k.Route = strings.Join(texts, ", ")
	}
	if a.Sent.Device != 0 {
		k.Sent = x.wayText(a.Sent)
	}
	if a.Source.IsValid() {
		k.Source = a.Source.String()
	}
	return k
}

// second is the second lookup of connect(2). IPv4 makes it with the address that the first one
// chose (ip_route_connect in include/net/route.h); IPv6 where the first one failed
// (ip6_dst_lookup_tail in net/ipv6/ip6_output.c).
func (x *explainer) second(flow lookup.Flow, first *lookedUp) (*lookedUp, bool) {
	ipv4 := flow.To.Is4()
	if first.verdict.Outcome == lookup.Local || ipv4 && outcomeOf(first.verdict) != Sent || !ipv4 && first.verdict.Outcome == lookup.Sent {
		return nil, false
	}
	source := first.answer.Source
	if !source.IsValid() {
		known := false
		if source, known = x.chosenSource(flow, first); !known {
			if !ipv4 && source.IsValid() {
				x.caveat(CaveatSource, "IPv6 chooses a source address and looks up again where the first lookup fails; which one it chooses is not known here: ask with --from")
			}
			return nil, false
		}
	}
	with := flow
	with.From = source
	v, _ := x.host.Trace(with)
	if sameWays(x.ways(v), x.ways(first.verdict)) && outcomeOf(v) == outcomeOf(first.verdict) {
		return nil, false // It says the same: nothing to show.
	}
	text := fmt.Sprintf("connect() looks up again with the address that it chose, %s", source)
	if !ipv4 {
		text = fmt.Sprintf("the first lookup failed: the kernel chooses the address %s and looks up again", source)
	}
	out := x.lookup(ForSource, text, with, true)
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
func (x *explainer) chosenSource(flow lookup.Flow, first *lookedUp) (a netip.Addr, known bool) {
	ways := x.ways(first.verdict)
	if len(ways) == 0 {
		var own []netip.Addr
		for _, addresses := range x.facts.Addresses {
			for _, p := range addresses {
				if p.Addr().Is4() == flow.To.Is4() && p.Addr().IsGlobalUnicast() {
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
		if p.Addr().Is4() != flow.To.Is4() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if g := ways[0].Gateway; g.IsValid() && p.Contains(g) {
			return p.Addr(), flow.To.Is4() // inet_select_addr takes the first of the gateway's network.
		}
		own = append(own, p.Addr())
	}
	if len(own) > 0 {
		return own[0], len(own) == 1
	}
	return netip.Addr{}, false
}

// reverse checks the source of a forwarded IPv4 packet (fib_validate_source in
// net/ipv4/fib_frontend.c).
func (x *explainer) reverse(flow lookup.Flow, first *lookedUp) {
	in, known := x.facts.named(flow.IIF)
	if !flow.To.Is4() || !flow.From.IsValid() || !known || in.RPFilter == 0 {
		return
	}
	back := lookup.Flow{To: flow.From, From: flow.To, TOS: flow.TOS, IIF: routing.Loopback, IPProto: flow.IPProto, SourcePort: flow.DestinationPort, DestinationPort: flow.SourcePort}
	if ways := x.ways(first.verdict); len(ways) > 0 {
		back.IIF = x.device(ways[0].Device)
	}
	if x.facts.SourceValidMark[in.Index] {
		back.Mark = flow.Mark
	}
	mode := "strict"
	if in.RPFilter > 1 {
		mode = "loose"
	}
	out := x.lookup(ForReverse, fmt.Sprintf("the check of the source on %s (rp_filter %d, %s) looks up the way back", escape.Name(flow.IIF), in.RPFilter, mode), back, false)
	ways := x.ways(out.verdict)
	passes := slices.ContainsFunc(ways, func(r routing.Route) bool { return r.Device == in.Index }) || in.RPFilter > 1 && len(ways) > 0
	if passes || first.verdict.Outcome != lookup.Sent && first.verdict.Outcome != lookup.Local {
		return
	}
	x.doc.Outcome = Refused
	why := "there is no way back to " + flow.From.String()
	if len(ways) > 0 {
		why = fmt.Sprintf("the way back to %s leads by %s", flow.From, escape.Name(x.device(ways[0].Device)))
	} else if out.verdict.Outcome == lookup.Local {
		why = flow.From.String() + " is an address of this host"
	}
	x.doc.Summary = fmt.Sprintf("%s is dropped when it comes in by %s: %s (rp_filter %d)", x.packet(flow), escape.Name(flow.IIF), why, in.RPFilter)
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
	d := x.doc
	if d.Outcome != "" {
		return // The check of the source has said it.
	}
	v := last.verdict
	d.Outcome = outcomeOf(v)
	if s := last.answer.Source; s.IsValid() && d.Outcome == Sent {
		d.Source = &s
	}
	if last != first && d.Source == nil {
		s := first.answer.Source
		if s.IsValid() {
			d.Source = &s
		}
	}
	by := ""
	if v.Rule.Action != 0 {
		by = fmt.Sprintf(" (rule %d", v.Rule.Priority)
		if v.Route.Table != 0 {
			by += ", table " + x.tableText(v.Route.Table)
		}
		by += ")"
	}
	what := x.packet(flow)
	if last != first && d.Source != nil {
		what += fmt.Sprintf(" gets the address %s and", *d.Source)
	}
	switch d.Outcome {
	case Sent:
		ways := x.ways(v)
		chosen := ways[0]
		if last.asked && last.answer.Sent.Device != 0 && last.answer.Difference == "" {
			chosen = last.answer.Sent
		}
		d.Interface = escape.Name(x.device(chosen.Device))
		if g := chosen.Gateway; g.IsValid() {
			d.Via = &g
		}
		var texts []string
		for _, w := range ways {
			text := escape.Name(x.device(w.Device))
			if w.Gateway.IsValid() {
				text += " via " + w.Gateway.String()
			}
			texts = append(texts, text)
		}
		d.Summary = fmt.Sprintf("%s leaves by %s%s", what, strings.Join(texts, " or "), by)
		if d.Source != nil && !flow.From.IsValid() && last == first && !x.forwards(flow) {
			d.Summary += fmt.Sprintf(" with the address %s", *d.Source)
		}
	case Local:
		d.Summary = fmt.Sprintf("%s is for this host%s", what, by)
	case OnLink:
		d.Interface = escape.Name(flow.OIF)
		d.Summary = fmt.Sprintf("%s leaves by %s: no rule has a route, and the kernel takes the destination for a neighbour there", what, escape.Name(flow.OIF))
	case Refused:
		d.Summary = fmt.Sprintf("%s is refused: %s%s", what, refusalText(v.Refusal), by)
	default:
		d.Summary = fmt.Sprintf("%s cannot be reached: no rule has a route", what)
	}
	if !d.Complete {
		d.Summary += "; it is not certain, because facts are missing"
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
	if x.equals(l.verdict) {
		x.caveat(CaveatReachability, "the table has other routes to the same destination with the same metric: the kernel prefers one whose router answers")
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
	x.caveat(CaveatBeyond, "netfilter, IPsec (XFRM), BPF and neighbours that do not answer may change or drop the packet; they are not part of routing")
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

// equals reports whether the table has another route like that of the answer, so that the
// reachability of routers decides (fib_select_default, rt6_score_route).
func (x *explainer) equals(v lookup.Verdict) bool {
	if v.Outcome != lookup.Sent || !v.Route.Gateway.IsValid() {
		return false
	}
	others := 0
	for _, r := range x.facts.Routes {
		if !r.Dead && r.Table == v.Route.Table && r.Destination == v.Route.Destination && r.Source == v.Route.Source && r.Metric == v.Route.Metric && r.TOS == v.Route.TOS && r.Weight == 0 {
			others++
		}
	}
	return others > 1
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
