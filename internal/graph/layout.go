package graph

import (
	"cmp"
	"math"
	"slices"
)

// Measures, in pixels. A column of text is as wide as one of DejaVu Sans Mono, the widest font of
// the list in the style sheet: 0.602 of the size of the font.
const (
	fontSize    = 12.0
	charWidth   = fontSize * 0.602
	lineHeight  = 16.0
	padding     = 8.0
	bar         = 4.0 // At the left of boxes of ours.
	ladderGap   = 10.0
	boxGap      = 14.0
	compactGap  = 8.0
	margin      = 20.0
	headHeight  = 30.0
	lane        = 12.0 // Between two goto edges.
	port        = 9.0  // Between two ends of edges at a box.
	smallestGap = 110.0
	widestGap   = 230.0
)

// A hub is where the edges of boxes that lead to the same tables come together.
type hub struct {
	x, y     float64
	from, to []int
}

// A curve is an edge with its place.
type curve struct {
	x1, y1, x2, y2 float64
	edge           edge
	// head says that it ends with an arrow.
	head bool
}

// A drawing is a panel with its places.
type drawing struct {
	*panel
	top, w, h float64
	// heads are the places of the titles of columns, left ends.
	heads                  [3]float64
	gotos, lookups, routes []curve
	hubs                   []*hub
	lanes                  []float64
}

// layout gives boxes and edges their places; the panel begins at the top.
func layout(p *panel, top float64) *drawing {
	d := &drawing{panel: p, top: top}
	p.order()
	for _, column := range [][]*node{p.rules, p.tables, p.devices} {
		measure(column)
	}
	gutter := d.gutter()
	gaps := [...]float64{gapFor(len(p.lookups)), gapFor(len(p.routes))}
	x := margin + gutter
	for i, column := range [][]*node{p.rules, p.tables, p.devices} {
		d.heads[i] = x
		w := 0.0
		for _, n := range column {
			n.box.x = x
			w = max(w, n.box.w)
		}
		for _, n := range column {
			n.box.w = w
		}
		x += w
		if i < len(gaps) {
			x += gaps[i]
		}
	}
	d.w = x + margin
	y := top + headHeight
	stack(p.rules, y, ladderGap)
	gap := boxGap
	if len(p.tables) > many {
		gap = compactGap
	}
	bottom := max(end(p.rules), y+tall(p.tables, gap), y+tall(p.devices, gap))
	place(p.tables, wishes(p.tables, p.lookups, p.rules), y, bottom, gap)
	place(p.devices, wishes(p.devices, p.routes, p.tables), y, bottom, gap)
	d.h = bottom + margin - top
	d.curves(gaps[0])
	return d
}

func gapFor(edges int) float64 { return min(smallestGap+5*float64(edges), widestGap) }

func measure(column []*node) {
	for _, n := range column {
		widest := 18
		for _, l := range n.lines {
			widest = max(widest, columns(l.text))
		}
		n.box.w = math.Ceil(float64(widest)*charWidth) + 2*padding + bar
		n.box.h = float64(len(n.lines))*lineHeight + padding + 2
	}
}

func stack(column []*node, y, gap float64) {
	for _, n := range column {
		n.box.y = y
		y += n.box.h + gap
	}
}

func tall(column []*node, gap float64) float64 {
	h := -gap
	for _, n := range column {
		h += n.box.h + gap
	}
	return max(h, 0)
}

func end(column []*node) float64 {
	if len(column) == 0 {
		return 0
	}
	last := column[len(column)-1].box
	return last.y + last.h
}

func (b box) middle() float64 { return b.y + b.h/2 }

// wishes are where the middle of each box would like to be: in the middle of what leads to it. A
// box to which nothing leads follows the one before it.
func wishes(column []*node, edges []edge, from []*node) []float64 {
	sum, n := make([]float64, len(column)), make([]float64, len(column))
	leads := make([]int, len(from))
	for _, e := range edges {
		leads[e.from]++
	}
	for _, e := range edges {
		own, other := e.to, e.from
		// What leads to many places pulls little at each.
		weight := 4 / float64(leads[other])
		if e.minor {
			weight /= 4
		}
		sum[own] += weight * from[other].box.middle()
		n[own] += weight
	}
	last := 0.0
	out := make([]float64, len(column))
	for i := range column {
		if n[i] > 0 {
			last = sum[i] / n[i]
		}
		out[i] = last
	}
	return out
}

