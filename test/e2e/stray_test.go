package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestBoundTrafficNeverStrays is promise 3, measured on the wire at every
// provider while everything happens that can happen to three links.
// MULTIHOMED_E2E_SEED and _SECONDS choose another sequence and a longer one.
func TestBoundTrafficNeverStrays(t *testing.T) {
	random, seconds := seeded(t), 40
	if s := os.Getenv("MULTIHOMED_E2E_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		seconds = n
	}
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	const links = 3
	var isps []*lab.ISP
	sources := map[string][]netip.Prefix{}
	var others []netip.Addr
	for n := range links {
		cfg := lab.DefaultISP(n)
		cfg.Lease, cfg.Renew = 2*time.Minute, 3*time.Second
		isp := labtest.NewISP(t, r.Host, cfg)
		isps = append(isps, isp)
		// Not the interface's name: that is what NetworkManager calls a profile
		// that it makes up for a device which it finds configured.
		r.must(r.AddProfile(t.Context(), profile(n), cfg.Link))
		// Another profile for the same device, static in IPv4.
		r.must(r.AddProfile(t.Context(), alternative(n), cfg.Link, "ipv4.method", "manual",
			"ipv4.addresses", fmt.Sprintf("100.64.%d.60/24", n), "ipv4.gateway", cfg.IPv4.Addr().String()))
		p4, p6 := renumbered(cfg)
		sources[cfg.Link] = []netip.Prefix{cfg.IPv4.Masked(), p4.Masked(), cfg.IPv6.Masked(), p6.Masked()}
		others = append(others, cfg.IPv4.Addr(), cfg.IPv6.Addr())
	}
	r.up(profile(0), profile(1), profile(2))
	r.start()
	for n := range links {
		r.address(fmt.Sprintf("wan%d", n), lab.IPv6)
	}
	r.settled("wan0", "wan1", "wan2")

	w := newWire(t, isps, sources, others...)
	storm := &storm{rig: r, isps: isps, random: random}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the events were:\n%s", strings.Join(storm.log, "\n"))
		}
	})
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
		storm.step()
	}
	t.Logf("%d events", len(storm.log))
	w.judged(int64(seconds) * 20)
	storm.calm()
	r.settled("wan0", "wan1", "wan2")
}

func profile(n int) string { return fmt.Sprintf("profile%d", n) }

func alternative(n int) string { return fmt.Sprintf("wan%d-alt", n) }

// renumbered is the other network of a provider, per family.
func renumbered(cfg lab.ISPConfig) (netip.Prefix, netip.Prefix) {
	four, six := cfg.IPv4.Addr().As4(), cfg.IPv6.Addr().As16()
	four[2] += 100
	six[4] = 1
	return netip.PrefixFrom(netip.AddrFrom4(four), cfg.IPv4.Bits()), netip.PrefixFrom(netip.AddrFrom16(six), cfg.IPv6.Bits())
}

// A storm does to the links what NetworkManager, providers, cables and
// administrators do.
type storm struct {
	*rig
	isps   []*lab.ISP
	random *rand.Rand
	log    []string
	moved  [8]bool
}

