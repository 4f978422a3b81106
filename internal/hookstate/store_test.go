package hookstate_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/hookstate"
	"multihomed/routing"
)

// A store is one with a runtime directory of its own.
type store struct {
	*testing.T
	*hookstate.Store
	runtime string
}

func open(t *testing.T, all ...hookstate.Config) *store {
	t.Helper()
	s := &store{T: t, runtime: t.TempDir()}
	put(t, s.runtime, all...)
	var errs []error
	if s.Store, errs = hookstate.Open(s.runtime); len(errs) > 0 {
		t.Fatal(errs)
	}
	return s
}

// news wants these interfaces to have changed, and to be told once.
func (s *store) news(when string, want ...string) {
	s.Helper()
	woken := false
	select {
	case <-s.Changed():
		woken = true
	default:
	}
	if got := s.Take(); !slices.Equal(got, want) || woken != (len(want) > 0) || len(s.Take()) > 0 {
		s.Errorf("%s: changed %q, want %q; woken %t", when, got, want, woken)
	}
}

// is wants what is said of an interface.
func (s *store) is(when, name string, configs int, released bool) {
	s.Helper()
	if got, was := s.Of(name); len(got) != configs || was != released {
		s.Errorf("%s: %+v, released %t", when, got, was)
	}
}

func (s *store) reload(name string, errs int) {
	s.Helper()
	if got := s.Reload(name); len(got) != errs {
		s.Errorf("reading %s: %v", name, got)
	}
}

// remove ends what was said of a family; beside a damaged file that is told.
func (s *store) remove(name string, f routing.Family, damaged bool) {
	s.Helper()
	if err := hookstate.Remove(s.runtime, name, func(c hookstate.Config) bool { return c.Family == f }); (err != nil) != damaged {
		s.Error(err)
	}
}

func TestStore(t *testing.T) {
	t.Parallel()
	open(t).news("empty")
	s := open(t, lease("wan1"), lease("wan0"))
	s.news("opened", "wan0", "wan1")
	s.is("opened", "wan0", 1, false)
	s.is("unknown", "none", 0, false)
	s.reload("wan0", 0)
	s.reload("none", 0)
	s.news("nothing")
	renewed := lease("wan0")
	renewed.Since = renewed.Since.Add(time.Hour)
	put(t, s.runtime, renewed)
	s.reload("wan0", 0)
	s.news("renewed", "wan0")
	renewed.Domains = nil
	put(t, s.runtime, renewed)
	s.reload("wan0", 0)
	s.news("another lease", "wan0")
	if got, _ := s.Of("wan0"); got[0].Domains != nil {
		t.Errorf("%+v", got)
	} else if got[0] = lease("x"); !slices.Equal(s.Interfaces(), []string{"wan0", "wan1"}) {
		t.Errorf("%q", s.Interfaces())
	}
	s.Release("wan0") // Another caller has still something to say.
	s.news("let go in part", "wan0")
	s.is("let go in part", "wan0", 1, false)
	s.remove("wan0", routing.IPv4, false)
	s.reload("wan0", 0)
	s.news("let go", "wan0")
	s.is("let go", "wan0", 0, true)
	put(t, s.runtime, lease("wan0"))
	s.reload("wan0", 0)
	s.is("again", "wan0", 1, false)
	s.Release("wan7")
	s.news("unknown and let go", "wan0", "wan7")
	s.is("unknown and let go", "wan7", 0, true)
}

func TestHints(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.Release("wan0")
	s.Hint("wan0", []hookstate.Config{lease("wan0")})
	s.news("a hint", "wan0")
	s.is("a hint decides nothing", "wan0", 0, false)
	s.Hints("wan0")[0] = lease("x")
	if got := s.Hints("wan0"); len(got) != 1 || got[0].Interface != "wan0" || !slices.Equal(s.Interfaces(), []string{"wan0"}) {
		t.Errorf("%+v of %q", got, s.Interfaces())
	}
	s.reload("wan0", 0)
	s.news("it is in no file")
	s.Release("wan0")
	s.news("let go", "wan0")
	s.is("let go", "wan0", 0, true)
	if got := s.Hints("wan0"); len(got) > 0 || len(s.Interfaces()) > 0 {
		t.Errorf("%+v of %q", got, s.Interfaces())
	}
}

// A file that cannot be read is no word of its owner: what it said before holds.
func TestUnreadableIsNotLetGo(t *testing.T) {
	t.Parallel()
	v6 := hookstate.Config{Interface: "wan0", Index: 7, Caller: "dhclient", Family: routing.IPv6}
	s := open(t, lease("wan0"), v6)
	raw(t, s.runtime, v6.File(), "{")
	s.reload("wan0", 1)
	s.is("one is damaged", "wan0", 2, false)
	s.remove("wan0", routing.IPv4, true)
	s.reload("wan0", 1)
	s.is("the other is let go", "wan0", 1, false)
	// What was damaged before it was read says nothing.
	s = open(t, lease("wan1"))
	raw(t, s.runtime, "wan1@ipv6@dhcpcd.json", "{")
	s.remove("wan1", routing.IPv4, true)
	s.reload("wan1", 1)
	s.is("somebody may still hold it", "wan1", 0, false)
}

