package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/lockfile"
	"multihomed/internal/standin"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
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
	out, err := exec.CommandContext(context.Background(), "make", "-C", "../..", "build", "install", "BIN="+bin, "DESTDIR="+directory, "PREFIX=/usr").CombinedOutput()
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
	for _, part := range []string{"etc/dhcp", "etc/network", "usr/sbin", "usr/lib/NetworkManager", "usr/lib/dhcpcd"} {
		_, err := r.Run(r.t.Context(), "cp", "-a", filepath.Join(directory, part)+"/.", "/"+part)
		r.must(err)
	}
	text, err := os.ReadFile(r.path)
	r.must(err)
	r.path = config.DefaultPath
	r.must(os.WriteFile(r.path, text, 0o600))
}

// TestDispatcherInsteadOfTheDaemon is a host without the daemon: the routing still follows
// NetworkManager. A daemon that starts then takes over at once, and changes nothing.
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
	w := r.watch()
	from := w.converged("before the daemon", func() error { return r.holds(both("wan0", "wan1")...) })
	r.start()
	r.settled("wan0", "wan1")
	w.monitor.barrier()
	if writes := w.monitor.unprovoked(from); len(writes) > 0 {
		t.Errorf("the daemon changed objects of the dispatcher:\n%s", w.monitor.text(from))
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
			link, action, _ := strings.Cut(what, " ")
			if !strings.Contains(r.daemon.Log(), fmt.Sprintf("%s: event (caller NetworkManager, action %s)", link, action)) {
				return fmt.Errorf("the daemon was not told of %s", what)
			}
			return nil
		})
	}
	told("wan0 up")
	r.must(r.Down(t.Context(), "wan1"))
	told("wan1 down")
	r.settled("wan0")

	// A daemon that hangs is ended, and the dispatcher does its work until it is started again.
	r.must(r.daemon.Signal(unix.SIGSTOP))
	began := time.Now()
	r.up("wan1")
	labtest.Eventually(t, func() error { return r.ladder("wan1", lab.IPv4) })
	t.Logf("wan1 took %v while the daemon hung", time.Since(began))
	ctx, cancel := r.patience()
	defer cancel()
	if err := r.daemon.Wait(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the daemon that hung: %v", err)
	}
	r.settled("wan0", "wan1")
	r.start()
	r.settled("wan0", "wan1")
	// A stand-in that hangs does not keep the daemon from starting.
	r.must(r.daemon.Stop(t.Context()))
	r.must(r.Down(t.Context(), "wan1"))
	r.settled("wan0")
	pid, held, err := lockfile.Holder(filepath.Join(r.cfg.RuntimeDir, lockfile.Name))
	if err != nil || !held || !standin.Runs(pid) {
		t.Fatalf("process %d holds the lock: %t, %v", pid, held, err)
	}
	r.must(unix.Kill(pid, unix.SIGSTOP))
	r.start()
	r.up("wan1")
	r.settled("wan0", "wan1")
}

// witness lets NetworkManager's dispatcher note what it calls in a file; its scripts run in the order of their names.
func (r *rig) witness(script string) (file string) {
	r.t.Helper()
	const seen = "/run/lab/witness"
	r.must(os.WriteFile("/etc/NetworkManager/dispatcher.d/"+script, []byte("#!/bin/sh\necho \"$1 $2\" >>"+seen+"\n"), 0o755))
	r.must(os.WriteFile(seen, nil, 0o600))
	r.t.Cleanup(func() { r.must(os.Remove(seen)) })
	return seen
}

// called waits until a script of witness has been called.
func (r *rig) called(seen, words string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		text, err := os.ReadFile(seen)
		if err == nil && !strings.Contains(string(text), words+"\n") {
			err = fmt.Errorf("no script was called: %q", text)
		}
		return err
	})
}

