package unprivileged_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
	"multihomed/routing/reconcile"
)

// A judge says which uplinks are dead.
type judge struct {
	changed chan struct{}
	facts   routing.Failover
}

func (j *judge) Changed() <-chan struct{}   { return j.changed }
func (j *judge) Failover() routing.Failover { return j.facts }

// judges is a host on which failover is on, and nobody is dead.
func judges(h *host) { h.judge = &judge{facts: routing.Failover{Enabled: true}} }

// dead makes uplinks dead, and all others alive.
func (h *host) dead(uplinks ...int) {
	h.judge.facts.Dead = routing.ByFamily[map[int]struct{}]{}
	m := map[int]struct{}{}
	for _, n := range uplinks {
		m[uplink(n).Index] = struct{}{}
	}
	h.judge.facts.Dead.Set(routing.IPv4, m)
	h.told()
}

// told wakes the loop by the channel of the judge alone.
func (h *host) told() {
	h.judge.changed <- struct{}{}
	synctest.Wait()
}

func (h *host) unboundBy(want string) {
	h.Helper()
	if got := by(h.kernel, netip.Addr{}); got != want {
		h.Errorf("unbound packets leave by %q, not by %q; ours:\n%s", got, want, h.kernel.Text())
	}
}

// failoverTable is table F.
func (h *host) failoverTable() []string {
	var out []string
	for _, r := range h.kernel.AllRoutes(routing.IPv4, policy.Tables.Last) {
		out = append(out, r.String())
	}
	return out
}

// unmoved wants main and the rules of others to stay as they are until restore is called.
func (h *host) unmoved() (check func()) {
	before := h.kernel.ForeignText()
	return func() {
		h.Helper()
		if now := h.kernel.ForeignText(); now != before {
			h.Errorf("what others have was:\n%s\nand is now:\n%s", before, now)
		}
	}
}

// TestUnboundFollowsWhoLives: unbound traffic leaves a dead uplink for one that lives, and
// comes back; main stays as it is, and bound traffic keeps its link.
func TestUnboundFollowsWhoLives(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 3, judges, func(h *host) {
		check := h.unmoved()
		h.unboundBy(name(0))
		h.dead(0)
		h.unboundBy(name(1))
		h.dead(0, 1)
		h.unboundBy(name(2))
		h.dead(0, 1, 2)
		h.unboundBy(name(0))
		h.dead(0, 2)
		h.unboundBy(name(1))
		for n := range 3 {
			h.leavesBy(source(n), name(n))
		}
		h.dead()
		h.unboundBy(name(0))
		if left := h.failoverTable(); len(left) > 0 {
			h.Errorf("F holds %v", left)
		}
		check()
		h.wantProblems()
		h.quiet(time.Hour)
	})
}

// TestCarrierIsEnough: an uplink that loses its carrier is left at once, with nobody to judge
// it; the last one that has a carrier is not, and where none has one nothing moves.
func TestCarrierIsEnough(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		check := h.unmoved()
		h.kernel.SetRunning(uplink(0).Index, false)
		h.settle()
		h.unboundBy(name(1))
		h.kernel.SetRunning(uplink(1).Index, false)
		h.settle()
		h.unboundBy(name(0))
		h.kernel.SetRunning(uplink(1).Index, true)
		h.settle()
		h.unboundBy(name(1))
		h.kernel.SetRunning(uplink(0).Index, true)
		h.settle()
		h.unboundBy(name(0))
		check()
	})
}

// TestMovedMain: main's metrics are renumbered, and a VPN comes and goes. F follows main, and
// the VPN wins.
func TestMovedMain(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		vpn := routing.Route{
			Family: routing.IPv4, Table: routing.TableMain, Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Type: routing.RouteUnicast,
			Scope: routing.ScopeLink, Device: 40, Metric: 50, Protocol: kerneltest.ProtocolStatic,
		}
		h.install(routing.Link{Name: "tun0", Index: 40, Up: true, Routes: []routing.Route{}})
		h.settle()
		if err := h.kernel.AddForeignRoute(vpn); err != nil {
			h.Fatal(err)
		}
		h.settle()
		h.unboundBy("tun0")
		if left := h.failoverTable(); len(left) > 0 {
			h.Errorf("F holds %v while a VPN is main's best", left)
		}
		h.kernel.DropRoute(vpn)
		h.settle()
		h.unboundBy(name(1))
		// NetworkManager makes the other one main's best.
		better := uplink(1)
		better.Routes[len(better.Routes)-1].Metric = 20
		h.install(better)
		h.settle()
		h.unboundBy(name(1))
		if left := h.failoverTable(); len(left) > 0 {
			h.Errorf("F holds %v while main's best lives", left)
		}
	})
}

