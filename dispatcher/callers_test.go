package dispatcher_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/dispatcher"
	"multihomed/routing"
)

// A capture is what a program set for its hook; those of the shell in between
// are left out.
type capture struct {
	name    string
	environ []string
}

// captures are from the programs of Debian 12 (ifupdown 0.8.41, dhclient, dhcpcd
// 9.4.1, udev) and 13, in a network namespace of their own with dnsmasq at the
// other end.
func captures(tb testing.TB, path string) []capture {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	var all []capture
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "-- "); ok {
			all = append(all, capture{name: strings.TrimSuffix(name, " --")})
			continue
		}
		last := &all[len(all)-1]
		last.environ = append(last.environ, line)
	}
	return all
}

// caller is the argument for the captures of a file: ifupdown-0.8.41.env.
func caller(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), "-")
	return name
}

func files(tb testing.TB) []string {
	tb.Helper()
	all, err := filepath.Glob(filepath.Join("testdata", "*.env"))
	if err != nil || len(all) == 0 {
		tb.Fatalf("%q, %v", all, err)
	}
	return all
}

func show(e dispatcher.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %q part=%q", e.Effect, e.Interface, e.Part)
	for _, f := range routing.Families() {
		c, known := e.Configs[f]
		if !known {
			continue
		}
		fmt.Fprintf(&b, "\n\t%v", f)
		for _, a := range c.Addresses {
			fmt.Fprintf(&b, " %v", a)
		}
		for _, a := range c.Gateways {
			fmt.Fprintf(&b, " via %v", a)
		}
		for _, r := range c.Routes {
			fmt.Fprintf(&b, " (%v", r.Destination)
			if r.Gateway.IsValid() {
				fmt.Fprintf(&b, " via %v", r.Gateway)
			}
			fmt.Fprint(&b, ")")
		}
		for _, d := range c.Delegated {
			fmt.Fprintf(&b, " delegated %v", d)
		}
		for _, a := range c.Servers {
			fmt.Fprintf(&b, " dns %v", a)
		}
		for _, d := range c.Domains {
			fmt.Fprintf(&b, " search %v", d)
		}
	}
	for _, o := range e.Odd {
		fmt.Fprintf(&b, "\n\todd %s", o)
	}
	return b.String()
}

