package nftables

import (
	"fmt"
	"slices"
)

// A Family is the family of a table (NFPROTO_* of include/uapi/linux/netfilter.h).
type Family uint8

// The families. A table of INet sees IPv4 and IPv6.
const (
	INet   Family = 1
	IPv4   Family = 2
	ARP    Family = 3
	NetDev Family = 5
	Bridge Family = 7
	IPv6   Family = 10
)

// String is the name that nft(8) uses.
func (f Family) String() string {
	switch f {
	case INet:
		return "inet"
	case IPv4:
		return "ip"
	case ARP:
		return "arp"
	case NetDev:
		return "netdev"
	case Bridge:
		return "bridge"
	case IPv6:
		return "ip6"
	default:
		return fmt.Sprintf("family %d", uint8(f))
	}
}

// A TableID names a table.
type TableID struct {
	Family Family
	Name   string
}

// String is as nft(8) writes it: inet multihomed.
func (id TableID) String() string { return id.Family.String() + " " + id.Name }

// A Generation is the number of a state of the whole ruleset, of all tables in the network
// namespace. The kernel increments it with every transaction, whoever makes it. It is never 0.
type Generation uint32

// A Table is what stands in a table.
type Table struct {
	// Dormant is true if the hooks are not called (`flags dormant`).
	Dormant bool
	// Owner is the netlink port that alone may change the table (`flags owner`), 0 if everybody may.
	Owner uint32
	// Chains and Sets are in the order of the kernel: the oldest chain is the first.
	Chains []Chain
	Sets   []Set
	// Others counts objects of other kinds, such as flowtables and named counters.
	Others int
}

// Chain returns the chain of a name, nil if there is none.
func (t *Table) Chain(name string) *Chain {
	if i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name }); i >= 0 {
		return &t.Chains[i]
	}
	return nil
}

// Set returns the set or map of a name, nil if there is none.
func (t *Table) Set(name string) *Set {
	if i := slices.IndexFunc(t.Sets, func(s Set) bool { return s.Name == name }); i >= 0 {
		return &t.Sets[i]
	}
	return nil
}

// A Chain is a list of rules.
type Chain struct {
	Name string
	// Base makes it a base chain, which the kernel calls for packets. The zero value makes a regular
	// chain, to which rules jump.
	Base Base
	// Rules are in their order. AddChain does not add them: AddRule does.
	Rules []Rule
	// Handle is the number that the kernel gave it, 0 in what is not read.
	Handle uint64
}

// A Base says when the kernel calls a chain.
type Base struct {
	Type     ChainType
	Hook     Hook
	Priority int32
	Policy   Policy
}

// A ChainType is the type of a base chain.
type ChainType string

// The types of base chains.
const (
	Filter ChainType = "filter"
	Route  ChainType = "route"
	NAT    ChainType = "nat"
)

// A Hook is a place in the way of a packet (enum nf_inet_hooks).
type Hook uint32

// The hooks of the families INet, IPv4, IPv6 and Bridge.
const (
	Prerouting  Hook = 0
	Input       Hook = 1
	Forward     Hook = 2
	Output      Hook = 3
	Postrouting Hook = 4
)

// Priorities that have a name in nft(8) (enum nf_ip_hook_priorities).
const (
	PriorityMangle int32 = -150
	PriorityDstNAT int32 = -100
	PriorityFilter int32 = 0
	PrioritySrcNAT int32 = 100
)

// A Policy is the verdict for a packet that reaches the end of a base chain.
type Policy uint32

// The policies. The zero value is PolicyDrop, as in the kernel.
const (
	PolicyDrop   Policy = 0
	PolicyAccept Policy = 1
)

// A Rule is a list of expressions.
type Rule struct {
	Exprs []Expr
	// Comment is shown by nft(8) as `comment "..."`. It has at most 127 bytes.
	Comment string
	// Handle is the number that the kernel gave it, 0 in what is not read.
	Handle uint64
}

