package outcome

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/shell"
	"multihomed/routing"
)

// Codes of what takes bound traffic away.
const (
	// RuleAhead: a rule of somebody else that selects nothing stands before ours.
	RuleAhead routing.Code = "rule-ahead"
	// RuleOfSource: a rule of somebody else selects the packets of a link.
	RuleOfSource routing.Code = "rule-of-source"
	// RouteAhead: main has a default in pieces, or something like it.
	RouteAhead routing.Code = "route-ahead"
	// RejectDefault: main has a default that refuses.
	RejectDefault routing.Code = "reject-default"
	// GatewayElsewhere: a route of somebody else covers the router of a link.
	GatewayElsewhere routing.Code = "gateway-elsewhere"
	// TableInUse: somebody else's route in a table of ours.
	TableInUse routing.Code = "table-in-use"
	// Astray: bound traffic does not leave by its link for another reason.
	Astray routing.Code = "astray"
)

// Codes returns the codes of what takes bound traffic away.
func Codes() []routing.Code {
	return []routing.Code{RuleAhead, RuleOfSource, RouteAhead, RejectDefault, GatewayElsewhere, TableInUse, Astray, SharedAddress}
}

// Problems says what makes packets stray, one finding for each object that does, whatever
// number of links it takes them from. Names are those of interfaces.
func Problems(strays []Stray, names map[int]string, p routing.Policy) []routing.Problem {
	var order []blame
	by := map[blame][]Stray{}
	for _, s := range strays {
		b := blameOf(s, names, p)
		if by[b] == nil {
			order = append(order, b)
		}
		by[b] = append(by[b], s)
	}
	var out []routing.Problem
	for _, b := range order {
		if p, is := b.problem(by[b]); is {
			out = append(out, p)
		}
	}
	return out
}

// blame is what makes packets stray.
type blame struct {
	code   routing.Code
	family routing.Family
	object string
	rule   routing.Rule
	piece  bool
	device string
	// route is for a fix; decides is what it is made of, and gateway the router that it
	// covers.
	route, table string
	decides      routing.Route
	gateway      netip.Addr
}

func blameOf(s Stray, names map[int]string, p routing.Policy) blame {
	b := blame{family: s.Family, device: s.Device, piece: s.Piece && s.Goal == Outside}
	route := ""
	if s.Route.Destination.IsValid() {
		route = wordsOf(s.Route, names)
	}
	switch {
	case s.Rule != (routing.Rule{}):
		b.rule, b.object, b.code = s.Rule, s.Rule.String(), RuleAhead
		if s.Rule.Selects() {
			b.code = RuleOfSource
		}
		b.table = s.Table.String()
	case s.Missing != "":
		b.object, b.code = s.Missing, Astray
	case s.Goal == Gateway && route != "" && (s.Table == routing.TableMain || s.Table == routing.TableLocal) && s.Route.Destination.Bits() > 0:
		b.object, b.code, b.route, b.table, b.decides, b.gateway = route, GatewayElsewhere, route, s.Table.String(), s.Route, s.To
	case s.Refused && s.Table == routing.TableMain && route != "":
		b.object, b.code, b.route = route, RejectDefault, route
	case s.Table == routing.TableMain && b.piece:
		// All pieces through one device are one thing.
		b.object, b.code = fmt.Sprintf("routes of main through %s", s.Device), RouteAhead
	case p.Tables.Contains(s.Table) && route != "":
		b.object, b.code, b.route, b.table = route+" in table "+s.Table.String(), TableInUse, route, s.Table.String()
	case route != "":
		b.object, b.code, b.route = route+" in table "+s.Table.String(), Astray, route
	default:
		b.object, b.code = "no rule or route", Astray
	}
	return b
}

// wordsOf is a route in the words of iproute2, without its table.
func wordsOf(r routing.Route, names map[int]string) string {
	const nowhere = "-"
	kind, device := "", names[r.Device]
	if r.Type == routing.RouteLocal {
		kind = "local "
	} else if no := r.Refuses(); no != "" {
		kind, device = no+" ", nowhere
	}
	table := " table " + r.Table.String()
	text := strings.Replace(kind+r.Text(device), table, "", 1)
	return strings.Replace(text, " dev "+nowhere, "", 1)
}

