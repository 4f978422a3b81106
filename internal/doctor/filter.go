package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/shell"
	"multihomed/internal/status/outcome"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// sees reports whether a rule sees packets of a family.
func (r FilterRule) sees(f routing.Family) bool {
	return r.IPv4 && f == routing.IPv4 || r.IPv6 && f == routing.IPv6
}

// checkSNAT finds that packets leave a link with the address of another one: no provider takes
// them, and no answer comes back by the link.
func checkSNAT(f *facts) []Finding {
	var out []Finding
	for _, family := range routing.Families() {
		for _, l := range f.uplinks(family) {
			for _, r := range f.Filter {
				if r.Hook != "postrouting" || !r.sees(family) || r.Deed != SNAT && r.Deed != Masquerade {
					continue
				}
				seen, exactly := covers(r.Out, l.name)
				// What selects by something that is not known may select by the link.
				if !seen || r.Narrow && !exactly {
					continue
				}
				owner, owned := f.owner(r.To)
				if r.Deed == SNAT && owned && owner.index != l.index && routing.FamilyOf(r.To) == family && !r.Narrow && !f.ledBy(r.Source, l) {
					commands := r.masqueradeOn(family, l.name)
					fix := fmt.Sprintf("have what leaves by %s masqueraded before that rule", l.name)
					if commands == "" {
						fix = "let that rule select packets that leave by " + owner.name
					}
					out = append(out, Finding{Problem: routing.Problem{
						Severity: routing.Error, Link: l.name, Object: r.String(),
						Text: fmt.Sprintf("the nftables rule %s gives packets that leave by %s the address %s of %s: no answer to them comes back", r, l.name, r.To, owner.name),
						Fix:  fix, Commands: commands,
					}, Evidence: []string{r.words()}})
				}
				// What stands before decides. Of a rule for this link alone it is assumed that it
				// selects the right packets.
				if exactly || !r.Source.IsValid() && !r.Except {
					break
				}
			}
		}
	}
	return out
}

// ledBy reports whether a rule of somebody else leads forwarded packets with a source away from a
// link: what a firewall does to them is made for the other one.
func (f *facts) ledBy(source netip.Prefix, l link) bool {
	if !source.IsValid() {
		return false
	}
	for _, i := range f.Interfaces {
		if i.Index == l.index || !slices.ContainsFunc(i.Addresses, func(a routing.Address) bool { return a.Prefix.Masked().Overlaps(source) }) {
			continue
		}
		flow := lookup.Flow{From: source.Addr(), To: outcome.Parts(routing.FamilyOf(source.Addr()))[0], IIF: i.Name}
		if v, known := f.ask(flow); known && v.Outcome != lookup.Local && !v.Through(l.index) && v.Rule.Protocol != routing.Multihomed && !v.Rule.Kernels() {
			return true
		}
	}
	return false
}

// checkMasquerade finds an uplink on which packets keep their private sources, while they are
// masqueraded on another one.
func checkMasquerade(f *facts) []Finding {
	const family = routing.IPv4
	if f.Parameters["net/ipv4/ip_forward"] == 0 {
		return nil
	}
	uplinks := f.uplinks(family)
	translates := func(r FilterRule) bool {
		return r.Hook == "postrouting" && r.sees(family) && (r.Deed == Masquerade || r.Deed == SNAT)
	}
	var out []Finding
	for _, l := range uplinks {
		translated := slices.ContainsFunc(f.Filter, func(r FilterRule) bool {
			seen, _ := covers(r.Out, l.name)
			return translates(r) && seen
		})
		if translated {
			continue
		}
		for _, other := range uplinks {
			i := slices.IndexFunc(f.Filter, func(r FilterRule) bool {
				seen, exactly := covers(r.Out, other.name)
				return translates(r) && seen && exactly && !r.Narrow
			})
			if i < 0 {
				continue
			}
			r := f.Filter[i]
			out = append(out, Finding{Problem: routing.Problem{
				Severity: routing.Warning, Link: l.name, Object: r.String(),
				Text: fmt.Sprintf("the nftables rule %s translates the sources of packets that leave by %s, and no rule does so for %s: forwarded packets that leave by it, such as after a failover, get no answer", r, other.name, l.name),
				Fix:  fmt.Sprintf("have what leaves by %s masqueraded, too", l.name), Commands: r.masqueradeOn(family, l.name),
			}, Evidence: []string{r.words()}})
			break
		}
	}
	return out
}

