package watch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"multihomed/internal/status"
)

// Document takes a new status in: it returns what was held, explained by it, and then how it differs
// from the last one. The first one is told as one event. The document is kept and must not be changed.
func (r *Recorder) Document(at time.Time, now *status.Status) []Event {
	was := r.document
	r.document = now
	out := r.flush(was)
	if was == nil {
		r.judged(now)
		r.leaves(now)
		return append(out, Event{Time: at, Kind: Watching, Text: overview(now), Author: Author{Party: Multihomed}}.clean())
	}
	d := differ{r: r, at: at, was: was, now: now}
	d.services()
	d.links()
	d.health()
	d.unbound()
	d.answers()
	d.bindings()
	d.problems()
	r.judged(now)
	r.leaves(now)
	r.forget(at)
	return append(out, d.told()...)
}

// told is what there is to say. A person gets the first of each kind and the number of the others.
func (d *differ) told() []Event {
	if !d.r.limits.Summary {
		return d.out
	}
	crowds := map[Kind]*crowd{}
	out := slices.DeleteFunc(d.out, func(e Event) bool {
		c := crowds[e.Kind]
		if c == nil {
			c = &crowd{}
			crowds[e.Kind] = c
		}
		if c.told == d.r.limits.Others {
			c.more++
			return true
		}
		c.told++
		return false
	})
	for _, k := range slices.Sorted(maps.Keys(crowds)) {
		if c := crowds[k]; c.more > 0 {
			out = append(out, Event{Time: d.at, Kind: k, Text: group{kind: k}.text(c), Author: Author{Party: Unknown}, Count: c.more}.clean())
		}
	}
	return out
}

// overview says in one sentence what there is.
func overview(s *status.Status) string {
	var parts []string
	for _, l := range s.Links {
		if len(parts) == 8 {
			parts = append(parts, fmt.Sprintf("%d more", len(s.Links)-8))
			break
		}
		parts = append(parts, l.Interface+" ("+l.Role+")")
	}
	text := "watching " + strings.Join(parts, ", ")
	if len(parts) == 0 {
		text = "watching: there are no links"
	}
	if ways := Ways(s); ways != "" {
		text += "; default route: " + ways
	}
	if s.By != status.ByDaemon {
		text += "; multihomed " + map[bool]string{true: "does not answer", false: "does not run"}[s.Daemon.Running] + ", so changes of its own are not explained"
	}
	return text
}

// Ways says by which interfaces traffic leaves that is bound to no link: "IPv4 and IPv6 by wan0".
func Ways(s *status.Status) string {
	by := map[string][]string{}
	var order []string
	for _, f := range []string{"ipv4", "ipv6"} {
		u, leaves := s.Unbound[f]
		if !leaves {
			continue
		}
		w := way(u)
		if by[w] == nil {
			order = append(order, w)
		}
		by[w] = append(by[w], familyName(f))
	}
	for i, w := range order {
		order[i] = strings.Join(by[w], " and ") + " by " + w
	}
	return strings.Join(order, ", ")
}

func way(u status.Unbound) string {
	if len(u.Shares) < 2 {
		return u.Interface
	}
	var parts []string
	for _, leg := range u.Shares {
		parts = append(parts, fmt.Sprintf("%s (weight %d)", leg.Interface, leg.Weight))
	}
	return strings.Join(parts, " and ")
}

// A differ compares two documents.
type differ struct {
	r        *Recorder
	at       time.Time
	was, now *status.Status
	out      []Event
}

func (d *differ) say(e Event) {
	e.Time = d.at
	d.out = append(d.out, e.clean())
}

var us = Author{Party: Multihomed} //nolint:gochecknoglobals // a constant in all but name

