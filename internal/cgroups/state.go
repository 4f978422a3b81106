package cgroups

import (
	"cmp"
	"fmt"
	"time"

	"multihomed/internal/english"
	"multihomed/internal/escape"
)

// A Bind binds all cgroups that a selector selects to a link.
type Bind struct {
	Selector Selector
	Link     string
}

// A Bound is one cgroup that is bound, for as long as it exists.
type Bound struct {
	ID   uint64 `json:"id"`
	Path string `json:"path"`
	Link string `json:"link"`
	// At is when it was bound.
	At time.Time `json:"at"`
	// Window is how long it had existed unbound.
	Window time.Duration `json:"window"`
	// Early is how many processes ran in it already. The sockets that they had by then are unbound until they close them.
	Early int `json:"early"`
}

// A Standing is what has become of a binding.
type Standing uint8

// Standings, the worst one last.
const (
	// Looking: it is not known yet which cgroups exist.
	Looking Standing = iota
	// Waiting: no cgroup is selected.
	Waiting
	// Bonded: all that are selected are bound.
	Bonded
	// Binding: one was found and is being bound.
	Binding
	// Failing: one is not bound, and Error says why; it is tried again.
	Failing
)

// String is a word for status.
func (s Standing) String() string {
	switch s {
	case Waiting:
		return "waiting"
	case Bonded:
		return "bound"
	case Binding:
		return "binding"
	case Failing:
		return "failed"
	case Looking:
	}
	return "looking"
}

// A State is what a Keeper knows of a binding.
type State struct {
	Bind

	Standing Standing
	// Bound and Unbound are how many cgroups exist.
	Bound, Unbound int
	// Last is the cgroup that was bound last, if one is.
	Last Bound
	// Error says why one is unbound, empty if none is, and how to fix that.
	Error string
	// Missed says what could not be looked at, empty if everything was.
	Missed string
}

// Sentence says it for status.
func (s State) Sentence() (text string) {
	switch s.Standing {
	case Looking:
		text = fmt.Sprintf("%v: looking for its cgroup", s.Selector)
	case Waiting:
		text = fmt.Sprintf("%v: it has no cgroup yet", s.Selector)
	case Bonded:
		text = fmt.Sprintf("%v: bound to %s (%s)", s.Selector, escape.Name(s.Link), number(s.Bound, "cgroup"))
	case Binding:
		text = fmt.Sprintf("%v: %s found, not bound to %s yet", s.Selector, number(s.Unbound, "cgroup"), escape.Name(s.Link))
	case Failing:
		text = fmt.Sprintf("%v: %s not bound to %s: %s", s.Selector, cmp.Or(number(s.Unbound, "cgroup"), "cgroups"), escape.Name(s.Link), s.Error)
	}
	if s.Bound > 0 {
		text += fmt.Sprintf("; the last one existed for at least %v before it was bound", s.Last.Window.Round(100*time.Microsecond))
		if s.Last.Early > 0 {
			text += fmt.Sprintf(", with %s in it: sockets that were open by then are unbound; to fix: %s", number(s.Last.Early, "process"), s.Selector.Anew())
		}
	}
	if s.Missed != "" {
		text += "; " + s.Missed
	}
	return text
}

// number is "1 cgroup", "2 cgroups", and empty for none.
func number(n int, what string) string {
	if n == 0 {
		return ""
	}
	return english.Count(n, what)
}