// enoughPieces is how many parts of the outside must go astray: less is a network of
// somebody, and not a default route in pieces.
const enoughPieces = 3

func (b blame) problem(strays []Stray) (routing.Problem, bool) {
	out := routing.Problem{Code: b.code, Severity: routing.Error, Object: b.object}
	first := strays[0]
	var links []string
	for _, s := range strays {
		if !slices.Contains(links, s.Link) {
			links = append(links, s.Link)
		}
	}
	if len(links) == 1 {
		out.Link = links[0]
	}
	where := "leaves by " + first.Device + " instead"
	switch {
	case first.Assumed:
		where = "is sent as if to a neighbor, without a gateway"
	case first.Refused:
		where = "is refused"
	case first.Local:
		where = "does not leave this host"
	}
	what := fmt.Sprintf("traffic bound to %s %s, on its way to %s", listed(links), where, goals(strays))
	parts, all := b.parts(strays)
	if b.piece {
		if parts < enoughPieces {
			return out, false
		}
		if 2*parts < all {
			// As main, or a VPN's table, knows a part of the internet: that is what a split
			// tunnel is for. It is said because it is no small one.
			out.Severity = routing.Notice
		}
		what = fmt.Sprintf("%d of %d parts of the internet: traffic bound to %s %s when it goes there", parts, all, listed(links), where)
	}
	switch b.code {
	case RuleAhead:
		if b.piece {
			what = "its table has routes to " + what
		}
		out.Text = fmt.Sprintf("the %s rule %q is not of multihomed, comes before its rules and takes nearly every packet: %s", b.family, b.object, what)
		out.Fix = fmt.Sprintf("give that rule a priority between %d and %d: traffic that is bound to no link still follows it there", routing.PriorityNetwork+1, routing.PriorityAgain-1)
		out.Commands = Move(b.rule, behind)
	case RuleOfSource:
		if b.piece {
			what = "its table has routes to " + what
		}
		out.Text = fmt.Sprintf("the %s rule %q is not of multihomed and selects packets of links: %s", b.family, b.object, what)
		out.Fix = fmt.Sprintf("if that is not intended: ip %s rule del priority %d", b.family.Flag(), b.rule.Priority)
		out.Commands = routing.CommandsOf(ruleCommand("del", b.rule, b.rule.Priority))
	case RouteAhead:
		out.Text = fmt.Sprintf("the main table has %s routes through %s to %s", b.family, b.device, what)
		out.Fix = "give " + b.device + " one default route, or two of /1, in place of its list of routes (AllowedIPs of WireGuard)"
	case RejectDefault:
		out.Text = fmt.Sprintf("the main table has the %s route %q and no better default route: %s", b.family, b.object, what)
		out.Fix = fmt.Sprintf("ip %s route del %s", b.family.Flag(), b.route)
		out.Commands = b.deletion("")
	case GatewayElsewhere:
		out.Text = fmt.Sprintf("the %s route %q of the %s table covers the gateway %s of %s: %s", b.family, b.object, b.table, b.gateway, listed(links), what)
		out.Fix = b.uncover()
		if b.decides.Protocol != routing.ProtocolKernel {
			out.Commands = b.deletion(b.table)
		}
	case TableInUse:
		out.Text = fmt.Sprintf("the %s route %q is not of multihomed and is in its table: %s", b.family, b.object, what)
		out.Fix = fmt.Sprintf("ip %s route del %s table %s", b.family.Flag(), b.route, b.table)
		out.Commands = b.deletion(b.table)
	default:
		out.Text = what
		switch {
		case first.Missing != "":
			out.Text = fmt.Sprintf("the %s %s is missing: %s", b.family, b.object, what)
			out.Fix = "systemctl restart multihomed"
			out.Commands = routing.CommandsOf(out.Fix)
		case b.route != "":
			out.Text = fmt.Sprintf("the %s route %q decides: %s", b.family, b.object, what)
			out.Fix = fmt.Sprintf("see what the kernel does: ip %s route get %s %s", b.family.Flag(), first.To, sourceOf(first))
		default:
			out.Fix = fmt.Sprintf("see what the kernel does: ip %s route get %s %s", b.family.Flag(), first.To, sourceOf(first))
		}
	}
	return out, true
}

