package routing

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"unique"
)

// What main has through a link is of two kinds. Its structure are the default
// routes, the networks on the link and whatever else decides about rules, roles
// and other routes: a handful, kept in Link.Routes and planned as a whole. Its
// paths are the rest, routes with a next hop to one destination each, of which
// there may be a full BGP table. They are kept in few bytes. What a table has of
// one is not kept but planned again whenever it is asked for, so a path that
// changes costs one path.

// structural reports whether a route of main is part of the structure, whatever
// the link is like.
func structural(r *Route) bool {
	return r.Type != RouteUnicast || r.Protocol == Multihomed || !r.Gateway.IsValid() || r.Gateway.Is4In6() || r.Gateway.Zone() != "" ||
		!DestinationOf(*r).plain() || r.Family != FamilyOf(r.Destination.Addr())
}

// plain reports whether a destination can be that of a path.
func (d Destination) plain() bool {
	return !d.From.IsValid() && d.TOS == 0 && d.To.Bits() > 0 && !d.To.Addr().Is4In6()
}

// decisive are the destinations that are part of the structure because of what the
// link is like: its own networks, what its owner knows a route to, and what lies around
// something that a table of others throws.
func decisive(l *Link, keys []Key) map[netip.Prefix]struct{} {
	out := make(map[netip.Prefix]struct{}, len(keys)+len(l.Known))
	for _, k := range keys {
		out[k.Prefix] = struct{}{}
	}
	for i := range l.Known {
		out[l.Known[i].Destination] = struct{}{}
	}
	for i := range l.Others {
		if r := &l.Others[i]; r.Type == RouteThrow {
			for bits := range r.Destination.Bits() + 1 {
				out[netip.PrefixFrom(r.Destination.Addr(), bits).Masked()] = struct{}{}
			}
		}
	}
	return out
}

// compareFacts orders the routes of a link, so that equal facts give equal plans.
func compareFacts(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Family, b.Family), a.Destination.Compare(b.Destination), cmp.Compare(a.Metric, b.Metric),
		a.Source.Compare(b.Source), cmp.Compare(a.TOS, b.TOS), compareNextHops(a, b), cmp.Compare(a.Type, b.Type),
	)
}

// A pathKey is the destination of a path without pointers: IPv4 as IPv6 maps it
// (RFC 4291, section 2.5.5.2). Mapped IPv6 destinations are structure.
type pathKey struct {
	to   [16]byte
	bits uint8
}

// mappedBits is the length of ::ffff:0:0/96.
const mappedBits = 96

func pathKeyOf(p netip.Prefix) pathKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += mappedBits
	}
	return pathKey{to: p.Addr().As16(), bits: uint8(bits)} //nolint:gosec // 0 to 128
}

func (k pathKey) prefix() netip.Prefix {
	if a := netip.AddrFrom16(k.to); !a.Is4In6() {
		return netip.PrefixFrom(a, int(k.bits))
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.to).Unmap(), int(k.bits)-mappedBits)
}

// shorter returns the destination of that length around this one.
func (k pathKey) shorter(bits uint8) pathKey {
	whole := int(bits / 8)
	if rest := bits % 8; rest != 0 {
		k.to[whole] &= ^byte(0) << (8 - rest)
		whole++
	}
	clear(k.to[min(whole, len(k.to)):])
	k.bits = bits
	return k
}

// longer yields the destinations of that length inside this one, none if it is not
// longer.
func (k pathKey) longer(bits uint8) iter.Seq[pathKey] {
	return func(yield func(pathKey) bool) {
		if bits <= k.bits {
			return
		}
		at := pathKey{to: k.to, bits: bits}
		for at.shorter(k.bits) == k && yield(at) {
			if !at.next() {
				return
			}
		}
	}
}

// next goes on to the neighbour of the same length, false behind the last.
func (k *pathKey) next() bool {
	step := byte(1) << (7 - (k.bits-1)%8)
	for i := int(k.bits-1) / 8; i >= 0; i-- {
		if k.to[i] += step; k.to[i] >= step {
			return true
		}
		step = 1
	}
	return false
}

