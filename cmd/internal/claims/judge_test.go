package claims_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/hooked"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestJudge goes through who may own an interface, and who wins.
func TestJudge(t *testing.T) {
	t.Parallel()
	leased := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	hook := []hooked.Config{{
		Interface: "wan0", Index: 2, Caller: "dhclient", Family: routing.IPv4, Automatic: true,
		Routes: []hooked.Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.254"), Source: leased[0]}},
	}, {Interface: "wan0", Index: 2, Caller: "ifupdown", Part: "dhcp", Family: routing.IPv4}}
	active := nm.Device{
		Name: "wan0", Type: gnm.NmDeviceTypeEthernet, Real: true, Managed: true, State: gnm.NmDeviceStateActivated,
		ProfileKnown: true, ProfileID: "office",
	}
	with := func(d nm.Device, change func(*nm.Device)) nm.Device { change(&d); return d }
	unmanaged := with(active, func(d *nm.Device) { d.Managed, d.State = false, gnm.NmDeviceStateUnmanaged })
	ignored := with(active, func(d *nm.Device) { d.Ignored = true })
	ended := with(active, func(d *nm.Device) { d.State = gnm.NmDeviceStateDisconnected })
	port := with(unmanaged, func(d *nm.Device) { d.Controller = "br0" })
	exclude := func(m nm.Matcher) nm.Policy { return nm.Policy{Exclude: []nm.Matcher{m}} }

	for name, test := range map[string]struct {
		facts    claims.Facts
		standing reconcile.Standing
		why      string
		nobody   bool
	}{
		"nobody's":                         {claims.Facts{}, reconcile.NoLink, "", true},
		"NetworkManager's":                 {claims.Facts{Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"leased":                           {claims.Facts{Leased: leased}, reconcile.Link, "lease of 192.0.2.1 and 1 more", false},
		"leased, NetworkManager's":         {claims.Facts{Leased: leased, Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"leased, left alone":               {claims.Facts{Leased: leased, Device: unmanaged, Managed: true}, reconcile.Link, "lease of 192.0.2.1 and 1 more", false},
		"leased, while it ends":            {claims.Facts{Leased: leased, Device: ended, Managed: true}, reconcile.Draining, "disconnected", false},
		"a hook's":                         {claims.Facts{Configs: hook}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, leased":                 {claims.Facts{Configs: hook, Leased: leased}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, left alone":             {claims.Facts{Configs: hook, Device: unmanaged, Managed: true}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, NetworkManager's":       {claims.Facts{Configs: hook, Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"a hook's, a port":                 {claims.Facts{Configs: hook, Device: port, Managed: true}, reconcile.NoLink, "it is a port of br0", false},
		"a hook's, the profile ignores it": {claims.Facts{Configs: hook, Device: ignored, Managed: true}, reconcile.NoLink, `profile "office" says multihomed.ignore=true`, false},
		"a hook's, excluded": {
			claims.Facts{Configs: hook, Policy: exclude(nm.Matcher{Interface: "wan?"})},
			reconcile.NoLink, "the configuration excludes interface wan?", false,
		},
		"a hook's, excluded by type": {
			claims.Facts{Configs: hook, Policy: exclude(nm.Matcher{Type: "ethernet"}), Device: unmanaged, Managed: true},
			reconcile.NoLink, "the configuration excludes type ethernet", false,
		},
		"a hook's, a tunnel": {claims.Facts{Configs: hook, Kind: "wireguard"}, reconcile.NoLink, "it is a tunnel or the like (wireguard)", false},
		"a hook's, a tunnel that is included": {
			claims.Facts{Configs: hook, Kind: "wireguard", Policy: nm.Policy{Include: []nm.Matcher{{Interface: "wan0"}}}},
			reconcile.Link, "configured by dhclient and ifupdown", false,
		},
		"a hook's, over":         {claims.Facts{Released: true}, reconcile.Draining, "its configuration was taken away", false},
		"a hook's, over, leased": {claims.Facts{Released: true, Leased: leased}, reconcile.Draining, "its configuration was taken away", false},
	} {
		test.facts.Name = "wan0"
		claim, claimed := claims.Judge(test.facts)
		if claim.Standing != test.standing || claimed == test.nobody || claim.Why != test.why {
			t.Errorf("%s: %d because %q, claimed %t", name, claim.Standing, claim.Why, claimed)
		}
		if isLease := strings.HasPrefix(test.why, "lease of"); slices.Equal(claim.Only, leased) != isLease {
			t.Errorf("%s: only %v", name, claim.Only)
		}
	}
	claim, _ := claims.Judge(claims.Facts{Name: "wan0", Configs: hook})
	if len(claim.Known) != 1 || claim.Known[0].PreferredSource != leased[0] || !claim.Reach || !claim.Watched || !claim.Intents[routing.IPv4].Automatic {
		t.Errorf("a hook's claim is %+v", claim)
	}
}
