// Package runstate is what the daemon tells those who come without asking it:
// one small JSON file in the runtime directory, replaced atomically. Status
// reads the kernel itself; from here it takes only what the kernel cannot know.
package runstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"multihomed/routing"
)

// Name is the file's name in the runtime directory.
const Name = "status.json"

// maxSize bounds what Read takes from a file that anybody may have replaced.
const maxSize = 1 << 20

// A State is what the daemon says of itself.
type State struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready says that a pass with complete knowledge was made.
	Ready bool `json:"ready"`
	// Waiting says what the daemon waits for, empty if for nothing.
	Waiting  string            `json:"waiting,omitempty"`
	Problems []routing.Problem `json:"problems,omitempty"`
	// Away are the rules and routes that somebody deleted and that are put back later.
	Away []Away `json:"away,omitempty"`
	// Gone are rules of others that went just now, for which guards stand: the plan
	// depends on them.
	Gone []routing.Rule `json:"gone,omitempty"`
}

// An Away is a reconcile.Away in JSON.
type Away struct {
	Family routing.Family `json:"family"`
	Text   string         `json:"text"`
	Until  time.Time      `json:"until"`
	His    string         `json:"his,omitempty"`
}

// Write replaces the file in directory.
func Write(directory string, s State) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	path := filepath.Join(directory, Name)
	if err := renameio.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Read returns the state in directory, false if there is none.
func Read(directory string) (State, bool, error) {
	path := filepath.Join(directory, Name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, fmt.Errorf("reading the daemon's state: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return State{}, false, fmt.Errorf("reading %s: %w", path, err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, false, fmt.Errorf("reading %s: %w", path, err)
	}
	return s, true, nil
}

// Remove takes the file away; a daemon that has ended says nothing.
func Remove(directory string) error {
	if err := os.Remove(filepath.Join(directory, Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the daemon's state: %w", err)
	}
	return nil
}
