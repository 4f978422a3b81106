package nftables_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"multihomed/internal/nftables"
	"multihomed/test/lab/nettest"
)

// TestMain keeps the tests away from the machine's network.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// table is the table of the tests.
var table = nftables.TableID{Family: nftables.INet, Name: "multihomed"}

// A world is a network namespace, with the test's thread in it and a Conn to it.
type world struct {
	testing.TB
	*nftables.Conn
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	runtime.LockOSThread() // The thread ends with the test.
	ns, err := netns.New()
	must(tb, err)
	tb.Cleanup(func() { must(tb, ns.Close()) })
	conn, err := nftables.Open()
	must(tb, err)
	tb.Cleanup(func() { must(tb, conn.Close()) })
	return &world{tb, conn}
}

// nft runs nft(8) with a script.
func (w *world) nft(script string) {
	w.Helper()
	if out, err := w.tryNFT(script); err != nil {
		w.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
}

func (w *world) tryNFT(script string) (string, error) {
	cmd := exec.CommandContext(w.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// list is what `nft ARGS list table` prints.
func (w *world) list(args ...string) string {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), "nft", append(args, "list", "table", "inet", table.Name)...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		w.Fatalf("nft list: %v\n%s", err, &bad)
	}
	return out.String()
}

func (w *world) read() (nftables.Table, nftables.Generation) {
	w.Helper()
	t, g, err := w.Read(w.Context(), table)
	must(w, err)
	return t, g
}

func (w *world) commit(ops ...nftables.Op) {
	w.Helper()
	_, err := w.Commit(w.Context(), table, ops, 0)
	must(w, err)
}

// await waits until something is so.
func (w *world) await(so func() bool, what string) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); {
		if time.Now().After(deadline) {
			w.Fatalf("it never came that %s", what)
		}
	}
}

// plain is a table without the kernel's handles.
func plain(t nftables.Table) nftables.Table {
	for i := range t.Chains {
		t.Chains[i].Handle = 0
		for j := range t.Chains[i].Rules {
			t.Chains[i].Rules[j].Handle = 0
		}
	}
	for i := range t.Sets {
		t.Sets[i].Handle = 0
	}
	return t
}

// ops make a table that does not exist.
func ops(t nftables.Table) (out []nftables.Op) {
	out = append(out, nftables.AddTable{})
	for _, c := range t.Chains {
		out = append(out, nftables.AddChain{Chain: c})
	}
	for _, s := range t.Sets {
		out = append(out, nftables.AddSet{Set: s})
		if len(s.Elements) > 0 {
			out = append(out, nftables.AddElements{Set: s.Name, Elements: s.Elements})
		}
	}
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			out = append(out, nftables.AddRule{Chain: c.Name, Rule: r})
		}
	}
	return out
}

func addr(s string) nftables.Value { return nftables.Addr(netip.MustParseAddr(s)) }

func verdict(code nftables.VerdictCode, chain string) nftables.Expr {
	return nftables.Decide{Verdict: nftables.Verdict{Code: code, Chain: chain}}
}

func meta(key nftables.MetaKey) nftables.Expr {
	return nftables.MetaLoad{Key: key, Dest: nftables.Reg1}
}

func is(v nftables.Value) nftables.Expr {
	return nftables.Cmp{Op: nftables.Equal, Source: nftables.Reg1, Value: v}
}

func isNot(v nftables.Value) nftables.Expr {
	return nftables.Cmp{Op: nftables.NotEqual, Source: nftables.Reg1, Value: v}
}

func in(set string) nftables.Expr { return nftables.Lookup{Set: set, Source: nftables.Reg1} }

func ct(key nftables.CTKey, d nftables.Direction) nftables.Expr {
	return nftables.CT{Key: key, Direction: d, Dest: nftables.Reg1}
}

func rule(parts ...any) (r nftables.Rule) {
	for _, p := range parts {
		switch p := p.(type) {
		case nftables.Expr:
			r.Exprs = append(r.Exprs, p)
		case []nftables.Expr:
			r.Exprs = append(r.Exprs, p...)
		case string:
			r.Comment = p
		default:
			panic(fmt.Sprintf("%T", p))
		}
	}
	return r
}

func to(link string, keys ...nftables.Value) nftables.Element {
	return nftables.Element{Key: nftables.Key(keys...), Verdict: nftables.Verdict{Code: nftables.Goto, Chain: link}}
}

func key(keys ...nftables.Value) nftables.Element {
	return nftables.Element{Key: nftables.Key(keys...)}
}

