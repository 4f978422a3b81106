// Package offswitch is the administrator's word that multihomed is to keep away from
// the host, or from some of its links, until he takes it back. It is a file in the
// state directory: it outlives reboots and upgrades, and the daemon, those who stand
// in for it, and status all read it.
//
// A file that cannot be read or understood counts as off for the whole host: whoever
// switched off must not find it switched on by a damaged disk, and without us the host
// routes by main.
package offswitch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"multihomed/internal/ownership"
)

// Name is the file's name in the state directory.
const Name = "off.json"

// schema is the version of the file that this program writes and understands.
const schema = 1

// maxSize bounds what is read of it.
const maxSize = 1 << 20

// A Mark says when something was switched off, and by whom: a user's name, or
// "uid 1000" for one without; empty if that is not known.
type Mark struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// String is the mark in words: "2026-11-28 07:10 by alice".
func (m Mark) String() string {
	text := "at an unknown time"
	if !m.Since.IsZero() {
		text = m.Since.Local().Format("2006-01-02 15:04")
	}
	if m.By != "" {
		text += " by " + m.By
	}
	return text
}

// A Link is one that is switched off by itself.
type Link struct {
	// UUID is that of its NetworkManager profile; the link is off whatever its
	// interface is called then. Empty for one that has none.
	UUID string `json:"uuid,omitempty"`
	// Interface is its name; the one that it had if there is a UUID.
	Interface string `json:"interface"`
	Mark
}

// A State is what is switched off. The zero State is nothing.
type State struct {
	// Host is nil unless all of multihomed is off.
	Host  *Mark
	Links []Link
	// Damaged says why the file could not be used; the host counts as off then.
	Damaged error
}

type file struct {
	Schema int    `json:"schema"`
	Host   *Mark  `json:"host,omitempty"`
	Links  []Link `json:"links,omitempty"`
}

// HostOff reports whether all of multihomed is off.
func (s State) HostOff() bool { return s.Host != nil || s.Damaged != nil }

// Any reports whether something is off.
func (s State) Any() bool { return s.HostOff() || len(s.Links) > 0 }

// Why says in words why the host is off; empty if it is not.
func (s State) Why() string {
	switch {
	case s.Damaged != nil:
		return "switched off: " + s.Damaged.Error()
	case s.Host != nil:
		return "switched off since " + s.Host.String() + "; to switch it on: multihomectl on"
	default:
		return ""
	}
}

// Of reports whether an interface is off, by itself or with the host, and why. UUID
// is that of its profile, empty while that is not known: then the name decides.
func (s State) Of(name, uuid string) (why string, off bool) {
	if s.HostOff() {
		return s.Why(), true
	}
	if l, is := s.Link(name, uuid); is {
		return "switched off since " + l.String() + "; to switch it on: multihomectl on " + name, true
	}
	return "", false
}

// Link returns the mark of an interface that is off by itself.
func (s State) Link(name, uuid string) (Link, bool) {
	at := slices.IndexFunc(s.Links, func(l Link) bool { return l.is(name, uuid) })
	if at < 0 {
		return Link{}, false
	}
	return s.Links[at], true
}

// String keeps the mark from standing for the link.
func (l Link) String() string { return l.Mark.String() }

func (l Link) is(name, uuid string) bool {
	if l.UUID != "" && uuid != "" {
		return l.UUID == uuid
	}
	return l.Interface == name
}

// Path is where the file is.
func Path(stateDir string) string { return filepath.Join(stateDir, Name) }

// Load reads what is switched off.
func Load(stateDir string) State {
	s, err := load(Path(stateDir))
	if err != nil {
		return State{Damaged: fmt.Errorf("%w; to fix: multihomectl on, or multihomectl off", err)}
	}
	return s
}

