package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/lockfile"
	"multihomed/test/lab"
)

// aWait is what a wait for a daemon that is elsewhere takes at least.
const aWait = 2 * time.Second

// waitsForNobody runs something that must not wait. A busy host makes some runs slow; one that waits is
// slow each time.
func (r *rig) waitsForNobody(what string, do func()) {
	r.t.Helper()
	const tries = 5
	for range tries {
		from := time.Now()
		do()
		if time.Since(from) < aWait {
			return
		}
	}
	r.t.Errorf("%s took %v or more, %d times", what, aWait, tries)
}

// TestDirectoriesOfTheRunningDaemon: a file that names other directories than the daemon works in is
// refused, and nothing else follows it either: multihomectl, the dispatcher and the hooks find
// the daemon where it is.
func TestDirectoriesOfTheRunningDaemon(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:eth9;interface-name:eth9p"}, quickToml, 2, nil)
	f.install()
	f.begin()
	good, err := os.ReadFile(f.path)
	f.must(err)
	lookup := func(source string) func() error {
		return func() error {
			rules, err := f.RulesText(t.Context(), lab.IPv4)
			if err == nil && !strings.Contains(rules, "from "+source+" lookup") {
				err = fmt.Errorf("no rule from %s:\n%s", source, rules)
			}
			return err
		}
	}
	wan1 := f.address("wan1", lab.IPv4).String()
	for _, key := range []string{"state_dir", "runtime_dir"} {
		t.Run(key, func(t *testing.T) {
			f := &failing{rig: f.rig, isps: f.isps, caught: f.caught, prober: f.prober, monitor: f.monitor, other: f.other}
			rig := *f.rig
			rig.t = t
			f.rig = &rig
			before := f.ours()
			f.veth("eth9", "10.77.7.2/24")
			other := filepath.Join(t.TempDir(), "other")
			var lines []string
			for line := range strings.Lines(string(good)) {
				if strings.HasPrefix(line, key+" ") {
					line = fmt.Sprintf("%s = %q\n", key, other)
				}
				lines = append(lines, line)
			}
			// Nothing of a refused file counts.
			text := strings.Join(lines, "") + "[allocator]\nsocket = \"nowhere\"\n[tables]\nfirst = 40000\nlast = 41000\n"
			f.must(os.WriteFile(f.path, []byte(text), 0o600))
			from := len(f.daemon.Lines())
			f.must(f.daemon.Signal(syscall.SIGHUP))
			f.logged(from, "configuration is refused")

			f.waitsForNobody("status", func() {
				out, err := f.ctl("status")
				flat := strings.Join(strings.Fields(out), " ")
				if err == nil || !strings.Contains(flat, f.path+":") || !strings.Contains(flat, key+" changes from ") || !strings.Contains(flat, "wan1") || strings.Contains(flat, "does not answer") {
					t.Errorf("status: %v\n%s", err, out)
				}
			})
			// A daemon that is not told, and so does not obey, would be killed.
			if out := f.switches("off", "wan1"); strings.Contains(out, "killed") || !strings.Contains(out, "removed") {
				t.Errorf("off: %s", out)
			}
			if err := f.lacks(lab.IPv4, "from "+wan1+" "); err != nil {
				t.Error(err)
			}
			if out := f.switches("on", "wan1"); !strings.Contains(out, "wan1 is switched on: 1 link with its routing") {
				t.Errorf("on: %s", out)
			}
			f.must(lookup(wan1)())
			f.well()
			if out := f.switches("failover", "test", "wan0"); !strings.Contains(out, "wan1") {
				t.Errorf("failover test: %s", out)
			}
			f.switches("failover", "reset", "wan0")
			f.well()

			// NetworkManager's dispatcher, and a hook.
			call := func(words ...string) {
				t.Helper()
				f.waitsForNobody(strings.Join(words, " "), func() {
					out, err := f.Run(t.Context(), "env", append([]string{"-i"}, words...)...)
					f.must(err)
					if out != "" {
						t.Errorf("%v: %s", words, out)
					}
				})
			}
			call("DEVICE_IFACE=wan1", "DEVICE_IP_IFACE=wan1", "CONNECTION_ID=wan1", "CONNECTION_UUID=0a", "/usr/sbin/multihomed-dispatcher", "wan1", "up")
			f.ip("address", "add", "10.77.9.2/24", "dev", "eth9")
			ifupdown := func(mode, phase string) {
				t.Helper()
				call("IFACE=eth9", "LOGICAL=eth9", "ADDRFAM=inet", "METHOD=static", "MODE="+mode, "PHASE="+phase, "IF_ADDRESS=10.77.9.2/24", "IF_GATEWAY=10.77.9.1", "/usr/sbin/multihomed-dispatcher", "ifupdown")
			}
			f.must(f.lacks(lab.IPv4, "10.77.9.2"))
			ifupdown("start", "post-up")
			f.must(lookup("10.77.9.2")())
			ifupdown("stop", "pre-down")

			// A lease: the socket is the daemon's, too.
			if out, err := f.ctl("lease", "-i", "eth9", "-a", "10.77.7.2"); err != nil {
				t.Errorf("lease: %v: %s", err, out)
			}
			f.must(lookup("10.77.7.2")())
			if out, err := f.ctl("lease", "list"); err != nil || !strings.Contains(out, "10.77.7.2") {
				t.Errorf("lease list: %v: %s", err, out)
			}
			if out, err := f.ctl("lease", "release", "-i", "eth9", "-a", "10.77.7.2"); err != nil {
				t.Errorf("lease release: %v: %s", err, out)
			}
			if out, err := f.ctl("flush", "--yes"); err == nil || !strings.Contains(out, fmt.Sprintf("multihomed is running (process %d)", f.daemon.Pid())) {
				t.Errorf("flush: %v: %s", err, out)
			}
			report := filepath.Join(t.TempDir(), "report")
			f.switches("report", "-o", report)
			for name, want := range map[string]string{"configuration-fault.txt": key + " changes from ", "configuration.txt": fmt.Sprintf("state_dir = %q\n", f.cfg.StateDir), "run/memory.json": "{"} {
				if text, err := os.ReadFile(filepath.Join(report, name)); err != nil || !strings.Contains(string(text), want) {
					t.Errorf("report, %s: %v: %s\nwant %s", name, err, text, want)
				}
			}

			f.ip("link", "del", "eth9")
			f.eventually(func() error { return f.lacks(lab.IPv4, "10.77.") })
			if err := f.daemon.Signal(syscall.Signal(0)); err != nil {
				t.Fatalf("the daemon has ended: %v", err)
			}
			if _, err := os.Lstat(other); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("somebody used %s: %v", other, err)
			}
			f.must(os.WriteFile(f.path, good, 0o600))
			from = len(f.daemon.Lines())
			f.must(f.daemon.Signal(syscall.SIGHUP))
			f.logged(from, "configuration unchanged")
			f.settled("wan0", "wan1")
			f.refused("")
			f.well()
			f.unharmed(before, "all that")
			if out := f.switches("on"); !strings.Contains(out, "nothing was switched off") {
				t.Errorf("left over: %s", out)
			}
		})
	}
	// Without a daemon the file counts.
	f.must(f.daemon.Stop(t.Context()))
	other := t.TempDir()
	f.must(os.WriteFile(f.path, append(fmt.Appendf(nil, "state_dir = %q\nruntime_dir = %q\n", filepath.Join(other, "s"), filepath.Join(other, "r")), "network_manager = \"no\"\n"...), 0o600))
	f.switches("off", "wan1")
	for _, name := range []string{"s/off.json", "r/lock"} {
		if _, err := os.Lstat(filepath.Join(other, name)); err != nil {
			t.Errorf("without a daemon: %v", err)
		}
	}
}

// TestReloadBeforeTheStart: a reload that comes while the daemon does not even hold its lock is
// kept, and ends nobody.
func TestReloadBeforeTheStart(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.must(os.MkdirAll(r.cfg.RuntimeDir, 0o755))
	path := filepath.Join(r.cfg.RuntimeDir, lockfile.Name)
	lock, err := lockfile.TryLock(path)
	r.must(err)
	r.launch()
	r.eventually(func() error {
		// It waits for the lock.
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.daemon.Pid()))
		for _, e := range entries {
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", r.daemon.Pid(), e.Name())); to == path {
				return nil
			}
		}
		return fmt.Errorf("it does not wait for %s: %w", path, err)
	})
	for range 3 {
		r.must(r.daemon.Signal(syscall.SIGHUP))
	}
	r.must(lock.Close())
	r.ready()
	ctx, cancel := r.patience()
	defer cancel()
	if _, err := r.daemon.WaitLine(ctx, "configuration unchanged"); err != nil {
		t.Errorf("the reload is lost: %v", err)
	}
}
