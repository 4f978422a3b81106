package prober

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/prober/wire"
)

// A probe is one packet that waits for its answer, on a socket of its own: a new source port for each,
// and nothing to keep when an interface or an address goes.
type probe struct {
	wire.Probe
	fd     int
	sent   wire.Time
	target unix.Sockaddr
	// packet is what was sent, nil for TCP.
	packet []byte
	// strangers are the datagrams that were no answer.
	strangers int
}

// mostStrangers is how many datagrams that are no answer a probe takes before it ends.
const mostStrangers = 64

// An outcome is what a socket says about its probe.
type outcome int

const (
	waiting outcome = iota
	answered
	failed
)

// open sends a probe. The error wraps a syscall.Errno.
func open(p wire.Probe) (_ *probe, err error) {
	kind, protocol := unix.SOCK_DGRAM, unix.IPPROTO_UDP
	four := p.Target.Addr().Is4()
	switch {
	case p.Kind == wire.TCP:
		kind, protocol = unix.SOCK_STREAM, unix.IPPROTO_TCP
	case p.Kind == wire.ICMP && four:
		protocol = unix.IPPROTO_ICMP
	case p.Kind == wire.ICMP:
		protocol = unix.IPPROTO_ICMPV6
	}
	family := unix.AF_INET6
	if four {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	out := &probe{Probe: p, fd: fd, target: sockaddr(p.Target, p.Device)}
	defer func() {
		if err != nil {
			_ = unix.Close(fd) // The error before it counts.
		}
	}()
	if err := out.prepare(four); err != nil {
		return nil, err
	}
	out.sent = wire.Now()
	if err := unix.Connect(fd, out.target); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	switch p.Kind {
	case wire.TCP:
		return out, nil
	case wire.ICMP:
		out.packet = echo(four)
	default:
		out.packet = query()
	}
	out.sent = wire.Now()
	if err := unix.Send(fd, out.packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		return nil, fmt.Errorf("sending: %w", err)
	}
	return out, nil
}

// prepare binds the socket to its device and address, and asks for ICMP errors (ip(7), IP_RECVERR).
// Since Linux 5.7 an unprivileged process may bind a socket that is not bound.
func (p *probe) prepare(four bool) error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, p.Device); err != nil {
		return fmt.Errorf("binding to the device: %w", err)
	}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if four {
		level, option = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	if err := unix.SetsockoptInt(p.fd, level, option, 1); err != nil {
		return fmt.Errorf("asking for ICMP errors: %w", err)
	}
	if p.Kind == wire.TCP {
		// The end of the probe is a reset, and leaves nothing in the kernel.
		if err := unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("making close abort: %w", err)
		}
		// The kernel chooses the port when it knows the target.
		if err := unix.SetsockoptInt(p.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("leaving the port to the kernel: %w", err)
		}
	}
	if p.Source.IsValid() {
		if err := unix.Bind(p.fd, sockaddr(netip.AddrPortFrom(p.Source, 0), p.Device)); err != nil {
			return fmt.Errorf("binding to the source: %w", err)
		}
	}
	return nil
}

// sockaddr is an address for the kernel. Link-local ones have the scope of a device.
func sockaddr(a netip.AddrPort, device int) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	out := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if a.Addr().IsLinkLocalUnicast() {
		out.ZoneId = uint32(device) //nolint:gosec // wire has checked it.
	}
	return out
}

// close ends the probe. After that no answer is read.
func (p *probe) close() { _ = unix.Close(p.fd) } // The kernel closes it in any case.

// read reads what reached the socket, until nothing is left or the probe is decided.
func (p *probe) read(buffer []byte) (outcome, syscall.Errno) {
	for {
		errno, reached, more := p.readError(buffer)
		if !more {
			break
		}
		if reached {
			return answered, 0
		}
		if errno != 0 {
			return failed, errno
		}
	}
	if p.Kind == wire.TCP {
		return p.connected()
	}
	for {
		n, from, err := unix.Recvfrom(p.fd, buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return waiting, 0
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			// An error that came just now: its reason is in the queue, and is read in the next round.
			if p.strangers++; p.strangers > mostStrangers {
				return failed, errnoOf(err)
			}
			return waiting, 0
		}
		if p.answers(buffer[:n], from) {
			return answered, 0
		}
		if p.strangers++; p.strangers > mostStrangers {
			return failed, unix.EPROTO
		}
	}
}

func (p *probe) answers(datagram []byte, from unix.Sockaddr) bool {
	if p.Kind == wire.ICMP {
		return answersEcho(p.packet, datagram, from, p.target)
	}
	return answersQuery(p.packet, datagram)
}

// connected says what became of connect(2).
func (p *probe) connected() (outcome, syscall.Errno) {
	n, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return failed, errnoOf(err)
	case n == int(unix.ECONNREFUSED):
		// A reset: the error of an ICMP packet stood in the queue.
		return answered, 0
	case n != 0:
		return failed, syscall.Errno(n)
	}
	if _, err := unix.Getpeername(p.fd); err != nil {
		return waiting, 0
	}
	return answered, 0
}

// rtt returns how long an answer took that was seen at a time, 0 if nobody knows: the prober was late, or
// a SYN was sent twice and either may have been answered. The kernel has measured the handshake of a
// connection; a reset it has not.
func (p *probe) rtt(seen wire.Time, late bool) time.Duration {
	upTo := seen.Sub(p.sent)
	if p.Kind == wire.TCP {
		info, err := unix.GetsockoptTCPInfo(p.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil || info.Total_retrans != 0:
			return 0
		case info.Rtt != 0:
			return min(time.Duration(info.Rtt)*time.Microsecond, upTo)
		}
	}
	if late {
		return 0
	}
	return upTo
}

// sizeofExtendedErr is that of struct sock_extended_err (include/uapi/linux/errqueue.h).
const sizeofExtendedErr = 16

// readError takes one element of the error queue. errno is 0 for one that says nothing about the target,
// as that a packet is too long. refused says that the target itself reported a closed port, which a
// gateway between may report, too.
func (p *probe) readError(buffer []byte) (errno syscall.Errno, refused, more bool) {
	var control [256]byte
	_, n, _, _, err := unix.Recvmsg(p.fd, buffer, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EINTR) {
		return 0, false, true
	}
	if err != nil {
		return 0, false, false
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return 0, false, true
	}
	for _, m := range messages {
		isError := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !isError || len(m.Data) < sizeofExtendedErr {
			continue
		}
		errno = syscall.Errno(binary.NativeEndian.Uint32(m.Data))
		if errno == unix.EMSGSIZE {
			return 0, false, true
		}
		offender, known := hostOf(m.Data[sizeofExtendedErr:])
		return errno, known && offender == p.Target.Addr(), true
	}
	return 0, false, true
}

// hostOf reads the address of a struct sockaddr_in or sockaddr_in6.
func hostOf(b []byte) (netip.Addr, bool) {
	const at4, at6 = 4, 8
	switch {
	case len(b) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(b) == unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[at4:])), true
	case len(b) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(b) == unix.AF_INET6:
		return netip.AddrFrom16([16]byte(b[at6:])), true
	}
	return netip.Addr{}, false
}

// errnoOf returns the number that an error wraps, EIO if there is none.
func errnoOf(err error) syscall.Errno {
	if errno, is := errors.AsType[syscall.Errno](err); is && errno != 0 {
		return errno
	}
	return unix.EIO
}
