package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"multihomed/test/lab"
)

// seeded returns a source of chance that MULTIHOMED_E2E_SEED repeats.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MULTIHOMED_E2E_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("MULTIHOMED_E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// An act is something that nmcli does to a link.
type act struct {
	name string
	do   func() error
}

// acts are some, picked by chance. They do the same whenever they are done.
func (r *rig) acts(random *rand.Rand, isps []*lab.ISP, count int) []act {
	ctx := r.t.Context()
	var out []act
	for len(out) < count {
		n := random.IntN(len(isps))
		link, other := fmt.Sprintf("wan%d", n), fmt.Sprintf("wan%d-static", n)
		last := 20 + random.IntN(100)
		renumbered := netip.MustParsePrefix(fmt.Sprintf("100.64.%d.1/24", 100*(1+random.IntN(2))+n))
		kinds := []act{
			{"up", func() error { return r.Up(ctx, link) }},
			{"up", func() error { return r.Up(ctx, link) }},
			{"static up", func() error { return r.Up(ctx, other) }},
			{"down", func() error { _, err := r.NMCLI(ctx, "device", "disconnect", link); return err }},
			{fmt.Sprintf("reapply %d", last), func() error {
				err := r.Modify(ctx, link, "ipv4.addresses", fmt.Sprintf("100.64.%d.%d/24", n, last), "ipv4.routes", fmt.Sprintf("10.%d.0.0/16 100.64.%d.1", last, n),
					"ipv6.addresses", fmt.Sprintf("2001:db8:0:%x::%x/64", n+1, last))
				return errors.Join(err, r.Reapply(ctx, link))
			}},
			{"another DHCP address " + renumbered.String(), func() error {
				err := isps[n].Reconfigure(ctx, func(c *lab.ISPConfig) { c.IPv4 = renumbered })
				return errors.Join(err, r.Up(ctx, link))
			}},
			{"ignored", func() error {
				return errors.Join(r.profile(link, "user.multihomed.ignore=true"), r.Reapply(ctx, link))
			}},
			{"metric", func() error {
				return r.ModifyDevice(ctx, link, "ipv4.route-metric", strconv.Itoa(last), "ipv6.route-metric", strconv.Itoa(last))
			}},
		}
		k := kinds[random.IntN(len(kinds))]
		out = append(out, act{link + " " + k.name, k.do})
	}
	return out
}

// profile rewrites a link's profile.
func (r *rig) profile(link string, settings ...string) error {
	settings = append(settings, "ipv4.method=auto", "ipv6.method=auto", "ipv6.addr-gen-mode=eui64")
	return errors.Join(r.WriteProfile(link, link, settings...), r.ReloadProfiles(r.t.Context()))
}

// play does them, from the beginning. Some fail, and then always do: a link that
// is down cannot be reapplied.
func (r *rig) play(acts []act, isps []*lab.ISP) {
	r.t.Helper()
	ctx := r.t.Context()
	for n, isp := range isps {
		link := isp.Link().Name()
		r.must(r.profile(link))
		_, _ = r.NMCLI(ctx, "device", "disconnect", link)
		if original := lab.DefaultISP(n).IPv4; isp.Config().IPv4 != original {
			r.must(isp.Reconfigure(ctx, func(c *lab.ISPConfig) { c.IPv4 = original }))
		}
	}
	r.eventually(func() error { return r.holds() })
	for _, a := range acts {
		_ = a.do()
	}
}

