package explain

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// rules are all rules of the family, those that were stepped over or not asked too.
func (x *explainer) rules(f lookup.Flow, v lookup.Verdict, steps []lookup.Step) []Rule {
	family := routing.FamilyOf(f.To)
	out := []Rule{}
	at := 0
	decided, jumped := false, routing.Priority(0)
	for _, r := range x.facts.Rules {
		if r.Family != family {
			continue
		}
		if x.brief && (at >= len(steps) || steps[at].Rule == r && steps[at].Result == lookup.Unmatched) {
			at++
			continue
		}
		if at < len(steps) && steps[at].Rule == r && (jumped == 0 || r.Priority >= jumped) {
			s := steps[at]
			at++
			jumped = 0
			if s.Result == lookup.Jumped {
				jumped = r.Goto
			}
			decided = decided || s.Result == lookup.Decided
			out = append(out, x.step(f, s))
			continue
		}
		e := x.rule(r)
		switch {
		case len(steps) == 0:
			e.Result, e.Why = NotAsked, "the kernel asks no rule"
			switch {
			case v.Objection != lookup.NoObjection:
				e.Why += ": " + v.Objection.String()
			case v.Route.Table != 0:
				e.Why += ": it looks up the table of the VRF, for a link"
			}
		case at >= len(steps) && decided:
			e.Result, e.Why = NotAsked, "the answer came before"
		default:
			e.Result, e.Why = SteppedOver, fmt.Sprintf("the goto leads to %d", jumped)
		}
		out = append(out, e)
	}
	return out
}

// rule is a rule without what came of it.
func (x *explainer) rule(r routing.Rule) Rule {
	whole := escape.Text(r.String())
	_, text, _ := strings.Cut(whole, ": ")
	e := Rule{Priority: uint32(r.Priority), Text: text, By: ByOthers}
	switch {
	case isKernels(r):
		e.By = ByKernel
	case r.Protocol == routing.Multihomed:
		e.By = ByMultihomed
		x.annotate(&e, r, whole)
	default:
		e.Maker = maker(r)
	}
	return e
}

// isKernels reports the three rules of a new network namespace (fib4_default_rules_init,
// fib6_rules_net_init).
func isKernels(r routing.Rule) bool {
	plain := routing.Rule{Family: r.Family, Priority: r.Priority, Action: routing.ActionLookup, Table: r.Table, Protocol: r.Protocol}
	if r != plain || r.Protocol != routing.ProtocolKernel {
		return false
	}
	return r.Priority == 0 && r.Table == routing.TableLocal || r.Priority == routing.PriorityMain && r.Table == routing.TableMain ||
		r.Priority == routing.PriorityDefault && r.Table == routing.TableDefault
}

// decision is why a rule of multihomed exists, empty for other rules.
func (x *explainer) decision(r routing.Rule) routing.Decision {
	if r.Protocol != routing.Multihomed {
		return ""
	}
	if n, known := x.facts.Notes.Rules[NoteKey(r)]; known && n.Decision != "" {
		return n.Decision
	}
	return rungOf(r)
}

// rungs are those of the ladder.
var rungs = routing.Ladder() //nolint:gochecknoglobals // a constant in all but name

// rungOf is the decision of the rung that a rule stands on, empty if several stand there.
func rungOf(r routing.Rule) routing.Decision {
	var found routing.Decision
	for i := range rungs {
		if rung := &rungs[i]; rung.Contains(r.Priority) {
			if found != "" && found != rung.Decision {
				return ""
			}
			found = rung.Decision
		}
	}
	return found
}

// NoteKey finds the note of a rule.
func NoteKey(r routing.Rule) string { return r.Family.String() + " " + escape.Text(r.String()) }

func (x *explainer) annotate(e *Rule, r routing.Rule, text string) {
	note := x.facts.Notes.Rules[r.Family.String()+" "+text]
	d := note.Decision
	if d == "" {
		d = rungOf(r)
	}
	e.Reason, e.Link, e.Lifts = string(d), note.Link, note.Lifts
	if d != "" {
		e.Sentence = d.Sentence()
	}
	if e.Link == "" && r.OIF != "" {
		e.Link = escape.Name(r.OIF)
	}
	if e.Link == "" && r.Action == routing.ActionLookup {
		e.Link = x.facts.Notes.Tables[r.Table]
	}
	e.Profile = x.facts.Notes.Links[e.Link].Profile
	if d == routing.Bind || d == routing.BindNever {
		e.Binding = x.binding(r, e.Link)
	}
}

