package answers

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
)

// encode is a rule in expressions, in the order that nft(8) would use for [answers.Rule.String].
func encode(r answers.Rule) (out []nftables.Expr) {
	add := func(e ...nftables.Expr) { out = append(out, e...) }
	meta := func(k nftables.MetaKey, op nftables.CmpOp, v nftables.Value) {
		add(nftables.MetaLoad{Key: k, Dest: nftables.Reg1}, nftables.Cmp{Op: op, Source: nftables.Reg1, Value: v})
	}
	if r.NeedsFamily() {
		if r.Family == routing.IPv4 {
			add(nftables.IPv4Only()...)
		} else {
			add(nftables.IPv6Only()...)
		}
	}
	if r.IIF != "" {
		meta(nftables.MetaIIFName, nftables.Equal, nftables.IfName(r.IIF))
	}
	if r.IIFGroup.Set {
		meta(nftables.MetaIIFGroup, nftables.Equal, nftables.Uint32(r.IIFGroup.Value))
	}
	if r.NotOIFGroup.Set {
		meta(nftables.MetaOIFGroup, nftables.NotEqual, nftables.Uint32(r.NotOIFGroup.Value))
	}
	if r.UID.Mask != 0 {
		add(masked(nftables.MetaSKUID, r.UID)...)
	}
	if r.Mark.Mask != 0 {
		add(masked(nftables.MetaMark, r.Mark)...)
	}
	if r.Protocol != 0 {
		meta(nftables.MetaL4Proto, nftables.Equal, nftables.Uint8(r.Protocol))
	}
	if d := direction(r.Direction); d != nftables.NoDirection {
		add(nftables.CT{Key: nftables.CTDirection, Dest: nftables.Reg1}, nftables.Cmp{Source: nftables.Reg1, Value: d.Value()})
	}
	if r.OriginalSource.IsValid() {
		add(within(nftables.CT{Key: ctSource(r.Family), Direction: nftables.Original, Dest: nftables.Reg1}, r.OriginalSource)...)
	}
	if r.ReplySource.IsValid() {
		add(within(nftables.CT{Key: ctSource(r.Family), Direction: nftables.Reply, Dest: nftables.Reg1}, r.ReplySource)...)
	}
	if r.Source.IsValid() {
		add(within(source(r.Family), r.Source)...)
	}
	if r.Destination.IsValid() {
		add(within(destination(r.Family), r.Destination)...)
	}
	if r.OIF != "" {
		meta(nftables.MetaOIFName, nftables.Equal, nftables.IfName(r.OIF))
	}
	if r.NotOIF != "" {
		meta(nftables.MetaOIFName, nftables.NotEqual, nftables.IfName(r.NotOIF))
	}
	if r.In.Key != answers.NoKey {
		add(key(r.Family, r.In.Key)...)
		add(nftables.Lookup{Set: r.In.Set, Source: nftables.Reg1})
	}
	return append(out, action(r)...)
}

// action is what a rule does, in expressions.
func action(r answers.Rule) []nftables.Expr {
	switch r.Action {
	case answers.ActionDrop:
		return []nftables.Expr{nftables.Counter{}, nftables.Decide{Verdict: nftables.Verdict{Code: nftables.Drop}}}
	case answers.ActionGoto:
		return []nftables.Expr{nftables.Decide{Verdict: nftables.Verdict{Code: nftables.Goto, Chain: r.Goto}}}
	case answers.ActionMap:
		return append(key(r.Family, r.Map.Key), nftables.VerdictMap{Set: r.Map.Set, Source: nftables.Reg1})
	case answers.ActionMark:
		return []nftables.Expr{
			nftables.MetaLoad{Key: nftables.MetaMark, Dest: nftables.Reg1},
			nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: nftables.Uint32(^r.Set.Mask), Xor: nftables.Uint32(r.Set.Value)},
			nftables.MetaSet{Key: nftables.MetaMark, Source: nftables.Reg1},
		}
	default:
		return []nftables.Expr{nftables.Decide{Verdict: nftables.Verdict{Code: nftables.Accept}}}
	}
}

func direction(d answers.Direction) nftables.Direction {
	switch d {
	case answers.Original:
		return nftables.Original
	case answers.Reply:
		return nftables.Reply
	default:
		return nftables.NoDirection
	}
}

