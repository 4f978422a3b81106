package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"multihomed/internal/status/socket"
	"multihomed/routing"
	"multihomed/test/lab"
)

// TestJournalSaysWhatStatusSays: what takes bound traffic away is in the log without
// anybody asking for the status, and that it is over, too. A gateway that is the link's own
// address is refused, and everything works.
func TestJournalSaysWhatStatusSays(t *testing.T) {
	// NetworkManager would take away what an interface has that it begins to manage.
	r := staticRigOn(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:tun7"}, 2,
		fmt.Sprintf("[[link]]\ninterface = \"wan0\"\ngateway = %q\n[[link]]\nprofile = \"nowhere\"\nrole = \"local\"\n", staticAddr(0)))
	r.logged(0, fmt.Sprintf("error: wan0: the gateway that is set for wan0, %s, is an address of wan0 itself", staticAddr(0)))
	r.works(0)
	r.works(1)

	_, err := r.NewLink(lab.LinkConfig{Name: "tun7", Up: true})
	r.must(err)
	r.ip("address", "add", "192.0.2.1/24", "dev", "tun7")
	r.ip("route", "add", "default", "dev", "tun7", "table", "52")
	const says = `the ipv4 rule "5270: from all lookup 52" is not of multihomed`
	from := len(r.daemon.Lines())
	r.ip("rule", "add", "priority", "5270", "lookup", "52")
	r.logged(from, "error: "+says)
	from = len(r.daemon.Lines())
	r.ip("rule", "del", "priority", "5270")
	r.logged(from, "no longer: "+says)

	// No client has asked so far. Now status shows the logged problems.
	told, err := socket.Ask(t.Context(), r.cfg.RuntimeDir, true)
	r.must(err)
	var shown []string
	for _, p := range told.Problems {
		if p.Severity >= routing.Warning {
			shown = append(shown, string(p.Code))
		}
	}
	if strings.Join(shown, " ") != string(routing.OwnGateway) {
		t.Errorf("status shows %v", shown)
	}
	if n := strings.Count(r.daemon.Log(), says); n != 2 {
		t.Errorf("%d lines about one rule that came and went:\n%s", n, r.daemon.Log())
	}
}

// TestNoAlarmWhileALinkComesUp: its router says with lifetime 0 that it is none, and DHCP
// has not answered. Meanwhile status shows no problem, and none is logged.
func TestNoAlarmWhileALinkComesUp(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.isp(lab.DefaultISP(0))
	silent := lab.DefaultISP(1)
	silent.NoDHCP = true
	isp := r.isp(silent, "ipv4.may-fail", "no", "ipv4.dhcp-timeout", "8")
	ra := isp.RA()
	ra.RouterLifetime = 0
	r.must(isp.SetRA(ra))
	r.start()
	r.up("wan0")
	r.settled("wan0")

	ctx, ended := context.WithCancel(t.Context())
	defer ended()
	go func() {
		defer ended()
		_ = r.Up(t.Context(), "wan1") // DHCP never answers.
	}()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	seen := 0
	for ctx.Err() == nil {
		told, err := socket.Ask(t.Context(), r.cfg.RuntimeDir, true)
		r.must(err)
		if len(told.Problems) > 0 || !told.OK {
			t.Fatalf("ok %t, problems %+v, links %+v", told.OK, told.Problems, told.Links)
		}
		for _, l := range told.Links {
			if l.Interface == "wan1" && l.Pending && len(l.Networks) > 0 {
				seen++
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	if seen == 0 {
		t.Error("wan1 was never seen with an address while it came up")
	}
	if log := r.daemon.Log(); strings.Contains(log, "warning: ") || strings.Contains(log, "error: ") {
		t.Error(log)
	}
	t.Logf("%d times asked while it came up", seen)
}
