package machine

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A network is a network namespace without a name.
type network struct {
	ns netns.NsHandle
	nl *netlink.Handle
}

// newNetwork makes a network namespace.
func newNetwork() (*network, error) {
	var n *network
	err := lab.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		n, err = openNetwork(ns)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	return n, nil
}

func openNetwork(ns netns.NsHandle) (*network, error) {
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return &network{ns: ns, nl: nl}, nil
}

// close gives the namespace up; without processes in it the kernel then removes
// it, and its links with it.
func (n *network) close() {
	n.nl.Close()
	_ = n.ns.Close()
}

// removeLink removes a link at once, while the kernel takes its time for those of
// a namespace that it removes.
func (n *network) removeLink(name string) error {
	link, err := n.nl.LinkByName(name)
	if isGone(err) {
		return nil
	}
	if err == nil {
		err = n.nl.LinkDel(link)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// moveLink moves a link from one namespace to another; false says that it is not
// in from.
func moveLink(name string, from *netlink.Handle, to netns.NsHandle) (bool, error) {
	link, err := from.LinkByName(name)
	if isGone(err) {
		return false, nil
	}
	if err == nil {
		err = from.LinkSetNsFd(link, int(to))
	}
	if err != nil {
		return false, fmt.Errorf("moving %s: %w", name, err)
	}
	return true, nil
}

func isGone(err error) bool {
	_, notFound := errors.AsType[netlink.LinkNotFoundError](err)
	return notFound || errors.Is(err, unix.ENODEV)
}
