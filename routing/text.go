package routing

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String renders the rule as `ip rule` prints it.
func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: from %s", r.Priority, selector(r.From))
	if r.To.IsValid() {
		fmt.Fprintf(&b, " to %s", selector(r.To))
	}
	if r.IIF != "" {
		fmt.Fprintf(&b, " iif %s", r.IIF)
	}
	if r.OIF != "" {
		fmt.Fprintf(&b, " oif %s", r.OIF)
	}
	switch r.Action {
	case ActionLookup:
		fmt.Fprintf(&b, " lookup %s", r.Table)
	case ActionUnreachable:
		b.WriteString(" unreachable")
	default:
		fmt.Fprintf(&b, " action %d", r.Action)
	}
	if r.SuppressPrefixLength.Set {
		fmt.Fprintf(&b, " suppress_prefixlength %d", r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		fmt.Fprintf(&b, " suppress_ifgroup %d", r.SuppressGroup.Value)
	}
	if r.Other != "" {
		b.WriteString(" (and attributes unknown here)")
	}
	return b.String()
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
func (r Route) String() string { return r.Text("if" + strconv.Itoa(r.Device)) }

// Text renders the route as `ip route` prints it on the device of that name.
func (r Route) Text(device string) string {
	var b strings.Builder
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
	if r.Gateway.IsValid() {
		b.WriteString(" via ")
		if FamilyOf(r.Gateway) != r.Family {
			b.WriteString("inet6 ")
		}
		b.WriteString(r.Gateway.String())
	}
	fmt.Fprintf(&b, " dev %s table %s", device, r.Table)
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
	if mtu := r.Metrics[2]; mtu != 0 { // RTAX_MTU
		fmt.Fprintf(&b, " mtu %d", mtu)
	}
	return b.String()
}
