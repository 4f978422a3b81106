package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// An nspawn is the process that supervises a container.
type nspawn struct {
	cmd     *exec.Cmd
	console output
	notes   output // sd_notify(3) assignments, one in a line
	done    chan struct{}
	err     error // after done
}

// script gives nspawn the /sys that it wants: with the links of the namespace it
// runs in, and with control groups of version 2 only. The mounts are in a
// separate mount namespace and end with nspawn.
const script = `set -e
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
exec systemd-nspawn "$@"`

// start starts nspawn in a network namespace and a control group.
func start(args []string, where *network, group *cgroup, socket string) (*nspawn, error) {
	// Not /dev/null: what runs as root on a console changes its owner and mode.
	stdin, closed, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	_ = closed.Close()
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err // of the last boot
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	n := &nspawn{done: make(chan struct{})}
	n.cmd = &exec.Cmd{Path: "/bin/sh", Args: append([]string{"sh", "-c", script, "sh"}, args...), Dir: "/"}
	n.cmd.Env = []string{"PATH=" + lab.SearchPath, "LC_ALL=C.UTF-8", "TERM=dumb", "NOTIFY_SOCKET=" + socket}
	n.cmd.Stdin, n.cmd.Stdout, n.cmd.Stderr = stdin, &n.console, &n.console
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNS,
		UseCgroupFD:  true,
		CgroupFD:     int(group.dir.Fd()),
		Setsid:       true, // a Ctrl-C is for the test
	}
	n.cmd.WaitDelay = 5 * time.Second
	err = lab.OnThread(func() error {
		if err := netns.Set(where.ns); err != nil {
			return err
		}
		return n.cmd.Start()
	})
	if err != nil {
		_ = notify.Close()
		return nil, fmt.Errorf("starting systemd-nspawn: %w", err)
	}
	go n.readNotes(notify)
	go func() {
		n.err = n.cmd.Wait()
		_ = notify.Close()
		close(n.done)
	}()
	return n, nil
}

func (n *nspawn) readNotes(conn *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		count, err := conn.Read(buf)
		if err != nil {
			return
		}
		_, _ = n.notes.Write(append(bytes.TrimSpace(buf[:count]), '\n'))
	}
}

// waitNote waits for an assignment and returns what follows the prefix.
func (n *nspawn) waitNote(ctx context.Context, prefix string) (value string, err error) {
	err = n.notes.wait(ctx, n.done, func(notes string) bool {
		for line := range strings.Lines(notes) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				value = v
				return true
			}
		}
		return false
	})
	if errors.Is(err, errEnded) {
		err = fmt.Errorf("systemd-nspawn ended: %w", exitError(n.err))
	}
	if err != nil {
		err = fmt.Errorf("waiting for %s: %w", prefix, err)
	}
	return value, err
}

// A leader is process 1 of a machine.
type leader struct {
	pid int
	fd  *os.File // of the process, so that it is never another with the same number

	bounding uint64 // capabilities, one in a bit, that nothing in the machine exceeds
}

// openLeader finds process 1 by its number, and its network.
func openLeader(number string) (*leader, *network, error) {
	pid, err := strconv.Atoi(number)
	if err != nil {
		return nil, nil, fmt.Errorf("the number of process 1: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening process 1: %w", err)
	}
	l := &leader{pid: pid, fd: os.NewFile(uintptr(fd), "process 1")}
	if l.bounding, err = boundingSet(pid); err != nil {
		l.close()
		return nil, nil, fmt.Errorf("reading the capabilities of process 1: %w", err)
	}
	ns, err := netns.GetFromPid(pid)
	if err == nil {
		var inside *network
		if inside, err = openNetwork(ns); err == nil {
			return l, inside, nil
		}
	}
	l.close()
	return nil, nil, fmt.Errorf("opening the network of process 1: %w", err)
}

// boundingSet is the set of capabilities that a process can have.
func boundingSet(pid int) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			return strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	return 0, errors.New("no CapBnd in its status")
}

func (l *leader) close() { _ = l.fd.Close() }

// do calls f with the file descriptor, which stays open that long.
func (l *leader) do(f func(fd int) error) error {
	conn, err := l.fd.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := conn.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

func (l *leader) signal(s syscall.Signal) error {
	err := l.do(func(fd int) error { return unix.PidfdSendSignal(fd, s, nil, 0) })
	if err != nil {
		return fmt.Errorf("sending %v to process 1: %w", s, err)
	}
	return nil
}

// enter takes the calling thread to where process 1 is. Processes that it starts
// are the machine's.
func (l *leader) enter() error {
	// The working directory and the root become this thread's own: they change.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	err := l.do(func(fd int) error {
		return unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWPID|
			unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP)
	})
	if err != nil {
		return err
	}
	// Root gets the bounding set with the next execve(2). Without this it could do
	// what is denied to the machine and would concern the host: set the clock, say.
	for c := range uintptr(64) {
		if l.bounding&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // no such capability
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	return nil
}

// An output is what a program has written so far.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed with the next write
}

func (o *output) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return o.text.Write(data)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

var errEnded = errors.New("it ended")

// wait waits until what was written is as wanted; errEnded says that it never will.
func (o *output) wait(ctx context.Context, done <-chan struct{}, wanted func(string) bool) error {
	for ended := false; ; {
		o.mu.Lock()
		if o.changed == nil {
			o.changed = make(chan struct{})
		}
		text, changed := o.text.String(), o.changed
		o.mu.Unlock()
		switch {
		case wanted(text):
			return nil
		case ended:
			return errEnded
		}
		select {
		case <-changed:
		case <-done:
			ended = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// exitError is how a program ended that should not have ended.
func exitError(err error) error {
	if err == nil {
		return errors.New("status 0")
	}
	return err
}
