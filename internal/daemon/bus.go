package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/server"
	"multihomed/internal/escape"
	"multihomed/internal/handoff"
	"multihomed/internal/lockfile"
	"multihomed/internal/news"
	"multihomed/internal/offswitch"
	"multihomed/internal/orders"
	"multihomed/internal/processor"
	"multihomed/internal/status"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// openBus makes the server of the D-Bus interface, which outlives a change of the configuration.
func (s *service) openBus() {
	s.stale, s.wrote, s.reloads, s.switching = news.NewSignal(), &changes{}, make(chan reload), make(chan struct{}, 1)
	s.at = dbusapi.Place{RuntimeDirectory: s.works.Runtime, NetworkNamespace: lockfile.NamespaceCookie()}
	s.bus = server.New(server.Options{
		Logger: s.Logger, Address: server.Address(os.Getenv), Fault: func(p routing.Problem) {
			s.problem(server.NameTaken, p)
			s.stale.Give()
		},
		First: dbusapi.Of(&status.Status{Version: escape.Text(s.Version)}, dbusapi.Facts{Place: s.at, LogLevel: config.LevelWord(s.Level.Level())}, nil),
	})
}

// changes are what passes wrote and nobody was told yet.
type changes struct {
	mu   sync.Mutex
	ops  []change
	left int
}

type change struct {
	at time.Time
	op routing.Op
}

// add takes what a pass wrote. It never waits.
func (c *changes) add(ops []routing.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, op := range ops {
		if len(c.ops) >= dbusapi.MostChanges {
			c.left++
			continue
		}
		c.ops = append(c.ops, change{now, op})
	}
}

// take returns what was added since.
func (c *changes) take() (ops []change, left int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ops, left, c.ops, c.left = c.ops, c.left, nil, 0
	return ops, left
}

// giveBack returns what take has taken, and nobody was told.
func (c *changes) giveBack(ops []change, left int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops, c.left = append(ops, c.ops...), c.left+left
	if more := len(c.ops) - dbusapi.MostChanges; more > 0 {
		c.ops, c.left = c.ops[:dbusapi.MostChanges], c.left+more
	}
}

// onBus is the daemon under one configuration, as D-Bus shows it.
type onBus struct {
	*service
	cfg    config.Config
	parts  *parts
	teller *teller
	// over ends what waits for these parts when another configuration replaces them: nobody answers then.
	over   func(end func()) (stop func() bool)
	isOver func() bool
}

