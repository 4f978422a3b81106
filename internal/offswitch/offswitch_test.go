package offswitch_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/flock"
	"multihomed/internal/offswitch"
)

func mark(by string) offswitch.Mark {
	return offswitch.Mark{Since: time.Date(2026, 11, 28, 7, 10, 0, 0, time.UTC), By: by}
}

// in are the two directories of a test.
func in(directory string) offswitch.Directories {
	return offswitch.Directories{State: directory + "/state", Runtime: directory + "/run"}
}

func change(t *testing.T, directory string, edit func(*offswitch.State) error) bool {
	t.Helper()
	_, _, changed, err := offswitch.Change(in(directory), edit)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestSwitch: what is off stays off until it is switched on, with the first mark.
func TestSwitch(t *testing.T) {
	directory := t.TempDir() + "/new"
	if s := offswitch.Load(in(directory)); s.Any() || s.Why() != "" {
		t.Errorf("before anything: %+v", s)
	}
	for n, by := range []string{"alice", "bob"} {
		if changed := change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark(by)) }); changed != (n == 0) {
			t.Errorf("switched off by %s: changed is %v", by, changed)
		}
	}
	s := offswitch.Load(in(directory))
	if !s.HostOff() || s.Host == nil || s.Host.By != "alice" || !strings.Contains(s.Why(), "by alice; to switch it on: multihomectl on") {
		t.Errorf("switched off: %+v, %s", s, s.Why())
	}
	if why, off := s.Of("any", ""); !off || why != s.Why() {
		t.Errorf("a link of a host that is off: %v, %s", off, why)
	}
	info, err := os.Stat(offswitch.Path(in(directory).State))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the file: %v, %v", info, err)
	}
	change(t, directory, (*offswitch.State).SwitchOn)
	if s := offswitch.Load(in(directory)); s.Any() {
		t.Errorf("switched on: %+v", s)
	}
}

// TestLinks: a link is known by its profile, else by its name.
func TestLinks(t *testing.T) {
	directory := t.TempDir()
	change(t, directory, func(s *offswitch.State) error {
		return errors.Join(s.LinkOff(offswitch.Link{UUID: "u-1", Interface: "wan1", Mark: mark("alice")}), s.LinkOff(offswitch.Link{Interface: "ppp7", Mark: mark("alice")}))
	})
	s := offswitch.Load(in(directory))
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
	if s := offswitch.Load(in(directory)); len(s.Links) != 1 || s.Links[0].Interface != "ppp7" {
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
				if err := os.MkdirAll(in(directory).State, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(offswitch.Path(in(directory).State), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write()
			if _, _, _, err := offswitch.Change(in(directory), func(s *offswitch.State) error {
				return s.LinkOff(offswitch.Link{Interface: "wan1", Mark: mark("alice")})
			}); err == nil || !offswitch.Load(in(directory)).HostOff() {
				t.Errorf("one link is switched off, and the others on: %v", err)
			}
			s := offswitch.Load(in(directory))
			if !s.HostOff() || s.Damaged == nil || !strings.Contains(s.Why(), "to fix: multihomectl on, or multihomectl off") || !strings.Contains(s.Why(), offswitch.Path(in(directory).State)) {
				t.Errorf("%+v, %s", s, s.Why())
			}
			if !change(t, directory, (*offswitch.State).SwitchOn) || offswitch.Load(in(directory)).Any() {
				t.Error("it is not on")
			}
			write()
			change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) })
			if s := offswitch.Load(in(directory)); s.Damaged != nil || s.Host == nil {
				t.Errorf("not off: %+v", s)
			}
		})
	}
	directory := t.TempDir()
	if err := os.MkdirAll(offswitch.Path(in(directory).State), 0o700); err != nil {
		t.Fatal(err)
	}
	if s := offswitch.Load(in(directory)); !s.HostOff() {
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
			if _, _, _, err := offswitch.Change(in(directory), func(s *offswitch.State) error {
				return s.LinkOff(offswitch.Link{Interface: name, Mark: mark("alice")})
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var have []string
	for _, l := range offswitch.Load(in(directory)).Links {
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

// TestModes: whatever the umask and whatever the file was, everybody may read it, and its
// lock is root's alone.
func TestModes(t *testing.T) {
	for _, umask := range []int{0o077, 0o027, 0o777, 0} {
		directory := t.TempDir()
		before := unix.Umask(umask)
		_, _, _, err := offswitch.Change(in(directory), func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) })
		unix.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		modes := func(when string) {
			t.Helper()
			for path, want := range map[string]os.FileMode{
				in(directory).State: os.ModeDir | 0o755, in(directory).Runtime: os.ModeDir | 0o755,
				offswitch.Path(in(directory).State): 0o644, in(directory).Runtime + "/off.lock": 0o600,
			} {
				if info, err := os.Stat(path); err != nil || info.Mode() != want {
					t.Errorf("umask %03o, %s: %s: %v, %v, want %v", umask, when, path, info.Mode(), err, want)
				}
			}
		}
		modes("at first")
		// What an earlier release left is put right by the next word, also if that says
		// nothing new.
		for path, mode := range map[string]os.FileMode{offswitch.Path(in(directory).State): 0o600, in(directory).Runtime + "/off.lock": 0o666} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		if !change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark("bob")) }) {
			t.Error("nothing was written")
		}
		modes("after the next word")
	}
}