// TestCrashWhileMoved: the next process keeps what stands until it has judged, and changes it
// in the meantime only if its uplink stops running. One that does not judge keeps it too, and
// never fills F. A clean stop empties it.
func TestCrashWhileMoved(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 3, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		again := func(facts routing.Failover) {
			h.kill()
			h.judge.facts = facts
			h.writer.wrote = nil
			h.start(func() {
				for n := range 3 {
					h.owners.claim(name(n), reconcile.Link)
				}
				h.owners.complete(true)
			})
			h.settle()
		}
		unjudged := routing.Failover{Enabled: true, Unjudged: routing.ByFamily[bool]{true, true}}
		again(unjudged)
		h.unboundBy(name(1))
		if len(h.writer.wrote) > 0 {
			h.Errorf("written: %v", h.writer.wrote)
		}
		again(routing.Failover{Enabled: true, Frozen: true})
		h.unboundBy(name(1))
		if len(h.writer.wrote) > 0 {
			h.Errorf("written by a process that does not judge: %v", h.writer.wrote)
		}
		h.kernel.SetRunning(uplink(1).Index, false)
		h.settle()
		h.unboundBy(name(0))
		h.kernel.SetRunning(uplink(1).Index, true)
		h.kernel.SetRunning(uplink(0).Index, false)
		h.settle()
		if left := h.failoverTable(); len(left) > 0 {
			h.Errorf("a process that does not judge put %v into F", left)
		}
		h.kernel.SetRunning(uplink(0).Index, true)
		h.settle()

		again(unjudged)
		h.judge.facts.Unjudged = routing.ByFamily[bool]{}
		h.dead(0)
		h.unboundBy(name(1))
		again(unjudged)
		h.judge.facts.Unjudged = routing.ByFamily[bool]{}
		h.dead()
		h.unboundBy(name(0))
		h.dead(0)
		h.unboundBy(name(1))

		// A clean stop.
		check := h.unmoved()
		h.kill()
		if err := h.loop.EmptyFailover(context.Background()); err != nil {
			h.Error(err)
		}
		h.unboundBy(name(0))
		for n := range 3 {
			h.leavesBy(source(n), name(n))
		}
		check()
		h.start(func() {})
	})
}

// TestReloadWhileMoved: a reload names a move only if something moved, one that switches failover
// off the way back.
func TestReloadWhileMoved(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 3, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		again := func() string {
			h.kill()
			h.courses = h.loop.Courses()
			h.log.Reset()
			h.start(func() {})
			// Owners tell of links step by step.
			for n := range 3 {
				h.owners.claim(name(n), reconcile.Link)
				h.settle()
			}
			h.owners.complete(true)
			h.settle()
			return h.log.String()
		}
		if log := again(); strings.Contains(log, "unbound") {
			h.Errorf("nothing moved, and the log says:\n%s", log)
		}
		h.unboundBy(name(1))
		h.judge.facts.Enabled = false
		if log := again(); strings.Count(log, "unbound IPv4 traffic follows main again, by "+name(0)) != 1 || strings.Count(log, "unbound") != 1 || !strings.Contains(log, "failover is off") {
			h.Errorf("switched off, and the log says:\n%s", log)
		}
		h.judge.facts.Enabled = true
		if log := again(); strings.Count(log, "unbound IPv4 traffic leaves by "+name(1)) != 1 || strings.Count(log, "unbound") != 1 {
			h.Errorf("on again, and the log says:\n%s", log)
		}
	})
}

