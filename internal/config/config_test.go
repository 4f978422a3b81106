package config_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"multihomed/dispatcher"
	"multihomed/internal/config"
	"multihomed/nm"
	"multihomed/routing"
)

// uncommented is the reference with its defaults switched on: what starts with #
// and no space after it is a default, the rest is text.
func uncommented() string {
	return regexp.MustCompile(`(?m)^#([^ \n])`).ReplaceAllString(config.Reference, "$1")
}

func TestReferenceIsTheDefault(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"as it is": config.Reference, "uncommented": uncommented(), "empty": ""} {
		got, err := config.Parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(config.Default(), got); diff != "" {
			t.Errorf("%s (-default +got):\n%s", name, diff)
		}
	}
}

func TestReferenceSetsEveryDefault(t *testing.T) {
	t.Parallel()
	// Each default of the reference, spoiled, must be noticed: so the file does
	// name the key, in the right table.
	text := uncommented()
	for _, key := range config.Keys() {
		leaf := key[strings.LastIndexByte(key, '.')+1:]
		switch {
		case strings.HasPrefix(key, "include.") || strings.HasPrefix(key, "exclude.") || strings.HasPrefix(key, "link.") || strings.HasPrefix(key, "bind."):
			if !regexp.MustCompile(`(?m)^#   ` + leaf + `  `).MatchString(text) {
				t.Errorf("the reference does not explain %s", key)
			}
		case regexp.MustCompile(`(?m)^#? *\[+` + regexp.QuoteMeta(key) + `\]+$`).MatchString(text):
			// A table.
		default:
			spoiled := regexp.MustCompile(`(?m)^`+leaf+` = .*$`).ReplaceAllString(text, leaf+" = [[]]")
			_, err := config.Parse("f", []byte(spoiled))
			if err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("the reference does not set %s: %v", key, err)
			}
		}
	}
}

