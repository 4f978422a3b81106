package cli_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/cli"
	"multihomed/internal/status"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestFlush: flush removes all of our objects, and nothing else.
func TestFlush(t *testing.T) {
	h := newHost(t)
	if r := h.ctl("flush"); r.status != 0 || r.out != "nothing of multihomed is left\n" {
		t.Errorf("flush of a host without multihomed: %s", r)
	}
	without, err := h.Snapshot(t.Context())
	h.must(err)
	h.start()
	tables := map[string]uint32{}
	for _, l := range h.status().Links {
		tables[l.Interface] = network(l, "ipv4").Table
	}

	if r := h.ctl("flush", "--yes"); r.status != 1 || r.out != "" || !strings.Contains(r.err, "systemctl stop multihomed") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("flush beside the daemon: %s", r)
	}
	if s := h.status(); !s.OK {
		t.Errorf("a refused flush changed something: %+v", s.Problems)
	}
	h.stop()
	if r := h.as(nobody, "flush"); r.status != 1 || r.out != "" || !strings.Contains(r.err, "sudo multihomectl flush") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("flush by nobody: %s", r)
	}

	h.addForeign()
	h.addFirstLadder()
	r := h.ctl("flush", "-v")
	if r.status != 0 || !strings.Contains(r.out, "and the group of 2 uplinks; the leases stay") {
		t.Errorf("flush: %s", r)
	}
	// The order of a pass that takes a link away: rules first, what stops stray
	// packets and what keeps known networks last of them, then routes, then groups.
	last := -1
	for _, line := range []string{"removed -4 rule 10000: ", "removed -4 rule 10500: ", "removed -4 rule 9020: ", "removed -4 route ", "removed link "} {
		at := strings.Index(r.out, line)
		if at <= last {
			t.Errorf("%q is out of order in %s", line, r)
		}
		last = at
	}
	h.onlyForeignIsLeft()
	h.removeForeign()
	after, err := h.Snapshot(t.Context())
	h.must(err)
	if after != without {
		t.Errorf("objects of others changed; before:\n%s\nafter:\n%s", without, after)
	}
	if left, err := h.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}

	if r := h.ctl("flush"); r.status != 0 || r.out != "nothing of multihomed is left\n" {
		t.Errorf("the second flush: %s", r)
	}
	if s := h.status(); s.OK || s.InForce.Present != 0 || problem(s, "not-in-force") == nil {
		t.Errorf("status after flush: ok %v, %+v, %+v", s.OK, s.InForce, s.Problems)
	}
	h.start()
	for _, l := range h.status().Links {
		if table := network(l, "ipv4").Table; table != tables[l.Interface] {
			t.Errorf("%s had table %d, now %d", l.Interface, tables[l.Interface], table)
		}
	}
}

// firstLadder are the rules of version 1 that version 2 does not have.
var firstLadder = []string{
	"8000: from 198.51.100.7 to 198.51.100.0/24 lookup 10000", "9000: from all lookup main suppress_prefixlength 1 suppress_ifgroup 28008",
	"9400: from 198.51.100.0/24 oif wan0 lookup 10000", "10500: from 198.51.100.0/24 iif lo unreachable",
	"19000: from all lookup main suppress_prefixlength 0", "20000: from all to 198.51.100.0/24 lookup 10000",
}

func (h *host) addFirstLadder() {
	h.t.Helper()
	for _, rule := range firstLadder {
		priority, words, _ := strings.Cut(rule, ": ")
		h.ip(append([]string{"rule", "add", "priority", priority, "protocol", "150"}, strings.Fields(strings.Replace(words, "lookup", "table", 1))...)...)
	}
}