// TestNoBus is NetworkManager's dispatcher without a reachable bus: its call repairs that one link,
// and changes no other.
func TestNoBus(t *testing.T) {
	r := dispatched(t, "")
	ctx := t.Context()
	seen := r.witness("99-witness")
	r.up("wan0", "wan1")
	table := fmt.Sprintf("lookup %d ", r.table(r.settled("wan0", "wan1"), "wan1", routing.IPv4))
	r.must(r.Down(ctx, "wan1"))
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan1") })
	// A stand-in that runs is faster than the call.
	r.called(seen, "wan1 down")
	stands := func() string {
		t.Helper()
		var lines []string
		for line := range strings.Lines(r.everything()) {
			if !strings.Contains(line, "wan1") && !strings.Contains(line, "100.64.1.") && !strings.Contains(line, table) {
				lines = append(lines, line)
			}
		}
		slices.Sort(lines)
		return strings.Join(lines, "")
	}
	// A dispatcher that stands in for the daemon ends.
	r.start()
	r.must(r.daemon.Stop(ctx))
	r.must(r.KillBus())
	r.ip("link", "set", "wan1", "up")
	r.ip("address", "add", "100.64.1.50/24", "dev", "wan1")
	before := stands()
	call := func(action string, env ...string) {
		t.Helper()
		args := slices.Concat([]string{"-i"}, env, []string{"/usr/sbin/multihomed-dispatcher", "wan1", action})
		out, err := r.Run(ctx, "env", args...)
		r.must(err)
		t.Logf("%s:\n%s", action, out)
	}
	call("up", "NM_DISPATCHER_ACTION=up", "DEVICE_IFACE=wan1", "DEVICE_IP_IFACE=wan1", "CONNECTION_UUID=0a", "CONNECTION_ID=wan1",
		"IP4_ADDRESS_0=100.64.1.50/24 100.64.1.1", "IP4_NUM_ADDRESSES=1", "IP4_GATEWAY=100.64.1.1",
		"IP4_ROUTE_0=10.8.0.0/16 100.64.1.7 100", "IP4_NUM_ROUTES=1")
	r.must(r.ladder("wan1", lab.IPv4))
	r.must(r.tableHas("wan1", lab.IPv4, "default via 100.64.1.1 ", "10.8.0.0/16 via 100.64.1.7 "))
	if after := stands(); difference(before, after) != "" {
		t.Errorf("up changed objects of other links:\n%s", difference(before, after))
	}
	r.ip("address", "flush", "dev", "wan1")
	call("down", "NM_DISPATCHER_ACTION=down", "DEVICE_IFACE=wan1", "DEVICE_IP_IFACE=wan1", "CONNECTION_UUID=0a", "CONNECTION_ID=wan1")
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan1") })
	if after := stands(); difference(before, after) != "" {
		t.Errorf("down changed objects of other links:\n%s", difference(before, after))
	}
}

// TestIgnoredScript: NetworkManager does not run a script that others than root may
// write to, and status reports it.
func TestIgnoredScript(t *testing.T) {
	r := dispatched(t, "log_level = \"debug\"\n")
	seen := r.witness("10-witness")
	// activate returns when the dispatcher has run all scripts of an activation.
	activate := func(link string) {
		t.Helper()
		r.must(os.WriteFile(seen, nil, 0o600))
		r.up(link)
		r.called(seen, link+" up")
	}
	told := func(link string) int {
		return strings.Count(r.daemon.Log(), link+": event (caller NetworkManager, action up)")
	}
	once := func() error {
		if told("wan0") == 0 {
			return errors.New("ours was not run")
		}
		return nil
	}
	status := func() string {
		text, _ := r.ctl("status") // It exits with an error where something is wrong.
		return strings.Join(strings.Fields(text), " ")
	}
	const complaint = "NetworkManager ignores /usr/lib/NetworkManager/dispatcher.d/90-multihomed"
	r.start()
	activate("wan0")
	labtest.Eventually(t, once)
	if s := status(); strings.Contains(s, complaint) {
		t.Errorf("all is well, and status says %s", s)
	}
	chmod := func(mode string) {
		t.Helper()
		_, err := r.Run(t.Context(), "chmod", mode, "/usr/sbin/multihomed-dispatcher")
		r.must(err)
	}
	for i, mode := range []string{"g", "o"} {
		chmod(mode + "+w")
		if s := status(); !strings.Contains(s, complaint) {
			t.Errorf("status does not say that the script is ignored: %s", s)
		}
		activate("wan0")
		chmod(mode + "-w")
		activate("wan1")
		labtest.Eventually(t, func() error {
			if told("wan1") <= i {
				return errors.New("ours was not run")
			}
			return nil
		})
		if n := told("wan0"); n != 1 {
			t.Errorf("%s+w: it was run all the same, %d times", mode, n)
		}
	}
}
