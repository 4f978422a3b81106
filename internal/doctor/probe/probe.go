// Package probe sends the few packets that doctor asks for with --probe: pings to the outside, small
// and large, and ARP probes for the addresses of links. It needs CAP_NET_RAW.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/doctor"
	"multihomed/routing"
)

// A Link is one to probe.
type Link struct {
	Name      string
	MTU       int
	Addresses map[routing.Family][]netip.Addr
	Gateways  map[routing.Family]netip.Addr
}

const (
	// patience is how long the first packet may be under way. What comes later may take some times as
	// long as the first answer took, and at least the least.
	patience = time.Second
	least    = 150 * time.Millisecond
	slower   = 4
	// onWire is for neighbors.
	onWire = 300 * time.Millisecond
	// tries is how often each packet is sent.
	tries = 2
	// queued is for what has come in time while this process waited for a processor.
	queued = 10 * time.Millisecond
)

// Run probes all links at the same time. Targets are hosts outside: one that answers is enough.
func Run(ctx context.Context, links []Link, targets []netip.Addr) (probes []doctor.Probe, unlooked []doctor.Unlooked) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, l := range links {
		for _, f := range routing.Families() {
			if len(l.Addresses[f]) == 0 {
				continue
			}
			all.Go(func() {
				p, err := l.probe(ctx, f, targets)
				mu.Lock()
				defer mu.Unlock()
				probes = append(probes, p)
				if err != nil {
					why := err.Error()
					if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
						why = "packets can only be sent by root"
					}
					unlooked = append(unlooked, doctor.Unlooked{Codes: []routing.Code{doctor.UpstreamDead, doctor.MTUHole, doctor.DuplicateAddress}, Why: l.Name + ", " + f.String() + ": " + why})
				}
			})
		}
	}
	all.Wait()
	return probes, unlooked
}

func (l Link) probe(ctx context.Context, f routing.Family, targets []netip.Addr) (doctor.Probe, error) {
	p := doctor.Probe{Link: l.Name, Family: f, MTU: l.MTU, Router: l.Gateways[f]}
	if f == routing.IPv4 {
		var err error
		if p.Conflicts, err = conflicts(ctx, l.Name, l.Addresses[f]); err != nil {
			return p, err
		}
	}
	if !p.Router.IsValid() {
		return p, nil // It leads nowhere.
	}
	e, err := open(ctx, l.Name, l.Addresses[f][0])
	if err != nil {
		return p, err
	}
	defer func() { _ = e.Close() }() // What it was for has been done.
	const small = 64
	if !p.Router.IsLinkLocalUnicast() {
		p.RouterAnswers, _ = e.ping(ctx, p.Router, small)
	}
	for _, to := range targets {
		if routing.FamilyOf(to) != f {
			continue
		}
		p.OutsideAsked, p.Outside = true, to
		if p.OutsideAnswers, _ = e.ping(ctx, to, small); p.OutsideAnswers {
			break
		}
	}
	if p.OutsideAnswers {
		e.patience = min(patience, max(least, slower*e.took))
		p.PathMTU = e.pathMTU(ctx, p.Outside, f, l.MTU)
	}
	return p, ctx.Err()
}

// pathMTU finds the largest packet that is answered. It is the MTU, too, if somebody on the way says
// that a packet is too large: then nothing vanishes. It is 0 if that is not known.
func (e *echo) pathMTU(ctx context.Context, to netip.Addr, f routing.Family, mtu int) int {
	low, high := 576, mtu // RFC 791 and RFC 8200: every host takes so much.
	if f == routing.IPv6 {
		low = 1280
	}
	if mtu <= low {
		return 0
	}
	for size := mtu; low < high; size = (low + high + 1) / 2 {
		answered, told := e.ping(ctx, to, size)
		switch {
		case told, answered && size == mtu:
			return mtu
		case answered:
			low = size
		default:
			high = size - 1
		}
		if ctx.Err() != nil {
			return 0
		}
	}
	// The smallest must have been answered, or the target answers no large pings at all.
	if answered, _ := e.ping(ctx, to, low); !answered {
		return 0
	}
	return low
}

