package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

// A listed lease is one of `lease list --json`.
type listed struct {
	Interface, Address, ID, User, Tag string
	Table                             uint32
	Routed, Live                      bool
	ExpiresIn                         int64 `json:"expires_in_s"`
}

func (h *host) leases(args ...string) []listed {
	h.t.Helper()
	r := h.ctl(append([]string{"lease", "list", "--json"}, args...)...)
	var all struct {
		Schema int
		Leases []listed
	}
	if err := json.Unmarshal([]byte(r.out), &all); err != nil || r.status != 0 || all.Schema != 1 || all.Leases == nil {
		h.t.Fatalf("lease list: %v, %s", err, r)
	}
	h.must(schematest.Check("lease-list", []byte(r.out)))
	return all.Leases
}

// stranger makes the interface that NetworkManager leaves alone.
func (h *host) stranger(addresses ...string) {
	h.t.Helper()
	_, err := h.NewLink(lab.LinkConfig{Name: alien, Up: true})
	h.must(err)
	for _, a := range addresses {
		h.ip("address", "add", a, "dev", alien)
	}
}

func table(r result) string { return strings.TrimSuffix(r.out, "\n") }

// TestLease is the life of leases as a user sees it.
func TestLease(t *testing.T) {
	h := newHost(t)
	h.start()
	h.stranger("192.0.2.7/24", "2001:db8:7::7/64")
	h.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.1", "dev", alien)

	routed := h.ctl("lease", "-i", "ppp7", "-a", "192.0.2.7", "-t", "a tag")
	if routed.status != 0 || !strings.Contains(routed.err, "until the address goes") {
		t.Fatalf("lease: %s", routed)
	}
	if none := h.ctl("lease", "-i", "ppp9", "-a", "192.0.2.9"); none.status != 1 || !strings.HasSuffix(none.err, "there is no interface ppp9; to fix: ask again when it is there (ip link shows all)\n") {
		t.Errorf("an interface that is missing: %s", none)
	}
	rules := h.ip("-N", "rule")
	for _, rule := range []string{
		"from all oif ppp7 lookup " + table(routed), "from 192.0.2.7 lookup " + table(routed),
		"from 192.0.2.7 lookup 254 suppress_prefixlength 7",
	} {
		if !strings.Contains(rules, rule) {
			t.Errorf("no rule %q in\n%s", rule, rules)
		}
	}
	// One next hop does not make it an uplink, and main knows its network.
	for _, rule := range []string{"from 192.0.2.7 7 ", "to 192.0.2.0/24"} {
		if strings.Contains(strings.ReplaceAll(rules, "unreachable", "7"), rule) {
			t.Errorf("a rule %q in\n%s", rule, rules)
		}
	}
	if routes := h.ip("route", "show", "table", table(routed)); !strings.Contains(routes, "203.0.113.0/24 via 192.0.2.1 dev ppp7") {
		t.Errorf("its table holds\n%s", routes)
	}
	six := h.ctl("lease", "-6", "-i", "ppp7", "-a", "2001:db8:7::7", "--json")
	if six.status != 0 || !strings.HasPrefix(six.out, `{"schema":1,"table":100`) || !strings.Contains(six.out, `"routed":true}`) {
		t.Errorf("lease in IPv6: %s", six)
	}
	h.must(schematest.Check("lease", []byte(six.out)))
	if s := h.status(); !s.OK {
		t.Errorf("status: %+v", s.Problems)
	}
	short := h.ctl("lease", "-i", "ppp8", "--id", "modem 8", "--json")
	h.must(schematest.Check("lease", []byte(short.out)))
	plain := h.ctl("lease", "-i", "ppp8", "-a", "192.0.2.8", "--no-routing")
	id := h.ctl("lease", "-i", "ppp8", "--id", "modem 8")
	if plain.status+id.status != 0 || plain.err != "kept for 1h0m0s unless it is renewed\n" || table(plain) == table(id) || table(plain) == table(routed) {
		t.Errorf("plain leases: %s%s", plain, id)
	}

	all := h.leases()
	var lines []string
	for _, l := range all {
		lines = append(lines, fmt.Sprint(l.Interface, " ", l.Address, l.ID, " ", l.User, " ", l.Tag, " ", l.Table > 0, l.Routed, l.Live, l.ExpiresIn > 3500))
	}
	want := []string{
		"ppp7 192.0.2.7 root a tag true true true false",
		"ppp7 2001:db8:7::7 root  true true true false",
		"ppp8 modem 8 root  true false true true",
		"ppp8 192.0.2.8 root  true false true true",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("leases\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	text := h.ctl("lease", "list")
	if text.status != 0 || !strings.HasPrefix(text.out, "interface  for ") || !strings.Contains(text.out, " unless it is renewed") || strings.Count(text.out, "\n") != 5 {
		t.Errorf("lease list: %s", text)
	}
	for _, complete := range []struct {
		args []string
		want string
	}{
		{[]string{"lease", "-i", ""}, "ppp7\n"},
		{[]string{"lease", "release", "-i", ""}, "ppp7\n"},
		{[]string{"lease", "-i", "ppp7", "-a", ""}, "192.0.2.7\n"},
		{[]string{"status", "--color", ""}, "auto\nalways\nnever\n"},
	} {
		if out := h.ctl(append([]string{"__complete"}, complete.args...)...).out; !strings.Contains(out, complete.want) {
			t.Errorf("completion of %q: %s", complete.args, out)
		}
	}

	for _, args := range [][]string{
		{"-i", "ppp7", "-a", "192.0.2.7"},
		{"-i", "ppp7", "-a", "2001:db8:7::7"},
		{"-i", "ppp8", "-a", "192.0.2.8", "--no-routing"},
		{"-i", "ppp8", "--id", "modem 8"},
		{"-i", "ppp8", "--id", "modem 8"},
	} {
		if r := h.ctl(append([]string{"lease", "release"}, args...)...); r.status != 0 || r.out != "" || r.err != "" {
			t.Errorf("release %v: %s", args, r)
		}
	}
	if rules := h.ip("rule"); strings.Contains(rules, "ppp7") || strings.Contains(rules, "192.0.2.") {
		t.Errorf("left:\n%s", rules)
	}
	if left := h.leases(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if ended := h.leases("--all"); len(ended) != 2 {
		t.Errorf("ended: %+v", ended)
	}
}

// TestLeaseHold is a lease that lives as long as the command.
func TestLeaseHold(t *testing.T) {
	h := newHost(t)
	h.start()
	h.stranger("192.0.2.7/24")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := h.Start(lab.ProcessConfig{Path: program(t, "multihomectl"), Args: []string{"lease", "-i", "ppp7", "-a", "192.0.2.7", "--hold"}})
	h.must(err)
	_, err = p.WaitLine(ctx, "held until")
	h.must(err)
	if rules := h.ip("rule"); !strings.Contains(rules, "from 192.0.2.7 lookup") {
		t.Errorf("rules:\n%s", rules)
	}
	if all := h.leases(); len(all) != 1 || all[0].ExpiresIn < 3500 || !all[0].Routed {
		t.Errorf("leases %+v", all)
	}
	h.must(p.Stop(ctx))
	if rules := h.ip("rule"); strings.Contains(rules, "192.0.2.7") {
		t.Errorf("left:\n%s", rules)
	}
}

// TestLeaseRefused is what does not work: a 0 for scripts, a reason for people.
func TestLeaseRefused(t *testing.T) {
	h := newHost(t)
	h.start()
	h.stranger("192.0.2.7/24")
	refused := func(r result, reason string) {
		t.Helper()
		if r.status != 1 || r.out != "0\n" || !strings.Contains(r.err, reason) || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%s\nwant 0 because of %q", r, reason)
		}
	}
	refused(h.ctl("lease", "-i", "ppp9", "-a", "192.0.2.7"), "there is no interface ppp9")
	refused(h.ctl("lease", "-i", "ppp7", "-a", "192.0.2.9"), "ppp7 does not have the address 192.0.2.9")
	refused(h.ctl("lease", "-i", "lo", "-a", "127.0.0.1"), "loopback")
	refused(h.as(nobody, "lease", "-i", "ppp7", "-a", "192.0.2.7"), "may not lease tables")
	for _, args := range []string{
		"-i ppp7", "-a 192.0.2.7", "-i ppp7 -a 192.0.2.7/24", "-i ppp7 -a fe80::1%ppp7", "-4 -i ppp7 -a 2001:db8::1",
		"-i ppp7 -a 192.0.2.7 --id x", "-i ppp7 -a 192.0.2.7 --tries 0", "-i ppp7 -a 192.0.2.7 more",
	} {
		if r := h.ctl(append([]string{"lease"}, strings.Fields(args)...)...); r.status != 2 || r.out != "" || strings.Count(r.err, "\n") != 1 {
			t.Errorf("lease %s: %s", args, r)
		}
	}
	h.stop()
	refused(h.ctl("lease", "-i", "ppp7", "-a", "192.0.2.7", "--interval", "20ms"), "systemctl start multihomed")
	if all := h.leases(); len(all) != 0 {
		t.Errorf("leases %+v", all)
	}
	h.start()
	labtest.Eventually(t, func() error {
		if r := h.ctl("lease", "-i", "ppp7", "-a", "192.0.2.7"); r.status != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}