// behind is where a rule that took everything does no harm: behind the ladder, where the kernel
// puts none by itself.
const behind routing.Priority = 30000

// Move are the commands that give a rule of somebody else another priority. The new one stands
// before the old one goes. They are empty for a rule that iproute2 has no words for.
func Move(r routing.Rule, to routing.Priority) routing.Commands {
	add, del := ruleCommand("add", r, to), ruleCommand("del", r, r.Priority)
	if add == "" {
		return ""
	}
	return routing.CommandsOf(add, del)
}

// ruleCommand adds or deletes a rule, at a priority.
func ruleCommand(verb string, r routing.Rule, at routing.Priority) string {
	if r.Unknown || r.FindSource {
		return ""
	}
	_, words, _ := strings.Cut(r.String(), ": ")
	return shell.Command(append([]string{"ip", r.Family.Flag(), "rule", verb, "priority", fmt.Sprint(at)}, strings.Fields(words)...)...)
}

// deletion deletes the route, from main if no table is named.
func (b blame) deletion(table string) routing.Commands {
	words := append([]string{"ip", b.family.Flag(), "route", "del"}, strings.Fields(b.route)...)
	if table != "" {
		words = append(words, "table", table)
	}
	return routing.CommandsOf(shell.Command(words...))
}

// uncover says how the route that covers a gateway goes away. One that the kernel made goes
// with the address that it made it for.
func (b blame) uncover() string {
	switch {
	case b.decides.Protocol != routing.ProtocolKernel:
		return fmt.Sprintf("ip %s route del %s table %s", b.family.Flag(), b.route, b.table)
	case b.table == routing.TableLocal.String():
		return fmt.Sprintf("take the address %s away from this host, or give the router another one", b.gateway)
	default:
		return fmt.Sprintf("give %s an address in another network than %s", b.device, b.decides.Destination)
	}
}

// sourceOf is how ip(8) says whose packets a probe stands for.
func sourceOf(s Stray) string {
	var words []string
	if s.From.IsValid() {
		words = append(words, "from "+s.From.String())
	}
	if s.Probe.Device != "" {
		words = append(words, "oif "+s.Probe.Device)
	}
	return strings.Join(words, " ")
}

// parts is how many of all parts of the outside go astray for the link that is worst off.
func (b blame) parts(strays []Stray) (parts, all int) {
	type who struct {
		link string
		from netip.Addr
	}
	by := map[who]int{}
	for _, s := range strays {
		if s.Goal != Outside {
			continue
		}
		w := who{s.Link, s.From}
		by[w] += s.Parts
		parts, all = max(parts, by[w]), max(all, s.All)
	}
	return parts, all
}

// goals names where packets were for.
func goals(strays []Stray) string {
	var all []Goal
	for _, s := range strays {
		if !slices.Contains(all, s.Goal) {
			all = append(all, s.Goal)
		}
	}
	slices.SortFunc(all, cmp.Compare)
	words := make([]string, 0, len(all))
	for _, g := range all {
		words = append(words, g.String())
	}
	return strings.Join(words, " and ")
}

// mostListed bounds a list in a sentence.
const mostListed = 4

func listed(texts []string) string { return Enumerate(texts, mostListed) }

// Enumerate writes a list of at most so many words for people: "a, b and c", or "a, b and 3
// more".
func Enumerate(words []string, most int) string {
	if n := len(words) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), n)
	}
	if last := len(words) - 1; last > 0 {
		return strings.Join(words[:last], ", ") + " and " + words[last]
	}
	return strings.Join(words, ", ")
}
