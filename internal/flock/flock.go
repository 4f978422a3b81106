// Package flock locks files with flock(2). Every process that can open a file, even for
// reading, can lock it and keep it locked. So these files are for their owner alone, and the
// error after a wait names the holder.
package flock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/ownership"
)

// mode is that of all lock files.
const mode fs.FileMode = 0o600

// Open opens or creates a lock file, for its owner alone whatever its mode was and whatever
// the umask is. Root gives it to the owner of the directory. It follows no symbolic link.
func Open(path string) (*os.File, error) {
	f, err := openOrCreate(path)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("opening the lock: %w: it is a symbolic link; to fix: remove %s", err, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("opening the lock: %w; to fix: run as root or as the user of the service", err)
	case err != nil:
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("it is not a regular file; to fix: remove %s", path)
	default:
		if info.Mode().Perm() != mode {
			// Only its owner and root can do that; the lock works without it.
			_ = f.Chmod(mode)
		}
		err = ownership.Adopt(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// mostTries bounds how often a file is looked for that somebody else makes and removes.
const mostTries = 100

// openOrCreate opens the file, and creates it if there is none.
func openOrCreate(path string) (*os.File, error) {
	for try := 1; ; try++ {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if !errors.Is(err, fs.ErrNotExist) || try == mostTries {
			return f, err
		}
		if err := create(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

// create makes the file under another name first: it must never stand there as root's, because
// the service's user, who starts at that moment, would be refused.
func create(path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if at, is := errors.AsType[*fs.PathError](err); is {
		return &fs.PathError{Op: at.Op, Path: path, Err: at.Err} // Nobody knows the other name.
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name()), f.Close()) }()
	// The umask does not count.
	if err := errors.Join(f.Chmod(mode), ownership.Adopt(f)); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// Try locks a file, or fails at once: with EWOULDBLOCK if another process holds it.
func Try(f *os.File) error { return lock(f, unix.LOCK_EX|unix.LOCK_NB) }

// Wait locks a file as soon as no other process holds it.
func Wait(f *os.File) error { return lock(f, unix.LOCK_EX) }

func lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// again is the pause between two attempts of Take.
const again = 20 * time.Millisecond

// Take opens a file and locks it; closing it releases the lock. If ctx is done first, the
// error names the process that holds it.
func Take(ctx context.Context, path string) (*os.File, error) {
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		f, err := Open(path)
		if err != nil {
			return nil, err
		}
		err = Try(f)
		if err == nil {
			// If the file was replaced, another process could lock the new one.
			ours, err := f.Stat()
			if named, gone := os.Lstat(path); err == nil && gone == nil && os.SameFile(ours, named) {
				return f, nil
			}
		}
		if closing := f.Close(); closing != nil || err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, errors.Join(err, closing))
		}
		select {
		case <-ctx.Done():
			return nil, heldBy(path)
		case <-ticker.C:
		}
	}
}

func heldBy(path string) error {
	pid, _, err := holder(path, "WRITE", "READ")
	if err != nil || pid == 0 {
		return fmt.Errorf("another process holds %s; to fix: find it with `fuser -v %[1]s`, and end it", path)
	}
	name := "process " + strconv.Itoa(pid)
	if command, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); err == nil {
		name += fmt.Sprintf(" (%q)", strings.TrimSpace(string(command)))
	}
	return fmt.Errorf("%s holds %s; to fix: wait for it, or end it (kill %d)", name, path, pid)
}

// Holder finds the holder of an exclusive flock(2) in /proc/locks, where a line is
// "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF" (proc(5)). The process is 0 if it is
// unknown. Holder does not try the lock: that could take it for a moment from a process that
// starts, and needs the right to open the file.
func Holder(path string) (pid int, held bool, err error) { return holder(path, "WRITE") }

func holder(path string, kinds ...string) (pid int, held bool, err error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, false, nil
		}
		return 0, false, fmt.Errorf("looking at the lock %s: %w", path, err)
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, false, fmt.Errorf("looking for the holder of %s: %w", path, err)
	}
	for line := range strings.Lines(string(locks)) {
		// Lines of waiting processes have an arrow in the second field.
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !slices.Contains(kinds, f[3]) || f[5] != file {
			continue
		}
		// A process that is ending, or in another PID namespace, has no number.
		pid, err := strconv.Atoi(f[4])
		return max(pid, 0), err == nil, nil
	}
	return 0, false, nil
}
