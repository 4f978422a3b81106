package dnsmasq

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/fsutil"
)

// command is the name of dnsmasq's processes (comm in proc(5)).
const command = "dnsmasq"

// hangUp sends SIGHUP to the dnsmasq of a pid file and returns its number, zero if there is
// none. It opens the process (pidfd_open(2)) before checking it, so that no other process
// gets the signal if this one ends meanwhile.
func hangUp(pidFile string) (pid int, err error) {
	pid, owner, err := readPID(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", pidFile, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return 0, nil // dnsmasq was killed and left the file
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%d in %s is a thread and no process; to fix: remove the file and restart dnsmasq", pid, pidFile)
	case err != nil:
		return 0, fmt.Errorf("opening process %d: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	name, user, err := describe(pid)
	if err != nil {
		if ended(fd) {
			return 0, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("process %d of %s runs, but the service is not allowed to see it; to fix: %s", pid, pidFile, dropIn)
		}
		return 0, fmt.Errorf("looking at process %d of %s: %w", pid, pidFile, err)
	}
	if name != command {
		return 0, fmt.Errorf("process %d of %s is %q and not %s; to fix: remove the file if dnsmasq is not running, or configure the pid-file of dnsmasq", pid, pidFile, name, command)
	}
	// The owner of the pid file must not be able to signal other users' processes.
	if owner != 0 && owner != user && int64(owner) != int64(os.Geteuid()) {
		return 0, fmt.Errorf("%s belongs to user %d, and process %d to user %d; to fix: remove the file and restart dnsmasq", pidFile, owner, pid, user)
	}
	switch err := unix.PidfdSendSignal(fd, unix.SIGHUP, nil, 0); {
	case errors.Is(err, unix.ESRCH):
		return 0, nil
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("signalling process %d of user %d: %w; to fix: %s; or run dnsmasq as user %d", pid, user, err, dropIn, os.Geteuid())
	case err != nil:
		return 0, fmt.Errorf("signalling process %d: %w", pid, err)
	}
	return pid, nil
}

// dropIn lets the service see and signal a process of another user. It has all lines at once,
// so that one restart of the service is enough.
const dropIn = `give the service a drop-in ("systemctl edit multihomed") with the four lines "[Service]", ` +
	`"AmbientCapabilities=CAP_KILL", "CapabilityBoundingSet=CAP_KILL" and "ProtectProc=default", then: systemctl restart multihomed`

// ended reports whether the process of a pidfd has ended.
func ended(fd int) bool {
	return errors.Is(unix.PidfdSendSignal(fd, 0, nil, 0), unix.ESRCH)
}

// readPID reads a pid file, and its owner.
func readPID(path string) (pid int, owner uint32, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return 0, 0, err
	}
	const maxSize = 64
	text, err := fsutil.Read(f, maxSize)
	if errors.Is(err, fsutil.ErrNotRegular) {
		return 0, 0, errors.New("it is not a regular file; to fix: configure the pid-file of dnsmasq")
	}
	if errors.Is(err, fsutil.ErrTooLarge) {
		return 0, 0, errors.New("its content is not a process number; to fix: restart dnsmasq, or configure the pid-file of dnsmasq")
	}
	if err != nil {
		return 0, 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 32)
	if err != nil || n <= 0 {
		return 0, 0, fmt.Errorf("%q is not a process number; to fix: restart dnsmasq, or configure the pid-file of dnsmasq", text)
	}
	return int(n), stat.Uid, nil
}

// describe returns the name and the effective user of a process. The user comes
// from its status, as the directory belongs to root once a process has changed
// its user (PR_SET_DUMPABLE(2const)).
func describe(pid int) (name string, user uint32, err error) {
	directory := "/proc/" + strconv.Itoa(pid)
	comm, err := os.ReadFile(directory + "/comm")
	if err != nil {
		return "", 0, err
	}
	status, err := os.ReadFile(directory + "/status")
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(status)) {
		ids, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		// Real, effective, saved, of the file system.
		fields := strings.Fields(ids)
		if len(fields) < 2 {
			break
		}
		n, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			break
		}
		return strings.TrimSuffix(string(comm), "\n"), uint32(n), nil
	}
	return "", 0, fmt.Errorf("%s/status has no user", directory)
}