func TestEverythingSet(t *testing.T) {
	t.Parallel()
	const text = `
uplink_group = 7
container_prefix_length = 0
network_rules = "always"
log_level = "debug"
network_manager = "no"
state_dir = "/srv/multihomed/"
runtime_dir = "/run/other"
exclude = [{type = "bridge", interface = "lab?"}]

[tables]
first = 100
last = 199

[repair]
burst = 3
per_second = 2

[allocator]
enabled = false
socket = "other"
lifetime = 70000
families = ["ipv6", "unspecified", "ipv6"]
users = ["www-data", "1000"]
groups = []
tables_per_user = 3

[dns]
servers_file = "/run/other/servers"
dnsmasq_pid_file = "/run/dnsmasq.pid"

[ifupdown]
move_routes = true

[failover]
enabled = false
targets = ["192.0.2.1", "tcp:[2001:db8::1]:443", "icmp:192.0.2.2", "192.0.2.1:53", "2001:db8::2", "192.0.2.3:853"]
probe = "dns"
interval = "1s"
standby = "10s"
metered = "1h30m"
silence = "1.5s"
recover = "1m"
prefer = ["wan1", "ho?e", "wan1"]
forwarded = "all"
host_routes = true
conntrack = false
close_connections = "never"
mptcp = "no"
prober = "/run/other/prober"

[share.weights]
"wan*" = 1
wan0 = 3
"eth0.100" = 255

[answers]
forwarded = "yes"
fence = "no"
mark_mask = 0x70
on_dead = "keep"

[run]
group = "network"

[[include]]
interface = "tun*"
[[include]]
profile = "home \\* [a-c]"

[[link]]
interface = "wan*"
profile = "office"
role = "uplink"
gateway = ["2001:db8::1", "192.0.2.1"]
last_resort = true
ignore = false
delegated = ["2001:db8:b::/56", "198.51.100.0/24", "2001:db8:b::/56"]
[[link]]
type = "wifi"
role = "local"
gateway = "fe80::1"
`
	want := config.Config{
		Tables:      routing.TableRange{First: 100, Last: 199},
		UplinkGroup: 7, ContainerPrefixLength: 0,
		Include: []config.Matcher{{Interface: "tun*"}, {Profile: `home \* [a-c]`}},
		Exclude: []config.Matcher{{Type: "bridge", Interface: "lab?"}},
		Links: []config.Link{{
			Matcher: config.Matcher{Interface: "wan*", Profile: "office"}, Role: routing.AlwaysUplink,
			Gateways:   []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")},
			LastResort: new(true), Ignore: new(false),
			Delegated: []netip.Prefix{netip.MustParsePrefix("2001:db8:b::/56"), netip.MustParsePrefix("198.51.100.0/24")},
		}, {
			Matcher: config.Matcher{Type: "wifi"}, Role: routing.AlwaysLocal, Gateways: []netip.Addr{netip.MustParseAddr("fe80::1")},
		}},
		NetworkRules: config.Always,
		LogLevel:     slog.LevelDebug, RepairBurst: 3, RepairsPerSecond: 2,
		Allocator: config.Allocator{
			Socket: "other", Lifetime: 70000 * time.Second, Families: []routing.Family{0, routing.IPv6},
			Users: []string{"www-data", "1000"}, TablesPerUser: 3,
		},
		NetworkManager: config.No,
		Failover: config.Failover{
			Targets: []config.Target{
				{Probe: config.ProbeDNS, Address: netip.MustParseAddrPort("192.0.2.1:53")},
				{Probe: config.ProbeTCP, Address: netip.MustParseAddrPort("[2001:db8::1]:443")},
				{Probe: config.ProbeICMP, Address: netip.MustParseAddrPort("192.0.2.2:0")},
				{Probe: config.ProbeDNS, Address: netip.MustParseAddrPort("[2001:db8::2]:53")},
				{Probe: config.ProbeDNS, Address: netip.MustParseAddrPort("192.0.2.3:853")},
			},
			Probe: config.ProbeDNS, Interval: time.Second, Standby: 10 * time.Second, Metered: 90 * time.Minute,
			Silence: 1500 * time.Millisecond, Recover: time.Minute, Prefer: []config.Name{"wan1", "ho?e"},
			Forwarded: config.ForwardedAll, HostRoutes: true, CloseConnections: config.Never,
			MPTCP: config.MPTCPNo, Prober: "/run/other/prober",
		},
		Share:      config.Share{Weights: []config.Weight{{Name: "eth0.100", Weight: 255}, {Name: "wan0", Weight: 3}, {Name: "wan*", Weight: 1}}},
		Answers:    config.Answers{Forwarded: config.Yes, Fence: config.No, MarkMask: 0x70, OnDead: config.Keep},
		Run:        config.Run{Group: "network"},
		DNS:        config.DNS{ServersFile: "/run/other/servers", PIDFile: "/run/dnsmasq.pid"},
		MoveRoutes: true,
		StateDir:   "/srv/multihomed", RuntimeDir: "/run/other",
	}
	got, err := config.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !got.RoutingPolicy().NetworksAlways || config.Default().RoutingPolicy().NetworksAlways {
		t.Error("network_rules is not in the routing policy")
	}
	if p := got.RoutingPolicy(); p.Tables != want.Tables || p.UplinkGroup != 7 || p.ContainerPrefixLength != 0 {
		t.Errorf("routing policy %+v", p)
	}
	p := got.NMPolicy()
	if len(p.Include) != 2 || len(p.Exclude) != 1 || p.Exclude[0].Interface != "lab?" || p.Exclude[0].Type != "bridge" {
		t.Errorf("policy for NetworkManager %+v", p)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"not TOML":       {"a = 1\nb = = 2\n", "f:2: not valid TOML: "},
		"not text":       {"\x00\x01", "f:1: not valid TOML: "},
		"unknown key":    {"\nuplink_grup = 3\n", "f:2: uplink_grup: unknown key; did you mean uplink_group?"},
		"wrong table":    {"first = 3\n", "f:1: first: unknown key; did you mean tables.first?"},
		"unknown nested": {"[tables]\nlats = 3\n", "f:2: tables.lats: unknown key; did you mean tables.last?"},
		"unknown table":  {"[rapair]\n", "f:1: rapair: unknown key; did you mean repair?"},
		"in a list":      {"[[include]]\nifname = 'a'\n", "f:2: include.ifname (entry 1): unknown key; include has interface, profile, type"},
		"far from all":   {"x = 1\n", "f:1: x: unknown key; there are uplink_group, container_prefix_length, network_rules, log_level, network_manager, state_dir, runtime_dir, tables, repair, allocator, dns, ifupdown, failover, share, answers, run, include, exclude, link, bind"},
		"twice":          {"uplink_group = 1\nuplink_group = 2\n", "f:2: uplink_group: "},
		"two unknown":    {"aaaaaaaaaaaaa = 1\nbbbbbbbbbbbbb = 2\n", "f:2: bbbbbbbbbbbbb: unknown key"},
		"wrong type":     {"uplink_group = 'x'\n", "f:1: uplink_group: a string (\"x\") where a number from 1 to 2147483647 belongs"},
		"table for key":  {"[log_level]\n", "f:1: log_level: a table where \"debug\", \"info\", \"warn\" or \"error\" belongs"},
		"key for table":  {"tables = 3\n", "f:1: tables: a whole number (3) where a table ([tables]) belongs"},
		"fraction":       {"[repair]\nburst = 1.5\n", "f:2: repair.burst: a number with a point (1.5) where a whole number from 1 to 10000 belongs"},
		"huge":           {"uplink_group = 99999999999999999999\n", "f:1: uplink_group: 99999999999999999999 is not allowed; want a number from 1 to 2147483647"},
		"group 0":        {"uplink_group = 0\n", "f:1: uplink_group: 0 is not allowed; want a number from 1 to 2147483647"},
		"group negative": {"uplink_group = -1\n", "f:1: uplink_group: -1 is not allowed"},
		"prefix length":  {"container_prefix_length = 32\n", "f:1: container_prefix_length: 32 is not allowed; want a number from 0 to 31"},
		"log level":      {"log_level = 'loud'\n", `f:1: log_level: "loud" is not allowed; want "debug", "info", "warn" or "error"`},
		"relative":       {"state_dir = 'var'\n", `f:1: state_dir: "var" is not allowed; want the absolute path of a directory`},
		"root":           {"runtime_dir = '/run/..'\n", `f:1: runtime_dir: "/run/.." is not allowed`},
		"zero byte":      {"runtime_dir = \"/a\\u0000b\"\n", `f:1: runtime_dir: "/a\x00b" is not allowed`},
		"burst":          {"[repair]\n\nburst = 0\n", "f:3: repair.burst: 0 is not allowed; want a whole number from 1 to 10000"},
		"rate 0":         {"[repair]\nper_second = 0\n", "f:2: repair.per_second: 0 is not allowed; want a number above 0, at most 1000"},
		"rate infinite":  {"repair.per_second = inf\n", "f:1: repair.per_second: +Inf is not allowed"},
		"rate nan":       {"repair = {per_second = nan}\n", "f:1: repair.per_second: NaN is not allowed"},
		"table 0":        {"[tables]\nfirst = 0\nlast = 10\n", "f:2: tables.first: 0 is not allowed; want a number from 1 to 4294967295"},
		"table large":    {"[tables]\nlast = 4294967296\n", "f:2: tables.last: 4294967296 is not allowed"},
		"empty range":    {"[tables]\nfirst = 11\nlast = 10\n", "f:3: tables.last: the range 11-10 is empty"},
		"only first":     {"[tables]\nfirst = 20000\n", "f:2: tables.first: the range 20000-10999 is empty: tables.first (default 10000) must be below tables.last (default 10999)"},
		"too large":      {"[tables]\nfirst = 100000\nlast = 4294967295\n", "f:3: tables.last: the range 100000-4294967295 is too large: at most 1000000 tables"},
		"main":           {"[tables]\nfirst = 200\nlast = 300\n", "f:3: tables.last: the range 200-300 holds tables of the kernel (253-255); choose one that does not, such as 10000-10999"},
		"only local":     {"[tables]\nfirst = 255\nlast = 300\n", "holds tables of the kernel (253-255)"},
		"networkmanager": {"[tables]\nfirst = 20000\nlast = 20100\n", "holds tables of NetworkManager (20053-20053)"},
		"cloud-setup":    {"[tables]\nfirst = 30499\nlast = 30600\n", "holds tables of nm-cloud-setup (30200-30499)"},
		"wireguard":      {"[tables]\nfirst = 51000\nlast = 51820\n", "holds tables of WireGuard of NetworkManager (51820-52319)"},
		"socket name":    {"[allocator]\nsocket = ''\n", `f:2: allocator.socket: "" is not allowed; want a name of 1 to 107 bytes`},
		"lifetime":       {"[allocator]\nlifetime = 9\n", "f:2: allocator.lifetime: 9 is not allowed; want a whole number of seconds from 10 to 31536000"},
		"family":         {"[allocator]\nfamilies = ['ipv4', 'ipx']\n", `f:2: allocator.families: "ipx" is not allowed; want a non-empty list of "ipv4", "ipv6" and "unspecified"; did you mean "ipv4"?`},
		"no family":      {"[allocator]\nfamilies = []\n", "f:2: allocator.families: an empty list is not allowed"},
		"user":           {"[allocator]\nusers = ['a:b']\n", `f:2: allocator.users: "a:b" is not allowed`},
		"group of run":   {"run.group = 'a,b'\n", `f:1: run.group: "a,b" is not allowed; want the name or number of a group`},
		"empty group":    {"allocator.groups = ['']\n", `f:1: allocator.groups: "" is not allowed`},
		"bad glob":       {"[[exclude]]\ntype = 'a'\n[[exclude]]\ntype = 'b'\ninterface = 'wan['\n", `f:5: exclude.interface (entry 2): "wan[" is not allowed; want a non-empty glob such as "wan*"`},
		"bad glob flat":  {"include = [{interface='a'},\n {profile='['}]\n", `include.profile (entry 2): "[" is not allowed`},
		"empty glob":     {"[[include]]\nprofile = ''\n", `f:2: include.profile (entry 1): "" is not allowed`},
		"empty matcher":  {"[[include]]\ninterface = 'a'\n\n[[include]]\n", "f:4: include (entry 2): nothing is set; want interface, profile or type, or several"},
		"network rules":  {"network_rules = 'no'\n", `f:1: network_rules: "no" is not allowed; want "missing" or "always"`},
		"one table":      {"[tables]\nfirst = 20\nlast = 20\n", "f:3: tables.last: the range 20-20 holds one table: at least 2 are needed, because the last one is kept for failover"},

		"link, unknown":            {"[[link]]\ninterface = 'a'\nrole = 'local'\ngatway = 3\n", "f:4: link.gatway (entry 1): unknown key; did you mean link.gateway?"},
		"link, no match":           {"[[link]]\nrole = 'local'\n", "f:1: link (entry 1): nothing to match is set; want interface, profile or type, or several"},
		"link, no setting":         {"[[link]]\ntype = 'a'\nignore = true\n\n[[link]]\ninterface = 'a'\n", "f:5: link (entry 2): it sets nothing for the links that it matches; want role, gateway, last_resort, ignore or delegated"},
		"link, bad glob":           {"[[link]]\nignore = true\ninterface = 'wan['\n", `f:3: link.interface (entry 1): "wan[" is not allowed; want a non-empty glob such as "wan*"`},
		"link, role":               {"[[link]]\ntype = 'a'\nrole = 'wan'\n", `f:3: link.role (entry 1): "wan" is not allowed; want "uplink" or "local"`},
		"link, role, type":         {"[[link]]\ntype = 'a'\nrole = true\n", `f:3: link.role (entry 1): a boolean (true) where "uplink" or "local" belongs`},
		"link, gateway":            {"[[link]]\ntype = 'a'\ngateway = 'router'\n", `f:3: link.gateway (entry 1): "router" is not allowed (not an address); want the address of a router, or a list with one of IPv4 and one of IPv6`},
		"link, gateway, any":       {"[[link]]\ntype = 'a'\ngateway = '0.0.0.0'\n", `"0.0.0.0" is not allowed (not the address of a host)`},
		"link, gateway, zone":      {"[[link]]\ntype = 'a'\ngateway = 'fe80::1%wan0'\n", `"fe80::1%wan0" is not allowed (without a zone`},
		"link, gateway, mapped":    {"[[link]]\ntype = 'a'\ngateway = '::ffff:192.0.2.1'\n", `(an address of IPv4 is written as one)`},
		"link, gateway, type":      {"[[link]]\ntype = 'a'\ngateway = 3\n", `f:3: link.gateway (entry 1): a whole number (3) where the address of a router, or a list with one of IPv4 and one of IPv6 belongs`},
		"link, gateways, type":     {"[[link]]\ntype = 'a'\ngateway = ['192.0.2.1', 3]\n", `f:3: link.gateway (entry 1): in the list, a whole number (3) where the address of a router`},
		"link, gateways, twice":    {"[[link]]\ntype = 'a'\ngateway = ['192.0.2.1', '192.0.2.2']\n", `"192.0.2.2" is not allowed (a second one of ipv4); want`},
		"link, gateways, none":     {"[[link]]\ntype = 'a'\ngateway = []\n", `link.gateway (entry 1): an empty list is not allowed`},
		"link, gateways, table":    {"[[link]]\ntype = 'a'\ngateway = {a = 1}\n", `link.gateway`},
		"link, last resort":        {"[[link]]\ntype = 'a'\nlast_resort = 'yes'\n", "f:3: link.last_resort (entry 1): a string (\"yes\") where true or false belongs"},
		"link, delegated":          {"[[link]]\ntype = 'a'\ndelegated = ['2001:db8::1']\n", `f:3: link.delegated (entry 1): "2001:db8::1" is not allowed (not a network); want a non-empty list of networks such as "2001:db8:b::/56"`},
		"link, delegated, bits":    {"[[link]]\ntype = 'a'\ndelegated = ['2001:db8:b:1::/56']\n", `"2001:db8:b:1::/56" is not allowed (it has host bits: 2001:db8:b::/56 is meant)`},
		"link, delegated, all":     {"[[link]]\ntype = 'a'\ndelegated = ['::/0']\n", `"::/0" is not allowed (too wide to be delegated to a host)`},
		"link, delegated, halves":  {"[[link]]\ntype = 'a'\ndelegated = ['128.0.0.0/1']\n", `(too wide to be delegated to a host)`},
		"link, delegated, local":   {"[[link]]\ntype = 'a'\ndelegated = ['fe80::/64']\n", `(not a network that can be delegated)`},
		"link, delegated, none":    {"[[link]]\ntype = 'a'\ndelegated = []\n", `an empty list is not allowed`},
		"link, delegated, many":    {"[[link]]\ntype = 'a'\ndelegated = [" + strings.Repeat("'2001:db8:b::/56', ", 65) + "]\n", `a list of 65 is not allowed (at most 64)`},
		"link, a key":              {"link = 3\n", "f:1: link: a whole number (3) where a list of tables ([[link]]) belongs"},
		"number in quotes":         {"[tables]\nfirst = '10000'\n", `f:2: tables.first: a string ("10000") where a number from 1 to 4294967295 belongs; write it without quotation marks`},
		"boolean in quotes":        {"allocator.enabled = 'true'\n", `f:1: allocator.enabled: a string ("true") where true or false belongs; write it without quotation marks`},
		"number of a user":         {"allocator.users = ['a', 1000]\n", `f:1: allocator.users: in the list, a whole number (1000) where a list of names or numbers of users belongs; write it as "1000"`},
		"no list":                  {"allocator.users = 'a'\n", `f:1: allocator.users: a string ("a") where a list of names`},
		"a date":                   {"log_level = 2026-11-28\n", `f:1: log_level: a date or time where`},
		"one table for a list":     {"\n[link]\ninterface = 'a'\n", "f:2: link: a table where a list of tables ([[link]]) belongs"},
		"no table in a list":       {"exclude = [{type = 'a'}, 3]\n", "f:1: exclude (entry 2): a whole number (3) where a table belongs"},
		"a list for a table":       {"[[tables]]\n", "f:1: tables: a list where a table ([tables]) belongs"},
		"a word":                   {"[[link]]\ntype = 'a'\nrole = 'uplnk'\n", `f:3: link.role (entry 1): "uplnk" is not allowed; want "uplink" or "local"; did you mean "uplink"?`},
		"a case":                   {"Log_level = 'info'\n", "f:1: Log_level: unknown key; did you mean log_level?"},
		"a key in quotes":          {"\"tables.first\" = 3\n", `f:1: "tables.first": unknown key; did you mean tables.first?`},
		"a key of controls":        {"\"a\\u001b[31m\" = 3\n", `f:1: "a\x1b[31m": unknown key`},
		"a dotted key":             {"\nx.y.z = 3\n", "f:2: x: unknown key"},
		"huge in a list":           {"[[link]]\ntype = 'a'\ngateway = [0x99999999999999999999]\n", "f:3: link.gateway (entry 1): 0x99999999999999999999 is not allowed"},
		"list and table of one":    {"link = [3]\nlink = {a = 1}\n", "f:2: "},
		"failover, unknown":        {"[failover]\npreference = []\n", "f:2: failover.preference: unknown key; did you mean failover.prefer?"},
		"failover, probe":          {"[failover]\nprobe = 'ping'\n", `f:2: failover.probe: "ping" is not allowed; want "auto", "dns", "tcp", "icmp" or "carrier"`},
		"failover, duration":       {"[failover]\nsilence = 500\n", `f:2: failover.silence: a whole number (500) where a duration from "200ms" to "1m" belongs; write it with a unit, such as "500s" or "500ms"`},
		"failover, no unit":        {"[failover]\nrecover = '10'\n", `f:2: failover.recover: "10" is not allowed (it has no unit; write "10s" for seconds); want a duration from "1s" to "5m"`},
		"failover, no duration":    {"[failover]\nrecover = 'soon'\n", `f:2: failover.recover: "soon" is not allowed; want a duration from "1s" to "5m"`},
		"failover, too short":      {"[failover]\ninterval = '99ms'\n", `f:2: failover.interval: "99ms" is not allowed; want a duration from "100ms" to "10s"`},
		"failover, too long":       {"[failover]\nmetered = '25h'\n", `f:2: failover.metered: "25h" is not allowed; want a duration from "1s" to "24h"`},
		"failover, negative":       {"[failover]\nclose_connections = '-1s'\n", `f:2: failover.close_connections: "-1s" is not allowed; want a duration from "0s" to "1h", or "never"`},
		"failover, order":          {"[failover]\ninterval = '2s'\nstandby = '1s'\n", "f:3: failover.standby: interval (2s) is longer than standby (1s); set standby to at least 2s, or interval to at most 1s"},
		"failover, order, first":   {"[failover]\nstandby = '2m'\n", "f:2: failover.standby: standby (2m) is longer than metered (1m); set metered to at least 2m, or standby to at most 1m"},
		"failover, target":         {"[failover]\ntargets = ['gw.example']\n", `f:2: failover.targets: "gw.example" is not allowed (not an address; write one such as 192.0.2.1, tcp:192.0.2.1:443 or dns:[2001:db8::1]:53); want a list of at most 16 addresses`},
		"failover, target, any":    {"[failover]\ntargets = ['0.0.0.0']\n", `(not the address of a host)`},
		"failover, target, zone":   {"[failover]\ntargets = ['fe80::1%wan0']\n", `(without a zone: each link asks it)`},
		"failover, target, link":   {"[failover]\ntargets = ['fe80::1']\n", `(an address of the link proves only the neighbour, not the way behind it)`},
		"failover, target, mapped": {"[failover]\ntargets = ['::ffff:192.0.2.1']\n", `(an address of IPv4 is written as one)`},
		"failover, target, port":   {"[failover]\ntargets = ['tcp:192.0.2.1']\n", `(TCP needs a port; write tcp:192.0.2.1:443)`},
		"failover, target, port 0": {"[failover]\ntargets = ['tcp:192.0.2.1:0']\n", `(port 0 does not exist)`},
		"failover, target, icmp":   {"[failover]\ntargets = ['icmp:192.0.2.1:7']\n", `(ICMP has no ports)`},
		"failover, targets, tcp":   {"[failover]\nprobe = 'tcp'\ntargets = ['2001:db8::1']\n", `(TCP needs a port; write tcp:[2001:db8::1]:443)`},
		"failover, targets, none":  {"[failover]\nprobe = 'carrier'\ntargets = ['192.0.2.1']\n", `f:3: failover.targets: no target is asked with probe = "carrier"; remove one of the two`},
		"failover, targets, many":  {"[failover]\ntargets = [" + strings.Repeat("'192.0.2.1', ", 17) + "]\n", `a list of 17 is not allowed (at most 16)`},
		"failover, prefer":         {"[failover]\nprefer = ['wan[']\n", `f:2: failover.prefer: "wan[" is not allowed (not a glob: `},
		"failover, prefer, empty":  {"[failover]\nprefer = ['']\n", `"" is not allowed (it matches nothing); want a list of interfaces or profiles such as "wan1" or "wwan*"`},
		"failover, forwarded":      {"[failover]\nforwarded = 'ipv6'\n", `"ipv6" is not allowed; want "none", "ipv4" or "all"; did you mean "ipv4"?`},
		"answers, word":            {"[answers]\nforwarded = 'on'\n", `f:2: answers.forwarded: "on" is not allowed; want "auto", "yes" or "no"`},
		"answers, mask":            {"[answers]\nmark_mask = 0xff0000ff\n", `f:2: answers.mark_mask: 0xff0000ff is not allowed (it has 16 bits: 3 to 8 are needed); want 3 to 8 neighbouring bits, such as 0xff000000`},
		"answers, apart":           {"[answers]\nmark_mask = 0xf00f\n", `f:2: answers.mark_mask: 0xf00f is not allowed (its bits are not neighbours); want 3 to 8 neighbouring bits, such as 0xff000000`},
		"answers, no mask":         {"[answers]\nmark_mask = -1\n", `f:2: answers.mark_mask: -1 is not allowed; want 3 to 8 neighbouring bits, such as 0xff000000`},
		"failover, prober":         {"[failover]\nprober = 'socket'\n", `f:2: failover.prober: "socket" is not allowed; want the absolute path of a socket, at most 107 bytes`},
		"failover, prober, long":   {"[failover]\nprober = '/" + strings.Repeat("x", 107) + "'\n", `want the absolute path of a socket, at most 107 bytes`},
		"share, no table":          {"[share]\nweights = 3\n", `f:2: share.weights: a whole number (3) where a table of interfaces or profiles with whole numbers from 1 to 255`},
		"share, zero":              {"[share.weights]\nwan0 = 3\nwan1 = 0\n", `f:3: share.weights.wan1: 0 is not allowed; want a table of interfaces or profiles`},
		"share, large":             {"[share]\nweights = {wan0 = 256}\n", `f:2: share.weights.wan0: 256 is not allowed`},
		"share, huge":              {"[share]\nweights = {wan0 = 99999999999999999999}\n", `f:2: share.weights.wan0: 99999999999999999999 is not allowed`},
		"share, text":              {"[share]\nweights = {wan0 = '3'}\n", `f:2: share.weights.wan0: a string ("3") is not allowed`},
		"share, dot":               {"[share]\nweights.eth0.100 = 1\n", `f:2: share.weights.eth0: a table is not allowed (a name with a dot goes in quotation marks: "eth0.100" = 1)`},
		"share, glob":              {"[share.weights]\n\"wan[\" = 1\n", `f:2: share.weights."wan[": "wan[" is not allowed (not a glob: `},
		"all at once":              {"uplink_group = 0\nlog_level = 'x'\n", "f:2: log_level"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse("f", []byte(test.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error\n%v\nwant\n%s", err, test.want)
			}
			if strings.Contains(err.Error(), "config.raw") || strings.Contains(err.Error(), "int64") {
				t.Errorf("error %v talks about Go", err)
			}
			if _, ok := errors.AsType[*config.Error](err); !ok {
				t.Errorf("error of type %T", err)
			}
		})
	}
}

