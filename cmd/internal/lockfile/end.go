package lockfile

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// End kills the process that holds a lock, because it does not do what it is asked for,
// and waits until it is gone. It returns its number, 0 if nobody holds the lock. The
// process is held (pidfd_open(2)) before the kernel is asked a second time whether it is
// the holder, so that nobody else is hit who has got its number meanwhile.
func End(ctx context.Context, path string) (pid int, err error) {
	pid, held, err := listed(path)
	if err != nil || !held {
		return 0, err
	}
	if pid == 0 {
		return 0, fmt.Errorf("ending the holder of %s: its process is not visible here", path)
	}
	if pid == os.Getpid() {
		return 0, fmt.Errorf("ending the holder of %s: it is this process", path)
	}
	fail := func(err error) (int, error) {
		return pid, fmt.Errorf("ending process %d, which holds %s: %w", pid, path, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return pid, nil
	}
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	again, held, err := listed(path)
	if err != nil {
		return fail(err)
	}
	if !held || again != pid {
		return 0, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fail(err)
	}
	for ctx.Err() == nil {
		// The descriptor is readable when the process has ended.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMilliseconds) //nolint:gosec // a descriptor
		switch {
		case n > 0:
			return pid, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fail(err)
		}
	}
	return fail(context.Cause(ctx))
}

// pollMilliseconds is how often ctx is looked at meanwhile.
const pollMilliseconds = 50
