package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace of the lab, other than the host's own. It has
// a name, so `ip netns exec NAME` works for an observer.
type Namespace struct {
	name   string
	path   string
	handle netns.NsHandle
	nl     *netlink.Handle
}

// NewNamespace creates a network namespace with its loopback up. It forwards,
// filters nothing by reverse path and does not wait for duplicate address
// detection. The host closes it at the latest when it closes itself.
func (h *Host) NewNamespace(name string) (*Namespace, error) {
	if !inside {
		return nil, errOutside
	}
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	h.onClose(ns.Close)
	return ns, nil
}

func newNamespace(name string) (*Namespace, error) {
	ns := &Namespace{name: name, path: filepath.Join(netnsDir, name), handle: netns.None()}
	if err := os.WriteFile(ns.path, nil, 0o444); err != nil {
		return nil, fmt.Errorf("naming namespace %s: %w", name, err)
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", ns.path, "", unix.MS_BIND, "")
	})
	if err == nil {
		ns.handle, err = netns.GetFromPath(ns.path)
	}
	if err == nil {
		ns.nl, err = netlink.NewHandleAt(ns.handle, unix.NETLINK_ROUTE)
	}
	if err == nil {
		err = ns.setUp("lo")
	}
	if err == nil {
		err = ns.Sysctl(
			"net.ipv4.ip_forward", "1",
			"net.ipv4.conf.all.rp_filter", "0",
			"net.ipv4.conf.default.rp_filter", "0",
			"net.ipv6.conf.all.forwarding", "1",
			"net.ipv6.conf.default.accept_ra", "0",
			"net.ipv6.conf.default.dad_transmits", "0",
			"net.ipv6.conf.default.accept_dad", "0",
			"net.ipv4.icmp_ratelimit", "0",
			"net.ipv6.icmp.ratelimit", "0",
		)
	}
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return ns, nil
}

// Name is the namespace's name below /run/netns.
func (ns *Namespace) Name() string { return ns.name }

// Close removes the namespace and with it its devices.
func (ns *Namespace) Close() error {
	if ns.nl != nil {
		// The kernel removes a namespace some time later, but the host's end
		// of a pair must be gone when Close returns.
		if links, err := ns.nl.LinkList(); err == nil {
			for _, l := range links {
				if l.Type() == "veth" && l.Attrs().NetNsID >= 0 { // its other end is elsewhere
					_ = ns.nl.LinkDel(l)
				}
			}
		}
		ns.nl.Close()
		ns.nl = nil
	}
	if ns.handle.IsOpen() {
		_ = ns.handle.Close()
	}
	if err := unix.Unmount(ns.path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", ns.path, err)
	}
	if err := os.Remove(ns.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Do calls f on a thread in the namespace. Sockets that f opens stay in the
// namespace and may be used from anywhere afterwards; so do processes that f
// starts. f must not hand the opening of sockets to another goroutine.
func (ns *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("entering namespace %s: %w", ns.name, err)
		}
		return f()
	})
}

// Netlink is a handle on the namespace's rtnetlink.
func (ns *Namespace) Netlink() *netlink.Handle { return ns.nl }

// Sysctl sets kernel parameters in the namespace: key, value, key, value...
func (ns *Namespace) Sysctl(keyValues ...string) error {
	return ns.Do(func() error { return sysctl(keyValues...) })
}

// AddAddr gives a device of the namespace an address.
func (ns *Namespace) AddAddr(dev string, addr netip.Prefix) error {
	return addAddr(ns.nl, dev, addr)
}

// AddRoute adds a route in the namespace, to the main table.
func (ns *Namespace) AddRoute(r Route, dev string) error {
	return addRoute(ns.nl, r, dev)
}

func (ns *Namespace) setUp(dev string) error {
	l, err := ns.nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("finding %s: %w", dev, err)
	}
	return ns.nl.LinkSetUp(l)
}

// onThread calls f on a thread whose network namespace f may change: the thread
// returns to the pool only if the way back succeeded, and dies otherwise.
func onThread(f func() error) error {
	return OnThread(func() error {
		home, err := netns.Get()
		if err != nil {
			return fmt.Errorf("reading the current network namespace: %w", err)
		}
		defer home.Close()
		defer func() {
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
		}()
		return f()
	})
}

// OnThread calls f on a separate thread that ends afterwards, unless f unlocks it:
// f may change the thread's namespaces. Processes that f starts are where the
// thread is.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked here, so the thread ends with the goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread would not end, and /proc/self shows its namespaces. Held here, it is not the next one.
			defer runtime.UnlockOSThread()
			done <- OnThread(f)
			return
		}
		// Deferred as a panic or Goexit in f must not leave anyone waiting.
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// sysctl writes kernel parameters; which namespace's is decided by the thread.
func sysctl(keyValues ...string) error {
	for i := 0; i+1 < len(keyValues); i += 2 {
		key := keyValues[i]
		if !strings.Contains(key, "/") { // as sysctl(8): slashes let a device's name have dots
			key = strings.ReplaceAll(key, ".", "/")
		}
		path := "/proc/sys/" + key
		if err := os.WriteFile(path, []byte(keyValues[i+1]), 0o644); err != nil {
			return fmt.Errorf("setting %s=%s: %w", keyValues[i], keyValues[i+1], err)
		}
	}
	return nil
}
