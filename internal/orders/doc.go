// Package orders is what an administrator orders, whoever carries it out: multihomectl on a host
// without a daemon, or the daemon that is asked on D-Bus. It finds what words mean, changes what is
// kept on disk, and says in one sentence what came of it. It does not touch the kernel.
package orders

import "fmt"

// A WordError says that a word of an order names nothing.
type WordError struct{ text string }

func (e *WordError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &WordError{fmt.Sprintf(format, args...)} }
