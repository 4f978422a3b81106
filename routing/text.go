package routing

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// String renders the rule as `ip rule` prints it. The protocol is left out where
// it is ours: nearly every rule that is printed is.
func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: ", r.Priority)
	b.WriteString(r.Selectors())
	if what := r.action(); what != "" {
		b.WriteByte(' ')
		b.WriteString(what)
	}
	if r.FindSource {
		b.WriteString(" (also packets without a source)") // iproute2 has no word for it.
	}
	if r.Protocol != Multihomed && r.Protocol != 0 && r.Protocol != ProtocolKernel {
		fmt.Fprintf(&b, " proto %s", r.Protocol)
	}
	if r.Unknown {
		b.WriteString(" (and attributes that are unknown here)")
	}
	return b.String()
}

// Selectors renders what the rule selects by, in the words of ip-rule(8).
func (r Rule) Selectors() string {
	var b strings.Builder
	if r.Invert {
		b.WriteString("not ")
	}
	fmt.Fprintf(&b, "from %s", selector(r.From))
	add := func(wanted bool, format string, args ...any) {
		if wanted {
			fmt.Fprintf(&b, format, args...)
		}
	}
	add(r.To.IsValid(), " to %s", selector(r.To))
	add(r.TOS != 0, " tos 0x%02x", r.TOS)
	switch {
	case r.Mark == Mark{}:
	case r.Mark.Mask == math.MaxUint32:
		add(true, " fwmark %s", hex(r.Mark.Value))
	default:
		add(true, " fwmark %s/%s", hex(r.Mark.Value), hex(r.Mark.Mask))
	}
	add(r.IIF != "", " iif %s", r.IIF)
	add(r.OIF != "", " oif %s", r.OIF)
	add(r.L3MDev, " lookup [l3mdev-table]")
	add(r.UIDs.Set, " uidrange %d-%d", r.UIDs.First, r.UIDs.Last)
	add(r.IPProto != 0, " ipproto %s", transport(r.IPProto))
	add(r.SourcePorts != PortRange{}, " sport %s", r.SourcePorts)
	add(r.DestinationPorts != PortRange{}, " dport %s", r.DestinationPorts)
	add(r.TunnelID != 0, " tun_id %d", r.TunnelID)
	add(r.DSCP.Set && (r.DSCPMask == 0 || r.DSCPMask == fullDSCP), " dscp %d", r.DSCP.Value)
	add(r.DSCP.Set && r.DSCPMask != 0 && r.DSCPMask != fullDSCP, " dscp %s/%s", hex(r.DSCP.Value), hex(uint32(r.DSCPMask)))
	add(r.FlowLabel.Set && (r.FlowLabelMask == 0 || r.FlowLabelMask == fullFlowLabel), " flowlabel %s", hex(r.FlowLabel.Value))
	add(r.FlowLabel.Set && r.FlowLabelMask != 0 && r.FlowLabelMask != fullFlowLabel, " flowlabel %s/%s", hex(r.FlowLabel.Value), hex(r.FlowLabelMask))
	return b.String()
}

const (
	fullDSCP      = 0x3f
	fullFlowLabel = 0xfffff
)

// action renders what the rule does.
func (r Rule) action() string {
	var b strings.Builder
	switch r.Action {
	case ActionLookup:
		if !r.L3MDev { // else it stands among the selectors
			fmt.Fprintf(&b, "lookup %s", r.Table)
		}
	case ActionGoto:
		fmt.Fprintf(&b, "goto %d", r.Goto)
	case ActionNop:
		b.WriteString("nop")
	case ActionBlackhole:
		b.WriteString("blackhole")
	case ActionUnreachable:
		b.WriteString("unreachable")
	case ActionProhibit:
		b.WriteString("prohibit")
	default:
		fmt.Fprintf(&b, "action %d", r.Action)
	}
	if r.SuppressPrefixLength.Set {
		fmt.Fprintf(&b, " suppress_prefixlength %d", r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		fmt.Fprintf(&b, " suppress_ifgroup %d", r.SuppressGroup.Value)
	}
	b.WriteString(realms(r.Realms))
	return b.String()
}

// realms renders FRA_FLOW: where a packet is from, and where it goes.
func realms(v uint32) string {
	switch to := v & 0xffff; {
	case v > 0xffff:
		return fmt.Sprintf(" realms %d/%d", v>>16, to)
	case to != 0:
		return fmt.Sprintf(" realms %d", to)
	default:
		return ""
	}
}

// hex is "%#x" of printf(3): zero has no 0x.
func hex(v uint32) string {
	if v == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", v)
}

// transport names an IP protocol as ip(8) does, which asks protocols(5).
func transport(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "ipv6-icmp"
	case 132:
		return "sctp"
	default:
		return "ipproto-" + strconv.Itoa(int(p))
	}
}

