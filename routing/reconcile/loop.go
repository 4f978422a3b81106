package reconcile

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
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
	// Repairs bounds how often an object that somebody else deleted is put
	// back: each has this budget for itself. It also bounds the log of that.
	Repairs *rate.Limiter
	Hooks   Hooks
	// LogDelay is how long a link must have been quiet before its changes are written
	// to the log, in one line; 0 writes them after each pass.
	LogDelay time.Duration
	// Suspect names the process behind a netlink port, empty if it cannot be found;
	// nil names none.
	Suspect func(port uint32) string
	// Failover says which uplinks are dead, and what is configured; nil means off.
	Failover Failover
	// Answers says for what there are answers; nil means for nothing.
	Answers Answers
	// Bindings says what is bound to links; nil means nothing.
	Bindings Bindings
	// Memory outlives the process, not the boot; nil for none.
	Memory Memory
	// Told is what [Loop.Told] of an earlier loop in this process returned, nil for the
	// first one: the log says then what differs from that.
	Told map[int]routing.LinkPlan
	// Courses is what [Loop.Courses] of it returned.
	Courses [2]routing.Course
	// Dates is what [Loop.Dates] of it returned.
	Dates Dates
	// Counters count what it does; nil for none that anybody reads.
	Counters *Counters
}

// Hooks are called from the loop's goroutine; any may be nil.
type Hooks struct {
	// Ready is called after the first pass with complete knowledge.
	Ready func()
	// Alive is called every Beat and after every pass; Beat 0 means never.
	Alive func()
	Beat  time.Duration
	// Settled is called when all that was known has been dealt with.
	Settled func()
	// Report is called when what there is to report has changed.
	Report func(Report)
	// Outdated is called after a pass when a snapshot would have another generation than it
	// was called for last, also if somebody has taken that snapshot already.
	Outdated func()
	// Wrote is called after a pass with what the kernel did, if that is anything. It must not keep
	// the slice.
	Wrote func([]routing.Op)
}

// A Report is what status can only know from the loop.
type Report struct {
	// Ready says that a pass with complete knowledge was made.
	Ready bool
	// Waiting says what is missing for complete knowledge.
	Waiting string
	// Problems of links and of the kernel's refusals.
	Problems []routing.Problem
	// Away are the rules and routes that somebody deleted and that are put back later: the
	// first mostAway of them.
	Away []Away
	// Gone are rules of others that went just now, for which guards stand.
	Gone []routing.Rule
}

// An Away is a rule or a route of ours that somebody deleted, and that is put back
// later.
type Away struct {
	Family routing.Family
	// Text is the object in the words of iproute2.
	Text string
	// Until is when it is put back.
	Until time.Time
	// His is the rule of somebody else in whose words it was deleted, empty if it was
	// deleted too often.
	His string
}

// What a report lists at most: it is for a file, which is bounded.
const (
	mostAway = 2000
	mostGone = 200
)

// Retries of what failed start at firstRetry and double up to lastRetry.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Minute
)