// text is the table of reference/forwarding.md, with every form of an expression that this package
// writes, as a person writes it. example is the same as values.
const text = `table inet multihomed {
	map answers4 {
		type ipv4_addr : verdict
		elements = { 192.0.2.10 : goto link1, 198.51.100.10 : goto link2 }
	}
	map answers6 {
		type ipv6_addr : verdict
		elements = { 2001:db8:a::10 : goto link1, 2001:db8:b::10 : goto link2 }
	}
	set own4 {
		type ipv4_addr
		elements = { 192.0.2.10, 198.51.100.10 }
	}
	set own6 {
		type ipv6_addr
		elements = { 2001:db8:a::10 }
	}
	set pair4 {
		type ipv4_addr . ifname
		elements = { 192.0.2.10 . "wan0", 198.51.100.10 . "wan1" }
	}
	set pair6 {
		type ipv6_addr . ifname
		elements = { 2001:db8:a::10 . "wan0" }
	}
	chain link1 {
		meta mark set meta mark and 0x00ffffff or 0x01000000
	}
	chain link2 {
		meta mark set meta mark and 0x00ffffff or 0x02000000 comment "the second link"
	}
	chain asked {
		type filter hook prerouting priority mangle + 4; policy accept;
		iifgroup 28008 ip daddr vmap @answers4
		iifgroup 28008 ip6 daddr vmap @answers6
	}
	chain answers {
		type filter hook prerouting priority mangle + 5; policy accept;
		iifgroup 28008 accept
		ct direction reply ct original ip daddr vmap @answers4
		ct direction original ct reply ip daddr vmap @answers4
		ct direction reply ct original ip6 daddr vmap @answers6
		ct direction original ct reply ip6 daddr vmap @answers6
		ct original ip saddr 192.0.2.1 ct reply ip6 saddr 2001:db8::1 return
	}
	chain fence {
		type filter hook postrouting priority 150; policy accept;
		oifgroup != 28008 accept
		meta skuid 1001 oifname != "wan1" counter drop
		ip saddr . oifname @pair4 accept
		ip saddr @own4 counter drop
		ip6 saddr . oifname @pair6 accept
		ip6 saddr @own6 counter drop
		ip saddr != @own4 meta l4proto 6 meta mark and 0xff000000 == 0x01000000 jump link1
		iifname "wan*" ip saddr 172.31.3.0/28 drop
		meta mark set 0x00000005
		continue
	}
	chain local {
		type route hook output priority 0; policy drop;
	}
	chain nat {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
`

