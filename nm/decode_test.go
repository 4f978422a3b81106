package nm_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/nm"
	"multihomed/routing"
)

func netipValues() cmp.Option { return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}) }

// parse reads a value as `busctl` and GLib write it.
func parse(t *testing.T, text, signature string) dbus.Variant {
	t.Helper()
	v, err := dbus.ParseVariant(text, dbus.ParseSignatureMust(signature))
	if err != nil {
		t.Fatalf("parsing %s: %v", text, err)
	}
	return v
}

func TestDecodeRouteData(t *testing.T) {
	for _, tt := range []struct {
		name   string
		family routing.Family
		text   string
		want   []nm.RouteData
		errs   []string
	}{
		{"none", routing.IPv4, `[]`, nil, nil},
		{
			// gonetworkmanager v2.2.0 reads 88 and 132.
			"metrics beyond 8 bits", routing.IPv4,
			`[{"dest": <"10.8.0.0">, "prefix": <@u 16>, "next-hop": <"192.0.2.254">, "metric": <@u 600>},
			  {"dest": <"0.0.0.0">, "prefix": <@u 0>, "next-hop": <"192.0.2.1">, "metric": <@u 20100>, "table": <@u 1001>}]`,
			[]nm.RouteData{
				{Destination: netip.MustParsePrefix("10.8.0.0/16"), NextHop: netip.MustParseAddr("192.0.2.254"), Metric: 600},
				{Destination: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("192.0.2.1"), Metric: 20100, Table: 1001},
			},
			nil,
		},
		{
			"IPv6, on the link, host bits", routing.IPv6,
			`[{"dest": <"2001:db8::1">, "prefix": <@u 64>, "metric": <@u 4294967295>},
			  {"dest": <"::">, "prefix": <@u 0>, "next-hop": <"fe80::1">}]`,
			[]nm.RouteData{
				{Destination: netip.MustParsePrefix("2001:db8::/64"), Metric: 4294967295},
				{Destination: netip.MustParsePrefix("::/0"), NextHop: netip.MustParseAddr("fe80::1")},
			},
			nil,
		},
		{
			"types and zero next hops", routing.IPv4,
			`[{"dest": <"10.0.0.0">, "prefix": <@u 8>, "type": <"blackhole">}, {"dest": <"10.0.0.0">, "prefix": <@u 8>, "type": <"unicast">, "next-hop": <"0.0.0.0">}]`,
			[]nm.RouteData{
				{Destination: netip.MustParsePrefix("10.0.0.0/8"), Type: "blackhole"},
				{Destination: netip.MustParsePrefix("10.0.0.0/8")},
			},
			nil,
		},
		{
			"bad ones are left out", routing.IPv4,
			`[{"prefix": <@u 8>}, {"dest": <"10.0.0.0">}, {"dest": <@u 7>, "prefix": <@u 8>}, {"dest": <"10.0.0.0">, "prefix": <@u 33>},
			  {"dest": <"::">, "prefix": <@u 0>}, {"dest": <"10.0.0.0">, "prefix": <@u 8>, "next-hop": <"x">},
			  {"dest": <"10.0.0.0">, "prefix": <@u 8>, "metric": <@t 600>}, {"dest": <"::ffff:10.0.0.0">, "prefix": <@u 8>},
			  {"dest": <"10.0.0.0">, "prefix": <@u 8>, "next-hop": <"224.0.0.1">}, {"dest": <"10.1.0.0">, "prefix": <@u 16>}]`,
			[]nm.RouteData{{Destination: netip.MustParsePrefix("10.1.0.0/16")}},
			[]string{"dest is missing", "prefix is missing", "dest has the type u", "longer than 32", "no ipv4 address", `"x" is no address`, "metric has the type t", "no ipv4 address", "no address of a host"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, errs := nm.DecodeRouteData(tt.family, parse(t, tt.text, "aa{sv}").Value())
			if diff := cmp.Diff(tt.want, got, netipValues()); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			if len(errs) != len(tt.errs) {
				t.Fatalf("errors are %v", errs)
			}
			for i, err := range errs {
				if !strings.Contains(err.Error(), tt.errs[i]) {
					t.Errorf("error %d is %v, want %s", i, err, tt.errs[i])
				}
			}
		})
	}
	for _, value := range []any{nil, "x", []string{"x"}, map[string]dbus.Variant{}} {
		if routes, errs := nm.DecodeRouteData(routing.IPv4, value); routes != nil || len(errs) != 1 {
			t.Errorf("%v: %v, %v", value, routes, errs)
		}
		if prefixes, errs := nm.DecodeAddressData(routing.IPv4, value); prefixes != nil || len(errs) != 1 {
			t.Errorf("%v: %v, %v", value, prefixes, errs)
		}
	}
}

