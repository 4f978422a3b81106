package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"multihomed/cmd/internal/lockfile"
	"multihomed/internal/lab"
	"multihomed/internal/lab/labtest"
)

// TestRenamedWhileNetworkManagerHangs: two uplinks get other names, and then each
// other's, while nobody answers on the bus. Nothing strays, then or afterwards.
func TestRenamedWhileNetworkManagerHangs(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	var isps []*lab.ISP
	sources := map[string][]netip.Prefix{}
	var others []netip.Addr
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		isps = append(isps, r.isp(cfg))
		sources[cfg.Link] = []netip.Prefix{cfg.IPv4.Masked(), cfg.IPv6.Masked()}
		others = append(others, cfg.IPv4.Addr(), cfg.IPv6.Addr())
	}
	r.up("wan0", "wan1")
	r.start()
	for _, link := range []string{"wan0", "wan1"} {
		r.address(link, lab.IPv6)
	}
	r.settled("wan0", "wan1")
	w := newWire(t, isps, sources, others...)
	hang := func(s syscall.Signal) { r.must(syscall.Kill(r.NMPid(), s)) }
	rename := func(from, to string) {
		t.Helper()
		if _, err := r.IP(t.Context(), "link", "set", from, "name", to); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, func() error { return r.stands("oif " + to + " lookup") })
	}
	for range 5 {
		hang(syscall.SIGSTOP)
		rename("wan1", "other")
		rename("wan0", "wan1")
		rename("other", "wan0")
		rename("wan1", "other")
		rename("wan0", "wan1")
		rename("other", "wan0")
		hang(syscall.SIGCONT)
	}
	w.judged(100)
	labtest.Eventually(t, func() error { return r.stands("oif wan0 lookup") })
	for _, line := range r.daemon.Lines() {
		if strings.Contains(line, "link has gone") {
			t.Error(line)
		}
	}
	r.settled("wan0", "wan1")
}

// stands wants a rule of ours in both families that has these words.
func (r *rig) stands(words string) error {
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		text, err := r.RulesText(r.t.Context(), f)
		if err != nil {
			return err
		}
		if !strings.Contains(text, words) {
			return fmt.Errorf("no rule has %q in\n%s", words, text)
		}
	}
	return nil
}

// TestNamesWithoutNetworkManager: while NetworkManager is away, and while the daemon
// starts without it, its links keep their DNS servers.
func TestNamesWithoutNetworkManager(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, dnsToml)
	isp := r.isp(withNames(0))
	names := r.nameserver(isp)
	r.start()
	r.up("wan0")
	r.settled("wan0")
	all := map[int][]netip.Addr{0: {isp.Config().IPv4.Addr(), isp.Config().IPv6.Addr()}}
	names.uses(all)
	before, err := os.ReadFile(serversFile)
	r.must(err)
	same := func(when string) {
		t.Helper()
		if now, err := os.ReadFile(serversFile); err != nil || string(now) != string(before) {
			t.Errorf("%s (%v):\n%swas:\n%s", when, err, now, before)
		}
	}
	r.must(r.StopNM(t.Context()))
	r.eventually(func() error {
		if !strings.Contains(r.daemon.Log(), "NetworkManager is not running") {
			return errors.New("the daemon has not noticed yet")
		}
		return nil
	})
	r.settled("wan0")
	same("while it is away")
	r.kill9()
	r.launch()
	r.eventually(func() error {
		if !strings.Contains(r.daemon.Log(), "NetworkManager is not running") {
			return errors.New("the daemon has not noticed yet")
		}
		return nil
	})
	r.eventually(func() error { _, err := r.look(); return err })
	same("after a restart without it")
	r.must(r.StartNM(t.Context()))
	r.ready()
	r.settled("wan0")
	names.uses(all)
}

// TestDispatcherReturnsWhenTheRulesStand: who is called back by the dispatcher may send
// bound packets at once, however often.
func TestDispatcherReturnsWhenTheRulesStand(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.install()
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.address("wan0", lab.IPv6)
	for i := range 20 {
		out, err := r.Run(t.Context(), "env", "DEVICE_IFACE=wan0", "DEVICE_IP_IFACE=wan0", "CONNECTION_ID=wan0", "/usr/sbin/multihomed-dispatcher", "wan0", "up")
		r.must(err)
		if err := r.stands("oif wan0 lookup"); err != nil {
			t.Fatalf("run %d: %v\n%s", i, err, out)
		}
		// The next one finds nothing, neither rules nor somebody who stands in.
		pid, held, err := lockfile.Holder(filepath.Join(r.cfg.RuntimeDir, lockfile.Name))
		if r.must(err); held {
			r.must(syscall.Kill(pid, syscall.SIGKILL))
			r.eventually(func() error {
				_, held, err := lockfile.Holder(filepath.Join(r.cfg.RuntimeDir, lockfile.Name))
				if err == nil && held {
					err = errors.New("it is still there")
				}
				return err
			})
		}
		for _, f := range []string{"-4", "-6"} {
			_, err := r.IP(t.Context(), f, "rule", "flush", "protocol", "150")
			r.must(err)
		}
	}
}
