package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
)

// prefixes of the addresses that steps add.
var extra = netip.MustParsePrefix("100.64.0.77/24")

// uplinks is a host with two providers, both up, and the daemon.
func uplinks(t *testing.T, host lab.HostConfig, change func(*lab.ISPConfig)) (w *watched, isp0 *lab.ISP) {
	t.Helper()
	r := newRig(t, host, "")
	cfg := lab.DefaultISP(0)
	if change != nil {
		change(&cfg)
	}
	isp0 = r.isp(cfg)
	r.isp(lab.DefaultISP(1))
	r.up("wan0", "wan1")
	r.start()
	w = r.watch()
	w.step("start on links that are up", func() {}, both("wan0", "wan1")...)
	return w, isp0
}

// TestProfilesConverge tries all changes of nmcli to a link.
func TestProfilesConverge(t *testing.T) {
	w, isp0 := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	ctx := t.Context()
	all := both("wan0", "wan1")
	uplink0 := func() { w.up("wan0") }

	w.step("con up", func() { w.must(w.Down(ctx, "wan0")); uplink0() }, all...)
	w.step("con up on an active link", uplink0, all...)
	w.step("con down", func() { w.must(w.Down(ctx, "wan0")) }, both("wan1")...)
	w.step("con up again", uplink0, all...)

	static := []string{
		"ipv4.method", "manual", "ipv4.addresses", "100.64.0.50/24,10.77.0.5/24", "ipv4.gateway", "100.64.0.1", "ipv4.routes", "10.99.0.0/16 100.64.0.9",
		"ipv6.method", "manual", "ipv6.addresses", "2001:db8:0:1::50/64", "ipv6.gateway", "2001:db8:0:1::1",
	}
	w.must(w.AddProfile(ctx, "static", "wan0", static...))
	w.stepUntil("switch to another profile", func() { w.up("static") }, func() error {
		return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv4, "default via 100.64.0.1 ", "10.99.0.0/16 via 100.64.0.9 "))
	})
	w.stepUntil("device reapply after a change", func() {
		w.must(w.Modify(ctx, "static", "ipv4.addresses", "100.64.0.51/24", "ipv4.gateway", "100.64.0.2", "ipv4.routes", "10.98.0.0/16 100.64.0.9", "ipv6.gateway", "2001:db8:0:1::2"))
		w.must(w.Reapply(ctx, "wan0"))
	}, func() error {
		return errors.Join(w.holds(all...),
			w.tableHas("wan0", lab.IPv4, "default via 100.64.0.2 ", "10.98.0.0/16 via 100.64.0.9 ", "!10.99.0.0", "src 100.64.0.51"),
			w.tableHas("wan0", lab.IPv6, "default via 2001:db8:0:1::2 "))
	})
	w.step("switch back", uplink0, all...)

	w.stepUntil("device modify adds an address", func() {
		w.must(w.ModifyDevice(ctx, "wan0", "+ipv4.addresses", extra.String()))
	}, func() error { return errors.Join(w.holds(all...), w.hasSource(extra)) })
	w.stepUntil("device modify adds a route", func() {
		w.must(w.ModifyDevice(ctx, "wan0", "+ipv4.routes", "10.55.0.0/16 100.64.0.3", "+ipv6.routes", "fd55::/32 fe80::55"))
	}, func() error {
		return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv4, "10.55.0.0/16 via 100.64.0.3 "), w.tableHas("wan0", lab.IPv6, "fd55::/32 via fe80::55 "))
	})
	w.stepUntil("device modify removes the route", func() {
		w.must(w.ModifyDevice(ctx, "wan0", "-ipv4.routes", "10.55.0.0/16 100.64.0.3", "-ipv6.routes", "fd55::/32 fe80::55"))
	}, func() error {
		return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv4, "!10.55"), w.tableHas("wan0", lab.IPv6, "!fd55"))
	})
	w.stepUntil("device modify removes the address", func() {
		w.must(w.ModifyDevice(ctx, "wan0", "-ipv4.addresses", extra.String()))
	}, func() error {
		if w.hasSource(extra) == nil {
			return fmt.Errorf("%s still has a rule", extra)
		}
		return w.holds(all...)
	})
	w.step("profile deleted while active", func() {
		w.must(w.AddProfile(ctx, "passing", "wan0"))
		w.up("passing")
		w.must(w.Delete(ctx, "passing"))
	}, both("wan1")...)
	w.step("and the other one up", uplink0, all...)
	w.must(w.WriteProfile("ignored", "wan0", "user.multihomed.ignore=true"))
	w.must(w.ReloadProfiles(ctx))
	w.step("a profile that says multihomed.ignore", func() { w.up("ignored") }, both("wan1")...)
	w.step("a profile that does not", uplink0, all...)
	for _, c := range []struct{ metric, first, last string }{{"50", "wan0", "wan1"}, {"20100", "wan1", "wan0"}, {"50", "wan0", "wan1"}} {
		from := w.monitor.barrier()
		w.stepUntil("metric "+c.metric, func() {
			w.must(w.ModifyDevice(ctx, "wan0", "ipv4.route-metric", c.metric))
		}, func() error { return errors.Join(w.holds(all...), w.lastResorts(c.first, c.last)) })
		for _, e := range w.monitor.from(from) {
			if e.own && strings.Contains(e.text, "route family 2 ") {
				t.Errorf("a metric of main changed our tables:\n%s", w.monitor.text(from))
				break
			}
		}
	}
	w.step("the provider goes away with its cable", func() { w.must(isp0.Link().Delete()) }, both("wan1")...)
	w.step("and comes back", func() {
		w.must(isp0.Link().Recreate())
		w.must(w.WaitDeviceState(ctx, "wan0", "disconnected"))
		uplink0()
	}, all...)
}