// place puts boxes as near to their wishes as their order and the space allow: it pools those
// that would overlap (isotonic regression by pool adjacent violators).
func place(column []*node, wish []float64, top, bottom, gap float64) {
	type pool struct {
		first, n int
		// y is that of the first box, sum that of the wishes for it.
		y, sum, h float64
	}
	var pools []pool
	for i, n := range column {
		want := wish[i] - n.box.h/2
		p := pool{first: i, n: 1, y: want, sum: want, h: n.box.h + gap}
		for len(pools) > 0 && pools[len(pools)-1].y+pools[len(pools)-1].h > p.y {
			before := pools[len(pools)-1]
			pools = pools[:len(pools)-1]
			p = pool{first: before.first, n: before.n + p.n, sum: before.sum + p.sum - float64(p.n)*before.h, h: before.h + p.h}
			p.y = p.sum / float64(p.n)
		}
		pools = append(pools, p)
	}
	for _, p := range pools {
		y := p.y
		for _, n := range column[p.first : p.first+p.n] {
			n.box.y = y
			y += n.box.h + gap
		}
	}
	// Inside of the space, from both ends.
	y := top
	for _, n := range column {
		n.box.y = max(n.box.y, y)
		y = n.box.y + n.box.h + gap
	}
	y = bottom
	for _, n := range slices.Backward(column) {
		n.box.y = min(n.box.y, y-n.box.h)
		y = n.box.y - gap
	}
}

// order puts the tables and then the devices into an order in which few edges cross. It begins
// with the order in which rules lead to them.
func (p *panel) order() {
	tables := untangle(len(p.rules), len(p.tables), p.lookups)
	p.tables = permuted(p.tables, tables)
	for i := range p.lookups {
		p.lookups[i].to = tables[p.lookups[i].to]
	}
	for i := range p.routes {
		p.routes[i].from = tables[p.routes[i].from]
	}
	devices := untangle(len(p.tables), len(p.devices), p.routes)
	p.devices = permuted(p.devices, devices)
	for i := range p.routes {
		p.routes[i].to = devices[p.routes[i].to]
	}
}

func permuted(nodes []*node, to []int) []*node {
	out := make([]*node, len(nodes))
	for i, n := range nodes {
		out[to[i]] = n
	}
	return out
}

// untangle returns the new place of each target. It begins with two orders, by the first and by
// the mean of what leads to a target, and lets neighbours change places while that makes crossings
// fewer; the better one wins. What nothing leads to comes last.
func untangle(sources, targets int, edges []edge) []int {
	from := make([][]int, targets)
	for _, e := range edges {
		from[e.to] = append(from[e.to], e.from)
	}
	sum := func(some []int) (n int) {
		for _, f := range some {
			n += f
		}
		return n
	}
	first, mean := make([]float64, targets), make([]float64, targets)
	for t, some := range from {
		slices.Sort(some)
		first[t], mean[t] = float64(sources), float64(sources)
		if len(some) > 0 {
			first[t], mean[t] = float64(some[0]), float64(sum(some))/float64(len(some))
		}
	}
	var best []int
	fewest := 0
	for _, by := range [][]float64{first, mean} {
		at, n := improved(by, from)
		if best == nil || n < fewest {
			best, fewest = at, n
		}
	}
	to := make([]int, targets)
	for place, t := range best {
		to[t] = place
	}
	return to
}

// improved sorts targets, improves their order, and counts the crossings.
func improved(by []float64, from [][]int) (at []int, n int) {
	at = make([]int, len(from))
	for i := range at {
		at[i] = i
	}
	slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(by[a], by[b]) })
	const rounds = 20
	for range rounds {
		better := false
		for i := 0; i+1 < len(at); i++ {
			a, b := from[at[i]], from[at[i+1]]
			if crossings(b, a) < crossings(a, b) {
				at[i], at[i+1] = at[i+1], at[i]
				better = true
			}
		}
		if !better {
			break
		}
	}
	for i, a := range at {
		for _, b := range at[i+1:] {
			n += crossings(from[a], from[b])
		}
	}
	return at, n
}

// crossings counts the edges that cross between two targets of which the first stands higher.
// Both lists are sorted.
func crossings(upper, lower []int) int {
	n, j := 0, 0
	for _, u := range upper {
		for j < len(lower) && lower[j] < u {
			j++
		}
		n += j
	}
	return n
}

