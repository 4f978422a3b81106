package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/test/lab"
)

// TestActivations activates one link a hundred times, with DHCP and router
// advertisements racing in every order, and wants both ladders complete each
// time.
func TestActivations(t *testing.T) {
	const activations = 100
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	isp := r.isp(lab.DefaultISP(0))
	ra := lab.DefaultRA(isp.IPv6())
	r.start()
	ladder4 := func() error { return r.ladder("wan0", lab.IPv4) }
	ladder6 := func() error { return r.ladder("wan0", lab.IPv6) }
	up := func() <-chan error {
		done := make(chan error, 1)
		go func() { done <- r.Up(t.Context(), "wan0") }()
		return done
	}
	races := []struct {
		name string
		run  func()
	}{
		{"as it comes", func() { r.up("wan0") }},
		{"RA first", func() {
			r.signalDHCP(isp, syscall.SIGSTOP)
			done := up()
			r.eventually(ladder6)
			r.signalDHCP(isp, syscall.SIGCONT)
			r.must(<-done)
		}},
		{"DHCP first", func() {
			r.must(isp.SetRA(lab.RA{HopLimit: 64}))
			done := up()
			r.eventually(ladder4)
			r.must(isp.SetRA(ra))
			r.must(<-done)
		}},
		{"both at once", func() {
			r.must(isp.SetRA(lab.RA{HopLimit: 64}))
			r.signalDHCP(isp, syscall.SIGSTOP)
			done := up()
			r.eventually(func() error {
				out, err := r.IP(t.Context(), "-6", "address", "show", "dev", "wan0", "scope", "link", "-tentative")
				if err == nil && out == "" {
					err = errors.New("wan0 has no link-local address")
				}
				return err
			})
			r.signalDHCP(isp, syscall.SIGCONT)
			r.must(isp.SetRA(ra))
			r.must(<-done)
		}},
		{"with duplicate address detection", func() {
			r.must(r.Sysctl("net.ipv6.conf.wan0.accept_dad", "1", "net.ipv6.conf.wan0.dad_transmits", "1"))
			r.up("wan0")
		}},
	}
	slowest := time.Duration(0)
	tables := ""
	for i := range activations {
		race := races[i%(len(races)-1)]
		if i%25 == 24 {
			race = races[len(races)-1]
		}
		race.run()
		activated := time.Now()
		r.eventually(func() error { return r.holds(both("wan0")...) })
		slowest = max(slowest, time.Since(activated))
		view := r.settled("wan0")
		now := fmt.Sprint(r.table(view, "wan0", 2), r.table(view, "wan0", 10))
		if tables == "" {
			tables = now
		}
		if now != tables {
			t.Fatalf("activation %d (%s): tables %s, before %s", i, race.name, now, tables)
		}
		if i%25 == 24 {
			r.must(r.Sysctl("net.ipv6.conf.wan0.accept_dad", "0", "net.ipv6.conf.wan0.dad_transmits", "0"))
		}
		if i%3 == 2 {
			continue // the next one is on an active link
		}
		r.must(r.Down(t.Context(), "wan0"))
		r.eventually(func() error { return r.holds() })
	}
	t.Logf("%d activations, complete at most %v after NetworkManager called the link activated", activations, slowest)
}

// TestDHCPRoutes looks at what DHCP may say of routes, one link after the other
// of one host.
func TestDHCPRoutes(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.start()
	prefix := netip.MustParsePrefix
	addr := netip.MustParseAddr
	isp := func(n int, change func(*lab.ISPConfig), settings ...string) {
		cfg := lab.DefaultISP(n)
		change(&cfg)
		r.isp(cfg, settings...)
		r.up(cfg.Link)
	}
	// Option 121 with a default: option 3 does not count (RFC 3442).
	isp(0, func(c *lab.ISPConfig) {
		c.Gateway = addr("100.64.0.9")
		c.Routes = []lab.Route{lab.DefaultVia(addr("100.64.0.1")), {Dst: prefix("10.8.0.0/16"), Via: addr("100.64.0.2")}}
	})
	// Without one: NetworkManager then takes option 3 all the same.
	isp(1, func(c *lab.ISPConfig) {
		c.Routes = []lab.Route{{Dst: prefix("10.9.0.0/16"), Via: addr("100.64.1.2")}}
	})
	// Option 121 alone, with a default and without option 3.
	isp(2, func(c *lab.ISPConfig) {
		c.NoRouter = true
		c.Routes = []lab.Route{lab.DefaultVia(addr("100.64.2.7")), {Dst: prefix("10.10.0.0/16"), Via: addr("100.64.2.3")}}
	})
	// Neither a default nor option 3: a local link, whatever next hops it has.
	isp(3, func(c *lab.ISPConfig) {
		c.NoRouter = true
		c.IPv6 = netip.Prefix{}
		c.Routes = []lab.Route{{Dst: prefix("10.11.0.0/16"), Via: addr("100.64.3.3")}}
	})
	// A gateway outside the network, and one on the link.
	isp(4, func(c *lab.ISPConfig) {
		c.NoRouter = true
		c.Routes = []lab.Route{{Dst: prefix("192.0.2.77/32")}, lab.DefaultVia(addr("192.0.2.77"))}
	})
	// Two static routes of the profile.
	isp(5, func(*lab.ISPConfig) {}, "ipv4.routes", "10.20.0.0/16 100.64.5.5, 10.21.0.0/16 100.64.5.6", "ipv6.routes", "fd77::/32 2001:db8:0:6::5")
	// never-default: the default is in the link's own table, and is not a last resort.
	isp(6, func(*lab.ISPConfig) {}, "ipv4.never-default", "yes")

	r.eventually(func() error {
		return errors.Join(
			r.ladder("wan0", lab.IPv4), r.ladder("wan0", lab.IPv6),
			r.tableHas("wan0", lab.IPv4, "default via 100.64.0.1 ", "10.8.0.0/16 via 100.64.0.2 ", "!100.64.0.9"),
			r.ladder("wan1", lab.IPv4), r.ladder("wan1", lab.IPv6),
			r.tableHas("wan1", lab.IPv4, "default via 100.64.1.1 ", "10.9.0.0/16 via 100.64.1.2 "),
			r.ladder("wan2", lab.IPv4), r.ladder("wan2", lab.IPv6),
			r.tableHas("wan2", lab.IPv4, "default via 100.64.2.7 ", "10.10.0.0/16 via 100.64.2.3 "),
			r.tableHas("wan3", lab.IPv4, "10.11.0.0/16 via 100.64.3.3 ", "100.64.3.0/24 dev wan3 ", "!default"),
			r.ladder("wan4", lab.IPv4), r.ladder("wan4", lab.IPv6),
			r.tableHas("wan4", lab.IPv4, "default via 192.0.2.77 ", "192.0.2.77 dev wan4 "),
			r.ladder("wan5", lab.IPv4), r.ladder("wan5", lab.IPv6),
			r.tableHas("wan5", lab.IPv4, "default via 100.64.5.1 ", "10.20.0.0/16 via 100.64.5.5 ", "10.21.0.0/16 via 100.64.5.6 "),
			r.tableHas("wan5", lab.IPv6, "fd77::/32 via 2001:db8:0:6::5 "),
			r.ladderWithout("91000", "wan6", lab.IPv4), r.ladder("wan6", lab.IPv6),
		)
	})
	main, err := r.RoutesText(t.Context(), lab.IPv4, "main")
	r.must(err)
	if strings.Contains(main, "default via 100.64.6.1") {
		t.Errorf("never-default is not active:\n%s", main)
	}
	r.settled("wan0", "wan1", "wan2", "wan4", "wan5")
}
