package answers_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/answers"
)

// TestLayout shows a whole table, as nft(8) would write it.
func TestLayout(t *testing.T) {
	t.Parallel()
	table, problems := answers.Plan(twoUplinks(
		checked(1, answers.CheckByMark),
		bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true}),
		bind(answers.Binding{Input: "br-w1", Link: "wan1", Strict: true}),
		bind(answers.Binding{Source: netip.MustParsePrefix("172.31.0.7/24"), Link: "wan1", Strict: true}),
		foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: ^uint32(0)}}),
	))
	want := `chain answers
	iifname "lo" accept
	meta nfproto ipv4 meta mark 0x00000001 accept
	meta nfproto ipv6 meta mark 0x00000001 accept
	iifgroup 28008 accept
	ct direction reply ct original ip daddr vmap @answers4
	ct direction reply ct original ip6 daddr vmap @answers6
	ct direction original ct reply ip daddr vmap @answers4
	ct direction original ct reply ip6 daddr vmap @answers6
chain check
	meta nfproto ipv4 meta mark 0x00000001 accept
	meta nfproto ipv4 ip daddr . iifname @check4 ip daddr vmap @answers4
chain fence
	oifgroup != 28008 accept
	ct direction original ct original ip saddr 172.31.0.0/24 oifname != "wan1" counter drop
	iifname "br-w1" ct direction original oifname != "wan1" counter drop
	meta skuid 1001 oifname != "wan1" counter drop
	meta nfproto ipv4 ip saddr . oifname @pair4 accept
	meta nfproto ipv6 ip6 saddr . oifname @pair6 accept
	meta nfproto ipv4 ip saddr @own4 goto strays
	meta nfproto ipv6 ip6 saddr @own6 goto strays
chain link1
	meta mark set meta mark and 0x00ffffff or 0x01000000
chain link2
	meta mark set meta mark and 0x00ffffff or 0x02000000
chain strays
	meta nfproto ipv4 meta mark 0x00000001 accept
	meta nfproto ipv4 ip daddr 169.254.0.0/16 accept
	meta nfproto ipv4 ip daddr 224.0.0.0/4 accept
	meta nfproto ipv4 ip daddr 255.255.255.255/32 accept
	meta nfproto ipv4 counter drop
	meta nfproto ipv6 meta mark 0x00000001 accept
	meta nfproto ipv6 ip6 daddr fe80::/10 accept
	meta nfproto ipv6 ip6 daddr ff00::/8 accept
	meta nfproto ipv6 counter drop
answers4 { 192.0.2.10 : goto link1 }
answers4 { 198.51.100.10 : goto link2 }
answers6 { 2001:db8:a::10 : goto link1 }
answers6 { 2001:db8:b::10 : goto link2 }
check4 { 198.51.100.10 . "wan1" }
own4 { 192.0.2.10 }
own4 { 198.51.100.10 }
own6 { 2001:db8:a::10 }
own6 { 2001:db8:b::10 }
pair4 { 192.0.2.10 . "wan0" }
pair4 { 198.51.100.10 . "wan1" }
pair6 { 2001:db8:a::10 . "wan0" }
pair6 { 2001:db8:b::10 . "wan1" }
`
	if diff := cmp.Diff(want, text(table)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(problems) != 2 {
		t.Errorf("problems: %v", problems)
	}
}

