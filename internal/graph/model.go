package graph

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/english"
	"multihomed/internal/escape"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A tone is how a line of text or a box looks.
type tone uint8

const (
	plain tone = iota
	heading
	faint
	good
	doubtful
	bad
	chosen // Of the flow.
)

type line struct {
	text string
	tone tone
}

// A class says whose a box is.
type class uint8

const (
	ours class = iota
	foreign
	absent // A device that is down.
)

// A mark is what a flow has to do with a box or an edge.
type mark uint8

const (
	unmarked mark = iota
	passed        // It was asked, and the lookup went on.
	decided
)

// A node is one box.
type node struct {
	id    string
	class class
	lines []line
	// full is the whole text, however long it is.
	full []string
	mark mark
	box  box
}

type box struct{ x, y, w, h float64 }

// An edge leads from a box to another one, by their places in their columns.
type edge struct {
	from, to int
	full     string
	// suppressed says that the rule takes only some routes of the table.
	suppressed bool
	// minor edges are those of networks, not of defaults.
	minor bool
	mark  mark
}

// A panel is the picture of one family.
type panel struct {
	family                 routing.Family
	rules, tables, devices []*node
	// gotos lead from rules to rules, lookups from rules to tables, routes from tables to devices.
	gotos, lookups, routes []edge
	numberOfRules          int
	flow                   *Flow
	answer                 string
}

// Widths of the columns, in columns of text.
const (
	ladderWidth = 60
	tableWidth  = 46
	deviceWidth = 44
	// many is from how many tables on each has one line.
	many = 12
	// longRun is how many rules of somebody else in a row get a box each.
	longRun = 10
	// fewDevices is up to how many devices the networks of one table are drawn to.
	fewDevices = 6
)

type builder struct {
	Facts
	panel   *panel
	compact bool
	names   map[int]string
	// tableAt and deviceAt find boxes; deviceAt is by interface index.
	tableAt  map[routing.TableID]int
	deviceAt map[int]int
}

func panels(f Facts, o Options) []*panel {
	families := o.Families
	if o.Flow != nil {
		families = []routing.Family{routing.FamilyOf(o.Flow.To)}
	} else if len(families) == 0 {
		all := routing.Families()
		families = all[:]
	}
	out := make([]*panel, len(families))
	for i, family := range families {
		out[i] = build(f, o, family)
	}
	return out
}

func build(f Facts, o Options, family routing.Family) *panel {
	b := &builder{Facts: f, panel: &panel{family: family, flow: o.Flow}, names: map[int]string{}, tableAt: map[routing.TableID]int{}, deviceAt: map[int]int{}}
	for _, d := range f.Devices {
		b.names[d.Index] = d.Name
	}
	var rules []routing.Rule
	for _, r := range f.Rules {
		if r.Family == family {
			rules = append(rules, r)
		}
	}
	b.panel.numberOfRules = len(rules)
	steps := stepsOf(o.Flow, rules)
	groups := b.grouped(rules, steps, o.All)
	asked := b.tablesOf(rules)
	b.compact = len(asked) > many
	for _, t := range asked {
		b.tableAt[t] = len(b.panel.tables)
		b.panel.tables = append(b.panel.tables, b.table(t))
	}
	b.ladder(rules, groups, steps)
	b.leadToDevices(asked)
	if o.Flow != nil {
		b.panel.answer = b.answer(o.Flow)
	}
	return b.panel
}

// tablesOf lists the tables that rules lead to, in their order.
func (b *builder) tablesOf(rules []routing.Rule) []routing.TableID {
	var out []routing.TableID
	seen := map[routing.TableID]bool{}
	for _, r := range rules {
		for _, t := range b.leadsTo(r) {
			if !seen[t] {
				seen[t] = true
				out = append(out, t)
			}
		}
	}
	return out
}

