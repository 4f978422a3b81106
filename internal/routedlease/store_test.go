package routedlease_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/routedlease"
)

func link(name, address string) routedlease.Link {
	return routedlease.Link{
		Interface: name, Address: netip.MustParseAddr(address), Owner: 7, Tag: "test",
		Expires: 90 * time.Second, Since: time.Unix(1, 0).UTC(),
	}
}

func open(t *testing.T, dir string) *routedlease.Store {
	t.Helper()
	s, errs := routedlease.Open(dir)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	all := []routedlease.Link{link("wan0", "192.0.2.1"), link("wan0", "192.0.2.2"), link("wan0", "2001:db8::1"), link("wan1", "192.0.2.1")}
	for _, l := range slices.Backward(all) {
		if err := s.Put(l); err != nil {
			t.Fatal(err)
		}
	}
	<-s.Changed()
	if got := s.Take(); !slices.Equal(got, []string{"wan0", "wan1"}) || len(s.Take()) != 0 {
		t.Errorf("changed: %v", got)
	}
	// Whoever comes after a crash finds the same.
	for _, s := range []*routedlease.Store{s, open(t, dir)} {
		if got := s.All(); !slices.Equal(got, all) {
			t.Errorf("links %v, want %v", got, all)
		}
		if got := s.Of("wan0"); len(got) != 3 || got[2] != all[2].Address {
			t.Errorf("addresses of wan0: %v", got)
		}
		if got, ok := s.Get("wan1", all[3].Address); !ok || got != all[3] {
			t.Errorf("got %v, %v", got, ok)
		}
	}
	for range 2 {
		if err := s.Remove("wan0", all[0].Address); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(t, dir).All(); !slices.Equal(got, all[1:]) {
		t.Errorf("after one was removed: %v", got)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for _, l := range []routedlease.Link{
		{},
		{Interface: "wan0"},
		{Interface: "../../etc/x", Address: netip.MustParseAddr("192.0.2.1")},
		{Interface: "a-name-of-16-byt", Address: netip.MustParseAddr("192.0.2.1")},
		{Interface: "wan0", Address: netip.MustParseAddr("fe80::1%wan0")},
		{Interface: "wan0", Address: netip.MustParseAddr("::ffff:192.0.2.1")},
		{Interface: "wan0", Address: netip.MustParseAddr("192.0.2.1"), Expires: -1},
	} {
		if err := s.Put(l); err == nil {
			t.Errorf("%+v was taken", l)
		}
	}
	if len(s.All()) != 0 {
		t.Errorf("there are %v", s.All())
	}
}

func TestWhatCannotBeReadIsToldAndLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	good := link("wan0", "192.0.2.1")
	if err := s.Put(good); err != nil {
		t.Fatal(err)
	}
	links := filepath.Join(dir, routedlease.Directory)
	content, err := os.ReadFile(filepath.Join(links, "wan0@192.0.2.1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"wan1@192.0.2.1.json":  string(content),
		"wan2@192.0.2.2.json":  "",
		"wan3@192.0.2.3.json":  `{"interface":"wan3","address":"x"}`,
		"wan4@192.0.2.4.json":  `{"interface":"wan4/..","address":"192.0.2.4"}`,
		"wan5@192.0.2.5.json":  `{"tag":"` + strings.Repeat("x", 1<<20) + `"}`,
		".wan6@192.0.2.6.json": "left by a process that was killed",
		"README":               "not ours",
	} {
		if err := os.WriteFile(filepath.Join(links, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(links, "wan7@192.0.2.7.json")); err != nil {
		t.Fatal(err)
	}
	s, errs := routedlease.Open(dir)
	if got := s.All(); !slices.Equal(got, []routedlease.Link{good}) {
		t.Errorf("links %v", got)
	}
	if len(errs) != 6 {
		t.Errorf("%d errors: %v", len(errs), errs)
	}
	if entries, err := os.ReadDir(links); err != nil || len(entries) != 9 {
		t.Errorf("%d files are there, %v", len(entries), err)
	}
}

func TestAFullDirectoryLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	good := link("wan0", "192.0.2.1")
	if err := s.Put(good); err != nil {
		t.Fatal(err)
	}
	links := filepath.Join(dir, routedlease.Directory)
	if err := os.Rename(links, links+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(links, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(link("wan0", "192.0.2.2")); err == nil {
		t.Error("declared without a file")
	}
	if got := s.All(); !slices.Equal(got, []routedlease.Link{good}) {
		t.Errorf("links %v", got)
	}
}

// TestRestore: what was known has its files again after somebody removed the directory.
func TestRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	all := []routedlease.Link{link("wan0", "192.0.2.1"), link("wan1", "2001:db8::1")}
	for _, l := range all {
		if err := s.Put(l); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir).All(); !slices.Equal(got, all) {
		t.Errorf("links %v, want %v", got, all)
	}
}
