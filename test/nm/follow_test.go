// Package integration_test runs package nm against the real NetworkManager in
// the lab.
package nm_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// timeout bounds every wait. Only a failure takes it.
const timeout = 20 * time.Second

// A follower does with a Watcher what the daemon does: on every change it
// classifies the devices that changed, and remembers what was a link.
type follower struct {
	*nm.Watcher
	log *logbook

	mu     sync.Mutex
	policy nm.Policy
	// seen is the last snapshot whose changes are all in what follows.
	seen     nm.Snapshot
	verdicts map[string]nm.Verdict
	reasons  map[string]string
	// history lists, in order, every verdict that differs from the one before.
	history []string
	// without counts the changes after which an interface had no IPv4 gateway.
	without map[string]int
	// unnamed counts those after which it had no DNS.
	unnamed map[string]int
	// kept counts those after which NetworkManager did not manage it, and it was kept.
	kept map[string]int
	news chan struct{}
}

// follow starts a Watcher for the rest of the test.
func follow(t *testing.T, opts nm.Options) *follower {
	t.Helper()
	book := &logbook{start: time.Now()}
	opts.Logger = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := &follower{
		Watcher: nm.New(opts), log: book,
		verdicts: map[string]nm.Verdict{}, without: map[string]int{}, unnamed: map[string]int{}, kept: map[string]int{}, reasons: map[string]string{}, news: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() {
		for {
			f.take()
			select {
			case <-f.Changed():
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		labtest.Eventually(&uncancelled{t}, leaks)
		if t.Failed() {
			t.Logf("log of the watcher:\n%s", book)
			t.Logf("verdicts:\n%s", strings.Join(f.history, "\n"))
		}
	})
	return f
}

// uncancelled is a test whose context outlives its cleanups' beginning.
type uncancelled struct{ *testing.T }

func (uncancelled) Context() context.Context { return context.Background() }

// leaks names goroutines that the Watcher left. goleak cannot be asked here: the
// lab has its own goroutines, which come and go during a test.
func leaks() error {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "multihomed/nm.") || strings.Contains(stack, "godbus/dbus") {
			return fmt.Errorf("left over:\n%s", stack)
		}
	}
	return nil
}

func (f *follower) take() {
	// In this order: the changes are those of the snapshot, at least.
	seen := f.Snapshot()
	changes := f.TakeChanges()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = seen
	for name, d := range changes.Devices {
		was := f.verdicts[name]
		now, reason := f.policy.Classify(d, was != nm.NotLink)
		f.verdicts[name], f.reasons[name] = now, reason
		if !d.Intents[routing.IPv4].Gateway.IsValid() {
			f.without[name]++
		}
		if len(d.DNS) == 0 {
			f.unnamed[name]++
		}
		if d.State == gnm.NmDeviceStateUnmanaged && d.Settling {
			f.kept[name]++
		}
		if was != now {
			f.history = append(f.history, fmt.Sprintf("%s: %s", name, now))
		}
	}
	for _, name := range changes.Removed {
		delete(f.verdicts, name)
		f.history = append(f.history, name+": removed")
	}
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// begin forgets the history and returns the moment.
func (f *follower) begin() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = nil
	clear(f.without)
	clear(f.unnamed)
	return time.Now()
}

func (f *follower) lost(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.without[name]
}

func (f *follower) nameless(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unnamed[name]
}

func (f *follower) wasKept(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept[name] > 0
}

func (f *follower) happened() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.history...)
}

func (f *follower) verdict(name string) (nm.Verdict, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verdicts[name], f.reasons[name]
}

// await waits until a condition on the snapshot holds, and verdicts and history have what led to it.
func (f *follower) await(t *testing.T, what string, ok func(nm.Snapshot) bool) nm.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(timeout))
	defer cancel()
	for {
		f.mu.Lock()
		s := f.seen
		f.mu.Unlock()
		if ok(s) {
			return s
		}
		select {
		case <-f.news:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s\nstatus: %+v\ndevices: %+v", what, s.Status, s.Devices)
		}
	}
}

// awaitDevice waits until a condition on one device holds.
func (f *follower) awaitDevice(t *testing.T, name, what string, ok func(nm.Device) bool) nm.Device {
	t.Helper()
	s := f.await(t, name+" "+what, func(s nm.Snapshot) bool {
		d, known := s.Devices[name]
		return known && ok(d)
	})
	return s.Devices[name]
}

// awaitVerdict waits for what the daemon would take a device for.
func (f *follower) awaitVerdict(t *testing.T, name string, want nm.Verdict) {
	t.Helper()
	f.await(t, fmt.Sprintf("%s is a %s", name, want), func(nm.Snapshot) bool {
		v, _ := f.verdict(name)
		return v == want
	})
}

func (f *follower) awaitComplete(t *testing.T) nm.Snapshot {
	t.Helper()
	return f.await(t, "complete knowledge", func(s nm.Snapshot) bool { return s.Complete })
}

// A logbook keeps the lines of a log with the time since the test began.
type logbook struct {
	mu    sync.Mutex
	start time.Time
	lines []string
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, line, _ := strings.Cut(strings.TrimRight(string(p), "\n"), " ") // its own time
	l.lines = append(l.lines, fmt.Sprintf("%9.4f %s", time.Since(l.start).Seconds(), line))
	return len(p), nil
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// count returns how many lines contain all of the parts.
func (l *logbook) count(parts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
line:
	for _, line := range l.lines {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue line
			}
		}
		n++
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyfile stores a profile that nmcli 1.42 cannot write (it has no user.data)
// and has NetworkManager load it.
func keyfile(t *testing.T, host *lab.Host, text string) {
	t.Helper()
	const path = "/etc/NetworkManager/system-connections/one.nmconnection"
	must(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := host.NMCLI(t.Context(), "connection", "load", path)
	must(t, err)
}
