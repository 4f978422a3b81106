package graph_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"multihomed/internal/graph"
	"multihomed/routing"
	"multihomed/routing/lookup"
	"multihomed/test/golden"
)

// TestGolden compares whole documents.
func TestGolden(t *testing.T) {
	t.Parallel()
	two := world(2)
	bound := follow(two, lookup.Flow{From: netip.MustParseAddr("10.91.0.120"), To: netip.MustParseAddr("203.0.113.1")})
	for name, o := range map[string]graph.Options{"two": {}, "flow": {Flow: bound}, "all": {All: true, Families: []routing.Family{routing.IPv6}}} {
		golden.Compare(t, name+".svg", graph.SVG(two, o))
		golden.Compare(t, name+".dot", graph.Dot(two, o))
	}
}

// wellFormed reads a document as XML and returns its text.
func wellFormed(t tb, document []byte) string {
	t.Helper()
	if !utf8.Valid(document) {
		t.Fatalf("no UTF-8: %q", document)
	}
	var text strings.Builder
	for d := xml.NewDecoder(bytes.NewReader(document)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		if err != nil {
			t.Fatalf("no XML: %v in\n%s", err, document)
		}
		if s, is := token.(xml.CharData); is {
			text.Write(s)
			text.WriteByte('\n')
		}
	}
}

type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// graphviz checks a document by the grammar of dot, as far as it is used here: statements of
// nodes, edges and attributes in braces.
func graphviz(t tb, document []byte) {
	t.Helper()
	token := regexp.MustCompile(`^(\s+|//[^\n]*|"(?:[^"\\]|\\.)*"|->|[\w.]+|[{}\[\]=;,])`)
	var tokens []string
	for rest := string(document); rest != ""; {
		found := token.FindString(rest)
		if found == "" {
			t.Fatalf("no dot at %.60q", rest)
		}
		if rest = rest[len(found):]; strings.TrimSpace(found) != "" && !strings.HasPrefix(found, "//") {
			tokens = append(tokens, found)
		}
	}
	text := strings.Join(tokens, "\x00") + "\x00"
	const id = `(?:"(?:[^"\\]|\\.)*"|[\w.]+)\x00`
	attribute := id + `=\x00` + id
	statement := regexp.MustCompile(`(?:` + id + `(?:->\x00` + id + `)*(?:\[\x00(?:` + attribute + `(?:,\x00)?)*\]\x00)?|` + attribute + `);\x00`)
	block := regexp.MustCompile(`\{\x00((?:@\x00)*)\}\x00`)
	text = statement.ReplaceAllString(text, "@\x00")
	text = strings.Replace(text, "digraph\x00routing\x00", "", 1)
	for before := ""; before != text; {
		before, text = text, block.ReplaceAllString(text, "@\x00")
	}
	if text != "@\x00" {
		t.Fatalf("no dot: %.300q", text)
	}
}

// TestHostileNames: names of any bytes make a valid document, and stay different.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	names := []string{"\"<b>&'", "a\x1b[31m", "a\\x1b[31m", "\xff", "\\xff", "]]>", "\u202eabc", "a;\\l\\N", "--", "$(id)"}
	f := world(1)
	for i, name := range names {
		f.Devices = append(f.Devices, graph.Device{Index: 200 + i, Name: name, Up: true, Carrier: true})
		f.Links[name] = graph.Link{Profile: name + name}
		f.Rules = append(f.Rules, routing.Rule{Family: routing.IPv4, Priority: 40000 + routing.Priority(i), OIF: name, Action: routing.ActionLookup, Table: routing.TableMain})
		f.Tables[routing.IPv4][routing.TableMain] = append(f.Tables[routing.IPv4][routing.TableMain], routing.Route{
			Family: routing.IPv4, Table: routing.TableMain, Type: routing.RouteUnicast, Device: 200 + i, Destination: prefix(fmt.Sprintf("192.168.%d.0/24", i)),
		})
	}
	f.Unread = append(f.Unread, "a --> b\n} \"")
	o := graph.Options{All: true}
	text := wellFormed(t, graph.SVG(f, o))
	graphviz(t, graph.Dot(f, o))
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x202e || r == utf8.RuneError }) {
		t.Errorf("the text has characters that do not print: %q", text)
	}
	lines := map[string]int{}
	for line := range strings.Lines(text) {
		if name, is := strings.CutPrefix(strings.TrimSpace(line), "from all oif "); is {
			lines[strings.TrimSuffix(name, " lookup main")]++
		}
	}
	if len(lines) != len(names)+2 { // And one of the link in each family.
		t.Errorf("%d names became %d: %v", len(names), len(lines), lines)
	}
}

