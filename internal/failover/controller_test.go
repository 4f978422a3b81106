package failover_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/failover"
	"multihomed/internal/health"
	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
	"multihomed/routing"
)

// A host is two uplinks with their prober, without a kernel.
type host struct {
	t          *testing.T
	controller *failover.Controller
	log        *strings.Builder
	ends       *ends

	mu sync.Mutex
	// dead are the links whose probes nobody answers, stopped is a prober that says nothing.
	dead    map[int]bool
	stopped bool
	// forbidden says why no probe can be sent.
	forbidden error
	facts     failover.Facts
	runs      map[int]bool
	dials     int
	// starts is how long the prober takes to start, after each dial.
	starts time.Duration
	// fails are the errors with which connections to the prober end at first, each at once and a
	// second later.
	fails  []error
	probes map[int]int
	sent   map[int]uint64
	// acked are the sources whose connections are acknowledged all the time.
	acked map[netip.Addr]bool
	// looks is how long a look takes, 0 for a millisecond.
	looks time.Duration
}

var (
	addresses = map[int]netip.Addr{2: netip.MustParseAddr("198.51.100.2"), 3: netip.MustParseAddr("203.0.113.2"), 4: netip.MustParseAddr("192.0.2.2")}
	servers   = map[int]netip.Addr{2: netip.MustParseAddr("9.9.9.2"), 3: netip.MustParseAddr("9.9.9.3"), 4: netip.MustParseAddr("9.9.9.4")}
	names     = map[int]string{2: "wan0", 3: "wan1", 4: "wan2"}
)

func uplink(index int) failover.Uplink {
	a := addresses[index]
	gateway := a.Prev()
	return failover.Uplink{
		Index: index, Name: names[index], Family: routing.IPv4, Runs: true, Place: -1,
		Exit: routing.Exit{
			Route:  routing.Route{Family: routing.IPv4, Destination: routing.IPv4.Any(), Gateway: gateway, Device: index},
			Source: a, Metric: uint32(100 * index),
		},
		Addresses: []netip.Addr{a}, Networks: []netip.Prefix{netip.PrefixFrom(a, 24).Masked()},
		Servers: []netip.Addr{servers[index]}, ServersKnown: true,
	}
}

func course() routing.Course {
	r := routing.Route{Family: routing.IPv4, Destination: routing.IPv4.Any(), Device: 2}
	return routing.Course{Family: routing.IPv4, Main: r, Used: r, Why: routing.CourseAlive}
}

func newHost(t *testing.T, indexes ...int) *host {
	t.Helper()
	h := &host{
		t: t, log: &strings.Builder{}, dead: map[int]bool{}, runs: map[int]bool{}, probes: map[int]int{}, sent: map[int]uint64{},
		acked: map[netip.Addr]bool{}, ends: &ends{},
	}
	h.facts = failover.Facts{Ready: true, Courses: [2]routing.Course{course()}}
	for _, i := range indexes {
		h.facts.Uplinks = append(h.facts.Uplinks, uplink(i))
		h.runs[i] = true
	}
	return h
}

// start runs a controller until the end of the test or of the returned function.
func (h *host) start(change func(*failover.Options)) (stop func()) {
	o := failover.Options{
		Logger: slog.New(slog.NewTextHandler(h.log, nil)), Config: config.Default(), Ends: h.ends,
		Look: func(context.Context) (failover.Facts, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			f := h.facts.WithCarriers(maps.Clone(h.runs))
			f.Uplinks = slices.Clone(f.Uplinks)
			return f, nil
		},
		Dial: func() failover.Prober {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.dials++
			return &prober{host: h, events: make(chan client.Event, 256), fails: h.fails, starts: h.starts}
		},
	}
	if change != nil {
		change(&o)
	}
	h.controller = failover.New(o)
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.controller.Run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// change changes the host, and tells the controller.
func (h *host) change(what func()) {
	h.mu.Lock()
	what()
	h.mu.Unlock()
	h.controller.Touch()
}

func (h *host) isDead(index int) bool {
	dead := h.controller.Failover().Dead
	_, is := dead.In(routing.IPv4)[index]
	return is
}

// dies waits until wan0 is judged dead, and says how long that took.
func (h *host) dies(most time.Duration) time.Duration {
	h.t.Helper()
	began := time.Now()
	for !h.isDead(2) {
		if time.Since(began) > most {
			h.t.Fatalf("not dead after %v: %+v\n%s", most, h.controller.State(), h.log)
		}
		pass(time.Millisecond)
	}
	return time.Since(began)
}

// asked counts the probes of a link.
func (h *host) asked(index int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.probes[index]
}

// dialled counts the probers.
func (h *host) dialled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials
}

// A prober answers for the links that are not dead.
type prober struct {
	host   *host
	events chan client.Event
	last   uint64
	fails  []error
	starts time.Duration
}

func (p *prober) Events() <-chan client.Event { return p.events }

func (p *prober) Run(ctx context.Context) {
	for _, err := range p.fails {
		if errors.Is(err, client.ErrLied) {
			p.events <- client.Event{Report: client.Connected{}}
		}
		p.events <- client.Event{Report: client.Lost{Err: err}}
		pass(3 * time.Second)
	}
	starting := time.NewTimer(p.starts)
	select {
	case <-starting.C:
	case <-ctx.Done():
		return
	}
	p.events <- client.Event{Report: client.Connected{}}
	<-ctx.Done()
}

