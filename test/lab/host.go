package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Family is an address family in the kernel's numbers.
type Family int

// The two families.
const (
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// HostConfig is what can be chosen about the host. The zero value is a Debian
// machine with NetworkManager running and no network.
type HostConfig struct {
	// NMConfig is added to NetworkManager's configuration.
	NMConfig string
	// NMLogLevel is NetworkManager's, INFO by default.
	NMLogLevel string
	// NoNM leaves NetworkManager to StartNM, and NoBus the bus to StartBus
	// (which leaves NetworkManager as well).
	NoNM, NoBus bool
	// FastDAD switches duplicate address detection off, which saves one to two
	// seconds in every activation with IPv6, and takes the time from the race
	// between DHCP and RA that a real host has.
	FastDAD bool
	// Sysctls are set before any link exists: key, value, key, value... They
	// come on top of what systemd sets on Debian: rp_filter=2 and
	// promote_secondaries=1 for new links.
	Sysctls []string
	// Root is the root directory of another Debian release (from debootstrap)
	// whose NetworkManager and nmcli are used.
	Root string
}

// Host is the host of the lab: the program's own network namespace, with a bus
// and NetworkManager. There is one at a time.
type Host struct {
	cfg HostConfig

	mu      sync.Mutex
	bus, nm *Process
	closers []func() error
	cables  *Namespace
	isps    int
	ttls    map[int]string // which provider answers with it
	closed  bool
}

var theHost struct {
	sync.Mutex
	open bool
}

// NewHost gives the lab's host a clean network, a system bus and NetworkManager.
func NewHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	if !inside {
		return nil, errOutside
	}
	theHost.Lock()
	if theHost.open {
		theHost.Unlock()
		return nil, errors.New("the lab's host is in use: close it first")
	}
	theHost.open = true
	theHost.Unlock()

	h := &Host{cfg: cfg, ttls: map[int]string{}}
	if err := h.open(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) open(ctx context.Context) error {
	if err := resetNetwork(); err != nil {
		return err
	}
	if err := resetFiles(); err != nil {
		return err
	}
	if err := os.Remove(nmLog); err != nil && !os.IsNotExist(err) {
		return err // kept until now for reading
	}
	dad := "1"
	if h.cfg.FastDAD {
		dad = "0"
	}
	if err := sysctl(append([]string{
		"net.ipv4.ip_forward", "0",
		"net.ipv6.conf.all.forwarding", "0",
		"net.ipv4.conf.all.rp_filter", "0",
		"net.ipv4.conf.default.rp_filter", "2",
		"net.ipv4.conf.default.promote_secondaries", "1",
		"net.ipv6.conf.default.accept_dad", dad,
		"net.ipv6.conf.default.dad_transmits", dad,
	}, h.cfg.Sysctls...)...); err != nil {
		return err
	}
	if h.cfg.Root != "" {
		if err := h.mountRoot(); err != nil {
			return err
		}
	}
	if h.cfg.NoBus {
		return nil
	}
	if err := h.StartBus(ctx); err != nil || h.cfg.NoNM {
		return err
	}
	return h.StartNM(ctx)
}

// Close stops whatever runs, and removes whatever the host, its providers and
// the program under test have left: links, rules, routes, files.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	closers := h.closers
	h.closers = nil
	h.mu.Unlock()

	var errs []error
	// NetworkManager before its links: it would report on each one that goes.
	errs = append(errs, h.KillNM(), h.KillBus(), removeLinks())
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c())
	}
	errs = append(errs, killOrphans(), resetNetwork(), resetFiles())
	theHost.Lock()
	theHost.open = false
	theHost.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing the lab's host: %w", err)
	}
	return nil
}

// onClose adds something to do when the host closes, before all that was added
// earlier.
func (h *Host) onClose(f func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closers = append(h.closers, f)
}

// Sysctl sets kernel parameters of the host: key, value, key, value...
func (h *Host) Sysctl(keyValues ...string) error { return sysctl(keyValues...) }

