package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/test/lab/nettest"
	_ "multihomed/test/seeds"
)

// TestMain keeps the tests away from the machine's routing.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

var tables = routing.TableRange{First: 10000, Last: 10099}

// A host is a network namespace of one test, and the hands of somebody else in
// it.
type host struct {
	testing.TB
	link  *netlink.Handle
	raw   kernel.Requester
	batch []string
	self  *os.File
}

// enter moves the calling goroutine, that of a benchmark within a benchmark,
// to the host.
func (h *host) enter() {
	h.Helper()
	runtime.LockOSThread()
	must(h, unix.Setns(int(h.self.Fd()), unix.CLONE_NEWNET))
}

// newHost moves the calling goroutine's thread into a namespace of its own. The
// thread ends with the test.
func newHost(tb testing.TB) *host {
	tb.Helper()
	runtime.LockOSThread()
	must(tb, unix.Unshare(unix.CLONE_NEWNET))
	h := &host{TB: tb}
	var err error
	h.self, err = os.Open("/proc/thread-self/ns/net")
	must(tb, err)
	tb.Cleanup(func() { must(tb, h.self.Close()) })
	h.link, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	must(tb, err)
	tb.Cleanup(h.link.Close)
	h.raw, err = kernel.NewRequester()
	must(tb, err)
	tb.Cleanup(func() { must(tb, h.raw.Close()) })
	h.sysctl("ipv6/conf/default/accept_dad", "0")
	h.sysctl("ipv6/conf/default/router_solicitations", "0")
	lo, err := h.link.LinkByName("lo")
	must(tb, err)
	must(tb, h.link.LinkSetUp(lo))
	return h
}

func (h *host) sysctl(name, value string) {
	h.Helper()
	must(h, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

// veth makes a pair whose ends are both here and up, and returns the index of
// the first.
func (h *host) veth(name string) int {
	h.Helper()
	must(h, h.link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p-" + name}))
	h.up("p-" + name)
	return h.up(name)
}

func (h *host) up(name string) int {
	h.Helper()
	l, err := h.link.LinkByName(name)
	must(h, err)
	must(h, h.link.LinkSetUp(l))
	return l.Attrs().Index
}

func (h *host) down(name string) {
	h.Helper()
	l, err := h.link.LinkByName(name)
	must(h, err)
	must(h, h.link.LinkSetDown(l))
}

func (h *host) address(name, address string) {
	h.Helper()
	l, err := h.link.LinkByName(name)
	must(h, err)
	a, err := netlink.ParseAddr(address)
	must(h, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	must(h, h.link.AddrAdd(l, a))
}

// ip runs ip(8) here.
func (h *host) ip(args string) {
	h.Helper()
	out, err := exec.CommandContext(h.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		h.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// mirror opens a filled mirror that ends with the test.
func (h *host) mirror(c kernel.Config) *kernel.Mirror {
	h.Helper()
	if c.Tables == (routing.TableRange{}) {
		c.Tables = tables
	}
	m, err := kernel.Open(c)
	must(h, err)
	h.Cleanup(func() { must(h, m.Close()) })
	must(h, m.Sync(context.Background()))
	m.Take()
	return m
}

func (h *host) writer(m *kernel.Mirror) *kernel.Writer {
	h.Helper()
	w, err := m.OpenWriter()
	must(h, err)
	h.Cleanup(func() { must(h, w.Close()) })
	return w
}

func (h *host) apply(w *kernel.Writer, ops ...routing.Op) {
	h.Helper()
	must(h, errors.Join(w.Apply(h.Context(), ops)...))
}

// audit fails the test unless the mirror holds what the kernel holds.
func audit(tb testing.TB, m *kernel.Mirror) {
	tb.Helper()
	if diff := auditDiff(tb, m); len(diff) > 0 {
		tb.Fatalf("the mirror differs from the kernel (- mirror, + kernel):\n%s", strings.Join(diff, "\n"))
	}
}

// auditDiff asks again while there is a difference: the kernel does some things
// on its own time and says so afterwards, an IPv6 address within milliseconds
// (addrconf_dad_work), a carrier within a second (linkwatch).
func auditDiff(tb testing.TB, m *kernel.Mirror) []string {
	tb.Helper()
	var diff []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		var err error
		diff, err = m.Audit(context.Background())
		must(tb, err)
		if len(diff) == 0 {
			break
		}
	}
	var inconsistent error
	m.View(func(s *kernel.State) { inconsistent = s.Consistent() })
	must(tb, inconsistent)
	return diff
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// ipBatch collects a command for flushBatch.
func (h *host) ipBatch(args string) { h.batch = append(h.batch, args) }

// flushBatch runs the commands in one ip(8).
func (h *host) flushBatch() {
	h.Helper()
	cmd := exec.CommandContext(h.Context(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(h.batch, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		h.Fatalf("ip -batch: %v\n%s", err, out)
	}
	h.batch = nil
}
