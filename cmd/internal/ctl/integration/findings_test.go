package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"multihomed/internal/lab"
	"multihomed/internal/lab/labtest"
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
	if s := h.status(); !s.OK || len(s.Problems) > 0 {
		t.Errorf("after the fix: %+v", s.Problems)
	}
	for n, name := range []string{"usb0", "usb1"} {
		if answer, err := h.ask(name, 10*time.Second); err != nil || answer.ISP != "modem"+fmt.Sprint(n) {
			t.Errorf("on %s: %+v, %v", name, answer, err)
		}
	}
}

// ask asks the internet over a device.
func (h *host) ask(device string, patience time.Duration) (lab.Answer, error) {
	ctx, cancel := context.WithTimeoutCause(h.t.Context(), patience, errors.New("no answer"))
	defer cancel()
	return lab.DialUDP(ctx, lab.From{Device: device}, lab.InternetAddr(lab.IPv4))
}

// TestRulesOfOthers: rules of others that get in the way are named, in the words
// of iproute2.
func TestRulesOfOthers(t *testing.T) {
	h := newHost(t)
	h.start()
	h.ip("rule", "add", "priority", "5270", "lookup", "52")
	h.ip("rule", "add", "priority", "1001", "fwmark", "0x100/0x3f00", "lookup", "1")
	h.ip("route", "add", "10.99.0.0/16", "dev", "wan1", "table", fmt.Sprint(network(link(t, h.status(), "wan0"), "ipv4").Table), "protocol", "static")
	h.ip("-6", "rule", "del", "priority", "32766")
	s := h.status()
	if p := problem(s, "rule-ahead"); p == nil || p.Severity != "notice" || !strings.Contains(p.Text, "5270: from all lookup 52") {
		t.Errorf("problems are %+v", s.Problems)
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
