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

// A Store holds the reports of hooks that were read, and the names of interfaces whose reports
// changed. It is safe for concurrent use.
type Store struct {
	*news.Set
	runtime string

	mu      sync.Mutex
	configs map[string][]Config
	// hints are reports of NetworkManager's dispatcher, which count only while NetworkManager
	// is away.
	hints map[string][]Config
	// released are interfaces whose last configuration was removed.
	released map[string]bool
}

// Open reads the reports in the runtime directory. Files that cannot be read are in the
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

// Restore writes the files again that are missing because somebody removed the runtime
// directory.
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

// Reload reads the reports on an interface. Without any left the interface is released. A file
// that cannot be read now keeps its last content.
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
		// A repeated report is news if another owner took over in between.
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

// holds reports whether a list has a configuration of the same caller, part and family.
func holds(all []Config, c Config) bool {
	return slices.ContainsFunc(all, func(o Config) bool { return Compare(o, c) == 0 })
}

func same(a, b Config) bool {
	return Compare(a, b) == 0 && a.Index == b.Index && a.Automatic == b.Automatic &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Routes, b.Routes) &&
		slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Domains, b.Domains) &&
		slices.Equal(a.Delegated, b.Delegated)
}

// Newest is the time of the last report on an interface, zero if there is none.
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

// Hint takes a report that has no file: NetworkManager's dispatcher made it, and
// NetworkManager itself knows better if it answers.
func (s *Store) Hint(name string, configs []Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints[name], s.released[name] = configs, false
	s.Touch(name)
}

// Hints returns the last Hint of an interface.
func (s *Store) Hints(name string) []Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.hints[name])
}

// Release notes that the owner of an interface removed its configuration, even an unknown
// one.
func (s *Store) Release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hints, name)
	s.released[name] = len(s.configs[name]) == 0
	s.Touch(name)
}

// Of returns the reports on an interface, and whether it was released.
func (s *Store) Of(name string) (configs []Config, released bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.configs[name]), s.released[name]
}

// Moved returns the configurations of routes that were moved out of main.
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

// Interfaces returns the interfaces with reports or hints, sorted.
func (s *Store) Interfaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.AppendSeq(slices.Collect(maps.Keys(s.configs)), maps.Keys(s.hints))
	slices.Sort(names)
	return slices.Compact(names)
}

// ReloadAndLog is Reload, and logs its errors.
func (s *Store) ReloadAndLog(ctx context.Context, log *slog.Logger, name string) {
	for _, err := range s.Reload(name) {
		log.LogAttrs(ctx, event.LevelNotice, "report of a hook lost", slog.String("interface", name), slog.String("error", err.Error()))
	}
}

// KeepReleased forgets released interfaces that do not exist any more: a new one of the same
// name is another interface.
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

// Keep removes reports on interfaces that do not exist any more, and returns them. A renamed
// interface still exists.
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
		// A file that cannot be read stays and is in the errors; others go all the same.
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

// Servers returns the DNS servers of a family in some configurations, and their domains.
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
