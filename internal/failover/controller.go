package failover

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/health"
	"multihomed/internal/news"
	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A Prober sends probes and looks at connections: a [client.Client].
type Prober interface {
	// Run connects again and again until ctx is done, and closes Events then.
	Run(ctx context.Context)
	Events() <-chan client.Event
	Probe(wire.Probe) (id uint64, err error)
	Look(wire.Look) (id uint64, err error)
	Ping() (id uint64, err error)
}

var _ Prober = (*client.Client)(nil)

// Options are what a Controller works with.
type Options struct {
	Logger *slog.Logger
	Config config.Config
	// Look returns the facts as they are now. It may wait for a pass of the loop.
	Look func(context.Context) (Facts, error)
	// Dial returns a prober, which the controller runs while it needs one.
	Dial func() Prober
	// Ends closes connections; nil closes none.
	Ends Ends
	// Memory outlives the process; nil for none.
	Memory Memory
	// Archive outlives the boot; nil for none.
	Archive Archive
	// Judged is called when what State returns has changed in more than measurements; nil for nobody.
	// It must not wait.
	Judged func()
	// Before is the controller of the configuration before this one, whose Run has returned;
	// nil for none.
	Before *Controller
}

// A Controller watches the uplinks. Create it with New; Run must be running. It is safe for
// concurrent use.
type Controller struct {
	Options
	changed, touched, stirred news.Signal
	ends                      chan end
	memory                    *news.Slot[[]Kept]
	archive                   *news.Slot[[]Answered]
	endpoints                 *news.Slot[[]connections.Endpoint]
	// settle takes what to close when facts from after that have been taken.
	settle chan chan<- struct{}
	// wanted are the endpoints that were wanted last, if wants.
	wanted []connections.Endpoint
	wants  bool

	mu      sync.Mutex
	epoch   epoch
	facts   Facts
	started health.Moment
	// known says that facts came at least once.
	known   bool
	watches map[key]*watch
	kept    map[key]Kept
	// answered are the targets that have answered, those of the network that was learned last first.
	answered []Answered
	// prober is the one that runs, nil if none is needed; horizon is what it has delivered.
	prober    Prober
	connected bool
	lost      error
	lostAt    health.Moment
	// connectedAt is when the prober answered, 0 while it does not. That it does not is in the log if
	// complained, and in State if away.
	connectedAt health.Moment
	complained  bool
	away        bool
	horizon     health.Moment
	pinged      bool
	// probes are the machines that wait for answers, by the prober's number.
	probes map[uint64]asked
	look   looking
	// judged is what the loop was told.
	judged   routing.Failover
	unjudged routing.ByFamily[bool]
	// generation changes with what status shows, announced is the one that Judged was called for;
	// stepped says that a state has changed since, if only for a moment.
	generation, announced uint64
	stepped               bool
	// deaths count those of this process, by the name of the interface, of so many at most.
	deaths map[UplinkName]uint64
	// said is what the log has to say of the moment.
	said []said
	// courses are those of the facts before.
	courses [2]routing.Course
	// woken is when the loop of the controller meant to wake up, asleep how long the host was
	// suspended until then.
	woken  health.Moment
	asleep time.Duration
}

var _ reconcile.Failover = (*Controller)(nil)

// A key names a machine.
type key struct {
	index  int
	family routing.Family
}

// A watch is one uplink in one family.
type watch struct {
	key
	uplink  Uplink
	machine *health.Machine
	// present says that the uplink has a default now.
	present bool
	// unwatched says why nothing is asked, and unwatchedAt since when.
	unwatched   string
	unwatchedAt health.Moment
	// unsent says why the last probe could not be sent, nil if one was answered since.
	unsent error
	how    map[string]question
	// answered are the targets that have answered in its network, nil before that is known.
	network  Network
	answered map[string]struct{}
	wake     health.Moment
	asking   bool
	// state and dead are what was noted; told says that its death is in the log.
	state health.State
	dead  bool
	told  bool
	// died is when it died, closed says that the connections of this death were closed.
	died   health.Moment
	closed bool
}

// asked is a probe that a prober sends.
type asked struct {
	watch  *watch
	id     uint32
	target string
}

