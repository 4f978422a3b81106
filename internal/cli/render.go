package cli

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"multihomed/internal/doctor"
	"multihomed/internal/english"
	"multihomed/internal/status"
	"multihomed/routing"
)

// A look is how a status is shown.
type look struct {
	paint painter
	// width of the terminal.
	width int
	// verbose shows every rule and route with its reason.
	verbose bool
	// only are the words that selected what is shown, none for all.
	only []string
	// found are findings of doctor that are no problems of the status.
	found []doctor.Finding
}

// render shows a status to a person.
func render(w io.Writer, s Status, how look) error {
	r := &renderer{look: how, s: s}
	r.head()
	r.links()
	r.shared()
	r.otherRules()
	r.others()
	r.problems()
	r.examined()
	r.unread()
	_, err := io.WriteString(w, r.b.String())
	return err
}

type renderer struct {
	look
	s Status
	b strings.Builder
}

func (r *renderer) line(format string, args ...any) {
	r.b.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " "))
	r.b.WriteByte('\n')
}

// headWidth is the width of the names in the head.
const headWidth = len("NetworkManager")

func (r *renderer) head() {
	row := func(name string, s style, state, rest string) {
		r.line("%s  %s%s", r.paint.pad(plain, name, headWidth), r.paint.paint(s, state), rest)
	}
	d := r.s.Daemon
	var about []string
	if d.Version != "" {
		about = append(about, "version "+d.Version)
	}
	if d.PID != 0 {
		about = append(about, fmt.Sprintf("process %d", d.PID))
	}
	if d.Started != nil {
		about = append(about, "since "+d.Started.Format(time.DateTime))
	}
	rest := ""
	if len(about) > 0 {
		rest = ": " + clean(strings.Join(about, ", "))
	}
	switch {
	case r.s.Off != nil:
		row("multihomed", yellow, "switched off", r.s.Off.Text())
	case !d.Running && d.Kept != "":
		row("multihomed", yellow, "not running ("+clean(d.Kept)+")", ": rules and routes do not follow changes")
	case !d.Running && d.Refused:
		row("multihomed", yellow, "not running", ": its configuration is refused, hooks do nothing")
	case !d.Running:
		row("multihomed", yellow, "not running", ": hooks follow links that come and go")
	case d.Waiting != "":
		row("multihomed", yellow, "waiting", ": "+clean(d.Waiting))
	case !d.Ready:
		row("multihomed", yellow, "starting", rest)
	default:
		row("multihomed", green, "running", rest)
	}

	m := r.s.NetworkManager
	version := ""
	if m.Version != "" {
		version = ": version " + clean(m.Version)
	}
	switch {
	case m.Unwanted != "":
		row("NetworkManager", plain, clean(m.Unwanted), "")
	case m.None:
		row("NetworkManager", plain, "not installed", "")
	case m.Error != "":
		row("NetworkManager", yellow, "unknown", ": it cannot be reached")
	case !m.Running:
		row("NetworkManager", yellow, "not running", "")
	case !m.Complete:
		row("NetworkManager", yellow, "starting", version)
	default:
		row("NetworkManager", green, "running", version)
	}

	if r.s.By == status.ByHost && d.Running {
		r.folded("", yellow, "multihomed does not answer: this status was read from the kernel")
	}
	c := r.s.InForce
	if c.Planned == 0 && c.Unexpected == 0 {
		why := ": there are no links"
		switch {
		case r.s.Off != nil:
			why = ": all traffic follows the main table"
		case len(r.only) > 0:
			why = ": no link is shown"
		}
		row("routing", plain, "none", why)
		r.bindings()
		return
	}
	if r.isBare() {
		row("routing", red, "none", ": all traffic follows the main table")
		r.unbound()
		return
	}
	text := fmt.Sprintf("%d of %d", c.Present, c.Planned)
	more := " rules and routes active, on " + english.Count(len(r.s.Links), "link")
	if c.Unexpected > 0 {
		more += fmt.Sprintf(", %d to remove", c.Unexpected)
	}
	row("routing", stateStyle(c), text, more)
	r.unbound()
}

