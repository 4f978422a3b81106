package answers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/routing"
)

// Codes of problems.
const (
	// InvalidMask: the mask cannot hold a number.
	InvalidMask routing.Code = "mark-mask"
	// NotAnswered: an address has no number, or one that a rule of another program selects.
	NotAnswered routing.Code = "not-answered"
	// SharedAddress: two uplinks have the same address.
	SharedAddress routing.Code = "shared-address"
	// MarkInUse: a rule of another program selects packets by bits of the mask.
	MarkInUse routing.Code = "mark-in-use"
	// SourceChecked: the kernel drops requests that come in by a link, because of its reverse path filter.
	SourceChecked routing.Code = "source-checked"
	// FenceOpen: the fence lets more pass than what a rule of another program selects.
	FenceOpen routing.Code = "fence-open"
	// ForeignObject: somebody else put something into our table, or changed it.
	ForeignObject routing.Code = "foreign-nftables-object"
)

// Plan decides what the table must hold. It is empty if nothing is wanted. Order and repetition of
// facts have no effect.
func Plan(facts Facts) (Table, []routing.Problem) {
	p := plan{Facts: facts, uplinks: map[netip.Addr][]string{}, has: map[any]bool{}}
	p.Mask = cmp.Or(p.Mask, routing.DefaultMarkMask)
	p.Links = mergedLinks(facts.Links)
	for _, l := range p.Links {
		for _, s := range l.Sources {
			p.uplinks[s.Address] = append(p.uplinks[s.Address], l.Name)
		}
	}
	p.Foreign = slices.DeleteFunc(slices.Clone(facts.Foreign), func(r routing.Rule) bool { return r.Protocol == routing.Multihomed })
	slices.SortFunc(p.Foreign, func(a, b routing.Rule) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority), strings.Compare(a.String(), b.String()))
	})
	p.answers()
	p.fence()
	p.table.sort()
	slices.SortFunc(p.problems, func(a, b routing.Problem) int {
		return cmp.Or(strings.Compare(a.Link, b.Link), strings.Compare(string(a.Code), string(b.Code)), strings.Compare(a.Object, b.Object), strings.Compare(a.Text, b.Text))
	})
	return p.table, slices.Compact(p.problems)
}

// A plan is one that is being made.
type plan struct {
	Facts

	// uplinks are the names of those that have an address.
	uplinks map[netip.Addr][]string
	// has are the chains, sets and rules of the table.
	has      map[any]bool
	table    Table
	problems []routing.Problem
}

// mergedLinks has each link once, and of its sources those that packets can be routed by, each once.
func mergedLinks(links []Link) []Link {
	var out []Link
	links = slices.Clone(links)
	slices.SortStableFunc(links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	for _, l := range links {
		if n := len(out); n > 0 && out[n-1].Name == l.Name {
			out[n-1].Check = max(out[n-1].Check, l.Check)
			out[n-1].Sources = append(out[n-1].Sources, l.Sources...)
			continue
		}
		l.Sources = slices.Clone(l.Sources)
		out = append(out, l)
	}
	for i := range out {
		for j, s := range out[i].Sources {
			out[i].Sources[j].Address = s.Address.Unmap().WithZone("")
		}
		sources := slices.DeleteFunc(out[i].Sources, func(s Source) bool { return !s.Address.IsGlobalUnicast() })
		// The highest number comes first: 0 is none.
		slices.SortFunc(sources, func(a, b Source) int {
			return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(b.Number, a.Number))
		})
		out[i].Sources = slices.CompactFunc(sources, func(a, b Source) bool { return a.Address == b.Address })
	}
	return out
}

func (p *plan) problem(code routing.Code, severity routing.Severity, link, object, text, fix string) {
	p.problems = append(p.problems, routing.Problem{Code: code, Severity: severity, Link: link, Object: object, Text: text, Fix: fix})
}

func (p *plan) chain(name string) {
	if c, _ := ChainNamed(name); !p.has[c] {
		p.has[c] = true
		p.table.Chains = append(p.table.Chains, c)
	}
}

// set plans a set, and returns its name.
func (p *plan) set(role string, f routing.Family) string {
	s, _ := SetNamed(nameOf(role, f))
	if !p.has[s] {
		p.has[s] = true
		p.table.Sets = append(p.table.Sets, s)
	}
	return s.Name
}

func (p *plan) element(e Element) { p.table.Elements = append(p.table.Elements, e) }

// rule adds one behind the others of its chain, unless the chain has it.
func (p *plan) rule(r Rule) {
	if !p.has[r] {
		p.has[r] = true
		p.table.Rules = append(p.table.Rules, r)
	}
}

