package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/cli"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestReversePathFix: what status says of a strict reverse path filter is true,
// and what it tells to do helps.
func TestReversePathFix(t *testing.T) {
	h := &host{t: t, Host: labtest.NewHost(t, lab.HostConfig{FastDAD: true})}
	for n, name := range []string{"usb0", "usb1"} {
		labtest.NewISP(t, h.Host, lab.ISPConfig{
			Name: "modem" + fmt.Sprint(n), Link: name, IPv4: netip.MustParsePrefix("192.168.8.1/24"),
			PoolFirst: netip.MustParseAddr("192.168.8.100"), PoolLast: netip.MustParseAddr("192.168.8.100"),
		})
		h.must(h.AddProfile(t.Context(), name, name, "ipv6.method", "disabled"))
		h.must(h.Up(t.Context(), name))
	}
	h.start()
	// NetworkManager relaxes a strict filter by itself where it sets up MPTCP.
	h.must(h.Sysctl("net.ipv4.conf.usb0.rp_filter", "1", "net.ipv4.conf.usb1.rp_filter", "1"))
	p := problem(h.status(), "rp-filter")
	if p == nil || p.Link != "usb1" || !strings.HasPrefix(p.Fix, "sysctl -w ") {
		t.Fatalf("problems are %+v", h.status().Problems)
	}
	if answer, err := h.ask("usb1", time.Second); err == nil {
		t.Errorf("nothing was dropped: %s answered", answer.ISP)
	}
	for setting := range strings.FieldsSeq(strings.TrimPrefix(p.Fix, "sysctl -w ")) {
		key, value, _ := strings.Cut(setting, "=")
		h.must(h.Sysctl(key, value))
	}
	// What the filter dropped were the answers to probes, too: the uplink would need its time to recover.
	h.ok("the history of usb1 is forgotten: ", "failover", "reset", "usb1")
	labtest.Eventually(t, func() error {
		if s := h.status(); !s.OK || len(s.Problems) != 1 || s.Problems[0].Code != "shared-address" {
			return fmt.Errorf("after the fix: %+v", s.Problems)
		}
		return nil
	})
	for n, name := range []string{"usb0", "usb1"} {
		if answer, err := h.ask(name, 10*time.Second); err != nil || answer.ISP != "modem"+fmt.Sprint(n) {
			t.Errorf("on %s: %+v, %v", name, answer, err)
		}
	}
	// The address leads to one of them, the one that status names.
	for _, metric := range []string{"50", "300"} {
		h.must(h.Modify(t.Context(), "usb1", "ipv4.route-metric", metric))
		h.must(h.Reapply(t.Context(), "usb1"))
		labtest.Eventually(t, func() error {
			p := problem(h.status(), "shared-address")
			if p == nil || p.Object != "192.168.8.100" {
				return fmt.Errorf("problems are %+v", h.status().Problems)
			}
			by, other := "usb0", "usb1"
			if metric == "50" {
				by, other = other, by
			}
			way, err := h.IP(t.Context(), "route", "get", "203.0.113.1", "from", "192.168.8.100")
			if err != nil || !strings.Contains(way, " dev "+by+" ") || p.Link != other || !strings.Contains(p.Text, "leave by "+by+" alone") {
				return fmt.Errorf("metric %s: %+v; the kernel says %s, %w", metric, p, way, err)
			}
			return nil
		})
	}
}

// ask asks the internet over a device.
func (h *host) ask(device string, patience time.Duration) (lab.Answer, error) {
	ctx, cancel := context.WithTimeoutCause(h.t.Context(), patience, errors.New("no answer"))
	defer cancel()
	return lab.DialUDP(ctx, lab.From{Device: device}, lab.InternetAddr(lab.IPv4))
}

// TestRulesOfOthers: status names disturbing rules of other programs, in the syntax of iproute2.
func TestRulesOfOthers(t *testing.T) {
	h := newHost(t)
	h.start()
	h.ip("rule", "add", "priority", "5270", "lookup", "52")
	h.ip("rule", "add", "priority", "1001", "fwmark", "0x100/0x3f00", "lookup", "1")
	h.ip("route", "add", "10.99.0.0/16", "dev", "wan1", "table", fmt.Sprint(network(link(t, h.status(), "wan0"), "ipv4").Table), "protocol", "static")
	h.ip("-6", "rule", "del", "priority", "32766")
	s := h.status()
	if p := problem(s, "rule-ahead"); p != nil || !slices.Contains(s.OtherRules, cli.OtherRule{Family: "ipv4", Text: "5270: from all lookup 52", Place: "ahead"}) {
		t.Errorf("problems are %+v, rules of others %+v", s.Problems, s.OtherRules)
	}
	if p := problem(s, "table-in-use"); p == nil || p.Link != "wan0" || !strings.Contains(p.Text, "10.99.0.0/16") {
		t.Errorf("problems are %+v", s.Problems)
	}
	p := problem(s, "main-rule")
	if p == nil || !strings.HasPrefix(p.Fix, "ip ") {
		t.Fatalf("problems are %+v", s.Problems)
	}
	h.ip(strings.Fields(p.Fix)[1:]...)
	if p := problem(h.status(), "main-rule"); p != nil {
		t.Errorf("after %q: %+v", p.Fix, p)
	}
}