// isBare reports whether nothing of multihomed is active because it does not run.
func (r *renderer) isBare() bool {
	return !r.s.Daemon.Running && r.s.InForce.Present == 0 && r.s.InForce.Unexpected == 0
}

// unbound says by which interface packets leave that are bound to no link.
func (r *renderer) unbound() {
	if len(r.only) > 0 || len(r.s.Links) == 0 {
		return
	}
	ways := map[string][]string{}
	var order []string
	for _, f := range []string{"ipv4", "ipv6"} {
		u, leaves := r.s.Unbound[f]
		if !leaves {
			continue
		}
		way := wayOf(u)
		if ways[way] == nil {
			order = append(order, way)
		}
		ways[way] = append(ways[way], status.FamilyName(f))
	}
	for i, way := range order {
		order[i] = strings.Join(ways[way], " and ") + " by " + way
	}
	text := strings.Join(order, ", ")
	if text == "" {
		text = "none"
	}
	r.folded(r.paint.pad(plain, "default route", headWidth)+"  ", plain, text)
	r.answers()
	r.bindings()
	if n := r.s.Unchecked; n > 0 {
		r.line("%s  the traffic of %s is not checked yet", r.paint.pad(plain, "", headWidth), english.Count(n, "link"))
	}
}

// bindings says what is bound, one line each.
func (r *renderer) bindings() {
	if len(r.only) > 0 {
		return
	}
	label := "bindings"
	for _, b := range r.s.Bindings {
		how := plain
		if b.State != status.BindingActive {
			how = yellow
		}
		r.folded(r.paint.pad(plain, label, headWidth)+"  ", how, boundLine(b))
		label = ""
	}
}

// answers says for which families forwarded packets are answered on the link on which they were
// asked. Where they are not, and nobody asked for them, nothing is said.
func (r *renderer) answers() {
	a := r.s.Answers
	if a == nil {
		return
	}
	var on, off []string
	for _, f := range a.Families {
		switch {
		case f.Answers:
			on = append(on, status.FamilyName(f.Family))
		case r.verbose:
			off = append(off, status.FamilyName(f.Family)+" as main says ("+clean(f.Why)+")")
		}
	}
	var parts []string
	if len(on) > 0 {
		parts = append(parts, strings.Join(on, " and ")+" on the link that was asked")
	}
	parts = append(parts, off...)
	if a.Dropped > 0 {
		parts = append(parts, english.Count(int(min(a.Dropped, math.MaxInt32)), "stray packet")+" dropped")
	}
	if len(parts) > 0 {
		r.folded(r.paint.pad(plain, "answers", headWidth)+"  ", plain, strings.Join(parts, ", "))
	}
}

// wayOf names the way of unbound traffic: its interface, and what decides if main does not.
func wayOf(u status.Unbound) string {
	way := clean(u.Interface)
	switch {
	case len(u.Shares) > 1:
		parts := make([]string, 0, len(u.Shares))
		for _, leg := range u.Shares {
			parts = append(parts, fmt.Sprintf("%s (weight %d)", clean(leg.Interface), leg.Weight))
		}
		last := len(parts) - 1
		text := strings.Join(parts[:last], ", ") + " and " + parts[last]
		if u.Main != "" {
			text += " (main says " + clean(u.Main) + ")"
		}
		return text
	case u.Main != "":
		return way + " (main says " + clean(u.Main) + ")"
	case u.Table != uint32(routing.TableMain):
		return way + fmt.Sprintf(" (table %d)", u.Table)
	default:
		return way
	}
}

// mostOtherRules is how many rules of others are shown without --verbose.
const mostOtherRules = 6

