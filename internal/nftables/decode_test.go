package nftables_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/internal/nftables"
	"multihomed/internal/nlmsg"
)

// TestUnknown: a form of an expression that this package does not write is never taken for one that it
// writes, and the rule's other expressions are read.
func TestUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for text, want := range map[string]string{
		"log prefix \"x\"":                "log",
		"ct mark set 1":                   "ct",
		"ip ttl set 1":                    "payload",
		"tcp dport 22":                    "payload",
		"meta mark set meta mark << 1":    "bitwise",
		"ip length > 100":                 "cmp",
		"meta mark set ip saddr map @m":   "lookup",
		"limit rate 1/second":             "limit",
		"fib daddr type local":            "fib",
		"quota 10 bytes":                  "quota",
		"update @s { ip saddr }":          "dynset",
		"udp dport 1-2":                   "payload",
		"tcp option maxseg size set 1000": "exthdr",
	} {
		w.nft("table inet multihomed {\nmap m { type ipv4_addr : mark; }\nset s { type ipv4_addr; size 10; flags dynamic; }\nchain c { counter " + text + "; }\n}")
		got, _ := w.read()
		exprs := got.Chain("c").Rules[0].Exprs
		if exprs[0] != (nftables.Counter{}) || !slices.Contains(exprs, nftables.Expr(nftables.Unknown{Name: want})) {
			t.Errorf("%s: %v", text, got.Chain("c").Rules[0])
		}
		if m, s := got.Set("m"), got.Set("s"); !m.Unknown || !s.Unknown || m.Elements != nil {
			t.Errorf("sets of other kinds: %+v, %+v", m, s)
		}
		w.commit(nftables.DeleteTable{})
	}
}