func (k pathKey) family() Family {
	if netip.AddrFrom16(k.to).Is4In6() {
		return IPv4
	}
	return IPv6
}

// A way is one route of a path without its destination. All but the gateway is
// shared: routes of one daemon differ in nothing else.
type way struct {
	gateway [16]byte
	rest    unique.Handle[Route]
}

func wayOf(r Route) way {
	w := way{gateway: r.Gateway.As16()}
	r.Destination, r.Gateway = netip.Prefix{}, netip.Addr{}
	w.rest = unique.Make(r)
	return w
}

func (w way) route(to netip.Prefix) Route {
	r := w.rest.Value()
	r.Destination, r.Gateway = to, netip.AddrFrom16(w.gateway).Unmap()
	return r
}

// A path are the ways to one destination; almost always there is one.
type path struct {
	first way
	more  *[]way
}

func pathOf(routes []Route) path {
	p := path{first: wayOf(routes[0])}
	for _, r := range routes[1:] {
		p.add(r)
	}
	return p
}

func (p *path) add(r Route) {
	if p.more == nil {
		p.more = &[]way{}
	}
	*p.more = append(*p.more, wayOf(r))
}

func (p path) equal(o path) bool {
	return p.first == o.first && slices.Equal(p.others(), o.others())
}

func (p path) others() []way {
	if p.more == nil {
		return nil
	}
	return *p.more
}

// routes appends the routes of main.
func (p path) routes(out []Route, to netip.Prefix) []Route {
	out = append(out, p.first.route(to))
	for _, w := range p.others() {
		out = append(out, w.route(to))
	}
	return out
}

// sourced reports whether a way names the source of unbound traffic, which is
// copied if the link has it.
func (p path) sourced() bool {
	names := func(w way) bool { return w.rest.Value().PreferredSource.IsValid() }
	return names(p.first) || slices.ContainsFunc(p.others(), names)
}

// paths are those of one link.
type paths struct {
	by map[pathKey]path
	// sourced counts those that name a source.
	sourced int
}

func newPaths() *paths { return &paths{by: map[pathKey]path{}} }

// set puts a path in place of another one; one without ways goes.
func (ps *paths) set(k pathKey, routes []Route) {
	if old, was := ps.by[k]; was && old.sourced() {
		ps.sourced--
	}
	if len(routes) == 0 {
		delete(ps.by, k)
		return
	}
	p := pathOf(routes)
	ps.by[k] = p
	if p.sourced() {
		ps.sourced++
	}
}

func (ps *paths) equal(o *paths) bool { return maps.EqualFunc(ps.by, o.by, path.equal) }

// split sorts the routes of a link into its structure and its paths.
func split(l *Link, keys []Key) ([]Route, *paths) {
	special := decisive(l, keys)
	fixed := map[Destination]struct{}{}
	for i := range l.Routes {
		r := &l.Routes[i]
		if _, is := special[r.Destination]; is || structural(r) {
			fixed[DestinationOf(*r)] = struct{}{}
		}
	}
	ps := newPaths()
	var structure []Route
	for _, r := range l.Routes {
		if _, is := fixed[DestinationOf(r)]; is {
			structure = append(structure, r)
			continue
		}
		k := pathKeyOf(r.Destination)
		if p, known := ps.by[k]; known {
			p.add(r)
			ps.by[k] = p
		} else {
			ps.by[k] = pathOf([]Route{r})
		}
	}
	for _, p := range ps.by {
		if p.sourced() {
			ps.sourced++
		}
	}
	slices.SortFunc(structure, compareFacts)
	return structure, ps
}

// A copier plans what one table has of the paths of its link.
type copier struct {
	link     *Link
	key      Key
	table    TableID
	keys     []Key
	source   netip.Addr
	network  string
	repeated repetition
	// others counts by length, as in a pathKey, the paths that say something else
	// than the default of the table, repeats those of daemons that say the same.
	others, repeats map[uint8]int
	// hidden is what tables of others have in front of main.
	hidden overlay
}

