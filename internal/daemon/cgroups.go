package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"multihomed/internal/binder/client"
	"multihomed/internal/cgroups"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/news"
	"multihomed/internal/status"
	"multihomed/routing"
)

// cgroupNotBound says that a control group exists whose sockets are not bound.
const cgroupNotBound routing.Code = "cgroup-not-bound"

// attachTime bounds how long multihomed-binder may take, which systemd may have to start.
const attachTime = 20 * time.Second

// boundCgroups binds the control groups of units and slices by multihomed-binder, whenever they are made.
type boundCgroups struct {
	parts  *parts
	keeper *cgroups.Keeper
	report func([]routing.Problem)
	// some is given when a binding of this kind is wanted.
	some news.Signal

	mu sync.Mutex
	// wanted are the entries whose selectors the keeper has, in its order.
	wanted []config.Bind
}

func newBoundCgroups(cfg config.Config, p *parts, report func([]routing.Problem)) *boundCgroups {
	memory := cgroups.Memory{Directory: cfg.RuntimeDir}
	b := &boundCgroups{parts: p, report: report, some: news.NewSignal()}
	b.keeper = cgroups.NewKeeper(cgroups.Options{Logger: p.log, Attach: b.attach, Remembered: memory.Recall(), Remember: memory.Keep})
	return b
}

func (b *boundCgroups) attach(ctx context.Context, link string, cgroup *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	note, err := client.Bind(ctx, client.DefaultPath, link, cgroup)
	if err == nil && note != "" {
		b.parts.log.LogAttrs(ctx, event.LevelNotice, "cgroup bound, and something is missing", slog.String("cgroup", escape.Name(cgroup.Name())), slog.String("reason", note))
	}
	return err
}

// want tells the keeper what is to be bound now. While everything is switched off, that is nothing.
func (b *boundCgroups) want() {
	var entries []config.Bind
	var binds []cgroups.Bind
	off, _ := b.parts.off.State()
	states, _ := b.parts.bindings.States()
	for _, s := range states {
		if !s.IsCgroup() || s.Refused != "" || off.HostOff() {
			continue
		}
		selector, err := selectorOf(s.Bind)
		if err != nil {
			continue // The configuration was checked.
		}
		entries, binds = append(entries, s.Bind), append(binds, cgroups.Bind{Selector: selector, Link: s.Link})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(entries, b.wanted) {
		return
	}
	b.wanted = entries
	b.keeper.Want(binds...)
	if len(binds) > 0 {
		b.some.Give()
	}
}

func selectorOf(b config.Bind) (cgroups.Selector, error) {
	switch {
	case b.Unit != "":
		return cgroups.Unit(b.Unit)
	case b.Slice != "":
		return cgroups.Slice(b.Slice)
	default:
		return cgroups.Path(b.Cgroup)
	}
}

// states are those of the wanted entries.
func (b *boundCgroups) states() ([]config.Bind, []cgroups.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wanted, b.keeper.States()
}

// run binds until ctx is done. Nothing is watched before something is wanted.
func (b *boundCgroups) run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	started := false
	b.want()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.parts.bindings.StatesChanged():
			b.want()
		case <-b.keeper.Changed():
			b.tell()
		case <-b.some:
			if !started {
				started = true
				running.Go(func() { _ = b.keeper.Run(ctx) }) // It fails never.
			}
		}
	}
}

// tell reports what is not bound.
func (b *boundCgroups) tell() {
	var problems []routing.Problem
	entries, states := b.states()
	for i, s := range states {
		if s.Standing == cgroups.Failing {
			p := routing.ProblemOf(cgroupNotBound, routing.Warning, "", errors.New(s.Sentence()))
			p.Object = entries[i].Selector().String()
			problems = append(problems, p)
		}
	}
	b.report(problems)
}

// describe completes what status says of a binding.
func (b *boundCgroups) describe(row *status.Binding) {
	entries, states := b.states()
	for i, e := range entries {
		s := e.Selector()
		if row.Selector != s.Key || row.Value != s.Value || row.Link != e.Link {
			continue
		}
		why := states[i].Sentence()
		switch states[i].Standing {
		case cgroups.Failing:
			row.State = status.BindingFailed
		case cgroups.Looking, cgroups.Waiting, cgroups.Binding:
			row.State = status.BindingWaits
		case cgroups.Bonded:
			if row.Why != "" {
				why = row.Why + "; " + why
			}
		}
		row.Why = why
	}
}