// masked compares some bits of a number.
func masked(k nftables.MetaKey, m routing.Mark) []nftables.Expr {
	out := []nftables.Expr{nftables.MetaLoad{Key: k, Dest: nftables.Reg1}}
	if m.Mask != ^uint32(0) {
		out = append(out, nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: nftables.Uint32(m.Mask), Xor: nftables.Uint32(0)})
	}
	return append(out, nftables.Cmp{Source: nftables.Reg1, Value: nftables.Uint32(m.Value)})
}

func source(f routing.Family) nftables.Payload {
	if f == routing.IPv4 {
		return nftables.IPv4Saddr
	}
	return nftables.IPv6Saddr
}

func destination(f routing.Family) nftables.Payload {
	if f == routing.IPv4 {
		return nftables.IPv4Daddr
	}
	return nftables.IPv6Daddr
}

func ctSource(f routing.Family) nftables.CTKey {
	if f == routing.IPv4 {
		return nftables.CTSrcIP
	}
	return nftables.CTSrcIP6
}

func ctDestination(f routing.Family) nftables.CTKey {
	if f == routing.IPv4 {
		return nftables.CTDstIP
	}
	return nftables.CTDstIP6
}

// within compares an address with a prefix, as nft(8) does: only the bytes that the prefix has, if it ends
// with one. Of a packet no others are loaded then.
func within(load nftables.Expr, p netip.Prefix) []nftables.Expr {
	address := p.Masked().Addr().AsSlice()
	if whole := p.Bits() / 8; p.Bits()%8 == 0 {
		if payload, ok := load.(nftables.Payload); ok {
			payload.Length = uint8(whole) //nolint:gosec // at most 16
			load = payload
		}
		return []nftables.Expr{load, nftables.Cmp{Source: nftables.Reg1, Value: nftables.Value(address[:whole])}}
	}
	mask := make([]byte, len(address))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []nftables.Expr{
		load,
		nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: nftables.Value(mask), Xor: nftables.Value(make([]byte, len(address)))},
		nftables.Cmp{Source: nftables.Reg1, Value: nftables.Value(address)},
	}
}

// key loads the key of a lookup into the first registers.
func key(f routing.Family, k answers.Key) []nftables.Expr {
	second := nftables.Word(f.Bits() / 32)
	switch k {
	case answers.KeySource:
		return []nftables.Expr{source(f)}
	case answers.KeySourceOIF:
		return []nftables.Expr{source(f), nftables.MetaLoad{Key: nftables.MetaOIFName, Dest: second}}
	case answers.KeyDestination:
		return []nftables.Expr{destination(f)}
	case answers.KeyDestinationIIF:
		return []nftables.Expr{destination(f), nftables.MetaLoad{Key: nftables.MetaIIFName, Dest: second}}
	case answers.KeyOriginalDestination:
		return []nftables.Expr{nftables.CT{Key: ctDestination(f), Direction: nftables.Original, Dest: nftables.Reg1}}
	case answers.KeyReplyDestination:
		return []nftables.Expr{nftables.CT{Key: ctDestination(f), Direction: nftables.Reply, Dest: nftables.Reg1}}
	default:
		return nil
	}
}

// decode reads a rule of a chain of ours.
func decode(chain string, r nftables.Rule) answers.HeldRule {
	out := answers.HeldRule{Chain: chain, Handle: r.Handle, Origin: answers.Foreign, Text: text(r)}
	if c, counts := r.Counted(); counts {
		out.Packets, out.Bytes = c.Packets, c.Bytes
	}
	decision, ours := answers.DecisionOf(r.Comment)
	if !ours {
		return out
	}
	out.Origin = answers.Altered
	d := decoder{rest: r.Exprs, rule: answers.Rule{Chain: chain, Decision: decision}}
	// The decoder guesses. A rule that is encoded to something else is none of ours.
	if d.all() && same(encode(d.rule), r.Exprs) {
		out.Origin, out.Rule = answers.Unaltered, d.rule
	}
	return out
}

func same(a, b []nftables.Expr) bool { return nftables.Rule{Exprs: a}.Equal(nftables.Rule{Exprs: b}) }

// maxText bounds how much of a rule is shown.
const maxText = 200

