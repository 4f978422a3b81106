package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/vm/internal/wire"
)

// An agent runs the host's commands.
type agent struct {
	port     port
	sending  sync.Mutex
	mu       sync.Mutex
	programs map[uint32]*exec.Cmd
	files    map[uint32]*file // only the reader's
}

// serve answers the host until the machine ends.
func serve() error {
	// The port appears a moment after its driver.
	var path string
	for pause := time.NewTicker(5 * time.Millisecond); path == ""; <-pause.C {
		path, _ = portPath(wire.PortName)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	a := &agent{port: port(fd), programs: map[uint32]*exec.Cmd{}, files: map[uint32]*file{}}
	if err := a.send(wire.Frame{Kind: wire.Hello}); err != nil {
		return err
	}
	r := bufio.NewReaderSize(a.port, 64<<10)
	for {
		f, err := wire.Receive(r)
		if err != nil {
			return err
		}
		a.do(f)
	}
}

// A port is a virtio-serial port. Package os would take a read without a host for
// the end of the file.
type port int

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("reading from the host: %w", err)
		case n > 0:
			return n, nil
		default:
			// Not connected yet.
			if _, err := unix.Poll(nil, 5); err != nil && !errors.Is(err, unix.EINTR) {
				return 0, fmt.Errorf("waiting for the host: %w", err)
			}
		}
	}
}

func (p port) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.Write(int(p), b[written:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return written, fmt.Errorf("writing to the host: %w", err)
		}
		written += n
	}
	return written, nil
}

func (a *agent) send(f wire.Frame) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	return wire.Send(a.port, f)
}

// exit reports the end of a command. Without a port there is no receiver.
func (a *agent) exit(command uint32, result wire.Result) {
	f, err := wire.JSON(wire.Exit, command, result)
	if err == nil {
		err = a.send(f)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "guest: %v\n", err)
	}
}

func (a *agent) do(f wire.Frame) {
	switch f.Kind {
	case wire.Start:
		if err := a.start(f); err != nil {
			a.exit(f.Command, wire.Result{Status: 127, Err: err.Error()})
		}
	case wire.Kill:
		a.mu.Lock()
		if cmd := a.programs[f.Command]; cmd != nil {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // It may have ended.
		}
		a.mu.Unlock()
	case wire.Write:
		a.files[f.Command] = newFile(f.Payload)
	case wire.Data:
		to := a.files[f.Command]
		if len(f.Payload) > 0 {
			to.write(f.Payload)
			return
		}
		delete(a.files, f.Command)
		result := wire.Result{}
		if err := to.close(); err != nil {
			result = wire.Result{Status: 1, Err: err.Error()}
		}
		a.exit(f.Command, result)
	case wire.Hello, wire.Output, wire.Exit: // the guest's own
	}
}

// output sends what a program writes.
type output struct {
	*agent
	command uint32
}

func (o output) Write(b []byte) (int, error) {
	return len(b), o.send(wire.Frame{Kind: wire.Output, Command: o.command, Payload: b})
}

// outputDelay is how long the output of a program is read after its end, if a
// daemon that it started keeps it open. Slow machines still empty the pipe in it.
const outputDelay = time.Second

func (a *agent) start(f wire.Frame) error {
	var c wire.Command
	if err := json.Unmarshal(f.Payload, &c); err != nil {
		return fmt.Errorf("reading a command: %w", err)
	}
	path, err := lookPath(c.Args[0], c.Env)
	if err != nil {
		return err
	}
	out := output{a, f.Command}
	cmd := &exec.Cmd{
		Path: path, Args: c.Args, Env: c.Env, Dir: c.Dir, Stdout: out, Stderr: out,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, WaitDelay: outputDelay,
	}
	// A Kill that follows finds it.
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	a.programs[f.Command] = cmd
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		delete(a.programs, f.Command)
		a.mu.Unlock()
		result := wire.Result{Status: cmd.ProcessState.ExitCode()}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			result.Status = 128 + int(status.Signal())
		}
		if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended && !errors.Is(err, exec.ErrWaitDelay) {
			result.Err = err.Error()
		}
		a.exit(f.Command, result)
	}()
	return nil
}

// A file is one that the host writes.
type file struct {
	wire.File
	tmp *os.File
	err error
}

func newFile(payload []byte) *file {
	f := &file{}
	if f.err = json.Unmarshal(payload, &f.File); f.err != nil {
		return f
	}
	if f.err = os.MkdirAll(filepath.Dir(f.Path), 0o755); f.err == nil {
		f.tmp, f.err = os.CreateTemp(filepath.Dir(f.Path), ".write")
	}
	return f
}

func (f *file) write(data []byte) {
	if f.err == nil {
		_, f.err = f.tmp.Write(data)
	}
}

func (f *file) close() error {
	if f.tmp == nil {
		return f.err
	}
	err := errors.Join(f.err, f.tmp.Chmod(f.Mode), f.tmp.Close())
	if err == nil {
		err = os.Rename(f.tmp.Name(), f.Path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.tmp.Name()))
	}
	return nil
}

// lookPath finds a program by the PATH of its own environment.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := os.Getenv("PATH")
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, path)
}
