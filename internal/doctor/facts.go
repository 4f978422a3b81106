package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/shell"
	"multihomed/internal/status"
	"multihomed/internal/status/outcome"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// facts are a status and a host, made ready to be asked.
type facts struct {
	Host
	status status.Status
	links  []link
	// simulator answers what the kernel would, nil before the first question.
	simulator *lookup.Host
}

// A link is one of the status, under its own name.
type link struct {
	name    string
	index   int
	uplink  map[routing.Family]bool
	profile string
	status.Link
	facts routing.Interface
}

func newFacts(s status.Status, h Host) *facts {
	f := &facts{Host: h, status: s}
	for _, l := range s.Links {
		own := link{name: escape.Original(l.Interface), index: l.Index, profile: escape.Original(l.Profile), Link: l, uplink: map[routing.Family]bool{}}
		for _, family := range routing.Families() {
			own.uplink[family] = l.RoleIn(family.String()) == routing.Uplink.String()
		}
		if i := slices.IndexFunc(h.Interfaces, func(i routing.Interface) bool { return i.Index == l.Index }); i >= 0 {
			own.facts = h.Interfaces[i]
		}
		f.links = append(f.links, own)
	}
	return f
}

// addresses are those of a link in a family.
func (l link) addresses(f routing.Family) []netip.Addr {
	var out []netip.Addr
	for _, n := range l.Networks {
		if n.Family != f.String() {
			continue
		}
		for _, a := range n.Addresses {
			out = append(out, a.Address)
		}
	}
	return out
}

// gateway is the first router of a link in a family.
func (l link) gateway(f routing.Family) (netip.Addr, bool) {
	for _, n := range l.Networks {
		for _, g := range n.Gateways {
			if n.Family == f.String() && g.Via != nil {
				return *g.Via, true
			}
		}
	}
	return netip.Addr{}, false
}

// uplinks are those of a family that have an address of it.
func (f *facts) uplinks(family routing.Family) []link {
	return slices.DeleteFunc(slices.Clone(f.links), func(l link) bool { return !l.uplink[family] || len(l.addresses(family)) == 0 })
}

// owner is the link that has an address.
func (f *facts) owner(a netip.Addr) (link, bool) {
	for _, l := range f.links {
		if slices.Contains(l.addresses(routing.FamilyOf(a)), a) {
			return l, true
		}
	}
	return link{}, false
}

// device is the name of an interface.
func (f *facts) device(index int) string {
	for _, i := range f.Interfaces {
		if i.Index == index {
			return i.Name
		}
	}
	return "if" + strconv.Itoa(index)
}

// setting is a parameter of an interface, and the line that shows it.
func (f *facts) setting(tree, device, key string) (value int, line string) {
	value = f.Parameters["net/"+tree+"/conf/"+device+"/"+key]
	return value, fmt.Sprintf("%s = %d", sysctlOf(tree, device, key), value)
}

// larger4 is a parameter of IPv4 of which the kernel takes the larger one of "all" and of the interface
// (IN_DEV_MAXCONF and IN_DEV_ORCONF in include/linux/inetdevice.h).
func (f *facts) larger4(device, key string) (value int, line string) {
	value, line = f.setting("ipv4", device, key)
	if all, common := f.setting("ipv4", "all", key); all > value {
		return all, common
	}
	return value, line
}

// sysctlOf is a parameter in the words of sysctl(8), where a dot in a name is a slash.
func sysctlOf(tree, device, key string) string {
	return "net." + tree + ".conf." + strings.ReplaceAll(device, ".", "/") + "." + key
}

// set is the command that sets parameters of an interface.
func set(tree, device string, pairs ...string) routing.Commands {
	words := []string{"sysctl", "-w"}
	for i := 0; i+1 < len(pairs); i += 2 {
		words = append(words, sysctlOf(tree, device, pairs[i])+"="+pairs[i+1])
	}
	return routing.CommandsOf(shell.Command(words...))
}

// ask simulates a lookup; known is false if a table is too long to be known.
func (f *facts) ask(flow lookup.Flow) (v lookup.Verdict, known bool) {
	if f.simulator == nil {
		h := &lookup.Host{Tables: f.Tables, Partial: f.Partial}
		for _, i := range f.Interfaces {
			one := lookup.Interface{Index: i.Index, Name: i.Name, Group: i.Group, Up: i.Up}
			if at := slices.IndexFunc(f.Names, func(n lookup.Interface) bool { return n.Index == i.Index }); at >= 0 {
				one.AltNames, one.Detached = f.Names[at].AltNames, f.Names[at].Detached
			}
			h.Interfaces = append(h.Interfaces, one)
		}
		for _, family := range routing.Families() {
			h.Rules = append(h.Rules, f.Rules[family]...)
		}
		h.Index()
		f.simulator = h
	}
	v = f.simulator.Lookup(flow)
	return v, !v.Lacking && !v.Uncertain
}

