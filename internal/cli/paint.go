package cli

import (
	"strings"
	"unicode/utf8"

	"multihomed/internal/escape"
)

// A style is a sequence of SGR parameters (ECMA-48, 8.3.117). The basic colours
// follow the terminal's own theme.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// A painter colours text, or leaves it as it is.
type painter bool

func (p painter) paint(s style, text string) string {
	if !p || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// pad paints a text and fills it up to a width, which colours do not count for.
func (p painter) pad(s style, text string, width int) string {
	return p.paint(s, text) + strings.Repeat(" ", max(0, width-columns(text)))
}

// columns is how wide a text is, where every rune takes one column.
func columns(text string) int { return utf8.RuneCountInString(text) }

// wrap breaks a text between words so that no line is wider than the width; a
// word that is wider has its own line. A width of 0 is unlimited.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case width > 0 && columns(line)+1+columns(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// clean makes foreign text, such as the name of a profile, safe for a terminal: what does
// not print is shown as its bytes.
func clean(text string) string { return escape.Text(text) }
