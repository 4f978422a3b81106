package server

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// quiet is how long the same complaint about the same user is not repeated.
const quiet = time.Minute

// complaints keep one user, or one kind of trouble, from filling the log: each
// is written once, and then once a minute with how often it happened.
type complaints struct {
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	seen map[complaint]*tally
}

type complaint struct {
	uid  uint32
	what string
}

type tally struct {
	next  time.Time
	count int
}

func newComplaints(log *slog.Logger) *complaints {
	return &complaints{log: log, now: time.Now, seen: map[complaint]*tally{}}
}

func (c *complaints) add(ctx context.Context, level slog.Level, uid uint32, what string, attrs ...slog.Attr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, key := c.now(), complaint{uid, what}
	t := c.seen[key]
	if t == nil {
		if len(c.seen) >= maxRemembered {
			clear(c.seen)
		}
		t = &tally{}
		c.seen[key] = t
	}
	t.count++
	if now.Before(t.next) {
		return
	}
	attrs = append(attrs, slog.Uint64("uid", uint64(uid)))
	if t.count > 1 {
		attrs = append(attrs, slog.Int("times", t.count))
	}
	t.next, t.count = now.Add(quiet), 0
	c.log.LogAttrs(ctx, level, what, attrs...) //nolint:sloglint // its callers name constants
}
