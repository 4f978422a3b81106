// Package nettest gives the tests of a package their own network: no bus, no
// NetworkManager, only the kernel. What needs more takes package labtest.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// insideEnv marks the copy of the test binary that runs in its own namespaces.
const insideEnv = "MULTIHOMED_NETTEST"

// The main goroutine keeps the main thread. Tests leave their threads in other namespaces and let them
// end; the main thread would not end, and is what /proc/self and /proc/net show.
func init() { runtime.LockOSThread() }

// Main runs everything in private network and mount namespaces, so that no test
// can reach the machine's routing, and fails if a goroutine is left over:
//
//	func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }
func Main(m *testing.M) int {
	if os.Getenv(insideEnv) == "" {
		return again()
	}
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// again runs the test binary once more, in namespaces.
func again() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "nettest: these tests need root, for a network namespace of their own")
		return 1
	}
	// Pdeathsig follows the thread, which init has locked.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "nettest: creating namespaces: %v\n", err)
		return 1
	}
	return 0
}
