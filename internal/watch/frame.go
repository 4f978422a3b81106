package watch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// A Rate is what an interface receives and sends, in bits a second.
type Rate struct{ In, Out float64 }

// A Model is what the screen shows.
type Model struct {
	Now time.Time
	// Document is nil while nothing was read.
	Document *status.Status
	// Rates are by the name of the interface, escaped.
	Rates map[string]Rate
	// Fault says why the host could not be read last time, empty if it could.
	Fault string
	// Events are the last changes, the newest last.
	Events []Event
	// Colour allows colours.
	Colour bool
}

// mostEvents bounds what a screen remembers.
const mostEvents = 500

// mergeWithin is how far apart two counts of the same changes may be to be shown as one.
const mergeWithin = 3 * time.Second

// Add appends events. Counts of the same changes become one, so that a storm leaves room for the rest.
func (m *Model) Add(events []Event) {
	for _, e := range events {
		if i := m.alike(e); i >= 0 {
			sum := &m.Events[i]
			sum.Text = strings.Replace(e.Text, fmt.Sprint(e.Count), fmt.Sprint(sum.Count+e.Count), 1)
			sum.Count, sum.Time = sum.Count+e.Count, e.Time
			continue
		}
		m.Events = append(m.Events, e)
	}
	if n := len(m.Events) - mostEvents; n > 0 {
		m.Events = slices.Delete(m.Events, 0, n)
	}
}

// alike finds a recent count of the same changes.
func (m *Model) alike(e Event) int {
	if e.Count < 2 || e.isSummary {
		return -1
	}
	for i := len(m.Events) - 1; i >= 0 && e.Time.Sub(m.Events[i].Time) < mergeWithin; i-- {
		if o := m.Events[i]; o.Count > 1 && !o.isSummary && o.Kind == e.Kind && o.Author == e.Author && o.Family == e.Family && rest(o) == rest(e) {
			return i
		}
	}
	return -1
}

// rest is the text of a count without its number.
func rest(e Event) string { return strings.Replace(e.Text, fmt.Sprint(e.Count), "", 1) }

// A style is a sequence of SGR parameters (ECMA-48, 8.3.117).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

