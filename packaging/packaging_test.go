// Package packaging_test installs the Debian package as a user does, on whole
// Debian machines with systemd as process 1, and looks at what it does there.
package packaging_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/event"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/machine"
	"multihomed/test/machine/machinetest"
)

func TestMain(m *testing.M) {
	os.Exit(machine.Main(m.Run, machine.Bookworm, machine.Trixie, managed(machine.Bookworm), managed(machine.Trixie)))
}

// Packages are what `make deb rpm` builds of the programs in bin, and the first of
// them as a higher version.
type packages struct{ now, higher, rpm, bin, cockpit, cockpitRPM string }

var built = sync.OnceValues(func() (packages, error) {
	directory, err := os.MkdirTemp("", "multihomed-packages")
	if err != nil {
		return packages{}, err
	}
	ctx, bin := context.Background(), filepath.Join(directory, "bin")
	if _, err := command(ctx, "make", "-C", "..", "deb", "rpm", "build", "extras", "DIST="+directory, "BIN="+bin); err != nil {
		return packages{}, err
	}
	p := packages{higher: filepath.Join(directory, "higher.deb"), bin: bin}
	for pattern, found := range map[string]*string{
		"multihomed_*.deb": &p.now, "multihomed-*.rpm": &p.rpm, "cockpit-multihomed_*.deb": &p.cockpit, "cockpit-multihomed-*.rpm": &p.cockpitRPM,
	} {
		if *found, err = only(filepath.Join(directory, pattern)); err != nil {
			return packages{}, err
		}
	}
	tree := filepath.Join(directory, "higher")
	control := filepath.Join(tree, "DEBIAN", "control")
	if _, err := command(ctx, "dpkg-deb", "-R", p.now, tree); err != nil {
		return packages{}, err
	}
	text, err := os.ReadFile(control)
	if err != nil {
		return packages{}, err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Version: ") {
			line = "Version: 99.0\n"
		}
		lines = append(lines, line)
	}
	if err := os.WriteFile(control, []byte(strings.Join(lines, "")), 0o644); err != nil {
		return packages{}, err
	}
	_, err = command(ctx, "dpkg-deb", "-b", "-Znone", "--root-owner-group", tree, p.higher)
	return p, err
})

// command runs a program of the machine that the tests are on.
func command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// only is the one file of a pattern.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("files of %s: %v (%w)", pattern, found, err)
	}
	return found[0], nil
}

// A system is a machine with two providers on which the package is tried.
type system struct {
	*machine.Machine
	t    *testing.T
	lab  *lab.Host
	isps []*lab.ISP
}

func (s *system) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// run runs a program in the machine.
func (s *system) run(args ...string) string {
	s.t.Helper()
	out, err := s.Run(s.t.Context(), args...)
	s.must(err)
	return strings.TrimSpace(out)
}

func (s *system) eventually(f func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	s.must(lab.Eventually(ctx, f))
}

// links are the links of the providers.
func (s *system) links() (out []string) {
	for _, isp := range s.isps {
		out = append(out, isp.Link().Name())
	}
	return out
}

// A network is one of a link, as status has it.
type network struct {
	Link, Family, Prefix string
	Table                int
}

