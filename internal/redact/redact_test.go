package redact_test

import (
	"net/netip"
	"strings"
	"testing"

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
