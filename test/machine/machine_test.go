package machine_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/machine"
	"multihomed/test/machine/machinetest"
)

func TestMain(m *testing.M) {
	os.Exit(machine.Main(m.Run, machine.Bookworm, machine.Trixie))
}

func run(tb testing.TB, m *machine.Machine, args ...string) string {
	tb.Helper()
	out, err := m.Run(tb.Context(), args...)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestReleasesAreRunning(t *testing.T) {
	for _, release := range []string{machine.Bookworm, machine.Trixie} {
		t.Run(release, func(t *testing.T) {
			m := machinetest.Boot(t, machine.Config{Release: release, Name: "pc"})
			for _, c := range []struct{ command, want string }{
				{"systemctl is-system-running", "running"},
				{"systemctl is-active NetworkManager", "active"},
				{"systemctl list-units --failed --plain --no-legend", ""},
				{". /etc/os-release; echo $VERSION_CODENAME", release},
				{"cat /proc/sys/kernel/hostname", "pc"},
				{"readlink /proc/1/ns/net /proc/self/ns/net | uniq | wc -l", "1"},
				{"stat -fc %T /sys/fs/cgroup", "cgroup2fs"},
				{"grep -h ^CapEff /proc/1/status /proc/self/status | uniq | wc -l", "1"},
				{"id -u; pwd; cat /proc/1/comm", "0\n/\nsystemd"},
				{"test -w /proc/sys/net/ipv4/ip_forward && test -u /bin/su && echo yes", "yes"},
				{"test -w /dev/null && test -c /dev/null && echo yes", "yes"},
			} {
				if got := run(t, m, "sh", "-c", c.command); got != c.want {
					t.Errorf("%s: %q, want %q", c.command, got, c.want)
				}
			}
		})
	}
}

// A link is there before anything starts, and again after a reboot, with none of
// what was configured; the disk stays and /run does not.
func TestReboot(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true})
	isp := labtest.NewISP(t, host, lab.DefaultISP(0))
	m := machinetest.Boot(t, machine.Config{})
	if err := m.MoveLink("wan0"); err != nil {
		t.Fatal(err)
	}
	run(t, m, "sh", "-c", "echo kept > /root/file; echo lost > /run/file; ip rule add pref 77 table 77; ip addr add 198.51.100.7/24 dev wan0")
	identity := run(t, m, "cat", "/etc/machine-id", "/sys/class/net/wan0/address")
	boot := run(t, m, "cat", "/proc/sys/kernel/random/boot_id")
	before := m.Leader()

	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.Leader() == before {
		t.Error("process 1 is the same")
	}
	if got := run(t, m, "cat", "/root/file"); got != "kept" {
		t.Errorf("the file on the disk has %q", got)
	}
	if out, err := m.Run(t.Context(), "cat", "/run/file"); err == nil {
		t.Errorf("the file in /run is still there: %q", out)
	}
	if diff := cmp.Diff(identity, run(t, m, "cat", "/etc/machine-id", "/sys/class/net/wan0/address")); diff != "" {
		t.Errorf("machine and hardware address (-before +after):\n%s", diff)
	}
	if got := run(t, m, "cat", "/proc/sys/kernel/random/boot_id"); got == boot {
		t.Error("the boot has the same number")
	}
	for _, command := range []string{"ip rule show pref 77", "ip addr show dev wan0 to 198.51.100.0/24"} {
		if got := run(t, m, "sh", "-c", command); got != "" {
			t.Errorf("%s is as before the reboot: %s", command, got)
		}
	}
	if got, err := m.Journal(t.Context(), "NetworkManager.service"); err != nil || strings.Count(got, "is starting...") != 1 {
		t.Errorf("the journal of NetworkManager since the reboot: %v\n%s", err, got)
	}
	waitOnline(t, m, isp)
}

// waitOnline waits for an address from the provider, which NetworkManager asks for
// without being told.
func waitOnline(tb testing.TB, m *machine.Machine, isp *lab.ISP) {
	tb.Helper()
	labtest.Eventually(tb, func() error {
		out, err := m.Run(tb.Context(), "nmcli", "-g", "GENERAL.STATE,IP4.ADDRESS", "device", "show", isp.Link().Name())
		if err != nil {
			return err
		}
		state, addr, _ := strings.Cut(strings.TrimSpace(out), "\n")
		prefix, err := netip.ParsePrefix(addr)
		if err != nil || state != "100 (connected)" || !isp.IPv4().Contains(prefix.Addr()) {
			return fmt.Errorf("%s is %s with %q", isp.Link().Name(), state, addr)
		}
		return nil
	})
}

