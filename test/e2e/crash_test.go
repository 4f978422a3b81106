package e2e_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // reads the database with other code than the product's

	"multihomed/allocator"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// crashSeed makes a run of TestKilled again as it was.
var crashSeed = flag.Uint64("crash-seed", 0, "seed of TestKilled; 0 takes one from the clock")

// TestKilled kills the daemon two hundred times, at random moments, while the
// host changes at random. Now and then it may live, and has to have the host in
// order at once: nothing lost, nothing left over, the same tables.
func TestKilled(t *testing.T) {
	const kills, samples = 200, 10
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed: -crash-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))

	// No limit to repairs: the storm deletes more than anybody would.
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[repair]\nburst = 10000\n")
	s := &weather{rig: r, ctx: t.Context(), random: rand.New(rand.NewPCG(seed, 2))}
	for n := range 2 {
		isp := labtest.NewISP(t, r.Host, lab.DefaultISP(n))
		s.isps = append(s.isps, isp)
		// A NetworkManager that was killed may find the link configured and make
		// a profile of that, by the link's name.
		r.must(r.AddProfile(t.Context(), s.profile(isp), isp.Link().Name()))
	}
	r.must(s.calm())
	s.strangers()
	r.start()
	all := both("wan0", "wan1")
	inOrder := func(when string) {
		t.Helper()
		w := &watched{rig: r, monitor: newMonitor(t)}
		w.converged(when, func() error { return errors.Join(s.strangersStand(), r.holds(all...)) })
	}
	inOrder("before")
	tables := r.tables()
	sound(r)
	r.kill9()

	began := time.Now()
	for sample := range samples {
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() { stopped <- s.rage(stop) }()
		for range kills / samples {
			r.launch()
			// Half of them in the middle of starting, half while it follows.
			if random.IntN(2) == 0 {
				r.ready()
			}
			moment := time.NewTimer(time.Duration(random.Int64N(int64(120 * time.Millisecond))))
			select {
			case <-moment.C:
			case <-r.daemon.Done():
				t.Fatalf("it ended by itself:\n%s", r.daemon.Log())
			}
			r.kill9()
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		sound(r)
		// The one time the host calms down first, the other time the daemon
		// comes first.
		if sample%2 == 0 {
			r.must(s.calm())
			r.start()
		} else {
			r.start()
			r.must(s.calm())
		}
		when := fmt.Sprintf("after %d kills", (sample+1)*kills/samples)
		inOrder(when)
		if now := r.tables(); now != tables {
			t.Errorf("%s: tables moved from %s to %s", when, tables, now)
		}
		sound(r)
		r.kill9()
	}
	t.Logf("%d kills in %v, during %d changes", kills, time.Since(began), s.count)
}

// TestKilledWhileMoving changes the tables and the group of uplinks with every start, and kills the
// daemon while it moves. A regular end leaves nothing in the other tables and groups.
func TestKilledWhileMoving(t *testing.T) {
	const kills = 30
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed: -crash-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	w, _ := uplinks(t, lab.HostConfig{FastDAD: true}, nil)
	base, err := os.ReadFile(w.path)
	w.must(err)
	w.kill9()
	configure := func(n int) {
		w.writeConfig(fmt.Sprintf("%suplink_group = %d\n[tables]\nfirst = %d\nlast = %d\n", base, 4700+n, 21000+100*n, 21099+100*n))
	}
	for i := range kills {
		configure(random.IntN(3))
		w.launch()
		if random.IntN(3) == 0 {
			w.ready()
		}
		moment := time.NewTimer(time.Duration(random.Int64N(int64(150 * time.Millisecond))))
		select {
		case <-moment.C:
		case <-w.daemon.Done():
			t.Fatalf("it ended by itself:\n%s", w.daemon.Log())
		}
		w.kill9()
		if i%10 != 9 {
			continue
		}
		w.writeConfig(string(base))
		w.start()
		w.converged(fmt.Sprintf("after %d kills", i+1), func() error {
			return errors.Join(w.holds(both("wan0", "wan1")...), w.tablesStartWith("10"), w.groups("28008", "wan0", "wan1"))
		})
		w.kill9()
	}
}

// sound reads the database with other code than the product's, and with it.
func sound(r *rig) {
	r.t.Helper()
	path := filepath.Join(r.cfg.StateDir, allocator.DefaultName)
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	r.must(err)
	defer db.Close()
	var verdict string
	r.must(db.QueryRowContext(r.t.Context(), "PRAGMA integrity_check").Scan(&verdict))
	if verdict != "ok" {
		r.t.Errorf("the database: %s", verdict)
	}
	// Two links, two families, and the second IPv6 prefix of each.
	if n := len(r.leases()); n > 6 {
		r.t.Errorf("%d leases: %+v", n, r.leases())
	}
}

// The weather is what happens to a host in years, in a minute.
type weather struct {
	*rig
	ctx    context.Context //nolint:containedctx // the test's
	random *rand.Rand
	isps   []*lab.ISP
	count  int
}

func (s *weather) profile(isp *lab.ISP) string { return "profile of " + isp.Name() }

// rage does something at random until it is told to stop.
func (s *weather) rage(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		s.count++
		if err := s.strike(); err != nil {
			return fmt.Errorf("change %d: %w", s.count, err)
		}
	}
}

