package e2e_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// unwant makes the host's NetworkManager one that is installed and that no unit wants, as
// `systemctl disable` does. The function that it returns enables it again.
func (r *rig) unwant() (enable func()) {
	r.t.Helper()
	const booted, wants = "/run/systemd/system", "/etc/systemd/system"
	r.must(os.MkdirAll(booted, 0o755))
	r.must(unix.Mount("tmpfs", wants, "tmpfs", 0, ""))
	isDone := false
	enable = func() {
		if !isDone {
			isDone = true
			r.must(errors.Join(unix.Unmount(wants, unix.MNT_DETACH), os.Remove(booted)))
		}
	}
	r.t.Cleanup(enable)
	return enable
}

// ladders says what the links lack in both families.
func (r *rig) ladders(links ...string) error {
	var errs []error
	for _, link := range links {
		errs = append(errs, r.ladder(link, lab.IPv4), r.ladder(link, lab.IPv6))
	}
	return errors.Join(errs...)
}

// TestLinksOfDisabledNetworkManager: what a disabled NetworkManager has left follows main, its
// addresses and its names like any link.
func TestLinksOfDisabledNetworkManager(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.install()
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	r.up("wan0", "wan1")
	r.start()
	r.settled("wan0", "wan1")
	r.unwant()
	r.must(r.StopNM(t.Context()))
	labtest.Eventually(t, func() error { return r.shows("", "NetworkManager  disabled") })
	r.must(r.holds(both("wan0", "wan1")...))

	for _, router := range []string{"100.64.1.7", "100.64.1.1"} {
		r.ip("route", "del", "default", "dev", "wan1")
		r.ip("route", "add", "default", "via", router, "dev", "wan1", "metric", "500")
		r.eventually(func() error { return r.tableHas("wan1", lab.IPv4, "default via "+router) })
	}
	// The address outlives this, its routes do not.
	r.ip("link", "set", "wan1", "down")
	r.ip("link", "set", "wan1", "up")
	r.ip("route", "replace", "100.64.1.0/24", "dev", "wan1", "src", r.address("wan1", lab.IPv4).String())
	r.ip("route", "replace", "default", "via", "100.64.1.1", "dev", "wan1", "metric", "500")
	r.eventually(func() error { return r.ladder("wan1", lab.IPv4) })
	r.ip("link", "set", "wan1", "name", "other7")
	r.eventually(func() error { return r.ladder("other7", lab.IPv4) })
	r.must(r.daemon.Stop(t.Context()))
	r.start()
	r.must(errors.Join(r.ladder("other7", lab.IPv4), r.ladder("wan0", lab.IPv4)))
	r.ip("link", "set", "other7", "name", "wan1")
	r.eventually(func() error { return r.ladder("wan1", lab.IPv4) })
}

// TestNetworkManagerEnabledAgain: a NetworkManager that is stopped, disabled, enabled and started
// again gets back everything, and one that only restarts loses nothing.
func TestNetworkManagerEnabledAgain(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.install()
	r.must(r.ServeEcho())
	isp0, isp1 := r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))
	r.isp(lab.DefaultISP(2))
	r.up("wan0", "wan1", "wan2")
	r.start()
	r.settled("wan0", "wan1", "wan2")

	r.must(r.StopNM(t.Context()))
	labtest.Eventually(t, func() error { return r.shows("", "NetworkManager  not running") })
	r.must(r.ladders("wan0", "wan1", "wan2"))
	r.must(r.daemon.Stop(t.Context()))
	r.launch()
	r.eventually(func() error { return r.ladders("wan0", "wan1", "wan2") })

	// Nothing tells the daemon that it is disabled now.
	enable := r.unwant()
	address := r.address("wan2", lab.IPv4).String() + "/24"
	r.ip("address", "flush", "dev", "wan2")
	r.eventually(func() error { return r.lacks(lab.IPv4, "oif wan2") })
	r.ip("address", "add", address, "dev", "wan2")
	r.must(r.ladders("wan0", "wan1"))
	enable()
	r.must(r.StartNM(t.Context()))
	r.up("wan2")
	r.eventually(func() error { return r.ladders("wan0", "wan1", "wan2") })
	r.eventually(func() error { return r.shows("", "!going down", "!disabled") })

	// It runs, although it is disabled, and restarts.
	r.unwant()
	r.must(r.RestartNM(t.Context()))
	r.eventually(func() error { return r.ladders("wan0", "wan1", "wan2") })
	r.answer(isp0, isp1)

	// ifupdown takes over a link that still has its address.
	r.must(r.StopNM(t.Context()))
	labtest.Eventually(t, func() error { return r.shows("", "NetworkManager  disabled") })
	r.must(r.WriteInterfaces("iface wan1 inet dhcp\n"))
	r.ifup("wan1")
	r.eventually(func() error { return errors.Join(r.ladder("wan1", lab.IPv4), r.ladder("wan0", lab.IPv4)) })
	labtest.Eventually(t, func() error { return r.shows("wan1", "wan1  uplink", "!going down") })
	r.ifdown("wan1")
	r.eventually(func() error { return r.lacks(lab.IPv4, "oif wan1") })
}
