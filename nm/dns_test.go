package nm_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"multihomed/nm"
	"multihomed/nm/nmtest"
	"multihomed/routing"
)

type dns = map[routing.Family]nm.DNS

func addresses(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// servers4 and servers6 are how NetworkManager shows servers.
func servers4(all ...string) []map[string]dbus.Variant {
	out := []map[string]dbus.Variant{}
	for _, a := range all {
		out = append(out, map[string]dbus.Variant{"address": dbus.MakeVariant(a)})
	}
	return out
}

func servers6(all ...string) [][]byte {
	out := [][]byte{}
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a).AsSlice())
	}
	return out
}

func (w *watcher) awaitDNS(t *testing.T, want dns) {
	t.Helper()
	w.awaitDevice(t, "eth0", fmt.Sprintf("has %v", want), func(d nm.Device) bool { return cmp.Equal(d.DNS, want, netipValues()) })
}

func TestDNS(t *testing.T) {
	bus, fake := start(t)
	fake.Set(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Ip6Config": nmtest.IP6Path(1)})
	fake.Set(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{
		"NameserverData": servers4("192.0.2.53", "192.0.2.54", "192.0.2.53"),
		"Domains":        []string{"Example.com.", "corp.example"}, "Searches": []string{"example.com", "~corp", "~."},
	})
	w := watch(t, nm.Options{Address: bus.Address, DNS: true})
	v4 := nm.DNS{Servers: addresses("192.0.2.53", "192.0.2.54"), Domains: []string{"corp", "corp.example", "example.com"}}
	if d := w.awaitComplete(t).Devices["eth0"]; !cmp.Equal(d.DNS, dns{routing.IPv4: v4}, netipValues()) || len(d.Problems) > 0 {
		t.Errorf("device is %+v", d)
	}

	// An object that comes after the device that refers to it.
	fake.Set(nmtest.IP6Path(1), nmtest.IP6, nmtest.Properties{
		"Nameservers": servers6("2001:db8::53", "fe80::1"), "Domains": []string{}, "Searches": []string{},
	})
	fake.Announce(nmtest.IP6Path(1))
	v6 := nm.DNS{Servers: addresses("2001:db8::53", "fe80::1")}
	w.awaitDNS(t, dns{routing.IPv4: v4, routing.IPv6: v6})

	// One property alone.
	fake.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"Searches": []string{}})
	v4.Domains = []string{"corp.example", "example.com"}
	w.awaitDNS(t, dns{routing.IPv4: v4, routing.IPv6: v6})
	fake.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("192.0.2.54")})
	v4.Servers = addresses("192.0.2.54")
	w.awaitDNS(t, dns{routing.IPv4: v4, routing.IPv6: v6})
	fake.Change(nmtest.IP6Path(1), nmtest.IP6, nmtest.Properties{"Nameservers": servers6()})
	w.awaitDNS(t, dns{routing.IPv4: v4})

	// Another object, known before the device refers to it, and one that follows.
	fake.Set(nmtest.IP4Path(2), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("198.51.100.53")})
	fake.Announce(nmtest.IP4Path(2))
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Ip4Config": nmtest.IP4Path(2)})
	w.awaitDNS(t, dns{routing.IPv4: {Servers: addresses("198.51.100.53")}})
	fake.Remove(nmtest.IP4Path(1))
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Ip4Config": nmtest.IP4Path(3)})
	fake.Set(nmtest.IP4Path(3), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("198.51.100.54")})
	fake.Announce(nmtest.IP4Path(3))
	w.awaitDNS(t, dns{routing.IPv4: {Servers: addresses("198.51.100.54")}})
	// The object that was left is nobody's.
	fake.Change(nmtest.IP4Path(2), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("203.0.113.1")})
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Ip4Config": dbus.ObjectPath("/")})
	w.awaitDNS(t, nil)
}

// Who does not ask for DNS is not woken by it.
func TestNoDNS(t *testing.T) {
	bus, fake := start(t)
	fake.Set(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("127.0.0.1"), "Domains": 5})
	w := watch(t, nm.Options{Address: bus.Address})
	w.awaitComplete(t)
	w.TakeChanges()
	fake.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("192.0.2.53")})
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(110)})
	d := w.awaitDevice(t, "eth0", "deactivates", func(d nm.Device) bool { return d.State == 110 })
	if d.DNS != nil || len(d.Problems) > 0 {
		t.Errorf("device is %+v", d)
	}
}