// networks waits until status says that all is well on exactly the links of these
// names, each with both families, and returns their networks.
func (s *system) networks(links ...string) []network {
	s.t.Helper()
	var out []network
	s.eventually(func() error {
		text, err := s.Run(s.t.Context(), "multihomectl", "status", "--json")
		if err != nil {
			return err
		}
		var status struct {
			OK    bool
			Links []struct {
				Interface string
				Networks  []struct {
					Family, Prefix string
					Table          int
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		var have []string
		out = nil
		for _, l := range status.Links {
			have = append(have, l.Interface)
			families := map[string]bool{}
			for _, n := range l.Networks {
				out = append(out, network{l.Interface, n.Family, n.Prefix, n.Table})
				families[n.Family] = n.Table != 0
			}
			if !families["ipv4"] || !families["ipv6"] {
				err = fmt.Errorf("%s has no table for each family:\n%s", l.Interface, text)
			}
		}
		if slices.Sort(have); !slices.Equal(have, links) || !status.OK {
			err = fmt.Errorf("the links are %v, all is well is %t:\n%s", have, status.OK, text)
		}
		return err
	})
	return out
}

// address is the machine's address on a link, when it may be used.
func (s *system) address(isp *lab.ISP, f lab.Family) (address string) {
	s.t.Helper()
	flag, network := "-4", isp.IPv4()
	if f == lab.IPv6 {
		flag, network = "-6", isp.IPv6()
	}
	s.eventually(func() error {
		out, err := s.Run(s.t.Context(), "ip", flag, "-o", "address", "show", "dev", isp.Link().Name(), "scope", "global", "-tentative")
		if err != nil {
			return err
		}
		for word := range strings.FieldsSeq(out) {
			if p, err := netip.ParsePrefix(word); err == nil && network.Contains(p.Addr()) {
				address = p.Addr().String()
				return nil
			}
		}
		return fmt.Errorf("no %v address on %s: %s", f, isp.Link().Name(), out)
	})
	return address
}

// answered sends packets from the address of each link, which must come back, and
// checks that each provider sees only its own.
func (s *system) answered(isps ...*lab.ISP) {
	s.t.Helper()
	for _, isp := range isps {
		capture, err := isp.Capture()
		s.must(err)
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			s.run("ping", "-c", "2", "-i", "0.2", "-W", "5", "-I", s.address(isp, f), lab.InternetAddr(f).String())
		}
		foreign, err := capture.Foreign(isp.IPv4(), isp.IPv6())
		s.must(err)
		if len(foreign) > 0 {
			s.t.Errorf("strayed to %s:\n%s", isp.Name(), lab.FormatPackets(foreign))
		}
		s.must(capture.Close())
	}
}

// install installs a package, as a user does.
func (s *system) install(deb string, options ...string) {
	s.t.Helper()
	s.must(s.CopyIn(deb, "/root/multihomed.deb", 0o644))
	s.run(slices.Concat([]string{"apt-get", "install", "-y", "-q"}, options, []string{"/root/multihomed.deb"})...)
}

// active checks that a service runs, and that no unit has failed.
func (s *system) active() {
	s.t.Helper()
	s.eventually(func() error {
		state, err := s.Run(s.t.Context(), "systemctl", "is-active", "multihomed.service", "multihomed.socket")
		if strings.TrimSpace(state) != "active\nactive" {
			return fmt.Errorf("%q (%w)", state, err)
		}
		return nil
	})
	if failed := s.run("systemctl", "list-units", "--failed", "--plain", "--no-legend"); failed != "" {
		s.t.Errorf("failed: %s", failed)
	}
}

// property is one of the service.
func (s *system) property(name string) string {
	s.t.Helper()
	return s.run("systemctl", "show", "-P", name, "multihomed.service")
}

// listing is every file with its owner, mode and content, except files outside of packages, and
// those that every package or user changes.
func (s *system) listing() []string {
	s.t.Helper()
	const script = `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /var/tmp \
 -o -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/NetworkManager \
 -o -path /var/lib/systemd/timers -o -path '/etc/*-' -o -path /etc/.pwd.lock -o -path /etc/resolv.conf -o -path /var/lib/systemd/random-seed \
 -o -path /etc/systemd/system -o -path /etc/ld.so.cache \) -prune -o \( -type f -printf '%p %u %g %m ' -exec sha256sum -b {} \; \) -o -printf '%p %u %g %m %l\n'
find /etc/systemd/system -printf '%p %u %g %m %l\n'
find /run -name '*multihomed*'`
	lines := strings.Split(s.run("sh", "-c", script), "\n")
	slices.Sort(lines)
	return lines
}

// kernel lists the rules and routes.
func (s *system) kernel() string {
	s.t.Helper()
	var b strings.Builder
	for _, args := range []string{"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "-o link show group 28008"} {
		out := s.run(append([]string{"ip", "-N"}, strings.Fields(args)...)...)
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if i := slices.Index(words, "expires"); i >= 0 {
				words = slices.Delete(words, i, i+2)
			}
			b.WriteString(strings.Join(words, " ") + "\n")
		}
	}
	return b.String()
}

// online records the routing when network-online.target is reached.
const online = `[Unit]
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'ip -N rule >/root/online; ip -N -6 rule >>/root/online'

[Install]
WantedBy=multi-user.target
`

// booted starts a whole Debian with two providers, and returns it with the packages to
// install there.
func booted(t *testing.T, release string) (*system, packages) {
	t.Helper()
	debs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true, FastDAD: true})
	s := &system{t: t, lab: host, Machine: machinetest.New(t, machine.Config{Release: release})}
	for n := range 2 {
		s.isps = append(s.isps, labtest.NewISP(t, host, lab.DefaultISP(n)))
	}
	s.must(s.PowerOn(t.Context()))
	return s, debs
}

// TestPackage goes through the life of the package on both releases of Debian.
func TestPackage(t *testing.T) {
	for _, release := range []string{machine.Bookworm, machine.Trixie} {
		t.Run(release, func(t *testing.T) {
			s, debs := booted(t, managed(release))
			s.life(release, debs)
		})
	}
}

