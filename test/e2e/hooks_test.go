package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/hookstate"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// withoutNM is a host without NetworkManager and without a bus, on which the hooks
// are installed.
func withoutNM(t *testing.T, toml string) *rig {
	t.Helper()
	r := newRig(t, lab.HostConfig{NoBus: true, FastDAD: true}, "network_manager = \"no\"\n"+toml)
	r.install()
	r.must(r.ServeEcho())
	return r
}

// onBothHosts runs a test on a host with the daemon, and on one where nothing but
// the hooks does the work.
func onBothHosts(t *testing.T, toml string, test func(*rig)) {
	t.Helper()
	for _, with := range []bool{true, false} {
		name := map[bool]string{true: "daemon", false: "hooks alone"}[with]
		t.Run(name, func(t *testing.T) {
			r := withoutNM(t, toml)
			if with {
				r.start()
			}
			test(r)
		})
	}
}

// connected connects a provider for which NetworkManager has no profile.
func (r *rig) connected(cfg lab.ISPConfig) *lab.ISP {
	r.t.Helper()
	isp, err := r.NewISP(r.t.Context(), cfg)
	r.must(err)
	return isp
}

func (r *rig) ifup(interfaces ...string) {
	r.t.Helper()
	out, err := r.Ifup(r.t.Context(), interfaces...)
	r.must(err)
	r.t.Logf("ifup %v:\n%s", interfaces, out)
}

func (r *rig) ifdown(interfaces ...string) {
	r.t.Helper()
	out, err := r.Ifdown(r.t.Context(), interfaces...)
	r.must(err)
	r.t.Logf("ifdown %v:\n%s", interfaces, out)
}

// become waits for the ladders of these parts and of nothing else, and for a fresh
// plan to have nothing to do.
func (r *rig) become(parts ...part) {
	r.t.Helper()
	r.eventually(func() error {
		if err := r.holds(parts...); err != nil {
			return err
		}
		v, err := r.look()
		if err != nil {
			return err
		}
		return v.Converged()
	})
}

// answer checks that packets of both families come back on the link of each provider.
func (r *rig) answer(isps ...*lab.ISP) {
	r.t.Helper()
	for _, isp := range isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			r.answersOnItsLink(isp, f)
		}
	}
}

// states are the names of the files that hooks have left.
func (r *rig) states() []string {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.cfg.RuntimeDir, "hooks"))
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// nothingLeft checks that no files of hooks are left.
func (r *rig) nothingLeft(after string) {
	r.t.Helper()
	if left := r.states(); len(left) > 0 {
		r.t.Errorf("left after %s: %v", after, left)
	}
}

// unplugged is what udevd does when an interface is gone.
func (r *rig) unplugged(link string) {
	r.t.Helper()
	_, err := r.Run(r.t.Context(), "env", "-i", "ACTION=remove", "SUBSYSTEM=net", "INTERFACE="+link, "/usr/sbin/multihomed-dispatcher", "udev")
	r.must(err)
}

const dhcpInterfaces = `
auto lo
iface lo inet loopback
iface wan0 inet dhcp
iface wan0 inet6 auto
iface wan1 inet dhcp
iface wan1 inet6 auto
`