// binding is the entry that a rule of a binding comes from, empty if that is not certain.
func (x *explainer) binding(r routing.Rule, link string) string {
	var found []string
	for _, b := range x.facts.Notes.Bindings {
		var is bool
		switch b.Selector {
		case "user":
			one := r.UIDs.First == r.UIDs.Last && (fmt.Sprint(r.UIDs.First) == b.Value || x.facts.Users[r.UIDs.First] == b.Value)
			is = r.UIDs.Set && (one || fmt.Sprintf("%d-%d", r.UIDs.First, r.UIDs.Last) == b.Value)
		case "mark":
			is = r.Mark.Mask != 0 && (b.Value == fmt.Sprintf("%#x", r.Mark.Value) && r.Mark.Mask == math.MaxUint32 || b.Value == fmt.Sprintf("%#x/%#x", r.Mark.Value, r.Mark.Mask))
		case "interface":
			is = r.IIF != "" && escape.Name(r.IIF) == b.Value
		case "source":
			is = r.From.IsValid() && (r.From.String() == b.Value || r.From.IsSingleIP() && r.From.Addr().String() == b.Value)
		}
		if is && (link == "" || b.Interface == "" || b.Interface == link) {
			found = append(found, fmt.Sprintf("%s %s is bound to %s by %s", b.Selector, b.Value, b.Link, b.By))
		}
	}
	if found = slices.Compact(found); len(found) == 1 {
		return escape.Text(found[0])
	}
	return ""
}

// Marks and tables of programs that make rules in a form of their own.
const (
	mullvad        = 0x6d6f6c65
	tailscaleMark  = 0x80000
	tailscaleMask  = 0xff0000
	tailscaleTable = 52
	tailscaleFirst = 5200
	tailscaleLast  = 5300
)

// maker names the program that makes such rules, where the form leaves no doubt.
func maker(r routing.Rule) string {
	switch {
	case r.Invert && r.Mark == routing.Mark{Value: mullvad, Mask: math.MaxUint32} && r.Table == mullvad:
		return "Mullvad"
	case r.Invert && r.Mark.Mask == math.MaxUint32 && r.Mark.Value != 0 && r.Mark.Value == uint32(r.Table):
		return "wg-quick"
	case r.Priority >= tailscaleFirst && r.Priority < tailscaleLast && (r.Mark == routing.Mark{Value: tailscaleMark, Mask: tailscaleMask} || r.Table == tailscaleTable):
		return "Tailscale"
	default:
		return ""
	}
}

// step is a rule that was asked.
func (x *explainer) step(f lookup.Flow, s lookup.Step) Rule {
	e := x.rule(s.Rule)
	e.Why = x.because(f, s.Rule, s.Selector, s.Result)
	if s.Table != 0 {
		e.Table = uint32(s.Table)
	}
	if s.Route != (routing.Route{}) {
		e.Route = x.routeText(s.Route)
	}
	switch s.Result {
	case lookup.Unmatched:
		e.Result, e.Selector = No, string(s.Selector)
	case lookup.NotUnderstood:
		e.Result, e.Why = NotUnderstood, "the rule has attributes that this program does not know"
	case lookup.Jumped:
		e.Result = Jumps
	case lookup.Unresolved:
		e.Result, e.Rejected = JumpsNowhere, fmt.Sprintf("there is no rule at %d", s.Rule.Goto)
	case lookup.Nothing:
		e.Result = Nothing
	case lookup.Empty:
		e.Result = Empty
		if n := x.deadIn(s.Table); n != "" {
			e.Rejected = n
		}
	case lookup.Thrown:
		e.Result = Thrown
	case lookup.Outranked:
		e.Result, e.Rejected = Outranked, "main has a longer route, which goes before it until somebody adds or deletes a rule"
	case lookup.TooShort:
		e.Result, e.Rejected = Suppressed, fmt.Sprintf("suppress_prefixlength %d", s.Rule.SuppressPrefixLength.Value)
	case lookup.InGroup:
		e.Result, e.Rejected = Suppressed, fmt.Sprintf("suppress_ifgroup %d", s.Rule.SuppressGroup.Value)
	case lookup.Decided:
		e.Result = Answers
	}
	return e
}

