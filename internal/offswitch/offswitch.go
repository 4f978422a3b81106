// Package offswitch keeps what the administrator switched off: the whole host or some of its
// links. It is a file in the state directory, so it outlives reboots and upgrades. The daemon,
// stand-ins and status all read it. If that directory cannot be written, a file in the runtime
// directory takes precedence until the next boot or the next change.
//
// A file that cannot be read or parsed counts as off for the whole host: a damaged disk must
// not switch multihomed on, and without it the host routes by main.
package offswitch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/flock"
	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
)

// Name is the file in both directories, lockName the lock for changes in the runtime
// directory.
const (
	Name     = "off.json"
	lockName = "off.lock"
)

// mode lets everybody read it: the daemon, which is not root, and status.
const mode = 0o644

// schema is the version of the file that this program writes and understands.
const schema = 1

// maxSize bounds the file, in bytes.
const maxSize = 1 << 20

// A Mark says when something was switched off, and by whom: the name of a user, "uid 1000" for
// one without a name, or empty if unknown.
type Mark struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// String is the mark for people: "2026-11-28 07:10 by alice".
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
	// UUID is that of its NetworkManager profile, empty if it has none. With a UUID the link
	// is off whatever the name of its interface is.
	UUID string `json:"uuid,omitempty"`
	// Profile is the name of the profile, for people.
	Profile string `json:"profile,omitempty"`
	// Interface is its name; with a UUID, its name when it was switched off.
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
	// Temporary says that it holds until the next boot only, because the state directory
	// could not be written.
	Temporary bool
}

// Directories are where the switch is.
type Directories struct{ State, Runtime string }

type file struct {
	Schema int    `json:"schema"`
	Host   *Mark  `json:"host,omitempty"`
	Links  []Link `json:"links,omitempty"`
}

// HostOff reports whether all of multihomed is off.
func (s State) HostOff() bool { return s.Host != nil || s.Damaged != nil }

// Any reports whether something is off.
func (s State) Any() bool { return s.HostOff() || len(s.Links) > 0 }

// Why says why the host is off, empty if it is not.
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

// Of reports whether an interface is off, by itself or with the host, and why. UUID is that of
// its profile, empty while unknown: then the name decides.
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

// String is the mark for people.
func (l Link) String() string { return l.Mark.String() }

func (l Link) is(name, uuid string) bool {
	if l.UUID != "" && uuid != "" {
		return l.UUID == uuid
	}
	return l.Interface == name
}

// An Interface is one that exists, with the UUID of its active profile, empty if it has none
// or that is unknown.
type Interface struct{ Name, UUID string }

// On returns the interfaces to which the mark applies now: those with the profile, or if none
// has it, the one of that name whose profile is unknown.
func (l Link) On(present []Interface) []string {
	var byProfile, byName []string
	for _, i := range present {
		switch {
		case !l.is(i.Name, i.UUID):
		case l.UUID != "" && i.UUID != "":
			byProfile = append(byProfile, i.Name)
		default:
			byName = append(byName, i.Name)
		}
	}
	if len(byProfile) > 0 {
		return byProfile
	}
	return byName
}

// Called reports whether a word is the name of the link's interface or profile.
func (l Link) Called(word string) bool {
	return word != "" && (l.Interface == word || l.UUID == word || l.Profile == word)
}

// Path is the path of the file in one of the directories.
func Path(directory string) string { return filepath.Join(directory, Name) }

// Load reads what is switched off.
func Load(d Directories) State {
	s, temporary, err := load(Path(d.Runtime))
	if err == nil && !temporary {
		s, _, err = load(Path(d.State))
	}
	if err != nil {
		s = State{Damaged: fmt.Errorf("%w; to fix: multihomectl on, or multihomectl off", err)}
	}
	s.Temporary = temporary
	return s
}

// load reads a file, if there is one.
func load(path string) (s State, exists bool, err error) {
	data, err := fsutil.ReadFile(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return State{}, false, nil // A file in place of the directory holds no switch either.
	}
	if err != nil {
		return State{}, true, fmt.Errorf("whether multihomed is switched off is unknown: %w", err)
	}
	if s, err = parse(data); err != nil {
		return State{}, true, fmt.Errorf("whether multihomed is switched off is unknown: %s is damaged (%w)", path, err)
	}
	return s, true, nil
}

