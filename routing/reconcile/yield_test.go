package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// stray says by which device a packet with a source goes to the internet, empty if by
// none.
func (h *host) stray(source string) string {
	out, err := exec.CommandContext(h.Context(), "ip", "route", "get", "8.8.8.8", "from", source).Output()
	if err != nil {
		return ""
	}
	words := strings.Fields(string(out))
	for i, w := range words {
		if w == "dev" {
			return words[i+1]
		}
	}
	return ""
}

// TestDeletingUntilNothingIsLeft: `while ip rule del WORDS; do :; done` deletes each rule
// of ours that has the words of a rule of somebody else once, wherever that stands, and ours
// are back a second after the last deletion. No packet of a link strays meanwhile.
func TestDeletingUntilNothingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name, add, del string
		// most is how many deletions there may be.
		most int
	}{
		{"behind us", "pref 32000 from 100.64.1.5 lookup 300", "from 100.64.1.5", 8},
		{"in front of us", "pref 100 from 100.64.1.5 lookup 300", "from 100.64.1.5", 4},
		{"numbered by the kernel", "from 100.64.1.5 lookup 300", "from 100.64.1.5", 5},
		{"among ours", "pref 10200 from 100.64.1.5 lookup 300", "from 100.64.1.5", 8},
		{"by a part of its words", "pref 32000 from 100.64.1.5 to 10.9.0.0/16 lookup 300", "from 100.64.1.5", 9},
		{"by a part of its words, in front", "pref 100 from 100.64.1.5 fwmark 7 lookup 300", "from 100.64.1.5", 4},
		{"outgoing", "pref 32000 oif wan1 lookup 300", "oif wan1", 3},
		{"a device and a source", "pref 100 from 100.64.1.5 oif wan1 lookup 300", "oif wan1", 2},
		{"a destination", "pref 100 to 100.64.1.0/24 lookup 300", "to 100.64.1.0/24", 3},
		{"all but", "pref 100 not from 100.64.1.5 lookup 300", "not from 100.64.1.5", 4},
		{"a table of ours", "pref 100 fwmark 7 lookup 10001", "table 10001", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.wan(1)
			h.owners.complete(true)
			h.pass()
			before := h.rules()
			h.ip("rule add " + c.add)
			h.pass()
			n := 0
			for ; n < 100; n++ {
				if exec.CommandContext(t.Context(), "ip", append([]string{"rule", "del"}, strings.Fields(c.del)...)...).Run() != nil {
					break
				}
				h.pass()
				if device := h.stray("100.64.1.5"); device == "wan0" {
					t.Errorf("after deletion %d packets leave by %s:\n%s", n+1, device, h.ip("rule"))
				}
				h.clock = h.clock.Add(20 * time.Millisecond)
			}
			if n > c.most {
				t.Errorf("%d deletions, want at most %d", n, c.most)
			}
			t.Logf("%d deletions", n)
			h.quiet()
			h.rest()
			if now := h.rules(); strings.Join(now, "\n") != strings.Join(before, "\n") {
				t.Errorf("afterwards:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

// TestLiftsHaveOtherWords: whoever deletes his rule by its selectors hits his own, and not
// the rules that lift it; what is lifted is what he selects, and nothing beside it.
func TestLiftsHaveOtherWords(t *testing.T) {
	for _, c := range []struct{ words, his, others string }{
		{"ipproto tcp dport 22", "ipproto tcp dport 22", "ipproto tcp dport 23"},
		{"ipproto tcp dport 65534", "ipproto tcp dport 65534", "ipproto tcp dport 65533"},
		{"ipproto udp sport 53", "ipproto udp sport 53", "ipproto udp sport 54"},
		{"uidrange 1001-1001", "uid 1001", "uid 1002"},
		{"ipproto tcp dport 22 uidrange 7-7", "ipproto tcp dport 22 uid 7", "ipproto tcp dport 22 uid 8"},
		{"ipproto tcp dport 80-90", "ipproto tcp dport 85", "ipproto tcp dport 91"},
	} {
		t.Run(c.words, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.wan(1)
			h.owners.complete(true)
			h.pass()
			h.ip("route add default via 100.64.0.1 dev wan0 table 300")
			for _, with := range []bool{false, true} {
				if with {
					// The next lift comes behind it.
					h.ip("rule add pref 32001 fwmark 9 lookup 300")
				}
				h.ip("rule add pref 32000 " + c.words + " lookup 300")
				h.pass()
				ours := strings.Join(h.rules(), "\n")
				for flow, want := range map[string]string{c.his: "dev wan0 table 300", c.others: "dev wan1 table 10001"} {
					if way := h.ip("-N route get 8.8.8.8 from 100.64.1.5 " + flow); !strings.Contains(way, want) {
						t.Errorf("%s goes %s\n%s", flow, way, h.ip("rule"))
					}
				}
				h.ip("rule del " + c.words)
				// A goto is unresolved while its target is away.
				if now := strings.Join(h.rules(), "\n"); strings.ReplaceAll(now, " [unresolved]", "") != ours || strings.Contains(h.ip("rule"), "32000:") {
					t.Errorf("the deletion of %q hits ours:\n%s", c.words, h.ip("rule"))
				}
				h.pass()
			}
		})
	}
}

// TestAwayIsReported: who looks is told what stays away, until when and because of whom.
func TestAwayIsReported(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	h.ip("rule add pref 100 from 100.64.0.5 lookup 300")
	h.pass()
	h.ip("rule del from 100.64.0.5")
	h.pass()
	if len(h.last.Away) > 0 || len(h.last.Gone) != 1 || h.last.Gone[0].Priority != 100 {
		t.Errorf("his rule went, and reported is %+v", h.last)
	}
	h.ip("rule del from 100.64.0.5")
	h.pass()
	want := reconcile.Away{
		Family: routing.IPv4, Text: "9020: from 100.64.0.5 lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
		Until: h.clock.Add(time.Second), His: "100: from 100.64.0.5 lookup 300",
	}
	if len(h.last.Away) != 1 || h.last.Away[0] != want {
		t.Errorf("reported is %+v, want %+v", h.last.Away, want)
	}
	h.wait()
	h.pass()
	if len(h.last.Away) > 0 || len(h.last.Gone) > 0 {
		t.Errorf("when it is back: %+v", h.last)
	}
	// A route that is deleted too often.
	for range 3 {
		h.ip("route del default table 10000")
		h.pass()
	}
	if len(h.last.Away) != 1 || !strings.HasPrefix(h.last.Away[0].Text, "default via 100.64.0.1 dev wan0 table 10000") || h.last.Away[0].His != "" {
		t.Errorf("reported is %+v", h.last.Away)
	}
}

// TestDeletingIPv6: of prefixes, the rungs of which are for packets of this host alone.
func TestDeletingIPv6(t *testing.T) {
	for _, c := range []struct {
		add, del string
		most     int
	}{
		{"pref 100 from 2001:db8:1::/64 lookup 300", "from 2001:db8:1::/64", 4},
		{"pref 32000 from 2001:db8:1::/64 iif lo lookup 300", "from 2001:db8:1::/64 iif lo", 7},
		{"pref 100 from 2001:db8:1::/64 iif lo lookup 300", "from 2001:db8:1::/64", 7},
		{"pref 100 iif lo lookup 300", "iif lo", 9},
		{"pref 32000 iif lo lookup 300", "iif lo", 12},
		{"pref 32000 from 2001:db8:1::/64 iif lo lookup 300", "iif lo", 17},
		{"pref 32000 from 2001:db8:1::/64 iif lo lookup 300", "from 2001:db8:1::/64", 12},
		{"pref 100 iif lo lookup main suppress_prefixlength 0", "iif lo lookup main", 3},
		{"pref 100 from 2001:db8:1::5 lookup 300", "from 2001:db8:1::5", 1},
	} {
		t.Run(c.add, func(t *testing.T) {
			h := newHost(t)
			for n := range 2 {
				name := fmt.Sprintf("wan%d", n)
				h.veth(name)
				h.address(name, fmt.Sprintf("2001:db8:%d::5/64", n))
				h.ip(fmt.Sprintf("-6 route add default via 2001:db8:%d::1 dev %s metric %d", n, name, 100+n))
				h.owners.claim(name, reconcile.Link)
			}
			h.owners.complete(true)
			h.pass()
			rules := func() string { return h.ip("-6 rule") }
			before := rules()
			h.ip("-6 rule add " + c.add)
			h.pass()
			n := 0
			for ; n < 100; n++ {
				if exec.CommandContext(t.Context(), "ip", append([]string{"-6", "rule", "del"}, strings.Fields(c.del)...)...).Run() != nil {
					break
				}
				h.pass()
				out, _ := exec.CommandContext(t.Context(), "ip", "route", "get", "2600::1", "from", "2001:db8:1::5").Output()
				if strings.Contains(string(out), "dev wan0") {
					t.Errorf("after deletion %d: %s\n%s", n+1, out, rules())
				}
			}
			if n > c.most {
				t.Errorf("%d deletions, want at most %d", n, c.most)
			}
			t.Logf("%d deletions", n)
			h.rest()
			if now := rules(); now != before {
				t.Errorf("afterwards:\n%s\nbefore:\n%s", now, before)
			}
			if lo := h.ip("link show lo"); strings.Contains(lo, routing.LoopbackAlias) {
				t.Errorf("the second name is left: %s", lo)
			}
		})
	}
}

// TestDeletingAgainstTheClock runs the loop beside somebody who deletes as fast as he can,
// and asks all the time where a packet of the link goes.
func TestDeletingAgainstTheClock(t *testing.T) {
	byShell := func(h *host) (n int) {
		out, err := exec.CommandContext(h.Context(), "sh", "-c", "n=0; while [ $n -lt 300 ] && ip rule del from 100.64.1.5 2>/dev/null; do n=$((n+1)); done; echo $n").Output()
		must(h, err)
		_, err = fmt.Sscan(string(out), &n)
		must(h, err)
		return n
	}
	byProgram := func(h *host) (n int) {
		source := netlink.NewRule()
		source.Family, source.Src = unix.AF_INET, &net.IPNet{IP: net.IPv4(100, 64, 1, 5).To4(), Mask: net.CIDRMask(32, 32)}
		for n < 300 && h.nl.RuleDel(source) == nil {
			n++
		}
		return n
	}
	for _, c := range []struct {
		name, add string
		run       func(*host) int
	}{
		{"a shell, behind us", "pref 32000 from 100.64.1.5 lookup 300", byShell},
		{"a shell, in front", "pref 100 from 100.64.1.5 lookup 300", byShell},
		{"a program, behind us", "pref 32000 from 100.64.1.5 lookup 300", byProgram},
		{"a program, in front", "pref 100 from 100.64.1.5 lookup 300", byProgram},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.loop.SetClock(time.Now)
			h.wan(0)
			h.wan(1)
			h.owners.complete(true)
			h.pass()
			before := strings.Join(h.rules(), "\n")
			h.ip("rule add " + c.add)
			h.pass()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			go func() { ended <- h.source.Run(ctx) }()
			go func() { ended <- h.loop.Run(ctx) }()
			// A socket stays in the namespace in which it was opened.
			asks, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			must(t, err)
			defer asks.Close()
			wan0 := h.named("wan0").Attrs().Index
			stop, asked, strays := make(chan struct{}), 0, make(chan []time.Time)
			go func() {
				var at []time.Time
				for {
					select {
					case <-stop:
						strays <- at
						return
					default:
					}
					routes, err := asks.RouteGetWithOptions(net.IPv4(8, 8, 8, 8), &netlink.RouteGetOptions{SrcAddr: net.IPv4(100, 64, 1, 5)})
					asked++
					if err == nil && routes[0].LinkIndex == wan0 {
						at = append(at, time.Now())
					}
				}
			}()
			n := c.run(h)
			end := time.Now()
			deadline := end.Add(10 * time.Second)
			for strings.Join(h.rules(), "\n") != before && time.Now().Before(deadline) {
				runtime.Gosched()
			}
			back := time.Since(end)
			close(stop)
			at := <-strays
			cancel()
			must(t, errors.Join(<-ended, <-ended))
			t.Logf("%d deletions, complete again after %v, %d of %d answers strayed", n, back, len(at), asked)
			if now := strings.Join(h.rules(), "\n"); now != before {
				t.Errorf("afterwards:\n%s\nbefore:\n%s\nlog:\n%s", now, before, h.log.String())
			}
			if len(at) > 0 {
				t.Errorf("packets strayed for %v", at[len(at)-1].Sub(at[0]))
			}
			if n > 10 {
				t.Errorf("%d deletions", n)
			}
		})
	}
}

// TestDeletingAmongOurs: where a rule of somebody else stands among ours there is no room
// for other words of one user or one port. Whoever deletes his rule by these words hits ours
// first. It stays away, and who looks is told which rule is meant.
func TestDeletingAmongOurs(t *testing.T) {
	for _, words := range []string{"uidrange 1001-1001", "ipproto tcp dport 22", "ipproto udp sport 53", "iif wan0"} {
		t.Run(words, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.wan(1)
			h.owners.complete(true)
			h.ip("route add default via 100.64.0.1 dev wan0 table 300")
			h.ip("rule add pref 10086 fwmark 8 lookup 300")
			h.pass()
			before := strings.Join(h.rules(), "\n")
			h.ip("rule add pref 32000 " + words + " lookup 300")
			h.pass()
			his := func() bool { return strings.Contains(h.ip("rule"), "32000:") }
			n := 0
			for ; his(); n++ {
				if n == 5 {
					t.Fatalf("it stands after %d deletions:\n%s", n, h.ip("rule"))
				}
				h.ip("rule del " + words)
				h.pass()
				if !his() {
					break
				}
				if len(h.last.Away) != n+1 {
					t.Fatalf("after deletion %d away is %+v", n+1, h.last.Away)
				}
				for _, a := range h.last.Away {
					if !strings.HasPrefix(a.His, "32000: ") || a.Until.After(h.clock.Add(10*time.Second)) || a.Until.Before(h.clock.Add(9*time.Second)) {
						t.Errorf("away is %+v", a)
					}
				}
				h.clock = h.clock.Add(20 * time.Millisecond)
			}
			t.Logf("%d deletions hit ours", n)
			for range 3 {
				if h.wait() > 11*time.Second {
					break
				}
				h.pass()
			}
			if now := strings.Join(h.rules(), "\n"); now != before {
				t.Errorf("afterwards:\n%s\nbefore:\n%s", now, before)
			}
		})
	}
}