func (d *differ) services() {
	service := func(name string, who Author, was, now, why string) {
		if was != now {
			d.say(Event{Kind: ServiceChanged, Object: name, Text: name + " " + now + ", it was " + was, Why: why, Author: who})
		}
	}
	author := Author{Party: Unknown}
	if d.was.Daemon.Running && d.now.Daemon.Running {
		author = us // It waits by itself, and goes on by itself.
	}
	service("multihomed", author, daemonState(d.was), daemonState(d.now), d.now.Daemon.Waiting)
	service("NetworkManager", Author{Party: Unknown}, managerState(d.was.NetworkManager), managerState(d.now.NetworkManager), "")
	if (d.was.Off == nil) != (d.now.Off == nil) {
		e := Event{Kind: Switched, Text: "multihomed switched on", Author: us}
		if d.now.Off != nil {
			e.Text, e.Why = "multihomed switched off", by(d.now.Off.By)
		}
		d.say(e)
	}
	off := func(s *status.Status) map[string]status.OffLink {
		out := map[string]status.OffLink{}
		for _, l := range s.OffLinks {
			out[l.Interface+" "+l.UUID] = l
		}
		return out
	}
	was, now := off(d.was), off(d.now)
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if _, before := was[k]; !before {
			d.say(Event{Kind: Switched, Link: now[k].Interface, Text: "link switched off", Why: by(now[k].By), Author: us})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if _, still := now[k]; !still {
			d.say(Event{Kind: Switched, Link: was[k].Interface, Text: "link switched on", Author: us})
		}
	}
}

func by(user string) string {
	if user == "" {
		return "the administrator asked for it"
	}
	return user + " asked for it"
}

func daemonState(document *status.Status) string {
	s := document.Daemon
	switch {
	case !s.Running:
		return "not running"
	case document.By != status.ByDaemon:
		return "not answering"
	case s.Waiting != "":
		return "waiting"
	case !s.Ready:
		return "starting"
	default:
		return "running"
	}
}

func managerState(m status.Manager) string {
	switch {
	case m.None, m.Unwanted != "":
		return "not installed"
	case m.Error != "":
		return "not reachable"
	case !m.Running:
		return "not running"
	case !m.Complete:
		return "starting"
	default:
		return "running"
	}
}

// owner is who configures a link, as far as the document says.
func owner(l status.Link) Author {
	if l.Type != "" || l.Profile != "" {
		return Author{Party: NetworkManager}
	}
	return Author{Party: Unknown}
}

func byName(links []status.Link) map[string]status.Link {
	out := make(map[string]status.Link, len(links))
	for _, l := range links {
		out[l.Interface] = l
	}
	return out
}

func (d *differ) links() {
	before, after := byName(d.was.Links), byName(d.now.Links)
	for _, l := range d.was.Links {
		if _, still := after[l.Interface]; !still {
			who, why := d.whyGone(l)
			d.say(Event{Kind: LinkRemoved, Link: l.Interface, Text: "no longer a link", Why: why, Author: who})
		}
	}
	for _, l := range d.now.Links {
		was, known := before[l.Interface]
		if !known {
			who, why, otherwise := owner(l), l.Why, Author{Party: Unknown}
			if isOff(d.was, l.Interface) && !isOff(d.now, l.Interface) {
				who, why, otherwise = us, "it is switched on", us
			}
			d.say(Event{Kind: LinkAdded, Link: l.Interface, Text: "new link: " + l.Role + tables(l), Why: why, Author: who})
			d.gateways(status.Link{}, l, otherwise)
			continue
		}
		switch {
		case managerState(d.was.NetworkManager) != "running" || managerState(d.now.NetworkManager) != "running":
			// While NetworkManager starts or ends it does not say what a link does.
		case l.Draining && !was.Draining:
			d.say(Event{Kind: LinkChanged, Link: l.Interface, Text: "going down", Why: l.Why, Author: owner(l)})
		case l.Pending && !was.Pending:
			d.say(Event{Kind: LinkChanged, Link: l.Interface, Text: "coming up", Why: l.Why, Author: owner(l)})
		case (was.Pending || was.Draining) && !l.Pending && !l.Draining:
			d.say(Event{Kind: LinkChanged, Link: l.Interface, Text: "connected", Why: l.Why, Author: owner(l)})
		}
		d.roles(was, l)
		d.gateways(was, l, Author{Party: Unknown})
	}
}

func tables(l status.Link) string {
	var out []string
	for _, n := range l.Networks {
		if n.Table != 0 {
			out = append(out, fmt.Sprint(n.Table))
		}
	}
	switch len(out) {
	case 0:
		return ""
	case 1:
		return ", table " + out[0]
	default:
		return ", tables " + strings.Join(out, ", ")
	}
}

func (d *differ) whyGone(l status.Link) (Author, string) {
	if isOff(d.now, l.Interface) {
		return us, "it is switched off"
	}
	for _, o := range d.now.Others {
		if o.Interface == l.Interface {
			return owner(l), o.Why
		}
	}
	return owner(l), "the interface is gone"
}

// isOff reports whether the administrator has switched a link off, or everything.
func isOff(s *status.Status, name string) bool {
	return s.Off != nil || slices.ContainsFunc(s.OffLinks, func(o status.OffLink) bool { return o.Interface == name })
}

