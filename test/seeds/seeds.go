// Package seeds lets the property tests of the packages whose tests import it draw the same every
// time: a change that turns them red has broken something. `make soak` draws anew, by
// -rapid.seed=0, and so does everybody who looks for what nobody has thought of.
package seeds

import (
	"flag"

	_ "pgregory.net/rapid" // registers the flag
)

func init() { //nolint:gochecknoinits // before the flags of the command line, which count more
	if err := flag.Set("rapid.seed", "20261128"); err != nil {
		panic(err)
	}
}