// while makes a context that ends with the parts, for the cause [server.ErrReplaced].
func (b *onBus) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := b.over(func() { cancel(server.ErrReplaced) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// turn waits until this order may change what is off or bound: one order of the administrator comes
// after the other, whatever configuration is active.
func (b *onBus) turn(ctx context.Context) (leave func(), err error) {
	select {
	case b.switching <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	leave = func() { <-b.switching }
	if ctx.Err() != nil {
		leave()
		return nil, context.Cause(ctx)
	}
	return leave, nil
}

// A halfDone is an error after which an order must not be carried out once more.
type halfDone struct{ error }

func (h *halfDone) Unwrap() error { return h.error }

func halfDonef(format string, args ...any) error { return &halfDone{fmt.Errorf(format, args...)} }

// publishShare is the part of a processor that goes into news: a pause is so many times as long as
// what was done before it. One link that changes costs a millisecond.
const publishShare = 9

// run publishes until ctx is done.
func (b *onBus) run(ctx context.Context) error {
	b.over = func(end func()) func() bool { return context.AfterFunc(ctx, end) }
	b.isOver = func() bool { return ctx.Err() != nil }
	b.bus.Serve(b)
	defer b.bus.Withdraw()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-b.stale:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
		cost := processor.Cost(func() { b.publish(ctx) })
		pause.Reset(publishShare * cost)
	}
}

// publish tells what has changed.
func (b *onBus) publish(ctx context.Context) {
	if !b.bus.IsHeard() {
		_, _ = b.wrote.take()
		return // Who gets the name next wakes us.
	}
	b.teller.awaitNews(ctx)
	ops, left := b.wrote.take() // Before the status, which knows what they are about then.
	s, v, err := b.teller.status(ctx)
	if err != nil {
		b.wrote.giveBack(ops, left)
		if ctx.Err() == nil {
			b.Logger.LogAttrs(ctx, slog.LevelDebug, "news for D-Bus delayed", slog.String("error", err.Error()))
		}
		return
	}
	b.bus.Publish(ctx, dbusapi.Of(s, b.factsOf(v), b.bus.Last()))
	if len(ops) > 0 {
		b.bus.Emit(ctx, dbusapi.Wrote(changesOfOps(ops, v), left))
	}
}

// factsOf are those that a status does not have.
func (s *service) factsOf(v *view.View) dbusapi.Facts {
	f := dbusapi.Facts{Place: s.at, Devices: make(map[string]dbusapi.Device, len(v.Links)), LogLevel: config.LevelWord(s.Level.Level())}
	for name, l := range v.Links {
		f.Devices[name] = dbusapi.Device{Index: l.Index, Up: l.Up, Carrier: l.Carrier}
	}
	return f
}

// changesOfOps words what passes wrote.
func changesOfOps(ops []change, v *view.View) []dbusapi.Change {
	names := make(map[int]string, len(v.Links))
	for name, l := range v.Links {
		names[l.Index] = name
	}
	name := func(index int) string {
		if n, known := names[index]; known {
			return n
		}
		return fmt.Sprintf("if%d", index)
	}
	out := make([]dbusapi.Change, 0, len(ops))
	for _, w := range ops {
		index, family := v.Links[w.op.Reason.Link].Index, ""
		switch w.op.Verb {
		case routing.AddRule, routing.MoveRule, routing.DeleteRule:
			family = w.op.Rule.Family.String()
		case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
			family, index = w.op.Route.Family.String(), w.op.Route.Device
		case routing.SetGroup, routing.ResetGroup:
			index = w.op.Index
		}
		out = append(out, dbusapi.Change{
			Time: uint64(w.at.UnixMicro()), Index: int32(index), //nolint:gosec // after 1970; an index
			Verb: w.op.Verb.String(), Object: escape.Text(w.op.Object(name)), Reason: string(w.op.Reason.Decision), Family: family,
		})
	}
	return out
}

// Measured is what is measured now.
func (b *onBus) Measured() dbusapi.Measured {
	health, _ := b.parts.failoverView(b.cfg)
	counted := b.counts.loop.Read()
	v := view.View{Failover: health}
	return dbusapi.Measured{
		Passes: counted.Passes, Repairs: counted.RepairedRules + counted.RepairedRoutes, Links: dbusapi.Measure(v.FailoverStatus()),
	}
}

// Do carries out a call.
func (b *onBus) Do(ctx context.Context, r server.Request) (string, error) {
	living, end := b.while(ctx)
	defer end()
	text, err := b.do(ctx, living, r)
	return text, b.refused(err)
}

// Check finds what is wrong with a call.
func (b *onBus) Check(ctx context.Context, r server.Request) error {
	ctx, end := b.while(ctx)
	defer end()
	return b.refused(b.check(ctx, r))
}

// refused makes an error one of D-Bus.
func (b *onBus) refused(err error) error {
	if _, begun := errors.AsType[*halfDone](err); err != nil && !begun && b.isOver() {
		return server.ErrReplaced
	}
	if wrong, is := errors.AsType[*orders.WordError](err); is {
		return dbusapi.Errorf(dbusapi.InvalidArgs, "%s", wrong.Error())
	}
	return err
}

// check finds what is wrong with a call, as do would.
func (b *onBus) check(ctx context.Context, r server.Request) error {
	// The server has checked the types.
	switch r.Method {
	case "Diagnose":
		return options{}.take(r.Args[0].(map[string]dbus.Variant))
	case "Off", "On":
		_, _, err := b.targets(ctx, r.Args[0].([]string))
		return err
	case "Bind":
		_, _, err := b.wanted(r.Args[0].(map[string]dbus.Variant))
		return err
	case "Unbind":
		_, err := b.bound(r.Args[0].(string))
		return err
	case "FailoverTest", "FailoverReset":
		_, _, err := b.uplink(ctx, r.Args[0].(string))
		return err
	case "SetLogLevel":
		_, err := orders.Level(r.Args[0].(string))
		return err
	default:
		return nil
	}
}

// do carries out a call. Whole is its context, ctx ends with the parts, too.
func (b *onBus) do(whole, ctx context.Context, r server.Request) (string, error) {
	// The server has checked the types.
	words := func() map[string]dbus.Variant { return r.Args[0].(map[string]dbus.Variant) }
	word := func() string { return r.Args[0].(string) }
	switch r.Method {
	case "Describe":
		return b.describe(ctx, words())
	case "Explain":
		return b.explain(ctx, words(), r.UID)
	case "Plan":
		return b.plan(ctx, words())
	case "Graph":
		return b.graph(ctx, words(), r.UID)
	case "Diagnose":
		return b.diagnose(ctx, words())
	case "Reload":
		return "", b.reload(whole)
	case "Reconcile":
		return "", b.reconcile(ctx)
	case "Off":
		return b.switchOff(whole, ctx, r.Args[0].([]string), r.By)
	case "On":
		return b.switchOn(ctx, r.Args[0].([]string))
	case "Bind":
		return b.bind(ctx, words())
	case "Unbind":
		return b.unbind(ctx, word())
	case "FailoverTest":
		return b.failover(ctx, handoff.TestFailover, word())
	case "FailoverReset":
		return b.failover(ctx, handoff.ResetFailover, word())
	case "SetLogLevel":
		return "", b.setLogLevel(ctx, word(), r.By)
	default:
		return "", dbusapi.Errorf(dbusapi.UnknownMethod, "%s is not known", r.Method)
	}
}

// describe makes the document of the status.
func (b *onBus) describe(ctx context.Context, given map[string]dbus.Variant) (string, error) {
	whole := true
	if err := (options{"objects": &whole}).take(given); err != nil {
		return "", err
	}
	if whole {
		document, err := b.teller.producer.Document(ctx)
		return string(document), err
	}
	s, _, err := b.teller.status(ctx)
	if err != nil {
		return "", err
	}
	short := *s
	short.Links, short.Shared = slices.Clone(s.Links), []status.Object{}
	for i := range short.Links {
		short.Links[i].Objects = []status.Object{}
	}
	document, err := status.Encode(short, func(status.Link) []byte { return nil })
	return string(document), err
}

// host is what words of orders may name.
func (b *onBus) host(ctx context.Context) (orders.Host, error) {
	h := orders.Host{Profiles: map[string]orders.Profile{}}
	snapshot, err := b.parts.loop.Snapshot(ctx, nil)
	if err != nil {
		return h, fmt.Errorf("asking the loop: %w", err)
	}
	for _, i := range snapshot.Interfaces {
		h.Interfaces = append(h.Interfaces, i.Facts.Name)
	}
	for name, d := range b.parts.watcher.Snapshot().Devices {
		h.Profiles[name] = orders.Profile{UUID: d.ProfileUUID, Name: d.ProfileID}
	}
	return h, nil
}

// targets finds the links that words name, as they are or as the status writes them.
func (b *onBus) targets(ctx context.Context, words []string) ([]orders.Target, orders.Host, error) {
	host, err := b.host(ctx)
	if err != nil || len(words) == 0 {
		return nil, host, err
	}
	off, _ := b.parts.off.State()
	targets, err := host.Targets(off, originals(words))
	return targets, host, err
}

func originals(words []string) []string {
	out := make([]string, 0, len(words))
	for _, w := range words {
		out = append(out, escape.Original(w))
	}
	return out
}

// vanishTime bounds how long objects may take to go; appearTime is for those that come.
const (
	vanishTime = 15 * time.Second
	appearTime = 15 * time.Second
)

// switchOff switches links off, all if there are none, and returns when their objects are gone: whoever
// removes them, so that it waits in its whole context.
func (b *onBus) switchOff(whole, ctx context.Context, words []string, by string) (string, error) {
	leave, err := b.turn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	targets, _, err := b.targets(ctx, words)
	if err != nil {
		return "", err
	}
	if len(targets) == 0 {
		targets = []orders.Target{{}}
	}
	// Before the switch: the objects in the kernel tell whose they are.
	remains := make([]*cleanup.Remains, 0, len(targets))
	for _, t := range targets {
		r, err := b.remains(ctx, t.Name)
		if err != nil {
			return "", err
		}
		defer closing(b.Logger, "view of the kernel", r.Close)
		remains = append(remains, r)
	}
	before, now, err := orders.SwitchOff(b.works, targets, offswitch.Mark{Since: time.Now().UTC().Truncate(time.Second), By: by})
	unkept, isUnkept := errors.AsType[*offswitch.UnkeptError](err)
	if err != nil && !isUnkept {
		return "", err
	}
	vanishing, cancel := context.WithTimeout(whole, vanishTime)
	defer cancel()
	sentences, failed := make([]string, 0, len(targets)), []error{}
	if isUnkept {
		failed = append(failed, unkept)
	}
	summaries := make([]string, len(targets))
	for i, r := range remains {
		if left := r.Left(); len(left) > 0 {
			summaries[i] = r.Summary(left)
		}
	}
	rereading, end := b.while(vanishing)
	b.reread(rereading)
	end()
	for i, t := range targets {
		left, err := remains[i].Await(vanishing)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s left; to fix: multihomectl off", remains[i].Summary(left))
		}
		if err == nil {
			_, err = remains[i].RemoveEndpoints(vanishing)
		}
		if err != nil {
			failed = append(failed, halfDonef("%s is switched off and adds nothing any more, but %w", t, err))
			continue
		}
		sentences = append(sentences, orders.SentenceOff(b.cfg, before, now, t, summaries[i]))
	}
	return strings.Join(sentences, "\n"), errors.Join(failed...)
}

// remains finds our objects, of one link or of all.
func (b *onBus) remains(ctx context.Context, link string) (*cleanup.Remains, error) {
	eras, err := cleanup.ReadEras(b.cfg.StateDir)
	if err != nil {
		b.Logger.LogAttrs(ctx, slog.LevelDebug, "earlier configurations unreadable", slog.String("error", err.Error()))
	}
	return cleanup.Open(ctx, cleanup.Options{Tables: b.cfg.Tables, RuntimeDir: b.cfg.RuntimeDir, Link: link, Eras: eras, Group: b.cfg.UplinkGroup})
}

// reread takes up what was switched, and waits for the passes that this causes and for what follows
// them.
func (b *onBus) reread(ctx context.Context) {
	b.parts.switched(ctx)
	b.parts.bindings.Reload(ctx)
	if _, err := b.parts.loop.Settled(ctx, ""); err == nil {
		b.parts.followed(ctx)
	}
}

// switchOn switches links on, everything if there are none, and returns when their routing is active.
func (b *onBus) switchOn(ctx context.Context, words []string) (string, error) {
	leave, err := b.turn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	targets, host, err := b.targets(ctx, words)
	if err != nil {
		return "", err
	}
	present := host.Present()
	before, now, err := orders.SwitchOn(b.works, targets, present)
	unkept, isUnkept := errors.AsType[*offswitch.UnkeptError](err)
	if err != nil && !isUnkept {
		return "", err
	}
	text := orders.SentenceOn(before, now, targets, present)
	ctx, cancel := context.WithTimeout(ctx, appearTime)
	defer cancel()
	b.reread(ctx)
	links, err := b.awaitActive(ctx)
	if err != nil {
		return "", halfDonef("%s, but %w", text, err)
	}
	text += ": " + orders.LinksRouted(targets, links)
	if isUnkept {
		return "", halfDonef("%s; %w", text, unkept)
	}
	return text, nil
}

// activeAgain is how often to look whether everything is active.
const activeAgain = 50 * time.Millisecond

// awaitActive waits until everything planned is active, and returns the links.
func (b *onBus) awaitActive(ctx context.Context) ([]offswitch.Interface, error) {
	ticker := time.NewTicker(activeAgain)
	defer ticker.Stop()
	for {
		snapshot, err := b.parts.loop.Snapshot(ctx, nil)
		if err != nil {
			return nil, fmt.Errorf("asking the loop: %w", err)
		}
		if len(snapshot.Missing) == 0 {
			var links []offswitch.Interface
			for _, i := range snapshot.Interfaces {
				if i.IsLink {
					links = append(links, offswitch.Interface{Name: i.Facts.Name, UUID: i.Claim.UUID})
				}
			}
			return links, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, server.ErrReplaced) {
				return nil, cause
			}
			return nil, errors.New("not everything is active yet; to fix: see multihomectl status")
		}
	}
}