// leadsTo are the tables that a rule reads: one, or those of all VRFs.
func (b *builder) leadsTo(r routing.Rule) []routing.TableID {
	switch {
	case r.Action != routing.ActionLookup:
		return nil
	case !r.L3MDev:
		return []routing.TableID{r.Table}
	}
	var out []routing.TableID
	for _, d := range b.Devices {
		if d.Table != 0 {
			out = append(out, d.Table)
		}
	}
	return out
}

// stepsOf finds the rules that a flow asked.
func stepsOf(f *Flow, rules []routing.Rule) map[int]lookup.Step {
	out := map[int]lookup.Step{}
	if f == nil {
		return out
	}
	at := 0
	for _, s := range f.Steps {
		if i := slices.Index(rules[at:], s.Rule); i >= 0 {
			out[at+i] = s
			at += i + 1
		}
	}
	return out
}

// isOurs reports whether multihomed made a rule.
func isOurs(r routing.Rule) bool { return r.Protocol == routing.Multihomed }

// grouped puts rules that belong together into one box: those of multihomed of one priority, and
// those of others where very many stand in a row. What a flow matched stands alone.
func (b *builder) grouped(rules []routing.Rule, steps map[int]lookup.Step, all bool) [][]int {
	matched := func(i int) bool { s, asked := steps[i]; return asked && s.Result != lookup.Unmatched }
	var out [][]int
	for i := 0; i < len(rules); {
		end := i + 1
		// Where the flow stopped, the box ends, so that a box says one thing of it.
		same := func(j int) bool {
			_, a := steps[i]
			_, b := steps[j]
			return !matched(j) && a == b
		}
		switch {
		case all || matched(i):
		case isOurs(rules[i]):
			for end < len(rules) && isOurs(rules[end]) && rules[end].Priority == rules[i].Priority && b.alike(rules[i], rules[end]) && same(end) {
				end++
			}
		default:
			for end < len(rules) && !isOurs(rules[end]) && !rules[end].Kernels() && !rules[i].Kernels() && same(end) {
				end++
			}
			if end-i <= longRun {
				end = i + 1
			}
		}
		group := make([]int, 0, end-i)
		for ; i < end; i++ {
			group = append(group, i)
		}
		out = append(out, group)
	}
	return out
}

// alike reports whether two rules of ours stand for the same reason.
func (b *builder) alike(r, o routing.Rule) bool {
	_, why := b.reason(r)
	_, other := b.reason(o)
	return why.Decision == other.Decision
}

// ladder makes the boxes of the rules and what leads from them.
func (b *builder) ladder(rules []routing.Rule, groups [][]int, steps map[int]lookup.Step) {
	at := map[int]int{}
	for n, group := range groups {
		for _, i := range group {
			at[i] = n
		}
	}
	for n, group := range groups {
		some := make([]routing.Rule, len(group))
		for i, index := range group {
			some[i] = rules[index]
		}
		rung := b.rules(some)
		rung.id = fmt.Sprintf("%s-rule-%d", b.panel.family, n)
		b.stepped(rung, group, steps)
		b.panel.rules = append(b.panel.rules, rung)
		b.lead(n, some, rung.mark)
		b.jump(n, group, rules, at, rung.mark)
	}
}

// lead makes the edges from a box of rules to tables.
func (b *builder) lead(n int, some []routing.Rule, m mark) {
	found := map[routing.TableID]int{}
	for _, r := range some {
		for _, t := range b.leadsTo(r) {
			text := fmt.Sprintf("%d: %s", r.Priority, ruleText(r))
			suppressed := r.SuppressPrefixLength.Set || r.SuppressGroup.Set
			if i, is := found[t]; is {
				e := &b.panel.lookups[i]
				e.full = text + "\n" + e.full
				e.suppressed = e.suppressed && suppressed
				continue
			}
			found[t] = len(b.panel.lookups)
			e := edge{from: n, to: b.tableAt[t], full: text, suppressed: suppressed}
			// A box of rules that do not match leads nowhere for the flow, and one that matches
			// is one rule, which with l3mdev asks the table of one VRF.
			if f := b.panel.flow; f != nil && m != unmarked && len(some) == 1 && slices.ContainsFunc(f.Steps, func(s lookup.Step) bool {
				return s.Rule == r && s.Result >= lookup.Empty && (s.Table == t || s.Table == 0)
			}) {
				e.mark = m
				b.panel.tables[e.to].mark = max(b.panel.tables[e.to].mark, m)
			}
			b.panel.lookups = append(b.panel.lookups, e)
		}
	}
}

