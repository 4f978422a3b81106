package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"multihomed/allocator/wire"
)

// shortest is how often a lease is renewed at most.
const shortest = time.Second

// Hold makes a lease and renews it at half of its life until ctx is done. Then it
// releases the lease and returns nil. It returns an error only if the first request fails,
// or if the server refuses a renewal for good.
//
// Hold calls changed
//   - with the first lease,
//   - with a lease that has another number, because the server has lost its memory: the
//     caller makes its rules and routes again, with the new number,
//   - with an error when renewals begin to fail, and with the lease when one succeeds
//     again,
//   - with an error if the lease cannot be released at the end.
func (c *Client) Hold(ctx context.Context, r Request, changed func(Lease, error)) error {
	r.Hold = true
	l, err := c.Lease(ctx, r)
	if err != nil {
		return err
	}
	defer func() {
		// The context is done, and it is for this that it was.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.Interval*time.Duration(c.options.Tries))
		defer cancel()
		if err := c.Release(ctx, r); err != nil {
			changed(Lease{}, err)
		}
	}()
	changed(l, nil)
	failing := false
	timer := time.NewTimer(c.pause(l))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next, err := c.Lease(ctx, r)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if failing || next.Table != l.Table {
				changed(next, nil)
			}
			l, failing = next, false
			timer.Reset(c.pause(l))
		case final(err):
			return fmt.Errorf("the lease of table %s is lost: %w", l.Table, err)
		default:
			if !failing {
				changed(l, err)
			}
			failing = true
			timer.Reset(max(c.options.Interval, shortest))
		}
	}
}

// pause is how long a lease need not be renewed. One that lives as long as its
// address is looked after now and then all the same: its server may be another
// one by then.
func (c *Client) pause(l Lease) time.Duration {
	if l.Expires.IsZero() {
		return time.Minute
	}
	return max(l.Lifetime/2, shortest)
}

// final reports whether asking again would not help.
func final(err error) bool {
	if refused, ok := errors.AsType[*wire.Error](err); ok {
		return !refused.Temporary() && refused.Code != wire.Kernel && refused.Code != wire.Exhausted
	}
	return errors.Is(err, ErrNotRouted)
}
