package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"multihomed/routing"
)

// Options are what a Loop works with. All fields but Hooks are needed.
type Options struct {
	Policy routing.Policy
	Logger *slog.Logger
	Mirror Mirror
	Writer Writer
	Owners Owners
	Leases Leases
	// Reserved says which table numbers are taken by name (rt_tables).
	Reserved func(routing.TableID) (string, bool)
	// Repairs bounds how often what somebody else deleted is put back.
	Repairs *rate.Limiter
	Hooks   Hooks
}

// Hooks are called from the loop's goroutine; any may be nil.
type Hooks struct {
	// Ready is called after the first pass with complete knowledge.
	Ready func()
	// Alive is called every Beat and after every pass; Beat 0 means never.
	Alive func()
	Beat  time.Duration
	// Report is called when what there is to report has changed.
	Report func(Report)
}

// A Report is what status can only know from the loop.
type Report struct {
	// Ready says that a pass with complete knowledge was made.
	Ready bool
	// Waiting says what is missing for complete knowledge.
	Waiting string
	// Problems of links and of the kernel's refusals.
	Problems []routing.Problem
}

// Retries of what failed start at firstRetry and double up to lastRetry.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Minute
)

// A Loop reconciles. Create it with New and call Run once.
type Loop struct {
	Options
	planner *routing.Planner
	claims  map[string]Claim
	// known are the interfaces seen so far; the value is the last name.
	known map[int]string
	held  map[int]map[routing.Key]routing.TableID
	// holders counts the interfaces that hold a key: a re-created interface
	// holds it twice for a moment.
	holders  map[routing.Key]int
	reserved map[string][]routing.TableID

	complete bool
	waiting  string
	ready    bool

	// dirty interfaces are planned in the next pass, touched objects compared.
	dirty   map[int]struct{}
	touched routing.Touched
	// retired are objects that a link wanted while this process knew it.
	retired routing.Touched
	// deferred are repairs that wait for their turn.
	deferred routing.Touched
	// released are keys to give back once the kernel holds nothing of them.
	released []routing.Key

	// failures are what the kernel or the database refused, by object.
	failures map[string]routing.Problem
	attempt  int
	retryAt  time.Time
	repairAt time.Time
	reported Report
	now      func() time.Time
	// problems of links, by interface index; news says that there is something
	// to report.
	problems map[int][]routing.Problem
	news     bool
}

// New returns a Loop that knows nothing yet.
func New(o Options) *Loop {
	return &Loop{
		Options:  o,
		planner:  routing.NewPlanner(o.Policy),
		claims:   map[string]Claim{},
		known:    map[int]string{},
		held:     map[int]map[routing.Key]routing.TableID{},
		holders:  map[routing.Key]int{},
		reserved: map[string][]routing.TableID{},
		dirty:    map[int]struct{}{},
		failures: map[string]routing.Problem{},
		now:      time.Now,
		problems: map[int][]routing.Problem{},
		news:     true,
	}
}

// Run reconciles until ctx is done. It leaves the kernel as it is then.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var beat <-chan time.Time
	if l.Hooks.Beat > 0 {
		ticker := time.NewTicker(l.Hooks.Beat)
		defer ticker.Stop()
		beat = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.Mirror.Changed():
		case <-l.Owners.Changed():
		case <-timer.C:
		case <-beat:
		}
		if err := l.Reconcile(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if l.Hooks.Alive != nil {
			l.Hooks.Alive()
		}
		timer.Reset(l.untilNext())
	}
}

// untilNext is the time until a retry or a repair is due.
func (l *Loop) untilNext() time.Duration {
	next := l.now().Add(time.Hour)
	if !l.retryAt.IsZero() && l.retryAt.Before(next) {
		next = l.retryAt
	}
	if !l.repairAt.IsZero() && l.repairAt.Before(next) {
		next = l.repairAt
	}
	return max(next.Sub(l.now()), 0)
}

// maxPasses bounds the passes made before the loop looks at its context again.
// Every pass follows a change; more of them than this is somebody's loop.
const maxPasses = 64

