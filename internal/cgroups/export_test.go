package cgroups

import "strings"

// At is at for a path, of which "." is the root.
func (s Selector) At(place string) (is, above bool) {
	if place == "." {
		return s.at(nil)
	}
	return s.at(strings.Split(place, "/"))
}

// MaxDelegated is how many cgroups of one other user are known.
const MaxDelegated = maxDelegated

// Parse counts the events in what was read.
func Parse(data []byte) int { return len(parse(data).all) }
