package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/lockfile"
)

// TestHere: whoever is not the daemon uses the directories of the daemon that runs, and of a file
// that it refuses nothing at all.
func TestHere(t *testing.T) {
	// The thread dies with the goroutine, and its namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, state, run := filepath.Join(dir, "multihomed.toml"), filepath.Join(dir, "state"), filepath.Join(dir, "run")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	directories := func(state, run string) string {
		return fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n", state, run)
	}
	good := directories(state, run) + "uplink_group = 7\n"
	write(t, path, good)
	daemon := config.Find(path)
	is := func(what, path, wantState, wantRun string, group uint32, fault string) {
		t.Helper()
		l := config.FindHere(path)
		if l.StateDir != wantState || l.RuntimeDir != wantRun || l.UplinkGroup != group {
			t.Errorf("%s: %s, %s, %d; want %s, %s, %d", what, l.StateDir, l.RuntimeDir, l.UplinkGroup, wantState, wantRun, group)
		}
		if (l.Fault != nil) != (fault != "") || fault != "" && !strings.Contains(l.Fault.Error(), fault) {
			t.Errorf("%s: the fault is %v, want %q", what, l.Fault, fault)
		}
		cfg, err := config.SalvageHere(path)
		if cfg.StateDir != wantState || cfg.RuntimeDir != wantRun || cfg.UplinkGroup != group {
			t.Errorf("%s, salvaged: %s, %s, %d (%v)", what, cfg.StateDir, cfg.RuntimeDir, cfg.UplinkGroup, err)
		}
		if here := config.Find(path).Here(); here.StateDir != wantState || here.RuntimeDir != wantRun {
			t.Errorf("%s, here: %s, %s", what, here.StateDir, here.RuntimeDir)
		}
	}
	is("no daemon", path, state, run, 7, "")
	// The lock alone is a stand-in's.
	lock, err := lockfile.TryNamespace(0)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, directories("/s2", "/r2")+"uplink_group = 8\n")
	is("a stand-in", path, "/s2", "/r2", 8, "")
	a, err := daemon.Works()
	if err != nil {
		t.Fatal(err)
	}
	is("a daemon that has kept nothing", path, state, run, 8, "state_dir changes from")
	if err := daemon.Keep(time.Now()); err != nil {
		t.Fatal(err)
	}
	is("other directories", path, state, run, 7, `runtime_dir changes from "`+run+`" to "/r2", which needs a restart`)
	write(t, path, directories(state, run)+"uplink_group = 8\n")
	is("what a reload takes", path, state, run, 8, "")
	write(t, path, directories("/s2", "/r2")+"uplink_grup = 8\n")
	is("a mistake", path, state, run, 7, "uplink_grup")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	is("no file any more", path, state, run, 7, "state_dir changes from")
	other := filepath.Join(dir, "other.toml")
	write(t, other, directories("/s2", "/r2")+"uplink_group = 9\n")
	is("another file than the daemon's", other, state, run, 7, "")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	is("it has ended", other, "/s2", "/r2", 9, "")
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}
