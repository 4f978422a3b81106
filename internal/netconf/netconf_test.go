package netconf_test

import (
	"context"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"multihomed/internal/netconf"
	"multihomed/routing"
	"multihomed/test/lab/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestForwarding: what sysctls say is read, and every change is told.
func TestForwarding(t *testing.T) { //nolint:paralleltest // it changes the namespace
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "two"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/one/rp_filter": "0", "ipv4/conf/two/rp_filter": "0",
	} {
		sysctl(t, name, value)
	}
	one, err := netlink.LinkByName("one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := netlink.LinkByName("two")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- netconf.Watch(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	<-told // It hears.
	until := func(what string, is func(netconf.Conf) bool) {
		t.Helper()
		for {
			c, err := netconf.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if is(c) {
				return
			}
			select {
			case <-told:
			case <-t.Context().Done():
				t.Fatalf("%s: %+v", what, c)
			}
		}
	}
	until("nothing forwards", func(c netconf.Conf) bool {
		return c.Forwards == routing.ByFamily[bool]{} && len(c.Strict) == 0
	})
	for _, step := range []struct {
		name, value string
		is          func(netconf.Conf) bool
	}{
		{"ipv4/ip_forward", "1", func(c netconf.Conf) bool { return c.Forwards == routing.ByFamily[bool]{true, false} }},
		{"ipv6/conf/one/forwarding", "1", func(c netconf.Conf) bool { return c.Forwards == routing.ByFamily[bool]{true, true} }},
		{"ipv6/conf/one/forwarding", "0", func(c netconf.Conf) bool { return c.Forwards == routing.ByFamily[bool]{true, false} }},
		{"ipv4/ip_forward", "0", func(c netconf.Conf) bool { return c.Forwards == routing.ByFamily[bool]{} }},
		{"ipv4/conf/two/forwarding", "1", func(c netconf.Conf) bool { return c.Forwards == routing.ByFamily[bool]{true, false} }},
		{"ipv4/conf/one/rp_filter", "1", func(c netconf.Conf) bool { return c.Strict[one.Attrs().Index] && !c.Strict[two.Attrs().Index] }},
		{"ipv4/conf/all/rp_filter", "1", func(c netconf.Conf) bool { return c.Strict[one.Attrs().Index] && c.Strict[two.Attrs().Index] }},
		{"ipv4/conf/all/rp_filter", "2", func(c netconf.Conf) bool { return len(c.Strict) == 0 }},
	} {
		sysctl(t, step.name, step.value)
		until(step.name+" = "+step.value, step.is)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
