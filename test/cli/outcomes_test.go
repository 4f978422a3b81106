package cli_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/cli"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// sound waits until status has nothing to say.
func (h *host) sound(what string) {
	h.t.Helper()
	labtest.Eventually(h.t, func() error {
		if s := h.status(); !s.OK || len(s.Problems) > 0 {
			return fmt.Errorf("%s: %+v", what, s.Problems)
		}
		return nil
	})
}

// alienWith makes an interface that NetworkManager leaves alone.
func (h *host) alienWith(address string) {
	h.t.Helper()
	_, err := h.NewLink(lab.LinkConfig{Name: alien, Up: true})
	h.must(err)
	h.ip("address", "add", address, "dev", alien)
}

// prefix is an address of an interface with its length.
func (h *host) prefix(device string, f lab.Family) netip.Prefix {
	h.t.Helper()
	all, err := h.Addrs(device, f)
	h.must(err)
	return all[0]
}

// way is the device by which the kernel sends to the internet what has a source.
func (h *host) way(from string) string {
	h.t.Helper()
	out, err := h.IP(h.t.Context(), "-o", "route", "get", lab.InternetAddr4.String(), "from", from)
	h.must(err)
	_, device, _ := strings.Cut(out, " dev ")
	device, _, _ = strings.Cut(device, " ")
	return device
}

// TestRuleAtOurPriority: a rule of another program without selectors, at a priority of ours, takes
// no traffic if it came after ours. If it precedes ours, status reports it.
func TestRuleAtOurPriority(t *testing.T) {
	h := newHost(t)
	h.start()
	h.alienWith("192.0.2.1/24")
	h.ip("route", "add", "default", "dev", alien, "table", "77")
	from := h.bound("-4")[0]
	link := h.way(from)
	for _, priority := range []string{"10000", "10500"} {
		h.ip("rule", "add", "priority", priority, "lookup", "77")
		labtest.Eventually(t, func() error {
			if s := h.status(); !s.OK || len(s.Problems) > 0 || s.Unbound["ipv4"].Interface != alien {
				return fmt.Errorf("at %s: %+v, unbound %+v", priority, s.Problems, s.Unbound)
			}
			return nil
		})
		if got := h.way(from); got != link {
			t.Errorf("at %s: from %s by %s, want %s", priority, from, got, link)
		}
		h.ip("rule", "del", "priority", priority, "lookup", "77")
	}
	h.sound("without a rule")

	h.stop()
	if r := h.ctl("flush"); r.status != 0 {
		t.Fatal(r)
	}
	h.ip("rule", "add", "priority", "10000", "lookup", "77")
	h.launch()
	labtest.Eventually(t, func() error {
		s := h.status()
		if p := problem(s, "rule-ahead"); p == nil || s.OK || p.Severity != routing.Error || p.Object != "10000: from all lookup 77" || p.Fix == "" {
			return fmt.Errorf("before us: %+v", s.Problems)
		}
		return nil
	})
	if got := h.way(from); got != alien {
		t.Errorf("before us: from %s by %s, and status says %s", from, got, alien)
	}
	// The fix.
	h.ip("rule", "add", "priority", "30000", "lookup", "77")
	h.ip("rule", "del", "priority", "10000", "lookup", "77")
	h.sound("after the fix")
	if got := h.way(from); got != link {
		t.Errorf("after the fix: from %s by %s, want %s", from, got, link)
	}
}

// TestRuleByOtherName: a rule may call the device of a link by another name, which the kernel knows, or not if the
// rule is older than the name.
func TestRuleByOtherName(t *testing.T) {
	h := newHost(t)
	h.start()
	h.sound("no rule")
	h.ip("rule", "add", "priority", "300", "oif", "later0", "prohibit")
	h.ip("link", "property", "add", "dev", "wan1", "altname", "enp9s0", "altname", "later0")
	h.sound("a rule that is older than the name")
	h.ip("rule", "add", "priority", "301", "oif", "enp9s0", "prohibit")
	labtest.Eventually(t, func() error {
		if p := h.status().Problems; len(p) != 1 || p[0].Link != "wan1" || !strings.Contains(p[0].Text, "oif enp9s0") {
			return fmt.Errorf("want the rule alone: %+v", p)
		}
		return nil
	})
	h.ip("rule", "del", "priority", "301", "oif", "enp9s0", "prohibit")
	h.sound("the rule is gone")
}

