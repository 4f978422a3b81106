package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/health"
	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
	"multihomed/routing"
)

var sourceNone netip.Addr //nolint:gochecknoglobals // the zero value

// take takes new facts.
func (c *Controller) take(now health.Moment, f Facts) {
	c.facts, c.known = f, true
	if f.Ready && (!c.wants || !slices.Equal(c.wanted, f.Endpoints)) {
		c.wants, c.wanted = true, f.Endpoints
		c.endpoints.Put(f.Endpoints)
	}
	if !c.Config.Failover.Enabled {
		return
	}
	for k, w := range c.watches {
		w.present = false
		runs, exists := f.carriers[k.index]
		if !exists {
			delete(c.watches, k)
			c.generation++
			continue
		}
		w.machine.SetCarrier(now, runs)
		w.wake = now
	}
	for i := range f.Uplinks {
		u := &f.Uplinks[i]
		k := key{u.Index, u.Family}
		w, known := c.watches[k]
		if !known {
			w = &watch{key: k, machine: health.New(healthConfig(c.Config.Failover), now)}
			if old, was := c.kept[k]; was && old.Interface == u.Name {
				w.machine.Restore(now, old.Memory)
			}
			w.machine.SetAsks(now, c.connected)
			w.machine.SetCarrier(now, u.Runs)
			c.watches[k] = w
			w.state, w.dead = w.machine.State(now), w.machine.Dead(now)
			w.told = w.dead
			c.generation++
		}
		w.uplink, w.present, w.wake = *u, true, now
		c.connect(w)
	}
	if f.Ready {
		// What is no uplink any more, or has another name, is forgotten.
		clear(c.kept)
	} else {
		for k := range c.watches {
			delete(c.kept, k)
		}
	}
	c.presume(now)
	c.pace(now)
	c.followCourses()
}

// presume takes what an earlier process left in table F for its verdict: the file of the memory
// is written a little later, so that a crash may leave one without the other.
func (c *Controller) presume(now health.Moment) {
	for i, f := range routing.Families() {
		course := c.facts.Courses[i]
		if !c.unjudged[i] || course.Why != routing.CourseKept {
			continue
		}
		w, is := c.watches[key{course.Main.Device, f}]
		if is && w.present && w.machine.State(now) == health.Unknown && !slices.Contains(course.Devices(), w.index) {
			w.machine.Presume(now)
			w.state, w.dead, w.told, w.died, w.wake = w.machine.State(now), true, true, now, now
			c.generation++
			c.keep()
		}
	}
}

// pace says which links are asked, what and how often.
func (c *Controller) pace(now health.Moment) {
	cfg := c.Config.Failover
	var count routing.ByFamily[int]
	for _, u := range c.facts.Uplinks {
		count.Set(u.Family, count.In(u.Family)+1)
	}
	for _, w := range c.watches {
		before := w.unwatched
		w.unwatched = ""
		switch {
		case !w.present:
			w.unwatched = "it has no default route"
		case count.In(w.family) < 2:
			w.unwatched = "no other link has a default route"
			w.machine.Alone(now)
		case cfg.Probe == config.ProbeCarrier:
			w.unwatched = "the configuration asks for the carrier alone"
		case !w.uplink.Exit.Source.IsValid():
			w.unwatched = "it has no address that may be used"
		}
		if (w.unwatched == "") != (before == "") {
			w.unwatchedAt = now
		}
		if w.present {
			var targets []health.Target
			targets, how := targetsOf(cfg, &w.uplink, c.facts.Uplinks)
			// While an owner is away, or asks for an address anew, it names nobody.
			if len(targets) > 0 || w.uplink.ServersKnown && !w.machine.Dead(now) || len(cfg.Targets) > 0 || len(w.how) == 0 {
				w.how = how
				w.machine.SetTargets(now, targets)
			}
		}
		w.machine.SetCostly(w.uplink.Metered)
		w.machine.SetPace(now, c.interval(now, w))
	}
}

// interval is the time between two probes of a link.
func (c *Controller) interval(now health.Moment, w *watch) time.Duration {
	cfg := c.Config.Failover
	switch {
	case w.unwatched != "":
		return 0
	case w.uplink.Metered:
		return cfg.Metered
	case c.isUsed(w) && now < c.look.active[w.index]:
		return cfg.Interval
	default:
		return cfg.Standby
	}
}

