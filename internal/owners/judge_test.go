package owners_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/internal/config"
	"multihomed/internal/hookstate"
	"multihomed/internal/owners"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestJudge goes through who may own an interface, and who wins.
func TestJudge(t *testing.T) {
	t.Parallel()
	leased := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	hook := []hookstate.Config{{
		Interface: "wan0", Index: 2, Caller: "dhclient", Family: routing.IPv4, Automatic: true,
		Routes: []hookstate.Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.254"), Source: leased[0]}},
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
		facts    owners.Facts
		standing reconcile.Standing
		why      string
		nobody   bool
	}{
		"nobody's":                         {owners.Facts{}, reconcile.NoLink, "", true},
		"NetworkManager's":                 {owners.Facts{Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"abandoned":                        {owners.Facts{Device: active, Managed: true, Abandoned: true}, reconcile.Draining, "the program that brought it up does not run any more", false},
		"leased":                           {owners.Facts{Leased: leased}, reconcile.Link, "lease of 192.0.2.1 and 1 more", false},
		"leased, NetworkManager's":         {owners.Facts{Leased: leased, Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"leased, left alone":               {owners.Facts{Leased: leased, Device: unmanaged, Managed: true}, reconcile.Link, "lease of 192.0.2.1 and 1 more", false},
		"let go":                           {owners.Facts{Device: unmanaged, Managed: true}, reconcile.Draining, "NetworkManager does not manage it", false},
		"no more leased, left alone":       {owners.Facts{Device: unmanaged, Managed: true, WasLeased: true}, reconcile.NoLink, "NetworkManager does not manage it", false},
		"leased, while it ends":            {owners.Facts{Leased: leased, Device: ended, Managed: true}, reconcile.Draining, "disconnected", false},
		"a hook's":                         {owners.Facts{Configs: hook}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, leased":                 {owners.Facts{Configs: hook, Leased: leased}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, left alone":             {owners.Facts{Configs: hook, Device: unmanaged, Managed: true}, reconcile.Link, "configured by dhclient and ifupdown", false},
		"a hook's, NetworkManager's":       {owners.Facts{Configs: hook, Device: active, Managed: true}, reconcile.Link, `connected, profile "office"`, false},
		"a hook's, a port":                 {owners.Facts{Configs: hook, Device: port, Managed: true}, reconcile.NoLink, "it is a port of br0", false},
		"a hook's, the profile ignores it": {owners.Facts{Configs: hook, Device: ignored, Managed: true}, reconcile.NoLink, `profile "office" says multihomed.ignore=true`, false},
		"a hook's, excluded": {
			owners.Facts{Configs: hook, Policy: exclude(nm.Matcher{Interface: "wan?"})},
			reconcile.NoLink, "the configuration excludes interface wan?", false,
		},
		"a hook's, excluded by type": {
			owners.Facts{Configs: hook, Policy: exclude(nm.Matcher{Type: "ethernet"}), Device: unmanaged, Managed: true},
			reconcile.NoLink, "the configuration excludes type ethernet", false,
		},
		"a hook's, a tunnel": {owners.Facts{Configs: hook, Kind: "wireguard"}, reconcile.NoLink, "it is a tunnel or the like (wireguard)", false},
		"a hook's, a tunnel that is included": {
			owners.Facts{Configs: hook, Kind: "wireguard", Policy: nm.Policy{Include: []nm.Matcher{{Interface: "wan0"}}}},
			reconcile.Link, "configured by dhclient and ifupdown", false,
		},
		"a hook's, the loopback":  {owners.Facts{Name: "lo", Configs: hook}, reconcile.NoLink, "it is the loopback", false},
		"a hook's, a bridge port": {owners.Facts{Controller: "br0", Configs: hook}, reconcile.NoLink, "it is a port of br0", false},
		"leased, a VPN":           {owners.Facts{Kind: "wireguard", Leased: leased}, reconcile.Link, "lease of 192.0.2.1 and 1 more", false},
		"a hook's, over":          {owners.Facts{Released: true}, reconcile.Draining, "its configuration was removed", false},
		"a hook's, over, leased":  {owners.Facts{Released: true, Leased: leased}, reconcile.Draining, "its configuration was removed", false},
	} {
		if test.facts.Name == "" {
			test.facts.Name = "wan0"
		}
		claim, claimed := owners.Judge(test.facts)
		if claim.Standing != test.standing || claimed == test.nobody || claim.Why != test.why {
			t.Errorf("%s: %d because %q, claimed %t", name, claim.Standing, claim.Why, claimed)
		}
		if claim.Choice == routing.AlwaysLocal != (test.facts.Kind != "" && test.facts.Leased != nil) {
			t.Errorf("%s: role %v", name, claim.Choice)
		}
		if isLease := strings.HasPrefix(test.why, "lease of"); slices.Equal(claim.Only, leased) != isLease {
			t.Errorf("%s: only %v", name, claim.Only)
		}
	}
	claim, _ := owners.Judge(owners.Facts{Name: "wan0", Configs: hook})
	if len(claim.Known) != 1 || claim.Known[0].PreferredSource != leased[0] || !claim.DefaultMayBeMissing || !claim.Watched || !claim.Intents[routing.IPv4].Automatic {
		t.Errorf("a hook's claim is %+v", claim)
	}
}

// TestOrLeased: a lease waits behind what drains, and what was left behind drains.
func TestOrLeased(t *testing.T) {
	t.Parallel()
	leased := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	settling := nm.Device{Name: "ppp7", Type: gnm.NmDeviceTypeEthernet, Real: true, State: gnm.NmDeviceStateUnmanaged, Settling: true}
	for name, facts := range map[string]owners.Facts{
		"NetworkManager settles": {Device: settling, Managed: true}, "released": {Released: true}, "left": {Left: true},
	} {
		facts.Name = "ppp7"
		if claim, claimed := owners.Judge(facts); !claimed || claim.Standing != reconcile.Draining || claim.Else != nil {
			t.Errorf("%s: %+v", name, claim)
		}
		facts.Leased = leased
		claim, _ := owners.Judge(facts)
		if claim.Standing != reconcile.Draining || claim.Else == nil || claim.Else.Standing != reconcile.Link ||
			!slices.Equal(claim.Else.Only, leased) || claim.Else.Why != "lease of 192.0.2.1" || claim.Else.Released {
			t.Errorf("%s, leased: %+v", name, claim)
		}
		facts.Links = []config.Link{{Matcher: config.Matcher{Interface: "ppp*"}, Ignore: new(true)}}
		if claim, _ := owners.Judge(facts); claim.Standing != reconcile.NoLink || claim.Else != nil {
			t.Errorf("%s, leased and ignored: %+v", name, claim)
		}
	}
}

// TestSettling: what a NetworkManager that ended for good left goes down, and is not waited for.
func TestSettling(t *testing.T) {
	t.Parallel()
	facts := owners.Facts{Name: "wan0", Managed: true, Device: nm.Device{
		Name: "wan0", Type: gnm.NmDeviceTypeEthernet, Real: true, State: gnm.NmDeviceStateUnmanaged, Settling: true,
	}}
	if claim, _ := owners.Judge(facts); claim.Standing != reconcile.Draining || !claim.Settling {
		t.Errorf("while it settles: %+v", claim)
	}
	facts.Abandoned = true
	if claim, _ := owners.Judge(facts); claim.Standing != reconcile.Draining || claim.Settling {
		t.Errorf("when it has ended: %+v", claim)
	}
}

// TestConfigured: what [[link]] says counts for links of all owners alike.
func TestConfigured(t *testing.T) {
	t.Parallel()
	address, router, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("192.0.2.253")
	told, said := netip.MustParsePrefix("2001:db8:b::/56"), netip.MustParsePrefix("2001:db8:a::/56")
	device := nm.Device{
		Name: "wan0", Type: gnm.NmDeviceTypeEthernet, Real: true, Managed: true, State: gnm.NmDeviceStateActivated,
		ProfileKnown: true, ProfileID: "office", Intents: map[routing.Family]routing.Intent{
			routing.IPv4: {Gateway: router, Automatic: true, NeverDefault: true}, routing.IPv6: {LeaveAlone: "it is the owner's"},
		},
	}
	draining := device
	draining.State = gnm.NmDeviceStateDisconnected
	unmanaged := device
	unmanaged.Managed, unmanaged.State, unmanaged.Intents = false, gnm.NmDeviceStateUnmanaged, nil
	hook := []hookstate.Config{{
		Interface: "wan0", Index: 2, Caller: "dhcpcd", Family: routing.IPv4, Automatic: true,
		Routes: []hookstate.Route{{Destination: routing.IPv4.Any(), Gateway: router}, {Destination: netip.MustParsePrefix("10.0.0.0/8"), Gateway: router}},
	}, {Interface: "wan0", Index: 2, Caller: "dhcpcd", Part: "dhcp6", Family: routing.IPv6, Delegated: []netip.Prefix{told}}}
	whose := map[string]owners.Facts{
		"NetworkManager's":     {Device: device, Managed: true},
		"draining":             {Device: draining, Managed: true},
		"a hook's":             {Configs: hook},
		"a hook's, left alone": {Configs: hook, Device: unmanaged, Managed: true},
		"leased":               {Leased: []netip.Addr{address}},
		"leased, left alone":   {Leased: []netip.Addr{address}, Device: unmanaged, Managed: true},
	}
	links := []config.Link{{
		Matcher: config.Matcher{Interface: "wan?"}, Role: routing.AlwaysLocal, Gateways: []netip.Addr{other}, LastResort: new(true),
		Delegated: []netip.Prefix{told, said},
	}}
	for name, facts := range whose {
		facts.Name = "wan0"
		without, _ := owners.Judge(facts)
		if without.Choice != routing.ByFacts || without.LastResort {
			t.Errorf("%s: without the configuration %+v", name, without)
		}
		facts.Links = links
		claim, claimed := owners.Judge(facts)
		if !claimed || claim.Standing != without.Standing || claim.Why != without.Why {
			t.Errorf("%s: %+v, without the configuration %+v", name, claim, without)
		}
		if claim.Choice != routing.AlwaysLocal || !claim.LastResort || !slices.Equal(claim.Delegated, []netip.Prefix{said, told}) {
			t.Errorf("%s: %+v", name, claim)
		}
		in, was := claim.Intents[routing.IPv4], without.Intents[routing.IPv4]
		if in.Gateway != other || in.Automatic != was.Automatic || in.NeverDefault != was.NeverDefault ||
			claim.Intents[routing.IPv6] != without.Intents[routing.IPv6] {
			t.Errorf("%s: intents %+v, without the configuration %+v", name, claim.Intents, without.Intents)
		}
		// The route to everything is the configured router's now, others stay.
		if len(without.Known) == 2 && (len(claim.Known) != 1 || claim.Known[0].Destination.Bits() != 8) {
			t.Errorf("%s: known %+v", name, claim.Known)
		}

		for text, entry := range map[string]config.Matcher{
			"interface wan0": {Interface: "wan0"}, "type ethernet": {Type: "ethernet"}, "profile office": {Profile: "office"},
		} {
			facts.Links = append(slices.Clone(links), config.Link{Matcher: entry, Ignore: new(true)})
			matches := entry.Interface != "" || facts.Managed
			claim, claimed := owners.Judge(facts)
			why := "the configuration ignores it ([[link]] " + text + ")"
			if !claimed || (claim.Standing == reconcile.NoLink) != matches || matches != (claim.Why == why) {
				t.Errorf("%s, ignored by %s: %+v", name, text, claim)
			}
			if matches && (!claim.Released || claim.Only != nil || claim.Pending) {
				t.Errorf("%s, ignored by %s: %+v", name, text, claim)
			}
		}
	}
	if g := device.Intents[routing.IPv4].Gateway; g != router {
		t.Errorf("the device of NetworkManager was changed: gateway %v", g)
	}
	// What is no link for another reason keeps it, and nobody's stays nobody's.
	facts := owners.Facts{Name: "wan0", Configs: hook, Kind: "wireguard", Links: []config.Link{{Matcher: config.Matcher{Interface: "*"}, Ignore: new(true)}}}
	if claim, _ := owners.Judge(facts); claim.Why != "it is a tunnel or the like (wireguard)" {
		t.Errorf("a tunnel: %q", claim.Why)
	}
	if _, claimed := owners.Judge(owners.Facts{Name: "eth9", Links: facts.Links}); claimed {
		t.Error("nobody says anything of eth9, and yet it is claimed")
	}
	if claim, _ := owners.Judge(owners.Facts{Name: "wan0", Leased: []netip.Addr{address}}); !claim.DefaultMayBeMissing {
		t.Error("a leased link does not say that main may lack its default")
	}
}