// masqueradeOn are the commands that masquerade what leaves by an interface, before everything else
// in the chain of the rule; none if the rule selects by something that is not known.
func (r FilterRule) masqueradeOn(f routing.Family, device string) routing.Commands {
	if r.Narrow || r.Except || strings.ContainsAny(device, `"\*`) {
		return ""
	}
	if r.XT {
		words := []string{"iptables", "-t", "nat", "-I", r.Base, "-o", device}
		if f == routing.IPv6 {
			words[0] = "ip6tables"
		}
		if r.Source.IsValid() {
			words = append(words, "-s", r.Source.String())
		}
		return routing.CommandsOf(shell.Command(append(words, "-j", "MASQUERADE")...))
	}
	words := append([]string{"nft", "insert", "rule"}, strings.Fields(r.Table)...)
	words = append(words, r.Base)
	if strings.HasPrefix(r.Table, "inet ") && !r.Source.IsValid() && (r.IPv4 != r.IPv6 || r.Deed == SNAT) {
		words = append(words, "meta", "nfproto", f.String()) // The other family keeps its sources.
	}
	words = append(words, "oifname", `"`+device+`"`)
	if r.Source.IsValid() {
		words = append(words, "ip", "saddr", r.Source.String())
		if f == routing.IPv6 {
			words[len(words)-3] = "ip6"
		}
	}
	return routing.CommandsOf(shell.Command(append(words, "masquerade")...))
}

// words are what is known of a rule, in the words of nft(8).
func (r FilterRule) words() string {
	b := []string{r.String() + ":"}
	for _, m := range r.In {
		b = append(b, "iifname", m.words())
	}
	for _, m := range r.Out {
		b = append(b, "oifname", m.words())
	}
	if r.Source.IsValid() {
		b = append(b, "saddr", r.Source.String())
	}
	if r.Narrow || r.Except {
		b = append(b, "…")
	}
	switch r.Deed {
	case Mark:
		b = append(b, fmt.Sprintf("meta mark set 0x%x/0x%x", r.Value, r.Mask))
	case RestoreMark:
		b = append(b, "meta mark set ct mark")
	case SNAT:
		b = append(b, "snat to "+r.To.String())
	case Masquerade:
		b = append(b, "masquerade")
	case DNAT:
		b = append(b, "dnat to "+r.To.String())
	case DropStray:
		b = append(b, "fib saddr . iif oif missing drop")
	}
	return strings.Join(b, " ")
}

func (m Match) words() string {
	if m.Not {
		return "!= " + m.Name
	}
	return m.Name
}

// marksAll reports whether a rule marks all packets of this host, or all that come in.
func (r FilterRule) marksAll(hook string) bool {
	return r.Deed == Mark && r.Hook == hook && !r.Narrow && !r.Except && !r.Source.IsValid()
}

// deletion deletes a rule of a firewall.
func (r FilterRule) deletion() routing.Commands {
	words := append([]string{"nft", "delete", "rule"}, strings.Fields(r.Table)...)
	return routing.CommandsOf(shell.Command(append(words, r.Chain, "handle", number(r.Handle))...))
}

// checkMarks finds that a firewall marks all packets of this host, and that a rule leads the mark
// away from the links. Marks for some packets are somebody's choice.
func checkMarks(f *facts) []Finding {
	var out []Finding
	for _, r := range f.Filter {
		if !r.marksAll("output") {
			continue
		}
		for _, family := range routing.Families() {
			if !r.sees(family) {
				continue
			}
			for _, l := range f.links {
				if seen, _ := covers(r.Out, l.name); !seen {
					continue
				}
				by, rule, elsewhere := f.firstElsewhere(l, family, r.Value)
				if !elsewhere {
					continue
				}
				out = append(out, Finding{Problem: routing.Problem{
					Severity: routing.Error, Link: l.name, Object: r.String(),
					Text: fmt.Sprintf("the nftables rule %s marks all packets of this host with 0x%x, and the %s rule %q leads those of %s to %s", r, r.Value, family, rule, l.name, by),
					Fix:  "mark only the packets that the rule is for, or delete the nftables rule", Commands: r.deletion(),
				}, Evidence: []string{r.words(), rule.String()}})
				break // One finding for each mark and family.
			}
		}
	}
	return out
}

// firstElsewhere finds an address of a link from which marked packets leave elsewhere.
func (f *facts) firstElsewhere(l link, family routing.Family, mark uint32) (by string, rule routing.Rule, elsewhere bool) {
	for _, a := range l.addresses(family) {
		if by, rule, elsewhere = f.leavesElsewhere(l, a, mark); elsewhere {
			return by, rule, true
		}
	}
	return "", routing.Rule{}, false
}

// strict is rp_filter=1 (RFC 3704, section 2.2).
const strict = 1

// checkStrictMarks finds that the reverse path filter drops what comes in by a link, because it
// looks up the mark that a firewall gave to the packet (src_valid_mark in
// Documentation/networking/ip-sysctl.rst; __fib_validate_source in net/ipv4/fib_frontend.c).
func checkStrictMarks(f *facts) []Finding {
	var out []Finding
	for _, l := range f.links {
		filter, filterLine := f.larger4(l.name, "rp_filter")
		marks, marksLine := f.larger4(l.name, "src_valid_mark")
		if filter != strict || marks == 0 {
			continue
		}
		for _, r := range f.Filter {
			if seen, _ := covers(r.In, l.name); !seen || !r.marksAll("prerouting") || !r.IPv4 {
				continue
			}
			by, rule, elsewhere := f.firstElsewhere(l, routing.IPv4, r.Value)
			if !elsewhere {
				continue
			}
			out = append(out, Finding{Problem: routing.Problem{
				Severity: routing.Error, Link: l.name, Object: r.String(),
				Text: fmt.Sprintf("all packets that come in by %s are dropped: the nftables rule %s marks them with 0x%x, the rule %q knows their way back by %s, and the reverse path filter is strict", l.name, r, r.Value, rule, by),
				Fix:  "make the filter loose", Commands: set("ipv4", l.name, "rp_filter", "2"),
			}, Evidence: []string{filterLine, marksLine, r.words(), rule.String()}})
			break
		}
	}
	return out
}

