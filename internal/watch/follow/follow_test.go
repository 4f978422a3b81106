package follow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/status"
	"multihomed/internal/watch"
	"multihomed/internal/watch/follow"
	"multihomed/test/lab/nettest"
)

// TestMain keeps the tests away from the machine's network.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func open(t *testing.T, o follow.Options) *follow.Follower {
	t.Helper()
	f, err := follow.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run follows the host until the end of the test.
func run(t *testing.T, f *follow.Follower) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func answer(context.Context, follow.Question) (*status.Status, error) {
	return &status.Status{Schema: 1, By: status.ByDaemon}, nil
}

// until takes updates until an event is as it should be.
func until(t *testing.T, f *follow.Follower, is func(watch.Event) bool) {
	t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		select {
		case u := <-f.Updates():
			if slices.ContainsFunc(u.Events, is) {
				return
			}
		case <-limit.C:
			t.Fatal("no such event")
		}
	}
}

// routes makes an interface with so many routes. If ip(8) stays, it is there until the end of the test, and
// may still be at work.
func routes(t *testing.T, n int, stays bool) {
	t.Helper()
	const name = "storm"
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "route add 10.%d.%d.0/24 dev %s\n", i/250, i%250, name)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "link", "del", name).CombinedOutput(); err != nil { //nolint:noctx // the context of the test has ended
			t.Errorf("%v: %s", err, out)
		}
	})
	for _, args := range [][]string{{"link", "add", name, "type", "veth", "peer", "name", "calm"}, {"link", "set", name, "up"}} {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cmd := exec.Command("ip", "-batch", "-") //nolint:noctx // it ends with its input
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, text.String()); err != nil {
		t.Error(err)
	}
	end := func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}
	if stays {
		t.Cleanup(end)
	} else {
		end()
	}
}

// TestStorm: every route of a storm is counted.
func TestStorm(t *testing.T) {
	const n = 5000
	f := open(t, follow.Options{Ask: answer, Limits: watch.Limits{Others: 3}})
	run(t, f)
	until(t, f, func(e watch.Event) bool { return e.Kind == watch.Watching })
	routes(t, n, true)
	seen := 0
	until(t, f, func(e watch.Event) bool {
		if e.Kind == watch.RouteAdded && e.Family == "ipv4" {
			if seen += e.Count; e.Party != watch.Other || e.Process != "ip" {
				t.Errorf("%+v", e)
			}
		}
		return seen == n
	})
}

// TestLoss: what was not read is told as lost, and what comes afterwards is told again.
func TestLoss(t *testing.T) {
	f := open(t, follow.Options{Ask: answer, Limits: watch.Limits{Others: 3}, ReceiveBuffer: 4096})
	routes(t, 500, false) // Nobody reads yet.
	run(t, f)
	until(t, f, func(e watch.Event) bool { return e.Kind == watch.Lost })
	for _, up := range []string{"down", "up"} {
		if out, err := exec.CommandContext(t.Context(), "ip", "link", "set", "calm", up).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	until(t, f, func(e watch.Event) bool {
		return e.Link == "calm" && e.Kind == watch.InterfaceChanged && e.Text == "interface up"
	})
}

// TestFaults: a panic becomes an error, and a host that cannot be read is told and tried again.
func TestFaults(t *testing.T) {
	f := open(t, follow.Options{Ask: func(context.Context, follow.Question) (*status.Status, error) { panic("what?") }})
	if err := f.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "internal error: what?") || !strings.Contains(err.Error(), "follow_test.go") {
		t.Errorf("%v", err)
	}
	asked := 0
	fault := errors.New("no answer")
	f = open(t, follow.Options{Ask: func(ctx context.Context, q follow.Question) (*status.Status, error) {
		if asked++; asked == 1 {
			return nil, fault
		}
		return answer(ctx, q)
	}})
	run(t, f)
	if u := <-f.Updates(); !errors.Is(u.Fault, fault) || u.Document != nil {
		t.Errorf("%+v", u)
	}
	if u := <-f.Updates(); u.Fault != nil || u.Document == nil || len(u.Events) != 1 || u.Events[0].Kind != watch.Watching {
		t.Errorf("%+v", u)
	}
}
