package unprivileged_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/reconcile"
)

// everyStep calls look after every single change that is made to the kernel.
func (h *host) everyStep(look func(routing.Op)) {
	h.kernel.Step = look
	h.Cleanup(func() { h.kernel.Step = nil })
}

// TestNewBeforeOld: a link changes its gateway, its address and its role, and after every
// single change of the kernel its packets leave by it, or die where the link is new or
// goes.
func TestNewBeforeOld(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, func(h *host) {
		steps := 0
		always := func(from netip.Addr, allowed ...string) {
			h.everyStep(func(op routing.Op) {
				steps++
				for n := range 2 {
					if got := by(h.kernel, source(n)); source(n) != from && got != name(n) {
						t.Errorf("after %s packets from %s leave by %q", op, source(n), got)
					}
				}
				if got := by(h.kernel, from); !slices.Contains(allowed, got) {
					t.Errorf("after %s packets from %s leave by %q", op, from, got)
				}
			})
		}
		always(source(0), name(0))
		h.install(byGateway(uplink(0), netip.MustParseAddr("100.64.0.2")))
		h.settle()
		if steps == 0 {
			t.Fatal("nothing was written for another gateway")
		}
		// A second address: while its rules come, nothing of it strays once one stands.
		second := source(0).Next()
		strayed := false
		h.everyStep(func(op routing.Op) {
			got := by(h.kernel, second)
			if guarded := h.kernel.CountRule(unreachable(second)) > 0; guarded && got != name(0) && got != "" {
				strayed = true
			}
			if got := by(h.kernel, source(0)); got != name(0) {
				t.Errorf("after %s packets from %s leave by %q", op, source(0), got)
			}
		})
		h.install(uplink(0, "100.64.0.6/24"))
		h.settle()
		h.leavesBy(second, name(0))
		if strayed {
			t.Errorf("packets from %s stray", second)
		}
		// The link goes: its packets leave by it or die, as long as any rule of it stands.
		h.everyStep(func(op routing.Op) {
			got := by(h.kernel, source(0))
			if left := rulesFrom(h.kernel, source(0)); left > 1 && got != name(0) && got != "" {
				t.Errorf("after %s packets from %s leave by %q, with %d rules left", op, source(0), got, left)
			}
			if got := by(h.kernel, source(1)); got != name(1) {
				t.Errorf("after %s packets from %s leave by %q", op, source(1), got)
			}
		})
		h.owners.claim(name(0), reconcile.NoLink)
		h.settle()
		if left := rulesFrom(h.kernel, source(0)); left > 0 {
			t.Errorf("%d rules are left", left)
		}
	})
}

func unreachable(a netip.Addr) routing.Rule {
	return routing.Rule{
		Family: routing.IPv4, Priority: routing.PriorityUnreachable, From: netip.PrefixFrom(a, a.BitLen()),
		Action: routing.ActionUnreachable, Protocol: routing.Multihomed,
	}
}

func rulesFrom(k *kerneltest.Kernel, a netip.Addr) (n int) {
	for r := range k.Rules() {
		if r.From.IsValid() && r.From.Contains(a) {
			n++
		}
	}
	return n
}

// TestWriterFailsHalfWay: the kernel takes so many changes and no more, for every number
// of changes that the ladder needs, and the process ends there. What stands misleads
// nothing, and the next process makes of it what an undisturbed one would have made.
func TestWriterFailsHalfWay(t *testing.T) {
	t.Parallel()
	var want string
	inBubble(t, 2, func(h *host) { want = h.kernel.Text() })
	done := false
	for n := 0; !done; n++ {
		synctest.Test(t, func(t *testing.T) {
			h := &host{T: t, kernel: kerneltest.New(policy), leases: &leases{held: map[routing.Key]routing.TableID{}}}
			h.install(uplink(0))
			h.install(uplink(1))
			claim := func() {
				h.owners.claim(name(0), reconcile.Link)
				h.owners.claim(name(1), reconcile.Link)
				h.owners.complete(true)
			}
			foreign := h.kernel.ForeignText()
			h.kernel.StopAfter(n)
			h.start(claim)
			half := h.kernel.Text()
			done = half == want
			for i := range 2 {
				if h.kernel.CountRule(unreachable(source(i))) == 0 {
					continue
				}
				if got := by(h.kernel, source(i)); got != name(i) && got != "" {
					t.Errorf("after %d changes packets from %s leave by %q:\n%s", n, source(i), got, half)
				}
			}
			if !done && len(h.last.Problems) == 0 {
				t.Errorf("after %d changes nothing is reported", n)
			}
			h.kill()
			h.kernel.StopAfter(-1)
			h.start(claim)
			if now := h.kernel.Text(); now != want {
				t.Errorf("after %d changes and another start there is\n%s\nwanted:\n%s", n, now, want)
			}
			if now := h.kernel.ForeignText(); now != foreign {
				t.Errorf("after %d changes others have\n%s\nbefore:\n%s", n, now, foreign)
			}
			h.wantProblems()
			h.quiet(time.Hour)
			h.kill()
		})
		if n > 200 {
			t.Fatal("the ladder never stands")
		}
	}
}
