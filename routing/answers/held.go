package answers

import (
	"fmt"
	"slices"

	"multihomed/routing"
)

// Held is what the kernel holds of the table.
type Held struct {
	// Exists is false if there is no table.
	Exists bool
	// Dormant says that the table is switched off (`flags dormant`).
	Dormant bool
	// Chains, sets and elements that have names of ours.
	Chains   []HeldChain
	Sets     []HeldSet
	Elements []HeldElement
	// Rules are those in chains of ours, in their order.
	Rules []HeldRule
	// Others name what else is in the table: chains and sets that somebody else made, and a foreign
	// owner.
	Others []string
}

// A HeldChain is a chain of the kernel.
type HeldChain struct {
	Name string
	// Altered says that it is not what [ChainNamed] says: somebody made it anew.
	Altered bool
}

// A HeldSet is a set of the kernel.
type HeldSet struct {
	Name string
	// Altered says that it is not what [SetNamed] says. Its elements are not known then.
	Altered bool
}

// A HeldElement is an element of a set that is not altered.
type HeldElement struct {
	Element Element
	// Altered says that it has another verdict than the chain of a number, or a timeout: only its key is
	// right.
	Altered bool
}

// A HeldRule is a rule of the kernel.
type HeldRule struct {
	Chain  string
	Handle uint64
	Origin Origin
	// Rule is what a rule of ours says, [Unaltered].
	Rule Rule
	// Text shows what stands there.
	Text string
	// Packets and Bytes are what its counter has counted, 0 without one.
	Packets, Bytes uint64
}

// An Origin says whose a rule is.
type Origin uint8

// Origins of rules.
const (
	// Unaltered is ours, and is understood.
	Unaltered Origin = iota
	// Altered has a comment of ours, and does something else than any rule of ours.
	Altered
	// Foreign has no comment of ours.
	Foreign
)

// Table is the part of it that is ours and as we made it.
func (h *Held) Table() Table {
	var t Table
	for _, c := range h.Chains {
		if chain, _ := ChainNamed(c.Name); !c.Altered {
			t.Chains = append(t.Chains, chain)
		}
	}
	for _, s := range h.Sets {
		if set, _ := SetNamed(s.Name); !s.Altered {
			t.Sets = append(t.Sets, set)
		}
	}
	for _, e := range h.Elements {
		if !e.Altered {
			t.Elements = append(t.Elements, e.Element)
		}
	}
	for _, r := range h.Rules {
		if r.Origin == Unaltered {
			t.Rules = append(t.Rules, r.Rule)
		}
	}
	t.sort()
	return t
}

// foreign reports whether anything in the table is somebody else's.
func (h *Held) foreign() bool {
	return len(h.Others) > 0 || slices.ContainsFunc(h.Rules, func(r HeldRule) bool { return r.Origin == Foreign })
}

// Problems name what somebody else put into the table. It stays, and may have an effect on packets.
func (h *Held) Problems() []routing.Problem {
	var out []routing.Problem
	say := func(object, what string) {
		out = append(out, routing.Problem{
			Code: ForeignObject, Severity: routing.Warning, Object: object,
			Text: what + " in the nftables table of multihomed, which is not ours and stays",
			Fix:  "put it into a table of its own",
		})
	}
	for _, o := range h.Others {
		say(o, o+" is")
	}
	for _, r := range h.Rules {
		if r.Origin == Foreign {
			say(fmt.Sprintf("chain %s handle %d", r.Chain, r.Handle), fmt.Sprintf("a rule (%s) is in chain %s", r.Text, r.Chain))
		}
	}
	return out
}
