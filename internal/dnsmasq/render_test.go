package dnsmasq_test

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/dnsmasq"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func server(name, address, source string, domains ...string) dnsmasq.Server {
	return dnsmasq.Server{Interface: name, Address: addr(address), Source: addr(source), Domains: domains}
}

func only(s dnsmasq.Server) dnsmasq.Server {
	s.OnlyDomains = true
	return s
}

func dead(s dnsmasq.Server) dnsmasq.Server {
	s.Dead = true
	return s
}

// lines are those of the file without its comment.
func lines(t *testing.T, text []byte) []string {
	t.Helper()
	all := strings.Split(string(text), "\n")
	if !strings.HasPrefix(all[0], "# Written by multihomed") || all[len(all)-1] != "" {
		t.Fatalf("the file is %q", text)
	}
	return all[1 : len(all)-1]
}

func TestRender(t *testing.T) {
	long := strings.Repeat("a.", 126) + "b"
	for _, tt := range []struct {
		name    string
		servers []dnsmasq.Server
		want    []string
	}{
		{"none", nil, nil},
		{
			"both families, sorted, each once",
			[]dnsmasq.Server{
				server("wan1", "192.0.2.53", "192.0.2.10"), server("wan0", "2001:db8::53", "2001:db8::10"),
				server("wan0", "192.0.2.53", "198.51.100.10"), server("wan0", "192.0.2.5", ""), server("wan1", "192.0.2.53", "192.0.2.10"),
			},
			[]string{
				"server=192.0.2.5@wan0", "server=192.0.2.53@wan0@198.51.100.10", "server=2001:db8::53@wan0@2001:db8::10",
				"server=192.0.2.53@wan1@192.0.2.10",
			},
		},
		{
			"domains, one on each line",
			[]dnsmasq.Server{server("wan0", "192.0.2.53", "192.0.2.10", "Corp.Example.", "lan", "corp.example")},
			[]string{
				"server=192.0.2.53@wan0@192.0.2.10", "server=/corp.example/192.0.2.53@wan0@192.0.2.10", "server=/lan/192.0.2.53@wan0@192.0.2.10",
			},
		},
		{"of dead links, at the end", []dnsmasq.Server{dead(server("wan0", "192.0.2.5", "192.0.2.10")), server("wan1", "192.0.2.53", "")}, []string{"server=192.0.2.53@wan1", "# dead: server=192.0.2.5@wan0@192.0.2.10"}},
		{"only domains", []dnsmasq.Server{only(server("tun0", "10.0.0.53", "", "corp")), only(server("tun1", "10.0.0.53", ""))}, []string{"server=/corp/10.0.0.53@tun0"}},
		{
			"link-local",
			[]dnsmasq.Server{
				server("wan0", "fe80::1", "2001:db8::10"), server("wan1", "fe80::1%wan1", "fe80::10"), server("wan2", "fe80::1", "fe80::10%wan2"),
				server("wan3", "169.254.0.1", "169.254.0.2"),
			},
			[]string{"server=fe80::1%wan0@wan0@2001:db8::10", "server=fe80::1%wan1@wan1", "server=fe80::1%wan2@wan2", "server=169.254.0.1@wan3@169.254.0.2"},
		},
		{"the longest names", []dnsmasq.Server{server("a.b-c_d12345678", "192.0.2.53", "", long)}, []string{"server=192.0.2.53@a.b-c_d12345678", "server=/" + long + "/192.0.2.53@a.b-c_d12345678"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := dnsmasq.Render(tt.servers)
			if got := lines(t, text); !slices.Equal(got, tt.want) {
				t.Errorf("lines are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			slices.Reverse(tt.servers)
			if again := dnsmasq.Render(tt.servers); string(again) != string(text) {
				t.Errorf("in another order it is\n%s", again)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	good := server("wan0", "192.0.2.53", "192.0.2.10", "corp")
	for _, tt := range []struct {
		bad  dnsmasq.Server
		want string
	}{
		{server("", "192.0.2.1", ""), "1 to 15 bytes"},
		{server("sixteen-bytes-it", "192.0.2.1", ""), "1 to 15 bytes"},
		{server("a\nserver=x", "192.0.2.1", ""), "is not the name of an interface"},
		{server("a@b", "192.0.2.1", ""), "to fix: rename it"},
		{server("a#b", "192.0.2.1", ""), "to fix: rename it"},
		{server("a/b", "192.0.2.1", ""), "is not the name of an interface"},
		{server(`a"b`, "192.0.2.1", ""), "to fix: rename it"},
		{server("a%b", "192.0.2.1", ""), "to fix: rename it"},
		{server("a b", "192.0.2.1", ""), "is not the name of an interface"},
		{server("ä", "192.0.2.1", ""), "to fix: rename it"},
		{server("10.0.0.1", "192.0.2.1", ""), "the name of an address"},
		{server("wan1", "", ""), "the address is missing"},
		{server("wan1", "0.0.0.0", ""), "not the address of a host"},
		{server("wan1", "::", ""), "not the address of a host"},
		{server("wan1", "127.0.0.53", ""), "not the address of a host"},
		{server("wan1", "::1", ""), "not the address of a host"},
		{server("wan1", "255.255.255.255", ""), "not the address of a host"},
		{server("wan1", "ff02::fb%wan1", ""), "not the address of a host"},
		{server("wan1", "::ffff:192.0.2.1", ""), "not the address of a host"},
		{server("wan1", "::ffff:192.0.2.1%x\ny", ""), "not the address of a host"},
		{server("wan1", "fe80::1%wan2", ""), "not on the interface"},
		{server("wan1", "fe80::1%wan1\nserver=192.0.2.1", ""), "not on the interface"},
		{server("wan1", "2001:db8::1%wan1", ""), "not on the interface"},
		{server("wan1", "192.0.2.1", "2001:db8::1"), "of the other family"},
		{server("wan1", "2001:db8::1", "192.0.2.1"), "of the other family"},
		{server("wan1", "2001:db8::1", "fe80::1"), "does not leave the link"},
		{server("wan1", "fe80::1", "fe80::2%wan2"), "source: "},
		{server("wan1", "192.0.2.1", "0.0.0.0"), "source: "},
		{only(server("wan1", "192.0.2.1", "", "a/b")), `"a/b" is no domain`},
		{only(server("wan1", "192.0.2.1", "", "#")), "is no domain"},
		{only(server("wan1", "192.0.2.1", "", "a\nb")), `"a\nb" is no domain`},
		{only(server("wan1", "192.0.2.1", "", "~corp")), "is no domain"},
		{only(server("wan1", "192.0.2.1", "", "")), "is no domain"},
		{only(server("wan1", "192.0.2.1", "", ".")), "is no domain"},
		{only(server("wan1", "192.0.2.1", "", "a..b")), "1 to 63 bytes"},
		{only(server("wan1", "192.0.2.1", "", strings.Repeat("a", 64))), "1 to 63 bytes"},
		{only(server("wan1", "192.0.2.1", "", strings.Repeat("a.", 127)+"b")), "at most 253"},
	} {
		text, errs := dnsmasq.RenderErrors([]dnsmasq.Server{tt.bad, good})
		if got := lines(t, text); !slices.Equal(got, lines(t, dnsmasq.Render([]dnsmasq.Server{good}))) {
			t.Errorf("%+v: the file has\n%s", tt.bad, text)
		}
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) || strings.Contains(errs[0].Error(), "\n") {
			t.Errorf("%+v: %q, want %q", tt.bad, errs, tt.want)
		}
	}
}

// syntax is what dnsmasq was seen to accept.
var syntax = regexp.MustCompile(`^server=(?:/([a-z0-9_.-]+)/)?([0-9a-f.:]+)(?:%([A-Za-z0-9_.-]+))?@([A-Za-z0-9_.-]+)(?:@([0-9a-f.:]+))?$`)

func FuzzRender(f *testing.F) {
	f.Add("wan0", "192.0.2.53", "192.0.2.10", "corp.example", "~x", false)
	f.Add("wan0", "fe80::1%wan0", "2001:db8::10", "a\nserver=1.2.3.4", "", true)
	f.Add("a@b#c/d", "fe80::1%a@b#c/d", "fe80::2", "/", "#", false)
	f.Add("fe80::1", "::ffff:1.2.3.4", "0.0.0.0", "..", "A.", true)
	f.Fuzz(func(t *testing.T, name, address, source, domain, other string, onlyDomains bool) {
		s := dnsmasq.Server{Interface: name, Domains: []string{domain, other, "lan"}, OnlyDomains: onlyDomains}
		s.Address, _ = netip.ParseAddr(address)
		s.Source, _ = netip.ParseAddr(source)
		text := dnsmasq.Render([]dnsmasq.Server{s, server("wan0", "192.0.2.53", "", domain)})
		all := lines(t, text)
		if !slices.Contains(all, "server=192.0.2.53@wan0") {
			t.Errorf("the good server is missing in %q", text)
		}
		for i, l := range all {
			m := syntax.FindStringSubmatch(l)
			if m == nil || len(l) > 500 || slices.Contains(all[:i], l) {
				t.Fatalf("line %q of %q", l, text)
			}
			if m[1] != "" && (len(m[1]) > 253 || strings.Contains("."+m[1]+".", "..")) {
				t.Errorf("domain %q", m[1])
			}
			a, err := netip.ParseAddr(m[2])
			if err != nil || a.Is4In6() || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || (m[3] != "") != (a.Is6() && a.IsLinkLocalUnicast()) {
				t.Errorf("address %q in %q", m[2], l)
			}
			if (m[3] != "" && m[3] != m[4]) || len(m[4]) > 15 || (m[4] != name && m[4] != "wan0") {
				t.Errorf("interface %q in %q", m[4], l)
			}
			if m[5] == "" {
				continue
			}
			if b, err := netip.ParseAddr(m[5]); err != nil || b.Is4() != a.Is4() || b != s.Source.WithZone("") {
				t.Errorf("source %q in %q", m[5], l)
			}
		}
	})
}
