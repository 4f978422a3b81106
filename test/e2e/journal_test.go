package e2e_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/test/lab"
)

// update rewrites the golden files: go test ./test/e2e -run Journal -update.
var update = flag.Bool("update", false, "rewrite the golden files")

// logQuiet is how long the log must be quiet before an operation is over: longer than
// the daemon collects changes of a link.
const logQuiet = 1700 * time.Millisecond

// TestJournal compares the log of ten common operations with golden files: one line
// for each real change, two at most for an activation.
func TestJournal(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg := lab.DefaultISP(0)
	cfg.Lease, cfg.Renew = 120*time.Second, 2*time.Second
	isp := r.isp(cfg)
	r.isp(lab.DefaultISP(1))
	ctx := t.Context()
	link := isp.Link().Name()
	from := 0
	for _, step := range []struct {
		name string
		// atMost is how many lines there may be.
		atMost int
		do     func()
		// says is a part of the line that shows that it has happened.
		says string
		// spread says that the network may take more than a second over it: what is said
		// in one line on an idle machine may be in two then.
		spread bool
	}{
		{"start", 2, r.start, "every link", false},
		{"con-up", 2, func() { r.up("wan0"); r.settled("wan0") }, "wan0: uplink added", true},
		{"con-up-second", 2, func() { r.up("wan1"); r.settled("wan0", "wan1") }, "wan1: uplink added", true},
		{"con-down", 1, func() { r.must(r.Down(ctx, "wan1")) }, "removed", false},
		{"rule-deleted", 1, func() { r.ip("-4", "rule", "del", "priority", "10000") }, "restored", false},
		{"cable-out", 2, func() {
			r.must(isp.Link().SetCarrier(false))
			r.must(r.WaitDeviceState(ctx, link, "unavailable"))
		}, "removed", true},
		{"cable-in", 2, func() {
			r.must(isp.Link().SetCarrier(true))
			r.must(r.WaitDeviceState(ctx, link, "disconnected"))
			r.up("wan0") // The lab activates nothing by itself.
			r.settled("wan0")
		}, "added", true},
		{"renewal-with-another-gateway", 2, func() {
			r.must(isp.Reconfigure(ctx, func(c *lab.ISPConfig) { c.Gateway = netip.MustParseAddr("100.64.0.9") }))
		}, "gateway 100.64.0.9 added", true},
		{"new-ipv6-prefix", 2, func() {
			ra := isp.RA()
			ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: netip.MustParsePrefix("2001:db8:77::/64"), Preferred: time.Hour, Valid: time.Hour})
			r.must(isp.SetRA(ra))
			_, err := r.WaitAddrIn(ctx, link, netip.MustParsePrefix("2001:db8:77::/64"))
			r.must(err)
		}, "2001:db8:77::/64", true},
		{"reload", 2, func() { r.must(r.daemon.Signal(syscall.SIGHUP)) }, "configuration", false},
		// The log names only the changes: wan0 stays unchanged.
		{"reload-changed", 1, func() { r.rewrite("[repair]\nburst = 7\n"); r.must(r.daemon.Signal(syscall.SIGHUP)); r.settled("wan0") }, "configuration changed", false},
		{"reload-ignored", 2, func() { r.rewrite("exclude = [{interface = \"wan0\"}]\n"); r.must(r.daemon.Signal(syscall.SIGHUP)) }, "wan0: uplink removed", false},
		{"reload-back", 2, func() { r.rewrite(""); r.must(r.daemon.Signal(syscall.SIGHUP)); r.settled("wan0") }, "wan0: uplink added", true},
		{"off", 2, func() { r.switches("off", "wan0"); r.switches("off", "wan0") }, "switched off", false},
		{"on", 2, func() { r.switches("on", "wan0"); r.switches("on"); r.settled("wan0") }, "added", true},
		{"networkmanager-restart", 2, func() { r.must(r.RestartNM(ctx)); r.settled("wan0") }, "every link", true},
		{"rename", 2, func() {
			r.ip("link", "set", "wan0", "down")
			r.ip("link", "set", "wan0", "name", "dsl0")
			r.ip("link", "set", "dsl0", "up")
			r.settled()
		}, "renamed", true},
		{"stop", 1, func() { r.must(r.daemon.Stop(ctx)) }, "stopped", false},
	} {
		step.do()
		r.logged(from, step.says)
		lines := r.quietLog(from)
		from += len(lines)
		if len(lines) > step.atMost {
			t.Errorf("%s: %d lines, want at most %d", step.name, len(lines), step.atMost)
		}
		file := filepath.Join("testdata", "journal", step.name+".txt")
		if step.spread && !*update {
			named(t, file, masked(lines))
		} else {
			golden(t, file, masked(lines))
		}
	}
	if strings.Contains(r.daemon.Log(), "warning: ") || strings.Contains(r.daemon.Log(), "error: ") {
		t.Error("nothing of this is a problem")
	}
}

