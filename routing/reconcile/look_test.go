package reconcile_test

import (
	"slices"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// look is what somebody finds who knows what the owners say and writes nothing.
func (h *host) look(claims map[string]reconcile.Claim) *reconcile.Snapshot {
	h.Helper()
	mirror, err := kernel.Open(kernel.Config{Tables: policy.Tables, Interest: func(string) bool { return false }})
	must(h, err)
	defer mirror.Close()
	s, err := reconcile.Look(h.Context(), reconcile.Options{
		Policy: policy, Mirror: reconcile.MirrorOf(mirror), Leases: h.leases, Memory: &h.memory,
		Owners:   &owners{next: reconcile.Claims{Changed: claims, Complete: true}},
		Reserved: func(routing.TableID) (string, bool) { return "", false },
	})
	must(h, err)
	return s
}

// ladder is what a snapshot wants, in words.
func ladder(s *reconcile.Snapshot) (out []string) {
	for r := range s.Rules() {
		out = append(out, r.Rule.String())
	}
	for r := range s.Routes() {
		out = append(out, r.Route.String())
	}
	for plan := range s.Links() {
		out = append(out, plan.Link.Name+" "+plan.Role().String()+" "+plan.Why())
	}
	return out
}

// TestLook: who only looks finds what the loop finds, and changes nothing.
func TestLook(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	link, draining := reconcile.Claim{Standing: reconcile.Link, Watched: true}, reconcile.Claim{Standing: reconcile.Draining}
	before := h.look(map[string]reconcile.Claim{"wan0": link, "wan1": link})
	if len(h.rules()) > 0 || h.memory.any {
		t.Errorf("it wrote %q, memory %t", h.rules(), h.memory.any)
	}
	if len(before.Missing) == 0 {
		t.Error("nothing is missing before the first pass")
	}
	h.pass()
	after := h.look(map[string]reconcile.Claim{"wan0": link, "wan1": link})
	if len(after.Missing) > 0 {
		t.Errorf("missing after the pass: %v", after.Missing)
	}
	if !slices.Equal(ladder(before), ladder(after)) {
		t.Errorf("before the pass\n%s\nafter it\n%s", strings.Join(ladder(before), "\n"), strings.Join(ladder(after), "\n"))
	}

	// A link that is being taken down keeps its role, and what nobody is known to want is
	// not missing where knowledge is not complete.
	h.ip("route del default dev wan1")
	gone := h.look(map[string]reconcile.Claim{"wan0": link, "wan1": draining})
	for plan := range gone.Links() {
		if plan.Role() != routing.Uplink {
			t.Errorf("%s is %v: %s", plan.Link.Name, plan.Role(), plan.Why())
		}
	}
	h.memory = memory{}
	gone = h.look(map[string]reconcile.Claim{"wan0": link, "wan1": draining})
	for plan := range gone.Links() {
		if plan.Role() != routing.Uplink {
			t.Errorf("without the memory %s is %v: %s", plan.Link.Name, plan.Role(), plan.Why())
		}
	}
}

// TestLeftToOthers: an owner that leaves an interface to others and knows its new name
// does not take it from the one who claims it by its index.
func TestLeftToOthers(t *testing.T) {
	for _, hookFirst := range []bool{true, false} {
		h := newHost(t)
		h.wan(0)
		left := reconcile.Claim{Standing: reconcile.Draining, LeftToOthers: true}
		hook := reconcile.Claim{Standing: reconcile.Link, Watched: true, Index: h.named("wan0").Attrs().Index}
		h.say("wan0", hook)
		h.owners.complete(true)
		h.pass()
		h.ip("link set wan0 name new")
		h.pass()
		if hookFirst {
			h.say("new", left)
			h.pass()
		} else {
			h.restart()
			h.owners.complete(true)
			h.say("new", left)
			h.say("wan0", hook)
			h.pass()
		}
		h.wants("10500: from 100.64.0.5 7", "9500: from all oif new lookup 10001")
		// It takes it in hand, and leaves it again.
		h.say("new", reconcile.Claim{Standing: reconcile.NoLink})
		h.pass()
		h.wants("!10500: from 100.64.0.5 7")
		h.say("new", left)
		h.pass()
		h.wants("10500: from 100.64.0.5 7")
		// The hook takes back what it said.
		h.owners.next.Removed = []string{"wan0"}
		h.say("new", reconcile.Claim{Standing: reconcile.NoLink, LeftToOthers: true})
		h.pass()
		h.wants("!10500: from 100.64.0.5 7")
		h.stop()
	}
}