// jump makes the edges of goto rules.
func (b *builder) jump(n int, group []int, rules []routing.Rule, at map[int]int, m mark) {
	seen := map[int]bool{}
	for _, i := range group {
		r := rules[i]
		if r.Action != routing.ActionGoto {
			continue
		}
		// A goto whose target is missing or stands in front does nothing (fib_rules_lookup).
		target := slices.IndexFunc(rules, func(t routing.Rule) bool { return t.Priority == r.Goto })
		if target < i || seen[at[target]] || at[target] == n {
			continue
		}
		seen[at[target]] = true
		e := edge{from: n, to: at[target], full: fmt.Sprintf("%d: %s", r.Priority, ruleText(r))}
		if len(group) == 1 && m != unmarked && slices.ContainsFunc(b.panel.flow.Steps, func(s lookup.Step) bool { return s.Rule == r && s.Result == lookup.Jumped }) {
			e.mark = m
		}
		b.panel.gotos = append(b.panel.gotos, e)
	}
}

// rules makes the box of some rules.
func (b *builder) rules(some []routing.Rule) *node {
	first, last := some[0], some[len(some)-1]
	n := &node{class: foreign}
	head := strconv.FormatUint(uint64(first.Priority), 10)
	if last.Priority != first.Priority {
		head += "-" + strconv.FormatUint(uint64(last.Priority), 10)
	}
	var why string
	if isOurs(first) {
		n.class = ours
		rung, reason := b.reason(first)
		if rung != "" {
			head += ": " + rung
		}
		why = reason.Decision.Sentence()
		if len(some) == 1 && reason.Link != "" {
			why = escaped(reason.Link) + ": " + why
		}
	} else {
		why = "rules of other programs"
		if len(some) == 1 {
			why = whose(first)
		}
	}
	if len(some) > 1 {
		head += fmt.Sprintf(" (%d rules)", len(some))
	}
	n.lines = append(n.lines, line{head, heading})
	shapes := forms(some)
	const mostShapes = 3
	for i, text := range shapes {
		if i == mostShapes-1 && len(shapes) > mostShapes {
			n.add(plain, fmt.Sprintf("and rules of %d other forms", len(shapes)-i))
			break
		}
		for _, l := range wrap(text, ladderWidth, 2) {
			n.add(plain, l)
		}
	}
	for _, l := range wrap(why, ladderWidth, 2) {
		n.add(faint, l)
	}
	for _, r := range some {
		n.full = append(n.full, fmt.Sprintf("%d: %s", r.Priority, ruleText(r)))
	}
	return n
}

func (n *node) add(t tone, text string) { n.lines = append(n.lines, line{text, t}) }

// reason is the rung of a rule of ours, and why it stands. Without a word of multihomed it is that
// of its priority.
func (b *builder) reason(r routing.Rule) (rung string, why Reason) {
	why, known := b.Reasons[r]
	if !known && r.ServesFailover() && r.Priority != routing.PriorityTwin {
		why, known = Reason{Decision: routing.FollowLiving}, true
	}
	for _, l := range routing.Ladder() {
		if known && l.Contains(r.Priority) && l.Decision == why.Decision {
			return l.Name, why
		}
	}
	l, is := routing.RungOf(r.Priority)
	if !known && is {
		why.Decision = l.Decision
	}
	return l.Name, why
}

