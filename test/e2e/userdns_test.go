package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/test/lab"
)

// stubAddress is that of systemd-resolved.
const stubAddress = "127.0.0.53:53"

// stub is a resolver on the loopback that somebody else runs. It answers every query itself, and counts them.
func (r *running) stub() *atomic.Int64 {
	r.t.Helper()
	c, err := net.ListenPacket("udp4", stubAddress) //nolint:noctx // It is there at once.
	r.must(err)
	r.t.Cleanup(func() { _ = c.Close() })
	asked := new(atomic.Int64)
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			asked.Add(1)
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return asked
}

// resolves has a process of a user ask the stub, and returns what came of it: "stub", the interface by whose provider the query went, or
// "nobody".
func (r *running) resolves(uid uint32, asked *atomic.Int64) string {
	r.t.Helper()
	before := asked.Load()
	for _, c := range r.captures {
		c.Reset()
	}
	cgroup, err := os.Open(r.cgroup.Path)
	r.must(err)
	defer cgroup.Close()
	cmd := exec.CommandContext(r.t.Context(), r.asker, "dns "+stubAddress)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	out, err := cmd.CombinedOutput()
	r.must(err)
	var all []string
	if asked.Load() > before {
		all = append(all, "stub")
	}
	for n, c := range r.captures {
		packets, err := c.Matching(func(k lab.Packet) bool { return k.Proto == unix.IPPROTO_UDP && k.DstPort == 53 })
		r.must(err)
		if len(packets) > 0 {
			all = append(all, fmt.Sprintf("wan%d", n))
		}
	}
	if len(all) == 0 {
		all = []string{"nobody"}
	}
	if isAnswered := strings.Contains(string(out), "answer of"); isAnswered == (all[0] == "nobody") {
		r.t.Errorf("user %d asks %v: %s", uid, all, out)
	}
	return strings.Join(all, " and ")
}

// led waits until status says whether the queries of a user are led.
func (r *running) led(user string, want bool) status.Binding {
	r.t.Helper()
	var row status.Binding
	r.eventually(func() error {
		s, err := r.json()
		if err != nil {
			return err
		}
		at := slices.IndexFunc(s.Bindings, func(b status.Binding) bool { return b.Selector == "user" && b.Value == user })
		if at < 0 || s.Bindings[at].DNSLed != want {
			return fmt.Errorf("led is not %t: %+v", want, s.Bindings)
		}
		row = s.Bindings[at]
		return nil
	})
	return row
}

// TestDNSOfBoundUsers: the DNS queries of a bound user go to the servers of the link, also where the host's resolver is a stub on
// the loopback, whatever happens to the link and the daemon; those of others do not.
func TestDNSOfBoundUsers(t *testing.T) {
	r := newRunning(t, "[[bind]]\nlink = \"wan1\"\nuser = \"1500-1501\"\n[[bind]]\nlink = \"wan1\"\nuser = \"1600\"\ndns = false\n")
	r.must(r.daemon.Stop(t.Context()))
	r.store = new(lab.Store)
	t.Cleanup(func() { r.must(r.store.Drop()) })
	asked := r.stub()
	r.must(r.BecomeRoot(r.cgroup))
	want := func(when string, uid uint32, want string) {
		t.Helper()
		if got := r.resolves(uid, asked); got != want {
			t.Errorf("%s: user %d asks %s, want %s", when, uid, got, want)
		}
	}
	ctl := func(text string, args ...string) {
		t.Helper()
		out, err := r.rig.ctl(args...)
		if err != nil || !strings.Contains(out, text) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	r.start()
	r.settled("wan0", "wan1")
	if row := r.led("1500-1501", false); row.State != status.BindingActive || !strings.Contains(row.Why, "go where the host's resolver sends them") {
		t.Errorf("without the helper: %+v", row)
	}
	r.reported(true, "", "DNS queries of users 1500-1501, bound to wan1, go where the host's resolver sends them")
	want("without the helper", 1500, "stub")

	r.startBinder()
	r.led("1500-1501", true)
	r.reported(false, "", "DNS queries of users 1500-1501")
	for _, uid := range []uint32{1500, 1501} {
		want("led", uid, "wan1")
	}
	for _, uid := range []uint32{0, 1499, 1502, 1600} {
		want("led", uid, "stub")
	}
	if row := r.led("1600", false); row.Why != "" {
		t.Errorf("without DNS: %+v", row)
	}

	r.must(r.Down(t.Context(), "wan1"))
	r.bindingIs("user", "1500-1501", status.BindingDown)
	want("without the link", 1500, "nobody")
	want("without the link", 1502, "stub")
	r.up("wan1")
	r.settled("wan0", "wan1")
	want("with the link again", 1500, "wan1")

	first := r.store.Names()
	r.kill9()
	want("without the daemon", 1500, "wan1")
	r.start()
	r.led("1500-1501", true)
	r.eventually(func() error {
		now := r.store.Names()
		if len(now) != 2 || len(first) != 2 || now[0] != first[0] || now[1] == first[1] {
			return fmt.Errorf("systemd keeps %q, and kept %q", now, first)
		}
		return nil
	})
	want("after a start", 1500, "wan1")

	ctl("user=1601 is bound to wan1\n", "bind", "add", "wan1", "user=1601")
	want("added", 1601, "wan1")
	want("added", 1500, "wan1")
	ctl("user=1601 is bound to wan0\n", "bind", "add", "wan0", "user=1601")
	want("with another link", 1601, "wan0")
	ctl("user=1601 is no longer bound to wan0", "bind", "remove", "user=1601")
	want("removed", 1601, "stub")
	ctl("", "off")
	want("switched off", 1500, "stub")
	ctl("", "on")
	want("switched on", 1500, "wan1")

	// The configuration changes while the daemon is dead: what systemd kept for it ends.
	r.kill9()
	text, err := os.ReadFile(r.path)
	r.must(err)
	r.writeConfig(strings.Replace(string(text), `"1500-1501"`, `"1500"`, 1))
	want("before the start", 1501, "wan1")
	r.start()
	r.led("1500", true)
	want("with another configuration", 1501, "stub")
	want("with another configuration", 1500, "wan1")
	r.must(r.daemon.Stop(t.Context()))
	want("while it restarts", 1500, "wan1")
	r.must(r.store.Drop())
	want("stopped", 1500, "stub")
	if found, err := filepath.Glob("/sys/fs/bpf/*"); err == nil && len(found) > 0 {
		t.Errorf("pinned: %q", found)
	}
}
