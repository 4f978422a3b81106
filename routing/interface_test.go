package routing_test

import (
	"net/netip"
	"strings"
	"testing"

	"multihomed/routing"
)

func TestCheckInterfaceName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"eth0", ".x", "...", "a@b", "wlan\xff", strings.Repeat("x", 15), "ä"} {
		if err := routing.CheckInterfaceName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a:1", "a b", "a\tb", "a\x00", strings.Repeat("x", 16), strings.Repeat("x", 1<<16)} {
		if err := routing.CheckInterfaceName(name); err == nil || len(err.Error()) > 200 {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestIsHostAddress(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"192.0.2.1", "fe80::1", "fe80::1%eth0", "2001:db8::1", "0.0.0.1"} {
		if !routing.IsHostAddress(netip.MustParseAddr(text)) {
			t.Errorf("%s is not taken for a host's", text)
		}
	}
	for _, text := range []string{"0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1%eth0", "255.255.255.255", "::ffff:127.0.0.1"} {
		if routing.IsHostAddress(netip.MustParseAddr(text)) {
			t.Errorf("%s is taken for a host's", text)
		}
	}
	if routing.IsHostAddress(netip.Addr{}) {
		t.Error("nothing is taken for a host's")
	}
}