// isUsed reports whether unbound traffic leaves by a link: by its course or, while a VPN has
// the best default, because it is main's best uplink.
func (c *Controller) isUsed(w *watch) bool {
	best := -1
	var metric uint32
	used := false
	for _, course := range c.facts.Courses {
		if course.Family != w.family {
			continue
		}
		devices := course.Devices()
		for _, u := range c.facts.Uplinks {
			if u.Family != w.family {
				continue
			}
			if slices.Contains(devices, u.Index) {
				used = true
			}
			if best < 0 || u.Exit.Metric < metric {
				best, metric = u.Index, u.Exit.Metric
			}
		}
		if used {
			return slices.Contains(devices, w.index)
		}
	}
	return best == w.index
}

// heard takes what the prober says.
func (c *Controller) heard(now health.Moment, e client.Event) {
	if !e.Horizon.IsZero() {
		c.horizon = max(c.horizon, c.epoch.of(e.Horizon))
	}
	switch r := e.Report.(type) {
	case client.Connected:
		c.connected, c.pinged, c.lost = true, false, nil
		if c.connectedAt == 0 {
			c.connectedAt = now
		}
		c.horizon = 0
		clear(c.probes)
		c.look.reset()
		for _, w := range c.watches {
			w.machine.SetAsks(now, true)
			w.wake = now
		}
		c.generation++
	case client.Lost:
		c.disconnected(r.Err)
	case client.Sent:
		if a, is := c.probes[r.ID]; is {
			a.watch.machine.Sent(a.id, c.epoch.of(r.At))
			c.look.sent(a.watch.index, c.epoch.of(r.At), a.watch)
			a.watch.wake = now
		}
	case client.Answered:
		if a, is := c.probes[r.ID]; is {
			delete(c.probes, r.ID)
			a.watch.machine.Answered(a.id, c.epoch.of(r.At), r.RTT)
			c.learn(a.watch, a.target)
			c.noteUnsent(a.watch, nil)
			a.watch.wake = now
		}
	case client.Failed:
		if a, is := c.probes[r.ID]; is {
			delete(c.probes, r.ID)
			if !errors.Is(r.Err, syscall.ETIMEDOUT) {
				a.watch.machine.Refused(a.id, c.epoch.of(r.At))
			}
			a.watch.wake = now
		}
	case client.Unsent:
		if a, is := c.probes[r.ID]; is {
			delete(c.probes, r.ID)
			a.watch.machine.Unsent(a.id)
			a.watch.wake = now
			c.noteUnsent(a.watch, r.Err)
		}
		if r.ID == c.look.id {
			c.look.id, c.look.blind = 0, true
		}
	case client.Looked:
		c.lookedAround(now, r)
	case client.Pong:
		c.pinged = false
	}
}

func (c *Controller) noteUnsent(w *watch, err error) {
	if (err == nil) != (w.unsent == nil) {
		c.generation++
	}
	w.unsent = err
}

// disconnected says that nothing can be asked any more.
func (c *Controller) disconnected(err error) {
	now := c.epoch.now()
	if c.connected || c.lostAt == 0 {
		c.lostAt = now
	}
	c.connected, c.connectedAt, c.pinged, c.horizon, c.lost = false, 0, false, 0, err
	clear(c.probes)
	c.look.reset()
	for _, w := range c.watches {
		w.machine.SetAsks(now, false)
		w.wake = now
	}
	c.generation++
}

// forgetAll forgets every link: failover is switched off. Who has answered stays known, for the
// time when it is on again.
func (c *Controller) forgetAll() {
	clear(c.watches)
	clear(c.kept)
	c.lost, c.lostAt, c.connectedAt = nil, 0, 0 // Nobody needs the prober: nothing is known of it.
	c.publish(c.epoch.now())
	c.memory.Put(nil)
}

// looking is what is known of the traffic of links.
type looking struct {
	// id is the open look, asked when it was asked for; due is when the next one is.
	id    uint64
	asked health.Moment
	due   health.Moment
	// pause is the least time between two looks, by what the last one cost.
	pause time.Duration
	// seen is the moment of the last look: what connections prove is known until then, unless
	// blind says that looks fail.
	seen  health.Moment
	blind bool
	// devices are what was seen last of an interface, active until when it counts as one that
	// carries traffic.
	devices map[int]*traffic
	active  map[int]health.Moment
	// stirs are the last looks that saw packets which were not those of probes.
	stirs map[int][]health.Moment
}

// traffic counts the packets that an interface has sent.
type traffic struct {
	at   health.Moment
	sent uint64
	// others are the packets of the last look that were not those of probes; negative if
	// probes have not been counted yet.
	others int
	// own are packets of probes since, with the moments at which they were sent.
	own []health.Moment
}

func (l *looking) reset() {
	l.id, l.due, l.seen, l.blind, l.devices = 0, 0, 0, false, map[int]*traffic{}
	if l.active == nil {
		l.active, l.stirs = map[int]health.Moment{}, map[int][]health.Moment{}
	}
}