// leavesElsewhere says that packets from an address of a link leave by another interface, and by
// which rule.
func (f *facts) leavesElsewhere(l link, from netip.Addr, mark uint32) (by string, rule routing.Rule, elsewhere bool) {
	to := outcome.Parts(routing.FamilyOf(from))[0]
	plain, known := f.ask(lookup.Flow{From: from, To: to})
	if !known || plain.Outcome != lookup.Sent || !plain.Through(l.index) {
		return "", rule, false // It does so without the mark: the outcome checks say why.
	}
	v, known := f.ask(lookup.Flow{From: from, To: to, Mark: mark})
	if !known || v.Outcome == lookup.Local || v.Outcome == lookup.Sent && v.Through(l.index) {
		return "", rule, false
	}
	by = "no interface"
	if v.Outcome == lookup.Sent && len(v.Legs) > 0 {
		by = f.device(v.Legs[0].Device)
	}
	return by, v.Rule, true
}

// covers reports whether a rule of a firewall sees packets by an interface; exactly says that it
// names the interface.
func covers(all []Match, device string) (seen, exactly bool) {
	for _, m := range all {
		prefix, wild := strings.CutSuffix(m.Name, "*")
		is := m.Name == device || wild && strings.HasPrefix(device, prefix)
		if is == m.Not {
			return false, false
		}
		exactly = exactly || is
	}
	return true, exactly
}

// isSaid reports whether the status says the same of the same link.
func (f *facts) isSaid(found Finding) bool {
	same := map[routing.Code][]routing.Code{
		UpstreamDead:     {"uplink-dead", "all-uplinks-dead", "never-answered"},
		TablesNearlyFull: {routing.NoTable},
		Resolver:         {"dns-of-dead-links", "routed-dns"},
	}[found.Code]
	return slices.ContainsFunc(f.status.Problems, func(p status.Problem) bool {
		if p.Code == found.Code {
			return p.Link == escape.Name(found.Link)
		}
		return slices.Contains(same, p.Code) && (p.Link == "" || found.Link == "" || p.Link == escape.Name(found.Link))
	})
}

// leftAlone says by which setting of a profile a family is its owner's, and how to give it to
// multihomed. Text is of the problem.
func (l link) leftAlone(text string) (evidence []string, commands routing.Commands) {
	for _, family := range routing.Families() {
		why := l.LeftAlone[family.String()]
		if why == "" || !strings.Contains(text, why) {
			continue
		}
		evidence = append(evidence, why)
		if key := family.String() + ".route-table"; l.profile != "" && strings.Contains(why, key) {
			commands = routing.CommandsOf(shell.Command("nmcli", "connection", "modify", l.profile, key, "0"), shell.Command("nmcli", "device", "reapply", l.name))
		}
	}
	return evidence, commands
}

// others are rules that are not ours, as many as fit.
func (f *facts) others() []string {
	const most = 8
	var out []string
	for _, family := range routing.Families() {
		for _, r := range f.Rules[family] {
			if r.Protocol != routing.Multihomed && len(out) < most {
				out = append(out, escape.Text("ip "+family.Flag()+" rule: "+r.String()))
			}
		}
	}
	return out
}

// explain adds what was seen to a problem of the status.
func (f *facts) explain(p routing.Problem) Finding {
	out := Finding{Problem: p}
	switch p.Object {
	case "":
	case routing.IPv4.String(), routing.IPv6.String(): // What failover says is of a family.
		out.Evidence = append(out.Evidence, "probes in "+p.Object+": multihomectl status -v")
	default:
		out.Evidence = append(out.Evidence, p.Object)
	}
	for _, l := range f.links {
		if l.Interface != p.Link {
			continue
		}
		switch code := string(p.Code); code {
		case "rp-filter":
			_, line := f.larger4(l.name, "rp_filter")
			out.Evidence = append(out.Evidence, escape.Text(line))
		case "arp":
			_, ignore := f.larger4(l.name, "arp_ignore")
			_, announce := f.larger4(l.name, "arp_announce")
			out.Evidence = append(out.Evidence, escape.Text(ignore), escape.Text(announce))
		case string(routing.LeftAlone):
			out.Evidence, out.Commands = l.leftAlone(p.Text)
		}
	}
	if p.Code == "main-rule" {
		out.Evidence = append(out.Evidence, f.others()...)
	}
	if p.Code == outcome.RuleOfSource || p.Code == outcome.RuleAhead {
		for _, a := range f.Agents {
			out.Evidence = append(out.Evidence, a.Name+": "+a.File)
		}
	}
	return out
}
