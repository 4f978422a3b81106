package config

import (
	"fmt"
	"strings"

	"multihomed/internal/suggest"
)

// An Error is one thing that is wrong with a configuration file.
type Error struct {
	File string
	// Line counts from 1; 0 if no line is to blame.
	Line int
	// Key is dotted, as "tables.first"; empty for a file that is not TOML.
	Key string
	// Message says what is wrong and what is allowed.
	Message string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, ": %s", e.Key)
	}
	return b.String() + ": " + e.Message
}

// nearest finds the key that was probably meant. Keys of the same table come first; a key
// may also be right and in the wrong table.
func nearest(key string) (string, bool) {
	best, distance := "", len(key)
	consider := func(candidate string, d, limit int) {
		if d < limit && d < distance {
			best, distance = candidate, d
		}
	}
	inTable := len(leaf(key))/3 + 2
	for _, s := range specs() {
		elsewhere := 1
		if parent(key) == parent(s.key) {
			elsewhere = 0
		}
		consider(s.key, edits(leaf(key), leaf(s.key))+elsewhere, inTable)
		consider(s.key, edits(key, s.key)+elsewhere, inTable)
	}
	return best, best != ""
}

// nearestWord proposes one of the quoted words of what is allowed, or nothing.
func nearestWord(word, allowed string) string {
	best, distance := "", len(word)/3+2
	for i, choice := range strings.Split(allowed, `"`) {
		if d := edits(strings.ToLower(word), choice); i%2 == 1 && d < distance {
			best, distance = choice, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

func parent(key string) string { return key[:max(strings.LastIndexByte(key, '.'), 0)] }

func leaf(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// maxSuggested bounds the work for keys that nobody can have meant.
const maxSuggested = 64

// edits is how far a word of the file is from one that is allowed.
func edits(a, b string) int {
	if len(a) > maxSuggested {
		return len(a)
	}
	return suggest.Distance(a, b)
}
