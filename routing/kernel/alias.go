package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// This file gives the loopback interface a second name while rules of ours need one: see
// [routing.LoopbackAlias].

// loopback is the interface of LOOPBACK_IFINDEX (include/net/flow.h).
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}

func byAlias(op routing.Op) bool { return op.Rule.IIF == routing.LoopbackAlias }

func addsRule(op routing.Op) bool { return op.Verb == routing.AddRule || op.Verb == routing.MoveRule }

// nameLoopback gives the loopback interface the second name. A rule that is added before
// would match nothing.
func (w *Writer) nameLoopback() error {
	err := w.names.LinkAddAltName(loopback, routing.LoopbackAlias)
	if err == nil || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return fmt.Errorf("naming the loopback interface %s: %w", routing.LoopbackAlias, err)
}

// dropAlias takes the second name away if no rule says it any more.
func (w *Writer) dropAlias(ctx context.Context) {
	if err := w.mirror.Drain(); err != nil {
		return // The next Sync says so, too, and the name does no harm.
	}
	said := false
	w.mirror.View(func(s *State) {
		for r := range s.Rules() {
			said = said || r.IIF == routing.LoopbackAlias
		}
	})
	if !said {
		_ = w.ForgetAlias(ctx) // Likewise.
	}
}

// ForgetAlias takes the second name of the loopback interface away. It is no error if
// there is none.
func (w *Writer) ForgetAlias(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := w.names.LinkDelAltName(loopback, routing.LoopbackAlias)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("taking the name %s from the loopback interface: %w", routing.LoopbackAlias, err)
}