func text(r nftables.Rule) string {
	var b strings.Builder
	for _, e := range r.Exprs {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(e.String())
		if b.Len() > maxText {
			return b.String()[:maxText] + "…"
		}
	}
	return b.String()
}

// A decoder reads expressions into a rule.
type decoder struct {
	rest []nftables.Expr
	rule answers.Rule
}

// all reads everything, and reports false for what no rule of ours has.
func (d *decoder) all() bool {
	for len(d.rest) > 0 {
		if !d.one() {
			return false
		}
	}
	return true
}

// take takes the next expression if it is of a type.
func take[E nftables.Expr](d *decoder) (e E, ok bool) {
	if len(d.rest) > 0 {
		if e, ok = d.rest[0].(E); ok {
			d.rest = d.rest[1:]
		}
	}
	return e, ok
}

func (d *decoder) one() bool {
	if m, ok := take[nftables.MetaLoad](d); ok {
		return d.meta(m.Key)
	}
	if c, ok := take[nftables.CT](d); ok {
		return d.connection(c)
	}
	if p, ok := take[nftables.Payload](d); ok {
		return d.payload(p)
	}
	if v, ok := take[nftables.Decide](d); ok {
		return d.decide(v.Verdict)
	}
	_, ok := take[nftables.Counter](d)
	return ok
}

func (d *decoder) decide(v nftables.Verdict) bool {
	switch v.Code {
	case nftables.Accept:
		d.rule.Action = answers.ActionAccept
	case nftables.Drop:
		d.rule.Action = answers.ActionDrop
	case nftables.Goto:
		d.rule.Action, d.rule.Goto = answers.ActionGoto, v.Chain
	default:
		return false
	}
	return true
}

func (d *decoder) meta(k nftables.MetaKey) bool {
	bitwise, masks := take[nftables.Bitwise](d)
	if _, sets := take[nftables.MetaSet](d); sets && masks && k == nftables.MetaMark {
		d.rule.Action, d.rule.Set = answers.ActionMark, routing.Mark{Value: number(bitwise.Xor), Mask: ^number(bitwise.Mask)}
		return true
	}
	c, ok := take[nftables.Cmp](d)
	if !ok {
		return false
	}
	mask := ^uint32(0)
	if masks {
		mask = number(bitwise.Mask)
	}
	switch k {
	case nftables.MetaNFProto:
		d.rule.Family = routing.IPv6
		if c.Value == nftables.Uint8(uint8(nftables.IPv4)) {
			d.rule.Family = routing.IPv4
		}
	case nftables.MetaIIFName:
		d.rule.IIF = name(c.Value)
	case nftables.MetaOIFName:
		if c.Op == nftables.Equal {
			d.rule.OIF = name(c.Value)
		} else {
			d.rule.NotOIF = name(c.Value)
		}
	case nftables.MetaIIFGroup:
		d.rule.IIFGroup = routing.Some(number(c.Value))
	case nftables.MetaOIFGroup:
		d.rule.NotOIFGroup = routing.Some(number(c.Value))
	case nftables.MetaSKUID:
		d.rule.UID = routing.Mark{Value: number(c.Value), Mask: mask}
	case nftables.MetaMark:
		d.rule.Mark = routing.Mark{Value: number(c.Value), Mask: mask}
	case nftables.MetaL4Proto:
		if len(c.Value) != 1 {
			return false
		}
		d.rule.Protocol = c.Value[0]
	default:
		return false
	}
	return true
}

func (d *decoder) connection(ct nftables.CT) bool {
	if ct.Key == nftables.CTDirection {
		c, ok := take[nftables.Cmp](d)
		d.rule.Direction = answers.Original
		if c.Value == nftables.Reply.Value() {
			d.rule.Direction = answers.Reply
		}
		return ok
	}
	d.rule.Family = routing.IPv4
	if ct.Key == nftables.CTSrcIP6 || ct.Key == nftables.CTDstIP6 {
		d.rule.Family = routing.IPv6
	}
	if m, ok := take[nftables.VerdictMap](d); ok {
		d.rule.Action = answers.ActionMap
		d.rule.Map = answers.Lookup{Key: answers.KeyReplyDestination, Set: m.Set}
		if ct.Direction == nftables.Original {
			d.rule.Map.Key = answers.KeyOriginalDestination
		}
		return true
	}
	p, ok := d.prefix()
	if ct.Direction == nftables.Original {
		d.rule.OriginalSource = p
	} else {
		d.rule.ReplySource = p
	}
	return ok
}

