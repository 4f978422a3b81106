// Package shell writes words so that sh(1) reads them back as they are.
package shell

import (
	"fmt"
	"strings"

	"multihomed/internal/escape"
)

// Quote makes one word of sh(1) of any bytes but NUL and newline. What does not print is written by
// printf(1), whose octal escapes POSIX has.
func Quote(s string) string {
	switch {
	case s != "" && !strings.ContainsFunc(s, special):
		return s
	case Prints(s):
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	default:
		return `"` + Expanded(s, "\\$`\"") + `"`
	}
}

// special reports whether a shell may read more than a character. The list is short on purpose.
func special(c rune) bool {
	plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_./:=-@+,", c)
	return !plain
}

// Prints reports whether escape.Text would leave the text as it is: it is UTF-8, and harmless to a
// terminal.
func Prints(s string) bool { return escape.Text(s) == s }

// Expanded writes text that a shell expands: between double quotes, or in a here-document. A backslash
// goes before each of the active characters.
func Expanded(s, active string) string {
	var b strings.Builder
	var octal strings.Builder
	flush := func() {
		if octal.Len() > 0 {
			b.WriteString("$(printf '" + octal.String() + "')")
			octal.Reset()
		}
	}
	for len(s) > 0 {
		n := 1
		for n < len(s) && s[n]&0xc0 == 0x80 && n < 4 {
			n++
		}
		if !Prints(s[:n]) {
			// One byte at a time: it need not be UTF-8.
			fmt.Fprintf(&octal, `\%03o`, s[0])
			s = s[1:]
			continue
		}
		flush()
		if strings.Contains(active, s[:1]) {
			b.WriteByte('\\')
		}
		b.WriteString(s[:n])
		s = s[n:]
	}
	flush()
	return b.String()
}

// Command writes a command of some words.
func Command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}