// gutter gives each goto edge a lane at the left of the ladder, and returns the width of all.
func (d *drawing) gutter() float64 {
	byLength := make([]int, len(d.panel.gotos))
	for i := range byLength {
		byLength[i] = i
	}
	length := func(i int) int { return d.panel.gotos[i].to - d.panel.gotos[i].from }
	slices.SortStableFunc(byLength, func(a, b int) int { return cmp.Compare(length(a), length(b)) })
	d.lanes = make([]float64, len(d.panel.gotos))
	deepest := 0.0
	var used [][]edge
	for _, i := range byLength {
		e := d.panel.gotos[i]
		n := 0
		for n < len(used) && slices.ContainsFunc(used[n], func(o edge) bool { return o.from <= e.to && e.from <= o.to }) {
			n++
		}
		if n == len(used) {
			used = append(used, nil)
		}
		used[n] = append(used[n], e)
		d.lanes[i] = lane * float64(n+1)
		deepest = max(deepest, d.lanes[i])
	}
	if deepest > 0 {
		deepest += lane
	}
	return deepest
}

// curves gives all edges their places.
func (d *drawing) curves(gap float64) {
	d.jumps()
	d.bundle(gap)
	d.routes = between(d.tables, d.devices, d.panel.routes)
}

// jumps gives the goto edges their places: at each box those that arrive are above those that
// leave, in an order in which they do not cross.
func (d *drawing) jumps() {
	type terminal struct {
		goes   int
		leaves bool
	}
	at := make([][]terminal, len(d.rules))
	for i, e := range d.panel.gotos {
		at[e.from] = append(at[e.from], terminal{i, true})
		at[e.to] = append(at[e.to], terminal{i, false})
		d.gotos = append(d.gotos, curve{x1: d.rules[e.from].box.x, x2: d.rules[e.to].box.x, edge: e, head: true})
	}
	for n, terminals := range at {
		slices.SortStableFunc(terminals, func(a, b terminal) int {
			switch {
			case a.leaves != b.leaves && a.leaves:
				return 1
			case a.leaves != b.leaves:
				return -1
			case a.leaves:
				return cmp.Compare(d.lanes[b.goes], d.lanes[a.goes])
			default:
				return cmp.Compare(d.lanes[a.goes], d.lanes[b.goes])
			}
		})
		for i, y := range spread(d.rules[n].box, len(terminals)) {
			if t := terminals[i]; t.leaves {
				d.gotos[t.goes].y1 = y
			} else {
				d.gotos[t.goes].y2 = y
			}
		}
	}
}

// spread are places along the side of a box, around its middle.
func spread(b box, n int) []float64 {
	step := 0.0
	if n > 1 {
		step = min(port, (b.h-10)/float64(n-1))
	}
	out := make([]float64, n)
	for i := range out {
		out[i] = b.middle() + step*(float64(i)-float64(n-1)/2)
	}
	return out
}

