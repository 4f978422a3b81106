package answers

import (
	"math/bits"

	"multihomed/routing"
)

// A Mask is the bits of the packet mark (struct sk_buff, mark) that are ours. They are adjacent. The
// highest one marks packets of bound sockets. The others hold the number of a routing table.
type Mask uint32

// DefaultMask is the mask if the configuration has none.
const DefaultMask Mask = 0xff000000

// MaxNumber is the highest number of a routing table, with any mask.
const MaxNumber = 127

// Valid reports whether the bits are adjacent and hold a number.
func (m Mask) Valid() bool {
	return bits.OnesCount32(uint32(m)) >= 2 && bits.LeadingZeros32(uint32(m))+bits.OnesCount32(uint32(m))+m.shift() == 32
}

// Last is the highest number that the mask holds, 0 for a mask that is not valid.
func (m Mask) Last() uint8 {
	if !m.Valid() {
		return 0
	}
	return uint8(min(1<<(bits.OnesCount32(uint32(m))-1)-1, MaxNumber)) //nolint:gosec // at most 127
}

// Mark selects the packets that have a number: `fwmark VALUE/MASK` of rule 9100.
func (m Mask) Mark(number uint8) routing.Mark {
	return routing.Mark{Value: uint32(number) << m.shift(), Mask: uint32(m)}
}

func (m Mask) shift() int { return bits.TrailingZeros32(uint32(m)) }

// Uses reports whether a rule of another program selects by bits of the mask. Marking a packet that
// such a rule selects would take the packet from the rule.
func (m Mask) Uses(r routing.Rule) bool {
	return r.Mark.Mask&uint32(m) != 0 && r.Mark.Value&r.Mark.Mask != 0
}

// Taken returns the first of the rules of a family that would select a packet, or leave one out,
// because it has the number. Such a number must not be given to a table.
func (m Mask) Taken(f routing.Family, number uint8, foreign []routing.Rule) (routing.Rule, bool) {
	for _, r := range foreign {
		common := r.Mark.Mask & uint32(m)
		if r.Family == f && m.Uses(r) && r.Mark.Value&common != 0 && (m.Mark(number).Value^r.Mark.Value)&common == 0 {
			return r, true
		}
	}
	return routing.Rule{}, false
}
