package cli_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/handoff"
	"multihomed/internal/offswitch"
	"multihomed/internal/rttables"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// tables are those of all networks of the links.
func (h *host) tables() []string {
	h.t.Helper()
	var out []string
	for _, l := range h.status().Links {
		for _, n := range l.Networks {
			out = append(out, fmt.Sprint(l.Interface, " ", n.Family, " ", n.Table))
		}
	}
	slices.Sort(out)
	return out
}

// ok runs multihomectl, which must succeed and print these words.
func (h *host) ok(words string, args ...string) {
	h.t.Helper()
	began := time.Now()
	r := h.ctl(args...)
	h.t.Logf("%s: %v: %s", strings.Join(args, " "), time.Since(began).Round(time.Millisecond), r)
	if r.status != 0 || !strings.Contains(r.out, words) {
		h.t.Errorf("%v does not say %q: %s", args, words, r)
	}
}

// nothing checks that nothing of ours is in the kernel, now and after the actions.
func (h *host) nothing(when string) {
	h.t.Helper()
	if left, err := h.Leftovers(); err != nil || len(left) > 0 {
		h.t.Errorf("%s there are %q, %v", when, left, err)
	}
	for _, name := range []string{"wan0", "wan1"} {
		if strings.Contains(h.ip("-o", "link", "show", name), "group 28008") {
			h.t.Errorf("%s %s is marked", when, name)
		}
	}
}

// TestOff: the host is off for the daemon, for a restarted one and after a reboot, and
// comes back with the same tables.
func TestOff(t *testing.T) {
	h := newHost(t)
	h.ip("rule", "add", "fwmark", "1", "priority", "30000", "table", "200")
	without, err := h.Snapshot(t.Context())
	h.must(err)
	h.start()
	before := h.tables()
	if r := h.as(nobody, "off"); r.status != 1 || !strings.Contains(r.err, "sudo multihomectl off") {
		t.Errorf("off by nobody: %s", r)
	}
	h.named(true)
	h.ok("multihomed is switched off: removed ", "off")
	h.nothing("after off")
	h.named(false)
	if after, err := h.Snapshot(t.Context()); err != nil || after != without {
		t.Errorf("objects of others changed (%v); before:\n%s\nafter:\n%s", err, without, after)
	}
	h.ok("switched off already, since ", "off")
	s := h.status()
	if p := problem(s, "switched-off"); !s.OK || p == nil || p.Fix != "multihomectl on" || s.Off == nil || s.Off.Since == nil || s.Off.By == "" || len(s.Links) > 0 {
		t.Errorf("status: ok %v, off %+v, %d links, %+v", s.OK, s.Off, len(s.Links), s.Problems)
	}
	h.up("wan1")
	h.nothing("after an activation")
	if r := h.ctl("lease", "-i", "wan1", "-a", h.addr("wan1").String()); r.status != 1 || !strings.Contains(r.err, "switched off") {
		t.Errorf("a lease with its routing: %s", r)
	}
	h.stop()
	// A boot clears /run. The daemon may recreate it meanwhile.
	labtest.Eventually(t, func() error { return os.RemoveAll("/run/multihomed") })
	h.must(os.Mkdir("/run/multihomed", 0o755))
	h.launch()
	h.up("wan0")
	h.nothing("after a restart")
	if r := h.ctl("on", "wan0"); r.status != 1 || !strings.Contains(r.err, "all of multihomed is switched off since ") {
		t.Errorf("one link of a host that is off: %s", r)
	}
	h.ok("multihomed is switched on: 2 links with their routing", "on")
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
	h.named(true)
	h.settle()
	h.ok("nothing was switched off: 2 links", "on")

	// A daemon that hangs is replaced, a damaged switch is off.
	h.freeze()
	h.ok("multihomed is switched off: removed ", "off")
	h.nothing("after off beside a daemon that hangs")
	h.ended()
	h.ok("the service does not run", "on")
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
	h.must(os.WriteFile(offswitch.Path("/var/lib/multihomed"), []byte("{"), 0o600))
	h.launch()
	labtest.Eventually(t, func() error {
		if left, err := h.Leftovers(); err != nil || len(left) > 0 {
			return fmt.Errorf("%q, %w", left, err)
		}
		return nil
	})
	if s := h.status(); s.OK || problem(s, "switched-off") == nil || s.Off == nil {
		t.Errorf("status with a damaged switch: %+v", s.Problems)
	}
	h.ok("multihomed is switched on", "on")
	h.stop()

	// Without a daemon, and with an unusable configuration.
	h.must(os.MkdirAll("/etc/multihomed", 0o755))
	h.must(os.WriteFile("/etc/multihomed/multihomed.toml", []byte("nonsense"), 0o644))
	h.must(os.WriteFile("/var/lib/multihomed/leases.db", []byte("damaged"), 0o644))
	r := h.ctl("off")
	if r.status != 0 || !strings.Contains(r.out, "removed ") || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "going by the objects in the kernel") {
		t.Errorf("off with a bad configuration: %s", r)
	}
	h.nothing("after off with a bad configuration")
}

