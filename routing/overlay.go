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
	// lengths are those of hidden.
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
		var fresh []netip.Prefix
		for i := range l.Others {
			r := l.Others[i]
			if r.Family != f || r.Table != y.table || r.Destination.Bits() <= y.suppress || r.Type != RouteUnicast || r.Source.IsValid() || r.TOS != 0 {
				continue
			}
			if o.covers(r.Destination) || l.asksFirst(r.Destination, mainFrom) {
				continue
			}
			r.Table = TableMain
			o.routes = append(o.routes, r)
			fresh = append(fresh, r.Destination)
		}
		for _, p := range fresh {
			if _, known := o.hidden[p]; known {
				continue
			}
			if o.hidden == nil {
				o.hidden, o.lengths = map[netip.Prefix]int{}, map[int]struct{}{}
			}
			o.hidden[p], o.lengths[p.Bits()] = mainFrom, struct{}{}
		}
	}
	return o
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
	for bits := range o.lengths {
		if bits > to.Bits() {
			continue
		}
		if longest, is := o.hidden[netip.PrefixFrom(to.Addr(), bits).Masked()]; is && match(longest) {
			return true
		}
	}
	return false
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
func (o *overlay) equal(other *overlay) bool { return maps.Equal(o.hidden, other.hidden) }