// TestProblems: what an administrator must know.
func TestProblems(t *testing.T) {
	t.Parallel()
	numbered := func(n uint8) func(*answers.Facts) {
		return func(f *answers.Facts) {
			f.Fence = both(false)
			f.Links[1].Sources = sources(n, "198.51.100.10")
		}
	}
	for _, c := range []struct {
		name  string
		facts answers.Facts
		want  []string
	}{
		{"nothing to say", twoUplinks(), nil},
		{"no number", twoUplinks(numbered(0)), []string{"not-answered warning wan1 198.51.100.10"}},
		{"a number that is too high", twoUplinks(numbered(128)), []string{"not-answered warning wan1 198.51.100.10"}},
		{"a number that the mask cannot hold", twoUplinks(numbered(4), func(f *answers.Facts) { f.Mask = 0x7 }), []string{"not-answered warning wan1 198.51.100.10"}},
		{"the last number that the mask holds", twoUplinks(numbered(3), func(f *answers.Facts) { f.Mask = 0x7 }), nil},
		{"a mask with a gap", twoUplinks(func(f *answers.Facts) { f.Mask = 0xf00f0000 }), []string{"mark-mask error  0xf00f0000"}},
		{"a mask of one bit", twoUplinks(func(f *answers.Facts) { f.Mask = 0x8 }), []string{"mark-mask error  0x00000008"}},
		{"an address of two links", twoUplinks(func(f *answers.Facts) {
			f.Links[0].Sources = append(f.Links[0].Sources, sources(1, "198.51.100.10")...)
		}), []string{"shared-address warning  198.51.100.10"}},
		{"a strict check", twoUplinks(checked(1, answers.CheckStrict)), []string{"source-checked warning wan1 net.ipv4.conf.wan1.rp_filter=1"}},
		{"a strict check, IPv4 not wanted", twoUplinks(checked(1, answers.CheckStrict), func(f *answers.Facts) { f.Answers.Set(routing.IPv4, false) }), nil},
		{"a mark of others", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 1, Mask: ^uint32(0)}})), []string{"mark-in-use notice  ip -4 rule 100: from all fwmark 0x1 lookup 77 proto static", "mark-in-use notice  ip -6 rule 100: from all fwmark 0x1 lookup 77 proto static"}},
		{"all but a mark of others", twoUplinks(foreign(routing.Rule{Invert: true, Mark: routing.Mark{Value: 0xca6c, Mask: ^uint32(0)}})), nil},
		{"a mark of others elsewhere", twoUplinks(foreign(routing.Rule{Mark: routing.Mark{Value: 0x80000, Mask: 0xff0000}})), nil},
		{"ports", twoUplinks(foreign(routing.Rule{IPProto: 6, DestinationPorts: routing.PortRange{First: 443, Last: 443}})), []string{"fence-open notice  ip -4 rule 100: from all ipproto tcp dport 443 lookup 77 proto static", "fence-open notice  ip -6 rule 100: from all ipproto tcp dport 443 lookup 77 proto static"}},
		{"a type of service", twoUplinks(foreign(routing.Rule{TOS: 16})), []string{"fence-open warning  ip -4 rule 100: from all tos 0x10 lookup 77 proto static", "fence-open warning  ip -6 rule 100: from all tos 0x10 lookup 77 proto static"}},
		{"too many users", twoUplinks(func(f *answers.Facts) {
			f.Fence.Set(routing.IPv6, false)
			for i := range uint32(257) {
				foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: 2*i + 1, Last: 2*i + 1}})(f)
			}
		}), []string{"fence-open warning  ip -4 rule 100: from all uidrange 99-99 lookup 77 proto static"}},
		{"a rule of ours", twoUplinks(func(f *answers.Facts) {
			f.Foreign = []routing.Rule{{Family: routing.IPv4, Priority: 9100, Mark: routing.DefaultMarkMask.Mark(1), Action: routing.ActionLookup, Table: 10000, Protocol: routing.Multihomed}}
		}), nil},
		{"a rule behind main", twoUplinks(func(f *answers.Facts) {
			f.Foreign = []routing.Rule{{Family: routing.IPv4, Priority: routing.PriorityMain, TOS: 16, Action: routing.ActionLookup, Table: 77}}
		}), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, problems := answers.Plan(c.facts)
			var got []string
			for _, p := range problems {
				got = append(got, strings.Join([]string{string(p.Code), p.Severity.String(), p.Link, p.Object}, " "))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestOddNames: a name of an interface is any 15 bytes, and does not change what a command of ours does.
func TestOddNames(t *testing.T) {
	t.Parallel()
	for name, fix := range map[string]string{
		"wan1":              "sysctl -w net/ipv4/conf/wan1/src_valid_mark=1, or rp_filter=2",
		"eth0.100":          "sysctl -w net/ipv4/conf/eth0.100/src_valid_mark=1, or rp_filter=2",
		"a\"; rm -rf *\xff": "sysctl -w 'net/ipv4/conf/a\"; rm -rf *\xff/src_valid_mark=1', or rp_filter=2",
		"it's fifteen by":   `sysctl -w 'net/ipv4/conf/it'\''s fifteen by/src_valid_mark=1', or rp_filter=2`,
	} {
		table, problems := answers.Plan(twoUplinks(func(f *answers.Facts) { f.Links[1].Name, f.Links[1].Check = name, answers.CheckStrict }))
		if !slices.Contains(table.Elements, answers.Element{Set: "pair4", Address: addr("198.51.100.10"), Interface: name}) {
			t.Errorf("%q is in no pair", name)
		}
		if len(problems) != 1 || problems[0].Fix != fix {
			t.Errorf("%q: %v", name, problems)
		}
	}
}

// TestNothingWanted: without wishes there is no table, whatever the links are.
func TestNothingWanted(t *testing.T) {
	t.Parallel()
	table, problems := answers.Plan(twoUplinks(func(f *answers.Facts) { f.Answers, f.Fence = both(false), both(false) },
		bind(answers.Binding{Users: one(1001), Link: "wan1"}), bind(answers.Binding{Link: "wan1", Strict: true})))
	if !table.Empty() || len(table.Sets)+len(table.Elements)+len(table.Rules)+len(problems) > 0 {
		t.Errorf("%s%v", text(table), problems)
	}
}

// TestMaskHoldsNumbers: every number has bits of its own inside the mask, and leaves the bit of bound
// sockets alone.
func TestMaskHoldsNumbers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(2, 32).Draw(t, "bits")
		mask := routing.MarkMask(uint32(1<<width-1) << rapid.IntRange(0, 32-width).Draw(t, "shift"))
		if !mask.Valid() || mask.Last() == 0 {
			t.Fatalf("0x%08x is not valid", uint32(mask))
		}
		bound := uint32(mask) &^ (uint32(mask) >> 1)
		seen := map[uint32]bool{0: true}
		for n := uint8(1); n <= mask.Last(); n++ {
			m := mask.Mark(n)
			if m.Mask != uint32(mask) || m.Value&^m.Mask != 0 || m.Value&bound != 0 || seen[m.Value] {
				t.Fatalf("number %d of 0x%08x is 0x%08x", n, uint32(mask), m.Value)
			}
			seen[m.Value] = true
		}
	})
}

