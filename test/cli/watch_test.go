package cli_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/watch"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

// A watching is a `multihomectl watch --json` that runs.
type watching struct {
	h   *host
	cmd *exec.Cmd

	mu     sync.Mutex
	events []watch.Event
	seen   int
	ended  chan struct{}
	err    error // after ended
}

// watch starts one as a user, and waits until it watches.
func (h *host) watch(uid uint32) *watching {
	h.t.Helper()
	w := &watching{h: h, ended: make(chan struct{})}
	w.cmd = exec.CommandContext(h.t.Context(), program(h.t, "multihomectl"), "watch", "--json")
	w.cmd.Dir, w.cmd.Stderr = "/", os.Stderr
	w.cmd.Env = append(os.Environ(), "HOME=/", "GORACE=atexit_sleep_ms=0")
	if uid != 0 {
		w.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := w.cmd.StdoutPipe()
	h.must(err)
	h.must(w.cmd.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			decoder := json.NewDecoder(strings.NewReader(lines.Text()))
			decoder.DisallowUnknownFields()
			var e watch.Event
			if err := decoder.Decode(&e); err != nil || e.Schema != 1 || e.Time.IsZero() || e.Text == "" || e.Count < 1 {
				h.t.Errorf("%v in %s", err, lines.Text())
			}
			if err := schematest.Check("watch", lines.Bytes()); err != nil {
				h.t.Error(err)
			}
			w.mu.Lock()
			w.events = append(w.events, e)
			w.mu.Unlock()
		}
		w.err = w.cmd.Wait()
		close(w.ended)
	}()
	h.t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		<-w.ended // What it hears fails this test and no later one.
	})
	w.wants("the beginning", func(e watch.Event) bool { return e.Kind == watch.Watching })
	return w
}

// wants waits for an event since the last mark.
func (w *watching) wants(what string, is func(watch.Event) bool) (found watch.Event) {
	w.h.t.Helper()
	labtest.Eventually(w.h.t, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		var lines []string
		for _, e := range w.events[w.seen:] {
			if is(e) {
				found = e
				return nil
			}
			lines = append(lines, string(e.Kind)+" "+e.Sentence())
		}
		return fmt.Errorf("no %s among\n%s", what, strings.Join(lines, "\n"))
	})
	w.h.t.Logf("%s: %s", what, found.Sentence())
	return found
}

// mark leaves out what was before.
func (w *watching) mark() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = len(w.events)
}

// stop ends it as the administrator does.
func (w *watching) stop() {
	w.h.t.Helper()
	w.h.must(w.cmd.Process.Signal(unix.SIGTERM))
	<-w.ended
	w.h.must(w.err)
}

// batch starts an ip(8) that does what it is told and stays: it is still there when somebody asks who did it.
func (h *host) batch() (do func(string), pid int) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), "ip", "-force", "-batch", "-")
	in, err := cmd.StdinPipe()
	h.must(err)
	h.must(cmd.Start())
	h.t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return func(line string) {
		h.t.Helper()
		_, err := io.WriteString(in, line+"\n")
		h.must(err)
	}, cmd.Process.Pid
}