func (p *prober) after(d time.Duration, report func() any) {
	time.AfterFunc(d, func() {
		p.host.mu.Lock()
		stopped := p.host.stopped
		p.host.mu.Unlock()
		if !stopped {
			p.events <- client.Event{Report: report(), Horizon: time.Now()}
		}
	})
}

func (p *prober) Probe(r wire.Probe) (uint64, error) {
	p.last++
	id, now := p.last, time.Now()
	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	p.host.probes[r.Device]++
	p.host.sent[r.Device]++
	if err := p.host.forbidden; err != nil {
		p.after(0, func() any { return client.Unsent{ID: id, Err: err} })
		return id, nil
	}
	p.after(0, func() any { return client.Sent{ID: id, At: now} })
	if !p.host.dead[r.Device] {
		const rtt = 10 * time.Millisecond
		p.after(rtt, func() any { return client.Answered{ID: id, At: now.Add(rtt), RTT: rtt} })
	}
	return id, nil
}

func (p *prober) Look(r wire.Look) (uint64, error) {
	p.last++
	id, at := p.last, time.Now()
	p.host.mu.Lock()
	takes, sent := max(p.host.looks, time.Millisecond), maps.Clone(p.host.sent)
	p.host.mu.Unlock()
	p.after(takes, func() any {
		p.host.mu.Lock()
		defer p.host.mu.Unlock()
		l := client.Looked{ID: id, At: at, Cost: time.Millisecond / 5, Connections: map[netip.Addr]client.Connections{}, Devices: map[int]wire.Counters{}}
		for _, s := range r.Sources {
			if p.host.acked[s.Addr] {
				l.Connections[s.Addr] = client.Connections{Count: 1, Proof: at}
			}
		}
		for _, d := range r.Devices {
			l.Devices[d] = wire.Counters{TxPackets: sent[d]}
		}
		return l
	})
	return id, nil
}

func (p *prober) Ping() (uint64, error) {
	p.last++
	id := p.last
	p.after(time.Millisecond, func() any { return client.Pong{ID: id, At: time.Now()} })
	return id, nil
}

type ends struct {
	mu      sync.Mutex
	closed  []connections.Dead
	deleted []netip.Addr
}

// so returns what was ended so far.
func (e *ends) so() (closed []connections.Dead, deleted []netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.closed), slices.Clone(e.deleted)
}

func (e *ends) Close(_ context.Context, d connections.Dead) (connections.Closed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = append(e.closed, d)
	return connections.Closed{connections.Close: 1}, nil
}

func (*ends) Follow(context.Context, []connections.Endpoint) (added, removed int, err error) {
	return 0, 0, nil
}

func (e *ends) DeleteStrays(ctx context.Context, _ int, addresses ...netip.Addr) (int, error) {
	return e.Delete(ctx, addresses...)
}

func (e *ends) Delete(_ context.Context, addresses ...netip.Addr) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deleted = append(e.deleted, addresses...)
	return len(addresses), nil
}

// pass lets time of the bubble pass.
func pass(d time.Duration) { <-time.After(d) }

// TestSilentDeath: the link that carries traffic dies without a word, idle or not.
func TestSilentDeath(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		stop := h.start(nil)
		defer stop()
		pass(time.Minute)
		began := h.asked(2)
		pass(time.Minute)
		if s := h.controller.State(); len(s.Links) != 2 || s.Links[0].State != health.Up || s.Links[1].State != health.Up || s.Prober != "" || s.Links[0].RouterOnly {
			t.Fatalf("%+v", s)
		}
		if n := h.asked(2) - began; n < 10 || n > 30 {
			t.Errorf("%d probes of an idle link in a minute", n)
		}
		h.mu.Lock()
		h.dead[2] = true
		h.mu.Unlock()
		pass(300 * time.Millisecond)
		h.mu.Lock()
		h.sent[2] += 2 // the first packets
		h.mu.Unlock()
		if took := h.dies(2 * time.Second); took > time.Second {
			t.Errorf("idle: dead %v after the first packet", took)
		}
		if h.isDead(3) {
			t.Error("the other link is dead, too")
		}
		h.change(func() {
			c := course()
			c.Used.Device, c.Moved, c.Why = 3, true, routing.CourseDead
			h.facts.Courses[0] = c
		})
		pass(time.Second)
		if closed, deleted := h.ends.so(); !slices.Equal(deleted, []netip.Addr{addresses[2]}) || len(closed) > 0 {
			t.Errorf("after the switch deleted %v, closed %+v", deleted, closed)
		}
		pass(11 * time.Second)
		if closed, _ := h.ends.so(); len(closed) != 1 || closed[0].Device != 2 || closed[0].For < 10*time.Second || closed[0].NoGateway {
			t.Errorf("closed %+v", closed)
		}
		h.mu.Lock()
		h.dead[2] = false
		h.mu.Unlock()
		pass(9 * time.Second)
		if !h.isDead(2) {
			t.Error("alive too soon")
		}
		pass(5 * time.Second)
		if h.isDead(2) {
			t.Errorf("still dead: %+v", h.controller.State())
		}
		h.change(func() { h.facts.Courses[0] = course() })
		pass(time.Second)
		if closed, deleted := h.ends.so(); !slices.Equal(deleted, []netip.Addr{addresses[2], addresses[3]}) || len(closed) != 1 {
			t.Errorf("at the failback deleted %v, closed %+v", deleted, closed)
		}
		stop()
		for _, line := range []string{`msg="uplink does not work" interface=wan0 family=ipv4 reason="nothing answers: `, `msg="uplink works again" interface=wan0`} {
			if strings.Count(h.log.String(), line) != 1 {
				t.Errorf("the log has not once %s:\n%s", line, h.log)
			}
		}
	})
}