// TestActivatedWhileDead: while a dead uplink is activated anew, main has no default through it,
// and another one afterwards. The traffic stays where it is, and the log is silent until it moves.
func TestActivatedWhileDead(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 3, judges, func(h *host) {
		said := func(want ...string) {
			h.Helper()
			var got []string
			for line := range strings.Lines(h.log.String()) {
				if _, text, is := strings.Cut(line, "unbound IPv4 traffic "); is {
					text, _, _ = strings.Cut(text, `"`)
					got = append(got, text)
				}
			}
			h.log.Reset()
			if !slices.Equal(got, want) {
				h.Errorf("the log says %q, want %q", got, want)
			}
		}
		set := func(n int, metric uint32) {
			l := uplink(n)
			last := len(l.Routes) - 1
			if l.Routes[last].Metric = metric; metric == 0 {
				l.Routes = l.Routes[:last]
			}
			h.install(l)
			h.settle()
		}
		h.dead(0)
		said("leaves by " + name(1) + ", main says " + name(0))
		for range 3 {
			set(0, 0)
			h.unboundBy(name(1))
			set(0, 1)
			h.unboundBy(name(1))
		}
		said()
		// Its owner names it a little after main has its default: for so long it is no uplink.
		anew := func(unnamed time.Duration) {
			h.owners.claim(name(0), reconcile.NoLink)
			h.settle()
			h.unboundBy(name(0))
			h.pass(unnamed)
			h.owners.claim(name(0), reconcile.Link)
			h.settle()
			h.unboundBy(name(1))
		}
		for range 3 {
			anew(200 * time.Millisecond)
		}
		said()
		anew(1500 * time.Millisecond)
		said("follows main again, by "+name(0), "leaves by "+name(1)+", main says "+name(0))
		// What moves is said, whatever main has by then.
		set(0, 0)
		h.dead()
		set(0, 1)
		h.unboundBy(name(0))
		said("follows main again, by " + name(0))
		h.dead(0)
		set(0, 0)
		h.dead(0, 1, 2)
		h.unboundBy(name(1))
		said("leaves by "+name(1)+", main says "+name(0), "stays with "+name(1)+": no uplink works")
	})
}

// TestSwitchedOff: without failover nothing of it stands.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		h.judge.facts.Enabled = false
		h.kernel.Step = func(op routing.Op) {
			if got := by(h.kernel, netip.Addr{}); got == "" {
				h.Errorf("after %s unbound packets do not leave", op)
			}
		}
		h.told()
		h.kernel.Step = nil
		h.unboundBy(name(0))
		text := h.kernel.Text()
		if strings.Contains(text, policy.Tables.Last.String()) || len(h.kernel.RuleOrder(routing.IPv4, routing.PriorityAgain)) > 0 {
			h.Errorf("something is left:\n%s", text)
		}
	})
}

// TestSomebodyUsesTheFailoverTable: then there is no failover, and a problem says so.
func TestSomebodyUsesTheFailoverTable(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		h.dead(0)
		h.unboundBy(name(1))
		his := routing.Route{
			Family: routing.IPv4, Table: policy.Tables.Last, Destination: netip.MustParsePrefix("203.0.113.0/24"), Type: routing.RouteUnicast,
			Scope: routing.ScopeLink, Device: uplink(1).Index, Protocol: kerneltest.ProtocolStatic,
		}
		if err := h.kernel.AddForeignRoute(his); err != nil {
			h.Fatal(err)
		}
		h.settle()
		h.unboundBy(name(0))
		h.wantProblems(routing.FailoverTableInUse)
		if got := h.failoverTable(); len(got) != 1 {
			h.Errorf("F holds %v", got)
		}
		h.kernel.DropRoute(his)
		h.settle()
		h.unboundBy(name(1))
		h.wantProblems()
	})
}

// TestLeaseOfTheFailoverTableMoves: a version without failover leased the last table of the
// range. The new table and its rules stand before the old ones go.
func TestLeaseOfTheFailoverTableMoves(t *testing.T) {
	t.Parallel()
	leased := func(h *host) {
		judges(h)
		l := uplink(1)
		h.leases.held[routing.Keys(l)[0]] = policy.Tables.Last
	}
	inBubbleWith(t, 2, leased, func(h *host) {
		for _, table := range h.leases.held {
			if table == policy.Tables.Last {
				h.Error("the lease did not move")
			}
		}
		h.leavesBy(source(1), name(1))
		if got := h.failoverTable(); len(got) > 0 {
			h.Errorf("F holds %v", got)
		}
		h.dead(0)
		h.unboundBy(name(1))
		// Nobody gets it later.
		if _, used := h.loop.TableInUse(policy.Tables.Last); !used {
			h.Error("the table of failover counts as free")
		}
	})
}

