package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/doctor"
)

// conflicts asks the hosts on a wire whether one of them has an address of this host (RFC 5227,
// section 2.1.1). A device without hardware addresses has no ARP, and no conflicts.
func conflicts(ctx context.Context, device string, addresses []netip.Addr) ([]doctor.Conflict, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", device, err)
	}
	if len(i.HardwareAddr) != ethernet {
		return nil, nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for ARP: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "arp")
	defer func() { _ = socket.Close() }() // What it was for has been done.
	everybody := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: i.Index, Halen: ethernet, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: i.Index}); err != nil {
		return nil, fmt.Errorf("binding a socket for ARP: %w", err)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("waiting for ARP: %w", err)
	}
	own := map[string]bool{}
	if all, err := net.Interfaces(); err == nil {
		for _, i := range all {
			own[string(i.HardwareAddr)] = true
		}
	}
	found := map[netip.Addr]doctor.Conflict{}
	for range tries {
		for _, a := range addresses {
			if err := unix.Sendto(fd, question(i.HardwareAddr, a), 0, everybody); err != nil {
				return nil, fmt.Errorf("asking who else has %s: %w", a, err)
			}
		}
		if err := socket.SetReadDeadline(time.Now().Add(onWire)); err != nil {
			return nil, fmt.Errorf("waiting for ARP: %w", err)
		}
		buffer := make([]byte, 128)
		for ctx.Err() == nil {
			n := 0
			if err := raw.Read(func(fd uintptr) bool {
				var err error
				n, _, err = unix.Recvfrom(int(fd), buffer, 0)
				return err != unix.EAGAIN
			}); err != nil {
				break // The time is over.
			}
			hardware, sender, ok := answer(buffer[:max(n, 0)])
			for _, a := range addresses {
				if ok && sender == a && !own[string(hardware)] {
					found[a] = doctor.Conflict{Address: a, Hardware: hardware.String()}
				}
			}
		}
	}
	var out []doctor.Conflict
	for _, a := range addresses {
		if c, is := found[a]; is {
			out = append(out, c)
		}
	}
	return out, nil
}

// ethernet is the length of a hardware address.
const ethernet = 6

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// ARP for IPv4 on Ethernet (RFC 826).
const (
	request    = 1
	senderMAC  = 8
	senderIP   = 14
	targetMAC  = 18
	targetIP   = 24
	lengthARP  = 28
	prefixSize = 6
)

// prefix are the kinds and lengths of the addresses.
func prefix() []byte { return []byte{0, 1, 0x08, 0, ethernet, 4} }

// question asks who has an address, without saying that we have it.
func question(from net.HardwareAddr, a netip.Addr) []byte {
	b := append(prefix(), 0, request)
	b = append(b, from...)
	b = append(b, make([]byte, targetIP-senderIP)...)
	return append(b, a.AsSlice()...)
}

// answer reads who says of himself that he has an address.
func answer(b []byte) (hardware net.HardwareAddr, a netip.Addr, ok bool) {
	if len(b) < lengthARP || !bytes.Equal(b[:prefixSize], prefix()) {
		return nil, a, false
	}
	a, ok = netip.AddrFromSlice(b[senderIP:targetMAC])
	return net.HardwareAddr(bytes.Clone(b[senderMAC:senderIP])), a, ok
}
