package reconcile_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A judge says which uplinks are dead.
type judge struct{ facts routing.Failover }

func (*judge) Changed() <-chan struct{}     { return nil }
func (j *judge) Failover() routing.Failover { return j.facts }

// newFailingHost is a host with failover on, and uplinks of both families that live.
func newFailingHost(t *testing.T, uplinks int) *host {
	t.Helper()
	h := newHost(t)
	h.judge = &judge{facts: routing.Failover{Enabled: true}}
	h.restart()
	h.noLinkLocal()
	for n := range uplinks {
		h.wan(n)
		h.ip(fmt.Sprintf("-6 addr add 2001:db8:f%d::5/64 dev wan%d nodad", n, n))
		h.ip(fmt.Sprintf("-6 route add default via 2001:db8:f%d::1 dev wan%d metric %d", n, n, 100+n))
	}
	h.owners.complete(true)
	h.addressed()
	return h
}

// addressed passes until all IPv6 addresses are in use: also without a test for duplicates
// that takes the kernel some milliseconds (addrconf_dad_work in net/ipv6/addrconf.c).
func (h *host) addressed() {
	h.Helper()
	h.await("addressed", func() bool {
		known := 0
		h.mirror.View(func(k reconcile.State) {
			for _, index := range k.Indexes() {
				facts, _ := k.LinkFacts(index)
				for _, a := range facts.Addresses {
					if a.Prefix.Addr().Is6() && !a.Tentative {
						known++
					}
				}
			}
		})
		return known == strings.Count(h.ip("-6 -o addr show"), "\n") && h.ip("-6 addr show tentative") == ""
	})
	h.pass()
}

// dead makes uplinks dead in both families, and all others alive.
func (h *host) dead(names ...string) {
	h.Helper()
	m := map[int]struct{}{}
	for _, name := range names {
		m[h.named(name).Attrs().Index] = struct{}{}
	}
	h.judge.facts.Dead = routing.ByFamily[map[int]struct{}]{m, m}
	h.pass()
}

// way is the device and the source of packets, in the words of ip(8); what it says if there
// is none.
func (h *host) way(args string) string {
	h.Helper()
	words := strings.Fields(h.ip("route get " + args))
	var out []string
	for i, w := range words {
		if (w == "dev" || w == "src") && i+1 < len(words) {
			out = append(out, words[i+1])
		}
	}
	return strings.Join(out, " ")
}

// goes wants packets of both families that are bound to nothing to leave by an uplink.
func (h *host) goes(n int) {
	h.Helper()
	want4, want6 := fmt.Sprintf("wan%d 100.64.%d.5", n, n), fmt.Sprintf("wan%d 2001:db8:f%d::5", n, n)
	if got := h.way("8.8.8.8"); got != want4 {
		h.Errorf("unbound IPv4 leaves by %q, not by %q\n%s", got, want4, h.ip("rule"))
	}
	if got := h.way("2600::1"); got != want6 {
		h.Errorf("unbound IPv6 leaves by %q, not by %q\n%s", got, want6, h.ip("-6 rule"))
	}
}

// table is what ip(8) prints of a table; nothing if the kernel has none of that number yet.
func (h *host) table(f, table string) string {
	h.Helper()
	out, err := exec.CommandContext(h.Context(), "ip", f, "route", "show", "table", table).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "FIB table does not exist") {
		h.Fatalf("ip %s route show table %s: %v\n%s", f, table, err, out)
	}
	if err != nil {
		return ""
	}
	return string(out)
}

// others are the rules of others, and main, local and default.
func (h *host) others() string {
	h.Helper()
	var b strings.Builder
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.ip("-N -d " + f + " rule")) {
			if !strings.HasSuffix(strings.TrimSpace(line), " proto 150") {
				b.WriteString(line)
			}
		}
		for _, table := range []string{"main", "local", "default"} {
			for line := range strings.Lines(h.table(f, table)) {
				// These come when the kernel finds an interface ready, on its own time.
				if !strings.HasPrefix(line, "multicast") && !strings.HasPrefix(line, "anycast") {
					b.WriteString(line)
				}
			}
		}
	}
	return b.String()
}

