package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/cmd/internal/config"
	"multihomed/internal/lab"
	"multihomed/internal/lab/labtest"
	"multihomed/routing"
)

// dispatched is a host with two providers on which NetworkManager's dispatcher
// runs our program.
func dispatched(t *testing.T, toml string) *rig {
	t.Helper()
	r := newRig(t, lab.HostConfig{FastDAD: true}, toml)
	r.must(r.EnableDispatcher())
	r.install()
	for n := range 2 {
		// The families come one after the other, and the dispatcher is told of the
		// first.
		r.isp(lab.DefaultISP(n))
	}
	return r
}

// installed is a directory with what `make install` installs, made once.
var installed = sync.OnceValues(func() (string, error) {
	directory, err := os.MkdirTemp("", "multihomed-installed")
	if err != nil {
		return "", err
	}
	// Not with the race detector, which lets every process sleep before it ends.
	bin := filepath.Join(directory, "bin")
	out, err := exec.CommandContext(context.Background(), "make", "-C", "../../..", "build", "install", "BIN="+bin, "DESTDIR="+directory, "PREFIX=/usr").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make install: %w: %s", err, out)
	}
	return directory, nil
})

// install installs the programs and hooks, and has them use the rig's
// configuration: no caller passes a file name.
func (r *rig) install() {
	r.t.Helper()
	directory, err := installed()
	r.must(err)
	for _, part := range []string{"etc", "usr/sbin", "usr/lib/NetworkManager", "usr/lib/dhcpcd"} {
		_, err := r.Run(r.t.Context(), "cp", "-a", filepath.Join(directory, part)+"/.", "/"+part)
		r.must(err)
	}
	text, err := os.ReadFile(r.path)
	r.must(err)
	r.path = config.DefaultPath
	r.must(os.WriteFile(r.path, text, 0o600))
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
