package graph

// A Box is a box of a picture with its text.
type Box struct {
	X, Y, W, H float64
	Lines      []string
}

// An End is where an edge begins or ends, and the boxes or the point that may be there.
type End struct {
	X, Y float64
	At   []Box
}

// A Layout is a picture as tests look at it.
type Layout struct {
	Left, Top, Right, Bottom float64
	// Columns are the boxes from left to right.
	Columns [3][]Box
	Ends    []End
	// Gaps are the horizontal places of the edges between columns: from and to.
	Edges [][4]float64
}

// Layouts are the pictures of the families.
func Layouts(f Facts, o Options) []Layout {
	var out []Layout
	for _, p := range panels(f, o) {
		d := layout(p, 0)
		l := Layout{Right: d.w, Bottom: d.h}
		for i, column := range [][]*node{d.rules, d.tables, d.devices} {
			for _, n := range column {
				b := Box{X: n.box.x, Y: n.box.y, W: n.box.w, H: n.box.h}
				for _, text := range n.lines {
					b.Lines = append(b.Lines, text.text)
				}
				l.Columns[i] = append(l.Columns[i], b)
			}
		}
		hub := func(x, y float64) []Box {
			for _, h := range d.hubs {
				if h.x == x && h.y == y {
					return []Box{{X: x, Y: y}}
				}
			}
			return nil
		}
		for i, c := range d.gotos {
			l.Ends = append(l.Ends, End{c.x1, c.y1, l.Columns[0]}, End{c.x2, c.y2, l.Columns[0]}, End{c.x1 - d.lanes[i], c.y1, []Box{{W: l.Right, H: l.Bottom, X: 0, Y: 0}}})
		}
		for _, c := range d.lookups {
			l.Ends = append(l.Ends, End{c.x1, c.y1, append(hub(c.x1, c.y1), l.Columns[0]...)}, End{c.x2, c.y2, append(hub(c.x2, c.y2), l.Columns[1]...)})
			l.Edges = append(l.Edges, [4]float64{c.x1, c.y1, c.x2, c.y2})
		}
		for _, c := range d.routes {
			l.Ends = append(l.Ends, End{c.x1, c.y1, l.Columns[1]}, End{c.x2, c.y2, l.Columns[2]})
			l.Edges = append(l.Edges, [4]float64{c.x1, c.y1, c.x2, c.y2})
		}
		out = append(out, l)
	}
	return out
}

// For tests of text.
var (
	Columns   = columns
	Cut       = cut
	Wrap      = wrap
	CharWidth = charWidth
)

// Style is the style sheet.
const Style = style
