package routing

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// A layer is a table that a rule of somebody else reads for every packet behind the
// ladder, and what the rule suppresses.
type layer struct {
	table TableID
	// suppress is suppress_prefixlength, -1 without one; group suppress_ifgroup.
	suppress int
	group    Optional
	// withoutUs is where the rule would stand without us.
	withoutUs Priority
}

func layerOf(o ForeignRule) layer {
	out := layer{table: o.Rule.Table, suppress: -1, group: o.Rule.SuppressGroup, withoutUs: o.withoutUs()}
	if o.Rule.SuppressPrefixLength.Set {
		out.suppress = int(o.Rule.SuppressPrefixLength.Value)
	}
	return out
}

// isLayer reports whether a rule behind the ladder has a say in the tables of links: main
// among others, where it is read early.
func (r Rule) isLayer() bool {
	return r.Action == ActionLookup && !r.Selects() && !r.L3MDev && (r.leadsElsewhere() || r.Table == TableMain)
}

// orderLayers puts layers in the order in which they would be asked without us, and leaves
// out what comes behind a rule that reads main as the kernel's own does.
func orderLayers(layers []layer) []layer {
	slices.SortStableFunc(layers, func(a, b layer) int { return cmp.Compare(a.withoutUs, b.withoutUs) })
	for i, l := range layers {
		if l.table == TableMain && l.suppress < 0 && !l.group.Set {
			layers = layers[:i]
			break
		}
	}
	for len(layers) > 0 && layers[len(layers)-1].table == TableMain {
		layers = layers[:len(layers)-1] // main comes next anyway
	}
	for i := range layers {
		layers[i].withoutUs = 0 // a number alone changes nothing
	}
	return layers
}

// An overlay is what tables of others have through a link before main is asked. The order
// of rules goes before the length of prefixes: a default of such a table hides whatever
// main has.
type overlay struct {
	// routes are those that count.
	routes []Route
	// hidden are the destinations around which main is not asked, with the longest prefix
	// for which that is so: routes of main that are longer may have been asked before.
	hidden map[netip.Prefix]int
	// open are destinations inside of hidden ones that a table throws: whoever comes next
	// is asked.
	open map[netip.Prefix]struct{}
	// lengths are those of hidden and open.
	lengths map[int]struct{}
}

// overlayOf puts the layers together for one family of a link.
func overlayOf(l *Link, f Family, layers []layer) overlay {
	var o overlay
	if len(l.Others) == 0 {
		return o
	}
	mainFrom := math.MaxInt // routes of main that are longer than this come first
	for _, y := range layers {
		if y.group.Set && y.group.Value == l.Group {
			continue
		}
		if y.table == TableMain {
			mainFrom = min(mainFrom, y.suppress)
			continue
		}
		o.ask(y.of(l, f), l, mainFrom)
	}
	if len(o.open) > 0 {
		// Main is the last to be asked for what nobody has answered. What it has inside is
		// copied in any case.
		main := slices.DeleteFunc(slices.Clone(l.Routes), func(r Route) bool {
			return r.Family != f || r.Type != RouteUnicast || r.Protocol == Multihomed || r.Source.IsValid() || r.TOS != 0
		})
		for to := range o.open {
			o.answer(main, to)
		}
		slices.SortStableFunc(o.routes, compareFacts)
	}
	return o
}

// of returns what a layer has to say about a link.
func (y layer) of(l *Link, f Family) []Route {
	var out []Route
	for _, r := range l.Others {
		if r.Family == f && r.Table == y.table && (r.Destination.Bits() > y.suppress || r.Type == RouteThrow) && !r.Source.IsValid() && r.TOS == 0 {
			out = append(out, r)
		}
	}
	return out
}