// TestNothingIsLoaded: a picture runs nothing, and asks no other host.
func TestNothingIsLoaded(t *testing.T) {
	t.Parallel()
	document := string(graph.SVG(world(3), graph.Options{}))
	for _, word := range []string{"<script", "href", "url(", "@import", "onload", "<image", "<foreignObject"} {
		if strings.Contains(document, word) {
			t.Errorf("the picture has %q", word)
		}
	}
	if n := strings.Count(document, "http"); n != 1 {
		t.Errorf("the picture names %d addresses; one is the name space", n)
	}
	for _, word := range []string{`role="img"`, `<title id="title">`, `<desc id="desc">IPv4: 19 rules`, `viewBox="0 0 `} {
		if !strings.Contains(document, word) {
			t.Errorf("the picture lacks %q", word)
		}
	}
}

// TestContrast: text and lines can be read in both schemes (WCAG 2.2, 1.4.3 and 1.4.11).
func TestContrast(t *testing.T) {
	t.Parallel()
	light, dark, found := strings.Cut(graph.Style, "@media (prefers-color-scheme: dark) {")
	if !found {
		t.Fatal("there is no dark scheme")
	}
	isDark := false
	colour := func(selector, property string) string {
		value := ""
		for _, sheet := range []string{light, dark} {
			for _, m := range regexp.MustCompile(`(?m)^([^{}\n]+) \{([^}]*)\}`).FindAllStringSubmatch(sheet, -1) {
				for s := range strings.SplitSeq(m[1], ", ") {
					if v := regexp.MustCompile(`(?:^|[ ;])` + property + `: (#[0-9a-f]{6})`).FindStringSubmatch(m[2]); s == selector && v != nil {
						value = v[1]
					}
				}
			}
			if sheet == light && !isDark {
				break
			}
		}
		if value == "" {
			t.Fatalf("%s has no %s", selector, property)
		}
		return value
	}
	for _, isDark = range []bool{false, true} {
		for _, ground := range []string{".paper", ".ours .box", ".foreign .box", ".absent .box"} {
			for _, text := range []string{"text", ".faint", ".good", ".doubtful", ".bad", ".chosen"} {
				if c := contrast(t, colour(text, "fill"), colour(ground, "fill")); c < 4.5 {
					t.Errorf("%s on %s, dark %v: %.2f", text, ground, isDark, c)
				}
			}
		}
		for selector, property := range map[string]string{
			".ours .box": "stroke", ".foreign .box": "stroke", ".absent .box": "stroke", ".passed .box": "stroke", ".decided .box": "stroke", ".edge path": "stroke",
			".edge .head": "fill", ".edge.grey path": "stroke", ".hub": "fill", ".edge.decided path": "stroke", ".rail": "stroke",
		} {
			if c := contrast(t, colour(selector, property), colour(".paper", "fill")); c < 3 {
				t.Errorf("%s, dark %v: %.2f", selector, isDark, c)
			}
		}
	}
}

