package cli_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"
)

// explainOn explains on a terminal of some columns, and returns what it is sent.
func (h *host) explainOn(width int, environment string, args ...string) []byte {
	h.t.Helper()
	near, far := terminal(h.t)
	h.must(unix.IoctlSetWinsize(int(near.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(width)}))
	cmd := exec.CommandContext(h.t.Context(), program(h.t, "multihomectl"), append([]string{"explain"}, args...)...)
	cmd.Stdout = far
	cmd.Env = append(os.Environ(), "TERM=xterm", "GORACE=atexit_sleep_ms=0", environment)
	h.must(cmd.Start())
	h.must(far.Close())
	var shown bytes.Buffer
	if _, err := io.Copy(&shown, near); err != nil && !errors.Is(err, unix.EIO) { // As in onTerminal.
		h.t.Fatal(err)
	}
	h.must(cmd.Wait())
	return shown.Bytes()
}

// explainTerminal wants the same words on terminals of all widths, with and without colour, as in a pipe.
func (h *host) explainTerminal(args ...string) {
	h.t.Helper()
	// Where a terminal breaks a long rule, it breaks words.
	letters := func(text string) string { return strings.Join(strings.Fields(text), "") }
	piped := h.ctl(append([]string{"explain"}, args...)...).out
	if strings.Contains(piped, "\x1b") || !strings.Contains(piped, "✔") {
		h.t.Errorf("in a pipe: %q", piped)
	}
	for _, width := range []int{40, 80, 200} {
		for _, colour := range []bool{true, false} {
			environment := "NO_COLOR=1"
			if colour {
				environment = "NO_COLOR="
			}
			sent := h.explainOn(width, environment, args...)
			if bytes.Contains(sent, []byte("\x1b[")) != colour {
				h.t.Errorf("%s, %d columns: %q", environment, width, sent)
			}
			screen := vt10x.New(vt10x.WithSize(width, 100))
			_, err := screen.Write(sent)
			h.must(err)
			if letters(screen.String()) != letters(piped) {
				h.t.Errorf("%s, %d columns:\n%s\nin a pipe:\n%s", environment, width, screen, piped)
			}
		}
	}
}