// TestDHClient is the host that plain Linux gets wrong: ifupdown brings up two
// links by DHCP, and the second default of the same metric does not get into main.
func TestDHClient(t *testing.T) {
	onBothHosts(t, "", func(r *rig) {
		ctx := r.t.Context()
		moving := lab.DefaultISP(0)
		moving.Lease, moving.Renew = 2*time.Minute, 3*time.Second
		isp0, isp1 := r.connected(moving), r.connected(lab.DefaultISP(1))
		r.must(r.WriteInterfaces(dhcpInterfaces))
		r.ifup("wan0", "wan1")
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)
		if main, err := r.RoutesText(ctx, lab.IPv4, "main"); err != nil || strings.Count(main, "default") != 1 {
			r.t.Errorf("main was to be as dhclient leaves it (%v):\n%s", err, main)
		}

		// A renewal that changes nothing, and one that changes everything.
		_, err := isp0.WaitDHCP(ctx, "DHCPACK(lan)")
		r.must(err)
		r.must(isp0.Reconfigure(ctx, func(c *lab.ISPConfig) {
			c.IPv4 = netip.MustParsePrefix("100.64.200.1/24")
			c.Routes = []lab.Route{{Dst: netip.MustParsePrefix("10.99.0.0/16"), Via: netip.MustParseAddr("100.64.200.7")}, lab.DefaultVia(netip.MustParseAddr("100.64.200.1"))}
		}))
		_, err = r.WaitAddrIn(ctx, "wan0", netip.MustParsePrefix("100.64.200.0/24"))
		r.must(err)
		r.become(both("wan0", "wan1")...)
		r.eventually(func() error {
			return r.tableHas("wan0", lab.IPv4, "default via 100.64.200.1 ", "10.99.0.0/16 via 100.64.200.7 ", "!100.64.0.")
		})
		r.answer(isp0, isp1)

		r.ifdown("wan0")
		r.become(both("wan1")...)
		r.answer(isp1)
		r.ifup("wan0")
		r.become(both("wan0", "wan1")...)

		// Unplugged while it is up.
		r.must(isp1.Link().Delete())
		if r.daemon == nil {
			r.unplugged("wan1")
		}
		r.become(both("wan0")...)
		r.eventually(func() error {
			if left := strings.Join(r.states(), " "); strings.Contains(left, "wan1") {
				return fmt.Errorf("left of wan1: %s", left)
			}
			return nil
		})
		r.must(isp1.Link().Recreate())
		_, err = r.Ifdown(ctx, "--force", "wan1")
		r.must(err)
		r.ifup("wan1")
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)

		r.ifdown("wan0", "wan1")
		r.become()
		r.nothingLeft("everything")
	})
}

// TestIfupdownStatic is a host with static addresses: the second gateway is left
// out, because ifupdown would fail on it, or is in another stanza.
func TestIfupdownStatic(t *testing.T) {
	for _, moving := range []bool{false, true} {
		toml := ""
		if moving {
			toml = "[ifupdown]\nmove_routes = true\n"
		}
		onBothHosts(t, toml, func(r *rig) {
			var isps []*lab.ISP
			for n := range 2 {
				cfg := lab.DefaultISP(n)
				cfg.NoDHCP, cfg.NoRA = true, true
				isps = append(isps, r.connected(cfg))
			}
			second := "multihomed-gateway"
			if moving {
				second = "gateway"
			}
			r.must(r.WriteInterfaces(`
iface wan0 inet static
    address 100.64.0.50/24
    gateway 100.64.0.1
    up ip route add 10.77.0.0/16 via 100.64.0.7
iface wan0 inet static
    address 100.64.0.51
    netmask 255.255.255.0
iface wan0 inet6 static
    address 2001:db8:0:1::50/64
    gateway 2001:db8:0:1::1
iface wan1 inet static
    address 100.64.1.50/24
    ` + second + ` 100.64.1.1
iface wan1 inet6 static
    address 2001:db8:0:2::50/64
    gateway 2001:db8:0:2::1
`))
			inMain := func() error {
				var errs []error
				for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
					main, err := r.RoutesText(r.t.Context(), f, "main")
					if err != nil {
						return err
					}
					if strings.Contains(main, "default") == moving || strings.Contains(main, "10.77.0.0/16") != (!moving && f == lab.IPv4) {
						errs = append(errs, fmt.Errorf("routes moved is %t, and main is:\n%s", moving, main))
					}
				}
				return errors.Join(errs...)
			}
			r.ifup("wan0")
			r.become(both("wan0")...)
			r.eventually(inMain)
			r.ifup("wan1")
			r.become(both("wan0", "wan1")...)
			r.must(r.tableHas("wan0", lab.IPv4, "default via 100.64.0.1 ", "10.77.0.0/16 via 100.64.0.7 "))
			r.must(r.hasSource(netip.MustParsePrefix("100.64.0.51/24")))
			r.answer(isps...)
			r.eventually(inMain)
			r.ifdown("wan0")
			r.become(both("wan1")...)
			r.ifup("wan0")
			r.become(both("wan0", "wan1")...)
			if r.daemon != nil {
				// A restart finds the reports of the hooks.
				m := newMonitor(r.t)
				from := m.barrier()
				r.kill9()
				r.start()
				r.become(both("wan0", "wan1")...)
				m.barrier()
				if wrote := m.unprovoked(from); len(wrote) > 0 {
					r.t.Errorf("a restart changed something:\n%s", m.text(from))
				}
			}
			r.ifdown("wan0", "wan1")
			r.become()
			r.nothingLeft("everything")
		})
	}
}

