package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

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
