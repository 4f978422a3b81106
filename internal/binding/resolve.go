package binding

import (
	"cmp"
	"fmt"
	"slices"

	"multihomed/internal/config"
	"multihomed/routing"
)

// An Origin says who wants a binding.
type Origin string

// Origins, in the order in which the first one counts.
const (
	// Configured is in the configuration file.
	Configured Origin = "configuration"
	// Added is what `multihomectl bind add` keeps, Runtime what it keeps until the next boot.
	Added   Origin = "state"
	Runtime Origin = "runtime"
)

// An Entry is a wanted binding.
type Entry struct {
	config.Bind
	Origin Origin
}

// A State is an entry and what became of it.
type State struct {
	Entry
	// Waits says what must exist before it has an effect, Refused why it never has one; both are
	// empty if it is in force.
	Waits, Refused string
	// Fix is what to do about it, empty if nothing.
	Fix string
	// Range are the users of an entry in force that names some.
	Range routing.UIDRange
	// Mark is what the sockets of a control group get, and those of users whose DNS queries are led; zero for
	// other entries.
	Mark routing.Mark
}

// InForce reports whether the entry has an effect as soon as its link leads somewhere.
func (s State) InForce() bool { return s.Refused == "" && s.Waits == "" }

// Name is what the planner calls the binding that serves the entry.
func (s State) Name() string {
	if s.IsCgroup() {
		return Held{Link: s.Link}.Name()
	}
	return s.Selector().Key + " " + s.Selector().Value
}

// A Held is a link whose mark sockets may have.
type Held struct {
	// Link is what the administrator calls it.
	Link string `json:"link"`
	// Number is the one in their mark, from 1.
	Number uint8 `json:"number"`
	// Mask are the bits that were ours when the number was given; zero stands for those of now. Sockets
	// keep their mark when others are configured.
	Mask routing.MarkMask `json:"mask,omitempty"`
}

// isOf reports whether a mark is for the sockets of a link that are bound from now on.
func (h Held) isOf(link string, mask routing.MarkMask) bool {
	return h.Link == link && cmp.Or(h.Mask, mask) == mask
}

// mark is what the sockets have.
func (h Held) mark(mask routing.MarkMask) routing.Mark { return cmp.Or(h.Mask, mask).Bound(h.Number) }

// Name is what status and reasons call the binding.
func (h Held) Name() string { return "sockets bound to " + h.Link }

// Facts are what [Resolve] needs to know.
type Facts struct {
	Entries []Entry
	// Users are the numbers of the users that entries name; those that do not exist are missing.
	Users map[string]uint32
	// Held are the marks that sockets may have, each number once. Those that are missing for
	// entries of this kind are given by [Number].
	Held []Held
	// Lost says that it is not known any more which links the marks of earlier sockets mean: those
	// with a number of the lower half lead nowhere, and new ones have the upper half.
	Lost bool
	// Mask are the bits of the mark that are ours.
	Mask routing.MarkMask
}

// Resolve returns what the planner must bind, in the order in which the first one counts, and
// what became of each entry. The configuration wins over the others, and an earlier entry over a
// later one.
func Resolve(facts Facts) (bindings []routing.Binding, states []State) {
	entries := slices.Clone(facts.Entries)
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Compare(rank(a.Origin), rank(b.Origin)) })
	var taken []config.Bind
	for _, e := range entries {
		s := State{Entry: e}
		b, is := s.resolve(&facts, taken)
		if is {
			bindings = append(bindings, b)
		}
		if s.Refused == "" {
			taken = append(taken, e.Bind)
		}
		states = append(states, s)
	}
	for _, h := range facts.Held {
		if h.Number == 0 || h.Number > cmp.Or(h.Mask, facts.Mask).Last() {
			continue
		}
		name := h.Name()
		if !h.isOf(h.Link, facts.Mask) {
			name += fmt.Sprintf(" before answers.mark_mask was changed (%#x)", h.mark(facts.Mask).Value)
		}
		bindings = append(bindings, routing.Binding{Name: name, Mark: h.mark(facts.Mask), LinkName: h.Link, Strict: true})
	}
	if facts.Lost {
		bindings = append(bindings, routing.Binding{Name: "sockets bound before their marks were lost", Mark: lowerHalf(facts.Mask), Strict: true})
	}
	return bindings, states
}

// lowerHalf are the marks of bound sockets with a number of the lower half.
func lowerHalf(mask routing.MarkMask) routing.Mark {
	bound := uint32(mask) &^ (uint32(mask) >> 1)
	return routing.Mark{Value: bound, Mask: bound | bound>>1}
}

func rank(o Origin) int { return slices.Index([]Origin{Configured, Added, Runtime}, o) }

// resolve says what becomes of an entry, and returns its own binding; that of control groups is
// among the held ones.
func (s *State) resolve(facts *Facts, taken []config.Bind) (b routing.Binding, is bool) {
	if o, meets := s.Meeting(taken); meets {
		s.Refused = fmt.Sprintf("%s is bound to %s already", o.Selector(), o.Link)
		s.Fix = "multihomectl bind remove " + s.Selector().String()
		return b, false
	}
	if err := s.CheckMark(facts.Mask); err != nil {
		s.Refused, s.Fix = err.Error(), "bind another mark, or set another answers.mark_mask"
		return b, false
	}
	b = routing.Binding{
		Name: s.Name(), Mark: s.Bind.Mark, Input: s.Interface, Source: s.Source,
		LinkName: s.Link, Strict: s.Strict, Deny: s.Inbound == config.Deny,
	}
	switch {
	case s.User != "":
		users, numbered := s.Users()
		if !numbered {
			uid, exists := facts.Users[s.User]
			if !exists {
				s.Waits = "there is no user " + s.User
				s.Fix = "create the user, or: multihomectl bind remove " + s.Selector().String()
				if s.Origin == Configured {
					s.Fix = "create the user, or remove its [[bind]] from the configuration"
				}
				return b, false
			}
			users = routing.UIDRange{Set: true, First: uid, Last: uid}
		}
		if err := config.CheckUsers(users); err != nil {
			s.Refused = fmt.Sprintf("user %s: %v", s.User, err)
			return b, false
		}
		b.Users, s.Range = users, users
		if at := slices.IndexFunc(facts.Held, func(h Held) bool { return h.Link == s.Link }); s.DNS && at >= 0 {
			s.Mark = facts.Mask.Bound(facts.Held[at].Number)
		}
		return b, true
	case s.IsCgroup():
		at := slices.IndexFunc(facts.Held, func(h Held) bool { return h.isOf(s.Link, facts.Mask) })
		if at < 0 {
			s.Refused = fmt.Sprintf("a mark tells at most %d links apart", facts.Mask.Last())
			s.Fix = "set more bits in answers.mark_mask"
			return b, false
		}
		s.Mark = facts.Mask.Bound(facts.Held[at].Number)
		return b, false
	default:
		return b, true
	}
}

// Number returns the held marks with one for a link, and false if there is no number left.
func Number(held []Held, link string, lost bool, mask routing.MarkMask) ([]Held, bool) {
	if slices.ContainsFunc(held, func(h Held) bool { return h.isOf(link, mask) }) {
		return held, true
	}
	first := 1
	if lost {
		first = int(mask.Last())/2 + 1
	}
	for n := first; n <= int(mask.Last()); n++ {
		number := uint8(n)
		if !slices.ContainsFunc(held, func(h Held) bool { return h.Number == number && cmp.Or(h.Mask, mask) == mask }) {
			return append(slices.Clone(held), Held{Link: link, Number: number, Mask: mask}), true
		}
	}
	return held, false
}
