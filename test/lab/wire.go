package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Fault is a way in which the connection to a provider fails while its link keeps its
// carrier: nobody but the packets can tell.
type Fault int

// The faults. Each replaces the one before it.
const (
	NoFault    Fault = iota
	Silent           // nothing arrives, in either direction
	SilentOut        // nothing that the host sends arrives
	SilentIn         // nothing that the provider sends arrives
	SilentDNS        // port 53 alone, in both directions
	NoInternet       // the provider answers on its link, DHCP included; nothing behind it does
	Rejecting        // as NoInternet, and the provider's router says that it is unreachable (ICMP)
)

func (f Fault) String() string {
	switch f {
	case NoFault:
		return "no fault"
	case Silent:
		return "whole link silent"
	case SilentOut:
		return "silent from the host"
	case SilentIn:
		return "silent to the host"
	case SilentDNS:
		return "DNS silent"
	case NoInternet:
		return "silent behind the gateway"
	case Rejecting:
		return "the gateway rejects"
	default:
		return fmt.Sprintf("fault %d", int(f))
	}
}

// Conditions are what a wire does to packets that it carries.
type Conditions struct {
	Delay time.Duration // of each packet, each way
	Loss  float64       // the probability that a packet is lost, each way: from 0 to 1
	Rate  int           // bits a second each way; 0 is no limit
	// Queue is how long a packet may wait for its turn at Rate; those that would wait longer are
	// dropped. 0 is 100 ms.
	Queue time.Duration
	Fault Fault
}

// A Wire is the way from a link to its provider as a program in between that carries every frame:
// what fails on it, neither end notices. LinkConfig.Wire puts one in. Its ends are the ports host and
// provider of a namespace of its own.
type Wire struct {
	ns     *Namespace
	near   func(netip.Addr) bool // addresses of the provider's link itself
	router func(Family) netip.Addr

	conditions atomic.Pointer[Conditions]
	out, in    *lane

	mu     sync.Mutex // serialises Break, attach and Close
	closed bool
}

// A lane is one direction of a wire.
type lane struct {
	wire   *Wire
	out    bool // from the host
	target atomic.Pointer[port]
	random *rand.Rand // of the reader alone
	free   time.Time  // likewise: when the line has sent all that was accepted

	mu    sync.Mutex
	queue []carried // by time of arrival
	wake  chan struct{}
	stop  chan struct{}
	done  chan struct{}
}

// carried is a frame on its way.
type carried struct {
	due   time.Time
	frame []byte
}

// A port is a packet socket on one end of a wire.
type port struct {
	file *os.File
	raw  syscall.RawConn
	done chan struct{}
}

const (
	hostPort, providerPort = "host", "provider"

	// Each frame carries a struct virtio_net_hdr (PACKET_VNET_HDR, packet(7)): veth leaves checksums and
	// segmentation to whoever needs them, and the header says so to the other end.
	vnetHeader = 10
	// packetVnetHdr is PACKET_VNET_HDR of linux/if_packet.h.
	packetVnetHdr = 15
	wireBuffer    = 8 << 20
	defaultQueue  = 100 * time.Millisecond
)

// newWire makes a namespace with a wire whose provider's port leads to a port of the provider's
// bridge; attach completes it.
func (isp *ISP) newWire(cfg LinkConfig) (*Wire, error) {
	ns, err := newNamespace(cfg.Name + ".wire")
	if err != nil {
		return nil, err
	}
	w := &Wire{ns: ns, near: isp.near, router: isp.router}
	w.conditions.Store(&Conditions{})
	// Two lanes with one seed each: the same packets are lost in every run.
	w.out, w.in = newLane(w, true), newLane(w, false)
	if err := w.connect(isp, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("making the wire of %s: %w", cfg.Name, err), w.Close())
	}
	return w, nil
}