// TestDHCPCD is a host on which dhcpcd does everything: DHCP, router advertisements
// and, from the second provider, DHCPv6.
func TestDHCPCD(t *testing.T) {
	onBothHosts(t, "", func(r *rig) {
		ctx := r.t.Context()
		moving, second := lab.DefaultISP(0), lab.DefaultISP(1)
		moving.Lease, moving.Renew = 2*time.Minute, 3*time.Second
		ra := lab.DefaultRA(second.IPv6)
		for i := range ra.Prefixes {
			ra.Prefixes[i].NoSLAAC = true
		}
		ra.Managed = true
		second.DHCPv6, second.RA = lab.StatefulDHCPv6, &ra
		isp0, isp1 := r.connected(moving), r.connected(second)
		// There is no udevd in the lab.
		client, err := r.Start(lab.ProcessConfig{Path: "dhcpcd", Args: []string{"-B", "--nodev", "--noarp", "wan0", "wan1"}})
		r.must(err)
		r.t.Cleanup(func() {
			if r.t.Failed() {
				r.t.Logf("dhcpcd:\n%s", client.Log())
			}
		})
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)

		r.must(isp0.Reconfigure(ctx, func(c *lab.ISPConfig) {
			c.IPv4 = netip.MustParsePrefix("100.64.200.1/24")
			c.Routes = []lab.Route{{Dst: netip.MustParsePrefix("10.99.0.0/16"), Via: netip.MustParseAddr("100.64.200.7")}, lab.DefaultVia(netip.MustParseAddr("100.64.200.1"))}
		}))
		_, err = r.WaitAddrIn(ctx, "wan0", netip.MustParsePrefix("100.64.200.0/24"))
		r.must(err)
		r.become(both("wan0", "wan1")...)
		r.eventually(func() error {
			return r.tableHas("wan0", lab.IPv4, "default via 100.64.200.1 ", "10.99.0.0/16 via 100.64.200.7 ", "!100.64.0.")
		})
		r.answer(isp0, isp1)

		// Without a cable dhcpcd takes everything away.
		r.must(isp0.Link().SetCarrier(false))
		r.become(both("wan1")...)
		r.must(isp0.Link().SetCarrier(true))
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)

		r.must(isp1.Link().Delete())
		if r.daemon == nil {
			r.unplugged("wan1")
		}
		r.become(both("wan0")...)
		r.must(isp1.Link().Recreate())
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)

		// dhcpcd 9.4.1 misses a signal now and then, and `dhcpcd -k` gives up after ten seconds.
		r.eventually(func() error {
			_, err := r.Run(ctx, "dhcpcd", "-k", "wan0", "wan1")
			if err != nil && strings.Contains(err.Error(), "not running") {
				return nil
			}
			return err
		})
		r.become()
		r.nothingLeft("everything")
	})
}

