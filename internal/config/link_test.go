package config_test

import (
	"net/netip"
	"slices"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/internal/config"
	"multihomed/nm"
	"multihomed/routing"
)

const linkText = `
[[link]]
interface = "wan0"
profile = "office"
role = "local"
[[link]]
interface = "wan0"
gateway = "192.0.2.1"
ignore = false
[[link]]
interface = "wan*"
role = "uplink"
gateway = ["192.0.2.2", "fe80::2"]
last_resort = true
delegated = ["2001:db8:b::/56"]
[[link]]
type = "wifi"
ignore = true
[[link]]
profile = "*"
delegated = ["2001:db8:c::/56"]
last_resort = false
`

// TestSettings: all keys of an entry must match, and for each key that it sets the
// first entry that matches counts.
func TestSettings(t *testing.T) {
	t.Parallel()
	cfg, err := config.Parse("f", []byte(linkText))
	if err != nil {
		t.Fatal(err)
	}
	one, two, router6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fe80::2")
	b, c := netip.MustParsePrefix("2001:db8:b::/56"), netip.MustParsePrefix("2001:db8:c::/56")
	for name, test := range map[string]struct {
		device nm.Device
		want   config.Settings
	}{
		"only a name": {nm.Device{Name: "wan0"}, config.Settings{Role: routing.AlwaysUplink, Gateways: []netip.Addr{one}, LastResort: true, Delegated: []netip.Prefix{b}}},
		"a profile": {
			nm.Device{Name: "wan0", ProfileID: "office", Type: gnm.NmDeviceTypeEthernet},
			config.Settings{Role: routing.AlwaysLocal, Gateways: []netip.Addr{one}, LastResort: true, Delegated: []netip.Prefix{b}},
		},
		"a profile by its UUID": {
			nm.Device{Name: "wan0", ProfileUUID: "office"},
			config.Settings{Role: routing.AlwaysLocal, Gateways: []netip.Addr{one}, LastResort: true, Delegated: []netip.Prefix{b}},
		},
		"not ignored, whatever comes later": {
			nm.Device{Name: "wan0", Type: gnm.NmDeviceTypeWifi},
			config.Settings{Role: routing.AlwaysUplink, Gateways: []netip.Addr{one}, LastResort: true, Delegated: []netip.Prefix{b}},
		},
		"another of the glob": {
			nm.Device{Name: "wan1", Type: gnm.NmDeviceTypeWifi},
			config.Settings{
				Role: routing.AlwaysUplink, Gateways: []netip.Addr{two, router6}, LastResort: true, Delegated: []netip.Prefix{b},
				Ignore: true, IgnoredBy: "type wifi",
			},
		},
		"by type and profile":   {nm.Device{Name: "wlan0", ProfileID: "home", Type: gnm.NmDeviceTypeWifi}, config.Settings{Ignore: true, IgnoredBy: "type wifi", Delegated: []netip.Prefix{c}}},
		"nothing is said of it": {nm.Device{Name: "lan0"}, config.Settings{}},
	} {
		got := config.SettingsOf(cfg.Links, test.device)
		if got.Role != test.want.Role || !slices.Equal(got.Gateways, test.want.Gateways) || got.LastResort != test.want.LastResort ||
			got.Ignore != test.want.Ignore || got.IgnoredBy != test.want.IgnoredBy || !slices.Equal(got.Delegated, test.want.Delegated) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	if by, ignored := cfg.IsIgnored("wlan0"); ignored {
		t.Errorf("of a name the type is not known: by %s", by)
	}
	cfg.Links = []config.Link{{Matcher: config.Matcher{Interface: "lab?"}, Ignore: new(true)}}
	if by, ignored := cfg.IsIgnored("lab7"); !ignored || by != "interface lab?" {
		t.Errorf("lab7: %t by %q", ignored, by)
	}
}
