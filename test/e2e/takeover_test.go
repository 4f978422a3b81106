package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestTableIsTaken has another program take the tables of a link, as programs do that allocate
// numbers themselves. The link leaves them without a stray packet and without a moment in which the
// kernel refuses one. The routes and the rule of the program stay unchanged, and a starting daemon
// changes nothing. The default of the program is worse than the link's, so a stray packet is an
// effect of the move.
func TestTableIsTaken(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	isps := []*lab.ISP{r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))}
	r.up("wan0", "wan1")
	r.start()
	r.address("wan0", lab.IPv6)
	r.address("wan1", lab.IPv6)
	view := r.settled("wan0", "wan1")
	sources := map[string][]netip.Prefix{}
	for _, isp := range isps {
		sources[isp.Config().Link] = []netip.Prefix{isp.IPv4().Masked(), isp.IPv6().Masked()}
	}
	w := newWire(t, isps, sources)
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		family, option, via, rule := routing.IPv4, "-4", isps[1].Config().IPv4.Addr(), "192.168.7.0/24"
		if f == lab.IPv6 {
			family, option, via, rule = routing.IPv6, "-6", isps[1].Config().IPv6.Addr(), "fd07::/64"
		}
		old := r.table(view, "wan0", family)
		his := func(args string) string {
			t.Helper()
			out, err := r.IP(t.Context(), append([]string{option}, strings.Fields(args)...)...)
			r.must(err)
			return out
		}
		log := len(r.daemon.Lines())
		his(fmt.Sprintf("rule add pref 300 from %s lookup %d", rule, old))
		his(fmt.Sprintf("route add default via %s dev wan1 table %d proto 194 metric 4000000000", via, old))
		r.logged(log, fmt.Sprintf("somebody else uses table %d: ", old))
		labtest.Eventually(t, func() error {
			if left := his(fmt.Sprintf("-N route show table %d proto 150", old)); strings.TrimSpace(left) != "" {
				return fmt.Errorf("left in table %d:\n%s", old, left)
			}
			return nil
		})
		view = r.settled("wan0", "wan1")
		if now := r.table(view, "wan0", family); now == old {
			t.Errorf("%v: wan0 is in table %d as before", family, now)
		}
		if now := his(fmt.Sprintf("-N route show table %d", old)); !strings.HasPrefix(now, "default via "+via.String()) || strings.Count(now, "\n") != 1 {
			t.Errorf("table %d is not as its owner made it:\n%s", old, now)
		}
		if now := his("-N rule show pref 300"); !strings.Contains(now, fmt.Sprintf("from %s lookup %d", rule, old)) {
			t.Errorf("the rule is not as its owner made it:\n%s", now)
		}
	}
	w.judged(20)
	if n := w.refus.Load(); n > 0 {
		t.Errorf("the kernel refused %d packets", n)
	}
	tables := r.tables()
	r.kill9()
	r.start()
	r.settled("wan0", "wan1")
	if now := r.tables(); now != tables {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", now, tables)
	}
}
