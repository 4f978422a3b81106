package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses that every provider serves, each from its own namespace: what they
// answer tells which provider a packet took.
var (
	InternetAddr4 = netip.MustParseAddr("198.51.100.1")
	InternetAddr6 = netip.MustParseAddr("2001:db8:ffff::1")
)

// InternetAddr is the address of a family that every provider serves.
func InternetAddr(f Family) netip.Addr {
	if f == IPv6 {
		return InternetAddr6
	}
	return InternetAddr4
}

// lan is the provider's end of its links: a bridge, so that links come and go
// and its daemons stay.
const lan = "lan"

// DHCPv6 is what a provider offers with it.
type DHCPv6 int

// How addresses are handed out beside RA.
const (
	NoDHCPv6       DHCPv6 = iota
	StatefulDHCPv6        // addresses, and the M flag in RA; SLAAC goes on unless RA says otherwise
)

// ISPConfig describes a provider. A family without a prefix is not served.
type ISPConfig struct {
	Name string           // of the provider and of its namespace
	Link string           // the host's interface
	MAC  net.HardwareAddr // of the host's interface
	MTU  int              // of the link
	Wire bool             // put a Wire between the link and the provider (Link.Wire)

	IPv4        netip.Prefix // the provider's address on the link
	Gateway     netip.Addr   // DHCP option 3; IPv4's address by default; need not be on the link's prefix
	NoRouter    bool         // no option 3
	PoolFirst   netip.Addr   // by default the 100th to 199th address,
	PoolLast    netip.Addr   // or what follows the provider's in a small prefix
	Routes      []Route      // DHCP option 121; with it, clients do not look at option 3
	DNS         []netip.Addr // by default the provider itself, which answers
	Resolver    bool         // DHCP and RA name ISP.Resolver4 and Resolver6 instead, a DNS server behind the provider
	Lease       time.Duration
	Renew       time.Duration // T1: when the client asks again, at least 3 s (dnsmasq); T2 follows a second later
	DHCPOptions []string      // dnsmasq's --dhcp-option, verbatim
	NoDHCP      bool

	IPv6   netip.Prefix // the provider's address on the link
	RA     *RA          // what it advertises; DefaultRA(IPv6) if nil
	NoRA   bool
	DHCPv6 DHCPv6
}

// DefaultISP is a provider with both families, DHCP and RA: isp0 on wan0 with
// 100.64.0.0/24 and 2001:db8:0:1::/64 and so on.
func DefaultISP(n int) ISPConfig {
	return ISPConfig{
		Name: "isp" + strconv.Itoa(n),
		Link: "wan" + strconv.Itoa(n),
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(n), 1}), 24),
		IPv6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, byte((n + 1) >> 8), byte(n + 1), 15: 1}), 64),
	}
}

// An ISP is a provider: a namespace behind one or more links of the host that
// hands out addresses, and an internet behind it.
type ISP struct {
	host *Host
	ns   *Namespace
	ttl  int

	// Client4 and Client6 are hosts on the internet that only this provider
	// reaches.
	Client4, Client6 netip.Addr
	// Resolver4 and Resolver6 answer DNS queries, for clients of this provider only: without data, as a
	// server does that knows the name and has no address for it.
	Resolver4, Resolver6 netip.Addr
	// onLink are the addresses of the provider's link.
	onLink atomic.Pointer[[]netip.Prefix]

	mu       sync.Mutex
	cfg      ISPConfig
	links    []*Link
	dnsmasq  *Process
	ra       *advertiser
	captures []*Capture
	closers  []io.Closer
	closed   bool
}

// NewISP connects a provider to the host and returns when it serves.
func (h *Host) NewISP(ctx context.Context, cfg ISPConfig) (*ISP, error) {
	if !inside {
		return nil, errOutside
	}
	h.mu.Lock()
	n := h.isps
	h.isps++
	ttl := 100 + n%150
	h.ttls[ttl] = cfg.Name
	h.mu.Unlock()
	isp := &ISP{
		host: h, cfg: cfg,
		// Each provider's packets start with another TTL, which tells who
		// answered a ping.
		ttl:     ttl,
		Client4: netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + n%250)}),
		Client6: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xfe, byte(n >> 8), byte(n), 15: 1}),

		Resolver4: netip.AddrFrom4([4]byte{203, 0, 112, byte(1 + n%250)}),
		Resolver6: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xfe, byte(n >> 8), byte(n), 15: 53}),
	}
	ns, err := newNamespace(cfg.Name)
	if err != nil {
		return nil, err
	}
	isp.ns = ns
	h.onClose(isp.Close)
	if err := isp.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting provider %s: %w", cfg.Name, err), isp.Close())
	}
	return isp, nil
}

