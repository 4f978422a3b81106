package follow

import (
	"multihomed/internal/watch"
	"multihomed/routing"
)

// Authors finds the processes in a /proc of a test.
type Authors struct{ *authors }

func NewAuthors(proc string) *Authors {
	a := newAuthors()
	a.proc = proc
	return &Authors{a}
}

func (a *Authors) Name(heard []routing.Announcement) []watch.Announced { return a.name(heard) }

// ReadCounters reads the text of /proc/net/dev.
var ReadCounters = readCounters
