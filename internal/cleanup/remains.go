package cleanup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// Options say what is known of configurations. The zero value is valid.
type Options struct {
	// Tables are the range of the configuration, zero for the default range.
	Tables routing.TableRange
	// Eras are the earlier configurations.
	Eras []Era
	// Group is the group of uplinks in the configuration, 0 if it is unknown. Then the
	// groups of Eras count, and without Eras those that our rules name.
	Group uint32
	// RuntimeDir is the runtime directory, which has a note of the endpoints of Multipath TCP that we
	// made. Without it they are left alone.
	RuntimeDir string
	// Link limits everything to one interface.
	Link string
	// Unreachable limits everything to the rules that answer "unreachable", at their own
	// priority and where they are repeated, and to those that lead unbound traffic to a
	// living link. It is the last step when nobody maintains the routing any more: where a
	// table of ours becomes empty the host then routes as without us, and unbound traffic
	// follows main. The next pass of the daemon restores them.
	Unreachable bool
}

// Remains are our objects in the kernel. Create it with Open.
type Remains struct {
	options Options
	mirror  *kernel.Mirror
	writer  *kernel.Writer
	nobody  *routing.Planner
	groups  map[uint32]struct{}
	link    link
}

// Open looks at the kernel. It needs no rights.
func Open(ctx context.Context, o Options) (*Remains, error) {
	standard := routing.DefaultPolicy()
	if o.Tables == (routing.TableRange{}) {
		o.Tables = standard.Tables
	}
	former := make([]routing.TableRange, 0, len(o.Eras))
	for _, e := range o.Eras {
		former = append(former, e.Tables())
	}
	for {
		r, err := open(ctx, o, former)
		if err != nil {
			return nil, err
		}
		more := r.elsewhere()
		if len(more) == 0 {
			return r, nil
		}
		// Our rules name tables that no configuration names.
		former = append(former, more...)
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
}

func open(ctx context.Context, o Options, former []routing.TableRange) (*Remains, error) {
	mirror, err := kernel.Open(kernel.Config{
		Tables: o.Tables, Former: former, Interest: func(string) bool { return false },
	})
	if err != nil {
		return nil, err
	}
	r := &Remains{options: o, mirror: mirror, groups: map[uint32]struct{}{}, link: newLink(o.Link)}
	// This planner has no links and no group, so its plan is empty and leaves groups alone.
	r.nobody = routing.NewPlanner(routing.Policy{Tables: o.Tables})
	if r.writer, err = mirror.OpenWriter(); err == nil {
		err = r.read(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.mirror.View(r.findGroups)
	return r, nil
}

func (r *Remains) read(ctx context.Context) error {
	if err := r.mirror.Sync(ctx); err != nil {
		return err
	}
	// Main may have a million routes: read only those of devices that our tables use.
	routes, err := r.mirror.StandIns(ctx)
	if err != nil || len(routes) == 0 {
		return err
	}
	interests := map[int]bool{}
	for _, route := range routes {
		interests[route.Device] = true
	}
	return r.mirror.SetInterest(ctx, interests)
}

// elsewhere returns the tables that our rules lead to and that no range covers.
func (r *Remains) elsewhere() []routing.TableRange {
	found := map[routing.TableID]struct{}{}
	r.mirror.View(func(k *kernel.State) {
		for rule := range k.Rules() {
			t, leads := rule.LeadsTo()
			if !leads {
				t, leads = rule.ReadsFailover()
			}
			if leads && !k.OwnsTable(t) {
				found[t] = struct{}{}
			}
		}
	})
	var out []routing.TableRange
	for _, t := range slices.Sorted(maps.Keys(found)) {
		if n := len(out); n > 0 && out[n-1].Last+1 == t {
			out[n-1].Last = t
		} else {
			out = append(out, routing.TableRange{First: t, Last: t})
		}
	}
	return out
}

// findGroups notes which interface groups mark our uplinks. A group that our rules name may
// be the administrator's, so it counts only if neither configuration nor history names one.
func (r *Remains) findGroups(k *kernel.State) {
	if r.options.Group != 0 {
		r.groups[r.options.Group] = struct{}{}
	}
	for _, e := range r.options.Eras {
		r.groups[e.UplinkGroup] = struct{}{}
	}
	if len(r.groups) > 0 {
		return
	}
	for rule := range k.Rules() {
		if rule.SuppressGroup.Set && rule.SuppressGroup.Value != 0 {
			r.groups[rule.SuppressGroup.Value] = struct{}{}
		}
	}
	r.groups[routing.DefaultPolicy().UplinkGroup] = struct{}{}
}

// Close closes the sockets to the kernel.
func (r *Remains) Close() error {
	var err error
	if r.writer != nil {
		err = r.writer.Close()
	}
	return errors.Join(err, r.mirror.Close())
}

// Mirror is the mirror of the kernel that Open made.
func (r *Remains) Mirror() *kernel.Mirror { return r.mirror }

// Stands reports whether the kernel holds any rule of ours.
func Stands(ctx context.Context) (bool, error) {
	r, err := Open(ctx, Options{})
	if err != nil {
		return false, err
	}
	return r.Rules() > 0, r.Close()
}

// Rules counts our rules, whatever the options.
func (r *Remains) Rules() (n int) {
	r.mirror.View(func(k *kernel.State) {
		for range k.Rules() {
			n++
		}
	})
	return n
}

// has reports whether an operation is within the options.
func (r *Remains) has(op routing.Op) bool {
	if r.options.Unreachable && (op.Verb != routing.DeleteRule || !needsMaintenance(op.Rule)) {
		return false
	}
	if r.options.Link != "" && op.Verb == routing.DeleteRule && op.Rule.IsBinding() {
		return false // What is bound to a link that is off stays bound: it leaves by no other one.
	}
	return r.link.has(op)
}

// needsMaintenance reports whether a rule does harm when nobody keeps the tables right that
// it depends on: it answers "unreachable" where one became empty, or leads unbound traffic
// to a link that worked when somebody judged it last.
func needsMaintenance(r routing.Rule) bool {
	_, failover := r.ReadsFailover()
	return r.Action == routing.ActionUnreachable || failover || r.Priority == routing.PriorityTwin
}

// Left returns the deletions that remove our objects, in an order in which no packet leaves
// by another link.
func (r *Remains) Left() []routing.Op {
	var ops []routing.Op
	r.mirror.View(func(k *kernel.State) {
		r.link.learn(k)
		ops = routing.Diff(r.nobody, k, routing.Everything(r.nobody, k), r.has)
		var marked []routing.Op
		for index, group := range k.Groups() {
			if _, ours := r.groups[group]; ours {
				marked = append(marked, routing.Op{Verb: routing.ResetGroup, Index: index})
			}
		}
		marked = slices.DeleteFunc(marked, func(op routing.Op) bool { return !r.has(op) })
		slices.SortFunc(marked, func(a, b routing.Op) int { return cmp.Compare(a.Index, b.Index) })
		ops = append(ops, marked...)
	})
	return ops
}

// nameOf is the name of an interface, or "ifN" if it has gone.
func (r *Remains) nameOf(index int) string {
	out := fmt.Sprintf("if%d", index)
	r.mirror.View(func(k *kernel.State) {
		if l, ok := k.NameOf(index); ok {
			out = l
		}
	})
	return printable(out)
}

// Text is the object of an operation as iproute2 writes it.
func (r *Remains) Text(op routing.Op) string {
	switch op.Verb {
	case routing.DeleteRule:
		return op.Rule.Family.Flag() + " rule " + printable(op.Rule.String())
	case routing.DeleteRoute:
		return op.Route.Family.Flag() + " route " + op.Route.Text(r.nameOf(op.Route.Device))
	default:
		return "link " + r.nameOf(op.Index) + " group"
	}
}

// printable replaces bytes in the name of an interface that would control a terminal.
func printable(text string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '�' {
			return '?'
		}
		return c
	}, text)
}