// New returns a Controller. Until it has facts, it goes on with what the one before it judged.
func New(o Options) *Controller {
	c := &Controller{
		Options: o, changed: news.NewSignal(), touched: news.NewSignal(), stirred: news.NewSignal(), ends: make(chan end, mostEnds), memory: news.NewSlot[[]Kept](), archive: news.NewSlot[[]Answered](),
		endpoints: news.NewSlot[[]connections.Endpoint](), settle: make(chan chan<- struct{}),
		epoch: newEpoch(), watches: map[key]*watch{}, kept: map[key]Kept{}, probes: map[uint64]asked{}, deaths: map[UplinkName]uint64{},
	}
	c.started = c.epoch.now()
	c.woken, c.asleep = c.started, suspended()
	c.look.reset()
	c.judged = FactsOf(o.Config)
	if before := o.Before; before != nil {
		c.Before = nil
		before.mu.Lock()
		defer before.mu.Unlock()
		c.epoch, c.watches, c.kept, c.unjudged, c.generation = before.epoch, before.watches, before.kept, before.unjudged, before.generation+1
		c.answered, c.complained, c.deaths = before.answered, before.complained, maps.Clone(before.deaths)
		// A prober that was lost is lost until it answers: that the configuration was read again says
		// nothing of it.
		c.lost, c.lostAt, c.connectedAt, c.away = before.lost, before.lostAt, before.connectedAt, before.away
		for _, w := range c.watches {
			w.machine.SetConfig(healthConfig(o.Config.Failover))
			w.machine.SetAsks(c.epoch.now(), false)
		}
		c.publish(c.epoch.now())
		return c
	}
	c.unjudged = routing.ByFamily[bool]{true, true}
	if o.Memory != nil {
		for _, k := range o.Memory.Recall() {
			c.kept[key{k.Index, k.Family}] = k
		}
	}
	if o.Archive != nil {
		c.answered = o.Archive.Recall()
	}
	c.publish(c.started)
	return c
}

func healthConfig(c config.Failover) health.Config {
	return health.Config{Silence: c.Silence, Recover: c.Recover}
}

// An epoch turns times of this process into moments.
type epoch struct {
	time   time.Time
	moment health.Moment
}

func newEpoch() epoch { return epoch{time.Now(), health.Moment(wire.Now())} }

func (e epoch) of(t time.Time) health.Moment { return e.moment + t.Sub(e.time) }
func (e epoch) now() health.Moment           { return e.of(time.Now()) }
func (e epoch) clock() health.Clock {
	now := time.Now()
	// Without the monotonic reading: people compare it with their clocks.
	return health.Clock{Moment: e.of(now), Time: now.Round(0)}
}

// suspended is for how long the host has been suspended since it was booted.
func suspended() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}

// Changed is readable when Failover returns something new.
func (c *Controller) Changed() <-chan struct{} { return c.changed }

// Failover returns what is judged. What it returns is never changed.
func (c *Controller) Failover() routing.Failover {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.judged
}

// Touch says that the facts may have changed. It never waits.
func (c *Controller) Touch() { c.touched.Give() }

// Settled returns when facts from after the call have been taken, or ctx is done.
func (c *Controller) Settled(ctx context.Context) {
	settled := make(chan struct{})
	select {
	case c.settle <- settled:
	case <-ctx.Done():
		return
	}
	select {
	case <-settled:
	case <-ctx.Done():
	}
}

// A seen is what Look returned, with those who wait until it has been taken.
type seen struct {
	facts   Facts
	waiting []chan<- struct{}
}

const (
	// lookPause is the least time between two questions for facts: each costs the loop a
	// snapshot.
	lookPause = 50 * time.Millisecond
	// lookRetry is the pause after a failure, and the longest time between two questions.
	lookRetry = time.Minute
	// late is by how much the controller may wake up late before everything that is open is
	// dropped.
	late = time.Second
	// judgeTime bounds how long table F of an earlier process stays because not every uplink
	// has been judged.
	judgeTime = 10 * time.Second
)

