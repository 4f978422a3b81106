package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"multihomed/allocator"
	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/dnsmasq"
	"multihomed/internal/event"
	"multihomed/internal/failover"
	"multihomed/internal/handoff"
	"multihomed/internal/handoff/note"
	"multihomed/internal/hookstate"
	"multihomed/internal/kerneltables"
	"multihomed/internal/mainroutes"
	"multihomed/internal/news"
	"multihomed/internal/offswitch"
	"multihomed/internal/owners"
	"multihomed/internal/recollection"
	"multihomed/internal/routedlease"
	"multihomed/internal/rttables"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// parts are the assembled parts of the daemon or of a stand-in.
type parts struct {
	log     *slog.Logger
	leases  *allocator.Allocator
	mirror  *kernel.Mirror
	writer  *kernel.Writer
	watcher *nm.Watcher
	hooks   *hookstate.Store
	owners  *owners.Owners
	off     *offswitch.Switch
	loop    *reconcile.Loop
	// uplinks watches which uplinks work; nil in a stand-in.
	uplinks *failover.Controller
	// looked is what uplinks were told of last; it is the loop's.
	looked lookedAt
	// answers keep the table that marks packets.
	answers *answered
	// bindings keep what is bound to links.
	bindings *binding.Keeper
	// cgroups binds control groups; nil in a stand-in.
	cgroups *boundCgroups
	// names lead the DNS queries of bound users; nil in a stand-in.
	names *userNames
	// runtime is the runtime directory.
	runtime string

	// These follow the passes of the loop; dns is nil if there is no file of servers.
	*followers
	dns      *dnsmasq.Keeper
	router   *routedlease.Router
	departed *owners.Departed
	mover    *mainroutes.Mover
	past     *history
	// isPast is given when nothing of earlier configurations is left, or cannot be removed.
	isPast *latch
	// first is given after the first pass with complete knowledge.
	first *latch
	// unsaved is given while leases cannot be saved.
	unsaved news.Signal
	// unacknowledged are messages whose senders wait for a pass.
	unacknowledged chan handoff.Message
}

// extras are what differs between the daemon and a stand-in.
type extras struct {
	// fault takes the problem of a part, nil for none.
	fault func(code routing.Code, err error)
	// problems takes all problems of answers, whenever they change.
	problems func([]routing.Problem)
	// unbound takes those of bindings.
	unbound func([]routing.Problem)
	// names lead the DNS queries of bound users; nil in a stand-in.
	names *userNames
	// memory outlives the runtime directory; nil for the file alone.
	memory reconcile.Memory
	// written is what the log says already, nil if nothing.
	written *written
	// manager is who followed NetworkManager before, nil for nobody: what it said is not asked again
	// before links are planned.
	manager *nm.Watcher
	// watches says that the uplinks are watched; uplinks is who watched them before.
	watches bool
	uplinks *failover.Controller
	// judged is called when the state of an uplink has changed; nil for nobody.
	judged func()
	// counts take what is counted; nil in a stand-in, which nobody asks.
	counts *counts
}

// written is what the log says of links and of the off switch, and since when. It outlives a change
// of the configuration, so that the log names only what that changed.
type written struct {
	links   map[int]routing.LinkPlan
	courses [2]routing.Course
	dates   reconcile.Dates
	off     offswitch.State
}

// written returns what the log says when all tasks have ended.
func (p *parts) written() *written {
	off, _ := p.off.State()
	return &written{links: p.loop.Told(), courses: p.loop.Courses(), dates: p.loop.Dates(), off: off}
}

