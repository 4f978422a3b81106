// Package escape writes names that may hold any bytes so that people, terminals and JSON can
// read them, and so that different names stay different.
package escape

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Name escapes a name of an interface or a profile. The kernel takes any byte in the
// name of an interface but '/', ':' and white space (net/core/dev.c, dev_valid_name).
// A backslash becomes two; a byte that is no UTF-8 or a control character becomes \xNN,
// and another character that does not print \uNNNN or \UNNNNNNNN. Everything else stays as
// it is. [Original] reverses it.
func Name(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == '\\' || r == utf8.RuneError || !printable(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case size == 1 && (r == utf8.RuneError || !printable(r)):
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !printable(r) && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case !printable(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String()
}

// Text makes a sentence fit for one line of a log or a terminal. Unlike [Name] it
// leaves backslashes alone: sentences quote names that were escaped before.
func Text(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !printable(r) }) {
		return s
	}
	var b strings.Builder
	for i, part := range strings.Split(s, `\`) {
		if i > 0 {
			b.WriteByte('\\')
		}
		b.WriteString(Name(part))
	}
	return b.String()
}

// Original reverses [Name]. What is not an escape stays as it is.
func Original(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		switch {
		case strings.HasPrefix(s, `\\`):
			b.WriteByte('\\')
			s = s[2:]
			continue
		case strings.HasPrefix(s, `\x`):
			if c, ok := number(s, 2); ok {
				b.WriteByte(byte(c)) //nolint:gosec // two digits
				s = s[4:]
				continue
			}
		case strings.HasPrefix(s, `\u`):
			if c, ok := number(s, 4); ok {
				b.WriteRune(rune(c)) //nolint:gosec // four digits
				s = s[6:]
				continue
			}
		case strings.HasPrefix(s, `\U`):
			if c, ok := number(s, 8); ok && c <= unicode.MaxRune {
				b.WriteRune(rune(c))
				s = s[10:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// number reads the digits after the two characters of an escape.
func number(s string, digits int) (uint64, bool) {
	if len(s) < 2+digits {
		return 0, false
	}
	n, err := strconv.ParseUint(s[2:2+digits], 16, 64)
	return n, err == nil
}

// printable excludes characters that move the cursor or change the direction of writing:
// control and format characters (Cc, Cf) and separators other than the space.
func printable(r rune) bool { return r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) }
