package vm_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/test/vm"
)

// appArmor puts the loader of profiles into a Debian that has none, as its package has it: the package of multihomed then
// loads its profiles when it is installed.
func appArmor(t *testing.T, m *vm.Machine) {
	t.Helper()
	tar := filepath.Join(t.TempDir(), "apparmor.tar")
	pack := exec.CommandContext(t.Context(), "tar", "-C", "/", "-chf", tar, "sbin/apparmor_parser", "usr/bin/aa-enabled", "etc/apparmor/parser.conf", "etc/apparmor.d/abi", "etc/apparmor.d/tunables", "usr/share/apparmor-features")
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := m.CopyIn(tar, "/root/apparmor.tar", 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := m.Run(t.Context(), "sh", "-ec", "tar -C / --keep-directory-symlink -xf /root/apparmor.tar; aa-enabled; apparmor_parser --version"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// complains has the services do their work under their profiles, which log what they do not know, and wants no such line.
// The tool is not confined.
func complains(t *testing.T, m *vm.Machine, bothLinks func()) {
	t.Helper()
	run := func(args ...string) string {
		t.Helper()
		out, err := m.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	// Nothing is left out of the log.
	run("sysctl", "-qw", "kernel.printk_ratelimit=0")
	confined := func(unit string) {
		t.Helper()
		if label := run("sh", "-c", "cat /proc/$(systemctl show -P MainPID "+unit+".service)/attr/apparmor/current"); label != unit+" (complain)" {
			t.Errorf("%s is confined by %q", unit, label)
		}
	}
	for _, script := range []string{
		"nmcli connection modify wan1 ipv4.dns 192.0.3.1 && nmcli device reapply wan1",
		"multihomectl off && multihomectl on && systemctl reload multihomed",
		"multihomectl bind add wan1 unit=of-wan1.service && systemd-run --wait --quiet --unit=of-wan1 sleep 1 && multihomectl run --link wan1 true && multihomectl bind list",
	} {
		run("sh", "-ec", script)
	}
	confined("multihomed-binder")
	for _, script := range []string{
		"multihomectl bind remove unit=of-wan1.service",
		"multihomectl doctor --probe --target 198.51.100.1 || test $? = 1",
		"ip link set ispwan0 down && while ! multihomectl status --json | grep -q '\"main\": *\"wan0\"'; do sleep 0.2; done",
		"ip link set ispwan0 up && multihomectl failover test wan0 && multihomectl failover reset wan0",
		"multihomectl report --redact -o /root/report",
		"nmcli connection modify wan1 ipv4.dns '' && nmcli device reapply wan1",
		"systemctl restart multihomed",
	} {
		run("sh", "-ec", script)
	}
	bothLinks()
	confined("multihomed")
	confined("multihomed-prober")
	if said := run("sh", "-c", `journalctl -b --no-pager -o cat | grep -E 'apparmor="(ALLOWED|DENIED)"' | sed -E 's/^.*apparmor=//; s/ pid=[0-9]+//' | sort | uniq -c`); said != "" {
		t.Errorf("AppArmor complains:\n%s", said)
	}
}