// contrast is the contrast ratio of two colours (WCAG 2.2).
func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	luminance := func(colour string) float64 {
		n, err := strconv.ParseUint(colour[1:], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		channel := func(shift uint) float64 {
			c := float64(n>>shift&0xff) / 255
			if c <= 0.04045 {
				return c / 12.92
			}
			return math.Pow((c+0.055)/1.055, 2.4)
		}
		return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// random draws a host that may look like anything.
func random(t *rapid.T) graph.Facts {
	f := world(rapid.IntRange(0, 14).Draw(t, "links"))
	var devices []int
	for _, d := range f.Devices {
		devices = append(devices, d.Index)
	}
	for _, family := range routing.Families() {
		var own []routing.Rule
		for _, r := range f.Rules {
			if r.Family == family {
				own = append(own, r)
			}
		}
		n := rapid.IntRange(0, 25).Draw(t, "more rules")
		for i := range n {
			r := routing.Rule{
				Family: family, Priority: routing.Priority(rapid.IntRange(1, 40000).Draw(t, "priority")), Mark: routing.Mark{Value: uint32(i), Mask: math.MaxUint32},
				IIF:      rapid.SampledFrom([]string{"", "lo", "a-name-of-15-by", "\xff<&", "日本語"}).Draw(t, "iif"),
				Protocol: rapid.SampledFrom([]routing.Protocol{0, routing.ProtocolStatic, routing.Multihomed, 186}).Draw(t, "protocol"),
				Action:   rapid.SampledFrom([]routing.Action{routing.ActionLookup, routing.ActionGoto, routing.ActionProhibit, routing.ActionNop}).Draw(t, "action"),
			}
			switch r.Action {
			case routing.ActionLookup:
				r.Table = routing.TableID(rapid.IntRange(1, 30).Draw(t, "table"))
				for range rapid.IntRange(0, 4).Draw(t, "routes") {
					f.Tables[family][r.Table] = append(f.Tables[family][r.Table], routing.Route{
						Family: family, Table: r.Table, Type: rapid.SampledFrom([]routing.RouteType{routing.RouteUnicast, routing.RouteThrow, 7}).Draw(t, "type"),
						Destination: netip.PrefixFrom(family.Any().Addr(), rapid.IntRange(0, family.Bits()).Draw(t, "length")),
						Device:      rapid.SampledFrom(append(devices, 999)).Draw(t, "device"),
					})
				}
			case routing.ActionGoto:
				r.Goto = rapid.SampledFrom([]routing.Priority{1, 9020, 10000, 20500, 32766, 50000}).Draw(t, "goto")
			default:
			}
			at := len(own)
			for at > 0 && own[at-1].Priority > r.Priority {
				at--
			}
			own = slices.Insert(own, at, r)
		}
		var rest []routing.Rule
		for _, r := range f.Rules {
			if r.Family != family {
				rest = append(rest, r)
			}
		}
		f.Rules = slices.Concat(rest, own)
	}
	return f
}

func inside(x, y float64, b graph.Box) bool {
	const slack = 0.01
	return x >= b.X-slack && x <= b.X+b.W+slack && y >= b.Y-slack && y <= b.Y+b.H+slack
}

// TestLayout: boxes do not overlap, text stays inside of them, edges begin and end at boxes and
// run between the columns, and everything is inside of the picture.
func TestLayout(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := random(t)
		o := graph.Options{All: rapid.Bool().Draw(t, "all")}
		if rapid.Bool().Draw(t, "flow") {
			o.Flow = follow(f, lookup.Flow{To: netip.MustParseAddr(rapid.SampledFrom([]string{"203.0.113.1", "2001:db8::1", "10.91.0.7"}).Draw(t, "to"))})
		}
		for _, l := range graph.Layouts(f, o) {
			checkLayout(t, l)
		}
		switch rapid.IntRange(0, 9).Draw(t, "document") { // Reading one takes longer than all the rest.
		case 0:
			wellFormed(t, graph.SVG(f, o))
		case 1:
			graphviz(t, graph.Dot(f, o))
		default:
		}
	})
}

