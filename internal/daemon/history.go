package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"multihomed/internal/cleanup"
	"multihomed/internal/event"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A history lists earlier configurations whose objects may be left in the kernel. It is on
// disk before the first object of a new configuration and until the last of the old one is
// gone, so that a crash in between leaks nothing. Rules need no history: their priority
// identifies them.
type history struct {
	log    *slog.Logger
	state  string
	policy routing.Policy
	past   []cleanup.Era
}

// openHistory reads the earlier configurations and adds this one. If the file cannot be read
// or written the daemon starts all the same, and routes of earlier tables may stay.
func openHistory(ctx context.Context, log *slog.Logger, directory string, p routing.Policy) *history {
	h := &history{log: log, state: directory, policy: p}
	eras, err := cleanup.ReadEras(directory)
	if err != nil {
		log.LogAttrs(ctx, event.LevelNotice, "earlier configurations unknown, so that their routes may stay", slog.String("error", err.Error()))
	}
	now := cleanup.EraOf(p)
	for _, e := range eras {
		if e != now && !slices.Contains(h.past, e) {
			h.past = append(h.past, e)
		}
	}
	if want := append(slices.Clone(h.past), now); !slices.Equal(want, eras) {
		h.write(ctx, want)
	}
	return h
}

func (h *history) write(ctx context.Context, eras []cleanup.Era) {
	if err := cleanup.WriteEras(h.state, eras); err != nil {
		h.log.LogAttrs(ctx, event.LevelNotice, "configuration not recorded, so that a later change may leave routes behind", slog.String("error", err.Error()))
	}
}

// moveGroups moves the uplinks of earlier configurations into the group of this one. The
// first pass takes out those that are none.
func (h *history) moveGroups(ctx context.Context) {
	if !slices.ContainsFunc(h.past, func(e cleanup.Era) bool { return e.UplinkGroup != h.policy.UplinkGroup }) {
		return
	}
	err := h.change(ctx, h.policy.Tables, func(k *kernel.State) []routing.Op { return cleanup.Regroup(k, h.past, h.policy) })
	if err != nil {
		h.log.LogAttrs(ctx, event.LevelNotice, "interfaces left in the earlier group of uplinks", slog.String("error", err.Error()))
	}
}

// clean removes the routes in tables that are no longer ours. Call it when no rule leads to
// them any more.
func (h *history) clean(ctx context.Context) {
	if len(h.past) == 0 {
		return
	}
	for _, e := range h.past {
		tables := e.Tables()
		err := h.change(ctx, tables, func(k *kernel.State) []routing.Op { return cleanup.Outdated(k, h.policy) })
		if err != nil {
			h.log.LogAttrs(ctx, event.LevelNotice, "routes of an earlier configuration left", slog.String("tables", tables.String()), slog.String("error", err.Error()))
			return
		}
	}
	h.past = nil
	h.write(ctx, []cleanup.Era{cleanup.EraOf(h.policy)})
}

// change reads the kernel as if these tables were ours, and applies what decide returns.
func (h *history) change(ctx context.Context, tables routing.TableRange, decide func(*kernel.State) []routing.Op) error {
	mirror, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
	if err != nil {
		return err
	}
	defer mirror.Close()
	if err := mirror.Sync(ctx); err != nil {
		return err
	}
	writer, err := mirror.OpenWriter()
	if err != nil {
		return err
	}
	defer writer.Close()
	var ops []routing.Op
	mirror.View(func(k *kernel.State) {
		ops = decide(k)
		for _, op := range ops {
			h.log.LogAttrs(ctx, slog.LevelDebug, "kernel changed", slog.String("operation", op.Text(k.Name)), slog.String("reason", "the configuration changed"))
		}
	})
	return errors.Join(writer.Apply(ctx, ops)...)
}