// same reports whether both plan the same of the same paths.
func (c *copier) same(o *copier) bool {
	return c.key == o.key && c.table == o.table && c.source == o.source && c.link.Index == o.link.Index &&
		slices.Equal(c.keys, o.keys) && c.repeated.equal(&o.repeated) && c.hidden.equal(&o.hidden)
}

// of reports whether a path is of the table's family.
func (c *copier) of(k pathKey) bool { return k.family() == c.key.Family }

// note counts a path that comes, or goes with -1.
func (c *copier) note(k pathKey, p path, by int) {
	if !c.repeated.enabled {
		return
	}
	switch {
	case c.other(k, p):
		count(&c.others, k.bits, by)
	case c.repetitive(k, p):
		count(&c.repeats, k.bits, by)
	}
}

func count(m *map[uint8]int, bits uint8, by int) {
	if *m == nil {
		*m = map[uint8]int{}
	}
	if (*m)[bits] += by; (*m)[bits] == 0 {
		delete(*m, bits)
	}
}

// recount counts all paths.
func (c *copier) recount(ps *paths) {
	c.others, c.repeats = nil, nil
	if !c.repeated.enabled {
		return
	}
	for k, p := range ps.by {
		if c.of(k) {
			c.note(k, p, 1)
		}
	}
}

// chosen are the ways of a path that belong to the table's network.
func (c *copier) chosen(k pathKey, p path) ([]Route, Decision) {
	return belonging(p.routes(make([]Route, 0, 1+len(p.others())), k.prefix()), c.keys, c.key)
}

// other reports whether a path says something else than the default of the table.
func (c *copier) other(k pathKey, p path) bool {
	if p.more == nil {
		return !c.repeated.sameWay(p.first)
	}
	ways, _ := c.chosen(k, p)
	return !c.repeated.same(ways)
}

// repetitive reports whether a path says only what the default says.
func (c *copier) repetitive(k pathKey, p path) bool {
	if !c.repeated.enabled {
		return false
	}
	if p.more == nil {
		return c.repeated.repeatsWay(p.first)
	}
	ways, _ := c.chosen(k, p)
	return c.repeated.repeats(ways)
}

// covered reports whether something around a destination says something else than
// the default.
func (c *copier) covered(ps *paths, k pathKey) bool {
	if (len(c.repeated.lengths) > 0 || c.repeated.thrown != nil) && c.repeated.covered(k.prefix()) {
		return true
	}
	for bits := range c.others {
		if bits <= k.bits {
			around := k.shorter(bits)
			if p, has := ps.by[around]; has && c.of(around) && c.other(around, p) {
				return true
			}
		}
	}
	return false
}

// routes appends what the table has of a path.
func (c *copier) routes(out []PlannedRoute, ps *paths, k pathKey, p path) []PlannedRoute {
	if !c.of(k) || len(c.hidden.hidden) > 0 && c.hidden.hides(k.prefix()) || c.repetitive(k, p) && !c.covered(ps, k) {
		return out
	}
	if p.more == nil {
		r, why := p.first.route(k.prefix()), Copied
		if !c.key.Prefix.Contains(r.Gateway) && inAny(c.keys, r.Gateway) {
			why = CopiedElsewhere
		}
		r.Metric, r.Weight = FirstMetric, 0
		return append(out, c.planned(r, why))
	}
	ways, why := c.chosen(k, p)
	for _, r := range ranked(ways) {
		out = append(out, c.planned(r, why))
	}
	return out
}

func (c *copier) planned(r Route, why Decision) PlannedRoute {
	return PlannedRoute{
		Route:  copyRoute(r, *c.link, c.key, c.table, c.source),
		Reason: Reason{Decision: why, Link: c.link.Name, Prefix: c.network},
	}
}