func TestLinksOfProviders(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true})
	first := labtest.NewISP(t, host, lab.DefaultISP(0))
	second := labtest.NewISP(t, host, lab.DefaultISP(1))
	m := machinetest.New(t, machine.Config{})
	if err := m.MoveLink("wan0"); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.MoveLink("wan1"); err != nil {
		t.Fatal(err)
	}
	if err := m.MoveLink("wan1"); err == nil {
		t.Error("a link that is not in the lab was moved")
	}
	capture, err := first.Capture()
	if err != nil {
		t.Fatal(err)
	}
	waitOnline(t, m, first)
	waitOnline(t, m, second)
	run(t, m, "ping", "-c1", "-W5", "-I", "wan0", lab.InternetAddr4.String())
	pings, err := capture.Matching(func(p lab.Packet) bool {
		return p.Link == "wan0" && p.Dst == lab.InternetAddr4 && p.Proto == unix.IPPROTO_ICMP
	})
	if err != nil || len(pings) == 0 {
		t.Errorf("the provider did not see the ping, but %v (%v)", capture.Packets(), err)
	}
	// A link that is unplugged stays away.
	run(t, m, "ip", "link", "del", "wan1")
	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "ls", "/sys/class/net"); got != "lo\nwan0" {
		t.Errorf("links after the reboot: %q", got)
	}
}