func (isp *ISP) open(ctx context.Context) error {
	ttl := strconv.Itoa(isp.ttl)
	err := isp.ns.Sysctl(
		"net.ipv4.ip_default_ttl", ttl,
		"net.ipv6.conf.all.hop_limit", ttl,
		"net.ipv6.conf.default.hop_limit", ttl,
		"net.ipv6.conf.lo.hop_limit", ttl,
	)
	if err != nil {
		return err
	}
	if err := addBridge(isp.ns.nl, lan, hardwareAddr(isp.cfg.Name+"/"+lan)); err != nil {
		return err
	}
	if err := keepCarrier(isp.ns, lan); err != nil {
		return err
	}
	for _, a := range []netip.Addr{InternetAddr4, InternetAddr6, isp.Client4, isp.Client6, isp.Resolver4, isp.Resolver6} {
		if err := isp.Serve(a); err != nil {
			return err
		}
	}
	if _, err := isp.AddLink(LinkConfig{Name: isp.cfg.Link, MAC: isp.cfg.MAC, MTU: isp.cfg.MTU, Wire: isp.cfg.Wire}); err != nil {
		return err
	}
	err = isp.ns.Do(func() error {
		echo, err := listenEcho(isp.cfg.Name)
		isp.closers = append(isp.closers, echo...)
		if err != nil || !isp.cfg.Resolver {
			return err
		}
		dns, err := listenDNS(isp.Resolver4, isp.Resolver6)
		isp.closers = append(isp.closers, dns...)
		return err
	})
	if err != nil {
		return err
	}
	isp.mu.Lock()
	defer isp.mu.Unlock()
	return isp.apply(ctx)
}

// Close disconnects the provider: its links disappear from the host.
func (isp *ISP) Close() error {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	if isp.closed {
		return nil
	}
	isp.closed = true
	var errs []error
	if isp.dnsmasq != nil {
		errs = append(errs, isp.dnsmasq.Kill())
	}
	if isp.ra != nil {
		errs = append(errs, isp.ra.Close())
	}
	for _, c := range isp.captures {
		errs = append(errs, c.Close())
	}
	for _, c := range isp.closers {
		errs = append(errs, c.Close())
	}
	errs = append(errs, isp.ns.Close())
	return errors.Join(errs...)
}

// Name is the provider's name, which its servers answer with.
func (isp *ISP) Name() string { return isp.cfg.Name }

// Namespace is where the provider lives.
func (isp *ISP) Namespace() *Namespace { return isp.ns }

// Link is the provider's first link.
func (isp *ISP) Link() *Link { return isp.links[0] }

// IPv4 is the prefix on the link, masked; IPv6 likewise.
func (isp *ISP) IPv4() netip.Prefix { return isp.Config().IPv4.Masked() }

// IPv6 is the prefix on the link, masked.
func (isp *ISP) IPv6() netip.Prefix { return isp.Config().IPv6.Masked() }

// Config is the active configuration.
func (isp *ISP) Config() ISPConfig {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	return isp.cfg
}

// AddLink connects another interface of the host to the same provider and the
// same subnet. Only the link's own fields of the configuration count.
func (isp *ISP) AddLink(cfg LinkConfig) (*Link, error) {
	cfg.Namespace, cfg.Peer, cfg.Master = isp.ns, cfg.Name, lan
	if cfg.Wire {
		w, err := isp.newWire(cfg)
		if err != nil {
			return nil, err
		}
		isp.mu.Lock()
		isp.closers = append(isp.closers, w)
		isp.mu.Unlock()
		cfg.Namespace, cfg.Peer, cfg.Master, cfg.wire = w.ns, hostPort, "", w
	}
	l, err := isp.host.NewLink(cfg)
	if err != nil {
		return nil, err
	}
	isp.mu.Lock()
	defer isp.mu.Unlock()
	isp.links = append(isp.links, l)
	return l, nil
}

