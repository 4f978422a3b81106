package nm_test

import (
	"strings"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
)

// ethernet is a link in every respect.
func ethernet(change func(*nm.Device)) nm.Device {
	d := nm.Device{
		Name: "eth0", Type: gnm.NmDeviceTypeEthernet, State: gnm.NmDeviceStateActivated,
		Managed: true, Real: true, ProfileID: "Wired connection 1", ProfileUUID: "1-2-3", ProfileKnown: true,
	}
	change(&d)
	return d
}

func TestClassify(t *testing.T) {
	state := func(s gnm.NmDeviceState) nm.Device { return ethernet(func(d *nm.Device) { d.State = s }) }
	kind := func(k gnm.NmDeviceType) nm.Device { return ethernet(func(d *nm.Device) { d.Type = k }) }
	include := func(m nm.Matcher) nm.Policy { return nm.Policy{Include: []nm.Matcher{m}} }
	exclude := func(m nm.Matcher) nm.Policy { return nm.Policy{Exclude: []nm.Matcher{m}} }

	const (
		no    = nm.NotLink
		yes   = nm.Link
		drain = nm.Draining
	)
	for _, tt := range []struct {
		name   string
		policy nm.Policy
		device nm.Device
		// fresh and was are the verdicts on what was no link and what was one.
		fresh, was nm.Verdict
		reason     string
	}{
		{"activated", nm.Policy{}, ethernet(func(*nm.Device) {}), yes, yes, `profile "Wired connection 1"`},
		{"preparing", nm.Policy{}, state(40), yes, yes, "connecting"},
		{"waiting for a password", nm.Policy{}, state(60), yes, yes, "authentication"},
		{"secondaries", nm.Policy{}, state(90), yes, yes, "secondary"},
		{"deactivating", nm.Policy{}, state(110), yes, yes, "deactivating"},
		{"disconnected", nm.Policy{}, state(30), no, drain, "disconnected"},
		{"unavailable", nm.Policy{}, state(20), no, drain, "unavailable"},
		{"failed", nm.Policy{}, state(120), no, drain, "failed"},
		{"a state of the future", nm.Policy{}, state(130), no, drain, "state 130"},
		{"state unknown", nm.Policy{}, state(0), no, drain, "unknown"},
		{"unmanaged", nm.Policy{}, state(10), no, drain, "does not manage"},
		{"unmanaged by property", nm.Policy{}, ethernet(func(d *nm.Device) { d.Managed = false }), no, drain, "does not manage"},
		{"just unmanaged", nm.Policy{}, ethernet(func(d *nm.Device) { d.State, d.Settling = 10, true }), no, drain, "settling"},
		{"gone", nm.Policy{}, ethernet(func(d *nm.Device) { d.Gone = true }), no, drain, "no longer has it"},
		{"gone, and was a placeholder at last", nm.Policy{}, ethernet(func(d *nm.Device) { d.Gone, d.Real = true, false }), no, drain, "no longer has it"},
		{"not real", nm.Policy{}, ethernet(func(d *nm.Device) { d.Real = false }), no, drain, "does not exist"},
		{"profile not read", nm.Policy{}, ethernet(func(d *nm.Device) { d.ProfileKnown = false }), no, drain, "not known yet"},
		{"type unknown", nm.Policy{}, kind(0), no, drain, "type"},
		{"external", nm.Policy{}, ethernet(func(d *nm.Device) { d.External = true }), no, no, "external"},
		{"port", nm.Policy{}, ethernet(func(d *nm.Device) { d.Controller = "br0" }), no, no, "port of br0"},
		{"port included", include(nm.Matcher{Interface: "*"}), ethernet(func(d *nm.Device) { d.Controller = "br0" }), no, no, "port of br0"},
		{"ignored", nm.Policy{}, ethernet(func(d *nm.Device) { d.Ignored = true }), no, no, "multihomed.ignore"},
		{"ignored and included", include(nm.Matcher{Interface: "eth0"}), ethernet(func(d *nm.Device) { d.Ignored = true }), no, no, "multihomed.ignore"},
		{"loopback", nm.Policy{}, kind(nm.DeviceTypeLoopback), no, no, "loopback"},
		{"loopback included", include(nm.Matcher{Interface: "*"}), ethernet(func(d *nm.Device) { d.Name = "lo" }), no, no, "loopback"},
		{"no interface", nm.Policy{}, ethernet(func(d *nm.Device) { d.Name = "" }), no, no, "no interface"},

		{"bridge", nm.Policy{}, kind(gnm.NmDeviceTypeBridge), yes, yes, ""},
		{"bond", nm.Policy{}, kind(gnm.NmDeviceTypeBond), yes, yes, ""},
		{"vlan", nm.Policy{}, kind(gnm.NmDeviceTypeVlan), yes, yes, ""},
		{"wifi", nm.Policy{}, kind(gnm.NmDeviceTypeWifi), yes, yes, ""},
		{"modem", nm.Policy{}, kind(gnm.NmDeviceTypeModem), yes, yes, ""},
		{"ppp", nm.Policy{}, kind(gnm.NmDeviceTypePpp), yes, yes, ""},
		{"macvlan", nm.Policy{}, kind(gnm.NmDeviceTypeMacvlan), yes, yes, ""},
		{"ipvlan", nm.Policy{}, kind(nm.DeviceTypeIPVLAN), yes, yes, ""},
		{"a type of the future", nm.Policy{}, kind(99), yes, yes, ""},
		{"tun", nm.Policy{}, kind(gnm.NmDeviceTypeTun), no, no, "tunnel"},
		{"ip tunnel", nm.Policy{}, kind(gnm.NmDeviceTypeIpTunnel), no, no, "tunnel"},
		{"vxlan", nm.Policy{}, kind(gnm.NmDeviceTypeVxlan), no, no, "tunnel"},
		{"wireguard", nm.Policy{}, kind(gnm.NmDeviceTypeWireguard), no, no, "VPN"},
		{"dummy", nm.Policy{}, kind(gnm.NmDeviceTypeDummy), no, no, "dummy"},
		{"vrf", nm.Policy{}, kind(nm.DeviceTypeVRF), no, no, "VRF"},
		{"ovs bridge", nm.Policy{}, kind(gnm.NmDeviceTypeOvsBridge), no, no, "Open vSwitch"},
		{"vpn", nm.Policy{}, ethernet(func(d *nm.Device) { d.VPN = true }), no, no, "VPN"},

		{"wireguard included by type", include(nm.Matcher{Type: "wire*"}), kind(gnm.NmDeviceTypeWireguard), yes, yes, ""},
		{"vpn included by profile", include(nm.Matcher{Profile: "Wired*"}), ethernet(func(d *nm.Device) { d.VPN = true }), yes, yes, ""},
		{"external included by interface", include(nm.Matcher{Interface: "eth?"}), ethernet(func(d *nm.Device) { d.External = true }), yes, yes, ""},
		{"included, but not all of the matcher", include(nm.Matcher{Interface: "eth?", Type: "wifi"}), ethernet(func(d *nm.Device) { d.External = true }), no, no, "external"},
		{"included but down", include(nm.Matcher{Type: "tun"}), ethernet(func(d *nm.Device) { d.Type, d.State = gnm.NmDeviceTypeTun, 30 }), no, drain, "disconnected"},
		{"included unmanaged", include(nm.Matcher{Interface: "*"}), state(10), no, drain, "does not manage"},
		{"empty matcher", include(nm.Matcher{}), ethernet(func(d *nm.Device) { d.External = true }), no, no, "external"},
		{"excluded by interface", exclude(nm.Matcher{Interface: "eth*"}), ethernet(func(*nm.Device) {}), no, no, "excludes interface eth*"},
		{"excluded by uuid", exclude(nm.Matcher{Profile: "1-2-3"}), ethernet(func(*nm.Device) {}), no, no, "excludes profile 1-2-3"},
		{"excluded while gone", exclude(nm.Matcher{Interface: "eth0"}), ethernet(func(d *nm.Device) { d.Gone = true }), no, no, "excludes"},
		{"excluded wins", nm.Policy{Include: []nm.Matcher{{Type: "tun"}}, Exclude: []nm.Matcher{{Interface: "eth0", Type: "tun"}}}, kind(gnm.NmDeviceTypeTun), no, no, "excludes interface eth0, type tun"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for previous, want := range map[bool]nm.Verdict{false: tt.fresh, true: tt.was} {
				got, reason := tt.policy.Classify(tt.device, previous)
				if got != want || !strings.Contains(reason, tt.reason) {
					t.Errorf("previous %t: %s (%s), want %s (%s)", previous, got, reason, want, tt.reason)
				}
			}
		})
	}
}

func TestMatcherValidate(t *testing.T) {
	for _, tt := range []struct {
		matcher nm.Matcher
		err     string
	}{
		{nm.Matcher{Interface: "eth*"}, ""},
		{nm.Matcher{}, "neither"},
		{nm.Matcher{Interface: "eth[", Type: "wifi"}, `interface "eth[": syntax error`},
		{nm.Matcher{Profile: "a["}, `profile "a["`},
		{nm.Matcher{Type: `\`}, `type "\\"`},
	} {
		err := tt.matcher.Validate()
		if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%+v: %v, want %q", tt.matcher, err, tt.err)
		}
	}
}

func TestNames(t *testing.T) {
	for k := range gnm.NmDeviceType(36) {
		name := nm.TypeName(k)
		if name == "" || strings.ContainsAny(name, " *?[") {
			t.Errorf("type %d is named %q", k, name)
		}
	}
	if got := nm.TypeName(31); got != "vrf" {
		t.Errorf("type 31 is %q", got)
	}
	if got := nm.StateName(100); got != "connected" {
		t.Errorf("state 100 is %q", got)
	}
}
