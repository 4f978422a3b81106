// Package lockfile makes sure that one process at a time changes the kernel and
// the leases: the daemon holds the lock for life, others for one pass. The lock
// is flock(2) on a file, so that it ends with its holder however that dies.
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

// Wait takes the lock as soon as it is free. When ctx is done first, one
// goroutine stays until the holder lets go, and then gives the lock back.
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
			// Closing lets go of it; nobody is left to be told of an error.
			_ = errors.Join(<-locked, f.Close())
		}()
		return nil, fmt.Errorf("waiting for the lock: %w: %w", context.Cause(ctx), held)
	}
}

// take makes a locked file the lock, unless the path names another file by now:
// who cleans /run must not let two processes in.
func take(f *os.File, path string) (*Lock, error) {
	ours, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	if named, err := os.Lstat(path); err != nil || !os.SameFile(ours, named) {
		return nil, f.Close()
	}
	// For people only. The lock holds without it, also where the disk is full.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{file: f}, nil
}

// maxDigits of a process number (PID_MAX_LIMIT is 2^22).
const maxDigits = 10

// holder finds out who holds the lock: the kernel knows, and else the file says.
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

// Stands reports whether the lock still is where the others look for it: whoever removes
// the file, or its directory, lets the next one take a lock of his own.
func (l *Lock) Stands(path string) bool {
	ours, err := l.file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, named)
}

// Close gives the lock back. The file stays: if it were removed, a process that
// waits on it and one that creates it anew would both hold a lock.
func (l *Lock) Close() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