// deadIn says that the table has a route to the destination that is dead.
func (x *explainer) deadIn(t routing.TableID) string {
	if r, is := x.dead[t]; is {
		return "it has " + x.routeText(r) + ", which is dead: the link is down"
	}
	return ""
}

// EveryPacket is why a rule without selectors matches.
const EveryPacket = "it is for every packet"

// because says why a rule matches or does not, in words about the packet.
func (x *explainer) because(f lookup.Flow, r routing.Rule, failed lookup.Selector, result lookup.Result) string {
	if result == lookup.Unmatched {
		if r.Invert && failed == lookup.NoSelector {
			return "it is for all other packets: " + x.matching(f, r)
		}
		return x.fact(f, failed)
	}
	if r.Invert {
		// The selectors do not match, and that is what the rule is for.
		straight := r
		straight.Invert, straight.Action, straight.Table, straight.L3MDev = false, routing.ActionNop, 0, r.L3MDev
		one := *x.host
		one.Rules = []routing.Rule{straight}
		if _, steps := one.Trace(f); len(steps) == 1 && steps[0].Selector != lookup.NoSelector {
			return x.fact(f, steps[0].Selector)
		}
		return "it is for all packets that its selectors do not match"
	}
	return x.matching(f, r)
}

// matching lists what of the packet the selectors of a rule match.
func (x *explainer) matching(f lookup.Flow, r routing.Rule) string {
	var facts []string
	add := func(is bool, s lookup.Selector) {
		if is {
			facts = append(facts, x.fact(f, s))
		}
	}
	add(r.From.IsValid() && r.From.Bits() > 0, lookup.BySource)
	add(r.To.IsValid() && r.To.Bits() > 0, lookup.ByDestination)
	add(r.TOS != 0, lookup.ByTOS)
	add(r.DSCP.Set, lookup.ByDSCP)
	add(r.FlowLabel.Set, lookup.ByFlowLabel)
	add(r.Mark.Mask != 0, lookup.ByMark)
	add(r.IIF != "", lookup.ByIIF)
	add(r.OIF != "", lookup.ByOIF)
	add(r.L3MDev, lookup.ByVRF)
	add(r.UIDs.Set, lookup.ByUID)
	add(r.IPProto != 0, lookup.ByProtocol)
	add(r.SourcePorts != routing.PortRange{}, lookup.BySourcePort)
	add(r.DestinationPorts != routing.PortRange{}, lookup.ByDestinationPort)
	add(r.TunnelID != 0, lookup.ByTunnel)
	if len(facts) == 0 {
		return EveryPacket
	}
	return list(facts, len(facts))
}

// fact says what the packet is as to one selector.
func (x *explainer) fact(f lookup.Flow, s lookup.Selector) string {
	switch s {
	case lookup.BySource:
		if !f.From.IsValid() {
			return "the packet has no source address yet"
		}
		return "the source is " + f.From.String()
	case lookup.ByDestination:
		return "the destination is " + f.To.String()
	case lookup.ByIIF:
		if x.forwards(f) {
			return "the packet comes in by " + escape.Name(f.IIF)
		}
		return "this host sends the packet"
	case lookup.ByOIF:
		switch {
		case x.forwards(f):
			return "the packet is forwarded"
		case f.OIF == "":
			return "the socket is bound to no device"
		default:
			return "the socket is bound to " + escape.Name(f.OIF)
		}
	case lookup.ByMark:
		if f.Mark == 0 {
			return "the packet has no mark"
		}
		return fmt.Sprintf("the mark is %#x", f.Mark)
	case lookup.ByUID:
		if x.forwards(f) {
			return "forwarded packets count as user 0"
		}
		return "the sender is " + x.user(f.UID)
	case lookup.ByProtocol:
		if f.IPProto == 0 {
			return "no protocol is given"
		}
		return "the protocol is " + protocol(f.IPProto)
	case lookup.BySourcePort:
		return fmt.Sprintf("the source port is %d", f.SourcePort)
	case lookup.ByDestinationPort:
		return fmt.Sprintf("the destination port is %d", f.DestinationPort)
	case lookup.ByTOS:
		return fmt.Sprintf("the tos is %#02x", f.TOS)
	case lookup.ByDSCP:
		return fmt.Sprintf("the DSCP is %d", f.TOS>>2)
	case lookup.ByFlowLabel:
		return fmt.Sprintf("the flow label is %#x", f.FlowLabel)
	case lookup.ByTunnel:
		return fmt.Sprintf("the tunnel ID is %d", f.TunnelID)
	case lookup.ByVRF:
		for _, name := range []string{f.IIF, f.OIF} {
			if slices.ContainsFunc(x.facts.Interfaces, func(i lookup.Interface) bool { return i.Is(name) && (i.Table != 0 || i.Master != 0) }) {
				return escape.Name(name) + " belongs to a VRF"
			}
		}
		return "the packet belongs to no VRF"
	default:
		return ""
	}
}

