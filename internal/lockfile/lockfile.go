// Package lockfile makes sure that only one process at a time changes the kernel and the
// leases: the daemon holds the lock for its lifetime, others for one pass. The lock is
// flock(2) on a file, so that it ends with its holder.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/flock"
)

// Name of the lock in the runtime directory.
const Name = "lock"

// A Lock is held until Close.
type Lock struct{ file *os.File }

// A HeldError says that another process holds the lock.
type HeldError struct {
	Path string
	// PID is the holder; 0 if it is unknown.
	PID int
}

func (e *HeldError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("another multihomed is running: it holds %s; to fix: stop it (find it with `fuser -v %[1]s`)", e.Path)
	}
	return fmt.Sprintf("another multihomed is running: process %d holds %s; to fix: stop it (systemctl stop multihomed, or kill %[1]d)", e.PID, e.Path)
}

// TryLock takes the lock, or returns a HeldError at once.
func TryLock(path string) (*Lock, error) {
	for {
		f, err := flock.Open(path)
		if err != nil {
			return nil, err
		}
		err = flock.Try(f)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(&HeldError{Path: path, PID: holder(f, path)}, f.Close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		if l, err := take(f, path); l != nil || err != nil {
			return l, err
		}
	}
}

// Wait takes the lock as soon as it is free. If ctx is done first, a goroutine stays until the
// holder releases the lock, takes it and gives it back.
func Wait(ctx context.Context, path string) (*Lock, error) {
	for {
		l, err := TryLock(path)
		if _, held := errors.AsType[*HeldError](err); !held {
			return l, err
		}
		if l, err := wait(ctx, path, err); l != nil || err != nil {
			return l, err
		}
	}
}

// wait sleeps in flock(2), which cannot be interrupted from outside. It returns
// neither a lock nor an error if the file was replaced meanwhile.
func wait(ctx context.Context, path string, held error) (*Lock, error) {
	f, err := flock.Open(path)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- flock.Wait(f) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		return take(f, path)
	case <-ctx.Done():
		go func() {
			// Closing releases it; nobody is left to handle an error.
			_ = errors.Join(<-locked, f.Close())
		}()
		return nil, fmt.Errorf("waiting for the lock: %w: %w", context.Cause(ctx), held)
	}
}

// take makes a locked file the lock, unless the path names another file by now: after a
// clean-up of /run two processes could hold a lock.
func take(f *os.File, path string) (*Lock, error) {
	ours, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	if named, err := os.Lstat(path); err != nil || !os.SameFile(ours, named) {
		return nil, f.Close()
	}
	// The number is for people only. The lock works without it, as on a full disk.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{file: f}, nil
}

// maxDigits of a process number (PID_MAX_LIMIT is 2^22).
const maxDigits = 10

// holder finds the holder of the lock by the kernel, or else by the number in the file.
func holder(f *os.File, path string) int {
	if pid, held, err := flock.Holder(path); err == nil && held && pid > 0 {
		return pid
	}
	buffer := make([]byte, maxDigits+1)
	n, _ := f.ReadAt(buffer, 0) // Shorter than the buffer is io.EOF.
	pid, err := strconv.Atoi(strings.TrimSpace(string(buffer[:n])))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// Stands reports whether the lock is still at its path. If somebody removes the file or its
// directory, the next process can take a lock of its own.
func (l *Lock) Stands(path string) bool {
	ours, err := l.file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, named)
}

// Close gives the lock back. The file stays: without it, a process that waits on it and one
// that creates it anew would both hold a lock.
func (l *Lock) Close() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
