package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"multihomed/test/vm/internal/wire"
)

// Where things are before the root is switched.
const (
	lower  = "/lower"
	writes = "/writes"
	root   = "/new"
)

// agentDir is where the agent is in a whole Debian.
const agentDir = "/run/multihomed-test"

// boot is process 1 of the initial file system. It does not return, but with an error.
func boot() error {
	b, err := mountTree()
	if err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	if b.Whole {
		return startDebian(b)
	}
	return startAgent(b)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", fstype, target, err)
	}
	return nil
}

// share mounts a directory of the host. Without a cache, changes of one side are
// seen by the other at once; mmap adds what shared mappings need.
func share(tag, target string, writable bool) error {
	if writable {
		return mount(tag, target, "9p", 0, "trans=virtio,version=9p2000.L,msize=512000,cache=mmap")
	}
	return mount(tag, target, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose")
}

// mountTree mounts the file tree on root, with an overlay that takes the writes.
func mountTree() (wire.Boot, error) {
	var b wire.Boot
	data, err := os.ReadFile(wire.BootFile)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, fmt.Errorf("reading %s: %w", wire.BootFile, err)
	}
	for _, m := range []struct{ fstype, target string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m.fstype, m.target, m.fstype, 0, ""); err != nil {
			return b, err
		}
	}
	for _, path := range b.Modules {
		if err := load(path); err != nil {
			return b, err
		}
	}
	if err := share(wire.ShareRoot, lower, false); err != nil {
		return b, err
	}
	if b.Disk {
		err = mount("/dev/vda", writes, "ext4", 0, "")
	} else {
		err = mount("tmpfs", writes, "tmpfs", 0, "size=75%,mode=755")
	}
	if err != nil {
		return b, err
	}
	for _, dir := range []string{"/upper", "/work"} {
		if err := os.MkdirAll(writes+dir, 0o755); err != nil {
			return b, err
		}
	}
	// The root directory of the overlay has the owner and mode of upper.
	if err := mount("overlay", root, "overlay", 0, "lowerdir="+lower+",upperdir="+writes+"/upper,workdir="+writes+"/work"); err != nil {
		return b, err
	}
	if err := share(wire.ShareModules, root+"/usr/lib/modules", false); err != nil {
		return b, err
	}
	if b.Out != "" {
		if err := share(wire.ShareOut, root+b.Out, true); err != nil {
			return b, err
		}
	}
	return b, nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", path, err)
	}
	return nil
}

// switchRoot makes the file tree the root of this process and, as they share it
// with process 1, of the kernel's threads: they start modprobe from it.
func switchRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := mount("tmpfs", root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	// /proc/self/exe of the agent, after the root has gone.
	if err := copyFile("/init", root+agentDir+"/guest"); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	return os.Chdir("/")
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// unit is the agent's. It starts first, so that a boot that hangs can be looked
// into, and is there until the end.
const unit = `[Unit]
Description=Runs commands for a test
DefaultDependencies=no

[Service]
ExecStart=` + agentDir + `/guest agent
StandardError=journal+console
KillMode=process
`

// startDebian becomes systemd.
func startDebian(b wire.Boot) error {
	const units = "/run/systemd/system"
	wants := units + "/sysinit.target.wants"
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	const name = "multihomed-test-agent.service"
	if err := os.WriteFile(filepath.Join(units, name), []byte(unit), 0o644); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(units, name), filepath.Join(wants, name)); err != nil {
		return err
	}
	// What the installation of a machine makes its own, once. The last two say that
	// ldconfig and the like have run (systemd-update-done.service(8)): 12 s less.
	for path, content := range map[string]string{
		"/etc/machine-id": b.ID, "/etc/hostname": b.Hostname, "/etc/.updated": "", "/var/.updated": "",
	} {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
				return err
			}
		}
	}
	err := unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=" + os.Getenv("PATH"), "TERM=dumb"})
	return fmt.Errorf("starting /sbin/init: %w", err)
}

// startAgent makes what an init makes for simple programs, runs the agent and reaps
// what it leaves. The agent is a separate process because process 1 has to reap
// every orphan, which would steal the children of os/exec.
func startAgent(b wire.Boot) error {
	for _, m := range []struct{ fstype, target, data string }{
		{"devpts", "/dev/pts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := mount(m.fstype, m.target, m.fstype, 0, m.data); err != nil {
			return err
		}
	}
	for i, name := range []string{"fd", "stdin", "stdout", "stderr"} {
		target := "/proc/self/fd"
		if i > 0 {
			target = fmt.Sprintf("/proc/self/fd/%d", i-1)
		}
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(b.Hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	pid, err := syscall.ForkExec(agentDir+"/guest", []string{"guest", "agent"}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	for {
		got, err := syscall.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for the agent: %w", err)
		case got == pid:
			return errors.New("the agent has ended")
		}
	}
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request)
}

// portPath is the device of the port of a name: without udev there is no
// /dev/virtio-ports.
func portPath(name string) (string, error) {
	paths, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(data)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("no virtio port has the name %s", name)
}
