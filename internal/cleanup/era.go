package cleanup

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// HistoryName is the file in the state directory that lists the configurations whose
// objects the kernel may still hold.
const HistoryName = "history.json"

// maxHistory bounds that file, in bytes.
const maxHistory = 1 << 20

// An Era is the part of a configuration that identifies our objects: the tables and the
// group of uplinks.
type Era struct {
	First       routing.TableID `json:"first_table"`
	Last        routing.TableID `json:"last_table"`
	UplinkGroup uint32          `json:"uplink_group"`
}

// EraOf is what a policy leaves in the kernel.
func EraOf(p routing.Policy) Era {
	return Era{First: p.Tables.First, Last: p.Tables.Last, UplinkGroup: p.UplinkGroup}
}

// Tables is the range of an era.
func (e Era) Tables() routing.TableRange { return routing.TableRange{First: e.First, Last: e.Last} }

// sound reports whether an era can be ours: we never use the kernel's own tables or group 0,
// and no configuration allows more tables.
func (e Era) sound() bool {
	return e.First > 0 && e.Last >= e.First && e.Last-e.First < maxTables &&
		(e.First > routing.TableLocal || e.Last < routing.TableDefault) && e.UplinkGroup != 0
}

// maxTables is more than a configuration may ask for.
const maxTables = 1 << 20

// ReadEras reads the configurations in the history, the last one last. It returns none if no
// daemon ever ran with this state directory.
func ReadEras(state string) ([]Era, error) {
	path := filepath.Join(state, HistoryName)
	data, err := fsutil.ReadFile(path, maxHistory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading earlier configurations: %w", err)
	}
	var all, sound []Era
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("reading earlier configurations in %s: %w", path, err)
	}
	for _, e := range all {
		if e.sound() {
			sound = append(sound, e)
		}
	}
	return sound, nil
}

// WriteEras replaces what ReadEras reads.
func WriteEras(state string, eras []Era) error {
	data, err := json.Marshal(eras)
	if err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(state, HistoryName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	return nil
}

// Regroup returns the changes that move the uplinks of earlier configurations into the group of a
// policy. Rules that suppress an old group go first and come back last: until they are back, bound
// traffic does not see main's routes at all. The other order would show it the routes of other
// uplinks.
func Regroup(k *kernel.State, past []Era, p routing.Policy) []routing.Op {
	former := map[uint32]bool{}
	for _, e := range past {
		if e.UplinkGroup != p.UplinkGroup {
			former[e.UplinkGroup] = true
		}
	}
	if len(former) == 0 {
		return nil
	}
	var before, groups, after []routing.Op
	for r := range k.Rules() {
		if r.Priority != routing.PriorityKnown || !former[r.SuppressGroup.Value] {
			continue
		}
		before = append(before, routing.Op{Verb: routing.DeleteRule, Rule: r})
		r.SuppressGroup = routing.Some(p.UplinkGroup)
		after = append(after, routing.Op{Verb: routing.AddRule, Rule: r})
	}
	for index, group := range k.Groups() {
		if former[group] {
			groups = append(groups, routing.Op{Verb: routing.SetGroup, Index: index, Group: p.UplinkGroup})
		}
	}
	slices.SortFunc(groups, func(a, b routing.Op) int { return cmp.Compare(a.Index, b.Index) })
	return slices.Concat(before, groups, after)
}

// Outdated returns the deletions of our routes in tables that a policy does not have. No rule may
// lead to these tables any more.
func Outdated(k *kernel.State, p routing.Policy) []routing.Op {
	var ops []routing.Op
	for r := range k.Routes() {
		if !p.Tables.Contains(r.Table) {
			ops = append(ops, routing.Op{Verb: routing.DeleteRoute, Route: r})
		}
	}
	return ops
}
