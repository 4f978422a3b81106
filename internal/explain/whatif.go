package explain

import (
	"cmp"
	"fmt"
	"maps"
	"math"
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
		at := slices.IndexFunc(out.Interfaces, func(i lookup.Interface) bool { return i.Is(c.Link) || i.Is(escape.Original(c.Link)) })
		if at < 0 {
			names := make([]string, 0, len(out.Interfaces))
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
	defer w.carried(*i)
	addresses := w.Addresses[i.Index]
	delete(w.Addresses, i.Index)
	isOwn := func(a netip.Addr) bool {
		return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	for t, candidates := range w.Tables {
		w.Tables[t] = slices.DeleteFunc(candidates, func(c lookup.Candidate) bool {
			r := c.Route
			// The kernel deletes IPv4 routes with a source address that is gone (fib_sync_down_addr).
			return r.Device == i.Index || r.Family == routing.IPv4 && r.PreferredSource.IsValid() && isOwn(r.PreferredSource) ||
				r.Type == routing.RouteLocal && r.Destination.IsSingleIP() && isOwn(r.Destination.Addr())
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
	text := name + " is down: its addresses and routes are gone"
	if gone := rules - len(w.Rules); gone > 0 {
		text += fmt.Sprintf(", and multihomed has removed its %d rules", gone)
	}
	w.assume("%s", text)
	if w.Notes.By == "" && slices.ContainsFunc(w.Rules, func(r routing.Rule) bool { return r.Protocol == routing.Multihomed }) {
		w.doubt("multihomed did not say which rules are for %s: some of them may be left", name)
	}
}

// carried takes down what needs an interface that is down: VLANs on it, and the bond or bridge of which it was the
// last port that works.
func (w *whatIf) carried(by lookup.Interface) {
	for n := range w.Interfaces {
		if i := &w.Interfaces[n]; i.Up && i.Lower == by.Index {
			w.assume("%s stands on %s", escape.Name(i.Name), escape.Name(by.Name))
			w.down(i)
		}
	}
	works := func(i lookup.Interface) bool { return i.Master == by.Master && i.Up && !i.NoCarrier }
	if by.Master == 0 || slices.ContainsFunc(w.Interfaces, works) {
		return
	}
	for n := range w.Interfaces {
		if i := &w.Interfaces[n]; i.Up && i.Index == by.Master && i.Table == 0 {
			w.assume("%s has no other port that works", escape.Name(i.Name))
			w.down(i)
		}
	}
}

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

// defaults are main's default routes that are not dead, best first, and whether table F has a route.
func (w *whatIf) defaults() (defaults []routing.Route, moved bool) {
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

// link is the escaped name of an interface, and what is known of it.
func (w *whatIf) link(index int) (string, LinkNote) {
	for _, i := range w.Interfaces {
		if i.Index == index {
			name := escape.Name(i.Name)
			return name, w.Notes.Links[name]
		}
	}
	return "", LinkNote{}
}

// isDead reports whether failover takes the uplink of a route for dead.
func (w *whatIf) isDead(r routing.Route) bool {
	name, link := w.link(r.Device)
	return link.Dead[r.Family.String()] && !w.alive[name]
}

// shares reports whether uplinks share unbound traffic: table F leads while main's best default works.
func (w *whatIf) shares() bool {
	defaults, moved := w.defaults()
	return moved && len(defaults) > 0 && !w.isDead(defaults[0])
}

// exits are the defaults of the tables of uplinks that work, one for each, in the order in which failover
// takes them: as the administrator prefers, then as main does, and metered ones last (failing.choose in
// routing/course.go).
func (w *whatIf) exits(defaults []routing.Route) []routing.Route {
	best := map[int]routing.Route{}
	for c := range w.candidates() {
		r := c.Route
		name, link := w.link(r.Device)
		if c.Dead || r.Type != routing.RouteUnicast || !r.IsDefault() || w.Notes.Tables[r.Table] != name || name == "" || link.Role != routing.Uplink.String() ||
			r.Table == w.Notes.FailoverTable || w.isDead(r) || !w.hasSource(r.Device) {
			continue
		}
		if known, has := best[r.Device]; !has || r.Metric < known.Metric {
			best[r.Device] = r
		}
	}
	order := func(r routing.Route) []int {
		metric := math.MaxInt
		if at := slices.IndexFunc(defaults, func(d routing.Route) bool { return d.Device == r.Device }); at >= 0 {
			metric = int(defaults[at].Metric)
		}
		switch _, link := w.link(r.Device); {
		case link.Preferred > 0:
			return []int{0, link.Preferred, r.Device}
		case link.Metered:
			return []int{2, metric, r.Device}
		default:
			return []int{1, metric, r.Device}
		}
	}
	return slices.SortedFunc(maps.Values(best), func(a, b routing.Route) int { return slices.Compare(order(a), order(b)) })
}

// hasSource reports whether an interface has an address that unbound traffic may have.
func (w *whatIf) hasSource(device int) bool {
	return slices.ContainsFunc(w.Addresses[device], func(p netip.Prefix) bool { return p.Addr().IsGlobalUnicast() })
}

// failOver leads unbound traffic as failover would (Planner.decide in routing/course.go).
func (w *whatIf) failOver() {
	f := w.Notes.FailoverTable
	if f == 0 || !slices.ContainsFunc(w.Rules, func(r routing.Rule) bool { return r.Protocol == routing.Multihomed && r.Table == f }) {
		return
	}
	defaults, moved := w.defaults()
	var best []routing.Route
	for _, r := range defaults {
		if r.Metric == defaults[0].Metric && (len(best) == 0 || r.Family == routing.IPv6 || r.Weight > 0 && best[0].Weight > 0) {
			best = append(best, r)
		}
	}
	exits := w.exits(defaults)
	weight := func(r routing.Route) uint16 {
		_, link := w.link(r.Device)
		return uint16(link.Weight)
	}
	isUplink := func(r routing.Route) bool {
		_, link := w.link(r.Device)
		return link.Role == routing.Uplink.String()
	}
	var ways []routing.Route
	dead := slices.ContainsFunc(best, w.isDead)
	shares := len(best) > 0 && !slices.ContainsFunc(best, func(r routing.Route) bool { return weight(r) == 0 })
	if shares {
		for _, r := range exits {
			if r.Weight = weight(r); r.Weight > 0 {
				ways = append(ways, r)
			}
		}
		slices.SortFunc(ways, func(a, b routing.Route) int { return a.Device - b.Device })
	}
	switch {
	case w.shared && !shares && !slices.ContainsFunc(exits, func(r routing.Route) bool { return weight(r) > 0 }):
		return // Which uplinks share is not known here: those that are left go on.
	case len(best) == 0 || !slices.ContainsFunc(best, isUplink):
		ways = nil
	case shares && (len(ways) > 1 || dead && len(ways) > 0):
	case !dead:
		ways = nil
	default:
		// Legs of main's that work carry on.
		ways = slices.DeleteFunc(slices.Clone(exits), func(r routing.Route) bool {
			return !slices.ContainsFunc(best, func(b routing.Route) bool { return b.Device == r.Device })
		})
		if len(ways) == 0 && len(exits) > 0 {
			ways = exits[:1]
		}
	}
	w.lead(f, ways, moved, dead)
}

// lead puts ways into table F.
func (w *whatIf) lead(f routing.TableID, ways []routing.Route, moved, dead bool) {
	devices := func(routes []routing.Route) []int {
		var out []int
		for _, r := range routes {
			if r.Type == routing.RouteUnicast {
				out = append(out, r.Device)
			}
		}
		slices.Sort(out)
		return out
	}
	have := make([]routing.Route, 0, len(w.Tables[f]))
	for _, c := range w.Tables[f] {
		have = append(have, c.Route)
	}
	if slices.Equal(devices(have), devices(ways)) {
		return
	}
	w.Tables[f] = slices.DeleteFunc(w.Tables[f], func(c lookup.Candidate) bool { return c.Route.Type == routing.RouteUnicast })
	names := make([]string, 0, len(ways))
	for _, r := range ways {
		r.Table, r.Metric, r.PreferredSource = f, routing.FirstMetric, netip.Addr{}
		if len(ways) > 1 {
			r.Weight = max(r.Weight, 1)
		} else {
			r.Weight = 0
		}
		w.Tables[f] = append(w.Tables[f], lookup.Candidate{Route: r})
		name, _ := w.link(r.Device)
		names = append(names, name)
	}
	switch {
	case len(ways) > 0:
		w.assume("failover leads unbound traffic to %s", list(names, len(names)))
	case dead:
		w.assume("no other uplink works, so failover leaves unbound traffic to main")
	case moved:
		w.assume("the best default route of main works, so failover leaves unbound traffic to main")
	}
}