func (d *differ) roles(was, l status.Link) {
	if was.Role == l.Role && was.RoleIn("ipv4") == l.RoleIn("ipv4") && was.RoleIn("ipv6") == l.RoleIn("ipv6") {
		return
	}
	text := l.Role
	if len(l.Roles) > 0 {
		text = fmt.Sprintf("%s for IPv4 and %s for IPv6", l.RoleIn("ipv4"), l.RoleIn("ipv6"))
	}
	d.say(Event{Kind: RoleChanged, Link: l.Interface, Text: "role " + text + ", it was " + was.Role, Why: l.RoleWhy, Author: us})
}

// gateways says which next hops of defaults came and went, and who did it unless a change of the interface
// tells.
func (d *differ) gateways(was, l status.Link, otherwise Author) {
	for _, f := range []string{"ipv4", "ipv6"} {
		before, after := hops(was, f), hops(l, f)
		c := d.r.causeOf(d.at, l.Interface, f)
		if c.author.Party == Unknown {
			c.author = otherwise
		}
		for _, hop := range after {
			if !slices.Contains(before, hop) {
				d.say(Event{Kind: GatewayAdded, Link: l.Interface, Family: f, Object: hop, Text: familyName(f) + " gateway " + hop + " added", Why: c.why, Author: c.author})
			}
		}
		for _, hop := range before {
			if !slices.Contains(after, hop) {
				d.say(Event{Kind: GatewayRemoved, Link: l.Interface, Family: f, Object: hop, Text: familyName(f) + " gateway " + hop + " removed", Why: c.why, Author: c.author})
			}
		}
	}
}

func hops(l status.Link, family string) (out []string) {
	for _, n := range l.Networks {
		if n.Family != family {
			continue
		}
		for _, g := range n.Gateways {
			hop := "on the link"
			if g.Via != nil {
				hop = g.Via.String()
			}
			if !slices.Contains(out, hop) {
				out = append(out, hop)
			}
		}
	}
	return out
}

// word is a state of health for people.
func word(h status.Health) string {
	switch {
	case h.State == status.HealthUnprobed, h.State == status.HealthUnknown && h.NotWatched != "":
		return "not watched"
	case h.State == status.HealthUnknown:
		return "not known yet"
	default:
		return string(h.State)
	}
}

func (d *differ) health() {
	if d.now.Failover == nil {
		return
	}
	for _, h := range d.now.Failover.Uplinks {
		was, known := d.r.verdicts[causeKey{h.Interface, h.Family}]
		if !says(h) || known && word(was) == word(h) || !known && !h.State.Dead() {
			continue
		}
		text := familyName(h.Family) + " " + word(h)
		if known {
			text += ", it was " + word(was)
		}
		why := h.Why
		if h.NotWatched != "" {
			why = h.NotWatched
		}
		d.say(Event{Kind: HealthChanged, Link: h.Interface, Family: h.Family, Object: string(h.State), Text: text, Why: why, Author: us})
	}
}

// says reports whether a state of health says something: not while the first answer is waited for.
func says(h status.Health) bool { return h.State != status.HealthUnknown || h.NotWatched != "" }

// judged keeps what a document says of the health of uplinks.
func (r *Recorder) judged(s *status.Status) {
	if s.Failover == nil || !s.Daemon.Ready {
		return
	}
	there := map[causeKey]bool{}
	for _, h := range s.Failover.Uplinks {
		k := causeKey{h.Interface, h.Family}
		there[k] = true
		if says(h) {
			r.verdicts[k] = h
		}
	}
	maps.DeleteFunc(r.verdicts, func(k causeKey, _ status.Health) bool { return !there[k] })
}

// leaves keeps what a document says of unbound traffic.
func (r *Recorder) leaves(s *status.Status) {
	if knowsUnbound(s) {
		r.unbound = s.Unbound
	}
}

// knowsUnbound reports whether a document says which way unbound traffic leaves: without the daemon
// nobody looked.
func knowsUnbound(s *status.Status) bool { return s.By == status.ByDaemon && s.Daemon.Ready }

