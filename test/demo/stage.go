package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// A stage is where the demo speaks: headings, explanations, quotes, and claims
// that are counted.
type stage struct {
	out                    io.Writer
	kept, broken, scene    int
	bold, dim, good, alarm func(string) string
}

func newStage(out *os.File) *stage {
	colour := func(code string) func(string) string {
		if !term.IsTerminal(int(out.Fd())) || os.Getenv("NO_COLOR") != "" {
			return func(s string) string { return s }
		}
		return func(s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
	}
	return &stage{out: out, bold: colour("1"), dim: colour("2"), good: colour("32"), alarm: colour("1;31")}
}

func (s *stage) print(line string) { fmt.Fprintln(s.out, line) }

func (s *stage) heading(text string) {
	s.scene++
	s.print("")
	s.print(s.bold(fmt.Sprintf("%d. %s", s.scene, text)))
}

func (s *stage) say(format string, args ...any) { s.print("   " + fmt.Sprintf(format, args...)) }

func (s *stage) command(line string) { s.print("   " + s.dim("$ ") + line) }

func (s *stage) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		s.print("     " + s.dim(strings.TrimRight(line, "\n")))
	}
}

// claim counts a statement with its proof.
func (s *stage) claim(holds bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if holds {
		s.kept++
		s.print("   " + s.good("✓ ") + text)
		return
	}
	s.fail("%s", text)
}

func (s *stage) fail(format string, args ...any) {
	s.broken++
	s.print("   " + s.alarm("✗ "+fmt.Sprintf(format, args...)))
}

// verdict is the last line and the exit status.
func (s *stage) verdict() int {
	s.print("")
	if s.broken > 0 {
		s.print(s.alarm(fmt.Sprintf("%d of %d claims did not hold.", s.broken, s.broken+s.kept)))
		return 1
	}
	s.print(s.good(fmt.Sprintf("All %d claims held.", s.kept)) + " None of this touched the machine: it ran in namespaces that are gone now.")
	return 0
}
