package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/routing"
)

// A notifier tells systemd how the service is, sd_notify(3). Without a
// supervisor it does nothing.
type notifier struct {
	log      *slog.Logger
	watchdog time.Duration

	mu      sync.Mutex
	isReady bool
	last    string
	told    time.Time
}

// patience is how often a start that waits for NetworkManager asks systemd for
// more time, and patienceAsked how much it asks for (EXTEND_TIMEOUT_USEC).
const (
	patience      = 10 * time.Second
	patienceAsked = 3 * patience
)

func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{log: log}
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.LogAttrs(context.Background(), event.LevelNotice, "watchdog unavailable", slog.String("error", err.Error()))
		return n
	}
	n.watchdog = interval
	return n
}

func (n *notifier) send(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		n.log.LogAttrs(context.Background(), event.LevelNotice, "telling systemd failed", slog.String("state", state), slog.String("error", err.Error()))
	}
}

// beat is how often the loop must show that it is alive.
func (n *notifier) beat() time.Duration {
	if n.watchdog > 0 {
		return min(n.watchdog/3, patience)
	}
	return patience
}

// alive is called from the loop itself: a loop that hangs must not look alive.
// Between two beats it says nothing more, however much the loop has to do.
func (n *notifier) alive() {
	n.mu.Lock()
	ready, due := n.isReady, time.Since(n.told) >= n.beat()/2
	if due {
		n.told = time.Now()
	}
	n.mu.Unlock()
	if !due {
		return
	}
	if !ready {
		n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", patienceAsked.Microseconds()))
	}
	if n.watchdog > 0 {
		n.send(sd.SdNotifyWatchdog)
	}
}

func (n *notifier) ready() {
	n.mu.Lock()
	n.isReady = true
	n.mu.Unlock()
	n.send(sd.SdNotifyReady)
}

// reloading begins a reload, which ends with ready. It returns whether the
// service had been ready.
func (n *notifier) reloading() bool {
	n.mu.Lock()
	was := n.isReady
	n.isReady = false
	n.mu.Unlock()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.LogAttrs(context.Background(), event.LevelNotice, "telling systemd of the reload failed", slog.String("error", err.Error()))
		return was
	}
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
	return was
}

func (n *notifier) stopping() { n.send(sd.SdNotifyStopping) }

// status shows one line in `systemctl status`.
func (n *notifier) status(waiting string, problems []routing.Problem) {
	text, refused, errors := "every link has its own routing", "", 0
	for _, p := range problems {
		if p.Severity != routing.Error {
			continue
		}
		errors++
		if p.Code == config.FaultCode {
			refused = p.Text // It names the file.
		}
	}
	switch {
	case refused != "":
		text = strings.ReplaceAll(refused, "\n", " ") // an assignment is one line
	case waiting != "":
		text = "waiting: " + waiting
	case errors > 0:
		text = fmt.Sprintf("%d problems, see multihomectl status", errors)
	}
	n.mu.Lock()
	same := n.last == text
	n.last = text
	n.mu.Unlock()
	if !same {
		n.send("STATUS=" + text)
	}
}
