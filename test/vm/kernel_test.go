package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/test/machine"
	"multihomed/test/vm"
)

// kernels are what the releases ship.
var kernels = map[string]string{machine.Bookworm: "6.1.", machine.Trixie: "6.12."}

func TestKernelOfBookworm(t *testing.T) { testKernel(t, machine.Bookworm) }

func TestKernelOfTrixie(t *testing.T) { testKernel(t, machine.Trixie) }

// testKernel boots once, for everything that is tried over the host's files.
func testKernel(t *testing.T, release string) {
	t.Helper()
	out := t.TempDir()
	began := time.Now()
	m := vm.StartTest(t, vm.Config{Release: release, Env: []string{"COLOUR=blue"}, Out: out})
	t.Logf("up after %v", time.Since(began).Round(time.Millisecond))
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := m.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	t.Run("command", func(t *testing.T) {
		if version := run(t, "uname", "-r"); !strings.HasPrefix(version, kernels[release]) {
			t.Errorf("kernel %s, want %s", version, kernels[release])
		}
		if uid := run(t, "id", "-u"); uid != "0\n" {
			t.Errorf("it runs as user %s", uid)
		}
		here, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		if dir := run(t, "pwd"); dir != here+"\n" {
			t.Errorf("it runs in %s, not in %s", dir, here)
		}
		var stream bytes.Buffer
		r, err := m.Command(t.Context(), vm.Command{Args: []string{"sh", "-c", "echo $COLOUR $TASTE; echo bad >&2; exit 7"}, Env: []string{"TASTE=sweet"}, Output: &stream})
		if want := "blue sweet\nbad\n"; err != nil || r.Status != 7 || r.Output != want || stream.String() != want {
			t.Errorf("%+v (%v), streamed %q", r, err, &stream)
		}
		if r, err := m.Command(t.Context(), vm.Command{Args: []string{"sh", "-c", "kill -TERM $$"}}); err != nil || r.Status != 128+15 {
			t.Errorf("ended by SIGTERM: %+v, %v", r, err)
		}
		if _, err := m.Run(t.Context(), "false"); err != nil {
			if exit, ok := errors.AsType[*vm.ExitError](err); !ok || exit.Status != 1 {
				t.Errorf("false ended with %v", err)
			}
		} else {
			t.Error("false succeeded")
		}
		if _, err := m.Run(t.Context(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
			t.Errorf("a program that is not there: %v", err)
		}
	})

	t.Run("hanging command", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Run(ctx, "sh", "-c", "sleep 1000 & sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended with %v", err)
		}
		if left, err := m.Run(t.Context(), "pgrep", "-x", "sleep"); err == nil {
			t.Errorf("left: %s", left)
		}
	})

	t.Run("files", func(t *testing.T) {
		run(t, "touch", "/usr/written-inside")
		if _, err := os.Stat("/usr/written-inside"); err == nil {
			t.Error("the machine writes to the host's files")
		}
		run(t, "sh", "-c", `echo text >"$1"/file`, "sh", out)
		if data, err := os.ReadFile(filepath.Join(out, "file")); err != nil || string(data) != "text\n" {
			t.Errorf("Out has %q, %v", data, err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // of more than one frame
		if err := m.WriteFile("/root/a/b", data, 0o640); err != nil {
			t.Fatal(err)
		}
		if have := strings.Fields(run(t, "stat", "-c", "%s %a", "/root/a/b")); have[0] != "3145728" || have[1] != "640" {
			t.Errorf("written: %v", have)
		}
	})

	// What the kernel of the test host may lack.
	for name, add := range map[string]string{
		"wireguard": "link add w0 type wireguard",
		"vrf":       "link add r0 type vrf table 77",
		"bonding":   "link add b0 type bond mode active-backup",
		"8021q":     "link add link e2 name v0 type vlan id 7",
		"dummy":     "link add d0 type dummy",
		"macvlan":   "link add link e0 name m0 type macvlan",
		"netem":     "qdisc add dev e1 root netem delay 10ms",
		"bridge":    "link add g0 type bridge",
	} {
		t.Run(name, func(t *testing.T) {
			program := "ip"
			if rest, ok := strings.CutPrefix(add, "qdisc"); ok {
				program, add = "tc", "qdisc"+rest
			}
			if base := map[string]string{"macvlan": "e0", "netem": "e1", "8021q": "e2"}[name]; base != "" {
				run(t, "ip", "link", "add", base, "type", "dummy")
			}
			run(t, append([]string{program}, strings.Fields(add)...)...)
		})
	}

	t.Run("lab", func(t *testing.T) { m.Test(t, "multihomed/test/nm", "^TestUpDownSwitch$") })

	// A kernel of modules, older than the one that deletes flows by a filter, and newer.
	t.Run("sockets", func(t *testing.T) { m.Test(t, "multihomed/internal/sockdiag", "^Test(Dump|Destroy|Mark)$") })
	t.Run("connections", func(t *testing.T) {
		m.Test(t, "multihomed/internal/connections", "^Test(Close|Delete|Follow|Multipath)$")
	})

	// VRFs, and rules and errors of older kernels.
	t.Run("lookup", func(t *testing.T) {
		m.Test(t, "multihomed/routing/lookup/reality", "^Test(KernelAgrees|Traps|Packets|SecondLookup)$")
	})

	t.Run("no test", func(t *testing.T) {
		// Of a package that is built already, and whose TestMain does little.
		if err := m.RunTest(t.Context(), "multihomed/internal/sockdiag", "^TestNoSuch$"); !errors.Is(err, vm.ErrNoTest) {
			t.Errorf("no test ran, and it ends with %v", err)
		}
	})

	t.Run("power", func(t *testing.T) {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Run(t.Context(), "true"); err == nil || m.On() {
			t.Errorf("a machine that is off runs programs (%v)", err)
		}
		if vm.QemuRuns(m) {
			t.Error("qemu is left")
		}
	})
}

// TestRequirements: what is missing is one line that says what to do.
func TestRequirements(t *testing.T) {
	err := vm.CheckProgram("no-such-qemu", "some-package")
	if err == nil || err.Error() != "no-such-qemu not found: test/lab/install-requirements some-package" {
		t.Errorf("%v", err)
	}
	if _, err := vm.Start(t.Context(), vm.Config{Release: "potato"}); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "potato") {
		t.Errorf("%v", err)
	}
}

// TestHanging: a boot and a command are bounded by their context and leave nothing.
func TestHanging(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := vm.Run(ctx, vm.Config{Release: machine.Bookworm}, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ended with %v", err)
	}
	children, err := vm.Children()
	if err != nil || strings.Contains(children, "qemu") {
		t.Errorf("left: %s (%v)", children, err)
	}
}