func example() nftables.Table {
	const uplinks = 28008
	mark := func(link uint32) []nftables.Expr {
		return []nftables.Expr{
			meta(nftables.MetaMark),
			nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: nftables.Uint32(0x00ffffff), Xor: nftables.Uint32(link << 24)},
			nftables.MetaSet{Key: nftables.MetaMark, Source: nftables.Reg1},
		}
	}
	answers := func(d, of nftables.Direction, key nftables.CTKey, set string) nftables.Rule {
		return rule(ct(nftables.CTDirection, nftables.NoDirection), is(d.Value()), ct(key, of), nftables.VerdictMap{Set: set, Source: nftables.Reg1})
	}
	ifname := func(n int) nftables.Expr { return nftables.MetaLoad{Key: nftables.MetaOIFName, Dest: nftables.Word(n)} }
	return plain(nftables.Table{
		Sets: []nftables.Set{
			{Name: "answers4", Key: nftables.IPv4Address, Verdicts: true, Elements: []nftables.Element{
				to("link1", addr("192.0.2.10")), to("link2", addr("198.51.100.10")),
			}},
			{Name: "answers6", Key: nftables.IPv6Address, Verdicts: true, Elements: []nftables.Element{
				to("link1", addr("2001:db8:a::10")), to("link2", addr("2001:db8:b::10")),
			}},
			{Name: "own4", Key: nftables.IPv4Address, Elements: []nftables.Element{key(addr("192.0.2.10")), key(addr("198.51.100.10"))}},
			{Name: "own6", Key: nftables.IPv6Address, Elements: []nftables.Element{key(addr("2001:db8:a::10"))}},
			{Name: "pair4", Key: nftables.Concat(nftables.IPv4Address, nftables.InterfaceName), Elements: []nftables.Element{
				key(addr("192.0.2.10"), nftables.IfName("wan0")), key(addr("198.51.100.10"), nftables.IfName("wan1")),
			}},
			{Name: "pair6", Key: nftables.Concat(nftables.IPv6Address, nftables.InterfaceName), Elements: []nftables.Element{
				key(addr("2001:db8:a::10"), nftables.IfName("wan0")),
			}},
		},
		Chains: []nftables.Chain{
			{Name: "link1", Rules: []nftables.Rule{rule(mark(1))}},
			{Name: "link2", Rules: []nftables.Rule{rule(mark(2), "the second link")}},
			{
				Name: "asked", Base: nftables.Base{Type: nftables.Filter, Hook: nftables.Prerouting, Priority: nftables.PriorityMangle + 4, Policy: nftables.PolicyAccept},
				Rules: []nftables.Rule{
					rule(meta(nftables.MetaIIFGroup), is(nftables.Uint32(uplinks)), nftables.IPv4Only(), nftables.IPv4Daddr, nftables.VerdictMap{Set: "answers4", Source: nftables.Reg1}),
					rule(meta(nftables.MetaIIFGroup), is(nftables.Uint32(uplinks)), nftables.IPv6Only(), nftables.IPv6Daddr, nftables.VerdictMap{Set: "answers6", Source: nftables.Reg1}),
				},
			},
			{
				Name: "answers", Base: nftables.Base{Type: nftables.Filter, Hook: nftables.Prerouting, Priority: nftables.PriorityMangle + 5, Policy: nftables.PolicyAccept},
				Rules: []nftables.Rule{
					rule(meta(nftables.MetaIIFGroup), is(nftables.Uint32(uplinks)), verdict(nftables.Accept, "")),
					answers(nftables.Reply, nftables.Original, nftables.CTDstIP, "answers4"),
					answers(nftables.Original, nftables.Reply, nftables.CTDstIP, "answers4"),
					answers(nftables.Reply, nftables.Original, nftables.CTDstIP6, "answers6"),
					answers(nftables.Original, nftables.Reply, nftables.CTDstIP6, "answers6"),
					rule(ct(nftables.CTSrcIP, nftables.Original), is(addr("192.0.2.1")), ct(nftables.CTSrcIP6, nftables.Reply), is(addr("2001:db8::1")), verdict(nftables.Return, "")),
				},
			},
			{
				Name: "fence", Base: nftables.Base{Type: nftables.Filter, Hook: nftables.Postrouting, Priority: nftables.PrioritySrcNAT + 50, Policy: nftables.PolicyAccept},
				Rules: []nftables.Rule{
					rule(meta(nftables.MetaOIFGroup), isNot(nftables.Uint32(uplinks)), verdict(nftables.Accept, "")),
					rule(meta(nftables.MetaSKUID), is(nftables.Uint32(1001)), meta(nftables.MetaOIFName), isNot(nftables.IfName("wan1")), nftables.Counter{}, verdict(nftables.Drop, "")),
					rule(nftables.IPv4Only(), nftables.IPv4Saddr, ifname(1), in("pair4"), verdict(nftables.Accept, "")),
					rule(nftables.IPv4Only(), nftables.IPv4Saddr, in("own4"), nftables.Counter{}, verdict(nftables.Drop, "")),
					rule(nftables.IPv6Only(), nftables.IPv6Saddr, ifname(4), in("pair6"), verdict(nftables.Accept, "")),
					rule(nftables.IPv6Only(), nftables.IPv6Saddr, in("own6"), nftables.Counter{}, verdict(nftables.Drop, "")),
					rule(nftables.IPv4Only(), nftables.IPv4Saddr, nftables.Lookup{Set: "own4", Source: nftables.Reg1, Not: true},
						meta(nftables.MetaL4Proto), is(nftables.Uint8(6)), meta(nftables.MetaMark),
						nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: nftables.Uint32(0xff000000), Xor: nftables.Uint32(0)},
						is(nftables.Uint32(0x01000000)), verdict(nftables.Jump, "link1")),
					rule(meta(nftables.MetaIIFName), is(nftables.IfNamePrefix("wan")), nftables.IPv4Only(), nftables.IPv4Saddr,
						nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: addr("255.255.255.240"), Xor: addr("0.0.0.0")},
						is(addr("172.31.3.0")), verdict(nftables.Drop, "")),
					rule(nftables.Immediate{Dest: nftables.Reg1, Value: nftables.Uint32(5)}, nftables.MetaSet{Key: nftables.MetaMark, Source: nftables.Reg1}),
					rule(verdict(nftables.Continue, "")),
				},
			},
			{Name: "local", Base: nftables.Base{Type: nftables.Route, Hook: nftables.Output}},
			{Name: "nat", Base: nftables.Base{Type: nftables.NAT, Hook: nftables.Postrouting, Priority: nftables.PrioritySrcNAT, Policy: nftables.PolicyAccept}},
		},
	})
}