// TestMarksOfOthers: where Plan marks a packet, no rule of others selects another packet than before.
func TestMarksOfOthers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		some := func(name string) uint32 {
			return rapid.SampledFrom([]uint32{0, 1, 2, 3, 0x4000, 0x01000000, 0x02000000, 0x03000000, 0x02000001, 0x82000000, 0xff000000, 0xffff0000, 0xffffffff}).Draw(t, name)
		}
		var rules []routing.Rule
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			rules = append(rules, routing.Rule{Mark: routing.Mark{Value: some("value"), Mask: some("mask")}, Invert: rapid.Bool().Draw(t, "not")})
		}
		facts := twoUplinks()
		for _, r := range rules {
			foreign(r)(&facts)
		}
		table, _ := answers.Plan(facts)
		before := some("mark")
		after, _ := pass(table, answers.Prerouting, flow("docker0", "", answers.Reply, published, contained, marked(before)))
		if after&0x00ffffff != before&0x00ffffff {
			t.Fatalf("0x%08x became 0x%08x", before, after)
		}
		for _, r := range rules {
			selects := func(mark uint32) bool { return (mark & r.Mark.Mask) == (r.Mark.Value & r.Mark.Mask) }
			// A rule for packets without a mark is not for answers.
			if r.Mark.Value&r.Mark.Mask != 0 && selects(before) != selects(after) && before&0xff000000 == 0 {
				t.Fatalf("0x%08x became 0x%08x: that changes what %+v selects\n%s", before, after, r.Mark, text(table))
			}
		}
	})
}