// inventory lists all objects. Rules of one priority may have any order, except those of the last resort.
func (r *rig) inventory() string {
	var last []string
	lines := strings.Split(r.everything(), "\n")
	for _, line := range lines {
		if strings.HasPrefix(line, "91000:") {
			last = append(last, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(append(lines, last...), "\n")
}

// planned says what a fresh plan would do.
func (r *rig) planned() error {
	v, err := r.look()
	if err != nil {
		return err
	}
	return errors.Join(v.Converged(), noneOf(v.Notes))
}

func noneOf(notes []string) error {
	if len(notes) > 0 {
		return errors.New(strings.Join(notes, "; "))
	}
	return nil
}

// quiet says what NetworkManager still waits for: it calls a link connected when
// one family is there.
func (r *rig) quiet() error {
	active, err := r.NMCLI(r.t.Context(), "-t", "-f", "DEVICE,CONNECTION", "device", "status")
	if err != nil {
		return err
	}
	main, err := r.RoutesText(r.t.Context(), lab.IPv6, "main")
	if err != nil {
		return err
	}
	// Defaults of two links with one metric are one route with two next hops.
	main = strings.ReplaceAll(main, "\n\tnexthop", " nexthop")
	for line := range strings.Lines(active) {
		device, profile, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !strings.HasPrefix(device, "wan") {
			continue
		}
		has := slices.ContainsFunc(strings.Split(main, "\n"), func(route string) bool {
			return strings.Contains(route, "default ") && strings.Contains(route, " dev "+device+" ")
		})
		if has != (profile == device) {
			return fmt.Errorf("%s with profile %q has a default is %t:\n%s", device, profile, has, main)
		}
	}
	return nil
}

// TestDispatcherDoesAsTheDaemon: whatever nmcli does, it leaves the same objects
// in the kernel with the daemon and without it, and a daemon that starts then
// changes nothing.
func TestDispatcherDoesAsTheDaemon(t *testing.T) {
	const sequences, length = 50, 4
	random := seeded(t)
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.must(r.EnableDispatcher())
	r.install()
	var isps []*lab.ISP
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		isps = append(isps, r.connected(cfg))
		r.must(r.profile(cfg.Link))
		r.must(r.AddProfile(t.Context(), cfg.Link+"-static", cfg.Link, "ipv4.method", "manual", "ipv4.addresses", fmt.Sprintf("100.64.%d.60/24", n),
			"ipv4.gateway", cfg.IPv4.Addr().String(), "ipv6.method", "disabled"))
	}
	w := r.watch()
	m := w.monitor
	r.start()
	for i := range sequences {
		acts := r.acts(random, isps, length)
		var names []string
		for _, a := range acts {
			names = append(names, a.name)
		}
		r.play(acts, isps)
		var want string
		r.eventually(func() error {
			from := w.converged("with the daemon", r.quiet)
			want = r.inventory()
			_, err := m.quiet(from)
			return err
		})
		r.must(r.daemon.Stop(t.Context()))

		r.play(acts, isps)
		var have string
		var from int
		ctx, cancel := r.patience()
		failed := lab.Eventually(ctx, func() error {
			before := m.barrier()
			if err := r.planned(); err != nil {
				return err
			}
			if have = r.inventory(); have != want {
				return errors.New("they differ")
			}
			var err error
			from, err = m.quiet(before)
			return err
		})
		cancel()
		if failed != nil {
			t.Fatalf("sequence %d, %v: %v; with the daemon (-) and without (+):\n%s", i, names, failed, difference(want, have))
		}
		r.start()
		r.eventually(r.planned)
		m.barrier()
		if wrote := m.unprovoked(from); len(wrote) > 0 {
			t.Fatalf("sequence %d, %v: the daemon changed objects of the dispatcher:\n%s", i, names, m.text(from))
		}
	}
}

// TestDaemonAndDispatchersOverlap starts and kills the daemon at random moments
// while dispatchers run: one of them writes at a time, and nothing is lost.
func TestDaemonAndDispatchersOverlap(t *testing.T) {
	random := seeded(t)
	r := dispatched(t, "")
	m := newMonitor(t)
	from := m.barrier()
	ctx := t.Context()
	var others sync.WaitGroup
	running := false
	var log []string
	for range 60 {
		link := fmt.Sprintf("wan%d", random.IntN(2))
		switch kind := random.IntN(7); kind {
		case 0, 1:
			if running {
				log = append(log, "kill")
				r.kill9()
			} else {
				log = append(log, "start")
				r.launch()
			}
			running = !running
		case 2:
			log = append(log, link+" down")
			_, _ = r.NMCLI(ctx, "device", "disconnect", link)
		case 3, 4:
			log = append(log, link+" up")
			r.up(link)
		default:
			log = append(log, link+" dispatchers")
			for range 3 {
				others.Go(func() {
					// NetworkManager's own script, as if it had been called for something else.
					_ = exec.CommandContext(ctx, "/usr/sbin/multihomed-dispatcher", link, "connectivity-change").Run()
					_ = exec.CommandContext(ctx, "/usr/sbin/multihomed-dispatcher", link, "reapply").Run()
				})
			}
		}
	}
	others.Wait()
	if running {
		r.kill9()
	}
	r.up("wan0", "wan1")
	r.eventually(func() error { return errors.Join(r.holds(both("wan0", "wan1")...), r.planned()) })
	m.barrier()
	var ports, past []string
	for _, e := range m.from(from) {
		if !e.own {
			continue
		}
		port := e.text[strings.LastIndexByte(e.text, ' ')+1:]
		if len(ports) > 0 && ports[len(ports)-1] == port {
			continue
		}
		if slices.Contains(past, port) {
			t.Errorf("two wrote at the same time; %v\n%s", log, m.text(from))
			break
		}
		ports, past = append(ports, port), append(past, port)
	}
	if len(ports) < 3 {
		t.Errorf("only %d processes wrote: nothing was proven; %v", len(ports), log)
	}
	t.Logf("%d processes wrote in turn; %v", len(ports), log)
}