// TestTraffic: with traffic that TCP does not prove, probes are frequent; proofs make them rare.
func TestTraffic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for {
				select {
				case <-ended:
					return
				case <-time.After(20 * time.Millisecond):
					h.mu.Lock()
					h.sent[2]++
					h.mu.Unlock()
				}
			}
		}()
		pass(time.Minute)
		h.mu.Lock()
		before := h.probes[2]
		h.mu.Unlock()
		pass(time.Minute)
		h.mu.Lock()
		if n := h.probes[2] - before; n < 200 || n > 260 {
			t.Errorf("%d probes in a minute with traffic", n)
		}
		if n := h.probes[3]; n < 100 || n > 160 {
			t.Errorf("%d probes of the standby in two minutes", n)
		}
		before = h.probes[2]
		h.acked[addresses[2]] = true
		h.mu.Unlock()
		pass(time.Minute)
		h.mu.Lock()
		if n := h.probes[2] - before; n > 12 {
			t.Errorf("%d probes in a minute beside TCP", n)
		}
		h.acked[addresses[2]], h.dead[2] = false, true
		h.mu.Unlock()
		if took := h.dies(3 * time.Second); took > time.Second {
			t.Errorf("dead after %v", took)
		}
	})
}

// TestNeighbours: what the kernel asks its neighbours does not make an idle link a busy one.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for {
				select {
				case <-ended:
					return
				case <-time.After(6500 * time.Millisecond):
					h.mu.Lock()
					h.sent[2] += 2
					h.mu.Unlock()
				}
			}
		}()
		pass(time.Minute)
		before := h.asked(2)
		pass(time.Minute)
		if n := h.asked(2) - before; n > 20 {
			t.Errorf("%d probes of an idle link in a minute", n)
		}
	})
}

// TestNamesAlone: no server of names answers behind a link whose connections go on. However long
// a busy host lets looks at them wait, that is no death.
func TestNamesAlone(t *testing.T) {
	t.Parallel()
	for _, takes := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, 2, 3)
			h.looks = takes
			defer h.start(nil)()
			ended := make(chan struct{})
			defer close(ended)
			go func() {
				for {
					select {
					case <-ended:
						return
					case <-time.After(20 * time.Millisecond):
						h.mu.Lock()
						h.sent[2]++
						h.mu.Unlock()
					}
				}
			}()
			pass(time.Minute)
			h.mu.Lock()
			h.acked[addresses[2]], h.dead[2] = true, true
			h.mu.Unlock()
			pass(5 * time.Minute)
			if h.isDead(2) || strings.Contains(h.log.String(), "does not work") {
				t.Errorf("looks of %v: dead: %+v", takes, h.controller.State())
			}
		})
	}
}

// TestStoppedProber: a prober that says nothing, and one that goes, judge nobody.
func TestStoppedProber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		pass(time.Minute)
		h.mu.Lock()
		h.stopped = true
		h.mu.Unlock()
		pass(30 * time.Second)
		if h.isDead(2) || h.isDead(3) {
			t.Errorf("dead by a silent prober: %+v", h.controller.State())
		}
		h.mu.Lock()
		h.stopped = false
		h.mu.Unlock()
		pass(time.Minute)
		if h.isDead(2) || h.isDead(3) {
			t.Errorf("dead afterwards: %+v", h.controller.State())
		}
	})
}

// TestNoProber: that nobody asks is one line of the log, with what helps, however often the
// prober sends nonsense; that somebody asks again is another.
func TestNoProber(t *testing.T) {
	t.Parallel()
	lied := func(n int) error { return fmt.Errorf("%w: version %d", client.ErrLied, n) }
	gone := fmt.Errorf("connecting to the prober: %w", syscall.ENOENT)
	for name, c := range map[string]struct {
		fails []error
		fix   string
	}{
		"nonsense": {[]error{lied(1), lied(2), lied(3)}, "systemctl restart multihomed-prober.service; if that does not help, read journalctl -u multihomed-prober "},
		"absent":   {[]error{gone, gone}, "systemctl start multihomed-prober.socket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, 2, 3)
				h.fails = c.fails
				stop := h.start(nil)
				pass(4500 * time.Millisecond)
				if s := h.controller.State(); s.Prober != c.fails[1].Error() || !strings.HasPrefix(s.ProberFix, c.fix) {
					t.Errorf("%+v", s)
				}
				pass(time.Minute)
				if s := h.controller.State(); s.Prober != "" || s.ProberFix != "" {
					t.Errorf("%+v", s)
				}
				stop()
				for _, line := range []string{`level=INFO+2 msg="uplinks are judged by their carrier alone" error="` + c.fails[0].Error(), `msg="uplinks are probed again"`} {
					if strings.Count(h.log.String(), line) != 1 {
						t.Errorf("the log has not once %s:\n%s", line, h.log)
					}
				}
				if !strings.Contains(h.log.String(), `fix="`+c.fix) || strings.Count(h.log.String(), "carrier alone") != 1 {
					t.Errorf("the log:\n%s", h.log)
				}
			})
		})
	}
}

