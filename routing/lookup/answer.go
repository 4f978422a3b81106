package lookup

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/routing"
)

// Protocols that RTM_GETROUTE can be asked about (rtm_getroute_parse_ip_proto in net/ipv4/ip_output.c).
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// An Answer is what the kernel says about a flow (RTM_GETROUTE).
type Answer struct {
	// Matched is the route with all legs that are alive (RTM_F_FIB_MATCH); empty with an error,
	// which Missed names.
	Matched []routing.Route
	Missed  Refusal
	// Sent is the way of a packet, with the source that the kernel chose if none was asked
	// for (PreferredSource). Unsent is the error.
	Sent   routing.Route
	Unsent Refusal
	// Errno is the number of the error where Missed or Unsent is Other.
	Errno int
}

// Question returns the flow that RTM_GETROUTE asks about when it is asked for f. It is not always
// what a socket asks:
//
//   - IPv4 takes a question without a protocol for UDP (inet_rtm_getroute);
//   - IPv6 takes the device of a question with a source for a preference, and that of a socket
//     for a condition ([Flow.LooseOIF]).
func (f Flow) Question() Flow {
	f.LooseOIF = true
	if f.To.Unmap().Is4() && f.IPProto == 0 {
		f.IPProto = protocolUDP
	}
	return f
}

// Socket returns the flow of a socket: without a protocol it means what the kernel means by that, as in
// Question, but its device is a condition unless f says otherwise.
func (f Flow) Socket() Flow {
	q := f.Question()
	q.LooseOIF = f.LooseOIF
	return q
}

// Answerable reports whether RTM_GETROUTE has a word for all that f says: it knows few
// protocols, no tunnels, and no IPv6 multicast that comes in.
func (f Flow) Answerable() bool {
	if f.TunnelID != 0 || f.To.Is6() && f.To.IsMulticast() && f.IIF != "" && f.IIF != loopbackName {
		return false // ip6mr_get_route answers with EMSGSIZE.
	}
	switch f.IPProto {
	case 0, protocolTCP, protocolUDP:
		return true
	case protocolICMP:
		return f.To.Unmap().Is4()
	case protocolICMPv6:
		return !f.To.Unmap().Is4()
	default:
		return false
	}
}

// HurtsKernel reports whether nobody should ask the kernel about f: where the verdict is right, the kernel drops its
// reference to the route twice (fib6_rule_suppress, and inet6_rtm_getroute in net/ipv6/route.c).
func (f Flow) HurtsKernel(v Verdict) bool {
	if f.IIF == "" || f.IIF == loopbackName {
		return false
	}
	for one := &v; one != nil; one = one.Otherwise {
		if one.Suppressed {
			return true
		}
	}
	return false
}

// A hop is one way out.
type hop struct {
	device  int
	gateway netip.Addr
}

func (h hop) String() string {
	if h.gateway.IsValid() {
		return fmt.Sprintf("via %s by interface %d", h.gateway, h.device)
	}
	return fmt.Sprintf("by interface %d", h.device)
}

func hops(legs []routing.Route) []hop {
	out := make([]hop, 0, len(legs))
	for _, l := range legs {
		out = append(out, hop{l.Device, l.Gateway})
	}
	slices.SortFunc(out, func(a, b hop) int { return cmp.Or(cmp.Compare(a.device, b.device), a.gateway.Compare(b.gateway)) })
	return out
}

// Disagree says where a verdict and the kernel's answer differ, empty if they agree. The
// verdict must be that of f.Question(). Where the kernel decides by what nobody can simulate, every
// answer that it may give agrees.
func (h *Host) Disagree(v Verdict, f Flow, a Answer) string {
	if v.Otherwise == nil && v.Outcome == Sent && !v.Direct && f.OIF == "" && len(v.Legs) < len(a.Matched) && len(v.Alternatives) == 0 && !v.mayBeTaken(a.Matched[0]) && !v.FellBack(a) {
		return fmt.Sprintf("the kernel may use %d legs of the route, the simulation %d", len(a.Matched), len(v.Legs))
	}
	var whys []string
	for one := &v; one != nil; one = one.Otherwise {
		// Which of several it is for these packets is decided by a hash.
		why := h.disagreeOne(one, f, a)
		if why == "" {
			return ""
		}
		whys = append(whys, why)
	}
	return strings.Join(whys, ", or ")
}

// FellBack reports whether the kernel took one of the fallbacks.
func (v *Verdict) FellBack(a Answer) bool {
	return slices.ContainsFunc(v.Fallbacks, func(r routing.Route) bool {
		if len(a.Matched) == 0 {
			return refusal(r.Type) != None && a.Missed == refusal(r.Type) && a.Unsent == a.Missed
		}
		m := a.Matched[0]
		return r.Destination == m.Destination && r.Source == m.Source && r.Table == m.Table && r.Metric == m.Metric && r.Type == m.Type &&
			slices.ContainsFunc(a.Matched, func(l routing.Route) bool { return l.Device == r.Device && l.Gateway == r.Gateway }) &&
			slices.Contains(hops(a.Matched), hops([]routing.Route{a.Sent})[0])
	})
}