// Equal reports whether two rules say the same: what counters have counted and the handle do not
// matter.
func (r Rule) Equal(other Rule) bool {
	return r.Comment == other.Comment && slices.EqualFunc(r.Exprs, other.Exprs, func(a, b Expr) bool {
		if _, counts := a.(Counter); counts {
			_, both := b.(Counter)
			return both
		}
		return a == b
	})
}

// Counted returns what the first counter of the rule has counted, false if it has none.
func (r Rule) Counted() (Counter, bool) {
	for _, e := range r.Exprs {
		if c, ok := e.(Counter); ok {
			return c, true
		}
	}
	return Counter{}, false
}

// A Set is a named set of keys, or a map from keys to verdicts.
type Set struct {
	Name string
	Key  KeyType
	// Verdicts makes it a map (`type KEY : verdict`).
	Verdicts bool
	// Elements are read in the order of their keys. AddSet does not add them: AddElements does.
	Elements []Element
	// Unknown is true for a set that this package cannot describe: with intervals, timeouts, values that
	// are no verdicts, and so on. Its elements are not read.
	Unknown bool
	// Handle is the number that the kernel gave it, 0 in what is not read.
	Handle uint64
}

// A KeyType is the type of the keys of a set: a number of nft(8), which the kernel keeps and does not
// read (enum datatypes of nftables' datatype.h). [Concat] makes more of them.
type KeyType uint32

// The types of keys that this package knows by name.
const (
	IPv4Address   KeyType = 7  // ipv4_addr
	IPv6Address   KeyType = 8  // ipv6_addr
	InterfaceName KeyType = 41 // ifname
)

// typeBits is how many bits a type of a concatenation takes (TYPE_BITS of nftables' datatype.h).
const typeBits = 6

// Concat is the type of a concatenation of up to five types: ipv4_addr . ifname.
func Concat(types ...KeyType) (all KeyType) {
	for _, t := range types {
		all = all<<typeBits | t
	}
	return all
}

// String is as nft(8) writes it.
func (k KeyType) String() string {
	if k > 1<<typeBits-1 {
		return (k >> typeBits).String() + " . " + (k & (1<<typeBits - 1)).String()
	}
	switch k {
	case IPv4Address:
		return "ipv4_addr"
	case IPv6Address:
		return "ipv6_addr"
	case InterfaceName:
		return "ifname"
	default:
		return fmt.Sprintf("type %d", uint32(k))
	}
}

// length is how many bytes a key has, 0 for types without a name here.
func (k KeyType) length() (n int) {
	for ; k != 0; k >>= typeBits {
		switch k & (1<<typeBits - 1) {
		case IPv4Address:
			n += 4
		case IPv6Address, InterfaceName:
			n += 16
		default:
			return 0
		}
	}
	return n
}

// An Element is an element of a set. Two elements with the same key are never in one set.
type Element struct {
	Key Value
	// Verdict is for a map. For a set it is the zero value.
	Verdict Verdict
	// Unknown is true for an element with more than that: a timeout, a counter, or a key that is none
	// (`*`).
	Unknown bool
}

// A Verdict decides about a packet. The zero value is none.
type Verdict struct {
	Code VerdictCode
	// Chain is where Jump and Goto go to.
	Chain string
}

// A VerdictCode is a kind of verdict.
type VerdictCode uint8

// The verdicts.
const (
	NoVerdict VerdictCode = iota
	Accept
	Drop
	Jump
	Goto
	Return
	Continue
	// UnknownVerdict is read for another one, such as queue.
	UnknownVerdict
)

// String is as nft(8) writes it: goto link1.
func (v Verdict) String() string {
	names := [...]string{"no verdict", "accept", "drop", "jump", "goto", "return", "continue", "unknown verdict"}
	if int(v.Code) >= len(names) {
		return names[UnknownVerdict]
	}
	if v.Chain != "" {
		return names[v.Code] + " " + v.Chain
	}
	return names[v.Code]
}

// Translation says in which family a base chain of type nat stands.
type Translation struct {
	IPv4, IPv6 bool
}
