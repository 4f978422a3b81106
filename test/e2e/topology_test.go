package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// static is a provider without DHCP and RA, and the settings of a link that has
// an address in its network.
func static(n int) (lab.ISPConfig, []string) {
	cfg := lab.DefaultISP(n)
	cfg.NoDHCP, cfg.NoRA, cfg.IPv6 = true, true, netip.Prefix{}
	addr := cfg.IPv4.Addr().As4()
	addr[3] = 50
	return cfg, staticSettings(netip.PrefixFrom(netip.AddrFrom4(addr), 24), cfg.IPv4.Addr())
}

// keyfile is the link's settings of static in keyfile syntax.
func keyfile(n int) []string {
	return []string{
		"ipv4.method=manual", fmt.Sprintf("ipv4.address1=100.64.%d.50/24,100.64.%d.1", n, n), "ipv6.method=disabled",
	}
}

func staticSettings(addr netip.Prefix, gateway netip.Addr) []string {
	settings := []string{"ipv6.method", "disabled", "ipv4.method", "manual", "ipv4.addresses", addr.String()}
	if gateway.IsValid() {
		settings = append(settings, "ipv4.gateway", gateway.String())
	}
	return settings
}

// ip runs iproute2's ip.
func (r *rig) ip(args ...string) {
	r.t.Helper()
	_, err := r.IP(r.t.Context(), args...)
	r.must(err)
}

// address waits for a link's address.
func (r *rig) address(link string, f lab.Family) netip.Addr {
	r.t.Helper()
	a, err := r.WaitAddr(r.t.Context(), link, f)
	r.must(err)
	return a
}

// defaults waits until main has a default of each family through links: NetworkManager calls a link
// activated when one family is there, and adds routes after addresses.
func (r *rig) defaults(links ...string) {
	r.t.Helper()
	for _, f := range families {
		labtest.Eventually(r.t, func() error {
			main, err := r.RoutesText(r.t.Context(), f, "main")
			if err != nil {
				return err
			}
			// Defaults of two links with one metric are one route with two next hops.
			lines := strings.Split(strings.ReplaceAll(main, "\n\tnexthop", " nexthop"), "\n")
			for _, link := range links {
				if !slices.ContainsFunc(lines, func(l string) bool {
					return strings.Contains(l, "default ") && strings.Contains(l+" ", " dev "+link+" ")
				}) {
					return fmt.Errorf("main has no %v default through %s:\n%s", f, link, main)
				}
			}
			return nil
		})
	}
}

// answeredBy proves with packets that a bound socket gets an answer.
func (r *rig) answeredBy(who string, from lab.From, dst netip.Addr) {
	r.t.Helper()
	for name, dial := range map[string]func(context.Context, lab.From, netip.Addr) (lab.Answer, error){"udp": lab.DialUDP, "tcp": lab.DialTCP} {
		answer, err := dial(r.t.Context(), from, dst)
		if err != nil {
			r.t.Errorf("%s to %s: %v", name, who, err)
		} else if answer.ISP != who {
			r.t.Errorf("%s from %v to %v was answered by %s, not by %s", name, from, dst, answer.ISP, who)
		}
	}
}

// standing waits until the kernel is as planned and a link has the rung of
// sources for an address, or has not.
func (r *rig) standing(addr netip.Addr, want bool) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		if err := v.Converged(); err != nil {
			return err
		}
		has := false
		for _, p := range plans(v.Planner) {
			for _, rule := range p.Rules {
				has = has || rule.Rule.Priority == routing.PrioritySource && rule.Rule.From.Contains(addr)
			}
		}
		if has != want {
			return fmt.Errorf("a source rule for %v: %t", addr, has)
		}
		return nil
	})
}

func plans(p routing.Plans) []routing.LinkPlan { return slices.Collect(p.Links()) }

