package unprivileged_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/reconcile"
)

// TestMissingKnowledgeDeletesNothing: while an owner has not spoken, only that goes which a
// known link gives up.
func TestMissingKnowledgeDeletesNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		before := h.kernel.Text()
		h.kill()
		h.start(func() { h.owners.complete(false) })
		h.owners.claim(name(0), reconcile.Link)
		h.quiet(time.Hour)
		if now := h.kernel.Text(); now != before {
			t.Errorf("before:\n%s\nnow:\n%s", before, now)
		}
		h.wantProblems(routing.WaitsForOwners)

		h.install(uplink(0, "100.64.0.6/24"))
		h.settle()
		second := h.sourceRule(source(0).Next())
		h.install(uplink(0))
		h.settle()
		if h.stands(second) {
			t.Error("an address went, and its rule stands")
		}
		h.leavesBy(source(1), name(1))

		h.owners.complete(true)
		h.settle()
		for r := range h.kernel.Rules() {
			if r.From.Contains(source(1)) || r.OIF == name(1) {
				t.Errorf("nobody claims %s, and %s stands", name(1), r)
			}
		}
		h.wantProblems()

		// Owners that fall silent take nothing away.
		h.owners.complete(false)
		h.quiet(time.Hour)
		h.leavesBy(source(0), name(0))
	})
}

// TestUnreadKernelDeletesNothing: nothing is deleted on the strength of a state that is
// not complete, nor written at all while the kernel cannot be read.
func TestUnreadKernelDeletesNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		rule := h.sourceRule(source(1))
		// More than the loop does in one go.
		h.mirror.Partial = 200
		added, deleted := 0, 0
		h.writer.before = func(ops []routing.Op) {
			for _, op := range ops {
				switch op.Verb {
				case routing.DeleteRule, routing.DeleteRoute, routing.ResetGroup:
					deleted++
					if h.mirror.Partial > 0 {
						t.Errorf("deleted although the state is not complete: %s", op)
					}
				default:
					// What is missing is added all the same.
					added++
					if h.mirror.Partial == 0 {
						t.Errorf("added only when the state was complete: %s", op)
					}
				}
			}
		}
		h.install(uplink(0, "100.64.0.6/24"))
		h.owners.claim(name(1), reconcile.NoLink)
		h.settle()
		if h.stands(rule) || added == 0 || deleted == 0 {
			t.Errorf("%d operations added and %d deleted something:\n%s", added, deleted, h.kernel.Text())
		}
		h.leavesBy(source(0).Next(), name(0))
		h.writer.before = nil
		gone := h.sourceRule(source(0).Next())

		h.mirror.Fault = errors.New("no buffer space available")
		h.install(uplink(0))
		h.settle()
		h.quiet(time.Hour)
		h.wantProblems(routing.Unread)

		if !h.stands(gone) {
			t.Error("a rule went while the kernel could not be read")
		}

		h.mirror.Fault = nil
		h.pass(time.Minute)
		if h.stands(gone) {
			t.Errorf("what is not wanted any more stands:\n%s", h.kernel.Text())
		}
		h.wantProblems()
		h.quiet(time.Hour)
	})
}

// TestOverrun: events are lost while somebody deletes and adds. What is ours is found
// again by reading everything; what is not is not touched.
func TestOverrun(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		want := h.kernel.Text()
		his := routing.Rule{Family: routing.IPv4, Priority: 5000, From: netip.MustParsePrefix("192.0.2.9/32"), Action: routing.ActionLookup, Table: 77, Protocol: kerneltest.ProtocolStatic}
		h.mirror.Overrun()
		h.kernel.DropRule(h.sourceRule(source(1)))
		h.kernel.FlushTable(routing.IPv4, policy.Tables.First)
		h.kernel.SetGroup(uplink(0).Index, 0)
		if err := h.kernel.AddForeignRule(his); err != nil {
			t.Fatal(err)
		}
		// Nobody reads meanwhile: the kernel has no memory for the answer.
		h.mirror.Fault = errors.New("no buffer space available")
		h.quiet(time.Second)
		h.wantProblems(routing.Unread)
		h.mirror.Fault = nil
		h.pass(time.Minute)
		if now := h.kernel.Text(); now != want {
			t.Errorf("wanted:\n%s\nnow:\n%s", want, now)
		}
		if err := h.kernel.AddForeignRule(his); err == nil {
			t.Error("the rule of somebody else is gone")
		}
		h.wantProblems()
	})
}
