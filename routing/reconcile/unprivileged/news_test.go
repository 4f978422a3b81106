package unprivileged_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestRestartSaysOnlyWhatChanged: what the process before left in the kernel is no news, even if
// the owners of links tell of it step by step. What happened in between is.
func TestRestartSaysOnlyWhatChanged(t *testing.T) {
	inBubble(t, 2, func(h *host) {
		const enough = 20 * time.Second
		h.pass(enough)
		if n := strings.Count(h.log.String(), "uplink added"); n != 2 {
			t.Errorf("%d links are said to be added:\n%s", n, h.log.String())
		}
		again := func(before func()) string {
			h.kill()
			h.log.Reset()
			h.start(before)
			h.owners.claim(name(0), reconcile.Link)
			h.settle()
			h.owners.claim(name(1), reconcile.Link)
			h.settle()
			h.owners.complete(true)
			h.pass(enough)
			return h.log.String()
		}
		if log := again(func() {}); strings.Contains(log, "added") || strings.Contains(log, "removed") {
			t.Errorf("nothing has changed, and the log says:\n%s", log)
		}
		// A rule that went while nobody looked.
		gone := func() {
			for r := range h.kernel.Rules() {
				if r.OIF == name(1) {
					h.kernel.DropRule(r)
					return
				}
			}
			t.Error("there is no rule for the device")
		}
		if log := again(gone); strings.Count(log, "uplink added") != 1 || !strings.Contains(log, "interface="+name(1)) {
			t.Errorf("a rule of %s was missing, and the log says:\n%s", name(1), log)
		}
		// And from then on, every change.
		h.log.Reset()
		h.owners.claim(name(0), reconcile.NoLink)
		h.pass(enough)
		if log := h.log.String(); strings.Count(log, "uplink removed") != 1 || !strings.Contains(log, "interface="+name(0)) {
			t.Errorf("%s is no link any more, and the log says:\n%s", name(0), log)
		}
	})
}

// TestOutdatedWhoeverLooks: who checks the host after changes hears of a change that somebody
// else's snapshot had first, because it came between a pass and the answer to a question. And
// a route that nobody plans with changes no structure.
func TestOutdatedWhoeverLooks(t *testing.T) {
	inBubble(t, 2, func(h *host) {
		h.settle()
		structure, told := h.loop.Structure(), 0
		h.outdated = func() { told++ }
		h.settled = func() {
			h.settled = nil
			generation := h.loop.Current().Generation
			if err := h.kernel.AddForeignRoute(routing.Route{
				Family: routing.IPv4, Table: 777, Destination: netip.MustParsePrefix("198.51.100.0/24"), Device: 1000, Type: routing.RouteUnicast, Protocol: 4,
			}); err != nil {
				h.Error(err)
			}
			if err := h.mirror.Sync(h.Context()); err != nil {
				h.Error(err)
			}
			if now := h.loop.Current().Generation; now == generation {
				h.Errorf("the snapshot after a change has generation %d, too", now)
			}
		}
		h.settle()
		h.settle()
		if told != 1 {
			h.Errorf("told %d times of one change", told)
		}
		if now := h.loop.Structure(); now != structure {
			h.Errorf("structure %d, then %d", structure, now)
		}
		h.owners.claim(name(0), reconcile.NoLink)
		h.settle()
		if h.loop.Structure() == structure || told != 2 {
			h.Errorf("a link went: structure %d as before, told %d times", structure, told)
		}
	})
}
