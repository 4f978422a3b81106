package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"multihomed/internal/offswitch"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// switchOff changes the switch, as multihomectl does.
func (r *rig) switchOff(edit func(*offswitch.State) error) {
	r.t.Helper()
	_, _, _, err := offswitch.Change(r.cfg.Switch(), edit)
	r.must(err)
}

// switches runs multihomectl, which must succeed.
func (r *rig) switches(args ...string) string {
	r.t.Helper()
	out, err := r.ctl(args...)
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

// nothingStands checks that nothing of ours is in the kernel.
func (r *rig) nothingStands(when string) {
	r.t.Helper()
	if left, err := r.Leftovers(); err != nil || len(left) > 0 {
		r.t.Errorf("%s there are %q, %v", when, left, err)
	}
}

// TestDispatcherOff is a host without the daemon that is switched off: whatever the
// dispatcher is told, it makes nothing, and complains of nothing.
func TestDispatcherOff(t *testing.T) {
	r := dispatched(t, "")
	r.up("wan0", "wan1")
	table := r.table(r.settled("wan0", "wan1"), "wan1", routing.IPv4)
	// A running stand-in does it.
	if out := r.switches("off"); !strings.Contains(out, "multihomed is switched off: removed ") {
		t.Errorf("off: %s", out)
	}
	r.nothingStands("off")
	call := func(link string) {
		t.Helper()
		out, err := r.Run(t.Context(), "env", "-i", "NM_DISPATCHER_ACTION=up", "DEVICE_IFACE="+link, "DEVICE_IP_IFACE="+link,
			"CONNECTION_UUID=0a", "CONNECTION_ID="+link, "/usr/sbin/multihomed-dispatcher", link, "up")
		r.must(err)
		if out != "" {
			t.Errorf("the dispatcher says %s", out)
		}
	}
	r.must(r.Down(t.Context(), "wan1"))
	r.up("wan1")
	for _, link := range []string{"wan0", "wan1"} {
		call(link)
	}
	r.nothingStands("off, and activated")
	r.must(os.WriteFile(offswitch.Path(r.cfg.StateDir), []byte("damaged"), 0o600))
	call("wan0")
	r.nothingStands("off by a damaged file")

	// One link only.
	r.switchOff((*offswitch.State).SwitchOn)
	r.switches("off", "wan1")
	r.up("wan0")
	r.settled("wan0")
	r.must(r.lacks(lab.IPv4, "oif wan1"))
	if out := r.switches("on"); !strings.Contains(out, "2 links with their routing") {
		t.Errorf("on: %s", out)
	}
	if now := r.table(r.settled("wan0", "wan1"), "wan1", routing.IPv4); now != table {
		t.Errorf("wan1 has table %d, had %d", now, table)
	}
}

// TestOffStraysNothing switches a link off and on many times while another one carries
// traffic: no packet of that leaves by another link; and a rename changes nothing.
func TestOffStraysNothing(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	first, second := r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))
	r.up("wan0", "wan1")
	r.start()
	r.settled("wan0", "wan1")
	address, err := r.WaitAddr(t.Context(), "wan1", lab.IPv4)
	r.must(err)
	captures := map[*lab.ISP]*lab.Capture{}
	for _, isp := range []*lab.ISP{first, second} {
		captures[isp], err = isp.Capture()
		r.must(err)
	}
	ping, err := r.Start(lab.ProcessConfig{Path: "ping", Args: []string{"-i", "0.01", "-I", address.String(), lab.InternetAddr(lab.IPv4).String()}})
	r.must(err)
	for range 10 {
		r.switches("off", "wan0")
		r.must(r.lacks(lab.IPv4, "oif wan0"))
		r.must(r.ladder("wan1", lab.IPv4))
		r.switches("on", "wan0")
		r.must(r.ladder("wan0", lab.IPv4))
	}
	r.must(ping.Stop(context.WithoutCancel(t.Context())))
	foreign, err := captures[first].Foreign(first.IPv4(), first.IPv6())
	r.must(err)
	if len(foreign) > 0 {
		t.Errorf("strayed:\n%s", lab.FormatPackets(foreign))
	}
	for _, c := range captures {
		r.must(c.Close())
	}

	// The profile is off, whatever its interface is called, for each program that starts.
	r.switches("off", "wan1")
	links := offswitch.Load(r.cfg.Switch()).Links
	if len(links) != 1 || links[0].UUID == "" || links[0].Interface != "wan1" {
		t.Fatalf("off are %+v", links)
	}
	r.must(r.Down(t.Context(), "wan1"))
	r.must(r.Modify(t.Context(), "wan1", "connection.interface-name", ""))
	r.ip("link", "set", "wan1", "down")
	r.ip("link", "set", "wan1", "name", "modem7")
	r.ip("link", "set", "modem7", "up")
	labtest.Eventually(t, func() error {
		_, err := r.Run(t.Context(), "nmcli", "connection", "up", "wan1", "ifname", "modem7")
		return err
	})
	_, err = r.WaitAddr(t.Context(), "modem7", lab.IPv4)
	r.must(err)
	r.kill9()
	r.start()
	labtest.Eventually(t, func() error {
		view, err := r.look()
		if err != nil {
			return err
		}
		if claim := view.Claims["modem7"]; !strings.Contains(claim.Why, "switched off since ") {
			return fmt.Errorf("modem7 is %+v", claim)
		}
		return view.Converged()
	})
	r.must(r.lacks(lab.IPv4, "modem7"))
	if out := r.switches("on", "modem7"); !strings.Contains(out, "modem7 is switched on: 1 link with its routing") {
		t.Errorf("on: %s", out)
	}
}
