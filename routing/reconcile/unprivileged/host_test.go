// Package unprivileged_test runs the loop on a kernel in memory, as any user: what it
// deletes, what it tries again and when, what it repairs, and in which order. The clock is
// that of testing/synctest, so a minute's wait costs nothing.
package unprivileged_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
	"multihomed/routing/reconcile"
)

var policy = routing.DefaultPolicy()

// The repairs that an object has in a row, and how soon there is one more.
const (
	burst = 3
	every = 10 * time.Second
)

// A host is a kernel with a loop on it, inside of a bubble of synctest.
type host struct {
	*testing.T
	kernel *kerneltest.Kernel
	mirror *kerneltest.Mirror
	owners *owners
	leases *leases
	writer *writer
	wake   chan struct{}
	// counters are those of all loops.
	counters reconcile.Counters
	// judge, if not nil, is who judges uplinks.
	judge *judge
	// marker, if not nil, is who marks packets.
	marker *marker
	loop   *reconcile.Loop
	// settled and outdated, if not nil, are hooks of the loop.
	settled, outdated func()
	// courses are those of the loop before, after a reload.
	courses [2]routing.Course
	// log is what the loops say of links.
	log strings.Builder
	// last is the last report.
	last reconcile.Report
	// kill ends the loop and waits for it.
	kill func()
}

// inBubble runs a test on a host with so many uplinks, all claimed, whose ladder stands.
func inBubble(t *testing.T, uplinks int, test func(h *host)) {
	t.Helper()
	inBubbleWith(t, uplinks, func(*host) {}, test)
}

// inBubbleWith prepares the host before the first loop starts.
func inBubbleWith(t *testing.T, uplinks int, prepare, test func(h *host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &host{T: t, kernel: kerneltest.New(policy), leases: &leases{held: map[routing.Key]routing.TableID{}}}
		prepare(h)
		h.start(func() {})
		for n := range uplinks {
			h.install(uplink(n))
			h.owners.claim(name(n), reconcile.Link)
		}
		h.owners.complete(true)
		h.settle()
		for n := range uplinks {
			h.leavesBy(source(n), name(n))
		}
		test(h)
		h.kill()
	})
}

// start runs a loop that knows nothing, as a daemon that starts. Before is called when it
// is there and has not looked yet.
func (h *host) start(before func()) {
	h.owners = &owners{changed: make(chan struct{}, 1)}
	h.mirror = h.kernel.Follow()
	h.writer = &writer{Writer: h.kernel.Writer()}
	h.wake = make(chan struct{}, 1)
	before()
	options := reconcile.Options{
		Policy: policy, Logger: slog.New(slog.NewTextHandler(&h.log, nil)), LogDelay: time.Second,
		Mirror: gate{reconcile.MirrorOf(h.mirror), h.wake}, Writer: h.writer, Owners: h.owners, Leases: h.leases,
		Reserved: func(routing.TableID) (string, bool) { return "", false },
		Repairs:  rate.NewLimiter(rate.Every(every), burst),
		Hooks:    reconcile.Hooks{Report: func(r reconcile.Report) { h.last = r }, Settled: func() { call(h.settled) }, Outdated: func() { call(h.outdated) }},
		Courses:  h.courses, Counters: &h.counters,
	}
	if h.judge != nil {
		h.judge.changed = make(chan struct{}, 1)
		options.Failover = h.judge
	}
	if h.marker != nil {
		h.marker.changed = make(chan struct{}, 1)
		options.Answers = h.marker
	}
	l := reconcile.New(options)
	h.loop = l
	ctx, cancel := context.WithCancel(h.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	h.kill = func() {
		cancel()
		if err := <-ended; err != nil {
			h.Error(err)
		}
	}
	synctest.Wait()
}

func call(hook func()) {
	if hook != nil {
		hook()
	}
}

// settle tells the loop that something may have happened, and waits until it has done all
// that it does without a timer. Before, it hears nothing: neither the kernel nor the owners
// here may be used by two goroutines at once.
func (h *host) settle() {
	h.owners.signal()
	h.wake <- struct{}{}
	synctest.Wait()
}

// A gate is a mirror that tells of changes by a channel of the test.
type gate struct {
	reconcile.Mirror
	wake chan struct{}
}

func (g gate) Changed() <-chan struct{} { return g.wake }

// pass lets time pass.
func (h *host) pass(d time.Duration) {
	h.settle()
	<-time.After(d)
	synctest.Wait()
}

// quiet wants nothing to be written from now on.
func (h *host) quiet(after time.Duration) {
	h.Helper()
	h.writer.wrote = nil
	h.pass(after)
	if len(h.writer.wrote) > 0 {
		h.Errorf("written without need:\n%s", strings.Join(h.writer.wrote, "\n"))
	}
}

func (h *host) install(l routing.Link) { h.kernel.Install(l) }

// leavesBy wants packets from an address to leave by an interface; none if they must not
// leave at all.
func (h *host) leavesBy(from netip.Addr, want string) {
	h.Helper()
	if got := by(h.kernel, from); got != want {
		h.Errorf("packets from %s leave by %q, not by %q; ours:\n%s", from, got, want, h.kernel.Text())
	}
}

// by is the interface that packets to outside leave by, empty if they do not leave.
func by(k *kerneltest.Kernel, from netip.Addr) string {
	v := k.Lookup(lookup.Flow{From: from, To: netip.MustParseAddr("203.0.113.1")})
	if v.Outcome != lookup.Sent {
		return ""
	}
	i, _ := k.Interface(v.Route.Device)
	return i.Name
}

// problems are the codes of what is reported.
func (h *host) problems() (codes []routing.Code) {
	for _, p := range h.last.Problems {
		codes = append(codes, p.Code)
	}
	return codes
}

func (h *host) wantProblems(want ...routing.Code) {
	h.Helper()
	if got := h.problems(); !slices.Equal(got, want) {
		h.Errorf("problems are %v, not %v: %+v", got, want, h.last.Problems)
	}
}

func name(n int) string { return fmt.Sprintf("wan%d", n) }

func source(n int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(n), 5}) }

