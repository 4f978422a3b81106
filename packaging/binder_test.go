package packaging_test

import (
	"fmt"
	"strconv"
	"strings"

	"multihomed/test/lab"
)

// boundAsker is a program of a user: it asks the echo server of an address by TCP, and prints who answers and its own
// cgroup. Perl is on every Debian.
const boundAsker = `use IO::Socket::IP;
alarm 20;
my $s = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1], Type => SOCK_STREAM) or die "connect: $@";
print $s "who?\n"; print scalar <$s>; print qx(cat /proc/self/cgroup);`

const boundAskerPath = "/var/tmp/bound-asker"

// binder binds programs by the installed helper: those of root, those of a user with a cgroup of his own, and nobody else's.
func (s *system) binder() {
	s.t.Helper()
	s.must(s.WriteFile(boundAskerPath, []byte(boundAsker), 0o644))
	for _, isp := range s.isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			// Not in the cgroup of this test, which is outside of the machine.
			run := []string{"systemd-run", "--quiet", "--pipe", "--wait", "multihomectl", "run", "--require-helper", "--link", isp.Link().Name(), "--", "perl", boundAskerPath, lab.InternetAddr(f).String(), strconv.Itoa(lab.EchoPort)}
			if out := s.run(run...); !strings.Contains(out, isp.Name()) || !strings.Contains(out, "/multihomed-run-") {
				s.t.Errorf("bound to %s, root gets\n%s", isp.Link().Name(), out)
			}
		}
	}
	status := s.run("sh", "-ec", "cat /proc/$(systemctl show -P MainPID multihomed-binder.service)/status")
	for _, want := range []string{"CapEff:\t0000008000001000", "CapBnd:\t0000008000001000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			s.t.Errorf("the helper's process lacks %q:\n%s", want, status)
		}
	}
	if strings.Contains(status, "Uid:\t0") {
		s.t.Errorf("the helper is root:\n%s", status)
	}

	// systemd delegates the cgroup of a unit to its user (Delegate= in systemd.resource-control(5)).
	user := func(name, group string, more ...string) (string, error) {
		args := []string{"systemd-run", "--quiet", "--pipe", "--wait", "-p", "User=" + name, "-p", "SupplementaryGroups=" + group}
		args = append(append(args, more...), "multihomectl", "run", "--require-helper", "--link", "wan1", "--", "perl", boundAskerPath, lab.InternetAddr(lab.IPv4).String(), strconv.Itoa(lab.EchoPort))
		return s.Run(s.t.Context(), args...)
	}
	if out, err := user("mail", "multihomed", "-p", "Delegate=yes"); err != nil || !strings.Contains(out, s.isps[1].Name()) {
		s.t.Errorf("a member of the group gets %v\n%s", err, out)
	}
	if out, err := user("mail", "games", "-p", "Delegate=yes"); err == nil || !strings.Contains(fmt.Sprint(out, err), "usermod -aG multihomed") {
		s.t.Errorf("somebody gets %v\n%s", err, out)
	}
	// Who has no cgroup gets a scope of the service manager.
	uid := s.run("id", "-u", "mail")
	s.run("systemctl", "start", "user@"+uid+".service")
	if out, err := user("mail", "multihomed", "-E", "XDG_RUNTIME_DIR=/run/user/"+uid); err != nil || !strings.Contains(out, s.isps[1].Name()) || !strings.Contains(out, "user@"+uid+".service/app.slice/multihomed-run-") {
		s.t.Errorf("a user with a service manager gets %v\n%s", err, out)
	}
	s.run("systemctl", "stop", "user@"+uid+".service")
	s.run("systemctl", "reset-failed")

	// The servers of links stay with systemd while the daemon restarts.
	s.run("systemctl", "restart", "multihomed.service")
	s.active()
	s.eventually(func() error {
		if n := s.run("systemctl", "show", "-P", "NFileDescriptorStore", "multihomed.service"); n != "2" {
			return fmt.Errorf("systemd keeps %s descriptors for two links", n)
		}
		return nil
	})
	if out := s.run("journalctl", "--no-pager", "-u", "multihomed.service", "-p", "warning", "--since", "-1min"); strings.Contains(out, "DNS servers") {
		s.t.Errorf("the log says\n%s", out)
	}
	s.eventually(func() error {
		if left := s.run("sh", "-c", "find /sys/fs/cgroup -name 'multihomed-run-*'"); left != "" {
			return fmt.Errorf("there are cgroups left: %s", left)
		}
		return nil
	})
}
