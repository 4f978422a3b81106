package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/vm/internal/wire"
)

// A session is a machine that is on: qemu and the agent in it.
type session struct {
	cmd     *exec.Cmd
	console tail
	link    *os.File      // to the agent
	ready   chan struct{} // closed when the agent says hello
	done    chan struct{} // closed when qemu has ended and its console is read

	sending sync.Mutex
	mu      sync.Mutex
	last    uint32
	waiting map[uint32]*pending
	gone    bool // nothing comes from the agent any more
}

// A pending command is one whose end the host waits for.
type pending struct {
	mu     sync.Mutex
	output strings.Builder
	also   io.Writer        // a copy of the output; nil without a waiting caller
	ended  chan wire.Result // has room for one; closed when the machine ends
}

// hardware is what qemu gives the guest.
type hardware struct {
	memory, cpus int
	kernel       string
	root         string // the file tree
	modules, out string // out may be ""
	initrd       []byte
	disk         *os.File // or nil
}

// shared are the options for a directory that the guest may mount.
func shared(tag, path, options string) []string {
	return []string{
		"-fsdev", "local,id=" + tag + ",security_model=none,path=" + comma(path) + options,
		"-device", "virtio-9p-pci,fsdev=" + tag + ",mount_tag=" + tag,
	}
}

// comma escapes a value of an option of qemu.
func comma(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// start starts qemu. Files that only it needs have no name in any directory.
func start(h hardware) (*session, error) {
	program, err := lab.LookPath("", "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	initrd, err := inMemory(h.initrd)
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making the agent's socket: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	s := &session{
		link: os.NewFile(uintptr(fds[0]), "agent"), ready: make(chan struct{}), done: make(chan struct{}),
		waiting: map[uint32]*pending{},
	}
	args := []string{
		// Not kvm: it is not everywhere, nor does it work everywhere where it is.
		"-M", "q35,sata=off,smbus=off", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(h.cpus), "-m", strconv.Itoa(h.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=agent,fd=3",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=" + wire.PortName,
		"-kernel", h.kernel, "-initrd", "/proc/self/fd/4",
		// A panic of the kernel ends qemu.
		"-append", "console=ttyS0 quiet panic=-1",
	}
	args = append(args, shared(wire.ShareRoot, h.root, ",readonly=on,multidevs=remap")...)
	args = append(args, shared(wire.ShareModules, h.modules, ",readonly=on")...)
	if h.out != "" {
		args = append(args, shared(wire.ShareOut, h.out, "")...)
	}
	files := []*os.File{theirs, initrd}
	if h.disk != nil {
		files = append(files, h.disk)
		// The host does not lose power.
		args = append(args, "-drive", "file=/proc/self/fd/5,format=raw,if=virtio,cache=unsafe,discard=unmap")
	}
	s.cmd = &exec.Cmd{
		Path: program, Args: append([]string{program}, args...), Dir: "/",
		Stdout: &s.console, Stderr: &s.console, ExtraFiles: files,
		// However this process ends, the machine ends with it.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, which is when
		// this function does.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // Its end is what counts; why is on the console.
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("starting qemu: %w", err), s.link.Close())
	}
	go s.receive()
	return s, nil
}

// inMemory is an open file with these contents.
func inMemory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initrd")
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(fmt.Errorf("writing a file in memory: %w", err), f.Close())
	}
	return f, nil
}

// kill ends qemu and waits.
func (s *session) kill() error {
	err := s.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-s.done
	return errors.Join(err, s.link.Close())
}

// failure adds to an error what the machine wrote last.
func (s *session) failure(err error) error {
	return fmt.Errorf("%w; its console ends:\n%s", err, lab.Tail(s.console.String(), 20))
}

var errEnded = errors.New("the machine has ended")

// waitReady waits for the agent.
func (s *session) waitReady(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		return s.failure(errEnded)
	case <-ctx.Done():
		return s.failure(fmt.Errorf("waiting for its agent: %w", context.Cause(ctx)))
	}
}

// receive passes messages of the agent on, until the agent ends.
func (s *session) receive() {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.gone = true
		for _, p := range s.waiting {
			close(p.ended)
		}
		clear(s.waiting)
	}()
	r := bufio.NewReaderSize(s.link, 64<<10)
	for {
		f, err := wire.Receive(r)
		if err != nil {
			return // qemu has ended, or is about to be killed
		}
		s.mu.Lock()
		p := s.waiting[f.Command]
		s.mu.Unlock()
		switch f.Kind {
		case wire.Hello:
			close(s.ready)
		case wire.Output:
			if p != nil {
				p.write(f.Payload)
			}
		case wire.Exit:
			if p != nil {
				p.ended <- result(f)
				s.forget(f.Command)
			}
		case wire.Start, wire.Write, wire.Data, wire.Kill: // the host's own
		}
	}
}

func (s *session) forget(command uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, command)
}

func (s *session) send(f wire.Frame) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return wire.Send(s.link, f)
}

// expect makes a new command.
func (s *session) expect(also io.Writer) (uint32, *pending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return 0, nil, s.failure(errEnded)
	}
	s.last++
	p := &pending{also: also, ended: make(chan wire.Result, 1)}
	s.waiting[s.last] = p
	return s.last, p, nil
}

func (p *pending) write(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output.Write(data)
	if p.also != nil {
		_, _ = p.also.Write(data) // The caller's writer has its own errors.
	}
}

// abandon keeps later output from the caller's writer and returns what there was.
func (p *pending) abandon() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.also = nil
	return p.output.String()
}

// maxConsole is how much of the console is kept.
const maxConsole = 64 << 10

// A tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, b...)
	t.data = t.data[max(0, len(t.data)-maxConsole):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(string(t.data), "\r", "")
}