// TestWatch: the right who and why, of NetworkManager, the kernel, multihomed and somebody else.
func TestWatch(t *testing.T) {
	h := newHost(t)
	h.start()
	w := h.watch(0)
	do, pid := h.batch()

	do("rule add priority 30001 table 77")
	e := w.wants("rule of somebody else", func(e watch.Event) bool { return e.Kind == watch.RuleAdded && strings.Contains(e.Object, "30001:") })
	if e.Party != watch.Other || e.Process != "ip" || e.PID != pid || e.Probable {
		t.Errorf("%+v, want process %d", e, pid)
	}

	// A route of ours goes and comes back.
	w.mark()
	table := 0
	for _, n := range link(t, h.status(), "wan0").Networks {
		if n.Family == "ipv4" {
			table = int(n.Table)
		}
	}
	do(fmt.Sprintf("route del default table %d", table))
	e = w.wants("route of ours deleted", func(e watch.Event) bool {
		return e.Kind == watch.RouteRemoved && strings.Contains(e.Text, "of multihomed")
	})
	if e.Party != watch.Other || e.PID != pid || e.Link != "wan0" {
		t.Errorf("%+v, want process %d", e, pid)
	}
	e = w.wants("repair", func(e watch.Event) bool { return e.Kind == watch.RouteAdded && strings.HasPrefix(e.Why, "restored") })
	if e.Party != watch.Multihomed || e.Probable || e.PID != h.daemon.Pid() || !strings.Contains(e.Why, fmt.Sprintf("after ip (process %d) deleted it", pid)) || e.Reason != "copied" {
		t.Errorf("%+v", e)
	}

	// A link goes and comes.
	w.mark()
	h.must(h.Down(t.Context(), "wan1"))
	w.wants("link gone", func(e watch.Event) bool { return e.Kind == watch.LinkRemoved && e.Link == "wan1" && e.Why != "" })
	w.wants("address gone", func(e watch.Event) bool {
		return e.Kind == watch.AddressRemoved && e.Link == "wan1" && e.Family == "ipv4" && e.Party == watch.NetworkManager
	})
	w.mark()
	h.up("wan1")
	w.wants("link", func(e watch.Event) bool {
		return e.Kind == watch.LinkAdded && e.Link == "wan1" && e.Party == watch.NetworkManager && e.Why != ""
	})
	w.wants("address", func(e watch.Event) bool {
		return e.Kind == watch.AddressAdded && e.Link == "wan1" && e.Family == "ipv4" && e.Party == watch.NetworkManager && strings.Contains(e.Why, "DHCP")
	})
	w.wants("route of DHCP", func(e watch.Event) bool {
		return e.Kind == watch.RouteAdded && e.Link == "wan1" && strings.HasPrefix(e.Object, "default via") && e.Party == watch.NetworkManager && e.Why == "DHCP"
	})
	w.wants("rule of ours", func(e watch.Event) bool {
		return e.Kind == watch.RuleAdded && e.Reason == "source" && e.Link == "wan1" && e.Party == watch.Multihomed && e.Why == "packets from the address leave by the link"
	})
	w.wants("gateway", func(e watch.Event) bool {
		return e.Kind == watch.GatewayAdded && e.Link == "wan1" && e.Family == "ipv4"
	})
	h.settle()

	// Unbound traffic moves, by order.
	w.mark()
	labtest.Eventually(t, func() error {
		if r := h.ctl("failover", "test", "wan0"); r.status != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	w.wants("death", func(e watch.Event) bool {
		return e.Kind == watch.HealthChanged && e.Link == "wan0" && e.Object == "down" && e.Party == watch.Multihomed && e.Why != ""
	})
	w.wants("move", func(e watch.Event) bool {
		return e.Kind == watch.DefaultMoved && e.Object == "wan1" && e.Party == watch.Multihomed && e.Why != ""
	})

	// A carrier is lost.
	w.mark()
	lan, err := h.NewLink(lab.LinkConfig{Name: "lan0", Peer: "client", Up: true})
	h.must(err)
	w.wants("interface", func(e watch.Event) bool { return e.Kind == watch.InterfaceAdded && e.Link == "lan0" })
	h.must(lan.SetCarrier(false))
	w.wants("carrier", func(e watch.Event) bool {
		return e.Kind == watch.InterfaceChanged && e.Link == "lan0" && e.Text == "carrier lost" && e.Party == watch.Kernel
	})

	// The daemon stops, and what others do is still told; an ordinary user learns less.
	w.mark()
	h.stop()
	w.wants("end of the daemon", func(e watch.Event) bool {
		return e.Kind == watch.ServiceChanged && strings.Contains(e.Text, "not running")
	})
	u := h.watch(nobody)
	do("rule del priority 30001 table 77")
	w.wants("end of the rule", func(e watch.Event) bool { return e.Kind == watch.RuleRemoved && e.PID == pid && !e.Probable })
	u.wants("end of the rule for nobody", func(e watch.Event) bool {
		return e.Kind == watch.RuleRemoved && e.PID == pid && e.Process == "ip" && e.Probable
	})
	u.stop()
	w.stop()
}
