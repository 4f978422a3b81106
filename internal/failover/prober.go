package failover

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"multihomed/internal/event"
	"multihomed/internal/health"
)

const (
	// proberPatience is how long the prober may be away before status and the log say so.
	proberPatience = time.Second
	// proberSteady is how long it must answer before the log says that, and would complain again:
	// one that sends nonsense is connected again and again.
	proberSteady = 10 * time.Second
)

// isAway reports whether a prober is needed, and has been away for too long. A connection that
// still waits is not lost: after a reload systemd starts another prober, after each of several
// reloads. The client gives up a prober that does not come (client.StallAfter).
func (c *Controller) isAway(now health.Moment) bool {
	return c.isLost() && now-c.lostAt > proberPatience
}

// isLost reports whether a prober is needed, and was lost.
func (c *Controller) isLost() bool { return !c.connected && c.lost != nil && c.needsProber() }

// proberFix is how a prober that was lost is made to work. Where it listens, or somebody else in
// its place, it does not help to start what has started.
func proberFix(lost error) string {
	if errors.Is(lost, syscall.ENOENT) || errors.Is(lost, syscall.ECONNREFUSED) {
		return "systemctl start multihomed-prober.socket"
	}
	return "systemctl restart multihomed-prober.service; if that does not help, read journalctl -u multihomed-prober and install multihomed again"
}

// complaint is when the log has something to say of the prober, false if it has nothing.
func (c *Controller) complaint() (at health.Moment, due bool) {
	switch {
	case c.prober == nil, c.connected != c.complained, !c.connected && c.lost == nil:
		return 0, false
	case c.connected:
		return c.connectedAt + proberSteady, true
	default:
		return c.lostAt + proberPatience + time.Millisecond, true
	}
}

// complain says in the log that nobody asks whether uplinks work, and later that somebody does
// again.
func (c *Controller) complain(now health.Moment) {
	at, due := c.complaint()
	if !due || now < at {
		return
	}
	c.complained = !c.connected
	c.generation++
	if c.connected {
		c.Logger.LogAttrs(context.Background(), slog.LevelInfo, "uplinks are probed again")
		return
	}
	c.Logger.LogAttrs(context.Background(), event.LevelNotice, "uplinks are judged by their carrier alone", slog.String("error", c.lost.Error()), slog.String("fix", proberFix(c.lost)))
}
