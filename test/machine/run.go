package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// environment is that of a program run by root at no terminal.
func environment() []string {
	return []string{
		"PATH=" + lab.SearchPath, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh",
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0",
	}
}

// Run runs a program in the machine as root and returns what it wrote, standard
// error included; an error has it too. If the context ends, the program is killed
// with what it started.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	p, err := m.start(ctx, args)
	if err != nil {
		return "", err
	}
	<-p.done
	out := p.Output()
	if p.err != nil {
		return out, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), p.err, strings.TrimSpace(out))
	}
	return out, nil
}

// A Process is a program that Start has started.
type Process struct {
	args   []string
	cmd    *exec.Cmd
	output output
	done   chan struct{}
	err    error // after done
}

// Start starts a program in the machine as root. It ends at the latest when the
// machine goes off; an orderly shutdown begins with its end.
func (m *Machine) Start(args ...string) (*Process, error) {
	return m.start(context.Background(), args)
}

func (m *Machine) start(ctx context.Context, args []string) (*Process, error) {
	m.mu.Lock()
	leader := m.leader
	m.mu.Unlock()
	if leader == nil {
		return nil, fmt.Errorf("%s: machine %s is off", strings.Join(args, " "), m.cfg.Name)
	}
	p := &Process{args: args, done: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	err = lab.OnThread(func() error {
		if err := leader.enter(); err != nil {
			return fmt.Errorf("entering machine %s: %w", m.cfg.Name, err)
		}
		path, err := lab.LookPath("", args[0])
		if err != nil {
			return err
		}
		// The absolute path keeps exec from looking it up again, outside.
		p.cmd = exec.CommandContext(ctx, path)
		p.cmd.Args, p.cmd.Env, p.cmd.Dir = args, environment(), "/"
		p.cmd.Stdout, p.cmd.Stderr = write, write
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		p.cmd.Cancel = func() error { return unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) }
		return p.cmd.Start()
	})
	_ = write.Close()
	if err != nil {
		_ = read.Close()
		return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	m.mu.Lock()
	m.programs[p] = struct{}{}
	m.mu.Unlock()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&p.output, lab.Rest(read))
	}()
	go func() {
		p.err = p.cmd.Wait()
		// Daemons that the program has started may hold its output open.
		_ = read.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		<-copied
		_ = read.Close()
		if p.err != nil && ctx.Err() != nil {
			p.err = context.Cause(ctx)
		}
		m.mu.Lock()
		delete(m.programs, p)
		m.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// Output is what the program has written so far, standard error included.
func (p *Process) Output() string { return p.output.String() }

// WaitOutput waits until the program has written substring. The end of the
// program is an error with its output.
func (p *Process) WaitOutput(ctx context.Context, substring string) error {
	err := p.output.wait(ctx, p.done, func(text string) bool { return strings.Contains(text, substring) })
	if errors.Is(err, errEnded) {
		err = fmt.Errorf("it ended: %w", exitError(p.err))
	}
	if err != nil {
		return fmt.Errorf("waiting for %q of %s: %w; it wrote: %s", substring, p.args[0], err, p.Output())
	}
	return nil
}

// Signal sends a signal to the program.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %v to %s: %w", s, p.args[0], err)
	}
	return nil
}

// Wait waits for the end of the program and returns its exit status as os/exec
// does.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to end: %w", p.args[0], context.Cause(ctx))
	}
}

// Kill kills the program and what it has started, and waits. Having ended before
// is not an error.
func (p *Process) Kill() error {
	select {
	case <-p.done:
		return nil // its number may be another's by now
	default:
	}
	if err := unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing %s: %w", p.args[0], err)
	}
	<-p.done
	return nil
}

// Journal is what a unit has logged since the machine was switched on; everything
// for a unit of "".
func (m *Machine) Journal(ctx context.Context, unit string) (string, error) {
	// What was written before now is in it.
	if _, err := m.Run(ctx, "journalctl", "--sync"); err != nil {
		return "", err
	}
	args := []string{"journalctl", "-b", "-o", "short-precise", "--no-pager"}
	if unit != "" {
		args = append(args, "-u", unit)
	}
	return m.Run(ctx, args...)
}

// Path is where a file of the machine is seen from outside; symbolic links in it
// are followed as the machine would. It is valid until the machine goes off or on:
// of /run and other file systems that the machine mounts, a machine that is off
// has only what lies below.
func (m *Machine) Path(inside string) string {
	m.mu.Lock()
	root := m.root
	if m.leader != nil {
		root = fmt.Sprintf("/proc/%d/root", m.leader.pid)
	}
	m.mu.Unlock()
	return resolve(root, inside)
}

// resolve follows the symbolic links of a path below root without ever leaving it.
func resolve(root, path string) string {
	at := "/" // clean, below root
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0]) // of "..", never above /
		rest = rest[1:]
		if next == "/" {
			at = next
			continue // root itself may be a link, as /proc/1/root is
		}
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil || links == 40 { // no link, or as many as the kernel follows
			at = next
			continue
		}
		links++
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return filepath.Join(root, at)
}

// CopyIn copies a file into the machine. Missing directories are made; the file
// appears at once, also in the place of a program that runs.
func (m *Machine) CopyIn(src, dst string, mode fs.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return fmt.Errorf("copying into machine %s: %w", m.cfg.Name, err)
	}
	return m.WriteFile(dst, data, mode)
}

// WriteFile is CopyIn of what is in memory.
func (m *Machine) WriteFile(dst string, data []byte, mode fs.FileMode) error {
	if err := writeFile(m.Path(dst), data, mode); err != nil {
		return fmt.Errorf("writing %s of machine %s: %w", dst, m.cfg.Name, err)
	}
	return nil
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".copy")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
