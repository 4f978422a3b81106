package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rest is how long the daemon is left alone before its memory is read.
const rest = 4 * time.Second

// startUp measures starts with no ladder and no leases, the same objects made by
// others, and a start with complete routing. The daemon runs when it returns.
func (b *bench) startUp(ctx context.Context, row *Row) error {
	var ready, complete, each, batched, ip []time.Duration
	var want map[string]int
	var messages []message
	batch := filepath.Join(b.dir, "cold.batch")
	for range b.starts {
		if err := b.forgetLeases(); err != nil {
			return err
		}
		b.watch.reset()
		begin, took, err := b.start(ctx)
		if err != nil {
			return err
		}
		events, err := b.settled(ctx, func(events []event) error { return whole(len(b.links), events) })
		if err != nil {
			return err
		}
		ready, complete = append(ready, took), append(complete, last(events).Sub(begin))
		if want == nil {
			want = standing(events)
			messages = append(b.groups(uplinkGroup), replay(events)...)
			if err := batchFile(batch, messages, b.names); err != nil {
				return err
			}
			if err := pause(ctx, rest); err != nil {
				return err
			}
			if row.Memory, err = memoryOf(b.daemon.Pid()); err != nil {
				return err
			}
		}
		if err := b.stop(ctx); err != nil {
			return err
		}
		// The tables may have been given out in another order.
		if err := b.wipe(ctx, append(b.groups(uplinkGroup), replay(events)...)); err != nil {
			return err
		}
		for _, other := range []struct {
			times *[]time.Duration
			do    func() error
		}{
			{&each, func() error { return b.send.each(messages) }},
			{&batched, func() error { return b.send.batched(messages) }},
			{&ip, func() error { return runBatch(ctx, batch) }},
		} {
			begin := time.Now()
			if err := other.do(); err != nil {
				return err
			}
			events, err := b.settled(ctx, holds(want))
			if err != nil {
				return err
			}
			*other.times = append(*other.times, last(events).Sub(begin))
			if err := b.wipe(ctx, messages); err != nil {
				return err
			}
		}
	}
	row.Ready, row.Complete = series(ready), series(complete)
	row.Each, row.Batched, row.IP = series(each), series(batched), series(ip)

	// Once more, and again with everything there.
	if _, _, err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.settled(ctx, func(events []event) error { return whole(len(b.links), events) }); err != nil {
		return err
	}
	var again []time.Duration
	for range b.starts {
		if err := b.stop(ctx); err != nil {
			return err
		}
		_, took, err := b.start(ctx)
		if err != nil {
			return err
		}
		again = append(again, took)
		if _, err := b.settled(ctx, nothing); err != nil {
			return err
		}
	}
	row.Again = series(again)
	var answers []time.Duration
	for range b.starts {
		took, err := ask(ctx, b.owner.bus())
		if err != nil {
			return err
		}
		answers = append(answers, took)
	}
	row.Answers = series(answers)
	return nil
}

// whole says what objects are missing for the ladders of all links.
func whole(links int, events []event) error {
	stand := standing(events)
	if have, want := len(stand), perLink*links; have != want {
		return fmt.Errorf("%d objects instead of %d: %v", have, want, census(stand, events))
	}
	return nil
}

// census counts objects by kind, for an error about unexpected ones.
func census(stand map[string]int, events []event) map[string]int {
	out := map[string]int{}
	for _, e := range events {
		n, stands := stand[e.key()]
		if !stands {
			continue
		}
		delete(stand, e.key())
		kind := "routes"
		if e.kind == unix.RTM_NEWRULE || e.kind == unix.RTM_DELRULE {
			_, priority, _ := ruleOf(e.payload)
			kind = fmt.Sprintf("rules at %d", priority)
		}
		if n != 1 {
			kind += fmt.Sprintf(", %d times", n)
		}
		out[kind]++
	}
	return out
}

// groups are the requests that put all links into a group.
func (b *bench) groups(group uint32) []message {
	out := make([]message, 0, len(b.links))
	for _, l := range b.links {
		out = append(out, message{kind: unix.RTM_SETLINK, payload: groupPayload(l.index, group)})
	}
	return out
}

// wipe takes all objects away.
func (b *bench) wipe(ctx context.Context, messages []message) error {
	if err := b.send.batched(append(undo(messages[len(b.links):]), b.groups(0)...)); err != nil {
		return fmt.Errorf("taking the ladder away: %w", err)
	}
	_, err := b.settled(ctx, nothing)
	b.watch.reset()
	return err
}

// flush removes all routing, and the leases.
func (b *bench) flush(ctx context.Context) error {
	// ip deletes rules while the kernel still lists them, and misses some of a long list.
	for {
		if _, err := b.host.IP(ctx, "rule", "flush", "protocol", "150"); err != nil {
			return err
		}
		left, err := b.host.IP(ctx, "-N", "rule")
		if err != nil {
			return err
		}
		if !strings.Contains(left, " proto 150") {
			break
		}
	}
	if _, err := b.host.IP(ctx, "route", "flush", "table", "all", "protocol", "150"); err != nil {
		return err
	}
	if err := b.send.batched(b.groups(0)); err != nil {
		return fmt.Errorf("resetting groups: %w", err)
	}
	if _, err := b.settled(ctx, nothing); err != nil {
		return err
	}
	return b.forgetLeases()
}

func (b *bench) forgetLeases() error {
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listing the state: %w", err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".toml" || filepath.Ext(e.Name()) == ".batch" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(b.dir, e.Name())); err != nil {
			return fmt.Errorf("removing the state: %w", err)
		}
	}
	return nil
}
