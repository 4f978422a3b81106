package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/cmd/internal/config"
	"multihomed/internal/lab"
	"multihomed/internal/lab/labtest"
	"multihomed/routing"
)

const scripts = "/etc/NetworkManager/dispatcher.d"

// dispatched is a host on which NetworkManager's dispatcher runs our program, as
// the package installs it: at once, beside the scripts of others.
func dispatched(t *testing.T, toml string) *rig {
	t.Helper()
	r := newRig(t, lab.HostConfig{FastDAD: true}, toml)
	// NetworkManager passes no file name.
	text, err := os.ReadFile(r.path)
	r.must(err)
	r.path = config.DefaultPath
	r.must(os.WriteFile(r.path, text, 0o600))
	t.Cleanup(func() { r.must(os.Remove(r.path)) })
	r.must(r.EnableDispatcher())
	program, err := labtest.Build("multihomed-dispatcher")
	r.must(err)
	install(t, program, filepath.Join(scripts, "90-multihomed"))
	r.must(os.Symlink("../90-multihomed", filepath.Join(scripts, "no-wait.d", "90-multihomed")))
	t.Cleanup(func() {
		r.must(os.Remove(filepath.Join(scripts, "no-wait.d", "90-multihomed")))
		r.must(os.Remove(filepath.Join(scripts, "90-multihomed")))
	})
	for n := range 2 {
		// The families come one after the other, and the dispatcher is told of the
		// first.
		r.isp(lab.DefaultISP(n))
	}
	return r
}

func install(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// NetworkManager may run what is there at any moment.
	hidden := filepath.Join(filepath.Dir(to), "."+filepath.Base(to))
	out, err := os.OpenFile(hidden, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.Close(), os.Rename(hidden, to)); err != nil {
		t.Fatal(err)
	}
}

// TestDispatcherInsteadOfTheDaemon is a host without the daemon: what
// NetworkManager brings up and down is in order all the same, and a daemon that
// starts then takes over at once, and has nothing to do.
func TestDispatcherInsteadOfTheDaemon(t *testing.T) {
	r := dispatched(t, "")
	r.up("wan0", "wan1")
	view := r.settled("wan0", "wan1")
	tables := map[string]routing.TableID{}
	for _, link := range []string{"wan0", "wan1"} {
		tables[link] = r.table(view, link, routing.IPv4)
	}
	r.must(r.Down(t.Context(), "wan1"))
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan1") })
	r.settled("wan0")
	r.up("wan1")
	view = r.settled("wan0", "wan1")
	for link, table := range tables {
		if now := r.table(view, link, routing.IPv4); now != table {
			t.Errorf("%s has table %d, had %d", link, now, table)
		}
	}
	m := newMonitor(t)
	from := m.barrier()
	r.start()
	r.settled("wan0", "wan1")
	m.barrier()
	if writes := m.unprovoked(from); len(writes) > 0 {
		t.Errorf("the daemon changed what the dispatcher had made:\n%s", m.text(from))
	}
}

// TestDispatcherHandsOver is a host with the daemon: it is told, by a process
// that does nothing else, also while it hangs.
func TestDispatcherHandsOver(t *testing.T) {
	r := dispatched(t, "log_level = \"debug\"\n")
	r.start()
	r.up("wan0", "wan1")
	r.settled("wan0", "wan1")
	told := func(what string) {
		t.Helper()
		labtest.Eventually(t, func() error {
			if !strings.Contains(r.daemon.Log(), "msg=event caller=NetworkManager action="+what) {
				return fmt.Errorf("the daemon was not told of %s", what)
			}
			return nil
		})
	}
	told("up interface=wan0")
	r.must(r.Down(t.Context(), "wan1"))
	told("down interface=wan1")
	r.settled("wan0")

	// A daemon that hangs delays nobody.
	r.must(r.daemon.Signal(unix.SIGSTOP))
	began := time.Now()
	r.up("wan1")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("an activation took %v while the daemon hung", took)
	}
	r.must(r.daemon.Signal(unix.SIGCONT))
	told("up interface=wan1")
	r.settled("wan0", "wan1")
}
