package lockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Held reports whether some process holds the lock. It asks the kernel's list
// of locks and not the lock itself: trying it would for a moment take it from a
// daemon that starts, and would need a file that anyone may open, and so hold.
func Held(path string) (bool, error) {
	_, held, err := listed(path)
	return held, err
}

// Holder is Held with the process that holds the lock, 0 if it cannot be told.
func Holder(path string) (pid int, held bool, err error) { return listed(path) }

// listed finds the holder of an exclusive flock(2) in /proc/locks, where
// a line is "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF" (proc(5)).
func listed(path string) (pid int, held bool, err error) {
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
		// One that waits has an arrow in the second field.
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" || f[5] != file {
			continue
		}
		// In another PID namespace, or nearly dead, it has no number.
		pid, err := strconv.Atoi(f[4])
		return max(pid, 0), err == nil, nil
	}
	return 0, false, nil
}
