// Package shell writes words so that sh(1) reads them back as they are.
package shell

import (
	"fmt"
	"strings"
)

// plain are the characters, besides letters and digits, that no shell takes for anything else.
const plain = "_./:@%+=,-"

// Quote writes a word for a POSIX shell. The result is printable ASCII, whatever bytes the word
// has: what does not print comes from printf(1), whose octal escapes every shell knows. Trailing
// newlines are lost there, and no name that the kernel takes has any.
func Quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !isPlain(r) }) {
		return word
	}
	if !strings.ContainsFunc(word, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	var b strings.Builder
	for i := range len(word) {
		switch c := word[i]; {
		case c == '%':
			b.WriteString("%%")
		case c < ' ' || c > '~' || c == '\'' || c == '\\':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return `"$(printf '` + b.String() + `')"`
}

func isPlain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(plain, r)
}

// Command writes a command of some words.
func Command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}
