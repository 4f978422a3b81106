package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/answering"
	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// userFiles is the directory of passwd(5).
const userFiles = "/etc"

// isOff reports whether all of multihomed is switched off.
func (p *parts) isOff() bool {
	state, _ := p.off.State()
	return state.HostOff()
}

// openBindings reads what is bound.
func (p *parts) openBindings(cfg config.Config, more extras) *binding.Keeper {
	o := binding.Options{
		Logger: p.log, Config: cfg, Problems: more.unbound,
		Off: p.isOff,
	}
	if p.names = more.names; p.names != nil {
		o.NewLed = p.names.look
	}
	return binding.New(o)
}

// followUsers reads what is bound again when users come or go, and once a minute, for whatever
// nobody announces.
func (p *parts) followUsers(ctx context.Context) {
	changed := watchDirectory(ctx, userFiles, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE)
	unannounced := time.NewTicker(lookEvery)
	defer unannounced.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-unannounced.C:
		}
		p.bindings.Reload(ctx)
	}
}

// boundStatus is what status says of bindings.
func (p *parts) boundStatus(s *reconcile.Snapshot, fence answers.Held) []status.Binding {
	states, held := p.bindings.States()
	rows := binding.Status(states, held, p.bindings.Config.Answers.MarkMask, s)
	for i := range rows {
		p.cgroups.describe(&rows[i])
		if rows[i].ByCgroup() {
			continue // The row of the mark counts for all of its link.
		}
		rows[i].Dropped = answering.Dropped(fence, s, rows[i].Name)
	}
	if p.names != nil {
		binding.SayLed(rows, states, p.names.links.all())
	}
	return rows
}

// hold makes the mark of a link that sockets may have, and waits until its rules and the fence
// stand.
func (p *parts) hold(ctx context.Context, link string) (routing.Mark, error) {
	mark, err := p.bindings.Hold(ctx, link)
	if err != nil {
		return routing.Mark{}, err
	}
	if err := p.stand(ctx); err != nil {
		return routing.Mark{}, fmt.Errorf("waiting for the rules of %s: %w", link, err)
	}
	p.log.LogAttrs(ctx, slog.LevelDebug, "mark held", slog.String("link", link))
	return mark, nil
}

// stand waits until the rules and the fence stand of all that is bound now.
func (p *parts) stand(ctx context.Context) error {
	if _, err := p.loop.Settled(ctx, ""); err != nil {
		return err
	}
	p.answers.needs.Idle(ctx)
	return nil
}