func settings(t *testing.T, text string) map[string]map[string]dbus.Variant {
	t.Helper()
	s, ok := parse(t, text, "a{sa{sv}}").Value().(map[string]map[string]dbus.Variant)
	if !ok {
		t.Fatal("not a profile")
	}
	return s
}

func TestLeaseRouter(t *testing.T) {
	previous := netip.MustParseAddr("192.0.2.99")
	for _, tt := range []struct {
		name, options string
		want          string
		problem       string
	}{
		{"none", `{}`, "invalid IP", ""},
		{"routers", `{"routers": <"192.0.2.1 192.0.2.2">}`, "192.0.2.1", ""},
		{"classless routes win", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <"10.0.0.0/8 192.0.2.4 0.0.0.0/0 192.0.2.3 0.0.0.0/0 192.0.2.5">}`, "192.0.2.3", ""},
		{"classless routes without a default", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <"10.0.0.0/8 192.0.2.4">}`, "192.0.2.1", ""},
		{"a default on the link", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <"0.0.0.0/0 0.0.0.0">}`, "invalid IP", ""},
		{"Microsoft's", `{"routers": <"192.0.2.1">, "ms_classless_static_routes": <"0.0.0.0/0 192.0.2.6">}`, "192.0.2.6", ""},
		{"both", `{"routers": <"192.0.2.1">, "ms_classless_static_routes": <"0.0.0.0/0 192.0.2.6">, "rfc3442_classless_static_routes": <"10.0.0.0/8 192.0.2.4">}`, "192.0.2.1", ""},
		{"a router that is none", `{"routers": <"0.0.0.0">}`, "192.0.2.99", `the DHCP option routers: "0.0.0.0" is no address of a host`},
		{"routers of another type", `{"routers": <@u 3>}`, "192.0.2.99", "routers has the type u, expected s"},
		{"no destination", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <"default 192.0.2.4">}`, "192.0.2.99", `the DHCP option rfc3442_classless_static_routes: "default" is no destination of ipv4`},
		{"no router", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <"10.0.0.0/8 192.0.2.4 0.0.0.0/0">}`, "192.0.2.99", `"0.0.0.0/0" has no router`},
		{"a router of IPv6", `{"rfc3442_classless_static_routes": <"0.0.0.0/0 fe80::1">}`, "192.0.2.99", `"fe80::1" is no ipv4 address`},
		{"routes of another type", `{"routers": <"192.0.2.1">, "rfc3442_classless_static_routes": <true>}`, "192.0.2.99", "rfc3442_classless_static_routes has the type b, expected s"},
	} {
		options, ok := parse(t, tt.options, "a{sv}").Value().(map[string]dbus.Variant)
		if !ok {
			t.Fatal("no options")
		}
		router, problems := nm.LeaseRouter(options, previous)
		if router.String() != tt.want || (tt.problem == "") != (len(problems) == 0) || !strings.Contains(strings.Join(problems, "; "), tt.problem) {
			t.Errorf("%s: %v, %q", tt.name, router, problems)
		}
	}
}

func TestDecodeProfile(t *testing.T) {
	router := netip.MustParseAddr("192.0.2.1")
	before := nm.DecodeProfile(settings(t, `{"user": {"data": <{"multihomed.ignore": "true"}>},
		"ipv4": {"route-table": <@u 77>, "gateway": <"192.0.2.7">, "never-default": <true>}}`), nm.Profile{})
	for _, tt := range []struct {
		name, text string
		ignored    bool
		v4, v6     routing.Intent
		tables     []routing.TableID
		problems   []string
	}{
		{"empty", `{}`, false, routing.Intent{Gateway: router}, routing.Intent{}, nil, nil},
		{
			"dhcp", `{"ipv4": {"method": <"auto">, "never-default": <true>}, "ipv6": {"method": <"auto">}}`, false,
			routing.Intent{Gateway: router, NeverDefault: true, NoDefault: true},
			routing.Intent{},
			nil, nil,
		},
		{
			"never a default of IPv6", `{"ipv4": {"method": <"manual">, "never-default": <false>}, "ipv6": {"method": <"auto">, "never-default": <true>}}`, false,
			routing.Intent{NoDefault: true},
			routing.Intent{NeverDefault: true, NoDefault: true},
			nil, nil,
		},
		{
			"manual without a gateway", `{"ipv4": {"method": <"manual">}, "ipv6": {"method": <"manual">, "gateway": <"fe80::1">}}`, false,
			routing.Intent{NoDefault: true},
			routing.Intent{Gateway: netip.MustParseAddr("fe80::1")},
			nil, nil,
		},
		{
			"the profile's gateway wins", `{"ipv4": {"method": <"auto">, "gateway": <"192.0.2.9">}}`, false,
			routing.Intent{Gateway: netip.MustParseAddr("192.0.2.9")},
			routing.Intent{},
			nil, nil,
		},
		{
			"tables", `{"ipv4": {"method": <"manual">, "route-table": <@u 1300>,
				"route-data": <[{"dest": <"10.0.0.0">, "prefix": <@u 8>, "next-hop": <"192.0.2.3">, "table": <@u 1234>}]>,
				"routing-rules": <[{"priority": <@u 5>, "table": <@u 99>}, {"priority": <@u 6>}]>},
			 "ipv6": {"route-data": <[{"dest": <"2001:db8::">, "prefix": <@u 32>, "table": <@u 99>}]>}}`, false,
			routing.Intent{LeaveAlone: `profile "p" sets ipv4.route-table=1300`, NoDefault: true},
			routing.Intent{},
			[]routing.TableID{99, 1234, 1300},
			nil,
		},
		{
			"a blackhole has no next hop", `{"ipv4": {"method": <"manual">, "route-data": <[{"dest": <"10.0.0.0">, "prefix": <@u 8>, "type": <"blackhole">}]>}}`, false,
			routing.Intent{NoDefault: true},
			routing.Intent{},
			nil, nil,
		},
		{
			"a default as a route", `{"ipv4": {"method": <"manual">, "route-data": <[{"dest": <"0.0.0.0">, "prefix": <@u 0>, "next-hop": <"192.0.2.3">}]>}}`, false,
			routing.Intent{},
			routing.Intent{},
			nil, nil,
		},
		{
			"routes that nobody understands", `{"ipv4": {"method": <"manual">, "route-data": <"x">}, "ipv6": {"method": <"manual">}}`, false,
			routing.Intent{},
			routing.Intent{NoDefault: true},
			nil,
			[]string{"ipv4.route-data: routes are a string"},
		},
		{
			"no routes of the network", `{"ipv4": {"method": <"auto">, "ignore-auto-routes": <true>}, "ipv6": {"ignore-auto-routes": <true>, "gateway": <"fe80::1">}}`, false,
			routing.Intent{Gateway: router, NoDefault: true},
			routing.Intent{Gateway: netip.MustParseAddr("fe80::1")},
			nil, nil,
		},
		{
			"the kernel hears the routers", `{"ipv4": {"method": <"disabled">}, "ipv6": {"method": <"ignore">}}`, false,
			routing.Intent{NoDefault: true},
			routing.Intent{},
			nil, nil,
		},
		{"ignored", `{"user": {"data": <{"multihomed.ignore": " Yes "}>}, "ipv4": {"method": <"disabled">}}`, true, routing.Intent{NoDefault: true}, routing.Intent{}, nil, nil},
		{"not ignored", `{"user": {"data": <{"multihomed.ignore": "0", "other.key": "true"}>}, "ipv4": {"method": <"disabled">}}`, false, routing.Intent{NoDefault: true}, routing.Intent{}, nil, nil},
		{
			"what is wrong stays as it was",
			`{"user": {"data": <{"multihomed.ignore": "perhaps"}>}, "ipv4": {"method": <@u 1>, "route-table": <"main">, "gateway": <"::1">, "never-default": <"no">,
			  "route-data": <"x">, "routing-rules": <@u 5>}, "ipv6": {"gateway": <true>}}`, true,
			routing.Intent{LeaveAlone: `profile "p" sets ipv4.route-table=77`, Gateway: netip.MustParseAddr("192.0.2.7"), NeverDefault: true, NoDefault: true},
			routing.Intent{},
			[]routing.TableID{77},
			[]string{
				`ipv4.gateway: "::1" is no ipv4 address`, "ipv4.route-data: routes are a string",
				"ipv4.routing-rules: are a uint32", "ipv4: method has the type u, expected s",
				"ipv4: never-default has the type s, expected b",
				"ipv4: route-table has the type s, expected u",
				"ipv6: gateway has the type b, expected s", `user.data: multihomed.ignore is "perhaps", neither true nor false`,
			},
		},
		{
			"user data of another type", `{"user": {"data": <"multihomed.ignore=true">}, "ipv4": {"method": <"disabled">}}`, true,
			routing.Intent{NoDefault: true},
			routing.Intent{},
			nil,
			[]string{"user.data: has the type s"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := nm.DecodeProfile(settings(t, tt.text), before)
			if p.Ignored != tt.ignored {
				t.Errorf("ignored is %t", p.Ignored)
			}
			// Whatever is not set to something else is automatic.
			byHand := func(family string) bool {
				return slices.ContainsFunc([]string{"manual", "disabled", "ignore"}, func(method string) bool {
					return strings.Contains(tt.text, family+`": {"method": <"`+method+`"`)
				})
			}
			tt.v4.Automatic, tt.v6.Automatic = !byHand("ipv4"), !byHand("ipv6")
			want := map[routing.Family]routing.Intent{routing.IPv4: tt.v4, routing.IPv6: tt.v6}
			if diff := cmp.Diff(want, p.Intents, netipValues()); diff != "" {
				t.Errorf("intents (-want +got):\n%s", diff)
			}
			if !slices.Equal(p.Tables, tt.tables) {
				t.Errorf("tables are %v", p.Tables)
			}
			if len(p.Problems) != len(tt.problems) {
				t.Fatalf("problems are %q", p.Problems)
			}
			for i, problem := range p.Problems {
				if !strings.Contains(problem, tt.problems[i]) {
					t.Errorf("problem %d is %q, want %q", i, problem, tt.problems[i])
				}
			}
		})
	}
}