func (s *system) life(release string, debs packages) {
	t := s.t
	for _, link := range s.links() {
		// Both families belong to being online.
		s.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link, "ipv4.may-fail", "no", "ipv6.may-fail", "no")
	}
	s.run("systemctl", "enable", "NetworkManager-wait-online.service")
	s.must(s.WriteFile("/etc/systemd/system/online.service", []byte(online), 0o644))
	s.run("systemctl", "enable", "online.service")
	files, kernel := s.listing(), s.kernel()

	s.step("install", func() {
		s.install(debs.now)
		s.active()
		s.run("test", "-d", "/etc/multihomed")
		for _, link := range s.links() {
			s.must(s.MoveLink(link))
		}
		s.networks(s.links()...)
		s.answered(s.isps...)
		// In tenths; it exits with another status where it is exposed more.
		s.run("systemd-analyze", "security", "--no-pager", "--threshold=12", "multihomed.service")
		s.run("systemd-analyze", "security", "--no-pager", "--threshold=15", "multihomed-prober.service")
		s.run("systemd-analyze", "security", "--no-pager", "--threshold=13", "multihomed-binder.service")
	})
	s.step("prober", s.prober)
	s.step("binder", s.binder)
	s.step("bus", s.bus)
	s.step("metrics", s.metrics)
	s.step("reloads", s.reloads)
	before := s.networks(s.links()...)
	s.step("journal", s.journal)

	s.step("reboot", func() {
		s.must(s.Reboot(t.Context()))
		s.active()
		if after := s.networks(s.links()...); !slices.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
		s.eventually(func() error { _, err := s.Run(t.Context(), "test", "-s", "/root/online"); return err })
		at := s.run("cat", "/root/online")
		for _, n := range before {
			if rule := fmt.Sprintf("lookup %d", n.Table); !strings.Contains(at, rule) {
				t.Errorf("no rule leads to table %d of %s when the host is online:\n%s", n.Table, n.Link, at)
			}
		}
		s.answered(s.isps...)
	})
	s.step("stop, start, restart, kill, hang", s.services)
	s.step("stopped", func() {
		s.run("systemctl", "stop", "multihomed.service")
		s.run("nmcli", "connection", "down", "wan1")
		s.eventually(func() error { return s.lacks("oif wan1") })
		s.run("nmcli", "connection", "up", "wan1")
		s.eventually(func() error {
			for _, family := range []string{"-4", "-6"} {
				if rules, err := s.Run(t.Context(), "ip", family, "rule"); err != nil || !strings.Contains(rules, "oif wan1") {
					return fmt.Errorf("wan1 has no rules (%w):\n%s", err, rules)
				}
			}
			return nil
		})
		s.answered(s.isps...)
		s.eventually(func() error {
			if state, _ := s.Run(t.Context(), "systemctl", "is-active", "multihomed.socket"); strings.TrimSpace(state) != "inactive" {
				return fmt.Errorf("the socket is %q", state)
			}
			return nil
		})
		s.run("systemctl", "start", "multihomed.service")
		s.active()
		s.networks(s.links()...)
	})
	for _, how := range []string{"mask", "disable"} {
		s.step(how, func() { s.unwanted(how) })
	}
	s.step("off", func() { s.off(debs) })
	if after := s.networks(s.links()...); !slices.Equal(before, after) {
		t.Errorf("before off %v, after on %v", before, after)
	}
	s.step("autopkgtest", func() {
		s.must(s.CopyIn("debian/tests/installed", "/root/installed", 0o700))
		s.run("/root/installed")
	})
	s.step("upgrade and downgrade", func() {
		s.upgrades(debs)
		if after := s.networks(s.links()...); !slices.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
	})
	s.step("what needs more", s.moreRights)
	if release == machine.Trixie { // One is enough.
		s.step("doctor", s.doctor)
	}
	s.step("systemd-networkd", s.networkd)
	s.step("remove while somebody has the lock", s.stuck)
	s.step("remove", func() {
		s.run("mkdir", "-p", "/etc/multihomed")
		s.must(s.WriteFile("/etc/multihomed/multihomed.toml", []byte("uplink_grup = 7\n"), 0o600))
		s.run("apt-get", "remove", "-y", "-q", "multihomed")
		if left := s.kernel(); strings.Contains(left, "proto 150") || strings.Contains(left, "wan") && strings.Contains(left, "group 28008") {
			t.Errorf("left in the kernel:\n%s", left)
		}
		s.run("test", "-e", "/var/lib/multihomed/leases.db")
	})
	s.step("purge", func() {
		// The group is removed, even with members.
		s.run("gpasswd", "-a", "nobody", "multihomed")
		s.run("apt-get", "purge", "-y", "-q", "multihomed")
		for _, link := range s.links() {
			s.run("ip", "link", "delete", link)
		}
		if d := labtest.Difference(files, s.listing()); d != "" {
			t.Errorf("left by purge:\n%s", d)
		}
		s.eventually(func() error {
			if d := labtest.Difference(strings.Split(kernel, "\n"), strings.Split(s.kernel(), "\n")); d != "" {
				return fmt.Errorf("left in the kernel:\n%s", d)
			}
			return nil
		})
	})
}