// whose says who made a rule that is not ours, as far as it says so.
func whose(r routing.Rule) string {
	switch {
	case r.Kernels():
		return "rule of the kernel"
	case r.L3MDev && r.Protocol == routing.ProtocolKernel:
		return "rule of the kernel for VRFs"
	case r.Protocol == 0, r.Protocol == routing.ProtocolBoot, r.Protocol == routing.ProtocolStatic:
		return "rule of another program"
	default:
		return "rule of another program (" + r.Protocol.String() + ")"
	}
}

// stepped says in a box what the flow did there.
func (b *builder) stepped(n *node, group []int, steps map[int]lookup.Step) {
	s, asked := steps[group[0]]
	if !asked {
		return
	}
	n.mark = passed
	switch {
	case s.Result == lookup.Unmatched && len(group) > 1:
		n.add(chosen, "– none matches")
	case s.Result == lookup.Unmatched && s.Selector != lookup.NoSelector:
		n.add(chosen, "– does not match: "+string(s.Selector))
	case s.Result == lookup.Unmatched:
		n.add(chosen, "– does not match")
	case s.Result == lookup.Decided:
		n.mark = decided
		n.add(chosen, "→ matches, and decides")
	case s.Result == lookup.Jumped:
		n.add(chosen, fmt.Sprintf("→ matches, and goes to %d", s.Rule.Goto))
	case s.Route.Destination.IsValid():
		for _, l := range wrap(fmt.Sprintf("– matches: %s, %s", b.routeText(s.Route), s.Result), ladderWidth, 2) {
			n.add(chosen, l)
		}
	default:
		n.add(chosen, "– matches: "+s.Result.String())
	}
}

func kindOf(r routing.Route) string {
	no := r.Refuses()
	switch {
	case no != "":
		return no + " "
	case r.Type == routing.RouteThrow:
		return "throw "
	case r.Type == routing.RouteLocal:
		return "local "
	default:
		return ""
	}
}

// routeText is the part of a route that tells it from others of its table.
func (b *builder) routeText(r routing.Route) string {
	text := kindOf(r)
	switch {
	case r.Destination.Bits() == 0:
		text += "default"
	case r.Destination.IsSingleIP():
		text += r.Destination.Addr().String()
	default:
		text += r.Destination.String()
	}
	if r.Source.IsValid() {
		text += " from " + r.Source.String()
	}
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	if r.Device != 0 && (r.Type == routing.RouteUnicast || r.Type == routing.RouteLocal) {
		text += " dev " + b.device(r.Device)
	}
	return text
}

func (b *builder) device(index int) string {
	if name, known := b.names[index]; known {
		return escape.Name(name)
	}
	return "if" + strconv.Itoa(index)
}

// A digest is what a table holds in short.
type digest struct {
	defaults, networks, hosts, refusals []routing.Route
	// addresses counts routes to this host itself, linkLocal those of fe80::/10.
	addresses, linkLocal, groups int
}

func digestOf(routes []routing.Route) digest {
	var d digest
	for _, r := range routes {
		switch {
		case r.Type == routing.RouteLocal || r.Type == routing.RouteAnycast:
			d.addresses++
		case r.Type == routing.RouteBroadcast || r.Type == routing.RouteMulticast || r.Destination.Addr().IsMulticast():
			d.groups++
		case r.Type != routing.RouteUnicast:
			d.refusals = append(d.refusals, r)
		case r.Destination.Bits() == 0:
			d.defaults = append(d.defaults, r)
		case r.Destination.Addr().IsLinkLocalUnicast() && r.Family == routing.IPv6:
			d.linkLocal++
		case r.Destination.IsSingleIP():
			d.hosts = append(d.hosts, r)
		default:
			d.networks = append(d.networks, r)
		}
	}
	return d
}