// TestContainers: hosts behind a bridge of the host are reachable from the
// addresses of the uplinks and reaches out, also where the bridge's network lies
// inside an uplink's (peers.md, pain 1).
func TestContainers(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, Sysctls: []string{
		"net.ipv4.ip_forward", "1", "net.ipv6.conf.all.forwarding", "1",
	}}, "")
	isp0, isp1 := r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))
	docker, err := r.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	r.must(err)
	r.must(docker.AddAddr(netip.MustParsePrefix("fd17::1/64")))
	inner, err := r.NewBridge("virbr0", netip.MustParsePrefix("100.64.0.65/27"))
	r.must(err)
	c0, err := docker.Container("c0", netip.MustParsePrefix("172.17.0.2/16"))
	r.must(err)
	r.must(c0.AddAddr("eth0", netip.MustParsePrefix("fd17::2/64")))
	r.must(c0.AddRoute(lab.DefaultVia(netip.MustParseAddr("fd17::1")), "eth0"))
	c1, err := inner.Container("c1", netip.MustParsePrefix("100.64.0.66/27"))
	r.must(err)

	r.up("wan0", "wan1")
	r.start()
	for _, link := range []string{"wan0", "wan1"} {
		r.address(link, lab.IPv6)
	}
	r.settled("wan0", "wan1")

	for _, link := range []string{"wan0", "wan1"} {
		v4, v6 := lab.From{Addr: r.address(link, lab.IPv4)}, lab.From{Addr: r.address(link, lab.IPv6)}
		r.answeredBy("c0", v4, netip.MustParseAddr("172.17.0.2"))
		r.answeredBy("c0", v6, netip.MustParseAddr("fd17::2"))
		r.answeredBy("c1", v4, netip.MustParseAddr("100.64.0.66"))
	}
	// Main's default leads through wan0; the provider knows the way back.
	r.must(isp0.RouteTo(netip.MustParsePrefix("172.17.0.0/16"), r.address("wan0", lab.IPv4)))
	r.must(isp0.RouteTo(netip.MustParsePrefix("100.64.0.64/27"), r.address("wan0", lab.IPv4)))
	r.must(isp0.RouteTo(netip.MustParsePrefix("fd17::/64"), r.address("wan0", lab.IPv6)))
	for _, c := range []struct {
		ns  *lab.Namespace
		dst netip.Addr
	}{{c0, lab.InternetAddr4}, {c0, lab.InternetAddr6}, {c1, lab.InternetAddr4}, {c0, isp1.Config().IPv4.Addr()}} {
		if c.dst == isp1.Config().IPv4.Addr() {
			// On the link of the other uplink: main's connected route counts.
			r.must(isp1.RouteTo(netip.MustParsePrefix("172.17.0.0/16"), r.address("wan1", lab.IPv4)))
		}
		want := "isp0"
		if isp1.IPv4().Contains(c.dst) {
			want = "isp1"
		}
		answer, err := c.ns.Call(t.Context(), lab.From{}, "tcp", c.dst)
		if err != nil || answer.ISP != want {
			t.Errorf("%s to %v: answered by %q, %v", c.ns.Name(), c.dst, answer.ISP, err)
		}
	}
}

// TestSameAddressTwice: two modems that give the same address and have the same
// gateway. Only the device tells them apart.
func TestSameAddressTwice(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	addr := netip.MustParseAddr("192.168.8.100")
	for n := range 2 {
		cfg, _ := static(n)
		cfg.IPv4 = netip.MustParsePrefix("192.168.8.1/24")
		r.isp(cfg, staticSettings(netip.PrefixFrom(addr, 24), cfg.IPv4.Addr())...)
	}
	r.start()
	r.up("wan0", "wan1")
	r.standing(addr, true)
	both := func() {
		t.Helper()
		for n := range 2 {
			r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Device: fmt.Sprintf("wan%d", n)}, lab.InternetAddr4)
			r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Device: fmt.Sprintf("wan%d", n), Addr: addr}, lab.InternetAddr4)
		}
	}
	both()
	r.must(r.Down(t.Context(), "wan0"))
	r.standing(addr, true)
	r.answeredBy("isp1", lab.From{Addr: addr}, lab.InternetAddr4)
	r.up("wan0")
	r.settled()
	both()
}

