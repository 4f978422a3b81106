package unprivileged_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestRetryBacksOff: what the kernel refuses is tried again after 100 ms, then after twice
// as long each time, at last every minute; other links and new events do not wait for it,
// nor do they hasten it.
func TestRetryBacksOff(t *testing.T) {
	t.Parallel()
	for _, refusal := range []syscall.Errno{syscall.EEXIST, syscall.ENOBUFS, syscall.ENETDOWN} {
		t.Run(refusal.Error(), func(t *testing.T) {
			t.Parallel()
			inBubble(t, 1, func(h *host) {
				begin := time.Now()
				var asked []time.Duration
				refused := uplink(1)
				h.kernel.Refuse = func(op routing.Op) error {
					if op.Verb != routing.AddRoute || op.Route.Device != refused.Index || !op.Route.IsDefault() {
						return nil
					}
					if at := time.Since(begin); !slices.Contains(asked, at) {
						asked = append(asked, at)
					}
					return refusal
				}
				h.install(refused)
				h.owners.claim(refused.Name, reconcile.Link)
				h.settle()
				h.wantProblems(routing.Refused)
				if p := h.last.Problems[0]; p.Link != refused.Name {
					t.Errorf("the problem is of link %q", p.Link)
				}
				// Its packets die rather than stray.
				h.leavesBy(source(1), "")
				h.pass(time.Second / 20)
				h.install(uplink(0, "100.64.0.6/24"))
				h.settle()
				h.leavesBy(source(0).Next(), name(0))
				h.pass(4 * time.Minute)

				want := []time.Duration{0}
				for wait := 100 * time.Millisecond; len(want) < 13; wait = min(2*wait, time.Minute) {
					want = append(want, want[len(want)-1]+wait)
				}
				if !slices.Equal(asked, want) {
					t.Errorf("asked at  %v\nwanted at %v", asked, want)
				}
				h.wantProblems(routing.Refused)

				h.kernel.Refuse = nil
				h.pass(time.Minute)
				h.leavesBy(source(1), name(1))
				h.wantProblems()
				h.quiet(time.Hour)
			})
		})
	}
}

// TestNobodyWantsItAnyMore: what was refused is forgotten with its link.
func TestNobodyWantsItAnyMore(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(h *host) {
		h.kernel.Refuse = func(op routing.Op) error {
			if op.Verb == routing.AddRule && op.Rule.From.Contains(source(1)) {
				return syscall.ENOBUFS
			}
			return nil
		}
		h.install(uplink(1))
		h.owners.claim(name(1), reconcile.Link)
		h.settle()
		if len(h.last.Problems) == 0 {
			t.Error("nothing is reported")
		}
		h.kernel.RemoveInterface(uplink(1).Index)
		h.settle()
		h.wantProblems()
		h.quiet(time.Hour)
	})
}
