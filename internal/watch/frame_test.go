package watch_test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/internal/watch"
	"multihomed/routing"
	"multihomed/test/golden"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC //nolint:gosmopolitan,reassign // the golden files are of no place
	os.Exit(m.Run())
}

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func network(family, prefix string, table uint32, via string) status.Network {
	p := netip.MustParsePrefix(prefix)
	n := status.Network{
		Family: family, Prefix: p.Masked(), Table: table,
		Addresses: []status.Address{{Address: p.Addr(), Length: p.Bits()}}, Gateways: []status.Gateway{},
	}
	if via != "" {
		hop := netip.MustParseAddr(via)
		n.Gateways = append(n.Gateways, status.Gateway{Via: &hop})
	}
	return n
}

// document is a host with two uplinks and a LAN.
func document() *status.Status {
	return &status.Status{
		Schema: 1, OK: true, By: status.ByDaemon, Daemon: status.Daemon{Running: true, Ready: true, PID: 812}, UplinkGroup: 28008,
		NetworkManager: status.Manager{Running: true, Complete: true},
		Unbound:        map[string]status.Unbound{"ipv4": {Interface: "wan0", Table: 254}, "ipv6": {Interface: "wan0", Table: 254}},
		Failover: &status.Failover{Enabled: true, Uplinks: []status.Health{
			{Interface: "wan0", Family: "ipv4", State: status.HealthUp, Why: "dns:192.0.2.53:53 answers"},
			{Interface: "wan1", Family: "ipv4", State: status.HealthUp, Why: "dns:192.0.2.53:53 answers"},
		}},
		Answers: &status.Answers{Families: []status.AnsweredFamily{{Family: "ipv4", Reason: "not-forwarding", Why: "nothing is forwarded"}}},
		Links: []status.Link{
			{
				Interface: "wan0", Role: "uplink", RoleWhy: "main has a default route through it", Why: `connected, profile "Fibre"`, Profile: "Fibre", Type: "ethernet", Up: true, Carrier: true,
				Networks: []status.Network{network("ipv4", "198.51.100.7/24", 10000, "198.51.100.1"), network("ipv6", "2001:db8:0:1:a00:27ff:fe4e:66a1/64", 10001, "fe80::1")},
				Objects:  []status.Object{{Kind: "rule", Family: "ipv4", State: status.InForce, Text: "10000: from 198.51.100.7 lookup 10000", Reason: "source"}},
			},
			{
				Interface: "wan1", Role: "uplink", RoleWhy: "main has a default route through it", Why: `connected, profile "LTE"`, Profile: "LTE", Type: "gsm", Up: true, Carrier: true,
				Networks: []status.Network{network("ipv4", "203.0.113.9/24", 10002, "203.0.113.1")},
			},
			{
				Interface: "lan0", Role: "local", RoleWhy: "main has no default route through it", Why: `connected, profile "Office"`, Profile: "Office", Type: "bridge", Up: true,
				Networks: []status.Network{network("ipv4", "192.168.10.1/24", 10003, "")},
			},
		},
	}
}

// model is the host after some changes.
func model() *watch.Model {
	d := document()
	d.Problems = []status.Problem{{Problem: routing.Problem{Code: "uplink-dead", Severity: routing.Warning, Link: "wan1", Text: "wan1 does not work"}}}
	d.Failover.Uplinks[1].State = status.HealthDown
	m := &watch.Model{Now: noon, Document: d, Rates: map[string]watch.Rate{"wan0": {In: 84_120_000, Out: 1_204_000}, "wan1": {In: 12, Out: 990}}}
	m.Add([]watch.Event{
		{Time: noon.Add(-9 * time.Second), Kind: watch.Watching, Text: "watching wan0 (uplink), wan1 (uplink), lan0 (local); default route: IPv4 and IPv6 by wan0"},
		{Time: noon.Add(-5 * time.Second), Kind: watch.RuleRemoved, Family: "ipv4", Text: "IPv4 rule of multihomed deleted: 10000: from 198.51.100.7 lookup 10000", Author: watch.Author{Party: watch.Other, Process: "ip", PID: 4711}, Link: "wan0", Count: 1},
		{Time: noon.Add(-4 * time.Second), Kind: watch.RuleAdded, Family: "ipv4", Text: "IPv4 rule added: 10000: from 198.51.100.7 lookup 10000", Why: "restored after ip (process 4711) deleted it", Author: watch.Author{Party: watch.Multihomed}, Link: "wan0", Count: 1},
		{Time: noon.Add(-3 * time.Second), Kind: watch.RouteAdded, Text: "9812 more IPv4 routes added in table main", Author: watch.Author{Party: watch.Other, Process: "bird", PID: 99}, Count: 9812},
		{Time: noon.Add(-2 * time.Second), Kind: watch.HealthChanged, Link: "wan1", Object: "down", Text: "IPv4 down, it was suspect", Why: "3 probes were not answered for 1.2 s", Author: watch.Author{Party: watch.Multihomed}, Count: 1},
	})
	return m
}

// many is a host with many links.
func many(n int) *watch.Model {
	m := model()
	m.Document.Links = nil
	for i := range n {
		m.Document.Links = append(m.Document.Links, status.Link{
			Interface: fmt.Sprintf("wan%d", i), Role: "uplink", Up: true, Carrier: i%7 != 3,
			Networks: []status.Network{network("ipv4", fmt.Sprintf("10.%d.0.2/24", i), 10000, fmt.Sprintf("10.%d.0.1", i)), network("ipv6", fmt.Sprintf("2001:db8:%x::2/64", i), 10001, "fe80::1")},
		})
	}
	return m
}

