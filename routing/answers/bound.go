package answers

import (
	"fmt"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// BindingPreceded says that a rule of another program comes before the rules of a binding.
const BindingPreceded routing.Code = "binding-preceded"

// A Binding says by which uplink packets leave that one selector picks out. Exactly one of the four
// selectors is set.
type Binding struct {
	// Name is what people call it.
	Name string
	// Users selects what the sockets of users send.
	Users routing.UIDRange
	// Mark selects packets by their mark.
	Mark routing.Mark
	// Input selects forwarded packets by the interface by which they come in.
	Input string
	// Source selects packets by their source before NAT.
	Source netip.Prefix
	// Link is the name of the interface by which they leave, empty if there is none now.
	Link string
	// Strict says that they leave by no other uplink.
	Strict bool
	// Priority is that of its first rule: rules of others before it come first.
	Priority routing.Priority
}

// Fenced returns the rules of the table that stop what a strict binding selects at other uplinks.
// A binding that selects nothing has none.
func (b Binding) Fenced() []Rule {
	if !b.Strict {
		return nil
	}
	r := Rule{Chain: chainFence, NotOIF: b.Link, Action: ActionDrop, Decision: Bound}
	switch {
	case b.Users.Set:
		var out []Rule
		for _, u := range blocks(b.Users.First, b.Users.Last) {
			r.UID = u
			out = append(out, r)
		}
		return out
	case b.Mark.Mask != 0:
		// Only what this host sends itself has a socket with a user, of whom all are below 2^31.
		r.Mark, r.UID = routing.Mark{Value: b.Mark.Value & b.Mark.Mask, Mask: b.Mark.Mask}, routing.Mark{Mask: 1 << 31}
	case b.Input != "":
		// What a bound container is asked is answered where it was asked.
		r.IIF, r.Direction = b.Input, Original
	case b.Source.IsValid() && b.Source.Bits() > 0:
		r.Family, r.OriginalSource, r.Direction = routing.FamilyOf(b.Source.Addr()), b.Source.Masked(), Original
	default:
		return nil
	}
	return []Rule{r}
}

// boundLines are the lines of strict bindings, sorted.
func (p *plan) boundLines() []Rule {
	var out []Rule
	for _, b := range p.Bindings {
		out = append(out, b.Fenced()...)
		p.preceded(b)
	}
	slices.SortFunc(out, Rule.compare)
	return slices.Compact(out)
}

// preceded names the rules of others that take packets of a binding first.
func (p *plan) preceded(b Binding) {
	for _, r := range p.Foreign {
		if r.Priority >= b.Priority || !r.Selects() || r.L3MDev || r.Action != routing.ActionLookup && r.Action != routing.ActionGoto || !b.shares(r) {
			continue
		}
		text := fmt.Sprintf("the %s rule %q of another program comes before the binding of %s, and takes what both select", r.Family.Name(), r, b.Name)
		if b.Strict {
			text += "; what it leads to another uplink is dropped"
		}
		p.problem(BindingPreceded, routing.Notice, b.Link, ruleText(r), text,
			fmt.Sprintf("if these packets shall leave by the link, give the rule a priority above %d", b.Priority))
	}
}

// shares reports whether a rule may select a packet that the binding selects.
func (b Binding) shares(r routing.Rule) bool {
	forwarded := b.Input != "" || b.Source.IsValid()
	fromOutside := r.IIF != "" && r.IIF != routing.Loopback
	common := b.Mark.Mask & r.Mark.Mask
	switch {
	case b.Source.IsValid() && (r.Family != routing.FamilyOf(b.Source.Addr()) || r.From.IsValid() && !r.From.Overlaps(b.Source)):
		return false
	case forwarded && (r.IIF == routing.Loopback || r.UIDs.Set && r.UIDs.First > 0):
		return false
	case !forwarded && fromOutside, b.Input != "" && fromOutside && r.IIF != b.Input:
		return false
	case b.Users.Set && r.UIDs.Set && (b.Users.Last < r.UIDs.First || r.UIDs.Last < b.Users.First):
		return false
	default:
		return b.Mark.Value&common == r.Mark.Value&common
	}
}