func (d *decoder) payload(p nftables.Payload) bool {
	isSource := p.Offset == source(d.rule.Family).Offset
	if _, pair := take[nftables.MetaLoad](d); pair {
		l, ok := take[nftables.Lookup](d)
		d.rule.In = answers.Lookup{Key: answers.KeyDestinationIIF, Set: l.Set}
		if isSource {
			d.rule.In.Key = answers.KeySourceOIF
		}
		return ok
	}
	of := answers.KeyDestination
	if isSource {
		of = answers.KeySource
	}
	if l, ok := take[nftables.Lookup](d); ok {
		d.rule.In = answers.Lookup{Key: of, Set: l.Set}
		return true
	}
	if m, ok := take[nftables.VerdictMap](d); ok {
		d.rule.Action, d.rule.Map = answers.ActionMap, answers.Lookup{Key: of, Set: m.Set}
		return true
	}
	prefix, ok := d.prefix()
	if isSource {
		d.rule.Source = prefix
	} else {
		d.rule.Destination = prefix
	}
	return ok
}

// prefix reads what an address is compared with.
func (d *decoder) prefix() (netip.Prefix, bool) {
	bitwise, masks := take[nftables.Bitwise](d)
	c, ok := take[nftables.Cmp](d)
	bytes := make([]byte, d.rule.Family.Bits()/8)
	if !ok || copy(bytes, c.Value) != len(c.Value) {
		return netip.Prefix{}, false
	}
	length := len(c.Value) * 8
	if masks {
		length = 0
		for _, b := range []byte(bitwise.Mask) {
			length += bits.OnesCount8(b)
		}
	}
	a, _ := netip.AddrFromSlice(bytes)
	p, err := a.Prefix(length)
	return p, err == nil
}

// number reads a number of 32 bits, 0 if it is none.
func number(v nftables.Value) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32([]byte(v))
}

// name reads the name of an interface.
func name(v nftables.Value) string {
	n, _, _ := strings.Cut(string(v), "\x00")
	return n
}

// setOf is a set for nf_tables.
func setOf(s answers.Set) nftables.Set {
	out := nftables.Set{Name: s.Name, Key: nftables.IPv4Address, Verdicts: s.Kind == answers.Verdicts}
	if s.Family == routing.IPv6 {
		out.Key = nftables.IPv6Address
	}
	if s.Kind == answers.Pairs {
		out.Key = nftables.Concat(out.Key, nftables.InterfaceName)
	}
	return out
}

// chainOf is a chain for nf_tables.
func chainOf(c answers.Chain) nftables.Chain {
	out := nftables.Chain{Name: c.Name}
	switch c.Hook {
	case answers.Prerouting:
		out.Base = nftables.Base{Type: nftables.Filter, Hook: nftables.Prerouting, Priority: c.Priority, Policy: nftables.PolicyAccept}
	case answers.Postrouting:
		out.Base = nftables.Base{Type: nftables.Filter, Hook: nftables.Postrouting, Priority: c.Priority, Policy: nftables.PolicyAccept}
	case answers.NoHook:
	}
	return out
}

// elementOf is an element for nf_tables.
func elementOf(e answers.Element) nftables.Element {
	out := nftables.Element{Key: nftables.Addr(e.Address)}
	if s, _ := answers.SetNamed(e.Set); s.Kind == answers.Pairs {
		out.Key = nftables.Key(out.Key, nftables.IfName(e.Interface))
	}
	if e.Number != 0 {
		out.Verdict = nftables.Verdict{Code: nftables.Goto, Chain: answers.LinkChain(e.Number)}
	}
	return out
}

// decodeElement reads an element, false if its key is no key of ours.
func decodeElement(s answers.Set, e nftables.Element) (answers.HeldElement, bool) {
	size := s.Family.Bits() / 8
	if len(e.Key) < size {
		return answers.HeldElement{}, false
	}
	address, _ := netip.AddrFromSlice([]byte(e.Key[:size]))
	out := answers.HeldElement{Element: answers.Element{Set: s.Name, Address: address}, Altered: e.Unknown}
	if s.Kind == answers.Pairs {
		out.Element.Interface = name(e.Key[size:])
	}
	if s.Kind == answers.Verdicts {
		number, leads := answers.LinkNumber(e.Verdict.Chain)
		if leads && e.Verdict.Code == nftables.Goto {
			out.Element.Number = number
		} else {
			out.Altered = true
		}
	}
	return out, elementOf(out.Element).Key == e.Key
}