// TestForeignObjects: what somebody else puts into the table is seen.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft(`table inet multihomed {
		flags dormant
		comment "somebody's"
		counter n { }
		quota q { 10 bytes }
		set intervals { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
		set timeouts { type ipv4_addr; timeout 1h; elements = { 192.0.2.1 } }
		set sized { type ipv4_addr; size 5; }
		set ports { type inet_service; }
		set counted { type ipv4_addr; counter; elements = { 192.0.2.1 } }
		map rest { type ipv4_addr : verdict; elements = { * : drop } }
		map objects { type ipv4_addr : counter; }
		set good { type ipv4_addr; comment "c"; elements = { 192.0.2.1 comment "d" } }
		chain c { }
	}`)
	got, _ := w.read()
	if got.Others != 2 || !got.Dormant || got.Owner != 0 {
		t.Errorf("%+v", got)
	}
	for _, s := range got.Sets {
		if s.Unknown != (s.Name != "good" && s.Name != "rest") {
			t.Errorf("%+v", s)
		}
	}
	if e := got.Set("rest").Elements; len(e) != 1 || !e[0].Unknown {
		t.Errorf("an element without a key: %+v", e)
	}
	if e := got.Set("good").Elements; len(e) != 1 || e[0] != key(addr("192.0.2.1")) {
		t.Errorf("an element with a comment: %+v", e)
	}
	w.commit(nftables.AddTable{})
	if got, _ := w.read(); got.Dormant {
		t.Error("the table is dormant after AddTable")
	}
}

// TestEqual: rules are equal if nft(8) would show them so, but for what was counted.
func TestEqual(t *testing.T) {
	t.Parallel()
	one := rule(nftables.IPv4Only(), nftables.Counter{}, verdict(nftables.Drop, ""))
	same := rule(nftables.IPv4Only(), nftables.Counter{Packets: 3, Bytes: 200}, verdict(nftables.Drop, ""))
	same.Handle = 9
	if !one.Equal(same) || !same.Equal(one) {
		t.Error("a counter or a handle makes a difference")
	}
	if c, ok := same.Counted(); !ok || c.Packets != 3 {
		t.Errorf("counted %+v, %v", c, ok)
	}
	for name, other := range map[string]nftables.Rule{
		"comment": rule(nftables.IPv4Only(), nftables.Counter{}, verdict(nftables.Drop, ""), "x"),
		"verdict": rule(nftables.IPv4Only(), nftables.Counter{}, verdict(nftables.Accept, "")),
		"counter": rule(nftables.IPv4Only(), is("x"), verdict(nftables.Drop, "")),
		"shorter": rule(nftables.IPv4Only(), nftables.Counter{}),
		"none":    {},
	} {
		if one.Equal(other) || other.Equal(one) {
			t.Errorf("another %s makes no difference", name)
		}
	}
}

// TestCounted: what a rule has counted is read.
func TestCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft("add table inet multihomed; add chain inet multihomed c; add rule inet multihomed c counter packets 5000000000 bytes 6000000000 drop")
	got, _ := w.read()
	if c, ok := got.Chain("c").Rules[0].Counted(); !ok || c != (nftables.Counter{Packets: 5_000_000_000, Bytes: 6_000_000_000}) {
		t.Errorf("%+v, %v", c, ok)
	}
	if c, ok := (nftables.Rule{}).Counted(); ok {
		t.Errorf("%+v", c)
	}
}

// anyExpr generates every expression that can be written.
func anyExpr() *rapid.Generator[nftables.Expr] {
	return rapid.Custom(func(t *rapid.T) nftables.Expr {
		register := func() nftables.Register {
			return nftables.Word(rapid.IntRange(0, 15).Draw(t, "word"))
		}
		value := func(n int) nftables.Value {
			return nftables.Value(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "value"))
		}
		length := rapid.IntRange(1, 64).Draw(t, "length")
		name := rapid.StringMatching(`[a-z0-9]{1,9}`).Draw(t, "name")
		number := rapid.Uint32().Draw(t, "number")
		switch rapid.IntRange(0, 10).Draw(t, "kind") {
		case 0:
			return nftables.MetaLoad{Key: nftables.MetaKey(number), Dest: register()}
		case 1:
			return nftables.MetaSet{Key: nftables.MetaKey(number), Source: register()}
		case 2:
			return nftables.Payload{Offset: uint8(number), Length: uint8(length), Dest: register()}
		case 3:
			return nftables.CT{Key: nftables.CTKey(number), Direction: nftables.Direction(rapid.IntRange(0, 2).Draw(t, "direction")), Dest: register()}
		case 4:
			return nftables.Cmp{Op: nftables.CmpOp(number & 1), Source: register(), Value: value(length)}
		case 5:
			return nftables.Bitwise{Source: register(), Dest: register(), Mask: value(length), Xor: value(length)}
		case 6:
			return nftables.Lookup{Set: name, Source: register(), Not: number&1 == 1}
		case 7:
			return nftables.VerdictMap{Set: name, Source: register()}
		case 8:
			return nftables.Immediate{Dest: register(), Value: value(length)}
		case 9:
			code := nftables.VerdictCode(rapid.IntRange(int(nftables.Accept), int(nftables.Continue)).Draw(t, "verdict"))
			if code != nftables.Jump && code != nftables.Goto {
				name = ""
			}
			return verdict(code, name)
		default:
			return nftables.Counter{Packets: uint64(number), Bytes: uint64(number) << 20}
		}
	})
}

// encoded is the payload of the last message of operations.
func encoded(tb rapid.TB, ops ...nftables.Op) []byte {
	b, err := nftables.Encode(table, ops...)
	if err != nil {
		tb.Fatal(err)
	}
	var payloads [][]byte
	for len(b) > 0 {
		_, payload, rest, err := nlmsg.Next(b)
		if err != nil {
			tb.Fatal(err)
		}
		payloads, b = append(payloads, payload), rest
	}
	return payloads[len(payloads)-2]
}

// TestRoundTrip: every rule is read as it was written.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := nftables.Rule{
			Exprs:   rapid.SliceOfN(anyExpr(), 1, 20).Draw(t, "rule"),
			Comment: rapid.StringMatching(`[a-z "]{0,127}`).Draw(t, "comment"),
		}
		got := nftables.Decode(encoded(t, nftables.AddRule{Chain: "c", Rule: want}))
		if diff := cmp.Diff(want, got.Rule); diff != "" || got.InChain != "c" {
			t.Fatalf("in %q: %s", got.InChain, diff)
		}
		if !want.Equal(got.Rule) || got.Rule.String() != want.String() {
			t.Fatalf("%s became %s", want, got.Rule)
		}
	})
}

// TestKeys: a key type has the name and the length that nft(8) gives it.
func TestKeys(t *testing.T) {
	t.Parallel()
	four := nftables.Concat(nftables.IPv4Address, nftables.InterfaceName)
	if four != 0x1e9 || four.String() != "ipv4_addr . ifname" {
		t.Errorf("%#x, %s", uint32(four), four)
	}
	if got := nftables.Key(addr("192.0.2.1"), nftables.IfName("wan0")); len(got) != 20 {
		t.Errorf("%s", got)
	}
	if got := nftables.Key(nftables.Uint8(6), addr("192.0.2.1")); got != "\x06\x00\x00\x00\xc0\x00\x02\x01" {
		t.Errorf("%s", got)
	}
	if got := nftables.IfName("a-name-that-is-too-long"); len(got) != 16 || got[15] != 0 {
		t.Errorf("%q", string(got))
	}
	for n, want := range map[int]nftables.Register{0: nftables.Reg1, 1: 9, 3: 11, 4: nftables.Reg2, 5: 13, 12: nftables.Reg4, 15: 23} {
		if got := nftables.Word(n); got != want {
			t.Errorf("Word(%d) is %s, not %s", n, got, want)
		}
	}
}

