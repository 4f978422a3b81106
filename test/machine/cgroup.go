package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A cgroup is the control group of a machine that is on, of version 2
// whatever the host uses: systemd of trixie boots in no other. A lab has no
// control groups mounted, so the hierarchy is mounted for this process only, and
// nowhere in the file system.
type cgroup struct {
	hierarchy *os.File // a mount without a mount point
	dir       *os.File // held open and locked
	path      string   // of dir
}

// cgroupPrefix begins the names of machines' control groups.
const cgroupPrefix = "multihomed-machine-"

// newCgroup makes a control group below the one this process is in.
func newCgroup(ctx context.Context) (*cgroup, error) {
	hierarchy, err := mountCgroup()
	if err != nil {
		return nil, fmt.Errorf("mounting cgroup2 (does the kernel have it?): %w", err)
	}
	c := &cgroup{hierarchy: hierarchy}
	own, err := ownCgroup()
	if err == nil {
		parent := filepath.Join(fdPath(hierarchy), own)
		err = errors.Join(sweep(parent), c.make(ctx, parent))
	}
	if err != nil {
		c.closeFiles()
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	return c, nil
}

func mountCgroup() (*os.File, error) {
	config, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}

// ownCgroup is the path of this process's control group in the hierarchy.
func ownCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("/proc/self/cgroup has no line for cgroup2")
}

func (c *cgroup) make(ctx context.Context, parent string) error {
	for {
		path, err := os.MkdirTemp(parent, cgroupPrefix)
		if err != nil {
			return err
		}
		c.path = path
		if c.dir, err = os.Open(path); errors.Is(err, fs.ErrNotExist) {
			continue // another process swept it before it was locked
		} else if err != nil {
			return err
		}
		if err := flock(ctx, c.dir); err != nil {
			return err
		}
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		_ = c.dir.Close()
	}
}

// sweep removes groups without a lock, which killed programs have left. Their
// processes ended with the lab.
func sweep(parent string) error {
	paths, err := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		dir, err := os.Open(path)
		if err != nil {
			continue // removed since
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = removeCgroup(path) // the next caller tries again
		}
		_ = dir.Close()
	}
	return nil
}

// kill ends all processes in the group.
func (c *cgroup) kill() error {
	return os.WriteFile(filepath.Join(c.path, "cgroup.kill"), []byte("1"), 0)
}

// close kills what is left in the group and removes it.
func (c *cgroup) close() error {
	defer c.closeFiles()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.kill(); err != nil {
		return err
	}
	// A group is busy until the last process in it has been reaped.
	return lab.Eventually(ctx, func() error { return removeCgroup(c.path) })
}

func (c *cgroup) closeFiles() {
	if c.dir != nil {
		_ = c.dir.Close()
	}
	_ = c.hierarchy.Close()
}

// removeCgroup removes a group and those below it.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing control group %s: %w", dir, err)
		}
	}
	return nil
}

// fdPath names an open file for whatever wants a path.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
