package nm

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"multihomed/internal/event"
)

// Options are what a [Watcher] needs to know. The zero value works.
type Options struct {
	// Logger receives one line per change; nil discards them.
	Logger *slog.Logger
	// Address is the bus's in D-Bus notation, empty for the system bus.
	Address string
	// CallTimeout bounds every call to NetworkManager; zero means 10 s.
	CallTimeout time.Duration
	// Grace is how long a device is [Device.Settling] after NetworkManager took it away
	// or unmanaged it while staying on the bus; zero means 10 s.
	Grace time.Duration
	// DNS has [Device.DNS] followed. Without it, the properties of name resolution are not
	// decoded.
	DNS bool
	// Passed returns what somebody passed on of the profile of an interface, false if
	// nothing. It is asked where NetworkManager does not let us read the profile; nil
	// knows none.
	Passed func(name string) (Passed, bool)
	// Lost is called when the connection to the bus has ended, though nobody here ended it; nil
	// for nobody.
	Lost func()
	// Before is a Watcher of the same NetworkManager, whose Run has returned; nil for none. Its
	// devices count until NetworkManager answers, as after a lost connection to the bus.
	Before *Watcher
}

// A Watcher follows NetworkManager. Create it with [New], start [Watcher.Run].
type Watcher struct {
	opts    Options
	log     *slog.Logger
	changed chan struct{}
	recheck chan struct{}

	mu           sync.Mutex
	status       Status
	statusNew    bool
	devices      map[string]Device
	changedNames map[string]struct{}
	gone         map[string]struct{}
	rechecks     map[string]struct{}
}

// New returns a Watcher that knows nothing yet, or what the one before it knew.
func New(opts Options) *Watcher {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.CallTimeout <= 0 {
		opts.CallTimeout = 10 * time.Second
	}
	if opts.Grace <= 0 {
		opts.Grace = 10 * time.Second
	}
	w := &Watcher{
		opts:         opts,
		log:          opts.Logger,
		changed:      make(chan struct{}, 1),
		recheck:      make(chan struct{}, 1),
		status:       Status{Reason: "NetworkManager has not been asked yet"},
		devices:      map[string]Device{},
		changedNames: map[string]struct{}{},
		gone:         map[string]struct{}{},
		rechecks:     map[string]struct{}{},
	}
	if before := opts.Before; before != nil {
		w.opts.Before = nil
		w.inherit(before)
	}
	return w
}

// inherit takes what another Watcher knew: all of it is to be asked again.
func (w *Watcher) inherit(before *Watcher) {
	known := before.Snapshot()
	// What it took away for good, others may claim.
	maps.DeleteFunc(known.Devices, func(_ string, d Device) bool { return d.Gone && !d.Settling })
	w.status.Version = known.Version
	if known.Absent {
		w.status.Absent, w.status.Reason = true, known.Reason
	}
	w.devices, w.statusNew = known.Devices, true
	for name := range known.Devices {
		w.changedNames[name] = struct{}{}
	}
	w.ungone()
	trigger(w.changed)
}

// Changed returns a channel that holds a value when [Watcher.TakeChanges] returns something
// new. It has one slot: events that come while the consumer is busy are folded into one.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Snapshot returns everything known. Its cost follows the number of devices;
// who only wants the difference calls [Watcher.TakeChanges].
func (w *Watcher) Snapshot() Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Snapshot{Status: w.status, Devices: maps.Clone(w.devices)}
}

// Device returns one device.
func (w *Watcher) Device(name string) (Device, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.devices[name]
	return d, ok
}

// TakeChanges returns what changed since it was called last; the first call
// returns everything. It has one consumer. Its cost follows the change.
func (w *Watcher) TakeChanges() Changes {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := Changes{Status: w.status, StatusChanged: w.statusNew}
	if len(w.changedNames) > 0 {
		c.Devices = make(map[string]Device, len(w.changedNames))
	}
	for name := range w.changedNames {
		if d, ok := w.devices[name]; ok {
			c.Devices[name] = d
		} else {
			c.Removed = append(c.Removed, name)
		}
	}
	clear(w.changedNames)
	w.statusNew = false
	return c
}

// Recheck asks for the applied profile of an interface to be read again. It never
// waits. It is for what NetworkManager does not signal: a reapply that changes
// nothing in addresses, routes or DNS (a gateway that never-default keeps out
// of main) is only told to the dispatcher's scripts, as "reapply".
func (w *Watcher) Recheck(name string) {
	w.mu.Lock()
	w.rechecks[name] = struct{}{}
	w.mu.Unlock()
	trigger(w.recheck)
}

// Forget drops a device that NetworkManager no longer has, or of which it says nothing
// because it is away, because the caller knows from the kernel that the interface is gone
// too. Others are kept.
func (w *Watcher) Forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d, ok := w.devices[name]; ok && (d.Gone || w.status.Absent) {
		delete(w.devices, name)
		delete(w.gone, name)
		w.changedNames[name] = struct{}{}
		trigger(w.changed)
	}
}

// Gone names the devices that NetworkManager took away. They are kept until the
// caller knows that the interface is gone too, see [Watcher.Forget].
func (w *Watcher) Gone() (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.gone))
}