// counts says how many routes of each kind there are, beside those that are shown.
func (d digest) counts(defaults, networks int) string {
	var parts []string
	add := func(n int, noun string) {
		if n > 0 {
			parts = append(parts, english.Count(n, noun))
		}
	}
	add(len(d.defaults)-defaults, "default")
	add(len(d.networks)-networks, "network")
	add(len(d.hosts), "host route")
	add(d.linkLocal, "link-local network")
	add(d.addresses, "local address")
	for _, r := range d.refusals {
		if len(d.refusals) > 3 {
			add(len(d.refusals), "refusing or throw route")
			break
		}
		parts = append(parts, kindOf(r)+shortPrefix(r.Destination))
	}
	return strings.Join(parts, ", ")
}

func shortPrefix(p netip.Prefix) string {
	switch {
	case p.Bits() == 0:
		return "default"
	case p.IsSingleIP():
		return p.Addr().String()
	default:
		return p.String()
	}
}

// table makes the box of a table.
func (b *builder) table(t routing.TableID) *node {
	f := b.panel.family
	n := &node{id: fmt.Sprintf("%s-table-%d", f, t), class: foreign}
	head := t.String()
	owner := b.Owners[f][t]
	if owner != "" {
		n.class = ours
		head += ": " + owner
	}
	routes := b.Tables[f][t]
	for i, r := range routes {
		const mostFull = 40
		if i == mostFull {
			n.full = append(n.full, fmt.Sprintf("and %d more", len(routes)-i))
			break
		}
		n.full = append(n.full, b.routeText(r))
	}
	d := digestOf(routes)
	flow := b.routeOfFlow(t)
	switch {
	case b.Partial[f][t]:
		n.lines = []line{{cut(head, tableWidth), heading}, {"too many routes to be listed", plain}}
	case b.compact:
		text := d.counts(0, 0)
		if len(d.defaults) == 1 {
			text = cut(b.routeText(d.defaults[0]), tableWidth)
			if rest := d.counts(1, 0); rest != "" && columns(text)+2+columns(rest) <= tableWidth {
				text += ", " + rest
			}
		}
		n.lines = []line{{cut(head, tableWidth), heading}}
		for _, l := range wrap(orEmpty(text), tableWidth, 2) {
			n.add(plain, l)
		}
	default:
		n.lines = []line{{cut(head, tableWidth), heading}}
		const mostDefaults, mostNetworks = 3, 3
		defaults, networks := d.defaults[:min(len(d.defaults), mostDefaults)], d.networks[:min(len(d.networks), mostNetworks)]
		for _, r := range slices.Concat(defaults, networks) {
			if flow != nil && *flow == r {
				continue // It has a line of its own.
			}
			n.add(plain, cut(b.routeText(r), tableWidth))
		}
		if rest := d.counts(len(defaults), len(networks)); rest != "" || len(n.lines) == 1 && flow == nil {
			if len(defaults)+len(networks) > 0 {
				rest = "and " + rest
			}
			for _, l := range wrap(orEmpty(rest), tableWidth, 2) {
				n.add(plain, l)
			}
		}
	}
	if flow != nil {
		n.add(chosen, cut("→ "+b.routeText(*flow), tableWidth))
	}
	return n
}

func orEmpty(text string) string {
	if text == "" {
		return "no routes"
	}
	return text
}

// routeOfFlow is the route that decides, if it is in a table.
func (b *builder) routeOfFlow(t routing.TableID) *routing.Route {
	if f := b.panel.flow; f != nil && f.Verdict.Route.Destination.IsValid() && f.Verdict.Route.Table == t {
		return &f.Verdict.Route
	}
	return nil
}

// leadToDevices makes the boxes of devices, and the edges to them.
func (b *builder) leadToDevices(asked []routing.TableID) {
	f := b.panel.family
	for _, t := range asked {
		if t == routing.TableLocal && b.routeOfFlow(t) == nil {
			continue // Its routes lead to this host.
		}
		b.leadToDevicesOf(t, digestOf(b.Tables[f][t]))
	}
	for _, d := range b.Devices {
		_, drawn := b.deviceAt[d.Index]
		if _, isLink := b.Links[d.Name]; !drawn && d.Name != routing.Loopback && (isLink || len(b.addresses(d)) > 0) {
			b.reach(d.Index)
		}
	}
}