// A Loop reconciles. Create it with New and call Run once.
type Loop struct {
	Options
	planner *routing.Planner
	*bindings
	// known are the interfaces seen so far; the value is the last name.
	known map[int]string
	// devices are the interfaces that rules of ours are for, read when a pass
	// needs them.
	devices map[string]struct{}
	held    map[int]map[routing.Key]routing.TableID
	recall  *recall
	// networks are those of the links, in which others may have addresses too.
	networks networks
	// unasked says that what the kernel does with unbound packets may have changed.
	unasked bool
	// holders counts the interfaces that hold a key: a re-created interface
	// holds it twice for a moment.
	holders map[routing.Key]int
	owned   *ownedTables
	asks    chan ask

	complete bool
	waiting  string
	ready    bool
	// answersKnown says that it is known what packets are marked with.
	answersKnown bool
	// bindingsKnown says that it is known what is bound.
	bindingsKnown bool

	// otherRules counts the changes of the rules of others.
	otherRules uint64
	// stepped are the rules of others that bound traffic steps over, by family.
	stepped map[routing.Family]map[routing.Rule]struct{}
	// dirty interfaces are planned in the next pass, touched objects compared.
	dirty   map[int]struct{}
	touched routing.Touched
	// rerouted are the destinations that main's routes through an interface changed
	// for, unread the interfaces whose routes are all read again.
	rerouted map[int]map[routing.Destination]struct{}
	unread   map[int]struct{}
	// lent are the interfaces that are links for some of their addresses alone.
	lent map[int]struct{}
	// retired are objects that a link wanted while this process knew it.
	retired routing.Touched
	// deferred are repairs that wait for their time, gone the rules of others that went
	// just now, with the time until which somebody may go on deleting in their words.
	deferred map[object]deferral
	gone     map[routing.Rule]time.Time
	// quarrels are about objects that somebody keeps deleting.
	quarrels map[object]quarrel
	disputes disputes
	// takeovers is about tables that somebody else takes.
	takeovers takeovers
	// released are keys to give back when the pass is over.
	released map[routing.Key]struct{}

	// unwritten are changes of links that are not in the log yet, routesWritten when
	// lines about routes alone were written.
	unwritten map[int]*unwritten
	// told are links of Options.Told that no plan has been compared with yet.
	told          map[int]routing.LinkPlan
	routesWritten map[int]time.Time
	// inherited are the links that the process before this one left as they are planned.
	inherited map[int]struct{}
	// restored are objects that this pass puts back because somebody deleted them.
	restored map[object]struct{}
	// wrote says that the passes of this call of Reconcile changed the kernel.
	wrote bool
	// incomplete is when knowledge ceased to be complete.
	incomplete time.Time
	// unkept is why the memory could not be written.
	unkept string
	// waitsLong says that it has been missing for so long that it is a problem.
	waitsLong bool

	// failures are what the kernel or the database refused, by what it is
	// about; retrying are the attempts of those that are tried again now.
	failures map[string]failure
	retrying map[string]retry
	reported Report
	// courses are those of the last pass, said those that the log knows; inherits says that these
	// are still those of Options.Courses.
	courses, said [2]routing.Course
	inherits      bool
	// undecided is since when unbound traffic follows main to an uplink that does not work, by
	// family, and the log does not have it.
	undecided map[routing.Family]time.Time
	now       func() time.Time
	// problems of links, by interface index; news says that there is something
	// to report.
	problems map[int][]routing.Problem
	news     bool
	picture  picture
}

// New returns a Loop that knows nothing yet.
func New(o Options) *Loop {
	if o.Counters == nil {
		o.Counters = new(Counters)
	}
	return &Loop{
		Options:       o,
		planner:       routing.NewPlanner(o.Policy),
		bindings:      newBindings(),
		known:         map[int]string{},
		held:          map[int]map[routing.Key]routing.TableID{},
		holders:       map[routing.Key]int{},
		undecided:     map[routing.Family]time.Time{},
		owned:         &ownedTables{byLink: map[string][]routing.TableID{}},
		asks:          make(chan ask),
		recall:        newRecall(o.Memory),
		networks:      networks{count: map[netip.Prefix]int{}, byLink: map[int][]netip.Prefix{}},
		stepped:       map[routing.Family]map[routing.Rule]struct{}{},
		dirty:         map[int]struct{}{},
		rerouted:      map[int]map[routing.Destination]struct{}{},
		unread:        map[int]struct{}{},
		lent:          map[int]struct{}{},
		touched:       routing.NewTouched(),
		retired:       routing.NewTouched(),
		deferred:      map[object]deferral{},
		gone:          map[routing.Rule]time.Time{},
		quarrels:      map[object]quarrel{},
		released:      map[routing.Key]struct{}{},
		takeovers:     newTakeovers(),
		unwritten:     map[int]*unwritten{},
		told:          maps.Clone(o.Told),
		said:          o.Courses,
		inherits:      true,
		inherited:     map[int]struct{}{},
		routesWritten: map[int]time.Time{},
		restored:      map[object]struct{}{},

		failures: map[string]failure{},
		retrying: map[string]retry{},
		now:      time.Now,
		problems: map[int][]routing.Problem{},
		news:     true,
		picture:  newPicture(o.Dates),
	}
}

// Plans yields the plans of all links. It is for hooks, which the loop calls.
func (l *Loop) Plans() iter.Seq[routing.LinkPlan] { return l.planner.Links() }

// Told returns what the log says of links, by index, for the loop that follows this one.
// Call it when Run has returned.
func (l *Loop) Told() map[int]routing.LinkPlan {
	out := map[int]routing.LinkPlan{}
	// It ended before it knew of these.
	maps.Copy(out, l.told)
	for plan := range l.planner.Links() {
		if has(plan) {
			out[plan.Link.Index] = plan
		}
	}
	return out
}

// Courses returns which way unbound traffic went by the log, for the loop that follows this one. Call it
// when Run has returned.
func (l *Loop) Courses() [2]routing.Course { return l.said }

// Current returns how the host stands. It is for hooks, which the loop calls; others ask
// [Loop.Snapshot].
func (l *Loop) Current() *Snapshot { return l.snapshot() }

