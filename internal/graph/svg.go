package graph

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"multihomed/internal/english"
)

// style is the style sheet. Text has a contrast of at least 4.5 to what it stands on, lines and
// borders of at least 3 (WCAG 2.2, 1.4.3 and 1.4.11), in the light and in the dark scheme.
const style = `
text { font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: 12px; fill: #1f2328 }
.title { font-size: 18px; font-weight: bold }
.family { font-size: 15px; font-weight: bold }
.column { font-weight: bold; fill: #57606a }
.paper { fill: #ffffff }
.box { stroke-width: 1.2 }
.ours .box { fill: #eaf2ff; stroke: #1a5fb4 }
.ours .bar { fill: #1a5fb4 }
.foreign .box { fill: #f2f2f2; stroke: #74777c }
.absent .box { fill: #ffffff; stroke: #74777c; stroke-dasharray: 4 3 }
.heading { font-weight: bold }
.faint { fill: #57606a }
.good { fill: #116329 }
.doubtful { fill: #7a4b00 }
.bad { fill: #b3261e }
.chosen { fill: #8a2a6b; font-weight: bold }
.passed .box { stroke: #8a2a6b; stroke-width: 1.6; stroke-dasharray: 6 3 }
.decided .box { stroke: #8a2a6b; stroke-width: 3 }
.edge path { fill: none; stroke: #4a6fa5; stroke-width: 1.4 }
.edge .head { fill: #4a6fa5; stroke: none }
.edge.grey path { stroke: #80848a }
.edge.grey .head { fill: #80848a; stroke: none }
.edge.minor path { stroke-width: 0.9 }
.edge.suppressed path { stroke-dasharray: 6 4 }
.edge.goto path { stroke-dasharray: 2 3 }
.edge.passed path, .edge.decided path { stroke: #8a2a6b; stroke-width: 2 }
.edge.decided path { stroke-width: 3.5 }
.edge.passed .head, .edge.decided .head { fill: #8a2a6b; stroke: none }
.hub { fill: #4a6fa5 }
.rail { stroke: #80848a; stroke-width: 1.4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e8eb }
.paper { fill: #15181c }
.column, .faint { fill: #a6adb6 }
.ours .box { fill: #16263d; stroke: #6ea6f2 }
.ours .bar, .hub { fill: #6ea6f2 }
.foreign .box { fill: #24272b; stroke: #8b9199 }
.absent .box { fill: #15181c; stroke: #8b9199 }
.good { fill: #6fd08c }
.doubtful { fill: #e7b45c }
.bad { fill: #ff8f86 }
.chosen { fill: #f29bd0 }
.passed .box, .decided .box { stroke: #f29bd0 }
.edge path { stroke: #7fa6dd }
.edge .head { fill: #7fa6dd }
.edge.passed path, .edge.decided path { stroke: #f29bd0 }
.edge.passed .head, .edge.decided .head { fill: #f29bd0 }
}
`

// SVG draws a host. The document needs nothing else: no script, no font, no request.
func SVG(f Facts, o Options) []byte {
	all := panels(f, o)
	drawings := make([]*drawing, 0, len(all))
	y := margin + lineHeight*2.5
	w := 0.0
	for _, p := range all {
		notes := 1 // The title.
		if p.answer != "" {
			notes += mostAnswer
		}
		d := layout(p, y+float64(notes)*lineHeight)
		y += float64(notes)*lineHeight + d.h + margin
		w = max(w, d.w)
		drawings = append(drawings, d)
	}
	c := &canvas{}
	c.legend(drawings, f.Unread, w, y)
	h := c.height
	var out canvas
	out.line(`<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title desc" width="%s" height="%s" viewBox="0 0 %s %s">`, px(w), px(h), px(w), px(h))
	out.line(`<title id="title">%s</title>`, quote(title))
	out.line(`<desc id="desc">%s</desc>`, quote(describe(drawings)))
	out.line("<style>%s</style>", style)
	out.line(`<rect class="paper" width="%s" height="%s"/>`, px(w), px(h))
	out.text("title", margin, margin+lineHeight, title)
	for _, d := range drawings {
		out.panel(d)
	}
	out.Write(c.Bytes())
	out.line("</svg>")
	return out.Bytes()
}

