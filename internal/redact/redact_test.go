package redact_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"multihomed/internal/escape"
	"multihomed/internal/redact"
)

func TestText(t *testing.T) {
	t.Parallel()
	r := redact.NewWith([]byte("key"), map[string][]string{"profile": {"Home of Ann", "Ann"}, "host": {"annbox"}})
	const text = `annbox: wan0 (Home of Ann) 192.168.8.20/24 in 192.168.8.0/24 via 192.168.8.1, 2001:db8:1:2::5/64 via fe80::1
10000: from 192.168.8.20 lookup 10000, link/ether 52:54:00:12:34:56 uuid 9ee4ff86-0304-4431-bd22-56cba42ae5fd
127.0.0.1 ::1 0.0.0.0/0 07:05:06 version 1.2.3.4.5 Anna`
	got := r.Text(text)
	for _, secret := range []string{"192.168.8.", "2001:db8:1:2", "52:54:00", "9ee4ff86", "Home", "annbox", "Ann)"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is still in\n%s", secret, got)
		}
	}
	for _, kept := range []string{"wan0", "host-1", "profile-", "127.0.0.1 ::1 0.0.0.0/0 07:05:06", "10000: from 192.168.", "Anna", "fe80::"} {
		if !strings.Contains(got, kept) {
			t.Errorf("no %q in\n%s", kept, got)
		}
	}
	address := r.Addr(netip.MustParseAddr("192.168.8.20")).String()
	if strings.Count(got, address) != 2 {
		t.Errorf("%s is not the same everywhere in\n%s", address, got)
	}
	if again := r.Text(text); again != got {
		t.Errorf("another time it is\n%s", again)
	}
	if other := redact.New(nil).Text(text); other == got {
		t.Error("two reports have one key")
	}
}

// TestPrefixes wants networks to stay networks.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	r := redact.New(nil)
	for _, pair := range [][2]string{{"198.51.100.7/24", "198.51.100.200/24"}, {"2001:db8:1:2::5/64", "2001:db8:1:2:ffff::9/64"}, {"10.3.17.1/20", "10.3.31.9/20"}} {
		a, b := netip.MustParsePrefix(pair[0]), netip.MustParsePrefix(pair[1])
		x, y := netip.PrefixFrom(r.Addr(a.Addr()), a.Bits()), netip.PrefixFrom(r.Addr(b.Addr()), b.Bits())
		if x.Masked() != y.Masked() || x.Addr() == y.Addr() {
			t.Errorf("%v become %v and %v", pair, x, y)
		}
		if network := r.Text(a.Masked().String()); network != x.Masked().String() {
			t.Errorf("%s becomes %s, and its addresses are in %s", a.Masked(), network, x.Masked())
		}
	}
}

