package runstate

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

// MemoryName is the name of the file in the runtime directory that holds what the
// next process must know of the time before it.
const MemoryName = "memory.json"

// maxMemory bounds what Recall takes: it is no less than Keep writes for a thousand
// links with as many addresses each.
const maxMemory = 64 << 20

// A Memory is that file. It implements [reconcile.Memory].
type Memory struct{ Directory string }

var _ reconcile.Memory = Memory{}

// Recall returns what was kept. What cannot be read is as good as nothing: the next
// process judges by what it sees.
func (m Memory) Recall() (reconcile.Recollection, bool) {
	r, err := m.read()
	return r, err == nil
}

func (m Memory) read() (reconcile.Recollection, error) {
	f, err := os.Open(filepath.Join(m.Directory, MemoryName))
	if errors.Is(err, fs.ErrNotExist) {
		return reconcile.Recollection{}, err
	}
	if err != nil {
		return reconcile.Recollection{}, fmt.Errorf("reading the memory: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMemory))
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
func (m Memory) Keep(r reconcile.Recollection) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the memory: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(m.Directory, MemoryName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the memory: %w", err)
	}
	return nil
}
