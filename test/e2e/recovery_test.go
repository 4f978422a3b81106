package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/allocator"
	"multihomed/routing"
	"multihomed/test/lab"
)

// deaf is step where NetworkManager cannot be asked: the ladders are all there
// is to compare.
func (w *watched) deaf(name string, action func(), parts ...part) {
	w.t.Helper()
	w.idle("before " + name)
	start := w.monitor.barrier()
	w.monitor.mark("begin " + name)
	action()
	w.monitor.mark("done " + name)
	ended := time.Now()
	w.eventually(func() error { return w.holds(parts...) })
	took := time.Since(ended)
	w.settledAt = w.monitor.barrier()
	lag, after, written := w.monitor.lag(start)
	w.t.Logf("%-40s settled %4d ms after the action, longest lag %5.1f ms", name, took.Milliseconds(), float64(lag.Microseconds())/1000)
	if lag >= mostLag {
		w.t.Errorf("%s: %v between %q and %q:\n%s", name, lag, after.text, written.text, w.monitor.text(start))
	}
	w.eventually(func() error { return w.holds(parts...) })
	w.idle("after " + name)
}

// removed lists our objects that were removed since an event, by any program.
func (m *monitor) removed(n int) []string {
	var out []string
	for _, e := range m.from(n) {
		if e.own && strings.HasPrefix(e.text, "-") {
			out = append(out, e.text)
		}
	}
	return out
}

// logged waits for a line of the daemon's log.
func (r *rig) logged(from int, text string) {
	r.t.Helper()
	ctx, cancel := r.patience()
	defer cancel()
	_, err := r.daemon.WaitLineAfter(ctx, from, text)
	r.must(err)
}

const knownCompletely = "every link is known"

// TestNetworkManagerAway takes NetworkManager and the bus away and brings them
// back, with and without changes in the kernel meanwhile. Nothing may be taken
// away by the way.
func TestNetworkManagerAway(t *testing.T) {
	w, isp0 := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	ctx := t.Context()
	all := both("wan0", "wan1")
	tables := w.tables()
	// back waits until the daemon has taken NetworkManager up again.
	back := func(do func()) func() {
		return func() {
			lines := len(w.daemon.Lines())
			do()
			w.logged(lines, knownCompletely)
		}
	}
	kept := func(name string, do func(), parts ...part) {
		t.Helper()
		from := w.monitor.barrier()
		w.step(name, do, parts...)
		if gone := w.monitor.removed(from); len(gone) > 0 {
			t.Errorf("%s: removed:\n%s", name, strings.Join(gone, "\n"))
		}
	}

	kept("NetworkManager restarted", back(func() { w.must(w.RestartNM(ctx)) }), all...)
	kept("NetworkManager killed and started", back(func() { w.must(w.KillNM()); w.must(w.StartNM(ctx)) }), all...)

	w.must(w.StopNM(ctx))
	w.deaf("NetworkManager stopped", func() {}, all...)
	w.deaf("an address while it is stopped", func() { w.must(w.AddAddr("wan0", extra.String())) }, all...)
	w.deaf("and away", func() {
		_, err := w.IP(ctx, "address", "delete", extra.String(), "dev", "wan0")
		w.must(err)
		w.eventually(func() error { return w.lacks(lab.IPv4, "from "+extra.Addr().String()+" ") })
	}, all...)
	w.deaf("a rule flushed while it is stopped", func() {
		_, err := w.IP(ctx, "rule", "delete", "priority", "9500", "oif", "wan0")
		w.must(err)
	}, all...)
	kept("NetworkManager started", back(func() { w.must(w.StartNM(ctx)) }), all...)

	w.must(w.KillNM())
	w.deaf("killed", func() {}, all...)
	w.deaf("a link deleted meanwhile", func() { w.must(isp0.Link().Delete()) }, both("wan1")...)
	w.step("and started", back(func() { w.must(w.StartNM(ctx)) }), both("wan1")...)
	w.step("the link comes back", func() {
		w.must(isp0.Link().Recreate())
		w.must(w.WaitDeviceState(ctx, "wan0", "disconnected"))
		w.up("wan0")
	}, all...)
	w.step("down while it hangs", func() {
		w.must(syscall.Kill(w.NMPid(), syscall.SIGSTOP))
		w.must(isp0.Link().SetUp(false))
		w.must(isp0.Link().SetUp(true))
		w.must(syscall.Kill(w.NMPid(), syscall.SIGCONT))
	}, all...)

	w.must(w.StopBus(ctx))
	w.deaf("the bus is gone", func() {}, all...)
	w.deaf("an address while the bus is gone", func() { w.must(w.AddAddr("wan1", "100.64.1.78/24")) }, all...)
	w.deaf("and away", func() {
		_, err := w.IP(ctx, "address", "delete", "100.64.1.78/24", "dev", "wan1")
		w.must(err)
		w.eventually(func() error { return w.lacks(lab.IPv4, "from 100.64.1.78 ") })
	}, all...)
	kept("bus and NetworkManager come back", back(func() {
		w.must(w.KillNM())
		w.must(w.StartBus(ctx))
		w.must(w.StartNM(ctx))
	}), all...)
	if now := w.tables(); now != tables {
		t.Errorf("tables moved from %s to %s", tables, now)
	}
}

