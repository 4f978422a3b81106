package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// BinderSocket is where the lab's helper listens, as that of an installed multihomed does.
const (
	BinderSocket = binderDir + "/socket"
	binderDir    = "/run/multihomed-binder"
)

// StartBinder starts the program as multihomed-binder, which asks the daemon of a runtime directory. It
// returns when it listens.
func (h *Host) StartBinder(ctx context.Context, program, runtime string) (*Process, error) {
	if err := os.RemoveAll(binderDir); err != nil {
		return nil, fmt.Errorf("removing the socket of an earlier helper: %w", err)
	}
	if err := os.Mkdir(binderDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the helper's socket: %w", err)
	}
	p, err := h.Start(ProcessConfig{Path: program, Args: []string{"--socket", BinderSocket, "--daemon", filepath.Join(runtime, "bindings")}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := Within(ctx, 10*time.Second)
	defer cancel()
	err = Eventually(ctx, func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("it ended (%w):\n%s", p.exitError(), p.Log())
		default:
		}
		info, err := os.Stat(BinderSocket)
		if err == nil && info.Mode().Perm()&0o006 != 0o006 {
			err = errors.New("it is not open to everybody yet")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting the helper: %w", err)
	}
	return p, nil
}

// A Cgroup is a control group of version 2, made for one test.
type Cgroup struct {
	// Path is its directory.
	Path string
	// at is where the hierarchy is mounted.
	at string
}

// NewCgroup makes a control group, which belongs to a user. The lab mounts the hierarchy for it, because it
// has none.
func (h *Host) NewCgroup(uid int) (*Cgroup, error) {
	if !inside {
		return nil, errOutside
	}
	at, err := os.MkdirTemp(labDir, "cgroup2-")
	if err != nil {
		return nil, fmt.Errorf("making a place for cgroup2: %w", err)
	}
	if err := errors.Join(os.Chmod(at, 0o755), unix.Mount("none", at, "cgroup2", 0, "")); err != nil {
		return nil, fmt.Errorf("mounting cgroup2 (does the kernel have it?): %w", err)
	}
	c := &Cgroup{at: at}
	h.onClose(c.close)
	if c.Path, err = os.MkdirTemp(at, "multihomed-test-"); err == nil {
		err = os.Chmod(c.Path, 0o755)
	}
	// What a user of a delegated group has (cgroups(7)).
	for _, name := range []string{".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err == nil {
			err = os.Chown(filepath.Join(c.Path, name), uid, uid)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	return c, nil
}

// BecomeRoot makes it what the lab's programs take for the root of all control groups, until the host closes: what is attached
// there concerns the processes in it, and nobody else on the machine.
func (h *Host) BecomeRoot(c *Cgroup) error {
	const root = "/sys/fs/cgroup"
	if err := unix.Mount(c.Path, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting a control group at %s: %w", root, err)
	}
	h.onClose(func() error { return unix.Unmount(root, unix.MNT_DETACH) })
	return nil
}

// Children are the names of the groups in it.
func (c *Cgroup) Children() ([]string, error) {
	entries, err := os.ReadDir(c.Path)
	if err != nil {
		return nil, fmt.Errorf("listing control groups: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// close ends what is left in it.
func (c *Cgroup) close() error {
	var err error
	if c.Path != "" {
		err = os.WriteFile(filepath.Join(c.Path, "cgroup.kill"), []byte("1"), 0)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// A group is busy until its last process has been reaped.
		err = errors.Join(err, Eventually(ctx, func() error {
			children, err := c.Children()
			for _, name := range children {
				err = errors.Join(err, unix.Rmdir(filepath.Join(c.Path, name)))
			}
			return errors.Join(err, unix.Rmdir(c.Path))
		}))
	}
	return errors.Join(err, unix.Unmount(c.at, unix.MNT_DETACH), os.Remove(c.at))
}
