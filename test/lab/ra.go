package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Preference is a router's or route's preference, RFC 4191.
type Preference uint8

// Preferences as they are encoded.
const (
	PreferenceMedium Preference = 0b00
	PreferenceHigh   Preference = 0b01
	PreferenceLow    Preference = 0b11
)

// RA is a router advertisement, RFC 4861. Lifetimes are whole seconds; Forever
// is infinity where the format has one.
type RA struct {
	RouterLifetime time.Duration // 0: not a default router (any more)
	Preference     Preference
	Managed        bool // ask DHCPv6 for an address
	Other          bool // ask DHCPv6 for the rest
	HopLimit       uint8
	MTU            uint32
	Prefixes       []RAPrefix
	Routes         []RARoute
	DNS            []netip.Addr // for RouterLifetime
}

// RAPrefix is the prefix information option.
type RAPrefix struct {
	Prefix             netip.Prefix
	Valid, Preferred   time.Duration
	NotOnLink, NoSLAAC bool
}

// RARoute is the route information option, RFC 4191.
type RARoute struct {
	Prefix     netip.Prefix
	Lifetime   time.Duration
	Preference Preference
}

// Forever is an infinite lifetime.
const Forever = time.Duration(0xffffffff) * time.Second

// DefaultRA advertises a default router and one prefix for SLAAC.
func DefaultRA(prefix netip.Prefix) RA {
	return RA{
		RouterLifetime: 30 * time.Minute,
		HopLimit:       64,
		Prefixes:       []RAPrefix{{Prefix: prefix.Masked(), Valid: 24 * time.Hour, Preferred: 4 * time.Hour}},
	}
}

// marshal encodes the advertisement; the kernel fills in the checksum.
func (ra RA) marshal(router net.HardwareAddr) []byte {
	seconds := func(d time.Duration) uint32 { return uint32(d / time.Second) }
	b := make([]byte, 16)
	b[0] = 134
	b[4] = ra.HopLimit
	if ra.Managed {
		b[5] |= 0x80
	}
	if ra.Other {
		b[5] |= 0x40
	}
	b[5] |= byte(ra.Preference&3) << 3
	binary.BigEndian.PutUint16(b[6:], uint16(min(seconds(ra.RouterLifetime), 0xffff)))

	if len(router) == 6 { // source link-layer address
		b = append(b, 1, 1)
		b = append(b, router...)
	}
	if ra.MTU > 0 {
		b = append(b, 5, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, ra.MTU)
	}
	for _, p := range ra.Prefixes {
		flags := byte(0xc0)
		if p.NotOnLink {
			flags &^= 0x80
		}
		if p.NoSLAAC {
			flags &^= 0x40
		}
		b = append(b, 3, 4, byte(p.Prefix.Bits()), flags)
		b = binary.BigEndian.AppendUint32(b, seconds(p.Valid))
		b = binary.BigEndian.AppendUint32(b, seconds(p.Preferred))
		b = append(b, 0, 0, 0, 0)
		b = append(b, p.Prefix.Masked().Addr().AsSlice()...)
	}
	for _, r := range ra.Routes {
		b = append(b, 24, 3, byte(r.Prefix.Bits()), byte(r.Preference&3)<<3)
		b = binary.BigEndian.AppendUint32(b, seconds(r.Lifetime))
		b = append(b, r.Prefix.Masked().Addr().AsSlice()...)
	}
	if len(ra.DNS) > 0 {
		b = append(b, 25, byte(1+2*len(ra.DNS)), 0, 0)
		b = binary.BigEndian.AppendUint32(b, seconds(ra.RouterLifetime))
		for _, a := range ra.DNS {
			b = append(b, a.AsSlice()...)
		}
	}
	return b
}

// SendRA sends one advertisement now. Solicitations are still answered with what
// the provider is configured to advertise.
func (isp *ISP) SendRA(ra RA) error {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	if isp.ra == nil {
		return errors.New("provider " + isp.cfg.Name + " advertises nothing")
	}
	return isp.ra.send(ra)
}

// SetRA changes what the provider advertises and sends it.
func (isp *ISP) SetRA(ra RA) error {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	isp.cfg.RA = &ra
	if isp.ra == nil {
		return errors.New("provider " + isp.cfg.Name + " advertises nothing")
	}
	return isp.ra.set(ra)
}