// TestFailover: unbound traffic of both families follows an uplink that lives, a LAN's with
// IPv4, and comes back; what others have stays as it is.
func TestFailover(t *testing.T) {
	h := newFailingHost(t, 3)
	h.veth("lan0")
	h.address("lan0", "10.9.0.1/24")
	h.ip("-6 addr add fd00:9::1/64 dev lan0 nodad")
	h.addressed()
	for _, forwarding := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile("/proc/sys/net/"+forwarding, []byte("1"), 0))
	}
	before := h.others()
	h.goes(0)
	h.dead("wan0")
	h.goes(1)
	if got := h.way("8.8.8.8 from 10.9.0.9 iif lan0"); !strings.Contains(got, "wan1") {
		t.Errorf("the LAN's IPv4 leaves by %q", got)
	}
	if got := h.way("2600::1 from fd00:9::9 iif lan0"); !strings.Contains(got, "wan0") {
		t.Errorf("the LAN's IPv6 leaves by %q", got)
	}
	for n := range 3 {
		if got, want := h.stray(fmt.Sprintf("100.64.%d.5", n)), fmt.Sprintf("wan%d", n); got != want {
			t.Errorf("bound to %s: by %q", want, got)
		}
	}
	if now := h.others(); now != before {
		t.Errorf("what others have was:\n%s\nand is:\n%s", before, now)
	}
	h.dead("wan0", "wan1")
	h.goes(2)
	h.dead("wan0", "wan1", "wan2")
	h.goes(0)
	h.dead("wan0", "wan2")
	h.goes(1)
	h.quiet()
	h.dead()
	h.goes(0)
	if now := h.others(); now != before {
		t.Errorf("what others have was:\n%s\nand is:\n%s", before, now)
	}
	if left := h.table("-4", "10009"); left != "" {
		t.Errorf("F holds %s", left)
	}
	h.judge.facts.Enabled = false
	h.pass()
	if left := h.ip("rule show table 10009") + h.ip("-6 rule show table 10009"); left != "" {
		t.Errorf("switched off, and there is %s", left)
	}
	h.quiet()
}

// TestFailoverByShares: the kernel takes the ways of F for what they are in both families.
func TestFailoverByShares(t *testing.T) {
	h := newFailingHost(t, 3)
	h.judge.facts.Shares = map[int]uint8{h.named("wan0").Attrs().Index: 3, h.named("wan1").Attrs().Index: 1, h.named("wan2").Attrs().Index: 2}
	h.pass()
	wantLegs := func(want ...string) {
		t.Helper()
		for _, f := range []string{"-4", "-6"} {
			var legs []string
			text := h.table(f, "10009")
			words := strings.Fields(text)
			for i, w := range words {
				if w == "dev" {
					leg := words[i+1]
					if at := slices.Index(words[i:], "weight"); at >= 0 && at < 4 {
						leg += " " + words[i+at+1]
					}
					legs = append(legs, leg)
				}
			}
			slices.Sort(legs)
			if !slices.Equal(legs, want) {
				t.Errorf("%s: legs %q, want %q:\n%s", f, legs, want, text)
			}
		}
	}
	wantLegs("wan0 3", "wan1 1", "wan2 2")
	h.quiet()
	h.dead("wan0")
	wantLegs("wan1 1", "wan2 2")
	h.quiet()
	h.dead("wan0", "wan2")
	wantLegs("wan1")
	h.goes(1)
	h.dead()
	wantLegs("wan0 3", "wan1 1", "wan2 2")
	h.judge.facts.Shares = nil
	h.pass()
	wantLegs()
	h.quiet()
}

