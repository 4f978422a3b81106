package hooked

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"multihomed/routing"
)

// A Store is what hooks said, as far as it was read. It is safe for concurrent
// use.
type Store struct {
	runtime string
	changed chan struct{}

	mu      sync.Mutex
	configs map[string][]Config
	// hints are what one said who is believed only as long as there is nobody
	// better.
	hints map[string][]Config
	// released are interfaces of which the last configuration was taken away.
	released map[string]bool
	dirty    map[string]struct{}
}

// Open reads what is in the runtime directory. What cannot be read is in the
// errors.
func Open(runtime string) (*Store, []error) {
	s := &Store{
		runtime: runtime, changed: make(chan struct{}, 1), configs: map[string][]Config{}, hints: map[string][]Config{},
		released: map[string]bool{}, dirty: map[string]struct{}{},
	}
	all, errs := read(runtime, "")
	for _, c := range all {
		s.configs[c.Interface] = append(s.configs[c.Interface], c)
		s.touch(c.Interface)
	}
	return s, errs
}

// touch is called with the lock held, or before the store is shared.
func (s *Store) touch(name string) {
	s.dirty[name] = struct{}{}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Reload reads what was said of an interface. Where nothing is left of it, the
// interface was let go.
func (s *Store) Reload(name string) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, errs := read(s.runtime, name)
	if slices.EqualFunc(all, s.configs[name], same) {
		return errs
	}
	s.released[name] = len(all) == 0
	if len(all) == 0 {
		delete(s.configs, name)
	} else {
		s.configs[name] = all
	}
	s.touch(name)
	return errs
}

func same(a, b Config) bool {
	return Compare(a, b) == 0 && a.Index == b.Index && a.Automatic == b.Automatic &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Routes, b.Routes) &&
		slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Domains, b.Domains)
}

// Hint takes what is not written down: what NetworkManager's dispatcher said of
// an interface, which NetworkManager knows better if it can be asked.
func (s *Store) Hint(name string, configs []Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints[name], s.released[name] = configs, false
	s.touch(name)
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
	s.touch(name)
}

// Changed holds a value when Take has something to say.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Take returns the interfaces of which something changed since it was called
// last.
func (s *Store) Take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.dirty))
	for name := range s.dirty {
		names = append(names, name)
	}
	clear(s.dirty)
	slices.Sort(names)
	return names
}

// Of returns what was said of an interface, and whether it was let go.
func (s *Store) Of(name string) (configs []Config, released bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.configs[name]), s.released[name]
}

// Interfaces returns the interfaces of which something was said, sorted.
func (s *Store) Interfaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.AppendSeq(slices.Collect(maps.Keys(s.configs)), maps.Keys(s.hints))
	slices.Sort(names)
	return slices.Compact(names)
}

// Keep drops what was said of interfaces that are no more: index says which
// interface has a name now, false if none has. It returns what was dropped.
func (s *Store) Keep(index func(name string) (int, bool)) ([]Config, error) {
	var dropped []Config
	var failed error
	for _, name := range s.Interfaces() {
		now, exists := index(name)
		isGone := func(c Config) bool { return !exists || c.Index != now }
		configs, _ := s.Of(name)
		if !slices.ContainsFunc(configs, isGone) {
			continue
		}
		if err := Remove(s.runtime, name, isGone); err != nil {
			failed = err
			continue
		}
		for _, c := range configs {
			if isGone(c) {
				dropped = append(dropped, c)
			}
		}
		s.Reload(name)
	}
	return dropped, failed
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
