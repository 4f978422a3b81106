package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessConfig says how to start a program.
type ProcessConfig struct {
	Path      string   // absolute, or a name that is looked up below Root
	Args      []string // without the program's name
	Env       []string // added to the lab's environment
	Dir       string
	Root      string     // chroot into this directory; "" for the lab's own files
	Namespace *Namespace // nil is the host's
	LogFile   string     // output goes to this file instead of being kept in memory
	Notify    bool       // give it a NOTIFY_SOCKET, for WaitNotify
	Store     *Store     // what it passes by NOTIFY_SOCKET is kept there, and it gets what is there
	// Credential is the user that runs it; nil is root.
	Credential *syscall.Credential
}

// A Process is a running program and what it has written.
type Process struct {
	name    string
	cmd     *exec.Cmd
	done    chan struct{}
	waitErr error // valid after done

	mu      sync.Mutex
	lines   []string
	notes   []string
	changed chan struct{} // closed and replaced with every line or note
}

var processCount atomic.Int64

// Start starts a program of the lab's host; the host kills it at the latest when
// it closes. Its output, standard error included, is kept line by line.
func (h *Host) Start(cfg ProcessConfig) (*Process, error) {
	p, err := start(cfg)
	if err != nil {
		return nil, err
	}
	h.onClose(p.Kill)
	return p, nil
}

func start(cfg ProcessConfig) (*Process, error) {
	if !inside {
		return nil, errOutside
	}
	path, err := LookPath(cfg.Root, cfg.Path)
	if err != nil {
		return nil, err
	}
	p := &Process{
		name:    filepath.Base(path),
		cmd:     &exec.Cmd{Path: path, Args: append([]string{path}, cfg.Args...), Dir: cfg.Dir},
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	p.cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	p.cmd.Env = append(p.cmd.Env, cfg.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: cfg.Root, Credential: cfg.Credential}
	if cfg.Store != nil {
		var names []string
		if p.cmd.ExtraFiles, names = cfg.Store.give(); len(names) > 0 {
			// Only the process itself knows its number in time.
			p.cmd.Path, p.cmd.Args = "/bin/sh", append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, path}, cfg.Args...)
			p.cmd.Env = append(p.cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		}
	}
	if cfg.Root != "" && cfg.Dir == "" {
		p.cmd.Dir = "/"
	}

	var closers []io.Closer
	fail := func(err error) (*Process, error) {
		for _, c := range closers {
			_ = c.Close()
		}
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	var output *os.File
	var readers sync.WaitGroup
	if cfg.LogFile != "" {
		f, err := os.OpenFile(cfg.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fail(err)
		}
		closers = append(closers, f)
		p.cmd.Stdout, p.cmd.Stderr = f, f
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		closers = append(closers, r, w)
		p.cmd.Stdout, p.cmd.Stderr = w, w
		output = r
	}
	var notify *net.UnixConn
	if cfg.Notify {
		path := filepath.Join(labDir, fmt.Sprintf("notify.%d", processCount.Add(1)))
		var err error
		if notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
			return fail(err)
		}
		closers = append(closers, notify)
		p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+path)
	}

	run := p.cmd.Start
	if cfg.Namespace != nil {
		run = func() error { return cfg.Namespace.Do(p.cmd.Start) }
	}
	if err := run(); err != nil {
		return fail(err)
	}
	if output != nil {
		_ = p.cmd.Stdout.(*os.File).Close()
		readers.Go(func() { p.readLines(output) })
	} else {
		_ = closers[0].Close()
	}
	if notify != nil {
		readers.Go(func() { p.readNotes(notify, cfg.Store) })
	}
	go func() {
		p.waitErr = p.cmd.Wait()
		if output != nil {
			// A child may have inherited the pipe; do not wait for it.
			_ = output.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
		if notify != nil {
			_ = notify.SetReadDeadline(time.Unix(1, 0))
		}
		readers.Wait()
		if output != nil {
			_ = output.Close()
		}
		if notify != nil {
			_ = notify.Close()
		}
		close(p.done)
	}()
	return p, nil
}