// What the programs set, and what becomes of it.
func TestCaptures(t *testing.T) {
	t.Parallel()
	for _, path := range files(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			var got strings.Builder
			for _, c := range captures(t, path) {
				e, err := dispatcher.Parse([]string{caller(path)}, dispatcher.ParseEnvironment(c.environ))
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
					continue
				}
				if e.Caller != caller(path) {
					t.Errorf("%s: by %q", c.name, e.Caller)
				}
				fmt.Fprintf(&got, "%s (%s): %s\n", c.name, e.Action, show(e))
			}
			want, err := os.ReadFile(strings.TrimSuffix(path, ".env") + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	stanza := dispatcher.Environment{"IFACE": "wan0", "ADDRFAM": "inet", "METHOD": "manual", "MODE": "start", "PHASE": "post-up"}
	lease := dispatcher.Environment{"interface": "wan0", "reason": "BOUND"}
	device := dispatcher.Environment{"ACTION": "remove", "SUBSYSTEM": "net", "INTERFACE": "wan0"}
	for _, c := range []struct {
		args   []string
		env    dispatcher.Environment
		caller string
		effect dispatcher.Effect
	}{
		{[]string{"wan0", "up"}, nil, "NetworkManager", dispatcher.Configured},
		{[]string{"wan0", "up"}, stanza, "NetworkManager", dispatcher.Configured},
		{[]string{"wan0", "down"}, dispatcher.ParseEnvironment(up), "NetworkManager", dispatcher.Gone},
		{nil, stanza, "ifupdown", dispatcher.Configured},
		{[]string{"ifupdown"}, stanza, "ifupdown", dispatcher.Configured},
		{[]string{"dhclient"}, lease, "dhclient", dispatcher.Configured},
		{[]string{"dhcpcd"}, lease, "dhcpcd", dispatcher.Configured},
		{[]string{"udev"}, device, "udev", dispatcher.Removed},
		{[]string{"udev"}, dispatcher.Environment{"ACTION": "remove", "SUBSYSTEM": "block", "INTERFACE": "wan0"}, "udev", dispatcher.Nothing},
		{[]string{"udev"}, dispatcher.Environment{"ACTION": "add", "SUBSYSTEM": "net", "INTERFACE": "wan0"}, "udev", dispatcher.Nothing},
		{[]string{"dhclient"}, dispatcher.Environment{"interface": "../x", "reason": "PREINIT"}, "dhclient", dispatcher.Nothing},
	} {
		e, err := dispatcher.Parse(c.args, c.env)
		if err != nil || e.Caller != c.caller || e.Effect != c.effect || (e.Interface == "wan0") != (c.effect != dispatcher.Nothing) {
			t.Errorf("%q: %+v, %v", c.args, e, err)
		}
		if e.Effect == dispatcher.Gone && e.Configs != nil {
			t.Errorf("%q: some are gone: %+v", c.args, e)
		}
	}
}

func TestBadParse(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 16<<10)
	for _, c := range []struct {
		args []string
		env  dispatcher.Environment
	}{
		{nil, nil},
		{nil, dispatcher.Environment{"IFACE": "wan0", "MODE": "start"}},
		{nil, dispatcher.Environment{"interface": "wan0", "reason": "BOUND"}},
		{[]string{long}, nil},
		{[]string{"NetworkManager"}, nil},
		{[]string{"dhclient", "wan0", "BOUND"}, nil},
		{[]string{"", ""}, nil},
		{[]string{"ifupdown"}, nil},
		{[]string{"ifupdown"}, dispatcher.Environment{"IFACE": long, "ADDRFAM": "inet", "METHOD": "static", "PHASE": "post-up"}},
		{[]string{"ifupdown"}, dispatcher.Environment{"IFACE": ":1", "ADDRFAM": "inet", "METHOD": "static", "PHASE": "post-up"}},
		{[]string{"dhclient"}, dispatcher.Environment{"reason": "BOUND"}},
		{[]string{"dhclient"}, dispatcher.Environment{"interface": "wan0"}},
		{[]string{"dhclient"}, dispatcher.Environment{"interface": "wan0\nwan1", "reason": "BOUND"}},
		{[]string{"dhclient"}, dispatcher.Environment{"interface": "wan0\x00", "reason": "STOP6"}},
		{[]string{"dhcpcd"}, dispatcher.Environment{"interface": "a/b", "reason": "BOUND"}},
		{[]string{"dhcpcd"}, dispatcher.Environment{"interface": "..", "reason": "STOPPED"}},
		{[]string{"udev"}, nil},
		{[]string{"udev"}, dispatcher.Environment{"ACTION": "remove", "SUBSYSTEM": "net"}},
	} {
		if e, err := dispatcher.Parse(c.args, c.env); err == nil || len(err.Error()) > 400 {
			t.Errorf("%q: %+v, %v", c.args, e, err)
		}
	}
}

