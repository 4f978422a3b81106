package preview

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
	case prints(s):
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	default:
		return `"` + expanded(s, "\\$`\"") + `"`
	}
}

// special reports whether a shell may read more than a character. The list is short on purpose.
func special(c rune) bool {
	plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_./:=-@+,", c)
	return !plain
}

// prints reports whether escape.Text would leave the text as it is: it is UTF-8, and harmless to a
// terminal.
func prints(s string) bool { return escape.Text(s) == s }

// expanded writes text that a shell expands: between double quotes, or in a here-document. A backslash
// goes before each of the active characters.
func expanded(s, active string) string {
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
		if !prints(s[:n]) {
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

// document is a here-document for a command: its lines as they are if they print, else with expansions.
func document(command string, lines []string) string {
	text := strings.Join(lines, "\n") + "\n"
	if prints(strings.ReplaceAll(text, "\n", "")) {
		return command + " <<'END'\n" + text + "END"
	}
	for i, line := range lines {
		lines[i] = expanded(line, "\\$`")
	}
	return command + " <<END\n" + strings.Join(lines, "\n") + "\nEND"
}