// TestFlushOfTheWholeLadder: lifts, the step over rules that the kernel numbered, and
// the rungs behind the ladder go too, and what made them necessary stays.
func TestFlushOfTheWholeLadder(t *testing.T) {
	h := newHost(t)
	h.ip("rule", "add", "fwmark", "1", "priority", "30000", "table", "200")
	h.ip("rule", "add", "uidrange", "1234-1234", "priority", "30001", "table", "201")
	h.ip("-6", "rule", "add", "from", "2001:db8:77::/64", "priority", "30000", "table", "200")
	h.start()
	// As wg-quick does it: the kernel chooses the number.
	h.ip("rule", "add", "not", "fwmark", "51820", "table", "51820")
	stands := func() string { return h.ip("rule") + h.ip("-6", "rule") }
	labtest.Eventually(t, func() error {
		rules := stands()
		for _, part := range []string{
			"goto 30000", "goto 30001", // lifts
			"iif lo goto ", "oif wan1 goto ", // the step
			"32765:", // again
		} {
			if !strings.Contains(rules, part) {
				return fmt.Errorf("no %q in\n%s", part, rules)
			}
		}
		return nil
	})
	h.settle()
	s := h.status()
	for place, text := range map[string]string{
		status.Selects: "30000: from all fwmark 0x1 lookup 200", status.SteppedOver: "not from all fwmark 0xca6c lookup 51820",
	} {
		if !slices.ContainsFunc(s.OtherRules, func(r cli.OtherRule) bool { return r.Place == place && strings.Contains(r.Text, text) }) {
			t.Errorf("%q is not %s in %+v", text, place, s.OtherRules)
		}
	}
	lifted := 0
	for _, o := range s.Shared {
		if o.Reason == "lift" && strings.Contains(o.Lifts, "30000: from ") {
			lifted++
		}
	}
	if lifted < 2 {
		t.Errorf("no lifts of 30000 in %+v", s.Shared)
	}

	h.stop()
	if r := h.ctl("flush"); r.status != 0 || !strings.HasPrefix(r.out, "removed ") {
		t.Errorf("flush: %s", r)
	}
	if left, err := h.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	rules := stands()
	for _, others := range []string{"fwmark 0x1 lookup 200", "uidrange 1234-1234 lookup 201", "from 2001:db8:77::/64 lookup 200", "not from all fwmark 0xca6c lookup 51820"} {
		if !strings.Contains(rules, others) {
			t.Errorf("flush removed %q:\n%s", others, rules)
		}
	}
	if strings.Contains(rules, "150") || strings.Contains(rules, "multihomed") || strings.Contains(rules, "goto") {
		t.Errorf("left:\n%s", rules)
	}
}

// foreign are objects that look like ours and are not: of another protocol in
// our tables, of ours outside our tables and rungs.
var foreign = []struct {
	family, kind string
	words        []string
	// shown is how ip -N lists it.
	shown string
}{
	{"-4", "rule", []string{"from", "203.0.113.7", "priority", "10000", "table", "10000", "protocol", "static"}, "10000: from 203.0.113.7 lookup 10000 proto 4"},
	{"-4", "rule", []string{"from", "203.0.113.8", "priority", "12345", "table", "77", "protocol", "150"}, "12345: from 203.0.113.8 lookup 77 proto 150"},
	{"-6", "rule", []string{"from", "2001:db8:77::/64", "priority", "10000", "table", "10001"}, "10000: from 2001:db8:77::/64 lookup 10001"},
	{"-4", "route", []string{"203.0.113.0/24", "dev", "wan0", "table", "10000", "protocol", "static"}, "203.0.113.0/24 dev wan0 table 10000 proto 4"},
	{"-4", "route", []string{"203.0.113.0/24", "dev", "wan0", "table", "9999", "protocol", "150"}, "203.0.113.0/24 dev wan0 table 9999 proto 150"},
	{"-6", "route", []string{"2001:db8:77::/64", "dev", "wan1", "table", "11000", "protocol", "150"}, "2001:db8:77::/64 dev wan1 table 11000 proto 150"},
}

func (h *host) addForeign() {
	h.t.Helper()
	for _, f := range foreign {
		h.ip(append([]string{f.family, f.kind, "add"}, f.words...)...)
	}
}

func (h *host) removeForeign() {
	h.t.Helper()
	for _, f := range foreign {
		h.ip(append([]string{f.family, f.kind, "del"}, f.words...)...)
	}
}

func (h *host) onlyForeignIsLeft() {
	h.t.Helper()
	var all strings.Builder
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := h.RulesText(h.t.Context(), f)
		h.must(err)
		routes, err := h.RoutesText(h.t.Context(), f, "all")
		h.must(err)
		all.WriteString(rules + routes)
	}
	for _, f := range foreign {
		found := false
		for line := range strings.Lines(all.String()) {
			line = strings.TrimPrefix(strings.Join(strings.Fields(line), " "), "1 ") // RTN_UNICAST
			found = found || strings.HasPrefix(line, f.shown)
		}
		if !found {
			h.t.Errorf("flush removed %s %s %s; left:\n%s", f.family, f.kind, f.shown, all.String())
		}
	}
}