// TestTableOfOthersInOurRange: a number in our range that no link has is another program's table,
// and a link's number for one family is free in the other.
func TestTableOfOthersInOurRange(t *testing.T) {
	h := newHost(t)
	const table = "10500"
	wan1 := h.prefix("wan1", lab.IPv4)
	gateway := lab.DefaultISP(1).IPv4.Addr().String()
	h.ip("route", "add", "default", "via", gateway, "dev", "wan1", "table", table, "protocol", "static")
	h.ip("route", "add", wan1.Masked().String(), "dev", "wan1", "table", table, "protocol", "static", "scope", "link")
	h.ip("rule", "add", "from", wan1.Addr().String(), "priority", "9000", "lookup", table)
	h.start()
	h.sound("a rule and a table of one link, in our range")

	own := fmt.Sprint(network(link(t, h.status(), "wan0"), "ipv4").Table)
	h.ip("-6", "route", "add", "2001:db8:77::/48", "dev", "wan1", "table", own, "protocol", "static")
	h.sound("a route of the other family")
	h.ip("route", "add", "10.99.0.0/16", "dev", "wan1", "table", own, "protocol", "static")
	if p := problem(h.status(), "table-in-use"); p == nil || !strings.Contains(p.Text, "10.99.0.0/16") {
		t.Errorf("a route of the same family: %+v", h.status().Problems)
	}
}

// TestSourceSpecificDefault: a default for the sources of a network is one.
func TestSourceSpecificDefault(t *testing.T) {
	h := newHost(t)
	h.start()
	out, err := h.IP(t.Context(), "-6", "-o", "route", "show", "default", "dev", "wan1")
	h.must(err)
	words := strings.Fields(out)
	via := words[slices.Index(words, "via")+1]
	six := h.prefix("wan1", lab.IPv6)
	h.must(h.Down(t.Context(), "wan0"))
	h.must(h.Modify(t.Context(), "wan1", "ipv6.method", "manual", "ipv6.addresses", six.String()))
	h.must(h.Up(t.Context(), "wan1"))
	// The default that comes now is seen as another one than that of the profile before.
	labtest.Eventually(t, func() error {
		s := h.status()
		if at := slices.IndexFunc(s.Links, func(l cli.Link) bool { return l.Interface == "wan1" }); at < 0 || s.Links[at].Roles["ipv6"].Role != "local" {
			return fmt.Errorf("wan1 is not a local link in IPv6: %+v", s.Links)
		}
		return nil
	})
	h.ip("-6", "route", "add", "default", "from", six.Masked().String(), "via", via, "dev", "wan1", "metric", "512")
	labtest.Eventually(t, func() error {
		s := h.status()
		// NetworkManager has activated it, and the daemon may not have heard of it yet.
		if !slices.ContainsFunc(s.Links, func(l cli.Link) bool { return l.Interface == "wan1" }) {
			return fmt.Errorf("wan1 is not a link: %+v", s.Links)
		}
		if n := network(link(t, s, "wan1"), "ipv6"); !s.OK || problem(s, "no-default") != nil || len(n.Gateways) != 1 || s.Unbound["ipv6"].Interface != "wan1" {
			return fmt.Errorf("%+v, %+v, unbound %+v", s.Problems, n, s.Unbound)
		}
		return nil
	})
	// One for others is none.
	h.ip("-6", "route", "del", "default", "from", six.Masked().String(), "via", via, "dev", "wan1", "metric", "512")
	h.ip("-6", "route", "add", "default", "from", "2001:db8:77::/48", "via", via, "dev", "wan1", "metric", "512")
	labtest.Eventually(t, func() error {
		if s := h.status(); problem(s, "no-default") == nil || s.Unbound["ipv6"].Interface != "" {
			l := link(t, s, "wan1")
			return fmt.Errorf("for others: %+v, unbound %+v, wan1 is %s because %s, by family %+v", s.Problems, s.Unbound, l.Role, l.RoleWhy, l.Roles)
		}
		return nil
	})
}

