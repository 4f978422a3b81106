package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/escape"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Change is something that is assumed to happen to a link.
type Change struct {
	// Up says that the link works, else that it is down.
	Up bool
	// Link is the name of its interface, not escaped.
	Link string
}

// ParseChange reads "down:LINK" or "up:LINK".
func ParseChange(text string) (Change, error) {
	verb, link, has := strings.Cut(text, ":")
	if !has || link == "" || verb != "up" && verb != "down" {
		return Change{}, fmt.Errorf("%q is no change: write down:LINK or up:LINK, with the name of an interface", escape.Text(text))
	}
	return Change{Up: verb == "up", Link: link}, nil
}

func (c Change) String() string {
	if c.Up {
		return "up:" + escape.Name(c.Link)
	}
	return "down:" + escape.Name(c.Link)
}

// WhatIf returns the facts as they would be after some changes, for the family of the rules.
// Their explanation says what was assumed, and is not complete where it could not be known. The kernel
// cannot be asked about them.
func (f *Facts) WhatIf(changes []Change) (*Facts, error) {
	out := *f
	out.Answers = nil
	out.Interfaces, out.Rules, out.Addresses = slices.Clone(f.Interfaces), slices.Clone(f.Rules), maps.Clone(f.Addresses)
	out.Tables = make(map[routing.TableID][]lookup.Candidate, len(f.Tables))
	for t, candidates := range f.Tables {
		out.Tables[t] = slices.Clone(candidates)
	}
	w := &whatIf{Facts: &out, alive: map[string]bool{}}
	w.shared = w.shares()
	for _, c := range changes {
		at := slices.IndexFunc(out.Interfaces, func(i lookup.Interface) bool { return i.Name == c.Link || i.Name == escape.Original(c.Link) })
		if at < 0 {
			var names []string
			for _, i := range out.Interfaces {
				names = append(names, escape.Name(i.Name))
			}
			return nil, fmt.Errorf("there is no interface %s; there are %s", escape.Name(c.Link), list(names, 20))
		}
		c.Link = out.Interfaces[at].Name
		out.whatIf = append(out.whatIf, c.String())
		if c.Up {
			w.up(&out.Interfaces[at])
		} else {
			w.down(&out.Interfaces[at])
		}
	}
	w.failOver()
	return &out, nil
}

type whatIf struct {
	*Facts
	// alive are links that failover calls dead and that are assumed to work.
	alive map[string]bool
	// shared says that uplinks shared unbound traffic before the changes.
	shared bool
}

func (w *whatIf) assume(format string, args ...any) {
	w.assumptions = append(w.assumptions, fmt.Sprintf(format, args...))
}

func (w *whatIf) doubt(format string, args ...any) {
	w.unknown = append(w.unknown, fmt.Sprintf(format, args...))
}

