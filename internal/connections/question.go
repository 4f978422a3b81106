package connections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/internal/sockdiag"
)

// A question is what rules can know of a socket's packets: two questions that are equal have the
// same answer. The source port is left out: it would make every socket a question of its own.
type question struct {
	source, peer netip.Addr
	port         uint16
	mark, uid    uint32
	// protocol is 0 if it is not known; from is the interface by which a packet comes that this
	// host forwards, 0 for its own.
	protocol uint8
	from     int
}

func questionOf(s *sockdiag.Socket) question {
	return question{
		source: s.Source.Addr(), peer: s.Destination.Addr(), port: s.Destination.Port(), mark: s.Mark, uid: s.UID, protocol: unix.IPPROTO_TCP,
	}
}

// ask asks the kernel for the route of a socket's packets, by all rules, as the kernel itself would
// when the socket sends the next one.
func ask(conn *connection, q question) (Route, error) {
	family, bits := byte(unix.AF_INET6), byte(128)
	if q.peer.Is4() {
		family, bits = unix.AF_INET, 32
	}
	req := conn.request(unix.RTM_GETROUTE, 0)
	about := unix.RtMsg{Family: family, Dst_len: bits}
	if q.source.IsValid() {
		about.Src_len = bits
	}
	req.AddData(&nl.RtMsg{RtMsg: about})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, q.peer.AsSlice()))
	if q.source.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_SRC, q.source.AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.RTA_UID, nl.Uint32Attr(q.uid)))
	// The kernel takes these protocols alone, and ports for the first two (rtm_getroute_parse_ip_proto
	// in net/ipv4/fib_frontend.c).
	switch q.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		req.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{q.protocol}))
		req.AddData(nl.NewRtAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, q.port)))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		req.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{q.protocol}))
	}
	if q.from != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_IIF, nl.Uint32Attr(uint32(q.from)))) //nolint:gosec // an index of the kernel
	}
	if q.mark != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_MARK, nl.Uint32Attr(q.mark)))
	}
	var answer Route
	var malformed error
	err := conn.each(req, unix.RTM_NEWROUTE, func(b []byte) { answer, malformed = decodeRoute(b) })
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		// The errors of routes and rules of type unreachable, prohibit and blackhole
		// (fib_props in net/ipv4/fib_semantics.c).
		return Route{Unreachable: true}, nil
	case err != nil:
		return Route{}, fmt.Errorf("asking for the route from %s to %s: %w", q.source, q.peer, err)
	default:
		return answer, malformed
	}
}

// decodeRoute reads a struct rtmsg with its attributes.
func decodeRoute(b []byte) (Route, error) {
	if len(b) < unix.SizeofRtMsg {
		return Route{}, errors.New("a route of the kernel is too short")
	}
	out := Route{Type: b[7]}
	attributes, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return Route{}, fmt.Errorf("reading a route of the kernel: %w", err)
	}
	for _, a := range attributes {
		switch a.Attr.Type {
		case unix.RTA_OIF:
			if len(a.Value) == 4 {
				out.Device = int(binary.NativeEndian.Uint32(a.Value))
			}
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			out.Gateway = true
		}
	}
	return out, nil
}