// RA is what the provider advertises.
func (isp *ISP) RA() RA {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	return isp.currentRA()
}

func (isp *ISP) currentRA() RA {
	if isp.cfg.RA != nil {
		return *isp.cfg.RA
	}
	ra := DefaultRA(isp.cfg.IPv6)
	ra.Managed = isp.cfg.DHCPv6 == StatefulDHCPv6
	if isp.cfg.Resolver {
		ra.DNS = []netip.Addr{isp.Resolver6}
	}
	return ra
}

// advertiser sends router advertisements, also in answer to solicitations. It sends
// none periodically: every one is a test's doing or a client's.
type advertiser struct {
	conn *net.IPConn
	mac  net.HardwareAddr
	done chan struct{}

	mu sync.Mutex
	ra RA
}

func newAdvertiser(ns *Namespace) (*advertiser, error) {
	link, err := ns.nl.LinkByName(lan)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", lan, err)
	}
	a := &advertiser{mac: link.Attrs().HardwareAddr, done: make(chan struct{})}
	err = ns.Do(func() error {
		control := func(_, _ string, c syscall.RawConn) error {
			return controlErr(c, func(fd int) error {
				// RFC 4861: a hop limit of 255, sent on the link; and of what
				// arrives, router solicitations only.
				filter := &unix.ICMPv6Filter{}
				for i := range filter.Data {
					filter.Data[i] = 0xffffffff
				}
				filter.Data[133/32] &^= 1 << (133 % 32)
				return errors.Join(
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, link.Attrs().Index),
					unix.BindToDevice(fd, lan),
					unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, filter),
					unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{
						Multiaddr: netip.MustParseAddr("ff02::2").As16(),
						Interface: uint32(link.Attrs().Index),
					}),
				)
			})
		}
		conn, err := (&net.ListenConfig{Control: control}).ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
		if err == nil {
			a.conn = conn.(*net.IPConn)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a socket for router advertisements: %w", err)
	}
	go a.answer()
	return a, nil
}

func (a *advertiser) answer() {
	defer close(a.done)
	buf := make([]byte, 1500)
	for {
		_, _, err := a.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			a.mu.Lock()
			_ = a.send(a.ra) // the client asks again
			a.mu.Unlock()
		}
	}
}

func (a *advertiser) set(ra RA) error {
	// An answer with the old one must not overtake it.
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ra = ra
	return a.send(ra)
}

func (a *advertiser) send(ra RA) error {
	all := &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: lan}
	_, err := a.conn.WriteTo(ra.marshal(a.mac), all)
	// Nobody is listening on a link without carrier.
	if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("sending a router advertisement: %w", err)
	}
	return nil
}

func (a *advertiser) Close() error {
	err := a.conn.Close()
	<-a.done
	return err
}

// controlErr runs f on a socket's descriptor.
func controlErr(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// SendRAFrom sends an advertisement as another router on the provider's wire would: with
// the link-local and the hardware address of that. It checks nothing of what is sent.
func (isp *ISP) SendRAFrom(router netip.Addr, mac net.HardwareAddr, ra RA) error {
	return isp.ns.Do(func() error {
		link, err := isp.ns.nl.LinkByName(lan)
		if err != nil {
			return fmt.Errorf("finding %s: %w", lan, err)
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening a packet socket: %w", err)
		}
		defer unix.Close(fd)
		to := netip.MustParseAddr("ff02::1")
		body := ra.marshal(mac)
		binary.BigEndian.PutUint16(body[2:], checksum6(router, to, body))
		frame := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(body)))
		frame = append(frame, unix.IPPROTO_ICMPV6, 255)
		frame = append(frame, router.AsSlice()...)
		frame = append(frame, to.AsSlice()...)
		frame = append(frame, body...)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
			return fmt.Errorf("sending a router advertisement: %w", err)
		}
		return nil
	})
}

// checksum6 is that of an ICMPv6 message whose field for it is zero (RFC 4443, section 2.3).
func checksum6(from, to netip.Addr, body []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6)
	pseudo = append(pseudo, body...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	sum := uint32(0)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
