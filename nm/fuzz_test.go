package nm_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/nm"
	"multihomed/nm/nmtest"
	"multihomed/routing"
)

// A feed makes values out of a fuzzer's bytes: any type that can come over the
// bus, and strings that are likely to mean something.
type feed struct{ bytes []byte }

func (f *feed) next() byte {
	if len(f.bytes) == 0 {
		return 0
	}
	b := f.bytes[0]
	f.bytes = f.bytes[1:]
	return b
}

func (f *feed) text() string {
	words := []string{
		"", "dest", "prefix", "next-hop", "metric", "table", "type", "address", "route-table", "gateway", "method",
		"route-data", "routing-rules", "data", "multihomed.ignore", "routers", "user", "ipv4", "ipv6", "auto", "manual",
		"true", "no", "blackhole", "0.0.0.0", "10.8.0.0", "192.0.2.1", "255.255.255.255", "192.0.2.1 192.0.2.2",
		"::", "fe80::1", "2001:db8::1", "::ffff:10.0.0.1", "fe80::1%eth0", "eth0", "ppp0", `\303\244`,
		"Corp.Example.", "~corp", "~.", "a..b", "x y",
	}
	n := int(f.next())
	if n < len(words) {
		return words[n]
	}
	n = min(n%16, len(f.bytes))
	raw := f.bytes[:n]
	f.bytes = f.bytes[n:]
	return string(raw)
}

func (f *feed) value(depth int) any {
	kind := f.next() % 15
	if depth == 0 {
		kind %= 7
	}
	n := 0
	if kind >= 7 {
		n = int(f.next() % 4)
	}
	switch kind {
	case 0:
		return f.text()
	case 1:
		return uint32(f.next())
	case 2:
		return uint32(f.next())<<24 | uint32(f.next())
	case 3:
		return f.next()%2 == 0
	case 4:
		return int64(f.next())
	case 5:
		return object(f.next() % 10)
	case 6:
		return []byte(f.text())
	case 7:
		return dbus.MakeVariant(f.value(depth - 1))
	case 8:
		list := make([]string, n)
		for i := range list {
			list[i] = f.text()
		}
		return list
	case 9:
		m := map[string]string{}
		for range n {
			m[f.text()] = f.text()
		}
		return m
	case 10, 11:
		return f.properties(n, depth-1)
	case 14:
		list := make([][]byte, n)
		for i := range list {
			list[i] = make([]byte, 16-int(f.next()%3)/2)
			list[i][0], list[i][len(list[i])-1] = f.next(), f.next()
		}
		return list
	default:
		list := make([]map[string]dbus.Variant, n)
		for i := range list {
			list[i] = f.properties(1+int(f.next()%5), depth-1)
		}
		return list
	}
}

func (f *feed) properties(n, depth int) map[string]dbus.Variant {
	p := map[string]dbus.Variant{}
	for range n {
		p[f.text()] = dbus.MakeVariant(f.value(depth))
	}
	return p
}

// seed gives the fuzzer something to begin with, and `go test` something to run.
func seed(f *testing.F, size int) {
	f.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := make([]byte, 1+random.IntN(size))
		for i := range b {
			b[i] = uint8(random.Uint32() % 64)
		}
		f.Add(b)
	}
}

func FuzzDecodeRouteData(f *testing.F) {
	seed(f, 100)
	f.Fuzz(func(t *testing.T, b []byte) {
		v := (&feed{append([]byte{13}, b...)}).value(2)
		for _, family := range routing.Families() {
			routes, _ := nm.DecodeRouteData(family, v)
			for _, r := range routes {
				if !r.Destination.IsValid() || r.Destination != r.Destination.Masked() || routing.FamilyOf(r.Destination.Addr()) != family {
					t.Errorf("%s: destination %s", family, r.Destination)
				}
				if r.NextHop.IsValid() && (routing.FamilyOf(r.NextHop) != family || r.NextHop.IsUnspecified() || r.NextHop.Zone() != "") {
					t.Errorf("%s: next hop %s", family, r.NextHop)
				}
			}
			prefixes, _ := nm.DecodeAddressData(family, v)
			for _, p := range prefixes {
				if !p.IsValid() || routing.FamilyOf(p.Addr()) != family {
					t.Errorf("%s: address %s", family, p)
				}
			}
		}
	})
}

func FuzzDecodeProfile(f *testing.F) {
	seed(f, 200)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &feed{b}
		s := map[string]map[string]dbus.Variant{}
		for range 3 {
			s[in.text()] = in.properties(int(in.next()%8), 3)
		}
		first := nm.DecodeProfile(s, nm.Profile{})
		for family, in := range first.Intents {
			if g := in.Gateway; g.IsValid() && (routing.FamilyOf(g) != family || g.IsUnspecified() || g.Zone() != "") {
				t.Errorf("%s: gateway %s", family, g)
			}
		}
		for _, table := range first.Tables {
			if table == 0 {
				t.Error("table 0")
			}
		}
		// Reading the same profile again changes nothing.
		again := nm.DecodeProfile(s, first)
		if fmt.Sprint(again.Intents, again.Tables, again.Ignored, again.Problems) != fmt.Sprint(first.Intents, first.Tables, first.Ignored, first.Problems) {
			t.Errorf("the second reading differs: %+v, %+v", again, first)
		}
	})
}