// TestJournalOfARestart: a daemon that starts where nothing has changed names no link.
func TestJournalOfARestart(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.isp(lab.DefaultISP(0))
	r.start()
	r.up("wan0")
	r.settled("wan0")
	r.logged(0, "wan0: uplink added")
	r.quietLog(0)
	r.must(r.daemon.Stop(t.Context()))
	r.start()
	r.settled("wan0")
	r.logged(0, "every link")
	golden(t, filepath.Join("testdata", "journal", "start.txt"), masked(r.quietLog(0)))
}

// rewrite replaces the configuration except its directories.
func (r *rig) rewrite(toml string) {
	r.t.Helper()
	r.writeConfig(fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n", r.cfg.StateDir, r.cfg.RuntimeDir) + toml)
}

// named checks that the lines have every address, network and table of a golden file,
// in whatever sentence.
func named(t *testing.T, file, lines string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range strings.FieldsFunc(string(want), func(r rune) bool { return strings.ContainsRune(" ,;()\n", r) }) {
		word = strings.TrimRight(word, ":.")
		if strings.ContainsAny(word, "0123456789") && strings.ContainsAny(word, ".:/") && !strings.Contains(lines, word) {
			t.Errorf("%s names %s, the log does not:\n%s", file, word, lines)
		}
	}
}

// quietLog returns the lines after from when no more come.
func (r *rig) quietLog(from int) []string {
	r.t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	count, since := -1, time.Now()
	for {
		lines := r.daemon.Lines()
		if len(lines) != count {
			count, since = len(lines), time.Now()
		} else if time.Since(since) >= logQuiet {
			return lines[from:]
		}
		select {
		case <-r.t.Context().Done():
			r.t.Fatal(r.t.Context().Err())
		case <-ticker.C:
		}
	}
}

var (
	logTime = regexp.MustCompile(`^\S+ \S+ `)
	since   = regexp.MustCompile(`since \d{4}-\d\d-\d\d \d\d:\d\d(:\d\d \+0000 UTC)?`)
	process = regexp.MustCompile(`(process) \d+`)
	// Who did it may have ended before anybody looks.
	culprit = regexp.MustCompile(`by (\S+ \(process PID\)|process PID, which has ended)`)
	// Addresses that DHCP and the network card chose.
	ofDHCP = regexp.MustCompile(`(100\.64\.\d+)\.(1\d\d|[2-9]\d|2\d\d)\b`)
	ofCard = regexp.MustCompile(`(2001:db8:[0-9a-f:]+?)::?[0-9a-f]+:[0-9a-f]+:[0-9a-f]+:[0-9a-f]+/64`)
	ofIPv6 = regexp.MustCompile(`fe80::[0-9a-f:]+`)
)

// masked replaces what differs from run to run.
func masked(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		l = logTime.ReplaceAllString(l, "")
		l = since.ReplaceAllString(l, "since TIME")
		l = process.ReplaceAllString(l, "$1 PID")
		l = culprit.ReplaceAllString(l, "by CULPRIT")
		l = ofDHCP.ReplaceAllString(l, "$1.DHCP")
		l = ofCard.ReplaceAllString(l, "$1:SLAAC/64")
		l = ofIPv6.ReplaceAllString(l, "fe80::ROUTER")
		b.WriteString(l + "\n")
	}
	return b.String()
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: the log says\n%swant\n%s", path, got, want)
	}
}