// TestFirstStart installs the package where the configuration is bad from the start: apt, the status,
// the journal and the hooks say the same, and the fix that they print works.
func TestFirstStart(t *testing.T) {
	for _, release := range []string{machine.Bookworm, machine.Trixie} {
		t.Run(release, func(t *testing.T) {
			s, debs := booted(t, release)
			s.neverGood(debs)
		})
	}
}

func (s *system) neverGood(debs packages) {
	t := s.t
	const (
		file = "/etc/multihomed/multihomed.toml"
		fix  = "systemctl restart multihomed"
	)
	says := func(what, text string, want ...string) {
		t.Helper()
		flat := strings.Join(strings.Fields(text), " ")
		for _, w := range want {
			if !strings.Contains(flat, w) {
				t.Errorf("%s does not say %q:\n%s", what, w, text)
			}
		}
		for _, wrong := range []string{"systemctl reload", "enable --now", "the defaults", "hooks follow", "stay as they are goes on"} {
			if strings.Contains(flat, wrong) {
				t.Errorf("%s says %q:\n%s", what, wrong, text)
			}
		}
	}
	s.run("mkdir", "-p", "/etc/multihomed")
	s.must(s.WriteFile(file, []byte("uplink_grup = 7\n\ntabels = 1\n"), 0o644))
	s.must(s.CopyIn(debs.now, "/root/multihomed.deb", 0o644))
	apt, err := s.Run(t.Context(), "sh", "-c", "apt-get install -y -q /root/multihomed.deb 2>&1")
	s.must(err)
	says("apt", apt, "multihomed: the service did not start: "+file+":1: uplink_grup", file+":3: tabels", fix)
	status, _ := s.Run(t.Context(), "multihomectl", "status") // It exits with an error.
	says("status", status, "multihomed not running: its configuration is refused, hooks do nothing", "in use instead: nothing", "fix correct lines 1 and 3 of "+file+", then: "+fix)
	log := func(args ...string) string {
		s.run("journalctl", "--sync")
		return s.run(append([]string{"journalctl", "-b", "-o", "cat"}, args...)...)
	}
	says("the journal", log("-u", "multihomed.service", "SYSLOG_IDENTIFIER=multihomed"), "in use instead: nothing")
	s.eventually(func() error {
		if text := log("-u", "multihomed-failed.service"); !strings.Contains(text, "no rule of it is in the kernel") {
			return fmt.Errorf("multihomed-failed says\n%s", text)
		}
		return nil
	})
	says("multihomed-failed", log("-u", "multihomed-failed.service"), fix)

	// One line for each call of a hook.
	before := log("-t", "multihomed")
	out, err := s.Run(t.Context(), "sh", "-c", "IFACE=wan0 MODE=start PHASE=post-up ADDRFAM=inet METHOD=static /usr/sbin/multihomed-dispatcher ifupdown 2>&1; test $? -eq 78")
	if err != nil || strings.Count(out, "\n") != 1 || strings.Count(out, "uplink_grup:") != 1 {
		t.Errorf("a hook says: %v %s", err, out)
	}
	link := s.links()[0]
	s.run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link, "ipv4.may-fail", "no")
	s.must(s.MoveLink(link))
	s.eventually(func() error { // NetworkManager may not know the link yet.
		_, err := s.Run(t.Context(), "nmcli", "--wait", "30", "connection", "up", link)
		return err
	})
	s.eventually(func() error {
		failed := strings.Count(log("-u", "NetworkManager.service"), "90-multihomed' exited with status 78")
		if n := strings.Count(strings.TrimPrefix(log("-t", "multihomed"), before), "uplink_grup:"); n == 0 || n != failed {
			return fmt.Errorf("%d lines for %d calls of NetworkManager:\n%s\n%s", n, failed, log("-t", "multihomed"), log("-u", "NetworkManager.service"))
		}
		return nil
	})

	// The printed fix, after more failed starts than any administrator makes.
	for range 5 {
		if out, err := s.Run(t.Context(), "systemctl", "restart", "multihomed"); err == nil {
			t.Errorf("it starts: %s", out)
		}
	}
	s.must(s.WriteFile(file, []byte("uplink_group = 28008\n"), 0o644))
	s.run("systemctl", "restart", "multihomed")
	s.active()

	// What a reload refuses, systemctl status says, until a reload accepts it.
	text := func(want bool) {
		t.Helper()
		s.eventually(func() error {
			if line := s.run("systemctl", "show", "-P", "StatusText", "multihomed.service"); strings.Contains(line, file+":2") != want {
				return fmt.Errorf("the status line is %q", line)
			}
			return nil
		})
	}
	s.must(s.WriteFile(file, []byte("\nuplink_grup = 28008\n"), 0o644))
	at := len(log("-u", "multihomed.service"))
	if out, err := s.Run(t.Context(), "systemctl", "reload", "multihomed"); err == nil {
		t.Errorf("a bad file is no error: %s", out)
	}
	text(true)
	if news := log("-u", "multihomed.service")[at:]; strings.Count(news, "uplink_grup:") != 1 {
		t.Errorf("the journal says it %d times:\n%s", strings.Count(news, "uplink_grup:"), news)
	}
	s.must(s.WriteFile(file, nil, 0o644))
	s.run("systemctl", "reload", "multihomed")
	text(false)
	// So does a sound file that needs a restart.
	s.must(s.WriteFile(file, []byte("\nstate_dir = \"/var/lib/multihomed/other\"\n"), 0o644))
	if out, err := s.Run(t.Context(), "systemctl", "reload", "multihomed"); err == nil {
		t.Errorf("another state_dir is no error: %s", out)
	}
	text(true)
	s.must(s.WriteFile(file, nil, 0o644))
	s.run("systemctl", "reload", "multihomed")
	text(false)

	s.run("multihomectl", "off")
	at = len(log("-u", "multihomed.service"))
	removed, err := s.Run(t.Context(), "sh", "-c", "apt-get remove -y -q multihomed 2>&1")
	s.must(err)
	if strings.Contains(removed, "can still be activated") {
		t.Errorf("apt says:\n%s", removed)
	}
	if words := log("-u", "multihomed.service")[at:]; !strings.Contains(words, "multihomed stopped, no link has its own routing") || strings.Contains(words, "stays active") {
		t.Errorf("the daemon's last words:\n%s", words)
	}
}

