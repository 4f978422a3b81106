package gather

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/doctor"
	"multihomed/internal/nftables"
	"multihomed/routing"
)

// filtered are the findings that need the firewall.
func filtered() []routing.Code {
	return []routing.Code{
		doctor.SNATAddress, doctor.MasqueradeMissing, doctor.FirewallMark, doctor.StrictMarks, doctor.PublishedPort, doctor.RPFilter6,
	}
}

// ownTable is multihomed's.
const ownTable = "multihomed"

// filter reads the firewall.
func (r *reading) filter(ctx context.Context) {
	chains, err := ruleset(ctx)
	switch {
	case err == nil:
		names := map[uint32]string{}
		for _, i := range r.Interfaces {
			names[uint32(i.Index)] = i.Name //nolint:gosec // the kernel's number
		}
		r.Filter = Flatten(chains, names)
	case errors.Is(err, nftables.ErrUnsupported):
		// A kernel without it has no rules either.
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		r.miss("the rules of nf_tables can only be read by root", filtered()...)
	default:
		r.miss(err.Error(), filtered()...)
	}
	// Rules of the old kind are in a kernel table that nobody can read piece by piece.
	if names, err := r.text("proc/net/ip_tables_names"); err == nil && len(names) > 0 {
		r.miss("the rules of iptables-legacy are not read", filtered()...)
	}
}

