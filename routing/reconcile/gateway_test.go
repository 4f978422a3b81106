package reconcile_test

import (
	"net/netip"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestOwnGatewayIsNotUsed: the kernel would refuse the route again and again.
func TestOwnGatewayIsNotUsed(t *testing.T) {
	t.Parallel()
	own, router := netip.MustParsePrefix("192.0.2.7/24"), netip.MustParseAddr("fe80::1")
	facts := routing.Interface{Name: "wan0", Index: 2, Addresses: []routing.Address{{Prefix: own}}}
	claim := reconcile.Claim{Standing: reconcile.Link, Intents: map[routing.Family]routing.Intent{
		routing.IPv4: {Gateway: own.Addr(), Automatic: true}, routing.IPv6: {Gateway: router},
	}}
	got := reconcile.LinkOf(facts, claim).Intents
	if got[routing.IPv4].Gateway.IsValid() || !got[routing.IPv4].Automatic || got[routing.IPv6].Gateway != router {
		t.Errorf("intents %+v", got)
	}
	if claim.Intents[routing.IPv4].Gateway != own.Addr() {
		t.Error("the claim was changed")
	}
}
