package handoff

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"multihomed/internal/lockfile"
)

// afterwards bounds the wait for a lock whose holder has ended.
const afterwards = time.Second

// TakeLock takes the lock of the runtime directory, also from a stand-in, which it asks to
// make way. It kills a stand-in, as standsIn identifies it, that has not done so when ctx is
// done. A daemon keeps the lock: the error is a [lockfile.HeldError] then.
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
	// It hangs: a working stand-in makes way at once.
	if ended, err := holder.End(context.WithoutCancel(ctx), path); err != nil || !ended {
		return nil, errors.Join(held, err)
	}
	// The wait that ended in vain still takes the lock for a moment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	return lockfile.Wait(ctx, path)
}