// TestIfupdownWithDHCPCD is ifupdown where dhcpcd is its DHCP client, as on Debian
// 13: both tell of the same link.
func TestIfupdownWithDHCPCD(t *testing.T) {
	onBothHosts(t, "", func(r *rig) {
		r.must(r.Hide("/usr/sbin/dhclient"))
		// There is no udevd in the lab.
		text, err := os.ReadFile("/etc/dhcpcd.conf")
		r.must(err)
		r.must(os.WriteFile("/etc/dhcpcd.conf", append(slices.Clone(text), "\nnodev\nnoarp\n"...), 0o644))
		r.t.Cleanup(func() { r.must(os.WriteFile("/etc/dhcpcd.conf", text, 0o644)) })
		isp0, isp1 := r.connected(lab.DefaultISP(0)), r.connected(lab.DefaultISP(1))
		r.must(r.WriteInterfaces("iface wan0 inet dhcp\niface wan1 inet dhcp\n"))
		r.ifup("wan0", "wan1")
		r.become(both("wan0", "wan1")...)
		r.answer(isp0, isp1)
		r.ifdown("wan0")
		r.become(both("wan1")...)
		r.ifup("wan0")
		r.become(both("wan0", "wan1")...)
		r.ifdown("wan0", "wan1")
		r.become()
		r.nothingLeft("everything")
	})
}

// TestNoTableIsLeft is a link without a table: the host stays reachable by it, and logs an error.
func TestNoTableIsLeft(t *testing.T) {
	onBothHosts(t, "[tables]\nfirst = 10000\nlast = 10001\n", func(r *rig) {
		ctx := r.t.Context()
		for n := range 2 {
			cfg := lab.DefaultISP(n)
			cfg.IPv6 = netip.Prefix{}
			r.connected(cfg)
		}
		r.must(r.WriteInterfaces("iface wan0 inet dhcp\niface wan1 inet dhcp\n"))
		r.ifup("wan0")
		r.eventually(func() error { return r.ladder("wan0", lab.IPv4) })
		r.ifup("wan1")
		index, err := hookstate.Index("wan1")
		r.must(err)
		line := fmt.Sprintf("default via 100.64.1.1 dev wan1 proto 150 scope 0 src 100.64.1.177 metric %d ", index)
		stands := func(want bool) {
			r.t.Helper()
			r.eventually(func() error {
				main, err := r.RoutesText(ctx, lab.IPv4, "main")
				if err == nil && strings.Contains(main, line) != want {
					err = fmt.Errorf("%q in main is not %t:\n%s", line, want, main)
				}
				return err
			})
		}
		stands(true)
		r.must(r.ladder("wan0", lab.IPv4))
		status, _ := r.ctl("status") // It says that not all is well.
		if !strings.Contains(status, "wan1") || !strings.Contains(status, "table") {
			r.t.Errorf("status does not name the problem:\n%s", status)
		}
		if r.daemon != nil {
			r.logged(0, " error: ")
		}
		r.ifdown("wan1")
		stands(false)
		r.ifup("wan1")
		stands(true)
		if r.daemon != nil {
			r.must(r.daemon.Stop(ctx))
		}
		if out, err := r.ctl("flush", "--yes"); err != nil {
			r.t.Errorf("flush: %v\n%s", err, out)
		}
		stands(false)
		r.must(r.holds())
	})
}

// ctl runs multihomectl.
func (r *rig) ctl(args ...string) (string, error) {
	r.t.Helper()
	program, err := labtest.Build("multihomectl")
	r.must(err)
	out, err := exec.CommandContext(r.t.Context(), program, append([]string{"--config", r.path}, args...)...).CombinedOutput()
	return string(out), err
}

