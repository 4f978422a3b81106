package lookup

import (
	"net/netip"
	"slices"

	"multihomed/routing"
)

// This file is what the kernel does besides asking rules: before them and after them. Of IPv6 it is
// [Host.Forward] alone, and what ask6 refuses.

// An Objection is why the kernel refuses or drops a packet that no rule refused.
type Objection uint8

// Objections.
const (
	NoObjection Objection = iota
	// DeviceMissing: the interface does not exist.
	DeviceMissing
	// DeviceDown: the socket is bound to an interface that is down.
	DeviceDown
	// SourceForeign: the source is not an address of this host, and the socket is not one that may
	// send from others (IP_TRANSPARENT, IP_FREEBIND).
	SourceForeign
	// AddressMartian: no packet may have this source or this destination there.
	AddressMartian
	// NotForwarding: the interface does not take packets for others.
	NotForwarding
	// NotForwardable: the route is for packets of this host alone (broadcast, for example).
	NotForwardable
	// ReversePath: the source failed its check ([Verdict.Reverse]).
	ReversePath
	// LoopbackSource: the source is of 127.0.0.0/8, and the interface that it would leave by is
	// neither lo nor has route_localnet.
	LoopbackSource
	// SourceOfLink: the source is an IPv6 address of one link, and the packet would leave by another.
	SourceOfLink
	// LinkOfVRF: a VRF has no link of its own, and so neither link-local addresses nor multicast of IPv6.
	LinkOfVRF
)

func (o Objection) String() string {
	return [...]string{
		"none", "no such interface", "the interface is down", "the source is not an address of this host",
		"an address that no packet may have", "the interface does not forward", "the route is not for forwarded packets",
		"the source failed the reverse path check", "a packet from a loopback address does not leave the host (route_localnet is off)",
		"a packet from a link-local address is not forwarded to another interface",
		"a VRF has no link: link-local addresses and multicast need one of its ports",
	}[o]
}

// A Reverse is the check of the source of an IPv4 packet that came in (fib_validate_source in
// net/ipv4/fib_frontend.c): the lookup of the way back.
type Reverse struct {
	// Mode is rp_filter of the interface: 0, 1 or 2. The source is looked up with 0 too, to find
	// what is no source.
	Mode uint8
	// Flow is what was looked up. Its IIF is the interface that the packet leaves by.
	Flow    Flow
	Verdict Verdict
	Steps   []Step
	Passed  bool
	// Reason says why.
	Reason ReverseReason
}

// A ReverseReason is why the check of a source passed or failed.
type ReverseReason uint8

// Reasons.
const (
	// BySameInterface: the way back leads through the interface that the packet came in by.
	BySameInterface ReverseReason = iota
	// ByOtherInterface: it leads through another one. The strict mode does not allow that.
	ByOtherInterface
	// NoWayBack: there is no route. Only the modes 1 and 2 mind.
	NoWayBack
	// WayBackLocal: the source is an address of this host. It fails without accept_local.
	WayBackLocal
	// WayBackOdd: the route is neither unicast nor local. It fails.
	WayBackOdd
	// NoAddress: the interface has no IPv4 address, and the way back is another one. Only the
	// modes 1 and 2 mind.
	NoAddress
)

func (r ReverseReason) String() string {
	return [...]string{
		"the way back leads through the same interface", "the way back leads through another interface", "there is no way back",
		"the source is an address of this host", "the source is the destination of a route that is not unicast",
		"the interface has no address, and the way back does not lead through it",
	}[r]
}

