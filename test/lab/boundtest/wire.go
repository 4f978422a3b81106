package boundtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// listenWire hears what arrives at the provider of the thread's namespace.
func (w *World) listenWire() int {
	w.Helper()
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	w.must(err)
	w.Cleanup(func() { w.must(unix.Close(fd)) })
	w.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	return fd
}

// Seen returns what the host has sent to a provider since it was asked last: "udp 203.0.113.1", each once, without
// what hosts say to find each other, and what only ends a connection.
func (w *World) Seen(link string) []string {
	w.Helper()
	seen := map[string]bool{}
	b := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(w.wires[link], b, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return slices.Sorted(maps.Keys(seen))
		}
		w.must(err)
		if from, is := from.(*unix.SockaddrLinklayer); !is || from.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if what := describe(b[:n]); what != "" {
			seen[what] = true
		}
	}
}

func describe(p []byte) string {
	names := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp"}
	switch {
	case len(p) >= 28 && p[0]>>4 == 4:
		length, header := int(binary.BigEndian.Uint16(p[2:4])), int(p[0]&0xf)*4
		if p[9] == unix.IPPROTO_ICMP && p[20] != 8 || p[9] == unix.IPPROTO_TCP && onlyEnds(p, header, length) {
			return ""
		}
		return fmt.Sprintf("%s %v", names[p[9]], netip.AddrFrom4([4]byte(p[16:20])))
	case len(p) >= 48 && p[0]>>4 == 6:
		to := netip.AddrFrom16([16]byte(p[24:40]))
		if p[6] == unix.IPPROTO_ICMPV6 {
			if p[40] != 128 {
				return ""
			}
			return fmt.Sprintf("icmp %v", to)
		}
		if p[6] == unix.IPPROTO_TCP && onlyEnds(p, ipv6Header, ipv6Header+int(binary.BigEndian.Uint16(p[4:6]))) {
			return ""
		}
		if names[p[6]] != "" && !to.IsMulticast() {
			return fmt.Sprintf("%s %v", names[p[6]], to)
		}
	}
	return ""
}

const ipv6Header = 40

// onlyEnds reports whether a TCP segment neither opens a connection nor carries data. The kernel sends such for
// connections of before, when it finds the time. Segment and packet begin and end at header and length.
func onlyEnds(p []byte, header, length int) bool {
	const flags, syn = 13, 2
	if length > len(p) || header+flags >= length {
		return false
	}
	segment := p[header:length]
	return segment[flags]&syn == 0 && int(segment[12]>>4)*4 >= len(segment)
}