func TestKeep(t *testing.T) {
	t.Parallel()
	other, kept := lease("wan1"), lease("wan2")
	other.Part, other.Index, kept.Index = "other", 8, 9
	s := open(t, lease("wan0"), lease("wan1"), other, kept)
	gone := lease("hint")
	s.Hint("hint", []hookstate.Config{gone})
	s.Hint("wan2", []hookstate.Config{kept})
	s.Take()
	now := map[int]bool{8: true, 9: true}
	exists := func(index int) (bool, error) { return now[index], nil }
	dropped, err := s.Keep(s.Interfaces(), exists)
	slices.SortFunc(dropped, hookstate.Compare)
	if want := []hookstate.Config{gone, lease("wan0"), lease("wan1")}; err != nil || !slices.EqualFunc(dropped, want, hookstate.Same) {
		t.Errorf("dropped %+v, %v", dropped, err)
	}
	<-s.Changed()
	if got := s.Take(); !slices.Equal(got, []string{"hint", "wan0", "wan1"}) || !slices.Equal(s.Interfaces(), []string{"wan1", "wan2"}) {
		t.Errorf("changed %q, left %q", got, s.Interfaces())
	}
	reads(t, s.runtime, "", other, kept)
	if dropped, err := s.Keep(s.Interfaces(), exists); len(dropped) > 0 || err != nil {
		t.Errorf("once more: %+v, %v", dropped, err)
	}
	s.news("once more")

	// Not knowing is not emptiness.
	if dropped, err := s.Keep(s.Interfaces(), func(int) (bool, error) { return false, unix.EMFILE }); len(dropped) > 0 || !errors.Is(err, unix.EMFILE) {
		t.Errorf("nothing is known: dropped %+v, %v", dropped, err)
	}

	// A damaged file beside it does not keep what is gone.
	raw(t, s.runtime, "wan2@ipv6@dhcpcd.json", "{")
	delete(now, 9)
	if dropped, err := s.Keep(s.Interfaces(), exists); err == nil || len(dropped) != 2 {
		t.Errorf("dropped %+v, %v", dropped, err)
	}
	if got := s.Interfaces(); !slices.Equal(got, []string{"wan1"}) {
		t.Errorf("left %q", got)
	}
}

func TestServers(t *testing.T) {
	t.Parallel()
	one, two := lease("wan0"), lease("wan0")
	two.Servers, two.Domains = append(two.Servers, two.Addresses[0].Addr()), []string{"example.org", "example.net"}
	v6 := hookstate.Config{Family: routing.IPv6, Servers: []netip.Addr{server6}}
	servers, domains := hookstate.Servers([]hookstate.Config{one, v6, two}, routing.IPv4)
	if !slices.Equal(servers, two.Servers) || !slices.Equal(domains, []string{"example.net", "example.org"}) {
		t.Errorf("%v for %v", servers, domains)
	}
	if servers, domains = hookstate.Servers([]hookstate.Config{one, v6}, routing.IPv6); !slices.Equal(servers, v6.Servers) || domains != nil {
		t.Errorf("%v for %v", servers, domains)
	}
}

// TestTogether is for the race detector.
func TestTogether(t *testing.T) {
	t.Parallel()
	s := open(t, lease("wan0"))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			put(t, s.runtime, lease("wan0"))
			s.reload("wan0", 0)
			s.Hint("wan0", nil)
			s.Release("wan0")
			s.Of("wan0")
			s.Take()
			if _, err := s.Keep(s.Interfaces(), func(int) (bool, error) { return true, nil }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s.is("in the end", "wan0", 1, false)
}

func TestIndex(t *testing.T) {
	t.Parallel()
	lo, err := hookstate.Index("lo")
	if err != nil {
		t.Fatal(err)
	}
	for index, want := range map[int]bool{lo: true, 1 << 30: false} {
		if is, err := hookstate.Exists(index); is != want || err != nil {
			t.Errorf("%d exists: %t, %v", index, is, err)
		}
	}
	if lo, err := hookstate.Index("lo"); err != nil || lo <= 0 {
		t.Errorf("%d, %v", lo, err)
	}
	for _, name := range []string{"", "none", strings.Repeat("x", 20)} {
		if _, err := hookstate.Index(name); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRestore: what hooks said has its files again after somebody removed the directory; a
// newer word of theirs stays.
func TestRestore(t *testing.T) {
	t.Parallel()
	first, second := lease("wan0"), lease("wan1")
	s := open(t, first, second)
	if err := os.RemoveAll(filepath.Join(s.runtime, hookstate.Directory)); err != nil {
		t.Fatal(err)
	}
	newer := second
	newer.Index++
	put(t, s.runtime, newer)
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	again, errs := hookstate.Open(s.runtime)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for name, index := range map[string]int{"wan0": first.Index, "wan1": newer.Index} {
		if configs, _ := again.Of(name); len(configs) != 1 || configs[0].Index != index {
			t.Errorf("of %s: %+v, want index %d", name, configs, index)
		}
	}
}