// What no capture shows: one line of variables each, in the words of show.
func TestWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, caller, environ, want string }{
		{"a length with the address", "ifupdown", "IF_ADDRESS=192.0.2.10/25 IF_NETMASK=255.0.0.0 METHOD=static", `configured "wan0" part="192.0.2.10" ipv4 192.0.2.10/25`},
		{"a length apart", "ifupdown", "IF_ADDRESS=192.0.2.10 IF_NETMASK=25 METHOD=static", `configured "wan0" part="192.0.2.10" ipv4 192.0.2.10/25`},
		{"no length", "ifupdown", "IF_ADDRESS=192.0.2.10 METHOD=static", `configured "wan0" part="192.0.2.10" ipv4 192.0.2.10/32`},
		{"holes", "ifupdown", "IF_ADDRESS=192.0.2.10 IF_NETMASK=255.0.255.0 METHOD=static", `configured "wan0" part="static" ipv4 odd IF_ADDRESS="192.0.2.10/255.0.255.0": a netmask with holes`},
		{"an alias without an address", "ifupdown", "IFACE=wan0:1 METHOD=dhcp", `configured "wan0" part="wan0:1" ipv4`},
		{"an alias without a name", "ifupdown", "IFACE=wan0: METHOD=dhcp", `configured "wan0" part="dhcp" ipv4`},
		{"an alias of odd characters", "ifupdown", "IFACE=wan0:$(x) METHOD=dhcp", `configured "wan0" part="dhcp" ipv4`},
		{"an interface of odd characters", "ifupdown", `IFACE=wan"0:1 METHOD=dhcp`, `configured "wan\"0" part="dhcp" ipv4`},
		{"a method of odd characters", "ifupdown", "METHOD=$(x)", `configured "wan0" part="" ipv4 odd METHOD="$(x)": not the name of a method`},
		{"a mapped address", "ifupdown", "ADDRFAM=inet6 METHOD=static IF_ADDRESS=::ffff:192.0.2.10 IF_GATEWAY=::ffff:192.0.2.1", `configured "wan0" part="static" ipv6 odd IF_ADDRESS="::ffff:192.0.2.10": not an address of ipv6 odd IF_GATEWAY="::ffff:192.0.2.1": not an address of ipv6`},
		{"a gateway of the other family", "ifupdown", "METHOD=static IF_ADDRESS=192.0.2.10/24 IF_GATEWAY=fe80::1", `configured "wan0" part="192.0.2.10" ipv4 192.0.2.10/24 odd IF_GATEWAY="fe80::1": not an address of ipv4`},
		{"a gateway with its interface", "ifupdown", "ADDRFAM=inet6 METHOD=auto IF_GATEWAY=fe80::1%wan0", `configured "wan0" part="auto" ipv6 via fe80::1`},
		{"an address family", "ifupdown", "ADDRFAM=can METHOD=static", `nothing "" part=""`},
		{"Debian's scripts for NetworkManager of old", "ifupdown", "ADDRFAM=NetworkManager METHOD=NetworkManager", `nothing "" part=""`},

		{"commas", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=0,192,0,2,1,16,10,8,192,0,2,254", `configured "wan0" part="" ipv4 via 192.0.2.1 (10.8.0.0/16 via 192.0.2.254)`},
		{"no default", "dhclient", "reason=BOUND new_routers=192.0.2.1 new_rfc3442_classless_static_routes=16,10,8,192,0,2,254", `configured "wan0" part="" ipv4 (10.8.0.0/16 via 192.0.2.254)`},
		{"every destination on the link", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=0,0,0,0,0", `configured "wan0" part="" ipv4 (0.0.0.0/0)`},
		{"every length", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=1,255,192,0,2,1,9,10,255,192,0,2,2,17,10,1,255,192,0,2,3,25,10,1,2,255,192,0,2,4", `configured "wan0" part="" ipv4 (128.0.0.0/1 via 192.0.2.1) (10.128.0.0/9 via 192.0.2.2) (10.1.128.0/17 via 192.0.2.3) (10.1.2.128/25 via 192.0.2.4)`},
		{"the better option", "dhclient", "reason=BOUND new_ms_classless_static_routes=0,192,0,2,9 new_rfc3442_classless_static_routes=0,192,0,2,1", `configured "wan0" part="" ipv4 via 192.0.2.1`},
		{"a tail cut off", "dhclient", "reason=BOUND new_routers=192.0.2.9 new_rfc3442_classless_static_routes=0,192,0,2,1,16,10,8,192", `configured "wan0" part="" ipv4 via 192.0.2.1 odd new_rfc3442_classless_static_routes="16 10 8 192": the route is cut off`},
		{"a tail too long", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=0,192,0,2,1,33,10,8,192,0,2,1", `configured "wan0" part="" ipv4 via 192.0.2.1 odd new_rfc3442_classless_static_routes="33 10 8 192 0 2 1": not the length of a destination`},
		{"a tail of no octets", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=0,192,0,2,1,8,256,192,0,2,1", `configured "wan0" part="" ipv4 via 192.0.2.1 odd new_rfc3442_classless_static_routes="8 256 192 0 2 1": "256" is not an octet`},
		{"a router that is none", "dhclient", "reason=BOUND new_rfc3442_classless_static_routes=8,10,224,0,0,1,0,192,0,2,1", `configured "wan0" part="" ipv4 via 192.0.2.1 odd new_rfc3442_classless_static_routes="224.0.0.1": not the address of a host`},
		{"a router elsewhere", "dhclient", "reason=REBOOT new_ip_address=192.0.2.10 new_subnet_mask=255.255.255.255 new_routers=198.51.100.1", `configured "wan0" part="" ipv4 192.0.2.10/32 via 198.51.100.1`},
		{"names with escapes", "dhclient", `reason=REBIND new_domain_name=example.net\000 new_domain_search=a\032b.example.`, `configured "wan0" part="" ipv4 search example.net odd new_domain_search="a\\032b.example": not a domain`},
		{"deprecated", "dhclient", "reason=DEPREF6 cur_ip6_address=2001:db8::1", `changed "wan0" part=""`},
		{"a delegated prefix", "dhclient", "reason=BOUND6 new_ip6_prefix=2001:db8:8::/56", `configured "wan0" part="2001:db8:8::/56" ipv6 delegated 2001:db8:8::/56`},
		{"an address of the other family", "dhclient", "reason=BOUND6 new_ip6_address=192.0.2.10 new_dhcp6_name_servers=192.0.2.53", `configured "wan0" part="" ipv6 odd new_ip6_address="192.0.2.10": not an address of ipv6 odd new_dhcp6_name_servers="192.0.2.53": not an address of ipv6`},
		{"gone without an address", "dhclient", "reason=EXPIRE6", `gone "wan0" part="" ipv6`},
		{"about to", "dhclient", "reason=ARPCHECK", `nothing "" part=""`},
		{"of a later release", "dhclient", "reason=SOMETHING", `nothing "" part=""`},

		{"a gateway missing", "dhcpcd", "reason=BOUND new_routers=192.0.2.9 new_classless_static_routes=0.0.0.0/0", `configured "wan0" part="dhcp" ipv4 odd new_classless_static_routes="0.0.0.0/0": a destination without a gateway`},
		{"only a mask", "dhcpcd", "reason=REBIND new_ip_address=192.0.2.10 new_subnet_mask=255.255.255.0 new_routers=192.0.2.1", `configured "wan0" part="dhcp" ipv4 192.0.2.10/24 via 192.0.2.1`},
		{"somebody else is waited for", "dhcpcd", "reason=3RDPARTY if_down=true", `nothing "" part=""`},
		{"somebody else has come", "dhcpcd", "reason=3RDPARTY if_up=true new_ip_address=192.0.2.10 new_subnet_cidr=24", `configured "wan0" part="dhcp" ipv4 192.0.2.10/24`},
		{"delegated", "dhcpcd", "reason=REBIND6 new_dhcp6_ia_pd1_prefix1=2001:db8:a:: new_dhcp6_ia_pd1_prefix1_length=56 new_dhcp6_ia_pd1_prefix2=2001:db8:b:: new_dhcp6_ia_pd1_prefix2_length=60 new_dhcp6_ia_pd1_prefix2_vltime=0 new_dhcp6_ia_pd3_prefix1=2001:db8:c:: new_dhcp6_ia_pd3_prefix1_length=64", `configured "wan0" part="dhcp6" ipv6 delegated 2001:db8:a::/56 delegated 2001:db8:c::/64`},
		{"delegated, and not", "dhcpcd", "reason=BOUND6 new_dhcp6_ia_pd1_prefix1=:: new_dhcp6_ia_pd1_prefix1_length=0 new_dhcp6_ia_pd1_prefix2=2000:: new_dhcp6_ia_pd1_prefix2_length=3 new_dhcp6_ia_pd1_prefix3=fe80:: new_dhcp6_ia_pd1_prefix3_length=64 new_dhcp6_ia_pd1_prefix4=2001:db8:d:: new_dhcp6_ia_pd1_prefix5=10.0.0.0 new_dhcp6_ia_pd1_prefix5_length=8", `configured "wan0" part="dhcp6" ipv6 odd new_dhcp6_ia_pd1_prefix1="::/0": too wide to be delegated to a host odd new_dhcp6_ia_pd1_prefix2="2000::/3": too wide to be delegated to a host odd new_dhcp6_ia_pd1_prefix3="fe80::/64": not a network that can be delegated odd new_dhcp6_ia_pd1_prefix4="2001:db8:d::/": not a destination of ipv6 odd new_dhcp6_ia_pd1_prefix5="10.0.0.0/8": not a destination of ipv6`},
		{"a part of a delegated prefix", "dhcpcd", "reason=DELEGATED6 new_delegated_dhcp6_prefix=2001:db8:a:1::1/64", `configured "wan0" part="dhcp6" ipv6 2001:db8:a:1::1/64`},
		{"parts of delegated prefixes that are over", "dhcpcd", "reason=DELEGATED6 if_down=true", `gone "wan0" part="dhcp6" ipv6`},
		{"several associations", "dhcpcd", "reason=RENEW6 new_dhcp6_ia_na1_ia_addr1=2001:db8::1 new_dhcp6_ia_na1_ia_addr2=2001:db8::2 new_dhcp6_ia_na1_ia_addr2_vltime=0 new_dhcp6_ia_na3_ia_addr1=2001:db8::3 new_dhcp6_ia_ta1_ia_addr1=2001:db8::4", `configured "wan0" part="dhcp6" ipv6 2001:db8::1/128 2001:db8::3/128 2001:db8::4/128`},
		{"the lease goes on", "dhcpcd", "reason=TIMEOUT6 new_dhcp6_ia_na1_ia_addr1=2001:db8::1", `configured "wan0" part="dhcp6" ipv6 2001:db8::1/128`},
		{"preferences", "dhcpcd", "reason=ROUTERADVERT nd1_from=fe80::1 nd1_flags=MOl nd2_from=fe80::2 nd2_flags=H nd3_from=fe80::3 nd3_flags=h nd4_from=fe80::4 nd4_flags=h nd4_lifetime=0", `configured "wan0" part="ra" ipv6 via fe80::3 via fe80::2 via fe80::1`},
		{"what is over", "dhcpcd", "reason=ROUTERADVERT nd1_from=fe80::1 nd1_rdnss1_servers=fe80::53 nd1_rdnss1_lifetime=0 nd1_dnssl1_search=example.net nd1_dnssl1_lifetime=0 nd1_prefix_information1_prefix=2001:db8:: nd1_prefix_information1_length=64 nd1_prefix_information1_flags=LA nd1_prefix_information1_vltime=0", `configured "wan0" part="ra" ipv6 via fe80::1`},
		{"nobody with a zone", "dhcpcd", "reason=ROUTERADVERT nd1_from=::%wan0", `configured "wan0" part="ra" ipv6 odd nd1_from="::%wan0": not the address of a host`},
		{"no router", "dhcpcd", "reason=ROUTERADVERT if_up=true", `gone "wan0" part="ra" ipv6`},
		{"refused", "dhcpcd", "reason=NAK if_down=true", `gone "wan0" part="dhcp" ipv4`},
		{"without carrier for a while", "dhcpcd", "reason=NOCARRIER_ROAMING if_up=true", `nothing "" part=""`},
		{"a test", "dhcpcd", "reason=TEST new_ip_address=192.0.2.10", `nothing "" part=""`},
	} {
		environ := append(strings.Fields(c.environ), "interface=wan0", "IFACE=wan0", "ADDRFAM=inet", "MODE=start", "PHASE=post-up")
		e, err := dispatcher.Parse([]string{c.caller}, dispatcher.ParseEnvironment(environ))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, strings.Join(strings.Fields(show(e)), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// ifupdown writes a line for each time that an option is there.
func TestLines(t *testing.T) {
	t.Parallel()
	e, err := dispatcher.Parse(nil, dispatcher.Environment{
		"IFACE": "wan0", "ADDRFAM": "inet", "METHOD": "static", "MODE": "start", "PHASE": "post-up",
		"IF_ADDRESS": "192.0.2.10", "IF_NETMASK": "255.255.255.0", "IF_DNS_NAMESERVER": "192.0.2.53\n192.0.2.54", "IF_DNS_NAMESERVERS": "192.0.2.54 192.0.2.55",
	})
	want := "configured \"wan0\" part=\"192.0.2.10\"\n\tipv4 192.0.2.10/24 dns 192.0.2.54 dns 192.0.2.55 dns 192.0.2.53"
	if got := show(e); got != want || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// No value is an error of the whole, and none makes an event grow.
func TestHostile(t *testing.T) {
	t.Parallel()
	var routes, octets, addresses, names []string
	for n := range 300 {
		routes = append(routes, fmt.Sprintf("10.%d.%d.0/24 192.0.2.1", n/256, n%256))
		octets = append(octets, fmt.Sprintf("24 10 %d %d 192 0 2 1", n/256, n%256))
		addresses = append(addresses, fmt.Sprintf("192.0.2.%d 198.51.100.%d", n%250+1, n%250+1))
		names = append(names, fmt.Sprintf("a%d.example", n))
	}
	values := []string{
		strings.Repeat("x", 16<<10), strings.Repeat("192.0.2.1 ", 1600), strings.Repeat("0 ", 8000), strings.Repeat("255 ", 4000), strings.Repeat("\n", 16<<10), strings.Repeat("a.", 8000),
		"192.0.2.1\nsearch evil", "a\x00b", "\x00", "$(reboot)", "`reboot`", "../../etc", "::ffff:192.0.2.1", "::ffff:192.0.2.1/120", "0.0.0.0", "::", "255.255.255.255", "ff02::1", "127.0.0.1", "fe80::1%../x",
		"-1", "4294967296", "99999999999999999999", "\xff\xfe", "192.0.2.1/33", "2001:db8::/129", "0.0.0.0/0 0.0.0.0", "0.0.0.0/0 ::1", "::/0 fe80::1",
		strings.Join(routes, " "), strings.Join(octets, " "), strings.Join(octets, ","), strings.Join(addresses, " "), strings.Join(names, " "), "",
	}
	for _, path := range files(t) {
		for _, c := range captures(t, path) {
			for _, value := range values {
				env := dispatcher.ParseEnvironment(c.environ)
				for name := range env {
					switch name {
					case "IFACE", "ADDRFAM", "METHOD", "PHASE", "interface", "reason", "ACTION", "INTERFACE", "SUBSYSTEM":
					default:
						env[name] = value
					}
				}
				env["new_ms_classless_static_routes"] = value
				e, err := dispatcher.Parse([]string{caller(path)}, env)
				if err != nil {
					t.Fatalf("%s, %.60q: %v", c.name, value, err)
				}
				check(t, e)
				// One after the other, with the rest as it was.
				for name := range env {
					one := dispatcher.ParseEnvironment(c.environ)
					one[name] = value
					if e, err := dispatcher.Parse([]string{caller(path)}, one); err == nil {
						check(t, e)
					} else if len(err.Error()) > 400 {
						t.Errorf("%s, %s: %v", c.name, name, err)
					}
				}
			}
		}
	}
	e, err := dispatcher.Parse([]string{"dhclient"}, dispatcher.Environment{"interface": "wan0", "reason": "BOUND", "new_rfc3442_classless_static_routes": strings.Join(octets, " ")})
	if err != nil || len(e.Configs[routing.IPv4].Routes) != 256 || len(e.Odd) != 1 {
		t.Errorf("%d routes, %q, %v", len(e.Configs[routing.IPv4].Routes), e.Odd, err)
	}
	delegated := dispatcher.Environment{"interface": "wan0", "reason": "BOUND6"}
	for n := 1; n <= 100; n++ {
		name := fmt.Sprintf("new_dhcp6_ia_pd%d_prefix%d", n%16+1, n/16+1)
		delegated[name], delegated[name+"_length"] = fmt.Sprintf("2001:db8:%x::", n), "48"
	}
	e, err = dispatcher.Parse([]string{"dhcpcd"}, delegated)
	if err != nil || len(e.Configs[routing.IPv6].Delegated) != dispatcher.MaxDelegated || len(e.Odd) != 1 {
		t.Errorf("%d delegated, %q, %v", len(e.Configs[routing.IPv6].Delegated), e.Odd, err)
	}
	e, err = dispatcher.Parse([]string{"dhcpcd"}, dispatcher.Environment{"interface": "wan0", "reason": "BOUND", "new_classless_static_routes": strings.Join(routes, " ")})
	if err != nil || len(e.Configs[routing.IPv4].Routes) != 256 || len(e.Odd) != 1 {
		t.Errorf("%d routes, %q, %v", len(e.Configs[routing.IPv4].Routes), e.Odd, err)
	}
}

// check is what everybody may rely on.
func check(t *testing.T, e dispatcher.Event) {
	t.Helper()
	name := func(text string) bool {
		return text != "" && len(text) <= 15 && text != "." && text != ".." && !strings.ContainsAny(text, "/: \t\n\x00")
	}
	if e.Effect != dispatcher.Nothing && !name(e.Interface) || e.Effect == dispatcher.Nothing && e.Interface != "" {
		t.Errorf("%v of interface %q", e.Effect, e.Interface)
	}
	_, err := netip.ParsePrefix(e.Part) // Of a delegation.
	if len(e.Caller) > 20 || len(e.Action) > 70 || len(e.Part) > 70 || strings.ContainsAny(e.Part, " \t\n\x00/'\"$") && err != nil {
		t.Errorf("%q %q part %q", e.Caller, e.Action, e.Part)
	}
	if len(e.Odd) > 20 {
		t.Errorf("%d odd values", len(e.Odd))
	}
	for _, o := range e.Odd {
		if len(o) > 500 || strings.ContainsAny(o, "\n\x00") {
			t.Errorf("odd: %q", o)
		}
	}
	for f, c := range e.Configs {
		host := func(a netip.Addr) bool {
			return a.IsValid() && routing.FamilyOf(a) == f && !a.Is4In6() && a.Zone() == "" && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback()
		}
		if e.Effect == dispatcher.Gone && len(c.Addresses)+len(c.Gateways)+len(c.Routes)+len(c.Servers)+len(c.Domains)+len(c.Delegated) != 0 {
			t.Errorf("gone: %+v", c)
		}
		if max(len(c.Addresses), len(c.Gateways), len(c.Routes), len(c.Servers), len(c.Domains)) > 256 {
			t.Errorf("%d addresses, %d gateways, %d routes, %d servers, %d domains", len(c.Addresses), len(c.Gateways), len(c.Routes), len(c.Servers), len(c.Domains))
		}
		if len(c.Delegated) > dispatcher.MaxDelegated {
			t.Errorf("%d delegated prefixes", len(c.Delegated))
		}
		for _, d := range c.Delegated {
			if err := dispatcher.CheckDelegated(d); err != nil || f != routing.IPv6 || !d.Addr().Is6() {
				t.Errorf("delegated %v of %v: %v", d, f, err)
			}
		}
		for _, a := range c.Addresses {
			if !a.IsValid() || !host(a.Addr()) {
				t.Errorf("address %v of %v", a, f)
			}
		}
		for _, a := range append(append([]netip.Addr{}, c.Gateways...), c.Servers...) {
			if !host(a) {
				t.Errorf("address %v of %v", a, f)
			}
		}
		for _, r := range c.Routes {
			d := r.Destination
			if !d.IsValid() || d != d.Masked() || d.Addr().Is4In6() || routing.FamilyOf(d.Addr()) != f || r.Gateway.IsValid() && (!host(r.Gateway) || d.Bits() == 0) {
				t.Errorf("route %+v of %v", r, f)
			}
		}
		for _, d := range c.Domains {
			if d == "" || len(d) > 253 || strings.Trim(d, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || strings.HasPrefix(d, "-") || strings.Contains(d, "..") {
				t.Errorf("domain %q", d)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("wan0 up", strings.Join(up, "\n"))
	f.Add("wan0 down", strings.Join(up, "\n"))
	for _, path := range files(f) {
		for _, c := range captures(f, path) {
			f.Add(caller(path), strings.Join(c.environ, "\n"))
			if caller(path) == "ifupdown" {
				f.Add("", strings.Join(c.environ, "\n"))
			}
		}
	}
	f.Fuzz(func(t *testing.T, args, environ string) {
		e, err := dispatcher.Parse(strings.Fields(args), dispatcher.ParseEnvironment(strings.Split(environ, "\n")))
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		check(t, e)
		// The same again is the same.
		again, err := dispatcher.Parse(strings.Fields(args), dispatcher.ParseEnvironment(strings.Split(environ, "\n")))
		if diff := cmp.Diff(show(e), show(again)); diff != "" || err != nil {
			t.Errorf("%v, (-first +second):\n%s", err, diff)
		}
	})
}