// TestHeldLock: who holds the lock keeps nobody waiting for ever, and is named.
func TestHeldLock(t *testing.T) {
	directory := t.TempDir()
	change(t, directory, (*offswitch.State).SwitchOn)
	change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) })
	f, err := flock.Open(in(directory).Runtime + "/off.lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flock.Try(f); err != nil {
		t.Fatal(err)
	}
	_, _, _, err = offswitch.Change(in(directory), (*offswitch.State).SwitchOn)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) || !strings.Contains(err.Error(), "nothing was switched") {
		t.Error(err)
	}
	if !offswitch.Load(in(directory)).HostOff() {
		t.Error("it is on")
	}
}

// TestUnkept: where the state directory takes nothing, the word holds until the next boot,
// and the next one that can be written takes its place.
func TestUnkept(t *testing.T) {
	directory := t.TempDir()
	d := in(directory)
	if err := os.WriteFile(d.State, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, now, changed, err := offswitch.Change(d, func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) })
	if unkept, is := errors.AsType[*offswitch.UnkeptError](err); !is || !changed || now.Host == nil || unkept.Path != offswitch.Path(d.State) {
		t.Fatalf("%+v, %v", now, err)
	}
	if s := offswitch.Load(d); !s.HostOff() || s.Damaged != nil || !s.Temporary {
		t.Errorf("%+v", s)
	}
	if err := os.Remove(d.State); err != nil {
		t.Fatal(err)
	}
	if !change(t, directory, func(s *offswitch.State) error { return s.SwitchOff(mark("bob")) }) {
		t.Error("it is not written for good")
	}
	if s := offswitch.Load(offswitch.Directories{State: d.State, Runtime: directory + "/next-boot"}); s.Host == nil || s.Host.By != "alice" || s.Temporary {
		t.Errorf("after a boot: %+v", s)
	}
	// On, where only off is on the disk.
	if err := os.Rename(d.State, d.State+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.State, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := offswitch.Change(d, func(s *offswitch.State) error { return s.SwitchOff(mark("alice")) }); err == nil {
		t.Error("it is said to be kept")
	}
	if _, _, _, err := offswitch.Change(d, (*offswitch.State).SwitchOn); err == nil || offswitch.Load(d).Any() {
		t.Errorf("%+v, %v", offswitch.Load(d), err)
	}
	for cause, fix := range map[unix.Errno]string{unix.ENOSPC: "free some space on the file system of /s;", unix.EROFS: "mount the file system of /s read-write"} {
		if text := (&offswitch.UnkeptError{Path: "/s/off.json", Cause: cause}).Error(); !strings.Contains(text, strings.TrimSuffix(fix, ";")) {
			t.Error(text)
		}
	}
}

// TestOn: a mark applies to who has its profile, and to a name where no profile is known.
func TestOn(t *testing.T) {
	wan := offswitch.Link{UUID: "u-1", Profile: "Home", Interface: "wan1"}
	for _, c := range []struct {
		link    offswitch.Link
		present []offswitch.Interface
		want    []string
	}{
		{wan, []offswitch.Interface{{"wan0", "u-0"}, {"wan1", "u-1"}}, []string{"wan1"}},
		{wan, []offswitch.Interface{{"wan0", "u-1"}, {"wan1", "u-0"}}, []string{"wan0"}},
		{wan, []offswitch.Interface{{"wan0", "u-1"}, {"wan1", ""}}, []string{"wan0"}},
		{wan, []offswitch.Interface{{"wan0", "u-0"}, {"wan1", "u-2"}}, nil},
		{wan, []offswitch.Interface{{"wan1", ""}}, []string{"wan1"}},
		{wan, nil, nil},
		{offswitch.Link{Interface: "ppp7"}, []offswitch.Interface{{"ppp7", "u-9"}}, []string{"ppp7"}},
	} {
		if on := c.link.On(c.present); !slices.Equal(on, c.want) {
			t.Errorf("%+v with %+v is on %q, want %q", c.link, c.present, on, c.want)
		}
	}
	for word, is := range map[string]bool{"wan1": true, "u-1": true, "Home": true, "": false, "wan": false} {
		if wan.Called(word) != is {
			t.Errorf("%q", word)
		}
	}
}