// checkRPFilter6 notes that a firewall checks the sources of IPv6 packets strictly (firewalld's
// IPv6_rpfilter), where a link lacks rules by which it would let them pass.
func checkRPFilter6(f *facts) []Finding {
	i := slices.IndexFunc(f.Filter, func(r FilterRule) bool { return r.Deed == DropStray && r.IPv6 })
	if i < 0 {
		return nil
	}
	links := 0
	var bare []string
	for _, l := range f.links {
		// The addresses of what is left alone are no part of the status.
		_, alone := l.LeftAlone[routing.IPv6.String()]
		addresses := l.global6()
		if !alone && !l.uplink[routing.IPv6] || len(addresses) == 0 {
			continue
		}
		links++
		if alone || !slices.ContainsFunc(f.Rules[routing.IPv6], func(r routing.Rule) bool {
			return r.Protocol == routing.Multihomed && r.From.IsValid() && slices.ContainsFunc(addresses, r.From.Contains)
		}) {
			bare = append(bare, l.name)
		}
	}
	if links < 2 {
		return nil
	}
	if len(bare) == 0 {
		return nil
	}
	r := f.Filter[i]
	return []Finding{{Problem: routing.Problem{
		Severity: routing.Notice, Object: r.String(),
		Text: fmt.Sprintf("the nftables rule %s drops IPv6 packets whose way back is another interface, and %s has no rules by source: what comes in by a link that is not the default is dropped", r, strings.Join(bare, " and ")),
		Fix:  "let multihomed route the links, or set IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf",
	}, Evidence: []string{r.words()}}}
}

// global6 are the IPv6 addresses of a link that other networks may know.
func (l link) global6() []netip.Addr {
	var out []netip.Addr
	for _, a := range l.facts.Addresses {
		if own := a.Prefix.Addr(); own.Is6() && own.IsGlobalUnicast() {
			out = append(out, own)
		}
	}
	return out
}

// checkPublished finds ports that are published on several uplinks while nobody sees to it that
// answers leave by the uplink on which they were asked for.
func checkPublished(f *facts) []Finding {
	const family = routing.IPv4
	if len(f.uplinks(family)) < 2 || f.answered(family) {
		return nil
	}
	restores := func(r FilterRule) bool { return r.Deed == RestoreMark && r.sees(family) }
	if slices.ContainsFunc(f.Filter, restores) {
		return nil // The administrator sees to it.
	}
	for _, r := range f.Filter {
		byUplink := slices.ContainsFunc(f.uplinks(family), func(l link) bool { seen, _ := covers(r.In, l.name); return seen })
		if r.Deed != DNAT || r.Hook != "prerouting" || !r.sees(family) || f.isOwn(r.To) || !byUplink {
			continue
		}
		fix := `set forwarded = "auto" in [answers] of /etc/multihomed/multihomed.toml, then: systemctl reload multihomed`
		if !f.status.Daemon.Running {
			fix = "start multihomed: systemctl enable --now multihomed"
		}
		return []Finding{{Problem: routing.Problem{
			Severity: routing.Warning, Object: r.String(),
			Text: fmt.Sprintf("the nftables rule %s publishes a port of %s, and its answers leave by the default route of main, whichever uplink was asked", r, target(r.To)),
			Fix:  fix,
		}, Evidence: []string{r.words(), f.whyNotAnswered(family)}}}
	}
	return nil
}

func target(a netip.Addr) string {
	if !a.IsValid() {
		return "another host"
	}
	return a.String()
}

// isOwn reports whether an address is one of this host.
func (f *facts) isOwn(a netip.Addr) bool {
	return slices.ContainsFunc(f.Interfaces, func(i routing.Interface) bool {
		return slices.ContainsFunc(i.Addresses, func(own routing.Address) bool { return own.Prefix.Addr() == a })
	})
}

// kubernetes is the reason why multihomed leaves answers to a network plug-in
// ([multihomed/internal/answering.Kubernetes]).
const kubernetes = "kubernetes"

// answered reports whether multihomed answers forwarded packets by the link on which they were asked.
func (f *facts) answered(family routing.Family) bool {
	if f.status.Answers == nil {
		return f.status.Daemon.Running // A daemon that does not say has just started.
	}
	for _, a := range f.status.Answers.Families {
		if a.Family == family.String() {
			return a.Answers || a.Reason == kubernetes
		}
	}
	return false
}

func (f *facts) whyNotAnswered(family routing.Family) string {
	if f.status.Answers == nil {
		return "multihomed is not running"
	}
	for _, a := range f.status.Answers.Families {
		if a.Family == family.String() {
			return "answers of " + a.Family + ": no, " + a.Why
		}
	}
	return "answers: unknown"
}
