package reconcile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
	"multihomed/test/lab/nettest"
	_ "multihomed/test/seeds"
)

// TestMain keeps the tests away from the machine's routing.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// A host is a network namespace of one test with a loop on it, driven by hand.
type host struct {
	*testing.T
	nl     *netlink.Handle
	mirror *faultyMirror
	source *kernel.Mirror
	writer *faultyWriter
	owners *owners
	leases *leases
	loop   *reconcile.Loop
	// judge, if not nil, says which uplinks are dead.
	judge *judge
	clock time.Time
	log   bytes.Buffer
	// memory outlives a restart.
	memory memory
	// stop ends the mirror and the writer of the loop.
	stop func()
	// readies counts Ready, last is the last report.
	readies int
	last    reconcile.Report
	// appeared are the problems in the order in which they were reported.
	appeared []routing.Problem
}

var policy = routing.Policy{Tables: routing.TableRange{First: 10000, Last: 10009}, UplinkGroup: 28008, ContainerPrefixLength: 7, NetworksAlways: true}

func newHost(t *testing.T) *host {
	t.Helper()
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	h := &host{T: t, clock: time.Unix(1_000_000, 0), leases: newLeases(policy.Tables)}
	var err error
	h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(h.nl.Close)
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/router_solicitations", []byte("0"), 0))
	h.setUp("lo", true)
	h.restart()
	return h
}

// restart makes a new loop, as a daemon that starts. It knows nothing.
func (h *host) restart() {
	h.Helper()
	if h.stop != nil {
		h.stop()
	}
	mirror, err := kernel.Open(kernel.Config{Tables: policy.Tables})
	must(h, err)
	writer, err := mirror.OpenWriter()
	must(h, err)
	h.stop = sync.OnceFunc(func() { must(h, errors.Join(writer.Close(), mirror.Close())) })
	h.Cleanup(h.stop)
	h.source, h.mirror = mirror, &faultyMirror{Mirror: reconcile.MirrorOf(mirror)}
	h.writer = &faultyWriter{Writer: writer}
	h.owners = &owners{changed: make(chan struct{}, 1)}
	h.readies, h.last = 0, reconcile.Report{}
	options := reconcile.Options{
		Memory: &h.memory,
		Policy: policy, Logger: slog.New(slog.NewTextHandler(&h.log, nil)),
		Mirror: h.mirror, Writer: h.writer, Owners: h.owners, Leases: h.leases,
		Reserved: func(routing.TableID) (string, bool) { return "", false },
		Repairs:  rate.NewLimiter(1, 2),
		Hooks: reconcile.Hooks{
			Ready: func() { h.readies++ },
			Report: func(r reconcile.Report) {
				for _, p := range r.Problems {
					if !slices.Contains(h.last.Problems, p) {
						h.appeared = append(h.appeared, p)
					}
				}
				h.last = r
			},
		},
	}
	if h.judge != nil {
		options.Failover = h.judge
	}
	h.loop = reconcile.New(options)
	h.loop.SetClock(func() time.Time { return h.clock })
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// pass takes up what happened and returns what was written.
func (h *host) pass() []string {
	h.Helper()
	h.writer.wrote = nil
	must(h, h.loop.Reconcile(h.Context()))
	return h.writer.wrote
}

// quiet passes and wants nothing to be written.
func (h *host) quiet() {
	h.Helper()
	if wrote := h.pass(); len(wrote) > 0 {
		h.Errorf("written without need:\n%s", strings.Join(wrote, "\n"))
	}
}

// rest passes until nothing waits for its time within a second.
func (h *host) rest() {
	h.Helper()
	for range 3 {
		if h.wait() > time.Second {
			return
		}
		h.pass()
	}
}

// wait turns the clock to when the loop wants to be woken.
func (h *host) wait() time.Duration {
	d := h.loop.UntilNext()
	h.clock = h.clock.Add(d)
	return d
}

// noLinkLocal keeps the kernel from making IPv6 addresses of its own, some time after an
// interface came up.
func (h *host) noLinkLocal() {
	h.Helper()
	must(h, os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0))
}

