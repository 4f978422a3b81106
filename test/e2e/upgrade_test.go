package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestUpgradeFromVersion1 starts the daemon on a host with the ladder of version 1. It
// is replaced without one packet of a link on another, and every call from the
// internet is answered meanwhile.
func TestUpgradeFromVersion1(t *testing.T) {
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
	r.must(r.ServeEcho())
	r.up("wan0", "wan1")
	r.start()
	addresses := map[*lab.ISP][]netip.Addr{}
	for n, isp := range isps {
		link := fmt.Sprintf("wan%d", n)
		addresses[isp] = []netip.Addr{r.address(link, lab.IPv4), r.address(link, lab.IPv6)}
	}
	r.settled("wan0", "wan1")
	r.kill9()
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		r.becomeVersion1(f)
	}
	// Version 1 remembered nothing.
	r.must(os.RemoveAll(filepath.Join(r.cfg.RuntimeDir, "memory.json")))

	w := newWire(t, isps, sources, others...)
	calls := r.callAllTheTime(addresses)
	r.start()
	r.settled("wan0", "wan1")
	answered, failed := calls()
	w.judged(20)
	t.Logf("%d calls answered", answered)
	if len(failed) > 0 || answered == 0 {
		t.Errorf("calls that were not answered:\n%s", strings.Join(failed, "\n"))
	}
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(t.Context(), f)
		r.must(err)
		for _, old := range []string{"9000:", "19000:", "20000:"} {
			if strings.Contains("\n"+rules, "\n"+old) {
				t.Errorf("%v: rules of version 1 are left:\n%s", f, rules)
			}
		}
	}
}

// becomeVersion1 turns the routing into the ladder of version 1, in a family.
func (r *rig) becomeVersion1(f lab.Family) {
	r.t.Helper()
	flag := map[lab.Family]string{lab.IPv4: "-4", lab.IPv6: "-6"}[f]
	rules, err := r.RulesText(r.t.Context(), f)
	r.must(err)
	rule := func(verb, text string) {
		r.ip(append([]string{flag, "rule", verb}, strings.Fields(text)...)...)
	}
	rule("add", "priority 9000 lookup main suppress_prefixlength 1 suppress_ifgroup 28008 protocol 150")
	rule("add", "priority 19000 lookup main suppress_prefixlength 0 protocol 150")
	tables := map[string]bool{}
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		source, table := word(words, "from"), word(words, "lookup")
		switch words[0] {
		case "9020:":
			rule("del", "priority 9020 from "+source+" protocol 150")
		case "10000:":
			tables[table] = true
			if f == lab.IPv6 {
				rule("add", "priority 10000 from "+source+" lookup "+table+" protocol 150")
				rule("del", "priority 10000 from "+source+" iif lo lookup "+table+" protocol 150")
			}
		}
	}
	metric := map[lab.Family]string{lab.IPv4: "0", lab.IPv6: "1024"}[f]
	for table := range tables {
		routes, err := r.IP(r.t.Context(), flag, "route", "show", "table", table)
		r.must(err)
		var network string
		for line := range strings.Lines(routes) {
			line = strings.NewReplacer(" metric 1073741824", " metric "+metric, " pref medium", "", "proto multihomed", "proto 150").Replace(strings.TrimSpace(line))
			r.ip(append([]string{flag, "route", "add", "table", table}, strings.Fields(line)...)...)
			if dst, rest, _ := strings.Cut(line, " "); !strings.Contains(rest, "via") && !strings.HasPrefix(dst, "fe80") {
				network = dst
			}
		}
		r.ip(flag, "route", "flush", "table", table, "metric", "1073741824")
		rule("add", "priority 20000 to "+network+" lookup "+table+" protocol 150")
	}
}

// callAllTheTime calls every address from the internet, again and again, until the
// function that it returns is called.
func (r *rig) callAllTheTime(addresses map[*lab.ISP][]netip.Addr) func() (answered int64, failed []string) {
	ctx, stop := context.WithCancel(r.t.Context())
	r.t.Cleanup(stop)
	var calls sync.WaitGroup
	var answered atomic.Int64
	var mu sync.Mutex
	var failed []string
	for isp, all := range addresses {
		for _, to := range all {
			from := isp.Client4
			if to.Is6() {
				from = isp.Client6
			}
			calls.Go(func() {
				for ctx.Err() == nil {
					answer, err := isp.Call(ctx, from, to)
					switch {
					case ctx.Err() != nil:
					case err != nil || answer.ISP != "host":
						mu.Lock()
						failed = append(failed, fmt.Sprintf("%s: %v %v", to, answer, err))
						mu.Unlock()
					default:
						answered.Add(1)
					}
				}
			})
		}
	}
	labtest.Eventually(r.t, func() error {
		if answered.Load() == 0 {
			return fmt.Errorf("no call was answered")
		}
		return nil
	})
	return func() (int64, []string) {
		stop()
		calls.Wait()
		return answered.Load(), failed
	}
}