// Serve gives the provider another address behind it, which its servers answer
// on.
func (isp *ISP) Serve(addr netip.Addr) error {
	return isp.ns.AddAddr("lo", netip.PrefixFrom(addr, addr.BitLen()))
}

// RouteTo sends the provider's traffic for a prefix to an address on the link: a
// network behind the host.
func (isp *ISP) RouteTo(dst netip.Prefix, via netip.Addr) error {
	return isp.ns.AddRoute(Route{Dst: dst, Via: via}, lan)
}

// Reconfigure changes the provider. Clients learn of it when they renew, by RA
// at once. Leases that the provider has given are forgotten.
func (isp *ISP) Reconfigure(ctx context.Context, change func(*ISPConfig)) error {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	name, link := isp.cfg.Name, isp.cfg.Link
	change(&isp.cfg)
	isp.cfg.Name, isp.cfg.Link = name, link
	if err := isp.apply(ctx); err != nil {
		return fmt.Errorf("reconfiguring provider %s: %w", name, err)
	}
	return nil
}

// near says whether an address is on the provider's link, routers' included, or of no network.
func (isp *ISP) near(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	onLink := isp.onLink.Load()
	return onLink != nil && slices.ContainsFunc(*onLink, func(p netip.Prefix) bool { return p.Contains(a) })
}

// router is the address that the provider's router speaks from; invalid in a family without one.
func (isp *ISP) router(f Family) netip.Addr {
	if onLink := isp.onLink.Load(); onLink != nil {
		for _, p := range *onLink {
			if p.Addr().Is6() == (f == IPv6) {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}

// apply makes the namespace serve isp.cfg.
func (isp *ISP) apply(ctx context.Context) error {
	if isp.dnsmasq != nil {
		if err := isp.dnsmasq.Kill(); err != nil {
			return err
		}
		isp.dnsmasq = nil
	}
	if err := isp.setAddrs(); err != nil {
		return err
	}
	if isp.cfg.IPv6.IsValid() && !isp.cfg.NoRA {
		if isp.ra == nil {
			ra, err := newAdvertiser(isp.ns)
			if err != nil {
				return err
			}
			isp.ra = ra
		}
		if err := isp.ra.set(isp.currentRA()); err != nil {
			return err
		}
	} else if isp.ra != nil {
		if err := isp.ra.Close(); err != nil {
			return err
		}
		isp.ra = nil
	}
	return isp.startDnsmasq(ctx)
}

// setAddrs gives the provider's end exactly the addresses of the configuration.
func (isp *ISP) setAddrs() error {
	var want []netip.Prefix
	if isp.cfg.IPv4.IsValid() {
		want = append(want, isp.cfg.IPv4)
		// The routers that clients are told of must answer ARP, wherever.
		router := func(a netip.Addr) {
			if a.IsValid() && !a.IsUnspecified() && a != isp.cfg.IPv4.Addr() {
				want = append(want, netip.PrefixFrom(a, 32))
			}
		}
		router(isp.cfg.Gateway)
		for _, r := range isp.cfg.Routes {
			router(r.Via)
		}
	}
	if isp.cfg.IPv6.IsValid() {
		want = append(want, isp.cfg.IPv6)
	}
	isp.onLink.Store(&want)
	link, err := isp.ns.nl.LinkByName(lan)
	if err != nil {
		return fmt.Errorf("finding %s: %w", lan, err)
	}
	have, err := isp.ns.nl.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, p := range want {
		if err := addAddr(isp.ns.nl, lan, p); err != nil {
			return err
		}
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		p := netip.PrefixFrom(ip.Unmap(), bits)
		if p.Addr().IsLinkLocalUnicast() || slices.Contains(want, p) {
			continue
		}
		// Removing one address takes its secondaries along.
		if err := isp.ns.nl.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %v: %w", p, err)
		}
	}
	for _, p := range want {
		if err := addAddr(isp.ns.nl, lan, p); err != nil {
			return err
		}
	}
	return nil
}
