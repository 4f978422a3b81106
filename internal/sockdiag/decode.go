package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes and offsets of struct inet_diag_sockid and struct inet_diag_msg
// (include/uapi/linux/inet_diag.h), and numbers of attributes there and in mptcp.h.
const (
	sizeofSockID  = 48
	sizeofMessage = 72

	offID      = 4
	offSource  = offID + 4
	offPeer    = offID + 20
	offDevice  = offID + 36
	offPending = offID + sizeofSockID + 8
	offUID     = offID + sizeofSockID + 12
	offInode   = offID + sizeofSockID + 16
	attrInfo   = 2  // INET_DIAG_INFO
	attrMark   = 15 // INET_DIAG_MARK
	attrULP    = 19 // INET_DIAG_ULP_INFO
	ulpName    = 1  // INET_ULP_INFO_NAME
	ulpMPTCP   = 3  // INET_ULP_INFO_MPTCP
	localToken = 2  // MPTCP_SUBFLOW_ATTR_TOKEN_LOC
)

// Offsets in struct tcp_info (include/uapi/linux/tcp.h), whose first 104 bytes are the same since
// Linux 2.6.10.
const (
	infoRetransmits  = 2
	infoProbes       = 3
	infoUnacked      = 24
	infoLastDataSent = 44
	infoLastDataRecv = 52
	infoLastAckRecv  = 56
	infoRTT          = 68
	infoRTTVar       = 72
	sizeofInfo       = 104
)

var errShort = errors.New("message of sock_diag is too short")

// decode reads one message of a dump. It allocates nothing.
func (s *Socket) decode(b []byte) error {
	if len(b) < sizeofMessage {
		return errShort
	}
	*s = Socket{State: State(b[1])}
	s.id.family = b[0]
	copy(s.id.sockID[:], b[offID:])
	ne, be := binary.NativeEndian, binary.BigEndian
	s.Source = netip.AddrPortFrom(address(b[0], b[offSource:]), be.Uint16(b[offID:]))
	s.Destination = netip.AddrPortFrom(address(b[0], b[offPeer:]), be.Uint16(b[offID+2:]))
	s.Device = int(ne.Uint32(b[offDevice:]))
	s.Pending = ne.Uint32(b[offPending:])
	s.UID = ne.Uint32(b[offUID:])
	s.Inode = ne.Uint32(b[offInode:])
	for a := (attributes{rest: b[sizeofMessage:]}); a.next(); {
		switch a.kind {
		case attrInfo:
			s.readInfo(a.value)
		case attrMark:
			if len(a.value) == 4 {
				s.Mark = ne.Uint32(a.value)
			}
		case attrULP:
			s.readULP(a.value)
		}
	}
	return nil
}

func address(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

func (s *Socket) readInfo(b []byte) {
	if len(b) < sizeofInfo {
		return
	}
	since := func(at int, unit time.Duration) time.Duration {
		return time.Duration(binary.NativeEndian.Uint32(b[at:])) * unit
	}
	s.HasInfo = true
	s.Retransmits, s.Probes = b[infoRetransmits], b[infoProbes]
	s.Unacked = binary.NativeEndian.Uint32(b[infoUnacked:])
	if s.State == SynSent {
		// The kernel's time stamps are 0 before the first segment, and read as its uptime.
		return
	}
	s.LastDataSent = since(infoLastDataSent, time.Millisecond)
	s.LastDataRecv = since(infoLastDataRecv, time.Millisecond)
	s.LastAckRecv = since(infoLastAckRecv, time.Millisecond)
	s.RTT = since(infoRTT, time.Microsecond)
	s.RTTVar = since(infoRTTVar, time.Microsecond)
}

func (s *Socket) readULP(b []byte) {
	for a := (attributes{rest: b}); a.next(); {
		switch a.kind {
		case ulpName:
			s.MPTCP = string(a.value) == "mptcp\x00"
		case ulpMPTCP:
			for m := (attributes{rest: a.value}); m.next(); {
				if m.kind == localToken && len(m.value) == 4 {
					s.Token = binary.NativeEndian.Uint32(m.value)
				}
			}
		}
	}
}

// attributes walks netlink attributes.
type attributes struct {
	rest  []byte
	kind  uint16
	value []byte
}

func (a *attributes) next() bool {
	if len(a.rest) < unix.SizeofNlAttr {
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.rest))
	if n < unix.SizeofNlAttr || n > len(a.rest) {
		a.rest = nil
		return false
	}
	a.kind = binary.NativeEndian.Uint16(a.rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	a.value = a.rest[unix.SizeofNlAttr:n]
	a.rest = a.rest[min(align(n), len(a.rest)):]
	return true
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
