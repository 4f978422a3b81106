package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"multihomed/internal/config"
	"multihomed/internal/watch"
	"multihomed/internal/watch/follow"
)

// Sequences of xterm and of what imitates it (ECMA-48 and DEC private modes): another screen, no cursor,
// no wrapping at the right margin; and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// leaveTime is how long a terminal that takes no more may hold up the end.
const leaveTime = 500 * time.Millisecond

// watchScreen draws a screen until somebody quits. The terminal is as it was afterwards, however it ends.
func (a *app) watchScreen(ctx context.Context, loaded config.Loaded, how look) (err error) {
	s, err := openScreen(a.In, a.Out)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer s.close()
	// Either ends the program without another word; a stopped one would leave the screen as it is.
	ctx, stop := signal.NotifyContext(ctx, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	signal.Ignore(unix.SIGTSTP)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	return a.follows(ctx, loaded, onScreen, func(ctx context.Context, updates <-chan follow.Update) error {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		m := &watch.Model{Now: time.Now(), Colour: bool(how.paint)}
		meter := meter{}
		for {
			s.draw(m)
			select {
			case u := <-updates:
				m.Add(u.Events)
				if u.Document != nil {
					m.Document = u.Document
				}
				m.Fault = ""
				if u.Fault != nil {
					m.Fault = u.Fault.Error()
				}
			case <-ticker.C:
				m.Rates = meter.read()
			case <-resized:
				s.last = nil
			case key := <-s.keys:
				if key == 'q' || key == 'Q' || key == ctrlC {
					return nil
				}
			case err := <-s.printer.done:
				s.isBusy = false
				if err != nil {
					return printed(err)
				}
			case <-ctx.Done():
				return nil
			}
			m.Now = time.Now()
		}
	})
}

// A meter measures rates.
type meter struct {
	last map[string]watch.Counter
	at   time.Time
}

func (m *meter) read() map[string]watch.Rate {
	now := time.Now()
	counters, err := follow.Counters()
	if err != nil {
		return nil // No rates are shown.
	}
	rates := watch.Rates(m.last, counters, now.Sub(m.at))
	m.last, m.at = counters, now
	return rates
}

// ctrlC is what a terminal in raw mode sends for it.
const ctrlC = 3

// A screen is a terminal that is drawn on.
type screen struct {
	out     *os.File
	in      *os.File
	before  *term.State
	printer *printer
	keys    chan byte
	// last are the lines that the terminal has, nil if that is not known.
	last   []string
	width  int
	isBusy bool
}

func openScreen(in io.Reader, out io.Writer) (*screen, error) {
	s := &screen{keys: make(chan byte), printer: newPrinter(out)}
	s.out, _ = out.(*os.File) // The caller knows that it is a terminal.
	if fd, terminal := descriptor(in); terminal {
		before, err := term.MakeRaw(fd)
		if err != nil {
			return nil, fmt.Errorf("preparing the terminal: %w", err)
		}
		s.before = before
		s.in, _ = in.(*os.File)
		go s.listen()
	}
	s.send([]byte(enterScreen))
	return s, nil
}

// listen reads keys. It ends with the program.
func (s *screen) listen() {
	b := make([]byte, 1)
	for {
		if n, err := s.in.Read(b); n == 0 || err != nil {
			return
		}
		s.keys <- b[0]
	}
}

// send writes what the terminal has not got yet. It does not wait.
func (s *screen) send(text []byte) {
	s.isBusy = true
	s.printer.work <- text
}

// draw draws what has changed since the last time. While the terminal is slow it leaves pictures out.
func (s *screen) draw(m *watch.Model) {
	if s.isBusy {
		return
	}
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 1 || height < 1 {
		width, height = narrow, 24
	}
	lines := watch.Frame(m, width, height)
	var b strings.Builder
	if s.width != width || len(s.last) != len(lines) {
		b.WriteString("\x1b[2J")
		s.last, s.width = make([]string, len(lines)), width
	}
	for i, text := range lines {
		if text != s.last[i] {
			// Erased first: behind a full line the cursor stands on its last character.
			b.WriteString("\x1b[" + strconv.Itoa(i+1) + ";1H\x1b[2K" + text)
		}
	}
	s.last = slices.Clone(lines)
	if b.Len() > 0 {
		s.send([]byte(b.String()))
	}
}

// close gives the terminal back. A terminal that takes nothing keeps its picture, but takes keys as before.
func (s *screen) close() {
	patience := time.NewTimer(leaveTime)
	defer patience.Stop()
	if s.before != nil {
		defer func() { _ = term.Restore(int(s.in.Fd()), s.before) }() // There is nobody to tell.
	}
	isIdle := func() bool {
		select {
		case err := <-s.printer.done:
			return err == nil
		case <-patience.C:
			return false
		}
	}
	if s.isBusy && !isIdle() {
		return
	}
	s.send([]byte(leaveScreen))
	isIdle()
}
