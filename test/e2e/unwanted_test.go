package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/unitfile"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// keepAway leaves in /run, which is the lab's own, what systemd has there of a unit that
// is disabled or, until the next boot, masked.
func (r *rig) keepAway(how string) {
	r.t.Helper()
	// Only where it stands does a unit that nothing wants count as disabled.
	const directory = "/run/systemd/system"
	r.must(os.MkdirAll(directory, 0o755))
	r.t.Cleanup(func() { r.must(os.RemoveAll(directory)) })
	name, want := filepath.Join(directory, unitfile.Service), unitfile.Disabled
	if how == "mask" {
		want = unitfile.Masked
		r.must(os.Symlink("/dev/null", name))
	} else {
		r.must(os.WriteFile(name, []byte("[Unit]\n"), 0o644))
	}
	if have := unitfile.Read(os.DirFS("/"), unitfile.Service); have != want {
		r.t.Fatalf("the unit is %s, want %s", have, want)
	}
}

// guards counts the rules that answer "unreachable".
func (r *rig) guards() (n int) {
	r.t.Helper()
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		text, err := r.RulesText(r.t.Context(), f)
		r.must(err)
		for line := range strings.Lines(text) {
			// 7 is RTN_UNREACHABLE; ip -N names nothing.
			if strings.HasSuffix(strings.TrimSpace(line), " 7 proto 150") {
				n++
			}
		}
	}
	return n
}

// reaches checks that the host reaches its gateways and the Internet as without us.
func (r *rig) reaches(isps ...*lab.ISP) {
	r.t.Helper()
	targets := []string{lab.InternetAddr(lab.IPv4).String()}
	for _, isp := range isps {
		targets = append(targets, isp.Config().IPv4.Addr().String())
	}
	for _, target := range targets {
		labtest.Eventually(r.t, func() error {
			out, err := r.Run(r.t.Context(), "ping", "-c", "1", "-W", "1", target)
			if err != nil {
				rules, _ := r.RulesText(r.t.Context(), lab.IPv4)
				return fmt.Errorf("ping %s: %w: %s\n%s", target, err, out, rules)
			}
			return nil
		})
	}
}

// TestUnwanted keeps the service from running in each way while the routing is active, and
// reconnects both links. The host keeps a default route, whichever caller comes first, and `off`
// removes the remaining routing.
func TestUnwanted(t *testing.T) {
	for _, how := range []string{"disable", "mask"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, lab.HostConfig{FastDAD: true}, "log_level = \"debug\"\n")
			r.must(r.EnableDispatcher())
			r.install()
			isps := []*lab.ISP{r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))}
			r.start()
			r.up("wan0", "wan1")
			r.settled("wan0", "wan1")
			// NetworkManager's own calls are over: one that came later would do what call does.
			for _, link := range []string{"wan0", "wan1"} {
				r.logged(0, link+": event (caller NetworkManager, action up)")
			}
			if n := r.guards(); n < 4 {
				t.Fatalf("%d rules answer unreachable", n)
			}
			// It is killed, and the dispatcher finds its routing.
			r.kill9()
			r.rewrite("") // What call says is not for debugging.
			r.keepAway(how)
			call := func() string {
				t.Helper()
				out, err := r.Run(t.Context(), "env", "-i", "NM_DISPATCHER_ACTION=up", "DEVICE_IFACE=wan0", "DEVICE_IP_IFACE=wan0",
					"CONNECTION_UUID=0a", "CONNECTION_ID=wan0", "/usr/sbin/multihomed-dispatcher", "wan0", "up")
				r.must(err)
				return out
			}
			first := call()
			for _, part := range []string{unitfile.Service + " is " + map[string]string{"disable": "disabled", "mask": "masked"}[how], "removed", "multihomectl off", "multihomectl flush"} {
				if !strings.Contains(first, part) {
					t.Errorf("the dispatcher does not say %q: %s", part, first)
				}
			}
			if again := call(); again != "" {
				t.Errorf("the second time it says %s", again)
			}
			if n := r.guards(); n > 0 {
				t.Errorf("%d rules answer unreachable", n)
			}
			for _, link := range []string{"wan0", "wan1"} {
				r.must(r.Down(t.Context(), link))
			}
			r.up("wan0", "wan1")
			r.reaches(isps...)
			if left, err := r.Leftovers(); err != nil || len(left) == 0 {
				t.Errorf("more than that was removed (%v)", err)
			}
			r.switches("off")
			r.nothingStands("off")
		})
	}
}

// TestUnwantedHooks is the same for every hook but NetworkManager's.
func TestUnwantedHooks(t *testing.T) {
	for name, env := range map[string][]string{
		"ifupdown": {"IFACE=wan0", "MODE=start", "PHASE=post-up", "METHOD=static", "ADDRFAM=inet", "IF_ADDRESS=100.64.0.5/24"},
		"dhclient": {"interface=wan0", "reason=BOUND", "new_ip_address=100.64.0.5", "new_subnet_mask=255.255.255.0"},
		"dhcpcd":   {"interface=wan0", "reason=BOUND", "protocol=dhcp", "if_up=true", "new_ip_address=100.64.0.5", "new_subnet_cidr=24"},
		"udev":     {"ACTION=remove", "SUBSYSTEM=net", "INTERFACE=wan9"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lab.HostConfig{FastDAD: true}, "")
			r.install()
			r.isp(lab.DefaultISP(0))
			r.start()
			r.up("wan0")
			r.settled("wan0")
			r.kill9()
			r.keepAway("disable")
			out, err := r.Run(t.Context(), "env", slices.Concat([]string{"-i"}, env, []string{"/usr/sbin/multihomed-dispatcher", name})...)
			if err != nil || !strings.Contains(out, unitfile.Service+" is disabled") {
				t.Errorf("%v: %s", err, out)
			}
			if n := r.guards(); n > 0 {
				t.Errorf("%d rules answer unreachable", n)
			}
		})
	}
}

// TestMaskedDaemonEnds: systemd knows nothing of a masked unit but its process, so the
// daemon itself removes the rules when it ends. Of a unit that is disabled it does not
// know whether it is restarted.
func TestMaskedDaemonEnds(t *testing.T) {
	for how, guarded := range map[string]bool{"mask": false, "disable": true} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, lab.HostConfig{FastDAD: true}, "")
			r.isp(lab.DefaultISP(0))
			r.start()
			r.up("wan0")
			r.settled("wan0")
			r.keepAway(how)
			r.must(r.daemon.Signal(unix.SIGTERM))
			ctx, cancel := r.patience()
			defer cancel()
			r.must(r.daemon.Wait(ctx))
			if n := r.guards(); (n > 0) != guarded {
				t.Errorf("%d rules answer unreachable; the log:\n%s", n, r.daemon.Log())
			}
			if said := strings.Contains(r.daemon.Log(), unitfile.Service+" is masked"); said == guarded {
				t.Errorf("the log:\n%s", r.daemon.Log())
			}
			// As ExecStopPost= of the unit does.
			r.switches("emergency", "--if-unwanted")
			if n := r.guards(); n > 0 {
				t.Errorf("%d rules answer unreachable", n)
			}
		})
	}
}