// TestWhereBoundTrafficGoes: status names the cause if bound traffic does not use its link, and its
// fix helps. It asks the kernel and does not judge by the text of rules.
func TestWhereBoundTrafficGoes(t *testing.T) {
	h := newHost(t)
	h.start()
	_, err := h.NewLink(lab.LinkConfig{Name: alien, Up: true})
	h.must(err)
	h.ip("address", "add", "192.0.2.1/24", "dev", alien)

	h.ip("rule", "add", "priority", "5270", "lookup", "52")
	h.ip("route", "add", "100.64.99.0/24", "dev", alien, "table", "52")
	if p := problem(h.status(), "rule-ahead"); p != nil {
		t.Errorf("a rule in front whose table knows one network: %+v", p)
	}
	h.ip("route", "add", "default", "dev", alien, "table", "52")
	if p := problem(h.status(), "rule-ahead"); p == nil || p.Severity != routing.Error || p.Object != "5270: from all lookup 52" || p.Since == nil {
		t.Errorf("a rule in front whose table has a default: %+v", p)
	}
	// The fix.
	h.ip("rule", "add", "priority", "30000", "lookup", "52")
	h.ip("rule", "del", "priority", "5270")
	labtest.Eventually(t, func() error {
		if s := h.status(); !s.OK || len(s.Problems) > 0 || s.Unbound["ipv4"].Interface != alien {
			return fmt.Errorf("after the fix: %+v, unbound %+v", s.Problems, s.Unbound)
		}
		return nil
	})
	h.ip("rule", "del", "priority", "30000")

	from := h.bound("-4")[0]
	h.ip("rule", "add", "priority", "30000", "from", from, "lookup", "52")
	p := problem(h.status(), "rule-of-source")
	if p == nil || p.Severity != routing.Error || p.Link != "wan0" || p.Object != "30000: from "+from+" lookup 52" {
		t.Fatalf("a rule for the source: %+v", p)
	}
	_, fix, _ := strings.Cut(p.Fix, ": ")
	h.ip(strings.Fields(fix)[1:]...)
	if p := problem(h.status(), "rule-of-source"); p != nil {
		t.Errorf("after %q: %+v", fix, p)
	}

	// What is left of 0.0.0.0/0 without the private networks, beyond /7.
	for _, piece := range []string{"11.0.0.0/8", "173.0.0.0/8", "193.0.0.0/8"} {
		if p := problem(h.status(), "route-ahead"); p != nil {
			t.Errorf("before %s: %+v", piece, p)
		}
		h.ip("route", "add", piece, "dev", alien)
	}
	h.ip("route", "add", "64.0.0.0/2", "dev", alien) // passed by
	if p := problem(h.status(), "route-ahead"); p == nil || p.Severity != routing.Notice || !strings.Contains(p.Text, "through "+alien+" to 3 of ") {
		t.Errorf("a default in pieces: %+v", p)
	}

	for _, family := range []string{"-4", "-6"} {
		h.ip(family, "route", "add", "prohibit", "default", "metric", "5")
		s := h.parse(h.as(nobody, "status", "--json"))
		p := problem(s, "reject-default")
		if p == nil || p.Severity != routing.Error || !strings.Contains(p.Text, `"prohibit default metric 5"`) {
			t.Fatalf("%s: problems are %+v", family, s.Problems)
		}
		if _, err := h.IP(t.Context(), append([]string{family, "route", "get", "from"}, h.bound(family)...)...); err == nil {
			t.Errorf("%s: bound traffic is not refused", family)
		}
		h.ip(strings.Fields(p.Fix)[1:]...)
		if p := problem(h.status(), "reject-default"); p != nil {
			t.Errorf("after the fix: %+v", p)
		}
	}
}

// bound is an address of wan0 and one of the internet.
func (h *host) bound(family string) []string {
	h.t.Helper()
	f, to := lab.IPv4, "8.1.1.1"
	if family == "-6" {
		f, to = lab.IPv6, "2a00:1::1"
	}
	from, err := h.WaitAddr(h.t.Context(), "wan0", f)
	h.must(err)
	return []string{from.String(), to}
}

