package connections

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/sockdiag"
)

// A Dead is a link that was judged dead.
type Dead struct {
	// Device is its interface index.
	Device int
	// Sources are its addresses, of the families in which it is dead.
	Sources []netip.Addr
	// Networks are its on-link prefixes. Their hosts may answer although nothing behind the gateway
	// does.
	Networks []netip.Prefix
	// NoGateway says that the link's default has no next hop (ppp, wwan): then every peer outside of
	// Networks is behind the link. Elsewhere a peer without a next hop is the link's neighbour.
	NoGateway bool
	// For is how long the link has been dead.
	For time.Duration
}

// A Verdict says what happens to a socket.
type Verdict uint8

// The verdicts. All but Close leave the socket alone.
const (
	// Close is for a socket that hangs on the dead link.
	Close Verdict = iota
	// Foreign is for one with the address of another link, or without a peer.
	Foreign
	// Bound is for one that is bound to a device: its owner chose the link. NetworkManager's are, too.
	Bound
	// Orphan is for one that no process holds: nobody has to be told, and the kernel ends it by itself.
	Orphan
	// Near is for one whose peer is this host, a neighbour of the link, or behind another device.
	Near
	// Heard is for one whose peer has been heard since the link's death.
	Heard
	// Multipath is for a subflow of a Multipath TCP connection that goes on by another link.
	Multipath
	verdicts
)

func (v Verdict) String() string {
	names := [verdicts]string{"close", "foreign", "bound", "orphan", "near", "heard", "multipath"}
	if v < verdicts {
		return names[v]
	}
	return "unknown"
}

// closing are the states of connections whose owner waits for the peer or may do so.
const closing = sockdiag.Connected

// Judge says what happens to a socket of a dead link. Close is not the last word: ask for the route
// to its peer (see Leaves) and, for a subflow, for its siblings (see Survives).
func (d *Dead) Judge(s *sockdiag.Socket) Verdict {
	peer := s.Destination.Addr()
	switch {
	case !closing.Has(s.State), !slices.Contains(d.Sources, s.Source.Addr()):
		return Foreign
	case s.Device != 0:
		return Bound
	case s.Inode == 0:
		return Orphan
	case !peer.IsGlobalUnicast(), slices.Contains(d.Sources, peer), slices.ContainsFunc(d.Networks, func(p netip.Prefix) bool { return p.Contains(peer) }):
		return Near
	// LastAckRecv counts in ticks of the kernel, and is 0 if nobody was heard at all.
	case s.HasInfo && s.State != sockdiag.SynSent && s.LastAckRecv < d.For:
		return Heard
	default:
		return Close
	}
}

// A Route is the kernel's answer to the question how a socket's packets leave.
type Route struct {
	// Unreachable says that there is no route: an error, or a route of type unreachable.
	Unreachable bool
	// Type is the type of the route (RTN_UNICAST, RTN_LOCAL).
	Type uint8
	// Device is the interface that they leave by, Gateway is true if there is a next hop.
	Device  int
	Gateway bool
}

// Leaves reports whether a socket whose packets have this route depends on the provider behind the
// dead link. A packet that has no route left depended on it: the ladder answers "unreachable" to
// sources of a link whose table is empty.
func (d *Dead) Leaves(r Route) bool {
	switch {
	case r.Unreachable:
		return true
	case r.Type != unix.RTN_UNICAST:
		return false
	default:
		return r.Device == d.Device && (r.Gateway || d.NoGateway)
	}
}

// Survives reports whether a subflow keeps its Multipath TCP connection alive while a link is dead:
// it is established, has another source, and does not wait for an answer itself.
func (d *Dead) Survives(s *sockdiag.Socket) bool {
	return s.MPTCP && s.State == sockdiag.Established && !slices.Contains(d.Sources, s.Source.Addr()) &&
		(s.Unacked == 0 || s.LastAckRecv < d.For)
}
