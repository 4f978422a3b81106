package failover

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/event"
	"multihomed/internal/health"
	"multihomed/routing"
)

// Ends ends what cannot go on when a link dies: package connections.
type Ends interface {
	// Close closes TCP connections of this host that hang on a dead link.
	Close(context.Context, connections.Dead) (connections.Closed, error)
	// Delete deletes the conntrack entries that translate to addresses.
	Delete(ctx context.Context, addresses ...netip.Addr) (int, error)
	// DeleteStrays deletes of these entries those whose packets leave by another device now.
	DeleteStrays(ctx context.Context, device int, addresses ...netip.Addr) (int, error)
	// Follow makes the endpoints of Multipath TCP those that are wanted.
	Follow(ctx context.Context, wanted []connections.Endpoint) (added, removed int, err error)
}

// mostEnds bounds what waits to be ended.
const mostEnds = 256

// An end is something to end: connections of a link if close, else translations; only those that
// leave by another link if strays.
type end struct {
	name   string
	family routing.Family
	close  bool
	strays bool
	dead   connections.Dead
	// deadSince is when the link died.
	deadSince health.Moment
}

// endTime bounds one end.
const endTime = 30 * time.Second

func (c *Controller) endLater(e end) {
	if c.Ends == nil {
		return
	}
	select {
	case c.ends <- e:
	default: // So many cannot be one host's.
	}
}

// endAll ends in the order in which it was asked.
func (c *Controller) endAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-c.ends:
			ctx, cancel := context.WithTimeout(ctx, endTime)
			c.end(ctx, e)
			cancel()
		}
	}
}

func (c *Controller) end(ctx context.Context, e end) {
	attrs := []slog.Attr{slog.String("interface", e.name), slog.String("family", e.family.String())}
	if !e.close {
		var n int
		var err error
		if e.strays {
			n, err = c.Ends.DeleteStrays(ctx, e.dead.Device, e.dead.Sources...)
		} else {
			n, err = c.Ends.Delete(ctx, e.dead.Sources...)
		}
		if n > 0 {
			c.Logger.LogAttrs(ctx, event.LevelNotice, "translated connections deleted, traffic has left the uplink", append(attrs, slog.Int("count", n))...)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			c.Logger.LogAttrs(ctx, event.LevelNotice, "translated connections not deleted, traffic has left the uplink", append(attrs, slog.String("error", err.Error()))...)
		}
		return
	}
	e.dead.For = c.epoch.now() - e.deadSince
	closed, err := c.Ends.Close(ctx, e.dead)
	if n := closed[connections.Close]; n > 0 {
		c.Logger.LogAttrs(ctx, event.LevelNotice, "connections of a dead uplink closed", append(attrs, slog.Int("count", n))...)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		c.Logger.LogAttrs(ctx, event.LevelNotice, "connections of a dead uplink not closed", append(attrs, slog.String("error", err.Error()))...)
	}
}

// followAgain is the pause after endpoints could not be made.
const followAgain = time.Minute

// followEndpoints keeps the endpoints of Multipath TCP as they are wanted.
func (c *Controller) followEndpoints(ctx context.Context) {
	failed := false
	_ = c.endpoints.Follow(ctx, followAgain, func(ctx context.Context, wanted []connections.Endpoint) error {
		ctx, cancel := context.WithTimeout(ctx, endTime)
		defer cancel()
		added, removed, err := c.Ends.Follow(ctx, wanted)
		if added+removed > 0 {
			c.Logger.LogAttrs(ctx, slog.LevelInfo, "endpoints of Multipath TCP changed", slog.Int("added", added), slog.Int("removed", removed))
		}
		if err != nil && !failed && !errors.Is(err, context.Canceled) {
			c.Logger.LogAttrs(ctx, event.LevelNotice, "endpoints of Multipath TCP not made", slog.String("error", err.Error()))
		}
		failed = err != nil
		return err
	}) // It ends with ctx alone.
}

// deadOf describes a dead link for package connections.
func deadOf(w *watch) connections.Dead {
	return connections.Dead{
		Device: w.index, Sources: w.uplink.Addresses, Networks: w.uplink.Networks, NoGateway: !w.uplink.Exit.Route.Gateway.IsValid(),
	}
}

// followCourses deletes translations to the addresses of a link when failover has led unbound
// traffic away from it, because it died or because another one is back: otherwise what is
// forwarded leaves by the new link with the address of the old one for as long as it goes on.
// It does so not before the switch, or the next packet would make them anew.
func (c *Controller) followCourses() {
	for i, f := range routing.Families() {
		course := c.facts.Courses[i]
		before := c.courses[i]
		c.courses[i] = course
		var left []int
		switch {
		case course.Moved && (!before.Moved || before.Main.Device != course.Main.Device):
			left = []int{course.Main.Device}
			c.generation++
		case before.Moved && !course.Moved:
			c.generation++
		}
		if before.Moved && c.forwards(f) {
			left = append(left, before.Devices()...)
		}
		uses := course.Devices()
		// Without a course nobody forwards anything.
		if !c.Config.Failover.Conntrack || len(uses) == 0 {
			continue
		}
		for _, index := range left {
			if w, is := c.watches[key{index, f}]; is && !slices.Contains(uses, index) {
				c.endLater(end{name: w.uplink.Name, family: f, strays: !w.dead, dead: deadOf(w), deadSince: w.died})
			}
		}
	}
}

// forwards reports whether what this host forwards follows failover.
func (c *Controller) forwards(f routing.Family) bool {
	switch c.Config.Failover.Forwarded {
	case config.ForwardedAll:
		return true
	case config.ForwardedIPv4:
		return f == routing.IPv4
	case config.ForwardedNone:
	}
	return false
}

// closingOf is when the connections of a dead link are to be closed.
func (c *Controller) closingOf(w *watch) (due health.Moment, is bool) {
	after := c.Config.Failover.CloseConnections
	// One that recovers carries connections again.
	if after == config.Never || w.state != health.Down || w.closed || c.Ends == nil || len(w.uplink.Addresses) == 0 {
		return 0, false
	}
	return w.died + after, w.machine.Tested(c.epoch.now()) == 0
}

// closeLate closes the connections of a link that has been dead for long, while another one
// lives.
func (c *Controller) closeLate(now health.Moment, w *watch) {
	due, is := c.closingOf(w)
	if !is || now < due || !c.hasOther(now, w) {
		return
	}
	w.closed = true
	c.endLater(end{name: w.uplink.Name, family: w.family, close: true, dead: deadOf(w), deadSince: w.died})
}
