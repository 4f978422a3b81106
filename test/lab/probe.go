package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// From says what a probe's socket is bound to. The zero value is unbound.
type From struct {
	Addr   netip.Addr // bind(2)
	Device string     // SO_BINDTODEVICE
	Mark   uint32     // SO_MARK
	// User is who opens the socket, by setfsuid(2); 0 is root.
	User int
}

func (f From) String() string {
	s := "unbound"
	if f.Addr.IsValid() {
		s = f.Addr.String()
	}
	if f.Device != "" {
		s += "%" + f.Device
	}
	return s
}

// pingEvery is the time between two requests of one ping.
const pingEvery = 300 * time.Millisecond

// probeTimeout is how long a probe without a deadline waits.
const probeTimeout = 3 * time.Second

func (f From) control(_, _ string, c syscall.RawConn) error {
	return controlErr(c, func(fd int) error {
		if f.Device != "" {
			if err := unix.BindToDevice(fd, f.Device); err != nil {
				return fmt.Errorf("binding to %s: %w", f.Device, err)
			}
		}
		if f.Mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(f.Mark)); err != nil {
				return fmt.Errorf("marking: %w", err)
			}
		}
		return nil
	})
}

// DialUDP asks the echo server at dst who it is, from the host, and repeats the
// question until a host answers or the context ends.
func DialUDP(ctx context.Context, from From, dst netip.Addr) (Answer, error) {
	if !inside {
		return Answer{}, errOutside
	}
	return ask(ctx, from, "udp", netip.AddrPortFrom(dst, EchoPort))
}

// DialTCP is DialUDP over a TCP connection.
func DialTCP(ctx context.Context, from From, dst netip.Addr) (Answer, error) {
	if !inside {
		return Answer{}, errOutside
	}
	return ask(ctx, from, "tcp", netip.AddrPortFrom(dst, EchoPort))
}

// ask works in whatever namespace the thread is in.
func ask(ctx context.Context, from From, network string, dst netip.AddrPort) (Answer, error) {
	return question(ctx, from, network, dst, 300*time.Millisecond)
}

// askOnce is ask without repeating the question.
func askOnce(ctx context.Context, from From, network string, dst netip.AddrPort) (Answer, error) {
	return question(ctx, from, network, dst, 0)
}

// dial opens the socket as the user.
func (f From) dial(ctx context.Context, dialer net.Dialer, network string, dst netip.AddrPort) (net.Conn, error) {
	if f.User == 0 {
		return dialer.DialContext(ctx, network, dst.String())
	}
	// It is the thread's. To a number, the dialer opens the socket in this goroutine.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(f.User); err != nil {
		return nil, fmt.Errorf("becoming user %d: %w", f.User, err)
	}
	conn, err := dialer.DialContext(ctx, network, dst.String())
	if back := unix.Setfsuid(0); back != nil {
		err = errors.Join(err, fmt.Errorf("becoming root again: %w", back))
	}
	return conn, err
}

// question repeats a datagram so often; 0 is never.
func question(ctx context.Context, from From, network string, dst netip.AddrPort, repeat time.Duration) (Answer, error) {
	ctx, cancel := Within(ctx, probeTimeout)
	defer cancel()
	var answer Answer
	fail := func(err error) (Answer, error) {
		return answer, fmt.Errorf("%s from %v to %v: %w", network, from, dst, err)
	}
	dialer := net.Dialer{Control: from.control}
	if from.Addr.IsValid() {
		ap := netip.AddrPortFrom(from.Addr, 0)
		dialer.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(ap))
		if network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(ap)
		}
	}
	begin := time.Now()
	conn, err := from.dial(ctx, dialer, network, dst)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	reader := bufio.NewReader(conn)
	for {
		if _, err := conn.Write([]byte("who?\n")); err != nil {
			return fail(err)
		}
		if network == "udp" && repeat > 0 { // which may be lost
			_ = conn.SetReadDeadline(time.Now().Add(repeat))
		}
		line, err := reader.ReadBytes('\n')
		switch {
		case err == nil:
			answer.RTT = time.Since(begin)
			if err := json.Unmarshal(line, &answer); err != nil {
				return fail(err)
			}
			return answer, nil
		case ctx.Err() != nil:
			return fail(fmt.Errorf("no answer: %w", context.Cause(ctx)))
		case network == "tcp" || !errors.Is(err, os.ErrDeadlineExceeded):
			return fail(err)
		}
	}
}