func TestFirstRouter(t *testing.T) {
	for _, tt := range []struct {
		option, want, err string
	}{
		{"192.0.2.1", "192.0.2.1", ""},
		{"192.0.2.1 192.0.2.2", "192.0.2.1", ""},
		{" 0.0.0.0  192.0.2.2 ", "192.0.2.2", ""},
		{"", "invalid IP", ""},
		{"0.0.0.0", "invalid IP", "no address of a host"},
		{"gateway", "invalid IP", "no address"},
		{"fe80::1", "invalid IP", "no ipv4 address"},
		{"255.255.255.255", "invalid IP", "no address of a host"},
	} {
		got, err := nm.FirstRouter(tt.option)
		if got.String() != tt.want || (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %s, %v", tt.option, got, err)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"eth0": "eth0", "": "", `a\\b`: `a\b`, `\303\244`: "ä", `x\`: `x\`, `\400`: `\400`, `\12`: `\12`, `a\"b`: `a"b`, `\\303`: `\303`,
	} {
		if got := nm.Unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for attempts, want := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		if got := nm.Backoff(100, 1000, attempts); got != want {
			t.Errorf("after %d attempts: %d", attempts, got)
		}
	}
	if got := nm.Backoff(time.Second, time.Minute, 1<<40); got != time.Minute {
		t.Errorf("after very many attempts: %s", got)
	}
}