func load(path string) (State, error) {
	// A pipe must not keep anybody waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return State{}, nil // Where something else has the directory's name, nobody switched anything off either.
	}
	if err != nil {
		return State{}, fmt.Errorf("whether multihomed is switched off is unknown: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return State{}, fmt.Errorf("whether multihomed is switched off is unknown: %w", err)
	}
	s, err := parse(data)
	if err != nil {
		return State{}, fmt.Errorf("whether multihomed is switched off is unknown: %s is damaged (%w)", path, err)
	}
	return s, nil
}

func parse(data []byte) (State, error) {
	if len(data) > maxSize {
		return State{}, errors.New("it is larger than 1 MiB")
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return State{}, err
	}
	if f.Schema != schema {
		return State{}, fmt.Errorf("its schema is %d, and %d is understood", f.Schema, schema)
	}
	for _, l := range f.Links {
		if l.UUID == "" && l.Interface == "" {
			return State{}, errors.New("a link in it has neither a profile nor an interface")
		}
	}
	return State{Host: f.Host, Links: f.Links}, nil
}

// Change reads what is off, lets edit change it and writes it down, so that it stands
// when Change returns. Two who change it at the same time do it one after the other.
// Edit gets a damaged state as it is; what it leaves is no longer damaged. With an
// error of it nothing is changed. Changed says whether there was anything to write.
func Change(stateDir string, edit func(*State) error) (before, now State, changed bool, err error) {
	fail := func(err error) (State, State, bool, error) {
		return State{}, State{}, false, fmt.Errorf("switching: %w", err)
	}
	if err := ownership.MakeDirectory(stateDir); err != nil {
		return fail(err)
	}
	directory, err := os.Open(stateDir)
	if err != nil {
		return fail(err)
	}
	defer directory.Close()
	for {
		if err = unix.Flock(int(directory.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fail(err)
	}
	before = Load(stateDir)
	now = State{Host: before.Host, Links: slices.Clone(before.Links), Damaged: before.Damaged}
	if err := edit(&now); err != nil {
		return before, before, false, err
	}
	now.Damaged = nil
	if before.Damaged == nil && same(before, now) {
		return before, now, false, nil
	}
	data, err := json.MarshalIndent(file{Schema: schema, Host: now.Host, Links: now.Links}, "", "  ")
	if err != nil {
		return fail(err)
	}
	// Everybody may see it; renameio syncs it before it takes its place.
	if err := renameio.WriteFile(Path(stateDir), append(data, '\n'), 0o644); err != nil {
		return fail(err)
	}
	// And the directory after it: off must be off after a power cut, too.
	if err := directory.Sync(); err != nil {
		return fail(err)
	}
	return before, now, true, nil
}

func same(a, b State) bool {
	if (a.Host == nil) != (b.Host == nil) || a.Host != nil && *a.Host != *b.Host {
		return false
	}
	return slices.Equal(a.Links, b.Links)
}

// SwitchOff switches off the host. What is off already keeps its mark.
func (s *State) SwitchOff(m Mark) error {
	if s.Host == nil {
		s.Host = &m
	}
	return nil
}

// SwitchOn switches on everything, links included.
func (s *State) SwitchOn() error {
	s.Host, s.Links = nil, nil
	return nil
}

// LinkOff switches off one link. That is refused where it is not known whether the
// host is off: the other links would be switched on by it.
func (s *State) LinkOff(l Link) error {
	if s.Damaged != nil {
		return s.Damaged
	}
	if _, is := s.Link(l.Interface, l.UUID); !is {
		s.Links = append(s.Links, l)
	}
	return nil
}

// LinkOn switches on one link. While the host is off that would change nothing, and is
// refused.
func (s *State) LinkOn(name, uuid string) error {
	switch {
	case s.Damaged != nil:
		return s.Damaged
	case s.Host != nil:
		return fmt.Errorf("all of multihomed is %s", s.Why())
	}
	s.Links = slices.DeleteFunc(s.Links, func(l Link) bool { return l.is(name, uuid) })
	return nil
}
