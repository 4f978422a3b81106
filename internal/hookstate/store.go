package hookstate

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"multihomed/internal/event"
	"multihomed/internal/news"
	"multihomed/routing"
)

// A Store is what hooks said, as far as it was read, and the names of interfaces of
// which that changed. It is safe for concurrent use.
type Store struct {
	*news.Set
	runtime string

	mu      sync.Mutex
	configs map[string][]Config
	// hints are what one said who is believed only as long as there is nobody
	// better.
	hints map[string][]Config
	// released are interfaces of which the last configuration was taken away.
	released map[string]bool
}

// Open reads what is in the runtime directory. What cannot be read is in the
// errors.
func Open(runtime string) (*Store, []error) {
	s := &Store{
		Set: news.NewSet(), runtime: runtime, configs: map[string][]Config{}, hints: map[string][]Config{},
		released: map[string]bool{},
	}
	all, errs := read(runtime, "")
	for _, c := range all {
		s.configs[c.Interface] = append(s.configs[c.Interface], c)
		s.Touch(c.Interface)
	}
	return s, errs
}

// Restore writes down again what is known and has no file any more, because somebody
// removed the runtime directory.
func (s *Store) Restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, configs := range s.configs {
		for _, c := range configs {
			if _, err := os.Lstat(filepath.Join(s.runtime, Directory, c.file())); errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, Put(s.runtime, c))
			}
		}
	}
	return errors.Join(errs...)
}

// Reload reads what was said of an interface. Where nothing is left of it, the
// interface was let go. What is there and cannot be read now holds as it was.
func (s *Store) Reload(name string) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, errs := read(s.runtime, name)
	if len(errs) > 0 {
		for _, c := range s.configs[name] {
			if _, err := os.Lstat(filepath.Join(s.runtime, Directory, c.file())); !errors.Is(err, fs.ErrNotExist) && !holds(all, c) {
				all = append(all, c)
			}
		}
		slices.SortFunc(all, Compare)
	}
	if slices.EqualFunc(all, s.configs[name], same) {
		if newest(all).Equal(newest(s.configs[name])) {
			return errs
		}
		// The same once more is news where somebody else had spoken in between.
	}
	s.released[name] = len(all) == 0 && len(errs) == 0
	if len(all) == 0 {
		delete(s.configs, name)
	} else {
		s.configs[name] = all
	}
	s.Touch(name)
	return errs
}

// holds reports whether one is of the same caller, part and family.
func holds(all []Config, c Config) bool {
	return slices.ContainsFunc(all, func(o Config) bool { return Compare(o, c) == 0 })
}

func same(a, b Config) bool {
	return Compare(a, b) == 0 && a.Index == b.Index && a.Automatic == b.Automatic &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Routes, b.Routes) &&
		slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Domains, b.Domains) &&
		slices.Equal(a.Delegated, b.Delegated)
}

// Newest says when a hook said something of an interface last, zero if none did.
func (s *Store) Newest(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return newest(s.configs[name])
}

func newest(all []Config) (at time.Time) {
	for _, c := range all {
		if c.Since.After(at) {
			at = c.Since
		}
	}
	return at
}

// Hint takes what is not written down: what NetworkManager's dispatcher said of
// an interface, which NetworkManager knows better if it can be asked.
func (s *Store) Hint(name string, configs []Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints[name], s.released[name] = configs, false
	s.Touch(name)
}

// Hints returns what Hint was given.
func (s *Store) Hints(name string) []Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.hints[name])
}

// Release notes that the owner of an interface has taken its configuration away,
// also one of which nothing was known.
func (s *Store) Release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hints, name)
	s.released[name] = len(s.configs[name]) == 0
	s.Touch(name)
}

// Of returns what was said of an interface, and whether it was let go.
func (s *Store) Of(name string) (configs []Config, released bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.configs[name]), s.released[name]
}

// Moved returns what was noted of routes that were moved out of main.
func (s *Store) Moved() (all []Config) {
	for _, name := range s.Interfaces() {
		configs, _ := s.Of(name)
		for _, c := range configs {
			if c.Caller == Mover {
				all = append(all, c)
			}
		}
	}
	return all
}

// Interfaces returns the interfaces of which something was said, sorted.
func (s *Store) Interfaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.AppendSeq(slices.Collect(maps.Keys(s.configs)), maps.Keys(s.hints))
	slices.Sort(names)
	return slices.Compact(names)
}

// ReloadAndLog is Reload, and writes to the log what cannot be read.
func (s *Store) ReloadAndLog(ctx context.Context, log *slog.Logger, name string) {
	for _, err := range s.Reload(name) {
		log.LogAttrs(ctx, event.LevelNotice, "report of a hook lost", slog.String("interface", name), slog.String("error", err.Error()))
	}
}

// KeepReleased drops that the configurations of interfaces were taken away which are no
// more: one that is made anew under such a name is another one.
func (s *Store) KeepReleased(exists func(name string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, is := range s.released {
		if exists(name) {
			continue
		}
		if delete(s.released, name); is {
			s.Touch(name)
		}
	}
}

// Keep drops what was said of some interfaces that are no more, and returns it. One
// that got another name is still there.
func (s *Store) Keep(names []string, exists func(index int) (bool, error)) ([]Config, error) {
	var dropped []Config
	var errs []error
	for _, name := range names {
		isGone := func(c Config) bool {
			is, err := exists(c.Index)
			if err != nil {
				errs = append(errs, err) // Not knowing is not emptiness.
			}
			return !is && err == nil
		}
		dropped = append(dropped, s.dropHints(name, isGone)...)
		configs, _ := s.Of(name)
		if !slices.ContainsFunc(configs, isGone) {
			continue
		}
		// Of a file that cannot be read nothing is known: it is in the errors and
		// stays, and others go all the same.
		if err := Remove(s.runtime, name, isGone); err != nil {
			errs = append(errs, err)
		}
		s.Reload(name)
		left, _ := s.Of(name)
		for _, c := range configs {
			if isGone(c) && !holds(left, c) {
				dropped = append(dropped, c)
			}
		}
	}
	return dropped, errors.Join(errs...)
}

func (s *Store) dropHints(name string, which func(Config) bool) (dropped []Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []Config
	for _, c := range s.hints[name] {
		if which(c) {
			dropped = append(dropped, c)
		} else {
			left = append(left, c)
		}
	}
	if len(dropped) == 0 {
		return nil
	}
	if s.hints[name] = left; len(left) == 0 {
		delete(s.hints, name)
	}
	s.Touch(name)
	return dropped
}

// Servers returns the servers for names of an interface and family, and the
// domains they are for.
func Servers(configs []Config, f routing.Family) (servers []netip.Addr, domains []string) {
	for _, c := range configs {
		if c.Family != f {
			continue
		}
		for _, a := range c.Servers {
			if !slices.Contains(servers, a) {
				servers = append(servers, a)
			}
		}
		for _, d := range c.Domains {
			if !slices.Contains(domains, d) {
				domains = append(domains, d)
			}
		}
	}
	return servers, domains
}
