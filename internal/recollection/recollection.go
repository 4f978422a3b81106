// Package recollection keeps a [reconcile.Recollection] in the runtime directory, for the
// next process: which rules of others were there before the ladder, and which links were
// uplinks. The daemon and who stands in for it write the file; status reads it, too.
package recollection

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
	"multihomed/routing/reconcile"
)

// Name is the name of the file in the runtime directory.
const Name = "memory.json"

// maxSize bounds what Recall reads, in bytes: it is no less than Keep writes for a thousand
// links with as many addresses each.
const maxSize = 64 << 20

// A File is that file. It implements [reconcile.Memory].
type File struct {
	// Directory is the runtime directory.
	Directory string
}

var _ reconcile.Memory = File{}

// Recall returns what was kept, false if nothing was. What cannot be read is as good as
// nothing: the next process judges by what it sees.
func (f File) Recall() (reconcile.Recollection, bool) {
	var r reconcile.Recollection
	data, err := fsutil.ReadFile(filepath.Join(f.Directory, Name), maxSize)
	if err != nil || json.Unmarshal(data, &r) != nil {
		return reconcile.Recollection{}, false
	}
	return r, true
}

// Keep replaces the file.
func (f File) Keep(r reconcile.Recollection) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding what is kept of rules and uplinks: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(f.Directory, Name), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping rules and uplinks for the next process: %w", err)
	}
	return nil
}