func TestPower(t *testing.T) {
	m := machinetest.New(t, machine.Config{})
	if _, err := m.Run(t.Context(), "true"); err == nil {
		t.Error("a program ran in a machine that is off")
	}
	// Off, files are written all the same.
	if err := m.WriteFile("/etc/motd", []byte("off"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err == nil {
		t.Error("switched on twice")
	}
	if got := run(t, m, "stat", "-c", "%a %U", "/etc/motd"); got != "600 root" {
		t.Errorf("mode and owner: %s", got)
	}
	run(t, m, "sh", "-c", "echo on > /etc/motd")
	p, err := m.Start("sleep", "infinity")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err == nil {
		t.Error("a program outlived the shutdown")
	}
	if m.Leader() != 0 {
		t.Error("process 1 of a machine that is off")
	}
	if err := m.PowerOff(t.Context()); err == nil {
		t.Error("switched off twice")
	}
	if got, err := os.ReadFile(m.Path("/etc/motd")); err != nil || string(got) != "on\n" {
		t.Errorf("what the machine wrote: %q, %v", got, err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It may go off by itself.
	run(t, m, "systemctl", "--no-block", "poweroff")
	labtest.Eventually(t, func() error { return m.PowerOn(t.Context()) })
	// It does not see the end coming.
	stopping := "[Unit]\nDescription=says goodbye\n[Service]\nExecStart=sleep infinity\nExecStop=touch /root/goodbye\n"
	if err := m.WriteFile("/etc/systemd/system/goodbye.service", []byte(stopping), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, m, "systemctl", "start", "goodbye")
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Errorf("killed twice: %v", err)
	}
	if _, err := os.Stat(m.Path("/root/goodbye")); err == nil {
		t.Error("the machine was shut down and not killed")
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPrograms(t *testing.T) {
	m := machinetest.Boot(t, machine.Config{})
	_, err := m.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "out\nerr") {
		t.Errorf("the error of a program: %v", err)
	}
	if _, err := m.Run(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a program that is not there: %v", err)
	}
	if got := run(t, m, "env"); strings.Contains(got, "GO") || strings.Contains(got, "TMPDIR") {
		t.Errorf("the environment is the test's:\n%s", got)
	}
	// The end of the context ends what the program has started, too.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Run(ctx, "sh", "-c", "sleep 1234 & sleep 1234"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end of the context: %v", err)
	}
	labtest.Eventually(t, func() error {
		if out, err := m.Run(t.Context(), "pgrep", "-a", "sleep"); err == nil {
			return fmt.Errorf("still running: %s", out)
		}
		return nil
	})
	// What a program leaves in the background does not hold it up.
	run(t, m, "sh", "-c", "sleep 1234 & true")

	p, err := m.Start("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitOutput(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = p.Wait(t.Context())
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 5 || p.Output() != "ready\nbye\n" {
		t.Errorf("after the signal: %v, %q", err, p.Output())
	}
	if p, err = m.Start("sleep", "infinity"); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err == nil {
		t.Error("a program outlived the machine")
	}
}

// Links inside are the machine's: they do not lead to the lab's files.
func TestFiles(t *testing.T) {
	m := machinetest.Boot(t, machine.Config{})
	src := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(src, []byte("#!/bin/sh\necho hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, m, "ln", "-s", "/opt/../../../opt/real", "/opt/link")
	for dst, want := range map[string]string{
		"/var/run/new/program": "/run/new/program", // /var/run is a link to /run
		"/opt/link/program":    "/opt/real/program",
		"/bin/program":         "/usr/bin/program",
	} {
		if err := m.CopyIn(src, dst, 0o755); err != nil {
			t.Fatal(err)
		}
		if got := run(t, m, "sh", "-c", want); got != "hello" {
			t.Errorf("%s wrote %q", want, got)
		}
		if _, err := os.Stat(want); err == nil {
			t.Errorf("%s is in the lab", want)
		}
		if got := m.Path(dst); got != fmt.Sprintf("/proc/%d/root%s", m.Leader(), want) {
			t.Errorf("%s is at %s", dst, got)
		}
	}
}

func TestFailedUnit(t *testing.T) {
	m, err := machine.New(t.Context(), machine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	unit := "[Service]\nExecStart=sh -c 'echo the reason; exit 1'\nType=oneshot\n"
	if err := m.WriteFile("/etc/systemd/system/broken.service", []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	wants := m.Path("/etc/systemd/system/multi-user.target.wants")
	if err := os.Symlink("../broken.service", filepath.Join(wants, "broken.service")); err != nil {
		t.Fatal(err)
	}
	err = m.PowerOn(t.Context())
	if err == nil {
		t.Fatal("a system with a failed unit is running")
	}
	for _, want := range []string{"degraded", "broken.service loaded failed failed", "the reason"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error has no %q:\n%v", want, err)
		}
	}
}

// A system that does not get ready, or has no process 1, ends with the context or
// at once.
func TestNoBoot(t *testing.T) {
	m := machinetest.New(t, machine.Config{})
	unit := "[Service]\nExecStart=sh -c 'touch /root/began; sleep infinity'\nType=oneshot\n"
	if err := m.WriteFile("/etc/systemd/system/slow.service", []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(m.Path("/etc/systemd/system/multi-user.target.wants"), "slow.service")
	if err := os.Symlink("../slow.service", link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	began := filepath.Join(m.Path("/root"), "began") // of the machine that is off: the disk
	go func() {
		err := lab.Eventually(ctx, func() error {
			_, err := os.Stat(began)
			return err
		})
		if err == nil {
			cancel(context.DeadlineExceeded)
		}
	}()
	if err := m.PowerOn(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "slow.service") {
		t.Errorf("a unit that takes for ever: %v", err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.Path("/lib/systemd/systemd")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is off after the first
		if err := m.PowerOn(t.Context()); err == nil || !strings.Contains(err.Error(), "execv") {
			t.Errorf("without systemd: %v", err)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	labtest.NewHost(t, lab.HostConfig{NoBus: true})
	other := machinetest.Boot(t, machine.Config{Name: "other"})
	// A cable between the lab and the machine.
	cable := func(name string) {
		t.Helper()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-far"}); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, other)
	for _, end := range []struct {
		name  string
		leave func(*machine.Machine) error
	}{
		{"on", func(*machine.Machine) error { return nil }},
		{"off", func(m *machine.Machine) error { return m.PowerOff(t.Context()) }},
		{"killed", (*machine.Machine).Kill},
	} {
		m, err := machine.New(t.Context(), machine.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		cable("eth0")
		if err := m.MoveLink("eth0"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Start("sleep", "infinity"); err != nil {
			t.Fatal(err)
		}
		if cmp.Equal(before, snapshot(t, other)) {
			t.Fatal("a machine is not seen: the snapshot is worth nothing")
		}
		group := m.Cgroup()
		if err := end.leave(m); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if exists, err := machine.CgroupExists(group); exists || err != nil {
			t.Errorf("the control group of a machine that was %s is still there (%v)", end.name, err)
		}
		if diff := cmp.Diff(before, snapshot(t, other)); diff != "" {
			t.Errorf("left by a machine that was %s (-before +after):\n%s", end.name, diff)
		}
	}
	if got := run(t, other, "systemctl", "is-system-running"); got != "running" {
		t.Errorf("the other machine is %s", got)
	}
}

// snapshot is what a machine could leave in the lab, without what the other machine
// runs at the moment.
func snapshot(tb testing.TB, other *machine.Machine) map[string][]string {
	tb.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	s := map[string][]string{"mounts": strings.Split(string(mounts), "\n")}
	links, err := net.Interfaces()
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range links {
		s["links"] = append(s["links"], l.Name)
	}
	inOther, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", other.Leader()))
	if err != nil {
		tb.Fatal(err)
	}
	for _, path := range glob(tb, "/proc/[0-9]*/ns/pid") {
		if ns, err := os.Readlink(path); err == nil && ns != inOther {
			s["processes"] = append(s["processes"], path)
		}
	}
	s["temporary"] = glob(tb, filepath.Join(os.TempDir(), "*"))
	s["open files"] = []string{strconv.Itoa(len(glob(tb, "/proc/self/fd/*")))}
	return s
}

func glob(tb testing.TB, pattern string) []string {
	tb.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		tb.Fatal(err)
	}
	return paths
}

func TestRoot(t *testing.T) {
	if _, err := machine.Root(t.Context(), "potato"); err == nil || !strings.Contains(err.Error(), `"potato"`) {
		t.Errorf("an unknown release: %v", err)
	}
	dir, err := machine.Root(t.Context(), machine.Bookworm)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing in it is from this machine, or the same for all machines.
	for _, name := range []string{"etc/machine-id", "etc/hostname", "etc/resolv.conf"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is in the root", name)
		}
	}
	// A build that was interrupted does not count.
	t.Setenv(machine.CacheEnv, t.TempDir())
	if err := os.Mkdir(filepath.Join(os.Getenv(machine.CacheEnv), filepath.Base(dir)+".making"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := machine.Root(t.Context(), machine.Bookworm); err == nil || !strings.Contains(err.Error(), "machine.Main") {
		t.Errorf("a root that is not there: %v", err)
	}
}