// TestExplains: an error that the kernel has many reasons for says which one it was.
func TestExplains(t *testing.T) {
	t.Parallel()
	r := rule(ct(nftables.CTDirection, nftables.NoDirection), is(nftables.Uint8(1)))
	add := nftables.AddRule{Chain: "c", Rule: r}
	b, err := nftables.Encode(table, add)
	must(t, err)
	at := func(name string) int {
		// A message of 28 bytes begins the batch. Two headers stand before the name of an expression.
		return bytes.Index(b, []byte(name)) - 28 - 4 - 4
	}
	const first = unix.SizeofNlMsghdr + 4
	for _, test := range []struct {
		errno unix.Errno
		bad   int
		is    error
		word  string
	}{
		{unix.EOPNOTSUPP, 0, unix.EOPNOTSUPP, "not supported"},
		{unix.ENOENT, first, nftables.ErrNoTable, "does not exist"},
		{unix.ENOENT, at("ct\x00"), nftables.ErrUnsupported, "expression ct"},
		{unix.ENOENT, at("cmp\x00"), nftables.ErrUnsupported, "expression cmp"},
		{unix.ENOENT, 0, unix.ENOENT, "no such file"},
		{unix.ENOENT, 1 << 30, unix.ENOENT, "no such file"},
		{unix.ENOENT, len(b) - 29, unix.ENOENT, "no such file"},
		{unix.EINVAL, first, unix.EINVAL, "invalid argument"},
	} {
		got := nftables.Explain(table, test.errno, test.bad, add)
		if !errors.Is(got, test.is) || !strings.Contains(got.Error(), test.word) {
			t.Errorf("%v at %d: %v", test.errno, test.bad, got)
		}
	}
}

// FuzzDecode: anything is read without harm. What is read without Unknown can be written, and is read
// again as the same.
func FuzzDecode(f *testing.F) {
	for _, o := range ops(example()) {
		b, err := nftables.Encode(table, o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, seed := range []string{
		"",
		// A generation of nft(8); an attribute that is longer than its message; a list in a list.
		"240000000f0a0000000000000700000000000000080001000000000508000200000004d2",
		"1c000000060a00000000000000000000010000000800010061000000ffff0400",
		"2c000000060a000000000000000000000100000018000480140001801000018008000180040001800400018004000180",
	} {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, rest := nftables.Transactions(table, b)
		for _, transaction := range append(all, rest) {
			if len(transaction.Changes) > 32 || transaction.All < len(transaction.Changes) {
				t.Fatalf("%d of %d changes", len(transaction.Changes), transaction.All)
			}
		}
		for len(b) > 0 {
			_, payload, rest, err := nlmsg.Next(b)
			if err != nil {
				break
			}
			b = rest
			decoded := nftables.Decode(payload)
			if n := len(decoded.InChain) + len(decoded.InSet) + len(decoded.Rule.Comment) + len(decoded.Set.Name); n > 4*len(payload) {
				t.Fatalf("%d bytes of names in %d", n, len(payload))
			}
			check(t, decoded)
		}
	})
}

// check writes what was read, and reads it again.
func check(t *testing.T, d nftables.Decoded) {
	t.Helper()
	unknown := slices.ContainsFunc(d.Rule.Exprs, func(e nftables.Expr) bool { _, unknown := e.(nftables.Unknown); return unknown || !writable(e) })
	if !unknown && len(d.Rule.Exprs) <= 128 && len(d.Rule.Comment) <= 127 {
		d.Rule.Handle = 0
		got := nftables.Decode(encoded(t, nftables.AddRule{Chain: "c", Rule: d.Rule}))
		if diff := cmp.Diff(d.Rule, got.Rule); diff != "" {
			t.Fatal(diff)
		}
	}
	if s := d.Set; !s.Unknown && s.Name != "" && len(s.Name) < 256 {
		s.Handle = 0
		if got := nftables.Decode(encoded(t, nftables.AddSet{Set: s})); !cmp.Equal(got.Set, s) {
			t.Fatalf("%+v became %+v", s, got.Set)
		}
	}
}

// writable reports whether the names in an expression are such as the kernel has.
func writable(e nftables.Expr) bool {
	name := func(s string) bool { return s != "" && len(s) < 256 }
	switch e := e.(type) {
	case nftables.Lookup:
		return name(e.Set)
	case nftables.VerdictMap:
		return name(e.Set)
	case nftables.Decide:
		goes := e.Verdict.Code == nftables.Jump || e.Verdict.Code == nftables.Goto
		return e.Verdict.Code != nftables.UnknownVerdict && goes == (e.Verdict.Chain != "") && len(e.Verdict.Chain) < 256
	case nftables.MetaLoad, nftables.MetaSet, nftables.Payload, nftables.CT, nftables.Cmp, nftables.Bitwise, nftables.Immediate, nftables.Counter:
		return true
	default:
		return false
	}
}