func (b *builder) leadToDevicesOf(t routing.TableID, d digest) {
	type way struct {
		minor bool
		full  []string
	}
	ways, order := map[int]*way{}, []int{}
	take := func(routes []routing.Route, minor bool) {
		for _, r := range routes {
			w := ways[r.Device]
			if r.Device == 0 {
				continue
			}
			if w == nil {
				w = &way{minor: minor}
				ways[r.Device] = w
				order = append(order, r.Device)
			}
			const mostFull = 12
			if len(w.full) < mostFull {
				w.full = append(w.full, b.routeText(r))
			}
		}
	}
	take(d.defaults, false)
	take(d.networks, true)
	take(d.hosts, true)
	flow := map[int]bool{}
	if v := b.panel.flow; v != nil && b.routeOfFlow(t) != nil {
		for _, leg := range v.Verdict.Legs {
			flow[leg.Device] = true
			take([]routing.Route{leg}, true)
		}
	}
	isCrowd := len(order) > fewDevices
	for _, index := range order {
		w := ways[index]
		at := b.reach(index)
		if isCrowd && w.minor && !flow[index] {
			continue // The table says how many there are.
		}
		e := edge{from: b.tableAt[t], to: at, minor: w.minor, full: strings.Join(w.full, "\n")}
		if flow[index] {
			e.mark = decided
			b.panel.devices[at].mark = decided
		}
		b.panel.routes = append(b.panel.routes, e)
	}
}

// reach returns the place of the box of a device, and makes it if there is none.
func (b *builder) reach(index int) int {
	if at, drawn := b.deviceAt[index]; drawn {
		return at
	}
	b.deviceAt[index] = len(b.panel.devices)
	b.panel.devices = append(b.panel.devices, b.deviceBox(index))
	return b.deviceAt[index]
}

// addresses are those of a device in the family; of IPv6 without link-local ones.
func (b *builder) addresses(d Device) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range d.Addresses {
		if routing.FamilyOf(a.Addr()) == b.panel.family && (a.Addr().Is4() || !a.Addr().IsLinkLocalUnicast()) {
			out = append(out, a)
		}
	}
	return out
}

func (b *builder) deviceBox(index int) *node {
	f := b.panel.family
	n := &node{id: fmt.Sprintf("%s-device-%d", f, index), class: foreign}
	at := slices.IndexFunc(b.Devices, func(d Device) bool { return d.Index == index })
	if at < 0 {
		n.add(heading, b.device(index))
		return n
	}
	d := b.Devices[at]
	head := escape.Name(d.Name)
	link, isLink := b.Links[d.Name]
	if isLink {
		n.class = ours
		var says []string
		switch role := link.Roles[f]; role {
		case "":
		case "local":
			says = append(says, "local link")
		default:
			says = append(says, role)
		}
		if link.Profile != "" && link.Profile != d.Name {
			says = append(says, escape.Name(link.Profile))
		}
		if len(says) > 0 {
			head += ": " + strings.Join(says, ", ")
		}
	}
	state, why := b.state(d, link)
	if state.tone == bad && !isLink {
		n.class = absent
	}
	addresses := b.addresses(d)
	n.full = append(n.full, head)
	for _, a := range addresses {
		n.full = append(n.full, a.String())
	}
	if n.full = append(n.full, state.text); why != "" {
		n.full = append(n.full, why)
	}
	const mostAddresses = 3
	var shown []string
	for i, a := range addresses {
		if i == mostAddresses-1 && len(addresses) > mostAddresses || i == 1 && b.compact && len(addresses) > 1 {
			shown = append(shown, fmt.Sprintf("and %d more", len(addresses)-i))
			break
		}
		shown = append(shown, a.String())
	}
	n.add(heading, cut(head, deviceWidth))
	if b.compact {
		text := strings.Join(append([]string{state.text}, shown...), ", ")
		n.add(state.tone, cut(text, deviceWidth))
		return n
	}
	for _, text := range shown {
		n.add(plain, cut(text, deviceWidth))
	}
	n.lines = append(n.lines, line{cut(state.text, deviceWidth), state.tone})
	return n
}

