package ctl

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"multihomed/cmd/internal/inspect"
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
	// only names the interfaces that are shown, none for all.
	only []string
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
	case !d.Running:
		row("multihomed", yellow, "not running", ": what stands is shown; nothing follows changes")
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
	case m.None:
		row("NetworkManager", plain, "none", ": this host has none")
	case m.Error != "":
		row("NetworkManager", yellow, "unknown", ": it cannot be asked")
	case !m.Running:
		row("NetworkManager", yellow, "not running", "")
	case !m.Complete:
		row("NetworkManager", yellow, "starting", version)
	default:
		row("NetworkManager", green, "running", version)
	}

	if r.s.By == byHost && d.Running {
		r.folded("", yellow, "the daemon does not answer: what is shown was read from the host")
	}
	c := r.s.InForce
	if c.Planned == 0 && c.Unexpected == 0 {
		row("routing", plain, "none", ": there are no links")
		return
	}
	text := fmt.Sprintf("%d of %d", c.Present, c.Planned)
	more := " rules and routes in force, on " + count(len(r.s.Links), "link")
	if c.Unexpected > 0 {
		more += fmt.Sprintf(", %d too many", c.Unexpected)
	}
	row("routing", stateStyle(c), text, more)
	r.unbound()
}

// byHost is Status.By where the daemon did not answer.
const byHost = "multihomectl"

// unbound says which way packets leave that are bound to no link.
func (r *renderer) unbound() {
	if len(r.only) > 0 || len(r.s.Links) == 0 {
		return
	}
	var ways []string
	for _, f := range []string{"ipv4", "ipv6"} {
		u, leaves := r.s.Unbound[f]
		switch {
		case !leaves:
		case u.Table != uint32(routing.TableMain):
			ways = append(ways, fmt.Sprintf("%s by %s (table %d)", familyName(f), clean(u.Interface), u.Table))
		default:
			ways = append(ways, familyName(f)+" by "+clean(u.Interface))
		}
	}
	text := strings.Join(ways, ", ")
	if text == "" {
		text = "leaves by no link: no default route"
	}
	r.line("%s  %s", r.paint.pad(plain, "unbound", headWidth), text)
	if n := r.s.Unchecked; n > 0 {
		r.line("%s  where traffic of %s goes is not checked yet", r.paint.pad(plain, "", headWidth), count(n, "link"))
	}
}

// countOf counts one object.
func countOf(state string) Count {
	switch inspect.State(state) {
	case inspect.InForce:
		return Count{Planned: 1, Present: 1}
	case inspect.Unexpected:
		return Count{Unexpected: 1}
	case inspect.Missing, inspect.Different, inspect.Misplaced:
		return Count{Planned: 1}
	default:
		return Count{}
	}
}

// mostOtherRules is how many rules of others are shown to who did not ask for more.
const mostOtherRules = 6

// otherRules names the rules of somebody else that have a say, and what kind of say.
func (r *renderer) otherRules() {
	if len(r.s.OtherRules) == 0 || len(r.only) > 0 {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(dim, "rules of others"))
	what := map[string]string{
		status.Ahead: "before multihomed's", status.Selects: "what it selects follows it",
		status.Behind: "for unbound traffic", status.SteppedOver: "for unbound traffic",
	}
	for i, o := range r.s.OtherRules {
		if i == mostOtherRules && !r.verbose {
			r.line("  %s", r.paint.paint(dim, fmt.Sprintf("and %d more, see status -v", len(r.s.OtherRules)-i)))
			return
		}
		flag := "-4"
		if o.Family == "ipv6" {
			flag = "-6"
		}
		r.line("  %s", r.paint.paint(dim, flag+" "+clean(o.Text)+"  # "+what[o.Place]))
	}
}

func stateStyle(c Count) style {
	if c.Complete() {
		return green
	}
	return red
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// shown reports whether an interface is among those asked for.
func (r *renderer) shown(name string) bool { return len(r.only) == 0 || slices.Contains(r.only, name) }

// familyName is how people write a family.
func familyName(f string) string {
	if f == "ipv6" {
		return "IPv6"
	}
	return "IPv4"
}

// columnWidths are those of all links, so that tables line up.
type columnWidths struct{ name, role, force, prefix, table int }

func (r *renderer) widths() columnWidths {
	var w columnWidths
	for _, l := range r.s.Links {
		if !r.shown(l.Interface) {
			continue
		}
		w.name = max(w.name, columns(clean(l.Interface)))
		w.role = max(w.role, columns(l.Role))
		w.force = max(w.force, columns(inForce(l)))
		for _, n := range l.Networks {
			w.prefix = max(w.prefix, columns(networkText(n)))
			w.table = max(w.table, columns(tableText(n)))
		}
	}
	return w
}

func inForce(l Link) string {
	return fmt.Sprintf("%d/%d in force", l.InForce.Present, l.InForce.Planned)
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
		if r.shown(l.Interface) {
			r.line("")
			r.link(l, w)
		}
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
	case !l.Up:
		about = append(about, "down")
		s = yellow
	case !l.Carrier:
		about = append(about, "no carrier")
		s = yellow
	}
	r.line("%s  %s  %s  %s",
		r.paint.pad(bold, clean(l.Interface), w.name), r.paint.pad(plain, l.Role, w.role),
		r.paint.pad(stateStyle(l.InForce), inForce(l), w.force), r.paint.paint(s, strings.Join(about, ", ")))

	if r.verbose && l.RoleWhy != "" {
		r.folded("  "+l.Role+": ", dim, clean(l.RoleWhy))
	}
	family := ""
	for _, n := range l.Networks {
		name := ""
		if n.Family != family {
			family, name = n.Family, familyName(n.Family)
		}
		r.network(l, n, name, w)
	}
	if len(l.Networks) == 0 && len(l.LeftAlone) == 0 && len(l.Unused) == 0 {
		r.line("  %s", r.paint.paint(yellow, "no address yet"))
	}
	for _, f := range slices.Sorted(maps.Keys(l.LeftAlone)) {
		r.folded("  "+familyName(f)+"  ", dim, "left alone: "+clean(l.LeftAlone[f]))
	}
	for _, a := range l.Unused {
		r.line("  %s  %s", familyOfAddress(a), r.address(a))
	}
	if r.verbose && l.Since != nil {
		r.line("  %s", r.paint.paint(dim, "so since "+l.Since.Format(time.DateTime)))
	}
	r.objects(l.Objects, l.InForce)
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
		r.line("        %s", r.paint.paint(dim, "and "+count(n.Routes, "route")+" of routing daemons"))
	}
	for _, a := range n.Addresses {
		if !isItsAddress(n) || len(shownFlags(a)) > 0 || a.Peer != nil {
			r.line("        %s", r.address(a))
		}
	}
}

