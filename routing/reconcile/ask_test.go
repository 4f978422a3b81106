package reconcile_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestSettled asks a running loop: the answer covers what happened before, and
// what stands then.
func TestSettled(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.claim("wan0", reconcile.Link)
	h.owners.complete(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.loop.Run(ctx) }()
	state, err := h.loop.Settled(t.Context(), "wan0")
	if err != nil {
		t.Fatal(err)
	}
	h.wants("10000: from 100.64.0.5 lookup 10000")
	key, ok := routing.KeyOf(state.Plan.Link, netip.MustParseAddr("100.64.0.5"))
	if !ok || state.Plan.Link.Tables[key] != 10000 || len(state.Problems) != 0 || state.Unread {
		t.Errorf("state %+v", state)
	}
	if _, ok := routing.KeyOf(state.Plan.Link, netip.MustParseAddr("100.64.0.99")); ok {
		t.Error("a key for an address that the link does not have")
	}
	if why, used := h.loop.TableInUse(10000); !used {
		t.Errorf("table 10000 is in use: %q, %v", why, used)
	}
	if state, err := h.loop.Settled(t.Context(), "none"); err != nil || len(state.Plan.Keys) != 0 {
		t.Errorf("of no link: %+v, %v", state, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := h.loop.Settled(ctx, "wan0"); !errors.Is(err, context.Canceled) {
		t.Errorf("of a loop that has ended: %v", err)
	}
}

// TestOnly is a claim for one of several addresses.
func TestOnly(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.address("wan0", "100.64.0.6/24")
	h.owners.complete(true)
	h.owners.claimOnly("wan0", netip.MustParseAddr("100.64.0.6"))
	h.pass()
	h.wants("10000: from 100.64.0.6 lookup 10000", "!10000: from 100.64.0.5 lookup 10000")
	h.owners.claim("wan0", reconcile.Link)
	h.pass()
	h.wants("10000: from 100.64.0.6 lookup 10000", "10000: from 100.64.0.5 lookup 10000")
}
