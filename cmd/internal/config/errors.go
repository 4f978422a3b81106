package config

import (
	"fmt"
	"strings"
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

// nearest finds the key that was probably meant.
func nearest(key string) (string, bool) {
	best, distance := "", len(key)/3+2
	for _, s := range specs() {
		// A key may also be right but in the wrong table.
		for _, d := range []int{edits(key, s.key), edits(leaf(key), leaf(s.key)) + 1} {
			if d < distance {
				best, distance = s.key, d
			}
		}
	}
	return best, best != ""
}

func leaf(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// maxSuggested bounds the work for keys that nobody can have meant.
const maxSuggested = 64

// edits is the Levenshtein distance of two strings.
func edits(a, b string) int {
	if len(a) > maxSuggested {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
