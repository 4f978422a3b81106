package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// An event is an announcement of the kernel about an object of multihomed's
// protocol, with the time at which the bench had it.
type event struct {
	at      time.Time
	kind    uint16
	payload []byte
}

func (e event) added() bool { return e.kind == unix.RTM_NEWROUTE || e.kind == unix.RTM_NEWRULE }

// key names the object: announcements of one object are equal but for the state
// of its device.
func (e event) key() string {
	p := append([]byte{byte(e.kind &^ 3)}, e.payload...)
	if e.kind == unix.RTM_NEWROUTE || e.kind == unix.RTM_DELROUTE {
		clear(p[9:13])
	}
	return string(p)
}

// A watcher listens to what the kernel announces about our objects, in a thread of
// its own. It alone decides when an object existed.
type watcher struct {
	fd   int
	stop atomic.Bool
	done chan struct{}

	mu     sync.Mutex
	events []event
	err    error
}

func watch() (*watcher, error) {
	fd, err := openNetlink(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, err
	}
	// The thread looks at stop now and then.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a routing socket: %w", err), unix.Close(fd))
	}
	w := &watcher{fd: fd, done: make(chan struct{})}
	go w.run()
	return w, nil
}

func (w *watcher) close() error {
	w.stop.Store(true)
	<-w.done
	return unix.Close(w.fd)
}

func (w *watcher) run() {
	runtime.LockOSThread()
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for !w.stop.Load() {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			w.mu.Lock()
			w.err = fmt.Errorf("watching the kernel: %w", err)
			w.mu.Unlock()
			return
		}
		w.take(time.Now(), buf[:n])
	}
}

func (w *watcher) take(at time.Time, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		if n < unix.SizeofNlMsghdr || n > len(b) {
			w.err = errors.New("watching the kernel: a truncated announcement")
			return
		}
		if payload := b[unix.SizeofNlMsghdr:n]; isOurs(kind, payload) {
			w.events = append(w.events, event{at: at, kind: kind, payload: append([]byte(nil), payload...)})
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}

const (
	ruleHeaderSize = 12
	fraProtocol    = 21
)

func isOurs(kind uint16, payload []byte) bool {
	if len(payload) < unix.SizeofRtMsg {
		return false
	}
	ours := false
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		ours = payload[5] == lab.Ours
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		eachAttribute(payload[ruleHeaderSize:], func(kind uint16, value []byte) {
			ours = ours || kind == fraProtocol && len(value) == 1 && value[0] == lab.Ours
		})
	}
	return ours
}

// reset drops the recorded announcements.
func (w *watcher) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
}

// seen returns the announcements since reset.
func (w *watcher) seen() ([]event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.events), w.err
}

// standing counts the objects that events leave behind.
func standing(events []event) map[string]int {
	out := map[string]int{}
	for _, e := range events {
		k := e.key()
		switch {
		case !e.added():
			out[k]--
		case e.kind == unix.RTM_NEWROUTE:
			out[k] = 1 // a replaced route is announced again
		default:
			out[k]++
		}
		if out[k] == 0 {
			delete(out, k)
		}
	}
	return out
}

const (
	// quiet is how long nothing must happen for something to be over.
	quiet = 20 * time.Millisecond
	look  = 5 * time.Millisecond
)

// settle waits until nothing more is announced, the processes have nothing to
// do, and enough is content, and returns what was announced. It looks rarely,
// so as not to be in the way.
func (w *watcher) settle(ctx context.Context, enough func([]event) error, processes ...int) ([]event, error) {
	known, since := -1, time.Now()
	var before time.Duration
	unmet := errors.New("there are more and more announcements")
	for {
		events, err := w.seen()
		if err != nil {
			return nil, err
		}
		if len(events) != known {
			known, since = len(events), time.Now()
		}
		if time.Since(since) >= quiet {
			used, busy, err := activity(processes)
			switch {
			case err != nil:
				return nil, err
			case len(busy) > 0 || used != before:
				unmet = fmt.Errorf("no rest after %v of CPU: %s", used, strings.Join(busy, ", "))
				before, since = used, time.Now()
			default:
				if unmet = enough(events); unmet == nil {
					return events, nil
				}
			}
		}
		if pause(ctx, look) != nil {
			return nil, fmt.Errorf("waiting for the expected objects: %w: %w", context.Cause(ctx), unmet)
		}
	}
}

// activity is the CPU time of processes, and which of them run, would if they
// could, or wait for the kernel.
func activity(processes []int) (used time.Duration, busy []string, err error) {
	for _, pid := range processes {
		t, err := clockOf(pid).read()
		if err != nil {
			return 0, nil, err
		}
		used += t
		states, err := threadStates(pid)
		if err != nil {
			return 0, nil, err
		}
		if strings.ContainsAny(states, "RD") {
			busy = append(busy, fmt.Sprintf("process %d with threads %s", pid, states))
		}
	}
	return used, busy, nil
}

// threadStates are the letters that ps shows.
func threadStates(pid int) (string, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return "", fmt.Errorf("listing threads: %w", err)
	}
	var out strings.Builder
	for _, path := range threads {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if rest != "" {
			out.WriteByte(rest[0])
		}
	}
	return out.String(), nil
}

// holds returns a condition: exactly these objects exist.
func holds(want map[string]int) func([]event) error {
	return func(events []event) error {
		have := standing(events)
		if maps.Equal(want, have) {
			return nil
		}
		var diff []string
		for k := range want {
			if have[k] != want[k] {
				diff = append(diff, fmt.Sprintf("%d instead of %d of %s", have[k], want[k], objectText(k)))
			}
		}
		for k := range have {
			if want[k] == 0 {
				diff = append(diff, "not expected: "+objectText(k))
			}
		}
		return fmt.Errorf("%d differences: %s", len(diff), strings.Join(diff[:min(len(diff), 10)], "; "))
	}
}

func objectText(key string) string {
	kind := uint16(key[0]) // key cleared the low bits
	line, err := ipLine(message{kind: kind, payload: []byte(key[1:])}, nil)
	if err != nil {
		return err.Error()
	}
	return line
}

// last is when the last announcement was had.
func last(events []event) time.Time { return events[len(events)-1].at }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
