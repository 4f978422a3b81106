package dispatcher_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/dispatcher"
	"multihomed/routing"
)

var values = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// As NetworkManager 1.42's nm-dispatcher sends it for a link with both families.
var up = []string{
	"NM_DISPATCHER_ACTION=up", "CONNECTION_UUID=0a", "CONNECTION_ID=wan0", "DEVICE_IFACE=wan0", "DEVICE_IP_IFACE=wan0",
	"IP4_ADDRESS_0=192.0.2.10/24 192.0.2.1", "IP4_ADDRESS_1=198.51.100.10/25 192.0.2.1", "IP4_NUM_ADDRESSES=2", "IP4_GATEWAY=192.0.2.1",
	"IP4_ROUTE_0=192.0.2.0/24 0.0.0.0 100", "IP4_ROUTE_1=10.8.0.0/16 192.0.2.254 100", "IP4_NUM_ROUTES=2",
	"IP4_NAMESERVERS=192.0.2.53 192.0.2.54", "IP4_DOMAINS=example.net Example.ORG.", "DHCP4_ROUTERS=192.0.2.1 192.0.2.2",
	"IP6_ADDRESS_0=2001:db8::10/64 0.0.0.0", "IP6_NUM_ADDRESSES=1", "IP6_GATEWAY=0.0.0.0", "IP6_NAMESERVERS=fe80::1%wan0",
}

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestNetworkManager(t *testing.T) {
	t.Parallel()
	got, err := dispatcher.NetworkManager([]string{"wan0", "up"}, dispatcher.ParseEnvironment(up))
	if err != nil {
		t.Fatal(err)
	}
	want := dispatcher.Event{
		Caller: "NetworkManager", Action: "up", Interface: "wan0", Effect: dispatcher.Configured,
		Configs: map[routing.Family]dispatcher.Config{
			routing.IPv4: {
				Addresses: prefixes("192.0.2.10/24", "198.51.100.10/25"), Gateways: addrs("192.0.2.1", "192.0.2.2"),
				Routes: []dispatcher.Route{
					{Destination: netip.MustParsePrefix("192.0.2.0/24"), Metric: 100},
					{Destination: netip.MustParsePrefix("10.8.0.0/16"), Gateway: netip.MustParseAddr("192.0.2.254"), Metric: 100},
				},
				Servers: addrs("192.0.2.53", "192.0.2.54"), Domains: []string{"example.net", "example.org"},
			},
			routing.IPv6: {Addresses: prefixes("2001:db8::10/64"), Servers: addrs("fe80::1")},
		},
	}
	if diff := cmp.Diff(want, got, values); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestActions(t *testing.T) {
	t.Parallel()
	for action, want := range map[string]dispatcher.Effect{
		"up": dispatcher.Configured, "down": dispatcher.Gone, "pre-up": dispatcher.Changed, "pre-down": dispatcher.Changed,
		"dhcp4-change": dispatcher.Changed, "dhcp6-change": dispatcher.Changed, "reapply": dispatcher.Changed,
		"vpn-up": dispatcher.Changed, "vpn-down": dispatcher.Changed, "vpn-pre-up": dispatcher.Changed, "vpn-pre-down": dispatcher.Changed,
		"hostname": dispatcher.Nothing, "connectivity-change": dispatcher.Nothing, "dns-change": dispatcher.Nothing,
		"device-add": dispatcher.Changed, "device-delete": dispatcher.Changed, "of a later release": dispatcher.Changed,
	} {
		name := "wan0"
		switch action {
		case "hostname":
			name = "none"
		case "connectivity-change":
			name = ""
		}
		got, err := dispatcher.NetworkManager([]string{name, action}, nil)
		if err != nil || got.Effect != want || got.Configs != nil || (got.Interface == "") != (want == dispatcher.Nothing) {
			t.Errorf("%s: %+v, %v", action, got, err)
		}
	}
	// The variables tell the interface that has the addresses.
	if got, err := dispatcher.NetworkManager([]string{"cdc-wdm0", "up"}, dispatcher.Environment{"DEVICE_IP_IFACE": "wwan0"}); err != nil || got.Interface != "wwan0" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBadCalls(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"wan0"}, {"wan0", "up", "more"}, {"wan0", ""}, {"", "up"}, {"../x", "up"}, {"a name", "up"}, {strings.Repeat("x", 1000), "up"}} {
		if e, err := dispatcher.NetworkManager(args, nil); err == nil || len(err.Error()) > 200 {
			t.Errorf("%q: %+v, %v", args, e, err)
		}
	}
}

func TestOddValues(t *testing.T) {
	t.Parallel()
	env := dispatcher.ParseEnvironment([]string{
		"IP4_NUM_ADDRESSES=5", "IP4_ADDRESS_0=192.0.2.10/24 192.0.2.1", "IP4_ADDRESS_1=192.0.2.300/24", "IP4_ADDRESS_2=192.0.2.11/33 x",
		"IP4_ADDRESS_3=2001:db8::1/64 0.0.0.0", "IP4_NUM_ROUTES=70000", "IP4_DOMAINS=ok.example a/b $(reboot) -x ..", "IP4_NAMESERVERS=224.0.0.1 192.0.2.53",
		"IP6_NUM_ADDRESSES=-1", "=", "novalue", "IP4_NUM_ADDRESSES=0",
	})
	got, err := dispatcher.NetworkManager([]string{"wan0", "up"}, env)
	if err != nil {
		t.Fatal(err)
	}
	want := dispatcher.Config{
		Addresses: prefixes("192.0.2.10/24"), Gateways: addrs("192.0.2.1"), Servers: addrs("192.0.2.53"), Domains: []string{"ok.example"},
	}
	if diff := cmp.Diff(want, got.Configs[routing.IPv4], values); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, known := got.Configs[routing.IPv6]; known || len(got.Odd) < 8 {
		t.Errorf("odd: %q", got.Odd)
	}
}

func TestOddRoutes(t *testing.T) {
	t.Parallel()
	got, err := dispatcher.NetworkManager([]string{"wan0", "up"}, dispatcher.Environment{
		"IP4_NUM_ADDRESSES": "0", "IP4_NUM_ROUTES": "7", "IP4_ROUTE_0": "10.8.0.0/16", "IP4_ROUTE_1": "2001:db8::/64 0.0.0.0", "IP4_ROUTE_2": "10.9.0.0/16 fe80::1",
		"IP4_ROUTE_3": "10.10.0.0/16 192.0.2.1 -1", "IP4_ROUTE_4": "0.0.0.0/0 192.0.2.1", "IP4_ROUTE_5": "10.11.1.2/16 192.0.2.1 7", "IP4_ROUTE_6": "10.11.0.0/16 192.0.2.1 7",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := dispatcher.Config{
		Gateways: addrs("192.0.2.1"),
		Routes:   []dispatcher.Route{{Destination: netip.MustParsePrefix("10.11.0.0/16"), Gateway: netip.MustParseAddr("192.0.2.1"), Metric: 7}},
	}
	if diff := cmp.Diff(want, got.Configs[routing.IPv4], values); diff != "" || len(got.Odd) != 4 {
		t.Errorf("%q, (-want +got):\n%s", got.Odd, diff)
	}
}