func (r *renderer) gateways(l Link, n Network) string {
	var via []string
	for _, g := range n.Gateways {
		if g.Via == nil {
			via = append(via, "default on the link")
		} else {
			via = append(via, "via "+g.Via.String())
		}
	}
	switch {
	case len(via) > 0:
		return strings.Join(slices.Compact(via), ", ")
	case n.Table == 0 || l.Role == "local":
		return ""
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

// shownFlags leaves out what is true of most addresses.
func shownFlags(a Address) []string {
	return slices.DeleteFunc(slices.Clone(a.Flags), func(f string) bool { return f == "dynamic" })
}

// mostOdd is how many objects of a link are listed that are not as they must be.
const mostOdd = 8

// objects shows those that are not as they must be, or all.
func (r *renderer) objects(objects []Object, c Count) {
	if !r.verbose && c.Planned > 1 && c.Present == 0 && c.Unexpected == 0 {
		r.line("  %s", r.paint.paint(red, fmt.Sprintf("none of the %d rules and routes is in force", c.Planned)))
		return
	}
	odd := 0
	for _, o := range objects {
		if o.State != "in force" {
			odd++
		}
		if r.verbose || o.State != "in force" && odd <= mostOdd {
			r.object(o)
		}
	}
	if more := odd - mostOdd; more > 0 && !r.verbose {
		r.line("  %s", r.paint.paint(red, fmt.Sprintf("and %d more, see status -v", more)))
	}
}

func (r *renderer) object(o Object) {
	s, reason := red, ""
	switch o.State {
	case "in force":
		s = green
	case "yields":
		s = yellow
	}
	switch {
	case o.Lifts != "":
		reason = "  " + r.paint.paint(dim, "# "+routing.Decision(o.Reason).Sentence()+": "+clean(o.Lifts))
	case r.verbose && o.Reason != "":
		reason = "  " + r.paint.paint(dim, "# "+routing.Decision(o.Reason).Sentence())
	}
	family := ""
	switch o.Family {
	case "ipv4":
		family = "-4 "
	case "ipv6":
		family = "-6 "
	}
	r.line("  %s  %s%s", r.paint.pad(s, o.State, len("unexpected")), family+clean(o.Text), reason)
}

// shared shows what belongs to no link in particular.
func (r *renderer) shared() {
	odd := slices.ContainsFunc(r.s.Shared, func(o Object) bool { return o.State != "in force" })
	if len(r.s.Shared) == 0 || len(r.only) > 0 || !odd && !r.verbose {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(bold, "for all links"))
	var c Count
	for _, o := range r.s.Shared {
		c.Add(countOf(o.State))
	}
	r.objects(r.s.Shared, c)
}

func (r *renderer) others() {
	width := 0
	var others []Other
	for _, o := range r.s.Others {
		if r.shown(o.Interface) {
			others = append(others, o)
			width = max(width, columns(clean(o.Interface)))
		}
	}
	if len(others) == 0 {
		return
	}
	r.line("")
	r.line("%s", r.paint.paint(dim, "other interfaces"))
	for _, o := range others {
		r.line("  %s", r.paint.paint(dim, painter(false).pad(plain, clean(o.Interface), width)+"  "+clean(o.Why)))
	}
}

func (r *renderer) problems() {
	first := true
	for _, p := range r.s.Problems {
		if p.Link != "" && !r.shown(p.Link) {
			continue
		}
		if first {
			r.line("")
			first = false
		}
		s := plain
		switch p.Severity {
		case routing.Error:
			s = red
		case routing.Warning:
			s = yellow
		case routing.Notice:
		}
		text := clean(p.Text)
		if p.Link != "" {
			text = clean(p.Link) + ": " + text
		}
		if r.verbose && p.Since != nil {
			text += " (since " + p.Since.Format(time.DateTime) + ")"
		}
		r.folded(r.paint.pad(s, p.Severity.String(), len("warning"))+"  ", plain, text)
		r.fix(clean(p.Fix))
	}
}

// fix shows what to do. A command is not broken: it is there to be copied.
func (r *renderer) fix(text string) {
	label := strings.Repeat(" ", len("warning")) + "  " + r.paint.paint(bold, "fix") + "  "
	first, _, _ := strings.Cut(text, " ")
	switch {
	case text == "":
	case slices.Contains([]string{"ip", "sysctl", "systemctl"}, first):
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
