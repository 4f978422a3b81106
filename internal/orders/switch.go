package orders

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"multihomed/allocator"
	"multihomed/internal/config"
	"multihomed/internal/english"
	"multihomed/internal/escape"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/routing"
)

// A Target is a link that is switched: its interface, and its profile if it has one. The zero Target
// is all of multihomed.
type Target struct {
	Name, UUID, Profile string
	// Word is how it was named.
	Word string
}

// All is the target where no link is named.
func (t Target) All() bool { return t.Name == "" && t.UUID == "" }

// String is the target as a sentence begins.
func (t Target) String() string {
	if t.All() {
		return "multihomed"
	}
	return escape.Text(t.Name)
}

// A Profile is the active one of an interface.
type Profile struct{ UUID, Name string }

// Host is what words may name.
type Host struct {
	// Interfaces are those of the kernel, Profiles the active ones by interface.
	Interfaces []string
	Profiles   map[string]Profile
}

// Present are its interfaces but the loopback: nothing of ours concerns that.
func (h Host) Present() []offswitch.Interface {
	out := make([]offswitch.Interface, 0, len(h.Interfaces))
	for _, name := range h.names() {
		out = append(out, offswitch.Interface{Name: name, UUID: h.Profiles[name].UUID})
	}
	return out
}

func (h Host) names() []string {
	out := slices.DeleteFunc(slices.Clone(h.Interfaces), func(name string) bool { return name == routing.Loopback })
	slices.SortFunc(out, status.CompareNames)
	return out
}

// Targets finds the links that words name, among the interfaces and among what is off. An error is
// a [WordError].
func (h Host) Targets(off offswitch.State, words []string) (out []Target, err error) {
	names := h.names()
	for _, word := range words {
		t, found := h.find(word, names, off)
		switch {
		case !found && (word == routing.Loopback || word != "" && h.Profiles[routing.Loopback].UUID == word):
			return nil, wrong("lo is the loopback: multihomed makes no routing for it, so there is nothing to switch")
		case !found:
			return nil, wrong("there is no interface or active profile %q; there are %s", escape.Text(word), escape.Text(strings.Join(names, ", ")))
		}
		if !slices.ContainsFunc(out, func(o Target) bool { return o.Name == t.Name && o.UUID == t.UUID }) {
			out = append(out, t)
		}
	}
	return out, nil
}

func (h Host) find(word string, names []string, off offswitch.State) (Target, bool) {
	if slices.Contains(names, word) {
		return Target{word, h.Profiles[word].UUID, h.Profiles[word].Name, word}, true
	}
	for _, name := range names {
		if p, is := h.Profiles[name]; is && p.UUID != "" && (p.UUID == word || p.Name == word) {
			return Target{name, p.UUID, p.Name, word}, true
		}
	}
	// A link that is off need not exist.
	for _, l := range off.Links {
		if l.Called(word) {
			return Target{l.Interface, l.UUID, l.Profile, word}, true
		}
	}
	return Target{}, false
}

// SwitchOff switches targets off on disk. For its errors see [offswitch.Change].
func SwitchOff(d offswitch.Directories, targets []Target, mark offswitch.Mark) (before, now offswitch.State, err error) {
	before, now, _, err = offswitch.Change(d, func(s *offswitch.State) error {
		for _, t := range targets {
			var err error
			if t.All() {
				err = s.SwitchOff(mark)
			} else {
				err = s.LinkOff(offswitch.Link{UUID: t.UUID, Profile: t.Profile, Interface: t.Name, Mark: mark})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return before, now, err
}

// SwitchOn switches targets on on disk, everything if there are none. For its errors see
// [offswitch.Change].
func SwitchOn(d offswitch.Directories, targets []Target, present []offswitch.Interface) (before, now offswitch.State, err error) {
	before, now, _, err = offswitch.Change(d, func(s *offswitch.State) error {
		if len(targets) == 0 {
			return s.SwitchOn()
		}
		for _, t := range targets {
			if err := s.LinkOn(t.Name, t.UUID); err != nil {
				return err
			}
			// And what is left of a profile that this interface had once.
			s.Forget(func(l offswitch.Link) bool { return l.Called(t.Word) && len(l.On(present)) == 0 })
		}
		return nil
	})
	return before, now, err
}

// SentenceOff says what off did to a target; removed is what went from the kernel, empty for nothing.
func SentenceOff(cfg config.Config, before, now offswitch.State, t Target, removed string) string {
	mark, was := now.Host, before.Host != nil
	undo := "multihomectl on"
	if !t.All() {
		l, _ := now.Link(t.Name, t.UUID)
		_, was = before.Link(t.Name, t.UUID)
		mark, undo = &l.Mark, undo+" "+quote(t.Name)
	}
	text := t.String() + " is switched off"
	if was {
		text += " already, since " + mark.String()
	}
	if removed == "" {
		text += ": there was nothing to remove"
	} else {
		text += ": removed " + removed
		if stay := LeasesStay(cfg); t.All() {
			text += stay
		}
	}
	if !t.All() && now.HostOff() {
		return text + "; all of multihomed is " + now.Why()
	}
	return text + "; to switch it on: " + undo
}

// LeasesStay says that leases are kept, if there are any.
func LeasesStay(cfg config.Config) string {
	leases := filepath.Join(cfg.StateDir, allocator.DefaultName)
	if _, err := os.Stat(leases); err != nil {
		return ""
	}
	return "; the leases stay in " + leases + ": every link gets the same table again"
}

// SentenceOn says what on did.
func SentenceOn(before, now offswitch.State, targets []Target, present []offswitch.Interface) string {
	switch {
	case !before.Any():
		return "nothing was switched off"
	case len(targets) == 0:
		return "multihomed is switched on"
	}
	var on, was []string
	for _, t := range targets {
		removed := slices.ContainsFunc(before.Links, func(l offswitch.Link) bool {
			return (l.Called(t.Word) || l.Interface == t.Name || l.UUID != "" && l.UUID == t.UUID) && !slices.Contains(now.Links, l)
		})
		if removed {
			on = append(on, t.String())
			continue
		}
		text := "nothing of " + t.String() + " was switched off"
		elsewhere := slices.IndexFunc(now.Links, func(l offswitch.Link) bool { return l.Called(t.Word) && len(l.On(present)) > 0 })
		if elsewhere >= 0 {
			name := now.Links[elsewhere].On(present)[0]
			text += fmt.Sprintf(", but the profile that it had is, now on %s (to switch that on: multihomectl on %s)", escape.Text(name), quote(name))
		}
		was = append(was, text)
	}
	if len(on) > 0 {
		verb := " is switched on"
		if len(on) > 1 {
			verb = " are switched on"
		}
		was = slices.Insert(was, 0, strings.Join(on, ", ")+verb)
	}
	return strings.Join(was, "; ")
}

// LinksRouted says of how many links the routing is active. Each link of the host is tried with its
// name and the UUID of its profile; no targets mean all.
func LinksRouted(targets []Target, links []offswitch.Interface) string {
	n := 0
	for _, l := range links {
		is := func(t Target) bool { return t.Name == l.Name || t.UUID != "" && t.UUID == l.UUID }
		if len(targets) == 0 || slices.ContainsFunc(targets, is) {
			n++
		}
	}
	switch n {
	case 1:
		return "1 link with its routing"
	case 0:
		return "no link to route at present"
	default:
		return english.Count(n, "link") + " with their routing"
	}
}