func (p *Process) readLines(f *os.File) {
	b := bufio.NewReader(Rest(f))
	for {
		line, err := b.ReadString('\n')
		if line != "" {
			p.add(&p.lines, strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			return
		}
	}
}

// Rest reads a file until its end or its deadline, and what is there at the deadline: os.File does not
// read that, and on a busy host a reader may come later.
func Rest(f *os.File) io.Reader { return &rest{File: f} }

type rest struct {
	*os.File
	over bool // the deadline
	left int  // then: a child may write for ever
}

func (r *rest) Read(b []byte) (int, error) {
	if !r.over {
		n, err := r.File.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		r.over = true
		if err := r.raw(func(fd int) (err error) {
			r.left, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		}); err != nil {
			return 0, err
		}
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	var n int
	err := r.raw(func(fd int) (err error) {
		n, err = unix.Read(fd, b[:min(len(b), r.left)])
		return err
	})
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	r.left -= n
	return n, nil
}

func (r *rest) raw(f func(fd int) error) error {
	conn, err := r.SyscallConn()
	if err != nil {
		return err
	}
	return controlErr(conn, f)
}

func (p *Process) readNotes(conn *net.UnixConn, store *Store) {
	buf, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(16*4))
	take := func(n, controlled int) {
		store.take(strings.TrimSpace(string(buf[:n])), rights[:controlled])
		for note := range strings.SplitSeq(strings.TrimSpace(string(buf[:n])), "\n") {
			p.add(&p.notes, note)
		}
	}
	for {
		n, controlled, _, _, err := conn.ReadMsgUnix(buf, rights)
		if err != nil {
			break
		}
		take(n, controlled)
	}
	// The process has ended: what is there is its last, as in Rest.
	raw, err := conn.SyscallConn()
	for err == nil {
		var n, controlled int
		err = controlErr(raw, func(fd int) (err error) {
			n, controlled, _, _, err = unix.Recvmsg(fd, buf, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			return err
		})
		if err == nil {
			take(n, controlled)
		}
	}
}

func (p *Process) add(to *[]string, s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*to = append(*to, s)
	close(p.changed)
	p.changed = make(chan struct{})
}

// Pid is the process's number in the lab.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log is everything that the process has written so far.
func (p *Process) Log() string { return strings.Join(p.Lines(), "\n") }

// Lines is Log, line by line.
func (p *Process) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// Notes are the sd_notify(3) assignments that the process has sent so far.
func (p *Process) Notes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.notes...)
}

// WaitLine waits for a line that contains substring, for 10 seconds if the context
// has no deadline, and returns it; lines already written count. The end of the
// process is an error with its output.
func (p *Process) WaitLine(ctx context.Context, substring string) (string, error) {
	return p.WaitLineAfter(ctx, 0, substring)
}

// WaitLineAfter is WaitLine without the first n lines; take n from len(Lines()).
func (p *Process) WaitLineAfter(ctx context.Context, n int, substring string) (string, error) {
	return p.await(ctx, &p.lines, n, func(line string) bool { return strings.Contains(line, substring) },
		fmt.Sprintf("a line with %q", substring))
}

// WaitNotify waits for an sd_notify(3) assignment that begins with prefix, such
// as READY=1 or STATUS=, and returns it.
func (p *Process) WaitNotify(ctx context.Context, prefix string) (string, error) {
	return p.await(ctx, &p.notes, 0, func(note string) bool { return strings.HasPrefix(note, prefix) }, prefix)
}

func (p *Process) await(ctx context.Context, list *[]string, from int, match func(string) bool, what string) (string, error) {
	ctx, cancel := Within(ctx, 10*time.Second)
	defer cancel()
	for ended := false; ; {
		p.mu.Lock()
		for ; from < len(*list); from++ {
			if s := (*list)[from]; match(s) {
				p.mu.Unlock()
				return s, nil
			}
		}
		changed := p.changed
		p.mu.Unlock()
		if ended {
			return "", fmt.Errorf("waiting for %s of %s: it ended (%w):\n%s", what, p.name, p.exitError(), p.Log())
		}
		select {
		case <-changed:
		case <-p.done:
			ended = true
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for %s of %s: %w; it wrote:\n%s", what, p.name, context.Cause(ctx), p.Log())
		}
	}
}

// exitError is valid after Done.
func (p *Process) exitError() error {
	if p.waitErr == nil {
		return errors.New("status 0")
	}
	return p.waitErr
}

// Signal sends a signal; to a process that has ended it is an error.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %v to %s: %w", s, p.name, err)
	}
	return nil
}

// Wait waits for the end of the process and returns its exit status as os/exec
// does.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.waitErr
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to end: %w", p.name, context.Cause(ctx))
	}
}

// Stop sends SIGTERM and waits. A process that is still there when the context
// ends (after 10 seconds without one) is killed, which is an error. Having ended
// before is not, nor is an exit status.
func (p *Process) Stop(ctx context.Context) error {
	ctx, cancel := Within(ctx, 10*time.Second)
	defer cancel()
	if err := p.cmd.Process.Signal(unix.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-p.done
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stopping %s: it ignored SIGTERM (%w), killed", p.name, context.Cause(ctx)), p.Kill())
	}
}

// Kill sends SIGKILL and waits. Having ended before is not an error.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// command runs a program to its end and returns what it wrote; with an error,
// the error has it too.
func command(ctx context.Context, root, program string, args ...string) (string, error) {
	if !inside {
		return "", errOutside
	}
	path, err := LookPath(root, program)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if root != "" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return string(out), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Tail is the last n lines of a text.
func Tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
