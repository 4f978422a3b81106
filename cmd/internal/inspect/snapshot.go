package inspect

import (
	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// FromSnapshot is the view of the daemon itself: nothing is read, and nothing is guessed.
func FromSnapshot(cfg config.Config, s *reconcile.Snapshot, daemon runstate.State, manager nm.Status, alone bool, off offswitch.State) *View {
	v := &View{
		Policy: cfg.RoutingPolicy(), Planner: s, Links: make(map[string]kernel.Link, len(s.Interfaces)),
		Missing: s.Missing, Contested: s.Contested, ForeignIn: s.ForeignIn, Claims: s.Claims,
		NM: nm.Snapshot{Status: manager}, Daemon: daemon, Running: true, Alone: alone, Off: off, snapshot: s, entries: entriesOf(cfg),
	}
	for _, i := range s.Interfaces {
		v.Links[i.Facts.Name] = i.Facts
	}
	if s.Unread > 0 {
		v.note("%d messages of the kernel, the last because of: %v", s.Unread, s.UnreadFault)
	}
	return v
}
