package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Standing chain is one of any table, as [Conn.Ruleset] reads it.
type Standing struct {
	Table TableID
	Chain
	// IsBase says that the kernel calls the chain by itself: Base is that of a base chain.
	IsBase bool
}

// A NATKind is a way to translate addresses.
type NATKind uint8

// The ways.
const (
	SNAT NATKind = iota
	DNAT
	Masquerade
	Redirect
)

// String is the statement of nft(8).
func (k NATKind) String() string {
	return [...]string{SNAT: "snat", DNAT: "dnat", Masquerade: "masquerade", Redirect: "redirect"}[k]
}

// Translate translates addresses, by an expression of nf_tables or by a target of iptables-nft. It is read
// and never written.
type Translate struct {
	Kind NATKind
	// Source is the register that holds the new address, 0 if To holds it or if there is none.
	Source Register
	To     netip.Addr
}

// FIB asks the routing tables: `fib saddr . mark . iif oif`.
type FIB struct {
	// Result and Flags are NFT_FIB_RESULT_* and NFTA_FIB_F_* of linux/netfilter/nf_tables.h.
	Result, Flags uint32
	Dest          Register
}

// Numbers of [FIB].
const (
	FIBResultOIF = 1
	FIBSource    = 1 << 0
	FIBMark      = 1 << 2
	FIBIIF       = 1 << 3
)

// Mark sets some bits of the mark, as the target of iptables-nft does.
type Mark struct{ Value, Mask uint32 }

// ConnMark is the target of iptables-nft that saves the mark in the connection, or restores it.
type ConnMark struct{}

func (ConnMark) expr()  {}
func (Translate) expr() {}
func (FIB) expr()       {}
func (Mark) expr()      {}

func (e Translate) String() string {
	switch {
	case e.To.IsValid():
		return fmt.Sprintf("%s to %s", e.Kind, e.To)
	case e.Source != 0:
		return fmt.Sprintf("%s to %s", e.Kind, e.Source)
	default:
		return e.Kind.String()
	}
}

func (e FIB) String() string    { return fmt.Sprintf("fib %d flags %#x => %s", e.Result, e.Flags, e.Dest) }
func (ConnMark) String() string { return "connmark" }
func (e Mark) String() string {
	return fmt.Sprintf("mark set %#x/%#x", e.Value, e.Mask)
}

// Ruleset reads the chains of all tables with their rules, without sets and elements. It knows more
// expressions than [Conn.Read]: Translate, FIB, Mark and ConnMark. Tables that are switched off (dormant) are left out.
//
// The error is ErrUnsupported, ErrChanged if the ruleset changed during each of several attempts, and
// ErrTooLarge: the limits are those of Read, for all tables together.
func (c *Conn) Ruleset(ctx context.Context) ([]Standing, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range attempts {
		before, err := c.generation(ctx)
		if err != nil {
			return nil, fmt.Errorf("reading the ruleset of nf_tables: %w", err)
		}
		chains, failed := c.ruleset(ctx)
		after, err := c.generation(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading the ruleset of nf_tables: %w", err)
		case before != after, errors.Is(failed, errInterrupted):
		case failed != nil:
			return nil, fmt.Errorf("reading the ruleset of nf_tables: %w", failed)
		default:
			return chains, nil
		}
	}
	return nil, fmt.Errorf("reading the ruleset of nf_tables in %d attempts: %w", attempts, ErrChanged)
}

func (c *Conn) ruleset(ctx context.Context) ([]Standing, error) {
	dormant := map[TableID]bool{}
	if err := c.list(ctx, unix.NFT_MSG_GETTABLE, unix.AF_UNSPEC, nil, func(payload []byte) error {
		f, name := tableOf(payload)
		dormant[TableID{f, string(name)}] = decodeTable(payload).Dormant
		return bounded(len(dormant), maxChains, "tables")
	}); err != nil {
		return nil, err
	}
	type key struct {
		table TableID
		chain string
	}
	var out []Standing
	at := map[key]int{}
	if err := c.list(ctx, unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC, nil, func(payload []byte) error {
		f, name := tableOf(payload)
		s := Standing{Table: TableID{f, string(name)}, Chain: decodeChain(payload)}
		s.IsBase = s.Base.Type != ""
		if dormant[s.Table] {
			return nil
		}
		at[key{s.Table, s.Name}] = len(out)
		out = append(out, s)
		return bounded(len(out), maxChains, "chains")
	}); err != nil {
		return nil, err
	}
	rules := 0
	return out, c.list(ctx, unix.NFT_MSG_GETRULE, unix.AF_UNSPEC, nil, func(payload []byte) error {
		f, name := tableOf(payload)
		chain, rule := decodeRuleBy(payload, decodeAny)
		if i, known := at[key{TableID{f, string(name)}, chain}]; known {
			out[i].Rules = append(out[i].Rules, rule)
		}
		rules++
		return bounded(rules, maxRules, "rules")
	})
}

