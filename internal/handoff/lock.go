package handoff

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"multihomed/internal/lockfile"
)

// afterwards is how long a lock is waited for whose holder has ended.
const afterwards = time.Second

// TakeLock takes the lock of the runtime directory, from a dispatcher that has been
// at work because there was no daemon; ctx bounds how long that may take to make
// way, and one that does not is ended; standsIn tells such a process. A daemon keeps it: the error is a [lockfile.HeldError] then.
func TakeLock(ctx context.Context, runtime string, standsIn func(pid int) bool) (*lockfile.Lock, error) {
	path := filepath.Join(runtime, lockfile.Name)
	lock, err := lockfile.TryLock(path)
	held, is := errors.AsType[*lockfile.HeldError](err)
	if !is {
		return lock, err
	}
	holder, err := lockfile.OpenHolder(path)
	if err != nil {
		return nil, errors.Join(held, err)
	}
	if holder != nil {
		defer holder.Close()
	}
	if err := Send(runtime, makeWay()); err != nil && !errors.Is(err, ErrNobody) {
		return nil, errors.Join(held, err)
	}
	if lock, err = lockfile.Wait(ctx, path); err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return lock, err
	}
	if holder == nil || !standsIn(holder.PID) {
		return nil, held
	}
	// It hangs: one that works makes way at once.
	if ended, err := holder.End(context.WithoutCancel(ctx), path); err != nil || !ended {
		return nil, errors.Join(held, err)
	}
	// What waited for it in vain takes the lock for a moment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	return lockfile.Wait(ctx, path)
}
