package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestFromNetworkManagerToIfupdownAndBack: a host changes who brings its links up while the
// daemon runs. The newest report counts, and status does not mention a source that is gone.
func TestFromNetworkManagerToIfupdownAndBack(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "stopped", true: "killed"}[killed], func(t *testing.T) {
			r := newRig(t, lab.HostConfig{FastDAD: true}, "")
			r.install()
			r.must(r.ServeEcho())
			isp0, isp1 := r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))
			// NetworkManager leaves IPv6 switched off on them (accept_ra, addr_gen_mode).
			r.must(r.WriteInterfaces("auto lo\niface lo inet loopback\niface wan0 inet dhcp\niface wan1 inet dhcp\n"))
			byHooks := []part{{"wan0", lab.IPv4}, {"wan1", lab.IPv4}}
			r.up("wan0", "wan1")
			r.start()
			r.settled("wan0", "wan1")

			if killed {
				r.must(r.KillNM())
			} else {
				r.must(r.StopNM(t.Context()))
			}
			// The routing of NetworkManager's links stays until a hook reports.
			labtest.Eventually(t, func() error { return r.shows("", "NetworkManager  not running") })
			r.must(r.holds(both("wan0", "wan1")...))
			for _, link := range []string{"wan0", "wan1"} {
				r.ip("address", "flush", "dev", link)
				r.ip("link", "set", link, "down")
			}
			r.ifup("wan0", "wan1")
			r.eventually(func() error { return r.holds(byHooks...) })
			r.answersOnItsLink(isp0, lab.IPv4)
			r.answersOnItsLink(isp1, lab.IPv4)
			for _, link := range []string{"wan0", "wan1"} {
				r.eventually(func() error { return r.shows(link, link+"  uplink", "!settling", "!profile", "!going down") })
			}
			// Also without ifdown.
			r.must(r.StartNM(t.Context()))
			r.ifdown("wan1")
			r.up("wan0", "wan1")
			r.eventually(func() error { return r.holds(both("wan0", "wan1")...) })
			r.answer(isp0, isp1)
			for _, link := range []string{"wan0", "wan1"} {
				labtest.Eventually(t, func() error { return r.shows(link, "profile "+link) })
			}
			r.ifdown("wan0")
		})
	}
}

// shows compares texts with the status of an interface (of the host if it is empty): it must have
// them, or not with a ! in front.
func (r *rig) shows(link string, words ...string) error {
	args := []string{"status"}
	if link != "" {
		args = append(args, link)
	}
	out, err := r.ctl(args...)
	if out == "" {
		return err
	}
	var errs []error
	for _, w := range words {
		if w, not := strings.CutPrefix(w, "!"); strings.Contains(out, w) == not {
			errs = append(errs, fmt.Errorf("%q in the status: %t", w, not))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New(out))
	}
	return errors.Join(errs...)
}

// veth makes an interface with an address that only its creator knows.
func (r *rig) veth(name, address string) {
	r.t.Helper()
	r.ip("link", "add", name, "type", "veth", "peer", "name", name+"p")
	r.ip("link", "set", name, "up")
	r.ip("link", "set", name+"p", "up")
	r.ip("address", "add", address, "dev", name)
}

// leaseOf leases the routing of an address, and checks its rule.
func (r *rig) leaseOf(name, address string) {
	r.t.Helper()
	if out, err := r.ctl("lease", "-i", name, "-a", address); err != nil {
		r.t.Fatalf("lease of %s on %s: %v: %s", address, name, err, out)
	}
	if rules, err := r.RulesText(r.t.Context(), lab.IPv4); err != nil || !strings.Contains(rules, "from "+address+" lookup") {
		r.t.Fatalf("%s was leased on %s and has no rule (%v):\n%s", address, name, err, rules)
	}
	r.must(r.shows(name, "!going down", "!taken away"))
}

