package cleanup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"multihomed/internal/answers"
	"multihomed/routing"
)

// rounds bounds how often Remove repeats because somebody else adds objects.
const rounds = 3

// An Outcome is what was removed, and what was not.
type Outcome struct {
	// Removed are the objects as iproute2 writes them, in order.
	Removed []string
	// Rules, Routes, Groups and Endpoints count them.
	Rules, Routes, Groups, Endpoints int
	// Table says that the nftables table went, or what it had of the interface.
	Table bool
	// Left are the objects that are still in the kernel.
	Left []string
	// Refused are the kernel's reasons, of the last attempt.
	Refused []error
}

// Err says what is left and why, nil if nothing is left.
func (o Outcome) Err() error {
	if len(o.Left) == 0 {
		return nil
	}
	const shown = 3
	what := strings.Join(o.Left[:min(len(o.Left), shown)], "; ")
	if more := len(o.Left) - shown; more > 0 {
		what += fmt.Sprintf("; and %d more", more)
	}
	if len(o.Refused) > 0 {
		return fmt.Errorf("%d objects of multihomed are left (%s): %w", len(o.Left), what, o.Refused[0])
	}
	return fmt.Errorf("%d objects of multihomed are left, because somebody keeps adding them: %s", len(o.Left), what)
}

// Remove removes our objects, and those that are added meanwhile. An error says that the
// kernel could not be read; the outcome says what it refused.
func (r *Remains) Remove(ctx context.Context) (Outcome, error) {
	r.Left()
	// Before the rules, which hold subflows to their links. Rules and routes go even if this fails.
	endpoints, unread := r.Endpoints(ctx)
	n, failed := r.RemoveEndpoints(ctx)
	var out Outcome
	if out.Endpoints = n; n == len(endpoints) {
		for _, e := range endpoints {
			out.Removed = append(out.Removed, fmt.Sprintf("mptcp endpoint %s dev %s", e.Address, r.nameOf(e.Device)))
		}
	}
	var untabled error
	if out.Table, untabled = r.removeTable(ctx); out.Table {
		out.Removed = append(out.Removed, "nftables table "+answers.TableID.String())
	}
	err := r.remove(ctx, &out)
	return out, errors.Join(err, unread, failed, untabled)
}

func (r *Remains) remove(ctx context.Context, out *Outcome) error {
	for range rounds {
		if err := r.mirror.Sync(ctx); err != nil {
			return err
		}
		ops := r.Left()
		if len(ops) == 0 {
			if r.options.Link == "" {
				// A daemon that was killed may have left the alias. Without the right to
				// change routing this fails, and nothing else was there to remove.
				_ = r.writer.ForgetAlias(ctx)
			}
			return nil
		}
		out.Refused = nil
		errs := r.writer.Apply(ctx, ops)
		for i, op := range ops {
			if errs != nil && errs[i] != nil {
				out.Refused = append(out.Refused, errs[i])
			} else {
				out.add(op, r.Text(op))
			}
		}
	}
	if err := r.mirror.Sync(ctx); err != nil {
		return err
	}
	for _, op := range r.Left() {
		out.Left = append(out.Left, r.Text(op))
	}
	return nil
}

// again is how often Await reads everything anew: the kernel does not announce the group of
// an interface that is down.
const again = time.Second

// Await waits until somebody else has removed our objects. If ctx is done first, it returns
// the deletions that are left.
func (r *Remains) Await(ctx context.Context) (left []routing.Op, err error) {
	following, cancel := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() { followed <- r.mirror.Run(following) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-followed)
	}()
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		if left = r.Left(); len(left) == 0 {
			if stands, err := r.HasTable(ctx); err != nil || !stands {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-r.mirror.Changed():
			r.mirror.Take()
		case <-ticker.C:
			if err := r.mirror.Resync(ctx); err != nil && ctx.Err() == nil {
				return left, err
			}
		}
	}
}

// Summary counts operations in words.
func (r *Remains) Summary(ops []routing.Op) string {
	var o Outcome
	for _, op := range ops {
		o.add(op, "")
	}
	return o.Summary()
}

func (o *Outcome) add(op routing.Op, text string) {
	o.Removed = append(o.Removed, text)
	switch op.Verb {
	case routing.DeleteRule:
		o.Rules++
	case routing.DeleteRoute:
		o.Routes++
	default:
		o.Groups++
	}
}

// Summary counts what was removed in words.
func (o Outcome) Summary() string {
	count := func(n int, what string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	parts := []string{count(o.Rules, "rule"), count(o.Routes, "route")}
	if o.Groups > 0 {
		parts = append(parts, "the group of "+count(o.Groups, "uplink"))
	}
	if o.Endpoints > 0 {
		parts = append(parts, count(o.Endpoints, "endpoint")+" of Multipath TCP")
	}
	if o.Table {
		parts = append(parts, "the nftables table")
	}
	last := len(parts) - 1
	return strings.Join(parts[:last], ", ") + " and " + parts[last]
}