// TestSpellings: a name is replaced however a program writes it, and a hardware address
// in every form that it has.
func TestSpellings(t *testing.T) {
	t.Parallel()
	profiles := []string{`Café:Söcrët Net`, `back\slash"quote`, "tab\tand\nline", "<&>", "wire\xffd"}
	r := redact.New(map[string][]string{"profile": profiles})
	for _, name := range profiles {
		for how, text := range map[string]string{
			"as it is": name, "in JSON": encoded(t, name), "in quotes": fmt.Sprintf("%q and %+q", name, name),
			"by nmcli -t": strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(name), "by status": escape.Name(name),
			"by status in JSON": encoded(t, escape.Name(name)), "quoted in JSON": encoded(t, fmt.Sprintf("%q", escape.Name(name))), "behind an escape": `"x\n` + name + `"`,
		} {
			got := r.Text(text)
			if !strings.Contains(got, "profile-") || strings.ContainsAny(got, "éö<&>") || strings.Contains(got, "slash") || strings.Contains(got, "and\\") || strings.Contains(got, "wire") {
				t.Errorf("%s: %s becomes %s", how, text, got)
			}
		}
	}

	r = redact.New(nil)
	const known = "link/ether 02:77:88:99:aa:bb"
	r.Learn(known)
	address := strings.Fields(r.Text(known))[1]
	digits := strings.ReplaceAll(address, ":", "")
	for text, want := range map[string]string{
		"bridge_id 8000.2:77:88:99:aa:bb designated":   "bridge_id 8000." + address + " designated",
		"bridge_id 8000.02:77:88:99:AA:BB designated":  "bridge_id 8000." + address + " designated",
		"02:77:88:99:aa:bb: no answer":                 address + ": no answer",
		"mac:02:77:88:99:aa:bb, abc:2:77:88:99:aa:bb":  "mac:" + address + ", abc:" + address,
		"altname enx02778899aabb":                      "altname enx" + digits,
		"wlx02778899AABB.100 and wwx02778899aabbn1":    "wlx" + digits + ".100 and wwx" + digits + "n1",
		"lan_02778899aabb sci 02778899aabb0001":        "lan_" + digits + " sci " + digits + "0001",
		"02-77-88-99-aa-bb 0277.8899.aabb":             strings.ReplaceAll(address, ":", "-") + " " + digits[:4] + "." + digits[4:8] + "." + digits[8:],
		"brd ff:ff:ff:ff:ff:ff 00:00:00:00:00:00":      "brd ff:ff:ff:ff:ff:ff 00:00:00:00:00:00",
		"at 07:05:06, 1234567890ab and 0277.8899.aabc": "at 07:05:06, 1234567890ab and 0277.8899.aabc",
	} {
		if got := r.Text(text); got != want {
			t.Errorf("%s becomes %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{
		"enx0200000000aa", "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:11:22:33", "fd00:1:2:3:4:5::1", "fd00:1:2:3:4:5:6:7", "2001:db8::2:77:88:99",
	} {
		if got := r.Text(text); got == text {
			t.Errorf("%s stays %s", text, got)
		}
	}
	if got, want := r.Text("fd00:1:2:3:4:5:6:7"), r.Addr(netip.MustParseAddr("fd00:1:2:3:4:5:6:7")).String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestMistyped: what was meant to be an address is unreadable, the same everywhere; times, versions,
// places in files and lists stay.
func TestMistyped(t *testing.T) {
	t.Parallel()
	r := redact.New(nil)
	for _, text := range []string{
		"100.64.1.l", "100.64.1.300", "100.64.1.5.6", "100.64..1.5", "l00.64.1.77", "100.64.l.77", "100.064.1.77", "100.64.1.77x", "100.64.1.unknown",
		"100.64.1.x.", "2001:db8:64::g1", "2001:db8:64:1", "2001:db8:64:1:2:3:4:5:6", "2001:db8:::64", "2001:db8::12345", "200l:db8:64::1", "2001:db8::64::1",
		"2001:dbx:64::1:77", "fe80::64:zz", "2001:db8::64:100.64.1.300", "gateway:2001:db8:64::g1",
	} {
		for _, around := range []string{"%s", "key: \"%s\" is not an address", "x %s: no", `"x\n%s"`, `"\u003c%s\u003e"`, "(%s)", "%s/24"} {
			got := r.Text(fmt.Sprintf(around, text))
			for _, secret := range []string{"64", "77", "12345", "db8"} {
				if strings.Contains(text, secret) && strings.Contains(strings.ReplaceAll(got, unreadable(got), ""), secret) {
					t.Errorf(around+" becomes %s", text, got)
				}
			}
			if around[0] == '"' && !json.Valid([]byte(got)) {
				t.Errorf("no JSON: %s", got)
			}
		}
		if a, b := unreadable(r.Text(text)), unreadable(r.Text("at "+text+" too")); a == "" || a != b {
			t.Errorf("%s becomes %q and %q", text, a, b)
		}
	}
	// A good address with a bad length has another address then, which may have a 64 in it.
	for _, text := range []string{"100.64.1.77/33", "2001:db8:64::77/129"} {
		if got := r.Text(text); got == text {
			t.Errorf("%s stays", text)
		}
	}
	for _, text := range []string{`"100.64.1"`, `\"100.64.1\"`, `"100.64.1/24"`} {
		if got := r.Text(text); strings.Contains(got, "64") && !strings.Contains(unreadable(got), "64") || got == text || strings.Count(got, `"`) != strings.Count(text, `"`) {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	for _, text := range []string{
		"07:05:06", "2026-11-28T17:28:33.123456+0000", "2026-11-28T17:05:00Z", "1.42.4", `"1.42.4"`, "6.1.0-25-amd64", "12.2.0-14+deb12u1", "252.39-1~deb12u1", "pci-0000:00:1f.6",
		"/etc/multihomed/multihomed.toml:12:345: bad", "wan0:ethernet:connected:full", "net.ipv4.conf.all.rp_filter", "multihomed.service: x", "inet6 ::1", "10000: from all",
		"daemon.go:120:5", "en.wikipedia.org.example", "eth0.100.200", "iproute2-6.1.0, libbpf 1.1.0", "https://x.example/a:1:2", "[::]:443",
	} {
		if got := r.Text(text); got != text {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	// An address stays one beside a colon, a point or a port.
	for _, text := range []string{"100.64.1.77.", "100.64.1.77: no", "100.64.1.77:53", "dhcp:100.64.1.77", "2001:db8:64::77:", "[2001:db8:64::77]:53", "2001:db8:64::77.", "ip:2001:db8:64::77", "IP4.ADDRESS[1]:100.64.1.77/24"} {
		if got := r.Text(text); got == text || strings.Contains(got, "mistyped") {
			t.Errorf("%s becomes %s", text, got)
		}
	}
}

// unreadable is what stands in a text for something mistyped.
func unreadable(text string) string {
	_, rest, is := strings.Cut(text, "mistyped-")
	if !is {
		return ""
	}
	return "mistyped-" + rest[:8]
}

func encoded(t *testing.T, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