const (
	// lookFactor is how many looks come in one interval of probes.
	lookFactor = 2
	// lookShare bounds the part of a processor that looks take: one in so many.
	lookShare    = 50
	longestLook  = time.Second
	lookPatience = 2 * time.Second
	// lookSoon is the least time between two looks that a verdict waits for.
	lookSoon = 20 * time.Millisecond
	// activeFor is how long a link counts as one that carries traffic after a packet.
	activeFor = 2 * time.Second
	// enoughStirs looks within stirTime that see packets mean that traffic goes on.
	enoughStirs = 4
	mostStirs   = enoughStirs
	stirTime    = 2 * time.Second
	// silent is how long TCP must wait for an acknowledgement before that is a reason to ask.
	silent = 150 * time.Millisecond
	// mostOwn bounds the packets that are remembered between two looks.
	mostOwn = 1024
)

// isWanted reports whether anything is to be looked at.
func (l *looking) isWanted(c *Controller) bool {
	for _, w := range c.watches {
		if w.unwatched == "" && w.present && c.isUsed(w) {
			return true
		}
	}
	return false
}

// sent counts the packets of a probe: TCP takes three.
func (l *looking) sent(index int, at health.Moment, w *watch) {
	t, is := l.devices[index]
	if !is || len(t.own) >= mostOwn {
		return
	}
	t.own = append(t.own, at)
	for _, q := range w.how {
		if q.kind == wire.TCP {
			t.own = append(t.own, at, at)
			break
		}
	}
}

// lookAround looks at connections and counters, if that is due.
func (c *Controller) lookAround(now health.Moment) {
	l := &c.look
	if !c.connected || now < l.due || !l.isWanted(c) {
		return
	}
	l.due = now + max(c.Config.Failover.Interval/lookFactor, l.pause)
	if l.id != 0 && now-l.asked < lookPatience {
		return
	}
	var q wire.Look
	for _, k := range sortedKeys(c.watches) {
		w := c.watches[k]
		if !w.present || w.unwatched != "" {
			continue
		}
		for _, a := range w.uplink.Addresses {
			if len(q.Sources) < wire.MaxSources && a.IsGlobalUnicast() {
				q.Sources = append(q.Sources, wire.Source{Addr: a, Device: w.index})
			}
		}
		if c.isUsed(w) && !slices.Contains(q.Devices, w.index) && len(q.Devices) < wire.MaxDevices {
			q.Devices = append(q.Devices, w.index)
		}
	}
	q.Near = c.facts.Near
	id, err := c.prober.Look(q)
	if err == nil {
		l.id, l.asked = id, now
	}
}

// lookedAround takes what was seen.
func (c *Controller) lookedAround(now health.Moment, r client.Looked) {
	l := &c.look
	if r.ID != l.id {
		return
	}
	l.id = 0
	// What it costs counts, and not how long a busy host let it wait.
	l.pause = min(r.Cost*lookShare, longestLook)
	l.due = max(l.due, l.asked+l.pause)
	at := c.epoch.of(r.At)
	l.seen, l.blind = at, false
	for index, n := range r.Devices {
		if l.count(index, at, n.TxPackets) {
			c.stir(now, index)
		}
	}
	for _, w := range c.watches {
		if !w.present || w.unwatched != "" {
			continue
		}
		var proof health.Moment
		var waits time.Duration
		for _, a := range w.uplink.Addresses {
			seen := r.Connections[a]
			if !seen.Proof.IsZero() {
				proof = max(proof, c.epoch.of(seen.Proof))
			}
			waits = max(waits, seen.Silence)
		}
		if proof > 0 {
			w.machine.Acknowledged(now, proof)
		}
		if waits >= max(silent, 2*w.machine.RTT()) {
			w.machine.Waits(now, at-waits)
		}
		w.machine.SetPace(now, c.interval(now, w))
		w.wake = now
	}
}

// stir says that an interface carries traffic.
func (c *Controller) stir(now health.Moment, index int) {
	for _, w := range c.watches {
		if w.index == index && w.unwatched == "" && !w.uplink.Metered && c.isUsed(w) && now >= c.look.active[index] {
			w.machine.Hurry(now)
		}
	}
	c.look.stir(now, index)
}

// stir says that an interface has sent packets. A few of them are worth one probe: they may be
// the kernel's, which asks for its neighbours now and then. Only those that go on make the link
// one that carries traffic.
func (l *looking) stir(now health.Moment, index int) {
	recent := slices.DeleteFunc(l.stirs[index], func(m health.Moment) bool { return now-m > stirTime })
	if recent = append(recent, now); len(recent) > mostStirs {
		recent = recent[1:]
	}
	l.stirs[index] = recent
	if len(recent) >= enoughStirs || now < l.active[index] {
		l.active[index] = now + activeFor
	}
}