// TestTwoCardsInOneNetwork: each card answers and sends by itself.
func TestTwoCardsInOneNetwork(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, Sysctls: []string{
		// What such a host needs in any case: each card answers ARP for its own.
		"net.ipv4.conf.all.arp_ignore", "1", "net.ipv4.conf.all.arp_announce", "2",
		"net.ipv4.conf.all.rp_filter", "1", "net.ipv4.conf.default.rp_filter", "1",
	}}, "")
	isp := r.isp(lab.DefaultISP(0))
	_, err := isp.AddLink(lab.LinkConfig{Name: "wan1"})
	r.must(err)
	r.must(r.AddProfile(t.Context(), "wan1", "wan1"))
	r.must(r.ServeEcho())
	r.start()
	r.up("wan0", "wan1")
	for _, link := range []string{"wan0", "wan1"} {
		r.standing(r.address(link, lab.IPv4), true)
		r.standing(r.address(link, lab.IPv6), true)
	}
	r.defaults("wan0", "wan1")
	r.settled()
	capture, err := isp.Capture()
	r.must(err)
	for _, link := range []string{"wan0", "wan1"} {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			capture.Reset()
			src := r.address(link, f)
			on, client := isp.Config().IPv4.Addr(), isp.Client4
			if f == lab.IPv6 {
				on, client = isp.Config().IPv6.Addr(), isp.Client6
			}
			r.answeredBy("isp0", lab.From{Addr: src}, lab.InternetAddr(f))
			r.answeredBy("isp0", lab.From{Addr: src}, on)
			r.answeredBy("isp0", lab.From{Device: link}, lab.InternetAddr(f))
			if answer, err := isp.Call(t.Context(), client, src); err != nil || answer.ISP != "host" {
				t.Errorf("inbound TCP to %v of %s: %+v, %v", src, link, answer, err)
			}
			strays, err := capture.Matching(func(p lab.Packet) bool { return p.Src == src && p.Link != link })
			r.must(err)
			if len(strays) > 0 {
				t.Errorf("packets of %s by the other card:\n%s", link, lab.FormatPackets(strays))
			}
		}
	}
}

// TestNeverDefault: a profile that keeps its default out of main has it in its
// own table.
func TestNeverDefault(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	r.isp(cfg0, settings0...)
	cfg1 := lab.DefaultISP(1)
	cfg1.IPv6 = netip.Prefix{}
	isp1 := r.isp(cfg1, "ipv6.method", "disabled", "ipv4.never-default", "yes")
	r.must(r.ServeEcho())
	r.start()
	r.up("wan0", "wan1")
	addr := r.address("wan1", lab.IPv4)
	r.standing(addr, true)
	labtest.Eventually(t, func() error { return r.ladderWithout("91000", "wan1", lab.IPv4) })
	main, err := r.RoutesText(t.Context(), lab.IPv4, "main")
	r.must(err)
	for line := range strings.Lines(main) {
		if strings.Contains(line, "default") && strings.Contains(line, "wan1") {
			t.Errorf("main got a default through wan1: %s", line)
		}
	}
	r.answeredBy("isp1", lab.From{Addr: addr}, lab.InternetAddr4)
	r.answeredBy("isp1", lab.From{Device: "wan1"}, lab.InternetAddr4)
	r.answeredBy("isp0", lab.From{}, lab.InternetAddr4)
	if answer, err := isp1.Call(t.Context(), isp1.Client4, addr); err != nil || answer.ISP != "host" {
		t.Errorf("inbound TCP: %+v, %v", answer, err)
	}
	// Without a default in main nothing leaves by a link that is never one: that is
	// how kill switches are made.
	r.must(r.Down(t.Context(), "wan0"))
	r.settled()
	if answer, err := lab.DialUDP(t.Context(), lab.From{}, lab.InternetAddr4); err == nil {
		t.Errorf("unbound traffic was answered by %s", answer.ISP)
	}
	r.answeredBy("isp1", lab.From{Addr: addr}, lab.InternetAddr4)
}