// bundle draws the edges from rules to tables. Boxes that lead to the same several tables share a
// hub, so that their edges do not cross each other.
func (d *drawing) bundle(gap float64) {
	targets := make([][]int, len(d.rules))
	for _, e := range d.panel.lookups {
		targets[e.from] = append(targets[e.from], e.to)
	}
	for _, t := range targets {
		slices.Sort(t)
	}
	const least = 2
	hubOf := make([]*hub, len(d.rules))
	for i, t := range targets {
		if len(t) < least {
			continue
		}
		at := slices.IndexFunc(d.hubs, func(h *hub) bool { return slices.Equal(h.to, t) })
		if at < 0 {
			at = len(d.hubs)
			d.hubs = append(d.hubs, &hub{to: t})
		}
		hubOf[i] = d.hubs[at]
		hubOf[i].from = append(hubOf[i].from, i)
	}
	var direct, joins []edge
	for _, e := range d.panel.lookups {
		if hubOf[e.from] == nil {
			direct = append(direct, e)
		}
	}
	right := 0.0
	if len(d.rules) > 0 {
		right = d.rules[0].box.x + d.rules[0].box.w
	}
	for i, h := range d.hubs {
		// Near to its boxes, where few other edges have left their own height.
		h.x = right + gap*(0.25+0.1*float64(i%3))
		for _, f := range h.from {
			h.y += d.rules[f].box.middle() / float64(len(h.from))
		}
	}
	// The ends at the tables: one for each direct edge and one for each hub.
	leaves := map[int]*hub{}
	for _, h := range d.hubs {
		for _, t := range h.to {
			e := edge{from: -1 - slices.Index(d.hubs, h), to: t, suppressed: true, full: ""}
			for _, o := range d.panel.lookups {
				if o.to == t && slices.Contains(h.from, o.from) {
					e.suppressed = e.suppressed && o.suppressed
					e.mark = max(e.mark, o.mark)
					e.full = join(e.full, o.full)
				}
			}
			joins = append(joins, e)
			leaves[e.from] = h
		}
	}
	all := slices.Concat(direct, joins)
	start := func(e edge) float64 {
		if h, is := leaves[e.from]; is {
			return h.y
		}
		return d.rules[e.from].box.middle()
	}
	ends := endsAt(d.tables, all, func(e edge) int { return e.to }, start)
	d.apart(right, direct, ends)
	for i, e := range all {
		c := curve{x2: d.tables[e.to].box.x, y2: ends[i], edge: e, head: true}
		if h, is := leaves[e.from]; is {
			c.x1, c.y1 = h.x, h.y
		} else {
			c.x1, c.y1 = right, d.rules[e.from].box.middle()
		}
		d.lookups = append(d.lookups, c)
	}
	for i, h := range hubOf {
		if h == nil {
			continue
		}
		e := edge{from: i, suppressed: true}
		for _, o := range d.panel.lookups {
			if o.from == i {
				e.suppressed = e.suppressed && o.suppressed
				e.mark = max(e.mark, o.mark)
				e.full = join(e.full, o.full)
			}
		}
		d.lookups = append(d.lookups, curve{x1: right, y1: d.rules[i].box.middle(), x2: h.x, y2: h.y, edge: e})
	}
}

// apart moves hubs away from edges that pass them: a hub on an edge would look like a part of it.
// The ends of the direct edges come first.
func (d *drawing) apart(right float64, direct []edge, ends []float64) {
	const room, step, furthest = 9.0, 3.0, 10
	for n, h := range d.hubs {
		free := func(y float64) float64 {
			least := math.Inf(1)
			for i, e := range direct {
				box := d.rules[e.from].box
				least = min(least, math.Abs(y-height(curve{x1: right, y1: box.middle(), x2: d.tables[e.to].box.x, y2: ends[i]}, h.x)))
			}
			for _, o := range d.hubs[:n] {
				least = min(least, max(math.Abs(o.y-y), math.Abs(o.x-h.x)))
			}
			return least
		}
		best := h.y
		for i := range furthest {
			for _, y := range []float64{h.y + step*float64(i), h.y - step*float64(i)} {
				if free(best) < room && free(y) > free(best) {
					best = y
				}
			}
		}
		h.y = best
	}
}

// height is where a curve is at a place between its ends.
func height(c curve, x float64) float64 {
	// x(t) is that of a cubic curve with both control points in the middle.
	low, high := 0.0, 1.0
	for range 20 {
		t := (low + high) / 2
		if w := c.x2 - c.x1; c.x1+w*(1.5*t*(1-t)*(1-t)+1.5*t*t*(1-t)+t*t*t) < x {
			low = t
		} else {
			high = t
		}
	}
	return c.y1 + (c.y2-c.y1)*(3*low*low-2*low*low*low)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "\n" + b
}

// between draws edges from the right of boxes to the left of others.
func between(left, right []*node, edges []edge) []curve {
	starts := endsAt(left, edges, func(e edge) int { return e.from }, func(e edge) float64 { return right[e.to].box.middle() })
	ends := endsAt(right, edges, func(e edge) int { return e.to }, func(e edge) float64 { return left[e.from].box.middle() })
	out := make([]curve, len(edges))
	for i, e := range edges {
		from, to := left[e.from].box, right[e.to].box
		out[i] = curve{x1: from.x + from.w, y1: starts[i], x2: to.x, y2: ends[i], edge: e, head: true}
	}
	return out
}

// endsAt spreads the ends of edges along the side of their box, in the order of their other ends.
func endsAt(column []*node, edges []edge, own func(edge) int, other func(edge) float64) []float64 {
	at := make([][]int, len(column))
	for i, e := range edges {
		at[own(e)] = append(at[own(e)], i)
	}
	out := make([]float64, len(edges))
	for n, some := range at {
		slices.SortStableFunc(some, func(a, b int) int { return cmp.Compare(other(edges[a]), other(edges[b])) })
		for i, y := range spread(column[n].box, len(some)) {
			out[some[i]] = y
		}
	}
	return out
}
