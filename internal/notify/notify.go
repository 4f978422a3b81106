// Package notify reports the state of the service to systemd (sd_notify(3)): ready, reloading,
// stopping, alive, and one line for `systemctl status`. github.com/coreos/go-systemd makes the
// datagrams; this package decides when to send them.
package notify

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"multihomed/internal/event"
)

// A Notifier sends to the service manager. Without one it does nothing. It is safe for
// concurrent use.
type Notifier struct {
	log      *slog.Logger
	watchdog time.Duration

	mu      sync.Mutex
	isReady bool
	// shown is the line of the status, beaten the time of the last sign of life.
	shown  string
	beaten time.Time
}

// extendEvery is how often a start that waits for NetworkManager asks systemd for
// more time, and extension how much it asks for (EXTEND_TIMEOUT_USEC).
const (
	extendEvery = 10 * time.Second
	extension   = 3 * extendEvery
)

// New returns a Notifier for the service manager that the environment names.
func New(log *slog.Logger) *Notifier {
	n := &Notifier{log: log}
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.LogAttrs(context.Background(), event.LevelNotice, "watchdog unavailable", slog.String("error", err.Error()))
		return n
	}
	n.watchdog = interval
	return n
}

func (n *Notifier) send(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		n.log.LogAttrs(context.Background(), event.LevelNotice, "telling systemd failed", slog.String("state", state), slog.String("error", err.Error()))
	}
}

// Beat is how often the service must show that it is alive.
func (n *Notifier) Beat() time.Duration {
	if n.watchdog > 0 {
		return min(n.watchdog/3, extendEvery)
	}
	return extendEvery
}

// Alive sends a sign of life, at most once per beat. The loop itself calls it: a loop that
// hangs must not look alive.
func (n *Notifier) Alive() {
	n.mu.Lock()
	ready, due := n.isReady, time.Since(n.beaten) >= n.Beat()/2
	if due {
		n.beaten = time.Now()
	}
	n.mu.Unlock()
	if !due {
		return
	}
	if !ready {
		n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	}
	if n.watchdog > 0 {
		n.send(sd.SdNotifyWatchdog)
	}
}

// Ready ends a start or a reload.
func (n *Notifier) Ready() {
	n.mu.Lock()
	n.isReady = true
	n.mu.Unlock()
	n.send(sd.SdNotifyReady)
}

// Reloading begins a reload, which Ready ends. It returns whether the service was ready.
func (n *Notifier) Reloading() bool {
	n.mu.Lock()
	was := n.isReady
	n.isReady = false
	n.mu.Unlock()
	n.send(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	return was
}

// Stopping begins the end.
func (n *Notifier) Stopping() { n.send(sd.SdNotifyStopping) }

// Status sets the line in `systemctl status`. It does not send the same line again.
func (n *Notifier) Status(text string) {
	n.mu.Lock()
	same := n.shown == text
	n.shown = text
	n.mu.Unlock()
	if !same {
		n.send("STATUS=" + text)
	}
}