// wgUp does with rules what `wg-quick up` does for a peer that is for everything, and wgDown
// what `wg-quick down` does (add_default and del_if of wireguard-tools' linux.bash). It counts
// deletions.
func (h *host) wgUp() {
	h.Helper()
	for _, f := range []string{"-4", "-6"} {
		h.ip(f + " route add default dev wg0 table 51820")
		h.ip(f + " rule add not fwmark 51820 table 51820")
		h.ip(f + " rule add table main suppress_prefixlength 0")
	}
}

func (h *host) wgDown() (deletions int) {
	h.Helper()
	for _, f := range []string{"-4", "-6"} {
		for strings.Contains(h.ip(f+" rule show"), "lookup 51820") {
			h.ip(f + " rule delete table 51820")
			deletions++
		}
		for strings.Contains(h.ip(f+" rule show"), "from all lookup main suppress_prefixlength 0") {
			h.ip(f + " rule delete table main suppress_prefixlength 0")
			deletions++
		}
		h.ip(f + " route flush table 51820")
	}
	return deletions
}

// TestFailoverBesideWireGuard: the tunnel wins, started before or after us, and what carries
// it moves. Taking it down deletes its two rules of each family and none of ours.
func TestFailoverBesideWireGuard(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(map[bool]string{true: "before", false: "after"}[first], func(t *testing.T) {
			var h *host
			up := func() {
				h.veth("wg0")
				h.address("wg0", "10.8.0.2/32")
				h.ip("-6 addr add fd08::2/128 dev wg0 nodad")
				h.wgUp()
			}
			if first {
				h = newHost(t)
				h.judge = &judge{facts: routing.Failover{Enabled: true}}
				h.restart()
				h.noLinkLocal()
				up()
				for n := range 2 {
					h.wan(n)
					h.ip(fmt.Sprintf("-6 addr add 2001:db8:f%d::5/64 dev wan%d nodad", n, n))
					h.ip(fmt.Sprintf("-6 route add default via 2001:db8:f%d::1 dev wan%d metric %d", n, n, 100+n))
				}
				h.owners.complete(true)
				h.addressed()
			} else {
				h = newFailingHost(t, 2)
				up()
				h.addressed()
			}
			h.dead("wan0")
			if got := h.way("8.8.8.8"); got != "wg0 10.8.0.2" {
				t.Errorf("unbound IPv4 leaves by %q:\n%s", got, h.ip("rule"))
			}
			if got := h.way("2600::1"); got != "wg0 fd08::2" {
				t.Errorf("unbound IPv6 leaves by %q:\n%s", got, h.ip("-6 rule"))
			}
			if got := h.way("8.8.8.8 mark 51820"); got != "wan1 100.64.1.5" {
				t.Errorf("the tunnel's own IPv4 leaves by %q:\n%s", got, h.ip("rule"))
			}
			if got := h.way("2600::1 mark 51820"); got != "wan1 2001:db8:f1::5" {
				t.Errorf("the tunnel's own IPv6 leaves by %q:\n%s", got, h.ip("-6 rule"))
			}
			pair := func() string { return h.ip("rule show pref 32765") + h.ip("-6 rule show pref 32765") }
			ours := func() (lines []string) {
				for line := range strings.Lines(pair()) {
					if strings.Contains(line, "proto 150") || strings.Contains(line, "10009") || strings.Contains(line, "not from 255") || strings.Contains(line, "iif lo") {
						lines = append(lines, line)
					}
				}
				return lines
			}
			before := ours()
			if n := h.wgDown(); n != 4 {
				t.Errorf("taking the tunnel down took %d deletions", n)
			}
			if now := ours(); !slices.Equal(now, before) || len(now) < 4 {
				t.Errorf("the pair was %q and is %q", before, now)
			}
			h.pass()
			h.goes(1)
			h.quiet()
		})
	}
}

