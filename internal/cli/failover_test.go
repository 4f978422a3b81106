package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"multihomed/internal/cli"
	"multihomed/internal/config"
	"multihomed/internal/handoff"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/internal/status/view"
)

// A daemon answers on its sockets as the real one does.
type daemon struct {
	cfg config.Config

	mu     sync.Mutex
	status status.Status
	// refuses is why it carries out nothing, and got what it was ordered.
	refuses string
	got     []handoff.Message
}

// order carries out an order: a test moves the traffic a moment after it begins.
func (d *daemon) order(m handoff.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, m)
	if d.refuses != "" {
		m.Refuse(d.refuses)
		return
	}
	until := at(17, 5, 32)
	for i := range d.status.Failover.Uplinks {
		if h := &d.status.Failover.Uplinks[i]; h.Interface == m.Interface && h.Family == "ipv4" {
			h.State, h.Tested = status.HealthDown, &until
			d.status.Unbound["ipv4"] = status.Unbound{Interface: "wlp3s0", Table: 10999, Main: "enp2s0"}
			if m.Failover == handoff.ResetFailover {
				h.State, h.Tested = status.HealthUnknown, nil
			}
		}
	}
	m.Acknowledge()
}

func startDaemon(t *testing.T, s status.Status, refuses string) *daemon {
	t.Helper()
	d := &daemon{cfg: config.Default(), status: s, refuses: refuses}
	d.cfg.RuntimeDir, d.cfg.StateDir = t.TempDir(), t.TempDir()
	log := slog.New(slog.DiscardHandler)
	events, err := handoff.Listen(d.cfg.RuntimeDir)
	if err != nil {
		t.Fatal(err)
	}
	server, err := socket.Listen(d.cfg.RuntimeDir, log, func(context.Context) ([]byte, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return json.Marshal(d.status)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := events.Run(ctx, log, d.order); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if _, err := events.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestOrders(t *testing.T) {
	t.Parallel()
	s := watched()
	shown := s.view().Status(nil, "1.2.3")
	alone := laptop()
	none := alone.view().Status(nil, "1.2.3")
	off := s.view().Status(nil, "1.2.3")
	off.Failover.Enabled = false
	only := laptop()
	only.failover = &view.Failover{Enabled: true, Uplinks: watched().failover.Uplinks[:2]}
	radio := only.view().Status(nil, "1.2.3")
	switched, allOff, tested, nobody := copied(t, radio), copied(t, radio), copied(t, shown), copied(t, radio)
	switched.OffLinks = []status.OffLink{{Interface: "wlp3s0", Off: status.Off{By: "uid 0"}}}
	allOff.Off = &status.Off{By: "uid 0"}
	until := at(17, 5, 32)
	tested.Failover.Uplinks[2].Tested = &until
	nobody.Failover.Uplinks = nil
	for name, c := range map[string]struct {
		status  status.Status
		order   handoff.Order
		word    string
		refuses string
		// sent is the interface of the order, empty if none is sent.
		sent, want string
	}{
		"test": {
			shown, handoff.TestFailover, "enp2s0", "", "enp2s0",
			"enp2s0 counts as dead until 17:05:32: unbound IPv4 leaves by wlp3s0, IPv6 stays, because no other uplink works; to end it now: multihomectl failover reset enp2s0\n",
		},
		"test by profile":  {shown, handoff.TestFailover, "Wired connection 1", "", "enp2s0", "enp2s0 counts as dead until"},
		"reset":            {shown, handoff.ResetFailover, "enp2s0", "", "enp2s0", "the history of enp2s0 is forgotten: IPv4 not known yet, IPv6 up\n"},
		"no other":         {shown, handoff.TestFailover, "enp2s0", "no other uplink is alive", "enp2s0", "enp2s0: no other uplink is alive; to fix: see why the others do not work, multihomectl status"},
		"no such link":     {shown, handoff.TestFailover, "wlp3s1", "", "", "there is no uplink \"wlp3s1\"; did you mean wlp3s0?; there are enp2s0, wlp3s0"},
		"a pattern":        {shown, handoff.TestFailover, "enp*", "", "", "enp* is a pattern; name one uplink: enp2s0, wlp3s0"},
		"an empty word":    {shown, handoff.ResetFailover, "", "", "", "there is no uplink \"\"; there are enp2s0, wlp3s0"},
		"no link":          {radio, handoff.TestFailover, "wlp3s0", "", "", "wlp3s0 is no link, so it is not watched (unavailable); there are enp2s0"},
		"the only one":     {radio, handoff.TestFailover, "enp2s0", "no other uplink is alive", "enp2s0", "enp2s0 is the only uplink with a default route, so nothing can take its traffic; to fix: connect another one"},
		"the other is off": {switched, handoff.TestFailover, "enp2s0", "no other uplink is alive", "enp2s0", "enp2s0 is the only uplink with a default route, so nothing can take its traffic; to fix: multihomectl on wlp3s0"},
		"off":              {switched, handoff.TestFailover, "wlp3s0", "", "", "wlp3s0 is switched off by uid 0, so it is not watched; to fix: multihomectl on wlp3s0"},
		"all off":          {allOff, handoff.TestFailover, "enp2s0", "", "", "multihomed is switched off by uid 0, so no link is watched; to fix: multihomectl on"},
		"the other tested": {tested, handoff.TestFailover, "enp2s0", "no other uplink is alive", "enp2s0", "enp2s0: no other uplink is alive: wlp3s0 counts as dead by a test; to fix: multihomectl failover reset wlp3s0"},
		"no default":       {nobody, handoff.TestFailover, "enp2s0", "", "", "no link has a default route, so none is watched; to fix: connect two that have one"},
		"nothing to watch": {none, handoff.TestFailover, "enp2s0", "", "", "failover is switched off"},
		"switched off":     {off, handoff.TestFailover, "enp2s0", "", "", "failover is switched off; to fix: set enabled = true in [failover] of the configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, copied(t, c.status), c.refuses)
			var out bytes.Buffer
			p := cli.Program{Version: "1.2.3", Out: &out, Err: &out, Root: fstest.MapFS{}, Env: func(string) string { return "" }}
			if err := p.Order(t.Context(), d.cfg, c.order, c.word); err != nil {
				out.WriteString(err.Error())
			}
			if !strings.HasPrefix(out.String(), c.want) {
				t.Errorf("it says %q, want %q", out.String(), c.want)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if c.sent == "" && len(d.got) > 0 || c.sent != "" && (len(d.got) != 1 || d.got[0].Interface != c.sent || d.got[0].Failover != c.order) {
				t.Errorf("it sends %+v", d.got)
			}
		})
	}
}

// copied is a status that shares nothing with the original.
func copied(t *testing.T, s status.Status) status.Status {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out, err := status.Decode(text, true)
	if err != nil {
		t.Fatal(err)
	}
	return *out
}

func TestOrdersWithoutADaemon(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.RuntimeDir, cfg.StateDir = t.TempDir(), t.TempDir()
	p := cli.Program{Root: fstest.MapFS{}, Env: func(string) string { return "" }}
	began := time.Now()
	if err := p.Order(t.Context(), cfg, handoff.TestFailover, "wan0"); err == nil || !strings.Contains(err.Error(), "to fix: systemctl start multihomed") {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	for _, args := range [][]string{{"failover", "test"}, {"failover", "reset", "a", "b"}} {
		if _, stderr, exit := run(t, args...); exit != 2 || !strings.Contains(stderr, "takes one uplink, and got ") {
			t.Errorf("%v: %d, %q", args, exit, stderr)
		}
	}
}

// TestShellWord: a shell makes the word again of what is shown.
func TestShellWord(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{"wan0": "wan0", "Wired connection 1": "'Wired connection 1'", "": "''", "wan*": "'wan*'", "Bob's": `'Bob'\''s'`, "a;b": "'a;b'", "Büro": "'Büro'"} {
		got := cli.ShellWord(word)
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+got).Output()
		if got != want || err != nil || string(out) != word {
			t.Errorf("%q is %s, and for a shell %q: %v", word, got, out, err)
		}
	}
}

func TestCompletionOfUplinks(t *testing.T) {
	t.Parallel()
	s := watched()
	d := startDaemon(t, s.view().Status(nil, "1.2.3"), "")
	path := file(t, "runtime_dir = \""+d.cfg.RuntimeDir+"\"\n")
	p := cli.Program{Root: fstest.MapFS{}, Env: func(string) string { return "" }}
	if got := p.CompleteUplinks(t.Context(), path); !slices.Equal(got, []string{"enp2s0", "wlp3s0"}) {
		t.Errorf("it offers %v", got)
	}
}