func (s *weather) strike() error {
	isp := s.isps[s.random.IntN(len(s.isps))]
	name := isp.Link().Name()
	flag := []string{"-4", "-6"}[s.random.IntN(2)]
	// nmcli and ip refuse to remove a missing object.
	try := func(args ...string) error {
		_, _ = s.IP(s.ctx, args...)
		return nil
	}
	switch s.random.IntN(16) {
	case 0:
		return errors.Join(isp.Link().SetUp(false), isp.Link().SetUp(true))
	case 1:
		return errors.Join(isp.Link().SetCarrier(false), isp.Link().SetCarrier(true))
	case 2:
		_, _ = s.NMCLI(s.ctx, "connection", "down", s.profile(isp))
		return nil
	case 3, 4:
		_, _ = s.NMCLI(s.ctx, "connection", "up", s.profile(isp))
		return nil
	case 5:
		return try("address", "add", s.more(isp).String(), "dev", name)
	case 6:
		return try("address", "delete", s.more(isp).String(), "dev", name)
	case 7:
		return isp.SetRA(s.withSecond(isp, 2*time.Second))
	case 8:
		ra := lab.DefaultRA(isp.IPv6())
		ra.RouterLifetime = 0
		return isp.SetRA(ra)
	case 9:
		return isp.SetRA(lab.DefaultRA(isp.IPv6()))
	case 10:
		return try(flag, "rule", "delete", "priority", []string{"9020", "9500", "10000", "10500", "91000"}[s.random.IntN(5)], "protocol", "150")
	case 11:
		return try(flag, "route", "flush", "table", fmt.Sprint(10000+s.random.IntN(4)), "proto", "150")
	case 12:
		_, _ = s.NMCLI(s.ctx, "device", "modify", name, "+ipv4.routes", "10.55.0.0/16 "+isp.IPv4().Addr().Next().Next().Next().String())
		return nil
	case 13:
		_, _ = s.NMCLI(s.ctx, "device", "reapply", name)
		return nil
	case 14:
		return try("link", "set", name, "group", "default")
	default:
		if s.random.IntN(4) > 0 {
			return nil
		}
		switch s.random.IntN(3) {
		case 0:
			return errors.Join(isp.Link().Delete(), isp.Link().Recreate())
		case 1:
			return errors.Join(s.KillNM(), s.StartNM(s.ctx))
		default:
			return s.RestartNM(s.ctx)
		}
	}
}

// more is another address of a provider's network.
func (s *weather) more(isp *lab.ISP) netip.Prefix {
	a := isp.IPv4().Addr().As4()
	a[3] = 77
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

func (s *weather) withSecond(isp *lab.ISP, valid time.Duration) lab.RA {
	ra := lab.DefaultRA(isp.IPv6())
	second := isp.IPv6().Addr().As16()
	second[6] = 0xaa
	ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: netip.PrefixFrom(netip.AddrFrom16(second), 64), Valid: valid, Preferred: valid})
	return ra
}

// calm brings the host back to two working uplinks.
func (s *weather) calm() error {
	ctx, cancel := s.patience()
	defer cancel()
	for _, isp := range s.isps {
		if err := isp.SetRA(lab.DefaultRA(isp.IPv6())); err != nil {
			return err
		}
		name := isp.Link().Name()
		if err := lab.Eventually(ctx, func() error { return s.Up(ctx, s.profile(isp)) }); err != nil {
			return err
		}
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			if _, err := s.WaitAddr(ctx, name, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// strangers puts objects in place that look like ours and are not.
func (s *weather) strangers() {
	s.t.Helper()
	for _, args := range []string{
		// Our protocol, but neither our tables nor our priorities.
		"rule add priority 555 from 192.0.2.5 lookup 30000 protocol 150",
		"route add 192.0.2.0/28 dev lo table 30000 protocol 150",
		// Our priorities and our tables, but not our protocol.
		"rule add priority 10000 from 192.0.2.6 lookup 10900 protocol static",
		"route add 192.0.2.16/28 dev lo table 10900 protocol static",
		"-6 rule add priority 9500 oif lo lookup 10901 protocol static",
		"-6 route add fd99::/32 dev lo table 10901 protocol static metric 77",
		"route add 192.0.2.32/28 dev lo protocol static",
	} {
		_, err := s.IP(s.ctx, strings.Fields(args)...)
		s.must(err)
	}
}

// strangersStand says which of them is gone.
func (s *weather) strangersStand() error {
	var errs []error
	for _, want := range []struct{ show, text string }{
		{"-N -d rule", "555: from 192.0.2.5 lookup 30000 proto 150"},
		{"-N -d route show table 30000", "192.0.2.0/28 dev lo proto 150"},
		{"-N -d rule", "10000: from 192.0.2.6 lookup 10900 proto 4"},
		{"-N -d route show table 10900", "192.0.2.16/28 dev lo proto 4"},
		{"-N -d -6 rule", "9500: from all oif lo lookup 10901 proto 4"},
		{"-N -d -6 route show table 10901", "fd99::/32 dev lo proto 4"},
		{"-N -d route show table main", "192.0.2.32/28 dev lo proto 4"},
	} {
		have, err := s.IP(s.ctx, strings.Fields(want.show)...)
		if text := strings.Join(strings.Fields(have), " "); err == nil && !strings.Contains(text, want.text) {
			err = fmt.Errorf("gone: %s; there is:\n%s", want.text, have)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