// uplink are the facts of one: an address, its network, and a default.
func uplink(n int, more ...string) routing.Link {
	l := routing.Link{Name: name(n), Index: n + 2, Up: true}
	for i, address := range append([]string{netip.PrefixFrom(source(n), 24).String()}, more...) {
		p := netip.MustParsePrefix(address)
		l.Addresses = append(l.Addresses, routing.Address{Prefix: p})
		if i == 0 {
			l.Routes = append(l.Routes, routing.Route{
				Family: routing.IPv4, Table: routing.TableMain, Destination: p.Masked(), Type: routing.RouteUnicast, Scope: routing.ScopeLink,
				Device: l.Index, PreferredSource: p.Addr(), Protocol: kerneltest.ProtocolKernel,
			})
		}
	}
	return byGateway(l, netip.AddrFrom4([4]byte{100, 64, byte(n), 1}))
}

// byGateway is a link whose default has this gateway.
func byGateway(l routing.Link, gateway netip.Addr) routing.Link {
	l.Routes = slices.DeleteFunc(slices.Clone(l.Routes), func(r routing.Route) bool { return r.IsDefault() })
	l.Routes = append(l.Routes, routing.Route{
		Family: routing.IPv4, Table: routing.TableMain, Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Type: routing.RouteUnicast,
		Gateway: gateway, Device: l.Index, Metric: uint32(100 + l.Index), Protocol: kerneltest.ProtocolStatic,
	})
	return l
}

// sourceRule finds the rule that leads packets from an address to the table of its link.
func (h *host) sourceRule(from netip.Addr) routing.Rule {
	h.Helper()
	for r := range h.kernel.Rules() {
		if r.Priority == routing.PrioritySource && r.From == netip.PrefixFrom(from, from.BitLen()) {
			return r
		}
	}
	h.Fatalf("no source rule from %s:\n%s", from, h.kernel.Text())
	return routing.Rule{}
}

func (h *host) stands(r routing.Rule) bool { return h.kernel.CountRule(r) > 0 }

// owners say what the test says.
type owners struct {
	changed chan struct{}
	next    reconcile.Claims
	news    bool
}

func (o *owners) Changed() <-chan struct{} { return o.changed }

func (o *owners) Take() reconcile.Claims {
	c := o.next
	o.next = reconcile.Claims{Complete: c.Complete, Waiting: c.Waiting}
	return c
}

func (*owners) Recheck(string) {}

func (o *owners) claim(name string, s reconcile.Standing) {
	if o.next.Changed == nil {
		o.next.Changed = map[string]reconcile.Claim{}
	}
	o.next.Changed[name] = reconcile.Claim{Standing: s, Watched: s != reconcile.NoLink}
	o.news = true
}

func (o *owners) complete(is bool) {
	o.next.Complete, o.next.Waiting = is, ""
	if !is {
		o.next.Waiting = "the test"
	}
	o.news = true
}

func (o *owners) signal() {
	if o.news {
		o.news = false
		o.changed <- struct{}{}
	}
}

// leases number the keys as they come, and remember them over restarts of the loop.
type leases struct {
	held map[routing.Key]routing.TableID
}

// Move gives each key the next number that is free.
func (l *leases) Move(ctx context.Context, from map[routing.Key]routing.TableID, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	keys := slices.Collect(maps.Keys(from))
	for _, k := range keys {
		delete(l.held, k)
	}
	return l.Acquire(ctx, keys, func(t routing.TableID) (string, bool) {
		for _, old := range from {
			if t == old {
				return "a table that was left", true
			}
		}
		return inUse(t)
	})
}

func (l *leases) Acquire(_ context.Context, keys []routing.Key, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	out := map[routing.Key]routing.TableID{}
	for _, k := range keys {
		for t := policy.Tables.First; l.held[k] == 0; t++ {
			if !policy.Tables.Contains(t) {
				return out, errors.New("no table is left")
			}
			taken := false
			for _, other := range l.held {
				taken = taken || other == t
			}
			if _, used := inUse(t); !used && !taken {
				l.held[k] = t
			}
		}
		out[k] = l.held[k]
	}
	return out, nil
}

func (l *leases) Release(keys ...routing.Key) {
	for _, k := range keys {
		delete(l.held, k)
	}
}

// A writer remembers what it was told to do.
type writer struct {
	reconcile.Writer
	wrote []string
	// before, if set, sees the operations first.
	before func([]routing.Op)
}

func (w *writer) Apply(ctx context.Context, ops []routing.Op) []error {
	if w.before != nil {
		w.before(ops)
	}
	for _, op := range ops {
		w.wrote = append(w.wrote, op.String())
	}
	return w.Writer.Apply(ctx, ops)
}