// tables is which table every interface has, from `ip rule` alone.
func (r *rig) tables() string {
	r.t.Helper()
	var out []string
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(r.t.Context(), f)
		r.must(err)
		for line := range strings.Lines(rules) {
			if words := strings.Fields(line); words[0] == "9500:" {
				out = append(out, fmt.Sprintf("%v %s %s", f, word(words, "oif"), word(words, "lookup")))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestStartBeforeEverything starts the daemon before the bus and NetworkManager.
func TestStartBeforeEverything(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NoBus: true}, "")
	ctx := t.Context()
	r.launch()
	waits := func(text string) {
		t.Helper()
		ctx, cancel := r.patience()
		defer cancel()
		_, err := r.daemon.WaitNotify(ctx, "STATUS=waiting: "+text)
		r.must(err)
	}
	waits("system bus")
	r.must(r.StartBus(ctx))
	waits("NetworkManager is not running")
	// Notifications keep their order, and no earlier one was READY.
	if r.said("READY=1") {
		t.Error("READY=1 although NetworkManager is not there")
	}
	r.must(r.StartNM(ctx))
	r.ready()
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.eventually(func() error { return r.holds(both("wan0")...) })
	r.settled("wan0")
}

// said reports whether the daemon has sent a notification by now.
func (r *rig) said(note string) bool { return r.notes(note) > 0 }

func (r *rig) notes(note string) int {
	n := 0
	for _, have := range r.daemon.Notes() {
		if have == note {
			n++
		}
	}
	return n
}

// TestReadyMeansComplete stops the clock at READY=1: the routing is complete then.
func TestReadyMeansComplete(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	for n := range 4 {
		r.isp(lab.DefaultISP(n))
		r.up(fmt.Sprintf("wan%d", n))
	}
	links := []string{"wan0", "wan1", "wan2", "wan3"}
	for _, l := range links {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			_, err := r.WaitAddr(t.Context(), l, f)
			r.must(err)
		}
	}
	r.defaults(links...)
	for range 5 {
		r.start()
		r.must(r.holds(both(links...)...))
		r.kill9()
		flush(r)
	}
}

// flush removes the daemon's routing, in an order in which nothing strays.
func flush(r *rig) {
	r.t.Helper()
	for f, flag := range map[lab.Family]string{lab.IPv4: "-4", lab.IPv6: "-6"} {
		rules, err := r.RulesText(r.t.Context(), f)
		r.must(err)
		for line := range strings.Lines(rules) {
			if !strings.Contains(line, "proto 150") {
				continue
			}
			priority, _, _ := strings.Cut(line, ":")
			_, err := r.IP(r.t.Context(), flag, "rule", "delete", "priority", priority, "protocol", "150")
			r.must(err)
		}
		_, err = r.IP(r.t.Context(), flag, "route", "flush", "table", "all", "proto", "150")
		r.must(err)
	}
}