func parse(data []byte) (State, error) {
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

// An UnkeptError says that something was switched until the next boot only.
type UnkeptError struct {
	// Path is the file that could not be written, Cause why.
	Path  string
	Cause error
}

func (e *UnkeptError) Error() string {
	fix := "see to it that root can write " + e.Path
	switch {
	case errors.Is(e.Cause, unix.ENOSPC), errors.Is(e.Cause, unix.EDQUOT):
		fix = "free some space on the file system of " + filepath.Dir(e.Path)
	case errors.Is(e.Cause, unix.EROFS):
		fix = "mount the file system of " + filepath.Dir(e.Path) + " read-write"
	}
	return fmt.Sprintf("this holds until the next boot only, because %s could not be written (%v); to fix: %s, then do this again", e.Path, e.Cause, fix)
}

func (e *UnkeptError) Unwrap() error { return e.Cause }

// lockTime bounds the wait for another change of the switch. A change takes milliseconds, and
// longer on a slow disk.
const lockTime = 5 * time.Second

// Change reads what is off, lets edit change it, and writes it durably. Simultaneous changes
// run one after the other. Edit gets a damaged state as it is; the result is not damaged. If
// edit fails nothing changes. Changed says whether something was written. An [UnkeptError]
// says that the change lasts only until the next boot.
func Change(d Directories, edit func(*State) error) (before, now State, changed bool, err error) {
	fail := func(err error) (State, State, bool, error) {
		return State{}, State{}, false, fmt.Errorf("nothing was switched: %w", err)
	}
	if err := ownership.MakeDirectory(d.Runtime, d.State); err != nil {
		return fail(err)
	}
	waiting, cancel := context.WithTimeout(context.Background(), lockTime)
	defer cancel()
	lock, err := flock.Take(waiting, filepath.Join(d.Runtime, lockName))
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	before = Load(d)
	now = State{Host: before.Host, Links: slices.Clone(before.Links), Damaged: before.Damaged}
	if err := edit(&now); err != nil {
		return before, before, false, err
	}
	now.Damaged = nil
	// A file with a wrong mode or owner is written anew, so that the daemon can read it.
	if before.Damaged == nil && same(before, now) && ownership.Fits(Path(d.State), mode) {
		return before, now, false, nil
	}
	data, err := json.MarshalIndent(file{Schema: schema, Host: now.Host, Links: now.Links}, "", "  ")
	if err != nil {
		return fail(err)
	}
	data = append(data, '\n')
	if unkept := write(d.State, data); unkept != nil {
		if err := ownership.WriteFile(Path(d.Runtime), data, mode); err != nil {
			return fail(fmt.Errorf("%w; %w", unkept, err))
		}
		now.Temporary = true
		return before, now, true, unkept
	}
	if err := os.Remove(Path(d.Runtime)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	return before, now, true, nil
}

// write writes the file in the state directory, durably.
func write(directory string, data []byte) error {
	err := ownership.MakeDirectory(directory)
	if err == nil {
		err = ownership.WriteFile(Path(directory), data, mode)
	}
	if err == nil {
		// The directory, too: off must be off after a power cut.
		err = syncDirectory(directory)
	}
	if err != nil {
		return &UnkeptError{Path(directory), err}
	}
	return nil
}

func syncDirectory(directory string) error {
	f, err := os.Open(directory)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func same(a, b State) bool {
	if (a.Host == nil) != (b.Host == nil) || a.Host != nil && *a.Host != *b.Host {
		return false
	}
	return a.Temporary == b.Temporary && slices.Equal(a.Links, b.Links)
}

// SwitchOff switches off the host. If it is off already it keeps its mark.
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

// LinkOff switches off one link. It fails on a damaged state: the other links would be
// switched on.
func (s *State) LinkOff(l Link) error {
	if s.Damaged != nil {
		return s.Damaged
	}
	if _, is := s.Link(l.Interface, l.UUID); !is {
		s.Links = append(s.Links, l)
	}
	return nil
}

// LinkOn switches on one link. It fails while the host is off, because it would change
// nothing.
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

// Forget removes the marks of links that a function picks. While the host is off that changes
// no routing.
func (s *State) Forget(which func(Link) bool) { s.Links = slices.DeleteFunc(s.Links, which) }
