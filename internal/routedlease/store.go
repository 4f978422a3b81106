// Package routedlease keeps routed leases: addresses that clients want routed as links on
// interfaces that NetworkManager does not manage.
//
// Each is a file in the runtime directory, written before it counts. So it is there after a
// restart or a kill of the daemon, and gone after a reboot, as the address is.
package routedlease

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"multihomed/internal/fsutil"
	"multihomed/internal/news"
	"multihomed/internal/ownership"
	"multihomed/routing"
)

// Directory is the name of the directory in the runtime directory.
const Directory = "links"

// A Link is one address that takes part in routing.
type Link struct {
	Interface string     `json:"interface"`
	Address   netip.Addr `json:"address"`
	// Owner is the user who asked for it.
	Owner uint32 `json:"owner"`
	Tag   string `json:"tag,omitempty"`
	// Expires is when it ends, on CLOCK_MONOTONIC_RAW; zero means that it ends
	// with the address.
	Expires time.Duration `json:"expires,omitempty"`
	// Since is for people.
	Since time.Time `json:"since"`
}

// Compare orders links by interface and address.
func Compare(a, b Link) int {
	return cmp.Or(strings.Compare(a.Interface, b.Interface), a.Address.Compare(b.Address))
}

type key struct {
	name    string
	address netip.Addr
}

func (l Link) key() key { return key{l.Interface, l.Address} }

// file is the name of the file of a link.
func (k key) file() string { return k.name + "@" + k.address.String() + suffix }

const suffix = ".json"

// check refuses what could not be written under a name of its own.
func (l Link) check() error {
	if err := routing.CheckInterfaceName(l.Interface); err != nil {
		return err
	}
	switch {
	case !l.Address.IsValid() || l.Address.Zone() != "" || l.Address.Is4In6():
		return fmt.Errorf("%v is not an address", l.Address)
	case l.Expires < 0:
		return fmt.Errorf("it expires at %v", l.Expires)
	}
	return nil
}

// A Store is the set of routed leases, and the names of interfaces whose leases changed. It is
// safe for concurrent use.
type Store struct {
	*news.Set
	directory string

	mu    sync.Mutex
	links map[key]Link
}

// Open reads the leases in the runtime directory. Files that cannot be read stay, and are in
// the errors.
func Open(runtime string) (*Store, []error) {
	s := &Store{
		Set: news.NewSet(), directory: filepath.Join(runtime, Directory), links: map[key]Link{},
	}
	entries, err := os.ReadDir(s.directory)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, []error{fmt.Errorf("listing the routed leases: %w", err)}
	}
	var errs []error
	for _, e := range entries {
		// Others are temporary files of a process that was killed.
		if !strings.HasSuffix(e.Name(), suffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		l, err := read(filepath.Join(s.directory, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It was removed just now.
		case err != nil:
			errs = append(errs, err)
		case l.key().file() != e.Name():
			errs = append(errs, fmt.Errorf("reading %s: it is about %s on %s; to fix: remove it", filepath.Join(s.directory, e.Name()), l.Address, l.Interface))
		default:
			s.links[l.key()] = l
			s.Touch(l.Interface)
		}
	}
	return s, errs
}

// maxSize bounds what is read from a file.
const maxSize = 16 << 10

func read(path string) (l Link, err error) {
	data, err := fsutil.ReadFileNoFollow(path, maxSize)
	if err != nil {
		return Link{}, fmt.Errorf("reading a routed lease: %w", err)
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return Link{}, fmt.Errorf("reading %s: %w; to fix: remove it and ask for the lease again", path, err)
	}
	if err := l.check(); err != nil {
		return Link{}, fmt.Errorf("reading %s: %w; to fix: remove it and ask for the lease again", path, err)
	}
	return l, nil
}

// Get returns the link of an address.
func (s *Store) Get(name string, address netip.Addr) (Link, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.links[key{name, address}]
	return l, ok
}

// Of returns the addresses of an interface that take part, sorted.
func (s *Store) Of(name string) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []netip.Addr
	for k := range s.links {
		if k.name == name {
			all = append(all, k.address)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// Len returns how many links there are.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.links)
}

// All returns all links, sorted.
func (s *Store) All() []Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Link, 0, len(s.links))
	for _, l := range s.links {
		all = append(all, l)
	}
	slices.SortFunc(all, Compare)
	return all
}

// Put adds a link or replaces what is known of its address.
func (s *Store) Put(l Link) error {
	doing := func(err error) error {
		return fmt.Errorf("storing the lease of %s on %s: %w", l.Address, l.Interface, err)
	}
	if err := l.check(); err != nil {
		return doing(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(l); err != nil {
		return doing(err)
	}
	s.links[l.key()] = l
	s.Touch(l.Interface)
	return nil
}

func (s *Store) write(l Link) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := ownership.MakeDirectory(s.directory); err != nil {
		return err
	}
	return ownership.WriteFile(filepath.Join(s.directory, l.key().file()), append(data, '\n'), 0o644)
}

// Restore writes the files again that are missing because somebody removed the runtime
// directory.
func (s *Store) Restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for k, l := range s.links {
		if _, err := os.Lstat(filepath.Join(s.directory, k.file())); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.write(l))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("writing routed leases again: %w", err)
	}
	return nil
}

// Remove ends a link; one that is not there is no error.
func (s *Store) Remove(name string, address netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{name, address}
	if _, ok := s.links[k]; !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(s.directory, k.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ending the lease of %s on %s: %w", address, name, err)
	}
	delete(s.links, k)
	s.Touch(name)
	return nil
}