// TestReloads: while the prober starts once more, after every reload, nobody says that it is
// away. One that is given up is.
func TestReloads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		stop := h.start(nil)
		pass(time.Minute)
		h.mu.Lock()
		h.starts = 4 * time.Second
		h.mu.Unlock()
		for range 5 {
			stop()
			stop = h.start(func(o *failover.Options) { o.Before = h.controller })
			for range 30 {
				pass(100 * time.Millisecond)
				if s := h.controller.State(); s.Prober != "" {
					t.Fatalf("the prober is %q", s.Prober)
				}
			}
		}
		pass(time.Minute)
		stop()
		if h.dialled() != 6 || strings.Contains(h.log.String(), "carrier alone") {
			t.Errorf("%d dials:\n%s", h.dialled(), h.log)
		}
		h.fails = []error{client.ErrStalled, client.ErrStalled}
		defer h.start(func(o *failover.Options) { o.Before = h.controller })()
		pass(1100 * time.Millisecond)
		if s := h.controller.State(); s.Prober != client.ErrStalled.Error() || !strings.HasPrefix(s.ProberFix, "systemctl restart") {
			t.Errorf("%+v", s)
		}
	})
}

// TestLostProber: a prober that is lost stays lost over reloads, and everybody is told when it is, also
// soon after it was back.
func TestLostProber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		gone := slices.Repeat([]error{fmt.Errorf("connecting to the prober: %w", syscall.ENOENT)}, 10)
		var told atomic.Int64
		reload := func(stop func(), fails []error) func() {
			stop()
			h.mu.Lock()
			h.fails = fails
			h.mu.Unlock()
			return h.start(func(o *failover.Options) {
				o.Before, o.Judged = h.controller, func() { told.Add(1) }
			})
		}
		stop := reload(h.start(nil), gone)
		pass(2 * time.Second)
		lost := h.controller.State()
		for range 3 {
			stop = reload(stop, gone)
			for range 20 {
				s := h.controller.State()
				for i, l := range s.Links {
					if l.State != health.Unprobed || l.Why != gone[0].Error() || !l.Since.Equal(lost.Links[i].Since) || s.Prober == "" || len(s.Links) != 2 {
						t.Fatalf("after a reload: %+v, before: %+v", l, lost.Links[i])
					}
				}
				pass(100 * time.Millisecond)
			}
		}
		stop = reload(stop, nil)
		// Each reload is shorter than what the log waits for; together they are longer.
		for range 3 {
			pass(4 * time.Second)
			stop = reload(stop, nil)
		}
		if n := strings.Count(h.log.String(), "probed again"); n != 1 || strings.Count(h.log.String(), "carrier alone") != 1 {
			t.Errorf("the log:\n%s", h.log)
		}
		for range 2 {
			stop = reload(stop, gone)
			pass(900 * time.Millisecond)
			if s, before := h.controller.State(), told.Load(); s.Prober != "" {
				t.Errorf("away at once: %+v", s)
			} else if pass(200 * time.Millisecond); h.controller.State().Prober == "" || told.Load() == before {
				t.Errorf("nobody is told that it is away: %+v", h.controller.State())
			}
			stop = reload(stop, nil)
			pass(time.Second)
		}
		stop()
	})
}

// TestDeathsAreCounted: each one once, and the next configuration goes on counting.
func TestDeathsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		stop := h.start(nil)
		pass(time.Minute)
		if d := h.controller.Deaths(); len(d) != 0 {
			t.Errorf("nobody died: %v", d)
		}
		want := map[failover.UplinkName]uint64{{Name: "wan0", Family: routing.IPv4}: 1}
		for n := range 2 {
			if err := h.controller.Test("wan0"); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
			if d := h.controller.Deaths(); !maps.Equal(d, want) {
				t.Errorf("death %d: %v", n+1, d)
			}
			if err := h.controller.Reset("wan0"); err != nil {
				t.Fatal(err)
			}
			stop()
			stop = h.start(func(o *failover.Options) { o.Before = h.controller })
			pass(time.Minute)
			if d := h.controller.Deaths(); !maps.Equal(d, want) {
				t.Errorf("after a reload: %v", d)
			}
			want[failover.UplinkName{Name: "wan0", Family: routing.IPv4}]++
		}
		stop()
	})
}

