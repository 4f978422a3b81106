package health_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"multihomed/internal/health"
)

// kills lets a link work, dies at some moment, and returns the times to the judgement.
func kills(t *testing.T, n int, prepare func(w *wire)) []time.Duration {
	t.Helper()
	var all []time.Duration
	for i := range n {
		w := newWire(uint64(i), "one", "two")
		prepare(w)
		w.run(time.Minute + time.Duration(i*37%1000)*time.Millisecond)
		if len(w.deaths) > 0 {
			// Half of all packets in one direction or the other are more than can be told from
			// death in the first seconds.
			if w.loss < 0.3 || len(w.deaths) > 1 {
				t.Errorf("run %d: dead before it was killed", i)
			}
			continue
		}
		w.dead = true
		killed := w.now
		w.run(20 * time.Second)
		if len(w.deaths) == 0 {
			t.Errorf("run %d: %+v", i, w.machine.Report(health.Clock{Moment: w.now}))
			continue
		}
		all = append(all, w.deaths[0]-killed)
	}
	slices.Sort(all)
	return all
}

// TestDetection: a link that dies without a word is judged dead in time.
func TestDetection(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rtt          time.Duration
		loss         float64
		tcp          bool
		median, most time.Duration
	}{
		"clean":         {0, 0, false, 800 * time.Millisecond, time.Second},
		"20 ms":         {20 * time.Millisecond, 0, false, 800 * time.Millisecond, time.Second},
		"TCP":           {0, 0, true, 800 * time.Millisecond, time.Second},
		"TCP, 50 ms":    {50 * time.Millisecond, 0, true, 800 * time.Millisecond, time.Second},
		"10 %":          {0, 0.1, false, 800 * time.Millisecond, time.Second},
		"10 %, TCP":     {0, 0.1, true, 800 * time.Millisecond, time.Second},
		"300 ms":        {300 * time.Millisecond, 0, false, 800 * time.Millisecond, time.Second},
		"300 ms, 10 %":  {300 * time.Millisecond, 0.1, false, time.Second, 1100 * time.Millisecond},
		"30 %":          {0, 0.3, false, 1600 * time.Millisecond, 3 * time.Second},
		"300 ms, 30 %":  {300 * time.Millisecond, 0.3, false, 2500 * time.Millisecond, 4 * time.Second},
		"300 ms, TCP":   {300 * time.Millisecond, 0, true, time.Second, 1100 * time.Millisecond},
		"50 ms and 1 %": {50 * time.Millisecond, 0.01, false, 800 * time.Millisecond, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := kills(t, 60, func(w *wire) {
				w.rtt, w.loss = c.rtt, c.loss
				if c.tcp {
					w.tcp()
				}
			})
			if len(all) == 0 {
				return
			}
			median, most := all[len(all)/2], all[len(all)-1]
			t.Logf("median %v, longest %v", median, most)
			if median > c.median || most > c.most {
				t.Errorf("median %v, longest %v of %v", median, most, all)
			}
		})
	}
}

