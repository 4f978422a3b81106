package lockfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is the holder of a lock. It stays the same process even if its number is reused
// (pidfd_open(2)).
type Process struct {
	PID int
	fd  int
}

// OpenHolder finds the process that holds the lock, nil if nobody does or it is unknown, as in
// another PID namespace.
func OpenHolder(path string) (*Process, error) {
	pid, held, err := Holder(path)
	if err != nil || !held || pid <= 0 {
		return nil, err
	}
	p, err := openProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("%w; it holds %s", err, path)
	}
	return p, nil
}

// openProcess returns nil if no process has that number.
func openProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return &Process{PID: pid, fd: fd}, nil
}

// Close closes the descriptor of the process.
func (p *Process) Close() error { return unix.Close(p.fd) }

// holds reports whether the process still holds the lock, by its own descriptors. The number
// in the kernel's list is that of the process that took the lock. If a child inherited the
// descriptor, that number may be free, or another process's.
func (p *Process) holds(path string) (bool, error) {
	pid, held, err := Holder(path)
	if err != nil || !held || pid != p.PID {
		return false, err
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return false, err
	}
	file := fmt.Sprintf(" %02x:%02x:%d ", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.PID))
	if err != nil {
		return false, err
	}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // It was closed.
		}
		for line := range strings.Lines(string(text)) {
			// "lock:\t1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF" (proc(5))
			if strings.HasPrefix(line, "lock:") && strings.Contains(line, " FLOCK ") && strings.Contains(line, file) {
				return true, nil
			}
		}
	}
	return false, nil
}

// endTimeout bounds the wait for the end of a killed process.
const endTimeout = 3 * time.Second

// End kills the process if it still holds the lock, and waits until it has ended. Otherwise it
// does nothing and returns false.
func (p *Process) End(ctx context.Context, path string) (bool, error) {
	return p.end(ctx, func() (bool, error) { return p.holds(path) })
}

func (p *Process) end(ctx context.Context, isHolder func() (bool, error)) (bool, error) {
	if p.PID == os.Getpid() {
		return false, errors.New("it is this process")
	}
	holds, err := isHolder()
	if err != nil || !holds {
		return false, err
	}
	// If the number belongs to another process by now, the process of the descriptor has
	// ended, and the signal reaches nobody.
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	const turn = 100 // milliseconds
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, turn) //nolint:gosec // a descriptor
		switch {
		case n == 1:
			return true, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("waiting for its end: %w", err)
		case ctx.Err() != nil:
			return false, errors.New("it was killed and does not end: it waits in the kernel")
		}
	}
}

// Worked is how long threads of the process have run or waited for a processor, in clock
// ticks. Waiting counts because a process at work gets little time on a busy machine.
func (p *Process) Worked() int64 {
	const tick = 10_000_000 // nanoseconds
	worked := int64(0)
	for _, text := range p.threads("schedstat") {
		// Time on a processor, time in a run queue, number of turns
		// (Documentation/scheduler/sched-stats.rst).
		f := strings.Fields(string(text))
		for _, nanoseconds := range f[:min(2, len(f))] {
			n, _ := strconv.ParseInt(nanoseconds, 10, 64)
			worked += n / tick
		}
	}
	return worked
}

// Waits reports whether a thread of the process is in uninterruptible sleep (proc(5), state
// D): for a disk, or for the kernel's routing lock.
func (p *Process) Waits() bool {
	return slices.ContainsFunc(p.threads("stat"), func(text []byte) bool {
		f := fieldsOfStat(text)
		return len(f) > 0 && f[0] == "D"
	})
}

// enough is the processor time, run or waited for, within three seconds that proves a process to
// be at work, in clock ticks (100 per second).
const enough = 30

// Busy reports whether the process is at work, or waits in the kernel. Before is what Worked
// returned three seconds ago.
func (p *Process) Busy(before int64) bool { return p.Worked()-before > enough || p.Waits() }

// threads returns the content of a file of each thread that has not ended.
func (p *Process) threads(file string) (texts [][]byte) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", p.PID, file))
	if err != nil {
		return nil // Only for a bad pattern.
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			texts = append(texts, text)
		}
	}
	return texts
}

// fieldsOfStat are those behind the name, which may hold anything (proc(5)).
func fieldsOfStat(text []byte) []string {
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}