// Run watches until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	facts := make(chan seen)
	tasks.Go(func() { c.follow(ctx, facts) })
	tasks.Go(func() { c.endAll(ctx) })
	tasks.Go(func() { c.remember(ctx) })
	tasks.Go(func() { c.archiveAll(ctx) })
	if c.Ends != nil {
		tasks.Go(func() { c.followEndpoints(ctx) })
	}
	defer tasks.Wait()
	defer cancel()
	if !c.Config.Failover.Enabled {
		// The connections of an earlier configuration are not ours any more, and nothing is
		// asked. Facts are for status.
		c.mu.Lock()
		c.forgetAll()
		c.mu.Unlock()
	}
	var stop context.CancelFunc
	var running sync.WaitGroup
	defer func() {
		if stop != nil {
			stop()
		}
		running.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var events <-chan client.Event
	for {
		// The prober runs while somebody is watched.
		c.mu.Lock()
		need := c.needsProber()
		switch {
		case need && c.prober == nil:
			p := c.Dial()
			probing, end := context.WithCancel(ctx)
			c.prober, stop, events = p, end, p.Events()
			if c.lost == nil {
				c.lostAt = c.epoch.now()
			}
			running.Go(func() { p.Run(probing) })
		case !need && c.prober != nil:
			stop()
			c.disconnected(nil)
			c.prober, stop, events = nil, nil, nil
		}
		wait := c.untilNext()
		c.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case f := <-facts:
			c.do(func(now health.Moment) { c.take(now, f.facts) })
			for _, w := range f.waiting {
				close(w)
			}
		case e, open := <-events:
			if !open {
				events = nil
				continue
			}
			c.do(func(now health.Moment) { c.heard(now, e) })
		case <-c.stirred:
			c.do(func(health.Moment) {})
		case <-timer.C:
			c.do(func(health.Moment) {})
		}
	}
}