// decodeAny reads an expression, also those that are never written.
func decodeAny(x *expression) (Expr, bool) {
	switch x.name {
	case "nat":
		kind := SNAT
		if x.number(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT {
			kind = DNAT
		}
		source, _ := x.register(unix.NFTA_NAT_REG_ADDR_MIN)
		return Translate{Kind: kind, Source: source}, true
	case "masq":
		return Translate{Kind: Masquerade}, true
	case "redir":
		return Translate{Kind: Redirect}, true
	case "fib":
		dest, ok := x.register(fibDest)
		return FIB{Result: x.number(fibResult), Flags: x.number(fibFlags), Dest: dest}, ok
	case "target":
		return decodeTarget(x)
	default:
		return x.decode()
	}
}

// Attributes of the expression fib (NFTA_FIB_*).
const (
	fibDest   = 1
	fibResult = 2
	fibFlags  = 3
)

// decodeTarget reads a target of iptables-nft (net/netfilter/nft_compat.c).
func decodeTarget(x *expression) (Expr, bool) {
	info := x.attrs[unix.NFTA_TARGET_INFO]
	switch x.text(unix.NFTA_TARGET_NAME) {
	case "MASQUERADE":
		return Translate{Kind: Masquerade}, true
	case "REDIRECT":
		return Translate{Kind: Redirect}, true
	case "SNAT":
		return Translate{Kind: SNAT, To: rangeStart(x.number(unix.NFTA_TARGET_REV), info)}, true
	case "DNAT":
		return Translate{Kind: DNAT, To: rangeStart(x.number(unix.NFTA_TARGET_REV), info)}, true
	case "CONNMARK":
		return ConnMark{}, true
	case "MARK":
		const two, size = 2, 8 // struct xt_mark_tginfo2
		if x.number(unix.NFTA_TARGET_REV) == two && len(info) >= size {
			return Mark{binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:])}, true
		}
	}
	return nil, false
}

// rangeStart is the first address of struct nf_nat_ipv4_multi_range_compat (revision 0) and of struct
// nf_nat_range and nf_nat_range2 (later ones; include/uapi/linux/netfilter/nf_nat.h), zero if there is
// none. Of the latter it is not known whether they are IPv4's: an address that ends in twelve zero
// bytes is taken for one.
func rangeStart(revision uint32, info []byte) netip.Addr {
	const head, four, all = 8, 4, 16
	switch {
	case revision == 0 && len(info) >= head+four:
		a, _ := netip.AddrFromSlice(info[head : head+four])
		return valid(a)
	case revision > 0 && len(info) >= four+all:
		b := info[four : four+all]
		if [all - four]byte(b[four:]) == [all - four]byte{} {
			b = b[:four]
		}
		a, _ := netip.AddrFromSlice(b)
		return valid(a)
	default:
		return netip.Addr{}
	}
}

func valid(a netip.Addr) netip.Addr {
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// ReadBy finds what an expression left in a register before the n-th one of a rule, nil if nothing did.
func (r Rule) ReadBy(n int, register Register) Expr {
	for i := n - 1; i >= 0; i-- {
		switch e := r.Exprs[i].(type) {
		case Immediate:
			if e.Dest == register {
				return e
			}
		case MetaLoad:
			if e.Dest == register {
				return e
			}
		case Payload:
			if e.Dest == register {
				return e
			}
		case Bitwise:
			if e.Dest == register {
				return e
			}
		case CT:
			if e.Dest == register {
				return e
			}
		case FIB:
			if e.Dest == register {
				return e
			}
		}
	}
	return nil
}
