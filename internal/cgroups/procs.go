package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Limits of what is counted: cgroups, and bytes of each list.
const (
	maxCounted = 1024
	maxList    = 1 << 20
)

// processes counts the processes in an open cgroup and in those below it, as far as the limits allow.
func processes(directory *os.File) (int, error) {
	left := maxCounted
	return count(int(directory.Fd()), &left)
}

func count(directory int, left *int) (n int, err error) {
	*left--
	n, err = listed(directory)
	if err != nil {
		return n, err
	}
	fd, err := unix.Openat(directory, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return n, fmt.Errorf("reading a cgroup: %w", err)
	}
	open := os.NewFile(uintptr(fd), "cgroup")
	defer func() { _ = open.Close() }()
	for *left > 0 {
		entries, err := open.ReadDir(512)
		for _, e := range entries {
			if !e.IsDir() || *left <= 0 {
				continue
			}
			below, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // It was removed.
			}
			more, err := count(below, left)
			n += more
			if err = errors.Join(err, unix.Close(below)); err != nil {
				return n, err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT):
			return n, nil
		case err != nil:
			return n, fmt.Errorf("reading a cgroup: %w", err)
		}
	}
	return n, nil
}

// listed counts the lines of cgroup.procs.
func listed(directory int) (int, error) {
	fd, err := unix.Openat(directory, "cgroup.procs", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // It was removed.
	}
	if err != nil {
		return 0, fmt.Errorf("counting the processes of a cgroup: %w", err)
	}
	file := os.NewFile(uintptr(fd), "cgroup.procs")
	data, err := io.ReadAll(io.LimitReader(file, maxList))
	err = errors.Join(err, file.Close())
	// In a threaded cgroup it is the domain above that lists processes.
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("counting the processes of a cgroup: %w", err)
	}
	return bytes.Count(data, []byte{'\n'}), nil
}