// TestOffOneLink: its routing is removed, the rest stays, and no packet of the others
// strays meanwhile; a profile is off whatever its interface is called.
func TestOffOneLink(t *testing.T) {
	h := newHost(t)
	h.ip("rule", "add", "fwmark", "1", "priority", "30000", "table", "200")
	h.start()
	before := h.tables()
	off := func(when string) {
		t.Helper()
		rules := h.ip("rule") + h.ip("-6", "rule") + h.ip("route", "show", "table", "all", "proto", "150")
		for line := range strings.SplitSeq(rules, "\n") {
			if strings.Contains(line, "wan1") || strings.Contains(line, h.addr("wan1").String()) {
				t.Errorf("%s: %s", when, line)
			}
		}
		s := h.status()
		if !s.OK || len(s.Links) != 1 || s.Links[0].Interface != "wan0" || problem(s, "switched-off") == nil || len(s.OffLinks) != 1 || s.OffLinks[0].UUID == "" {
			t.Errorf("%s: ok %v, %d links, off %+v, %+v", when, s.OK, len(s.Links), s.OffLinks, s.Problems)
		}
	}
	if r := h.ctl("off", "wan7"); r.status != 2 || !strings.Contains(r.err, `no interface or active profile "wan7"; there are `) {
		t.Errorf("off of nobody: %s", r)
	}
	h.ok("wan1 is switched off: removed ", "off", "wan1")
	off("after off")
	h.up("wan1")
	off("after an activation")
	h.stop()
	h.start()
	off("after a restart")
	h.ok("wan1 is switched on: 1 link with its routing", "on", "wan1")
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
	h.stop()
	h.ok("wan1 is switched off: removed ", "off", "wan1")
	off("without the daemon")
	h.ok("wan0 is switched off: removed ", "off", "wan0")
	h.nothing("with all links off")
	h.ok("is switched on: 2 links with their routing; the service does not run", "on")
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
}

// named wants iproute2 to know the tables by the names of their links, or not to. Without
// the file its link dangles, and iproute2 says nothing of that.
func (h *host) named(want bool) {
	h.t.Helper()
	const link = "/etc/iproute2/rt_tables.d/" + rttables.OwnFile
	h.must(os.Symlink(filepath.Join("/run/multihomed", rttables.GeneratedFile), link))
	defer func() { h.must(os.Remove(link)) }()
	labtest.Eventually(h.t, func() error {
		out, err := h.Run(h.t.Context(), "sh", "-c", "ip rule; ip -6 rule; ip route show table main")
		if err != nil || strings.Contains(out, "Database") {
			return fmt.Errorf("ip says: %s (%w)", out, err)
		}
		for _, name := range []string{"mh-wan0:4", "mh-wan0:6", "mh-wan1:4", "mh-wan1:6"} {
			if strings.Contains(out, "lookup "+name) != want {
				return fmt.Errorf("%s is in the rules is not %v:\n%s", name, want, out)
			}
		}
		if _, err := os.Stat(link); (err == nil) != want {
			return fmt.Errorf("the file is there is not %v: %w", want, err)
		}
		return nil
	})
}