// ask takes the answers of one table, which is asked for what no table before it has.
func (o *overlay) ask(routes []Route, l *Link, mainFrom int) {
	before := len(o.routes)
	first := func(to netip.Prefix) bool { return l.asksFirst(to, mainFrom) }
	for _, r := range routes {
		if r.Type == RouteUnicast && !o.covers(r.Destination) && !first(r.Destination) {
			o.add(r, r.Destination)
		}
	}
	var thrown []netip.Prefix
	for _, r := range routes {
		if r.Type == RouteThrow && !o.covers(r.Destination) {
			thrown = append(thrown, r.Destination)
		}
	}
	o.fill(routes, mainFrom, first)
	for _, r := range o.routes[before:] {
		o.hide(r.Destination, mainFrom)
	}
	for _, to := range thrown {
		if _, exactly := o.hidden[to]; exactly || !o.covers(to) {
			continue
		}
		if o.open == nil {
			o.open = map[netip.Prefix]struct{}{}
		}
		o.open[to], o.lengths[to.Bits()] = struct{}{}, struct{}{}
	}
}

// fill answers for destinations that are open.
func (o *overlay) fill(routes []Route, mainFrom int, first func(netip.Prefix) bool) {
	for _, to := range slices.Collect(maps.Keys(o.open)) {
		if !first(to) && o.answer(routes, to) {
			o.hide(to, mainFrom)
		}
	}
}

// answer takes the longest route around a destination, and reports whether there is one.
func (o *overlay) answer(routes []Route, to netip.Prefix) bool {
	longest, answered := -1, false
	for i := range routes {
		if around(routes[i].Destination, to) {
			longest = max(longest, routes[i].Destination.Bits())
		}
	}
	for _, r := range routes {
		if r.Type == RouteUnicast && r.Destination.Bits() == longest && around(r.Destination, to) {
			answered = true
			if r.Destination != to {
				o.add(r, to)
			}
		}
	}
	return answered
}

func (o *overlay) add(r Route, to netip.Prefix) {
	r.Table, r.Destination = TableMain, to
	o.routes = append(o.routes, r)
}

func (o *overlay) hide(to netip.Prefix, mainFrom int) {
	delete(o.open, to)
	if _, known := o.hidden[to]; known {
		return
	}
	if o.hidden == nil {
		o.hidden, o.lengths = map[netip.Prefix]int{}, map[int]struct{}{}
	}
	o.hidden[to], o.lengths[to.Bits()] = mainFrom, struct{}{}
}

// asksFirst reports whether main has, in its structure, a route around a destination that
// a rule reads before: one that is longer than the rule suppresses.
func (l *Link) asksFirst(to netip.Prefix, mainFrom int) bool {
	return mainFrom != math.MaxInt && slices.ContainsFunc(l.Routes, func(r Route) bool {
		return r.Type == RouteUnicast && r.Protocol != Multihomed && r.Destination.Bits() > mainFrom && around(r.Destination, to)
	})
}

func around(p, inner netip.Prefix) bool {
	return p.Bits() <= inner.Bits() && p.Addr().Is4() == inner.Addr().Is4() && p.Contains(inner.Addr())
}

// covers reports whether a table of others has a route around a destination.
func (o *overlay) covers(to netip.Prefix) bool {
	return o.any(to, func(int) bool { return true })
}

// hides reports whether a table of others is asked before main for a destination of main,
// and has a route around it.
func (o *overlay) hides(to netip.Prefix) bool {
	return o.any(to, func(longest int) bool { return to.Bits() <= longest })
}

func (o *overlay) any(to netip.Prefix, match func(longest int) bool) bool {
	at, found := -1, false
	for bits := range o.lengths {
		if bits > to.Bits() || bits < at {
			continue
		}
		p := netip.PrefixFrom(to.Addr(), bits).Masked()
		if longest, is := o.hidden[p]; is {
			at, found = bits, match(longest)
		} else if contains(o.open, p) {
			at, found = bits, false
		}
	}
	return found
}

// hidesRoute reports whether a route of main is not the link's while the overlay stands.
// What is on the link stays, unless a table of others says how to get there.
func (o *overlay) hidesRoute(r *Route) bool {
	if len(o.hidden) == 0 || !o.hides(r.Destination) {
		return false
	}
	_, exactly := o.hidden[r.Destination]
	return exactly || r.Gateway.IsValid() || r.Destination.Bits() == 0
}

// equal reports whether two overlays hide the same.
func (o *overlay) equal(other *overlay) bool {
	return maps.Equal(o.hidden, other.hidden) && maps.Equal(o.open, other.open)
}
