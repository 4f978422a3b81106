package answers_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/routing/answers"
)

// A packet is what the table sees of one.
type packet struct {
	// in and out are interfaces; what the host sends has no in.
	in, out string
	// uplinks are the interfaces in the group.
	uplinks []string
	mark    uint32
	// user is the owner of the socket, -1 for none.
	user      int64
	protocol  uint8
	direction answers.Direction
	// original and reply are the connection's addresses, source and destination, in each direction; they
	// are invalid for a packet without connection.
	original, reply [2]netip.Addr
	// source and destination are those of the packet at the hook.
	source, destination netip.Addr
}

const group = 28008

func (p *packet) grouped(name string) uint32 {
	if slices.Contains(p.uplinks, name) {
		return group
	}
	return 0
}

// pass takes a packet through the chains of a hook. It reports what the table did to its mark, and
// whether it goes on.
func pass(t answers.Table, hook answers.Hook, p packet) (mark uint32, accepted bool) {
	var base []answers.Chain
	for _, c := range t.Chains {
		if c.Hook == hook {
			base = append(base, c)
		}
	}
	slices.SortFunc(base, func(a, b answers.Chain) int { return int(a.Priority) - int(b.Priority) })
	for _, c := range base {
		if !through(t, c.Name, &p) {
			return p.mark, false
		}
	}
	return p.mark, true
}

func through(t answers.Table, chain string, p *packet) bool {
	for _, r := range t.Rules {
		if r.Chain != chain || !selects(t, r, p) {
			continue
		}
		switch r.Action {
		case answers.ActionAccept:
			return true
		case answers.ActionDrop:
			return false
		case answers.ActionGoto:
			return through(t, r.Goto, p)
		case answers.ActionMap:
			if at := find(t, r.Map, p); at >= 0 {
				return through(t, answers.LinkChain(t.Elements[at].Number), p)
			}
		case answers.ActionMark:
			p.mark = p.mark&^r.Set.Mask | r.Set.Value
		}
	}
	return true
}

func selects(t answers.Table, r answers.Rule, p *packet) bool {
	family := routing.FamilyOf(p.source)
	within := func(want netip.Prefix, have netip.Addr) bool {
		return !want.IsValid() || have.IsValid() && want.Contains(have)
	}
	return (r.Family == 0 || r.Family == family) &&
		(r.IIF == "" || r.IIF == p.in) && (r.OIF == "" || r.OIF == p.out) && (r.NotOIF == "" || r.NotOIF != p.out) &&
		(!r.IIFGroup.Set || r.IIFGroup.Value == p.grouped(p.in)) && (!r.NotOIFGroup.Set || r.NotOIFGroup.Value != p.grouped(p.out)) &&
		(r.UID.Mask == 0 || p.user >= 0 && uint32(p.user)&r.UID.Mask == r.UID.Value) && p.mark&r.Mark.Mask == r.Mark.Value &&
		(r.Protocol == 0 || r.Protocol == p.protocol) && (r.Direction == answers.AnyDirection || r.Direction == p.direction) &&
		within(r.OriginalSource, p.original[0]) && within(r.ReplySource, p.reply[0]) && within(r.Source, p.source) && within(r.Destination, p.destination) &&
		(r.In.Key == answers.NoKey || find(t, r.In, p) >= 0)
}

// find returns the element of a set for a packet, -1 if there is none.
func find(t answers.Table, l answers.Lookup, p *packet) int {
	key := answers.Element{Set: l.Set}
	switch l.Key {
	case answers.KeySource:
		key.Address = p.source
	case answers.KeySourceOIF:
		key.Address, key.Interface = p.source, p.out
	case answers.KeyDestination:
		key.Address = p.destination
	case answers.KeyDestinationIIF:
		key.Address, key.Interface = p.destination, p.in
	case answers.KeyOriginalDestination:
		key.Address = p.original[1]
	case answers.KeyReplyDestination:
		key.Address = p.reply[1]
	default:
		return -1
	}
	return slices.IndexFunc(t.Elements, func(e answers.Element) bool { return e.Key() == key })
}

