package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/dispatcher"
	"multihomed/internal/handoff"
	"multihomed/internal/hookstate"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

// TestWithAndWithoutTheDaemon: status without the daemon combines the same facts as the daemon: the
// same links, roles, reasons, sources, tables and objects, for all sources of links.
func TestWithAndWithoutTheDaemon(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:wan1;interface-name:wan3;interface-name:hook0"}, `
[[exclude]]
interface = "wan4"
[[link]]
interface = "wan2"
last_resort = true
[failover]
recover = "1s"
`)
	// NetworkManager's own, one with DHCP and advertisements and one that is never a default.
	r.isp(lab.DefaultISP(0))
	for _, n := range []int{2, 4} {
		cfg, settings := static(n)
		r.isp(cfg, append(settings, "ipv4.never-default", "yes")...)
	}
	r.up("wan0", "wan2", "wan4")
	// A client's and a hook's.
	for _, n := range []int{1, 3} {
		cfg := lab.DefaultISP(n)
		cfg.NoDHCP, cfg.NoRA = true, true
		labtest.NewISP(t, r.Host, cfg)
		r.ip("link", "set", cfg.Link, "up")
		r.ip("address", "add", staticAddr(n).String()+"/24", "dev", cfg.Link)
		r.ip("address", "add", staticAddr(n).Next().String()+"/24", "dev", cfg.Link)
	}
	_, err := r.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	r.must(err)
	r.ip("rule", "add", "priority", "31000", "fwmark", "7", "lookup", "300")
	r.start()
	r.settled("wan0")
	request := routed(staticAddr(1).String())
	newLeaser(t, "client").get(request)
	index, err := hookstate.Index("wan3")
	r.must(err)
	router := netip.AddrFrom4([4]byte{100, 64, 3, 1})
	for _, c := range hookstate.Of(dispatcher.Event{
		Interface: "wan3", Caller: "dhclient", Effect: dispatcher.Configured, Configs: map[routing.Family]dispatcher.Config{
			routing.IPv4: {Addresses: []netip.Prefix{netip.PrefixFrom(staticAddr(3), 24)}, Gateways: []netip.Addr{router}},
		},
	}, index, time.Now()) {
		r.must(hookstate.Put(r.cfg.RuntimeDir, c))
	}
	r.must(handoff.Send(r.cfg.RuntimeDir, handoff.Message{Interface: "wan3"}))
	stands := func(words string) {
		t.Helper()
		labtest.Eventually(t, func() error {
			if rules, err := r.RulesText(t.Context(), lab.IPv4); err != nil || !strings.Contains(rules, words) {
				return fmt.Errorf("no rule has %q (%w) in\n%s", words, err, rules)
			}
			return nil
		})
	}
	stands("oif wan3 lookup")
	// What a hook said is about the interface, not about its name, and another one has
	// that by now.
	r.ip("link", "set", "wan3", "down")
	r.ip("link", "set", "wan3", "name", "hook0")
	r.ip("link", "set", "hook0", "up")
	r.ip("link", "add", "wan3", "type", "veth", "peer", "name", "wan3p")
	r.ip("link", "set", "wan3", "up")
	r.ip("address", "add", "192.168.77.1/24", "dev", "wan3")
	stands("oif hook0 lookup")
	var with *status.Status
	labtest.Eventually(t, func() error {
		var err error
		if with, err = r.json(); err != nil {
			return err
		}
		if with.By != "daemon" || len(with.Links) != 4 || !with.InForce.Complete() {
			return fmt.Errorf("%d links by %s, %+v", len(with.Links), with.By, with.InForce)
		}
		// NetworkManager has seen the new interfaces, and the daemon what it says of them.
		if !slices.ContainsFunc(with.Others, func(o status.Other) bool { return o.Interface == "wan3p" && o.Why == "disconnected" }) {
			return fmt.Errorf("other interfaces are %+v", with.Others)
		}
		// hook0 was down: traffic and rules must not change any more because of a judgement.
		for _, u := range with.Failover.Uplinks {
			if u.State.Dead() {
				return fmt.Errorf("%s is %s in %s: %s", u.Interface, u.State, u.Family, u.Why)
			}
		}
		return nil
	})
	compare := func(when string) {
		t.Helper()
		labtest.Eventually(t, func() error {
			without, err := r.json()
			if err != nil {
				return err
			}
			if without.By == with.By {
				return errors.New("the daemon answered")
			}
			// Only a process that stays can judge an uplink, and count.
			own := cmpopts.IgnoreFields(status.Status{}, "Answers", "OK", "By", "Version", "Daemon", "Failover", "Counters")
			since := cmpopts.IgnoreFields(status.Link{}, "Since")
			values := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
			problems := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Problems" }, cmp.Comparer(func(a, b []status.Problem) bool {
				return slices.Equal(codes(a), codes(b))
			}))
			if diff := cmp.Diff(with, without, own, since, values, problems); diff != "" {
				return fmt.Errorf("%s: with the daemon (-), without it (+):\n%s", when, diff)
			}
			return nil
		})
	}
	r.must(r.daemon.Stop(t.Context()))
	compare("stopped")
	// The tables come from the database or, if it is unusable, from the kernel.
	leases := r.cfg.StateDir + "/leases.db"
	_, err = r.Run(t.Context(), "mv", leases, leases+".away")
	r.must(err)
	compare("without the database")
}

// codes are those of problems, but for that of the daemon that does not run, and those that follow from how it judges
// uplinks.
func codes(all []status.Problem) (out []string) {
	judged := []routing.Code{"daemon", check.UplinkDead, check.AllDead, check.NeverAnswered, check.NotWatched}
	for _, p := range all {
		if !slices.Contains(judged, p.Code) {
			out = append(out, string(p.Code)+" "+p.Link)
		}
	}
	slices.Sort(out)
	return out
}

// json is what `multihomectl status --json` says.
func (r *rig) json() (*status.Status, error) {
	text, err := r.ctl("status", "--json")
	if !strings.HasPrefix(text, "{") {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	r.must(schematest.Check("status", []byte(text)))
	return status.Decode([]byte(text), true)
}