// everything is all rules and all routes in all tables, and the groups of links.
func (r *rig) everything() string {
	r.t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"-N", "-d", "-4", "rule"},
		{"-N", "-d", "-6", "rule"},
		{"-N", "-d", "-4", "route", "show", "table", "all"},
		{"-N", "-d", "-6", "route", "show", "table", "all"},
		{"-o", "link"},
	} {
		out, err := r.IP(r.t.Context(), args...)
		r.must(err)
		for line := range strings.Lines(out) {
			// Lifetimes run.
			words := strings.Fields(line)
			if i := slices.Index(words, "expires"); i >= 0 {
				words = slices.Delete(words, i, i+2)
			}
			if i := slices.Index(words, "alias"); i >= 0 {
				words = slices.Delete(words, i, i+2)
			}
			b.WriteString(strings.Join(words, " ") + "\n")
		}
	}
	return b.String()
}

// TestStopLeavesRouting ends the daemon as systemd does, and starts it again:
// nothing is written either time.
func TestStopLeavesRouting(t *testing.T) {
	w, _ := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	before := w.everything()
	from := w.monitor.barrier()

	began := time.Now()
	w.must(w.daemon.Stop(t.Context()))
	t.Logf("SIGTERM to the end: %v", time.Since(began))
	if err := w.daemon.Wait(t.Context()); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if !w.said("STOPPING=1") {
		t.Error("no STOPPING=1")
	}
	if after := w.everything(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if log := w.daemon.Log(); strings.Contains(log, " error: ") || strings.Contains(log, " warning: ") {
		t.Errorf("complaints:\n%s", log)
	}
	w.start()
	w.converged("start", func() error { return w.holds(both("wan0", "wan1")...) })
	w.monitor.barrier()
	if wrote := w.monitor.unprovoked(from); len(wrote) > 0 {
		t.Errorf("written by stop and start:\n%s", w.monitor.text(from))
	}
}

// TestSecondInstance starts a second daemon, which must say why it cannot run
// and leave the first alone.
func TestSecondInstance(t *testing.T) {
	w, _ := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	first := w.daemon
	from := w.monitor.barrier()
	w.launch()
	second := w.daemon
	w.daemon = first
	ctx, cancel := w.patience()
	defer cancel()
	if err := second.Wait(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the second ends with %v", err)
	}
	if log := second.Log(); !strings.Contains(log, fmt.Sprintf("another multihomed is running: process %d ", first.Pid())) {
		t.Errorf("the second says:\n%s", log)
	}
	w.monitor.barrier()
	if wrote := w.monitor.unprovoked(from); len(wrote) > 0 {
		t.Errorf("the second wrote:\n%s", w.monitor.text(from))
	}
	if view, err := w.look(); err != nil || !view.Running || view.Daemon.PID != first.Pid() {
		t.Errorf("the first is disturbed: %+v, %v", view, err)
	}
	w.step("the first goes on", func() { w.must(w.Down(t.Context(), "wan0")) }, both("wan1")...)
}

// TestWatchdog checks that the loop itself reports that it is alive.
func TestWatchdog(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	isp := r.isp(lab.DefaultISP(0))
	r.env = []string{"WATCHDOG_USEC=300000"}
	r.start()
	ctx, cancel := r.patience()
	defer cancel()
	_, err := r.daemon.WaitNotify(ctx, "WATCHDOG=1")
	r.must(err)
	r.up("wan0")
	r.eventually(func() error { return r.holds(both("wan0")...) })
	// In quiet times too.
	beats := r.notes("WATCHDOG=1")
	r.eventually(func() error {
		if n := r.notes("WATCHDOG=1"); n < beats+5 {
			return fmt.Errorf("%d beats", n-beats)
		}
		return nil
	})
	// A change that is undone while lines are collected is not logged.
	r.logged(0, "wan0: uplink added")
	lines := len(r.daemon.Lines())
	r.must(isp.Link().Delete())
	r.logged(lines, "wan0: uplink removed")
	r.settled()
	if n := countLines(r.daemon.Lines()[lines:], "link"); n > 2 {
		t.Errorf("%d lines for one link that is gone:\n%s", n, r.daemon.Log())
	}
}

func countLines(lines []string, text string) int {
	n := 0
	for _, l := range lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// TestReload changes the configuration of a running daemon.
func TestReload(t *testing.T) {
	w, _ := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	all := both("wan0", "wan1")
	base, err := os.ReadFile(w.path)
	w.must(err)
	// reload puts a configuration in place and waits until it is active, or refused.
	reload := func(text, answer string) func() {
		return func() {
			t.Helper()
			lines := len(w.daemon.Lines())
			readies := w.notes("READY=1")
			if answer == "is refused" {
				w.must(os.WriteFile(w.path, []byte(string(base)+text), 0o600))
			} else {
				w.writeConfig(string(base) + text)
			}
			w.must(w.daemon.Signal(syscall.SIGHUP))
			w.logged(lines, "configuration "+answer)
			w.eventually(func() error {
				if n := w.notes("READY=1"); n <= readies {
					return fmt.Errorf("no READY=1 after RELOADING=1")
				}
				return nil
			})
		}
	}
	w.step("nothing changed", reload("", "unchanged"), all...)
	w.step("wan0 excluded", reload("[[exclude]]\ninterface = \"wan0\"\n", "changed"), both("wan1")...)
	w.step("and a link up meanwhile", func() { w.up("wan0") }, both("wan1")...)
	w.step("no longer excluded", reload("", "changed"), all...)
	w.step("a broken file", reload("[[exclude]]\ninterfaces = \"wan0\"\n", "is refused"), all...)
	if log := w.daemon.Log(); !strings.Contains(log, "interfaces") {
		t.Errorf("the log does not name the problem:\n%s", lab.Tail(log, 5))
	}
	w.step("a good file again", reload("", "unchanged"), all...)

	old := w.tables()
	w.stepUntil("other tables", reload("[tables]\nfirst = 21000\nlast = 21099\n", "changed"), func() error {
		return errors.Join(w.holds(all...), w.tablesStartWith("210"))
	})
	w.stepUntil("overlapping tables", reload("[tables]\nfirst = 21002\nlast = 21199\n", "changed"), func() error {
		return errors.Join(w.holds(all...), w.tablesStartWith("210"), w.tablesStartWith("21"))
	})
	w.stepUntil("the first tables", reload("", "changed"), func() error { return errors.Join(w.holds(all...), w.tablesStartWith("100")) })
	t.Logf("tables before %s, after %s", old, w.tables())

	w.stepUntil("other group", reload("uplink_group = 4711\n", "changed"), func() error {
		return errors.Join(w.groups("4711", "wan0", "wan1"), w.nothingBut(lab.IPv4, []string{"wan0", "wan1"}), w.rulesSay("suppress_ifgroup 4711", "28008"))
	})
	w.stepUntil("the first group", reload("", "changed"), func() error {
		return errors.Join(w.groups("28008", "wan0", "wan1"), w.holds(all...), w.rulesSay("suppress_ifgroup 28008", "4711"))
	})
	w.must(w.daemon.Stop(t.Context()))
	w.writeConfig(string(base) + "uplink_group = 4712\n[tables]\nfirst = 22000\nlast = 22099\n")
	w.stepUntil("both by a restart", w.start, func() error {
		return errors.Join(w.groups("4712", "wan0", "wan1"), w.nothingBut(lab.IPv4, []string{"wan0", "wan1"}), w.nothingBut(lab.IPv6, []string{"wan0", "wan1"}),
			w.rulesSay("suppress_ifgroup 4712", "28008"), w.tablesStartWith("220"))
	})
}

func (r *rig) tablesStartWith(prefix string) error {
	tables := r.tables()
	for part := range strings.SplitSeq(tables, ", ") {
		if words := strings.Fields(part); !strings.HasPrefix(words[len(words)-1], prefix) {
			return fmt.Errorf("tables are %s, not %s and more", tables, prefix)
		}
	}
	return nil
}

func (r *rig) groups(group string, links ...string) error {
	for _, l := range links {
		out, err := r.IP(r.t.Context(), "-N", "-o", "link", "show", l)
		if err != nil {
			return err
		}
		if got := word(strings.Fields(out), "group"); got != group {
			return fmt.Errorf("%s is in group %s, not %s", l, got, group)
		}
	}
	return nil
}

func (r *rig) rulesSay(text, not string) error {
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(r.t.Context(), f)
		if err != nil {
			return err
		}
		if !strings.Contains(rules, text) || strings.Contains(rules, not) {
			return fmt.Errorf("%v rules say not %q or %q:\n%s", f, text, not, rules)
		}
	}
	return nil
}

// TestFullRange gives the daemon fewer tables than there are links: the others
// work, the one without is reported, and gets a table when one becomes free.
func TestFullRange(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[tables]\nfirst = 10000\nlast = 10005\n")
	for n := range 3 {
		r.isp(lab.DefaultISP(n))
	}
	r.start()
	r.up("wan0", "wan1")
	r.eventually(func() error { return r.holds(both("wan0", "wan1")...) })
	// The last number is kept for interfaces that have none: wan2 gets it for the family that comes first, and no more.
	some := func() error {
		first := r.holds(append(both("wan0", "wan1"), part{"wan2", lab.IPv4})...)
		if first == nil {
			return nil
		}
		second := r.holds(append(both("wan0", "wan1"), part{"wan2", lab.IPv6})...)
		if second == nil {
			return nil
		}
		return errors.Join(first, second)
	}
	lines := len(r.daemon.Lines())
	r.up("wan2")
	r.logged(lines, "error: wan2: ")
	r.eventually(func() error {
		view, err := r.look()
		if err != nil {
			return err
		}
		for _, p := range view.Daemon.Problems {
			if p.Link == "wan2" && p.Severity == routing.Error {
				return some()
			}
		}
		return fmt.Errorf("wan2 is not reported: %+v", view.Daemon)
	})
	// The others go on.
	r.must(r.AddAddr("wan0", extra.String()))
	r.eventually(func() error { return errors.Join(some(), r.hasSource(extra)) })
	freed := time.Now()
	r.must(r.Down(t.Context(), "wan0"))
	r.eventually(func() error { return r.holds(both("wan1", "wan2")...) })
	t.Logf("a table changed hands %v after its link went", time.Since(freed))
	r.settled("wan1", "wan2")
	// A notice may say that this host has no prober.
	view, err := r.look()
	if isWrong := func(p routing.Problem) bool { return p.Severity > routing.Notice }; err != nil || slices.ContainsFunc(view.Daemon.Problems, isWrong) {
		t.Errorf("still a problem: %+v, %v", view.Daemon.Problems, err)
	}
}

// leases reads the database as others would.
func (r *rig) leases() []allocator.Lease {
	r.t.Helper()
	a, err := allocator.OpenReadOnly(r.t.Context(), allocator.Options{Path: filepath.Join(r.cfg.StateDir, allocator.DefaultName), Range: r.cfg.Tables})
	r.must(err)
	defer a.Close()
	held := map[int]netip.Prefix{}
	for _, l := range a.List() {
		if other, twice := held[int(l.Table)]; twice {
			r.t.Errorf("table %d is leased to %v and %v", l.Table, other, l.Key)
		}
		held[int(l.Table)] = l.Key.Prefix
	}
	return a.List()
}

// TestNetworkManagerNeverComes: a NetworkManager that is installed and switched off
// must not hold up the boot for ever.
func TestNetworkManagerNeverComes(t *testing.T) {
	r := newRig(t, lab.HostConfig{NoNM: true}, "network_manager = \"yes\"\n")
	r.start()
	if status, err := r.look(); err != nil || !status.Running || status.Complete() {
		t.Errorf("%+v, %v", status, err)
	}
}