func (d *differ) unbound() {
	if d.r.unbound == nil || !knowsUnbound(d.now) {
		return
	}
	for _, f := range []string{"ipv4", "ipv6"} {
		was, did := d.r.unbound[f]
		now, does := d.now.Unbound[f]
		if did == does && way(was) == way(now) {
			continue
		}
		e := Event{Kind: DefaultMoved, Link: now.Interface, Family: f, Object: now.Interface}
		switch {
		case !does:
			e.Link, e.Object = was.Interface, ""
			e.Text = familyName(f) + " traffic that is bound to no link has no way, it left by " + way(was)
		case !did:
			e.Text = familyName(f) + " traffic that is bound to no link leaves by " + way(now)
		default:
			e.Text = familyName(f) + " traffic that is bound to no link leaves by " + way(now) + ", it left by " + way(was)
		}
		e.Author, e.Why = d.whoMoved(f, was, now)
		d.say(e)
	}
}

// whoMoved says who moved the unbound traffic of a family.
func (d *differ) whoMoved(f string, was, now status.Unbound) (Author, string) {
	if now.Main != "" || was.Main != "" || len(now.Shares) > 1 || len(was.Shares) > 1 {
		why := now.Why
		if why == "" && was.Main != "" && was.Main == now.Interface {
			why = was.Main + " works again"
		}
		return us, why
	}
	for _, name := range []string{was.Interface, now.Interface} {
		if c := d.r.causeOf(d.at, name, f); name != "" && c.author.Party != Unknown {
			return c.author, c.why
		}
	}
	return Author{Party: Unknown}, now.Why
}

func (d *differ) answers() {
	if d.was.Answers == nil || d.now.Answers == nil {
		return
	}
	before := map[string]status.AnsweredFamily{}
	for _, f := range d.was.Answers.Families {
		before[f.Family] = f
	}
	for _, f := range d.now.Answers.Families {
		was, known := before[f.Family]
		if !known || was.Answers == f.Answers && was.Fence == f.Fence {
			continue
		}
		text := familyName(f.Family) + " answers leave as main says"
		if f.Answers {
			text = familyName(f.Family) + " answers leave by the link that was asked"
		}
		if f.Fence != was.Fence {
			text += map[bool]string{true: ", fence on", false: ", fence off"}[f.Fence]
		}
		d.say(Event{Kind: AnswersChanged, Family: f.Family, Object: f.Reason, Text: text, Why: f.Why, Author: us})
	}
}

func bindingKey(b status.Binding) string {
	return strings.Join([]string{b.Selector, b.Value, b.Link, b.By}, "\x00")
}

func (d *differ) bindings() {
	if d.was.By != d.now.By {
		return
	}
	name := func(b status.Binding) string { return b.Selector + " " + b.Value }
	before, after := map[string]status.Binding{}, map[string]bool{}
	for _, b := range d.was.Bindings {
		before[bindingKey(b)] = b
	}
	for _, b := range d.now.Bindings {
		after[bindingKey(b)] = true
		was, known := before[bindingKey(b)]
		switch {
		case !known:
			d.say(Event{Kind: BindingChanged, Link: b.Link, Object: name(b), Text: "bound: " + name(b) + ", " + b.State, Why: cmp.Or(b.Why, b.By), Author: us})
		case was.State != b.State:
			d.say(Event{Kind: BindingChanged, Link: b.Link, Object: name(b), Text: "binding of " + name(b) + ": " + b.State + ", it was " + was.State, Why: b.Why, Author: us})
		}
	}
	for _, b := range d.was.Bindings {
		if !after[bindingKey(b)] {
			d.say(Event{Kind: BindingChanged, Link: b.Link, Object: name(b), Text: "no longer bound: " + name(b), Author: us})
		}
	}
}

func problemKey(p status.Problem) string {
	return strings.Join([]string{string(p.Code), p.Link, p.Object}, "\x00")
}

func (d *differ) problems() {
	if d.was.By != d.now.By {
		return // Without the daemon other things are checked.
	}
	before, after := map[string]bool{}, map[string]bool{}
	for _, p := range d.was.Problems {
		before[problemKey(p)] = true
	}
	for _, p := range d.now.Problems {
		after[problemKey(p)] = true
		if !before[problemKey(p)] {
			d.say(Event{Kind: ProblemFound, Link: p.Link, Object: string(p.Code), Text: p.Severity.String() + ": " + p.Text, Fix: p.Fix, Author: us})
		}
	}
	for _, p := range d.was.Problems {
		if !after[problemKey(p)] {
			d.say(Event{Kind: ProblemFixed, Link: p.Link, Object: string(p.Code), Text: "no longer a problem: " + p.Text, Author: us})
		}
	}
}
