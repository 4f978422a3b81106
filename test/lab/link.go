package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkConfig describes a cable: a veth pair with one end on the host.
type LinkConfig struct {
	Name      string           // the host's end
	Namespace *Namespace       // where the other end is; nil for a namespace that all such links share
	Peer      string           // the other end's name; Name by default
	Master    string           // a bridge in Namespace that the other end is a port of
	MAC       net.HardwareAddr // the host's end; by default the same for the same name
	MTU       int
	Up        bool // set the host's end up, which is otherwise NetworkManager's business
	Wire      bool // put a Wire in between; a provider's links only (ISP.AddLink)

	wire *Wire
}

// A Link is a network interface of the host and the cable it hangs on.
type Link struct {
	cfg LinkConfig
}

// NewLink creates a link without a peer at its other end. It costs only two devices, so a test may
// have a thousand.
func (h *Host) NewLink(cfg LinkConfig) (*Link, error) {
	if !inside {
		return nil, errOutside
	}
	if cfg.Namespace == nil {
		ns, err := h.cablesNamespace()
		if err != nil {
			return nil, err
		}
		cfg.Namespace = ns
	}
	if cfg.Peer == "" {
		cfg.Peer = cfg.Name
	}
	if cfg.MAC == nil {
		cfg.MAC = hardwareAddr(cfg.Name)
	}
	l := &Link{cfg: cfg}
	if err := l.create(); err != nil {
		return nil, err
	}
	return l, nil
}

func (h *Host) cablesNamespace() (*Namespace, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cables == nil {
		ns, err := newNamespace("cables")
		if err != nil {
			return nil, err
		}
		h.cables = ns
		h.closers = append(h.closers, ns.Close)
	}
	return h.cables, nil
}

func (l *Link) create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = l.cfg.Name, l.cfg.MAC, l.cfg.MTU
	if l.cfg.Up {
		attrs.Flags = net.FlagUp
	}
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         l.cfg.Peer,
		PeerNamespace:    netlink.NsFd(int(l.cfg.Namespace.handle)),
		PeerHardwareAddr: hardwareAddr(l.cfg.Namespace.name + "/" + l.cfg.Peer),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating the veth pair %s (does the kernel have veth? modprobe veth): %w", l.cfg.Name, err)
	}
	handle := l.cfg.Namespace.nl
	peer, err := handle.LinkByName(l.cfg.Peer)
	if err != nil {
		return fmt.Errorf("finding the other end of %s: %w", l.cfg.Name, err)
	}
	if l.cfg.Master != "" {
		master, err := handle.LinkByName(l.cfg.Master)
		if err != nil {
			return fmt.Errorf("finding bridge %s: %w", l.cfg.Master, err)
		}
		if err := handle.LinkSetMaster(peer, master); err != nil {
			return fmt.Errorf("making the other end of %s a port of %s: %w", l.cfg.Name, l.cfg.Master, err)
		}
	}
	if l.cfg.wire != nil {
		return l.cfg.wire.attach(l.cfg.Name)
	}
	if err := handle.LinkSetUp(peer); err != nil {
		return fmt.Errorf("setting the other end of %s up: %w", l.cfg.Name, err)
	}
	return nil
}

// Wire is what is between the link and its provider; nil without LinkConfig.Wire.
func (l *Link) Wire() *Wire { return l.cfg.wire }

// Name is the interface's name on the host.
func (l *Link) Name() string { return l.cfg.Name }

// MAC is the hardware address of the host's end.
func (l *Link) MAC() net.HardwareAddr { return l.cfg.MAC }

// Index is the host's interface index at the moment.
func (l *Link) Index() (int, error) {
	link, err := netlink.LinkByName(l.cfg.Name)
	if err != nil {
		return 0, fmt.Errorf("finding %s: %w", l.cfg.Name, err)
	}
	return link.Attrs().Index, nil
}

// SetCarrier plugs the cable in or pulls it out at the far end.
func (l *Link) SetCarrier(on bool) error {
	return setAdmin(l.cfg.Namespace.nl, l.cfg.Peer, on)
}

