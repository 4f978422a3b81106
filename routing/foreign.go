package routing

import (
	"math"
	"net/netip"
	"slices"
)

// A ForeignRule is a rule of somebody else.
type ForeignRule struct {
	Rule Rule
	// Numbered says that the kernel chose the priority, and did so while our
	// ladder stood: without us the rule would stand behind it.
	Numbered bool
	// Natural is the priority that the kernel would have chosen without us.
	Natural Priority
}

// withoutUs is the priority that the rule would have without us.
func (o ForeignRule) withoutUs() Priority {
	if o.Numbered {
		return o.Natural
	}
	return o.Rule.Priority
}

// Kernels reports whether a rule is one of the three that the kernel makes
// itself, where it makes them (fib_default_rules_init in
// net/ipv4/fib_rules.c, fib6_rules_net_init in net/ipv6/fib6_rules.c).
func (r Rule) Kernels() bool {
	if !r.isLookupOfAll() {
		return false
	}
	return r.Priority == 0 && r.Table == TableLocal || r.Priority == PriorityMain && r.Table == TableMain ||
		r.Priority == PriorityDefault && r.Table == TableDefault
}

// isLookupOfAll reports whether a rule looks a table up for every packet and
// takes whatever it finds.
func (r Rule) isLookupOfAll() bool {
	return r.Action == ActionLookup && !r.L3MDev && !r.SuppressPrefixLength.Set && !r.SuppressGroup.Set && r.matchesAll()
}

// readsMain reports whether a rule reads main for whatever this host sends, in front of the
// last resort.
func (r Rule) readsMain() bool {
	if r.IIF == Loopback {
		r.IIF = ""
	}
	return r.Table == TableMain && r.Priority < PriorityMatchAll && r.isLookupOfAll()
}

// MainIsRead reports whether one of the rules reads main for whatever this host sends, and
// none leads over it.
func MainIsRead(foreign []ForeignRule) bool {
	over := Priority(0)
	for _, o := range foreign {
		switch r := o.Rule; {
		case r.Priority < over:
		case r.readsMain():
			return true
		case r.Action == ActionGoto && !r.Selects() && slices.ContainsFunc(foreign, func(t ForeignRule) bool { return t.Rule.Priority == r.Goto }):
			over = r.Goto
		}
	}
	return false
}

// matchesAll reports whether no packet of the family is left out.
func (r Rule) matchesAll() bool {
	return !r.Invert && !r.Unknown && !r.From.IsValid() && !r.To.IsValid() && r.TOS == 0 && !r.DSCP.Set && !r.FlowLabel.Set &&
		r.Mark.Mask == 0 && r.IIF == "" && r.OIF == "" && !r.UIDs.limits() && r.IPProto == 0 &&
		!r.SourcePorts.limits() && !r.DestinationPorts.limits() && r.TunnelID == 0 && !r.L3MDev
}

// Selects reports whether a rule picks some packets out: by mark, user,
// protocol, port, interface, source, destination, tunnel, type of service or
// VRF. Such a rule keeps its say before the ladder (rung "lift"). A rule that
// selects nothing, or all but something, does not: unbound traffic follows it,
// bound traffic keeps its link. That is how a full tunnel looks:
//
//	from all lookup 51820            selects nothing
//	not from all fwmark 0xca6c …     all but something
//	from all fwmark 0/0xca6c …       all but something
//	from 0.0.0.0/1 …                 half of everything
//	from all iif lo …                all that this host sends
func (r Rule) Selects() bool {
	if r.Invert {
		return false
	}
	return r.Unknown || narrow(r.From) || narrow(r.To) || r.TOS != 0 || r.DSCP.Set || r.FlowLabel.Set ||
		r.Mark.limits() || r.IIF != "" && r.IIF != Loopback || r.OIF != "" || r.UIDs.limits() || r.IPProto != 0 ||
		r.SourcePorts.limits() || r.DestinationPorts.limits() || r.TunnelID != 0 || r.L3MDev
}

// TakesAll reports whether a rule reads a table of its owner's for every packet, or for
// all but some.
func (r Rule) TakesAll() bool { return r.leadsElsewhere() && !r.Selects() }

// Hides reports whether a rule sends nearly everything to a table that bound traffic does
// not ask at rung "known": it leaves some packets out, and a rule of ours could not.
func (r Rule) Hides() bool {
	return r.TakesAll() && (r.Invert || r.Mark.Mask != 0)
}

// narrow reports whether a prefix is less than half of everything.
func narrow(p netip.Prefix) bool { return p.IsValid() && p.Bits() > 1 }

// limits reports whether a mark picks marked packets out. The mark 0 is what
// nearly every packet has.
func (m Mark) limits() bool { return m.Mask != 0 && m.Value&m.Mask != 0 }

func (u UIDRange) limits() bool { return u.Set && (u.First > 0 || u.Last < lastUser) }

func (p PortRange) limits() bool {
	return p != PortRange{} && (p.Mask != 0 || p.First > 1 || p.Last < math.MaxUint16)
}