// step is one part of a life; what follows it needs it.
func (s *system) step(name string, do func()) {
	s.t.Helper()
	began := time.Now()
	do()
	s.t.Logf("%s: %v", name, time.Since(began).Round(10*time.Millisecond))
	if s.t.Failed() {
		s.t.Fatalf("%s failed", name)
	}
}

// unwanted keeps the service from running. Nothing stands in for it, so the rules that answer
// "unreachable" are removed at once. The host reaches what it reaches without us, and the other
// rules and routes stay until off.
func (s *system) unwanted(how string) {
	t := s.t
	if s.unguarded() == nil {
		t.Error("no rule answers unreachable while the service runs")
	}
	s.run("systemctl", how, "--now", "multihomed.service", "multihomed.socket")
	rules := func() string { return s.run("sh", "-c", "ip -N rule; ip -N -6 rule") }
	s.must(s.unguarded())
	state := map[string]string{"disable": "disabled", "mask": "masked"}[how]
	s.run("sh", "-ec", "journalctl --sync; journalctl -b -o cat -u multihomed.service | grep 'multihomed.service is "+state+", so nobody maintains .* multihomectl off'")
	before := rules()
	for _, link := range s.links() {
		s.run("nmcli", "connection", "down", link)
	}
	for _, link := range s.links() {
		s.run("nmcli", "connection", "up", link)
	}
	for _, isp := range s.isps {
		s.address(isp, lab.IPv6)
		s.eventually(func() error { return s.traffic(isp, lab.IPv4, false) })
	}
	if after := rules(); after != before {
		t.Errorf("something changed routing in spite of %s; before:\n%s\nafter:\n%s", how, before, after)
	}
	if out := s.run("multihomectl", "off"); !strings.Contains(out, "multihomed is switched off: removed ") {
		t.Errorf("off: %s", out)
	}
	s.must(s.lacks("proto 150"))
	if out := s.run("multihomectl", "on"); !strings.Contains(out, "nothing is done yet, because multihomed.service is "+how) {
		t.Errorf("on: %s", out)
	}
	s.must(s.lacks("proto 150"))
	if how == "mask" {
		s.run("systemctl", "unmask", "multihomed.service", "multihomed.socket")
	} else {
		s.run("systemctl", "enable", "multihomed.service", "multihomed.socket")
	}
	s.run("systemctl", "start", "multihomed.service")
	s.networks(s.links()...)
}