// TestEverythingIsNamed: mistakes of every kind, in the order of the file, each once.
func TestEverythingIsNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, want string }{
		"of all kinds": {`uplink_grup = 3
log_level = "loud"
repair.burst = 99999999999999999999999
[tables]
first = "10000"
last = 5
[[link]]
intrface = "wan0"
role = "uplnk"
[[link]]
interface = "wan1"
role = 3
[[exclude]]
tpye = "bridge"
`, `f:1: uplink_grup: unknown key; did you mean uplink_group?
f:2: log_level: "loud" is not allowed; want "debug", "info", "warn" or "error"
f:3: repair.burst: 99999999999999999999999 is not allowed; want a whole number from 1 to 10000
f:5: tables.first: a string ("10000") where a number from 1 to 4294967295 belongs; write it without quotation marks
f:8: link.intrface (entry 1): unknown key; did you mean link.interface?
f:9: link.role (entry 1): "uplnk" is not allowed; want "uplink" or "local"; did you mean "uplink"?
f:12: link.role (entry 2): a whole number (3) where "uplink" or "local" belongs
f:14: exclude.tpye (entry 1): unknown key; did you mean exclude.type?`},
		// What a decoder refuses as a whole still has its keys.
		"twice": {"uplink_grup = 3\nlog_level = 'info'\nlog_level = 'warn'\n", `f:1: uplink_grup: unknown key; did you mean uplink_group?
f:3: log_level: key log_level is already defined`},
	} {
		_, err := config.Parse("f", []byte(test.text))
		if err == nil {
			t.Fatalf("%s: accepted", name)
		}
		if diff := cmp.Diff(test.want, err.Error()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestMistakesAreBounded: a file full of them costs no more than its first hundred.
func TestMistakesAreBounded(t *testing.T) {
	t.Parallel()
	_, err := config.Parse("f", []byte(strings.Repeat("[[link]]\nrole = 3\nrule = 4\n", 30_000)))
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 101 || lines[100] != "f: and 59900 more mistakes" {
		t.Errorf("%d lines, the last is %s", len(lines), lines[len(lines)-1])
	}
}

// TestNamesOfLinks: prefer and weights select by interface, and by name and UUID of the profile.
func TestNamesOfLinks(t *testing.T) {
	t.Parallel()
	cfg, err := config.Parse("f", []byte(`[failover]
prefer = ["LTE", "wan?", "6b1a*"]
[share.weights]
"*" = 1
"wan*" = 2
"wan0" = 3
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device nm.Device
		place  int
		weight uint8
	}{
		{nm.Device{Name: "wan0"}, 1, 3},
		{nm.Device{Name: "wan1", ProfileID: "LTE"}, 0, 2},
		{nm.Device{Name: "wlp3s0", ProfileID: "Cafe", ProfileUUID: "6b1af2c8"}, 2, 1},
		{nm.Device{Name: "LTE"}, 0, 1},
		{nm.Device{Name: "eth9", ProfileID: "lte"}, -1, 1},
	} {
		place, named := cfg.Failover.Preference(c.device)
		if place != c.place || named != (place >= 0) || cfg.Share.WeightOf(c.device) != c.weight {
			t.Errorf("%+v: place %d, %t, weight %d", c.device, place, named, cfg.Share.WeightOf(c.device))
		}
	}
	if (config.Share{}).WeightOf(nm.Device{Name: "wan0"}) != 0 {
		t.Error("nothing is shared, and wan0 has a share")
	}
}

// TestDurationBounds: what is accepted is what the error message says.
func TestDurationBounds(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"interval", "standby", "metered", "silence", "recover", "close_connections"} {
		shortest, longest := config.DurationBounds(key)
		want := fmt.Sprintf("a duration from %q to %q", config.DurationText(shortest), config.DurationText(longest))
		if got, _ := config.Allowed("failover." + key); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		config.Never: "never", 0: "0s", 250 * time.Millisecond: "250ms", time.Minute: "1m", 10 * time.Minute: "10m", 24 * time.Hour: "24h", 90 * time.Minute: "1h30m", 70 * time.Second: "1m10s",
	} {
		if got := config.DurationText(d); got != want {
			t.Errorf("%v is %q", d, got)
		}
	}
}

func TestRangesAreJudgedAtTheirEnds(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"tables = {first = 1, last = 252}", "tables = {first = 256, last = 20052}", "tables = {first = 20054, last = 30199}",
		"tables = {first = 30500, last = 51819}", "tables = {first = 52320, last = 1052319}", "tables = {first = 4294967294, last = 4294967295}",
		"[tables]\nfirst = 10998", "[tables]\nlast = 10001",
	} {
		if _, err := config.Parse("f", []byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "multihomed.toml")
	if got, err := config.Load(path); err != nil || !cmp.Equal(got, config.Default()) {
		t.Errorf("a missing file: %+v, %v", got, err)
	}
	if got, err := config.Load(filepath.Join(dir, "none", "x.toml")); err != nil || !cmp.Equal(got, config.Default()) {
		t.Errorf("a missing directory: %+v, %v", got, err)
	}
	write(t, path, "uplink_group = 5\n")
	if got, err := config.Load(path); err != nil || got.UplinkGroup != 5 {
		t.Errorf("%+v, %v", got, err)
	}
	write(t, path, "#"+strings.Repeat("x", 1<<20))
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("a huge file: %v", err)
	}
	write(t, path, "x = 1")
	if _, err := config.Load(path); err == nil || !strings.HasPrefix(err.Error(), path+":1: x: ") {
		t.Errorf("the error does not name the file: %v", err)
	}
	if _, err := config.Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(pipe); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(config.Reference))
	f.Add([]byte(uncommented()))
	f.Add([]byte("include = [{interface = 'a'}, {}]\n[[exclude]]\nprofile = '['\n[tables]\nfirst=1\n"))
	f.Add([]byte("[[link]]\ntype = 'a'\ngateway = ['192.0.2.1', 'fe80::1']\ndelegated = ['2001:db8:b::/56']\nrole = 'local'\nignore = false\n"))
	f.Add([]byte("link = [{interface = 'a', gateway = {b = 1}}, {}, {type = '[', delegated = ['x', '::/0']}]\n"))
	f.Add([]byte("[[link]]\nx = [1, {y = 2}]\n[[link]]\nx = {a = 99999999999999999999}\nuplink_group = [[0x99999999999999999999]]\n"))
	f.Add([]byte("[failover]\ntargets = ['tcp:192.0.2.1:443', 'icmp:2001:db8::1']\nclose_connections = 'never'\nstandby = '1m'\nprefer = ['a', '[']\n[share]\nweights = {a = 1, 'b.*' = 255, c = {d = 1}}\n"))
	f.Add([]byte("[[include.x]]\n[include.x.y]\na.b.c = {d = [1, {e = 2}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := config.Parse("f", data)
		if err != nil {
			return
		}
		// Whatever is accepted keeps what the rest of the program relies on.
		r := got.Tables
		if r.First == 0 || r.First >= r.Last || r.Contains(routing.TableMain) || r.Contains(20053) ||
			got.UplinkGroup == 0 || got.RepairBurst < 1 || !(got.RepairsPerSecond > 0) ||
			!filepath.IsAbs(got.StateDir) || !filepath.IsAbs(got.RuntimeDir) {
			t.Errorf("accepted %+v", got)
		}
		if f := got.Failover; f.Interval < 100*time.Millisecond || f.Standby < f.Interval || f.Metered < f.Standby || f.Silence <= 0 || f.Recover <= 0 || f.CloseConnections < config.Never || !filepath.IsAbs(f.Prober) || len(f.Targets) > config.MaxTargets {
			t.Errorf("accepted %+v", f)
		}
		for _, a := range got.Failover.Targets {
			if !routing.IsHostAddress(a.Address.Addr()) || (a.Address.Port() == 0) != (a.Probe == config.ProbeICMP) {
				t.Errorf("accepted %v", a)
			}
		}
		for _, w := range got.Share.Weights {
			if w.Weight == 0 || w.Name == "" {
				t.Errorf("accepted %+v", w)
			}
		}
		for _, l := range got.Links {
			if err := nm.Matcher(l.Matcher).Validate(); err != nil || len(l.Gateways) > 2 {
				t.Errorf("accepted %+v: %v", l, err)
			}
			for _, p := range l.Delegated {
				if err := dispatcher.CheckDelegated(p); err != nil {
					t.Errorf("accepted %v: %v", p, err)
				}
			}
		}
		for _, m := range append(got.NMPolicy().Include, got.NMPolicy().Exclude...) {
			if err := m.Validate(); err != nil {
				t.Errorf("accepted %+v: %v", m, err)
			}
		}
	})
}

func TestErrorMessagesKnowEveryKey(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(config.Keys(), config.SpecKeys()); diff != "" {
		t.Errorf("keys of the file and of the messages (-file +messages):\n%s", diff)
	}
}