func (m *Model) paint(s style, text string) string {
	if !m.Colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// A cell is text of one style.
type cell struct {
	text  string
	style style
}

// Frame draws the screen: exactly height lines, none wider than width. Colours are the only escape
// sequences in it.
func Frame(m *Model, width, height int) []string {
	if width < 1 || height < 1 {
		return nil
	}
	d := &drawing{Model: m, width: width, height: height}
	d.head()
	d.body()
	for len(d.lines) < height {
		d.line()
	}
	return d.lines[:height]
}

type drawing struct {
	*Model
	width, height int
	lines         []string
}

// line adds a line of cells, cut to the width.
func (d *drawing) line(cells ...cell) {
	var b strings.Builder
	left := d.width
	for i, c := range cells {
		text := cut(escape.Text(c.text), left)
		if i == len(cells)-1 {
			text = strings.TrimRight(text, " ")
		}
		left -= columns(text)
		b.WriteString(d.paint(c.style, text))
	}
	d.lines = append(d.lines, b.String())
}

func (d *drawing) head() {
	clock := d.Now.Local().Format(time.TimeOnly)
	s := d.Document
	if d.Fault != "" {
		d.line(cell{d.Fault, red})
	}
	if s == nil {
		d.line(cell{"reading the host", dim})
		return
	}
	state := daemonState(s)
	colour := green
	if state != "running" {
		colour = yellow
	}
	if s.Off != nil {
		state, colour = "switched off", yellow
	}
	manager := ", NetworkManager " + managerState(s.NetworkManager)
	if d.width < 44 {
		manager = ""
	}
	left := "multihomed " + state + manager
	gap := d.width - columns(left) - len(clock)
	if gap < 2 {
		d.line(cell{"multihomed ", plain}, cell{state, colour}, cell{manager, plain})
	} else {
		d.line(cell{"multihomed ", plain}, cell{state, colour}, cell{manager, plain}, cell{strings.Repeat(" ", gap), plain}, cell{clock, dim})
	}
	ways := Ways(s)
	switch {
	case ways != "":
	case knowsUnbound(s):
		ways = "none"
	default:
		ways = "not known" // Nobody looked.
	}
	if d.height > 3 {
		const label = "default route: "
		switch lines := fold(escape.Text(label+ways), d.width); {
		case len(lines) == 1 || d.height <= 8:
			d.line(cell{label, plain}, cell{ways, bold})
		default: // The name of the uplink is at the end.
			d.line(cell{lines[0], plain})
			d.line(cell{strings.Join(lines[1:], " "), bold})
		}
	}
	if text, colour := troubles(s); text != "" && d.height > 8 {
		d.line(cell{text, colour})
	}
}

// troubles counts the problems that somebody should look at.
func troubles(s *status.Status) (string, style) {
	errors, warnings := 0, 0
	for _, p := range s.Problems {
		switch p.Severity {
		case routing.Error:
			errors++
		case routing.Warning:
			warnings++
		case routing.Notice:
		}
	}
	const see = ", see multihomectl status"
	switch {
	case errors > 0 && warnings > 0:
		return counted(errors, "error") + " and " + counted(warnings, "warning") + see, red
	case errors > 0:
		return counted(errors, "error") + see, red
	case warnings > 0:
		return counted(warnings, "warning") + see, yellow
	default:
		return "", plain
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// A row is one line of the table of links.
type row struct {
	mark, name, role   string
	state              cell
	address, gateway   string
	in, out            string
	isFirst, isDefault bool
}

// body shares the space that is left: the changes get at least a third, and links what they do not need.
func (d *drawing) body() {
	rows := d.rows(true)
	roomy := d.height >= 10
	frame := 1 // the heading of the links
	if roomy {
		frame += 4 // empty lines, the heading of the changes, and the last line
	}
	space := max(0, d.height-len(d.lines)-frame)
	changes := d.changes(space)
	forLinks := max(space-len(changes), space*2/3)
	if !roomy {
		forLinks = space
	}
	if len(rows) > forLinks {
		rows = d.rows(false)
	}
	hidden := 0
	if len(rows) > forLinks {
		keep := max(0, forLinks-1)
		hidden = len(rows) - keep
		rows = chosen(rows, keep)
	}
	if roomy {
		d.line()
	}
	d.table(rows)
	if hidden > 0 {
		d.line(cell{"  and " + counted(hidden, "more link"), dim})
	}
	if !roomy {
		return
	}
	d.line()
	d.line(cell{"changes, the newest first", dim})
	for _, cells := range changes {
		if len(d.lines) >= d.height-1 {
			break
		}
		d.line(cells...)
	}
	for len(d.lines) < d.height-1 {
		d.line()
	}
	d.line(cell{"q quits", dim})
}

// chosen are as many rows as there is room for, in their order: those of links that traffic leaves by
// first, and then those of links that do not work.
func chosen(rows []row, room int) []row {
	rank := func(r row) int {
		switch {
		case r.mark == "*":
			return 0
		case r.isTrouble():
			return 1
		default:
			return 2
		}
	}
	order := make([]int, len(rows))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return rank(rows[a]) - rank(rows[b]) })
	order = order[:min(room, len(order))]
	slices.Sort(order)
	out := make([]row, 0, len(order))
	for _, i := range order {
		out = append(out, rows[i])
	}
	return out
}

func (r row) isTrouble() bool { return r.state.style == red || r.state.style == yellow }

// rows are those of all links; if all is false each has one.
func (d *drawing) rows(all bool) (out []row) {
	if d.Document == nil {
		return nil
	}
	links := slices.Clone(d.Document.Links)
	slices.SortStableFunc(links, status.CompareLinks)
	for _, l := range links {
		own := d.linkRows(l)
		if !all && len(own) > 1 {
			// The family that does not work, or else the one that traffic leaves by, says more.
			i := slices.IndexFunc(own, row.isTrouble)
			if i < 0 {
				i = max(0, slices.IndexFunc(own, func(r row) bool { return r.gateway != "" }))
			}
			one := own[i]
			one.name, one.role, one.in, one.out = own[0].name, own[0].role, own[0].in, own[0].out
			if one.mark == " " && slices.ContainsFunc(own, func(r row) bool { return r.isDefault }) {
				one.mark = "*"
			}
			own = []row{one}
		}
		out = append(out, own...)
	}
	return out
}

func (d *drawing) linkRows(l status.Link) (out []row) {
	rate := d.Rates[l.Interface]
	for _, f := range []string{"ipv4", "ipv6"} {
		var addresses []string
		for _, n := range l.Networks {
			for _, a := range n.Addresses {
				if n.Family == f {
					addresses = append(addresses, fmt.Sprintf("%s/%d", a.Address, a.Length))
				}
			}
		}
		if len(addresses) == 0 {
			continue
		}
		r := row{mark: " ", state: d.stateOf(l, f), address: addresses[0], gateway: strings.Join(hops(l, f), ", ")}
		if more := len(addresses) - 1; more > 0 {
			r.address += fmt.Sprintf(" +%d", more)
		}
		u, leaves := d.Document.Unbound[f]
		shares := slices.ContainsFunc(u.Shares, func(leg status.Leg) bool { return leg.Interface == l.Interface })
		if leaves && (u.Interface == l.Interface || shares) {
			r.mark, r.isDefault = "*", true
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		out = []row{{mark: " ", state: d.stateOf(l, ""), address: "no address yet"}}
	}
	first := &out[0]
	first.isFirst, first.name, first.role = true, l.Interface, l.Role
	first.in, first.out = Bits(rate.In), Bits(rate.Out)
	return out
}

// stateOf says what matters most of a link in a family.
func (d *drawing) stateOf(l status.Link, family string) cell {
	switch {
	case l.Draining:
		return cell{"going down", yellow}
	case !l.Up:
		return cell{"down", red}
	case !l.Carrier:
		return cell{"no carrier", red}
	case l.Pending:
		return cell{"coming up", yellow}
	}
	h, judged := d.Document.Failover.Of(l.Interface, family)
	if !judged {
		return cell{"-", dim}
	}
	text := word(h)
	switch h.State {
	case status.HealthUp:
		return cell{text, green}
	case status.HealthDown:
		return cell{text, red}
	case status.HealthSuspect, status.HealthRecovering:
		return cell{text, yellow}
	default:
		return cell{text, dim}
	}
}

// Bits writes a rate with three digits and a unit prefix of SI: "84.1M".
func Bits(rate float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if rate < unit.size*0.9995 {
			continue
		}
		n := rate / unit.size
		digits := 2
		if n >= 99.95 {
			digits = 0
		} else if n >= 9.995 {
			digits = 1
		}
		return fmt.Sprintf("%.*f%s", digits, n, unit.name)
	}
	return fmt.Sprintf("%.0f", rate)
}

// A column is one of the table; the narrow ones go first where there is no room.
type column struct {
	head  string
	of    func(row) cell
	right bool
	// atMost is its greatest width, 0 for any, atLeast its least: what changes all the time must not
	// move the others.
	atMost, atLeast int
}

const gap = 2

// Widths in which an IPv4 address with its length, and a gateway, nearly always have room.
const shortAddress, shortGateway = 18, 13

// table draws the rows. Columns that find no room are left out, the least important first.
func (d *drawing) table(rows []row) {
	name := column{head: "link", of: func(r row) cell { return cell{r.name, bold} }, atMost: 15}
	role := column{head: "role", of: func(r row) cell { return cell{r.role, plain} }}
	health := column{head: "health", of: func(r row) cell { return r.state }}
	in := column{head: "bit/s in", of: func(r row) cell { return cell{r.in, plain} }, right: true}
	out := column{head: "out", of: func(r row) cell { return cell{r.out, plain} }, right: true, atLeast: 5}
	address := column{head: "address", of: func(r row) cell { return cell{r.address, plain} }}
	gateway := column{head: "gateway", of: func(r row) cell { return cell{r.gateway, plain} }}
	if d.width >= 100 {
		name.atMost = 40
	}
	order := []*column{&name, &role, &health, &in, &out, &address, &gateway}
	byWorth := []*column{&name, &health, &in, &out, &role, &address, &gateway}
	width := map[*column]int{}
	left := d.width - 1 // of the mark
	for _, c := range byWorth {
		w := max(columns(c.head), c.atLeast)
		for _, r := range rows {
			w = max(w, columns(escape.Text(c.of(r).text)))
		}
		if c.atMost > 0 {
			w = min(w, c.atMost)
		}
		if c == &address {
			// An IPv6 address is longer than most rows need: the gateway of IPv4 has its room.
			if rest := left - w - gap; rest < shortGateway+gap && left-shortGateway-gap >= shortAddress+gap {
				w = min(w, left-shortGateway-2*gap)
			}
		}
		switch {
		case w+gap <= left:
		case c == &address && left >= 16+gap, c == &gateway && left >= 12+gap, c == &name:
			w = left - gap
		default:
			continue // It has no room.
		}
		if w < 1 {
			continue
		}
		width[c] = w
		left -= w + gap
	}
	lay := func(mark cell, of func(*column) cell) {
		cells := []cell{mark}
		isFirst := true
		for _, c := range order {
			w := width[c]
			if w == 0 {
				continue
			}
			if !isFirst {
				cells = append(cells, cell{strings.Repeat(" ", gap), plain})
			}
			isFirst = false
			content := of(c)
			text := cut(escape.Text(content.text), w)
			space := strings.Repeat(" ", w-columns(text))
			if c.right {
				cells = append(cells, cell{space, plain}, cell{text, content.style})
			} else {
				cells = append(cells, cell{text, content.style}, cell{space, plain})
			}
		}
		// Nothing stands behind the last text.
		for len(cells) > 0 && strings.TrimSpace(cells[len(cells)-1].text) == "" {
			cells = cells[:len(cells)-1]
		}
		d.line(cells...)
	}
	lay(cell{" ", plain}, func(c *column) cell { return cell{c.head, dim} })
	for _, r := range rows {
		lay(cell{r.mark, bold}, func(c *column) cell { return c.of(r) })
	}
}

// mostLines is how many lines one change may take.
const mostLines = 3

// changes are the lines of the newest events, as many as there is room for.
func (d *drawing) changes(most int) (out [][]cell) {
	const stamp = 9 // "15:04:05 "
	for i := len(d.Events) - 1; i >= 0 && len(out) < most; i-- {
		e := d.Events[i]
		if d.width <= 2*stamp {
			out = append(out, []cell{{e.Sentence(), styleOf(e)}})
			continue
		}
		lines := fold(e.Sentence(), d.width-stamp)
		if len(lines) > mostLines {
			lines = lines[:mostLines]
			lines[mostLines-1] = cut(lines[mostLines-1]+" …", d.width-stamp)
		}
		for j, text := range lines {
			if len(out) == most {
				break
			}
			when := strings.Repeat(" ", stamp)
			if j == 0 {
				when = e.Time.Local().Format(time.TimeOnly) + " "
			}
			out = append(out, []cell{{when, dim}, {text, styleOf(e)}})
		}
	}
	return out
}

// styleOf shows what needs a look.
func styleOf(e Event) style {
	switch {
	case e.Kind == Lost:
		return yellow
	case e.Kind == ProblemFound && strings.HasPrefix(e.Text, routing.Error.String()), e.Kind == HealthChanged && e.Object == string(status.HealthDown):
		return red
	case e.Kind == ProblemFound && strings.HasPrefix(e.Text, routing.Warning.String()), e.Kind == DefaultMoved:
		return yellow
	case e.Kind == ProblemFixed, e.Kind == HealthChanged && e.Object == string(status.HealthUp):
		return green
	case e.Party == Other:
		return bold
	default:
		return plain
	}
}

// A Counter is what an interface has received and sent, in bytes.
type Counter struct{ In, Out uint64 }

// Rates are what happened between two readings of the counters. A counter that went back began anew.
func Rates(was, now map[string]Counter, elapsed time.Duration) map[string]Rate {
	out := make(map[string]Rate, len(now))
	if elapsed <= 0 {
		return out
	}
	rate := func(was, now uint64) float64 {
		if now < was {
			return 0
		}
		return float64(now-was) * 8 / elapsed.Seconds()
	}
	for name, c := range now {
		if before, known := was[name]; known {
			out[name] = Rate{rate(before.In, c.In), rate(before.Out, c.Out)}
		}
	}
	return out
}