// assemble opens everything. The caller must hold the lock, and close the parts.
func assemble(ctx context.Context, cfg config.Config, log *slog.Logger, hooks reconcile.Hooks, more extras) (*parts, error) {
	p := &parts{log: log, runtime: cfg.RuntimeDir, followers: newFollowers(), isPast: newLatch(), first: newLatch(), unsaved: news.NewSignal(), unacknowledged: make(chan handoff.Message, mostUnacknowledged)}
	if err := p.open(ctx, cfg, hooks, more); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *parts) open(ctx context.Context, cfg config.Config, hooks reconcile.Hooks, more extras) (err error) {
	policy, log := cfg.RoutingPolicy(), p.log
	counted := more.counts
	if counted == nil {
		counted = new(counts)
	}
	p.leases, err = openLeases(ctx, cfg, log)
	if err != nil {
		return err
	}
	p.checkLeases(ctx, more.fault)
	names, err := rttables.Load()
	if err != nil {
		// An unreadable file may reserve any number. That is no reason to stop: in practice
		// nobody else uses our range.
		err = fmt.Errorf("reading the names of routing tables, whose numbers may be leased to links: %w", err)
	}
	more.fault(tableNamesFault, err)
	p.past = openHistory(ctx, log, cfg.StateDir, policy)
	p.past.moveGroups(ctx)
	// Routes of main are read only for interfaces that an owner claims: a host may have a
	// million others.
	p.mirror, err = kernel.Open(kernel.Config{Tables: policy.Tables, Interest: func(string) bool { return false }, Overrun: func() { counted.overruns.Add(1) }})
	if err != nil {
		return err
	}
	if p.writer, err = p.mirror.OpenWriter(); err != nil {
		return err
	}
	p.watcher = nm.New(nm.Options{Logger: log, DNS: cfg.DNS.ServersFile != "" || more.watches, Passed: note.Passed(cfg.RuntimeDir), Lost: func() { counted.busLosses.Add(1) }, Before: more.manager})
	var unread owners.Unread
	p.owners, unread = owners.Open(cfg, p.watcher, p.mirror)
	for _, err := range unread.Leases {
		log.LogAttrs(ctx, event.LevelNotice, "routed lease lost", slog.String("error", err.Error()))
	}
	if len(unread.Hooks) > 0 {
		log.LogAttrs(ctx, event.LevelNotice, "report of a hook lost", slog.String("error", errors.Join(unread.Hooks...).Error()))
	}
	p.hooks, p.off = p.owners.Hooked, p.owners.Off
	if cfg.DNS.ServersFile != "" {
		p.dns = dnsmasq.NewKeeper(dnsmasq.New(cfg.DNS.ServersFile, cfg.DNS.PIDFile, log), log)
	}
	p.departed = owners.NewDeparted(log, p.hooks, p.watcher, p.mirror)
	p.mover = &mainroutes.Mover{Logger: log, Runtime: cfg.RuntimeDir, Enabled: cfg.MoveRoutes, Hooks: p.hooks, Owners: p.owners, Mirror: p.mirror}
	earlier := more.written
	if earlier == nil {
		earlier = new(written)
	}
	p.saySwitched(ctx, earlier.off)
	ready, settled := hooks.Ready, hooks.Settled
	hooks.Ready = func() {
		p.first.give()
		ready()
	}
	hooks.Settled = func() {
		p.afterPass()
		p.answers.afterPass(p.loop)
		if now := (lookedAt{p.loop.Structure(), p.owners.Generation()}); p.uplinks != nil && now != p.looked {
			p.looked = now
			p.uplinks.Touch()
		}
		settled()
	}
	memory := more.memory
	if memory == nil {
		memory = recollection.File{Directory: cfg.RuntimeDir}
	}
	judges := p.watch(cfg, more)
	if p.answers, err = openAnswers(cfg, log, more.problems, p.isOff); err != nil {
		return err
	}
	p.bindings = p.openBindings(cfg, more)
	p.loop = reconcile.New(reconcile.Options{
		Policy: policy, Logger: log, Mirror: reconcile.MirrorOf(p.mirror), Writer: p.writer,
		Owners: p.owners, Leases: p.leases, Reserved: names.Lookup,
		Repairs:  rate.NewLimiter(rate.Limit(cfg.RepairsPerSecond), cfg.RepairBurst),
		Hooks:    hooks,
		Memory:   memory,
		Failover: judges, Answers: p.answers.keeper, Bindings: p.bindings,
		LogDelay: logDelay, Suspect: suspect, Told: earlier.links, Courses: earlier.courses, Dates: earlier.dates, Counters: &counted.loop,
	})
	p.router = &routedlease.Router{
		Logger: log, Mirror: p.mirror, Loop: p.loop, Links: p.owners.Declared, Policy: cfg.NMPolicy(), Ignored: cfg.IsIgnored, Off: p.off,
	}
	return nil
}

