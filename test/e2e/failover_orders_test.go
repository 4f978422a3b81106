package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"multihomed/internal/status/socket"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestFailoverOrders walks the wrong uses of `failover test` and `failover reset`, as root and as an
// ordinary user: each says in one line what is wrong, and what to do.
func TestFailoverOrders(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml, 2, nil)
	// Everybody may read the configuration and ask the daemon.
	f.must(os.Chmod(f.path, 0o644))
	f.must(os.Chmod(filepath.Dir(filepath.Dir(f.path)), 0o755))
	f.must(os.Chmod(filepath.Dir(filepath.Dir(f.cfg.RuntimeDir)), 0o755))
	program, err := labtest.Build("multihomectl")
	f.must(err)
	const root, nobody = 0, 65534
	as := func(user uint32, words ...string) (string, int) {
		t.Helper()
		c := exec.CommandContext(t.Context(), program, append([]string{"failover"}, append(words, "--config", f.path)...)...)
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		out, err := c.CombinedOutput()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			t.Fatal(err)
		}
		return string(out), c.ProcessState.ExitCode()
	}
	// wrong wants both users to get the same error.
	wrong := func(status int, says string, words ...string) {
		t.Helper()
		for _, user := range []uint32{root, nobody} {
			if out, got := as(user, words...); got != status || !strings.Contains(out, says) || strings.Count(out, "\n") != 1 {
				t.Errorf("user %d: failover %q ends with %d, want %d: %swant %s", user, words, got, status, out, says)
			}
		}
	}
	// forbidden wants an ordinary user to be told how it is done, and root to be refused, if says is not empty.
	forbidden := func(says string, words ...string) {
		t.Helper()
		if out, got := as(nobody, words...); got != 1 || !strings.Contains(out, "; to fix: sudo multihomectl failover "+strings.Join(words, " ")+" --config "+f.path+"\n") {
			t.Errorf("an ordinary user: failover %q ends with %d: %s", words, got, out)
		}
		if out, got := as(root, words...); says != "" && (got != 1 || !strings.Contains(out, says)) || says == "" && got != 0 {
			t.Errorf("root: failover %q ends with %d: %swant %q", words, got, out, says)
		}
	}
	// watched waits until the daemon watches so many links.
	watched := func(count int, off bool) {
		t.Helper()
		f.eventually(func() error {
			s, err := socket.Ask(t.Context(), f.cfg.RuntimeDir, true)
			if err == nil && (s.Off != nil) != off {
				err = errors.New("the switch is not seen")
			}
			if err == nil && s.Failover != nil && len(s.Failover.Uplinks) != 2*count {
				err = errors.New("other links are watched")
			}
			return err
		})
	}
	const start = "multihomed is not running, so no link is watched; to fix: systemctl "
	wrong(1, start, "test", "wan0")
	wrong(1, start, "reset", "wan0")
	f.begin()
	wrong(2, "takes one uplink, and got 0; see multihomectl failover test --help", "test")
	wrong(2, "takes one uplink, and got 2; see multihomectl failover reset --help", "reset", "wan0", "wan1")
	wrong(2, `there is no command "failover tst"; did you mean test?`, "tst", "wan0")
	wrong(2, `there is no uplink "wna0"; did you mean wan0?; there are wan0, wan1`, "test", "wna0")
	wrong(2, `there is no uplink ""; there are wan0, wan1`, "test", "")
	wrong(2, `there is no uplink "Wired connection 1"; there are wan0, wan1`, "reset", "Wired connection 1")
	wrong(2, "wan* is a pattern; name one uplink: wan0, wan1", "test", "wan*")

	forbidden("", "test", "wan0")
	forbidden("", "test", "wan0") // once more lets it begin anew
	forbidden("wan1: no other uplink is alive: wan0 counts as dead by a test; to fix: multihomectl failover reset wan0", "test", "wan1")
	forbidden("", "reset", "wan0")
	forbidden("", "reset", "wan0")
	f.well()

	f.must(f.daemon.Signal(syscall.SIGSTOP))
	f.eventually(func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.daemon.Pid()))
		if err == nil && !strings.Contains(string(text), ") T ") {
			err = fmt.Errorf("it is not stopped: %s", text)
		}
		return err
	})
	wrong(1, "multihomed does not answer within 10s; to fix: systemctl restart multihomed", "test", "wan0")
	f.must(f.daemon.Signal(syscall.SIGCONT))

	f.switches("off", "wan1")
	watched(1, false)
	wrong(1, "wan1 is switched off since ", "test", "wan1")
	wrong(1, "so it is not watched; to fix: multihomectl on wan1", "reset", "wan1")
	forbidden("wan0 is the only uplink with a default route, so nothing can take its traffic; to fix: multihomectl on wan1", "test", "wan0")
	f.switches("off")
	watched(0, true)
	wrong(1, "so no link is watched; to fix: multihomectl on\n", "test", "wan0")
	f.switches("on")
	f.must(f.Down(t.Context(), "wan1"))
	watched(1, false)
	forbidden("wan0 is the only uplink with a default route, so nothing can take its traffic; to fix: connect another one", "test", "wan0")
	wrong(2, "wan1 is no link, so it is not watched (disconnected); there are wan0", "test", "wan1")
	f.must(f.Down(t.Context(), "wan0"))
	watched(0, false)
	wrong(1, "no link has a default route, so none is watched; to fix: connect two that have one", "test", "wan0")

	f.rewrite(quickToml + "enabled = false\n")
	f.must(f.daemon.Signal(syscall.SIGHUP))
	f.eventually(func() error {
		s, err := socket.Ask(t.Context(), f.cfg.RuntimeDir, true)
		if err == nil && (s.Failover == nil || s.Failover.Enabled) {
			err = errors.New("failover is not off yet")
		}
		return err
	})
	wrong(1, "failover is switched off; to fix: set enabled = true in [failover] of the configuration, then: systemctl reload multihomed", "test", "wan0")
}