func checkLayout(t tb, l graph.Layout) {
	t.Helper()
	right := 0.0
	for _, column := range l.Columns {
		bottom, edge := 0.0, right
		for _, b := range column {
			if b.Y < bottom || b.X < edge || b.X+b.W > l.Right || b.Y+b.H > l.Bottom {
				t.Fatalf("the box %q at %.0f, %.0f overlaps one above it (%.0f) or at its left (%.0f), or leaves the picture (%.0f x %.0f)", b.Lines, b.X, b.Y, bottom, edge, l.Right, l.Bottom)
			}
			bottom = b.Y + b.H + 4
			right = max(right, b.X+b.W)
			for _, text := range b.Lines {
				if w := float64(graph.Columns(text)) * graph.CharWidth; w+16 > b.W {
					t.Fatalf("%q is %.0f wide, its box %.0f", text, w, b.W)
				}
			}
			if float64(len(b.Lines))*16 > b.H {
				t.Fatalf("%q is too high for %.0f", b.Lines, b.H)
			}
		}
	}
	for _, e := range l.Ends {
		found := false
		for _, b := range e.At {
			found = found || inside(e.X, e.Y, b)
		}
		if !found {
			t.Fatalf("an edge ends at %.1f, %.1f, where nothing is", e.X, e.Y)
		}
	}
	// An edge stays between its ends, so that it crosses no text if no box is there.
	for _, e := range l.Edges {
		for _, column := range l.Columns {
			for _, b := range column {
				if e[2] > b.X+0.01 && e[0] < b.X+b.W-0.01 {
					t.Fatalf("an edge from %.1f to %.1f runs through %q", e[0], e[2], b.Lines)
				}
			}
		}
	}
}

// TestManyLinks: with 30 links rules are grouped, and the picture is not higher than its tables need.
func TestManyLinks(t *testing.T) {
	t.Parallel()
	for _, l := range graph.Layouts(world(30), graph.Options{}) {
		if n := len(l.Columns[0]); n > 12 {
			t.Errorf("%d boxes of rules", n)
		}
		if n := len(l.Columns[1]); n != 35 && n != 34 {
			t.Errorf("%d tables", n)
		}
		if l.Bottom > 60*35 {
			t.Errorf("the picture is %.0f high", l.Bottom)
		}
	}
	f := world(30)
	main := f.Tables[routing.IPv6][254]
	for n := range 32 {
		for _, to := range []string{"fe80::/64", fmt.Sprintf("2001:db8:7%02d::/48", n)} {
			main = append(main, routing.Route{Family: routing.IPv6, Table: 254, Destination: prefix(to), Device: n, Type: routing.RouteUnicast})
		}
	}
	f.Tables[routing.IPv6][254] = main
	if picture := string(graph.SVG(f, graph.Options{})); !strings.Contains(picture, ">networks<") || strings.Contains(picture, "link-local netwo…") {
		t.Error("what main holds is cut")
	}
	each := graph.Layouts(world(30), graph.Options{All: true})
	if n := len(each[0].Columns[0]); n != 127 {
		t.Errorf("with each rule there are %d boxes", n)
	}
}