// TestAlone: nothing is asked, and no prober connected, for a single uplink.
func TestAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2)
		defer h.start(nil)()
		pass(time.Minute)
		s := h.controller.State()
		if h.dialled() > 0 || len(s.Links) != 1 || s.Links[0].Unwatched == "" || s.Links[0].State != health.Unprobed {
			t.Errorf("%d dials: %+v", h.dialled(), s)
		}
		h.change(func() { h.facts.Uplinks, h.runs[3] = append(h.facts.Uplinks, uplink(3)), true })
		pass(10 * time.Second)
		if s := h.controller.State(); h.dialled() != 1 || len(s.Links) != 2 || s.Links[1].State != health.Up {
			t.Errorf("%d dials: %+v", h.dialled(), s)
		}
		h.change(func() { h.facts.Uplinks = h.facts.Uplinks[:1] })
		pass(time.Second)
		h.mu.Lock()
		before := h.probes[2]
		h.mu.Unlock()
		pass(time.Minute)
		if n := h.asked(2) - before; n > 0 {
			t.Errorf("%d probes of the only uplink", n)
		}
	})
}

// TestCarrier: a lost carrier counts with the next facts.
func TestCarrier(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		pass(time.Minute)
		h.change(func() { h.runs[2], h.facts.Uplinks[0].Runs = false, false })
		h.dies(100 * time.Millisecond)
		// NetworkManager takes the default away.
		h.change(func() { h.facts.Uplinks = h.facts.Uplinks[1:] })
		pass(time.Minute)
		if !h.isDead(2) {
			t.Error("alive without carrier")
		}
		h.change(func() { h.runs[2], h.facts.Uplinks = true, []failover.Uplink{uplink(2), uplink(3)} })
		pass(9 * time.Second)
		if !h.isDead(2) {
			t.Error("alive at once")
		}
		pass(6 * time.Second)
		if h.isDead(2) {
			t.Errorf("still dead: %+v", h.controller.State())
		}
	})
}

// TestStopgap: while no uplink is alive, traffic need not wait for the end of a recovery.
func TestStopgap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		set := func(index int, dead bool, then time.Duration) {
			h.change(func() { h.dead[index] = dead })
			pass(300 * time.Millisecond)
			h.change(func() { h.sent[2] += 2 })
			pass(then)
		}
		expect := func(when string, dead2, dead3 bool) {
			t.Helper()
			if h.isDead(2) != dead2 || h.isDead(3) != dead3 {
				t.Errorf("%s: dead are wan0 %t, wan1 %t: %+v", when, h.isDead(2), h.isDead(3), h.controller.State())
			}
		}
		pass(time.Minute)
		set(3, true, 30*time.Second)
		expect("wan1 died", false, true)
		set(3, false, 3*time.Second)
		expect("wan1 recovers", false, true)
		set(2, true, 2*time.Second)
		expect("wan0 died", true, false)
		if s := h.controller.State(); s.Links[1].State != health.Recovering {
			t.Errorf("the stopgap is %+v", s.Links[1])
		}
		set(2, false, 2*time.Second)
		expect("wan0 recovers, too", true, false)
		pass(15 * time.Second)
		expect("both recovered", false, false)
		// One after the other, until none answers.
		set(2, true, 20*time.Second)
		set(3, true, 30*time.Second)
		expect("both died", true, true)
		if closed, _ := h.ends.so(); len(closed) != 2 || closed[1].Device != 2 {
			t.Errorf("closed %+v", closed)
		}
		set(3, false, 3*time.Second)
		expect("wan1 is the stopgap", true, false)
	})
}

// TestForbidden: where probes cannot be sent, status says why, until one is answered.
func TestForbidden(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		h.forbidden = errors.New("ping sockets are forbidden")
		defer h.start(nil)()
		pass(time.Minute)
		s := h.controller.State()
		if l := s.Links[0]; l.Unsent != "ping sockets are forbidden" || l.State != health.Unprobed || l.Unwatched == "" {
			t.Errorf("%+v", l)
		}
		h.change(func() { h.forbidden = nil })
		pass(time.Minute)
		if now := h.controller.State(); now.Links[0].Unsent != "" || now.Links[0].State != health.Up || now.Generation == s.Generation {
			t.Errorf("%+v", now.Links[0])
		}
	})
}

// TestOneLine: what happens to both families of a link at once is one line, and what happens to a
// link that nobody watches is told by its own lines.
func TestOneLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		for _, u := range slices.Clone(h.facts.Uplinks) {
			u.Family = routing.IPv6
			u.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
			u.Exit.Source = u.Addresses[0]
			h.facts.Uplinks = append(h.facts.Uplinks, u)
		}
		both := h.facts.Uplinks
		stop := h.start(nil)
		pass(time.Minute)
		h.change(func() { h.runs[2] = false })
		pass(time.Second)
		h.change(func() { h.runs[2] = true })
		pass(time.Minute)
		// The other link goes: now its carrier is its own affair.
		h.change(func() {
			h.facts.Uplinks = slices.DeleteFunc(slices.Clone(both), func(u failover.Uplink) bool { return u.Index == 3 })
			delete(h.runs, 3)
		})
		pass(time.Second)
		h.change(func() { h.runs[2] = false })
		pass(time.Second)
		if !h.isDead(2) {
			t.Error("alive without carrier")
		}
		h.change(func() { h.runs[2] = true })
		pass(time.Second)
		if s := h.controller.State(); h.isDead(2) || s.Links[0].State != health.Unprobed {
			t.Errorf("the only link is dead with a carrier: %+v", s)
		}
		// One that has lost its default, too, has its line for that.
		h.change(func() { h.facts.Uplinks, h.runs[3] = both, true })
		pass(time.Minute)
		h.change(func() {
			h.runs[2] = false
			h.facts.Uplinks = slices.DeleteFunc(slices.Clone(both), func(u failover.Uplink) bool { return u.Index == 2 })
		})
		pass(time.Second)
		stop()
		for _, line := range []string{`msg="uplink does not work" interface=wan0 family="ipv4, ipv6" reason="no carrier" event=`, `msg="uplink works again" interface=wan0 family=ipv4`} {
			if strings.Count(h.log.String(), line) != 1 {
				t.Errorf("the log has not once %s:\n%s", line, h.log)
			}
		}
		if strings.Count(h.log.String(), "does not work") != 1 {
			t.Errorf("lines about links that nobody watches:\n%s", h.log)
		}
	})
}

