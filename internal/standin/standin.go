// Package standin starts the stand-in, a process that does the daemon's work for a while. The
// dispatcher that starts it returns to its caller when the routing is active, and does not
// wait for later events, such as the other address family.
package standin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/handoff"
	"multihomed/internal/journal"
	"multihomed/internal/ownership"
)

// argument marks a process that Start started.
const argument = "stand-in"

// Is reports whether a process with these arguments was started by Start.
func Is(args []string) bool { return len(args) == 1 && args[0] == argument }

// Runs reports whether a process is a stand-in.
func Runs(pid int) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && bytes.HasSuffix(line, []byte("\x00"+argument+"\x00"))
}

// callerTimeout bounds how long the caller waits: longer than a pass, and not so long that a
// DHCP client misses its timers.
const callerTimeout = 10 * time.Second

// readiness is the file descriptor on which the child reports its first complete pass.
const readiness = 3

// busAddress names the system bus (dbus-daemon(1)).
const busAddress = "DBUS_SYSTEM_BUS_ADDRESS"

// Start starts a stand-in for a message, and returns after its first complete pass. The
// stand-in logs its own errors. If the daemon has a user, it has that user and the daemon's
// capabilities.
func Start(ctx context.Context, log *slog.Logger, cfg config.Config, m handoff.Message) error {
	doing := func(err error) error { return fmt.Errorf("standing in for the daemon: %w", err) }
	data, err := json.Marshal(m)
	if err != nil {
		return doing(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return doing(err)
	}
	defer read.Close()
	in, message, err := os.Pipe()
	if err != nil {
		return errors.Join(doing(err), write.Close())
	}
	// Not the path of this process: that may be another file by now.
	child := exec.Command("/proc/self/exe", argument) //nolint:noctx // it outlives us
	child.Args[0] = os.Args[0]
	child.Stdin, child.Stderr, child.ExtraFiles = in, os.Stderr, []*os.File{write}
	child.Dir = "/"
	// Everything that counts in the caller's environment is in the message.
	child.Env = []string{}
	if bus, set := os.LookupEnv(busAddress); set {
		child.Env = append(child.Env, busAddress+"="+bus)
	}
	if child.SysProcAttr, err = rights(cfg); err != nil {
		return errors.Join(doing(err), in.Close(), message.Close(), write.Close())
	}
	err = child.Start()
	err = errors.Join(err, write.Close(), in.Close())
	if err != nil {
		return errors.Join(doing(err), message.Close())
	}
	if _, err := message.Write(data); err != nil {
		return errors.Join(doing(err), message.Close())
	}
	if err := message.Close(); err != nil {
		return doing(err)
	}
	if err := read.SetReadDeadline(time.Now().Add(callerTimeout)); err != nil {
		return doing(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = read.Close() })
	defer stop()
	switch n, err := read.Read(make([]byte, 1)); {
	case n == 1:
		return nil
	case errors.Is(err, io.EOF):
		// It has ended: the daemon came first, or there was an error.
		err := child.Wait()
		if exit, is := errors.AsType[*exec.ExitError](err); is && hasLogged(exit.ExitCode()) {
			return &EndedError{exit.ExitCode()}
		}
		if err != nil {
			return doing(err)
		}
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		log.LogAttrs(ctx, event.LevelNotice, "routing not complete yet, going on in the background", slog.Int("pid", child.Process.Pid))
		return nil
	default:
		return doing(err)
	}
}

// An EndedError says that the stand-in has ended before its first complete pass, with an error
// that it has logged.
type EndedError struct{ Status int }

func (e *EndedError) Error() string {
	return fmt.Sprintf("standing in for the daemon: it has ended with status %d, and has logged why", e.Status)
}

// hasLogged reports whether a process that ends with a status has logged its error: not one that
// a signal ended (-1) or that panicked (2).
func hasLogged(status int) bool { return status > 0 && status != 2 }

// rights are those of the daemon: the owner of its directory, and the capabilities
// of its unit.
func rights(cfg config.Config) (*syscall.SysProcAttr, error) {
	// Neither the terminal nor the caller's process group may end it.
	attr := &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() != 0 {
		return attr, nil
	}
	if err := ownership.MakeDirectory(cfg.RuntimeDir, cfg.StateDir); err != nil {
		return nil, err
	}
	info, err := os.Stat(cfg.RuntimeDir)
	if err != nil {
		return nil, fmt.Errorf("finding the daemon's user: %w", err)
	}
	owner, is := info.Sys().(*syscall.Stat_t)
	if !is || owner.Uid == 0 {
		return attr, nil
	}
	attr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
	if cfg.DNS.ServersFile != "" {
		attr.AmbientCaps = append(attr.AmbientCaps, unix.CAP_KILL) // for dnsmasq, which has a user too
	}
	return attr, nil
}

// ErrUsage says that a user called the program with the argument of Start.
var ErrUsage = errors.New("multihomed-dispatcher was called with an argument that is its own")

// A Job does the daemon's work for a message. It calls done after the first complete pass.
type Job func(ctx context.Context, log *slog.Logger, m handoff.Message, done func()) error

// Run is the main function of the child. It logs the error that it returns.
func Run(ctx context.Context, level slog.Leveler, job Job) error {
	out := &output{}
	out.to.Store(&sink{journal.SinkOf(os.Stderr)})
	log := slog.New(journal.NewHandler(out, level))
	var m handoff.Message
	if err := json.NewDecoder(os.Stdin).Decode(&m); err != nil {
		log.ErrorContext(ctx, ErrUsage.Error(), slog.String("error", err.Error())) //nolint:sloglint // the error is the sentence
		return ErrUsage
	}
	ready := os.NewFile(readiness, "readiness")
	err := job(ctx, log, m, func() {
		out.leave()
		// The caller may be gone.
		_, _ = ready.Write([]byte{1})
		_ = ready.Close()
	})
	if err != nil {
		log.ErrorContext(ctx, "event not handled", event.Is(event.Failed), slog.String("caller", m.Caller), slog.String("action", m.Action),
			slog.String("interface", m.Interface), slog.String("error", err.Error()))
	}
	return err
}

// output sends the log to the caller while that waits, and to the system's log afterwards.
type output struct{ to atomic.Pointer[sink] }

type sink struct{ journal.Sink }

// Write implements [journal.Sink].
func (o *output) Write(at time.Time, level slog.Level, sentence string, fields []journal.Field) error {
	return o.to.Load().Write(at, level, sentence, fields)
}

// leave closes the caller's files: a reader that waits for their end would wait for us.
func (o *output) leave() {
	o.to.Store(&sink{journal.System()})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	for fd := range readiness {
		_ = unix.Dup3(int(null.Fd()), fd, 0) // They stay open for 20 seconds then.
	}
	_ = null.Close()
}