// TestFailoverBehindForeignRules: a rule of somebody else at 32765 is asked before the pair,
// whenever it comes; main's routes but its default are asked before F at any time.
func TestFailoverBehindForeignRules(t *testing.T) {
	h := newFailingHost(t, 2)
	h.ip("route add 10.77.0.0/16 via 100.64.0.9")
	h.pass()
	h.dead("wan0")
	h.goes(1)
	h.ip("route add default via 100.64.0.1 dev wan0 table 300")
	h.ip("rule add pref 32765 fwmark 7 lookup 300")
	h.ip("-6 rule add pref 32765 fwmark 7 lookup 300")
	h.pass()
	if got := h.way("8.8.8.8 mark 7"); !strings.HasPrefix(got, "wan0") {
		t.Errorf("his packets leave by %q:\n%s", got, h.ip("rule"))
	}
	if got := h.way("10.77.1.1"); !strings.HasPrefix(got, "wan0") {
		t.Errorf("what main knows leaves by %q", got)
	}
	h.goes(1)
	order := strings.Split(strings.TrimSpace(h.ip("-N rule show pref 32765")), "\n")
	if n := len(order); n < 3 || !strings.Contains(order[n-1], "lookup 10009") || !strings.Contains(order[n-2], "not from 255.255.255.255 lookup 254") {
		t.Errorf("the order at 32765: %q", order)
	}
	h.quiet()
	// Somebody takes the pair away: it is put back.
	h.ip("rule del pref 32765 table 10009")
	h.pass()
	h.goes(1)
	h.quiet()
}

// TestFailoverIsWhole: while somebody deletes until nothing has his words, the rule that reads
// main stays away, and the one that reads F does not answer in its place.
func TestFailoverIsWhole(t *testing.T) {
	h := newFailingHost(t, 2)
	h.ip("route add 10.77.0.0/16 via 100.64.0.9")
	h.ip("rule add pref 32000 lookup main suppress_prefixlength 0")
	h.pass()
	h.dead("wan0")
	h.goes(1)
	n := 0
	for ; n < 10 && exec.CommandContext(t.Context(), "ip", "rule", "del", "table", "main", "suppress_prefixlength", "0").Run() == nil; n++ {
		h.pass()
		h.clock = h.clock.Add(20 * time.Millisecond)
		if got := h.way("10.77.1.1"); !strings.HasPrefix(got, "wan0") {
			t.Errorf("after deletion %d what main knows leaves by %q:\n%s", n+1, got, h.ip("rule"))
		}
	}
	if n != 2 {
		t.Errorf("%d deletions, want 2", n)
	}
	if rules := h.ip("-N rule show pref 32765"); rules != "" {
		t.Errorf("while the pair is away: %s", rules)
	}
	h.quiet()
	h.rest()
	h.goes(1)
	if got := h.way("10.77.1.1"); !strings.HasPrefix(got, "wan0") {
		t.Errorf("afterwards what main knows leaves by %q:\n%s", got, h.ip("rule"))
	}
	h.quiet()
}

// await passes until something is so: the kernel does it on its own time.
func (h *host) await(what string, is func() bool) {
	h.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); {
		if time.Now().After(end) {
			h.Fatalf("not %s\n%s", what, h.log.String())
		}
		h.pass()
	}
}

// TestFailoverNeedsAnAddress: IPv6 moves only to a link with a preferred address, and F
// names it.
func TestFailoverNeedsAnAddress(t *testing.T) {
	h := newFailingHost(t, 2)
	table := func() string { return h.table("-6", "10009") }
	h.dead("wan0")
	h.goes(1)
	h.ip("-6 addr change 2001:db8:f1::5/64 dev wan1 nodad preferred_lft 0 valid_lft 3600")
	h.pass()
	if got := table(); got != "" {
		t.Errorf("F leads by a link whose address is deprecated: %s", got)
	}
	h.ip("-6 addr add 2001:db8:f1::6/64 dev wan1 nodad")
	h.addressed()
	if got := h.way("2600::1"); got != "wan1 2001:db8:f1::6" {
		t.Errorf("unbound IPv6 leaves by %q", got)
	}
	h.deleteAddress("wan1", "2001:db8:f1::6/64")
	h.pass()
	if got := table(); got != "" {
		t.Errorf("F leads by a link without an address: %s", got)
	}
	// One that is being tested for duplicates counts when it has passed.
	h.ip("-6 addr add 2001:db8:f1::7/64 dev wan1")
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/wan1/accept_dad", []byte("1"), 0))
	h.ip("-6 addr add 2001:db8:f1::8/64 dev wan1")
	h.ip("-6 addr del 2001:db8:f1::7/64 dev wan1")
	h.pass()
	if tests := strings.Contains(h.ip("-6 addr show dev wan1 tentative"), "2001:db8:f1::8"); tests && table() != "" {
		t.Errorf("F leads by a link whose address is tentative: %s", table())
	}
	h.await("moved to the new address", func() bool { return strings.Contains(table(), "src 2001:db8:f1::8") })
	h.quiet()
}

