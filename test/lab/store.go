package lab

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Store keeps descriptors of a program over its end, as systemd does (FDSTORE in sd_notify(3)): the next process that is
// started with it gets them.
type Store struct {
	mu    sync.Mutex
	files map[string][]*os.File
}

// Names are those of what it holds, sorted.
func (s *Store) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

// Drop closes all, as systemd does when a service stops.
func (s *Store) Drop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, all := range s.files {
		for _, f := range all {
			err = errors.Join(err, f.Close())
		}
	}
	s.files = nil
	return err
}

// take takes what comes with a message of sd_notify(3).
func (s *Store) take(text string, rights []byte) {
	var files []*os.File
	messages, _ := unix.ParseSocketControlMessage(rights)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "stored"))
		}
	}
	name := ""
	lines := strings.Split(text, "\n")
	for _, line := range lines {
		if value, is := strings.CutPrefix(line, "FDNAME="); is {
			name = value
		}
	}
	if s == nil || name == "" {
		name, s = "", &Store{} // Nobody keeps them.
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(lines, "FDSTOREREMOVE=1") || name == "" {
		files = append(files, s.files[name]...)
		delete(s.files, name)
		for _, f := range files {
			_ = f.Close() // Copies.
		}
		return
	}
	if len(files) > 0 {
		if s.files == nil {
			s.files = map[string][]*os.File{}
		}
		s.files[name] = append(s.files[name], files...)
	}
}

// give lists all, with the names for LISTEN_FDNAMES.
func (s *Store) give() (files []*os.File, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		for _, f := range s.files[name] {
			files, names = append(files, f), append(names, name)
		}
	}
	return files, names
}
