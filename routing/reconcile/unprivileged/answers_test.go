package unprivileged_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A marker says for what there are answers.
type marker struct {
	changed chan struct{}
	facts   routing.Answers
	known   bool
}

func (m *marker) Changed() <-chan struct{}         { return m.changed }
func (m *marker) Answers() (routing.Answers, bool) { return m.facts, m.known }

// marks wakes the loop with new facts.
func (h *host) marks(change func(*marker)) {
	change(h.marker)
	h.marker.changed <- struct{}{}
	synctest.Wait()
}

func (h *host) rungsOfAnswers() (out []string) {
	for r := range h.kernel.Rules() {
		if r.IsAnswer() {
			out = append(out, r.String())
		}
	}
	return out
}

func answered(m *marker) {
	m.facts, m.known = routing.Answers{Families: routing.ByFamily[bool]{true, false}}, true
}

func (h *host) wantRungs(when string, want int) {
	h.Helper()
	if got := h.rungsOfAnswers(); len(got) != want {
		h.Errorf("%s: %d rungs of answers, not %d: %v", when, len(got), want, got)
	}
}

// TestRungsStayUntilMarksAreKnown: a process that starts leaves the rungs of answers that the
// one before made, until it knows what packets are marked with.
func TestRungsStayUntilMarksAreKnown(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, func(h *host) { h.marker = &marker{} }, func(h *host) {
		h.wantRungs("unknown", 0)
		h.marks(answered)
		h.wantRungs("known", 6)
		h.kill()
		h.marker.known = false
		h.start(func() {})
		for n := range 2 {
			h.owners.claim(name(n), reconcile.Link)
		}
		h.owners.complete(true)
		h.settle()
		h.quiet(time.Hour)
		h.wantRungs("unknown after a start", 6)
		h.marks(answered)
		h.wantRungs("known again", 6)
		h.quiet(time.Hour)
		h.marks(func(m *marker) { m.facts = routing.Answers{} })
		h.wantRungs("off", 0)
		h.wantProblems()
	})
}

// TestSnapshotNamesNumbers: whoever marks packets learns the numbers from a snapshot, and a
// number that is in use is refused when its link has gone.
func TestSnapshotNamesNumbers(t *testing.T) {
	t.Parallel()
	inBubbleWith(t, 2, func(h *host) { h.marker = &marker{} }, func(h *host) {
		h.marks(answered)
		numbers := func() map[uint8]string {
			out := map[uint8]string{}
			s, err := h.loop.Snapshot(context.Background(), nil)
			if err != nil {
				h.Fatal(err)
			}
			for _, a := range s.Answers[0] {
				out[a.Number] = a.Link
			}
			return out
		}
		before := numbers()
		if want := map[uint8]string{1: name(0), 2: name(1)}; !maps.Equal(before, want) {
			t.Fatalf("numbers %v, not %v", before, want)
		}
		h.marks(func(m *marker) {
			m.facts.Diverted[0] = map[uint8]struct{}{1: {}, 2: {}}
		})
		h.kernel.RemoveInterface(uplink(0).Index)
		h.owners.claim(name(0), reconcile.NoLink)
		h.settle()
		if now := numbers(); len(now) != 1 || now[2] != name(1) {
			t.Errorf("numbers %v", now)
		}
		if rungs := h.rungsOfAnswers(); !slices.Contains(rungs, "9101: from all fwmark 0x1000000/0xff000000 unreachable") || len(rungs) != 4 {
			t.Errorf("rungs %v", rungs)
		}
		h.marks(func(m *marker) { m.facts.Diverted[0] = map[uint8]struct{}{2: {}} })
		h.wantRungs("nothing is marked any more", 3)
		h.quiet(time.Hour)
	})
}