func TestHostileDNS(t *testing.T) {
	bus, fake := start(t)
	long := strings.Repeat("a.", 126) + "ab" // 254 bytes
	fake.Set(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Ip6Config": nmtest.IP6Path(1)})
	fake.Set(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{
		"NameserverData": append(servers4("127.0.0.53", "0.0.0.0", "224.0.0.1", "255.255.255.255", "2001:db8::1", "x\n", "192.0.2.53"),
			map[string]dbus.Variant{}, map[string]dbus.Variant{"address": dbus.MakeVariant(uint32(1))}),
		"Domains":  []string{"a\nb", "a/b", "\u212aelvin", "a b", "", "~", "a..b", ".a", "..", strings.Repeat("a", 64), long, long[:253] + ".", "ok_1"},
		"Searches": []string{"OK_1", "a@b", "#", "*"},
	})
	fake.Set(nmtest.IP6Path(1), nmtest.IP6, nmtest.Properties{
		"Nameservers": append(servers6("::1", "::", "ff02::fb", "::ffff:192.0.2.1", "2001:db8::53"), nil, []byte{1}, make([]byte, 4), make([]byte, 17)),
		"Searches":    []string{"v6"},
	})
	w := watch(t, nm.Options{Address: bus.Address, DNS: true})
	good := dns{
		routing.IPv4: {Servers: addresses("192.0.2.53"), Domains: []string{long[:253], "ok_1"}},
		routing.IPv6: {Servers: addresses("2001:db8::53"), Domains: []string{"v6"}},
	}
	d := w.awaitComplete(t).Devices["eth0"]
	if diff := cmp.Diff(good, d.DNS, netipValues()); diff != "" {
		t.Error(diff)
	}
	all := strings.Join(d.Problems, "\n")
	for _, want := range []string{
		`ipv4: NameserverData: entry 1: "127.0.0.53" is no address of a host; entry 2: "0.0.0.0"`, `"224.0.0.1"`, `"255.255.255.255"`,
		`"2001:db8::1" is no ipv4 address`, `"x\n" is no address`, "entry 8: address is missing", "entry 9: address has the type u, expected s",
		`ipv4: Domains: entry 1: "a\nb" is no domain`, "a domain of 254 bytes", `ipv4: Searches: entry 2: "a@b"`,
		`ipv6: Nameservers: entry 1: "::1"`, `entry 4: "::ffff:192.0.2.1" is no ipv6 address`, "an address of 17 bytes", "an address of 0 bytes",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q", want)
		}
	}
	if len(d.Problems) != 4 || t.Failed() {
		t.Errorf("problems:\n%s", all)
	}

	// What becomes another type keeps its value, what becomes right has no
	// problem.
	fake.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": []string{"192.0.2.1"}, "Domains": "x", "Searches": []uint32{1}})
	fake.Change(nmtest.IP6Path(1), nmtest.IP6, nmtest.Properties{"Nameservers": []uint32{1}, "Searches": []string{"v6"}})
	d = w.awaitDevice(t, "eth0", "has other problems", func(d nm.Device) bool {
		return slices.Contains(d.Problems, "ipv6: Nameservers has the type au, expected aay")
	})
	if diff := cmp.Diff(good, d.DNS, netipValues()); diff != "" || !slices.Contains(d.Problems, "ipv4: Domains has the type s, expected as") {
		t.Errorf("%s\nproblems: %q", diff, d.Problems)
	}
	fake.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("192.0.2.53"), "Domains": []string{long[:253]}, "Searches": []string{"ok_1"}})
	fake.Change(nmtest.IP6Path(1), nmtest.IP6, nmtest.Properties{"Nameservers": servers6("2001:db8::53")})
	d = w.awaitDevice(t, "eth0", "has no problems", func(d nm.Device) bool { return len(d.Problems) == 0 })
	if diff := cmp.Diff(good, d.DNS, netipValues()); diff != "" {
		t.Error(diff)
	}
}

// While NetworkManager is away, and until it has brought the device up again,
// what was known counts.
func TestDNSKept(t *testing.T) {
	bus, fake := start(t)
	fake.Set(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("192.0.2.53")})
	w := watch(t, nm.Options{Address: bus.Address, DNS: true})
	w.awaitComplete(t)
	want := dns{routing.IPv4: {Servers: addresses("192.0.2.53")}}
	w.awaitDNS(t, want)
	fake.Disown()
	w.await(t, "its absence", func(s nm.Snapshot) bool { return !s.Running })
	w.awaitDNS(t, want)

	next := bus.NewNM()
	next.Set(nmtest.ManagerPath, nmtest.Manager, nmtest.Properties{"Startup": true})
	next.AddEthernet(1, "eth0")
	next.Set(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(70)})
	next.Set(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4()})
	next.Own()
	w.awaitDevice(t, "eth0", "comes up again", func(d nm.Device) bool { return d.State == 70 && d.ProfileKnown })
	w.awaitDNS(t, want)
	next.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(100)})
	w.awaitDevice(t, "eth0", "is up", func(d nm.Device) bool { return d.State == 100 })
	w.awaitDNS(t, want)
	// Now it counts that there is nothing.
	next.Change(nmtest.ManagerPath, nmtest.Manager, nmtest.Properties{"Startup": false})
	w.awaitDNS(t, nil)

	// A draining link keeps them, another profile does not.
	next.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4("192.0.2.54")})
	want = dns{routing.IPv4: {Servers: addresses("192.0.2.54")}}
	w.awaitDNS(t, want)
	next.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(110)})
	next.Change(nmtest.IP4Path(1), nmtest.IP4, nmtest.Properties{"NameserverData": servers4()})
	next.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(30), "ActiveConnection": dbus.ObjectPath("/")})
	w.awaitDevice(t, "eth0", "is disconnected", func(d nm.Device) bool { return d.State == 30 })
	w.awaitDNS(t, want)
	next.Set(nmtest.ActivePath(2), nmtest.Active, nmtest.Properties{
		"Connection": nmtest.SettingsPath(2), "Id": "other", "Uuid": "other", "Type": "802-3-ethernet", "StateFlags": uint32(0), "Vpn": false,
	})
	next.Announce(nmtest.ActivePath(2))
	next.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(40), "ActiveConnection": nmtest.ActivePath(2)})
	w.awaitDNS(t, nil)
}