// Call asks the echo server at dst who it is, from the namespace; network is udp
// or tcp.
func (ns *Namespace) Call(ctx context.Context, from From, network string, dst netip.Addr) (Answer, error) {
	var answer Answer
	err := ns.Do(func() (err error) {
		answer, err = ask(ctx, from, network, netip.AddrPortFrom(dst, EchoPort))
		return err
	})
	return answer, err
}

// Call opens a TCP connection from an address behind the provider to the echo
// server of the host (Host.ServeEcho), as a client on the internet does. An
// answer means that the host's packets came back through this provider.
func (isp *ISP) Call(ctx context.Context, src, dst netip.Addr) (Answer, error) {
	return isp.ns.Call(ctx, From{Addr: src}, "tcp", dst)
}

// CallUDP is Call with a datagram.
func (isp *ISP) CallUDP(ctx context.Context, src, dst netip.Addr) (Answer, error) {
	return isp.ns.Call(ctx, From{Addr: src}, "udp", dst)
}

// ServeEcho starts the echo servers on all addresses of the host; they answer as
// "host".
func (h *Host) ServeEcho() error {
	open, err := listenEcho("host")
	for _, c := range open {
		h.onClose(func() error { _ = c.Close(); return nil })
	}
	return err
}

// Ping sends an ICMP echo request from the host and tells which provider's
// address answered: by the TTL that each provider starts with.
func (h *Host) Ping(ctx context.Context, from From, dst netip.Addr) (Answer, error) {
	ctx, cancel := Within(ctx, probeTimeout)
	defer cancel()
	answer, ttl, err := ping(ctx, from, dst)
	if err != nil {
		return answer, fmt.Errorf("ping from %v to %v: %w", from, dst, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	answer.ISP = h.ttls[ttl]
	return answer, nil
}

func ping(ctx context.Context, from From, dst netip.Addr) (Answer, int, error) {
	network, reply, request := "ip4:icmp", byte(0), byte(8)
	local := netip.IPv4Unspecified()
	if dst.Is6() {
		network, reply, request, local = "ip6:ipv6-icmp", 129, 128, netip.IPv6Unspecified()
	}
	if from.Addr.IsValid() {
		local = from.Addr
	}
	lc := net.ListenConfig{Control: func(n, a string, c syscall.RawConn) error {
		if err := from.control(n, a, c); err != nil {
			return err
		}
		return controlErr(c, func(fd int) error {
			if dst.Is6() {
				return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		})
	}}
	pc, err := lc.ListenPacket(ctx, network, local.String())
	if err != nil {
		return Answer{}, 0, err
	}
	conn := pc.(*net.IPConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	begin := time.Now()
	id := uint16(processCount.Add(1)) ^ uint16(os.Getpid())
	for seq := uint16(1); ; seq++ {
		packet := make([]byte, 16)
		packet[0] = request
		binary.BigEndian.PutUint16(packet[4:], id)
		binary.BigEndian.PutUint16(packet[6:], seq)
		if dst.Is4() { // the kernel does ICMPv6's, whose header is part of it
			binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		}
		if _, err := conn.WriteTo(packet, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
			return Answer{}, 0, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(pingEvery))
		for {
			buf, oob := make([]byte, 1500), make([]byte, 128)
			n, oobn, _, _, err := conn.ReadMsgIP(buf, oob)
			if err != nil {
				if ctx.Err() != nil {
					return Answer{}, 0, fmt.Errorf("no answer: %w", context.Cause(ctx))
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break // ask again
				}
				return Answer{}, 0, err
			}
			b := buf[:n]
			if dst.Is4() && len(b) > 20 { // ReadMsgIP leaves the header
				b = b[int(b[0]&15)*4:]
			}
			if len(b) < 8 || b[0] != reply || binary.BigEndian.Uint16(b[4:]) != id {
				continue // another program's
			}
			return Answer{RTT: time.Since(begin)}, hopLimit(oob[:oobn]), nil
		}
	}
}

func hopLimit(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		ttl := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL
		hops := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
		if (ttl || hops) && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