func newLane(w *Wire, out bool) *lane {
	seed := uint64(1)
	if out {
		seed = 2
	}
	l := &lane{
		wire: w, out: out, random: rand.New(rand.NewPCG(seed, seed)), //nolint:gosec // losses of a test
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go l.deliver()
	return l
}

func (w *Wire) connect(isp *ISP, cfg LinkConfig) error {
	// The wire itself must say nothing.
	if err := w.ns.Sysctl("net.ipv6.conf.all.disable_ipv6", "1", "net.ipv6.conf.default.disable_ipv6", "1", "net.ipv4.ip_forward", "0"); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = providerPort, cfg.MTU, net.FlagUp
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: cfg.Name, PeerNamespace: netlink.NsFd(int(isp.ns.handle)),
		PeerHardwareAddr: hardwareAddr(isp.ns.name + "/" + cfg.Name),
	}
	if err := w.ns.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("creating the veth pair to the provider: %w", err)
	}
	if err := enslave(isp.ns.nl, cfg.Name, lan); err != nil {
		return err
	}
	if err := oneSegment(isp.ns.nl, cfg.Name); err != nil {
		return err
	}
	p, err := w.open(providerPort, w.in)
	if err != nil {
		return err
	}
	w.out.target.Store(p)
	return nil
}

// attach opens the host's port, which is another one each time that the link is created.
func (w *Wire) attach(link string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := oneSegment(pkgHandle, link); err != nil {
		return err
	}
	if err := setAdmin(w.ns.nl, hostPort, true); err != nil {
		return err
	}
	if old := w.in.target.Load(); old != nil { // of a link that is gone
		if err := old.close(); err != nil {
			return fmt.Errorf("closing the old port of %s: %w", link, err)
		}
	}
	p, err := w.open(hostPort, w.out)
	if err != nil {
		return fmt.Errorf("attaching the wire of %s: %w", link, err)
	}
	w.in.target.Store(p)
	return nil
}

// oneSegment makes a device send each packet by itself, as on a real wire, where a loss hits one
// packet and not 64 KB of them.
func oneSegment(nl *netlink.Handle, dev string) error {
	link, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("finding %s: %w", dev, err)
	}
	if err := nl.LinkSetGSOMaxSegs(link, 1); err != nil {
		return fmt.Errorf("limiting the segments of %s: %w", dev, err)
	}
	return nil
}

func enslave(nl *netlink.Handle, dev, bridge string) error {
	port, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("finding %s: %w", dev, err)
	}
	master, err := nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", bridge, err)
	}
	if err := nl.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("making %s a port of %s: %w", dev, bridge, err)
	}
	if err := nl.LinkSetUp(port); err != nil {
		return fmt.Errorf("setting %s up: %w", dev, err)
	}
	return nil
}

// open opens a packet socket on a port and carries what arrives there on a lane.
func (w *Wire) open(name string, to *lane) (*port, error) {
	link, err := w.ns.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("finding port %s: %w", name, err)
	}
	p := &port{done: make(chan struct{})}
	err = w.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, packetVnetHdr, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wireBuffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, wireBuffer),
		)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
		}
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		p.file = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err == nil {
		p.raw, err = p.file.SyscallConn()
	}
	if err != nil {
		return nil, fmt.Errorf("opening port %s: %w", name, err)
	}
	go p.read(to)
	return p, nil
}

func (p *port) read(to *lane) {
	defer close(p.done)
	buf := make([]byte, vnetHeader+1<<16+64)
	_ = p.raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), buf)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false // wait for more
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // the cable is out
				continue
			case err != nil:
				return true
			case n > vnetHeader:
				to.accept(buf[:n])
			}
		}
	})
}

func (p *port) send(frame []byte) {
	// What the other end does not take is lost, as on any wire.
	_ = p.raw.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), frame) })
}

func (p *port) close() error {
	err := p.file.Close()
	<-p.done
	return err
}

// Set changes the conditions for all packets that are not delivered yet, in both directions.
func (w *Wire) Set(c Conditions) { w.conditions.Store(&c) }

// Break lets the wire fail, and leaves the other conditions as they are.
func (w *Wire) Break(f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := *w.conditions.Load()
	c.Fault = f
	w.Set(c)
}

// Repair ends the fault.
func (w *Wire) Repair() { w.Break(NoFault) }

// Close takes the wire away: its link loses its carrier. Closing twice is not an error.
func (w *Wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	for _, l := range []*lane{w.out, w.in} {
		close(l.stop)
		<-l.done
		if p := l.target.Load(); p != nil {
			errs = append(errs, p.close())
		}
	}
	return errors.Join(append(errs, w.ns.Close())...)
}