// TestOrders: the administrator's test and reset.
func TestOrders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		defer h.start(nil)()
		pass(time.Minute)
		if err := h.controller.Test("wan9"); !errors.Is(err, failover.ErrNoLink) {
			t.Errorf("of another: %v", err)
		}
		if err := h.controller.Test("wan0"); err != nil || !h.isDead(2) {
			t.Errorf("%v, dead %t", err, h.isDead(2))
		}
		if err := h.controller.Test("wan1"); !errors.Is(err, failover.ErrNoOther) || h.isDead(3) {
			t.Errorf("of the last one: %v", err)
		}
		if s := h.controller.State(); s.Links[0].Tested.IsZero() || s.Links[0].State != health.Down {
			t.Errorf("%+v", s.Links[0])
		}
		pass(29 * time.Second)
		if !h.isDead(2) {
			t.Error("it ended early")
		}
		pass(1100 * time.Millisecond)
		if s := h.controller.State(); h.isDead(2) || s.Links[0].State != health.Up || s.Links[0].DeathsToday != 0 {
			t.Errorf("%+v", s.Links[0])
		}
		if err := h.controller.Test("wan0"); err != nil {
			t.Error(err)
		}
		if err := h.controller.Reset("wan0"); err != nil || h.isDead(2) {
			t.Errorf("%v, dead %t", err, h.isDead(2))
		}
		if closed, deleted := h.ends.so(); len(closed)+len(deleted) > 0 {
			t.Errorf("a test closed %+v, deleted %v", closed, deleted)
		}
	})
}

// TestSettled: an order that follows a change waits until the controller knows of that.
func TestSettled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2)
		stop := h.start(nil)
		for _, index := range []int{3, 4} {
			h.mu.Lock()
			h.facts.Uplinks = append(h.facts.Uplinks, uplink(index))
			h.runs[index] = true
			h.mu.Unlock()
			h.controller.Settled(t.Context())
			if err := h.controller.Reset(names[index]); err != nil {
				t.Error(err)
			}
		}
		// One look serves all who wait.
		began := time.Now()
		var waiting sync.WaitGroup
		for range 60 {
			waiting.Go(func() { h.controller.Settled(t.Context()) })
		}
		waiting.Wait()
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("they waited %v", took)
		}
		stop()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		h.controller.Settled(ended)
	})
}

// TestNextProcess: a process that is killed, and a new configuration, forget no death.
func TestNextProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memory := failover.File{Directory: t.TempDir()}
		h := newHost(t, 2, 3)
		with := func(o *failover.Options) { o.Memory = memory }
		stop := h.start(with)
		pass(time.Minute)
		h.mu.Lock()
		h.dead[2] = true
		h.mu.Unlock()
		h.dies(10 * time.Second)
		stop()
		before := h.controller
		h.controller = failover.New(failover.Options{Logger: slog.New(slog.DiscardHandler), Config: config.Default(), Memory: memory})
		if f := h.controller.Failover(); !h.isDead(2) || f.Unjudged != (routing.ByFamily[bool]{true, true}) {
			t.Errorf("before the first facts: %+v", f)
		}
		stop = h.start(with)
		pass(time.Minute)
		if f := h.controller.Failover(); !h.isDead(2) || f.Unjudged != (routing.ByFamily[bool]{}) {
			t.Errorf("after a minute: %+v", f)
		}
		stop()
		before = h.controller
		cfg := config.Default()
		cfg.Failover.Recover = 20 * time.Second
		stop = h.start(func(o *failover.Options) { o.Before, o.Config, o.Memory = before, cfg, memory })
		if !h.isDead(2) {
			t.Error("alive with the new configuration")
		}
		h.mu.Lock()
		h.dead[2] = false
		h.mu.Unlock()
		pass(40 * time.Second)
		if h.isDead(2) {
			t.Errorf("still dead: %+v", h.controller.State())
		}
		stop()
		before = h.controller
		cfg.Failover.Enabled = false
		stop = h.start(func(o *failover.Options) { o.Before, o.Config, o.Memory = before, cfg, memory })
		pass(time.Second)
		if f := h.controller.Failover(); f.Enabled || len(f.Dead[0]) > 0 {
			t.Errorf("switched off: %+v", f)
		}
		if err := h.controller.Test("wan0"); !errors.Is(err, failover.ErrOff) {
			t.Errorf("switched off: %v", err)
		}
		stop()
		if kept := memory.Recall(); len(kept) > 0 {
			t.Errorf("switched off: %+v is kept", kept)
		}
	})
}