// TestRuntimeDirectoryRemoved: a daemon whose runtime directory is removed is found again at once,
// keeps its knowledge, and obeys off.
func TestRuntimeDirectoryRemoved(t *testing.T) {
	const madeAgain = "runtime directory made again"
	h := newHost(t)
	h.start()
	before := h.tables()
	// Also while the daemon recreates it: the new directory is removed again.
	began := time.Now()
	for range 20_000 {
		_ = os.RemoveAll("/run/multihomed") // It may not be empty, for the same reason.
	}
	labtest.Eventually(t, func() error {
		if s := h.status(); !s.OK || s.By != "daemon" || len(s.Links) != 2 {
			return fmt.Errorf("ok %v by %s, %d links, %+v", s.OK, s.By, len(s.Links), s.Problems)
		}
		// The daemon answers on D-Bus before it has made the directory again.
		if !strings.Contains(h.daemon.Log(), madeAgain) {
			return errors.New("it is not said")
		}
		_, err := os.Stat("/run/multihomed/memory.json")
		return err
	})
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
	if n := strings.Count(h.daemon.Log(), madeAgain); n > 2+int(time.Since(began)/time.Second) {
		t.Errorf("it is said %d times:\n%s", n, h.daemon.Log())
	}
	// Without a moment to notice. The daemon may recreate it meanwhile.
	labtest.Eventually(t, func() error { return os.RemoveAll("/run/multihomed") })
	h.ok("multihomed is switched off: removed ", "off")
	h.nothing("after off")
	h.up("wan1")
	h.nothing("after an activation")
	h.ok("multihomed is switched on: 2 links with their routing", "on")
	if after := h.tables(); !slices.Equal(before, after) {
		t.Errorf("tables before %q, after %q", before, after)
	}
	select {
	case <-h.daemon.Done():
		t.Error("the daemon was ended")
	default:
	}

	// A hanging daemon cannot recreate it: status reports that, and off takes its place.
	h.freeze()
	h.must(os.RemoveAll("/run/multihomed"))
	if r := h.ctl("status"); !strings.Contains(r.out, "does not answer") || strings.Contains(r.out, "not running") {
		t.Errorf("status of one that hangs: %s", r)
	}
	if r := h.ctl("flush", "--yes"); r.status != 1 || !strings.Contains(r.err, "multihomed is running (process ") {
		t.Errorf("flush beside one that hangs: %s", r)
	}
	h.ok("multihomed is switched off: removed ", "off")
	h.nothing("after off beside one that hangs")
	h.ended()
}

// TestOffSilentHolder: a daemon that hangs while it recreates the runtime directory holds the lock
// there, and has no socket.
func TestOffSilentHolder(t *testing.T) {
	h := newHost(t)
	h.start()
	h.freeze()
	h.must(os.Remove(filepath.Join("/run/multihomed", handoff.Name)))
	if r := h.ctl("flush", "--yes"); r.status != 1 || !strings.Contains(r.err, "multihomed is running (process ") {
		t.Errorf("flush beside one that hangs: %s", r)
	}
	h.ok("multihomed is switched off: removed ", "off")
	h.nothing("after off beside one that hangs")
	h.ended()
}

// freeze stops the daemon. A signal stops the threads one after the other: until then others
// still work.
func (h *host) freeze() {
	h.t.Helper()
	h.must(h.daemon.Signal(unix.SIGSTOP))
	labtest.Eventually(h.t, func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", h.daemon.Pid()))
		for _, thread := range threads {
			text, failed := os.ReadFile(thread)
			if _, state, _ := strings.Cut(string(text), ") "); failed != nil || !strings.HasPrefix(state, "T") {
				err = errors.Join(err, failed, fmt.Errorf("it runs: %s", text))
			}
		}
		return err
	})
}

// ended wants off to have ended a daemon that hangs.
func (h *host) ended() {
	h.t.Helper()
	select {
	case <-h.daemon.Done():
	case <-time.After(lab.Stretched(10 * time.Second)):
		h.t.Fatal("off left the one that hangs")
	}
}

// TestOffUmask: root's umask decides nothing of what the daemon, which is not root, reads.
func TestOffUmask(t *testing.T) {
	h := newHost(t)
	for _, d := range []string{"/run/multihomed", "/var/lib/multihomed"} {
		h.must(os.MkdirAll(d, 0o755))
		h.must(os.Chown(d, service, service))
	}
	h.serviceDaemon()
	h.settle()
	for _, umask := range []int{0o077, 0o027} {
		before := unix.Umask(umask)
		r := h.ctl("off", "wan1")
		unix.Umask(before)
		if r.status != 0 || len(h.status().Links) != 1 {
			t.Fatalf("umask %03o: %s", umask, r)
		}
		h.stop()
		h.serviceDaemon()
		if s := h.status(); len(s.Links) != 1 || s.Links[0].Interface != "wan0" {
			t.Errorf("umask %03o, after a restart: %+v", umask, s.Problems)
		}
		h.ok("wan1 is switched on: 1 link with its routing", "on", "wan1")
	}
	// As an earlier release left it: the daemon cannot read it, and on is the way back.
	h.must(os.WriteFile(offswitch.Path("/var/lib/multihomed"), []byte(`{"schema":1}`), 0o644))
	h.must(os.Chown(offswitch.Path("/var/lib/multihomed"), 0, 0))
	h.must(os.Chmod(offswitch.Path("/var/lib/multihomed"), 0o600))
	h.stop()
	h.serviceDaemon()
	h.ok("2 links with their routing", "on")
	h.stop()
	h.serviceDaemon()
	h.settle()
	if s := h.status(); s.Off != nil || len(s.Links) != 2 {
		t.Errorf("after on and a restart: %+v", s.Problems)
	}
}

