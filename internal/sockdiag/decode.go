package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
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
	for a := (nlmsg.Attributes{Rest: b[sizeofMessage:]}); a.Next(); {
		switch a.Kind {
		case attrInfo:
			s.readInfo(a.Value)
		case attrMark:
			if len(a.Value) == 4 {
				s.Mark = ne.Uint32(a.Value)
			}
		case attrULP:
			s.readULP(a.Value)
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
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		switch a.Kind {
		case ulpName:
			s.MPTCP = string(a.Value) == "mptcp\x00"
		case ulpMPTCP:
			for m := (nlmsg.Attributes{Rest: a.Value}); m.Next(); {
				if m.Kind == localToken && len(m.Value) == 4 {
					s.Token = binary.NativeEndian.Uint32(m.Value)
				}
			}
		}
	}
}
