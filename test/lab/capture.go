package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Packet is one that the host has sent to a provider.
type Packet struct {
	Time     time.Time
	Link     string // the host's interface
	Family   Family
	Src, Dst netip.Addr
	Proto    uint8 // IPPROTO_*, after IPv6's extension headers
	SrcPort  uint16
	DstPort  uint16
	// Opens says that it asks for a TCP connection: SYN without ACK.
	Opens    bool
	ICMPType uint8
	Length   int
}

func (p Packet) String() string {
	s := fmt.Sprintf("%s %s: %v > %v", p.Time.Format("15:04:05.000000"), p.Link, p.Src, p.Dst)
	switch p.Proto {
	case unix.IPPROTO_TCP:
		s += fmt.Sprintf(" TCP %d > %d", p.SrcPort, p.DstPort)
	case unix.IPPROTO_UDP:
		s += fmt.Sprintf(" UDP %d > %d", p.SrcPort, p.DstPort)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		s += fmt.Sprintf(" ICMP type %d", p.ICMPType)
	default:
		s += fmt.Sprintf(" protocol %d", p.Proto)
	}
	return s + fmt.Sprintf(" (%d bytes)", p.Length)
}

// A Capture records the IP packets that arrive at a provider from the host, on
// all its links, across links that go and come back.
type Capture struct {
	isp  string
	file *os.File
	raw  syscall.RawConn
	skip map[int]bool // the provider's own devices
	look func(index int) string
	done chan struct{}

	mu       sync.Mutex
	buf, oob []byte
	names    map[int]string // of links, by index: also of links that have gone
	packets  []Packet
	dropped  uint64
	err      error
}

// captureBuffer is the kernel's buffer for a capture: more than a test sends
// between two turns of the reader.
const captureBuffer = 64 << 20

// Capture begins to record. Close it, or let the provider's end do so.
func (isp *ISP) Capture() (*Capture, error) {
	c := &Capture{
		isp: isp.Name(), done: make(chan struct{}),
		skip: map[int]bool{}, names: map[int]string{},
		buf: make([]byte, 256), oob: make([]byte, 128),
	}
	for _, name := range []string{"lo", lan, "keep0", "keep1"} {
		link, err := isp.ns.nl.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", name, err)
		}
		c.skip[link.Attrs().Index] = true
	}
	c.look = func(index int) string {
		link, err := isp.ns.nl.LinkByIndex(index)
		if err != nil {
			return fmt.Sprintf("#%d", index) // gone already
		}
		return link.Attrs().Name // the provider's end has the host's name
	}
	err := isp.ns.Do(func() error {
		// Protocol 0 receives nothing until it is bound, when all is set.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)})
		}
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		return nil
	})
	if err == nil {
		c.raw, err = c.file.SyscallConn()
	}
	if err != nil {
		return nil, fmt.Errorf("capturing at %s: %w", c.isp, err)
	}
	isp.mu.Lock()
	isp.captures = append(isp.captures, c)
	isp.mu.Unlock()
	go c.read()
	return c, nil
}

// read keeps the socket's buffer empty until it is closed.
func (c *Capture) read() {
	defer close(c.done)
	_ = c.raw.Read(func(fd uintptr) bool {
		c.drain(int(fd))
		return false // wait for more
	})
}

// drain reads all packets that the kernel holds. Callers that ask for packets call it first: a
// packet arrives before its answer, but the reader may not have run yet.
func (c *Capture) drain(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil {
		// MSG_TRUNC: the length of the whole packet, though only its headers
		// are wanted.
		n, oobn, _, from, err := unix.Recvmsg(fd, c.buf, c.oob, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // a link has gone
			continue
		case err != nil:
			c.err = fmt.Errorf("reading a capture at %s: %w", c.isp, err)
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || c.skip[ll.Ifindex] {
			continue
		}
		frame := c.buf[:min(n, len(c.buf))]
		if ll.Hatype == unix.ARPHRD_NONE { // a tunnel's end: no link layer
			frame = append(binary.BigEndian.AppendUint16(make([]byte, 12, 14+len(frame)), htons(ll.Protocol)), frame...)
		}
		p, ok := decode(frame)
		if !ok {
			continue
		}
		p.Length = n
		p.Time = timestamp(c.oob[:oobn])
		if p.Link = c.names[ll.Ifindex]; p.Link == "" {
			p.Link = c.look(ll.Ifindex)
			c.names[ll.Ifindex] = p.Link
		}
		if p.Link == serverLink {
			continue // from the internet
		}
		c.packets = append(c.packets, p)
	}
}

// catchUp is drain from outside; after Close it does nothing.
func (c *Capture) catchUp() {
	_ = c.raw.Control(func(fd uintptr) { c.drain(int(fd)) })
}

// Packets returns the packets recorded so far.
func (c *Capture) Packets() []Packet {
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.packets...)
}

