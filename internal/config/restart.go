package config

import (
	"cmp"
	"fmt"
	"strings"

	"multihomed/internal/offswitch"
)

// A RestartError says that a sound configuration needs a restart of the running daemon: a
// reload cannot change the directories that it holds.
type RestartError struct {
	File string
	// Line of the first changed key; 0 if the file does not have it, so that its default applies.
	Line    int
	Changes []Change
}

// A Change is a key with another value than the running daemon has.
type Change struct {
	Key, To string
	// From is empty if nobody knows where the daemon works.
	From string
}

func (e *RestartError) Error() string { return e.text() + "; to fix: " + e.fix() }

func (e *RestartError) text() string {
	changes := make([]string, 0, len(e.Changes))
	for _, c := range e.Changes {
		changes = append(changes, fmt.Sprintf("%s changes from %s to %q", c.Key, c.from(), c.To))
	}
	return fmt.Sprintf("%s: %s, which needs a restart", e.place(), strings.Join(changes, ", "))
}

func (e *RestartError) place() string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d", e.File, e.Line)
}

// fix is the command that uses the new values, and how to keep the old ones.
func (e *RestartError) fix() string {
	var keep []string
	for _, c := range e.Changes {
		if c.From != "" {
			keep = append(keep, fmt.Sprintf("%s = %q", c.Key, c.From))
		}
	}
	if len(keep) < len(e.Changes) {
		return "systemctl restart multihomed"
	}
	return "systemctl restart multihomed, or set " + strings.Join(keep, " and ") + " again"
}

func (c Change) from() string {
	if c.From == "" {
		return "another directory"
	}
	return fmt.Sprintf("%q", c.From)
}

// Reloadable returns a [RestartError] if a daemon that works in these directories cannot
// take the configuration by a reload. Runtime may be empty: it is another one then. State
// may be empty: then it is not compared.
func (l Loaded) Reloadable(works offswitch.Directories) error {
	e := &RestartError{File: l.source}
	note := func(key, from, to string) {
		e.Changes = append(e.Changes, Change{Key: key, From: from, To: to})
		if at, err := locate(l.text); err == nil {
			e.Line = cmp.Or(e.Line, at.first(key))
		}
	}
	if works.State != "" && works.State != l.StateDir {
		note("state_dir", works.State, l.StateDir)
	}
	if works.Runtime != l.RuntimeDir {
		note("runtime_dir", works.Runtime, l.RuntimeDir)
	}
	if len(e.Changes) == 0 {
		return nil
	}
	return e
}