// TestFlushPutsRoutesBack: moved routes are in main again when nothing of ours is
// left, and when the configuration does not ask for it any more.
func TestFlushPutsRoutesBack(t *testing.T) {
	const moving = "[ifupdown]\nmove_routes = true\n"
	r := withoutNM(t, moving)
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.NoDHCP, cfg.NoRA = true, true
		r.connected(cfg)
	}
	r.must(r.WriteInterfaces(`
iface wan0 inet static
    address 100.64.0.50/24
    gateway 100.64.0.1
    up ip route add 10.77.0.0/16 via 100.64.0.7 metric 30 proto static mtu 1400 src 100.64.0.50
    up ip route add 10.78.0.0/16 via 100.64.0.8 dev wan0 onlink
iface wan1 inet static
    address 100.64.1.50/24
    gateway 100.64.1.1
    metric 40
`))
	mainHas := func() []string {
		text, err := r.RoutesText(t.Context(), lab.IPv4, "main")
		r.must(err)
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		slices.Sort(lines)
		return lines
	}
	// The routes of ifupdown without move_routes.
	const hook = "/usr/sbin/multihomed-dispatcher"
	r.must(os.Chmod(hook, 0o600))
	r.ifup("wan0", "wan1")
	before := mainHas()
	r.ifdown("wan0", "wan1")
	r.must(os.Chmod(hook, 0o755))
	r.ifup("wan0", "wan1")
	four := []part{{"wan0", lab.IPv4}, {"wan1", lab.IPv4}}
	all := []string{"default via 100.64.0.1 dev wan0", "10.77.0.0/16 via 100.64.0.7 dev wan0", "metric 30", "default via 100.64.1.1 dev wan1", "metric 40"}
	inMain := func(want bool) error {
		main, err := r.RoutesText(t.Context(), lab.IPv4, "main")
		if err != nil {
			return err
		}
		for _, text := range all {
			if strings.Contains(main, text) != want {
				return fmt.Errorf("%q is in main is not %t:\n%s", text, want, main)
			}
		}
		return nil
	}
	r.eventually(func() error { return inMain(false) })
	r.become(four...)
	if out, err := r.ctl("flush", "--yes"); err != nil {
		t.Fatalf("flush: %v\n%s", err, out)
	}
	r.must(inMain(true))
	if after := mainHas(); !slices.Equal(before, after) {
		t.Errorf("main had\n%s\nand has\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	r.must(r.holds())

	r.start()
	r.eventually(func() error { return inMain(false) })
	r.become(four...)
	r.switches("off", "wan0")
	r.must(func() error {
		all = all[:3]
		return inMain(true)
	}())
	r.switches("on")
	r.eventually(func() error { return inMain(false) })
	r.switches("off")
	all = append(all, "default via 100.64.1.1 dev wan1", "metric 40")
	r.must(inMain(true))
	r.must(r.holds())
	r.switches("on")
	r.become(four...)
	text, err := os.ReadFile(r.path)
	r.must(err)
	r.writeConfig(strings.ReplaceAll(string(text), moving, ""))
	r.must(r.daemon.Signal(syscall.SIGHUP))
	r.eventually(func() error { return inMain(true) })
	r.become(four...)
}

// TestBoundTrafficOfHooksNeverStrays is promise 3 on a host with ifupdown and
// dhclient: measured at both providers, through renewals into another network,
// unplugging, ifdown and ifup, and a daemon that dies and comes back.
func TestBoundTrafficOfHooksNeverStrays(t *testing.T) {
	const rounds = 16
	random := seeded(t)
	r := withoutNM(t, "")
	ctx := t.Context()
	var isps []*lab.ISP
	sources := map[string][]netip.Prefix{}
	var others []netip.Addr
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Lease, cfg.Renew = 2*time.Minute, 3*time.Second
		isps = append(isps, r.connected(cfg))
		p4, p6 := renumbered(cfg)
		sources[cfg.Link] = []netip.Prefix{cfg.IPv4.Masked(), p4.Masked(), cfg.IPv6.Masked(), p6.Masked()}
		others = append(others, cfg.IPv4.Addr(), cfg.IPv6.Addr())
	}
	r.must(r.WriteInterfaces(dhcpInterfaces))
	r.start()
	r.ifup("wan0", "wan1")
	r.become(both("wan0", "wan1")...)
	w := newWire(t, isps, sources, others...)
	s := &storm{rig: r, isps: isps, random: random}
	running := true
	for range rounds {
		n := random.IntN(2)
		link := fmt.Sprintf("wan%d", n)
		what, do := "renumber", func() error { return s.renumber(n) }
		switch random.IntN(7) {
		case 0:
			what, do = "ifdown and ifup", func() error {
				_, down := r.Ifdown(ctx, link)
				_, up := r.Ifup(ctx, link)
				return errors.Join(down, up)
			}
		case 1:
			what, do = "unplugged and plugged in", func() error {
				if err := isps[n].Link().Delete(); err != nil {
					return err
				}
				if !running {
					r.unplugged(link)
				}
				if err := isps[n].Link().Recreate(); err != nil {
					return err
				}
				_, down := r.Ifdown(ctx, "--force", link)
				_, up := r.Ifup(ctx, link)
				return errors.Join(down, up)
			}
		case 2:
			what, do = "cable", func() error {
				return errors.Join(isps[n].Link().SetCarrier(false), isps[n].Link().SetCarrier(true))
			}
		case 3:
			what, do = "default deleted", func() error { return s.byHand("route", "delete", "default") }
		case 4:
			what, do = "daemon", func() error {
				if running {
					r.kill9()
				} else {
					r.launch()
				}
				running = !running
				return nil
			}
		}
		s.note("%s: %s", link, what)
		if err := do(); err != nil {
			s.note("   %v", err)
		}
		// A renewal takes up to three seconds; not all of them are waited for.
		if what == "renumber" && random.IntN(2) == 0 {
			_, err := r.WaitAddrIn(ctx, link, isps[n].IPv4())
			r.must(err)
		}
	}
	t.Logf("%s", strings.Join(s.log, "\n"))
	w.judged(200)
	if !running {
		r.launch()
	}
	for n, isp := range isps {
		if s.moved[n] {
			r.must(s.renumber(n))
		}
		_, err := r.WaitAddrIn(ctx, isp.Link().Name(), isp.IPv4())
		r.must(err)
	}
	// The kernel keeps addresses of a router's former prefix for two hours.
	r.eventually(func() error {
		return errors.Join(r.planned(), r.ladder("wan0", lab.IPv4), r.ladder("wan1", lab.IPv4))
	})
}

