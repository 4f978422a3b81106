package inspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// An Outcome is what the kernel answers for one packet that is bound to a link.
type Outcome struct {
	Link     string
	From, To netip.Addr
	// Table and Length are those of the route that was found, Device is where it
	// leads.
	Table  routing.TableID
	Length int
	Device string
	// Refused says that the kernel has an error in place of a route.
	Refused bool
}

// A Reject is a default route of main that refuses packets.
type Reject struct {
	Family routing.Family
	// Text is the route in the words of iproute2.
	Text string
}

// try asks the kernel where packets go that are bound to an uplink. One address of
// each family is enough: what rules of others and routes of main catch, they catch
// from all links. It costs the same whatever the host holds.
func (v *View) try() error {
	// Both sockets close with the handle.
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer handle.Close()
	for _, f := range routing.Families() {
		link, from, found := v.boundAddress(f)
		if !found {
			continue
		}
		refused, tried := 0, 0
		for _, to := range destinations(f) {
			o := v.ask(handle, link, from, to)
			if o.Refused {
				refused++
			}
			tried++
			v.Outcomes = append(v.Outcomes, o)
		}
		if refused <= tried/2 { // some are refused by routes of their own
			continue
		}
		rejects, err := rejectDefaults(f)
		if err != nil {
			return err
		}
		v.Rejects = append(v.Rejects, rejects...)
	}
	return nil
}

// boundAddress is an address of an uplink whose table has a default.
func (v *View) boundAddress(f routing.Family) (link string, from netip.Addr, found bool) {
	for plan := range v.Planner.Links() {
		if plan.Role != routing.Uplink || !plan.Link.Up {
			continue
		}
		for _, a := range plan.Link.Addresses {
			k, is := routing.KeyOf(plan.Link, a.Prefix.Addr())
			t, leased := plan.Link.Tables[k]
			if is && leased && k.Family == f && !a.Tentative && !plan.StepsAside(a.Prefix.Addr()) && slices.ContainsFunc(plan.Routes, func(r routing.PlannedRoute) bool {
				return r.Route.Family == f && r.Route.Table == t && r.Route.IsDefault()
			}) {
				return plan.Link.Name, a.Prefix.Addr(), true
			}
		}
	}
	return "", netip.Addr{}, false
}

// destinations are addresses all over the internet: one of every public /8 of IPv4,
// and one of every large block of IPv6 that IANA has handed out
// (https://www.iana.org/assignments/ipv6-unicast-address-assignments).
func destinations(f routing.Family) []netip.Addr {
	var out []netip.Addr
	if f == routing.IPv6 {
		for _, a := range [...]string{
			"2001:200::1", "2001:400::1", "2001:600::1", "2001:1200::1", "2003::1", "2400:1::1", "2600:1::1",
			"2610:1::1", "2620:1::1", "2630:1::1", "2800:1::1", "2a00:1::1", "2a10:1::1", "2c00:1::1",
		} {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	const firstMulticast = 224
	for first := byte(1); first < firstMulticast; first++ {
		if first != 10 && first != 127 { // RFC 1918, RFC 1122
			out = append(out, netip.AddrFrom4([4]byte{first, 1, 1, 1}))
		}
	}
	return out
}

// ask is `ip route get fibmatch`.
func (v *View) ask(handle *netlink.Handle, link string, from, to netip.Addr) Outcome {
	o := Outcome{Link: link, From: from, To: to}
	routes, err := handle.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: net.IP(from.AsSlice()), FIBMatch: true})
	if err != nil || len(routes) == 0 {
		o.Refused = true
		return o
	}
	r := routes[0]
	index := r.LinkIndex
	if len(r.MultiPath) > 0 {
		index = r.MultiPath[0].LinkIndex
	}
	o.Table, o.Device = routing.TableID(r.Table), v.device(index) //nolint:gosec // the kernel's number
	if r.Dst != nil {
		o.Length, _ = r.Dst.Mask.Size()
	}
	return o
}

// rejectDefaults reads the default routes of main that refuse packets. The kernel
// picks them out by their type (NETLINK_GET_STRICT_CHK): main may hold a million
// others.
func rejectDefaults(f routing.Family) ([]Reject, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer socket.Close()
	if err := unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return nil, fmt.Errorf("setting NETLINK_GET_STRICT_CHK: %w", err)
	}
	var out []Reject
	for _, kind := range []struct {
		number uint8
		name   string
	}{{unix.RTN_BLACKHOLE, "blackhole"}, {unix.RTN_UNREACHABLE, "unreachable"}, {unix.RTN_PROHIBIT, "prohibit"}} {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(f), Table: unix.RT_TABLE_MAIN, Type: kind.number}})
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return nil, fmt.Errorf("reading %s routes of main: %w", kind.name, err)
		}
		for _, m := range messages {
			header := nl.DeserializeRtMsg(m)
			if header.Dst_len != 0 || header.Type != kind.number {
				continue
			}
			metric := ""
			attributes, err := nl.ParseRouteAttr(m[header.Len():])
			if err != nil {
				return nil, fmt.Errorf("reading a %s route of main: %w", kind.name, err)
			}
			for _, a := range attributes {
				if a.Attr.Type == unix.RTA_PRIORITY && len(a.Value) == 4 {
					metric = fmt.Sprintf(" metric %d", binary.NativeEndian.Uint32(a.Value))
				}
			}
			out = append(out, Reject{Family: f, Text: kind.name + " default" + metric})
		}
	}
	return out, nil
}