// TestGatewayElsewhere: what takes the address of a link's router is named, and what status
// tells to do helps.
func TestGatewayElsewhere(t *testing.T) {
	h := newHost(t)
	h.start()
	gateway := lab.DefaultISP(1).IPv4.Addr()
	half := netip.PrefixFrom(gateway, lab.DefaultISP(1).IPv4.Bits()+1).Masked()
	named := func(what, object string) string {
		t.Helper()
		var fix string
		labtest.Eventually(t, func() error {
			s := h.status()
			p := problem(s, "gateway-elsewhere")
			if p == nil || s.OK || p.Severity != routing.Error || p.Link != "wan1" || !strings.HasPrefix(p.Object, object) || !strings.Contains(p.Text, gateway.String()) {
				return fmt.Errorf("%s: %+v", what, s.Problems)
			}
			fix = p.Fix
			return nil
		})
		return fix
	}
	h.alienWith(netip.PrefixFrom(half.Addr().Next().Next().Next().Next().Next(), half.Bits()).String())
	if fix := named("another interface in its network", half.String()+" dev "+alien); !strings.Contains(fix, alien) {
		t.Errorf("the fix is %q", fix)
	}
	h.ip("address", "flush", "dev", alien)
	h.sound("without the address")
	for what, words := range map[string]string{
		"an address of this host": "local " + gateway.String() + " dev lo",
		"behind a tunnel":         gateway.String() + " dev " + alien,
		"refused":                 "blackhole " + gateway.String(),
	} {
		h.ip(strings.Fields("route add " + words)...)
		fix := named(what, words)
		h.ip(strings.Fields(fix)[1:]...)
		h.sound("after " + fix)
	}
}

// TestLiftsThatStayAway: deleting by selectors also deletes lifts. While they are missing that is
// not an error, and status names the remaining rule and the time.
func TestLiftsThatStayAway(t *testing.T) {
	h := newHost(t)
	h.ip("route", "add", "default", "dev", "wan1", "table", "300")
	left := []string{"30001", "30002", "30004"}
	h.ip("rule", "add", "ipproto", "icmp", "fwmark", "7", "lookup", "300", "priority", "30001")
	h.ip("rule", "add", "uidrange", "0-0", "ipproto", "udp", "dport", "53", "lookup", "300", "priority", "30002")
	h.ip("rule", "add", "to", "20.0.0.0/8", "tos", "0x10", "lookup", "300", "priority", "30004")
	h.start()
	began := time.Now()
	h.ip("rule", "del", "ipproto", "icmp")
	h.ip("rule", "del", "ipproto", "udp")
	h.ip("rule", "del", "tos", "0x10")
	// The hour may end meanwhile.
	hours := "(" + began.Format("15") + "|" + began.Add(time.Minute).Format("15") + ")"
	back := regexp.MustCompile("comes back at " + hours + ":")
	labtest.Eventually(t, func() error {
		s := h.status()
		var named []string
		for _, p := range s.Problems {
			if p.Severity != routing.Notice || p.Code != "lift-yields" || !back.MatchString(p.Text) {
				return fmt.Errorf("%+v", p)
			}
			_, priority, _ := strings.Cut(p.Fix, "priority ")
			named = append(named, priority)
		}
		if slices.Sort(named); !s.OK || !slices.Equal(named, left) {
			return fmt.Errorf("named are %v, want %v", named, left)
		}
		return nil
	})
}