// follow asks for facts when something changed.
func (c *Controller) follow(ctx context.Context, facts chan<- seen) {
	pause := time.NewTimer(lookRetry)
	defer pause.Stop()
	var waiting []chan<- struct{}
	for {
		for more := true; more; { // One look serves all who wait.
			select {
			case w := <-c.settle:
				waiting = append(waiting, w)
			default:
				more = false
			}
		}
		f, err := c.Look(ctx)
		if err == nil {
			select {
			case facts <- seen{f, waiting}:
				waiting = nil
			case <-ctx.Done():
				return
			}
		}
		pause.Reset(lookPause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		pause.Reset(lookRetry)
		select {
		case <-ctx.Done():
			return
		case <-c.touched:
		case w := <-c.settle:
			waiting = append(waiting, w)
		case <-pause.C:
		}
	}
}

// do does something with everything that is due then.
func (c *Controller) do(something func(now health.Moment)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.epoch.now()
	if s := suspended(); now-c.woken > late || s-c.asleep > late {
		// It was stopped, or the host was: what came meanwhile is not here yet.
		c.asleep = s
		for _, w := range c.watches {
			w.machine.Gap(now)
		}
		c.look.reset()
	}
	something(now)
	c.due(now)
	c.publish(now)
	if away := c.isAway(now); away != c.away {
		c.away = away
		c.generation++
	}
	if c.Judged != nil && (c.stepped || c.generation != c.announced) {
		c.Judged()
	}
	c.stepped, c.announced = false, c.generation
}

// untilNext is the time until something is due.
func (c *Controller) untilNext() time.Duration {
	now := c.epoch.now()
	next := now + time.Minute
	for _, w := range c.watches {
		next = min(next, w.wake)
		if due, is := c.closingOf(w); is && due > now {
			next = min(next, due)
		}
	}
	if at, due := c.complaint(); due {
		next = min(next, at)
	}
	if c.isLost() && !c.away {
		next = min(next, c.lostAt+proberPatience+time.Millisecond)
	}
	if c.connected && c.look.isWanted(c) {
		next = min(next, c.look.due)
	}
	if c.isJudging() {
		next = min(next, c.started+judgeTime)
	}
	c.woken = max(next, now)
	return max(next-now, 0)
}

// needsProber reports whether anything is asked.
func (c *Controller) needsProber() bool {
	for _, w := range c.watches {
		if w.present && w.unwatched == "" {
			return true
		}
	}
	return false
}

// due steps all machines that are due, and looks at connections.
func (c *Controller) due(now health.Moment) {
	for _, k := range slices.SortedFunc(maps.Keys(c.watches), compareKeys) {
		w := c.watches[k]
		if now >= w.wake || w.asking {
			c.step(now, w)
		}
		c.note(now, w)
		c.closeLate(now, w)
	}
	c.say()
	c.complain(now)
	c.lookAround(now)
}

// step steps one machine, and sends what it wants.
func (c *Controller) step(now health.Moment, w *watch) {
	// No verdict without what connections prove: a look that is old knows of no proof.
	horizon := c.horizon
	if !c.look.blind && c.look.isWanted(c) {
		horizon = min(horizon, c.look.seen)
	}
	s := w.machine.Step(now, horizon)
	w.wake, w.asking = s.Wake, s.Ask
	for _, o := range s.Probes {
		c.send(w, o)
	}
	if s.Ask && horizon < c.horizon {
		c.look.due = min(c.look.due, max(now, c.look.asked+lookSoon))
		return
	}
	if s.Ask && c.connected && !c.pinged {
		_, err := c.prober.Ping()
		c.pinged = err == nil
		if err != nil {
			w.wake = min(w.wake, now+pingRetry)
		}
	}
}

// pingRetry is the pause before a prober that is busy is asked again.
const pingRetry = 100 * time.Millisecond

func (c *Controller) send(w *watch, o health.Order) {
	q := w.how[o.Target]
	source := w.uplink.Exit.Source
	if w.family == routing.IPv6 && q.to.Addr().IsLinkLocalUnicast() {
		source = sourceNone
	}
	id, err := c.prober.Probe(wire.Probe{Kind: q.kind, Device: w.index, Source: source, Target: q.to})
	if err != nil {
		w.machine.Unsent(o.ID)
		return
	}
	c.probes[id] = asked{w, o.ID, o.Target}
}

func compareKeys(a, b key) int {
	if a.index != b.index {
		return a.index - b.index
	}
	return int(a.family) - int(b.family)
}

// publish tells the loop what is judged, if that has changed.
func (c *Controller) publish(now health.Moment) {
	f := FactsOfUplinks(c.Config, c.facts.Uplinks)
	if f.Enabled {
		f.Dead = c.dead(now)
		c.judgeFirst(now)
		f.Unjudged = c.unjudged
	}
	if same(f, c.judged) {
		return
	}
	c.judged = f
	c.generation++
	c.changed.Give()
}

func same(a, b routing.Failover) bool {
	return a.Enabled == b.Enabled && maps.Equal(a.Dead[0], b.Dead[0]) && maps.Equal(a.Dead[1], b.Dead[1]) && a.Unjudged == b.Unjudged &&
		slices.Equal(a.Prefer, b.Prefer) && maps.Equal(a.Metered, b.Metered) && maps.Equal(a.Shares, b.Shares) &&
		a.Forwarded == b.Forwarded && a.HostRoutes == b.HostRoutes
}

// dead are the links that are judged dead, except the stopgaps. Before the first facts they are
// those of the process before this one.
func (c *Controller) dead(now health.Moment) routing.ByFamily[map[int]struct{}] {
	var out routing.ByFamily[map[int]struct{}]
	add := func(k key) {
		m := out.In(k.family)
		if m == nil {
			m = map[int]struct{}{}
			out.Set(k.family, m)
		}
		m[k.index] = struct{}{}
	}
	for k, w := range c.watches {
		if w.machine.Dead(now) {
			add(k)
		}
	}
	for k, old := range c.kept {
		if old.Dead {
			add(k)
		}
	}
	for _, f := range routing.Families() {
		if w := c.stopgap(now, f); w != nil {
			delete(out.In(f), w.index)
		}
	}
	return out
}

// stopgap is the uplink that carries the traffic of a family while none is alive: of those that
// recover the one that has answered for longest, so that it stays the same one. Nil if an uplink
// is alive, or if none answers.
func (c *Controller) stopgap(now health.Moment, f routing.Family) *watch {
	var best *watch
	for _, k := range sortedKeys(c.watches) {
		w := c.watches[k]
		if !w.present || w.family != f || !w.uplink.Runs || !w.uplink.Exit.Source.IsValid() {
			continue
		}
		switch state := w.machine.State(now); {
		case !state.IsDead():
			return nil
		case state == health.Recovering && (best == nil || w.machine.Since() < best.machine.Since()):
			best = w
		}
	}
	return best
}

// Dead are the links that do not work, by family and interface index. They must not be
// changed.
func (c *Controller) Dead() routing.ByFamily[map[int]struct{}] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.judged.Dead
}

// judgeFirst finds out whether the uplinks have been judged since the start.
func (c *Controller) judgeFirst(now health.Moment) {
	if !c.isJudging() {
		return
	}
	for i, f := range routing.Families() {
		if !c.unjudged[i] {
			continue
		}
		open := false
		for _, w := range c.watches {
			open = open || w.family == f && w.present && w.unwatched == "" && !w.machine.IsJudged()
		}
		if !open || now-c.started >= judgeTime {
			c.unjudged[i] = false
		}
	}
}

// isJudging reports whether the first judgements are awaited: without facts they cannot come,
// and where failover is off they never do.
func (c *Controller) isJudging() bool {
	return c.Config.Failover.Enabled && c.known && c.facts.Ready && slices.Contains(c.unjudged[:], true)
}
