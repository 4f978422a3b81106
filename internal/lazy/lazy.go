// Package lazy makes values when they are first asked for. The program is started for
// every hook, and what package variables cost, each start pays.
package lazy

import (
	"regexp"
	"sync"
)

// Regexp returns a regular expression that is compiled at its first use. It panics
// then if the text is none, as regexp.MustCompile does.
func Regexp(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}
