package debian_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"multihomed/test/machine"
	"multihomed/test/vm"
)

var soak = flag.Bool("soak", false, "every host in all phases on both kernels, which takes hours")

// The packages whose tests run inside.
const (
	hosts = "multihomed/test/hosts"
	e2e   = "multihomed/test/e2e"
)

// TestMain lets the go command build the hosts that need such a kernel, too.
func TestMain(m *testing.M) {
	if err := os.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags=debiankernel")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestBookworm(t *testing.T) { //nolint:tparallel // the hosts of one machine run one after the other
	t.Parallel() // the hosts wait more than they compute
	run(t, machine.Bookworm, "^TestWGQuick$")
}

func TestTrixie(t *testing.T) { //nolint:tparallel // likewise
	t.Parallel()
	run(t, machine.Trixie, "^TestKernelHosts$")
}

func run(t *testing.T, release, short string) {
	t.Helper()
	m := vm.StartTest(t, vm.Config{Release: release})
	// No udev makes /dev/net/tun, which would load the module.
	if out, err := m.Run(t.Context(), "modprobe", "tun"); err != nil {
		t.Fatalf("loading tun: %v\n%s", err, out)
	}
	tests := []string{short}
	if *soak {
		tests = []string{"^TestWGQuickInAllPhases$", "^TestKernelHostsInAllPhases$", "^TestHosts$"}
	}
	for _, name := range tests {
		t.Run(name, func(t *testing.T) { m.Test(t, hosts, name) })
	}
	if *soak {
		t.Run("^TestFailoverNetem$", func(t *testing.T) { m.Test(t, e2e, "^TestFailoverNetem$") })
	}
}