func (s *storm) note(format string, args ...any) {
	s.log = append(s.log, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// step is one thing that happens. Not everything succeeds: a profile cannot come
// up without a cable.
func (s *storm) step() {
	n := s.random.IntN(len(s.isps))
	isp, link := s.isps[n], fmt.Sprintf("wan%d", n)
	ctx := s.t.Context()
	type event struct {
		name string
		do   func() error
	}
	nmcli := func(args ...string) error {
		_, err := s.NMCLI(ctx, append([]string{"-w", "5"}, args...)...)
		return err
	}
	events := []event{
		{"up", func() error { return nmcli("connection", "up", profile(n)) }},
		{"up", func() error { return nmcli("connection", "up", profile(n)) }},
		{"down", func() error { return nmcli("device", "disconnect", link) }},
		{"down and up", func() error { _ = nmcli("device", "disconnect", link); return nmcli("connection", "up", profile(n)) }},
		{"other profile", func() error { return nmcli("connection", "up", alternative(n)) }},
		{"reapply", func() error {
			_ = nmcli("connection", "modify", profile(n), "+ipv4.addresses", fmt.Sprintf("100.64.%d.70/24", n), "+ipv4.routes", fmt.Sprintf("10.%d.0.0/16 100.64.%d.1", n, n))
			err := nmcli("device", "reapply", link)
			_ = nmcli("connection", "modify", profile(n), "ipv4.addresses", "", "ipv4.routes", "")
			return err
		}},
		{"reapply", func() error { return nmcli("device", "reapply", link) }},
		{"modify: add", func() error {
			return nmcli("device", "modify", link, "+ipv4.addresses", fmt.Sprintf("100.64.%d.71/24", n), "+ipv6.addresses", fmt.Sprintf("2001:db8:0:%x::71/64", n+1))
		}},
		{"modify: remove", func() error {
			return nmcli("device", "modify", link, "-ipv4.addresses", fmt.Sprintf("100.64.%d.71/24", n), "-ipv6.addresses", fmt.Sprintf("2001:db8:0:%x::71/64", n+1))
		}},
		{"metric penalty", func() error {
			return nmcli("device", "modify", link, "ipv4.route-metric", strconv.Itoa(20100+n), "ipv6.route-metric", strconv.Itoa(20100+n))
		}},
		{"metric normal", func() error {
			return nmcli("device", "modify", link, "ipv4.route-metric", "-1", "ipv6.route-metric", "-1")
		}},
		{"provider renumbers", func() error { return s.renumber(n) }},
		{"router's lifetime ends", func() error {
			ra := isp.RA()
			ra.RouterLifetime = 0
			return isp.SendRA(ra)
		}},
		{"prefix ends", func() error {
			ra := isp.RA()
			ra.Prefixes = slices.Clone(ra.Prefixes)
			for i := range ra.Prefixes {
				ra.Prefixes[i].Valid, ra.Prefixes[i].Preferred = 0, 0
			}
			return isp.SendRA(ra)
		}},
		{"router is back", func() error { return isp.SendRA(isp.RA()) }},
		{"carrier lost", func() error { return isp.Link().SetCarrier(false) }},
		{"carrier back", func() error { return isp.Link().SetCarrier(true) }},
		{"carrier flaps", func() error {
			if err := isp.Link().SetCarrier(false); err != nil {
				return err
			}
			return isp.Link().SetCarrier(true)
		}},
		{"link down", func() error { return isp.Link().SetUp(false) }},
		{"link up", func() error { return isp.Link().SetUp(true) }},
		{"link down and up", func() error {
			if err := isp.Link().SetUp(false); err != nil {
				return err
			}
			return isp.Link().SetUp(true)
		}},
		{"unplugged and plugged in", func() error {
			if err := isp.Link().Delete(); err != nil {
				return err
			}
			if err := isp.Link().Recreate(); err != nil {
				return err
			}
			return nmcli("connection", "up", profile(n))
		}},
		{"address added by hand", func() error {
			return s.byHand("address", "replace", fmt.Sprintf("100.64.%d.80/24", n), "dev", link)
		}},
		{"address removed by hand", func() error {
			return s.byHand("address", "delete", fmt.Sprintf("100.64.%d.80/24", n), "dev", link)
		}},
		{"addresses flushed", func() error { return s.byHand("address", "flush", "dev", link, "scope", "global") }},
		{"default deleted", func() error { return s.byHand("route", "delete", "default", "dev", link) }},
		{"NetworkManager restarts", func() error { return s.RestartNM(ctx) }},
		{"NetworkManager is killed", func() error {
			if err := s.KillNM(); err != nil {
				return err
			}
			return s.StartNM(ctx)
		}},
		{"the daemon is killed", func() error { s.kill9(); s.launch(); return nil }},
		{"the daemon restarts", func() error {
			if err := s.daemon.Stop(ctx); err != nil {
				return err
			}
			s.launch()
			return nil
		}},
	}
	e := events[s.random.IntN(len(events))]
	s.note("%s: %s", link, e.name)
	if err := e.do(); err != nil {
		text := strings.TrimSpace(err.Error())
		s.note("   %s: %s", e.name, text[strings.LastIndex(text, "\n")+1:])
	}
}

func (s *storm) byHand(args ...string) error {
	_, err := s.IP(s.t.Context(), args...)
	return err
}

// renumber gives the provider its other network: DHCP clients learn at their
// next renewal, which is refused; the old IPv6 prefix ends at once.
func (s *storm) renumber(n int) error {
	original := lab.DefaultISP(n)
	v4, v6 := original.IPv4, original.IPv6
	if s.moved[n] = !s.moved[n]; s.moved[n] {
		v4, v6 = renumbered(original)
	}
	old := s.isps[n].Config().IPv6.Masked()
	ra := lab.DefaultRA(v6)
	ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: old})
	return s.isps[n].Reconfigure(s.t.Context(), func(c *lab.ISPConfig) {
		c.IPv4, c.IPv6, c.RA = v4, v6, &ra
	})
}

