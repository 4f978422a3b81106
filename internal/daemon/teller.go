package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/internal/config"
	"multihomed/internal/dbusapi/server"
	"multihomed/internal/news"
	"multihomed/internal/offswitch"
	"multihomed/internal/processor"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/socket"
	"multihomed/internal/status/view"
	"multihomed/nm"
	"multihomed/routing"
)

// checkedAtOnce bounds the links whose outcomes are checked for one document: who asks does not
// wait for the rest. The checks after changes look at all of them, because a host that changes
// all the time would never be known as a whole.
const (
	checkedAtOnce = 256
	allAtOnce     = math.MaxInt
)

// A teller makes the status of the daemon for clients of the socket. It also checks the host
// after changes, so that the log has the problems that status would show. It has its own
// goroutines: the loop only hands out its snapshot.
type teller struct {
	service  *service
	cfg      config.Config
	parts    *parts
	producer *socket.Producer
	// outdated wakes the checks, worked the task that gives memory back.
	outdated, worked news.Signal
	// known is given when these parts know the links and the uplinks; until is when a wait for that ends,
	// and newsUntil one of news.
	known            *latch
	until, newsUntil time.Time

	// mu guards what follows.
	mu      sync.Mutex
	checker *check.Outcomes
	// isClosed says that the checker is.
	isClosed bool
	shelf    *view.Shelf
	// told is the last document with its sources.
	told telling
	// seen is when a problem was first found.
	seen map[about]time.Time
}

type telling struct {
	generation uint64
	state      view.Daemon
	manager    nm.Status
	noManager  bool
	uplinks    uint64
	switched   uint64
	view       *view.View
	findings   []routing.Problem
	status     status.Status
	// document is nil until somebody asks.
	document []byte
}

func newTeller(s *service, cfg config.Config, p *parts, outdated, worked news.Signal) *teller {
	t := &teller{service: s, cfg: cfg, parts: p, outdated: outdated, worked: worked, checker: check.NewOutcomes(), shelf: view.NewShelf(), seen: maps.Clone(s.since), known: newLatch(), until: time.Now().Add(startTime)}
	t.newsUntil = t.until
	if s.written != nil {
		t.until, t.newsUntil = time.Now().Add(knownTime), time.Now().Add(newsTime)
	}
	t.producer = socket.NewProducer(t.make)
	return t
}

// startTime bounds the wait for the links after a start, knownTime where those are known that the parts
// before had. NetworkManager says them after some milliseconds; if it does not run, nobody waits. Both
// are shorter than the patience of everybody who asks: an answer that waits too long is taken for none.
const (
	startTime = 700 * time.Millisecond
	knownTime = 500 * time.Millisecond
	// newsTime is for news after a reload: they may be later than an answer, and NetworkManager may be late
	// on a busy host.
	newsTime = 3 * time.Second
)

// awaitLinks waits until the links are known: nobody shall be told that there are none, or that they
// have gone, because the daemon starts, or reads its configuration again.
func (t *teller) awaitLinks(ctx context.Context) { t.awaitKnown(ctx, t.until) }

// awaitNews is awaitLinks for news.
func (t *teller) awaitNews(ctx context.Context) { t.awaitKnown(ctx, t.newsUntil) }

func (t *teller) awaitKnown(ctx context.Context, until time.Time) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	t.known.await(ctx)
}

// run serves and checks until ctx is done. One of the latches is given when the loop knows the links, or
// that there is no NetworkManager to say them.
func (t *teller) run(ctx context.Context, known, alone *latch) error {
	defer t.close()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return t.producer.Run(ctx) })
	t.service.desk.serve(ctx, t.producer)
	tasks.Go(func() error {
		select {
		case <-known.given:
		case <-alone.given:
		case <-ctx.Done():
			return nil
		}
		t.parts.settleUplinks(ctx)
		t.known.give()
		return nil
	})
	tasks.Go(func() error {
		t.watch(ctx)
		return nil
	})
	return tasks.Wait()
}

// dates are since when problems have been there, for the teller that follows. Run must have returned.
func (t *teller) dates() map[about]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

// close ends the checks: also those of a call on D-Bus, which may still run.
func (t *teller) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isClosed = true
	t.checker.Close()
}

const (
	// checkDelay is the time between a change and the check that it causes: one check serves
	// related changes, and a problem that does not last is not logged.
	checkDelay = time.Second
	// checkPause is the least pause between two checks. A pause is also checkShare times as
	// long as the check, so that constant changes cost a twentieth of a processor. What counts is
	// its CPU time, and not how long a busy host let it wait: problems are told there, too.
	checkPause = 5 * time.Second
	checkShare = 20
	// lookEvery is how often to read files of the host whose changes nobody announces.
	lookEvery = time.Minute
)

