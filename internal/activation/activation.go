// Package activation takes over the sockets that systemd passes to a service.
package activation

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstListenFD is the first descriptor that systemd passes (SD_LISTEN_FDS_START in
// sd-daemon.h).
const firstListenFD = 3

// Files returns the sockets that systemd passed to this process, by their names, and hides them
// from the programs that it starts (sd_listen_fds(3)). The activation package of
// go-systemd does the same, but imports TLS: 0.6 MB of the program, and its
// initialisation at every call of a hook.
func Files() []*os.File {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // It fails for empty names alone.
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil
	}
	var files []*os.File
	for fd := firstListenFD; fd < firstListenFD+n; fd++ {
		unix.CloseOnExec(fd)
		name := "LISTEN_FD_" + strconv.Itoa(fd)
		if len(names) == n && names[fd-firstListenFD] != "" {
			name = names[fd-firstListenFD]
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files
}