func both(yes bool) (b routing.ByFamily[bool]) {
	b.Set(routing.IPv4, yes)
	b.Set(routing.IPv6, yes)
	return b
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func sources(number uint8, list ...string) (out []answers.Source) {
	for _, s := range list {
		out = append(out, answers.Source{Address: addr(s), Number: number})
	}
	return out
}

// twoUplinks is wan0 with number 1 and wan1 with number 2, and both wanted in both families.
func twoUplinks(change ...func(*answers.Facts)) answers.Facts {
	f := answers.Facts{
		Group: group, Answers: both(true), Fence: both(true),
		Links: []answers.Link{
			{Name: "wan0", Sources: sources(1, "192.0.2.10", "2001:db8:a::10", "fe80::10")},
			{Name: "wan1", Sources: sources(2, "198.51.100.10", "2001:db8:b::10", "fe80::11")},
		},
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

// foreign adds a rule of somebody else, before main.
func foreign(r routing.Rule) func(*answers.Facts) {
	return func(f *answers.Facts) {
		for _, family := range routing.Families() {
			r.Family, r.Priority, r.Action, r.Table, r.Protocol = family, 100, routing.ActionLookup, 77, routing.ProtocolStatic
			if !r.From.IsValid() || routing.FamilyOf(r.From.Addr()) == family {
				f.Foreign = append(f.Foreign, r)
			}
		}
	}
}

func bind(b answers.Binding) func(*answers.Facts) {
	return func(f *answers.Facts) { f.Bindings = append(f.Bindings, b) }
}

func checked(link int, check answers.SourceCheck) func(*answers.Facts) {
	return func(f *answers.Facts) { f.Links[link].Check = check }
}

// flow is a packet of a connection, whose addresses are "from > to" for the first packet and for an answer.
func flow(in, out string, direction answers.Direction, original, reply string, change ...func(*packet)) packet {
	ends := func(s string) (e [2]netip.Addr) {
		from, to, _ := strings.Cut(s, " > ")
		return [2]netip.Addr{addr(from), addr(to)}
	}
	p := packet{in: in, out: out, uplinks: []string{"wan0", "wan1"}, user: -1, protocol: 6, direction: direction, original: ends(original), reply: ends(reply)}
	p.source, p.destination = p.original[0], p.original[1]
	if direction == answers.Reply {
		p.source, p.destination = p.reply[0], p.reply[1]
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func marked(mark uint32) func(*packet) { return func(p *packet) { p.mark = mark } }

// leaving has the addresses that the packet has behind NAT.
func leaving(source, destination string) func(*packet) {
	return func(p *packet) { p.source, p.destination = addr(source), addr(destination) }
}

func ofUser(user int64) func(*packet) { return func(p *packet) { p.user = user } }

const (
	published = "203.0.113.1 > 198.51.100.10" // somebody asked wan1's address,
	contained = "172.17.0.2 > 203.0.113.1"    // and a container answers
	outbound  = "10.0.0.5 > 203.0.113.1"      // a client of the LAN, translated to wan1's address
	back      = "203.0.113.1 > 198.51.100.10"
)

// TestMarks: what the mark of a packet is behind prerouting.
func TestMarks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		facts  answers.Facts
		packet packet
		want   uint32
	}{
		{"an answer of a published port leaves by the link that was asked", twoUplinks(), flow("docker0", "", answers.Reply, published, contained), 0x02000000},
		{"... IPv6 as well", twoUplinks(), flow("docker0", "", answers.Reply, "2001:db8:f::1 > 2001:db8:a::10", "fd00:17::2 > 2001:db8:f::1"), 0x01000000},
		{"... not where only IPv4 is wanted", twoUplinks(func(f *answers.Facts) { f.Answers.Set(routing.IPv6, false) }), flow("docker0", "", answers.Reply, "2001:db8:f::1 > 2001:db8:a::10", "fd00:17::2 > 2001:db8:f::1"), 0},
		{"bits of others survive", twoUplinks(), flow("docker0", "", answers.Reply, published, contained, marked(0x0000c001)), 0x0200c001},
		{"bits of an earlier number do not", twoUplinks(), flow("docker0", "", answers.Reply, published, contained, marked(0x01000000)), 0x02000000},
		{"a question from outside is not marked", twoUplinks(), flow("wan1", "", answers.Original, published, contained), 0},
		{"a masqueraded connection keeps its link", twoUplinks(), flow("lan0", "", answers.Original, outbound, back), 0x02000000},
		{"its first packet has no link yet", twoUplinks(), flow("lan0", "", answers.Original, outbound, "203.0.113.1 > 10.0.0.5"), 0},
		{"what comes back is not marked", twoUplinks(), flow("wan1", "", answers.Reply, outbound, back), 0},
		{"the server of a port forward is behind the other uplink", twoUplinks(), flow("wan0", "", answers.Reply, published, "192.0.2.5 > 203.0.113.1"), 0x02000000},
		{"... where that one checks by mark, it would be dropped", twoUplinks(checked(0, answers.CheckByMark)), flow("wan0", "", answers.Reply, published, "192.0.2.5 > 203.0.113.1"), 0},
		{"the host to itself", twoUplinks(), flow("lo", "", answers.Original, "192.0.2.10 > 192.0.2.10", "192.0.2.10 > 192.0.2.10", marked(1)), 1},
		{"a question to a link that checks by mark", twoUplinks(checked(1, answers.CheckByMark)), flow("wan1", "", answers.Original, published, contained), 0x02000000},
		{"... that comes in elsewhere", twoUplinks(checked(1, answers.CheckByMark)), flow("wan0", "", answers.Original, published, contained), 0},
		{"... with an address of another link", twoUplinks(checked(1, answers.CheckByMark)), flow("wan1", "", answers.Original, "203.0.113.1 > 192.0.2.10", contained), 0},
		{"a mark has no effect on a strict check", twoUplinks(checked(1, answers.CheckStrict)), flow("wan1", "", answers.Original, published, contained), 0},
		{"WireGuard's own packets keep their mark", twoUplinks(checked(1, answers.CheckByMark), foreign(routing.Rule{Invert: true, Mark: routing.Mark{Value: 0xca6c, Mask: ^uint32(0)}})), flow("wan1", "", answers.Original, published, contained, marked(0xca6c)), 0xca6c},
		{"a rule of others selects the packet by the whole mark", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: ^uint32(0)}})), flow("docker0", "", answers.Reply, published, contained, marked(1)), 1},
		{"... and not another one", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: ^uint32(0)}})), flow("docker0", "", answers.Reply, published, contained, marked(3)), 0x02000003},
		{"a rule of others looks at other bits", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: 1}})), flow("docker0", "", answers.Reply, published, contained, marked(1)), 0x02000001},
		{"a rule of others would select a number", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 0x02000000, Mask: 0x02000000}})), flow("docker0", "", answers.Reply, published, contained), 0},
		{"... and no other one", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 0x02000000, Mask: 0x02000000}})), flow("docker0", "", answers.Reply, "203.0.113.1 > 192.0.2.10", contained), 0x01000000},
		{"another mask", twoUplinks(func(f *answers.Facts) { f.Mask = 0x0000ff00 }), flow("docker0", "", answers.Reply, published, contained, marked(0xffffffff)), 0xffff02ff},
		{"a packet without a connection", twoUplinks(), func() packet {
			p := flow("docker0", "", answers.AnyDirection, published, contained)
			p.original, p.reply = [2]netip.Addr{}, [2]netip.Addr{}
			return p
		}(), 0},
		{"an address of two links", twoUplinks(func(f *answers.Facts) {
			f.Links[0].Sources = append(f.Links[0].Sources, sources(1, "198.51.100.10")...)
		}), flow("docker0", "", answers.Reply, published, contained), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			table, _ := answers.Plan(c.facts)
			if got, _ := pass(table, answers.Prerouting, c.packet); got != c.want {
				t.Errorf("mark 0x%08x, want 0x%08x\n%s", got, c.want, text(table))
			}
		})
	}
}

