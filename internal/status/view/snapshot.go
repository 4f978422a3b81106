package view

import (
	"multihomed/internal/config"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// FromSnapshot is the view of the daemon itself: nothing is read, and nothing is guessed.
func FromSnapshot(cfg config.Config, s *reconcile.Snapshot, daemon Daemon, manager nm.Status, alone bool, off offswitch.State) *View {
	v := Of(cfg, s)
	v.NM.Status, v.Daemon, v.Running, v.Alone, v.Off, v.ByDaemon = manager, daemon, true, alone, off, true
	return v
}

// Of is what a snapshot says, whoever made it: not who works on the host, and what its
// managers say of themselves.
func Of(cfg config.Config, s *reconcile.Snapshot) *View {
	v := &View{
		Policy: cfg.RoutingPolicy(), Planner: s, Links: make(map[string]kernel.Link, len(s.Interfaces)),
		Missing: s.Missing, Contested: s.Contested, ForeignIn: s.ForeignIn, Claims: s.Claims, Snapshot: s, Entries: Entries{cfg.Links, cfg.Include, cfg.Exclude},
	}
	for _, i := range s.Interfaces {
		v.Links[i.Facts.Name] = i.Facts
	}
	if s.Unread > 0 {
		v.Note("%d messages of the kernel, the last because of: %v", s.Unread, s.UnreadFault)
	}
	return v
}

// ClaimOf is what the owner of an interface says of it, by whatever name.
func (v *View) ClaimOf(l kernel.Link) (reconcile.Claim, bool) {
	if v.Snapshot == nil {
		claim, claimed := v.Claims[l.Name]
		return claim, claimed
	}
	i, known := v.Snapshot.Interface(l.Index)
	if !known {
		return reconcile.Claim{}, false
	}
	return i.Claim, i.Claimed
}
