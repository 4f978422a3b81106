package nftables

import "fmt"

// An Expr is one step of a rule. It is one of the types of this package: MetaLoad, MetaSet, Payload,
// CT, Cmp, Bitwise, Lookup, VerdictMap, Immediate, Decide, Counter and Unknown, never a pointer to one.
// They can be compared with ==.
type Expr interface {
	fmt.Stringer
	expr()
}

// A Register holds what an expression loads until another compares it. It is a number of netlink
// (enum nft_registers): 1 to 4 are registers of 16 bytes, and each of them is four words, which have
// numbers of their own. [Word] is one of these.
type Register uint8

// The registers of 16 bytes.
const (
	Reg1 Register = 1 + iota
	Reg2
	Reg3
	Reg4
)

// words is how many words the registers have (NFT_REG32_COUNT).
const words = 16

// firstWord is NFT_REG32_00.
const firstWord = 8

// Word is the register of 4 bytes that begins 4*n bytes after Reg1; n is below 16. It is named as the
// kernel names it when it is read: Word(0) is Reg1, Word(4) is Reg2, Word(1) is NFT_REG32_01. nft(8)
// puts the second part of `ip saddr . oifname` into Word(1), of `ip6 saddr . oifname` into Word(4).
func Word(n int) Register {
	if n%4 == 0 {
		return Register(1 + n/4) //nolint:gosec // at most 4
	}
	return Register(firstWord + n) //nolint:gosec // at most 23
}

// A MetaKey is what meta loads (enum nft_meta_keys).
type MetaKey uint32

// The keys.
const (
	MetaMark     MetaKey = 3
	MetaIIF      MetaKey = 4
	MetaOIF      MetaKey = 5
	MetaIIFName  MetaKey = 6
	MetaOIFName  MetaKey = 7
	MetaSKUID    MetaKey = 10
	MetaNFProto  MetaKey = 15
	MetaL4Proto  MetaKey = 16
	MetaIIFGroup MetaKey = 21
	MetaOIFGroup MetaKey = 22
)

// MetaLoad loads something about a packet that is not in it: `meta mark`.
type MetaLoad struct {
	Key  MetaKey
	Dest Register
}

// MetaSet sets it, from a register: `meta mark set`. The kernel sets marks and few others.
type MetaSet struct {
	Key    MetaKey
	Source Register
}

// Payload loads bytes of the network header.
type Payload struct {
	Offset, Length uint8
	Dest           Register
}

// Addresses in the network header. Each needs the right nfproto before it in a table of INet: see
// [IPv4Only] and [IPv6Only].
//
//nolint:gochecknoglobals // constants in all but name
var (
	IPv4Saddr = Payload{Offset: 12, Length: 4, Dest: Reg1}
	IPv4Daddr = Payload{Offset: 16, Length: 4, Dest: Reg1}
	IPv6Saddr = Payload{Offset: 8, Length: 16, Dest: Reg1}
	IPv6Daddr = Payload{Offset: 24, Length: 16, Dest: Reg1}
)

// A CTKey is what ct loads (enum nft_ct_keys).
type CTKey uint32

// The keys. Addresses are of one direction of the connection.
const (
	CTDirection CTKey = 1
	CTSrcIP     CTKey = 19
	CTDstIP     CTKey = 20
	CTSrcIP6    CTKey = 21
	CTDstIP6    CTKey = 22
)

// A Direction is a direction of a connection (enum ip_conntrack_dir), or none.
type Direction uint8

// The directions. Original is the one of the first packet.
const (
	NoDirection Direction = iota
	Original
	Reply
)

// Value is the value that ct loads for the key CTDirection.
func (d Direction) Value() Value {
	if d == Reply {
		return Uint8(1)
	}
	return Uint8(0)
}

// CT loads something about the connection of a packet: `ct direction` without a direction,
// `ct original ip daddr` with one. A rule ends there for a packet without connection, and for an
// address of the other family.
type CT struct {
	Key       CTKey
	Direction Direction
	Dest      Register
}

// A CmpOp compares (enum nft_cmp_ops).
type CmpOp uint8

// The comparisons.
const (
	Equal    CmpOp = 0
	NotEqual CmpOp = 1
)

// Cmp ends the rule for a packet whose register is not so.
type Cmp struct {
	Op     CmpOp
	Source Register
	Value  Value
}

// Bitwise computes (source & mask) ^ xor. Mask and Xor are as long as what is computed.
type Bitwise struct {
	Source, Dest Register
	Mask, Xor    Value
}

// Lookup ends the rule for a packet whose key is not in a set, or with Not for one whose key is.
type Lookup struct {
	Set    string
	Source Register
	Not    bool
}

// VerdictMap looks for a key in a map, and decides as it says. The rule ends for a packet whose key is
// not there.
type VerdictMap struct {
	Set    string
	Source Register
}

// Immediate loads a constant.
type Immediate struct {
	Dest  Register
	Value Value
}

// Decide gives a verdict.
type Decide struct{ Verdict Verdict }

// Counter counts packets. What it has counted is 0 in a rule that is added.
type Counter struct{ Packets, Bytes uint64 }

// Unknown stands for an expression, or a form of one, that this package does not know. Name is the
// kernel's. It cannot be written.
type Unknown struct{ Name string }

func (MetaLoad) expr()   {}
func (MetaSet) expr()    {}
func (Payload) expr()    {}
func (CT) expr()         {}
func (Cmp) expr()        {}
func (Bitwise) expr()    {}
func (Lookup) expr()     {}
func (VerdictMap) expr() {}
func (Immediate) expr()  {}
func (Decide) expr()     {}
func (Counter) expr()    {}
func (Unknown) expr()    {}

// IPv4Only and IPv6Only end the rule for packets of the other family. nft(8) puts them before
// `ip saddr` and the like in tables of INet, and does not show them there.
func IPv4Only() []Expr { return only(IPv4) }

// IPv6Only is described at [IPv4Only].
func IPv6Only() []Expr { return only(IPv6) }

func only(f Family) []Expr {
	return []Expr{MetaLoad{MetaNFProto, Reg1}, Cmp{Equal, Reg1, Uint8(uint8(f))}}
}