// lastResorts checks the order of the rules of last resort.
func (r *rig) lastResorts(links ...string) error {
	rules, err := r.RulesText(r.t.Context(), lab.IPv4)
	if err != nil {
		return err
	}
	devices := map[string]string{}
	var have []string
	for line := range strings.Lines(rules) {
		switch words := strings.Fields(line); words[0] {
		case "9500:":
			devices[word(words, "lookup")] = word(words, "oif")
		case "91000:":
			have = append(have, devices[word(words, "lookup")])
		}
	}
	if !slices.Equal(have, links) {
		return fmt.Errorf("last resorts are %v, not %v:\n%s", have, links, rules)
	}
	return nil
}

// hasSource reports the source rule of an address of wan0.
func (r *rig) hasSource(a netip.Prefix) error {
	const link = "wan0"
	f := lab.IPv4
	if a.Addr().Is6() {
		f = lab.IPv6
	}
	rules, err := r.RulesText(r.t.Context(), f)
	if err != nil {
		return err
	}
	if tableOf(rules, link, sourceText(f, a)) == "" {
		return fmt.Errorf("no source rule for %s of %s:\n%s", a, link, rules)
	}
	return nil
}

// TestProvidersConverge tries all changes of providers to a link.
func TestProvidersConverge(t *testing.T) {
	w, isp0 := uplinks(t, lab.HostConfig{FastDAD: true}, func(c *lab.ISPConfig) { c.Lease, c.Renew = 2*time.Minute, 3*time.Second })
	ctx := t.Context()
	all := both("wan0", "wan1")
	ra := isp0.RA()
	other := netip.MustParsePrefix("2001:db8:0:a1::/64")
	with := func(prefixes ...lab.RAPrefix) lab.RA { out := ra; out.Prefixes = prefixes; return out }
	lasting := func(p netip.Prefix) lab.RAPrefix {
		return lab.RAPrefix{Prefix: p, Valid: 24 * time.Hour, Preferred: 4 * time.Hour}
	}

	w.stepUntil("DHCP renewal to another address and gateway", func() {
		w.must(isp0.Reconfigure(ctx, func(c *lab.ISPConfig) {
			c.PoolFirst, c.PoolLast = netip.MustParseAddr("100.64.0.210"), netip.MustParseAddr("100.64.0.211")
			c.Gateway = netip.MustParseAddr("100.64.0.9")
		}))
		_, err := w.WaitAddrIn(ctx, "wan0", netip.MustParsePrefix("100.64.0.208/28"))
		w.must(err)
	}, func() error {
		return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv4, "default via 100.64.0.9 "))
	})
	w.stepUntil("DHCP renewal into another network", func() {
		w.must(isp0.Reconfigure(ctx, func(c *lab.ISPConfig) {
			c.IPv4 = netip.MustParsePrefix("100.64.200.1/24")
			c.PoolFirst, c.PoolLast, c.Gateway = netip.Addr{}, netip.Addr{}, netip.Addr{}
		}))
		_, err := w.WaitAddrIn(ctx, "wan0", netip.MustParsePrefix("100.64.200.0/24"))
		w.must(err)
	}, func() error {
		return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv4, "default via 100.64.200.1 "))
	})
	w.must(isp0.Reconfigure(ctx, func(c *lab.ISPConfig) { c.Renew = 0 })) // quiet from now on
	w.up("wan0")
	w.converged("without renewals", func() error { return w.holds(all...) })
	w.settledAt = w.monitor.barrier()

	w.stepUntil("router lifetime ends", func() {
		gone := ra
		gone.RouterLifetime = 0
		w.must(isp0.SetRA(gone))
	}, func() error {
		// The link stays an uplink, so its packets do not stray.
		rules, err := w.RulesText(ctx, lab.IPv6)
		if err == nil && !strings.Contains(rules, "from "+isp0.IPv6().String()+" iif lo 7 proto 150") {
			err = fmt.Errorf("the rule against stray packets is gone:\n%s", rules)
		}
		return errors.Join(err, w.tableHas("wan0", lab.IPv6, "!default", isp0.IPv6().String()+" dev wan0"), w.ladder("wan0", lab.IPv4))
	})
	w.step("router comes back for a moment", func() { w.must(isp0.SetRA(ra)) }, all...)
	w.stepUntil("router lifetime runs out", func() {
		brief := ra
		brief.RouterLifetime = 2 * time.Second
		w.must(isp0.SetRA(brief))
		w.eventually(func() error {
			main, err := w.RoutesText(ctx, lab.IPv6, "main")
			if err == nil && strings.Contains(main, "default via fe80::1a:a4ff:fe57:4f89 dev wan0") {
				err = fmt.Errorf("still there:\n%s", main)
			}
			return err
		})
	}, func() error { return w.tableHas("wan0", lab.IPv6, "!default", isp0.IPv6().String()+" dev wan0") })
	w.step("router comes back", func() { w.must(isp0.SetRA(ra)) }, all...)
	w.stepUntil("router prefers to be used less", func() {
		low := ra
		low.Preference = lab.PreferenceLow
		w.must(isp0.SetRA(low))
	}, func() error { return errors.Join(w.holds(all...), w.tableHas("wan0", lab.IPv6, "pref low")) })
	// RFC 4862, section 5.5.3 e: a lifetime cannot be shortened below two hours.
	short := lab.RAPrefix{Prefix: other, Valid: 5 * time.Second, Preferred: 5 * time.Second}
	w.step("a second prefix", func() {
		w.must(isp0.SetRA(with(lasting(isp0.IPv6()), short)))
		_, err := w.WaitAddrIn(ctx, "wan0", other)
		w.must(err)
	}, all...)
	w.step("the second prefix ends", func() { w.eventually(func() error { return w.prefixes("wan0", isp0.IPv6()) }) }, all...)
	complete, without := false, append(both("wan1"), part{"wan0", lab.IPv4})
	w.stepUntil("activated with a short prefix", func() {
		w.must(isp0.SetRA(with(short)))
		w.up("wan0")
	}, func() error {
		err := w.holds(all...)
		if complete = complete || err == nil; complete && err != nil {
			err = w.holds(without...) // It has ended already.
		}
		return err
	})
	w.step("the only prefix ends", func() { w.eventually(func() error { return w.prefixes("wan0") }) }, without...)
	w.step("prefix comes back", func() { w.must(isp0.SetRA(ra)) }, all...)
}

