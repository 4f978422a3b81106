package lookup

import (
	"net/netip"

	"multihomed/routing"
)

const (
	// tosMask is what rules and routes compare of the TOS of IPv4: the bits that
	// RFC 1349 gave a meaning (fib_dscp_masked_match in include/net/ip_fib.h).
	tosMask = 0x1c
	// dscpBits is where the DSCP begins in its byte.
	dscpBits      = 2
	fullDSCP      = 0x3f
	fullFlowLabel = 0xfffff
	fullPort      = 0xffff
)

// mismatch is fib_rule_match before the result is inverted: it returns the first
// selector that the packet does not match.
func (w *walk) mismatch(r *routing.Rule) Selector {
	f := &w.flow
	switch {
	case r.IIF != "" && !w.comesBy(r.IIF):
		return ByIIF
	case r.OIF != "" && !w.leavesBy(r.OIF):
		return ByOIF
	case (r.Mark.Value^f.Mark)&r.Mark.Mask != 0:
		return ByMark
	case r.TunnelID != 0 && r.TunnelID != f.TunnelID:
		return ByTunnel
	case r.L3MDev && !w.inVRF():
		return ByVRF
	case r.UIDs.Set && (f.UID < r.UIDs.First || f.UID > r.UIDs.Last):
		return ByUID
	case r.To.IsValid() && r.To.Bits() > 0 && !r.To.Contains(f.To):
		return ByDestination
	case r.From.IsValid() && r.From.Bits() > 0 && !w.comesFrom(r.From) && !w.findsSource(r):
		return BySource
	}
	switch {
	case r.DSCP.Set && !w.matchesDSCP(r):
		return ByDSCP
	case !r.DSCP.Set && r.TOS != 0 && r.TOS != w.tos():
		return ByTOS
	case r.FlowLabel.Set && !matchesFlowLabel(r, f.FlowLabel):
		return ByFlowLabel
	case r.IPProto != 0 && r.IPProto != f.IPProto:
		return ByProtocol
	case !matchesPort(r.SourcePorts, f.SourcePort):
		return BySourcePort
	case !matchesPort(r.DestinationPorts, f.DestinationPort):
		return ByDestinationPort
	}
	return NoSelector
}

// comesBy is fib_rule_iif_match: a rule that names a VRF is for what comes in by
// the VRF and its ports ([Host.Before615]).
func (w *walk) comesBy(name string) bool {
	if w.hasVRF && !w.host.Before615 && w.vrf.isMeant(w.family, name) {
		return !w.byOIF
	}
	return w.entry.isMeant(w.family, name) || name == routing.LoopbackAlias && w.entry.Name == loopbackName
}

// leavesBy is fib_rule_oif_match.
func (w *walk) leavesBy(name string) bool {
	if w.hasVRF && !w.host.Before615 && w.vrf.isMeant(w.family, name) {
		return w.byOIF
	}
	return w.exit.isMeant(w.family, name)
}

// inVRF is l3mdev_fib_rule_match.
func (w *walk) inVRF() bool {
	if w.hasVRF {
		w.vrfTable = w.vrf.Table
	}
	return w.hasVRF
}

// comesFrom compares the source. IPv4 takes a missing one for 0.0.0.0, which
// 0.0.0.0/1 contains (fib4_rule_match); for IPv6 it matches no prefix
// (fib6_rule_match).
func (w *walk) comesFrom(p netip.Prefix) bool {
	if w.flow.From.IsValid() {
		return p.Contains(w.flow.From)
	}
	return w.family == routing.IPv4 && p.Contains(netip.IPv4Unspecified())
}

// findsSource reports whether a rule with a source is for packets that have none yet.
func (w *walk) findsSource(r *routing.Rule) bool {
	return r.FindSource && w.family == routing.IPv6 && !w.flow.From.IsValid()
}

// tos is the part of the TOS that a rule's tos and a route's is compared with.
func (w *walk) tos() uint8 {
	if w.family == routing.IPv4 {
		return w.flow.TOS & tosMask
	}
	return w.flow.TOS >> dscpBits << dscpBits
}

func (w *walk) matchesDSCP(r *routing.Rule) bool {
	if w.host.Before615 && w.family == routing.IPv6 && r.DSCP.Value == 0 {
		return true
	}
	mask := r.DSCPMask
	if mask == 0 {
		mask = fullDSCP
	}
	return (r.DSCP.Value^uint32(w.flow.TOS>>dscpBits))&uint32(mask) == 0
}

func matchesFlowLabel(r *routing.Rule, label uint32) bool {
	mask := r.FlowLabelMask
	if mask == 0 {
		mask = fullFlowLabel
	}
	return (r.FlowLabel.Value^label)&mask == 0
}

// matchesPort is fib_rule_port_match.
func matchesPort(p routing.PortRange, port uint16) bool {
	switch {
	case p == routing.PortRange{}:
		return true
	case p.Mask != 0 && p.Mask != fullPort:
		return (p.First^port)&p.Mask == 0
	default:
		return p.First <= port && port <= p.Last
	}
}