// Run follows NetworkManager until ctx is done, and then returns nil. While the bus is
// away, it tries to reach it again, at growing intervals.
func (w *Watcher) Run(ctx context.Context) error {
	const first, last = 100 * time.Millisecond, 5 * time.Second
	for attempts := 0; ; attempts++ {
		s, err := newSession(ctx, w, false)
		if err == nil {
			attempts = 0
			err = s.run(ctx, nil)
			s.close()
			if ctx.Err() == nil && w.opts.Lost != nil {
				w.opts.Lost()
			}
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // being told to stop is no failure
		}
		w.ungone()
		was := w.currentStatus()
		w.setStatus(ctx, Status{Absent: true, Version: was.Version, Reason: fmt.Sprintf("system bus: %s", err)})
		wait := time.NewTimer(backoff(first, last, attempts))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil
		}
	}
}

// ReadOnce asks NetworkManager once, without following it. It needs no
// privileges. Its devices carry NetworkManager's own view of their IP
// configuration. A NetworkManager that is not running is no error: the
// Snapshot says so.
func ReadOnce(ctx context.Context, opts Options) (Snapshot, error) {
	w := New(opts)
	s, err := newSession(ctx, w, true)
	if err != nil {
		return w.Snapshot(), fmt.Errorf("system bus: %w", err)
	}
	defer s.close()
	err = s.run(ctx, func() bool {
		return s.loadProblem != nil || (s.ownerKnown && len(s.calls) == 0 && len(s.backlog) == 0)
	})
	if err == nil {
		err = s.loadProblem
	}
	if err != nil {
		return w.Snapshot(), fmt.Errorf("asking NetworkManager: %w", err)
	}
	return w.Snapshot(), nil
}

// Unattended names the devices that NetworkManager does not have now: those that it took
// away, and all of them while it is away itself. See [Watcher.Forget].
func (w *Watcher) Unattended() (names []string) {
	w.mu.Lock()
	away := w.status.Absent
	w.mu.Unlock()
	if !away {
		return w.Gone()
	}
	return slices.Sorted(slices.Values(w.names()))
}

func (w *Watcher) takePokes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := slices.Collect(maps.Keys(w.rechecks))
	clear(w.rechecks)
	return names
}

// names lists the interfaces that are known.
func (w *Watcher) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.devices))
}

func (w *Watcher) currentStatus() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// setStatus makes a status known and logs what is new in it.
func (w *Watcher) setStatus(ctx context.Context, now Status) {
	w.mu.Lock()
	was := w.status
	if was == now {
		w.mu.Unlock()
		return
	}
	w.status, w.statusNew = now, true
	devices := len(w.devices)
	w.mu.Unlock()
	trigger(w.changed)
	if now.Complete {
		w.log.LogAttrs(ctx, slog.LevelDebug, "NetworkManager known",
			slog.String("version", now.Version), slog.Int("devices", devices))
	} else if now.Reason != was.Reason {
		// One line when it goes. What keeps it away for long is a problem, and the
		// loop reports it.
		if was.Complete && !now.Running {
			w.log.LogAttrs(ctx, slog.LevelInfo, "waiting for NetworkManager", event.Is(event.Waiting))
			return
		}
		w.log.LogAttrs(ctx, slog.LevelDebug, "NetworkManager not known",
			slog.String("reason", now.Reason), slog.Bool("running", now.Running))
	}
}

// put makes a device known if it differs from what is.
func (w *Watcher) put(ctx context.Context, now Device) {
	w.mu.Lock()
	was, known := w.devices[now.Name]
	if known && was.equal(now) {
		w.mu.Unlock()
		return
	}
	w.devices[now.Name] = now
	if now.Gone {
		w.gone[now.Name] = struct{}{}
	} else {
		delete(w.gone, now.Name)
	}
	w.changedNames[now.Name] = struct{}{}
	w.mu.Unlock()
	trigger(w.changed)

	for _, problem := range now.Problems {
		if !slices.Contains(was.Problems, problem) {
			w.log.LogAttrs(ctx, slog.LevelDebug, "device not understood",
				slog.String("interface", now.Name), slog.String("problem", problem))
		}
	}
	if now.ProfileKnown && (!was.ProfileKnown || was.ProfileUUID != now.ProfileUUID || was.Ignored != now.Ignored) {
		w.log.LogAttrs(ctx, slog.LevelDebug, "device profile",
			slog.String("interface", now.Name), slog.String("profile", now.ProfileID),
			slog.Bool("external", now.External), slog.Bool("ignored", now.Ignored))
	}
}

// drop makes a device unknown.
func (w *Watcher) drop(name string) {
	w.mu.Lock()
	_, known := w.devices[name]
	if known {
		delete(w.devices, name)
		delete(w.gone, name)
		w.changedNames[name] = struct{}{}
	}
	w.mu.Unlock()
	if known {
		trigger(w.changed)
	}
}

// ungone takes back that devices were taken away: the one who did it has left.
func (w *Watcher) ungone() {
	w.mu.Lock()
	changed := false
	clear(w.gone)
	for name, d := range w.devices {
		if d.Gone {
			d.Gone, d.Settling = false, true
			w.devices[name] = d
			w.changedNames[name] = struct{}{}
			changed = true
		}
	}
	w.mu.Unlock()
	if changed {
		trigger(w.changed)
	}
}

// trigger fills a channel of one slot.
func trigger(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it is already set
	}
}