// routesOf appends what all tables of a link have of a path.
func (plan *LinkPlan) routesOf(out []PlannedRoute, k pathKey, p path) []PlannedRoute {
	for _, c := range plan.copiers {
		out = c.routes(out, plan.paths, k, p)
	}
	return out
}

// routesTo appends what all tables of a link have of the path to a destination.
func (plan *LinkPlan) routesTo(out []PlannedRoute, k pathKey) []PlannedRoute {
	if plan.paths == nil {
		return out
	}
	if p, has := plan.paths.by[k]; has {
		return plan.routesOf(out, k, p)
	}
	return out
}

// pathTo returns the path to a destination.
func (plan *LinkPlan) pathTo(to netip.Prefix) (path, bool) {
	if d := (Destination{To: to}); plan.paths == nil || !d.plain() {
		return path{}, false
	}
	p, has := plan.paths.by[pathKeyOf(to)]
	return p, has
}

// AllRoutes yields all routes that the link needs: Routes, and what its tables have
// of paths. It must be read before the planner is given anything else.
func (plan *LinkPlan) AllRoutes() iter.Seq[PlannedRoute] {
	return func(yield func(PlannedRoute) bool) {
		for _, r := range plan.Routes {
			if !yield(r) {
				return
			}
		}
		plan.pathRoutes()(yield)
	}
}