// TestHostsOfASharedNetwork: two uplinks are in one network, and the one that main leads by
// dies. Hosts of the network are reached by the other one.
func TestHostsOfASharedNetwork(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 0, judges, func(h *host) {
		for n := range 2 {
			l := uplink(n)
			own := netip.AddrFrom4([4]byte{100, 64, 0, byte(5 + n)})
			l.Addresses = []routing.Address{{Prefix: netip.PrefixFrom(own, 24)}}
			l.Routes[0].Destination, l.Routes[0].PreferredSource = netip.MustParsePrefix("100.64.0.0/24"), own
			l.Routes[0].Metric = uint32(100 + n)
			h.install(byGateway(l, netip.MustParseAddr("100.64.0.1")))
			h.owners.claim(name(n), reconcile.Link)
		}
		h.settle()
		neighbour := func(want int) {
			h.Helper()
			if v := h.kernel.Lookup(lookup.Flow{To: netip.MustParseAddr("100.64.0.77")}); !v.Through(want) {
				h.Errorf("to a neighbour: %v by %s\n%s", v.Legs, v.Rule, h.kernel.Text())
			}
		}
		neighbour(2)
		h.kernel.SetRunning(2, false)
		h.settle()
		neighbour(3)
		h.unboundBy(name(1))
		h.kernel.SetRunning(2, true)
		h.settle()
		neighbour(2)
		h.unboundBy(name(0))
		if left := h.kernel.RuleOrder(routing.IPv4, routing.PriorityTwin); len(left) > 0 {
			h.Errorf("left: %v", left)
		}
	})
}

// TestCoursesInSnapshots: a snapshot says which way unbound traffic goes, and plans F.
func TestCoursesInSnapshots(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, judges, func(h *host) {
		look := func() *reconcile.Snapshot {
			s, err := h.loop.Snapshot(h.Context(), nil)
			if err != nil {
				h.Fatal(err)
			}
			return s
		}
		if c := look().Courses[0]; c.Why != routing.CourseAlive || c.Moved || c.Used.Device != uplink(0).Index {
			h.Errorf("course %+v", c)
		}
		h.dead(0)
		s := look()
		if c := s.Courses[0]; c.Why != routing.CourseDead || !c.Moved || c.Main.Device != uplink(0).Index || c.Used.Device != uplink(1).Index {
			h.Errorf("course %+v", c)
		}
		planned := slices.Collect(s.Routes())
		if !slices.ContainsFunc(planned, func(r routing.PlannedRoute) bool { return r.Route.Table == policy.Tables.Last }) {
			h.Errorf("F is not in %v", planned)
		}
		if !slices.ContainsFunc(s.Shared(), func(r routing.PlannedRule) bool { return r.Reason.Decision == routing.FollowLiving }) {
			h.Errorf("the pair is not in %v", s.Shared())
		}
		if len(s.Missing) > 0 {
			h.Errorf("missing: %v", s.Missing)
		}
		// Nothing is to be written for these.
		h.dead(1)
		h.writer.wrote = nil
		h.dead()
		if c := look().Courses[0]; c.Why != routing.CourseAlive {
			h.Errorf("course %+v", c)
		}
		h.judge.facts.Dead = routing.ByFamily[map[int]struct{}]{}
		h.kernel.SetRunning(uplink(0).Index, false)
		h.kernel.SetRunning(uplink(1).Index, false)
		h.settle()
		if c := look().Courses[0]; c.Why != routing.CourseNoneLives {
			h.Errorf("course %+v", c)
		}
		h.kernel.SetRunning(uplink(0).Index, true)
		h.settle()
		h.kernel.SetRunning(uplink(1).Index, true)
		h.settle()
		if len(h.writer.wrote) > 0 {
			h.Errorf("written: %v", h.writer.wrote)
		}
		h.dead(0, 1)
		if c := look().Courses[0]; c.Why != routing.CourseNoneLives {
			h.Errorf("course %+v", c)
		}
	})
}
