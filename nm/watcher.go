package nm

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// Options are what a [Watcher] needs to know. The zero value works.
type Options struct {
	// Logger receives one line per change; nil discards them.
	Logger *slog.Logger
	// Address is the bus's in D-Bus notation, empty for the system bus.
	Address string
	// CallTimeout bounds every call to NetworkManager; zero means 10 s.
	CallTimeout time.Duration
	// Grace is how long a device stays known after NetworkManager took it away
	// or unmanaged it while staying on the bus; zero means 10 s.
	Grace time.Duration
}

// A Watcher follows NetworkManager. Create it with [New], start [Watcher.Run].
type Watcher struct {
	opts    Options
	log     *slog.Logger
	changed chan struct{}
	poked   chan struct{}

	mu           sync.Mutex
	status       Status
	statusNew    bool
	devices      map[string]Device
	changedNames map[string]struct{}
	pokes        map[string]struct{}
}

// New returns a Watcher that knows nothing yet.
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
	return &Watcher{
		opts:         opts,
		log:          opts.Logger,
		changed:      make(chan struct{}, 1),
		poked:        make(chan struct{}, 1),
		status:       Status{Reason: "NetworkManager has not been asked yet"},
		devices:      map[string]Device{},
		changedNames: map[string]struct{}{},
		pokes:        map[string]struct{}{},
	}
}

// Changed returns a channel that holds a value when [Watcher.TakeChanges] has
// something to say. It has one slot: events that come while the consumer is
// busy are folded into one.
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

// Poke asks for the applied profile of an interface to be read again, because
// something happened to it that NetworkManager does not signal. It never waits.
func (w *Watcher) Poke(name string) {
	w.mu.Lock()
	w.pokes[name] = struct{}{}
	w.mu.Unlock()
	trigger(w.poked)
}

// Run follows NetworkManager until ctx is done, and then returns nil. While
// the bus is away it tries to reach it, less and less often.
func (w *Watcher) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// trigger fills a channel of one slot.
func trigger(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it is already set
	}
}

// ReadOnce asks NetworkManager once, without following it. It needs no
// privileges.
func ReadOnce(ctx context.Context, opts Options) (Snapshot, error) {
	w := New(opts)
	return w.Snapshot(), ctx.Err()
}