// off checks that nothing of ours appears, whatever happens, until it is switched on.
func (s *system) off(debs packages) {
	s.run("multihomectl", "off")
	nothing := func() {
		s.t.Helper()
		s.active()
		for _, link := range s.links() {
			s.run("nmcli", "connection", "up", link)
		}
		for _, isp := range s.isps {
			s.address(isp, lab.IPv6)
		}
		if left := s.kernel(); strings.Contains(left, "proto 150") || strings.Contains(left, "wan") && strings.Contains(left, "group 28008") {
			s.t.Errorf("there is:\n%s", left)
		}
	}
	nothing()
	s.run("systemctl", "restart", "multihomed.service")
	nothing()
	s.install(debs.higher)
	nothing()
	s.must(s.CopyIn(debs.now, "/root/multihomed.deb", 0o644))
	if out := s.run("sh", "-c", "apt-get install -y -q --allow-downgrades /root/multihomed.deb 2>&1"); strings.Count(out, "multihomectl on") != 1 {
		s.t.Errorf("the package does not say once that it is switched off:\n%s", out)
	}
	s.must(s.Reboot(s.t.Context()))
	s.run("systemctl", "is-system-running", "--wait")
	nothing()
	if out := s.run("multihomectl", "on"); !strings.Contains(out, "multihomed is switched on: 2 links") {
		s.t.Errorf("on: %s", out)
	}
}

// journal wants the lines of the service to have what programs read, and systemd to
// explain them.
func (s *system) journal() {
	s.t.Helper()
	field := func(text string) func(map[string]any) bool {
		return func(entry map[string]any) bool { return fmt.Sprint(entry["MESSAGE_ID"]) == text }
	}
	s.eventually(func() error {
		out, err := s.Run(s.t.Context(), "sh", "-c", "journalctl --sync; journalctl -b -u multihomed.service -o json SYSLOG_IDENTIFIER=multihomed")
		if err != nil {
			return err
		}
		var entries []map[string]any
		for line := range strings.Lines(out) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				return fmt.Errorf("%w: %s", err, line)
			}
			if entry["_TRANSPORT"] != "journal" {
				return fmt.Errorf("not by the native protocol: %s", line)
			}
			entries = append(entries, entry)
		}
		if !slices.ContainsFunc(entries, field(event.Started.MessageID())) {
			return fmt.Errorf("no line says that it started:\n%s", out)
		}
		for _, link := range s.links() {
			if !slices.ContainsFunc(entries, func(e map[string]any) bool {
				// A line with several tables has a list.
				table := strings.TrimPrefix(fmt.Sprint(e["MULTIHOMED_TABLE"]), "[")
				return field(event.LinkAdded.MessageID())(e) && e["INTERFACE"] == link && e["PRIORITY"] == "6" && strings.HasPrefix(table, "1000")
			}) {
				return fmt.Errorf("no line says that %s was added:\n%s", link, out)
			}
		}
		return nil
	})
	explained := s.run("journalctl", "-x", "-b", "-u", "multihomed.service", "INTERFACE=wan0")
	if !strings.Contains(explained, "Subject: Link wan0 has its own routing") {
		s.t.Errorf("journalctl -x explains nothing:\n%s", explained)
	}
}

// networkd gives the host another manager. multihomed cannot handle its links, and status reports that.
func (s *system) networkd() {
	s.run("systemctl", "disable", "--now", "NetworkManager.service", "NetworkManager-dispatcher.service")
	// What NetworkManager left keeps its routing until its addresses go.
	for _, link := range s.links() {
		s.run("ip", "address", "flush", "dev", link)
	}
	s.eventually(func() error {
		if rules := s.run("sh", "-c", "ip -N rule; ip -N -6 rule"); strings.Contains(rules, "proto 150") {
			return fmt.Errorf("rules of multihomed exist:\n%s", rules)
		}
		return nil
	})
	s.must(s.WriteFile("/run/systemd/network/wan.network", []byte("[Match]\nName=wan*\n[Network]\nDHCP=ipv4\n"), 0o644))
	s.run("systemctl", "start", "systemd-networkd.service")
	s.run("systemctl", "--no-block", "restart", "multihomed.service")
	s.eventually(func() error {
		return s.says(1, "multihomed does nothing on this host: systemd-networkd manages wan0 and wan1")
	})
	if out := s.run("sh", "-c", "multihomectl status || true"); strings.Contains(out, "enable NetworkManager") {
		s.t.Errorf("status advises a second manager:\n%s", out)
	}
	s.run("systemctl", "stop", "systemd-networkd.service", "systemd-networkd.socket")
	// systemd-networkd-persistent-storage.service (systemd 257) asks networkd once more when it stops, and
	// fails if that has stopped before.
	s.run("systemctl", "reset-failed", "systemd-networkd*")
	s.run("rm", "/run/systemd/network/wan.network")
	s.run("systemctl", "enable", "--now", "NetworkManager.service", "NetworkManager-dispatcher.service")
	s.run("nmcli", "general")
	for _, link := range s.links() {
		s.run("nmcli", "connection", "up", link)
	}
	s.active()
	s.networks(s.links()...)
}