// mayBeTaken reports whether the kernel may name a route for that of the verdict, because both lead to one nexthop object, or
// to groups that have an object in common, and so to one copy ([Verdict.Nexthop]). It may have other legs.
func (v *Verdict) mayBeTaken(named routing.Route) bool {
	r := &v.Route
	isOther := named.Destination != r.Destination || named.Source != r.Source || named.Table != r.Table || named.Metric != r.Metric || named.Type != r.Type
	return isOther && v.Nexthop != 0 && named.Family == routing.IPv6
}

func (h *Host) disagreeOne(v *Verdict, f Flow, a Answer) string {
	switch v.Outcome {
	case NoRoute, Rejected:
		return h.disagreeRefused(v, f, a)
	case Local, Sent:
	}
	if v.FellBack(a) {
		return ""
	}
	if v.Direct {
		// No route matches: what is sent is the kernel's invention.
		switch {
		case v.Outcome == Local && f.To.IsMulticast() && a.Unsent == Invalid:
			return "" // Nobody here is a member of the group.
		case a.Unsent != None:
			return fmt.Sprintf("the kernel answers %q, the simulation sends", a.Unsent)
		case v.Outcome == Sent && a.Sent.Device != v.Legs[0].Device:
			return fmt.Sprintf("the kernel sends by interface %d, the simulation by %d", a.Sent.Device, v.Legs[0].Device)
		}
		return ""
	}
	if a.Missed != None || a.Unsent != None {
		return fmt.Sprintf("the kernel answers %q, the simulation has a route", cmp.Or(a.Missed, a.Unsent))
	}
	return h.disagreeRoute(v, f, a)
}

func (h *Host) disagreeRefused(v *Verdict, f Flow, a Answer) string {
	if !v.Assumed {
		older := v.Objection.olderError()
		if (a.Missed != v.Refusal || a.Unsent != v.Refusal) && (older == None || a.Missed != older || a.Unsent != older) {
			return fmt.Sprintf("the kernel answers %q, the simulation %q", cmp.Or(a.Unsent, a.Missed), v.Refusal)
		}
		return ""
	}
	out, _ := h.named(f.OIF)
	if a.Missed != HostUnreachable || a.Unsent != None || a.Sent.Device != out.Index || a.Sent.Gateway.IsValid() {
		return "the simulation takes the destination for a neighbour, the kernel does not"
	}
	return ""
}

// olderError is what kernels before 6.18 say instead of Verdict.Refusal, if it is something else.
func (o Objection) olderError() Refusal {
	switch o {
	case SourceForeign:
		return Invalid
	case ReversePath:
		return CrossDevice
	default:
		return None
	}
}

func (h *Host) disagreeRoute(v *Verdict, f Flow, a Answer) string {
	if len(a.Matched) == 0 {
		return "the kernel names no route"
	}
	got := a.Matched[0]
	if h.Merged && got.Table == routing.TableMain {
		got.Table = v.Route.Table // Main is asked, and has the routes of both (fib_lookup in include/net/ip_fib.h).
	}
	if toGroup(f.To) {
		got.Type = v.Route.Type // The kernel gives it that of the destination (__mkroute_output in net/ipv4/route.c).
	}
	same := func(want routing.Route) bool {
		return got.Destination == want.Destination && got.Source == want.Source && got.Table == want.Table && got.TOS == want.TOS &&
			got.Metric == want.Metric && got.Type == want.Type
	}
	// The two questions may have different answers where the reachability of routers decides, and
	// the kernel may name another route by the same object.
	taken := v.mayBeTaken(got)
	if !taken && !same(v.Route) && !slices.ContainsFunc(v.Alternatives, same) {
		return fmt.Sprintf("the kernel takes the route %s, the simulation %s", got, v.Route)
	}
	if v.Outcome == Local {
		if got.Device != v.Route.Device {
			return fmt.Sprintf("the kernel finds the address on interface %d, the simulation on %d", got.Device, v.Route.Device)
		}
		return ""
	}
	may := hops(append(slices.Clip(v.Legs), v.Alternatives...))
	if all := hops(a.Matched); len(v.Alternatives) == 0 && !toGroup(f.To) && !taken { // To a group it is used without its gateway.
		for _, h := range may {
			if !slices.Contains(all, h) {
				return fmt.Sprintf("the kernel's route has no leg %s", h)
			}
		}
	}
	if sent := hops([]routing.Route{a.Sent})[0]; !slices.Contains(may, sent) {
		return fmt.Sprintf("the kernel sends %s, the simulation %s", sent, may)
	}
	return ""
}