const title = "Policy routing of this host"

// mostAnswer is how many lines the answer for a flow has at most.
const mostAnswer = 2

// describe says in words what the picture shows.
func describe(drawings []*drawing) string {
	var parts []string
	for _, d := range drawings {
		parts = append(parts, fmt.Sprintf("%s: %s, %s, %s.", d.family.Name(), english.Count(d.numberOfRules, "rule"), english.Count(len(d.tables), "table"), english.Count(len(d.devices), "device")))
		if d.answer != "" {
			parts = append(parts, d.answer+".")
		}
	}
	return strings.Join(append(parts, "The kernel reads the rules from top to bottom. Edges lead from rules to tables, and from tables to devices."), " ")
}

type canvas struct {
	bytes.Buffer
	height float64
}

func (c *canvas) line(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

// px is a number of pixels, without noise.
func px(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.1f", v), "0"), ".")
}

// quote escapes a text for XML. Names were made printable before.
func quote(text string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(text)); err != nil {
		panic(err) // A Builder takes everything.
	}
	return b.String()
}

func (c *canvas) text(class string, x, y float64, text string) {
	c.line(`<text class="%s" x="%s" y="%s">%s</text>`, class, px(x), px(y), quote(text))
}

func (c *canvas) panel(d *drawing) {
	y := d.top - lineHeight
	if d.answer != "" {
		room := int((d.w - 2*margin) / charWidth)
		lines := wrap(d.answer, room, mostAnswer)
		y -= lineHeight * mostAnswer
		for i, l := range lines {
			c.text("chosen", margin, y+lineHeight*float64(i+1), l)
		}
	}
	c.line(`<g aria-label="%s">`, d.family.Name())
	c.text("family", margin, y, d.family.Name())
	for i, name := range []string{english.Count(d.numberOfRules, "rule"), english.Count(len(d.tables), "table"), english.Count(len(d.devices), "device")} {
		c.text("column", d.heads[i], d.top+headHeight-10, name)
	}
	for i, n := range d.rules[min(1, len(d.rules)):] {
		above := d.rules[i].box
		x := above.x + above.w/2
		c.line(`<line class="rail" x1="%s" y1="%s" x2="%s" y2="%s"/>`, px(x), px(above.y+above.h), px(x), px(n.box.y))
	}
	// What is chosen comes last, so that nothing covers it.
	for _, m := range []mark{unmarked, passed, decided} {
		for i, g := range d.gotos {
			if g.edge.mark == m {
				c.jump(g, d.lanes[i], d.rules[g.edge.from].class)
			}
		}
		for _, l := range d.lookups {
			if l.edge.mark == m {
				c.curve(l, d.classOf(l.edge))
			}
		}
		for _, r := range d.routes {
			if r.edge.mark == m {
				c.curve(r, d.tables[r.edge.from].class)
			}
		}
	}
	for _, h := range d.hubs {
		c.line(`<circle class="hub" cx="%s" cy="%s" r="3.5"/>`, px(h.x), px(h.y))
	}
	for _, column := range [][]*node{d.rules, d.tables, d.devices} {
		for _, n := range column {
			c.node(n)
		}
	}
	c.line("</g>")
}

// classOf is whose rule an edge belongs to. An edge from a hub belongs to all that lead there.
func (d *drawing) classOf(e edge) class {
	if e.from >= 0 {
		return d.rules[e.from].class
	}
	return d.rules[d.hubs[-1-e.from].from[0]].class
}

func (c class) String() string { return [...]string{"ours", "foreign", "absent"}[c] }

// String is the part of a list of classes.
func (m mark) String() string { return [...]string{"", " passed", " decided"}[m] }

func (t tone) String() string {
	return [...]string{"plain", "heading", "faint", "good", "doubtful", "bad", "chosen"}[t]
}