// TestFailoverByCarrier: the loop moves unbound traffic by itself when an interface loses
// its carrier.
func TestFailoverByCarrier(t *testing.T) {
	h := newFailingHost(t, 2)
	h.goes(0)
	h.setUp("p-wan0", false)
	h.await("moved", func() bool { return strings.HasPrefix(h.way("8.8.8.8"), "wan1") })
	h.goes(1)
	h.setUp("p-wan0", true)
	h.await("back", func() bool { return strings.HasPrefix(h.way("8.8.8.8"), "wan0") })
	h.goes(0)
}

// TestFailoverInOneSubnet: two uplinks are in one network. When the one that main leads by
// has no carrier, hosts of the network are reached by the other.
func TestFailoverInOneSubnet(t *testing.T) {
	h := newHost(t)
	h.judge = &judge{facts: routing.Failover{Enabled: true}}
	h.restart()
	h.noLinkLocal()
	for n := range 2 {
		name := fmt.Sprintf("wan%d", n)
		h.veth(name)
		h.ip(fmt.Sprintf("addr add 192.0.2.%d/24 dev %s metric %d", 10+n, name, 100+n))
		h.ip(fmt.Sprintf("route add default via 192.0.2.1 dev %s metric %d", name, 100+n))
		h.owners.claim(name, reconcile.Link)
	}
	h.ip("route add 192.0.2.128/25 via 192.0.2.9 dev wan0")
	h.owners.complete(true)
	h.pass()
	if got := h.way("192.0.2.77"); got != "wan0 192.0.2.10" {
		t.Errorf("a neighbour is reached by %q", got)
	}
	h.setUp("p-wan0", false)
	h.await("moved", func() bool { return h.way("192.0.2.77") == "wan1 192.0.2.11" })
	if got := h.way("8.8.8.8"); got != "wan1 192.0.2.11" {
		t.Errorf("unbound leaves by %q", got)
	}
	if got := h.way("192.0.2.200"); !strings.HasPrefix(got, "wan0") {
		t.Errorf("what main knows inside the network leaves by %q", got)
	}
	h.setUp("p-wan0", true)
	h.await("back", func() bool { return h.way("192.0.2.77") == "wan0 192.0.2.10" })
	if left := h.ip("rule show pref 18000"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestFailoverOverRestarts: what a killed process left in F stays until the next one has
// judged; a clean stop takes it away.
func TestFailoverOverRestarts(t *testing.T) {
	h := newFailingHost(t, 2)
	h.dead("wan0")
	h.goes(1)
	h.judge.facts = routing.Failover{Enabled: true, Unjudged: routing.ByFamily[bool]{true, true}}
	h.restart()
	for n := range 2 {
		h.owners.claim(fmt.Sprintf("wan%d", n), reconcile.Link)
	}
	h.owners.complete(true)
	h.quiet()
	h.goes(1)
	h.judge.facts.Unjudged = routing.ByFamily[bool]{}
	h.pass()
	h.goes(0)
	h.dead("wan0")
	h.goes(1)
	must(t, h.loop.EmptyFailover(t.Context()))
	h.goes(0)
}
