// Package hangup takes SIGHUP as early as a program in Go can, before the packages that it needs
// are initialised: the signal ends a process that does not take it (signal(7)), and a reload that
// comes too early must not end the daemon. It imports next to nothing, because Go initialises a
// package after its imports.
package hangup

import (
	"os"
	"os/signal"
	"syscall"
)

// taken has room for one: several reloads before the daemon looks are one.
//
//nolint:gochecknoglobals // A process has its signals once.
var taken = make(chan os.Signal, 1)

func init() { signal.Notify(taken, syscall.SIGHUP) } //nolint:gochecknoinits // see above

// Taken are the signals that came since the process began.
func Taken() <-chan os.Signal { return taken }

// GiveBack undoes that, for a program that SIGHUP ends, also if it came meanwhile. A signal that
// the caller of the program ignored (nohup(1)) is ignored again.
func GiveBack() {
	signal.Stop(taken)
	select {
	case <-taken:
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP) // A process may always signal itself.
	default:
	}
}
