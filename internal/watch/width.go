package watch

import (
	"strings"
	"unicode"
)

// wide are the characters that take two columns of a terminal (East Asian Width W and F, UAX #11,
// and emoji), as far as they matter for a table.
var wide = &unicode.RangeTable{ //nolint:gochecknoglobals // a constant in all but name
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0xa4cf, 1}, {0xa960, 0xa97f, 1}, {0xac00, 0xd7a3, 1},
		{0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{{0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1}, {0x1f900, 0x1f9ff, 1}, {0x20000, 0x3fffd, 1}},
}

func columnsOf(r rune) int {
	switch {
	case unicode.Is(wide, r):
		return 2
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	default:
		return 1
	}
}

// columns is how wide a text is on a terminal.
func columns(text string) (n int) {
	for _, r := range text {
		n += columnsOf(r)
	}
	return n
}

// cut shortens a text to a width, and marks that with an ellipsis.
func cut(text string, width int) string {
	if columns(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	var b strings.Builder
	n := 1 // of the ellipsis
	for _, r := range text {
		if n += columnsOf(r); n > width {
			break
		}
		b.WriteRune(r)
	}
	return b.String() + "…"
}

// fold breaks a text between words into lines no wider than width. A word that is wider is broken.
func fold(text string, width int) (lines []string) {
	line, n := "", 0
	for word := range strings.FieldsSeq(text) {
		w := columns(word)
		if line != "" && n+1+w <= width {
			line, n = line+" "+word, n+1+w
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for w > width {
			head := ""
			for _, r := range word {
				if columns(head)+columnsOf(r) > width {
					break
				}
				head += string(r)
			}
			if head == "" {
				return append(lines, word)
			}
			lines = append(lines, head)
			word = word[len(head):]
			w = columns(word)
		}
		line, n = word, w
	}
	return append(lines, line)
}
