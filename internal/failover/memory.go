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
	var all []Kept
	data, err := fsutil.ReadFile(filepath.Join(f.Directory, FileName), maxFile)
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
	failed := false
	write := func(ctx context.Context, all []Kept) error {
		err := c.Memory.Keep(all)
		if err != nil && !failed {
			c.Logger.LogAttrs(ctx, event.LevelNotice, "after a restart, links that do not work will be judged anew", slog.String("error", err.Error()))
		}
		failed = err != nil
		return err
	}
	_ = c.memory.Follow(ctx, keepAgain, write) // It ends with ctx alone.
	c.memory.Rest(func(all []Kept) { _ = write(context.WithoutCancel(ctx), all) })
}