// TestNoFalseDeath: what is lost or late kills nobody in ten minutes.
func TestNoFalseDeath(t *testing.T) {
	t.Parallel()
	// bloat is a queue of two seconds that uploads fill and leave.
	bloat := func(w *wire) {
		began := w.now
		w.queue = func(at health.Moment) time.Duration {
			phase := (at - began) % (30 * time.Second)
			switch {
			case phase < 5*time.Second:
				return 0
			case phase < 8*time.Second:
				return (phase - 5*time.Second) * 2 / 3
			case phase < 25*time.Second:
				return 2 * time.Second
			default:
				return max(0, 2*time.Second-(phase-25*time.Second))
			}
		}
	}
	for name, prepare := range map[string]func(w *wire){
		"clean":             func(*wire) {},
		"10 %":              func(w *wire) { w.loss = 0.1 },
		"10 %, 300 ms":      func(w *wire) { w.loss, w.rtt = 0.1, 300*time.Millisecond },
		"10 %, TCP":         func(w *wire) { w.loss = 0.1; w.tcp() },
		"10 %, 300 ms, TCP": func(w *wire) { w.loss, w.rtt = 0.1, 300*time.Millisecond; w.tcp() },
		"30 %":              func(w *wire) { w.loss = 0.3 },
		"30 %, 300 ms":      func(w *wire) { w.loss, w.rtt = 0.3, 300*time.Millisecond },
		"a full queue":      func(w *wire) { bloat(w) },
		"a full queue, TCP": func(w *wire) { bloat(w); w.tcp() },
		"a DNS server dies": func(w *wire) { w.after(time.Minute, func() { w.alone["one"] = true }) },
		"it comes back": func(w *wire) {
			w.after(time.Minute, func() { w.alone["one"] = true })
			w.after(3*time.Minute, func() { w.alone["one"] = false })
		},
		"both die beside TCP": func(w *wire) { w.tcp(); w.after(time.Minute, func() { w.alone["one"], w.alone["two"] = true, true }) },
		"stops of the prober": func(w *wire) {
			w.every(time.Minute, func() {
				w.stopped = true
				w.after(30*time.Second, w.resume)
			})
		},
		"suspended": func(w *wire) {
			w.every(time.Minute, func() {
				// Everything that is on its way is lost.
				w.dead = true
				w.after(time.Millisecond, func() { w.dead = false; w.machine.Gap(w.now) })
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(10) {
				w := newWire(seed+100, "one", "two")
				prepare(w)
				w.run(10 * time.Minute)
				if r := w.machine.Report(health.Clock{Moment: w.now}); len(w.deaths) > 0 {
					t.Errorf("seed %d: %d deaths, the first after %v: %+v", seed, len(w.deaths), w.deaths[0]-time.Hour, r)
				}
			}
		})
	}
}

// TestOneTarget: with a single server of names, losses kill nobody either, and its death beside
// connections that go on is its own.
func TestOneTarget(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		w := newWire(seed, "one")
		w.loss = 0.1
		w.run(10 * time.Minute)
		if len(w.deaths) > 0 {
			t.Errorf("seed %d: dead by losses after %v", seed, w.deaths[0]-time.Hour)
		}
		w = newWire(seed, "one")
		w.tcp()
		w.run(time.Minute)
		w.alone["one"] = true
		w.run(10 * time.Minute)
		if r := w.machine.Report(health.Clock{Moment: w.now}); len(w.deaths) > 0 || !r.Targets[0].Silent {
			t.Errorf("seed %d: %d deaths: %+v", seed, len(w.deaths), r)
		}
	}
}

// TestRecovery: each death within ten minutes doubles the time that a link must answer.
func TestRecovery(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one", "two")
	w.run(time.Minute)
	for i, seconds := range []int{10, 20, 40, 80, 160, 300} {
		want := time.Duration(seconds) * time.Second
		w.dead = true
		w.run(5 * time.Second)
		w.dead = false
		healed := w.now
		for w.isDead && w.now-healed < time.Hour {
			w.run(100 * time.Millisecond)
		}
		took := w.now - healed
		if len(w.deaths) != i+1 || took < want || took > want+6*time.Second {
			t.Fatalf("death %d: alive again after %v, want %v: %+v", len(w.deaths), took, want, w.machine.Report(health.Clock{Moment: w.now}))
		}
		w.run(time.Second)
	}
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.DeathsToday != 6 {
		t.Errorf("%d deaths", r.DeathsToday)
	}
	w.run(11 * time.Minute)
	w.dead = true
	w.run(5 * time.Second)
	w.dead = false
	healed := w.now
	for w.isDead && w.now-healed < time.Hour {
		w.run(100 * time.Millisecond)
	}
	if took := w.now - healed; took > 12*time.Second {
		t.Errorf("after a quiet time: alive again after %v", took)
	}
}

// TestRecoveryWithLosses: a link that was lossy recovers with its losses, and one that is
// answered by chance does not.
func TestRecoveryWithLosses(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		w := newWire(seed, "one")
		w.loss = 0.1
		w.run(5 * time.Minute)
		w.dead = true
		w.run(20 * time.Second)
		w.dead = false
		w.run(2 * time.Minute)
		if w.isDead {
			t.Errorf("seed %d: still dead: %+v", seed, w.machine.Report(health.Clock{Moment: w.now}))
		}
		w = newWire(seed, "one")
		w.run(5 * time.Minute)
		w.dead = true
		w.run(20 * time.Second)
		w.dead, w.loss = false, 0.5
		w.run(2 * time.Minute)
		if !w.isDead {
			t.Errorf("seed %d: alive with three of four lost", seed)
		}
	}
}

