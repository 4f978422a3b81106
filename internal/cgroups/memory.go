package cgroups

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
)

// MemoryName is the name of a Memory's file.
const MemoryName = "bound-cgroups.json"

// maxMemory bounds what Recall reads, in bytes. A thousand cgroups with the longest names need less.
const maxMemory = 16 << 20

// A Memory keeps in the runtime directory which cgroups are bound, for the next process: a cgroup remains bound when the daemon ends, and
// takes 64 programs. A reboot ends both.
type Memory struct {
	// Directory is the runtime directory.
	Directory string
}

// Recall returns what was kept, as [Options.Remembered]. What cannot be read is as good as nothing: then cgroups are bound a second time,
// which changes nothing for them.
func (m Memory) Recall() []Bound {
	var all []Bound
	data, err := fsutil.ReadFile(filepath.Join(m.Directory, MemoryName), maxMemory)
	if err != nil || json.Unmarshal(data, &all) != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(b Bound) bool {
		_, err := Path(b.Path)
		return err != nil || b.ID == 0 || b.Link == ""
	})
}

// Keep replaces the file, as [Options.Remember].
func (m Memory) Keep(all []Bound) error {
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encoding which cgroups are bound: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(m.Directory, MemoryName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing which cgroups are bound: %w", err)
	}
	return nil
}
