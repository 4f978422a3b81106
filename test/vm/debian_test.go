package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"multihomed/internal/doctor"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/machine"
	"multihomed/test/vm"
)

// packages is where deb builds.
var packages = filepath.Join(os.TempDir(), fmt.Sprintf("multihomed-vm-packages-%d", os.Getpid()))

func TestMain(m *testing.M) {
	code := m.Run()
	if err := os.RemoveAll(packages); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// deb builds the package of this source, once, as a user does.
var deb = sync.OnceValues(func() (string, error) {
	cmd := exec.CommandContext(context.Background(), "make", "-C", "../..", "deb", "DIST="+packages, "BIN="+filepath.Join(packages, "bin"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the package: %w\n%s", err, out)
	}
	found, err := filepath.Glob(filepath.Join(packages, "multihomed_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("packages: %v (%w)", found, err)
	}
	return found[0], nil
})

func TestDebianBookworm(t *testing.T) { off(t, testDebian(t, machine.Bookworm)) }

// TestDebianTrixie reboots, too, which is the machine's work and not the kernel's.
func TestDebianTrixie(t *testing.T) {
	m := testDebian(t, machine.Trixie)
	began := time.Now()
	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("rebooted after %v", time.Since(began).Round(time.Millisecond))
	// The disk is there; links that were made by hand are not.
	if out, err := m.Run(t.Context(), "systemctl", "is-active", "multihomed.service", "multihomed.socket"); err != nil {
		t.Errorf("%s: %v", out, err)
	}
	if out, err := m.Run(t.Context(), "ip", "link", "show", "wan0"); err == nil {
		t.Errorf("there still is %s", out)
	}
	off(t, m)
}

// off shuts a machine down.
func off(t *testing.T, m *vm.Machine) {
	t.Helper()
	began := time.Now()
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.On() {
		t.Error("it is on after the shutdown")
	}
	t.Logf("off after %v", time.Since(began).Round(time.Millisecond))
}

// testDebian installs the package in a whole Debian with two networks.
func testDebian(t *testing.T, release string) *vm.Machine {
	t.Helper()
	path, err := deb()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m := vm.BootTest(t, vm.Config{Release: release})
	t.Logf("the system is running after %v", time.Since(began).Round(time.Millisecond))
	run := func(args ...string) string {
		t.Helper()
		out, err := m.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if version := run("uname", "-r"); !strings.HasPrefix(version, kernels[release]) {
		t.Errorf("kernel %s, want %s", version, kernels[release])
	}
	if init := run("cat", "/proc/1/comm"); init != "systemd" {
		t.Errorf("process 1 is %s", init)
	}
	if enabled := run("cat", "/sys/module/apparmor/parameters/enabled"); enabled != "Y" {
		t.Errorf("AppArmor is enabled: %s", enabled)
	}

	phase := func(what string) { t.Logf("%s after %v", what, time.Since(began).Round(time.Millisecond)) }

	// Two networks, each with its gateway on the far end of a cable.
	for i, link := range []string{"wan0", "wan1"} {
		run("ip", "link", "add", link, "type", "veth", "peer", "name", "isp"+link)
		run("ip", "link", "set", "isp"+link, "up")
		managed := func(device, value string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := lab.Eventually(ctx, func() error { // NetworkManager may not know it yet.
				_, err := m.Run(ctx, "nmcli", "device", "set", device, "managed", value)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		managed("isp"+link, "no")
		managed(link, "yes")
		run("nmcli", "connection", "add", "type", "ethernet", "con-name", link, "ifname", link,
			"ipv4.method", "manual", "ipv4.addresses", fmt.Sprintf("192.0.%d.10/24", 2+i), "ipv4.gateway", fmt.Sprintf("192.0.%d.1", 2+i),
			"ipv6.method", "disabled")
		run("nmcli", "connection", "up", link)
	}
	phase("two networks are up")
	if err := m.CopyIn(path, "/root/multihomed.deb", 0o644); err != nil {
		t.Fatal(err)
	}
	appArmor(t, m)
	run("apt-get", "install", "-y", "-q", "/root/multihomed.deb")
	run("systemctl", "is-active", "multihomed.service", "multihomed.socket")
	bothLinks := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := lab.Eventually(ctx, func() error {
			text, err := m.Run(ctx, "multihomectl", "status", "--json")
			if err != nil {
				return err
			}
			var status struct {
				OK    bool
				Links []struct{ Interface string }
			}
			if err := json.Unmarshal([]byte(text), &status); err != nil {
				return fmt.Errorf("%w: %s", err, text)
			}
			var names []string
			for _, l := range status.Links {
				names = append(names, l.Interface)
			}
			if have := strings.Join(names, " "); !status.OK || have != "wan0 wan1" {
				return fmt.Errorf("links %s, all is well is %t:\n%s", have, status.OK, text)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	bothLinks()
	phase("the package is installed and both links are served")
	for i, link := range []string{"wan0", "wan1"} {
		if route := run("ip", "route", "get", "198.51.100.1", "from", fmt.Sprintf("192.0.%d.10", 2+i)); !strings.Contains(route, "dev "+link) {
			t.Errorf("from %s's address: %s", link, route)
		}
	}

	if release == machine.Trixie { // Once is enough for the kernel's limits, too.
		fullNeighbors(t, run)
		phase("doctor found that tables of neighbors were full")
	}

	// A unit that needs more memory than it may have is killed by this kernel.
	run("systemctl", "set-property", "--runtime", "multihomed.service", "MemoryMax=200M")
	group := run("systemctl", "show", "-P", "ControlGroup", "multihomed.service")
	if limit := run("cat", "/sys/fs/cgroup"+group+"/memory.max"); limit != "209715200" {
		t.Errorf("memory.max of the service is %s", limit)
	}
	r, err := m.Command(t.Context(), vm.Command{Args: []string{
		"systemd-run", "--wait", "--quiet", "--unit=greedy", "-p", "MemoryMax=16M", "-p", "MemorySwapMax=0", "tail", "-c", "100M", "/dev/zero",
	}})
	if err != nil || r.Status == 0 {
		t.Errorf("a greedy unit ended with %+v, %v", r, err)
	}
	if log := run("journalctl", "-b", "-u", "greedy", "-o", "cat", "--no-pager"); !strings.Contains(log, "oom-kill") {
		t.Errorf("it was not killed for its memory: %s", log)
	}
	phase("a greedy unit was killed")
	if release == machine.Bookworm { // Once is enough for what systemd and the unit do.
		outOfMemory(t, run, bothLinks)
		phase("the service failed for its memory, and is back")
	}
	if release == machine.Trixie { // Last, because it leaves a mark of sockets that were bound.
		works(t, m)
		bothLinks()
		phase("the services worked under their profiles")
	}
	confined(t, m, "multihomed")
	confined(t, m, "multihomed-prober")
	complete(t, m)
	return m
}

// fullNeighbors fills the tables of neighbors, whose limits are the machine's and no namespace's: the
// doctor finds it, and what it prints removes both findings.
func fullNeighbors(t *testing.T, run func(...string) string) {
	t.Helper()
	found := func() []doctor.Finding {
		t.Helper()
		var r doctor.Report
		if err := json.Unmarshal([]byte(run("sh", "-c", "multihomectl doctor --json || test $? = 1")), &r); err != nil {
			t.Fatal(err)
		}
		return r.Of(doctor.NeighborTable)
	}
	run("sh", "-ec", `for i in $(seq 20 39); do
	echo neigh add 192.0.2.$i lladdr 02:00:00:00:00:$i dev wan0 nud reachable
	echo neigh add fe80::$i lladdr 02:00:00:00:00:$i dev ispwan0 nud reachable
done | ip -batch -
sysctl -qw net.ipv4.neigh.default.gc_thresh3=20 net.ipv6.neigh.default.gc_thresh3=20`)
	all := found()
	for i, key := range []string{"net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"} {
		if len(all) != 2 || all[i].Object != key || all[i].Severity != routing.Warning || !slices.Contains(all[i].Evidence, key+" = 20") {
			t.Fatalf("found %+v", all)
		}
	}
	run("sh", "-ec", "multihomectl doctor --fix neighbor-table | sh -e")
	if all := found(); len(all) > 0 {
		t.Errorf("after the fix: %+v", all)
	}
}

// outOfMemory leaves the service less memory than it needs: the kernel kills it again and
// again, until nothing maintains the routing. The host then routes as without multihomed
// wherever a table empties, and the next good start brings everything back.
func outOfMemory(t *testing.T, run func(...string) string, bothLinks func()) {
	t.Helper()
	unreachable := func() int { return strings.Count(run("ip", "rule"), "unreachable") }
	if n := unreachable(); n != 2 {
		t.Errorf("%d rules are unreachable before, want one for each link", n)
	}
	run("systemctl", "set-property", "--runtime", "multihomed.service", "MemoryMax=2M", "MemorySwapMax=0")
	await := func(what string, is func() bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		err := lab.Eventually(ctx, func() error {
			if !is() {
				return fmt.Errorf("waiting until %s: %s", what, run("systemctl", "show", "multihomed.service", "multihomed-failed.service"))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	await("the service failed", func() bool {
		return run("systemctl", "show", "-P", "ActiveState", "multihomed.service") == "failed"
	})
	await("nothing refuses packets", func() bool { return unreachable() == 0 })
	if log := run("journalctl", "-b", "-u", "multihomed", "-o", "cat", "--no-pager"); !strings.Contains(log, "oom-kill") {
		t.Errorf("the service was not killed for its memory: %s", log)
	}
	run("ip", "route", "get", "198.51.100.1")
	run("systemctl", "set-property", "--runtime", "multihomed.service", "MemoryMax=512M", "MemorySwapMax=infinity")
	run("systemctl", "reset-failed", "multihomed.service")
	run("systemctl", "start", "multihomed.service")
	bothLinks()
	if n := unreachable(); n != 2 {
		t.Errorf("%d rules are unreachable after the next good start, want 2", n)
	}
}
