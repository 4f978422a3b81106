package daemon

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/inspect"
	"multihomed/cmd/internal/presence"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/nm"
	"multihomed/routing"
)

// checkedAtOnce bounds the links whose outcomes are found out for one document: the rest
// comes with the next one.
const checkedAtOnce = 256

// A teller makes the status of the daemon for who asks on the socket, in a goroutine of
// its own. The loop only hands out its snapshot.
type teller struct {
	service  *service
	cfg      config.Config
	parts    *parts
	server   *status.Server
	producer *status.Producer
	checker  *inspect.Checker
	shelf    *inspect.Shelf

	// told is the last document, and what it was made of.
	told telling
	// seen is when a problem was first told of.
	seen map[problemKey]time.Time
}

type telling struct {
	generation uint64
	state      runstate.State
	manager    nm.Status
	alone      bool
	switched   uint64
	view       *inspect.View
	findings   []routing.Problem
	status     status.Status
	document   []byte
}

type problemKey struct {
	code         routing.Code
	link, object string
}

func newTeller(s *service, cfg config.Config, p *parts) (*teller, error) {
	t := &teller{service: s, cfg: cfg, parts: p, checker: inspect.NewChecker(), shelf: inspect.NewShelf(), seen: map[problemKey]time.Time{}}
	t.producer = status.NewProducer(t.make)
	var err error
	t.server, err = status.Listen(cfg.RuntimeDir, s.Logger, t.producer.Document)
	return t, err
}

func (t *teller) run(ctx context.Context, tasks *errgroup.Group) {
	tasks.Go(func() error {
		defer t.checker.Close()
		return t.producer.Run(ctx)
	})
	tasks.Go(func() error { return t.server.Run(ctx) })
}

// make returns the document. What it was made of may be as it was: then so is the
// document, but for what only files of the host tell.
func (t *teller) make(ctx context.Context) ([]byte, error) {
	now := telling{}
	snapshot, err := t.parts.loop.Snapshot(ctx, func() {
		now.manager, now.alone = t.parts.owners.Status(), t.parts.owners.Alone()
	})
	if err != nil {
		return nil, fmt.Errorf("asking the loop: %w", err)
	}
	now.alone = now.alone && !presence.NetworkManager(t.cfg.NetworkManager)
	now.generation, now.state = snapshot.Generation, t.service.state(snapshot.Report)
	var off offswitch.State
	off, now.switched = t.parts.off.State()
	last := &t.told
	same := last.view != nil && last.view.Unchecked == 0 && last.generation == now.generation &&
		last.alone == now.alone && last.switched == now.switched && last.manager == now.manager && reflect.DeepEqual(last.state, now.state)
	if same {
		now.view = last.view
	} else {
		now.view = inspect.FromSnapshot(t.cfg, snapshot, now.state, now.manager, now.alone, off)
		t.shelf.Use(now.view)
		if err := t.checker.Check(ctx, now.view, nil, checkedAtOnce); err != nil {
			now.view.Notes = append(now.view.Notes, fmt.Sprintf("where bound traffic goes: %v", err))
		}
	}
	root := os.DirFS("/")
	now.findings = now.view.Findings(root)
	if same && reflect.DeepEqual(last.findings, now.findings) {
		return last.document, nil
	}
	if same {
		now.status = last.status
		now.status.Tell(now.findings)
	} else {
		now.status = now.view.Status(now.findings, t.service.Version)
	}
	t.date(&now.status)
	if now.document, err = now.view.Document(now.status); err != nil {
		return nil, err
	}
	t.told = now
	return now.document, nil
}

// date says of problems since when they have been there.
func (t *teller) date(s *status.Status) {
	now := time.Now().Truncate(time.Second)
	seen := make(map[problemKey]time.Time, len(s.Problems))
	for i := range s.Problems {
		p := &s.Problems[i]
		k := problemKey{p.Code, p.Link, p.Object}
		since, known := t.seen[k]
		if !known {
			since = now
		}
		seen[k] = since
		p.Since = &since
	}
	t.seen = seen
}
