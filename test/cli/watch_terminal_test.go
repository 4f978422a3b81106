package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"

	"multihomed/test/lab/labtest"
)

// A display is a terminal with a `multihomectl watch` on it.
type display struct {
	h    *host
	near *os.File
	far  *os.File
	vt   vt10x.Terminal
	cmd  *exec.Cmd
	// before are the settings of the terminal before the program.
	before *unix.Termios
	read   chan struct{}
	// isResized says that the size has changed.
	isResized bool
}

func (h *host) display(args ...string) *display {
	h.t.Helper()
	near, far := terminal(h.t)
	h.t.Cleanup(func() { _ = far.Close() })
	d := &display{h: h, near: near, far: far, vt: vt10x.New(vt10x.WithSize(80, 24)), read: make(chan struct{})}
	var err error
	d.before, err = unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
	h.must(err)
	_, _ = d.vt.Write([]byte("$ multihomectl watch\r\n"))
	d.cmd = exec.CommandContext(h.t.Context(), program(h.t, "multihomectl"), append([]string{"watch"}, args...)...)
	d.cmd.Stdin, d.cmd.Stdout, d.cmd.Stderr = far, far, far
	d.cmd.Env = append(os.Environ(), "TERM=xterm", "GORACE=atexit_sleep_ms=0")
	h.must(d.cmd.Start())
	go func() {
		defer close(d.read)
		_, _ = io.Copy(d.vt, near) // It ends when the terminal is closed.
	}()
	return d
}

// shows waits until the picture holds all words, and fills the terminal.
func (d *display) shows(words ...string) {
	d.h.t.Helper()
	labtest.Eventually(d.h.t, func() error {
		picture := d.vt.String()
		for _, w := range words {
			if !strings.Contains(picture, w) {
				return fmt.Errorf("no %q in\n%s", w, picture)
			}
		}
		return nil
	})
}

func (d *display) resize(width, height int) {
	d.h.t.Helper()
	d.isResized = true
	d.vt.Resize(width, height)
	d.h.must(unix.IoctlSetWinsize(int(d.near.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)}))
	d.h.must(d.cmd.Process.Signal(unix.SIGWINCH)) // The kernel tells a foreground process group only.
}

// modes are those of the terminal, and whether its cursor is shown.
func (d *display) modes() (mode vt10x.ModeFlag, cursor bool) {
	d.vt.Lock()
	defer d.vt.Unlock()
	return d.vt.Mode(), d.vt.CursorVisible()
}

// restored wants the program to have ended well, and the terminal to be as it was.
func (d *display) restored(how string) {
	d.h.t.Helper()
	if err := d.cmd.Wait(); err != nil {
		d.h.t.Errorf("%s: %v", how, err)
	}
	after, err := unix.IoctlGetTermios(int(d.far.Fd()), unix.TCGETS)
	d.h.must(err)
	if *after != *d.before {
		d.h.t.Errorf("%s: settings of the terminal %+v, before %+v", how, *after, *d.before)
	}
	if !d.isResized {
		d.shows("$ multihomectl watch") // The emulator drops what a smaller terminal has no room for.
	}
	labtest.Eventually(d.h.t, func() error {
		if mode, cursor := d.modes(); mode&vt10x.ModeAltScreen != 0 || !cursor {
			return errors.New(how + ": still the other screen, or no cursor")
		}
		return nil
	})
	if mode, _ := d.modes(); strings.Contains(d.vt.String(), "q quits") || mode&vt10x.ModeWrap == 0 {
		d.h.t.Errorf("%s: mode %b:\n%s", how, mode, d.vt.String())
	}
	d.h.must(d.far.Close())
	d.h.must(d.near.Close())
	<-d.read
}

// TestWatchScreen: a picture that follows the host and the size of the terminal, which is as it was
// afterwards, however the program ends; and pipes that nobody reads.
func TestWatchScreen(t *testing.T) {
	h := newHost(t)
	h.start()
	d := h.display()
	d.shows("multihomed running, NetworkManager running", "default route: IPv4 and IPv6 by wan0", "*wan0  uplink", "\n wan1  uplink", "q quits", "bit/s in")
	h.ip("rule", "add", "priority", "30001", "table", "77")
	d.shows("IPv4 rule added: 30001: from all lookup 77 [")
	d.resize(132, 30)
	labtest.Eventually(t, func() error {
		lines := strings.Split(d.vt.String(), "\n")
		if len(lines) < 30 || !strings.HasPrefix(lines[29], "q quits") || len(strings.TrimRight(lines[0], " ")) != 132 || strings.Count(d.vt.String(), "q quits") != 1 {
			return fmt.Errorf("%d lines:\n%s", len(lines), d.vt.String())
		}
		return nil
	})
	d.resize(20, 5)
	d.shows("multihomed running", "*wan0")
	d.resize(80, 24)
	d.shows("q quits")
	_, err := d.near.WriteString("q")
	h.must(err)
	d.restored("q")

	for how, end := range map[string]func(*display) error{
		"Ctrl-C":  func(d *display) error { _, err := d.near.WriteString("\x03"); return err },
		"SIGTERM": func(d *display) error { return d.cmd.Process.Signal(unix.SIGTERM) },
		"SIGHUP":  func(d *display) error { return d.cmd.Process.Signal(unix.SIGHUP) },
	} {
		d := h.display("--color=never")
		d.shows("q quits")
		h.must(end(d))
		d.restored(how)
	}

	// A terminal that takes nothing any more.
	d = h.display()
	d.shows("q quits")
	h.must(unix.IoctlSetInt(int(d.far.Fd()), unix.TCXONC, unix.TCOOFF))
	h.must(d.cmd.Process.Signal(unix.SIGTERM))
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("a terminal that is stopped: %v", err)
	}
	after, err := unix.IoctlGetTermios(int(d.far.Fd()), unix.TCGETS)
	h.must(err)
	if *after != *d.before {
		t.Errorf("a terminal that is stopped: %+v, before %+v", *after, *d.before)
	}

	// Nobody reads any more: it ends without another event, and without a word.
	cmd := exec.CommandContext(t.Context(), program(t, "multihomectl"), "watch")
	out, err := cmd.StdoutPipe()
	h.must(err)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	h.must(cmd.Start())
	_, err = out.Read(make([]byte, 1))
	h.must(err)
	h.must(out.Close())
	if err := cmd.Wait(); err != nil || complaint.Len() > 0 {
		t.Errorf("a closed pipe: %v, %s", err, complaint.String())
	}

	// A reader that does not read holds up nobody who ends it.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd = exec.CommandContext(ctx, program(t, "multihomectl"), "watch")
	r, w, err := os.Pipe()
	h.must(err)
	defer r.Close()
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	h.must(err)
	h.must(unix.SetNonblock(int(w.Fd()), true))
	for err = nil; err == nil; {
		_, err = w.Write([]byte("full"))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		h.must(w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)))
	}
	h.must(unix.SetNonblock(int(w.Fd()), false))
	cmd.Stdout = w
	h.must(cmd.Start())
	h.ip("rule", "del", "priority", "30001")
	h.must(cmd.Process.Signal(unix.SIGTERM))
	if err := cmd.Wait(); err != nil && ctx.Err() != nil {
		t.Errorf("a full pipe: %v", err)
	}
}
