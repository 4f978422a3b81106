package debian_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"multihomed/internal/machine"
	"multihomed/test/vm"
)

var soak = flag.Bool("soak", false, "everything on both kernels: an hour or two")

// hosts is the package whose tests run inside.
const hosts = "multihomed/test/hosts"

func TestBookworm(t *testing.T) {
	run(t, machine.Bookworm, "^TestWGQuick$")
}

func TestTrixie(t *testing.T) {
	run(t, machine.Trixie, "^TestKernelHosts$")
}

func run(t *testing.T, release, short string) {
	t.Helper()
	// The hosts that need such a kernel (see doc.go).
	t.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags=debiankernel"))
	m := vm.StartTest(t, vm.Config{Release: release})
	tests := []string{short}
	if *soak {
		tests = []string{"^TestWGQuickInAllPhases$", "^TestKernelHostsInAllPhases$", "^TestHosts$"}
	}
	for _, name := range tests {
		t.Run(name, func(t *testing.T) { m.Test(t, hosts, name) })
	}
}