// TestCarrier: without a carrier a link is dead at once, and afterwards it must answer.
func TestCarrier(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.run(time.Minute)
	w.machine.SetCarrier(w.now, false)
	w.step()
	r := w.machine.Report(health.Clock{Moment: w.now})
	if !w.isDead || r.Evidence.Kind != health.ByCarrier || r.Why != "no carrier" || r.Interval != 0 {
		t.Errorf("without carrier: %+v", r)
	}
	before := w.probes
	w.run(time.Minute)
	if w.probes != before {
		t.Errorf("%d probes without carrier", w.probes-before)
	}
	w.machine.SetCarrier(w.now, true)
	w.run(9 * time.Second)
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.State != health.Recovering {
		t.Errorf("with carrier: %+v", r)
	}
	w.run(4 * time.Second)
	if w.isDead {
		t.Errorf("still dead: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
}

// TestUnprobed: what never answered judges nobody, whatever happens.
func TestUnprobed(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.alone["one"] = true
	w.run(time.Minute)
	r := w.machine.Report(health.Clock{Moment: w.now})
	if r.State != health.Unprobed || r.Why != "no target has ever answered" || w.isDead {
		t.Errorf("%+v", r)
	}
	if before := w.probes; true {
		w.run(10 * time.Minute)
		if n := w.probes - before; n < 10 || n > 30 {
			t.Errorf("%d probes in ten minutes", n)
		}
	}
	// A link without a target recovers by its carrier alone.
	w.machine.SetCarrier(w.now, false)
	w.step()
	w.machine.SetCarrier(w.now, true)
	if w.run(5 * time.Second); !w.isDead {
		t.Error("alive at once")
	}
	if w.run(20 * time.Second); w.isDead {
		t.Errorf("still dead: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
	w.alone["one"] = false
	w.run(time.Minute)
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.State != health.Up {
		t.Errorf("it answers now: %+v", r)
	}
}

// TestWithoutProber: nobody is judged while no probe can be sent, and a judgement that nobody
// can check ends.
func TestWithoutProber(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.run(time.Minute)
	w.dead = true
	w.run(300 * time.Millisecond)
	w.machine.SetAsks(w.now, false)
	w.run(10 * time.Minute)
	if len(w.deaths) > 0 {
		t.Errorf("dead without a prober: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
	w.machine.SetAsks(w.now, true)
	w.run(5 * time.Second)
	if !w.isDead {
		t.Fatalf("alive with a prober: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
	w.machine.SetAsks(w.now, false)
	if w.run(4 * time.Minute); !w.isDead {
		t.Error("forgotten too soon")
	}
	if w.run(2 * time.Minute); w.isDead {
		t.Errorf("dead for good: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
	// The carrier counts without one.
	w.machine.SetCarrier(w.now, false)
	if w.step(); !w.isDead {
		t.Error("alive without carrier")
	}
	w.machine.SetCarrier(w.now, true)
	if w.run(25 * time.Second); w.isDead {
		t.Errorf("dead with carrier: %+v", w.machine.Report(health.Clock{Moment: w.now}))
	}
}

// TestTest: an administrator's test ends by itself and counts as no death.
func TestTest(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.run(time.Minute)
	w.machine.Test(w.now, w.now+30*time.Second)
	w.step()
	r := w.machine.Report(health.Clock{Moment: w.now})
	if !w.isDead || r.Evidence.Kind != health.ByTest || r.State != health.Down {
		t.Errorf("%+v", r)
	}
	w.run(29 * time.Second)
	if !w.isDead {
		t.Error("it ended early")
	}
	w.run(2 * time.Second)
	if r := w.machine.Report(health.Clock{Moment: w.now}); w.isDead || r.DeathsToday != 0 || r.State != health.Up {
		t.Errorf("%+v", r)
	}
}

// TestReset: a reset forgets the deaths.
func TestReset(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.run(time.Minute)
	for range 3 {
		w.dead = true
		w.run(5 * time.Second)
		w.dead = false
		w.run(2 * time.Minute)
	}
	w.dead = true
	w.run(5 * time.Second)
	w.dead = false
	w.machine.Reset(w.now)
	w.step()
	if r := w.machine.Report(health.Clock{Moment: w.now}); w.isDead || r.DeathsToday != 0 || r.State != health.Unknown {
		t.Errorf("%+v", r)
	}
	w.run(time.Second)
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.State != health.Up {
		t.Errorf("%+v", r)
	}
}

// TestPace: probes are rare where they should be, and few where TCP proves.
func TestPace(t *testing.T) {
	t.Parallel()
	count := func(prepare func(w *wire)) int {
		w := newWire(1, "one", "two")
		prepare(w)
		w.run(time.Minute)
		before := w.probes
		w.run(10 * time.Minute)
		return (w.probes - before) / 10
	}
	for name, c := range map[string]struct {
		prepare     func(w *wire)
		least, most int
	}{
		"traffic":       {func(*wire) {}, 235, 245},
		"standby":       {func(w *wire) { w.machine.SetPace(w.now, 5*time.Second) }, 11, 13},
		"metered":       {func(w *wire) { w.machine.SetCostly(true); w.machine.SetPace(w.now, time.Minute) }, 1, 1},
		"TCP":           {func(w *wire) { w.tcp() }, 0, 10},
		"none":          {func(w *wire) { w.machine.SetPace(w.now, 0) }, 0, 0},
		"a dead target": {func(w *wire) { w.after(30*time.Second, func() { w.alone["one"] = true }) }, 235, 260},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if n := count(c.prepare); n < c.least || n > c.most {
				t.Errorf("%d probes a minute", n)
			}
		})
	}
}

// TestHurry: the first packet of an idle link starts probes at once.
// TestMeasuredLoss: what is reported was measured, and not what is assumed at first.
func TestMeasuredLoss(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0, 0.2} {
		w := newWire(7, "dns")
		w.machine.SetPace(w.now, 250*time.Millisecond)
		w.loss = loss
		w.run(3 * time.Second)
		if r := w.machine.Report(health.Clock{Moment: w.now}); loss == 0 && r.Loss != 0 {
			t.Errorf("soon after the start, nothing was lost: %v", r.Loss)
		}
		w.run(10 * time.Minute)
		want := 1 - (1-loss)*(1-loss) // Each way.
		if r := w.machine.Report(health.Clock{Moment: w.now}); math.Abs(r.Loss-want) > 0.2 || (loss == 0) != (r.Loss == 0) {
			t.Errorf("the loss of %v each way is reported as %v", loss, r.Loss)
		}
	}
}

func TestHurry(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one")
	w.machine.SetPace(w.now, 5*time.Second)
	w.run(time.Minute + 1300*time.Millisecond)
	w.dead = true
	w.run(100 * time.Millisecond)
	w.machine.SetPace(w.now, 250*time.Millisecond)
	w.machine.Hurry(w.now)
	began := w.now
	w.run(3 * time.Second)
	if len(w.deaths) != 1 || w.deaths[0]-began > 700*time.Millisecond {
		t.Errorf("dead at %v after the first packet", w.deaths)
	}
}

// TestMemory: what a process judged, the next one goes on with.
func TestMemory(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one", "two")
	w.run(time.Minute)
	w.dead = true
	w.run(5 * time.Second)
	kept := w.machine.Memory()
	next := newWire(2, "one", "two")
	next.now = w.now
	next.machine = health.New(ordinary, w.now)
	next.machine.Restore(next.now, kept)
	next.machine.SetTargets(next.now, []health.Target{{Name: "one"}, {Name: "two"}})
	next.machine.SetPace(next.now, 250*time.Millisecond)
	next.dead = true
	next.run(time.Minute)
	if !next.isDead {
		t.Error("alive in the next process")
	}
	if r := next.machine.Report(health.Clock{Moment: next.now}); r.DeathsToday != 1 {
		t.Errorf("%+v", r)
	}
	next.dead = false
	next.run(15 * time.Second)
	if next.isDead {
		t.Errorf("%+v", next.machine.Report(health.Clock{Moment: next.now}))
	}
}

// TestDiedUnseen: a link that dies while no process is there to see it is judged by what the one
// before knew; one of which nobody knows that it ever answered is not.
func TestDiedUnseen(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		w := newWire(1, "one", "two")
		w.run(time.Minute)
		next := newWire(2)
		next.now = w.now
		next.machine = health.New(ordinary, w.now)
		if known {
			next.machine.Restore(next.now, w.machine.Memory())
		}
		next.machine.SetTargets(next.now, []health.Target{{Name: "one"}, {Name: "two"}})
		next.machine.SetPace(next.now, 5*time.Second)
		next.dead = true
		next.run(3 * time.Second)
		if next.isDead != known {
			t.Errorf("known %t: %+v", known, next.machine.Report(health.Clock{Moment: next.now}))
		}
		next.dead = false
		next.run(20 * time.Second)
		if next.isDead || next.machine.State(next.now) != health.Up {
			t.Errorf("known %t, repaired: %+v", known, next.machine.Report(health.Clock{Moment: next.now}))
		}
	}
}

// TestLetGo: a judgement that nobody could check is made again when somebody asks.
func TestLetGo(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one", "two")
	w.run(time.Minute)
	w.dead = true
	w.run(time.Minute)
	w.machine.SetAsks(w.now, false)
	w.run(10 * time.Minute)
	if s := w.machine.State(w.now); s != health.Unprobed {
		t.Errorf("nobody asks for 10 minutes: %v", s)
	}
	w.machine.SetAsks(w.now, true)
	w.run(3 * time.Second)
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.State != health.Down {
		t.Errorf("asked again: %+v", r)
	}
}

// TestRemember: a link of which nobody knew that it ever answered is judged when that is known.
func TestRemember(t *testing.T) {
	t.Parallel()
	w := newWire(1, "one", "two")
	w.dead = true
	w.run(time.Minute)
	if s := w.machine.State(w.now); s != health.Unprobed {
		t.Errorf("nothing ever answered: %v", s)
	}
	w.machine.Remember([]string{"two", "three"})
	w.run(20 * time.Second)
	if r := w.machine.Report(health.Clock{Moment: w.now}); r.State != health.Down || r.Targets[0].Answered {
		t.Errorf("one of them had answered: %+v", r)
	}
	w.machine.Reset(w.now)
	w.run(20 * time.Second)
	if s := w.machine.State(w.now); s != health.Unprobed {
		t.Errorf("forgotten: %v", s)
	}
}

func ExampleState() {
	for _, s := range health.States() {
		fmt.Println(s, s.IsDead())
	}
	// Output:
	// unknown false
	// up false
	// suspect false
	// down true
	// recovering true
	// unprobed false
}

// TestSoonAfterStart: a few seconds suffice to learn that a link loses nothing, and losses are
// not taken for death before they are learned.
func TestSoonAfterStart(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		w := newWire(seed, "one", "two")
		w.run(5*time.Second + time.Duration(seed)*time.Millisecond)
		killed := w.now
		w.dead = true
		w.run(10 * time.Second)
		if len(w.deaths) != 1 || w.deaths[0]-killed > 800*time.Millisecond {
			t.Errorf("seed %d: killed at %v, dead at %v", seed, killed, w.deaths)
		}
		w = newWire(seed, "one", "two")
		w.alone["two"] = true
		w.run(5*time.Second + time.Duration(seed)*time.Millisecond)
		killed = w.now
		w.dead = true
		w.run(10 * time.Second)
		if len(w.deaths) != 1 || w.deaths[0]-killed > 900*time.Millisecond {
			t.Errorf("seed %d, beside a target that never answered: killed at %v, dead at %v", seed, killed, w.deaths)
		}
		for _, rtt := range []time.Duration{0, 300 * time.Millisecond} {
			w = newWire(seed, "one", "two")
			w.loss, w.rtt = 0.1, rtt
			if w.run(time.Minute); len(w.deaths) > 0 {
				t.Errorf("seed %d, %v: dead by losses after %v", seed, rtt, w.deaths[0]-time.Hour)
			}
		}
	}
}
