package packaging_test

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/machine"
)

// A fault is a way for the service to fail.
type fault struct {
	name string
	// do breaks it on a working host, and undo restores that.
	do, undo string
	// then is what must hold once it is broken.
	then func(*system) error
	// failed says that the unit is given up.
	failed bool
	// systemd says that the outcome is a matter of systemd's version.
	systemd bool
}

const (
	stateDir = "/var/lib/multihomed"
	dropIn   = "/run/systemd/system/multihomed.service.d"
	restart  = "systemctl reset-failed multihomed.service multihomed.socket; systemctl start multihomed.socket; systemctl restart multihomed.service"
	// badReload checks that a reload fails, on a host without procps, and that journal and status say why.
	badReload = "chmod a-x /bin/kill; if systemctl reload multihomed.service; then exit 1; fi; " +
		"timeout 20 sh -c \"until journalctl --sync; journalctl -b -u multihomed.service -o cat | grep '/etc/multihomed/multihomed.toml:1: .*uplink_grup' && " +
		"systemctl show -P StatusText multihomed.service | grep uplink_grup; do sleep 0.1; done\"; chmod a+x /bin/kill; "
	// broken damages the database of a daemon that is stopped.
	broken = "systemctl stop multihomed.service; cd " + stateDir + "; "
)

func faults() []fault {
	override := func(lines string) string {
		return "mkdir -p " + dropIn + "; printf '[Service]\\n" + lines + "\\n' >" + dropIn + "/broken.conf; systemctl daemon-reload; systemctl restart multihomed.service || true"
	}
	// After a fix, a restart is not refused.
	const restored = "rm -r " + dropIn + "; systemctl daemon-reload; systemctl restart multihomed.service"
	const noConfig = "rm -rf /etc/multihomed; " + restart
	database := func(damage string) fault {
		return fault{do: broken + damage + "; systemctl start multihomed.service", undo: "true", then: (*system).movedAside}
	}
	named := func(name string, f fault) fault {
		f.name = name
		return f
	}
	return []fault{
		{
			name: "a typo in the configuration",
			do:   "mkdir -p /etc/multihomed; echo 'uplink_grup = 5' >/etc/multihomed/multihomed.toml; " + badReload + "systemctl restart multihomed.service",
			undo: noConfig,
			then: func(s *system) error {
				if out, err := s.Run(s.t.Context(), "sh", "-c", "journalctl -b -p err -u multihomed.service -o cat MULTIHOMED_CODE=configuration | grep uplink_grup"); err != nil {
					return fmt.Errorf("the journal has no error: %w %s", err, out)
				}
				return s.says(1, "uplink_grup", "/etc/multihomed/multihomed.toml:1")
			},
			systemd: true,
		},
		{
			name: "a configuration that cannot be read",
			do:   "mkdir -p /etc/multihomed; touch /etc/multihomed/multihomed.toml; chmod 0 /etc/multihomed/multihomed.toml; systemctl restart multihomed.service",
			undo: noConfig,
			then: func(s *system) error { return s.says(1, "permission denied") },
		},
		named("a damaged page", database("dd if=/dev/urandom of=leases.db bs=4096 seek=1 count=1 conv=notrunc")),
		named("a garbage header", database("dd if=/dev/urandom of=leases.db bs=100 count=1 conv=notrunc")),
		// user_version is at 60 (https://www.sqlite.org/fileformat.html).
		named("a newer schema", database("printf '\\377' | dd of=leases.db bs=1 seek=61 conv=notrunc")),
		named("a foreign owner", database("chown root:root leases.db; chmod 600 leases.db")),
		{
			name: "a full disk",
			do:   broken + "cp -a . /root/state; mount -t tmpfs -o size=1m,mode=755,uid=multihomed,gid=multihomed tmpfs " + stateDir + "; cp -a /root/state/. " + stateDir + "; cat /dev/zero >" + stateDir + "/filler || true; systemctl start multihomed.service",
			undo: "systemctl stop multihomed.service; umount " + stateDir + "; rm -r /root/state; " + restart,
			then: func(s *system) error { return s.says(0, "disk is full") },
		},
		{name: "a daemon that is stopped", do: "systemctl kill --signal=STOP multihomed.service", undo: "true"},
		{name: "a daemon that ends at once", do: override("ExecStart=\\nExecStart=/bin/false"), undo: restored, failed: true, systemd: true},
		// Slower than any number of starts in some seconds.
		{name: "a daemon that ends after a while", do: override("ExecStart=\\nExecStart=/bin/sh -c \"sleep 3; exit 1\""), undo: restored, failed: true, systemd: true},
		{name: "a missing capability", do: override("AmbientCapabilities=\\nCapabilityBoundingSet="), undo: restored, failed: true, systemd: true},
		{
			name: "a killed database directory", do: "rm -rf " + stateDir, undo: restart,
			then: func(s *system) error { return s.says(0, stateDir) },
		},
	}
}

var soak = flag.Bool("soak", false, "every failure on every release")

// TestFailSafe is promise 8: whatever fails, the links of a host that reconnect work
// within ten seconds. On Debian 13 it tries what another systemd may change.
func TestFailSafe(t *testing.T) {
	for _, release := range []string{machine.Bookworm, machine.Trixie} {
		t.Run(release, func(t *testing.T) {
			s, debs := booted(t, release)
			for _, link := range s.links() {
				s.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link)
			}
			s.install(debs.now)
			s.active()
			for _, link := range s.links() {
				s.must(s.MoveLink(link))
			}
			before := s.networks(s.links()...)
			// A busy host needs its time, whatever works.
			usual := s.reconnects()
			for _, f := range faults() {
				if release == machine.Bookworm || f.systemd || *soak {
					s.step(f.name, func() { s.fails(f, before, usual) })
				}
			}
		})
	}
}

