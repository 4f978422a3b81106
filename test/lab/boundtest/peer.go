package boundtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peerEnv makes the test's binary a process that asks.
const peerEnv = "MULTIHOMED_BOUND_PEER"

// patience is how long an answer may take; refusals come at once.
const patience = 10 * time.Second

// peer answers each question with one line. A question is a kind and an address with port:
//
//	tcp    a connection: who serves there, and the name of the peer
//	mptcp  the same by Multipath TCP
//	udp    by a connected socket
//	udpu   by a socket that is not connected: and where the answer came from
//	udp64  the same by a socket of IPv6, for an IPv4 address
//	ping   by a ping socket
//	mark   the mark of a new socket of a family
//	bind   udp by a socket that is bound to a device: ADDRESS@DEVICE
//	socket a stream socket of IPv4 and a protocol
//	name   an IPv4 address of a host name, as Go's resolver finds it
func peer(questions []string) int {
	for _, q := range questions {
		kind, address, _ := strings.Cut(q, " ")
		answer, err := ask(kind, address)
		if err != nil {
			answer = "error: " + short(err)
		}
		fmt.Println(answer)
	}
	return 0
}

func short(err error) string {
	if errno, is := errors.AsType[unix.Errno](err); is {
		return unix.ErrnoName(errno)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "timeout"
	}
	return err.Error()
}

func ask(kind, address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch kind {
	case "tcp", "udp", "mptcp":
		d := net.Dialer{}
		d.SetMultipathTCP(kind == "mptcp")
		c, err := d.DialContext(ctx, strings.TrimPrefix(kind, "mp"), address)
		if err != nil {
			return "", err
		}
		defer func() { _ = c.Close() }()
		return speak(c)
	case "udpu", "udp64":
		return unconnected(ctx, kind, address)
	case "ping":
		return ping(netip.MustParseAddr(address))
	case "bind":
		to, device, _ := strings.Cut(address, "@")
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
			})
			return errors.Join(err, failed)
		}}
		c, err := d.DialContext(ctx, "udp", to)
		if err != nil {
			return "", err
		}
		defer func() { _ = c.Close() }()
		return speak(c)
	case "mark":
		family := unix.AF_INET
		if address == "6" {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		return fmt.Sprintf("%#x", uint32(mark)), err
	case "socket":
		protocol, err := strconv.Atoi(address)
		if err != nil {
			return "", err
		}
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, protocol)
		return "ok", err
	case "name":
		r := net.Resolver{PreferGo: true}
		found, err := r.LookupNetIP(ctx, "ip4", address)
		return fmt.Sprint(found), err
	}
	return "", fmt.Errorf("unknown question %q", kind)
}

// speak asks by a connection.
func speak(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return "", err
	}
	// Not what package net remembers: what the kernel says.
	var peer unix.Sockaddr
	var failed error
	raw, err := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn() //nolint:forcetypeassert // All sockets have it.
	if err == nil {
		err = raw.Control(func(fd uintptr) { peer, failed = unix.Getpeername(int(fd)) })
	}
	if errors.Is(failed, unix.ENOTCONN) {
		// The server of TCP has closed.
		return string(b[:n]) + " from " + c.RemoteAddr().String(), err
	}
	return string(b[:n]) + " from " + show(peer), errors.Join(err, failed)
}

func show(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return fmt.Sprint(a)
}

func unconnected(ctx context.Context, kind, address string) (string, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return "", err
	}
	network := "udp4"
	if to.Addr().Is6() {
		network = "udp6"
	}
	if kind == "udp64" {
		network = "udp"
	}
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, network, ":0")
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to)); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		return "", err
	}
	return string(b[:n]) + " from " + from.String(), nil
}

// ping sends an echo request (icmp(7)).
func ping(to netip.Addr) (string, error) {
	family, proto, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var address unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if to.Is6() {
		family, proto, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		address = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return "", err
	}
	packet := make([]byte, 16)
	packet[0] = kind
	binary.BigEndian.PutUint16(packet[6:], 1)
	if err := unix.Sendto(fd, packet, 0, address); err != nil {
		return "", err
	}
	if _, _, err := unix.Recvfrom(fd, packet, 0); err != nil {
		return "", err
	}
	return "pong", nil
}
