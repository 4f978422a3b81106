package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/status/socket"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// promised is a host with two uplinks and a link of the administrator's, whose
// addresses are the same in every run.
func promised(t *testing.T) (*rig, []*lab.ISP) {
	t.Helper()
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:hand0\n"}, "")
	var isps []*lab.ISP
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Lease, cfg.Renew = 2*time.Minute, 3*time.Second
		isps = append(isps, r.isp(cfg, "ipv6.addr-gen-mode", "eui64", "ipv6.ip6-privacy", "0"))
	}
	_, err := r.NewLink(lab.LinkConfig{Name: "hand0", Up: true})
	r.must(err)
	r.must(r.AddAddr("hand0", "192.168.77.1/24"))
	r.must(r.AddAddr("hand0", "fd77::1/64"))
	return r, isps
}

// others is what belongs to others in the kernel's routing, in all tables, and
// objects with our protocol outside of our ranges.
func (r *rig) others() (string, error) {
	snapshot, err := r.Snapshot(r.t.Context())
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(snapshot), "\n")
	for _, f := range []string{"-4", "-6"} {
		rules, err := r.objects(f, "rule", "show")
		if err != nil {
			return "", err
		}
		for _, o := range rules {
			priority, _ := strconv.Atoi(fmt.Sprint(o["priority"]))
			if fmt.Sprint(o["protocol"]) == "150" && o["goto"] == nil &&
				!slices.Contains([]int{7999, 8000, 9020, 9400, 9500, 10000, 10500, 19000, 20000, 32765, 91000}, priority) && !inRange(o["table"]) {
				lines = append(lines, fmt.Sprint(f, " rule elsewhere ", o))
			}
		}
		routes, err := r.objects(f, "route", "show", "table", "all")
		if err != nil {
			return "", err
		}
		for _, o := range routes {
			table := fmt.Sprint(o["table"])
			if o["table"] == nil || table == "main" || table == "local" || table == "255" || table == "254" {
				table = "main"
			}
			ours := fmt.Sprint(o["protocol"]) == "150"
			if (table != "main" && !ours) || (ours && !inRange(o["table"])) {
				delete(o, "expires")
				delete(o, "cache")
				lines = append(lines, fmt.Sprint(f, " route elsewhere ", o))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

func inRange(table any) bool {
	n, err := strconv.Atoi(fmt.Sprint(table))
	return err == nil && n >= 10000 && n <= 10999
}

func (r *rig) objects(args ...string) ([]map[string]any, error) {
	out, err := r.IP(r.t.Context(), append([]string{"-N", "-d", "-j"}, args...)...)
	if err != nil || strings.TrimSpace(out) == "" {
		return nil, err
	}
	var objects []map[string]any
	d := json.NewDecoder(strings.NewReader(out))
	d.UseNumber()
	return objects, d.Decode(&objects)
}

// A scene is one step of a script and what must be true before its end, so that
// a run without the daemon ends in the same state.
type scene struct {
	name string
	do   func()
	// has and lacks are pieces of lines of others.
	has, lacks []string
}

// script is what happens to a host, by NetworkManager, providers, cables and
// hands.
func (r *rig) script(isps []*lab.ISP) []scene {
	ctx := r.t.Context()
	both := func(n int) []string {
		return []string{
			fmt.Sprintf("IPv4 main: dev=wan%d dst=default", n), fmt.Sprintf("IPv6 main: dev=wan%d dst=default", n),
			fmt.Sprintf("IPv6 main: dev=wan%d dst=2001:db8:0:%d::/64", n, n+1), fmt.Sprintf("IPv4 local: dev=wan%d dst=100.64.%d.", n, n),
			fmt.Sprintf("IPv6 local: dev=wan%d dst=2001:db8:0:%d:", n, n+1), fmt.Sprintf("IPv6 local: dev=wan%d dst=fe80::", n),
		}
	}
	none := func(n int) []string { return []string{fmt.Sprintf("main: dev=wan%d dst=", n)} }
	return []scene{
		{"first up", func() { r.up("wan0") }, both(0), none(1)},
		// dnsmasq sends T1 to clients that are new only: renewals come before all else.
		{"renewal", func() {
			_, err := isps[0].WaitDHCP(ctx, "DHCPACK(lan)")
			r.must(err)
		}, both(0), none(1)},
		{"second up", func() { r.up("wan1") }, append(both(0), both(1)...), nil},
		{"foreign objects", func() {
			r.ip("rule", "add", "priority", "15000", "from", "192.168.77.0/24", "lookup", "main")
			r.ip("rule", "add", "priority", "10000", "from", "100.64.0.99", "lookup", "10000", "protocol", "static")
			r.ip("rule", "add", "priority", "9500", "oif", "hand0", "lookup", "10001", "protocol", "boot")
			r.ip("rule", "add", "priority", "12500", "fwmark", "7", "lookup", "500", "protocol", "150")
			r.ip("-6", "rule", "add", "priority", "10000", "from", "2001:db8:0:1::99", "lookup", "10002", "protocol", "static")
			r.ip("-6", "rule", "add", "priority", "12500", "fwmark", "7", "lookup", "500", "protocol", "150")
			for _, table := range []string{"500", "10000", "10500"} {
				r.ip("route", "add", "198.18.5.0/24", "dev", "hand0", "table", table, "protocol", "static")
				r.ip("-6", "route", "add", "2001:db8:5::/64", "dev", "hand0", "table", table, "protocol", "static")
			}
			r.ip("route", "add", "198.18.6.0/24", "dev", "hand0", "table", "500", "protocol", "150")
			r.ip("route", "add", "198.18.7.0/24", "dev", "hand0", "metric", "9", "protocol", "150")
			r.ip("-6", "route", "add", "2001:db8:7::/64", "dev", "hand0", "metric", "9", "protocol", "150")
			r.ip("route", "add", "198.18.8.0/24", "via", "100.64.1.1", "metric", "77", "mtu", "1400", "protocol", "static")
		}, []string{"198.18.8.0/24", "2001:db8:7::"}, nil},
		{"reapply with a route more", func() {
			r.must(r.Modify(ctx, "wan0", "+ipv4.routes", "10.20.0.0/16 100.64.0.1", "+ipv4.addresses", "100.64.0.50/24"))
			r.must(r.Reapply(ctx, "wan0"))
			// An address exists for some moments before its route.
		}, append(both(0), "dst=10.20.0.0/16", "IPv4 main: dev=wan0 dst=100.64.0.0/24 flags=[] metric=100 prefsrc=100.64.0.50"), nil},
		{"device modify", func() {
			r.must(r.ModifyDevice(ctx, "wan1", "+ipv4.routes", "10.30.0.0/16 100.64.1.1 50", "+ipv6.addresses", "2001:db8:0:2::50/64", "ipv4.route-metric", "20101"))
		}, append(both(1), "dst=10.30.0.0/16", "dst=2001:db8:0:2::50", "IPv4 main: dev=wan1 dst=100.64.1.0/24 flags=[] metric=20101",
			"IPv4 main: dev=wan1 dst=default flags=[] gateway=100.64.1.1 metric=20101"), []string{"metric=101 prefsrc"}},
		{"down", func() { r.must(r.Down(ctx, "wan1")) }, both(0), none(1)},
		{"up again", func() { r.up("wan1") }, append(both(0), both(1)...), nil},
		{"link down", func() {
			r.must(isps[0].Link().SetUp(false))
			r.must(r.WaitDeviceState(ctx, "wan0", "unavailable"))
		}, both(1), none(0)},
		{"link up", func() {
			r.must(isps[0].Link().SetUp(true))
			r.must(r.WaitDeviceState(ctx, "wan0", "disconnected"))
			r.up("wan0")
		}, append(both(0), both(1)...), nil},
		{"up over up", func() { r.up("wan0") }, append(both(0), both(1)...), nil},
		{"NetworkManager restarts", func() { r.must(r.RestartNM(ctx)) }, append(both(0), both(1)...), nil},
		{"by hand", func() {
			r.ip("route", "replace", "default", "via", "192.168.77.9", "dev", "hand0", "metric", "5")
			r.ip("address", "add", "192.168.77.2/24", "dev", "hand0")
			r.ip("rule", "delete", "priority", "15000")
		}, []string{"metric=5"}, []string{"priority=15000"}},
	}
}

// TestMainIsNotOurs is promise 1: the same script with and without the daemon
// leaves the same objects of others, table by table.
func TestMainIsNotOurs(t *testing.T) {
	recorded := map[string]string{}
	for _, with := range []bool{false, true} {
		t.Run(map[bool]string{false: "without the daemon", true: "with the daemon"}[with], func(t *testing.T) {
			r, isps := promised(t)
			if with {
				r.start()
			}
			for _, s := range r.script(isps) {
				s.do()
				labtest.Eventually(t, func() error {
					now, err := r.others()
					if err != nil {
						return err
					}
					for _, text := range s.has {
						if !strings.Contains(now, text) {
							return fmt.Errorf("%s: there is no %q in\n%s", s.name, text, now)
						}
					}
					for _, text := range s.lacks {
						if strings.Contains(now, text) {
							return fmt.Errorf("%s: there is %q in\n%s", s.name, text, now)
						}
					}
					// NetworkManager answers when it has done what it began.
					if _, err := r.NMCLI(t.Context(), "-g", "STATE", "general"); err != nil {
						return err
					}
					if again, err := r.others(); err != nil || again != now {
						return fmt.Errorf("%s: it still changes (%w):\n%s", s.name, err, difference(now, again))
					}
					if with {
						if now != recorded[s.name] {
							return fmt.Errorf("%s: with the daemon it is not as without it:\n%s", s.name, difference(recorded[s.name], now))
						}
						v, err := r.look()
						if err != nil {
							return err
						}
						return v.Converged()
					}
					recorded[s.name] = now
					return nil
				})
			}
			if with {
				// The promise would be kept by doing nothing.
				r.holdsSomething()
			}
		})
	}
}

func (r *rig) holdsSomething() {
	r.t.Helper()
	ours, err := r.Leftovers()
	r.must(err)
	if len(ours) < 20 {
		r.t.Errorf("there are %d objects of ours: the daemon did nothing", len(ours))
	}
}

func difference(before, after string) string {
	return labtest.Difference(strings.Split(before, "\n"), strings.Split(after, "\n"))
}

// TestUnboundTrafficIsUnchanged is promise 2: the kernel's decision for a
// thousand destinations, with and without the daemon.
func TestUnboundTrafficIsUnchanged(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:hand0\n"}, "")
	for n := range 3 {
		cfg := lab.DefaultISP(n)
		var settings []string
		switch n {
		case 1:
			// More routes than the default, also into another uplink's network.
			settings = []string{"ipv4.routes", "10.50.0.0/16 100.64.1.1, 100.64.0.128/25 100.64.1.1", "ipv6.routes", "fd50::/48 fe80::1, 2001:db8:0:1:8000::/65 fe80::1"}
		case 2:
			settings = []string{"ipv4.never-default", "yes", "ipv6.never-default", "yes"}
		}
		r.isp(cfg, settings...)
	}
	docker, err := r.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	r.must(err)
	r.must(docker.AddAddr(netip.MustParsePrefix("fd17::1/64")))
	inner, err := r.NewBridge("virbr0", netip.MustParsePrefix("100.64.1.65/27"))
	r.must(err)
	r.must(inner.AddAddr(netip.MustParsePrefix("2001:db8:0:2:4000::1/80")))
	_, err = docker.Container("c0", netip.MustParsePrefix("172.17.0.2/16")) // a port, so that there is a carrier
	r.must(err)
	_, err = inner.Container("c1", netip.MustParsePrefix("100.64.1.66/27"))
	r.must(err)
	_, err = r.NewLink(lab.LinkConfig{Name: "hand0", Up: true})
	r.must(err)
	r.must(r.AddAddr("hand0", "192.168.77.1/24"))
	r.ip("route", "add", "10.98.0.0/16", "via", "192.168.77.9")
	r.ip("route", "add", "unreachable", "10.97.0.0/16")
	r.ip("route", "add", "blackhole", "10.96.0.0/16")

	r.up("wan0", "wan1", "wan2")
	for n := range 3 {
		for _, f := range families {
			r.address(fmt.Sprintf("wan%d", n), f)
		}
	}
	r.defaults("wan0", "wan1")
	labtest.Eventually(t, func() error { // of the profile
		four, err := r.RoutesText(t.Context(), lab.IPv4, "main")
		six, failed := r.RoutesText(t.Context(), lab.IPv6, "main")
		if err = errors.Join(err, failed); err == nil && (!strings.Contains(four, "100.64.0.128/25") || !strings.Contains(six, "2001:db8:0:1:8000::/65")) {
			err = fmt.Errorf("no routes of wan1 yet:\n%s%s", four, six)
		}
		return err
	})
	destinations := r.destinations()
	compare := func(state string, change func()) {
		t.Helper()
		change()
		before := r.decisions(destinations)
		r.start()
		r.settled()
		r.holdsSomething()
		after := r.decisions(destinations)
		differ := 0
		for i, dst := range destinations {
			if before[i] != after[i] && !strings.HasPrefix(before[i], "error") {
				if differ++; differ <= 10 {
					t.Errorf("%s: %v: %s without the daemon, %s with it", state, dst, before[i], after[i])
				}
			}
		}
		t.Logf("%s: %d destinations, %d of them to be compared, %d differ", state, len(destinations),
			len(slices.DeleteFunc(slices.Clone(before), func(s string) bool { return strings.HasPrefix(s, "error") })), differ)
		r.must(r.daemon.Stop(t.Context()))
		r.flush()
	}
	compare("all up", func() {})
	compare("halves of the internet through a VPN", func() {
		r.ip("route", "add", "0.0.0.0/1", "via", "192.168.77.9")
		r.ip("route", "add", "128.0.0.0/1", "via", "192.168.77.9")
	})
	compare("without a default", func() {
		r.ip("route", "delete", "0.0.0.0/1")
		r.ip("route", "delete", "128.0.0.0/1")
		r.ip("route", "delete", "default", "dev", "wan0")
		r.ip("route", "delete", "default", "dev", "wan1")
	})
}

// destinations are a thousand addresses of all kinds.
func (r *rig) destinations() []netip.Addr {
	random := rand.New(rand.NewPCG(1, 2))
	var out []netip.Addr
	for _, p := range []string{
		"100.64.0.0/24", "100.64.0.128/25", "100.64.1.0/24", "100.64.1.64/27", "100.64.2.0/24", "172.17.0.0/16", "192.168.77.0/24",
		"10.50.0.0/16", "10.98.0.0/16", "10.97.0.0/16", "10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/4",
		"127.0.0.0/8", "2001:db8:0:1::/64", "2001:db8:0:1:8000::/65", "2001:db8:0:2::/64", "2001:db8:0:2:4000::/80", "2001:db8:0:3::/64", "fd17::/64",
		"fd50::/48", "2001:db8:ffff::/48", "2000::/3", "fd00::/8",
	} {
		prefix := netip.MustParsePrefix(p)
		for range 38 {
			b := prefix.Addr().AsSlice()
			for i := range b {
				keep := max(0, min(8, prefix.Bits()-8*i))
				mask := byte(0xff) >> keep
				b[i] = b[i]&^mask | byte(random.IntN(256))&mask
			}
			a, _ := netip.AddrFromSlice(b)
			out = append(out, a)
		}
	}
	return out
}

// decisions asks the kernel.
func (r *rig) decisions(destinations []netip.Addr) []string {
	r.t.Helper()
	out := make([]string, len(destinations))
	for i, dst := range destinations {
		routes, err := netlink.RouteGet(dst.AsSlice())
		var errno unix.Errno
		switch {
		case errors.As(err, &errno) && errno == unix.ENETUNREACH:
			out[i] = "error: " + err.Error() // main has no route: the last resort may
		case err != nil:
			out[i] = "refused: " + err.Error()
		default:
			for _, x := range routes {
				out[i] += fmt.Sprintf("dev %d via %v from %v type %d table %d mtu %d; ", x.LinkIndex, x.Gw, x.Src, x.Type, x.Table, x.MTU)
			}
		}
	}
	return out
}

// flush takes everything of ours away.
func (r *rig) flush() {
	r.t.Helper()
	ctl, err := labtest.Build("multihomectl")
	r.must(err)
	out, err := exec.CommandContext(r.t.Context(), ctl, "flush", "--config", r.path).CombinedOutput()
	if err != nil {
		r.t.Fatalf("multihomectl flush: %v\n%s", err, out)
	}
	left, err := r.Leftovers()
	r.must(err)
	for _, link := range []string{"wan0", "wan1", "wan2"} {
		if group, err := os.ReadFile("/sys/class/net/" + link + "/netdev_group"); err == nil && strings.TrimSpace(string(group)) != "0" {
			left = append(left, link+" is in group "+string(group))
		}
	}
	if len(left) > 0 {
		r.t.Errorf("flush left:\n%s", strings.Join(left, "\n"))
	}
}

// TestForeignDeletionIsRepaired is the second half of promise 4: every single object of ours
// is restored, and repairs against a program that keeps deleting are limited.
func TestForeignDeletionIsRepaired(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[repair]\nburst = 200\nper_second = 5\n")
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	r.up("wan0", "wan1")
	r.start()
	r.address("wan0", lab.IPv6)
	r.address("wan1", lab.IPv6)
	r.settled("wan0", "wan1")
	count := r.deleteEach(func(what string) {
		labtest.Eventually(t, func() error {
			v, err := r.look()
			if err != nil {
				return err
			}
			if err := v.Converged(); err != nil {
				return fmt.Errorf("%s was deleted: %w", what, err)
			}
			return nil
		})
	})
	t.Logf("%d objects deleted one by one and repaired", count)
	r.settled("wan0", "wan1")
	if count < 30 {
		t.Errorf("only %d objects", count)
	}

	// A program deletes one rule as fast as it can for three seconds.
	const seconds = 3
	rule := r.ruleOf("wan0")
	cpu, lines := r.cpu(), len(r.daemon.Lines())
	deleted := 0
	began := time.Now()
	extraAt := began.Add(seconds * time.Second / 2)
	var waited time.Duration
	for end := began.Add(seconds * time.Second); time.Now().Before(end); {
		if err := netlink.RuleDel(rule); err == nil {
			deleted++
		} else if !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		if !extraAt.IsZero() && time.Now().After(extraAt) {
			// The others are served meanwhile.
			extraAt = time.Time{}
			begin := time.Now()
			r.must(r.AddAddr("wan1", "100.64.1.66/24"))
			labtest.Eventually(t, func() error {
				if err := netlink.RuleDel(rule); err == nil {
					deleted++
				}
				if s, ok := look("wan1", lab.IPv4); !ok || !s.stands(netip.MustParseAddr("100.64.1.66"), 10500) {
					return errors.New("a new address of the other link is not served during the fight")
				}
				return nil
			})
			waited = time.Since(begin)
		}
	}
	used, lasted := r.cpu()-cpu, int(time.Since(began)/time.Second)
	t.Logf("deleted %d times in %d s; the daemon took %v of processor time and wrote %d lines; a new address elsewhere waited %v", deleted, lasted, used, len(r.daemon.Lines())-lines, waited)
	if limit := 200 + 5*(lasted+2); deleted > limit || deleted < 3 {
		t.Errorf("the rule was restored %d times, the limit is %d", deleted, limit)
	}
	if used > time.Duration(lasted+2)*time.Second/2 {
		t.Errorf("the fight took %v of processor time", used)
	}
	if n := len(r.daemon.Lines()) - lines; n > 4*deleted+50 {
		t.Errorf("the fight was worth %d lines of log", n)
	}
	r.settled("wan0", "wan1")
}

// deleteEach deletes every object of ours, one by one.
func (r *rig) deleteEach(then func(what string)) int {
	r.t.Helper()
	count := 0
	for _, f := range []string{"-4", "-6"} {
		rules, err := r.IP(r.t.Context(), "-N", f, "rule", "show")
		r.must(err)
		for line := range strings.Lines(rules) {
			if !strings.Contains(line, "proto 150") {
				continue
			}
			priority, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			rest = strings.Replace(rest, " 7 proto", " type unreachable proto", 1)
			r.ip(append([]string{f, "rule", "delete", "priority", priority}, strings.Fields(rest)...)...)
			then(line)
			count++
		}
		routes, err := r.IP(r.t.Context(), "-N", f, "route", "show", "table", "all", "proto", "150")
		r.must(err)
		for line := range strings.Lines(routes) {
			if !strings.Contains(line, " table 10") {
				continue
			}
			words := strings.Fields(line)
			words = words[:len(words)-strings.Count(line, "linkdown")-2*strings.Count(line, " pref ")-2*strings.Count(line, " expires ")]
			r.ip(append([]string{f, "route", "delete"}, words...)...)
			then(line)
			count++
		}
	}
	return count
}

// ruleOf is a link's rule of the rung of sources.
func (r *rig) ruleOf(link string) *netlink.Rule {
	r.t.Helper()
	addr := r.address(link, lab.IPv4)
	rules, err := netlink.RuleList(unix.AF_INET)
	r.must(err)
	for _, rule := range rules {
		if rule.Priority == 10000 && rule.Src != nil && rule.Src.IP.Equal(addr.AsSlice()) {
			return &rule
		}
	}
	r.t.Fatalf("%s has no rule for %v", link, addr)
	return nil
}

// cpu is the processor time that the daemon has used.
func (r *rig) cpu() time.Duration {
	r.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.daemon.Pid()))
	r.must(err)
	fields := strings.Fields(string(data[strings.LastIndex(string(data), ")")+1:]))
	user, err := strconv.Atoi(fields[11])
	r.must(err)
	system, err := strconv.Atoi(fields[12])
	r.must(err)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// TestTablesAreStable is promise 5 without its crashes (crash_test.go has those):
// the same tables after restarts and reboots; stopping leaves the routing,
// flushing takes it away.
func TestTablesAreStable(t *testing.T) {
	state := t.TempDir()
	var first string
	host := func(t *testing.T, order ...string) *rig {
		t.Helper()
		r := newRig(t, lab.HostConfig{FastDAD: true}, "")
		r.writeConfig(fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n", state, filepath.Join(t.TempDir(), "run")))
		for n := range 3 {
			r.isp(lab.DefaultISP(n))
		}
		r.start()
		for _, link := range order {
			r.up(link)
			r.address(link, lab.IPv6)
			r.settled(link)
		}
		r.settled(order...)
		return r
	}
	check := func(r *rig, when string) {
		r.t.Helper()
		now := r.tableNumbers()
		if first == "" {
			first = now
		}
		if now != first {
			r.t.Errorf("%s the tables are\n%s\nand were\n%s", when, now, first)
		}
	}
	t.Run("first boot", func(t *testing.T) {
		r := host(t, "wan0", "wan1", "wan2")
		check(r, "at first")
		for _, stop := range []func(){func() { r.must(r.daemon.Stop(t.Context())) }, r.kill9} {
			before, err := r.Leftovers()
			r.must(err)
			m := newMonitor(t)
			from := m.barrier()
			stop()
			after, err := r.Leftovers()
			r.must(err)
			slices.Sort(before)
			slices.Sort(after)
			if d := labtest.Difference(before, after); d != "" {
				t.Errorf("ending the daemon changed the routing:\n%s", d)
			}
			r.answeredBy("isp1", lab.From{Addr: r.address("wan1", lab.IPv4)}, lab.InternetAddr4)
			r.start()
			r.settled("wan0", "wan1", "wan2")
			m.barrier()
			for _, e := range m.from(from) {
				if e.own {
					t.Errorf("a restart changed the kernel: %s", e.text)
				}
			}
			check(r, "after a restart")
		}
	})
	t.Run("second boot, in another order", func(t *testing.T) {
		r := host(t, "wan2", "wan1", "wan0")
		check(r, "after a reboot")
		r.must(r.Down(t.Context(), "wan1"))
		r.settled("wan0", "wan2")
		r.must(r.daemon.Stop(t.Context()))
		r.flush()
		r.start()
		r.settled("wan0", "wan2")
		r.up("wan1")
		r.settled("wan0", "wan1", "wan2")
		check(r, "after a flush")
	})
}

// tableNumbers is which table each device has, from `ip rule` alone.
func (r *rig) tableNumbers() string {
	r.t.Helper()
	var out []string
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(r.t.Context(), f)
		r.must(err)
		for line := range strings.Lines(rules) {
			if strings.HasPrefix(line, "9500:") {
				out = append(out, fmt.Sprintf("%v %s", f, strings.Join(strings.Fields(line), " ")))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestNotKnowingIsNotEmptiness is promise 6 where recovery_test.go does not look:
// the routing socket overflows, NetworkManager is slow to come back, and the
// daemon sees neither.
func TestNotKnowingIsNotEmptiness(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:hand0\n"}, "")
	isp0 := r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	_, err := r.NewLink(lab.LinkConfig{Name: "hand0", Up: true})
	r.must(err)
	r.must(r.AddAddr("hand0", "192.168.77.1/24"))
	r.up("wan0", "wan1")
	r.start()
	r.address("wan0", lab.IPv6)
	r.address("wan1", lab.IPv6)
	r.settled("wan0", "wan1")
	m := newMonitor(t)
	// nothingLost says which objects of ours the daemon deleted.
	nothingLost := func(from int, when string) {
		t.Helper()
		m.barrier()
		for _, e := range m.from(from) {
			if e.own && strings.HasPrefix(e.text, "-") {
				t.Errorf("%s: %s", when, e.text)
			}
		}
	}

	// The kernel has more to say than the socket holds while the daemon sleeps,
	// and what really happened is among it.
	r.must(r.daemon.Signal(syscall.SIGSTOP))
	r.overflow()
	r.must(r.AddAddr("wan1", "100.64.1.66/24"))
	r.ip("rule", "delete", "priority", "9500", "oif", "wan0") // by somebody else
	if r.drops() == 0 {
		t.Fatal("the daemon's routing socket did not overflow: the test proves nothing")
	}
	from := m.barrier()
	r.must(r.daemon.Signal(syscall.SIGCONT))
	r.settled("wan0", "wan1")
	nothingLost(from, "after an overflow")
	if s, _ := look("wan1", lab.IPv4); !s.stands(netip.MustParseAddr("100.64.1.66"), 10500) {
		t.Error("what happened during the overflow was missed")
	}

	// NetworkManager comes back, but sleeps before it says anything.
	from = m.barrier()
	r.must(r.StopNM(t.Context()))
	r.must(isp0.SetRA(isp0.RA()))
	r.must(r.StartNM(t.Context()))
	r.must(syscall.Kill(r.NMPid(), syscall.SIGSTOP))
	r.must(r.AddAddr("wan1", "100.64.1.67/24"))
	labtest.Eventually(t, func() error { // the kernel is followed all the same
		if s, _ := look("wan1", lab.IPv4); !s.stands(netip.MustParseAddr("100.64.1.67"), 10500) {
			return errors.New("no rule for the new address")
		}
		return nil
	})
	r.kill9() // and the daemon forgets what it knew
	r.launch()
	labtest.Eventually(t, func() error {
		told, err := socket.Ask(r.t.Context(), r.cfg.RuntimeDir, true)
		if err != nil {
			return err
		}
		if told.Daemon.PID != r.daemon.Pid() || told.Daemon.Waiting == "" {
			return fmt.Errorf("the daemon does not say that it waits: %+v", told.Daemon)
		}
		return nil
	})
	for _, link := range []string{"wan0", "wan1"} {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			r.must(r.ladder(link, f))
		}
	}
	nothingLost(from, "while NetworkManager slept")
	r.must(syscall.Kill(r.NMPid(), syscall.SIGCONT))
	r.ready()
	r.settled("wan0", "wan1")
}

// overflow makes more events than a routing socket holds.
func (r *rig) overflow() {
	r.t.Helper()
	link, err := netlink.LinkByName("hand0")
	r.must(err)
	var batch strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&batch, "route add 198.%d.%d.%d/32 dev %s\n", 18+i>>16, i>>8&255, i&255, link.Attrs().Name)
	}
	path := filepath.Join(r.t.TempDir(), "batch")
	r.must(os.WriteFile(path, []byte(batch.String()), 0o600))
	r.ip("-batch", path)
	r.ip("route", "flush", "root", "198.18.0.0/15")
}

// drops is how many messages the kernel could not queue for the daemon.
func (r *rig) drops() int {
	r.t.Helper()
	inodes := map[string]bool{}
	dir := fmt.Sprintf("/proc/%d/fd", r.daemon.Pid())
	fds, err := os.ReadDir(dir)
	r.must(err)
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil {
			inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	table, err := os.ReadFile("/proc/net/netlink")
	r.must(err)
	total := 0
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) >= 10 && inodes[f[9]] {
			n, _ := strconv.Atoi(f[8])
			total += n
		}
	}
	return total
}
