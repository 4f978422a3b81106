package kerneltest

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"multihomed/routing"
)

// ErrStopped is what every operation returns after the fuse has blown: as if
// the process had been killed there.
var ErrStopped = errors.New("kerneltest: stopped")

// StopAfter lets n more changes happen and refuses everything then; a negative
// n takes the limit away.
func (k *Kernel) StopAfter(n int) { k.fuse = n }

// ApplyAll does the operations in order, past errors, and returns one error for
// each. As the writer does, it adds all rules of a run of moves before it deletes the
// first copies, the last rule first.
func (k *Kernel) ApplyAll(ops []routing.Op) []error {
	errs := make([]error, len(ops))
	var moving []int
	finish := func() {
		for _, i := range slices.Backward(moving) {
			if err := k.deleteRule(ops[i]); err != nil {
				errs[i] = fmt.Errorf("%s: %w", ops[i], err)
			}
		}
		moving = moving[:0]
	}
	for i, op := range ops {
		if op.Verb != routing.AddRule && op.Verb != routing.MoveRule {
			finish()
		}
		if op.Verb != routing.MoveRule {
			errs[i] = k.Apply(op)
			continue
		}
		if errs[i] = k.repeat(op); errs[i] == nil {
			moving = append(moving, i)
		}
	}
	finish()
	return errs
}

// repeat is the first half of a move: without NLM_F_EXCL the kernel takes a rule a second
// time.
func (k *Kernel) repeat(op routing.Op) error {
	if k.Refuse != nil {
		if err := k.Refuse(op); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return k.change(op, func() { k.insert(op.Rule) })
}

// Apply does one operation. Its errors are those of the kernel: EEXIST where an
// object stands already, ESRCH and ENOENT where it does not.
func (k *Kernel) Apply(op routing.Op) error {
	defer k.actAs(ours)()
	if k.Refuse != nil {
		if err := k.Refuse(op); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	if err := k.apply(op); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (k *Kernel) apply(op routing.Op) error {
	switch op.Verb {
	case routing.SetGroup, routing.ResetGroup:
		if _, ok := k.interfaces[op.Index]; !ok {
			return syscall.ENODEV
		}
		return k.change(op, func() { k.SetGroup(op.Index, op.Group) })
	case routing.AddRoute:
		if err := k.check(op.Route); err != nil {
			return err
		}
		if _, ok := k.find(op.Route); ok {
			return syscall.EEXIST
		}
		return k.change(op, func() { k.put(op.Route) })
	case routing.ReplaceRoute:
		if err := k.check(op.Route); err != nil {
			return err
		}
		return k.change(op, func() { k.replace(op.Route) })
	case routing.DeleteRoute:
		if at, ok := k.find(op.Route); !ok || k.routes[fib{op.Route.Family, op.Route.Table}][at].Protocol != op.Route.Protocol {
			return syscall.ESRCH
		}
		return k.change(op, func() { k.remove(op.Route) })
	case routing.AddRule:
		if op.Rule.Action != routing.ActionGoto && k.exists(op.Rule) {
			return syscall.EEXIST
		}
		return k.change(op, func() { k.insert(op.Rule) })
	case routing.MoveRule:
		// Without NLM_F_EXCL the kernel takes a rule a second time.
		if err := k.change(op, func() { k.insert(op.Rule) }); err != nil {
			return err
		}
		return k.deleteRule(op)
	case routing.DeleteRule:
		return k.deleteRule(op)
	default:
		return syscall.EOPNOTSUPP
	}
}

// change makes one change unless the fuse has blown.
func (k *Kernel) change(op routing.Op, do func()) error {
	if k.fuse == 0 {
		return ErrStopped
	}
	if k.fuse > 0 {
		k.fuse--
	}
	do()
	if k.Step != nil {
		k.Step(op)
	}
	return nil
}

func (k *Kernel) deleteRule(op routing.Op) error {
	b, at, ok := k.match(op.Rule)
	if !ok {
		return syscall.ENOENT
	}
	if !slices.Contains(k.bands[b], op.Rule) {
		return k.change(op, func() { k.removeRule(b, at) })
	}
	return k.change(op, func() {
		// As the writer does: what the kernel would take for it steps behind first.
		for k.bands[b][at] != op.Rule {
			first := k.bands[b][at]
			k.insert(first)
			k.removeRule(b, at)
			_, at, _ = k.match(op.Rule)
		}
		k.removeRule(b, at)
	})
}

// AddForeignRule adds a rule of somebody else, as `ip rule add` does.
func (k *Kernel) AddForeignRule(r routing.Rule) error {
	if k.exists(r) {
		return syscall.EEXIST
	}
	k.insert(r)
	return nil
}

// InsertRule adds a rule without asking whether it stands: a duplicate, as a
// process that was killed between the halves of a move leaves behind.
func (k *Kernel) InsertRule(r routing.Rule) { k.insert(r) }

// DropRule deletes a rule behind our back, false if it does not stand. Only an
// equal rule goes.
func (k *Kernel) DropRule(r routing.Rule) bool {
	b := band{r.Family, r.Priority}
	at := slices.Index(k.bands[b], r)
	if at >= 0 {
		k.removeRule(b, at)
	}
	return at >= 0
}

// AddForeignRoute adds a route of somebody else.
func (k *Kernel) AddForeignRoute(r routing.Route) error {
	if _, ok := k.find(r); ok {
		return syscall.EEXIST
	}
	k.put(r)
	return nil
}

// AddLegs adds a multipath route of somebody else to main: the routes differ in
// their next hops only.
func (k *Kernel) AddLegs(legs ...routing.Route) error {
	if _, ok := k.find(legs[0]); ok {
		return syscall.EEXIST
	}
	for _, r := range legs {
		k.put(r)
	}
	return nil
}

// DropRoute deletes the route of a key behind our back.
func (k *Kernel) DropRoute(r routing.Route) bool {
	if _, ok := k.find(r); !ok {
		return false
	}
	k.remove(r)
	return true
}

// FlushTable empties a table, as `ip route flush table` does.
func (k *Kernel) FlushTable(f routing.Family, t routing.TableID) {
	k.flush(func(r routing.Route) bool { return r.Family == f && r.Table == t })
}
