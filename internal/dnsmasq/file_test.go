package dnsmasq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/dnsmasq"
)

// A rig is a servers file and the pid file of a dnsmasq.
type rig struct {
	*dnsmasq.File
	t                  *testing.T
	dir, path, pidFile string
	log                *bytes.Buffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, path: filepath.Join(dir, "servers"), pidFile: filepath.Join(dir, "pid"), log: &bytes.Buffer{}}
	r.again()
	return r
}

// again is a new process on the same files.
func (r *rig) again() {
	r.File = dnsmasq.New(r.path, r.pidFile, slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

func (r *rig) update(servers ...dnsmasq.Server) {
	r.t.Helper()
	if err := r.Update(r.t.Context(), servers); err != nil {
		r.t.Errorf("updating: %v", err)
	}
	r.holds(servers...)
}

func (r *rig) holds(servers ...dnsmasq.Server) {
	r.t.Helper()
	text, err := os.ReadFile(r.path)
	if err != nil || !bytes.Equal(text, dnsmasq.Render(servers)) {
		r.t.Errorf("the file is %q, %v", text, err)
	}
}

func (r *rig) fails(want string, servers ...dnsmasq.Server) {
	r.t.Helper()
	if err := r.Update(r.t.Context(), servers); err == nil || !strings.Contains(err.Error(), want) {
		r.t.Errorf("updating: %v, want %q", err, want)
	}
}

// process writes a number to the pid file.
func (r *rig) process(pid any) {
	r.t.Helper()
	if err := os.WriteFile(r.pidFile, fmt.Appendln(nil, pid), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// A sleeper is a process that ends with the first SIGHUP.
type sleeper struct {
	cmd *exec.Cmd
	end chan error
}

// sleep starts a process of a name.
func (r *rig) sleep(name string) *sleeper {
	r.t.Helper()
	// A signal that is ignored, as under nohup, would be ignored by what is started;
	// one that is caught would not (execve(2)).
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP)
	defer signal.Stop(caught)
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, program, 0o755); err != nil && !errors.Is(err, unix.ETXTBSY) {
		r.t.Fatal(err)
	}
	s := &sleeper{cmd: exec.CommandContext(context.Background(), path, "1000"), end: make(chan error, 1)}
	if err := s.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	go func() { s.end <- s.cmd.Wait() }()
	return s
}

func (s *sleeper) hungUp(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.end:
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGHUP {
			t.Errorf("it ended otherwise: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it was not signalled")
	}
}

// awake wants that it was not signalled: whatever was sent to it would have
// ended it before a signal that follows.
func (s *sleeper) awake(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Errorf("it has ended: %v", err)
	}
	err := <-s.end
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
		t.Errorf("it was signalled: %v", err)
	}
}

func TestWithoutDnsmasq(t *testing.T) {
	r := newRig(t)
	one, two := server("wan0", "192.0.2.53", ""), server("wan1", "192.0.2.53", "")
	syscall.Umask(0o077)
	defer syscall.Umask(0o022)
	r.update(one)
	before, err := os.Stat(r.path)
	if err != nil || before.Mode() != 0o644 {
		t.Fatalf("%v, %v", before, err)
	}
	r.update(one)
	r.again()
	r.update(one)
	if after, err := os.Stat(r.path); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the same content was written again: %v", err)
	}
	r.update(one, two)
	r.update()
	// Two processes, and two changes in the second.
	if n := strings.Count(r.log.String(), "dnsmasq is not running"); n != 2 {
		t.Errorf("its absence was logged %d times", n)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Update(ctx, []dnsmasq.Server{one}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	r.holds()
}

func TestHangUp(t *testing.T) {
	r := newRig(t)
	one, two := server("wan0", "192.0.2.53", ""), server("wan1", "192.0.2.53", "")
	first, beside := r.sleep("dnsmasq"), r.sleep("dnsmasq")
	r.process(first.cmd.Process.Pid)
	r.update(one)
	first.hungUp(t)
	// It has ended and left its file.
	r.update(two)

	// The same content is not told again. A new process tells once: it does not know whether
	// the one before could.
	r.process(beside.cmd.Process.Pid)
	r.update(two)
	beside.awake(t)
	fresh := r.sleep("dnsmasq")
	r.process(fresh.cmd.Process.Pid)
	r.again()
	r.update(two)
	fresh.hungUp(t)

	// What could not be told is told when it can be.
	third := r.sleep("dnsmasq")
	r.process("")
	r.fails(`"\n" is not a process number; to fix: `, one)
	r.holds(one)
	r.fails("is not a process number", one)
	r.process(third.cmd.Process.Pid)
	// Nor does a bad name keep it.
	r.fails("leaving out DNS server", one, server("a b", "192.0.2.53", ""))
	r.holds(one)
	third.hungUp(t)
}

func TestPIDFile(t *testing.T) {
	r := newRig(t)
	one := server("wan0", "192.0.2.53", "")
	other := r.sleep("other")
	for _, text := range []any{"x", "-1", "0", "1 2", "99999999999", "0x10", strings.Repeat("1", 100)} {
		r.process(text)
		r.fails("is not a process number; to fix: ", one)
	}
	r.process(other.cmd.Process.Pid)
	r.fails(`is "other" and not dnsmasq; to fix: `, one)
	r.process(os.Getpid())
	r.fails(`and not dnsmasq; to fix: `, one)
	other.awake(t)
	for name, create := range map[string]func() error{
		"directory": func() error { return os.Mkdir(r.pidFile, 0o755) },
		"fifo":      func() error { return unix.Mkfifo(r.pidFile, 0o600) },
	} {
		if err := os.RemoveAll(r.pidFile); err != nil {
			t.Fatal(err)
		}
		if err := create(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.fails("it is not a regular file; to fix: ", one)
	}
	r.holds(one)
}

func TestPath(t *testing.T) {
	r := newRig(t)
	one := server("wan0", "192.0.2.53", "")
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, create := range map[string]func() error{
		"link":      func() error { return os.Symlink(victim, r.path) },
		"link here": func() error { return os.Symlink("pid", r.path) },
		"nowhere":   func() error { return os.Symlink("/nonexistent/x", r.path) },
		"directory": func() error { return os.Mkdir(r.path, 0o755) },
		"fifo":      func() error { return unix.Mkfifo(r.path, 0o644) },
	} {
		if err := create(); err != nil {
			t.Fatal(err)
		}
		r.fails("not a regular file", one)
		if err := os.Remove(r.path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "x" {
		t.Errorf("it is %q now, %v", text, err)
	}
	r.path = filepath.Join(r.dir, "none", "servers")
	r.again()
	r.fails("no such file or directory; to fix: create it", one)
	// A directory that comes later.
	if err := os.Mkdir(filepath.Dir(r.path), 0o755); err != nil {
		t.Fatal(err)
	}
	r.update(one)
}