// Reconcile makes passes until there is nothing left to do.
func (l *Loop) Reconcile(ctx context.Context) error {
	for range maxPasses {
		if err := l.Mirror.Drain(ctx); err != nil {
			return fmt.Errorf("reading the kernel's events: %w", err)
		}
		l.takeClaims(ctx)
		l.takeChanges()
		l.takeDue()
		if len(l.dirty) == 0 && l.touched.Empty() {
			break
		}
		l.pass(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	l.release()
	if l.complete && !l.ready {
		l.ready, l.news = true, true
		if l.Hooks.Ready != nil {
			l.Hooks.Ready()
		}
	}
	l.report()
	return nil
}

// takeClaims takes up what the owners say.
func (l *Loop) takeClaims(ctx context.Context) {
	c := l.Owners.Take()
	for name, claim := range c.Changed {
		l.news = l.news || !slices.Equal(l.claims[name].Problems, claim.Problems)
		l.claims[name] = claim
		l.reserved[name] = claim.Tables
		l.claimChanged(ctx, name)
	}
	for _, name := range c.Removed {
		l.news = l.news || len(l.claims[name].Problems) > 0
		delete(l.claims, name)
		delete(l.reserved, name)
		l.claimChanged(ctx, name)
	}
	if c.Complete && !l.complete {
		// What nobody asked for while knowledge was incomplete may go now.
		l.everything()
		l.Logger.LogAttrs(ctx, slog.LevelInfo, "knowledge of the links is complete")
	}
	if c.Waiting != l.waiting && c.Waiting != "" {
		l.Logger.LogAttrs(ctx, slog.LevelInfo, "waiting", slog.String("for", c.Waiting))
	}
	if c.Complete != l.complete {
		l.watchAll(ctx, c.Complete)
	}
	l.news = l.news || l.complete != c.Complete || l.waiting != c.Waiting
	l.complete, l.waiting = c.Complete, c.Waiting
}

func (l *Loop) claimChanged(ctx context.Context, name string) {
	if index, ok := l.Mirror.Index(name); ok {
		l.dirty[index] = struct{}{}
		l.watch(ctx, index, name, l.complete)
	}
}

// watch tells the mirror whether the routes of an interface matter. While
// knowledge is incomplete those of every interface may.
func (l *Loop) watch(ctx context.Context, index int, name string, complete bool) {
	claim, claimed := l.claims[name]
	on := claim.Watched || (!claimed && !complete)
	if err := l.Mirror.Watch(ctx, index, on); err != nil {
		l.fail(ctx, "routes of "+name, routing.Problem{Severity: routing.Error, Link: name, Text: fmt.Sprintf("reading its routes: %v", err)})
		l.dirty[index] = struct{}{}
	}
}

func (l *Loop) watchAll(ctx context.Context, complete bool) {
	for _, index := range l.Mirror.Interfaces() {
		if i, ok := l.Mirror.Interface(index); ok {
			l.watch(ctx, index, i.Name, complete)
		}
	}
}

// everything compares all that is planned with all that stands.
func (l *Loop) everything() {
	for _, index := range l.Mirror.Interfaces() {
		l.dirty[index] = struct{}{}
	}
	for index := range l.known {
		l.dirty[index] = struct{}{}
	}
	l.touched.Merge(routing.Everything(l.planner, l.Mirror))
}

// takeChanges takes up what happened in the kernel.
func (l *Loop) takeChanges() {
	c := l.Mirror.Take()
	if c.All {
		l.everything()
	}
	for _, index := range c.Interfaces {
		l.dirty[index] = struct{}{}
	}
	seen := routing.NewTouched()
	for _, r := range c.Rules {
		seen.Rules[r] = struct{}{}
	}
	for _, k := range c.Routes {
		seen.Routes[k] = struct{}{}
	}
	if l.deferRepairs(c) {
		for _, r := range c.TakenRules {
			delete(seen.Rules, r)
			l.deferred.Rules[r] = struct{}{}
		}
		for _, k := range c.TakenRoutes {
			delete(seen.Routes, k)
			l.deferred.Routes[k] = struct{}{}
		}
	}
	l.touched.Merge(seen)
}

// deferRepairs decides whether what somebody else deleted is put back now. Two
// programs that disagree must not fight at full speed.
func (l *Loop) deferRepairs(c Changes) bool {
	rules, routes := 0, 0
	for _, r := range c.TakenRules {
		if _, wanted := l.planner.Rule(r); wanted {
			rules++
		}
	}
	for _, k := range c.TakenRoutes {
		if _, wanted := l.planner.Route(k); wanted {
			routes++
		}
	}
	if rules+routes == 0 {
		return false
	}
	if l.repairAt.IsZero() && l.Repairs.AllowN(l.now(), 1) {
		l.Logger.Warn("somebody else deleted routing of ours, repairing it", slog.Int("rules", rules), slog.Int("routes", routes))
		return false
	}
	if l.repairAt.IsZero() {
		r := l.Repairs.ReserveN(l.now(), 1)
		delay := r.DelayFrom(l.now())
		l.repairAt = l.now().Add(delay)
		l.Logger.Warn("somebody else keeps deleting routing of ours, repairing it later", slog.Int("rules", rules), slog.Int("routes", routes), slog.Duration("delay", delay))
	}
	if l.deferred.Rules == nil {
		l.deferred = routing.NewTouched()
	}
	return true
}

// takeDue takes up what waited for its time.
func (l *Loop) takeDue() {
	now := l.now()
	if !l.repairAt.IsZero() && !now.Before(l.repairAt) {
		l.repairAt = time.Time{}
		l.touched.Merge(l.deferred)
		l.deferred = routing.Touched{}
	}
	if !l.retryAt.IsZero() && !now.Before(l.retryAt) {
		l.retryAt = time.Time{}
		clear(l.failures)
		l.news = true
		l.everything()
	}
}

// pass plans the dirty interfaces and applies what differs.
func (l *Loop) pass(ctx context.Context) {
	dirty := slices.Sorted(maps.Keys(l.dirty))
	clear(l.dirty)
	before := map[int]routing.LinkPlan{}
	for _, index := range dirty {
		if plan, ok := l.planner.Link(index); ok {
			before[index] = plan
		}
		l.plan(ctx, index)
		l.touched.Groups[index] = struct{}{}
	}
	planned := l.planner.Take()
	l.retire(planned)
	l.noteProblems(planned)
	l.touched.Merge(planned)

	ops := routing.Diff(l.planner, l.Mirror, l.touched, l.mayDelete)
	l.touched = routing.NewTouched()
	errs := l.Writer.Apply(ctx, ops)
	failed := 0
	for i, op := range ops {
		if i < len(errs) && errs[i] != nil {
			failed++
			l.refused(ctx, op, errs[i])
			continue
		}
		l.applied(ctx, op)
	}
	if failed == 0 && len(l.failures) == 0 {
		l.attempt = 0
	}
	l.logLinks(ctx, dirty, before, ops, failed)
}

// retire remembers which objects a known link has given up: they may be deleted
// however little is known of the rest.
func (l *Loop) retire(t routing.Touched) {
	if l.retired.Rules == nil {
		l.retired = routing.NewTouched()
	}
	for r := range t.Rules {
		if _, wanted := l.planner.Rule(r); wanted {
			delete(l.retired.Rules, r)
		} else {
			l.retired.Rules[r] = struct{}{}
		}
	}
	for k := range t.Routes {
		if _, wanted := l.planner.Route(k); wanted {
			delete(l.retired.Routes, k)
		} else {
			l.retired.Routes[k] = struct{}{}
		}
	}
	for index := range t.Groups {
		l.retired.Groups[index] = struct{}{}
	}
}

func (l *Loop) mayDelete(op routing.Op) bool {
	if l.complete {
		return true
	}
	switch op.Verb { //nolint:exhaustive // it is asked for deletions only
	case routing.DeleteRule:
		// One of two equal rules may always go.
		if _, wanted := l.planner.Rule(op.Rule); wanted {
			return true
		}
		_, retired := l.retired.Rules[op.Rule]
		return retired
	case routing.DeleteRoute:
		_, retired := l.retired.Routes[op.Route.Key()]
		return retired
	default:
		_, retired := l.retired.Groups[op.Index]
		return retired
	}
}

// plan hands the facts of one interface to the planner.
func (l *Loop) plan(ctx context.Context, index int) {
	facts, exists := l.Mirror.Interface(index)
	if !exists {
		l.forget(index)
		delete(l.known, index)
		return
	}
	if _, seen := l.known[index]; !seen {
		l.watch(ctx, index, facts.Name, l.complete)
		facts, exists = l.Mirror.Interface(index)
		if !exists {
			return
		}
	}
	claim := l.claims[facts.Name]
	link := routing.Link{
		Name: facts.Name, Index: index, Up: facts.Up, Group: facts.Group,
		Addresses: facts.Addresses, Routes: facts.Routes, Intents: claim.Intents,
	}
	keys := routing.Keys(link)
	standing := claim.Standing
	if standing == Draining && (len(keys) == 0 || !l.was(index, facts.Name)) {
		standing = NoLink
	}
	l.known[index] = facts.Name
	if standing == NoLink {
		l.forget(index)
		return
	}
	if was, ok := l.planner.Link(index); ok && hasWay(was.Link) && !hasWay(link) {
		// The owner may have changed its mind about the link being an uplink.
		l.Owners.Poke(facts.Name)
	}
	link.Tables = l.tables(ctx, index, facts.Name, keys)
	l.planner.Set(link)
}

func hasWay(l routing.Link) bool {
	return slices.ContainsFunc(l.Routes, func(r routing.Route) bool { return r.Gateway.IsValid() || r.IsDefault() })
}

// was reports whether the interface was a link until now: to this process, or
// to the one before it, which left a rule for the device.
func (l *Loop) was(index int, name string) bool {
	if _, seen := l.known[index]; seen {
		_, was := l.planner.Link(index)
		return was
	}
	for _, f := range routing.Families() {
		for _, r := range l.Mirror.RuleOrder(f, routing.PriorityDevice) {
			if r.OIF == name {
				return true
			}
		}
	}
	return false
}

func (l *Loop) forget(index int) {
	l.planner.Remove(index)
	for k := range l.held[index] {
		l.unhold(k)
	}
	delete(l.held, index)
}

func (l *Loop) unhold(k routing.Key) {
	if l.holders[k]--; l.holders[k] <= 0 {
		delete(l.holders, k)
		l.released = append(l.released, k)
	}
}

// tables returns the tables of an interface's keys, leasing those it lacks.
func (l *Loop) tables(ctx context.Context, index int, name string, keys []routing.Key) map[routing.Key]routing.TableID {
	before := l.held[index]
	now := make(map[routing.Key]routing.TableID, len(keys))
	var missing []routing.Key
	for _, k := range keys {
		if t, ok := before[k]; ok {
			now[k] = t
		} else {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		leased, err := l.Leases.Acquire(ctx, missing, l.inUse)
		for k, t := range leased {
			now[k] = t
			l.holders[k]++
		}
		if err != nil {
			l.fail(ctx, "tables of "+name, routing.Problem{Severity: routing.Error, Link: name, Text: err.Error()})
		}
	}
	for k := range before {
		if _, keeps := now[k]; !keeps {
			l.unhold(k)
		}
	}
	l.held[index] = now
	return maps.Clone(now)
}

// inUse says who else uses a table number.
func (l *Loop) inUse(t routing.TableID) (string, bool) {
	if why, used := l.Reserved(t); used {
		return why, true
	}
	for name, tables := range l.reserved {
		if slices.Contains(tables, t) {
			return "the profile of " + name, true
		}
	}
	return l.Mirror.Foreign(t)
}

// release gives back the leases of keys whose objects are gone. An operation
// that failed keeps all of them: its object may still lead into a table.
func (l *Loop) release() {
	if len(l.released) == 0 || len(l.failures) > 0 {
		return
	}
	l.Leases.Release(slices.DeleteFunc(l.released, func(k routing.Key) bool { return l.holders[k] > 0 })...)
	l.released = nil
}
