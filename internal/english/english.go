// Package english puts numbers before nouns.
package english

import (
	"fmt"
	"strings"
)

// Count is "1 rule", "2 rules", "2 addresses": a number with a noun whose plural has an s.
func Count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "s"):
		return fmt.Sprintf("%d %ses", n, noun)
	default:
		return fmt.Sprintf("%d %ss", n, noun)
	}
}
