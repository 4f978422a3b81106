// Package emergency is the last step when nobody maintains the routing any more: it
// makes the host route as without us wherever a table of ours empties. It knows
// nothing but the kernel: no configuration, no database, no NetworkManager.
package emergency

import (
	"context"
	"errors"
	"fmt"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A Result is what was taken away.
type Result struct {
	// Removed are the rules that are gone, in the words of iproute2 with the family.
	Removed []string
	// Standing counts the rules of ours that are left: they lead to tables, and do
	// nothing where these are empty.
	Standing int
}

// open reads the kernel. Rules of ours are known by protocol and priority, so any
// range of tables will do.
func open(ctx context.Context) (*kernel.Mirror, error) {
	mirror, err := kernel.Open(kernel.Config{
		Tables: routing.DefaultPolicy().Tables, Interest: func(string) bool { return false },
	})
	if err != nil {
		return nil, err
	}
	if err := mirror.Sync(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the kernel: %w", err), mirror.Close())
	}
	return mirror, nil
}

// Stands reports whether the kernel holds any rule of ours.
func Stands(ctx context.Context) (stands bool, err error) {
	mirror, err := open(ctx)
	if err != nil {
		return false, err
	}
	mirror.View(func(k *kernel.State) {
		for range k.Rules() {
			stands = true
			break
		}
	})
	return stands, mirror.Close()
}

// rounds is how often what comes back meanwhile is taken away too.
const rounds = 3

// TakeAway removes the rules that answer "unreachable", at their own priority and
// where they are repeated, of both families. Nothing else is touched. A normal pass
// of the daemon puts them back.
func TakeAway(ctx context.Context) (result Result, err error) {
	mirror, err := open(ctx)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, mirror.Close()) }()
	writer, err := mirror.OpenWriter()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, writer.Close()) }()
	for range rounds {
		var ops []routing.Op
		result.Standing = 0
		mirror.View(func(k *kernel.State) {
			for r := range k.Rules() {
				if r.Action == routing.ActionUnreachable {
					ops = append(ops, routing.Op{Verb: routing.DeleteRule, Rule: r})
				} else {
					result.Standing++
				}
			}
		})
		if len(ops) == 0 {
			return result, nil
		}
		err = nil
		errs := writer.Apply(ctx, ops)
		for i, op := range ops {
			if i < len(errs) && errs[i] != nil {
				err = errors.Join(err, errs[i])
				continue
			}
			result.Removed = append(result.Removed, op.Rule.Family.String()+": "+op.Rule.String())
		}
		if failed := mirror.Sync(ctx); failed != nil {
			return result, errors.Join(err, fmt.Errorf("reading the kernel: %w", failed))
		}
	}
	return result, err
}