// fails breaks the host in one way, and repairs it. Usual is how long links need while nothing is broken.
func (s *system) fails(f fault, before []network, usual time.Duration) {
	s.t.Helper()
	s.run("sh", "-ec", f.do)
	if f.failed {
		s.eventually(s.givenUp)
	}
	if f.then != nil {
		s.eventually(func() error { return f.then(s) })
	}
	if after := s.reconnects(); after > usual+10*time.Second {
		s.t.Errorf("%s: it took %v until all traffic worked, and before %v", f.name, after, usual)
	}
	if f.failed {
		s.withoutAnybody()
	}
	s.run("sh", "-ec", f.undo)
	s.active()
	if after := s.networks(s.links()...); !slices.Equal(before, after) {
		s.t.Errorf("%s: before %v, after %v", f.name, before, after)
	}
}

// says checks the exit status of status, and texts in it.
func (s *system) says(exit int, texts ...string) error {
	out, err := s.Run(s.t.Context(), "sh", "-c", "multihomectl status --json 2>&1; echo exit $?")
	if err != nil {
		return err
	}
	for _, text := range append(texts, fmt.Sprintf("exit %d", exit)) {
		if !strings.Contains(out, text) {
			return fmt.Errorf("status does not say %q:\n%s", text, out)
		}
	}
	return nil
}

// movedAside checks that a database was moved aside, and that the journal reports it.
func (s *system) movedAside() error {
	out, err := s.Run(s.t.Context(), "sh", "-c", "journalctl -b -u multihomed.service -o cat | grep -o '/[^ ]*leases.db.aside-[^ ,;)]*' | tail -n 1 | xargs ls -d")
	if err == nil && !strings.Contains(out, stateDir+"/leases.db.aside-") {
		err = fmt.Errorf("moved aside is %q", out)
	}
	return err
}

// givenUp checks that the unit has failed, after at most five starts, and that the last step has
// removed the rules that answer "unreachable". A dispatcher that still stands in may have put them
// back: it maintains them.
func (s *system) givenUp() error {
	if state := s.property("ActiveState"); state != "failed" {
		return fmt.Errorf("the service is %s", state)
	}
	if state := s.run("systemctl", "show", "-P", "ActiveState", "multihomed-failed.service"); state != "inactive" {
		return fmt.Errorf("the last step is %s", state)
	}
	if out, err := s.Run(s.t.Context(), "sh", "-c", "journalctl -b -p err -o cat -u multihomed-failed.service | grep 'HAS FAILED' | tail -n 1 | grep 'rules that answered \"unreachable\" removed'"); err != nil {
		return fmt.Errorf("the journal says nothing of rules that were removed: %w %s", err, out)
	}
	if n := s.property("NRestarts"); n > "4" || len(n) > 1 {
		return fmt.Errorf("%s restarts", n)
	}
	return nil
}

// reconnects takes both links down and up, and returns how long it takes until all
// traffic works.
func (s *system) reconnects() time.Duration {
	s.t.Helper()
	for _, link := range s.links() {
		s.run("nmcli", "connection", "down", link)
	}
	began := time.Now()
	for _, link := range s.links() {
		s.run("nmcli", "connection", "up", link)
	}
	s.eventually(func() error {
		for _, isp := range s.isps {
			for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
				if err := s.traffic(isp, f, true); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return time.Since(began)
}

// withoutAnybody is a host whose dispatcher does nothing either: it routes as without us.
func (s *system) withoutAnybody() {
	s.t.Helper()
	s.eventually(func() error {
		if out, err := s.Run(s.t.Context(), "pkill", "-f", "/(multihomed-dispatcher|90-multihomed) stand-in$"); err == nil {
			return fmt.Errorf("a dispatcher stands in: %s", out)
		}
		return nil
	})
	s.run("sh", "-ec", "rm /usr/sbin/multihomed-dispatcher; multihomectl emergency")
	s.must(s.unguarded())
	for _, link := range s.links() {
		s.run("nmcli", "connection", "down", link)
		s.run("nmcli", "connection", "up", link)
	}
	s.eventually(func() error {
		for _, isp := range s.isps {
			if err := s.traffic(isp, lab.IPv4, false); err != nil {
				return err
			}
		}
		return nil
	})
	s.run("ln", "-s", "multihomed", "/usr/sbin/multihomed-dispatcher")
}

// traffic tries what a host needs of a link: unbound traffic, its gateway, and, if all
// is asked for, traffic that is bound to its address and traffic that comes in.
func (s *system) traffic(isp *lab.ISP, f lab.Family, all bool) error {
	ping := func(args ...string) error {
		out, err := s.Run(s.t.Context(), append([]string{"ping", "-c", "1", "-W", "1"}, args...)...)
		if err != nil {
			err = fmt.Errorf("ping %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	}
	gateway, client := isp.Config().IPv4.Addr(), isp.Client4
	if f == lab.IPv6 {
		gateway, client = isp.Config().IPv6.Addr(), isp.Client6
	}
	address := s.address(isp, f)
	errs := []error{ping(lab.InternetAddr(f).String()), ping(gateway.String())}
	if all {
		errs = append(errs, ping("-I", address, lab.InternetAddr(f).String()))
		p, err := s.lab.Start(lab.ProcessConfig{Path: "ping", Namespace: isp.Namespace(), Args: []string{"-c", "1", "-W", "1", "-I", client.String(), address}})
		if err == nil {
			err = p.Wait(s.t.Context())
		}
		if err != nil {
			err = fmt.Errorf("inbound to %s: %w", address, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
