package failover

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"multihomed/internal/event"
	"multihomed/internal/fsutil"
	"multihomed/internal/news"
	"multihomed/internal/ownership"
)

// A Memory outlives the process, not the boot.
type Memory interface {
	// Recall returns what was kept; nothing if that cannot be read.
	Recall() []Kept
	// Keep replaces it.
	Keep([]Kept) error
}

// FileName is the name of the file of [File] in the runtime directory.
const FileName = "failover.json"

// maxFile bounds what Recall reads, in bytes.
const maxFile = 4 << 20

// A File is a Memory in the runtime directory.
type File struct{ Directory string }

var _ Memory = File{}

// Recall returns what was kept. What cannot be read is as good as nothing: the links are
// judged anew.
func (f File) Recall() []Kept {
	return recall[Kept](filepath.Join(f.Directory, FileName), maxFile)
}

// recall reads a file of at most so many bytes, nothing if that cannot be read.
func recall[T any](path string, most int64) (all []T) {
	data, err := fsutil.ReadFile(path, most)
	if err != nil || json.Unmarshal(data, &all) != nil {
		return nil
	}
	return all
}

// Keep replaces the file.
func (f File) Keep(all []Kept) error {
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encoding what is kept of the health of uplinks: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(f.Directory, FileName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping the health of uplinks for the next process: %w", err)
	}
	return nil
}

// keep notes what the next process must know.
func (c *Controller) keep() {
	if c.Memory == nil {
		return
	}
	var all []Kept
	for _, k := range sortedKeys(c.watches) {
		w := c.watches[k]
		all = append(all, Kept{Interface: w.uplink.Name, Index: w.index, Family: w.family, Memory: w.machine.Memory()})
	}
	c.memory.Put(all)
}

// keepAgain is the pause before a write that failed is tried again.
const keepAgain = 10 * time.Second

// remember writes what was noted.
func (c *Controller) remember(ctx context.Context) {
	if c.Memory == nil {
		return
	}
	keepEach(ctx, c.memory, c.Memory.Keep, func(err error) {
		c.Logger.LogAttrs(ctx, event.LevelNotice, "after a restart, links that do not work will be judged anew", slog.String("error", err.Error()))
	})
}

// keepEach keeps what comes into a slot until ctx is done, and what is left then. It calls complain
// for a failure, once until it works again.
func keepEach[T any](ctx context.Context, slot *news.Slot[T], keep func(T) error, complain func(error)) {
	failed := false
	write := func(_ context.Context, value T) error {
		err := keep(value)
		if err != nil && !failed {
			complain(err)
		}
		failed = err != nil
		return err
	}
	_ = slot.Follow(ctx, keepAgain, write) // It ends with ctx alone.
	slot.Rest(func(value T) { _ = write(ctx, value) })
}
