package watch

import (
	"strings"
	"unicode"
)

// wide are the characters that take two columns of a terminal (East Asian Width W and F, UAX #11,
// and emoji), as far as they matter for a table.
var wide = &unicode.RangeTable{ //nolint:gochecknoglobals // a constant in all but name
	R16: []unicode.Range16{
		{Lo: 0x1100, Hi: 0x115f, Stride: 1},
		{Lo: 0x2e80, Hi: 0x303e, Stride: 1},
		{Lo: 0x3041, Hi: 0xa4cf, Stride: 1},
		{Lo: 0xa960, Hi: 0xa97f, Stride: 1},
		{Lo: 0xac00, Hi: 0xd7a3, Stride: 1},
		{Lo: 0xf900, Hi: 0xfaff, Stride: 1},
		{Lo: 0xfe30, Hi: 0xfe6f, Stride: 1},
		{Lo: 0xff00, Hi: 0xff60, Stride: 1},
		{Lo: 0xffe0, Hi: 0xffe6, Stride: 1},
	},
	R32: []unicode.Range32{{Lo: 0x1f300, Hi: 0x1f64f, Stride: 1}, {Lo: 0x1f680, Hi: 0x1f6ff, Stride: 1}, {Lo: 0x1f900, Hi: 0x1f9ff, Stride: 1}, {Lo: 0x20000, Hi: 0x3fffd, Stride: 1}},
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
