// Package suggest finds the word that a user probably meant.
package suggest

import "strings"

// For returns the word of a list that is nearest to what was written, empty if none
// is near: at most a third of its letters, and at least one, may differ. Two that are
// swapped count once.
func For(written string, words []string) string {
	best, nearest := "", max(1, len(written)/3)+1
	for _, w := range words {
		d := Distance(strings.ToLower(written), strings.ToLower(w))
		if d < nearest {
			best, nearest = w, d
		}
	}
	if best == "" && len(written) > 2 {
		for _, w := range words {
			if strings.HasPrefix(w, written) {
				return w
			}
		}
	}
	return best
}

// Question asks for that word, to follow a sentence, empty if there is none.
func Question(written string, words []string) string {
	if word := For(written, words); word != "" {
		return "; did you mean " + word + "?"
	}
	return ""
}

// Distance counts the letters to change, add, remove or swap with the next one until a word
// is the other one (the restricted distance of Damerau and Levenshtein).
func Distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