// hostile is a host whose names want to play tricks on the terminal.
func hostile() *watch.Model {
	m := model()
	names := []string{escape.Name("\x1b[2J\xff"), "\x1b]0;owned\a", "日本語インターフェイス名"}
	for i, name := range names {
		m.Document.Links[i].Interface = name
	}
	m.Document.Unbound["ipv4"] = status.Unbound{Interface: names[1]}
	m.Add([]watch.Event{{Time: noon, Kind: watch.LinkChanged, Link: names[1], Text: "a\nb\x1b[31m\u202e" + strings.Repeat("x", 300), Count: 1}})
	return m
}

func TestFrame(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		model         *watch.Model
		width, height int
	}{
		{"usual", model(), 80, 24},
		{"wide", model(), 200, 50},
		{"tiny", model(), 20, 5},
		{"many", many(30), 80, 24},
		{"many-wide", many(30), 200, 50},
		{"hostile", hostile(), 80, 24},
		{"nothing", &watch.Model{Now: noon}, 80, 24},
	} {
		for _, colour := range []bool{false, true} {
			c.model.Colour = colour
			lines := watch.Frame(c.model, c.width, c.height)
			text := strings.Join(lines, "\n") + "\n"
			end := ".txt"
			if colour {
				end = ".ansi"
			}
			golden.Compare(t, c.name+end, []byte(text))
			if !colour && escape.Text(strings.ReplaceAll(text, "\n", "")) != strings.ReplaceAll(text, "\n", "") {
				t.Errorf("%s is not printable: %q", c.name, text)
			}
		}
	}
}

// TestWhatMatters: where not all links find room, the one that traffic leaves by does, and one that does not work.
func TestWhatMatters(t *testing.T) {
	t.Parallel()
	m := many(30)
	m.Document.Unbound["ipv4"] = status.Unbound{Interface: "wan25"}
	m.Document.Failover.Uplinks = append(m.Document.Failover.Uplinks, status.Health{Interface: "wan27", Family: "ipv4", State: status.HealthUp}, status.Health{Interface: "wan27", Family: "ipv6", State: status.HealthDown})
	text := strings.Join(watch.Frame(m, 80, 24), "\n")
	for _, want := range []string{`\n\*wan25 `, `\n wan27 +uplink +down `, `\n\*wan0 `} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

// TestNarrow: a narrow screen has the name of the default's interface.
func TestNarrow(t *testing.T) {
	t.Parallel()
	const name = "enp0s31f6u1u2i4"
	m := model()
	for _, family := range []string{"ipv4", "ipv6"} {
		m.Document.Unbound[family] = status.Unbound{Interface: name}
	}
	for _, width := range []int{36, 40} {
		lines := watch.Frame(m, width, 15)
		if !strings.HasPrefix(lines[1], "default route: IPv4") || !strings.HasSuffix(lines[2], name) {
			t.Errorf("with %d columns it begins\n%s", width, strings.Join(lines[:4], "\n"))
		}
	}
	if lines := watch.Frame(m, 48, 15); !strings.HasSuffix(lines[1], name) {
		t.Errorf("with 48 columns the second line is %q", lines[1])
	}
}

var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

// TestFrameFits: whatever the size, the screen is filled and not overrun.
func TestFrameFits(t *testing.T) {
	t.Parallel()
	for _, m := range []*watch.Model{model(), many(3), many(40), hostile(), {Now: noon}, {Now: noon, Fault: "x"}} {
		for _, colour := range []bool{false, true} {
			m.Colour = colour
			for _, height := range []int{1, 2, 4, 5, 9, 10, 24, 50} {
				for _, width := range []int{1, 2, 9, 18, 20, 44, 79, 80, 100, 200} {
					lines := watch.Frame(m, width, height)
					if len(lines) != height {
						t.Fatalf("%d lines on %dx%d", len(lines), width, height)
					}
					for _, l := range lines {
						if n := watch.Columns(sgr.ReplaceAllString(l, "")); n > width || !utf8.ValidString(l) {
							t.Fatalf("%d columns on %dx%d: %q", n, width, height, l)
						}
					}
				}
			}
		}
	}
}

func TestBits(t *testing.T) {
	t.Parallel()
	for rate, want := range map[float64]string{
		0: "0", 999: "999", 1000: "1.00k", 12_340: "12.3k", 999_960: "1.00M", 123_456_789: "123M", 9_999_999_999: "10.0G", 4e14: "400T",
	} {
		if got := watch.Bits(rate); got != want {
			t.Errorf("%v is %q, want %q", rate, got, want)
		}
	}
}

// TestRates: an interface that is new, or began anew, has no rate.
func TestRates(t *testing.T) {
	t.Parallel()
	got := watch.Rates(map[string]watch.Counter{"a": {In: 100, Out: 50}, "b": {In: 9}}, map[string]watch.Counter{"a": {In: 225, Out: 40}, "c": {In: 7}}, time.Second/2)
	if len(got) != 1 || got["a"] != (watch.Rate{In: 2000}) {
		t.Errorf("%v", got)
	}
}

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../packaging/man/multihomectl.8")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