// TestVPNRoutes: the halves that VPN clients use as a default do not catch what
// is bound to a link; the VPN's own networks do.
func TestVPNRoutes(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:vpn0\n"}, "")
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	vpn := labtest.NewISP(t, r.Host, lab.ISPConfig{
		Name: "vpn", Link: "vpn0", NoDHCP: true, NoRA: true,
		IPv4: netip.MustParsePrefix("10.99.0.1/24"), IPv6: netip.MustParsePrefix("fd99::1/64"),
	})
	r.must(vpn.Link().SetUp(true))
	r.must(r.AddAddr("vpn0", "10.99.0.2/24"))
	r.must(r.AddAddr("vpn0", "fd99::2/64"))
	for _, half := range []string{"0.0.0.0/1", "128.0.0.0/1", "10.98.0.0/16"} {
		r.ip("route", "add", half, "via", "10.99.0.1", "dev", "vpn0")
	}
	for _, half := range []string{"::/1", "8000::/1", "fd98::/64"} {
		r.ip("-6", "route", "add", half, "via", "fd99::1", "dev", "vpn0")
	}
	for _, a := range []string{"10.98.0.1", "fd98::1"} {
		r.must(vpn.Serve(netip.MustParseAddr(a)))
	}
	r.start()
	r.up("wan0", "wan1")
	for n := range 2 {
		link := fmt.Sprintf("wan%d", n)
		v4, v6 := r.address(link, lab.IPv4), r.address(link, lab.IPv6)
		r.must(vpn.RouteTo(netip.PrefixFrom(v4, 32), netip.MustParseAddr("10.99.0.2")))
		r.must(vpn.RouteTo(netip.PrefixFrom(v6, 128), netip.MustParseAddr("fd99::2")))
		r.standing(v4, true)
		r.standing(v6, true)
		r.settled(link)
		isp := fmt.Sprintf("isp%d", n)
		r.answeredBy(isp, lab.From{Addr: v4}, lab.InternetAddr4)
		r.answeredBy(isp, lab.From{Addr: v6}, lab.InternetAddr6)
		r.answeredBy("vpn", lab.From{Addr: v4}, netip.MustParseAddr("10.98.0.1"))
		r.answeredBy("vpn", lab.From{Addr: v6}, netip.MustParseAddr("fd98::1"))
	}
	r.answeredBy("vpn", lab.From{}, lab.InternetAddr4)
	r.answeredBy("vpn", lab.From{}, lab.InternetAddr6)
}

// TestOverlappingLocalLink: an uplink and a local link in one prefix; the
// addresses of each reach their own neighbours.
func TestOverlappingLocalLink(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	isp0 := r.isp(cfg0, settings0...)
	cfgLAN, _ := static(0)
	cfgLAN.Name, cfgLAN.Link = "lan", "lan0"
	addrLAN := netip.MustParsePrefix("100.64.0.60/24")
	lan := r.isp(cfgLAN, staticSettings(addrLAN, netip.Addr{})...)
	neighbour := netip.MustParseAddr("100.64.0.9")
	r.must(isp0.Serve(neighbour))
	r.must(lan.Serve(neighbour))
	r.start()
	// In either order, main has both networks.
	for _, order := range [][]string{{"wan0", "lan0"}, {"lan0", "wan0"}} {
		r.up(order...)
		r.standing(netip.MustParseAddr("100.64.0.50"), true)
		r.standing(addrLAN.Addr(), true)
		r.answeredBy("isp0", lab.From{Addr: netip.MustParseAddr("100.64.0.50")}, neighbour)
		r.answeredBy("isp0", lab.From{Addr: netip.MustParseAddr("100.64.0.50")}, lab.InternetAddr4)
		r.answeredBy("lan", lab.From{Addr: addrLAN.Addr()}, neighbour)
		r.answeredBy("lan", lab.From{Device: "lan0"}, neighbour)
		for _, p := range order {
			r.must(r.Down(t.Context(), p))
		}
		r.settled()
	}
}