// AddAddr gives a device of the host an address, behind NetworkManager's back.
func (h *Host) AddAddr(dev, prefix string) error {
	p, err := parsePrefix(prefix)
	if err != nil {
		return err
	}
	return addAddr(pkgHandle, dev, p)
}

// prepareNetwork sets up the host's namespace once, in process 1.
func prepareNetwork() error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// resetNetwork restores the host's namespace to its initial state: lo, the
// kernel's own rules, and nothing of Multipath TCP and nftables.
func resetNetwork() error {
	if err := removeLinks(); err != nil {
		return err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := resetRules(family); err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			if r.Table == unix.RT_TABLE_LOCAL || r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !isGone(err) {
				return fmt.Errorf("removing route %v: %w", r, err)
			}
		}
	}
	return errors.Join(resetMPTCP(), resetNFTables())
}

// kernelRules are the rules that the kernel makes in a new namespace, by priority
// (net/ipv4/fib_rules.c: fib_default_rules_init; net/ipv6/fib6_rules.c: fib6_rules_net_init).
var kernelRules = map[int]map[int]int{
	unix.AF_INET:  {0: unix.RT_TABLE_LOCAL, 32766: unix.RT_TABLE_MAIN, 32767: unix.RT_TABLE_DEFAULT},
	unix.AF_INET6: {0: unix.RT_TABLE_LOCAL, 32766: unix.RT_TABLE_MAIN},
}

// resetRules leaves the kernel's own rules, and adds those that a test has removed.
func resetRules(family int) error {
	rules, err := netlink.RuleList(family)
	if err != nil {
		return fmt.Errorf("listing rules: %w", err)
	}
	missing := maps.Clone(kernelRules[family])
	for _, r := range rules {
		if table, own := missing[r.Priority]; own && r.Table == table {
			delete(missing, r.Priority)
			continue
		}
		if err := delRule(family, r); err != nil {
			return err
		}
	}
	for priority, table := range missing {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table, r.Protocol = family, priority, table, unix.RTPROT_KERNEL
		if err := netlink.RuleAdd(r); err != nil {
			return fmt.Errorf("adding the kernel's rule %d: %w", priority, err)
		}
	}
	return nil
}

// resetNFTables takes away what tests and the daemons under test have loaded. Without nft(8) no test
// loads anything.
func resetNFTables() error {
	if _, err := LookPath("", "nft"); err != nil {
		return nil //nolint:nilerr // see above
	}
	_, err := command(context.Background(), "", "nft", "flush", "ruleset")
	return err
}

// resetFiles removes files that the daemons under test have written.
func resetFiles() error {
	for _, dir := range []string{"/run/multihomed", proberDir, binderDir, "/run/NetworkManager", "/run/dhcpcd", "/run/network", interfacesFile} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.Mkdir("/run/network", 0o755); err != nil {
		return err
	}
	for _, dir := range hooks {
		paths, err := filepath.Glob(filepath.Join(dir, "*multihomed*"))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for _, dir := range emptied {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it does not exist
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if slices.Contains(emptied, path) {
				continue // a mount point
			}
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("emptying %s: %w", dir, err)
			}
		}
	}
	return nil
}

// killOrphans ends the children of daemons that were killed; process 1 reaps
// them.
func killOrphans() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		// pid (comm) state ppid; comm may contain anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == "1" {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

func isGone(err error) bool {
	_, notFound := errors.AsType[netlink.LinkNotFoundError](err)
	return notFound || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)
}

// pkgHandle is a handle on the host's rtnetlink.
var pkgHandle = &netlink.Handle{}

func hardwareAddr(name string) net.HardwareAddr {
	// The same name gets the same address, so a link that is removed and comes
	// back is the same hardware.
	var sum uint32 = 2166136261
	for _, c := range []byte(name) {
		sum = (sum ^ uint32(c)) * 16777619
	}
	return net.HardwareAddr{0x02, 0x1a, byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}