func isBroadcast(a netip.Addr) bool { return a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// isZero is ipv4_is_zeronet: since Linux 5.3, the rest of 0.0.0.0/8 is as any other network.
func isZero(a netip.Addr) bool { return a == netip.IPv4Unspecified() }

func isLinkGroup(a netip.Addr) bool {
	b := a.As4()
	return b[0] == 224 && b[1] == 0 && b[2] == 0
}

// protocolIGMP is RFC 1112's.
const protocolIGMP = 2

// before is what ip_route_output_key_hash_rcu, and ip_route_input_slow, decide without rules.
func (w *walk) before() (v Verdict, done bool) {
	if w.forwarded {
		return w.beforeInput()
	}
	refuse := func(r Refusal, o Objection) (Verdict, bool) { return Verdict{Refusal: r, Objection: o}, true }
	send := func(device int) (Verdict, bool) {
		return Verdict{
			Outcome: Sent, Direct: true,
			Legs: []routing.Route{{Family: routing.IPv4, Type: routing.RouteUnicast, Destination: netip.PrefixFrom(w.flow.To, w.flow.To.BitLen()), Device: device}},
		}, true
	}
	from, to := w.flow.From, w.flow.To
	group := to.IsMulticast() || isBroadcast(to)
	out, known := w.host.named(w.flow.OIF)
	if w.flow.OIF != "" && !known {
		return refuse(NoDevice, DeviceMissing) // No socket is bound to it, so nothing asks for the source.
	}
	if from.IsValid() && w.host.Checks {
		holder, isOwn := w.holder(from)
		switch {
		case from.IsMulticast() || isBroadcast(from) || isZero(from):
			return refuse(Invalid, AddressMartian)
		case !isOwn:
			return refuse(NetUnreachable, SourceForeign)
		case w.flow.OIF == "" && group:
			return send(holder)
		}
	}
	if w.flow.OIF == "" {
		return toItself(to)
	}
	switch {
	case !out.Up:
		return refuse(NetUnreachable, DeviceDown)
	case isBroadcast(to) || isLinkGroup(to) || w.flow.IPProto == protocolIGMP:
		return send(out.Index)
	}
	return toItself(to)
}

// toItself sends what is for 0.0.0.0 to the host itself: to the source, or to 127.0.0.1.
func toItself(to netip.Addr) (v Verdict, done bool) {
	return Verdict{Outcome: Local, Direct: true}, isZero(to)
}

// holder is __ip_dev_find: the interface that has an address, by table local, or as an address of a
// VRF. The kernel's list of addresses is not known here; each has a route.
func (w *walk) holder(a netip.Addr) (device int, ok bool) {
	search := walk{host: w.host, family: w.family, flow: Flow{To: a}}
	local := search.containing(nil, routing.TableLocal)
	sortCandidates(local)
	if len(local) > 0 && local[0].Type == routing.RouteLocal {
		return local[0].Device, true
	}
	for _, i := range w.host.Interfaces {
		if i.Table == 0 {
			continue
		}
		for _, r := range search.containing(nil, i.Table) {
			if r.Type == routing.RouteLocal && r.Destination.IsSingleIP() {
				return r.Device, true
			}
		}
	}
	return 0, false
}

func (w *walk) beforeInput() (v Verdict, done bool) {
	if !w.host.Checks {
		return v, false
	}
	from, to := w.flow.From, w.flow.To
	in, _ := w.host.numbered(w.in)
	switch {
	case w.in == absent:
		return Verdict{Refusal: NoDevice, Objection: DeviceMissing}, true
	case from.IsMulticast() || isBroadcast(from) || (from.IsLoopback() || to.IsLoopback()) && !in.Config.RouteLocalnet:
	case toGroup(to) || isZero(to) && !from.IsValid():
		// Who listens is not known here. The source is checked as that of a broadcast (brd_input,
		// ip_mc_validate_source).
		v = Verdict{Outcome: Local, Direct: true, Route: routing.Route{Type: routing.RouteBroadcast}}
		if from.IsValid() {
			w.checkSource(&v, in, 0)
		}
		v.Route = routing.Route{}
		if v.Objection != NoObjection {
			v.Outcome, v.Refusal = Rejected, Invalid
		}
		return v, true
	case from.IsValid() && !isZero(to):
		return v, false
	}
	return Verdict{Outcome: Rejected, Refusal: Invalid, Objection: AddressMartian}, true
}

// toGroup reports an IPv4 destination that is more than one host.
func toGroup(a netip.Addr) bool { return a.Is4() && (a.IsMulticast() || isBroadcast(a)) }

// toNeighbours takes the gateways away where the kernel sends to a group by a route that is not for
// groups (__mkroute_output in net/ipv4/route.c).
func (w *walk) toNeighbours(v *Verdict) {
	const groupBits = 4
	if v.Outcome != Sent || !toGroup(w.flow.To) || w.flow.To.IsMulticast() && v.Route.Destination.Bits() >= groupBits {
		return
	}
	v.Legs = slices.Clone(v.Legs)
	for i := range v.Legs {
		v.Legs[i].Gateway = netip.Addr{}
	}
}

// keepLoopback takes away the ways that a packet from 127.0.0.0/8 may not leave by
// (__mkroute_output in net/ipv4/route.c).
func (w *walk) keepLoopback(v *Verdict) {
	if !w.flow.From.IsLoopback() || !w.host.Checks {
		return
	}
	stays := func(device int) bool {
		out, _ := w.host.numbered(device)
		return device != loopback && !out.Config.RouteLocalnet && out.Table == 0
	}
	v.Legs = slices.DeleteFunc(slices.Clone(v.Legs), func(leg routing.Route) bool { return stays(leg.Device) })
	if v.Outcome == Sent && len(v.Legs) == 0 || v.Assumed && stays(w.out) {
		v.Outcome, v.Refusal, v.Objection, v.Assumed = Rejected, Invalid, LoopbackSource, false
	}
}

// Forwarded is the verdict about f after what [Host.Forward] says.
func (h *Host) Forwarded(f Flow, v Verdict) Verdict {
	if why := h.Forward(f, v); why != NoObjection {
		v.Outcome, v.Objection, v.Legs, v.Otherwise = Rejected, why, nil, nil
	}
	return v
}

// Forward says why the host drops a packet that came in and that has a route. It is what IPv6 checks
// after the lookup, so that RTM_GETROUTE does not tell (ip6_forward in net/ipv6/ip6_output.c).
// Of IPv4 the verdict has it.
func (h *Host) Forward(f Flow, v Verdict) Objection {
	in, known := h.named(f.IIF)
	if !known || f.To.Unmap().Is4() || f.IIF == loopbackName || v.Outcome != Sent {
		return NoObjection
	}
	switch {
	case !in.Config.Forwards.In(routing.IPv6):
		return NotForwarding
	case f.From.IsLinkLocalUnicast() && !v.Through(in.Index):
		return SourceOfLink
	default:
		return NoObjection
	}
}

// after is what the kernel checks of an IPv4 route before it uses it.
func (w *walk) after(v *Verdict) {
	refuse := func(r Refusal, o Objection) { v.Outcome, v.Refusal, v.Objection, v.Legs = Rejected, r, o, nil }
	if !w.forwarded {
		w.toNeighbours(v)
		w.keepLoopback(v)
	}
	if !w.host.Checks || !w.forwarded {
		return
	}
	in, _ := w.host.numbered(w.in)
	forwards := in.Config.Forwards.In(routing.IPv4)
	switch v.Outcome {
	case NoRoute, Rejected:
		if !forwards {
			refuse(HostUnreachable, NotForwarding)
		}
		return
	case Local:
		w.checkSource(v, in, 0)
	case Sent:
		switch {
		case !forwards:
			refuse(HostUnreachable, NotForwarding)
			return
		case v.Route.Type != routing.RouteUnicast:
			refuse(Invalid, NotForwardable)
			return
		}
		// What rules say of the source may depend on the leg.
		legs := v.Legs
		refused := *v
		var allowed []routing.Route
		for _, leg := range legs {
			one := *v
			if w.checkSource(&one, in, leg.Device); one.Objection == NoObjection {
				allowed = append(allowed, leg)
				v.Reverse = one.Reverse
			} else {
				refused = one
			}
		}
		switch {
		case len(allowed) == 0:
			*v = refused
		case len(allowed) < len(legs):
			v.Legs = allowed
			refused.Otherwise, refused.Legs = v.Otherwise, nil
			v.Otherwise = &refused
		}
	}
	if v.Objection == ReversePath {
		refuse(Invalid, ReversePath)
	}
}

// checkSource is __fib_validate_source for a packet that leaves by a device, or is for this
// host (0).
func (w *walk) checkSource(v *Verdict, in Interface, device int) {
	c := in.Config
	if c.ReversePath == 0 && c.AcceptLocal {
		return
	}
	back := w.flow
	back.From, back.To = w.flow.To, w.flow.From
	back.SourcePort, back.DestinationPort = w.flow.DestinationPort, w.flow.SourcePort
	if !c.MarkReverse {
		back.Mark = 0
	}
	if v.Route.Type == routing.RouteBroadcast {
		back.From = netip.Addr{} // brd_input
	}
	back.TunnelID = 0
	entry, _ := w.host.named(loopbackName)
	if out, ok := w.host.numbered(device); ok && device != 0 {
		entry = out
	}
	back.IIF = entry.Name
	r := &Reverse{Mode: c.ReversePath, Flow: back}
	v.Reverse = r
	// Unlike any other packet, this one belongs to the VRF of one interface and comes in by another.
	search := walk{
		host: w.host, family: w.family, flow: back, found: map[routing.TableID]found{}, forwarded: true,
		entry: entry, in: max(device, loopback), vrf: w.vrf, hasVRF: w.hasVRF,
	}
	r.Verdict = search.rules(func(s Step) { r.Steps = append(r.Steps, s) })
	lenient := c.ReversePath == 0
	switch {
	case r.Verdict.Outcome == NoRoute || r.Verdict.Outcome == Rejected:
		r.Reason, r.Passed = NoWayBack, lenient
	case r.Verdict.Route.Type == routing.RouteLocal:
		r.Reason, r.Passed = WayBackLocal, c.AcceptLocal && (r.Verdict.Route.Device == in.Index || in.Index == loopback || c.ReversePath != 1)
	case r.Verdict.Route.Type != routing.RouteUnicast:
		r.Reason = WayBackOdd
	case w.leadsBack(r.Verdict.Legs, in.Index):
		r.Reason, r.Passed = BySameInterface, true
	case !c.Addressed:
		r.Reason, r.Passed = NoAddress, lenient
	default:
		r.Reason, r.Passed = ByOtherInterface, c.ReversePath != 1
	}
	if !r.Passed {
		v.Objection = ReversePath
	}
}

// leadsBack is fib_info_nh_uses_dev: a leg leads through the interface, or through a port of it if
// it is a VRF.
func (w *walk) leadsBack(legs []routing.Route, index int) bool {
	return slices.ContainsFunc(legs, func(r routing.Route) bool {
		i, ok := w.host.numbered(r.Device)
		if !ok {
			return false
		}
		m, isPort := w.host.master(i)
		return r.Device == index || isPort && m.Index == index
	})
}