func ruleset(ctx context.Context) (_ []nftables.Standing, err error) {
	conn, err := nftables.Open()
	if err != nil {
		return nil, fmt.Errorf("opening a socket to nf_tables: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return conn.Ruleset(ctx)
}

// Bounds of a walk through chains: the kernel allows 16 jumps (NFT_JUMP_STACK_SIZE).
const (
	deepest  = 16
	mostSeen = 1 << 16
)

// Flatten walks all chains that the kernel calls, and returns the rules that do something that matters,
// in the order in which packets meet them, with what leads to each. Names are those of interfaces by
// index. Maps from keys to verdicts are not followed.
func Flatten(chains []nftables.Standing, names map[uint32]string) []doctor.FilterRule {
	w := walk{chains: map[nftables.TableID]map[string]*nftables.Standing{}, names: names, left: mostSeen}
	var bases []*nftables.Standing
	for i := range chains {
		c := &chains[i]
		if c.Table.Name == ownTable {
			continue
		}
		if w.chains[c.Table] == nil {
			w.chains[c.Table] = map[string]*nftables.Standing{}
		}
		w.chains[c.Table][c.Name] = c
		if c.IsBase {
			bases = append(bases, c)
		}
	}
	slices.SortStableFunc(bases, func(a, b *nftables.Standing) int { return cmp.Compare(a.Base.Priority, b.Base.Priority) })
	for _, base := range bases {
		// iptables-nft names its base chains in capitals, as iptables always did.
		from := doctor.FilterRule{Table: base.Table.String(), Base: base.Name, XT: strings.ToUpper(base.Name) == base.Name}
		switch base.Base.Hook {
		case nftables.Prerouting:
			from.Hook = "prerouting"
		case nftables.Output:
			from.Hook = "output"
		case nftables.Postrouting:
			from.Hook = "postrouting"
		default:
			continue
		}
		switch base.Table.Family {
		case nftables.INet:
			from.IPv4, from.IPv6 = true, true
		case nftables.IPv4:
			from.IPv4 = true
		case nftables.IPv6:
			from.IPv6 = true
		default:
			continue
		}
		w.follow(base, from, 0)
	}
	return w.found
}

type walk struct {
	chains map[nftables.TableID]map[string]*nftables.Standing
	names  map[uint32]string
	found  []doctor.FilterRule
	left   int
}

// follow walks a chain that packets reach as from says.
func (w *walk) follow(c *nftables.Standing, from doctor.FilterRule, depth int) {
	for _, rule := range c.Rules {
		if w.left--; w.left < 0 {
			return
		}
		r := from
		r.Chain, r.Handle = c.Name, rule.Handle
		r.In, r.Out = slices.Clone(from.In), slices.Clone(from.Out)
		for n, e := range rule.Exprs {
			w.take(c, &r, rule, n, e, depth)
		}
	}
}

// take takes one expression of a rule.
func (w *walk) take(c *nftables.Standing, r *doctor.FilterRule, rule nftables.Rule, n int, e nftables.Expr, depth int) {
	add := func(d doctor.Deed) {
		r.Deed = d
		w.found = append(w.found, *r)
	}
	switch e := e.(type) {
	case nftables.Cmp:
		w.compare(r, rule, n, e)
	case nftables.Lookup, nftables.VerdictMap, nftables.Unknown:
		r.Narrow = true
	case nftables.Mark:
		r.Value, r.Mask = e.Value, e.Mask
		add(doctor.Mark)
	case nftables.ConnMark:
		add(doctor.RestoreMark)
	case nftables.MetaSet:
		if e.Key != nftables.MetaMark {
			return
		}
		switch source := rule.ReadBy(n, e.Source).(type) {
		case nftables.Immediate:
			if len(source.Value) == markSize {
				r.Value, r.Mask = binary.NativeEndian.Uint32([]byte(source.Value)), ^uint32(0)
				add(doctor.Mark)
			}
		case nftables.CT:
			add(doctor.RestoreMark)
		case nftables.Bitwise:
			switch rule.ReadBy(slices.Index(rule.Exprs, nftables.Expr(source)), source.Source).(type) {
			case nftables.CT:
				add(doctor.RestoreMark)
			case nftables.MetaLoad: // Some bits of the mark, as in `meta mark set meta mark or 4`.
				if len(source.Mask) == markSize && len(source.Xor) == markSize {
					r.Value = binary.NativeEndian.Uint32([]byte(source.Xor))
					r.Mask = ^binary.NativeEndian.Uint32([]byte(source.Mask)) | r.Value
					add(doctor.Mark)
				}
			}
		}
	case nftables.Translate:
		r.To = e.To
		if source, is := rule.ReadBy(n, e.Source).(nftables.Immediate); is && e.Source != 0 {
			r.To, _ = netip.AddrFromSlice([]byte(source.Value))
		}
		switch e.Kind {
		case nftables.SNAT:
			add(doctor.SNAT)
		case nftables.DNAT:
			add(doctor.DNAT)
		case nftables.Masquerade:
			add(doctor.Masquerade)
		case nftables.Redirect:
		}
	case nftables.Decide:
		below := w.chains[c.Table][e.Verdict.Chain]
		switch {
		case e.Verdict.Code == nftables.Drop && strictFIB(rule):
			add(doctor.DropStray)
		case below != nil && depth < deepest:
			w.follow(below, *r, depth+1)
		}
	}
}

// markSize is the length of a mark in bytes.
const markSize = 4

// strictFIB reports whether a rule asks whether the way back is the interface that a packet came by.
func strictFIB(rule nftables.Rule) bool {
	return slices.ContainsFunc(rule.Exprs, func(e nftables.Expr) bool {
		f, is := e.(nftables.FIB)
		return is && f.Flags&nftables.FIBSource != 0 && f.Flags&nftables.FIBIIF != 0 && f.Result == nftables.FIBResultOIF
	})
}

// compare takes a comparison: of an interface, of the family, of the source; or of something that is
// not known here.
func (w *walk) compare(r *doctor.FilterRule, rule nftables.Rule, n int, e nftables.Cmp) {
	switch left := rule.ReadBy(n, e.Source).(type) {
	case nftables.MetaLoad:
		switch left.Key {
		case nftables.MetaIIFName:
			r.In = append(r.In, match(e))
		case nftables.MetaOIFName:
			r.Out = append(r.Out, match(e))
		case nftables.MetaIIF:
			r.In = append(r.In, w.matchIndex(e))
		case nftables.MetaOIF:
			r.Out = append(r.Out, w.matchIndex(e))
		case nftables.MetaNFProto:
			is := len(e.Value) == 1 && e.Op == nftables.Equal
			r.IPv4 = r.IPv4 && is && nftables.Family(e.Value[0]) == nftables.IPv4
			r.IPv6 = r.IPv6 && is && nftables.Family(e.Value[0]) == nftables.IPv6
		case nftables.MetaL4Proto:
			r.Except = true
		default:
			r.Narrow = true
		}
	case nftables.Payload:
		setAddress(r, left, e, "")
	case nftables.Bitwise:
		if p, is := rule.ReadBy(slices.Index(rule.Exprs, nftables.Expr(left)), left.Source).(nftables.Payload); is {
			setAddress(r, p, e, left.Mask)
			return
		}
		r.Narrow = true
	case nftables.FIB:
	default:
		r.Narrow = true
	}
}

// match is a comparison with the name of an interface. The kernel compares a name to its NUL, or the
// beginning alone.
func match(e nftables.Cmp) doctor.Match {
	name, _, ends := strings.Cut(string(e.Value), "\x00")
	if !ends {
		name += "*"
	}
	return doctor.Match{Name: name, Not: e.Op == nftables.NotEqual}
}

// protocol is where the header of IPv4 has the protocol.
const protocol = 9

// matchIndex is a comparison with the index of an interface (`oif`): nft(8) takes the name that the
// interface had when the rule was made.
func (w *walk) matchIndex(e nftables.Cmp) doctor.Match {
	m := doctor.Match{Not: e.Op == nftables.NotEqual}
	if len(e.Value) == indexSize {
		m.Name = w.names[binary.NativeEndian.Uint32([]byte(e.Value))]
	}
	return m
}

// indexSize is the length of the index of an interface in bytes.
const indexSize = 4

// setAddress takes a comparison of bytes of the header: the source, packets that are left out, or
// something else. Without a mask, nft(8) loads only as many bytes as the prefix is long.
func setAddress(r *doctor.FilterRule, p nftables.Payload, e nftables.Cmp, mask nftables.Value) {
	size := 0
	switch {
	case p.Offset == protocol && p.Length == 1 && !r.IPv6, e.Op == nftables.NotEqual && (p.Offset == nftables.IPv4Daddr.Offset && !r.IPv6 || p.Offset == nftables.IPv6Daddr.Offset && !r.IPv4):
		r.Except = true
		return
	case p.Offset == nftables.IPv4Saddr.Offset && p.Length <= nftables.IPv4Saddr.Length && !r.IPv6:
		size = int(nftables.IPv4Saddr.Length)
	case p.Offset == nftables.IPv6Saddr.Offset && p.Length <= nftables.IPv6Saddr.Length && !r.IPv4:
		size = int(nftables.IPv6Saddr.Length)
	}
	if size == 0 || e.Op != nftables.Equal || r.Source.IsValid() || len(e.Value) != int(p.Length) {
		r.Narrow = true
		return
	}
	bits := 0
	for i := range len(e.Value) {
		b := byte(0xff)
		if mask != "" {
			if i >= len(mask) {
				break
			}
			b = mask[i]
		}
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	bytes := append([]byte(e.Value), make([]byte, size-len(e.Value))...)
	a, _ := netip.AddrFromSlice(bytes)
	r.Source = netip.PrefixFrom(a, bits)
}