func (p *plan) answers() {
	if !p.Answers.In(routing.IPv4) && !p.Answers.In(routing.IPv6) {
		return
	}
	if !p.Mask.Valid() {
		p.problem(InvalidMask, routing.Error, "", fmt.Sprintf("0x%08x", uint32(p.Mask)), "the bits of the mark mask are not adjacent, or fewer than two: forwarded packets are not answered by link", "set mark_mask to adjacent bits, such as 0xff000000")
		return
	}
	byMark := slices.ContainsFunc(p.Links, func(l Link) bool { return l.Check == CheckByMark }) && p.Answers.In(routing.IPv4)
	p.chain(chainAnswers)
	p.rule(Rule{Chain: chainAnswers, IIF: routing.Loopback, Action: ActionAccept, Decision: SkipLoopback})
	if byMark {
		p.chain(chainCheck)
	}
	for _, f := range routing.Families() {
		if p.Answers.In(f) {
			p.skipForeignMarks(f, byMark && f == routing.IPv4)
			p.answer(f)
		}
	}
	look := func(d Direction, k Key, decision Decision) {
		for _, f := range routing.Families() {
			if p.Answers.In(f) {
				p.rule(Rule{
					Chain: chainAnswers, Family: f, Direction: d, Action: ActionMap, Map: Lookup{k, p.set(setAnswers, f)}, Decision: decision,
				})
			}
		}
	}
	if byMark {
		p.rule(Rule{
			Chain: chainCheck, Family: routing.IPv4, In: Lookup{KeyDestinationIIF, p.set(setCheck, routing.IPv4)},
			Action: ActionMap, Map: Lookup{KeyDestination, p.set(setAnswers, routing.IPv4)}, Decision: PassCheck,
		})
		p.rule(Rule{Chain: chainAnswers, IIFGroup: routing.Some(p.Group), Action: ActionAccept, Decision: SkipUplink})
	}
	look(Reply, KeyOriginalDestination, Answer)
	look(Original, KeyReplyDestination, KeepLink)
}

// skipForeignMarks leaves packets alone that rules of others select by bits of our mask.
func (p *plan) skipForeignMarks(f routing.Family, check bool) {
	for _, r := range p.Foreign {
		if r.Family != f || !r.SelectsByMark(p.Mask) {
			continue
		}
		mark := routing.Mark{Value: r.Mark.Value & r.Mark.Mask, Mask: r.Mark.Mask}
		p.rule(Rule{Chain: chainAnswers, Family: f, Mark: mark, Action: ActionAccept, Decision: SkipForeignMark})
		if check {
			p.rule(Rule{Chain: chainCheck, Family: f, Mark: mark, Action: ActionAccept, Decision: SkipForeignMark})
		}
		if isOwnTunnel := r.Invert && r.Mark.Mask == ^uint32(0); isOwnTunnel {
			continue // A tunnel leaves out its own packets by one exact mark (wg-quick(8)), and nobody forwards those.
		}
		p.problem(MarkInUse, routing.Notice, "", ruleText(r),
			fmt.Sprintf("a rule of another program selects %s packets by bits of the mark that multihomed uses: forwarded packets with mark 0x%x/0x%x are answered as the rule and main say", f.Name(), mark.Value, mark.Mask),
			fmt.Sprintf("give the rule a mask without these bits (fwmark 0x%x/0x%x), or set mark_mask to bits that no rule uses", mark.Value&^uint32(p.Mask), mark.Mask&^uint32(p.Mask)))
	}
}

// ruleText is a rule as `ip rule` takes it, with its family.
func ruleText(r routing.Rule) string { return "ip " + r.Family.Flag() + " rule " + r.String() }

// answer plans the map of a family.
func (p *plan) answer(f routing.Family) {
	set := p.set(setAnswers, f)
	for _, l := range p.Links {
		answered := false
		for _, s := range l.Sources {
			if routing.FamilyOf(s.Address) != f || !p.answerable(l, s, f) {
				continue
			}
			answered = true
			p.chain(LinkChain(s.Number))
			p.rule(Rule{Chain: LinkChain(s.Number), Action: ActionMark, Set: p.Mask.Mark(s.Number), Decision: SetMark})
			p.element(Element{Set: set, Address: s.Address, Number: s.Number})
			if f == routing.IPv4 && l.Check == CheckByMark {
				p.element(Element{Set: p.set(setCheck, f), Address: s.Address, Interface: l.Name})
			}
		}
		if answered && f == routing.IPv4 && l.Check == CheckStrict {
			p.problem(SourceChecked, routing.Warning, l.Name, "net.ipv4.conf."+l.Name+".rp_filter=1",
				"the kernel drops requests for containers and LANs that come in by the link while main prefers another one (strict reverse path filter)",
				"sysctl -w "+argument("net/ipv4/conf/"+l.Name+"/src_valid_mark=1")+", or rp_filter=2")
		}
	}
}

