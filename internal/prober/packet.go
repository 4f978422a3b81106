package prober

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// rootNS is the question of a probe by DNS, the name servers of the root: every resolver knows them,
// no log of names shows anything about the user, and a resolver that only forwards must ask its own.
// Name (empty), type NS, class IN (RFC 1035, 4.1.2).
//
//nolint:gochecknoglobals // a constant in all but name
var rootNS = []byte{0, 0, 2, 0, 1}

const (
	sizeofDNSHeader  = 12
	sizeofICMPHeader = 8
	// payload is how many random bytes an echo request carries.
	payload = 16
	// echoRequest6 and echoReply6 are the types of ICMPv6 (RFC 4443, 4), echoRequest4 and echoReply4 those
	// of ICMP (RFC 792).
	echoRequest4, echoReply4, echoRequest6, echoReply6 = 8, 0, 128, 129
)

// query makes a question with a random identifier, and recursion desired.
func query() []byte {
	q := make([]byte, 2, sizeofDNSHeader+len(rootNS))
	rand.Read(q)
	q = append(q, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	return append(q, rootNS...)
}

// answersQuery reports whether a datagram answers a question of query. Errors do. A server that did not
// understand may leave the question out (RFC 1035 does not say; BIND does for FORMERR).
func answersQuery(q, datagram []byte) bool {
	if len(datagram) < sizeofDNSHeader || !bytes.Equal(datagram[:2], q[:2]) {
		return false
	}
	const isResponse, opcode, responseCode = 0x80, 0x78, 0x0f
	if datagram[2]&isResponse == 0 || datagram[2]&opcode != 0 {
		return false
	}
	switch questions := binary.BigEndian.Uint16(datagram[4:]); questions {
	case 0:
		return datagram[3]&responseCode != 0
	case 1:
		return bytes.HasPrefix(datagram[sizeofDNSHeader:], rootNS)
	default:
		return false
	}
}

// echo makes an echo request. The kernel fills in the identifier and the checksum (ping_v4_push_pending_frames
// in net/ipv4/ping.c).
func echo(four bool) []byte {
	e := make([]byte, sizeofICMPHeader+payload)
	rand.Read(e[6:])
	e[0] = echoRequest6
	if four {
		e[0] = echoRequest4
	}
	return e
}

// answersEcho reports whether a packet is the reply to an echo request. The kernel has compared the
// identifier.
func answersEcho(e, packet []byte, from, target unix.Sockaddr) bool {
	reply := byte(echoReply6)
	if e[0] == echoRequest4 {
		reply = echoReply4
	}
	return len(packet) == len(e) && packet[0] == reply && packet[1] == 0 && bytes.Equal(packet[6:], e[6:]) && sameHost(from, target)
}

func sameHost(a, b unix.Sockaddr) bool {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		b, is := b.(*unix.SockaddrInet4)
		return is && a.Addr == b.Addr
	case *unix.SockaddrInet6:
		b, is := b.(*unix.SockaddrInet6)
		return is && a.Addr == b.Addr
	}
	return false
}