// TestControllers: a bridge (and a bond where the kernel has bonding) is a link,
// its ports are none.
func TestControllers(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	kinds := []string{"bridge"}
	if _, err := r.IP(t.Context(), "link", "add", "probe0", "type", "bond"); err == nil {
		r.ip("link", "delete", "probe0")
		kinds = append(kinds, "bond")
	}
	r.isp(lab.DefaultISP(1))
	r.start()
	r.up("wan1")
	for n, kind := range kinds {
		cfg := lab.DefaultISP(2 + n)
		labtest.NewISP(t, r.Host, cfg)
		device := kind + "0"
		args := []string{"connection", "add", "type", kind, "con-name", device, "ifname", device, "autoconnect", "no"}
		if kind == "bridge" {
			args = append(args, "bridge.stp", "no")
		}
		_, err := r.NMCLI(t.Context(), args...)
		r.must(err)
		r.must(r.AddProfile(t.Context(), "port-"+kind, cfg.Link, "connection.master", device, "connection.slave-type", kind))
		r.up("port-" + kind)
		r.address(device, lab.IPv6)
		v := r.settled("wan1", device)
		if c := v.Claims[cfg.Link]; c.Standing != reconcile.NoLink || !strings.Contains(c.Why, "port of "+device) {
			t.Errorf("port %s of %s: %+v", cfg.Link, device, c)
		}
		r.answeredBy(cfg.Name, lab.From{Addr: r.address(device, lab.IPv4)}, lab.InternetAddr4)
		r.answeredBy(cfg.Name, lab.From{Addr: r.address(device, lab.IPv6)}, lab.InternetAddr6)
		rules, err := r.RulesText(t.Context(), lab.IPv4)
		r.must(err)
		if strings.Contains(rules, cfg.Link) {
			t.Errorf("a rule names port %s:\n%s", cfg.Link, rules)
		}
	}
}

// TestNotOurs: what the configuration excludes, what a profile asks to ignore,
// and what a profile has given a table already.
func TestNotOurs(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[[exclude]]\ninterface = \"wan1\"\n")
	for n := range 4 {
		cfg, settings := static(n)
		switch n {
		case 2: // nmcli does not know the setting; a keyfile does
			labtest.NewISP(t, r.Host, cfg)
			r.must(r.WriteProfile("wan2", "wan2", append(keyfile(n), "user.multihomed.ignore=true")...))
			r.must(r.ReloadProfiles(t.Context()))
			continue
		case 3:
			settings = append(settings, "ipv4.route-table", "10001")
		}
		r.isp(cfg, settings...)
	}
	r.start()
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(n), 50}) }
	r.up("wan0", "wan1", "wan2", "wan3")
	for n := range 4 {
		r.standing(addr(n), n == 0)
	}
	v := r.settled()
	for link, why := range map[string]string{"wan1": "the configuration excludes", "wan2": "multihomed.ignore"} {
		if c := v.Claims[link]; c.Standing != reconcile.NoLink || !strings.Contains(c.Why, why) {
			t.Errorf("%s: %+v, want %q", link, c, why)
		}
	}
	said := false
	for _, p := range plans(v.Planner) {
		for _, problem := range p.Problems {
			said = said || problem.Link == "wan3" && problem.Severity == routing.Notice && strings.Contains(problem.Text, "left alone")
		}
	}
	if !said {
		t.Error("status gives no reason why wan3 is left alone")
	}
	// NetworkManager's routes in the table that the profile names stay alone
	// there, although the number is in our range.
	routes, err := r.RoutesText(t.Context(), lab.IPv4, "10001")
	r.must(err)
	if !strings.Contains(routes, "wan3") || strings.Contains(routes, "proto 150") {
		t.Errorf("table 10001 is wan3's own:\n%s", routes)
	}
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(t.Context(), f)
		r.must(err)
		for _, link := range []string{"wan1", "wan2", "wan3"} {
			if strings.Contains(rules, link) {
				t.Errorf("a rule names %s:\n%s", link, rules)
			}
		}
	}

	// The administrator reverts the change, in both directions.
	r.writeConfig(fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n[[exclude]]\ninterface = \"wan0\"\n", r.cfg.StateDir, r.cfg.RuntimeDir))
	r.must(r.daemon.Signal(syscall.SIGHUP))
	r.standing(addr(0), false)
	r.standing(addr(1), true)
	r.must(r.WriteProfile("wan2", "wan2", keyfile(2)...))
	r.must(r.ReloadProfiles(t.Context()))
	r.up("wan2")
	r.standing(addr(2), true)
	r.must(r.Modify(t.Context(), "wan3", "ipv4.route-table", "0"))
	r.up("wan3")
	r.standing(addr(3), true)
	r.answeredBy("isp3", lab.From{Addr: addr(3)}, lab.InternetAddr4)
}