// Reset drops the packets recorded so far.
func (c *Capture) Reset() {
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.packets = nil
}

// Foreign lists the packets whose source is outside the allowed prefixes. A
// source that belongs to no link in particular is always allowed: unspecified
// and link-local. It is an error if the kernel had to drop a packet, because it
// may have been the one.
func (c *Capture) Foreign(allowed ...netip.Prefix) ([]Packet, error) {
	return c.Matching(func(p Packet) bool {
		if p.Src.IsUnspecified() || p.Src.IsLinkLocalUnicast() {
			return false
		}
		for _, a := range allowed {
			if a.IsValid() && a.Masked().Contains(p.Src) {
				return false
			}
		}
		return true
	})
}

// Matching lists the packets that a function accepts; errors as Foreign.
func (c *Capture) Matching(want func(Packet) bool) ([]Packet, error) {
	c.catchUp()
	dropped, err := c.Dropped()
	if err != nil {
		return nil, err
	}
	if dropped > 0 {
		return nil, fmt.Errorf("the capture at %s lost %d packets: nothing can be said", c.isp, dropped)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	var out []Packet
	for _, p := range c.packets {
		if want(p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// Dropped is the number of packets that the kernel could not keep.
func (c *Capture) Dropped() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stats *unix.TpacketStats
	err := controlErr(c.raw, func(fd int) (err error) {
		stats, err = unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		return err
	})
	switch {
	case errors.Is(err, os.ErrClosed): // Close has read them
	case err != nil:
		return 0, fmt.Errorf("reading the statistics of the capture at %s: %w", c.isp, err)
	default:
		c.dropped += uint64(stats.Drops) // the kernel's counter starts again
	}
	return c.dropped, nil
}

// Close ends the recording; recorded packets stay readable.
func (c *Capture) Close() error {
	c.catchUp()
	_, _ = c.Dropped()
	err := c.file.Close()
	<-c.done
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// decode reads the headers of an Ethernet frame; false for anything but IP.
func decode(b []byte) (Packet, bool) {
	if len(b) < 14 {
		return Packet{}, false
	}
	kind := binary.BigEndian.Uint16(b[12:])
	b = b[14:]
	for kind == unix.ETH_P_8021Q && len(b) >= 4 {
		kind = binary.BigEndian.Uint16(b[2:])
		b = b[4:]
	}
	var p Packet
	switch {
	case kind == unix.ETH_P_IP && len(b) >= 20:
		p.Family, p.Proto = IPv4, b[9]
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return p, true // a later fragment has no ports
		}
		b = b[min(int(b[0]&15)*4, len(b)):]
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		p.Family, p.Proto = IPv6, b[6]
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
		// Hop-by-hop options, routing, destination options; MLD has the first.
		for (p.Proto == 0 || p.Proto == 43 || p.Proto == 60) && len(b) >= 8 {
			p.Proto = b[0]
			b = b[min(8+int(b[1])*8, len(b)):]
		}
	default:
		return p, false
	}
	switch {
	case (p.Proto == unix.IPPROTO_TCP || p.Proto == unix.IPPROTO_UDP) && len(b) >= 4:
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		const flags, syn, ack = 13, 0x02, 0x10
		p.Opens = p.Proto == unix.IPPROTO_TCP && len(b) > flags && b[flags]&(syn|ack) == syn
	case (p.Proto == unix.IPPROTO_ICMP || p.Proto == unix.IPPROTO_ICMPV6) && len(b) >= 1:
		p.ICMPType = b[0]
	}
	return p, true
}

func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// FormatPackets is for a message: one packet a line, the first few of many.
func FormatPackets(packets []Packet) string {
	const most = 20
	var b strings.Builder
	for i, p := range packets {
		if i == most {
			fmt.Fprintf(&b, "... and %d more\n", len(packets)-most)
			break
		}
		fmt.Fprintln(&b, p)
	}
	return b.String()
}