// TestDHClientReasons tries all reasons of calls of dhclient, with the script and
// the hooks that Debian has.
func TestDHClientReasons(t *testing.T) {
	onBothHosts(t, "", func(r *rig) {
		cfg := lab.DefaultISP(0)
		cfg.IPv6 = netip.Prefix{}
		isp := r.connected(cfg)
		r.ip("link", "set", "wan0", "up")
		script := func(reason string, variables ...string) {
			r.t.Helper()
			args := slices.Concat([]string{"-i", "PATH=/usr/sbin:/usr/bin", "reason=" + reason, "interface=wan0"}, variables, []string{"/usr/sbin/dhclient-script"})
			out, err := r.Run(r.t.Context(), "env", args...)
			// The script ends as its last hook does.
			if err != nil {
				r.t.Fatalf("%s: %v\n%s", reason, err, out)
			}
		}
		lease := func(prefix, address string) []string {
			return []string{prefix + "ip_address=" + address, prefix + "subnet_mask=255.255.255.0", prefix + "routers=100.64.0.1", prefix + "broadcast_address=100.64.0.255"}
		}
		four := part{"wan0", lab.IPv4}
		for i, pair := range []struct{ gained, lost string }{{"BOUND", "EXPIRE"}, {"REBOOT", "FAIL"}, {"TIMEOUT", "RELEASE"}, {"BOUND", "STOP"}} {
			first, second := fmt.Sprintf("100.64.0.%d", 50+i), fmt.Sprintf("100.64.0.%d", 60+i)
			script("PREINIT")
			script(pair.gained, lease("new_", first)...)
			r.become(four)
			script("RENEW", slices.Concat(lease("old_", first), lease("new_", first))...)
			r.become(four)
			script("REBIND", slices.Concat(lease("old_", first), lease("new_", second),
				[]string{"new_rfc3442_classless_static_routes=16 10 99 100 64 0 7 0 100 64 0 1"})...)
			r.become(four)
			r.must(r.tableHas("wan0", lab.IPv4, "src "+second, "!src "+first, "10.99.0.0/16 via 100.64.0.7 ", "default via 100.64.0.1 "))
			r.answersOnItsLink(isp, lab.IPv4)
			script(pair.lost, lease("old_", second)...)
			r.become()
			r.nothingLeft(pair.lost)
		}
	})
}