// service is the user of the daemon where a test runs it as one.
const service = 997

// serviceDaemon runs the daemon as the unit does: a user with CAP_NET_ADMIN.
func (h *host) serviceDaemon() {
	h.t.Helper()
	var err error
	h.daemon, err = h.Start(lab.ProcessConfig{Path: "setpriv", Args: []string{
		"--reuid", fmt.Sprint(service), "--regid", fmt.Sprint(service), "--clear-groups",
		"--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", "--bounding-set", "-all,+net_admin", program(h.t, "multihomed"),
	}})
	h.must(err)
	labtest.Eventually(h.t, func() error {
		if s := h.status(); s.By != "daemon" || !s.Daemon.Ready {
			return fmt.Errorf("by %s, %+v", s.By, s.Daemon)
		}
		return nil
	})
}

// TestOffStale: a mark whose profile no interface has is not told of the interface that had
// it, and goes by the word that status prints or by that interface's name.
func TestOffStale(t *testing.T) {
	h := newHost(t)
	h.start()
	if r := h.ctl("off", "lo"); r.status != 2 || !strings.Contains(r.err, "lo is the loopback") {
		t.Errorf("off lo: %s", r)
	}
	nm := func(args ...string) {
		t.Helper()
		_, err := h.NMCLI(t.Context(), args...)
		h.must(err)
	}
	for n, word := range []string{"wan1", ""} {
		h.ok("wan1 is switched off: removed ", "off", "wan1")
		nm("connection", "delete", []string{"wan1", "again0"}[n])
		name := fmt.Sprint("again", n)
		h.must(h.AddProfile(t.Context(), name, "wan1"))
		h.must(h.Up(t.Context(), name))
		labtest.Eventually(t, func() error {
			s := h.status()
			p := problem(s, "switched-off")
			if !s.OK || len(s.Links) != 2 || p == nil || p.Link != "" || !strings.Contains(p.Text, "which no interface has at present") || !strings.HasPrefix(p.Fix, "multihomectl on ") {
				return fmt.Errorf("%d links, %+v", len(s.Links), s.Problems)
			}
			if word == "" {
				word = strings.TrimPrefix(p.Fix, "multihomectl on ")
			}
			return nil
		})
		h.ok("switched on: 1 link with its routing", "on", word)
		if s := h.status(); problem(s, "switched-off") != nil {
			t.Errorf("%q leaves %+v", word, s.Problems)
		}
		h.ok("nothing was switched off", "on", "wan1")
	}
	// Of a profile that is on another interface now, the word is that one's.
	for _, p := range []struct{ profile, name string }{{"wan0", "wan0"}, {"again1", "wan1"}} {
		i, err := net.InterfaceByName(p.name)
		h.must(err)
		nm("connection", "modify", p.profile, "connection.interface-name", "", "802-3-ethernet.mac-address", i.HardwareAddr.String())
		h.must(h.Up(t.Context(), p.profile))
	}
	h.settle()
	h.ok("wan1 is switched off: removed ", "off", "wan1")
	for _, rename := range [][2]string{{"wan0", "tmp0"}, {"wan1", "wan0"}, {"tmp0", "wan1"}} {
		h.ip("link", "set", rename[0], "name", rename[1])
	}
	labtest.Eventually(t, func() error {
		s := h.status()
		if p := problem(s, "switched-off"); !s.OK || len(s.Links) != 1 || s.Links[0].Interface != "wan1" || p == nil || p.Link != "wan0" || p.Fix != "multihomectl on wan0" {
			return fmt.Errorf("%d links, %+v", len(s.Links), s.Problems)
		}
		return nil
	})
	h.ok("nothing of wan1 was switched off, but the profile that it had is, now on wan0 (to switch that on: multihomectl on wan0)", "on", "wan1")
	h.ok("wan0 is switched on: 1 link with its routing", "on", "wan0")
	if s := h.status(); problem(s, "switched-off") != nil {
		t.Errorf("%+v", s.Problems)
	}
}