// An echo sends pings by one device.
type echo struct {
	net.PacketConn

	v6  bool
	id  uint16
	seq uint16
	// patience shrinks with the first answer.
	patience time.Duration
	// took is how long the last answer took.
	took time.Duration
}

// open opens a socket that is bound to a device and an address, and ignores what the kernel remembers
// of the MTU of paths (IP_PMTUDISC_PROBE, ip(7)).
func open(ctx context.Context, device string, from netip.Addr) (*echo, error) {
	e := &echo{v6: from.Is6(), id: uint16(os.Getpid()), patience: patience} //nolint:gosec // any number
	network := "ip4:icmp"
	if e.v6 {
		network = "ip6:ipv6-icmp"
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device),
				discover(int(fd), e.v6),
			)
		})
		return errors.Join(err, failed)
	}}
	conn, err := config.ListenPacket(ctx, network, from.String())
	if err != nil {
		return nil, fmt.Errorf("opening a socket for pings: %w", err)
	}
	e.PacketConn = conn
	return e, nil
}

func discover(fd int, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
}

// Types of ICMP and ICMPv6 messages (RFC 792, RFC 4443).
const (
	echoRequest4, echoReply4, unreachable4, needsFragments = 8, 0, 3, 4
	echoRequest6, echoReply6, tooBig6                      = 128, 129, 2

	header4, header6, headerICMP = 20, 40, 8
)

// ping sends packets of a size, with the header of IP, until one is answered. Told says that
// somebody on the way said that it is too large.
func (e *echo) ping(ctx context.Context, to netip.Addr, size int) (answered, told bool) {
	e.seq++
	body := size - header4
	kind := byte(echoRequest4)
	if e.v6 {
		body, kind = size-header6, echoRequest6
	}
	packet := make([]byte, max(body, headerICMP))
	packet[0] = kind
	binary.BigEndian.PutUint16(packet[4:], e.id)
	binary.BigEndian.PutUint16(packet[6:], e.seq)
	if !e.v6 { // The kernel computes that of ICMPv6.
		binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	}
	buffer := make([]byte, 1<<16)
	for range tries {
		sent := time.Now()
		deadline := sent.Add(e.patience)
		if _, err := e.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil || e.SetReadDeadline(deadline) != nil {
			return false, errors.Is(err, unix.EMSGSIZE)
		}
		for isOver := false; ctx.Err() == nil; {
			n, from, err := e.ReadFrom(buffer)
			if err != nil {
				if isOver || e.SetReadDeadline(time.Now().Add(queued)) != nil {
					break
				}
				isOver = true // A deadline that is over hides what is there.
				continue
			}
			switch e.judge(buffer[:n]) {
			case isAnswer:
				if ip, is := from.(*net.IPAddr); is && ip.IP.Equal(to.AsSlice()) {
					e.took = time.Since(sent)
					return true, false
				}
			case isTooBig:
				return false, true
			case isOther:
			}
		}
	}
	return false, false
}

type judgement uint8

const (
	isOther judgement = iota
	isAnswer
	isTooBig
)

// judge says what a message of ICMP is to the packet that was sent last.
func (e *echo) judge(b []byte) judgement {
	if len(b) < headerICMP {
		return isOther
	}
	mine := func(b []byte) bool {
		return len(b) >= headerICMP && binary.BigEndian.Uint16(b[4:]) == e.id && binary.BigEndian.Uint16(b[6:]) == e.seq
	}
	// The message that the error is about follows the header of IP, which quotes what was sent.
	quoted := func(header int) []byte { return b[min(len(b), headerICMP+header):] }
	switch {
	case !e.v6 && b[0] == echoReply4 && mine(b), e.v6 && b[0] == echoReply6 && mine(b):
		return isAnswer
	case !e.v6 && b[0] == unreachable4 && b[1] == needsFragments && mine(quoted(header4)), e.v6 && b[0] == tooBig6 && mine(quoted(header6)):
		return isTooBig
	default:
		return isOther
	}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
