package offswitch_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"multihomed/internal/offswitch"
)

func mark(by string) offswitch.Mark {
	return offswitch.Mark{Since: time.Date(2026, 11, 28, 7, 10, 0, 0, time.UTC), By: by}
}

func change(t *testing.T, directory string, edit func(*offswitch.State) error) bool {
	t.Helper()
	_, _, changed, err := offswitch.Change(directory, edit)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestSwitch: what is off stays off until it is switched on, with the first mark.
func TestSwitch(t *testing.T) {
	directory := t.TempDir() + "/new"
	if s := offswitch.Load(directory); s.Any() || s.Why() != "" {
		t.Errorf("before anything: %+v", s)
	}
	for n, by := range []string{"alice", "bob"} {
		if changed := change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark(by)) }); changed != (n == 0) {
			t.Errorf("switched off by %s: changed is %v", by, changed)
		}
	}
	s := offswitch.Load(directory)
	if !s.HostOff() || s.Host == nil || s.Host.By != "alice" || !strings.Contains(s.Why(), "by alice; to switch it on: multihomectl on") {
		t.Errorf("switched off: %+v, %s", s, s.Why())
	}
	if why, off := s.Of("any", ""); !off || why != s.Why() {
		t.Errorf("a link of a host that is off: %v, %s", off, why)
	}
	info, err := os.Stat(offswitch.Path(directory))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the file: %v, %v", info, err)
	}
	change(t, directory, (*offswitch.State).SwitchOn)
	if s := offswitch.Load(directory); s.Any() {
		t.Errorf("switched on: %+v", s)
	}
}

// TestLinks: a link is known by its profile, else by its name.
func TestLinks(t *testing.T) {
	directory := t.TempDir()
	change(t, directory, func(s *offswitch.State) error {
		return errors.Join(s.LinkOff(offswitch.Link{UUID: "u-1", Interface: "wan1", Mark: mark("alice")}), s.LinkOff(offswitch.Link{Interface: "ppp7", Mark: mark("alice")}))
	})
	s := offswitch.Load(directory)
	for _, c := range []struct {
		name, uuid string
		off        bool
	}{
		{"wan1", "u-1", true},
		{"renamed", "u-1", true},
		{"wan1", "u-2", false},
		{"wan1", "", true},
		{"renamed", "", false},
		{"ppp7", "", true},
		{"ppp7", "u-3", true},
		{"wan0", "u-0", false},
	} {
		if _, off := s.Of(c.name, c.uuid); off != c.off {
			t.Errorf("%q with profile %q: off is %v", c.name, c.uuid, off)
		}
	}
	if s.HostOff() || !s.Any() {
		t.Errorf("%+v", s)
	}
	if change(t, directory, func(s *offswitch.State) error {
		return s.LinkOff(offswitch.Link{UUID: "u-1", Interface: "renamed", Mark: mark("bob")})
	}) {
		t.Error("it was off already")
	}
	change(t, directory, func(s *offswitch.State) error { return s.LinkOn("renamed", "u-1") })
	if s := offswitch.Load(directory); len(s.Links) != 1 || s.Links[0].Interface != "ppp7" {
		t.Errorf("%+v", s.Links)
	}
}

// TestDamaged: off does not become on by damage, and both ways out work.
func TestDamaged(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "cut": `{"schema":1,"host":{"since":"2026`, "zeros": "\x00\x00\x00\x00", "another schema": `{"schema":2}`,
		"no schema": `{}`, "a list": `[]`, "no link": `{"schema":1,"links":[{"since":"2026-11-28T07:10:00Z","by":"alice"}]}`,
		"large": `{"schema":1}` + strings.Repeat(" ", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			write := func() {
				t.Helper()
				if err := os.WriteFile(offswitch.Path(directory), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write()
			if _, _, _, err := offswitch.Change(directory, func(s *offswitch.State) error {
				return s.LinkOff(offswitch.Link{Interface: "wan1", Mark: mark("alice")})
			}); err == nil || !offswitch.Load(directory).HostOff() {
				t.Errorf("one link is switched off, and the others on: %v", err)
			}
			s := offswitch.Load(directory)
			if !s.HostOff() || s.Damaged == nil || !strings.Contains(s.Why(), "to fix: multihomectl on, or multihomectl off") || !strings.Contains(s.Why(), offswitch.Path(directory)) {
				t.Errorf("%+v, %s", s, s.Why())
			}
			if !change(t, directory, (*offswitch.State).SwitchOn) || offswitch.Load(directory).Any() {
				t.Error("it is not on")
			}
			write()
			change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) })
			if s := offswitch.Load(directory); s.Damaged != nil || s.Host == nil {
				t.Errorf("not off: %+v", s)
			}
		})
	}
	directory := t.TempDir()
	if err := os.Mkdir(offswitch.Path(directory), 0o700); err != nil {
		t.Fatal(err)
	}
	if s := offswitch.Load(directory); !s.HostOff() {
		t.Error("a directory is no switch that is on")
	}
}

// TestTogether: of many who switch at the same time, none is lost.
func TestTogether(t *testing.T) {
	directory := t.TempDir()
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			if _, _, _, err := offswitch.Change(directory, func(s *offswitch.State) error {
				return s.LinkOff(offswitch.Link{Interface: name, Mark: mark("alice")})
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var have []string
	for _, l := range offswitch.Load(directory).Links {
		have = append(have, l.Interface)
	}
	if slices.Sort(have); !slices.Equal(have, names) {
		t.Errorf("have %q", have)
	}
}

// TestWho: sudo's word goes first, and what is shown is plain.
func TestWho(t *testing.T) {
	env := func(value string) func(string) string {
		return func(key string) string {
			if key == "SUDO_USER" {
				return value
			}
			return ""
		}
	}
	if who := offswitch.Who(env("alice")); who != "alice" {
		t.Error(who)
	}
	for _, odd := range []string{"", "al\x1bice", "two words"} {
		if who := offswitch.Who(env(odd)); who == odd || who == "" {
			t.Errorf("%q is %q", odd, who)
		}
	}
}