// prefixes reports whether a link has other IPv6 networks than these.
func (r *rig) prefixes(link string, want ...netip.Prefix) error {
	addrs, err := r.Addrs(link, lab.IPv6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !slices.Contains(want, a.Masked()) {
			return fmt.Errorf("%s has %v", link, addrs)
		}
	}
	return nil
}

// TestCablesConverge pulls cables and sets interfaces down.
func TestCablesConverge(t *testing.T) {
	w, isp0 := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	ctx := t.Context()
	all := both("wan0", "wan1")
	link := isp0.Link()

	w.step("cable out and in", func() {
		w.must(link.SetCarrier(false))
		w.eventually(func() error { return w.carrier("wan0", false) })
		w.must(link.SetCarrier(true))
		w.eventually(func() error { return w.carrier("wan0", true) })
	}, all...)
	w.step("cable out for long", func() {
		w.must(link.SetCarrier(false))
		w.must(w.WaitDeviceState(ctx, "wan0", "unavailable"))
	}, both("wan1")...)
	w.step("cable in again", func() {
		w.must(link.SetCarrier(true))
		w.must(w.WaitDeviceState(ctx, "wan0", "disconnected"))
		w.up("wan0")
	}, all...)
	w.stepUntil("ip link set down", func() { w.must(link.SetUp(false)) }, func() error {
		return errors.Join(w.ladder("wan1", lab.IPv4), w.ladder("wan1", lab.IPv6))
	})
	w.step("ip link set up", func() {
		w.must(link.SetUp(true))
		// NetworkManager gives up a link that has been down for seconds.
		w.eventually(func() error {
			state, err := w.NMCLI(ctx, "-g", "GENERAL.STATE", "device", "show", "wan0")
			switch {
			case err != nil || strings.Contains(state, "(connected)"):
				return err
			case strings.Contains(state, "(disconnected)"):
				return w.Up(ctx, "wan0")
			}
			return fmt.Errorf("wan0 is %s", state)
		})
	}, all...)
	w.step("ip link set down and up at once", func() { w.must(link.SetUp(false)); w.must(link.SetUp(true)) }, all...)
	w.step("link deleted", func() { w.must(link.Delete()) }, both("wan1")...)
	w.step("link recreated", func() {
		w.must(link.Recreate())
		w.must(w.WaitDeviceState(ctx, "wan0", "disconnected"))
		w.up("wan0")
	}, all...)
	w.step("link deleted and recreated at once", func() {
		w.must(link.Delete())
		w.must(link.Recreate())
		w.must(w.WaitDeviceState(ctx, "wan0", "disconnected"))
		w.up("wan0")
	}, all...)
	w.step("renamed while it is down", func() {
		w.must(w.Down(ctx, "wan0"))
		w.must(link.SetUp(false))
		_, err := w.IP(ctx, "link", "set", "wan0", "name", "wan9")
		w.must(err)
	}, both("wan1")...)
}