func (c *canvas) node(n *node) {
	b := n.box
	c.line(`<g class="%s%s" id="%s">`, n.class, n.mark, n.id)
	c.line("<title>%s</title>", quote(strings.Join(n.full, "\n")))
	c.line(`<rect class="box" x="%s" y="%s" width="%s" height="%s" rx="4"/>`, px(b.x), px(b.y), px(b.w), px(b.h))
	if n.class == ours {
		c.line(`<rect class="bar" x="%s" y="%s" width="%s" height="%s"/>`, px(b.x), px(b.y), px(bar), px(b.h))
	}
	for i, l := range n.lines {
		c.text(l.tone.String(), b.x+bar+padding, b.y+padding/2+float64(i+1)*lineHeight-3, l.text)
	}
	c.line("</g>")
}

func edgeClass(e edge, of class) string {
	text := "edge"
	if of != ours {
		text += " grey"
	}
	if e.minor {
		text += " minor"
	}
	if e.suppressed {
		text += " suppressed"
	}
	return text + e.mark.String()
}

// arrow is how long the head of an edge is.
const arrow = 7.0

func (c *canvas) curve(l curve, of class) {
	c.line(`<g class="%s">`, edgeClass(l.edge, of))
	c.line("<title>%s</title>", quote(l.edge.full))
	x2 := l.x2
	if l.head {
		x2 -= arrow
	}
	middle := (l.x2 - l.x1) / 2
	c.line(`<path d="M%s %sC%s %s %s %s %s %s"/>`, px(l.x1), px(l.y1), px(l.x1+middle), px(l.y1), px(x2-middle), px(l.y2), px(x2), px(l.y2))
	if l.head {
		c.line(`<path class="head" d="M%s %sl-%s -3.5v7z"/>`, px(l.x2), px(l.y2), px(arrow))
	}
	c.line("</g>")
}

// jump draws a goto edge at the left of the ladder.
func (c *canvas) jump(l curve, depth float64, of class) {
	c.line(`<g class="%s goto">`, edgeClass(l.edge, of))
	c.line("<title>%s</title>", quote(l.edge.full))
	x := l.x1 - depth
	bend := min(lane, (l.y2-l.y1)/2)
	c.line(`<path d="M%s %sQ%s %s %s %sV%sQ%s %s %s %s"/>`, px(l.x1), px(l.y1), px(x), px(l.y1), px(x), px(l.y1+bend), px(l.y2-bend), px(x), px(l.y2), px(l.x2-arrow), px(l.y2))
	c.line(`<path class="head" d="M%s %sl-%s -3.5v7z"/>`, px(l.x2), px(l.y2), px(arrow))
	c.line("</g>")
}

// legend explains signs, and says what was not read.
func (c *canvas) legend(drawings []*drawing, unread []string, w, y float64) {
	var says []string
	says = append(says, "The kernel reads the rules from top to bottom; the first that finds a route decides.")
	has := func(is func(*drawing) bool) bool { return slices.ContainsFunc(drawings, is) }
	if has(func(d *drawing) bool {
		return slices.ContainsFunc(d.rules, func(n *node) bool { return n.class == ours })
	}) {
		says = append(says, "Blue with a bar: of multihomed. Grey: of the kernel or of other programs.")
	}
	if has(func(d *drawing) bool {
		return slices.ContainsFunc(d.panel.lookups, func(e edge) bool { return e.suppressed })
	}) {
		says = append(says, "Dashed edge: the rule takes only some routes of the table (suppress_prefixlength, suppress_ifgroup).")
	}
	if has(func(d *drawing) bool { return len(d.panel.gotos) > 0 }) {
		says = append(says, "Dotted edge at the left: goto.")
	}
	if has(func(d *drawing) bool {
		return slices.ContainsFunc(d.panel.routes, func(e edge) bool { return e.minor })
	}) {
		says = append(says, "Thin edge to a device: networks. Thick edge: a default.")
	}
	if has(func(d *drawing) bool { return d.flow != nil }) {
		says = append(says, "Dashed frame: asked on the way. Thick frame: what decides.")
	}
	for _, u := range unread {
		says = append(says, "Not read: "+u)
	}
	room := int((w - 2*margin) / charWidth)
	for _, s := range says {
		const most = 4
		for _, l := range wrap(s, room, most) {
			c.text("faint", margin, y, l)
			y += lineHeight
		}
	}
	c.height = y + margin/2
}
