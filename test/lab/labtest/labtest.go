// Package labtest connects package lab to the testing package.
package labtest

import (
	"context"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/machine"
)

// The main goroutine keeps the main thread. Tests leave their threads in other namespaces and let them
// end; the main thread would not end, and is what /proc/self and /proc/net show.
func init() { runtime.LockOSThread() }

// Main runs a package's tests inside a lab. Outside of one (not root, something not
// installed) it prints the missing parts and fails.
//
//	func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }
//
// MULTIHOMED_TEST_RELEASE names another release of Debian ("trixie") whose
// NetworkManager is used.
func Main(m *testing.M) int {
	if release := os.Getenv(releaseEnv); release != "" {
		return machine.Main(m.Run, release)
	}
	return lab.Main(m.Run)
}

// Difference is which lines are in before only (-) and in after only (+).
func Difference(before, after []string) string {
	var out strings.Builder
	only := func(sign string, lines, others []string) {
		there := make(map[string]bool, len(others))
		for _, line := range others {
			there[line] = true
		}
		for _, line := range lines {
			if !there[line] {
				out.WriteString(sign + line + "\n")
			}
		}
	}
	only("- ", before, after)
	only("+ ", after, before)
	return out.String()
}

const releaseEnv = "MULTIHOMED_TEST_RELEASE"

// NewHost opens the lab's host for one test, which must not be parallel, and
// closes it after the test; a failed test shows the end of NetworkManager's log.
func NewHost(tb testing.TB, cfg lab.HostConfig) *lab.Host {
	tb.Helper()
	if release := os.Getenv(releaseEnv); release != "" && cfg.Root == "" {
		root, err := machine.Root(tb.Context(), release)
		if err != nil {
			tb.Fatal(err)
		}
		cfg.Root = root
	}
	host, err := lab.NewHost(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() && !cfg.NoNM && !cfg.NoBus {
			tb.Logf("NetworkManager's log ends:\n%s", host.NMLogTail(60))
		}
		if err := host.Close(); err != nil {
			tb.Error(err)
		}
	})
	return host
}

// NewISP connects a provider to the host for the rest of the test.
func NewISP(tb testing.TB, host *lab.Host, cfg lab.ISPConfig) *lab.ISP {
	tb.Helper()
	isp, err := host.NewISP(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("DHCP log of %s:\n%s", isp.Name(), isp.DHCPLog())
		}
	})
	return isp
}

// timeout is generous: only a failure takes it. It is stretched.
const timeout = 20 * time.Second

// Eventually fails the test if f does not return nil before the test's deadline
// or 20 seconds (lab.Stretched) are over.
func Eventually(tb testing.TB, f func() error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), lab.Stretched(timeout))
	defer cancel()
	if err := lab.Eventually(ctx, f); err != nil {
		tb.Fatal(err)
	}
}