// down takes away what the kernel, NetworkManager and multihomed take away.
func (w *whatIf) down(i *lookup.Interface) {
	name := escape.Name(i.Name)
	i.Up, i.NoCarrier = false, false
	addresses := w.Addresses[i.Index]
	delete(w.Addresses, i.Index)
	isOwn := func(a netip.Addr) bool {
		return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	gone := 0
	for t, candidates := range w.Tables {
		w.Tables[t] = slices.DeleteFunc(candidates, func(c lookup.Candidate) bool {
			r := c.Route
			// The kernel deletes IPv4 routes with a source address that is gone (fib_sync_down_addr).
			is := r.Device == i.Index || r.Family == routing.IPv4 && r.PreferredSource.IsValid() && isOwn(r.PreferredSource) ||
				r.Type == typeLocal && r.Destination.IsSingleIP() && isOwn(r.Destination.Addr())
			if is {
				gone++
			}
			return is
		})
		for n := range w.Tables[t] {
			if r := &w.Tables[t][n].Route; r.PreferredSource.IsValid() && isOwn(r.PreferredSource) {
				r.PreferredSource = netip.Addr{}
			}
		}
	}
	rules := len(w.Rules)
	w.Rules = slices.DeleteFunc(w.Rules, func(r routing.Rule) bool {
		if r.Protocol != routing.Multihomed {
			return false
		}
		if note, known := w.Notes.Rules[NoteKey(r)]; known && note.Link != "" {
			return note.Link == name
		}
		return r.OIF == i.Name || r.From.IsValid() && r.From.IsSingleIP() && isOwn(r.From.Addr()) || w.Notes.Tables[r.Table] == name && r.Table != 0
	})
	text := fmt.Sprintf("%s is down: its addresses and %d of the routes that were read are gone", name, gone)
	if gone := rules - len(w.Rules); gone > 0 {
		text += fmt.Sprintf(", and multihomed has removed its %d rules", gone)
	}
	w.assume("%s", text)
	if w.Notes.By == "" && slices.ContainsFunc(w.Rules, func(r routing.Rule) bool { return r.Protocol == routing.Multihomed }) {
		w.doubt("multihomed did not say which rules are for %s: some of them may be left", name)
	}
}

const typeLocal routing.RouteType = 2

// up makes dead routes count again.
func (w *whatIf) up(i *lookup.Interface) {
	name := escape.Name(i.Name)
	wasUp := i.Up && !i.NoCarrier
	i.Up, i.NoCarrier = true, false
	revived, has := 0, false
	for _, candidates := range w.Tables {
		for n := range candidates {
			c := &candidates[n]
			if c.Route.Device == i.Index && c.Route.Type == routing.RouteUnicast {
				has = true
				if c.Dead {
					c.Dead = false
					revived++
				}
			}
		}
	}
	dead := len(w.Notes.Links[name].Dead) > 0
	if dead {
		w.alive[name] = true
	}
	switch {
	case !wasUp && !has:
		w.doubt("%s is down and has no routes: what it would get is not known", name)
	case revived > 0:
		w.assume("%s works: %d routes that are dead now count again", name, revived)
	case dead:
		w.assume("%s works: failover no longer takes it for dead", name)
	default:
		w.assume("%s works already: nothing changes", name)
	}
}

// unboundWays are main's default routes, best first, and whether table F has a route.
func (w *whatIf) unboundWays() (defaults []routing.Route, moved bool) {
	for c := range w.candidates() {
		r := c.Route
		if c.Dead || r.Type != routing.RouteUnicast {
			continue
		}
		if r.Table == routing.TableMain && r.IsDefault() {
			defaults = append(defaults, r)
		}
		moved = moved || r.Table == w.Notes.FailoverTable
	}
	slices.SortStableFunc(defaults, func(a, b routing.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	return defaults, moved
}

// isDead reports whether failover takes the uplink of a route for dead.
func (w *whatIf) isDead(r routing.Route) bool {
	for _, i := range w.Interfaces {
		if name := escape.Name(i.Name); i.Index == r.Device {
			return w.Notes.Links[name].Dead[r.Family.String()] && !w.alive[name]
		}
	}
	return false
}

// shares reports whether uplinks share unbound traffic: table F leads while main's best default works.
func (w *whatIf) shares() bool {
	defaults, moved := w.unboundWays()
	return moved && len(defaults) > 0 && !w.isDead(defaults[0])
}

// failOver moves unbound traffic as failover would: table F is empty while main's best default
// works, unless uplinks share the traffic.
func (w *whatIf) failOver() {
	f := w.Notes.FailoverTable
	if f == 0 || w.shared || !slices.ContainsFunc(w.Rules, func(r routing.Rule) bool { return r.Protocol == routing.Multihomed && r.Table == f }) {
		return
	}
	defaults, moved := w.unboundWays()
	switch {
	case len(defaults) == 0:
	case !w.isDead(defaults[0]):
		if moved {
			w.Tables[f] = slices.DeleteFunc(w.Tables[f], func(c lookup.Candidate) bool { return c.Route.Type == routing.RouteUnicast })
			w.assume("the best default route of main works, so failover leaves unbound traffic to main")
		}
	case !moved && slices.ContainsFunc(defaults, func(r routing.Route) bool { return !w.isDead(r) }):
		w.doubt("failover takes the uplink of main's best default route for dead and would move unbound traffic to another uplink; which one is not known here")
	}
}
