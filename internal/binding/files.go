package binding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/flock"
	"multihomed/internal/fsutil"
	"multihomed/internal/offswitch"
	"multihomed/internal/ownership"
	"multihomed/routing"
)

// Names of files: what was added, in both directories; the held marks and the lock of changes, in
// the runtime directory.
const (
	fileName = "bindings.toml"
	heldName = "bound.json"
	lockName = "bindings.lock"
)

// maxSize bounds the files, in bytes.
const maxSize = 1 << 20

// mode lets everybody read: the daemon, which is not root, and status.
const mode = 0o644

// Path is where the entries of an origin are, in one of the directories.
func Path(d offswitch.Directories, o Origin) string {
	if o == Runtime {
		return filepath.Join(d.Runtime, fileName)
	}
	return filepath.Join(d.State, fileName)
}

// Load reads the entries that `multihomectl bind` keeps. A file that cannot be read or parsed has
// none, and the error names it.
func Load(d offswitch.Directories) ([]Entry, error) {
	var all []Entry
	origins := []Origin{Added, Runtime}
	errs := make([]error, 0, len(origins))
	for _, o := range origins {
		binds, err := load(Path(d, o))
		errs = append(errs, err)
		for _, b := range binds {
			all = append(all, Entry{b, o})
		}
	}
	return all, errors.Join(errs...)
}

func load(path string) ([]config.Bind, error) {
	data, err := fsutil.ReadFile(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is bound: %w; to fix: correct or remove %s", err, path)
	}
	binds, err := config.ParseBinds(path, data)
	if err != nil {
		return nil, fmt.Errorf("reading what is bound: %w; to fix: correct or remove the file", err)
	}
	return binds, nil
}

// lockTime bounds the wait for another change.
const lockTime = 5 * time.Second

// Change lets edit change the entries of an origin, [Added] or [Runtime], and writes them durably.
// Simultaneous changes run one after the other.
func Change(d offswitch.Directories, o Origin, edit func([]config.Bind) ([]config.Bind, error)) error {
	if err := ownership.MakeDirectory(d.Runtime, d.State); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(context.Background(), lockTime)
	defer cancel()
	lock, err := flock.Take(waiting, filepath.Join(d.Runtime, lockName))
	if err != nil {
		return fmt.Errorf("changing what is bound: %w", err)
	}
	defer lock.Close()
	path := Path(d, o)
	before, err := load(path)
	if err != nil {
		return err
	}
	now, err := edit(slices.Clone(before))
	if err != nil {
		return err
	}
	var out strings.Builder
	out.WriteString("# Written by multihomectl bind.\n")
	for _, b := range now {
		out.WriteString("\n" + config.FormatBind(b))
	}
	if _, err := config.ParseBinds(path, []byte(out.String())); err != nil {
		return err
	}
	if err := ownership.MakeDirectory(filepath.Dir(path)); err != nil {
		return err
	}
	if err := ownership.WriteFile(path, []byte(out.String()), mode); err != nil {
		return fmt.Errorf("writing what is bound: %w; to fix: see to it that root can write %s", err, path)
	}
	return nil
}

type heldFile struct {
	Schema int    `json:"schema"`
	Held   []Held `json:"held"`
	// Lost says that earlier marks are not known.
	Lost bool `json:"lost,omitempty"`
}

const schema = 1

// mostHeld bounds the file: there are 127 numbers, for each of some masks.
const mostHeld = 4 * 127

// loadHeld returns the marks, and whether those of earlier sockets are lost, because the file is damaged now or was so before.
func loadHeld(directory string) (held []Held, lost bool, err error) {
	path := filepath.Join(directory, heldName)
	data, err := fsutil.ReadFile(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, false, nil
	}
	var f heldFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return nil, true, fmt.Errorf("reading the marks of bound sockets: %s: %w: sockets that were bound before lead nowhere; to fix: start bound programs and units again", path, err)
	}
	return f.Held, f.Lost, nil
}

func (f *heldFile) check() error {
	type number struct {
		mask   routing.MarkMask
		number uint8
	}
	switch {
	case f.Schema != schema:
		return fmt.Errorf("its schema is %d, and %d is understood", f.Schema, schema)
	case len(f.Held) > mostHeld:
		return fmt.Errorf("it has more than %d marks", mostHeld)
	}
	seen := map[number]bool{}
	for _, h := range f.Held {
		own := number{h.Mask, h.Number}
		if h.Number == 0 || seen[own] || h.Link == "" || h.Mask != 0 && !h.Mask.Valid() {
			return errors.New("a mark in it has no link, or no number of its own")
		}
		seen[own] = true
	}
	return nil
}

func saveHeld(directory string, held []Held, lost bool) error {
	path := filepath.Join(directory, heldName)
	if len(held) == 0 && !lost {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the marks of bound sockets: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(heldFile{schema, held, lost})
	if err != nil {
		return err
	}
	if err := ownership.WriteFile(path, append(data, '\n'), mode); err != nil {
		return fmt.Errorf("saving the marks of bound sockets: %w", err)
	}
	return nil
}