func (h *host) veth(name string) {
	h.Helper()
	must(h, h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p-" + name}))
	h.setUp("p-"+name, true)
	h.setUp(name, true)
}

func (h *host) named(name string) netlink.Link {
	h.Helper()
	l, err := h.nl.LinkByName(name)
	must(h, err)
	return l
}

func (h *host) setUp(name string, up bool) {
	h.Helper()
	if up {
		must(h, h.nl.LinkSetUp(h.named(name)))
	} else {
		must(h, h.nl.LinkSetDown(h.named(name)))
	}
}

func (h *host) address(name, address string) {
	h.Helper()
	a, err := netlink.ParseAddr(address)
	must(h, err)
	must(h, h.nl.AddrAdd(h.named(name), a))
}

func (h *host) deleteAddress(name, address string) {
	h.Helper()
	a, err := netlink.ParseAddr(address)
	must(h, err)
	must(h, h.nl.AddrDel(h.named(name), a))
}

// ip runs ip(8) here and returns what it prints.
func (h *host) ip(args string) string {
	h.Helper()
	out, err := exec.CommandContext(h.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		h.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// rules are our IPv4 rules as ip(8) prints them.
func (h *host) rules() []string {
	h.Helper()
	var out []string
	for line := range strings.Lines(h.ip("-N -d -4 rule")) {
		if line = strings.Join(strings.Fields(line), " "); strings.HasSuffix(line, " proto 150") {
			out = append(out, strings.TrimSuffix(line, " proto 150"))
		}
	}
	return out
}

// has reports whether a rule stands.
func (h *host) has(rule string) bool {
	h.Helper()
	return slices.Contains(h.rules(), rule)
}

func (h *host) wants(rules ...string) {
	h.Helper()
	have := h.rules()
	for _, r := range rules {
		rule, not := strings.CutPrefix(r, "!")
		if slices.Contains(have, rule) == not {
			h.Errorf("rule %q: stands is %t; all:\n%s\nlog:\n%s", rule, not, strings.Join(have, "\n"), h.log.String())
		}
	}
}

// wan is a veth with an address and a default, claimed as a link.
func (h *host) wan(n int) {
	h.Helper()
	name := fmt.Sprintf("wan%d", n)
	h.veth(name)
	h.address(name, fmt.Sprintf("100.64.%d.5/24", n))
	h.ip(fmt.Sprintf("route add default via 100.64.%d.1 dev %s metric %d", n, name, 100+n))
	h.owners.claim(name, reconcile.Link)
}

// owners says what the test says.
type owners struct {
	changed   chan struct{}
	next      reconcile.Claims
	rechecked []string
}

func (o *owners) Changed() <-chan struct{} { return o.changed }

func (o *owners) Take() reconcile.Claims {
	c := o.next
	o.next = reconcile.Claims{Complete: c.Complete, Waiting: c.Waiting}
	return c
}

func (o *owners) Recheck(name string) { o.rechecked = append(o.rechecked, name) }

func (o *owners) claim(name string, s reconcile.Standing) {
	if o.next.Changed == nil {
		o.next.Changed = map[string]reconcile.Claim{}
	}
	o.next.Changed[name] = reconcile.Claim{Standing: s, Watched: s != reconcile.NoLink}
}

// claimOnly claims a link of which one address takes part.
func (o *owners) claimOnly(name string, address netip.Addr) {
	o.claim(name, reconcile.Link)
	c := o.next.Changed[name]
	c.Only = []netip.Addr{address}
	o.next.Changed[name] = c
}

func (o *owners) complete(is bool) {
	o.next.Complete, o.next.Waiting = is, ""
	if !is {
		o.next.Waiting = "the test"
	}
}

// leases hands out the tables of a range and takes them back.
type leases struct {
	mu    sync.Mutex
	free  []routing.TableID
	held  map[routing.Key]routing.TableID
	given map[routing.Key]int
}

func newLeases(r routing.TableRange) *leases {
	l := &leases{held: map[routing.Key]routing.TableID{}, given: map[routing.Key]int{}}
	for t := r.First; t <= r.Last; t++ {
		l.free = append(l.free, t)
	}
	return l
}

var errFull = errors.New("no table is left")

func (l *leases) Acquire(_ context.Context, keys []routing.Key, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[routing.Key]routing.TableID{}
	var err error
	for _, k := range keys {
		if t, ok := l.held[k]; ok {
			out[k] = t
			continue
		}
		at := slices.IndexFunc(l.free, func(t routing.TableID) bool { _, used := inUse(t); return !used })
		if at < 0 {
			err = errFull
			continue
		}
		l.held[k], out[k] = l.free[at], l.free[at]
		l.free = slices.Delete(l.free, at, at+1)
	}
	return out, err
}

func (l *leases) Move(_ context.Context, from map[routing.Key]routing.TableID, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[routing.Key]routing.TableID{}
	for k, old := range from {
		at := slices.IndexFunc(l.free, func(t routing.TableID) bool { _, used := inUse(t); return !used })
		if at < 0 {
			return out, errFull
		}
		l.held[k], out[k] = l.free[at], l.free[at]
		l.free[at] = old
	}
	return out, nil
}

func (l *leases) Release(keys ...routing.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		if t, ok := l.held[k]; ok {
			l.free = slices.Insert(l.free, 0, t)
			delete(l.held, k)
			l.given[k]++
		}
	}
}

// faultyWriter refuses or swallows what it is told to.
type faultyWriter struct {
	reconcile.Writer
	wrote  []string
	refuse func(routing.Op) error
	// swallow says that it was done although it was not.
	swallow func(routing.Op) bool
}

func (w *faultyWriter) Apply(ctx context.Context, ops []routing.Op) []error {
	errs := make([]error, len(ops))
	for i, op := range ops {
		w.wrote = append(w.wrote, op.String())
		if w.refuse != nil {
			errs[i] = w.refuse(op)
		}
		if errs[i] != nil || w.swallow != nil && w.swallow(op) {
			continue
		}
		errs[i] = errors.Join(w.Writer.Apply(ctx, []routing.Op{op})...)
	}
	return errs
}

// faultyMirror cannot read the kernel while it is told so.
type faultyMirror struct {
	reconcile.Mirror
	fault error
	syncs int
}

func (m *faultyMirror) Sync(ctx context.Context) error {
	m.syncs++
	if m.fault != nil {
		return m.fault
	}
	return m.Mirror.Sync(ctx)
}

// twice adds main's rule once more, which ip(8) refuses to do.
func twice(t *testing.T) {
	t.Helper()
	request := nl.NewNetlinkRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	request.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Dst_len: 24, Table: unix.RT_TABLE_MAIN, Type: nl.FR_ACT_TO_TBL}})
	request.AddData(nl.NewRtAttr(nl.FRA_DST, []byte{100, 64, 0, 0}))
	request.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(routing.PriorityNetworkMain))))
	request.AddData(nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(23)))
	request.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(uint8(routing.Multihomed))))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	must(t, err)
}

// A memory keeps what it is told, in the process.
type memory struct {
	kept reconcile.Recollection
	any  bool
	// faults is how many attempts fail.
	faults int
}

func (m *memory) Recall() (reconcile.Recollection, bool) { return m.kept, m.any }

func (m *memory) Keep(r reconcile.Recollection) error {
	if m.faults > 0 {
		m.faults--
		return errFull
	}
	m.kept, m.any = r, true
	return nil
}