// TestFlow: the picture says which way a packet goes, and what was asked.
func TestFlow(t *testing.T) {
	t.Parallel()
	f := world(3)
	for packet, want := range map[lookup.Flow][]string{
		{To: netip.MustParseAddr("203.0.113.1")}:                                                    {"203.0.113.1 leaves by wan0 via 10.90.0.1 (rule 32766, table main)", "– does not match: fwmark"},
		{To: netip.MustParseAddr("203.0.113.1"), Mark: 1}:                                           {"203.0.113.1 mark 0x1 leaves by wg0 (rule 20500, table 51820)", "→ matches, and goes to 20500"},
		{To: netip.MustParseAddr("10.92.0.120")}:                                                    {"10.92.0.120 stays on this host (rule 0, table local)", "→ local 10.92.0.120 dev wan2"},
		{To: netip.MustParseAddr("203.0.113.1"), From: netip.MustParseAddr("10.92.0.120")}:          {"203.0.113.1 from 10.92.0.120 leaves by wan2 via 10.92.0.1 (rule 10000, table 10102)", ", suppressed", "→ matches, and decides"},
		{To: netip.MustParseAddr("203.0.113.1"), From: netip.MustParseAddr("10.92.0.120"), Mark: 2}: {"203.0.113.1 from 10.92.0.120 mark 0x2 leaves by wan2"},
		{To: netip.MustParseAddr("2001:db8::1"), OIF: "wan1"}:                                       {"2001:db8::1 oif wan1 leaves by wan1 via fe80::1 (rule 9500, table 10501)"},
	} {
		svg := wellFormed(t, graph.SVG(f, graph.Options{Flow: follow(f, packet)}))
		dot := string(graph.Dot(f, graph.Options{Flow: follow(f, packet)}))
		for _, text := range want {
			if !strings.Contains(svg, text) {
				t.Errorf("%+v: the picture lacks %q:\n%s", packet, text, svg)
			}
			if !strings.Contains(strings.ReplaceAll(dot, `\n`, " "), text) {
				t.Errorf("%+v: the graph lacks %q", packet, text)
			}
		}
	}
	nowhere := f
	nowhere.Tables = map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}}
	if text := wellFormed(t, graph.SVG(nowhere, graph.Options{Flow: follow(nowhere, lookup.Flow{To: netip.MustParseAddr("203.0.113.1"), From: netip.MustParseAddr("10.92.0.120")})})); !strings.Contains(text, "goes nowhere: network unreachable (rule 10500)") {
		t.Errorf("without routes:\n%s", text)
	}
	stopped := follow(f, lookup.Flow{To: netip.MustParseAddr("203.0.113.1")})
	stopped.Verdict.Outcome, stopped.Verdict.Objection, stopped.Verdict.Legs = lookup.Rejected, lookup.NotForwarding, nil
	if text := wellFormed(t, graph.SVG(f, graph.Options{Flow: stopped})); !strings.Contains(text, "goes nowhere: the interface does not forward.") {
		t.Errorf("what is not forwarded:\n%s", text)
	}
	direct := follow(f, lookup.Flow{To: netip.MustParseAddr("224.0.0.5"), OIF: "wan1"})
	direct.Verdict = lookup.Verdict{Outcome: lookup.Sent, Direct: true, Legs: []routing.Route{{Family: routing.IPv4, Destination: prefix("224.0.0.5/32"), Device: 3}}}
	if text := wellFormed(t, graph.SVG(f, graph.Options{Flow: direct})); !strings.Contains(text, "224.0.0.5 oif wan1 leaves by wan1.") {
		t.Errorf("multicast without a route:\n%s", text)
	}
	differing := follow(f, lookup.Flow{To: netip.MustParseAddr("203.0.113.1")})
	differing.Difference = "it leaves by wan1"
	if text := wellFormed(t, graph.SVG(f, graph.Options{Flow: differing})); !strings.Contains(text, "the kernel answers otherwise: it leaves by wan1") {
		t.Errorf("the kernel's answer is missing:\n%s", text)
	}
}

// TestEmptyHost: a host without rules, as one whose kernel has no IPv6.
func TestEmptyHost(t *testing.T) {
	t.Parallel()
	for _, f := range []graph.Facts{{}, {Devices: []graph.Device{{Index: 5, Name: "eth0", Addresses: []netip.Prefix{prefix("192.0.2.1/24")}}}}} {
		wellFormed(t, graph.SVG(f, graph.Options{}))
		graphviz(t, graph.Dot(f, graph.Options{}))
		for _, l := range graph.Layouts(f, graph.Options{}) {
			checkLayout(t, l)
		}
	}
}

// TestText: nothing is wider than its place.
func TestText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text, width := rapid.String().Draw(t, "text"), rapid.IntRange(4, 60).Draw(t, "width")
		if c := graph.Cut(text, width); graph.Columns(c) > width {
			t.Fatalf("%q is %d wide, not %d", c, graph.Columns(c), width)
		}
		for _, l := range graph.Wrap(text, width, 3) {
			if graph.Columns(l) > width {
				t.Fatalf("%q is %d wide, not %d", l, graph.Columns(l), width)
			}
		}
		if n := len(graph.Wrap(text, width, 3)); n > 3 {
			t.Fatalf("%d lines", n)
		}
	})
}
