package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// A Bridge is a bridge of the host with containers behind it, as Docker has.
type Bridge struct {
	host   *Host
	name   string
	prefix netip.Prefix
	count  int
}

// NewBridge creates a bridge on the host with an address: 172.17.0.1/16 for
// docker0. It does not switch forwarding on; Sysctl does.
func (h *Host) NewBridge(name string, addr netip.Prefix) (*Bridge, error) {
	if !inside {
		return nil, errOutside
	}
	if err := addBridge(pkgHandle, name, hardwareAddr(name)); err != nil {
		return nil, err
	}
	b := &Bridge{host: h, name: name, prefix: addr}
	if err := b.AddAddr(addr); err != nil {
		return nil, err
	}
	return b, nil
}

// Name is the bridge's name on the host.
func (b *Bridge) Name() string { return b.name }

// AddAddr gives the bridge another address.
func (b *Bridge) AddAddr(addr netip.Prefix) error { return addAddr(pkgHandle, b.name, addr) }

// Container creates a namespace whose eth0 is a port of the bridge, with an
// address, a default route through the bridge and the echo servers, which
// answer with its name.
func (b *Bridge) Container(name string, addr netip.Prefix) (*Namespace, error) {
	ns, err := b.host.NewNamespace(name)
	if err != nil {
		return nil, err
	}
	if err := b.connect(ns, addr); err != nil {
		return nil, fmt.Errorf("connecting container %s: %w", name, err)
	}
	return ns, nil
}

func (b *Bridge) connect(ns *Namespace, addr netip.Prefix) error {
	b.count++
	port := fmt.Sprintf("%s.%d", b.name, b.count)
	if _, err := b.host.NewLink(LinkConfig{Name: port, Namespace: ns, Peer: "eth0", Up: true}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("finding %s: %w", port, err)
	}
	bridge, err := netlink.LinkByName(b.name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", b.name, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("making %s a port of %s: %w", port, b.name, err)
	}
	if err := ns.AddAddr("eth0", addr); err != nil {
		return err
	}
	if err := ns.AddRoute(DefaultVia(b.prefix.Addr()), "eth0"); err != nil {
		return err
	}
	return ns.Do(func() error {
		open, err := listenEcho(ns.name)
		for _, c := range open {
			b.host.onClose(func() error { _ = c.Close(); return nil })
		}
		return err
	})
}
