package hosts_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"multihomed/test/lab"
)

// A cleanup is how a program takes its rules away. Words of iproute2 match every
// rule that has what they say, whatever else it has, and delete the first: rules
// of ours must not be it.
type cleanup struct {
	who string
	six bool
	// add are the rules, as arguments of `ip rule add`.
	add []string
	// del are deletions, as arguments of `ip rule del`. Each is repeated until it
	// fails, or where `while` has a text for it, as long as `ip rule` shows it.
	del   []string
	while map[string]string
	// most is how many rules of ours match the selectors, mostOfOurs by default.
	most int
	// vague: the selectors match our rules, too, and no other form of our rules avoids that. Each of
	// ours may be deleted once.
	vague bool
}

const (
	mostDeletions = 200
	// mostOfOurs is how many rules of ours match the selectors of one of another program: a lift,
	// the rungs of a source, and those once more behind the ladder.
	mostOfOurs = 8
)

// cleanups are the deletions of programs and scripts. ADDRESS is wan1's address, NETWORK
// its IPv6 network.
var cleanups = []cleanup{
	wgCleanup(false), wgCleanup(true),
	{
		// delIPRules in Tailscale's router_linux.go: the number and the table.
		who: "tailscale",
		add: []string{
			"pref 5210 fwmark 0x80000/0xff0000 lookup main", "pref 5230 fwmark 0x80000/0xff0000 lookup default",
			"pref 5250 fwmark 0x80000/0xff0000 type unreachable", "pref 5270 lookup 52",
		},
		del: []string{"pref 5210 table main", "pref 5230 table default", "pref 5250 type unreachable", "pref 5270 table 52"},
	},
	{
		// _nmc_mangle_connection in nm-cloud-setup's main.c; NetworkManager deletes
		// by all attributes.
		who: "nm-cloud-setup",
		add: []string{"pref 30200 from ADDRESS table 30200", "pref 30350 table main suppress_prefixlength 0", "pref 30400 from ADDRESS table 30400"},
		del: []string{"pref 30200 from ADDRESS table 30200", "pref 30350 table main suppress_prefixlength 0", "pref 30400 from ADDRESS table 30400"},
	},
	same("ifupdown, by source and destination", "from ADDRESS table 101", "to ADDRESS table 101"),
	{who: "ifupdown, by table", add: []string{"from ADDRESS table 101", "to 10.5.0.0/16 table 101"}, del: []string{"table 101"}},
	{who: "ifupdown, by number", add: []string{"pref 100 from ADDRESS table 101", "pref 1001 iif wan1 table 101"}, del: []string{"pref 100", "pref 1001"}},
	same("TPROXY, by mark and table", "fwmark 1 table 100"),
	same("TPROXY, by mark", "fwmark 1"),
	same("TPROXY, by mark and mask", "fwmark 0x1/0x1"),
	same("a VPN's mark", "fwmark 0xca6c"),
	same("Cilium", "pref 9 fwmark 0x200/0xf00 lookup 2004"),
	same("kube-router", "from 10.244.0.0/16 lookup 77"),
	same("NordVPN", "pref 32764 lookup main suppress_prefixlength 0", "pref 32765 not fwmark 0xe1f1 lookup 205"),
	same("a user, by table", "uidrange 1001-1001 lookup 101"),
	same("a user", "uidrange 1001-1001"),
	same("a destination, by table", "to 10.5.0.0/16 lookup main"),
	same("a destination", "to 10.5.0.0/16"),
	same("a port", "ipproto tcp dport 22 lookup main", "ipproto tcp sport 22 table 128"),
	same("one port", "ipproto tcp dport 22", "ipproto udp sport 53"),
	same("an incoming interface, by table", "iif wan0 table 101"),
	same("an outgoing interface, by table", "oif wan0 table 101"),
	{
		who: "rules with two selectors, by one of them",
		add: []string{
			"pref 30001 uidrange 1001-1001 fwmark 7 table 101", "pref 30002 uidrange 0-0 ipproto udp dport 53 table 101",
			"pref 30003 from 10.7.0.5 fwmark 9 table 101", "pref 30004 to 20.0.0.0/8 dport 443 table 101", "pref 30005 to 8.8.8.8 uidrange 5-9 table 101",
		},
		del: []string{"uidrange 1001-1001", "dport 53", "from 10.7.0.5", "dport 443", "to 8.8.8.8"},
	},
	same("a kill switch", "pref 32000 from 10.9.0.0/16 type unreachable"),
	{
		who: "a full tunnel, by a loop", most: 1, vague: true,
		add: []string{"pref 32000 fwmark 1 table 100", "not fwmark 51820 table 51820", "table main suppress_prefixlength 0"},
		del: []string{"fwmark 1 table 100", "not fwmark 51820 table 51820", "table main suppress_prefixlength 0"},
	},
	{who: "an incoming interface", add: []string{"iif wan0 table 101"}, del: []string{"iif wan0"}, vague: true},
	{who: "an outgoing interface", add: []string{"oif wan0 table 101"}, del: []string{"oif wan0"}, vague: true},
	{who: "a source", add: []string{"from ADDRESS table 101"}, del: []string{"from ADDRESS"}, vague: true},
	{who: "a source, in front", add: []string{"pref 100 from ADDRESS table 101"}, del: []string{"from ADDRESS"}, vague: true},
	{who: "a source and a destination", add: []string{"pref 32000 from ADDRESS to 10.5.0.0/16 table 101"}, del: []string{"from ADDRESS"}, vague: true},
	{who: "what the host sends", six: true, add: []string{"iif lo table 101"}, del: []string{"iif lo"}, vague: true, most: 16},
	{who: "what the host sends, behind", six: true, add: []string{"pref 32000 iif lo table 101"}, del: []string{"iif lo"}, vague: true, most: 16},
	{who: "what the host sends, by main", six: true, add: []string{"pref 32000 iif lo lookup main"}, del: []string{"iif lo lookup main"}, vague: true},
	{who: "a network", six: true, add: []string{"from NETWORK table 101"}, del: []string{"from NETWORK"}, vague: true},
	{who: "a network and what the host sends", six: true, add: []string{"from NETWORK iif lo table 101"}, del: []string{"from NETWORK"}, vague: true, most: 12},
}