// TestGatewayOutsideOfPrefix: an address without a network, and a gateway that
// is in none of the link's networks.
func TestGatewayOutsideOfPrefix(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	r.isp(cfg0, settings0...)
	cfg1, _ := static(1)
	isp1 := r.isp(cfg1, staticSettings(netip.MustParsePrefix("203.0.113.200/32"), cfg1.IPv4.Addr())...)
	cfg2 := lab.DefaultISP(2)
	cfg2.IPv6, cfg2.Gateway = netip.Prefix{}, netip.MustParseAddr("192.0.2.254")
	r.isp(cfg2, "ipv6.method", "disabled")
	r.must(isp1.Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("203.0.113.200/32")}, "lan"))
	r.start()
	r.up("wan0", "wan1", "wan2")
	for n := range 3 {
		addr := r.address(fmt.Sprintf("wan%d", n), lab.IPv4)
		r.standing(addr, true)
		labtest.Eventually(t, func() error {
			_, err := lab.DialUDP(t.Context(), lab.From{Addr: addr}, lab.InternetAddr4)
			return err
		})
		r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Addr: addr}, lab.InternetAddr4)
		r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Device: fmt.Sprintf("wan%d", n)}, lab.InternetAddr4)
	}
	r.settled()
}

// TestAdditionalAddress: an address of another network without a gateway of its
// own uses the device's; so does a secondary of the first network.
func TestAdditionalAddress(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	r.isp(cfg0, settings0...)
	cfg1, settings1 := static(1)
	isp1 := r.isp(cfg1, append(settings1, "+ipv4.addresses", "100.64.1.51/24,198.18.7.5/24")...)
	r.must(isp1.RouteTo(netip.MustParsePrefix("198.18.7.0/24"), netip.MustParseAddr("100.64.1.50")))
	r.start()
	r.up("wan0", "wan1")
	for _, a := range []string{"100.64.1.50", "100.64.1.51", "198.18.7.5"} {
		addr := netip.MustParseAddr(a)
		r.standing(addr, true)
		r.answeredBy("isp1", lab.From{Addr: addr}, lab.InternetAddr4)
		r.answeredBy("isp1", lab.From{Addr: addr, Device: "wan1"}, lab.InternetAddr4)
	}
	// One more behind NetworkManager's back, and gone again.
	r.ip("address", "add", "100.64.1.52/24", "dev", "wan1")
	r.standing(netip.MustParseAddr("100.64.1.52"), true)
	r.answeredBy("isp1", lab.From{Addr: netip.MustParseAddr("100.64.1.52")}, lab.InternetAddr4)
	r.ip("address", "delete", "100.64.1.52/24", "dev", "wan1")
	r.standing(netip.MustParseAddr("100.64.1.52"), false)
}

// TestPointToPoint: an address with a peer and a default without a next hop, as
// PPP has it.
func TestPointToPoint(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	r.isp(cfg0, settings0...)
	cfg1, _ := static(1)
	isp1 := r.isp(cfg1, "ipv4.method", "disabled", "ipv6.method", "link-local")
	r.start()
	r.up("wan0", "wan1")
	r.ip("address", "add", "10.64.1.2", "peer", "10.64.1.1/32", "dev", "wan1")
	r.ip("route", "add", "default", "dev", "wan1", "metric", "700")
	r.must(isp1.Serve(netip.MustParseAddr("10.64.1.1")))
	r.must(isp1.Namespace().AddRoute(lab.Route{Dst: netip.MustParsePrefix("10.64.1.2/32")}, "lan"))
	addr := netip.MustParseAddr("10.64.1.2")
	r.standing(addr, true)
	r.answeredBy("isp1", lab.From{Addr: addr}, lab.InternetAddr4)
	r.answeredBy("isp1", lab.From{Addr: addr}, netip.MustParseAddr("10.64.1.1"))
	r.answeredBy("isp1", lab.From{Device: "wan1"}, lab.InternetAddr4)
	r.answeredBy("isp0", lab.From{}, lab.InternetAddr4)
	r.settled()
}