// watch checks the host after changes, and logs the problems.
func (t *teller) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var notBefore time.Time
	for {
		timer.Reset(lookEvery)
		select {
		case <-t.outdated:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		timer.Reset(max(checkDelay, time.Until(notBefore)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		var isWhole bool
		var err error
		cost := processor.Cost(func() { isWhole, err = t.check(ctx) })
		if err != nil && ctx.Err() == nil {
			t.service.Logger.LogAttrs(ctx, slog.LevelDebug, "check of the host delayed", slog.String("error", err.Error()))
		}
		if !isWhole {
			t.outdated.Give()
		}
		notBefore = time.Now().Add(max(checkPause, checkShare*cost))
	}
}

// check logs the problems that status would show, once all links have been checked.
func (t *teller) check(ctx context.Context) (isWhole bool, err error) {
	t.awaitLinks(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(ctx, allAtOnce); err != nil || t.told.view.Unchecked > 0 {
		return false, err
	}
	t.service.checked(beside(t.told.state, t.told.findings))
	return true, nil
}

// beside returns the warnings and errors among findings that the daemon does not report
// itself. A notice explains a choice in status, and is not logged.
func beside(state view.Daemon, findings []routing.Problem) []routing.Problem {
	var out []routing.Problem
	for _, f := range findings {
		isSaid := slices.ContainsFunc(state.Problems, func(p routing.Problem) bool { return p.Link == f.Link && p.Text == f.Text })
		// Who watches the uplinks logs each verdict at once, and the loop where traffic goes then.
		isSaid = isSaid || f.Code == check.UplinkDead || f.Code == check.AllDead
		// Before the first pass nothing is active, which is no news.
		if f.Severity >= routing.Warning && !isSaid && (state.Ready || f.Code != check.NotInForce) {
			out = append(out, f)
		}
	}
	return out
}

// make returns the document.
func (t *teller) make(ctx context.Context) ([]byte, error) {
	t.awaitLinks(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(ctx, checkedAtOnce); err != nil {
		return nil, err
	}
	if t.told.document == nil {
		document, err := t.told.view.Document(t.told.status)
		if err != nil {
			return nil, err
		}
		t.told.document = document
	}
	return t.told.document, nil
}

// status returns the status with its view. Neither is changed any more.
func (t *teller) status(ctx context.Context) (*status.Status, *view.View, error) {
	t.awaitLinks(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(ctx, checkedAtOnce); err != nil {
		return nil, nil, err
	}
	s := t.told.status
	return &s, t.told.view, nil
}

// look updates told. If its sources are the same, so is the status, except for findings from
// files of the host. It checks the outcomes of so many links at most. The caller holds mu.
func (t *teller) look(ctx context.Context, most int) error {
	defer t.worked.Give()
	if t.isClosed {
		return server.ErrReplaced // Who waits for it is a call of D-Bus.
	}
	now := telling{}
	snapshot, err := t.parts.loop.Snapshot(ctx, func() {
		now.manager, now.noManager = t.parts.owners.Status(), t.parts.owners.NoManager()
	})
	if err != nil {
		return fmt.Errorf("asking the loop: %w", err)
	}
	now.noManager = now.noManager && !t.cfg.NetworkManager.Expected()
	now.generation, now.state = snapshot.Generation, t.service.state(snapshot.Report)
	var off offswitch.State
	off, now.switched = t.parts.off.State()
	health, judged := t.parts.failoverView(t.cfg)
	marked := t.parts.answers.state(ctx)
	answers, bound := answersStatus(marked), t.parts.boundStatus(snapshot, marked.Held)
	counters := t.service.counters(t.parts)
	now.uplinks = judged
	last := &t.told
	same := last.view != nil && last.view.Unchecked == 0 && last.generation == now.generation &&
		last.noManager == now.noManager && last.switched == now.switched && last.uplinks == now.uplinks && last.manager == now.manager && reflect.DeepEqual(last.state, now.state)
	if same {
		// What is measured changes all the time.
		again := *last.view
		again.Failover, again.Answers, again.Bindings = health, answers, bound
		now.view = &again
	} else {
		now.view = view.FromSnapshot(t.cfg, snapshot, now.state, now.manager, now.noManager, off)
		now.view.Failover, now.view.Answers, now.view.Bindings = health, answers, bound
		if now.noManager {
			now.view.Unwanted = t.cfg.NetworkManager.Unwanted()
		}
		t.shelf.Use(now.view)
		if err := t.checker.Check(ctx, now.view, nil, most); err != nil {
			now.view.Notes = append(now.view.Notes, fmt.Sprintf("where bound traffic goes: %v", err))
		}
	}
	now.findings = check.Problems(now.view, os.DirFS("/"))
	switch {
	case same && reflect.DeepEqual(last.findings, now.findings) && health == nil && answers == nil && bound == nil && reflect.DeepEqual(last.status.Counters, counters):
		return nil
	case same:
		now.status = last.status
		now.status.Failover, now.status.Answers, now.status.Bindings = now.view.FailoverStatus(), answers, bound
		now.status.Tell(now.findings)
	default:
		now.status = now.view.Status(now.findings, t.service.Version)
	}
	now.status.Counters = counters
	t.date(&now.status)
	t.told = now
	return nil
}

// date sets since when each problem has been there.
func (t *teller) date(s *status.Status) {
	now := time.Now().Truncate(time.Second)
	seen := make(map[about]time.Time, len(s.Problems))
	for i := range s.Problems {
		p := &s.Problems[i]
		k := about{p.Code, p.Link, p.Object}
		since, known := t.seen[k]
		if !known {
			since = now
		}
		seen[k] = since
		p.Since = &since
	}
	t.seen = seen
}