// TestUsers: the exceptions of a range of users are for these and no others.
func TestUsers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint32Range(1, 3000).Draw(t, "first")
		last := first + rapid.Uint32Range(0, 3000).Draw(t, "more")
		table, _ := answers.Plan(twoUplinks(foreign(routing.Rule{UIDs: routing.UIDRange{Set: true, First: first, Last: last}})))
		user := rapid.Uint32Range(0, 7000).Draw(t, "user")
		_, passes := pass(table, answers.Postrouting, flow("", "wan1", answers.Original, "192.0.2.10 > 203.0.113.1", "203.0.113.1 > 192.0.2.10", ofUser(int64(user))))
		if want := first <= user && user <= last; passes != want {
			t.Fatalf("user %d of %d-%d passes: %t\n%s", user, first, last, passes, text(table))
		}
	})
}

// TestComments: every rule has a comment that nft(8) can show, and that says whose it is.
func TestComments(t *testing.T) {
	t.Parallel()
	for _, d := range answers.Decisions() {
		back, ours := answers.DecisionOf(d.Comment())
		if len(d.Comment()) > 127 || strings.Contains(d.Comment(), `"`) || !ours || back != d || d.Sentence() == string(d) {
			t.Errorf("%q", d.Comment())
		}
	}
	if d, ours := answers.DecisionOf("of a later version"); ours {
		t.Errorf("%q is not ours", d)
	}
	if d, ours := answers.DecisionOf("multihomed later: of a later version"); !ours || d != "later" {
		t.Errorf("%q is ours", d)
	}
}

// TestNames: names of chains and sets say what they are.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"link0", "link128", "link01", "link+1", "link", "link1 ", "Answers", "", "own", "own5"} {
		if _, ours := answers.ChainNamed(name); ours {
			t.Errorf("chain %q", name)
		}
		if _, ours := answers.SetNamed(name); ours {
			t.Errorf("set %q", name)
		}
	}
	for n := uint8(1); n <= routing.MaxNumber; n++ {
		if got, ok := answers.LinkNumber(answers.LinkChain(n)); !ok || got != n {
			t.Errorf("%d became %d", n, got)
		}
	}
}

// genFacts draws from a small world, so that links collide.
func genFacts(t *rapid.T) answers.Facts {
	f := answers.Facts{Group: group, Mask: rapid.SampledFrom([]routing.MarkMask{0, 0, 0, 0x00ff0000, 0x7}).Draw(t, "mask")}
	for _, family := range routing.Families() {
		f.Answers.Set(family, rapid.IntRange(0, 4).Draw(t, "answers") > 0)
		f.Fence.Set(family, rapid.IntRange(0, 4).Draw(t, "fence") > 0)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "links") {
		l := answers.Link{Name: fmt.Sprintf("wan%d", i), Check: answers.SourceCheck(rapid.IntRange(0, 2).Draw(t, "check"))}
		for _, a := range []string{"192.0.2.10", "192.0.2.11", "198.51.100.10", "2001:db8::10", "2001:db8::11", "fe80::1", "::ffff:192.0.2.12"} {
			if rapid.IntRange(0, 2).Draw(t, a) == 0 {
				l.Sources = append(l.Sources, answers.Source{Address: addr(a), Number: uint8(rapid.IntRange(0, 3).Draw(t, "number"))})
			}
		}
		f.Links = append(f.Links, l)
	}
	for _, family := range routing.Families() {
		f.Open.Set(family, rapid.SliceOfN(rapid.SampledFrom([]string{"wan0", "lan0"}), 0, 2).Draw(t, "open"))
	}
	for range rapid.IntRange(0, 3).Draw(t, "bindings") {
		b := answers.Binding{Link: rapid.SampledFrom([]string{"wan0", "wan1", ""}).Draw(t, "link"), Strict: true}
		switch rapid.IntRange(0, 3).Draw(t, "selector") {
		case 0:
			b.Users = one(rapid.Uint32Range(1000, 1002).Draw(t, "user"))
		case 1:
			b.Mark = routing.Mark{Value: rapid.Uint32Range(1, 3).Draw(t, "mark"), Mask: 0xff}
		case 2:
			b.Input = rapid.SampledFrom([]string{"br0", "br1"}).Draw(t, "input")
		default:
			b.Source = netip.MustParsePrefix(rapid.SampledFrom([]string{"172.31.0.0/24", "fd31::/64"}).Draw(t, "source"))
		}
		f.Bindings = append(f.Bindings, b)
	}
	for range rapid.IntRange(0, 3).Draw(t, "foreign") {
		r := routing.Rule{}
		switch rapid.IntRange(0, 5).Draw(t, "selector") {
		case 0, 1:
			r.Mark = routing.Mark{Value: rapid.SampledFrom([]uint32{1, 0x01000000, 0x00010000}).Draw(t, "mark"), Mask: rapid.SampledFrom([]uint32{1, 0xffffffff}).Draw(t, "mask")}
		case 2:
			r.UIDs = routing.UIDRange{Set: true, First: 1000, Last: 1005}
		case 3:
			r.IIF = "br0"
		case 4:
			r.From = netip.MustParsePrefix("192.0.2.0/24")
		default:
			r.TOS = 8
		}
		foreign(r)(&f)
	}
	return f
}

