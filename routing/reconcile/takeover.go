package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"multihomed/internal/event"
	"multihomed/routing"
)

// This file lets a link leave a table that somebody else took after it was leased: his
// routes would decide about the link's packets, and the link's about his. The link gets
// another number, and the differ does the rest: the new table and its rules stand before the
// old ones go, and what is not ours stays.

const (
	// mostMoves is how often a network moves within movesPer. Somebody may follow it from
	// number to number; then it stays where it is, and status names who uses the table.
	mostMoves = 3
	movesPer  = time.Hour
)

// takeovers is what the loop knows of tables that somebody else takes.
type takeovers struct {
	// suspects are the interfaces whose tables may be taken: others changed something.
	suspects map[int]struct{}
	// due is when an interface that could not leave a table is looked at again.
	due map[int]time.Time
	// moves are the times of the last moves of a network, and of attempts.
	moves map[routing.Key][]time.Time
	// unwritten is why tables of an interface moved, for its line in the log.
	unwritten map[int][]string
	// stays are the networks that stay in a taken table, and were said to.
	stays map[routing.Key]struct{}
}

func newTakeovers() takeovers {
	return takeovers{
		suspects: map[int]struct{}{}, due: map[int]time.Time{}, moves: map[routing.Key][]time.Time{},
		unwritten: map[int][]string{}, stays: map[routing.Key]struct{}{},
	}
}

func (t *takeovers) forget(index int) {
	delete(t.suspects, index)
	delete(t.due, index)
}

// told returns the reasons that the next line about an interface tells.
func (t *takeovers) told(index int) string {
	why := strings.Join(t.unwritten[index], "; ")
	delete(t.unwritten, index)
	return why
}

// next returns when a network may move, zero if it may now. It forgets what is long ago.
func (t *takeovers) next(k routing.Key, now time.Time) time.Time {
	times := t.moves[k]
	for len(times) > 0 && !now.Before(times[0].Add(movesPer)) {
		times = times[1:]
	}
	if len(times) == 0 {
		delete(t.moves, k)
	} else {
		t.moves[k] = times
	}
	if len(times) < mostMoves {
		return time.Time{}
	}
	return times[0].Add(movesPer)
}

// doubtTables looks at the links again in whose tables others changed something, at all if
// everything may have changed.
func (l *Loop) doubtTables(all bool, tables map[routing.TableID]struct{}) {
	if !all && len(tables) == 0 {
		return
	}
	for index, keys := range l.held {
		for _, t := range keys {
			if all || contains(tables, t) {
				l.takeovers.suspects[index], l.dirty[index] = struct{}{}, struct{}{}
			}
		}
	}
}

// A takeover is a table of a network that somebody else took.
type takeover struct {
	index int
	table routing.TableID
	what  string
}

// leaveTaken gives other tables to the networks whose tables somebody else took, and returns
// what the links have leased then.
func (l *Loop) leaveTaken(ctx context.Context, links []subject, leased map[routing.Key]routing.TableID) map[routing.Key]routing.TableID {
	taken := l.taken(links, leased)
	now := l.now()
	from := map[routing.Key]routing.TableID{}
	for k, t := range taken {
		if next := l.takeovers.next(k, now); !next.IsZero() {
			l.staysIn(ctx, k, t, next, fmt.Sprintf("it moved %d times within %v", mostMoves, movesPer))
			continue
		}
		from[k] = t.table
	}
	if len(from) == 0 {
		return leased
	}
	moved, err := l.Leases.Move(ctx, from, l.TableInUse)
	if ctx.Err() != nil {
		return leased
	}
	if leased == nil {
		leased = map[routing.Key]routing.TableID{}
	}
	for k := range from {
		t := taken[k]
		l.takeovers.moves[k] = append(l.takeovers.moves[k], now)
		to, ok := moved[k]
		if !ok {
			if err != nil {
				l.staysIn(ctx, k, t, now.Add(lastRetry), err.Error())
			}
			continue
		}
		delete(l.takeovers.stays, k)
		l.takeovers.unwritten[t.index] = append(l.takeovers.unwritten[t.index], fmt.Sprintf("somebody else uses table %s: %s", t.table, t.what))
		l.movedTo(k, to, t.index, leased)
	}
	return leased
}

// movedTo notes that a network has another table. An interface that is made anew holds it
// twice for a moment.
func (l *Loop) movedTo(k routing.Key, to routing.TableID, index int, leased map[routing.Key]routing.TableID) {
	leased[k] = to
	for other, keys := range l.held {
		if _, holds := keys[k]; !holds {
			continue
		}
		keys = maps.Clone(keys) // The plan of the link has the old one.
		keys[k] = to
		l.held[other] = keys
		if other != index {
			l.dirty[other] = struct{}{}
		}
	}
}

// taken finds the tables of links that somebody else took. It looks at links that are new
// and at those that are suspect.
func (l *Loop) taken(links []subject, leased map[routing.Key]routing.TableID) map[routing.Key]takeover {
	out := map[routing.Key]takeover{}
	for _, s := range links {
		index := s.link.Index
		_, planned := l.planner.Link(index)
		if planned && !contains(l.takeovers.suspects, index) || s.claim.Standing != Link {
			continue
		}
		delete(l.takeovers.suspects, index)
		for _, k := range s.keys {
			t, holds := l.held[index][k]
			if !holds {
				if t, holds = leased[k]; !holds {
					continue
				}
			}
			if f, has := l.Policy.FailoverTable(); has && t == f {
				// A version that knew no failover leased it.
				out[k] = takeover{index: index, table: t, what: "failover"}
				continue
			}
			l.Mirror.View(func(m State) {
				if what, is := m.TakenBy(k.Family, t, index, l.Policy.ContainerPrefixLength); is {
					out[k] = takeover{index: index, table: t, what: what}
				} else {
					delete(l.takeovers.stays, k)
				}
			})
		}
	}
	return out
}

// staysIn says once that a network stays in a table that somebody else took, and has it
// looked at again later.
func (l *Loop) staysIn(ctx context.Context, k routing.Key, t takeover, due time.Time, why string) {
	if earlier, waits := l.takeovers.due[t.index]; !waits || due.Before(earlier) {
		l.takeovers.due[t.index] = due
	}
	if contains(l.takeovers.stays, k) {
		return
	}
	l.takeovers.stays[k] = struct{}{}
	l.Logger.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("network %s stays in table %s, which somebody else uses: %s", k.Network(), t.table, t.what), //nolint:sloglint // the sentence says what is wrong
		event.Is(event.LinkChanged), slog.String("interface", k.Interface), slog.String("reason", why))
}
