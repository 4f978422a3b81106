package runstate_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"multihomed/cmd/internal/runstate"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	if _, found, err := runstate.Read(dir); found || err != nil {
		t.Errorf("of nobody: %v, %v", found, err)
	}
	want := runstate.State{
		Version: "1.2.3", PID: 42, Started: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), Ready: true, Waiting: "the bus",
		Problems: []routing.Problem{{Code: routing.NoTable, Severity: routing.Error, Link: "wan0", Text: "no table", Fix: "make room"}},
	}
	if err := runstate.Write(dir, want); err != nil {
		t.Fatal(err)
	}
	got, found, err := runstate.Read(dir)
	if !found || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v, %v", got, found, err)
	}
	// Everybody may see it.
	if info, err := os.Stat(filepath.Join(dir, runstate.Name)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info, err)
	}
	for range 2 {
		if err := runstate.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if _, found, err := runstate.Read(dir); found || err != nil {
		t.Errorf("after its end: %v, %v", found, err)
	}
}

// TestLargeMemory: what was kept is read, however much it is.
func TestLargeMemory(t *testing.T) {
	m := runstate.Memory{Directory: t.TempDir()}
	var want reconcile.Recollection
	for index := range 20_000 {
		want.Uplinks = append(want.Uplinks, reconcile.FormerUplink{
			Index: index, Interface: "wan0", Profile: "office", UUID: "1-2-3", Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")},
			Until: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC),
		})
	}
	if err := m.Keep(want); err != nil {
		t.Fatal(err)
	}
	if got, found := m.Recall(); !found || !reflect.DeepEqual(got, want) {
		t.Errorf("%t, %d of %d links", found, len(got.Uplinks), len(want.Uplinks))
	}
}

func TestStateThatMakesNoSense(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "another format": "ready=1", "wrong type": `{"pid":"seven"}`,
		"endless": `{"version":"` + strings.Repeat("x", 2<<20) + `"}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, runstate.Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := runstate.Read(dir); found || err == nil || !strings.Contains(err.Error(), runstate.Name) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
}