// state says whether a device works. A sign says it besides the colour.
func (b *builder) state(d Device, l Link) (line, string) {
	switch h, watched := l.Health[b.panel.family]; {
	case !d.Up:
		return line{"× switched off", bad}, ""
	case !d.Carrier:
		return line{"× no carrier", bad}, ""
	case !watched:
		return line{"up", faint}, ""
	default:
		sign, t := "●", faint
		switch h.Level {
		case Good:
			t = good
		case Doubtful:
			sign, t = "▲", doubtful
		case Bad:
			sign, t = "×", bad
		case Neutral:
			sign = "○"
		}
		return line{sign + " " + escape.Text(h.State), t}, escape.Text(h.Why)
	}
}

// question is a flow in the words of `ip route get`.
func question(f *Flow) string {
	text := f.To.String()
	add := func(wanted bool, format string, args ...any) {
		if wanted {
			text += fmt.Sprintf(format, args...)
		}
	}
	add(f.From.IsValid(), " from %s", f.From)
	add(f.IIF != "", " iif %s", escaped(f.IIF))
	add(f.OIF != "", " oif %s", escaped(f.OIF))
	add(f.Mark != 0, " mark %#x", f.Mark)
	add(f.UID != 0, " uid %d", f.UID)
	add(f.IPProto != 0, " proto %d", f.IPProto)
	add(f.SourcePort != 0, " sport %d", f.SourcePort)
	add(f.DestinationPort != 0, " dport %d", f.DestinationPort)
	add(f.TOS != 0, " tos %#x", f.TOS)
	return text
}

// answer says in one sentence what becomes of a flow.
func (b *builder) answer(f *Flow) string {
	v := f.Verdict
	text := question(f)
	where := ""
	if v.Rule.Action != 0 {
		where = fmt.Sprintf(" (rule %d", v.Rule.Priority)
		if v.Route.Destination.IsValid() {
			where += fmt.Sprintf(", table %s", v.Route.Table)
		}
		where += ")"
		if v.Suppressed {
			where += "; the rule suppresses this route, but no later rule looks up a table, and kernels before Linux 7.2 take the route all the same"
		}
	}
	switch {
	case v.Assumed:
		text += " leaves by " + escaped(f.OIF) + ", as if it were a neighbor: no rule has a route"
	case v.Outcome == lookup.Sent && len(v.Legs) > 1:
		names := make([]string, len(v.Legs))
		for i, l := range v.Legs {
			names[i] = b.device(l.Device)
		}
		text += " leaves by one of " + strings.Join(names, ", ") + where
	case v.Outcome == lookup.Sent:
		way := v.Route
		if len(v.Legs) > 0 {
			way = v.Legs[0] // Multicast may have no route.
		}
		text += " leaves by " + b.device(way.Device)
		if way.Gateway.IsValid() {
			text += " via " + way.Gateway.String()
		}
		text += where
	case v.Outcome == lookup.Local:
		text += " stays on this host" + where
	case v.Objection != lookup.NoObjection:
		text += " goes nowhere: " + v.Objection.String() // No rule says so.
	default:
		text += " goes nowhere: " + v.Refusal.String() + where
	}
	if f.Difference != "" {
		text += "; the kernel answers otherwise: " + escape.Text(f.Difference)
	}
	if v.Lacking {
		text += "; a table was not read, so the kernel may answer otherwise"
	}
	if v.Uncertain {
		text += "; a rule has attributes that are unknown here, so the kernel may answer otherwise"
	}
	return text
}