// otherRules lists the rules of others that affect traffic, by what they affect.
func (r *renderer) otherRules() {
	if len(r.s.OtherRules) == 0 || len(r.only) > 0 {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(dim, "rules of other programs"))
	shown := 0
	for _, group := range []struct {
		heading string
		places  []string
	}{
		{"before the rules of multihomed", []string{status.Ahead}},
		{"for traffic that is bound to no link", []string{status.Behind, status.SteppedOver}},
		{"for the packets that they select", []string{status.Selects}},
	} {
		isFirst := true
		for _, o := range r.s.OtherRules {
			if !slices.Contains(group.places, o.Place) {
				continue
			}
			if shown == mostOtherRules && !r.verbose {
				r.line("  %s", r.paint.paint(dim, fmt.Sprintf("and %d more, see multihomectl status -v", len(r.s.OtherRules)-shown)))
				return
			}
			if shown++; isFirst {
				isFirst = false
				r.line("  %s", r.paint.paint(dim, group.heading))
			}
			r.line("    %s", r.paint.paint(dim, familyFlag(o.Family)+" "+clean(o.Text)))
		}
	}
}

func stateStyle(c Count) style {
	if c.Complete() {
		return green
	}
	return red
}

// familyFlag is how ip(8) takes a family.
func familyFlag(f string) string {
	if f == "ipv6" {
		return "-6"
	}
	return "-4"
}

// columnWidths are those of all links, so that tables line up.
type columnWidths struct{ name, role, active, prefix, table int }

func (r *renderer) widths() columnWidths {
	var w columnWidths
	for _, l := range r.s.Links {
		w.name = max(w.name, columns(clean(l.Interface)))
		w.role = max(w.role, columns(l.Role))
		w.active = max(w.active, columns(activeText(l)))
		for _, n := range l.Networks {
			w.prefix = max(w.prefix, columns(networkText(n)))
			w.table = max(w.table, columns(tableText(n)))
		}
	}
	return w
}

func activeText(l Link) string {
	if l.InForce.Present == 0 && l.InForce.Unexpected == 0 && l.InForce.Planned > 0 {
		return "not active"
	}
	return fmt.Sprintf("%d/%d active", l.InForce.Present, l.InForce.Planned)
}

// networkText names a network. One of a single host address is that address.
func networkText(n Network) string {
	switch {
	case isItsAddress(n):
		return n.Addresses[0].Address.String()
	case n.HostAddresses:
		return "host addresses"
	default:
		return n.Prefix.String()
	}
}

func isItsAddress(n Network) bool { return n.HostAddresses && len(n.Addresses) == 1 }

func tableText(n Network) string {
	if n.Table == 0 {
		return "no table"
	}
	return fmt.Sprintf("table %d", n.Table)
}

func (r *renderer) links() {
	w := r.widths()
	for _, l := range r.s.Links {
		r.line("")
		r.link(l, w)
	}
}

func (r *renderer) link(l Link, w columnWidths) {
	var about []string
	if l.Profile != "" {
		about = append(about, "profile "+clean(l.Profile))
	}
	s := dim
	switch {
	case l.Draining:
		about = append(about, "going down: "+clean(l.Why))
		s = yellow
	case l.Pending:
		about = append(about, "coming up")
		s = yellow
	case !l.Up:
		about = append(about, "down")
		s = yellow
	case !l.Carrier:
		about = append(about, "no carrier")
		s = yellow
	}
	r.line("%s  %s  %s  %s",
		r.paint.pad(bold, clean(l.Interface), w.name), r.paint.pad(plain, l.Role, w.role),
		r.paint.pad(stateStyle(l.InForce), activeText(l), w.active), r.paint.paint(s, strings.Join(about, ", ")))

	r.roles(l)
	family := ""
	for i, n := range l.Networks {
		name := ""
		if n.Family != family {
			family, name = n.Family, status.FamilyName(n.Family)
		}
		r.network(l, n, name, w)
		if i+1 == len(l.Networks) || l.Networks[i+1].Family != family {
			r.health(l.Interface, family)
		}
	}
	if len(l.Networks) == 0 && len(l.LeftAlone) == 0 && len(l.Unused) == 0 {
		r.line("  %s", r.paint.paint(yellow, "no address yet"))
	}
	for _, f := range slices.Sorted(maps.Keys(l.LeftAlone)) {
		r.folded("  "+status.FamilyName(f)+"  ", dim, "left alone: "+clean(l.LeftAlone[f]))
	}
	for _, a := range l.Unused {
		r.line("  %s  %s", familyOfAddress(a), r.address(a))
	}
	if r.verbose && l.Since != nil {
		r.line("  %s", r.paint.paint(dim, "unchanged since "+l.Since.Format(time.DateTime)))
	}
	r.objects(l.Objects, l.InForce)
}

