package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"multihomed/routing"
)

// ErrNotOurs is the answer to an operation on what does not carry our protocol.
var ErrNotOurs = errors.New("kerneltest: the object is not ours")

// A Writer changes a [Kernel] as package kernel's changes the real one.
type Writer struct{ kernel *Kernel }

// Writer returns one.
func (k *Kernel) Writer() Writer { return Writer{k} }

// Apply carries the operations out in their order, past errors. What is there already, or
// gone already, is no error. The errors correspond to the operations.
func (w Writer) Apply(ctx context.Context, ops []routing.Op) []error {
	errs := make([]error, len(ops))
	for i, op := range ops {
		if ctx.Err() != nil {
			errs[i] = context.Cause(ctx)
			continue
		}
		errs[i] = w.apply(op)
	}
	return errs
}

func (w Writer) apply(op routing.Op) error {
	switch op.Verb {
	case routing.SetGroup, routing.ResetGroup:
	case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		if op.Route.Protocol != routing.Multihomed {
			return fmt.Errorf("%s: %w", op, ErrNotOurs)
		}
	default:
		if op.Rule.Protocol != routing.Multihomed {
			return fmt.Errorf("%s: %w", op, ErrNotOurs)
		}
	}
	err := w.kernel.Apply(op)
	switch op.Verb {
	case routing.AddRule:
		if errors.Is(err, syscall.EEXIST) && w.kernel.counts[op.Rule] == 0 {
			// The kernel took it for another one: it is added without NLM_F_EXCL.
			defer w.kernel.actAs(ours)()
			return w.kernel.change(op, func() { w.kernel.insert(op.Rule) })
		}
		if errors.Is(err, syscall.EEXIST) {
			return nil
		}
	case routing.DeleteRule, routing.DeleteRoute, routing.MoveRule:
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
	case routing.ResetGroup:
		if errors.Is(err, syscall.ENODEV) {
			return nil
		}
	default:
	}
	return err
}
