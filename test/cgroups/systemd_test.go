package cgroups_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/machine"
	"multihomed/test/vm"
)

func TestSystemdOfBookworm(t *testing.T) { testSystemd(t, machine.Bookworm) }

func TestSystemdOfTrixie(t *testing.T) { testSystemd(t, machine.Trixie) }

// testSystemd binds units of every kind where systemd starts them, and starts one again and again.
func testSystemd(t *testing.T, release string) {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "tool")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", tool, "./tool")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := vm.BootTest(t, vm.Config{Release: release})
	if err := m.CopyIn(tool, "/usr/local/bin/tool", 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := m.Run(t.Context(), args...)
		if err != nil {
			said, _ := m.Run(t.Context(), "cat", "/var/tmp/kept")
			t.Fatalf("%v\n%s\n%s", err, out, said)
		}
		return strings.TrimSpace(out)
	}
	unit := func(name, more string) {
		t.Helper()
		err := m.WriteFile("/etc/systemd/system/"+name, []byte("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/usr/local/bin/tool mark\nStandardOutput=append:/var/tmp/%n\n"+more), 0o644)
		if err != nil {
			t.Fatal(err)
		}
	}
	unit("plain.service", "")
	unit("with-dash@.service", "")
	unit("own-slice.service", "Slice=a-b-c.slice\n")
	unit("memory.service", "") // Its directory has another name.
	unit("in-bound.service", "Slice=bound-by.slice\n")
	run("systemctl", "daemon-reload")
	// In a sandbox like the daemon's, with the rights of its helper.
	run("systemd-run", "--unit=keep", "--property=StandardOutput=append:/var/tmp/kept", "--property=User=nobody", "--property=AmbientCapabilities=CAP_BPF CAP_NET_ADMIN",
		"--property=CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN", "--property=ProtectControlGroups=yes", "--property=ProtectProc=invisible", "--property=ProtectSystem=strict",
		"--property=NoNewPrivileges=yes", "/usr/local/bin/tool", "keep",
		"unit plain.service", "unit with-dash@.service", "unit own-slice.service", "unit memory.service", "slice bound-by.slice", "unit users.service",
		"cgroup /sys/fs/cgroup/system.slice/by-path.service")
	await := func(what string, is func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(time.Minute))
		defer cancel()
		if err := lab.Eventually(ctx, func() error { return is(ctx) }); err != nil {
			said, _ := m.Run(t.Context(), "cat", "/var/tmp/kept")
			t.Fatalf("%s: %v\n%s", what, err, said)
		}
	}
	has := func(file, text string) {
		t.Helper()
		await(file+" has "+text, func(ctx context.Context) error {
			out, err := m.Run(ctx, "cat", file)
			if err == nil && !strings.Contains(out, text) {
				err = fmt.Errorf("it has %q", out)
			}
			return err
		})
	}
	has("/var/tmp/kept", "unit plain.service: it has no cgroup yet")
	const bound = "later 0x82000000\n"
	for _, name := range []string{"plain.service", "with-dash@1.service", "with-dash@x-y.service", "own-slice.service", "memory.service", "in-bound.service"} {
		run("systemctl", "start", name)
		has("/var/tmp/"+name, bound)
	}
	run("systemd-run", "--unit=by-path", "--property=StandardOutput=append:/var/tmp/by-path.service", "/usr/local/bin/tool", "mark")
	has("/var/tmp/by-path.service", bound)
	run("useradd", "--create-home", "alice")
	run("sh", "-c", "systemctl start user@$(id -u alice).service")
	run("sh", "-c", "cd / && XDG_RUNTIME_DIR=/run/user/$(id -u alice) setpriv --reuid alice --regid alice --clear-groups systemd-run --user --unit=users sh -c 'exec tool mark >/var/tmp/users.service'")
	has("/var/tmp/users.service", bound)

	// Made anew, and its first socket, which may have come before the program.
	const times = 30
	for n := range times {
		run("systemctl", "restart", "plain.service")
		await(fmt.Sprint("restart ", n), func(ctx context.Context) error {
			out, err := m.Run(ctx, "cat", "/var/tmp/plain.service")
			if got := strings.Count(out, bound); err == nil && got != n+2 {
				err = fmt.Errorf("%d were bound", got)
			}
			return err
		})
	}
	out := run("cat", "/var/tmp/plain.service")
	if strings.Count(out+"\n", bound) != times+1 {
		t.Errorf("of %d starts: %s", times+1, out)
	}
	t.Logf("the first socket of %d of %d starts was bound", strings.Count(out, "first 0x82000000\n"), times+1)
	t.Log(run("sh", "-c", "grep 'unit plain.service: bound' /var/tmp/kept | tail -n 3; tail -n 7 /var/tmp/kept"))
}
