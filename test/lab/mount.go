package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where the lab keeps its own files: on the private /run.
const (
	labDir   = "/run/lab"
	tmpDir   = labDir + "/tmp"
	netnsDir = "/run/netns" // where `ip netns` looks
)

// hostname is the host's name.
const hostname = "lab"

// emptied are the directories that hold other people's configuration or state
// and therefore start empty in the lab. Those that the machine does not have
// are created on the private copy of their parent only.
var emptied = []string{
	"/etc/NetworkManager",
	"/etc/NetworkManager/system-connections",
	"/etc/NetworkManager/conf.d",
	"/etc/NetworkManager/dispatcher.d",
	"/etc/multihomed",
	"/etc/network/interfaces.d",
	"/var/lib/NetworkManager",
	"/var/lib/dhcp",
	"/var/lib/dhcpcd",
	"/var/lib/multihomed",
	"/usr/lib/NetworkManager/conf.d",
	"/usr/lib/NetworkManager/dispatcher.d",
	"/usr/lib/NetworkManager/system-connections",
}

// copied are the directories that the lab has as the machine does, and where it may
// change anything.
var copied = []string{
	"/etc",
	"/etc/dhcp", "/etc/dhcp/dhclient-exit-hooks.d",
	"/etc/iproute2", "/etc/iproute2/rt_protos.d", "/etc/iproute2/rt_tables.d",
	"/etc/network", "/etc/network/if-post-down.d", "/etc/network/if-up.d",
	"/usr/lib/NetworkManager",
	"/usr/lib/dhcpcd", "/usr/lib/dhcpcd/dhcpcd-hooks",
	"/usr/sbin",
	"/var/lib",
}

// hooks are those of copied where programs under test are called from; resetFiles
// removes what is named after them.
var hooks = []string{
	"/etc/dhcp/dhclient-exit-hooks.d", "/etc/iproute2/rt_protos.d", "/etc/iproute2/rt_tables.d",
	"/etc/network/if-post-down.d", "/etc/network/if-up.d",
	"/usr/lib/dhcpcd/dhcpcd-hooks", "/usr/sbin",
}

// prepareMounts gives the lab its own view of the file system and returns the
// environment that goes with it.
func prepareMounts(env []string) ([]string, error) {
	// First of all: no mount below may appear on the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, err
	}
	// A new sysfs, because sysfs shows the network namespace that mounted it;
	// read-only, because NetworkManager takes a writable one to mean that udev
	// runs and waits for it for ever.
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, err
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, err
	}
	for _, dir := range []string{labDir, netnsDir, "/run/dbus", "/run/lock", "/run/network"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(tmpDir, 0o777|os.ModeSticky); err != nil {
		return nil, err
	}
	for _, dir := range copied {
		if err := shadow(dir); err != nil {
			return nil, fmt.Errorf("making a private copy of %s: %w", dir, err)
		}
	}
	for _, dir := range emptied {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile("/etc/hostname", []byte(hostname+"\n"), 0o644); err != nil {
		return nil, err
	}

	// Go's build cache and scratch space stay on disk: a test may compile.
	if getenv(env, "GOTMPDIR") == "" {
		env = setenv(env, "GOTMPDIR", os.TempDir())
	}
	env = setenv(env, "TMPDIR", tmpDir)
	env = setenv(env, "PATH", joinPath(getenv(env, "PATH")))
	// Whatever the user's session set must not lead out of the lab.
	for _, key := range []string{"DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM"} {
		env = unsetenv(env, key)
	}
	return env, nil
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", fstype, target, err)
	}
	return nil
}

// maxCopied is the size up to which shadow copies a file instead of binding it.
const maxCopied = 64 << 10

// shadow replaces a directory by a private, writable one with the same contents:
// small files are copied, large ones and directories bound. Contents of
// subdirectories are still the machine's. An overlay would do the same in one
// mount, where the kernel has it and the directory is not on an overlay itself.
func shadow(dir string) error {
	original, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o755) // only ever below a directory that is private by now
	}
	if err != nil {
		return err
	}
	defer original.Close()
	from := fmt.Sprintf("/proc/self/fd/%d", original.Fd())
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		if err := shadowEntry(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func shadowEntry(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case info.IsDir():
		if err := os.Mkdir(to, info.Mode().Perm()); err != nil {
			return err
		}
		return mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	case info.Mode().IsRegular() && info.Size() <= maxCopied:
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		return errors.Join(
			os.Chown(to, int(stat.Uid), int(stat.Gid)),
			unix.Chmod(to, stat.Mode&0o7777), // after the chown, which clears setuid
		)
	case info.Mode().IsRegular():
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
		return mount(from, to, "", unix.MS_BIND, "")
	}
	return nil // sockets, pipes and devices belong to processes outside
}

func unsetenv(env []string, key string) []string {
	out := setenv(env, key, "")
	return out[:len(out)-1]
}

func joinPath(path string) string {
	if path == "" {
		return SearchPath
	}
	return path + ":" + SearchPath
}