// logDelay is how long a link must be quiet before its changes become a line: longer than the
// pauses of an activation, and short enough for a reader of the log.
const logDelay = time.Second

// openLeases opens the leases, even with a damaged database: rules and routes in the kernel
// tell whose the tables are, so links keep their numbers.
func openLeases(ctx context.Context, cfg config.Config, log *slog.Logger) (*allocator.Allocator, error) {
	return allocator.Open(ctx, allocator.Options{
		Path: filepath.Join(cfg.StateDir, allocator.DefaultName), Range: cfg.Tables, Anyhow: true,
		Moved: func(to string, why error) {
			log.LogAttrs(ctx, event.LevelNotice, "lease database moved aside because it is unusable, and made anew from the kernel's rules and routes",
				event.Is(event.DatabaseMoved), slog.String("moved_to", to), slog.String("error", why.Error()))
		},
		Standing: func(leased func(routing.TableID) bool) ([]allocator.Standing, error) {
			return kerneltables.Find(ctx, cfg.RoutingPolicy().Tables, leased)
		},
	})
}

// checkLeases reports a fault while leases cannot be written.
func (p *parts) checkLeases(ctx context.Context, fault func(routing.Code, error)) {
	err := p.leases.Check(ctx)
	if err != nil {
		err = fmt.Errorf("table numbers of new networks cannot be saved, all links keep working: %w", err)
	}
	fault(leasesFault, err)
}

// take takes a message of a dispatcher.
func (p *parts) take(ctx context.Context, m handoff.Message) {
	if m.Switched {
		p.switched(ctx)
		p.bindings.Reload(ctx)
		return
	}
	if m.Rebound {
		p.bindings.Reload(ctx)
		return
	}
	if m.Interface == "" {
		return
	}
	p.hooks.ReloadAndLog(ctx, p.log, m.Interface)
	p.departed.Touch(m.Interface)
	switch {
	case m.Gone:
		p.hooks.Release(m.Interface)
	case len(m.Hints) > 0:
		p.hooks.Hint(m.Interface, m.Hints)
	}
	p.owners.Recheck(m.Interface)
}

// mostUnacknowledged bounds how many senders wait for a pass.
const mostUnacknowledged = 256

// acknowledge queues the sender of a message, if it waits, for an answer after the next pass.
// A loop that hangs acknowledges nothing. If too many wait, this sender is released: its
// message was taken.
func (p *parts) acknowledge(m handoff.Message) {
	if !m.Awaited() {
		return
	}
	select {
	case p.unacknowledged <- m:
	default:
		m.Drop()
	}
}

// followTime bounds how long the sender of a message waits for the followers.
const followTime = time.Second

// followed waits until the followers have handled the passes so far, for at most followTime:
// the routing is complete without them.
func (p *parts) followed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	select {
	case <-p.first.given:
		p.isPast.await(ctx)
	default:
	}
	p.idle(ctx)
	p.answers.needs.Idle(ctx)
	if p.names != nil {
		p.names.asked.Idle(ctx)
	}
}