// calm brings everything back to the beginning.
func (s *storm) calm() {
	s.note("calm")
	for n, isp := range s.isps {
		link := fmt.Sprintf("wan%d", n)
		if s.moved[n] {
			s.must(s.renumber(n))
		}
		s.must(isp.Link().SetCarrier(true))
		s.must(isp.Link().SetUp(true))
		s.must(s.Modify(s.t.Context(), profile(n), "ipv4.addresses", "", "ipv4.routes", "", "ipv6.addresses", ""))
		// NetworkManager may not have seen the cable yet.
		s.eventually(func() error { return s.Up(s.t.Context(), profile(n)) })
		_, err := s.WaitAddrIn(s.t.Context(), link, isp.IPv4())
		s.must(err)
		_, err = s.WaitAddrIn(s.t.Context(), link, isp.IPv6())
		s.must(err)
	}
}

// TestAnUplinkFromTheStart: while a link is being brought up its address comes
// before its gateway. It must be treated as an uplink in between, and what turns
// out to be none must not keep the mark.
func TestAnUplinkFromTheStart(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	cfg0, settings0 := static(0)
	r.isp(cfg0, settings0...)
	cfg1, cfg2 := lab.DefaultISP(1), lab.DefaultISP(2)
	cfg1.IPv6 = netip.Prefix{}
	cfg2.Name, cfg2.Link, cfg2.IPv6, cfg2.NoRouter = "lan", "lan0", netip.Prefix{}, true
	isp1 := r.isp(cfg1, "ipv6.method", "disabled")
	r.isp(cfg2, "ipv6.method", "disabled")
	r.up("wan0")
	r.start()
	r.settled()
	group := func(link, want string) error {
		b, err := os.ReadFile("/sys/class/net/" + link + "/netdev_group")
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			return fmt.Errorf("%s is in group %s, not in %s (%w)", link, got, want, err)
		}
		return nil
	}
	for range 2 {
		r.signalDHCP(isp1, syscall.SIGSTOP)
		r.upAtOnce("wan1")
		labtest.Eventually(t, func() error { return group("wan1", "28008") })
		if addrs, err := r.Addrs("wan1", lab.IPv4); err != nil || len(addrs) > 0 {
			t.Fatalf("wan1 has addresses already: %v, %v", addrs, err)
		}
		r.signalDHCP(isp1, syscall.SIGCONT)
		r.standing(r.address("wan1", lab.IPv4), true)
		r.eventually(func() error { return r.ladder("wan1", lab.IPv4) })

		r.up("lan0")
		lan := r.address("lan0", lab.IPv4)
		r.standing(lan, true)
		labtest.Eventually(t, func() error { return group("lan0", "0") })
		r.eventually(func() error {
			rules, err := r.RulesText(t.Context(), lab.IPv4)
			if err == nil && strings.Contains(rules, "10500:\tfrom "+lan.String()) {
				err = fmt.Errorf("lan0 has no gateway, and is treated as an uplink:\n%s", rules)
			}
			return err
		})
		for _, link := range []string{"wan1", "lan0"} {
			r.must(r.Down(t.Context(), link))
			labtest.Eventually(t, func() error { return group(link, "0") })
		}
		r.settled()
	}
}
