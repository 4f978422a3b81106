package kerneltest

import "multihomed/routing"

// An author is who made a change.
type author uint8

// Authors. Somebody else is who calls the methods of a [Kernel]; nobody stands for the
// kernel itself, which takes routes away with their interface.
const (
	somebody author = iota
	ours
	nobody
)

// Somebody is the netlink port of whoever changes the kernel by the methods of [Kernel].
const Somebody uint32 = 4242

// actAs says who makes the changes until restore is called.
func (k *Kernel) actAs(a author) (restore func()) {
	before := k.author
	k.author = a
	return func() { k.author = before }
}

// An event is what a subscriber hears of one change: a rule, a route or an interface.
type event struct {
	rule  routing.Rule
	route routing.Route
	index int
	gone  bool
	by    author
}

func (k *Kernel) tell(e event) {
	e.by = k.author
	for _, m := range k.mirrors {
		m.hear(e)
	}
}