// answerable reports whether an address says which link was asked, and has a number that does not lead
// elsewhere.
func (p *plan) answerable(l Link, s Source, f routing.Family) bool {
	if names := p.uplinks[s.Address]; len(names) > 1 {
		p.problem(SharedAddress, routing.Warning, "", s.Address.String(),
			fmt.Sprintf("%s is an address of %s: answers of containers and LANs that were asked there leave as main says", s.Address, strings.Join(names, " and ")),
			"give each link an address of its own")
		return false
	}
	if s.Number == 0 || s.Number > p.Mask.Last() {
		p.problem(NotAnswered, routing.Warning, l.Name, s.Address.String(),
			fmt.Sprintf("no number is left for the routing table of %s (the mark holds %d): answers of containers and LANs that were asked there leave as main says", s.Address, p.Mask.Last()), "")
		return false
	}
	if at := slices.IndexFunc(p.Foreign, func(r routing.Rule) bool { return r.Family == f && r.MeansNumber(p.Mask, s.Number) }); at >= 0 {
		p.problem(NotAnswered, routing.Warning, l.Name, ruleText(p.Foreign[at]),
			fmt.Sprintf("a rule of another program selects the mark 0x%x: answers of containers and LANs that were asked at %s leave as main says", p.Mask.Mark(s.Number).Value, s.Address),
			"set mark_mask to bits that no rule uses")
		return false
	}
	return true
}