// same is a program that deletes with the selectors with which it adds.
func same(who string, rules ...string) cleanup {
	add := slices.Clone(rules)
	for i, r := range add {
		if !strings.Contains(r, "table") && !strings.Contains(r, "lookup") && !strings.Contains(r, "type") {
			add[i] += " table 101"
		}
	}
	return cleanup{who: who, add: add, del: rules}
}

// wgCleanup is del_if of wg-quick.
func wgCleanup(six bool) cleanup {
	main := "table main suppress_prefixlength 0"
	return cleanup{
		who: "wg-quick", six: six,
		add: []string{"not fwmark 51820 table 51820", main},
		del: []string{"table 51820", main},
		while: map[string]string{
			"table 51820": "lookup 51820", main: "from all lookup main suppress_prefixlength 0",
		},
	}
}

// run adds the rules, waits for the product to have seen them, and deletes them.
// It returns how many deletions succeeded.
func (c cleanup) run(w *world) map[string]int {
	w.t.Helper()
	f := "-4"
	if c.six {
		f = "-6"
	}
	six, err := w.Addrs("wan1", lab.IPv6)
	w.must(err)
	say := strings.NewReplacer("ADDRESS", w.addr("wan1", lab.IPv4).String(), "NETWORK", six[0].Masked().String()).Replace
	for _, words := range c.add {
		w.ip(f + " rule add " + say(words))
	}
	w.eventually("the host to be still", w.quiet.settled)
	counts := map[string]int{}
	for _, words := range c.del {
		shown, listed := c.while[words]
		for ; counts[words] < mostDeletions; counts[words]++ {
			if listed && !strings.Contains(w.run("ip", f, "rule", "show"), shown) {
				break
			}
			if _, err := w.IP(w.t.Context(), append([]string{f, "rule", "del"}, strings.Fields(say(words))...)...); err != nil {
				break
			}
		}
	}
	return counts
}

// TestDeletions: a program that deletes its rules by their selectors needs exactly as many
// deletions as without multihomed, and our rules are complete afterwards.
func TestDeletions(t *testing.T) {
	w := newWorld(t, Host{})
	w.providers()
	others, err := w.Snapshot(t.Context())
	w.must(err)
	without := map[string]map[string]int{}
	name := func(c cleanup) string {
		if c.six {
			return c.who + " for IPv6"
		}
		return c.who
	}
	for _, c := range cleanups {
		without[name(c)] = c.run(w)
	}
	w.start()
	w.eventually("the host to be still", w.quiet.settled)
	ours := w.ours()
	for _, c := range cleanups {
		with := c.run(w)
		if !c.vague && fmt.Sprint(with) != fmt.Sprint(without[name(c)]) {
			t.Errorf("%s: deletions %v, without multihomed %v", name(c), with, without[name(c)])
		}
		for words, n := range with {
			if n >= mostDeletions {
				t.Errorf("%s: the deletion of %q does not end", name(c), words)
			}
		}
		if c.vague {
			for words, n := range with {
				if n > without[name(c)][words]+cmp.Or(c.most, mostOfOurs) {
					t.Errorf("%s: %d deletions of %q, without multihomed %d", name(c), n, words, without[name(c)][words])
				}
			}
			t.Logf("%s: deletions %v, without multihomed %v", name(c), with, without[name(c)])
		}
		w.eventually("our rules to stand again after "+name(c), func() error {
			if lines := differences(ours, w.ours()); len(lines) > 0 {
				return fmt.Errorf("they differ:\n%s", strings.Join(lines, "\n"))
			}
			now, err := w.Snapshot(t.Context())
			w.must(err)
			if lines := differences(others, now); len(lines) > 0 {
				return fmt.Errorf("objects of others differ:\n%s", strings.Join(lines, "\n"))
			}
			return nil
		})
	}
	if left := w.remove(); len(left) > 0 {
		t.Errorf("left after flush:\n%s", strings.Join(left, "\n"))
	}
}

// ours are the rules of multihomed as `ip rule` prints them, and its routes.
func (w *world) ours() string {
	w.t.Helper()
	lines, err := w.Leftovers()
	w.must(err)
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(w.run("ip", f, "-d", "rule", "show")) {
			if strings.Contains(line, "proto 150") {
				lines = append(lines, f+" "+strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
