// Package recollection keeps a [reconcile.Recollection] in the runtime directory, for the
// next process: which rules of others were there before the ladder, and which links were
// uplinks. The daemon and who stands in for it write it; status reads it, too.
package recollection

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"multihomed/internal/ownership"
	"multihomed/routing/reconcile"
)

// Name is the name of the file in the runtime directory that holds what the
// next process must know of the time before it.
const Name = "memory.json"

// maxMemory bounds what Recall takes: it is no less than Keep writes for a thousand
// links with as many addresses each.
const maxMemory = 64 << 20

// A File is that file. It implements [reconcile.Memory].
type File struct{ Directory string }

var _ reconcile.Memory = File{}

// Recall returns what was kept. What cannot be read is as good as nothing: the next
// process judges by what it sees.
func (f File) Recall() (reconcile.Recollection, bool) {
	r, err := f.read()
	return r, err == nil
}

func (f File) read() (reconcile.Recollection, error) {
	file, err := os.Open(filepath.Join(f.Directory, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return reconcile.Recollection{}, err
	}
	if err != nil {
		return reconcile.Recollection{}, fmt.Errorf("reading the memory: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxMemory))
	if err != nil {
		return reconcile.Recollection{}, fmt.Errorf("reading the memory: %w", err)
	}
	var r reconcile.Recollection
	if err := json.Unmarshal(data, &r); err != nil {
		return reconcile.Recollection{}, fmt.Errorf("reading the memory: %w", err)
	}
	return r, nil
}

// Keep replaces the file.
func (f File) Keep(r reconcile.Recollection) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the memory: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(f.Directory, Name), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the memory: %w", err)
	}
	return nil
}