// TestHostAddresses: addresses without a network share a table, and who may not read
// the leases finds it by their rules.
func TestHostAddresses(t *testing.T) {
	h := newHost(t)
	h.start()
	h.ip("address", "add", "192.0.2.8/32", "dev", "wan0")
	h.ip("address", "add", "192.0.2.9/32", "dev", "wan0")
	// One in the network of the link, as of VRRP.
	inside := lab.DefaultISP(0).IPv4.Addr().Next().String()
	h.ip("address", "add", inside+"/32", "dev", "wan0")
	var s cli.Status
	labtest.Eventually(t, func() error {
		s = h.status()
		for _, n := range link(t, s, "wan0").Networks {
			if n.HostAddresses && len(n.Addresses) == 3 && n.Table != 0 && s.OK {
				return nil
			}
		}
		return fmt.Errorf("wan0 is %+v, problems %+v", link(t, s, "wan0"), s.Problems)
	})
	h.sameForNobody(s)
	if r := h.ctl("status", "wan0"); !strings.Contains(r.out, "host addresses") {
		t.Errorf("%s", r)
	}
}

// TestDeletionByWords: deleting a rule by its selectors may delete its lift. That is not an error;
// status names the remaining rule, and repeated deletion removes both.
func TestDeletionByWords(t *testing.T) {
	h := newHost(t)
	h.ip("rule", "add", "priority", "30000", "ipproto", "icmp", "lookup", "200")
	h.start()
	h.sound("before")
	lifted := "30000: from all ipproto icmp lookup 200"
	if s := h.status(); len(s.Problems) > 0 || len(s.OtherRules) != 1 || s.OtherRules[0].Text != lifted || s.OtherRules[0].Place != "selects" {
		t.Errorf("before: %+v, rules of others %+v", s.Problems, s.OtherRules)
	}
	if r := h.ctl("status", "-v"); !strings.Contains(r.out, "goto 30000  # a rule of somebody else keeps its say: "+lifted) || !strings.Contains(r.out, "uplink: main has a default route via "+lab.DefaultISP(0).IPv4.Addr().String()) {
		t.Errorf("status -v: %s", r)
	}
	h.ip("rule", "del", "ipproto", "icmp")
	if rules := h.ip("rule"); !strings.Contains(rules, "lookup 200") || strings.Contains(rules, "goto") {
		t.Fatalf("the owner's rule was first:\n%s", rules)
	}
	s := h.status()
	p := problem(s, "lift-yields")
	if !s.OK || p == nil || p.Severity != routing.Notice || !strings.Contains(p.Text, lifted) {
		t.Errorf("ok %v, %+v, problems %+v", s.OK, s.InForce, s.Problems)
	}
	h.ip("rule", "del", "ipproto", "icmp")
	if _, err := h.IP(t.Context(), "rule", "del", "ipproto", "icmp"); err == nil {
		t.Error("it came back")
	}
	labtest.Eventually(t, func() error {
		if s := h.status(); !s.OK || len(s.Problems) > 0 {
			return fmt.Errorf("ok %v, problems %+v", s.OK, s.Problems)
		}
		return nil
	})
}

// TestDeletionOfRungs: deleting by selectors until no rule matches also deletes rungs of a link.
// multihomed restores them; status says when, and reports no error.
func TestDeletionOfRungs(t *testing.T) {
	h := newHost(t)
	h.start()
	addresses, err := h.Addrs("wan0", lab.IPv4)
	if err != nil || len(addresses) == 0 {
		t.Fatalf("%v, %v", addresses, err)
	}
	a := addresses[0].Addr().String()
	h.ip("rule", "add", "priority", "100", "from", a, "lookup", "200")
	labtest.Eventually(t, func() error {
		if s := h.status(); len(s.OtherRules) != 1 {
			return fmt.Errorf("rules of others are %+v", s.OtherRules)
		}
		return nil
	})
	for n := 0; ; n++ {
		if _, err := h.IP(t.Context(), "rule", "del", "from", a); err != nil {
			break
		}
		if n > 10 {
			t.Fatal("it does not end")
		}
	}
	s := h.status()
	p := problem(s, "put-back-later")
	if !s.OK || p == nil || p.Severity != routing.Notice || p.Link != "wan0" || !strings.Contains(p.Text, "100: from "+a+" lookup 200") {
		t.Errorf("ok %v, %+v, problems %+v", s.OK, s.InForce, s.Problems)
	}
	labtest.Eventually(t, func() error {
		if s := h.status(); !s.OK || len(s.Problems) > 0 {
			return fmt.Errorf("ok %v, problems %+v", s.OK, s.Problems)
		}
		return nil
	})
}
