package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"

	"multihomed/internal/event"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// historyName is the file in the state directory that says under which
// configurations objects were made that may still stand.
const historyName = "history.json"

// An era is the part of a configuration by which objects of ours are known: the
// tables they stand in, and the group of uplinks.
type era struct {
	First       routing.TableID `json:"first_table"`
	Last        routing.TableID `json:"last_table"`
	UplinkGroup uint32          `json:"uplink_group"`
}

// A history is what a change of the configuration leaves to be done. It is on
// disk before anything is made under the new configuration and until nothing is
// left of the old one, so that a crash in between leaks nothing. (Rules need no
// history: they are known by their priority.)
type history struct {
	log    *slog.Logger
	path   string
	policy routing.Policy
	past   []era
}

func eraOf(p routing.Policy) era {
	return era{First: p.Tables.First, Last: p.Tables.Last, UplinkGroup: p.UplinkGroup}
}

// openHistory reads what was before, and notes what is now. A file that cannot
// be read or written is no reason not to start: it costs a later clean-up.
func openHistory(ctx context.Context, log *slog.Logger, directory string, p routing.Policy) *history {
	h := &history{log: log, path: filepath.Join(directory, historyName), policy: p}
	eras, err := readEras(h.path)
	if err != nil {
		log.LogAttrs(ctx, event.LevelNotice, "earlier configurations unknown, so that what they left may stay", slog.String("error", err.Error()))
	}
	now := eraOf(p)
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

func readEras(path string) ([]era, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	var eras []era
	if err := json.Unmarshal(data, &eras); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	// The kernel's own tables were never ours, and no group is 0.
	return slices.DeleteFunc(eras, func(e era) bool {
		return e.First == 0 || e.Last < e.First || e.First <= routing.TableLocal && e.Last >= routing.TableDefault || e.UplinkGroup == 0
	}), nil
}

func (h *history) write(ctx context.Context, eras []era) {
	data, err := json.Marshal(eras)
	if err == nil {
		err = renameio.WriteFile(h.path, append(data, '\n'), 0o600)
	}
	if err != nil {
		h.log.LogAttrs(ctx, event.LevelNotice, "configuration not recorded, so that a later change may leave routes behind", slog.String("error", err.Error()))
	}
}

// moveGroups puts the uplinks of earlier configurations into the group of this
// one. Whoever is none leaves it in the first pass. Until the rule that tells
// uplinks by it stands again, bound traffic does not see main's routes at all:
// the other order would let it see those of other uplinks.
func (h *history) moveGroups(ctx context.Context) {
	former := map[uint32]bool{}
	for _, e := range h.past {
		if e.UplinkGroup != h.policy.UplinkGroup {
			former[e.UplinkGroup] = true
		}
	}
	if len(former) == 0 {
		return
	}
	err := h.change(ctx, h.policy.Tables, func(k *kernel.State) []routing.Op {
		var before, groups, after []routing.Op
		for r := range k.Rules() {
			if r.Priority != routing.PriorityKnown || !former[r.SuppressGroup.Value] {
				continue
			}
			before = append(before, routing.Op{Verb: routing.DeleteRule, Rule: r})
			r.SuppressGroup = routing.Some(h.policy.UplinkGroup)
			after = append(after, routing.Op{Verb: routing.AddRule, Rule: r})
		}
		for index, group := range k.Groups() {
			if former[group] {
				groups = append(groups, routing.Op{Verb: routing.SetGroup, Index: index, Group: h.policy.UplinkGroup})
			}
		}
		return slices.Concat(before, groups, after)
	})
	if err != nil {
		h.log.LogAttrs(ctx, event.LevelNotice, "interfaces left in the earlier group of uplinks", slog.String("error", err.Error()))
	}
}

// clean removes the routes in tables that are no longer ours. It is called when
// no rule leads to them any more.
func (h *history) clean(ctx context.Context) {
	if len(h.past) == 0 {
		return
	}
	for _, e := range h.past {
		tables := routing.TableRange{First: e.First, Last: e.Last}
		err := h.change(ctx, tables, func(k *kernel.State) []routing.Op {
			var ops []routing.Op
			for r := range k.Routes() {
				if !h.policy.Tables.Contains(r.Table) {
					ops = append(ops, routing.Op{Verb: routing.DeleteRoute, Route: r})
				}
			}
			return ops
		})
		if err != nil {
			h.log.LogAttrs(ctx, event.LevelNotice, "routes of an earlier configuration left", slog.String("tables", tables.String()), slog.String("error", err.Error()))
			return
		}
	}
	h.past = nil
	h.write(ctx, []era{eraOf(h.policy)})
}

// change looks at the kernel with our tables being others, and applies what
// follows.
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
	mirror.View(func(k *kernel.State) { ops = decide(k) })
	for _, op := range ops {
		h.log.LogAttrs(ctx, slog.LevelDebug, "kernel changed", slog.String("operation", op.String()), slog.String("reason", "the configuration changed"))
	}
	return errors.Join(writer.Apply(ctx, ops)...)
}