func (r *rig) carrier(link string, want bool) error {
	out, err := r.IP(r.t.Context(), "link", "show", link)
	if err == nil && strings.Contains(out, "NO-CARRIER") == want {
		err = fmt.Errorf("carrier of %s is not %t: %s", link, want, out)
	}
	return err
}

// TestHandsConverge deletes objects of the daemon by hand.
func TestHandsConverge(t *testing.T) {
	w, _ := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	all := both("wan0", "wan1")
	ip := func(args ...string) {
		t.Helper()
		_, err := w.IP(t.Context(), args...)
		w.must(err)
	}
	table := func(link string, f lab.Family) string {
		t.Helper()
		rules, err := w.RulesText(t.Context(), f)
		w.must(err)
		for line := range strings.Lines(rules) {
			if words := strings.Fields(line); words[0] == "9500:" && word(words, "oif") == link {
				return word(words, "lookup")
			}
		}
		t.Fatalf("%s has no %v table", link, f)
		return ""
	}
	for _, f := range []struct {
		flag   string
		family lab.Family
	}{{"-4", lab.IPv4}, {"-6", lab.IPv6}} {
		w.step(f.flag+" rule flush", func() {
			// ip deletes one rule after the other, and gives up when the daemon was first with one.
			w.eventually(func() error {
				_, err := w.IP(t.Context(), f.flag, "rule", "flush")
				return err
			})
			// It takes main's rule along, which is the administrator's to repair.
			ip(f.flag, "rule", "add", "priority", "32766", "lookup", "main")
		}, all...)
		w.step(f.flag+" route flush of a table", func() { ip(f.flag, "route", "flush", "table", table("wan0", f.family)) }, all...)
		w.step(f.flag+" a single rule deleted", func() { ip(f.flag, "rule", "delete", "priority", "9500", "oif", "wan0") }, all...)
		w.step(f.flag+" the containers' rule deleted", func() { ip(f.flag, "rule", "delete", "priority", "9020") }, all...)
		w.step(f.flag+" an orphan of ours", func() {
			ip(f.flag, "rule", "add", "priority", "10000", "from", map[string]string{"-4": "192.0.2.99", "-6": "2001:db8:99::/64"}[f.flag], "lookup", "10777", "protocol", "150")
			ip(f.flag, "route", "add", "default", "dev", "wan0", "table", "10777", "protocol", "150")
		}, all...)
		w.step(f.flag+" the default replaced", func() {
			ip(f.flag, "route", "replace", "default", "via", map[string]string{"-4": "100.64.0.250", "-6": "fe80::250"}[f.flag], "dev", "wan0", "table", table("wan0", f.family),
				"protocol", "150", "metric", map[string]string{"-4": "0", "-6": "1024"}[f.flag])
		}, all...)
	}
	w.step("group reset", func() { ip("link", "set", "wan0", "group", "default") }, all...)
	w.step("address by hand", func() { w.must(w.AddAddr("wan0", extra.String())) }, all...)
	w.step("address by hand away", func() { ip("address", "delete", extra.String(), "dev", "wan0") }, all...)
}