// argument is a word of a command, quoted if a shell would read something else.
func argument(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_./:=-@+,", c)
	}
	if strings.ContainsFunc(s, func(c rune) bool { return !plain(c) }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

func (p *plan) fence() {
	bound := p.boundLines()
	fenced := slices.DeleteFunc(slices.Collect(slices.Values(familySlice())), func(f routing.Family) bool { return !p.Fence.In(f) })
	if len(bound) == 0 && len(fenced) == 0 {
		return
	}
	p.chain(chainFence)
	p.rule(Rule{Chain: chainFence, NotOIFGroup: routing.Some(p.Group), Action: ActionAccept, Decision: NoUplink})
	for _, r := range bound {
		p.rule(r)
	}
	for _, f := range fenced {
		own, pair := p.set(setOwn, f), p.set(setPair, f)
		for _, l := range p.Links {
			for _, s := range l.Sources {
				if routing.FamilyOf(s.Address) == f {
					p.element(Element{Set: pair, Address: s.Address, Interface: l.Name})
					if p.uplinks[s.Address][0] == l.Name {
						p.element(Element{Set: own, Address: s.Address})
					}
				}
			}
		}
		for _, name := range p.Open.In(f) {
			for address := range p.uplinks {
				if e := (Element{Set: pair, Address: address, Interface: name}); routing.FamilyOf(address) == f && !slices.Contains(p.uplinks[address], name) {
					p.element(e)
				}
			}
		}
		p.rule(Rule{Chain: chainFence, Family: f, In: Lookup{KeySourceOIF, pair}, Action: ActionAccept, Decision: OwnLink})
	}
	for _, f := range fenced {
		p.rule(Rule{Chain: chainFence, Family: f, In: Lookup{KeySource, nameOf(setOwn, f)}, Action: ActionGoto, Goto: chainStrays, Decision: Stray})
		p.chain(chainStrays)
		for _, r := range p.exceptions(f) {
			p.rule(r)
		}
		for _, d := range linkScope[f] {
			p.rule(Rule{Chain: chainStrays, Family: f, Destination: netip.MustParsePrefix(d), Action: ActionAccept, Decision: LinkScope})
		}
		p.rule(Rule{Chain: chainStrays, Family: f, Action: ActionDrop, Decision: DropStray})
	}
}

// linkScope are the destinations that no router has behind it, or that nobody answers from there.
var linkScope = map[routing.Family][]string{ //nolint:gochecknoglobals // a constant in all but name
	routing.IPv4: {"169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"},
	routing.IPv6: {"fe80::/10", "ff00::/8"},
}

func familySlice() []routing.Family {
	f := routing.Families()
	return f[:]
}

// maxExceptions bounds how many rules a stray packet is compared with.
const maxExceptions = 256

// exceptions are what strays may do because of rules of others.
func (p *plan) exceptions(f routing.Family) []Rule {
	var out []Rule
	for _, r := range p.Foreign {
		// The kernel's rule of VRFs leads to ports of VRFs, which are no links. Behind main a rule
		// selects nothing that has a source of ours.
		if r.Family != f || !r.Selects() || r.L3MDev || r.Priority >= routing.PriorityMain ||
			r.Action != routing.ActionLookup && r.Action != routing.ActionGoto {
			continue
		}
		lines, unsaid := p.exception(r)
		if len(lines) == 0 || len(out)+len(lines) > maxExceptions {
			why := "multihomed cannot tell which packets a rule of another program selects (" + unsaid + ")"
			if len(lines) > 0 {
				why = "rules of other programs select in more than " + strconv.Itoa(maxExceptions) + " ways"
			}
			p.problem(FenceOpen, routing.Warning, "", ruleText(r), why+": the "+f.Name()+" fence drops nothing but what is bound", "")
			return []Rule{{Chain: chainStrays, Family: f, Action: ActionAccept, Decision: ForeignRule}}
		}
		if unsaid != "" {
			p.problem(FenceOpen, routing.Notice, "", ruleText(r), "the "+f.Name()+" fence lets more pass than what a rule of another program selects, because it does not compare "+unsaid, "")
		}
		out = append(out, lines...)
	}
	return out
}

// exception says what a rule of another program selects, as far as the table can, and what it cannot. It
// returns no lines if it can say nothing.
func (p *plan) exception(r routing.Rule) (lines []Rule, unsaid string) {
	base := Rule{Chain: chainStrays, Family: r.Family, OIF: r.OIF, Protocol: r.IPProto, Action: ActionAccept, Decision: ForeignRule}
	if r.IIF != routing.Loopback {
		base.IIF = r.IIF
	}
	// A mark of 0 is not compared: somebody may have set it since.
	if value := r.Mark.Value & r.Mark.Mask; value != 0 {
		base.Mark = routing.Mark{Value: value, Mask: r.Mark.Mask}
	}
	if r.To.Bits() > 0 {
		base.Destination = r.To.Masked()
	}
	users := []routing.Mark{{}}
	if r.UIDs.Set {
		users = blocks(r.UIDs.First, r.UIDs.Last)
	}
	for _, u := range users {
		line := base
		line.UID = u
		lines = append(lines, line)
	}
	if r.From.Bits() > 0 {
		lines = p.from(lines, r.From.Masked())
	}
	var parts []string
	for _, part := range []struct {
		is   bool
		name string
	}{
		{r.TOS != 0 || r.DSCP.Set, "the type of service"},
		{r.FlowLabel.Set, "the flow label"},
		{r.SourcePorts != routing.PortRange{} || r.DestinationPorts != routing.PortRange{}, "ports"},
		{r.TunnelID != 0, "the tunnel"},
		{r.Unknown, "what only a newer kernel knows"},
	} {
		if part.is {
			parts = append(parts, part.name)
		}
	}
	unsaid = strings.Join(parts, " and ")
	if slices.Contains(lines, Rule{Chain: chainStrays, Family: r.Family, Action: ActionAccept, Decision: ForeignRule}) {
		return nil, unsaid
	}
	return lines, unsaid
}

// from narrows lines to a source. A rule of routing compares the source before source NAT, which is
// what conntrack has: of the connection for the direction of its first packet, of the answer for the
// other. A packet without a connection has one source only.
func (p *plan) from(lines []Rule, source netip.Prefix) []Rule {
	own := slices.ContainsFunc(p.Links, func(l Link) bool {
		return slices.ContainsFunc(l.Sources, func(s Source) bool { return source.Contains(s.Address) })
	})
	var out []Rule
	for _, line := range lines {
		original, reply := line, line
		original.Direction, original.OriginalSource = Original, source
		reply.Direction, reply.ReplySource = Reply, source
		out = append(out, original, reply)
		if own {
			line.Source = source
			out = append(out, line)
		}
	}
	return out
}

// blocks covers a range with values and masks: 1000-1003 is 1000 in all but two bits.
func blocks(first, last uint32) []routing.Mark {
	var out []routing.Mark
	for at := uint64(first); at <= uint64(last); {
		size := uint64(1)
		for at%(size*2) == 0 && at+size*2-1 <= uint64(last) && size < 1<<32 {
			size *= 2
		}
		out = append(out, routing.Mark{Value: uint32(at), Mask: uint32(1<<32 - size)}) //nolint:gosec // 32 bits
		at += size
	}
	return out
}
