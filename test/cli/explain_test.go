package cli_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/explain"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

const outside4, outside6 = "203.0.113.1", "2001:db8:ffff::1"

// explain runs `multihomectl explain --json` as a user. The kernel must agree, always.
func (h *host) explain(uid uint32, args ...string) (explain.Document, result) {
	h.t.Helper()
	r := h.as(uid, append([]string{"explain", "--json"}, args...)...)
	var d explain.Document
	decoder := json.NewDecoder(strings.NewReader(r.out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		h.t.Fatalf("explain %q: %v in %s", args, err, r)
	}
	h.must(schematest.Check("explain", []byte(r.out)))
	if !d.Agrees || r.status == 3 || d.Asked == (len(d.WhatIf) > 0) {
		h.t.Errorf("explain %q: the kernel was asked: %v, and agrees: %v: %s", args, d.Asked, d.Agrees, r)
	}
	if status := map[bool]int{true: 0, false: 1}[d.Reaches()]; d.Complete && r.status != status {
		h.t.Errorf("explain %q: status %d for %q", args, r.status, d.Summary)
	}
	return d, r
}

// leaves wants that a packet leaves by an interface.
func (h *host) leaves(by string, args ...string) explain.Document {
	h.t.Helper()
	d, r := h.explain(0, args...)
	if d.Outcome != explain.Sent || d.Interface != by || !strings.Contains(d.Summary, " leaves by "+by) {
		h.t.Errorf("explain %q: want %s: %s", args, by, r)
	}
	return d
}

// answering is the rule that had the answer, in the last lookup.
func answering(d explain.Document) explain.Rule {
	rules := d.Lookups[len(d.Lookups)-1].Rules
	if at := slices.IndexFunc(rules, func(r explain.Rule) bool { return r.Result == explain.Answers }); at >= 0 {
		return rules[at]
	}
	return explain.Rule{}
}

// TestExplain asks one host all kinds of questions, before the daemon, with it, and without it again.
func TestExplain(t *testing.T) {
	h := newHost(t)
	h.must(h.Sysctl("net.ipv4.ip_forward", "1", "net.ipv6.conf.all.forwarding", "1"))
	for _, to := range []string{outside4, outside6} {
		if d := h.leaves("wan0", to); d.Annotations != "" || answering(d).By != explain.ByKernel {
			t.Errorf("before multihomed: %+v", d)
		}
	}
	h.start()
	wan1, wan1v6 := h.addr("wan1").String(), h.addr6("wan1").String()
	for _, from := range [][]string{{outside4, "--from", wan1}, {outside6, "--from", wan1v6}, {outside4, "--from", wan1, "--oif", "wan1", "--proto", "tcp", "--dport", "443"}, {outside6, "--from", wan1v6, "--oif", "wan1"}} {
		d := h.leaves("wan1", from...)
		if r := answering(d); d.Annotations != "daemon" || r.By != explain.ByMultihomed || r.Link != "wan1" || r.Profile != "wan1" || r.Reason != "source" && r.Reason != "device" {
			t.Errorf("%q: by %q: %+v", from, d.Annotations, r)
		}
		other, r := h.explain(nobody, append(slices.Clone(from), "--uid", "0")...)
		if other.Summary != d.Summary || answering(other).Link != "wan1" || len(other.Unread) > 0 {
			t.Errorf("nobody sees: %s", r)
		}
	}
	h.leaves("wan1", outside4, "--oif", "wan1")
	h.leaves("wan1", outside6, "--oif", "wan1")
	h.leaves("wan0", outside4, "--mark", "0x7", "--tos", "af41", "--sport", "1000")
	h.explainForwarded(wan1)
	h.explainTunnel(wan1)
	h.explainText(wan1)
	h.explainTerminal(outside4, "--from", wan1)
	h.explainSnapshot(wan1)
	h.explainWhatIf()

	h.stop()
	if d, _ := h.explain(0, outside4, "--from", wan1); d.Annotations != "multihomectl" || answering(d).Link != "wan1" {
		t.Errorf("without the daemon: by %q: %+v", d.Annotations, answering(d))
	}
	d, r := h.explain(nobody, outside4, "--from", wan1, "--uid", "0")
	if answering(d).Reason != "source" || d.Outcome != explain.Sent {
		t.Errorf("without the daemon nobody sees: %s", r)
	}
}

func (h *host) addr6(device string) netip.Addr {
	h.t.Helper()
	found, err := h.WaitAddr(h.t.Context(), device, lab.IPv6)
	h.must(err)
	return found
}

// explainForwarded asks for packets that come in, with and without a check of their source.
func (h *host) explainForwarded(wan1 string) {
	h.t.Helper()
	guest := strings.TrimSuffix(wan1, wan1[strings.LastIndex(wan1, "."):]) + ".77"
	h.must(h.Sysctl("net.ipv4.conf.wan1.rp_filter", "0", "net.ipv4.conf.all.rp_filter", "0"))
	h.leaves("wan0", outside4, "--iif", "wan1", "--from", guest)
	h.must(h.Sysctl("net.ipv4.conf.wan1.rp_filter", "1"))
	h.leaves("wan0", outside4, "--iif", "wan1", "--from", guest)
	d, r := h.explain(0, outside4, "--iif", "wan1", "--from", "198.51.100.9")
	if d.Outcome != explain.Refused || !strings.Contains(d.Summary, "is dropped when it comes in by wan1") || d.Lookups[len(d.Lookups)-1].Purpose != explain.ForReverse {
		h.t.Errorf("a source that is elsewhere: %s", r)
	}
	h.must(h.Sysctl("net.ipv4.conf.wan1.rp_filter", "0"))
}

// explainTunnel adds a full tunnel as wg-quick does.
func (h *host) explainTunnel(wan1 string) {
	h.t.Helper()
	h.ip("link", "add", alien, "type", "bridge")
	h.ip("address", "add", "10.99.0.2/32", "dev", alien)
	h.ip("link", "set", alien, "up")
	h.ip("route", "add", "default", "dev", alien, "table", "51820")
	h.ip("rule", "add", "not", "fwmark", "51820", "table", "51820")
	h.ip("rule", "add", "table", "main", "suppress_prefixlength", "0")
	h.settle()
	d := h.leaves(alien, outside4)
	if r := answering(d); r.Maker != "wg-quick" || d.Source == nil || d.Source.String() != "10.99.0.2" {
		h.t.Errorf("%+v", d)
	}
	h.leaves("wan1", outside4, "--from", wan1)
	h.leaves("wan0", outside4, "--mark", "51820")
	d, r := h.explain(0, outside4, "--what-if", "down:"+alien)
	if d.Interface != "wan0" || len(d.Assumptions) == 0 {
		h.t.Errorf("without the tunnel: %s", r)
	}
	h.ip("rule", "del", "not", "fwmark", "51820", "table", "51820")
	h.ip("rule", "del", "table", "main", "suppress_prefixlength", "0")
	h.ip("link", "del", alien)
	h.settle()
}

func (h *host) explainText(wan1 string) {
	h.t.Helper()
	r := h.ctl("explain", outside4, "--from", wan1)
	for _, want := range []string{"from " + wan1 + " leaves by wan1 via ", "kernel the same: via ", "multihomed: packets from the address leave by the link, link wan1", "not asked: the answer came before"} {
		if r.status != 0 || !strings.Contains(strings.Join(strings.Fields(r.out), " "), want) {
			h.t.Errorf("no %q in %s", want, r)
		}
	}
	if r := h.ctl("__complete", "explain", outside4, "--what-if", "down:wan"); !strings.Contains(r.out, "down:wan0\ndown:wan1\n") {
		h.t.Errorf("completion gave %s", r)
	}
	h.ip("route", "add", "unreachable", "198.51.100.0/24")
	if d, r := h.explain(0, "198.51.100.1"); d.Outcome != explain.Refused || r.status != 1 {
		h.t.Errorf("an unreachable route: %s", r)
	}
	h.ip("route", "del", "unreachable", "198.51.100.0/24")
}

// explainSnapshot takes the host to a desk.
func (h *host) explainSnapshot(wan1 string) {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "host.json")
	want := h.ctl("explain", outside4, "--from", wan1, "--save-snapshot", path)
	answer, _, _ := strings.Cut(want.out, "\n\n")
	if got := h.ctl("explain", "--snapshot", path); !strings.HasPrefix(got.out, answer+"\nsnapshot  ") || got.status != want.status {
		h.t.Errorf("from the snapshot: %s; from the host: %s", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		h.t.Errorf("%v, %v", info, err)
	}
	for _, question := range [][]string{{"198.51.100.7", "--oif", "wan1"}, {"198.51.100.7"}, {"198.51.100.7", "--from", h.addr("wan0").String()}} {
		var here, there explain.Document
		h.must(json.Unmarshal([]byte(h.ctl(append([]string{"explain", "--json"}, question...)...).out), &here))
		h.must(json.Unmarshal([]byte(h.ctl(append([]string{"explain", "--json", "--snapshot", path}, question...)...).out), &there))
		if here.Interface != there.Interface || here.Outcome != there.Outcome || !there.Complete {
			h.t.Errorf("%q: %q here, %q from the snapshot", question, here.Summary, there.Summary)
		}
	}
}

// explainWhatIf compares what would be with what is then.
func (h *host) explainWhatIf() {
	h.t.Helper()
	for _, to := range []string{outside4, outside6} {
		d, r := h.explain(0, to, "--what-if", "down:wan0")
		if d.Interface != "wan1" || d.Via == nil {
			h.t.Errorf("without wan0: %s", r)
		}
		defer func() {
			labtest.Eventually(h.t, func() error {
				now, r := h.explain(0, to)
				if now.Interface != d.Interface || now.Via == nil || *now.Via != *d.Via {
					return fmt.Errorf("%q was said, and it is: %s", d.Summary, r)
				}
				return nil
			})
		}()
	}
	h.must(h.Down(h.t.Context(), "wan0"))
}

// TestWhatIfFailover takes the replacement of a dead uplink away, and compares what explain said
// with what the daemon does: with three uplinks, and with one left.
func TestWhatIfFailover(t *testing.T) {
	h := newHost(t)
	for n, name := range []string{"wan2", "wan3"} {
		labtest.NewISP(t, h.Host, lab.DefaultISP(2+n))
		h.must(h.AddProfile(t.Context(), name, name))
		h.up(name)
	}
	h.start()
	flows := []string{outside4, outside6}
	arrives := func(by string) {
		t.Helper()
		for _, to := range flows {
			labtest.Eventually(t, func() error {
				if d, r := h.explain(0, to); d.Interface != by {
					return fmt.Errorf("want %s: %s", by, r)
				}
				return nil
			})
		}
	}
	says := func(by string, changes ...string) {
		t.Helper()
		for _, to := range flows {
			args := []string{to}
			for _, c := range changes {
				args = append(args, "--what-if", c)
			}
			if d, r := h.explain(0, args...); d.Interface != by || !d.Complete {
				t.Errorf("what if %q: want %s: %s", changes, by, r)
			}
		}
	}
	// A test of failover ends after a while, which must not be in the middle of a step.
	dead := func() {
		t.Helper()
		h.ok("wan0 counts as dead until ", "failover", "test", "wan0")
	}
	arrives("wan0")
	dead()
	arrives("wan1")
	says("wan2", "down:wan1")
	says("wan0", "up:wan0")
	says("wan3", "down:wan1", "down:wan2")
	says("wan1", "down:wan0") // Main's next one works.
	dead()
	h.must(h.Down(t.Context(), "wan1"))
	arrives("wan2")
	says("wan0", "down:wan2", "down:wan3") // Nothing else works.
	dead()
	h.must(h.Down(t.Context(), "wan2"))
	arrives("wan3")
	h.must(h.Down(t.Context(), "wan3"))
	arrives("wan0")
}
