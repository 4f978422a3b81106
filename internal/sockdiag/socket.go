package sockdiag

import (
	"net/netip"
	"time"
)

// A State is the state of a TCP socket (include/net/tcp_states.h).
type State uint8

// The states of TCP. A connection request that waits for its last ACK is a NewSynRecv, and has
// neither owner nor tcp_info; a TimeWait has no tcp_info either.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Closed
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv
	BoundInactive
)

// String is the name that ss(8) prints.
func (s State) String() string {
	names := [...]string{
		Established: "ESTAB", SynSent: "SYN-SENT", SynRecv: "SYN-RECV", FinWait1: "FIN-WAIT-1", FinWait2: "FIN-WAIT-2",
		TimeWait: "TIME-WAIT", Closed: "UNCONN", CloseWait: "CLOSE-WAIT", LastAck: "LAST-ACK", Listen: "LISTEN",
		Closing: "CLOSING", NewSynRecv: "NEW-SYN-RECV", BoundInactive: "BOUND-INACTIVE",
	}
	if int(s) < len(names) && names[s] != "" {
		return names[s]
	}
	return "UNKNOWN"
}

// States is a set of states, as the kernel takes it: bit N is state N.
type States uint32

// Set returns the set of some states.
func Set(states ...State) (set States) {
	for _, s := range states {
		set |= 1 << s
	}
	return set
}

// Has reports whether a state is in the set.
func (set States) Has(s State) bool { return set&(1<<s) != 0 }

// Connected are the states of a socket that has a peer, or asks for one, and of which the kernel
// keeps a tcp_info.
const Connected States = 1<<Established | 1<<SynSent | 1<<SynRecv | 1<<FinWait1 | 1<<FinWait2 | 1<<CloseWait | 1<<LastAck | 1<<Closing

// A Socket is one TCP socket (struct inet_diag_msg and struct tcp_info). Dump reuses it for the next
// one: who keeps one copies it.
type Socket struct {
	// Source is its own address and port, Destination its peer's. IPv4 addresses of sockets of
	// AF_INET6 (::ffff:192.0.2.1) are IPv4 addresses here. Neither has a zone.
	Source, Destination netip.AddrPort
	State               State
	// Device is the interface that the socket is bound to (SO_BINDTODEVICE, a link-local peer, a
	// VRF), 0 if it is bound to none.
	Device int
	// UID is the user who made the socket.
	UID uint32
	// Inode is the number that /proc/PID/fd shows, 0 if no process holds the socket (any more).
	Inode uint32
	// Mark is SO_MARK, which the kernel tells only who has CAP_NET_ADMIN.
	Mark uint32
	// Pending are the bytes that the peer has not acknowledged, sent or not. A packet that the host
	// itself refused (no route, a filter) counts here and not in Unacked. For a listener it is the
	// length of its queue.
	Pending uint32
	// MPTCP is true for a subflow of Multipath TCP. Token then names the connection it belongs to;
	// the kernel tells only who has CAP_NET_ADMIN, others read 0.
	MPTCP bool
	Token uint32

	// HasInfo reports whether the kernel gave a tcp_info: the fields below are 0 without. So they
	// are for SynSent, which has heard nobody yet, but for Unacked and Retransmits.
	HasInfo bool
	// LastDataSent, LastDataRecv and LastAckRecv are how long ago the socket sent data, received
	// data, and received any segment with an ACK, which every segment of a peer has but its first
	// and its reset. In milliseconds of the kernel's tick (4 ms with HZ=250).
	LastDataSent, LastDataRecv, LastAckRecv time.Duration
	// RTT and RTTVar are the smoothed round trip and its deviation, 0 before the first measurement.
	RTT, RTTVar time.Duration
	// Unacked are the segments sent and not acknowledged, a SYN included.
	Unacked uint32
	// Retransmits counts the timeouts of the oldest one. Probes counts unanswered probes: of
	// keepalive, or of a window that the peer closed.
	Retransmits, Probes uint8

	id identity
}

// An identity is how the kernel knows a socket: its family and struct inet_diag_sockid, which has a
// cookie that no other socket ever gets.
type identity struct {
	family uint8
	sockID [sizeofSockID]byte
}
