package bindrun

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What an attendant is told to do, as its first argument.
const (
	// fork has it start itself once more and end: so that it has no parent that would have to wait for it.
	fork = "fork"
	// clean waits for the end of a cgroup.
	clean = "clean"
	// open opens sockets for a program.
	openSockets = "open"
)

// The descriptors of an attendant (os/exec, ExtraFiles).
const (
	firstExtra = 3
	// The cgroup, the directory above it, and a pipe that ends when the program is in the cgroup.
	extraCgroup, extraAbove, extraEntered = firstExtra, firstExtra + 1, firstExtra + 2
	// A socket to the program.
	extraProgram = firstExtra
)

// Attend is the attendant's process. It returns its exit status.
func Attend(args []string, self []string) int {
	err := errors.New("it is for multihomectl run")
	switch {
	case len(args) > 1 && args[0] == fork:
		err = again(self, args[1:])
	case len(args) == 2 && args[0] == clean:
		err = cleanUp(args[1])
	case len(args) == 2 && args[0] == openSockets:
		err = serveProgram(args[1])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "the attendant of a bound program: %v\n", err)
		return 1
	}
	return 0
}

// attend starts an attendant, and returns when it has no parent any more.
func attend(self []string, job []string, files ...*os.File) error {
	cmd := command(self, append([]string{fork}, job...))
	cmd.ExtraFiles = files
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("starting an attendant: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func command(self, args []string) *exec.Cmd {
	// No context: it outlives whoever starts it.
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: append(append([]string{}, self...), args...), Dir: "/",
		// A Ctrl-C is not for it, nor is the end of the terminal.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
}

// again starts the attendant proper. Its standard streams are /dev/null: nobody who reads those of the program may have to wait
// for it.
func again(self, job []string) error {
	cmd := command(self, job)
	for fd := firstExtra; fd < firstExtra+3; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), "extra"))
		}
	}
	return cmd.Start()
}

// attendCgroup starts the attendant of a cgroup. It keeps the lock, which is that of the open file.
func attendCgroup(self []string, cgroup *os.File) (err error) {
	above, err := os.Open(filepath.Dir(cgroup.Name()))
	if err != nil {
		return err
	}
	entered, err := untilProgram()
	if err == nil {
		err = errors.Join(attend(self, []string{clean, filepath.Base(cgroup.Name())}, cgroup, above, entered), entered.Close())
	}
	return closing(err, above)
}

// untilProgram returns the end of a pipe that ends when this process becomes another program, or ends itself: nothing but the
// kernel closes the other end.
func untilProgram() (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "entered"), nil
}

// cleanUp removes a cgroup when its last process has ended.
func cleanUp(name string) error {
	if _, err := io.Copy(io.Discard, os.NewFile(extraEntered, "entered")); err != nil {
		return err
	}
	events, err := unix.Openat(extraCgroup, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watching the cgroup: %w", err)
	}
	for {
		b := make([]byte, 256)
		n, err := unix.Pread(events, b, 0)
		if errors.Is(err, unix.ENODEV) {
			return nil // Somebody else has removed it.
		}
		if err != nil {
			return fmt.Errorf("watching the cgroup: %w", err)
		}
		if strings.Contains(string(b[:n]), "populated 0") {
			err := unix.Unlinkat(extraAbove, name, unix.AT_REMOVEDIR)
			switch {
			case err == nil, errors.Is(err, unix.ENOENT):
				return nil
			case !errors.Is(err, unix.EBUSY):
				return fmt.Errorf("removing the cgroup: %w", err)
			case hasChildren():
				return nil // The program made them, and systemd or whoever knows them removes them.
			}
			continue // A process has come.
		}
		// Each change of the file wakes it (Documentation/admin-guide/cgroup-v2.rst, "[Un]populated Notification").
		wait := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}} //nolint:gosec // Small.
		if _, err := unix.Poll(wait, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watching the cgroup: %w", err)
		}
	}
}

// hasChildren reports whether there are cgroups in that of the program.
func hasChildren() bool {
	fd, err := unix.Openat(extraCgroup, "cgroup.stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	err = errors.Join(err, unix.Close(fd))
	return err == nil && !strings.HasPrefix(string(b[:n]), "nr_descendants 0\n")
}

// pair makes two connected sockets of type SOCK_SEQPACKET.
func pair() (own *net.UnixConn, other *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	other = os.NewFile(uintptr(fds[1]), "attendant")
	own, err = connOf(os.NewFile(uintptr(fds[0]), "program"))
	if err != nil {
		return nil, nil, closing(err, other)
	}
	return own, other, nil
}

// connOf takes a socket over.
func connOf(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err = closing(err, f); err != nil {
		return nil, err
	}
	u, is := c.(*net.UnixConn)
	if !is {
		return nil, closing(errors.New("not a unix socket"), c)
	}
	return u, nil
}
