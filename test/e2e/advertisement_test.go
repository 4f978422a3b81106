package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
)

// TestHostileAdvertisements: an attacker on one link advertises routers, prefixes, routes and DNS
// servers by the thousand. The daemon uses bounded memory for what NetworkManager accepts, follows
// the other links meanwhile, and no packet strays.
func TestHostileAdvertisements(t *testing.T) {
	const each = 16
	random := seeded(t)
	dns := filepath.Join(t.TempDir(), "servers")
	r := newRig(t, lab.HostConfig{FastDAD: true}, fmt.Sprintf("[dns]\nservers_file = %q\n", dns))
	var isps []*lab.ISP
	sources := map[string][]netip.Prefix{}
	var others []netip.Addr
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		isps = append(isps, r.isp(cfg))
		sources[cfg.Link] = []netip.Prefix{cfg.IPv4.Masked(), cfg.IPv6.Masked()}
		others = append(others, cfg.IPv4.Addr(), cfg.IPv6.Addr())
	}
	// All that the attacker gives to the link is of this network.
	hostile := netip.MustParsePrefix("2001:db8:666::/48")
	sources["wan0"] = append(sources["wan0"], hostile)
	r.up("wan0", "wan1")
	// Without the race detector, which takes several times the memory and the time.
	directory, err := installed()
	r.must(err)
	r.daemon, err = r.Start(lab.ProcessConfig{Path: filepath.Join(directory, "usr/sbin/multihomed"), Args: []string{"-config", r.path}, Notify: true})
	r.must(err)
	r.ready()
	r.settled("wan0", "wan1")
	before, err := peakMemory(r.daemon.Pid())
	r.must(err)
	w := newWire(t, isps, sources, others...)

	flooding, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	began, sent := time.Now(), 0
	go func() {
		for ; flooding.Err() == nil; sent++ {
			if err := isps[0].SendRAFrom(randomRA(random, hostile, each)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	// Not by NetworkManager, which has its hands full: what happens to the other link is
	// followed.
	slowest := time.Duration(0)
	for i := range 20 {
		address := fmt.Sprintf("100.64.1.%d", 20+i)
		for _, step := range []string{"add", "del"} {
			r.ip("address", step, address+"/24", "dev", "wan1")
			from := time.Now()
			ctx, cancel := r.patience()
			err := lab.Eventually(ctx, func() error {
				rules, err := r.RulesText(t.Context(), lab.IPv4)
				if err == nil && strings.Contains(rules, "10000:\tfrom "+address+" lookup") != (step == "add") {
					err = fmt.Errorf("%s of %s is not followed:\n%s", step, address, rules)
				}
				return err
			})
			cancel()
			r.must(err)
			slowest = max(slowest, time.Since(from))
		}
	}
	stop()
	r.must(<-done)
	took := time.Since(began)
	r.eventually(func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		return v.Converged()
	})
	after, err := peakMemory(r.daemon.Pid())
	r.must(err)
	addresses, err := r.Addrs("wan0", lab.IPv6)
	r.must(err)
	main, err := r.RoutesText(t.Context(), lab.IPv6, "main")
	r.must(err)
	all, err := r.RoutesText(t.Context(), lab.IPv6, "all")
	r.must(err)
	rules, err := r.RulesText(t.Context(), lab.IPv6)
	r.must(err)
	t.Logf("%d advertisements of %d prefixes, routes and servers in %v: wan0 has %d addresses, main %d routes (%d defaults), our tables %d routes, %d rules; the daemon had at most %d MiB, then %d MiB; a change of wan1 was followed after %v at most",
		sent, each, took.Round(time.Millisecond), len(addresses), strings.Count(main, "\n"), strings.Count(main, "default"),
		strings.Count(all, "proto 150"), strings.Count(rules, "proto 150"), before, after, slowest.Round(time.Millisecond))
	if len(addresses) < 10 {
		t.Errorf("the advertisements did not arrive: %v", addresses)
	}
	// The unit allows it 512 MiB.
	if after > before+192 {
		t.Errorf("%d MiB became %d MiB", before, after)
	}
	w.judged(int64(took/time.Second) * 2)
	// When the link goes, all of its routing is removed.
	// NetworkManager may take longer than nmcli waits.
	_ = r.Down(t.Context(), "wan0")
	r.must(r.WaitDeviceState(t.Context(), "wan0", "disconnected"))
	r.eventually(func() error { return r.lacks(lab.IPv6, "oif wan0") })
	r.up("wan0")
	r.settled("wan0", "wan1")
}

// randomRA is what a router that does not exist advertises.
func randomRA(random *rand.Rand, hostile netip.Prefix, each int) (netip.Addr, net.HardwareAddr, lab.RA) {
	bytes := func(a []byte) {
		for i := range a {
			a[i] = byte(random.UintN(256))
		}
	}
	router := [16]byte{0xfe, 0x80}
	bytes(router[8:])
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0}
	bytes(mac[1:])
	prefix := func(bits int) netip.Prefix {
		a := hostile.Addr().As16()
		bytes(a[6:8])
		return netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked()
	}
	ra := lab.RA{RouterLifetime: 30 * time.Minute, HopLimit: 64, Preference: []lab.Preference{lab.PreferenceLow, lab.PreferenceMedium, lab.PreferenceHigh}[random.UintN(3)]}
	for range each {
		ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: prefix(64), Valid: time.Hour, Preferred: time.Hour})
		ra.Routes = append(ra.Routes, lab.RARoute{Prefix: prefix(64), Lifetime: time.Hour})
		ra.DNS = append(ra.DNS, prefix(64).Addr().Next())
	}
	return netip.AddrFrom16(router), mac, ra
}