// SetUp sets the host's end up or down, as `ip link set` does.
func (l *Link) SetUp(up bool) error { return setAdmin(pkgHandle, l.cfg.Name, up) }

// SetMAC changes the hardware address of the host's end, also for Recreate.
func (l *Link) SetMAC(mac net.HardwareAddr) error {
	link, err := netlink.LinkByName(l.cfg.Name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", l.cfg.Name, err)
	}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("setting the hardware address of %s: %w", l.cfg.Name, err)
	}
	l.cfg.MAC = mac
	return nil
}

// Delete removes the interface, as a modem does that is unplugged.
func (l *Link) Delete() error {
	link, err := netlink.LinkByName(l.cfg.Name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", l.cfg.Name, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("removing %s: %w", l.cfg.Name, err)
	}
	return nil
}

// Recreate brings a deleted interface back: the same name and hardware address,
// another index.
func (l *Link) Recreate() error { return l.create() }

func setAdmin(nl *netlink.Handle, name string, up bool) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", name, err)
	}
	set, word := nl.LinkSetDown, "down"
	if up {
		set, word = nl.LinkSetUp, "up"
	}
	if err := set(link); err != nil {
		return fmt.Errorf("setting %s %s: %w", name, word, err)
	}
	return nil
}

// A Route is a destination and the next hop to it; no Via is on-link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// DefaultVia is the default route of via's family.
func DefaultVia(via netip.Addr) Route {
	zero := netip.IPv4Unspecified()
	if via.Is6() {
		zero = netip.IPv6Unspecified()
	}
	return Route{Dst: netip.PrefixFrom(zero, 0), Via: via}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("parsing an address with its prefix length: %w", err)
	}
	return p, nil
}

func addAddr(nl *netlink.Handle, dev string, p netip.Prefix) error {
	link, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("finding %s: %w", dev, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("adding %v to %s: %w", p, dev, err)
	}
	return nil
}

func addRoute(nl *netlink.Handle, r Route, dev string) error {
	route := &netlink.Route{Dst: ipNet(r.Dst.Masked())}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	}
	if dev != "" {
		link, err := nl.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("finding %s: %w", dev, err)
		}
		route.LinkIndex = link.Attrs().Index
	}
	if err := nl.RouteReplace(route); err != nil {
		return fmt.Errorf("adding a route to %v: %w", r.Dst, err)
	}
	return nil
}

// addBridge creates a bridge that forwards at once and is up.
func addBridge(nl *netlink.Handle, name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	off := false
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("creating bridge %s (does the kernel have it? modprobe bridge): %w", name, err)
	}
	return setAdmin(nl, name, true)
}

// keepCarrier gives a bridge a port that is always up. Without one it has no
// carrier until a link comes up, and drops the answers to what a client sends
// in the millisecond after that: DHCP clients then wait for seconds.
func keepCarrier(ns *Namespace, bridge string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = "keep0", net.FlagUp
	if err := ns.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "keep1"}); err != nil {
		return fmt.Errorf("creating a port for %s: %w", bridge, err)
	}
	if err := setAdmin(ns.nl, "keep1", true); err != nil {
		return err
	}
	port, err := ns.nl.LinkByName("keep0")
	if err != nil {
		return fmt.Errorf("finding keep0: %w", err)
	}
	master, err := ns.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding %s: %w", bridge, err)
	}
	if err := ns.nl.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("making keep0 a port of %s: %w", bridge, err)
	}
	return nil
}

// dying is the interface group of links that are removed together.
const dying = 0x1ab

// removeLinks removes all virtual links of the host in one go: one by one, each
// costs the kernel a grace period.
func removeLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	found := false
	for _, l := range links {
		switch l.Type() {
		case "veth", "bridge", "dummy", "macvlan", "vlan", "tuntap", "vrf", "bond", "wireguard":
			if err := netlink.LinkSetGroup(l, dying); err != nil && !isGone(err) {
				return fmt.Errorf("removing link %s: %w", l.Attrs().Name, err)
			}
			found = true
		}
	}
	if !found {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(dying)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !isGone(err) {
		return fmt.Errorf("removing links: %w", err)
	}
	return nil
}