// TestOrderOfFacts: order and repetition of facts do not matter.
func TestOrderOfFacts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		facts := genFacts(t)
		table, problems := answers.Plan(facts)
		again := facts
		again.Links = rapid.Permutation(append(slices.Clone(facts.Links), facts.Links...)).Draw(t, "links")
		for i, l := range again.Links {
			again.Links[i].Sources = rapid.Permutation(l.Sources).Draw(t, "sources")
		}
		for _, family := range routing.Families() {
			again.Open.Set(family, append(slices.Clone(facts.Open.In(family)), facts.Open.In(family)...))
		}
		again.Bindings = rapid.Permutation(append(slices.Clone(facts.Bindings), facts.Bindings...)).Draw(t, "bindings")
		again.Foreign = rapid.Permutation(append(slices.Clone(facts.Foreign), facts.Foreign...)).Draw(t, "rules")
		table2, problems2 := answers.Plan(again)
		if diff := cmp.Diff(table, table2, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Fatalf("(-one +other)\n%s", diff)
		}
		if diff := cmp.Diff(problems, problems2); diff != "" {
			t.Fatalf("(-one +other)\n%s", diff)
		}
	})
}

// TestFenceNeverHitsTheOwnLink: whatever the facts are, what leaves by the link of its source passes,
// unless it is bound to another one; what leaves by an uplink of the other family alone, and what no
// uplink has as its address, passes as well.
func TestFenceNeverHitsTheOwnLink(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		facts := genFacts(t)
		facts.Bindings = nil
		table, _ := answers.Plan(facts)
		for _, out := range []string{"wan0", "wan1", "wan2", "docker0"} {
			for _, source := range []string{"192.0.2.10", "192.0.2.11", "192.0.2.12", "198.51.100.10", "10.0.0.1", "fe80::1"} {
				p := flow("", out, answers.Original, source+" > 203.0.113.1", "203.0.113.1 > "+source)
				p.uplinks = []string{"wan0", "wan1", "wan2"}
				open := slices.Contains(facts.Open.In(routing.FamilyOf(p.source)), out)
				home := slices.ContainsFunc(facts.Links, func(l answers.Link) bool {
					return l.Name == out && slices.ContainsFunc(l.Sources, func(s answers.Source) bool { return s.Address.Unmap() == p.source })
				})
				elsewhere := slices.ContainsFunc(facts.Links, func(l answers.Link) bool {
					return slices.ContainsFunc(l.Sources, func(s answers.Source) bool { return s.Address.Unmap() == p.source })
				})
				_, passes := pass(table, answers.Postrouting, p)
				if (home || open || !elsewhere || out == "docker0" || source == "fe80::1") && !passes {
					t.Fatalf("%s by %s is dropped\n%s", source, out, text(table))
				}
				if elsewhere && !home && !open && out != "docker0" && source != "fe80::1" && facts.Fence.In(routing.IPv4) && len(facts.Foreign) == 0 && passes {
					t.Fatalf("%s by %s passes\n%s", source, out, text(table))
				}
			}
		}
	})
}

// one is one user.
func one(uid uint32) routing.UIDRange { return routing.UIDRange{Set: true, First: uid, Last: uid} }