// TestFence: what leaves.
func TestFence(t *testing.T) {
	t.Parallel()
	local := func(out, source string, change ...func(*packet)) packet {
		to := "203.0.113.1"
		if strings.Contains(source, ":") {
			to = "2001:db8:f::1"
		}
		return flow("", out, answers.Original, source+" > "+to, to+" > "+source, change...)
	}
	shared := twoUplinks(func(f *answers.Facts) {
		f.Links[0].Sources = append(f.Links[0].Sources, sources(1, "198.51.100.10")...)
	})
	for _, c := range []struct {
		name   string
		facts  answers.Facts
		packet packet
		passes bool
	}{
		{"by the own link", twoUplinks(), local("wan0", "192.0.2.10"), true},
		{"by another uplink", twoUplinks(), local("wan1", "192.0.2.10"), false},
		{"by another uplink, IPv6", twoUplinks(), local("wan0", "2001:db8:b::10"), false},
		{"by another uplink, IPv6 not wanted", twoUplinks(func(f *answers.Facts) { f.Fence.Set(routing.IPv6, false) }), local("wan0", "2001:db8:b::10"), true},
		{"by what is no uplink", twoUplinks(), local("docker0", "192.0.2.10"), true},
		{"a source of nobody", twoUplinks(), local("wan1", "10.9.9.9"), true},
		{"link-local source", twoUplinks(), local("wan1", "fe80::10"), true},
		{"multicast", twoUplinks(), local("wan1", "192.0.2.10", leaving("192.0.2.10", "224.0.0.251")), true},
		{"limited broadcast", twoUplinks(), local("wan1", "192.0.2.10", leaving("192.0.2.10", "255.255.255.255")), true},
		{"a link-local neighbour", twoUplinks(), local("wan0", "2001:db8:b::10", leaving("2001:db8:b::10", "fe80::1")), true},
		{"multicast, IPv6", twoUplinks(), local("wan0", "2001:db8:b::10", leaving("2001:db8:b::10", "ff02::fb")), true},
		{"an answer behind NAT by another uplink", twoUplinks(), flow("docker0", "wan0", answers.Reply, published, contained, leaving("198.51.100.10", "203.0.113.1")), false},
		{"an address of two links, by one", shared, local("wan0", "198.51.100.10"), true},
		{"an address of two links, by the other", shared, local("wan1", "198.51.100.10"), true},
		{"selected by mark of others", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: 1}})), local("wan1", "192.0.2.10", marked(3)), true},
		{"not selected by mark of others", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: 1}})), local("wan1", "192.0.2.10", marked(2)), false},
		{"selected by a user", twoUplinks(foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1999}})), local("wan1", "192.0.2.10", ofUser(1999)), true},
		{"not selected by a user", twoUplinks(foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1999}})), local("wan1", "192.0.2.10", ofUser(2000)), false},
		{"no user", twoUplinks(foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1999}})), local("wan1", "192.0.2.10"), false},
		{"selected by the input", twoUplinks(foreign(routing.Rule{IIF: "docker0"})), flow("docker0", "wan0", answers.Reply, published, contained, leaving("198.51.100.10", "203.0.113.1")), true},
		{"selected by the source before NAT", twoUplinks(foreign(routing.Rule{From: netip.MustParsePrefix("172.17.0.0/24")})), flow("docker0", "wan0", answers.Reply, published, contained, leaving("198.51.100.10", "203.0.113.1")), true},
		{"selected by the source before NAT, first packets", twoUplinks(foreign(routing.Rule{From: netip.MustParsePrefix("10.0.0.0/24")})), flow("lan0", "wan0", answers.Original, outbound, back, leaving("198.51.100.10", "203.0.113.1")), true},
		{"not selected by the source before NAT", twoUplinks(foreign(routing.Rule{From: netip.MustParsePrefix("10.1.0.0/24")})), flow("lan0", "wan0", answers.Original, outbound, back, leaving("198.51.100.10", "203.0.113.1")), false},
		{"selected by an own source", twoUplinks(foreign(routing.Rule{From: netip.MustParsePrefix("192.0.2.10/32")})), local("wan1", "192.0.2.10"), true},
		{"selected by ports, which cannot be compared", twoUplinks(foreign(routing.Rule{IPProto: 6, DestinationPorts: routing.PortRange{First: 443, Last: 443}})), local("wan1", "192.0.2.10"), true},
		{"another protocol", twoUplinks(foreign(routing.Rule{IPProto: 17, DestinationPorts: routing.PortRange{First: 443, Last: 443}})), local("wan1", "192.0.2.10"), false},
		{"selected by what cannot be compared at all", twoUplinks(foreign(routing.Rule{TOS: 16})), local("wan1", "192.0.2.10"), true},
		{"a rule of VRFs", twoUplinks(foreign(routing.Rule{L3MDev: true})), local("wan1", "192.0.2.10"), false},
		{"a rule that selects nothing", twoUplinks(foreign(routing.Rule{IIF: "lo"})), local("wan1", "192.0.2.10"), false},
		{"a bound user by its link", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true})), local("wan1", "198.51.100.10", ofUser(1001)), true},
		{"a bound user by another uplink", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true})), local("wan0", "192.0.2.10", ofUser(1001)), false},
		{"a bound user, loosely", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1"})), local("wan0", "192.0.2.10", ofUser(1001)), true},
		{"a bound user to a container", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true})), local("docker0", "172.17.0.1", ofUser(1001)), true},
		{"another user", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true})), local("wan0", "192.0.2.10", ofUser(1000)), true},
		{"a bound user, whom a rule of others selects", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true}), foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: 1001, Last: 1001}})), local("wan0", "192.0.2.10", ofUser(1001)), false},
		{"a bound mark", twoUplinks(bind(answers.Binding{Mark: routing.Mark{Value: 0x82000000, Mask: 0xff000000}, Link: "wan1", Strict: true})), local("wan0", "192.0.2.10", marked(0x82000001), ofUser(0)), false},
		{"a bound mark on what is forwarded", twoUplinks(bind(answers.Binding{Mark: routing.Mark{Value: 0x20, Mask: 0x20}, Link: "wan1", Strict: true})), local("wan0", "192.0.2.10", marked(0x20)), true},
		{"a bound network starts something", twoUplinks(bind(answers.Binding{Input: "br-w1", Link: "wan1", Strict: true})), flow("br-w1", "wan0", answers.Original, outbound, back, leaving("192.0.2.10", "203.0.113.1")), false},
		{"a bound network answers", twoUplinks(bind(answers.Binding{Input: "br-w1", Link: "wan1", Strict: true})), flow("br-w1", "wan0", answers.Reply, "203.0.113.1 > 192.0.2.10", contained, leaving("192.0.2.10", "203.0.113.1")), true},
		{"a bound source", twoUplinks(bind(answers.Binding{Source: netip.MustParsePrefix("10.0.0.5/32"), Link: "wan1", Strict: true})), flow("lan0", "wan0", answers.Original, outbound, back, leaving("192.0.2.10", "203.0.113.1")), false},
		{"bound, and nothing else wanted", answers.Facts{Group: group, Bindings: []answers.Binding{{Users: one(1001), Link: "wan1", Strict: true}}}, local("wan0", "192.0.2.10", ofUser(1001)), false},
		{"bound to a link that is not there", twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan9", Strict: true})), local("wan0", "192.0.2.10", ofUser(1001)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			table, _ := answers.Plan(c.facts)
			if _, got := pass(table, answers.Postrouting, c.packet); got != c.passes {
				t.Errorf("it passes: %t, want %t\n%s", got, c.passes, text(table))
			}
		})
	}
}

// text is a table for people.
func text(t answers.Table) string {
	var b strings.Builder
	for _, c := range t.Chains {
		b.WriteString("chain " + c.Name + "\n")
		for _, r := range t.Rules {
			if r.Chain == c.Name {
				b.WriteString("\t" + r.String() + "\n")
			}
		}
	}
	for _, e := range t.Elements {
		b.WriteString(e.String() + "\n")
	}
	return b.String()
}
