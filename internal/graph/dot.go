package graph

import (
	"fmt"
	"strings"
)

// Dot writes the same picture in the language of Graphviz, dot(1), which makes its own layout.
func Dot(f Facts, o Options) []byte {
	c := &canvas{}
	c.line("digraph routing {")
	c.line("\trankdir=LR; splines=true; nodesep=0.15; ranksep=1.2; label=%s; labelloc=t;", word(title))
	c.line("\tnode [shape=box, style=filled, fontname=monospace, fontsize=10]; edge [fontname=monospace, fontsize=9];")
	// Within clusters dot does not keep the order of a column, so that families have a title instead
	// of a frame, and stand below each other because their columns do.
	var above [3]string
	for _, p := range panels(f, o) {
		p.order()
		family := "family-" + p.family.String()
		label := p.family.Name()
		if p.answer != "" {
			label += "\n" + p.answer
		}
		c.line("\t%s [label=%s, shape=plaintext, style=\"\", fontsize=14];", word(family), word(label))
		for i, column := range [][]*node{p.rules, p.tables, p.devices} {
			var ids []string
			if above[i] != "" {
				ids = append(ids, above[i])
			}
			if i == 0 {
				ids = append(ids, family)
			}
			for _, n := range column {
				c.dotNode(n)
				ids = append(ids, n.id)
			}
			if len(ids) == 0 {
				continue
			}
			above[i] = ids[len(ids)-1]
			for j, id := range ids {
				ids[j] = word(id)
			}
			c.line("\t{ rank=same; edge [style=invis]; %s; }", strings.Join(ids, " -> "))
		}
		c.dotEdges(p.gotos, p.rules, p.rules, "style=dotted, constraint=false, label=goto")
		c.dotEdges(p.lookups, p.rules, p.tables, "")
		c.dotEdges(p.routes, p.tables, p.devices, "")
	}
	for _, u := range f.Unread {
		c.line("\t// Not read: %s", strings.Map(oneLine, u))
	}
	c.line("}")
	return c.Bytes()
}

func oneLine(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

// word quotes a string of dot. A backslash begins an escape in labels, so that each is doubled.
func word(text string) string {
	return `"` + escapeDot(text) + `"`
}

func escapeDot(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(text)
}

func (c *canvas) dotNode(n *node) {
	lines := make([]string, len(n.lines))
	for i, l := range n.lines {
		lines[i] = escapeDot(l.text)
	}
	attributes := `fillcolor="#f2f2f2", color="#74777c"`
	switch n.class {
	case ours:
		attributes = `fillcolor="#eaf2ff", color="#1a5fb4"`
	case absent:
		attributes = `fillcolor="#ffffff", color="#74777c", style="filled,dashed"`
	case foreign:
	}
	switch n.mark {
	case passed:
		attributes += `, color="#8a2a6b", style="filled,dashed"`
	case decided:
		attributes += `, color="#8a2a6b", penwidth=3`
	case unmarked:
	}
	// \l ends a line that begins at the left.
	c.line("\t%s [label=\"%s\\l\", tooltip=%s, %s];", word(n.id), strings.Join(lines, `\l`), word(strings.Join(n.full, "\n")), attributes)
}

func (c *canvas) dotEdges(edges []edge, from, to []*node, common string) {
	for _, e := range edges {
		attributes := []string{"tooltip=" + word(e.full)}
		if common != "" {
			attributes = append(attributes, common)
		}
		if e.suppressed {
			attributes = append(attributes, "style=dashed")
		}
		switch e.mark {
		case passed:
			attributes = append(attributes, `color="#8a2a6b"`)
		case decided:
			attributes = append(attributes, `color="#8a2a6b"`, "penwidth=3")
		case unmarked:
			color := "#80848a"
			if from[e.from].class == ours {
				color = "#4a6fa5"
			}
			attributes = append(attributes, fmt.Sprintf("color=%q", color))
		}
		c.line("\t%s -> %s [%s];", word(from[e.from].id), word(to[e.to].id), strings.Join(attributes, ", "))
	}
}
