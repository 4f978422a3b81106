package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A trial is one change, with the CPU time of who made the ladder, and that of the
// kernel for the event where that was measured.
type trial struct{ wall, cpu, event time.Duration }

// change measures how long it takes from an address and its routes to the
// complete ladder, by the daemon and by others. Each round measures all of them.
func (b *bench) change(ctx context.Context) (Change, error) {
	l := b.links[len(b.links)-1]
	var none Change
	if err := b.down(ctx, l); err != nil {
		return none, err
	}
	group, err := groupOf(l.name)
	if err != nil {
		return none, err
	}
	b.watch.reset()
	if err := b.send.batched(l.configure()); err != nil {
		return none, err
	}
	events, err := b.settled(ctx, func(events []event) error {
		if have := len(standing(events)); have != perLink {
			return fmt.Errorf("%d objects instead of %d", have, perLink)
		}
		return nil
	})
	if err != nil {
		return none, err
	}
	goal, messages := standing(events), replay(events)
	if group == 0 {
		messages = append([]message{{kind: unix.RTM_SETLINK, payload: groupPayload(l.index, uplinkGroup)}}, messages...)
	}
	batch := filepath.Join(b.dir, "change.batch")
	if err := batchFile(batch, messages, b.names); err != nil {
		return none, err
	}

	var announced, daemon, cpu, each, batched, batchedCPU, ip []time.Duration
	for range b.runs {
		if err := b.down(ctx, l); err != nil {
			return none, err
		}
		t, took, err := b.byDaemon(ctx, l, goal)
		if err != nil {
			return none, fmt.Errorf("by the daemon: %w", err)
		}
		daemon, cpu, announced = append(daemon, t.wall), append(cpu, t.cpu), append(announced, took)
		if err := b.down(ctx, l); err != nil {
			return none, err
		}
		if err := b.freeze(ctx); err != nil {
			return none, err
		}
		for _, other := range []struct {
			do   func() error
			note func(trial)
		}{
			{func() error { return b.send.each(messages) }, func(t trial) { each = append(each, t.wall) }},
			{func() error { return b.send.batched(messages) }, func(t trial) {
				batched, batchedCPU = append(batched, t.wall), append(batchedCPU, t.cpu)
			}},
			{func() error { return runBatch(ctx, batch) }, func(t trial) { ip = append(ip, t.wall) }},
		} {
			t, err := b.byOther(ctx, l, goal, messages, group, other.do)
			if err != nil {
				return none, fmt.Errorf("by others: %w", err)
			}
			other.note(t)
		}
		if err := b.thaw(ctx); err != nil {
			return none, err
		}
		b.watch.reset()
		if err := b.send.batched(l.configure()); err != nil {
			return none, err
		}
		if _, err := b.settled(ctx, holds(goal)); err != nil {
			return none, fmt.Errorf("by the daemon after the others: %w", err)
		}
	}
	return Change{
		Event: series(announced), Daemon: series(daemon), CPU: series(cpu),
		Each: series(each), Batched: series(batched), BatchedCPU: series(batchedCPU), IP: series(ip),
		Objects: len(messages),
	}, nil
}

// byDaemon configures the link and waits for its ladder.
func (b *bench) byDaemon(ctx context.Context, l link, goal map[string]int) (t trial, event time.Duration, err error) {
	daemon := clockOf(b.daemon.Pid())
	before, err := daemon.read()
	if err != nil {
		return t, 0, err
	}
	b.watch.reset()
	configure := l.configure()
	begin := time.Now()
	if err := b.send.batched(configure); err != nil {
		return t, 0, err
	}
	event = time.Since(begin)
	events, err := b.settled(ctx, holds(goal))
	if err != nil {
		return t, 0, err
	}
	after, err := daemon.read()
	return trial{wall: last(events).Sub(begin), cpu: after - before}, event, err
}

// byOther configures the link, has another program make its ladder, and removes both.
func (b *bench) byOther(ctx context.Context, l link, goal map[string]int, messages []message, group uint32, do func() error) (t trial, err error) {
	b.watch.reset()
	configure := l.configure()
	begin := time.Now()
	if err := b.send.batched(configure); err != nil {
		return t, err
	}
	before, err := thisThread.read()
	if err != nil {
		return t, err
	}
	if err := do(); err != nil {
		return t, err
	}
	after, err := thisThread.read()
	if err != nil {
		return t, err
	}
	events, err := b.settled(ctx, holds(goal))
	if err != nil {
		return t, err
	}
	t = trial{wall: last(events).Sub(begin), cpu: after - before}
	back := messages
	if group == 0 {
		back = messages[1:]
		if err := b.send.batched([]message{{kind: unix.RTM_SETLINK, payload: groupPayload(l.index, 0)}}); err != nil {
			return t, err
		}
	}
	if err := b.send.batched(append(undo(back), l.deconfigure()...)); err != nil {
		return t, fmt.Errorf("taking the ladder away: %w", err)
	}
	_, err = b.settled(ctx, nothing)
	return t, err
}

// down takes the link's address away and waits for its rules to go.
func (b *bench) down(ctx context.Context, l link) error {
	b.watch.reset()
	if err := b.send.batched(l.deconfigure()); err != nil {
		return fmt.Errorf("taking the address away: %w", err)
	}
	_, err := b.settled(ctx, func(events []event) error {
		gone := 0
		for _, e := range events {
			if e.kind == unix.RTM_DELRULE {
				gone++
			}
		}
		if gone < perLink-2 {
			return fmt.Errorf("%d rules have gone instead of %d", gone, perLink-2)
		}
		return nil
	})
	return err
}

func groupOf(name string) (uint32, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("finding %s: %w", name, err)
	}
	return l.Attrs().Group, nil
}
