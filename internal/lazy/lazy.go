// Package lazy makes values at their first use. Every hook starts the program, so each start
// would pay for the initialisation of package variables.
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
