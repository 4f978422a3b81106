package unprivileged_test

import (
	"testing"
	"time"

	"multihomed/routing"
)

// TestRepairIsLimited: whoever deletes a rule again and again gets it restored at once as
// often in a row as configured, then at the configured rate. Each object counts by itself.
func TestRepairIsLimited(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		rule, other := h.sourceRule(source(0)), h.sourceRule(source(1))
		steal := func() (restored bool) {
			if !h.kernel.DropRule(rule) {
				return false
			}
			h.settle()
			return h.stands(rule)
		}
		for n := range burst {
			if !steal() {
				t.Fatalf("deletion %d is not repaired", n+1)
			}
		}
		if steal() {
			t.Error("it is restored at once more often than configured")
		}
		h.wantProblems(routing.Disputed)
		// Meanwhile its packets do not stray, and the other one is as good as new.
		h.leavesBy(source(0), "")
		h.kernel.DropRule(other)
		h.settle()
		if !h.stands(other) {
			t.Error("another rule waits for the one in dispute")
		}
		repairs := 0
		for begin := time.Now(); time.Since(begin) < 10*every; {
			h.pass(every / 100)
			if h.stands(rule) {
				repairs++
				h.kernel.DropRule(rule)
				h.settle()
			}
		}
		if repairs < 9 || repairs > 11 {
			t.Errorf("restored %d times in ten times %s", repairs, every)
		}
		// Nobody deletes it any more: it comes back, and the dispute is over.
		h.pass(2 * every)
		if !h.stands(rule) {
			t.Error("it stays away")
		}
		h.pass(time.Minute)
		h.wantProblems()
		h.quiet(time.Hour)
	})
}

// TestFlushIsRepairedAtOnce: who deletes everything once disputes nothing.
func TestFlushIsRepairedAtOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, 3, func(h *host) {
		want := h.kernel.Text()
		var rules []routing.Rule
		for r := range h.kernel.Rules() {
			rules = append(rules, r)
		}
		for _, r := range rules {
			h.kernel.DropRule(r)
			h.settle()
		}
		for table := policy.Tables.First; table < policy.Tables.First+3; table++ {
			h.kernel.FlushTable(routing.IPv4, table)
		}
		h.settle()
		if now := h.kernel.Text(); now != want || len(rules) < 9 {
			t.Errorf("wanted:\n%s\nnow:\n%s", want, now)
		}
		h.wantProblems()
	})
}
