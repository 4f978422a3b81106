package vm_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/vm"
)

// appArmor has everything logged, and puts the loader of profiles into a Debian that has none, as its package has it: the package of multihomed then
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
	if out, err := m.Run(t.Context(), "sh", "-ec", "tar -C / --keep-directory-symlink -xf /root/apparmor.tar; aa-enabled; apparmor_parser --version; sysctl -qw kernel.printk_ratelimit=0"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// works has the services do their work under their profiles, which log what they do not know.
func works(t *testing.T, m *vm.Machine) {
	t.Helper()
	run := func(script string) {
		t.Helper()
		if _, err := m.Run(t.Context(), "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	run("nmcli connection modify wan1 ipv4.dns 192.0.3.1 && nmcli device reapply wan1")
	run("multihomectl off && multihomectl on && systemctl reload multihomed")
	run("multihomectl bind add wan1 unit=of-wan1.service && systemd-run --wait --quiet --unit=of-wan1 sleep 1 && multihomectl run --link wan1 true")
	confined(t, m, "multihomed-binder")
	run("multihomectl bind remove unit=of-wan1.service")
	run("multihomectl doctor --probe --target 198.51.100.1 || test $? = 1")
	run("ip link set ispwan0 down")
	ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(time.Minute))
	defer cancel()
	if err := lab.Eventually(ctx, func() error {
		_, err := m.Run(ctx, "sh", "-c", `multihomectl status --json | grep '"main": *"wan0"'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	run("ip link set ispwan0 up")
	// On a slow machine NetworkManager has given it up meanwhile, and activates it again.
	if err := lab.Eventually(ctx, func() error {
		_, err := m.Run(ctx, "multihomectl", "failover", "test", "wan0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	run("multihomectl failover reset wan0")
	run("multihomectl report --redact -o /root/report")
	run("nmcli connection modify wan1 ipv4.dns '' && nmcli device reapply wan1")
	run("systemctl restart multihomed")
}

// confined wants a service under its profile.
func confined(t *testing.T, m *vm.Machine, unit string) {
	t.Helper()
	label, err := m.Run(t.Context(), "sh", "-c", "cat /proc/$(systemctl show -P MainPID "+unit+".service)/attr/apparmor/current")
	if strings.TrimSpace(label) != unit+" (complain)" || err != nil {
		t.Errorf("%s is confined by %q, %v", unit, label, err)
	}
}

// complete wants that nothing of what happened since the boot was unknown to the profiles.
func complete(t *testing.T, m *vm.Machine) {
	t.Helper()
	said, err := m.Run(t.Context(), "sh", "-c", `journalctl -b --no-pager -o cat | grep -E 'apparmor="(ALLOWED|DENIED)"' | sed -E 's/^.*apparmor=//; s/ pid=[0-9]+//' | sort | uniq -c`)
	if err != nil {
		t.Fatal(err)
	}
	if said != "" {
		t.Errorf("AppArmor complains:\n%s", said)
	}
}