// accept takes a frame onto the lane, which keeps a copy.
func (l *lane) accept(frame []byte) {
	c := l.wire.conditions.Load()
	if !l.passes(c, frame) || c.Loss > 0 && l.random.Float64() < c.Loss {
		return
	}
	now := time.Now()
	due := now
	if c.Rate > 0 {
		queue := c.Queue
		if queue == 0 {
			queue = defaultQueue
		}
		if l.free.Before(now) {
			l.free = now
		}
		if l.free.Sub(now) > queue {
			return
		}
		l.free = l.free.Add(time.Duration(len(frame)-vnetHeader) * 8 * time.Second / time.Duration(c.Rate))
		due = l.free
	}
	due = due.Add(c.Delay)
	l.mu.Lock()
	if len(l.queue) == 0 && !due.After(now) {
		l.mu.Unlock()
		l.forward(frame)
		return
	}
	l.queue = append(l.queue, carried{due, append([]byte(nil), frame...)})
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// deliver forwards frames when their time has come. It never lets one overtake another.
func (l *lane) deliver() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		case <-timer.C:
		}
		for {
			l.mu.Lock()
			if len(l.queue) == 0 {
				l.mu.Unlock()
				break
			}
			first := l.queue[0]
			l.mu.Unlock()
			if wait := time.Until(first.due); wait > 0 {
				timer.Reset(wait)
				break
			}
			if l.passes(l.wire.conditions.Load(), first.frame) {
				l.forward(first.frame)
			}
			l.mu.Lock()
			l.queue = l.queue[1:] // only now: accept forwards at once if nothing is queued
			l.mu.Unlock()
		}
	}
}

func (l *lane) forward(frame []byte) {
	if p := l.target.Load(); p != nil {
		p.send(frame)
	}
}

// passes says whether a fault lets a frame through. It answers for a router that rejects.
func (l *lane) passes(c *Conditions, frame []byte) bool {
	const dns = 53
	switch c.Fault {
	case NoFault:
		return true
	case Silent:
		return false
	case SilentOut:
		return !l.out
	case SilentIn:
		return l.out
	case SilentDNS:
		p, ok := decode(frame[vnetHeader:])
		return !ok || p.SrcPort != dns && p.DstPort != dns
	case NoInternet, Rejecting:
		p, ok := decode(frame[vnetHeader:])
		far := p.Src
		if l.out {
			far = p.Dst
		}
		if !ok || l.wire.near(far) {
			return true
		}
		if l.out && c.Fault == Rejecting {
			if reject := l.wire.unreachable(p, frame[vnetHeader:]); reject != nil {
				l.wire.in.forward(reject)
			}
		}
		return false
	default:
		return true
	}
}

// unreachable is what the provider's router says about a packet: host unreachable (RFC 792), or no
// route to the destination (RFC 4443, section 3.1). It is nil for what no router complains of.
func (w *Wire) unreachable(p Packet, frame []byte) []byte {
	const ethernet = 14
	router := w.router(p.Family)
	if !router.IsValid() || p.Src.IsUnspecified() {
		return nil
	}
	out := make([]byte, vnetHeader, vnetHeader+128)
	out = append(out, frame[6:12]...) // to the sender,
	out = append(out, frame[:6]...)   // from the router
	out = append(out, frame[12:ethernet]...)
	cited := frame[ethernet:]
	if p.Family == IPv4 {
		if p.Proto == unix.IPPROTO_ICMP && p.ICMPType != 8 { // only requests may be answered with an error
			return nil
		}
		cited = cited[:min(len(cited), int(cited[0]&15)*4+8)]
		body := append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, cited...)
		if len(body)%2 == 1 {
			body = append(body, 0)
		}
		binary.BigEndian.PutUint16(body[2:], checksum(body))
		header := []byte{0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_ICMP, 0, 0}
		header = append(append(header, router.AsSlice()...), p.Src.AsSlice()...)
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(body)))
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		return append(append(out, header...), body...)
	}
	if p.Proto == unix.IPPROTO_ICMPV6 && p.ICMPType < 128 {
		return nil
	}
	cited = cited[:min(len(cited), 40+24)]
	body := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, cited...)
	binary.BigEndian.PutUint16(body[2:], checksum6(router, p.Src, body))
	header := []byte{0x60, 0, 0, 0, 0, 0, unix.IPPROTO_ICMPV6, 64}
	binary.BigEndian.PutUint16(header[4:], uint16(len(body)))
	header = append(append(header, router.AsSlice()...), p.Src.AsSlice()...)
	return append(append(out, header...), body...)
}