// stuck removes the package while its routing cannot be removed: it stays, and works.
func (s *system) stuck() {
	t := s.t
	// It gets the lock when the service is stopped.
	holder, err := s.Start("flock", "/run/multihomed/lock", "sleep", "1000")
	s.must(err)
	out, err := s.Run(t.Context(), "apt-get", "remove", "-y", "-q", "multihomed")
	if err == nil {
		t.Errorf("it is removed: %s", out)
	} else if text := err.Error() + out; !strings.Contains(text, "multihomectl off && apt remove multihomed") || !strings.Contains(text, "multihomed is running (process ") {
		t.Errorf("apt says: %s", text)
	}
	s.must(holder.Kill())
	s.run("test", "-x", "/usr/sbin/multihomed-dispatcher")
	s.active()
	s.networks(s.links()...)
}

func (s *system) lacks(text string) error {
	rules, err := s.Run(s.t.Context(), "sh", "-c", "ip -N rule; ip -N -6 rule")
	if err == nil && strings.Contains(rules, text) {
		err = fmt.Errorf("there is %q:\n%s", text, rules)
	}
	return err
}

// unguarded checks that no rule answers "unreachable". "ip -N" would call that 7.
func (s *system) unguarded() error {
	rules, err := s.Run(s.t.Context(), "sh", "-c", "ip rule; ip -6 rule")
	if err == nil && strings.Contains(rules, "unreachable") {
		err = fmt.Errorf("rules answer unreachable:\n%s", rules)
	}
	return err
}

// services does to the service what administrators and bugs do. Routing does not
// change once.
func (s *system) services() {
	t := s.t
	watch, err := s.Start("ip", "-N", "monitor", "rule", "route")
	s.must(err)
	restarts := func(n int) {
		t.Helper()
		s.eventually(func() error {
			if have := s.property("NRestarts"); have != fmt.Sprint(n) {
				return fmt.Errorf("%s restarts, want %d", have, n)
			}
			return nil
		})
		s.active()
		s.networks(s.links()...)
	}
	s.run("systemctl", "stop", "multihomed.service")
	s.answered(s.isps...)
	s.run("systemctl", "start", "multihomed.service")
	// Unless the service is stopped, no request is refused.
	socket := func() string {
		return s.run("systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", "multihomed.socket")
	}
	opened := socket()
	s.run("systemctl", "restart", "multihomed.service")
	restarts(0)
	if now := socket(); now != opened {
		t.Errorf("a restart of the service reopens the socket: %s, %s", opened, now)
	}
	s.run("systemctl", "kill", "--signal=KILL", "multihomed.service")
	restarts(1)
	if now := socket(); now != opened {
		t.Errorf("a crash of the service reopens the socket: %s, %s", opened, now)
	}
	s.run("systemctl", "reload", "multihomed.service")
	// Any number of manual restarts of a working service is allowed.
	for range 4 {
		s.run("systemctl", "restart", "multihomed.service")
		s.run("systemctl", "stop", "multihomed.service")
		// systemd removes the private /tmp in a child of its own, which has the socket open until it has closed what it
		// inherited (asynchronous_rm_rf in src/shared/async.c). On a busy host a start would find the name taken.
		s.eventually(func() error {
			open := s.run("cat", "/proc/net/unix")
			if strings.Contains(open, "@tas_socket") {
				return errors.New("the socket is still open")
			}
			return nil
		})
		s.run("systemctl", "start", "multihomed.service")
	}
	restarts(0)
	// Not the 30 seconds of the unit.
	s.must(s.WriteFile("/run/systemd/system/multihomed.service.d/watchdog.conf", []byte("[Service]\nWatchdogSec=2s\n"), 0o644))
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", "multihomed.service")
	s.run("systemctl", "kill", "--signal=STOP", "multihomed.service")
	restarts(1) // systemctl restart resets the counter
	s.run("rm", "-r", "/run/systemd/system/multihomed.service.d")
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", "multihomed.service")
	s.networks(s.links()...)
	s.must(watch.Kill())
	for line := range strings.Lines(watch.Output()) {
		// Router advertisements go on.
		if strings.Contains(line, "proto 150") {
			t.Errorf("routing changed: %s", line)
		}
	}
}