// decodeTable reads what the kernel holds.
func decodeTable(t nftables.Table) answers.Held {
	h := answers.Held{Exists: true, Dormant: t.Dormant}
	for _, c := range t.Chains {
		planned, ours := answers.ChainNamed(c.Name)
		if !ours {
			h.Others = append(h.Others, "chain "+c.Name)
			continue
		}
		h.Chains = append(h.Chains, answers.HeldChain{Name: c.Name, Altered: chainOf(planned).Base != c.Base})
		for _, r := range c.Rules {
			h.Rules = append(h.Rules, decode(c.Name, r))
		}
	}
	for _, s := range t.Sets {
		planned, ours := answers.SetNamed(s.Name)
		if !ours {
			h.Others = append(h.Others, "set "+s.Name)
			continue
		}
		want := setOf(planned)
		elements, ok := decodeElements(planned, s.Elements)
		altered := !ok || s.Unknown || s.Key != want.Key || s.Verdicts != want.Verdicts
		h.Sets = append(h.Sets, answers.HeldSet{Name: s.Name, Altered: altered})
		if !altered {
			h.Elements = append(h.Elements, elements...)
		}
	}
	if t.Others > 0 {
		h.Others = append(h.Others, "a named object or flowtable")
	}
	if t.Owner != 0 {
		h.Others = append(h.Others, "the flag owner")
	}
	return h
}

func decodeElements(s answers.Set, list []nftables.Element) ([]answers.HeldElement, bool) {
	out := make([]answers.HeldElement, 0, len(list))
	for _, e := range list {
		// The length of an element of another type may be any.
		h, ok := decodeElement(s, e)
		if !ok {
			return nil, false
		}
		out = append(out, h)
	}
	return out, true
}

// opsOf are the operations of one transaction for nf_tables. Elements of one set that follow each other
// are one operation.
func opsOf(ops []answers.Op) (out []nftables.Op) {
	for len(ops) > 0 {
		o := ops[0]
		n := 1
		switch o.Verb {
		case answers.AddElement, answers.DeleteElement:
			var elements []nftables.Element
			for n = 0; n < len(ops) && ops[n].Verb == o.Verb && ops[n].Element.Set == o.Element.Set; n++ {
				elements = append(elements, elementOf(ops[n].Element))
			}
			if o.Verb == answers.AddElement {
				out = append(out, nftables.AddElements{Set: o.Element.Set, Elements: elements})
			} else {
				for i := range elements {
					elements[i].Verdict = nftables.Verdict{}
				}
				out = append(out, nftables.DeleteElements{Set: o.Element.Set, Elements: elements})
			}
		case answers.AddTable:
			out = append(out, nftables.AddTable{})
		case answers.DeleteTable:
			out = append(out, nftables.DeleteTable{})
		case answers.AddChain:
			out = append(out, nftables.AddChain{Chain: chainOf(o.Chain)})
		case answers.DeleteChain:
			out = append(out, nftables.DeleteChain{Chain: o.Chain.Name})
		case answers.AddSet:
			out = append(out, nftables.AddSet{Set: setOf(o.Set)})
		case answers.DeleteSet:
			out = append(out, nftables.DeleteSet{Set: o.Set.Name})
		case answers.AddRule:
			out = append(out, addRule(o))
		case answers.DeleteRule:
			out = append(out, nftables.DeleteRule{Chain: o.Rule.Chain, Handle: o.Handle})
		}
		ops = ops[n:]
	}
	return slices.Clip(out)
}

func addRule(o answers.Op) nftables.Op {
	r := nftables.Rule{Exprs: encode(o.Rule), Comment: o.Rule.Decision.Comment()}
	if o.Handle != 0 {
		return nftables.InsertRule{Chain: o.Rule.Chain, Rule: r, Before: o.Handle}
	}
	return nftables.AddRule{Chain: o.Rule.Chain, Rule: r}
}