func FuzzText(f *testing.F) {
	for _, text := range []string{"eth0", `\303\244`, `\\`, `\`, "192.0.2.1 192.0.2.2", "fe80::1%eth0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got := nm.Unescape(text); len(got) > len(text) || (!strings.Contains(text, `\`) && got != text) {
			t.Errorf("%q became %q", text, got)
		}
		if a, err := nm.FirstRouter(text); err == nil && a.IsValid() && (!a.Is4() || a.IsUnspecified()) {
			t.Errorf("%q: router %s", text, a)
		}
	})
}

// FuzzTree feeds any properties to any objects in any order.
func FuzzTree(f *testing.F) {
	seed(f, 1000)
	interfaces := []string{nmtest.Manager, nmtest.Device, nmtest.Active, nmtest.DHCP4, nmtest.IP4, nmtest.IP6}
	names := map[string][]string{
		nmtest.Manager: {"Startup", "Version"},
		nmtest.Device:  {"Interface", "IpInterface", "DeviceType", "State", "Managed", "Real", "ActiveConnection", "Ip4Config", "Ip6Config", "Dhcp4Config"},
		nmtest.Active:  {"Connection", "Id", "Uuid", "Type", "StateFlags", "Vpn", "Master", "Controller"},
		nmtest.DHCP4:   {"Options"},
		nmtest.IP4:     {"Gateway", "AddressData", "RouteData", "NameserverData", "Domains", "Searches"},
		nmtest.IP6:     {"Gateway", "AddressData", "RouteData", "Nameservers", "Domains", "Searches"},
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &feed{b}
		tree := nm.NewTree()
		known := map[string]nm.Device{}
		for len(in.bytes) > 0 {
			path, op := object(in.next()%10), in.next()
			iface := interfaces[int(op/8)%len(interfaces)]
			if op%8 == 7 {
				tree.Remove(path, iface)
				continue
			}
			p := map[string]dbus.Variant{}
			for range 1 + in.next()%8 {
				name := names[iface][int(in.next())%len(names[iface])]
				p[name] = dbus.MakeVariant(in.likely(name))
			}
			tree.Update(path, iface, p, op%8 >= 4)
			for _, name := range tree.Names() {
				d, ok := tree.Describe(name, known[name])
				if !ok || d.Name != name || name == "" {
					t.Fatalf("%q has no device: %+v", name, d)
				}
				if v, reason := (nm.Policy{}).Classify(d, false); v == nm.Draining || reason == "" {
					t.Fatalf("%+v is a %s: %s", d, v, reason)
				}
				checkDNS(t, d.DNS)
				known[name] = d
			}
		}
		for i := range byte(10) {
			tree.Remove(object(i), interfaces...)
		}
		if n := tree.Size(); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// checkDNS wants nothing that could not be written into a resolver's file.
func checkDNS(t *testing.T, all map[routing.Family]nm.DNS) {
	t.Helper()
	for family, dns := range all {
		if len(dns.Servers)+len(dns.Domains) == 0 {
			t.Errorf("%s: nothing is known, and there", family)
		}
		for i, a := range dns.Servers {
			if routing.FamilyOf(a) != family || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || slices.Contains(dns.Servers[:i], a) {
				t.Errorf("%s: server %s of %s", family, a, dns.Servers)
			}
		}
		for i, d := range dns.Domains {
			if len(d) > 253 || !domainSyntax.MatchString(d) || (i > 0 && dns.Domains[i-1] >= d) {
				t.Errorf("%s: domain %q of %q", family, d, dns.Domains)
			}
		}
	}
}

var domainSyntax = regexp.MustCompile(`^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$`)

// likely makes a value of the type that the property should have, mostly.
func (f *feed) likely(name string) any {
	if f.next()%8 == 0 {
		return f.value(2)
	}
	switch name {
	case "Startup", "Managed", "Real", "Vpn":
		return f.next()%2 == 0
	case "DeviceType", "State", "StateFlags":
		return uint32(f.next())
	case "ActiveConnection", "Ip4Config", "Ip6Config", "Dhcp4Config", "Connection", "Master", "Controller":
		return object(f.next() % 11)
	case "NameserverData":
		return []map[string]dbus.Variant{{"address": dbus.MakeVariant(f.text())}, {"address": dbus.MakeVariant("192.0.2.53")}}
	case "Nameservers":
		a := [16]byte{f.next(), f.next(), 15: f.next()}
		return [][]byte{a[:], a[:16-f.next()%2]}
	case "Domains", "Searches":
		return []string{f.text(), f.text()}
	case "Options":
		return f.properties(int(f.next()%3), 1)
	default:
		return f.text()
	}
}

func object(i byte) dbus.ObjectPath {
	switch i {
	case 0:
		return nmtest.ManagerPath
	case 10:
		return "/"
	default:
		return dbus.ObjectPath(fmt.Sprintf("/o/%d", i))
	}
}