// moreRights configures what the sandbox does not allow: the daemon says what it
// needs, and works with that.
func (s *system) moreRights() {
	const config = "[dns]\nservers_file = \"/run/multihomed/servers\"\ndnsmasq_pid_file = \"/run/dnsmasq.pid\"\n"
	s.run("mkdir", "-p", "/etc/multihomed", "/run/systemd/system/multihomed.service.d")
	s.must(s.WriteFile("/etc/multihomed/multihomed.toml", []byte(config), 0o644))
	s.run("cp", "/bin/sleep", "/root/dnsmasq")
	dnsmasq, err := s.Start("/root/dnsmasq", "1000")
	s.must(err)
	s.run("sh", "-c", "pidof dnsmasq >/run/dnsmasq.pid")
	complains := func(text string) {
		s.t.Helper()
		s.restart()
		s.eventually(func() error {
			out, _ := s.Run(s.t.Context(), "multihomectl", "status") // It exits with an error then.
			if !strings.Contains(strings.Join(strings.Fields(out), " "), text) {
				return fmt.Errorf("status does not say %q:\n%s", text, out)
			}
			return nil
		})
	}
	allow := func(setting string) {
		s.t.Helper()
		s.run("sh", "-c", "printf '[Service]\\n"+setting+"\\n' >>/run/systemd/system/multihomed.service.d/dns.conf")
		s.run("systemctl", "daemon-reload")
	}
	complains("the service is not allowed to see it")
	allow("ProtectProc=default")
	complains("operation not permitted")
	allow("AmbientCapabilities=CAP_KILL\\nCapabilityBoundingSet=CAP_KILL")
	s.restart()
	// SIGHUP ends a program that is not dnsmasq.
	s.eventually(func() error {
		if text, err := s.Run(s.t.Context(), "pidof", "dnsmasq"); err == nil {
			return fmt.Errorf("process %s was not told", text)
		}
		return nil
	})
	_ = dnsmasq.Wait(s.t.Context())
	s.networks(s.links()...)
	s.run("rm", "-r", "/run/systemd/system/multihomed.service.d", "/etc/multihomed", "/root/dnsmasq", "/run/dnsmasq.pid")
	s.run("systemctl", "daemon-reload")
	s.restart()
}

func (s *system) restart() {
	s.t.Helper()
	s.run("systemctl", "restart", "multihomed.service")
}

// upgrades replaces the package while both links carry traffic in both directions.
func (s *system) upgrades(debs packages) {
	t := s.t
	var captures []*lab.Capture
	var flows []*machine.Process
	for _, isp := range s.isps {
		c, err := isp.Capture()
		s.must(err)
		captures = append(captures, c)
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			p, err := s.Start("ping", "-i", "0.02", "-W", "2", "-I", s.address(isp, f), lab.InternetAddr(f).String())
			s.must(err)
			flows = append(flows, p)
		}
	}
	lost := s.inbound()
	s.install(debs.higher)
	s.active()
	s.networks(s.links()...)
	s.scraped("28008", "\nmultihomed_up 1\n") // step metrics has enabled the socket
	s.install(debs.now, "--allow-downgrades")
	s.active()
	s.networks(s.links()...)
	s.scraped("28008", "\nmultihomed_up 1\n")
	if n := lost(); n > 0 {
		t.Errorf("%d inbound connections failed", n)
	}
	for _, flow := range flows {
		s.must(flow.Signal(unix.SIGINT))
		_ = flow.Wait(t.Context())
		if out := flow.Output(); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("packets were lost: %s", out[strings.LastIndex(out, "---"):])
		}
	}
	for i, c := range captures {
		foreign, err := c.Foreign(s.isps[i].IPv4(), s.isps[i].IPv6())
		s.must(err)
		if len(foreign) > 0 {
			t.Errorf("strayed to %s:\n%s", s.isps[i].Name(), lab.FormatPackets(foreign))
		}
		s.must(c.Close())
	}
}

// inbound pings the machine from behind each provider until it is asked how many
// flows have lost something.
func (s *system) inbound() func() int {
	s.t.Helper()
	var flows []*lab.Process
	for _, isp := range s.isps {
		for from, to := range map[netip.Addr]string{isp.Client4: s.address(isp, lab.IPv4), isp.Client6: s.address(isp, lab.IPv6)} {
			p, err := s.lab.Start(lab.ProcessConfig{Path: "ping", Namespace: isp.Namespace(), Args: []string{"-i", "0.02", "-W", "2", "-I", from.String(), to}})
			s.must(err)
			flows = append(flows, p)
		}
	}
	return func() (lost int) {
		for _, f := range flows {
			s.must(f.Signal(unix.SIGINT))
			_ = f.Wait(s.t.Context()) // Its status says whether anything was lost.
			if !strings.Contains(f.Log(), " 0% packet loss") {
				s.t.Logf("inbound: %s", f.Log()[max(0, len(f.Log())-200):])
				lost++
			}
		}
		return lost
	}
}