func (p PortRange) String() string {
	switch {
	case p.Mask != 0 && p.Mask != math.MaxUint16:
		return hex(uint32(p.First)) + "/" + hex(uint32(p.Mask))
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	default:
		return fmt.Sprintf("%d-%d", p.First, p.Last)
	}
}

// String names a protocol as rt_protos of iproute2 does, a number where it has
// no name.
func (p Protocol) String() string {
	switch p {
	case 1:
		return "redirect"
	case ProtocolKernel:
		return "kernel"
	case ProtocolBoot:
		return "boot"
	case ProtocolStatic:
		return "static"
	case ProtocolRA:
		return "ra"
	case 11:
		return "zebra"
	case 12:
		return "bird"
	case 16:
		return "dhcp"
	case 18:
		return "keepalived"
	case 42:
		return "babel"
	case Multihomed:
		return "multihomed"
	case 186:
		return "bgp"
	case 187:
		return "isis"
	case 188:
		return "ospf"
	case 189:
		return "rip"
	case 192:
		return "eigrp"
	default:
		return strconv.Itoa(int(p))
	}
}

// selector prints a prefix the way `ip rule` does: host prefixes without their
// length, no prefix as "all".
func selector(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "all"
	case p.IsSingleIP():
		return p.Addr().String()
	default:
		return p.String()
	}
}

// String renders the route as `ip route` prints it, with the interface index in
// place of its name.
func (r Route) String() string { return r.Text(numbered(r.Device)) }

// numbered stands for the name of an interface that is not known.
func numbered(index int) string { return "if" + strconv.Itoa(index) }

// Text renders the route as `ip route` prints it on the device of that name.
func (r Route) Text(device string) string {
	var b strings.Builder
	if r.Type == RouteThrow {
		b.WriteString("throw ")
	}
	switch {
	case r.Destination.Bits() == 0:
		b.WriteString("default")
	default:
		b.WriteString(selector(r.Destination))
	}
	if r.Source.IsValid() {
		fmt.Fprintf(&b, " from %s", selector(r.Source))
	}
	if r.TOS != 0 {
		fmt.Fprintf(&b, " tos %#02x", r.TOS)
	}
	legs := r.Attributes.Get().Legs.All()
	if len(legs) == 0 && r.Type != RouteThrow {
		writeWay(&b, r.Family, r.Gateway, device)
	}
	fmt.Fprintf(&b, " table %s", r.Table)
	if r.Scope == ScopeLink {
		b.WriteString(" scope link")
	}
	if r.PreferredSource.IsValid() {
		fmt.Fprintf(&b, " src %s", r.PreferredSource)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.OnLink {
		b.WriteString(" onlink")
	}
	rare := r.Attributes.Get()
	if v := rare.Realm; v > 0 && v <= 0xffff {
		fmt.Fprintf(&b, " realm %d", v)
	} else {
		b.WriteString(realms(v))
	}
	if mtu := rare.Metrics[2]; mtu != 0 { // RTAX_MTU
		fmt.Fprintf(&b, " mtu %d", mtu)
	}
	if len(legs) == 0 {
		return b.String()
	}
	for _, l := range append([]Leg{{Gateway: r.Gateway, Device: r.Device, Weight: r.Weight}}, legs...) {
		name := device
		if l.Device != r.Device {
			name = "if" + strconv.Itoa(l.Device)
		}
		b.WriteString(" nexthop")
		writeWay(&b, r.Family, l.Gateway, name)
		fmt.Fprintf(&b, " weight %d", l.Weight)
	}
	return b.String()
}

func writeWay(b *strings.Builder, f Family, gateway netip.Addr, device string) {
	if gateway.IsValid() {
		b.WriteString(" via ")
		if FamilyOf(gateway) != f {
			b.WriteString("inet6 ")
		}
		b.WriteString(gateway.String())
	}
	b.WriteString(" dev " + device)
}