// TestLeaseWhateverNetworkManagerDoes: a client gets the routing of an address on an
// interface that is no link of anybody, whatever became of it before.
func TestLeaseWhateverNetworkManagerDoes(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.must(r.EnableDispatcher())
	r.install()
	r.isp(lab.DefaultISP(0))
	silent := lab.DefaultISP(1)
	silent.NoDHCP, silent.NoRA = true, true
	r.isp(silent, "connection.autoconnect", "yes", "ipv4.dhcp-timeout", "120")
	r.up("wan0")
	r.start()
	r.settled("wan0")
	const address, prefix = "192.0.2.7", "192.0.2.7/24"
	nmcli := func(args ...string) {
		t.Helper()
		_, err := r.NMCLI(t.Context(), args...)
		r.must(err)
	}
	again := func() {
		t.Helper()
		r.ip("link", "del", "ppp7")
		r.veth("ppp7", prefix)
	}
	conf := "/etc/NetworkManager/conf.d/unmanaged.conf"
	unmanaged := func() {
		t.Helper()
		r.must(os.MkdirAll("/etc/NetworkManager/conf.d", 0o755))
		r.must(os.WriteFile(conf, []byte("[keyfile]\nunmanaged-devices=interface-name:ppp*\n"), 0o644))
		nmcli("general", "reload")
	}

	// NetworkManager takes it for an external interface, and stops managing it. One that it
	// sees before the address it would take for its own, and so it starts behind it.
	r.must(r.StopNM(t.Context()))
	r.veth("ppp7", prefix)
	r.must(r.StartNM(t.Context()))
	r.must(r.WaitDeviceState(t.Context(), "ppp7", "connected (externally)"))
	r.leaseOf("ppp7", address)
	nmcli("device", "set", "ppp7", "managed", "no")
	r.leaseOf("ppp7", address)
	// A second address takes no part until it is leased, too.
	r.ip("address", "add", "198.51.100.77/24", "dev", "ppp7")
	r.leaseOf("ppp7", address)
	r.must(r.lacks(lab.IPv4, "198.51.100.77"))
	r.leaseOf("ppp7", "198.51.100.77")
	unmanaged()
	for range 2 {
		again()
		r.leaseOf("ppp7", address)
	}

	// It starts, and does not get to its end.
	r.must(r.RestartNM(t.Context()))
	labtest.Eventually(t, func() error { return r.shows("", "NetworkManager is starting") })
	r.leaseOf("ppp7", address)
	again()
	r.leaseOf("ppp7", address)
	if out, err := r.ctl("lease", "release", "-i", "ppp7", "-a", address); err != nil {
		t.Errorf("release: %v: %s", err, out)
	}
	r.gone(address)
	r.leaseOf("ppp7", address)

	// While NetworkManager is away, its interface is deleted; a new one of that name is not its link.
	r.ip("link", "del", "ppp7")
	r.must(r.StopNM(t.Context()))
	r.veth("ppp7", prefix)
	r.leaseOf("ppp7", address)
	r.ip("link", "del", "wan0")
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan0") })
	r.veth("wan0", "192.0.2.107/24")
	r.leaseOf("wan0", "192.0.2.107")
	r.gone("oif wan1")
}

// TestNetworkManagerDisabled: what a disabled NetworkManager has left keeps its routing
// over a restart as long as its addresses stand, and nothing waits for it.
func TestNetworkManagerDisabled(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.install()
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	r.isp(lab.DefaultISP(2))
	r.up("wan0", "wan1", "wan2")
	r.start()
	r.settled("wan0", "wan1", "wan2")
	r.unwant()
	r.must(r.StopNM(t.Context()))
	labtest.Eventually(t, func() error { return r.shows("", "NetworkManager  disabled", "!waiting") })
	// Its links keep what they have until it goes. What comes then is of somebody else.
	r.must(r.holds(both("wan0", "wan1", "wan2")...))
	address := r.address("wan2", lab.IPv4).String() + "/24"
	r.ip("address", "flush", "dev", "wan2")
	r.eventually(func() error { return errors.Join(r.lacks(lab.IPv4, "oif wan2"), r.lacks(lab.IPv6, "oif wan2")) })
	r.ip("address", "add", address, "dev", "wan2")
	r.ip("address", "add", "198.51.100.7/24", "dev", "wan1")
	r.eventually(func() error {
		if r.lacks(lab.IPv4, "from 198.51.100.7") == nil {
			return errors.New("wan1 has no rule for its new address")
		}
		return nil
	})
	r.must(r.lacks(lab.IPv4, "oif wan2"))
	r.ip("address", "flush", "dev", "wan2")
	r.ip("address", "delete", "198.51.100.7/24", "dev", "wan1")
	r.must(r.daemon.Stop(t.Context()))
	r.start()
	r.must(r.holds(both("wan0", "wan1")...))
	r.must(r.shows("", "NetworkManager  disabled", "!waiting", "!none"))
	// Without an IPv6 address, wan0 borrows that of wan1, which steps aside: IPv4 alone counts.
	r.ip("address", "flush", "dev", "wan0")
	r.eventually(func() error { return errors.Join(r.lacks(lab.IPv4, "oif wan0"), r.ladder("wan1", lab.IPv4)) })
	r.must(r.WriteInterfaces("iface wan0 inet dhcp\n"))
	r.ifup("wan0")
	r.eventually(func() error { return errors.Join(r.ladder("wan0", lab.IPv4), r.ladder("wan1", lab.IPv4)) })
	r.eventually(func() error { return r.shows("wan0", "wan0  uplink", "!going down") })
	r.ifdown("wan0")
}
