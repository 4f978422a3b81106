package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/answering"
	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// userFiles is the directory of passwd(5).
const userFiles = "/etc"

// openBindings reads what is bound.
func (p *parts) openBindings(cfg config.Config, problems func([]routing.Problem)) *binding.Keeper {
	return binding.New(binding.Options{
		Logger: p.log, Config: cfg, Problems: problems,
		Off: func() bool {
			state, _ := p.off.State()
			return state.HostOff()
		},
	})
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
		rows[i].Dropped = answering.Dropped(fence, s, rows[i].Name)
	}
	return rows
}

// hold makes the mark of a link that sockets may have, and waits until its rules and the fence
// stand. The link must exist: a name that nobody has would use up a number until the next boot.
func (p *parts) hold(ctx context.Context, link string) (routing.Mark, error) {
	s, err := p.loop.Snapshot(ctx, nil)
	if err != nil {
		return routing.Mark{}, fmt.Errorf("asking for the links: %w", err)
	}
	if err := knows(s, link); err != nil {
		return routing.Mark{}, err
	}
	mark, err := p.bindings.Hold(ctx, link)
	if err != nil {
		return routing.Mark{}, err
	}
	if _, err := p.loop.Settled(ctx, ""); err != nil {
		return routing.Mark{}, fmt.Errorf("waiting for the rules of %s: %w", link, err)
	}
	p.answers.needs.Idle(ctx)
	return mark, nil
}

// knows refuses what is no link by the name of its interface or profile.
func knows(s *reconcile.Snapshot, link string) error {
	var names []string
	for _, i := range s.Interfaces {
		if !i.IsLink {
			continue
		}
		if i.Facts.Name == link || i.Claim.Profile == link || i.Claim.UUID == link {
			return nil
		}
		names = append(names, escape.Name(i.Facts.Name))
	}
	if len(names) == 0 {
		return fmt.Errorf("there is no link %s, nor another one; to fix: connect it, see nmcli device", escape.Name(link))
	}
	return fmt.Errorf("there is no link %s; there are %s; to fix: name one of them", escape.Name(link), strings.Join(names[:min(len(names), mostNamed)], ", "))
}

// mostNamed bounds the names in an error.
const mostNamed = 20