func (plan *LinkPlan) pathRoutes() iter.Seq[PlannedRoute] {
	return func(yield func(PlannedRoute) bool) {
		if plan.paths == nil {
			return
		}
		var buffer []PlannedRoute
		for k, p := range plan.paths.by {
			buffer = plan.routesOf(buffer[:0], k, p)
			for _, r := range buffer {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// PathRoutes returns what the tables of the link have of its paths, in order, or nothing
// where there are more paths than that: a full BGP table is not gone through to show it. It
// must be called before the planner is given anything else.
func (plan *LinkPlan) PathRoutes(most int) []PlannedRoute {
	if plan.paths == nil || len(plan.paths.by) > most {
		return nil
	}
	return slices.SortedFunc(plan.pathRoutes(), func(a, b PlannedRoute) int {
		return cmp.Or(cmp.Compare(a.Route.Table, b.Route.Table), compareFacts(a.Route, b.Route))
	})
}

// MainRoutes yields all routes of main through the link: Link.Routes and paths. It
// must be read before the planner is given anything else.
func (plan *LinkPlan) MainRoutes() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, r := range plan.Link.Routes {
			if !yield(r) {
				return
			}
		}
		if plan.paths == nil {
			return
		}
		var buffer []Route
		for k, p := range plan.paths.by {
			buffer = p.routes(buffer[:0], k.prefix())
			for _, r := range buffer {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// SetPaths takes the routes that main has now to some destinations through a link.
// It costs what there are of these. It returns the destinations that are part of
// the structure of the link, or become it: for them nothing is done, and SetFacts
// must be given the routes of [Planner.Structure].
func (p *Planner) SetPaths(index int, ways map[Destination][]Route) []Destination {
	plan, known := p.links[index]
	if !known {
		return slices.SortedFunc(maps.Keys(ways), Destination.Compare)
	}
	special := decisive(&plan.Link, plan.Keys)
	var refused []Destination
	var structure map[Destination]struct{}
	hadNone := len(plan.paths.by) == 0
	var moved, changed []netip.Prefix
	s := p.shift(plan)
	for d, routes := range ways {
		_, is := special[d.To]
		if is || !d.plain() || slices.ContainsFunc(routes, func(r Route) bool { return structural(&r) }) {
			refused = append(refused, d)
			continue
		}
		k := pathKeyOf(d.To)
		if _, has := plan.paths.by[k]; !has {
			if structure == nil {
				structure = make(map[Destination]struct{}, len(plan.Link.Routes))
				for i := range plan.Link.Routes {
					structure[DestinationOf(plan.Link.Routes[i])] = struct{}{}
				}
			}
			if _, is := structure[d]; is {
				refused = append(refused, d)
				continue
			}
		}
		old, had := plan.paths.by[k]
		s.set(k, routes)
		if now, has := plan.paths.by[k]; had != has || has && old.metric() != now.metric() {
			moved = append(moved, d.To)
		}
		changed = append(changed, d.To)
	}
	s.end()
	p.repathed(index, moved, hadNone)
	p.exceptPaths(index, changed)
	slices.SortFunc(refused, Destination.Compare)
	return refused
}

// Structure returns the routes that SetFacts takes for a link: those it had, with
// the routes of some destinations as they are now.
func (p *Planner) Structure(index int, ways map[Destination][]Route) []Route {
	plan, known := p.links[index]
	if !known {
		return nil
	}
	if len(ways) == 0 {
		return plan.Link.Routes
	}
	var out []Route
	for _, r := range plan.Link.Routes {
		if _, replaced := ways[DestinationOf(r)]; !replaced {
			out = append(out, r)
		}
	}
	for _, routes := range ways {
		out = append(out, routes...)
	}
	return out
}

// A shift changes some paths of a link. What lies in paths that began or ceased to
// say something else than the default may be needed now, or no more.
type shift struct {
	planner *Planner
	plan    *planned
	// turned are those paths, by table.
	turned        []map[pathKey]struct{}
	before, after []PlannedRoute
}

func (p *Planner) shift(plan *planned) *shift {
	return &shift{planner: p, plan: plan, turned: make([]map[pathKey]struct{}, len(plan.copiers))}
}

func (s *shift) set(k pathKey, routes []Route) {
	ps := s.plan.paths
	old, was := ps.by[k]
	if !was && len(routes) == 0 {
		return
	}
	s.before = s.plan.routesTo(s.before[:0], k)
	others := make([]bool, len(s.plan.copiers))
	for i, c := range s.plan.copiers {
		if was && c.of(k) {
			others[i] = c.repeated.enabled && c.other(k, old)
			c.note(k, old, -1)
		}
	}
	ps.set(k, routes)
	now, is := ps.by[k]
	for i, c := range s.plan.copiers {
		if !c.of(k) || !c.repeated.enabled {
			continue
		}
		if is {
			c.note(k, now, 1)
		}
		if others[i] != (is && c.other(k, now)) {
			if s.turned[i] == nil {
				s.turned[i] = map[pathKey]struct{}{}
			}
			s.turned[i][k] = struct{}{}
		}
	}
	s.after = s.plan.routesTo(s.after[:0], k)
	s.planner.touchRoutes(s.before, s.after)
}

// end names the routes of daemons that lie in paths which turned.
func (s *shift) end() {
	for i, c := range s.plan.copiers {
		if len(s.turned[i]) == 0 || len(c.repeats) == 0 {
			continue
		}
		for k := range s.inside(c, s.turned[i]) {
			if p, has := s.plan.paths.by[k]; has && c.of(k) && c.repetitive(k, p) {
				// If it is needed it is as it is where it was needed.
				ways, why := c.chosen(k, p)
				for _, r := range ranked(ways) {
					s.planner.touched.Routes[c.planned(r, why).Route.Key()] = struct{}{}
				}
			}
		}
	}
}

// inside yields the destinations inside others at which a table may have a repetition:
// those that are possible, or, where that is more, those that there are.
func (s *shift) inside(c *copier, turned map[pathKey]struct{}) iter.Seq[pathKey] {
	possible, all := 0, len(s.plan.paths.by)
	lengths := map[uint8]struct{}{}
	for k := range turned {
		lengths[k.bits] = struct{}{}
		for bits := range c.repeats {
			if bits > k.bits {
				possible = min(possible+1<<min(bits-k.bits, 30), all)
			}
		}
	}
	return func(yield func(pathKey) bool) {
		if possible < all/2 {
			for k := range turned {
				for bits := range c.repeats {
					for in := range k.longer(bits) {
						if !yield(in) {
							return
						}
					}
				}
			}
			return
		}
		for k := range s.plan.paths.by {
			for bits := range lengths {
				if bits < k.bits && contains(turned, k.shorter(bits)) {
					if !yield(k) {
						return
					}
					break
				}
			}
		}
	}
}

// touchRoutes names what differs between what tables had and have of one path.
func (p *Planner) touchRoutes(before, after []PlannedRoute) {
	for i := range before {
		k := before[i].Route.Key()
		at := slices.IndexFunc(after, func(r PlannedRoute) bool { return r.Route.Key() == k })
		if at < 0 || after[at].Route != before[i].Route {
			p.touched.Routes[k] = struct{}{}
		}
	}
	for i := range after {
		k := after[i].Route.Key()
		if !slices.ContainsFunc(before, func(r PlannedRoute) bool { return r.Route.Key() == k }) {
			p.touched.Routes[k] = struct{}{}
		}
	}
}

// repath names the routes of paths that differ between two plans of a link, either
// of which may be missing.
func (p *Planner) repath(old, now *planned) {
	if old != nil && now != nil && old.paths == now.paths && sameCopiers(old, now) {
		for i, c := range now.copiers {
			c.others, c.repeats = old.copiers[i].others, old.copiers[i].repeats
		}
		return
	}
	if now != nil {
		for _, c := range now.copiers {
			c.recount(now.paths)
		}
	}
	var before, after []PlannedRoute
	if now != nil {
		for k, path := range now.paths.by {
			before = before[:0]
			if old != nil {
				before = old.routesTo(before, k)
			}
			after = now.routesOf(after[:0], k, path)
			p.touchRoutes(before, after)
		}
	}
	if old != nil && (now == nil || old.paths != now.paths) {
		for k, path := range old.paths.by {
			if now != nil {
				if _, stays := now.paths.by[k]; stays {
					continue
				}
			}
			before = old.routesOf(before[:0], k, path)
			p.touchRoutes(before, nil)
		}
	}
}

// sameCopiers reports whether two plans of a link say the same of the same paths.
func sameCopiers(old, now *planned) bool {
	if !slices.EqualFunc(old.copiers, now.copiers, (*copier).same) {
		return false
	}
	return now.paths.sourced == 0 || slices.Equal(sourcesIn(&old.Link), sourcesIn(&now.Link))
}

// sourcesIn are the addresses of a link that a copied route may name.
func sourcesIn(l *Link) []netip.Addr {
	var out []netip.Addr
	for _, a := range l.Addresses {
		if _, own := KeyOf(*l, a.Prefix.Addr()); own && a.Prefix.Addr().Is4() {
			out = append(out, a.Prefix.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// pathRoute is the route of a key that a path gives a table, and the link whose it
// is: the newest, as for all routes.
func (p *Planner) pathRoute(k RouteKey) (r PlannedRoute, index int, found bool) {
	owners := p.byTable[k.Table]
	if d := (Destination{To: k.Destination, From: k.Source, TOS: k.TOS}); len(owners) == 0 || !d.plain() {
		return PlannedRoute{}, 0, false
	}
	at := pathKeyOf(k.Destination)
	var buffer [2]PlannedRoute
	for _, index := range slices.Backward(owners) {
		for _, r := range p.links[index].routesTo(buffer[:0], at) {
			if r.Route.Key() == k {
				return r, index, true
			}
		}
	}
	return PlannedRoute{}, 0, false
}

// listTables keeps which links have which tables.
func (p *Planner) listTables(index int, old, now *planned) {
	if old != nil {
		for _, c := range old.copiers {
			p.byTable[c.table] = slices.DeleteFunc(p.byTable[c.table], func(i int) bool { return i == index })
			if len(p.byTable[c.table]) == 0 {
				delete(p.byTable, c.table)
			}
		}
	}
	if now != nil {
		for _, c := range now.copiers {
			at, _ := slices.BinarySearch(p.byTable[c.table], index)
			p.byTable[c.table] = slices.Insert(p.byTable[c.table], at, index)
		}
	}
}