// again runs a controller after the one before it has ended: after a reload, or after a boot,
// which knows the archive alone.
func (h *host) again(archive failover.Archive, before *failover.Controller, enabled bool) (stop func()) {
	return h.start(func(o *failover.Options) {
		o.Archive, o.Before, o.Config.Failover.Enabled = archive, before, enabled
	})
}

// TestDeadFromTheBeginning: a link that died while failover was off, or while the host was, is
// dead when watching begins: it has answered before. In another network nobody knows that.
func TestDeadFromTheBeginning(t *testing.T) {
	t.Parallel()
	elsewhere := func(change func(*failover.Uplink)) func(*host) {
		return func(h *host) { change(&h.facts.Uplinks[0]) }
	}
	for name, c := range map[string]struct {
		boots bool
		move  func(*host)
		dead  bool
	}{
		"off and on":      {false, nil, true},
		"a boot":          {true, nil, true},
		"another index":   {true, elsewhere(func(u *failover.Uplink) { u.Index, u.Exit.Route.Device = 7, 7 }), true},
		"another gateway": {true, elsewhere(func(u *failover.Uplink) { u.Exit.Route.Gateway = netip.MustParseAddr("198.51.100.9") }), false},
		"another profile": {true, elsewhere(func(u *failover.Uplink) { u.Profile = "another" }), false},
		// That of the other link has answered by this one, too.
		"another server": {true, elsewhere(func(u *failover.Uplink) { u.Servers = []netip.Addr{netip.MustParseAddr("9.9.9.7")} }), true},
		"only other servers": {true, func(h *host) {
			h.facts.Uplinks[0].Servers = []netip.Addr{netip.MustParseAddr("9.9.9.7")}
			h.facts.Uplinks[1].Servers = []netip.Addr{netip.MustParseAddr("9.9.9.8")}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				archive := failover.AnsweredFile{Directory: t.TempDir()}
				h := newHost(t, 2, 3)
				h.facts.Uplinks[0].Profile = "home"
				stop := h.again(archive, nil, true)
				pass(time.Minute)
				stop()
				h.again(archive, h.controller, false)()
				before := h.controller
				if c.boots {
					before = nil
				}
				h.dead[2], h.dead[7], h.runs[7] = true, true, true
				if c.move != nil {
					c.move(h)
				}
				index := h.facts.Uplinks[0].Index
				defer h.again(archive, before, true)()
				pass(6 * time.Second)
				if h.isDead(index) != c.dead || h.isDead(3) {
					t.Errorf("dead %t: %+v\n%s", h.isDead(index), h.controller.State(), h.log)
				}
				h.mu.Lock()
				h.dead[2], h.dead[7] = false, false
				h.mu.Unlock()
				pass(time.Minute)
				if h.isDead(index) {
					t.Errorf("still dead: %+v", h.controller.State())
				}
			})
		})
	}
}

// TestArchive: what is kept is bounded, seldom written, and forgotten at an administrator's word;
// what is no such file is nothing.
func TestArchive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		archive := &counted{AnsweredFile: failover.AnsweredFile{Directory: t.TempDir()}}
		h := newHost(t, 2, 3)
		stop := h.again(archive, nil, true)
		pass(10 * time.Minute)
		all := archive.Recall()
		if len(all) != 2 || archive.times() > 4 {
			t.Errorf("%d times written: %+v", archive.times(), all)
		}
		if err := h.controller.Reset("wan1"); err != nil {
			t.Error(err)
		}
		h.change(func() { h.dead[3] = true })
		pass(time.Second)
		if all := archive.Recall(); len(all) != 1 || all[0].Interface != "wan0" || !slices.Equal(all[0].Targets, []string{"dns:9.9.9.2:53", "dns:9.9.9.3:53"}) {
			t.Errorf("after a reset: %+v", all)
		}
		for n := range 200 {
			h.change(func() { h.facts.Uplinks[0].Profile = strconv.Itoa(n) })
			pass(20 * time.Second)
		}
		stop()
		if all := archive.Recall(); len(all) != 64 || all[0].Profile != "199" {
			t.Errorf("%d networks are kept, the last one is %+v", len(all), all[0])
		}
	})
	long := strings.Repeat("x", 200)
	for _, text := range []string{
		"", "{}", "null", "[1]", `[{"interface":"wan0","family":2,"gateway":"x","targets":["dns:9.9.9.2:53"]}]`, strings.Repeat(" ", 2<<20) + "[]",
		`[{"interface":"wan0","family":3,"gateway":"","targets":["a"]}]`, `[{"interface":"wan0","family":2,"gateway":"","targets":[]}]`,
		`[{"interface":"` + long + `","family":2,"gateway":"","targets":["a"]}]`, `[{"interface":"wan0","family":2,"gateway":"","targets":["` + long + `"]}]`,
		`[{"interface":"wan0","family":2,"gateway":"","targets":["a"` + strings.Repeat(`,"a"`, 16) + `]}]`,
	} {
		file := failover.AnsweredFile{Directory: t.TempDir()}
		if err := os.WriteFile(filepath.Join(file.Directory, failover.AnsweredName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if all := file.Recall(); len(all) > 0 {
			t.Errorf("%.100s: %+v", text, all)
		}
	}
}

// A counted archive counts its writes.
type counted struct {
	failover.AnsweredFile
	mu     sync.Mutex
	writes int
}

func (c *counted) Keep(all []failover.Answered) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	return c.AnsweredFile.Keep(all)
}