// count takes the number of packets that an interface has sent, and reports whether others
// than those of probes are among the new ones. A probe that leaves during a look may be counted
// in this one or the next, so that each makes good for the one before.
func (l *looking) count(index int, at health.Moment, sent uint64) bool {
	t, known := l.devices[index]
	if !known || sent < t.sent {
		l.devices[index] = &traffic{at: at, sent: sent}
		return false
	}
	own := 0
	t.own = slices.DeleteFunc(t.own, func(s health.Moment) bool {
		if s <= at {
			own++
		}
		return s <= at
	})
	others := int(min(sent-t.sent, mostOwn)) - own
	t.at, t.sent = at, sent
	switch {
	case others < 0 && t.others > 0: // The look before has counted it.
		l.calm(index)
		t.others = 0
		return false
	case t.others < 0:
		others, t.others = others+t.others, 0
	default:
		t.others = others
	}
	return others > 0
}

// calm takes back the last stir.
func (l *looking) calm(index int) {
	if s := l.stirs[index]; len(s) > 0 {
		l.stirs[index] = s[:len(s)-1]
	}
}

// note notes a new judgement, for the log and for the next process.
func (c *Controller) note(now health.Moment, w *watch) {
	state, dead := w.machine.State(now), w.machine.Dead(now)
	if state == w.state {
		return
	}
	before := w.state
	w.state = state
	c.stepped = true
	transient := state == health.Suspect || before == health.Suspect
	if !transient {
		c.generation++
	}
	s := said{watch: w, level: slog.LevelInfo, sentence: "uplink judged", reason: reason(w.machine.Report(c.epoch.clock()))}
	// A link that nobody watches, or that has just lost its default, has lines of its own.
	silent := w.unwatched != "" || !w.present
	switch {
	case dead && !w.dead:
		w.closed, w.died = false, now
		c.countDeath(w)
		if w.told = !silent; w.told {
			s.level, s.sentence, s.event = event.LevelNotice, "uplink does not work", event.UplinkDead
		}
	case !dead && w.dead && w.told:
		w.told = false
		s.level, s.sentence, s.event = event.LevelNotice, "uplink works again", event.UplinkAlive
	case transient || state == health.Unknown:
		silent = true
	}
	if s.event == "" {
		s.state = state.String()
		if silent {
			s.level = slog.LevelDebug
		}
	}
	c.said = append(c.said, s)
	if dead != w.dead || !transient {
		c.keep()
	}
	w.dead = dead
}

// said is a line of the log about one family of a link.
type said struct {
	watch                   *watch
	level                   slog.Level
	sentence, state, reason string
	event                   event.Event
}

// say writes the lines that were noted. What happened to both families of a link at once is
// one line.
func (c *Controller) say() {
	all := c.said
	c.said = nil
	for len(all) > 0 {
		first := all[0]
		var families, reasons []string
		all = slices.DeleteFunc(all, func(s said) bool {
			if s.watch.index != first.watch.index || s.sentence != first.sentence || s.state != first.state || s.level != first.level {
				return false
			}
			families = append(families, s.watch.family.String())
			if !slices.Contains(reasons, s.reason) {
				reasons = append(reasons, s.reason)
			}
			return true
		})
		attrs := []slog.Attr{
			slog.String("interface", first.watch.uplink.Name), slog.String("family", strings.Join(families, ", ")), slog.String("reason", strings.Join(reasons, "; ")),
		}
		if first.state != "" {
			attrs = append(attrs, slog.String("state", first.state))
		}
		if first.event != "" {
			attrs = append(attrs, event.Is(first.event))
		}
		c.Logger.LogAttrs(context.Background(), first.level, first.sentence, attrs...) //nolint:sloglint // one of the three of note
	}
}

// reason says with the evidence why a link is judged as it is.
func reason(r health.Report) string {
	e := r.Evidence
	switch e.Kind {
	case health.BySilence:
		return fmt.Sprintf("%s: %d probes without an answer in %v, of which %d are enough, and %v of silence", r.Why, e.Overdue, e.Timeout.Round(time.Millisecond), e.Needed, e.Silence.Round(time.Millisecond))
	case health.ByAnswers, health.ByTCP:
		if e.Answered+e.Lost > 0 {
			return fmt.Sprintf("%s: %d of %d", r.Why, e.Answered, e.Answered+e.Lost)
		}
	case health.NoEvidence, health.ByCarrier, health.ByTest, health.ByMemory, health.ByLackOfTargets, health.ByReset:
	}
	return r.Why
}
