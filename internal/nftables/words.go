package nftables

import (
	"fmt"
	"strings"
)

// String is as `nft --debug=netlink` writes it, but for values, which are in the order of bytes here.
func (r Register) String() string { return fmt.Sprintf("reg %d", uint8(r)) }

// String is the keyword of nft(8).
func (k MetaKey) String() string {
	switch k {
	case MetaMark:
		return "mark"
	case MetaIIFName:
		return "iifname"
	case MetaOIFName:
		return "oifname"
	case MetaSKUID:
		return "skuid"
	case MetaNFProto:
		return "nfproto"
	case MetaL4Proto:
		return "l4proto"
	case MetaIIFGroup:
		return "iifgroup"
	case MetaOIFGroup:
		return "oifgroup"
	default:
		return fmt.Sprintf("key %d", uint32(k))
	}
}

// String is the keyword of libnftnl.
func (k CTKey) String() string {
	switch k {
	case CTDirection:
		return "direction"
	case CTSrcIP:
		return "src_ip"
	case CTDstIP:
		return "dst_ip"
	case CTSrcIP6:
		return "src_ip6"
	case CTDstIP6:
		return "dst_ip6"
	default:
		return fmt.Sprintf("key %d", uint32(k))
	}
}

// String is the keyword of nft(8).
func (d Direction) String() string {
	switch d {
	case Original:
		return "original"
	case Reply:
		return "reply"
	case NoDirection:
		return "no direction"
	default:
		return fmt.Sprintf("direction %d", uint8(d))
	}
}

// String is the word of `nft --debug=netlink`.
func (o CmpOp) String() string {
	switch o {
	case Equal:
		return "eq"
	case NotEqual:
		return "neq"
	default:
		return fmt.Sprintf("op %d", uint8(o))
	}
}

func (e MetaLoad) String() string { return fmt.Sprintf("meta load %s => %s", e.Key, e.Dest) }
func (e MetaSet) String() string  { return fmt.Sprintf("meta set %s with %s", e.Key, e.Source) }

func (e Payload) String() string {
	return fmt.Sprintf("payload load %db @ network header + %d => %s", e.Length, e.Offset, e.Dest)
}

func (e CT) String() string {
	if e.Direction == NoDirection {
		return fmt.Sprintf("ct load %s => %s", e.Key, e.Dest)
	}
	return fmt.Sprintf("ct load %s => %s , dir %s", e.Key, e.Dest, e.Direction)
}

func (e Cmp) String() string { return fmt.Sprintf("cmp %s %s %s", e.Op, e.Source, e.Value) }

func (e Bitwise) String() string {
	return fmt.Sprintf("bitwise %s = ( %s & %s ) ^ %s", e.Dest, e.Source, e.Mask, e.Xor)
}

func (e Lookup) String() string {
	if e.Not {
		return fmt.Sprintf("lookup %s set %s 0x1", e.Source, e.Set)
	}
	return fmt.Sprintf("lookup %s set %s", e.Source, e.Set)
}

func (e VerdictMap) String() string { return fmt.Sprintf("lookup %s set %s dreg 0", e.Source, e.Set) }
func (e Immediate) String() string  { return fmt.Sprintf("immediate %s %s", e.Dest, e.Value) }
func (e Decide) String() string     { return "immediate reg 0 " + e.Verdict.String() }
func (e Counter) String() string    { return fmt.Sprintf("counter pkts %d bytes %d", e.Packets, e.Bytes) }
func (e Unknown) String() string    { return "unknown " + e.Name }

// String is the rule's expressions, each in brackets, and its comment.
func (r Rule) String() string {
	parts := make([]string, 0, len(r.Exprs)+1)
	for _, e := range r.Exprs {
		parts = append(parts, "[ "+e.String()+" ]")
	}
	if r.Comment != "" {
		parts = append(parts, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(parts, " ")
}

// String is the key, and the verdict of a map.
func (e Element) String() string {
	if e.Verdict == (Verdict{}) {
		return e.Key.String()
	}
	return e.Key.String() + " : " + e.Verdict.String()
}

// String says in words what it does.
func (AddTable) String() string { return "add table" }

// String says in words what it does.
func (DeleteTable) String() string { return "delete table" }

// String says in words what it does.
func (o AddChain) String() string { return "add chain " + o.Chain.Name }

// String says in words what it does.
func (o FlushChain) String() string { return "flush chain " + o.Chain }

// String says in words what it does.
func (o DeleteChain) String() string { return "delete chain " + o.Chain }

// String says in words what it does.
func (o AddRule) String() string {
	if o.After != 0 {
		return fmt.Sprintf("add rule %s after handle %d: %s", o.Chain, o.After, o.Rule)
	}
	return fmt.Sprintf("add rule %s: %s", o.Chain, o.Rule)
}

// String says in words what it does.
func (o InsertRule) String() string {
	if o.Before != 0 {
		return fmt.Sprintf("insert rule %s before handle %d: %s", o.Chain, o.Before, o.Rule)
	}
	return fmt.Sprintf("insert rule %s: %s", o.Chain, o.Rule)
}

// String says in words what it does.
func (o DeleteRule) String() string {
	return fmt.Sprintf("delete rule %s handle %d", o.Chain, o.Handle)
}

// String says in words what it does.
func (o AddSet) String() string {
	if o.Set.Verdicts {
		return fmt.Sprintf("add map %s { type %s : verdict; }", o.Set.Name, o.Set.Key)
	}
	return fmt.Sprintf("add set %s { type %s; }", o.Set.Name, o.Set.Key)
}

// String says in words what it does.
func (o DeleteSet) String() string { return "delete set " + o.Set }

// String says in words what it does.
func (o AddElements) String() string { return "add " + elementsOf(o.Set, o.Elements) }

// String says in words what it does.
func (o DeleteElements) String() string { return "delete " + elementsOf(o.Set, o.Elements) }

// String says in words what it does.
func (o FlushSet) String() string { return "flush set " + o.Set }

// elementsOf names a single element, and counts more of them.
func elementsOf(set string, elements []Element) string {
	if len(elements) == 1 {
		return fmt.Sprintf("element %s { %s }", set, elements[0])
	}
	return fmt.Sprintf("%d elements of %s", len(elements), set)
}
