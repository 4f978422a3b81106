package health_test

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"multihomed/internal/health"
)

// A wire is a simulated link with a prober: nothing in it depends on a real clock.
type wire struct {
	machine *health.Machine
	random  *rand.Rand
	now     health.Moment
	events  events
	// rtt and loss each way; queue is how long what is sent now waits.
	rtt   time.Duration
	loss  float64
	queue func(at health.Moment) time.Duration
	// dead says from when on nothing gets through, alone which target does not answer.
	dead  bool
	alone map[string]bool
	// stopped says that the prober does not run; what arrives is reported when it does again.
	stopped bool
	held    []func()
	horizon health.Moment
	asked   bool
	probes  int
	// isDead is what the machine said last, deaths when it said so.
	isDead bool
	deaths []health.Moment
	rises  []health.Moment
	woken  health.Moment
}

type event struct {
	at health.Moment
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) } //nolint:forcetypeassert // ours
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// passing is how long a message between daemon and prober takes.
const passing = time.Millisecond

var ordinary = health.Config{Silence: 500 * time.Millisecond, Recover: 10 * time.Second}

func newWire(seed uint64, targets ...string) *wire {
	w := &wire{random: rand.New(rand.NewPCG(seed, 1)), now: time.Hour, alone: map[string]bool{}}
	w.machine = health.New(ordinary, w.now)
	var all []health.Target
	for _, t := range targets {
		all = append(all, health.Target{Name: t})
	}
	w.machine.SetTargets(w.now, all)
	w.machine.SetPace(w.now, 250*time.Millisecond)
	w.step()
	return w
}

func (w *wire) after(d time.Duration, do func()) {
	heap.Push(&w.events, event{w.now + d, do})
}

// every does something until the end of the simulation.
func (w *wire) every(d time.Duration, do func()) {
	w.after(d, func() {
		do()
		w.every(d, do)
	})
}

// run simulates for a time.
func (w *wire) run(d time.Duration) {
	end := w.now + d
	w.step()
	for len(w.events) > 0 && w.events[0].at <= end {
		e := heap.Pop(&w.events).(event) //nolint:forcetypeassert // ours
		w.now = e.at
		e.do()
		w.step()
	}
	w.now = end
	w.step()
}

// report delivers what the prober has to say, now or when it runs again.
func (w *wire) report(do func()) {
	if w.stopped {
		w.held = append(w.held, do)
		return
	}
	at := w.now
	w.after(passing, func() {
		w.horizon = max(w.horizon, at)
		do()
	})
}

func (w *wire) resume() {
	w.stopped = false
	held := w.held
	w.held = nil
	for _, do := range held {
		w.report(do)
	}
}

// passes reports whether a packet gets through one way.
func (w *wire) passes() bool { return !w.dead && w.random.Float64() >= w.loss }

func (w *wire) step() {
	s := w.machine.Step(w.now, w.horizon)
	for _, p := range s.Probes {
		w.probes++
		w.report(func() { w.send(p) })
	}
	if s.Ask && !w.asked {
		w.asked = true
		w.report(func() { w.report(func() { w.asked = false }) })
	}
	if s.Wake != w.woken {
		w.woken = s.Wake
		w.after(max(s.Wake-w.now, 0), func() {})
	}
	if dead := w.machine.Dead(w.now); dead != w.isDead {
		w.isDead = dead
		if dead {
			w.deaths = append(w.deaths, w.now)
		} else {
			w.rises = append(w.rises, w.now)
		}
	}
}

// send is what the prober does.
func (w *wire) send(p health.Order) {
	at := w.now
	w.report(func() { w.machine.Sent(p.ID, at) })
	delay := w.rtt + time.Millisecond
	if w.queue != nil {
		delay += w.queue(at)
	}
	if !w.passes() || w.alone[p.Target] {
		return
	}
	w.after(delay, func() {
		if !w.passes() {
			return
		}
		arrived := w.now
		w.report(func() { w.machine.Answered(p.ID, arrived, arrived-at) })
	})
}

// tcp is a connection that has data to send all the time; what is acknowledged is seen each 125 ms.
func (w *wire) tcp() {
	var acked, waits health.Moment
	w.every(20*time.Millisecond, func() {
		if !w.passes() {
			return
		}
		delay := w.rtt
		if w.queue != nil {
			delay += w.queue(w.now)
		}
		w.after(delay, func() {
			if w.passes() {
				acked = w.now
			}
		})
	})
	w.every(125*time.Millisecond, func() {
		if w.stopped {
			return
		}
		a := acked
		if a > 0 {
			w.machine.Acknowledged(w.now, a)
		}
		if waits = w.now - a; waits >= max(150*time.Millisecond, 2*w.rtt) {
			w.machine.Waits(w.now, a)
		}
	})
}