func (c *counted) times() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// TestLeftInF: what a crash leaves in table F is a memory, too, whatever the file says.
func TestLeftInF(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3)
		h.dead[2] = true
		c := course()
		c.Used.Device, c.Moved, c.Why = 3, true, routing.CourseKept
		h.facts.Courses[0] = c
		defer h.start(func(o *failover.Options) { o.Memory = failover.File{Directory: t.TempDir()} })()
		pass(time.Minute)
		if f := h.controller.Failover(); !h.isDead(2) || h.isDead(3) || f.Unjudged[0] {
			t.Errorf("after a minute: %+v", f)
		}
		c.Why = routing.CourseDead
		h.change(func() { h.facts.Courses[0] = c })
		pass(time.Minute)
		h.mu.Lock()
		h.dead[2] = false
		h.mu.Unlock()
		pass(30 * time.Second)
		if h.isDead(2) {
			t.Errorf("still dead: %+v", h.controller.State())
		}
	})
}

// TestPolicy: what is configured reaches the planner.
func TestPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, 2, 3, 4)
		h.facts.Uplinks[0].Weight, h.facts.Uplinks[1].Weight = 3, 1
		h.facts.Uplinks[2].Place, h.facts.Uplinks[1].Place, h.facts.Uplinks[2].Metered = 0, 1, true
		cfg := config.Default()
		cfg.Failover.HostRoutes, cfg.Failover.Forwarded = true, config.ForwardedAll
		defer h.start(func(o *failover.Options) { o.Config = cfg })()
		pass(time.Minute)
		f := h.controller.Failover()
		_, metered := f.Metered[4]
		if !f.Enabled || !slices.Equal(f.Prefer, []int{4, 3}) || f.Shares[2] != 3 || f.Shares[3] != 1 || len(f.Shares) != 2 || !metered || len(f.Metered) != 1 ||
			!f.HostRoutes || f.Forwarded != routing.ForwardedAll {
			t.Errorf("%+v", f)
		}
		if n := h.asked(4); n > 12 {
			t.Errorf("%d probes of a metered link in the first minute", n)
		}
	})
}

func TestTargets(t *testing.T) {
	t.Parallel()
	own, other := uplink(2), uplink(3)
	router := own.Exit.Route.Gateway
	all := []failover.Uplink{own, other}
	for name, c := range map[string]struct {
		change func(*config.Failover, *failover.Uplink)
		want   []health.Target
	}{
		"its server, and the other's": {func(*config.Failover, *failover.Uplink) {}, []health.Target{{Name: "dns:9.9.9.2:53"}, {Name: "dns:9.9.9.3:53"}}},
		"two of its own": {
			func(_ *config.Failover, u *failover.Uplink) {
				u.Servers = append(u.Servers, netip.MustParseAddr("9.9.9.9"))
			},
			[]health.Target{{Name: "dns:9.9.9.2:53"}, {Name: "dns:9.9.9.9:53"}},
		},
		"a router last": {
			func(_ *config.Failover, u *failover.Uplink) { u.Servers = []netip.Addr{router, servers[2]} },
			[]health.Target{{Name: "dns:9.9.9.2:53"}, {Name: "dns:" + router.String() + ":53", OnLink: true}, {Name: "dns:9.9.9.3:53"}},
		},
		"carrier": {func(f *config.Failover, _ *failover.Uplink) { f.Probe = config.ProbeCarrier }, nil},
		"ICMP": {
			func(f *config.Failover, _ *failover.Uplink) { f.Probe = config.ProbeICMP },
			[]health.Target{{Name: "icmp:9.9.9.2"}, {Name: "icmp:9.9.9.3"}},
		},
		"configured": {
			func(f *config.Failover, _ *failover.Uplink) {
				f.Targets = []config.Target{
					{Probe: config.ProbeTCP, Address: netip.MustParseAddrPort("1.1.1.1:443")}, {Probe: config.ProbeDNS, Address: netip.MustParseAddrPort("[2001:db8::1]:53")},
				}
			},
			[]health.Target{{Name: "tcp:1.1.1.1:443"}},
		},
	} {
		cfg, u := config.Default().Failover, own
		u.Servers = slices.Clone(u.Servers)
		c.change(&cfg, &u)
		if got := failover.TargetsOf(cfg, &u, all); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestSleeps: where there is nothing to do, no time passes awake. A controller that wakes again at
// the moment at which it went to sleep never lets this minute pass.
func TestSleeps(t *testing.T) {
	for name, change := range map[string]func(*host, *failover.Options){
		"off":               func(_ *host, o *failover.Options) { o.Config.Failover.Enabled = false },
		"without all facts": func(h *host, _ *failover.Options) { h.facts.Ready = false },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, 2, 3)
				stop := h.start(func(o *failover.Options) { change(h, o) })
				defer stop()
				pass(time.Minute)
				if h.isDead(2) || h.isDead(3) {
					t.Error("a link is dead")
				}
			})
		})
	}
}