// Run reconciles until ctx is done. It leaves the kernel as it is then.
func (l *Loop) Run(ctx context.Context) error {
	defer l.writeNews(ctx, true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var beat <-chan time.Time
	if l.Hooks.Beat > 0 {
		ticker := time.NewTicker(l.Hooks.Beat)
		defer ticker.Stop()
		beat = ticker.C
	}
	for {
		var asked ask
		select {
		case <-ctx.Done():
			return nil
		case <-l.Mirror.Changed():
		case <-l.Owners.Changed():
		case <-l.judged():
		case <-l.answered():
		case <-l.bindingsChanged():
		case <-timer.C:
		case <-beat:
		case asked = <-l.asks:
		}
		if err := l.Reconcile(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		l.answer(asked)
		if l.Hooks.Alive != nil {
			l.Hooks.Alive()
		}
		timer.Reset(l.untilNext())
	}
}

// pending reports whether there is something to plan or to compare.
func (l *Loop) pending() bool {
	return len(l.dirty) > 0 || len(l.rerouted) > 0 || !l.touched.Empty() || l.planner.Changed()
}

// untilNext is the time until a retry or a repair is due.
func (l *Loop) untilNext() time.Duration {
	if l.pending() && !l.failed(aboutMirror) {
		return 0
	}
	next := l.now().Add(time.Hour)
	for _, f := range l.failures {
		if f.due.Before(next) {
			next = f.due
		}
	}
	for _, d := range l.deferred {
		if d.due.Before(next) {
			next = d.due
		}
	}
	for _, due := range l.gone {
		if due.Before(next) {
			next = due
		}
	}
	for _, q := range l.quarrels {
		if q.over.Before(next) {
			next = q.over
		}
	}
	for _, due := range l.takeovers.due {
		if due.Before(next) {
			next = due
		}
	}
	for index, u := range l.unwritten {
		if due := l.due(index, u); due.Before(next) {
			next = due
		}
	}
	for _, since := range l.undecided {
		if due := since.Add(l.LogDelay); due.Before(next) {
			next = due
		}
	}
	if due := l.incomplete.Add(waitGrace); l.waiting != "" && !l.waitsLong && due.Before(next) {
		next = due
	}
	return max(next.Sub(l.now()), 0)
}

// maxPasses bounds the passes made before the loop looks at its context again.
// Every pass follows a change; more of them than this is somebody's loop.
const maxPasses = 64

// Reconcile makes passes until there is nothing left to do.
func (l *Loop) Reconcile(ctx context.Context) error {
	began := l.now()
	tries := map[routing.Op]try{}
	for range maxPasses {
		if err := l.take(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// What the mirror holds may be out of date: touch nothing.
			l.takeDue()
			l.fail(aboutMirror, failure{Problem: routing.Problem{Code: routing.Unread, Severity: routing.Error, Text: "reading the kernel: " + err.Error()}})
			break
		}
		l.cure(aboutMirror)
		if !l.pending() {
			if l.askElsewhere(ctx) {
				continue
			}
			break
		}
		tries = l.pass(ctx, tries)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	l.countConverged(began)
	l.forgetMoot()
	l.release()
	l.noteCourses(ctx)
	if l.complete && len(l.failures) == 0 && !l.retired.Empty() {
		// Nothing is left to be deleted.
		l.retired = routing.NewTouched()
	}
	if l.complete && !l.ready && !l.failed(aboutMirror) {
		l.ready, l.news = true, true
		l.picture.earlier = nil
		if l.Hooks.Ready != nil {
			l.Hooks.Ready()
		}
	}
	l.keepMemory()
	l.writeNews(ctx, false)
	l.report()
	if l.Hooks.Settled != nil {
		l.Hooks.Settled()
	}
	l.announce()
	return nil
}

// take takes up all that is new.
func (l *Loop) take(ctx context.Context) error {
	if err := l.Mirror.Sync(ctx); err != nil {
		return err
	}
	l.takeClaims(ctx)
	l.takeChanges(ctx)
	l.takeFailover()
	l.takeAnswers()
	l.takeBindings()
	l.takeDue()
	if err := l.setInterests(ctx); err != nil {
		return err
	}
	return l.askUnbound(ctx)
}

// release gives back the leases of keys that no link holds. Where an object of
// one still stands, because its deletion failed, TableInUse protects the table.
func (l *Loop) release() {
	if len(l.released) == 0 || l.failed(aboutMirror) {
		return
	}
	keys := make([]routing.Key, 0, len(l.released))
	for k := range l.released {
		if l.holders[k] == 0 {
			keys = append(keys, k)
		}
	}
	clear(l.released)
	l.Leases.Release(keys...)
	// Somebody may wait for a table to become free.
	for about, f := range l.failures {
		if f.index != 0 && len(keys) > 0 {
			f.due = l.now()
			l.failures[about] = f
		}
	}
}