// TestDHClient6 is ifupdown with DHCPv6.
func TestDHClient6(t *testing.T) {
	onBothHosts(t, "", func(r *rig) {
		var isps []*lab.ISP
		for n := range 2 {
			cfg := lab.DefaultISP(n)
			ra := lab.DefaultRA(cfg.IPv6)
			ra.Managed, ra.Prefixes[0].NoSLAAC = true, true
			cfg.IPv4, cfg.DHCPv6, cfg.RA = netip.Prefix{}, lab.StatefulDHCPv6, &ra
			isps = append(isps, r.connected(cfg))
		}
		r.must(r.WriteInterfaces("iface wan0 inet6 dhcp\niface wan1 inet6 dhcp\n"))
		r.ifup("wan0", "wan1")
		r.become(part{"wan0", lab.IPv6}, part{"wan1", lab.IPv6})
		for _, isp := range isps {
			r.answersOnItsLink(isp, lab.IPv6)
		}
		r.ifdown("wan0")
		r.become(part{"wan1", lab.IPv6})
		r.ifdown("wan1")
		r.become()
		r.nothingLeft("everything")
	})
}

// TestStandInHasAUser: the stand-in has the daemon's user, and leaves no file that the daemon cannot open.
func TestStandInHasAUser(t *testing.T) {
	const nobody = 65534
	r := withoutNM(t, "")
	for _, directory := range []string{r.cfg.StateDir, r.cfg.RuntimeDir} {
		r.must(os.MkdirAll(directory, 0o755))
		r.must(os.Chown(directory, nobody, nobody))
	}
	// Its parents are the test's own.
	for d := r.cfg.StateDir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		r.must(os.Chmod(d, 0o755))
	}
	r.must(os.Chmod(r.path, 0o644))
	r.connected(lab.DefaultISP(0))
	r.must(r.WriteInterfaces("iface wan0 inet dhcp\n"))
	r.ifup("wan0")
	r.eventually(func() error { return r.ladder("wan0", lab.IPv4) })
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	r.must(err)
	found := 0
	for _, path := range commands {
		command, err := os.ReadFile(path)
		if err != nil || string(command) != "/usr/sbin/multihomed-dispatcher\x00stand-in\x00" {
			continue
		}
		found++
		status, err := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		r.must(err)
		for _, line := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000001000\n", "CapPrm:\t0000000000001000\n"} {
			if !strings.Contains(string(status), line) {
				t.Errorf("no %q in\n%s", line, status)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d processes stand in", found)
	}
	if status, _ := r.ctl("status"); !strings.Contains(status, "multihomed is not running") {
		t.Errorf("status takes it for the daemon:\n%s", status)
	}
	r.unplugged("none") // As root, in the midst of it.
	for _, directory := range []string{r.cfg.StateDir, r.cfg.RuntimeDir} {
		r.must(filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
			var stat syscall.Stat_t
			if err == nil {
				err = syscall.Lstat(path, &stat)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // The stand-in works: it replaces files.
			}
			if err != nil {
				return err
			}
			// The owner of the directory may replace files that root wrote into it.
			if stat.Uid != nobody && filepath.Dir(path) != filepath.Join(r.cfg.RuntimeDir, hookstate.Directory) {
				t.Errorf("%s belongs to %d", path, stat.Uid)
			}
			return nil
		}))
	}
}