// routeText is a route as `ip route` prints it, without its table.
func (x *explainer) routeText(r routing.Route) string {
	text := escape.Text(r.Text(escape.Name(x.device(r.Device))))
	text = strings.Replace(text, " table "+r.Table.String(), "", 1)
	if no := r.Refuses(); no != "" {
		text, _, _ = strings.Cut(text, " dev ")
		return no + " " + text
	}
	if kind := kinds[r.Type]; kind != "" {
		return kind + " " + text
	}
	return text
}

// wayText is where a packet is sent.
func (x *explainer) wayText(r routing.Route) string {
	text := "dev " + escape.Name(x.device(r.Device))
	if r.Gateway.IsValid() {
		text = "via " + r.Gateway.String() + " " + text
	}
	return text
}

// kinds are the other types of routes that Route.Text does not name.
var kinds = map[routing.RouteType]string{ //nolint:gochecknoglobals // a constant in all but name
	routing.RouteLocal: "local", routing.RouteBroadcast: "broadcast", routing.RouteAnycast: "anycast", routing.RouteMulticast: "multicast",
}

// protocols are names of protocols(5) that `--proto` takes.
var protocols = map[uint8]string{ //nolint:gochecknoglobals // a constant in all but name
	1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 89: "OSPF", 132: "SCTP", 136: "UDPLite",
}

func protocol(p uint8) string {
	if name, known := protocols[p]; known {
		return name
	}
	return fmt.Sprintf("protocol %d", p)
}

// ParseProtocol finds a protocol by its name, in any case.
func ParseProtocol(name string) (uint8, bool) {
	for p, known := range protocols {
		if strings.EqualFold(known, name) {
			return p, true
		}
	}
	return map[string]uint8{"ipv6-icmp": 58, "ospfigp": 89}[strings.ToLower(name)], strings.EqualFold(name, "ipv6-icmp") || strings.EqualFold(name, "ospfigp")
}

// NotesOf takes the notes from a status. Objects of links that lack may be left out of it.
func NotesOf(s *status.Status) Notes {
	n := Notes{By: s.By, Rules: map[string]RuleNote{}, Tables: map[routing.TableID]string{}, Links: map[string]LinkNote{}, Bindings: s.Bindings}
	take := func(link string, objects []status.Object) {
		for _, o := range objects {
			if o.Kind != "rule" {
				continue
			}
			key := o.Family + " " + o.Text
			if known, twice := n.Rules[key]; !twice || known.Link == "" {
				n.Rules[key] = RuleNote{Decision: routing.Decision(o.Reason), Link: link, Lifts: o.Lifts}
			}
		}
	}
	for _, l := range s.Links {
		n.Links[l.Interface] = LinkNote{Profile: l.Profile, Role: l.Role, Dead: map[string]bool{}}
		take(l.Interface, l.Objects)
		for _, network := range l.Networks {
			if network.Table != 0 {
				n.Tables[routing.TableID(network.Table)] = l.Interface
			}
		}
	}
	take("", s.Shared)
	n.FailoverTable = routing.TableID(s.Tables.Last)
	if s.Failover != nil {
		for _, u := range s.Failover.Uplinks {
			if l, known := n.Links[u.Interface]; known {
				l.Metered = l.Metered || u.Metered
				if u.State.Dead() {
					l.Dead[u.Family] = true
				}
				n.Links[u.Interface] = l
			}
		}
	}
	return n
}