// roles says what the link is in each family if that differs, and why.
func (r *renderer) roles(l Link) {
	if len(l.Roles) == 0 {
		if r.verbose && l.RoleWhy != "" {
			r.folded("  "+l.Role+": ", dim, clean(l.RoleWhy))
		}
		return
	}
	families := slices.Sorted(maps.Keys(l.Roles))
	slices.SortStableFunc(families, func(a, b string) int { return -strings.Compare(l.Roles[a].Role, l.Roles[b].Role) })
	var parts []string
	for _, f := range families {
		parts = append(parts, roleName(l.Roles[f].Role)+" for "+status.FamilyName(f))
	}
	r.line("  %s", strings.Join(parts, ", "))
	for _, f := range families {
		if r.verbose && l.Roles[f].Why != "" {
			r.folded("  "+status.FamilyName(f)+": ", dim, clean(l.Roles[f].Why))
		}
	}
}

func roleName(role string) string {
	if role == "local" {
		return "local link"
	}
	return role
}

func familyOfAddress(a Address) string {
	if a.Address.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func (r *renderer) network(l Link, n Network, name string, w columnWidths) {
	tableStyle := cyan
	if n.Table == 0 {
		tableStyle = red
	}
	r.line("  %s  %s  %s  %s", r.paint.pad(plain, name, 4), r.paint.pad(plain, networkText(n), w.prefix),
		r.paint.pad(tableStyle, tableText(n), w.table), r.gateways(l, n))
	if n.Routes > 0 {
		r.line("        %s", r.paint.paint(dim, r.furtherRoutes(n)))
	}
	for _, a := range n.Addresses {
		if !isItsAddress(n) || len(shownFlags(a)) > 0 || a.Peer != nil {
			r.line("        %s", r.address(a))
		}
	}
}

// furtherRoutes says how many routes are not listed, and how to see them.
func (r *renderer) furtherRoutes(n Network) string {
	text := "and " + english.Count(n.Routes, "route") + " that main has through the link"
	if !r.verbose {
		return text
	}
	return fmt.Sprintf("%s, not listed: ip %s route show table %d", text, familyFlag(n.Family), n.Table)
}

func (r *renderer) gateways(l Link, n Network) string {
	var via []string
	for _, g := range n.Gateways {
		if g.Via == nil {
			via = append(via, "default route on the link")
		} else {
			via = append(via, "via "+g.Via.String())
		}
	}
	switch {
	case len(via) > 0:
		return strings.Join(slices.Compact(via), ", ")
	case n.Table == 0 || l.RoleIn(n.Family) == "local":
		return ""
	case l.Pending:
		return r.paint.paint(yellow, "no default route yet")
	default:
		return r.paint.paint(yellow, "no default route")
	}
}

func (r *renderer) address(a Address) string {
	text := a.Address.String()
	if a.Peer != nil {
		text += " peer " + a.Peer.String()
	}
	flags := shownFlags(a)
	if len(flags) == 0 {
		return text
	}
	s := dim
	if slices.Contains(flags, "duplicate") {
		s = red
	}
	return text + "  " + r.paint.paint(s, strings.Join(flags, " "))
}

// shownFlags leaves out the flags that most addresses have.
func shownFlags(a Address) []string {
	return slices.DeleteFunc(slices.Clone(a.Flags), func(f string) bool { return f == "dynamic" })
}

// maxListed bounds how many objects of a link are listed that are not active.
const maxListed = 8

// objects lists those that are not active, or all.
func (r *renderer) objects(objects []Object, c Count) {
	if r.isBare() && !r.verbose {
		return // The head says so.
	}
	if !r.verbose && c.Planned > 1 && c.Present == 0 && c.Unexpected == 0 {
		r.line("  %s", r.paint.paint(red, fmt.Sprintf("none of the %d rules and routes is active", c.Planned)))
		return
	}
	inactive := 0
	for _, o := range objects {
		if o.State != status.InForce {
			inactive++
		}
		if r.verbose || o.State != status.InForce && inactive <= maxListed {
			r.object(o)
		}
	}
	if more := inactive - maxListed; more > 0 && !r.verbose {
		r.line("  %s", r.paint.paint(red, fmt.Sprintf("and %d more, see multihomectl status -v", more)))
	}
}

func (r *renderer) object(o Object) {
	s, state, reason := red, string(o.State), ""
	switch o.State {
	case status.InForce:
		s, state = green, "active"
	case status.Yielding:
		s = yellow
	case status.Missing, status.Different, status.Misplaced, status.Unexpected:
	}
	switch {
	case o.Lifts != "":
		reason = "  " + r.paint.paint(dim, "# "+routing.Decision(o.Reason).Sentence()+": "+clean(o.Lifts))
	case r.verbose && o.Reason != "":
		reason = "  " + r.paint.paint(dim, "# "+routing.Decision(o.Reason).Sentence())
	}
	family := ""
	if o.Family != "" {
		family = familyFlag(o.Family) + " "
	}
	r.line("  %s  %s%s", r.paint.pad(s, state, len("unexpected")), family+clean(o.Text), reason)
}

// shared lists the objects that belong to no single link.
func (r *renderer) shared() {
	inactive := slices.ContainsFunc(r.s.Shared, func(o Object) bool { return o.State != status.InForce })
	if len(r.s.Shared) == 0 || len(r.only) > 0 || !inactive && !r.verbose {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(bold, "for all links"))
	var c Count
	for _, o := range r.s.Shared {
		c.Take(o.State)
	}
	r.objects(r.s.Shared, c)
}

func (r *renderer) others() {
	width := 0
	for _, o := range r.s.Others {
		width = max(width, columns(clean(o.Interface)))
	}
	if len(r.s.Others) == 0 {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(dim, "other interfaces"))
	for _, o := range r.s.Others {
		r.folded("  "+r.paint.pad(dim, clean(o.Interface), width)+"  ", dim, clean(o.Why))
	}
}

func (r *renderer) problems() {
	first := true
	for _, p := range r.s.Problems {
		if p.Code == routing.MatchesNothing && !r.verbose {
			continue // The device may be unplugged.
		}
		if first {
			r.line("")
			first = false
		}
		text := clean(p.Text)
		if link := clean(p.Link); link != "" && !strings.HasPrefix(text, link+" ") {
			text = link + ": " + text
		}
		if r.verbose && p.Since != nil {
			text += " (since " + p.Since.Format(time.DateTime) + ")"
		}
		r.folded(r.paint.pad(severityStyle(p.Severity), p.Severity.String(), len("warning"))+"  ", plain, text)
		r.fix(clean(p.Fix))
	}
}

// commands begin a fix that is a command.
func commands() []string {
	return []string{"chmod", "chown", "ip", "iptables", "ip6tables", "journalctl", "mkdir", "multihomectl", "nft", "nmcli", "printf", "sysctl", "systemctl"}
}

// fix shows what to do. A command is not broken: it is there to be copied.
func (r *renderer) fix(text string) {
	label := strings.Repeat(" ", len("warning")) + "  " + r.paint.paint(bold, "fix") + "  "
	first, _, _ := strings.Cut(text, " ")
	switch {
	case text == "":
	case slices.Contains(commands(), first):
		r.line("%s%s", label, text)
	default:
		r.folded(label, plain, text)
	}
}

func (r *renderer) unread() {
	if len(r.s.Unread) == 0 {
		return
	}
	r.line("")
	for _, text := range r.s.Unread {
		r.folded("unread   ", dim, clean(text))
	}
}

// folded prints a text behind a label, its further lines below its first.
func (r *renderer) folded(label string, s style, text string) {
	indent := columns(bare(label))
	for i, line := range wrap(text, max(20, r.width-indent)) {
		if i > 0 {
			label = strings.Repeat(" ", indent)
		}
		r.line("%s%s", label, r.paint.paint(s, line))
	}
}

// bare takes colours out of a text.
func bare(text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, text, _ = strings.Cut(rest, "m")
	}
}
