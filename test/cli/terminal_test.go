package cli_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudoterminal of 80 columns (pty(7)).
func terminal(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	fd := int(near.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// onTerminal runs multihomectl on a terminal with typed input.
func (h *host) onTerminal(typed string, args ...string) result {
	h.t.Helper()
	return h.asked(func() {}, typed, args...)
}

// asked is onTerminal that does something before anything is typed: a question is open then, if there is one.
func (h *host) asked(do func(), typed string, args ...string) result {
	h.t.Helper()
	near, far := terminal(h.t)
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(h.t, "multihomectl"), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "GORACE=atexit_sleep_ms=0")
	h.must(cmd.Start())
	h.must(far.Close())
	var shown strings.Builder
	isTyped := typed == ""
	// When the last process is gone reading fails with EIO (pty(7)).
	for buffer := make([]byte, 4<<10); ; {
		n, err := near.Read(buffer)
		shown.Write(buffer[:n])
		if !isTyped && strings.HasSuffix(shown.String(), "] ") {
			isTyped = true
			do()
			_, err := near.WriteString(typed)
			h.must(err)
		}
		if errors.Is(err, unix.EIO) || errors.Is(err, io.EOF) {
			break
		}
		h.must(err)
	}
	if !isTyped {
		h.t.Errorf("no question was asked: %q", shown.String())
	}
	err := cmd.Wait()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		h.t.Fatal(err)
	}
	return result{out: strings.ReplaceAll(shown.String(), "\r\n", "\n"), status: cmd.ProcessState.ExitCode()}
}

// TestTerminal: colours and questions are for people.
func TestTerminal(t *testing.T) {
	h := newHost(t)
	h.start()
	const green = "\x1b[32mrunning\x1b[0m"
	if r := h.onTerminal("", "status"); r.status != 0 || !strings.Contains(r.out, green) {
		t.Errorf("status on a terminal: %s", r)
	}
	if r := h.onTerminal("", "status", "--color=never"); strings.Contains(r.out, "\x1b") {
		t.Errorf("status without colours: %s", r)
	}
	if r := h.ctl("status", "--color=always"); !strings.Contains(r.out, green) {
		t.Errorf("status with colours: %s", r)
	}
	if r := h.ctl("status"); strings.Contains(r.out, "\x1b") {
		t.Errorf("status in a script: %s", r)
	}

	h.stop()
	for _, no := range []string{"n\n", "\n", "what?\n", "\x04"} {
		if r := h.onTerminal(no, "flush"); r.status != 1 || !strings.Contains(r.out, "Remove 24 rules, 10 routes and the group of 2 uplinks?") || !strings.Contains(r.out, "multihomectl: nothing was removed") {
			t.Errorf("flush answered with %q: %s", no, r)
		}
	}
	// Who thinks about the answer keeps nobody out.
	if r := h.asked(func() { h.start(); h.stop() }, "n\n", "flush"); r.status != 1 {
		t.Errorf("flush beside a daemon that comes and goes: %s", r)
	}
	if r := h.asked(h.start, "y\n", "flush"); r.status != 1 || !strings.Contains(r.out, "multihomed is running (process ") {
		t.Errorf("flush beside a daemon that came: %s", r)
	}
	h.stop()
	if s := h.status(); !s.OK {
		t.Errorf("something was removed: %+v", s.Problems)
	}
	if r := h.onTerminal("y\n", "flush"); r.status != 0 || !strings.Contains(r.out, "removed 24 rules, 10 routes and the group of 2 uplinks") {
		t.Errorf("flush answered with yes: %s", r)
	}
	h.start()
	h.stop()
	if r := h.onTerminal("", "flush", "--yes"); r.status != 0 || strings.Contains(r.out, "?") {
		t.Errorf("flush --yes: %s", r)
	}
}
