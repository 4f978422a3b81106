package reality_test

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

func pick[T any](t *rapid.T, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(t, label)
}

func chance(t *rapid.T, percent int) bool { return rapid.IntRange(0, 99).Draw(t, "chance") < percent }

func number(t *rapid.T, low, high int) int { return rapid.IntRange(low, high).Draw(t, "number") }

// genLocal is an address of the host.
func genLocal(t *rapid.T, family routing.Family) netip.Addr {
	i, host := number(t, 0, last), pick(t, "host", 1, 5)
	if family == routing.IPv4 {
		return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", i, host))
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", i, host))
}

// genAddress is any address of a small world, so that routes often match.
func genAddress(t *rapid.T, family routing.Family) netip.Addr {
	if family == routing.IPv4 {
		return netip.AddrFrom4([4]byte{
			pick(t, "a", byte(10), byte(172), byte(192), byte(200)), byte(number(t, 0, 4)), byte(number(t, 0, 2)),
			pick(t, "d", byte(1), byte(9), byte(77), byte(130), byte(200), byte(255)),
		})
	}
	a := [16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8}
	a[4], a[5], a[7] = pick(t, "a", byte(0), byte(0), byte(1), byte(2)), byte(number(t, 0, 4)), byte(number(t, 0, 2))
	a[15] = pick(t, "d", byte(1), byte(9), byte(77), byte(99), byte(0))
	return netip.AddrFrom16(a)
}

func genPrefix(t *rapid.T, family routing.Family, local bool) netip.Prefix {
	a := genAddress(t, family)
	if local && chance(t, 70) {
		a = genLocal(t, family)
	}
	bits := pick(t, "bits", 1, 4, 8, 8, 12, 16, 24, 25, 32)
	if family == routing.IPv6 {
		bits = pick(t, "bits", 1, 16, 32, 32, 40, 48, 56, 64, 128)
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func genPorts(t *rapid.T) routing.PortRange {
	low := uint16(number(t, 1, 200))
	if chance(t, 40) {
		value := low&0xf0 | 1
		return routing.PortRange{First: value, Last: value, Mask: 0xfff1}
	}
	return routing.PortRange{First: low, Last: low + uint16(number(t, 0, 150))}
}

// genRule makes a rule with any selectors.
func genRule(t *rapid.T, family routing.Family, priority routing.Priority, all []routing.Priority, known features) routing.Rule {
	r := routing.Rule{Family: family, Priority: priority, Invert: chance(t, 15)}
	if chance(t, 35) {
		r.From = genPrefix(t, family, true)
	}
	if chance(t, 30) {
		r.To = genPrefix(t, family, false)
	}
	if chance(t, 15) {
		r.IIF = pick(t, "iif", append([]string{"lo", "lo", "d0", "d1", "d4", "nowhere0"}, vrfNames(known.vrf)...)...)
	}
	if chance(t, 15) {
		r.OIF = pick(t, "oif", append([]string{"d0", "d1", "d2", "d4", "nowhere0"}, vrfNames(known.vrf)...)...)
	}
	if chance(t, 20) {
		r.Mark = routing.Mark{Value: uint32(number(t, 0, 3)), Mask: pick(t, "mask", uint32(1), 2, 3, 0xf, 0, noValue)}
	}
	if chance(t, 15) {
		first := uint32(number(t, 0, 3)) * 500
		r.UIDs = routing.UIDRange{Set: true, First: first, Last: first + uint32(number(t, 0, 800))}
	}
	if chance(t, 15) {
		r.IPProto = pick(t, "ipproto", uint8(6), 17, 1, 58)
	}
	if chance(t, 8) {
		r.SourcePorts = genPorts(t)
	}
	if chance(t, 12) {
		r.DestinationPorts = genPorts(t)
	}
	if chance(t, 3) {
		r.TunnelID = uint64(number(t, 1, 2))
	}
	switch number(t, 0, 7) {
	case 0:
		r.TOS = pick(t, "tos", uint8(0x04), 0x10, 0x18, 0x1c)
	case 1:
		r.DSCP = routing.Some(uint32(number(t, 0, 63)))
		if chance(t, 50) {
			r.DSCPMask = uint8(r.DSCP.Value) | uint8(number(t, 1, 63))
		}
	}
	if family == routing.IPv6 && chance(t, 8) {
		r.FlowLabel = routing.Some(uint32(number(t, 0, 3)))
		r.FlowLabelMask = r.FlowLabel.Value | uint32(number(t, 1, 3))
	}
	genAction(t, &r, all)
	known.limit(&r)
	return r
}

// limit takes away what the kernel does not know.
func (k features) limit(r *routing.Rule) {
	if !k.dscp {
		r.DSCP, r.DSCPMask = routing.Optional{}, 0
	}
	if !k.dscpMask {
		r.DSCPMask = 0
	}
	if !k.flowLabel {
		r.FlowLabel, r.FlowLabelMask = routing.Optional{}, 0
	}
	if !k.portMask {
		r.SourcePorts.Mask, r.DestinationPorts.Mask = 0, 0
	}
}

func genAction(t *rapid.T, r *routing.Rule, all []routing.Priority) {
	switch n := number(t, 0, 99); {
	case n < 70:
		r.Action, r.Table = routing.ActionLookup, pick(t, "table", tables...)
		if chance(t, 25) {
			r.SuppressPrefixLength = routing.Some(pick(t, "length", uint32(0), 1, 8, 16, 24, 32))
		}
		if chance(t, 25) {
			r.SuppressGroup = routing.Some(pick(t, "group", uint32(0), 5, 28008))
		}
	case n < 80:
		r.Action = routing.ActionGoto
		if r.Goto = pick(t, "goto", all...); r.Goto <= r.Priority {
			r.Goto = r.Priority + routing.Priority(number(t, 1, 3000))
		}
	case n < 85:
		r.Action = routing.ActionNop
	case n < 90:
		r.Action = routing.ActionUnreachable
	case n < 93:
		r.Action = routing.ActionBlackhole
	case n < 96:
		r.Action = routing.ActionProhibit
	default:
		r.Action, r.L3MDev = routing.ActionLookup, true
	}
}

func vrfNames(vrf bool) []string {
	if vrf {
		return []string{"vrf0"}
	}
	return nil
}

// tables are those that rules look up. There is none with the number 300.
var tables = []routing.TableID{100, 101, 102, 103, routing.TableMain, routing.TableMain, 200, vrfTable, 300}

// genRules are rules in the order in which they are added.
func genRules(t *rapid.T, family routing.Family, known features) []routing.Rule {
	priorities := make([]routing.Priority, number(t, 5, 20))
	for i := range priorities {
		priorities[i] = routing.Priority(number(t, 1, 30)) * 1000
	}
	rules := make([]routing.Rule, len(priorities))
	for i, p := range priorities {
		rules[i] = genRule(t, family, p, priorities, known)
	}
	for priority, table := range map[routing.Priority]routing.TableID{0: routing.TableLocal, 32766: routing.TableMain} {
		if chance(t, 90) {
			rules = append(rules, routing.Rule{Family: family, Priority: priority, Action: routing.ActionLookup, Table: table})
		}
	}
	return rules
}

// A way is a route: its legs, or the devices of a nexthop object, with a leg that says the rest.
type way struct {
	legs     []routing.Route
	nexthops []int
}

// genRoute makes the legs of a route.
func genRoute(t *rapid.T, family routing.Family, index map[string]int) way {
	r := routing.Route{
		Family: family, Table: pick(t, "table", tables[:8]...), Destination: genPrefix(t, family, false), Type: routing.RouteUnicast,
		Metric: pick(t, "metric", uint32(0), 0, 5, 10, 20),
	}
	if chance(t, 15) {
		r.Destination = family.Any()
	}
	if r.Table != routing.TableMain && chance(t, 30) {
		r.Type = pick[routing.RouteType](t, "type", 6, 7, 8, 9) // RTN_BLACKHOLE to RTN_THROW
	}
	if family == routing.IPv4 && chance(t, 15) {
		r.TOS = pick(t, "tos", uint8(0x04), 0x10, 0x18)
	}
	if family == routing.IPv6 && chance(t, 20) {
		r.Source = genPrefix(t, family, true)
	}
	if r.Type != routing.RouteUnicast {
		return way{legs: []routing.Route{r}}
	}
	legs := 0
	switch n := number(t, 0, 99); {
	case n < 20:
		legs = 2 + number(t, 0, 1)
	case n < 60:
		legs = 1
	}
	d := number(t, 0, last)
	leg := func(n int) routing.Route {
		r := r
		n %= last + 1
		r.Device, r.Gateway = index[fmt.Sprintf("d%d", n)], gatewayOf(family, n)
		if family == routing.IPv6 {
			// A dump says the preference of the first leg only: all legs of a
			// metric have the same.
			r.Preference = map[uint32]routing.Preference{5: routing.PreferenceHigh, 10: routing.PreferenceLow}[r.Metric]
		}
		return r
	}
	if legs > 0 && chance(t, 20) {
		out := way{legs: []routing.Route{leg(d)}, nexthops: []int{d}}
		if legs > 1 {
			out.nexthops = []int{0, 2, 3}
		}
		if family == routing.IPv6 {
			// It is no sibling of others with its metric: which one the kernel takes depends on routers.
			out.legs[0].Metric += uint32(number(t, 1, 1000)) * 100
			out.legs[0].Preference = 0
		}
		out.legs[0].Source = netip.Prefix{} // The kernel refuses both (ip6_route_info_create).
		return out
	}
	if legs == 0 {
		r = leg(d)
		r.Gateway, r.Preference = netip.Addr{}, 0
		if family == routing.IPv4 {
			r.Scope = routing.ScopeLink
		} else {
			r.Preference = pick(t, "preference", routing.PreferenceMedium, routing.PreferenceHigh, routing.PreferenceLow)
		}
		return way{legs: []routing.Route{r}}
	}
	var out way
	for n := range legs {
		out.legs = append(out.legs, leg(d+n))
	}
	return out
}

// genRoutes are routes in the order in which they are added: those with a
// gateway last, because a dump of IPv6 leaves out what stands between the legs of
// a multipath route (fib6_dump_node in net/ipv6/ip6_fib.c).
func genRoutes(t *rapid.T, family routing.Family, index map[string]int) []way {
	out := make([]way, number(t, 5, 35))
	for i := range out {
		out[i] = genRoute(t, family, index)
	}
	via := func(w way) int {
		if w.legs[0].Gateway.IsValid() {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(out, func(a, b way) int { return via(a) - via(b) })
	return out
}

// genFlow makes what RTM_GETROUTE can be asked for.
func genFlow(t *rapid.T, family routing.Family, forwarded bool, known features) lookup.Flow {
	f := lookup.Flow{
		To: genAddress(t, family), Mark: uint32(number(t, 0, 3)), UID: pick(t, "uid", uint32(0), 100, 500, 1000, 1500, 2000),
	}
	if chance(t, 5) {
		f.To = genLocal(t, family)
	}
	switch number(t, 0, 4) {
	case 0:
		f.IPProto = map[routing.Family]uint8{routing.IPv4: 1, routing.IPv6: 58}[family]
	case 1:
		f.IPProto = 6
	case 2:
		f.IPProto = 17
	}
	if f.IPProto == 6 || f.IPProto == 17 {
		f.SourcePort, f.DestinationPort = uint16(number(t, 0, 300)), uint16(number(t, 0, 300))
	}
	if chance(t, 50) {
		f.TOS = uint8(number(t, 0, 63)) << 2
	}
	if family == routing.IPv6 && known.flowLabel && chance(t, 30) {
		f.FlowLabel = uint32(number(t, 0, 3))
	}
	if forwarded {
		f.IIF = pick(t, "iif", append([]string{"d0", "d1", "d2", "d4"}, vrfNames(known.vrf)...)...)
		if family == routing.IPv4 {
			f.From = netip.AddrFrom4([4]byte{pick(t, "from", byte(172), byte(198)), byte(number(t, 0, 3)), 0, 7})
		} else {
			f.From = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, pick(t, "from", byte(0), byte(2)), byte(number(t, 0, 3)), 0, 0, 15: 7})
		}
		return f
	}
	switch n := number(t, 0, 99); {
	case n < 60:
		f.From = genLocal(t, family)
	case n < 63:
		f.From = genAddress(t, family)
	}
	if chance(t, 35) {
		f.OIF = pick(t, "oif", append([]string{"d0", "d1", "d2", "d3", "d4"}, vrfNames(known.vrf)...)...)
	}
	return f
}