// acknowledgeAll answers the senders that wait. One pass serves all that came before it.
func (p *parts) acknowledgeAll(ctx context.Context) error {
	for {
		var waiting []handoff.Message
		select {
		case <-ctx.Done():
			return nil
		case m := <-p.unacknowledged:
			waiting = append(waiting, m)
		}
		for more := true; more && len(waiting) < mostUnacknowledged; {
			select {
			case m := <-p.unacknowledged:
				waiting = append(waiting, m)
			default:
				more = false
			}
		}
		_, err := p.loop.Settled(ctx, waiting[0].Interface)
		if err == nil {
			p.followed(ctx)
		}
		for _, m := range waiting {
			if err != nil {
				m.Drop()
			} else {
				m.Acknowledge()
			}
		}
	}
}

// switched reads what the administrator switched off or on.
func (p *parts) switched(ctx context.Context) {
	before, _ := p.off.State()
	if err := p.off.Reload(); err != nil {
		p.log.LogAttrs(ctx, event.LevelNotice, "off switch unreadable, keeping its last state", slog.String("error", err.Error()))
		return
	}
	p.saySwitched(ctx, before)
}

// saySwitched logs what has been switched off and on since.
func (p *parts) saySwitched(ctx context.Context, before offswitch.State) {
	state, _ := p.off.State()
	switch {
	case state.Damaged != nil:
		if before.Damaged == nil {
			p.log.LogAttrs(ctx, slog.LevelError, "switched off", event.Is(event.SwitchedOff), slog.String("reason", state.Damaged.Error()))
		}
		return
	case state.Host != nil:
		if before.Host == nil {
			p.log.LogAttrs(ctx, event.LevelNotice, "switched off, nothing is routed by links", event.Is(event.SwitchedOff), slog.Time("since", state.Host.Since), slog.String("by", state.Host.By))
		}
		return
	case before.HostOff():
		p.log.LogAttrs(ctx, event.LevelNotice, "switched on", event.Is(event.SwitchedOn))
	}
	for _, l := range before.Links {
		if !slices.Contains(state.Links, l) {
			p.log.LogAttrs(ctx, event.LevelNotice, "link switched on", event.Is(event.SwitchedOn), slog.String("interface", l.Interface))
		}
	}
	for _, l := range state.Links {
		// A link that was off before the host was is no news.
		if !slices.Contains(before.Links, l) {
			p.log.LogAttrs(ctx, event.LevelNotice, "link switched off", event.Is(event.SwitchedOff), slog.String("interface", l.Interface), slog.Time("since", l.Since), slog.String("by", l.By))
		}
	}
}

// tasks are those of all parts.
func (p *parts) tasks(fault func(code routing.Code, err error)) []task {
	var watching []task
	if p.uplinks != nil {
		watching = []task{{name: "uplinks", run: p.uplinks.Run}}
	}
	return slices.Concat([]task{
		{name: "mirror of the kernel", run: p.mirror.Run},
		{name: "NetworkManager", run: p.watcher.Run},
		{name: "owners of links", run: p.owners.Run},
		{name: "reconcile loop", run: p.loop.Run},
		{name: "acknowledgements", run: p.acknowledgeAll},
		{name: "users of bindings", run: always(p.followUsers)},
		{name: "earlier configurations", ready: p.isPast, run: always(func(ctx context.Context) {
			// After the first pass no rule leads to their tables any more.
			if p.first.await(ctx) {
				p.past.clean(ctx)
				p.isPast.give()
			}
		})},
	}, watching, p.answers.tasks(p.loop), p.followers.tasks(p, fault))
}

// close closes what was opened, the last first.
func (p *parts) close() {
	if p.answers != nil {
		closing(p.log, "nf_tables", p.answers.close)
	}
	if p.writer != nil {
		closing(p.log, "writer", p.writer.Close)
	}
	if p.mirror != nil {
		closing(p.log, "mirror", p.mirror.Close)
	}
	if p.leases != nil {
		closing(p.log, "leases", p.leases.Close)
	}
}

func closing(log *slog.Logger, what string, do func() error) {
	if err := do(); err != nil {
		log.LogAttrs(context.Background(), event.LevelNotice, "closing failed", slog.String("part", what), slog.String("error", err.Error()))
	}
}
