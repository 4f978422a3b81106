package claims_test

import (
	"net/netip"
	"slices"
	"testing"

	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/declared"
	"multihomed/routing/reconcile"
)

func TestMerge(t *testing.T) {
	t.Parallel()
	store, errs := declared.Open(t.TempDir())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, a := range []netip.Addr{one, two} {
		if err := store.Put(declared.Link{Interface: "wan0", Address: a}); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		link    string
		manager reconcile.Standing
		managed bool
		want    reconcile.Standing
		only    []netip.Addr
		claimed bool
	}{
		"nobody's":                    {"wan1", reconcile.NoLink, false, reconcile.NoLink, nil, false},
		"NetworkManager's":            {"wan1", reconcile.Link, true, reconcile.Link, nil, true},
		"declared":                    {"wan0", reconcile.NoLink, false, reconcile.Link, []netip.Addr{one, two}, true},
		"declared, and not managed":   {"wan0", reconcile.NoLink, true, reconcile.Link, []netip.Addr{one, two}, true},
		"declared, and a link anyway": {"wan0", reconcile.Link, true, reconcile.Link, nil, true},
		"declared, while it drains":   {"wan0", reconcile.Draining, true, reconcile.Draining, nil, true},
	} {
		claim, claimed := claims.Merge(reconcile.Claim{Standing: test.manager}, test.managed, test.link, store)
		if claim.Standing != test.want || claimed != test.claimed || !slices.Equal(claim.Only, test.only) {
			t.Errorf("%s: %+v, %v", name, claim, claimed)
		}
		if test.only != nil && (!claim.Watched || claim.Why != "lease of 192.0.2.1 and 1 more") {
			t.Errorf("%s: watched %v because %q", name, claim.Watched, claim.Why)
		}
	}
}
