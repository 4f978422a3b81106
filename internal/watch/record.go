package watch

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// Announced is an announcement of the kernel with its author, as far as the socket tells.
type Announced struct {
	routing.Announcement
	Author Author
}

const (
	// mostGroups bounds how many sorts of changes are told apart between two documents.
	mostGroups = 256
	// mostDeleted bounds how many objects are remembered that were deleted by others.
	mostDeleted = 1024
	// causeLasts is how long a change in the kernel may explain one in the document.
	causeLasts = 5 * time.Second
)

// A Recorder turns what is read into events. What the kernel announced is held until a document
// explains it, or until Flush. Its memory is bounded by the host, and not by how much changes. It is not
// safe for concurrent use.
type Recorder struct {
	limits Limits

	interfaces map[int]routing.Interface
	addresses  map[addressKey]routing.Address
	document   *status.Status

	held   []held
	groups map[group]*crowd
	// deleted are objects of multihomed that other processes deleted, with who did.
	deleted map[string]Author
	// causes say what happened last to an interface in a family.
	causes map[causeKey]cause
	// verdicts are the last states of uplinks that say something, and unbound is what the daemon said last
	// of unbound traffic. Both outlast a restart of the daemon.
	verdicts map[causeKey]status.Health
	unbound  map[string]status.Unbound
}

// Limits say how many changes of one sort are told one by one between two documents; the others are
// counted.
type Limits struct {
	// Own are those of multihomed to its rules and routes, unless it restores them.
	Own int
	// Others are all others.
	Others int
	// Summary tells the changes of Own as one event for each link, and leaves out what follows from an
	// address: its network in main, and link-local addresses.
	Summary bool
}

type addressKey struct {
	device int
	prefix netip.Prefix
	peer   netip.Addr
}

// held is an event that waits for its explanation.
type held struct {
	event Event
	// ours says that it is about an object of multihomed, and rule which if it is a rule.
	ours bool
	rule routing.Rule
	// table is that of a route of multihomed.
	table routing.TableID
	// follows says that it comes and goes with an address, and linkLocal with one of fe80::/10.
	follows, linkLocal bool
	group              group
}

// A group is one sort of changes.
type group struct {
	kind   Kind
	family string
	table  routing.TableID
	author Author
	// isOwn says that multihomed changed its own.
	isOwn bool
}

type crowd struct {
	told, more int
	last       time.Time
}

type causeKey struct{ link, family string }

type cause struct {
	at     time.Time
	author Author
	why    string
}

// NewRecorder returns a recorder that knows nothing yet.
func NewRecorder(limits Limits) *Recorder {
	return &Recorder{
		limits: limits, interfaces: map[int]routing.Interface{}, addresses: map[addressKey]routing.Address{},
		groups: map[group]*crowd{}, deleted: map[string]Author{}, causes: map[causeKey]cause{},
		verdicts: map[causeKey]status.Health{},
	}
}

// Interfaces puts the interfaces that there are in place of those that were known: at the beginning, and
// after announcements were lost.
func (r *Recorder) Interfaces(all []routing.Interface) {
	clear(r.interfaces)
	clear(r.addresses)
	for _, i := range all {
		for _, a := range i.Addresses {
			r.addresses[addressKey{i.Index, a.Prefix, a.Peer}] = a
		}
		i.Addresses = nil
		r.interfaces[i.Index] = i
	}
}

// Lost says that announcements were lost. What was known of the interfaces may be wrong then.
func (r *Recorder) Lost(at time.Time) {
	r.hold(held{event: Event{Time: at, Kind: Lost, Text: "changes were lost: they came faster than they could be read", Author: Author{Party: Kernel}}, group: group{kind: Lost}})
}

// Take takes announcements in, in the kernel's order.
func (r *Recorder) Take(at time.Time, all []Announced) {
	for _, a := range all {
		switch a.Kind {
		case routing.AnnouncedInterface:
			r.takeInterface(at, a)
		case routing.AnnouncedAddress:
			r.takeAddress(at, a)
		case routing.AnnouncedRule:
			r.takeRule(at, a)
		case routing.AnnouncedRoute:
			r.takeRoute(at, a)
		}
	}
}

// Waiting reports whether events are held, and Explainable whether a document with all objects can
// explain one of them.
func (r *Recorder) Waiting() bool { return len(r.held) > 0 }

// Explainable is described at Waiting.
func (r *Recorder) Explainable() bool {
	return slices.ContainsFunc(r.held, func(h held) bool { return h.ours })
}

// hold keeps an event, or counts it.
func (r *Recorder) hold(h held) {
	if _, known := r.groups[h.group]; !known && len(r.groups) >= mostGroups {
		h.group = group{kind: h.group.kind, author: Author{Party: Unknown}, isOwn: h.group.isOwn}
	}
	c := r.groups[h.group]
	if c == nil {
		c = &crowd{}
		r.groups[h.group] = c
	}
	c.last = h.event.Time
	most := r.limits.Others
	if h.group.isOwn {
		most = r.limits.Own
	}
	if c.told == most {
		c.more++
		return
	}
	c.told++
	r.held = append(r.held, h)
}

// Flush returns what is held, explained as far as the last document can, in the order in which it
// happened.
func (r *Recorder) Flush() []Event { return r.flush(r.document) }

// flush is Flush after a document that came in place of was.
func (r *Recorder) flush(was *status.Status) []Event {
	t := r.tale(was)
	for i := range r.held {
		if r.held[i].ours {
			t.explain(i)
		} else if e := &r.held[i].event; e.Kind == RouteRemoved && e.Party == Kernel && e.Why == "" {
			e.Why = t.lost(r.held[i])
		}
	}
	var out []Event
	if r.limits.Summary {
		out = t.summary()
	} else {
		for _, h := range r.held {
			out = append(out, h.event.clean())
		}
	}
	for _, g := range slices.SortedFunc(maps.Keys(r.groups), func(a, b group) int { return r.groups[a].last.Compare(r.groups[b].last) }) {
		if c := r.groups[g]; c.more > 0 {
			out = append(out, Event{Time: c.last, Kind: g.kind, Family: g.family, Text: g.text(c), Author: g.author, Count: c.more}.clean())
		}
	}
	r.held = nil
	clear(r.groups)
	slices.SortStableFunc(out, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return out
}

// text says how many changes of the group were not told one by one.
func (g group) text(c *crowd) string {
	words := []string{fmt.Sprint(c.more)}
	if c.told > 0 {
		words = append(words, "more")
	}
	noun, verb, found := g.words()
	if g.kind == Lost || !found {
		return strings.Join(append(words, "times", string(g.kind)), " ")
	}
	if g.family != "" {
		words = append(words, familyName(g.family))
	}
	if c.more != 1 {
		noun = plural(noun)
	}
	if verb == "removed" {
		verb = "deleted"
	}
	words = append(words, noun, verb)
	if g.table != 0 {
		words = append(words, "in table", g.table.String())
	}
	return strings.Join(words, " ")
}

// words are the noun and the verb of the group's kind.
func (g group) words() (noun, verb string, found bool) {
	if words, is := (map[Kind][2]string{
		HealthChanged: {"state of health", "changed"}, ProblemFound: {"problem", "found"}, DefaultMoved: {"default route", "moved"},
	})[g.kind]; is {
		return words[0], words[1], true
	}
	return strings.Cut(string(g.kind), "-")
}

func plural(noun string) string {
	switch noun {
	case "address":
		return "addresses"
	case "state of health":
		return "states of health"
	}
	return noun + "s"
}

func (r *Recorder) name(index int) string {
	if i, known := r.interfaces[index]; known {
		return escape.Name(i.Name)
	}
	return fmt.Sprintf("if%d", index)
}

func (r *Recorder) takeInterface(at time.Time, a Announced) {
	now := a.Interface
	was, known := r.interfaces[now.Index]
	asked := a.Author
	if a.Port == 0 {
		// The kernel does not say who asked for it.
		asked = Author{Party: Unknown}
	}
	say := func(kind Kind, who Author, why, format string, args ...any) {
		for _, f := range routing.Families() {
			r.blame(at, escape.Name(now.Name), f, who, why)
		}
		r.hold(held{
			event: Event{Time: at, Kind: kind, Link: escape.Name(now.Name), Text: fmt.Sprintf(format, args...), Why: why, Author: who},
			group: group{kind: kind, author: who},
		})
	}
	if a.Gone {
		delete(r.interfaces, now.Index)
		maps.DeleteFunc(r.addresses, func(k addressKey, _ routing.Address) bool { return k.device == now.Index })
		if known {
			say(InterfaceRemoved, asked, "", "interface removed")
		}
		return
	}
	r.interfaces[now.Index] = now
	if !known {
		say(InterfaceAdded, asked, "", "interface added%s", kindOf(now))
		return
	}
	if was.Name != now.Name {
		say(InterfaceChanged, asked, "", "renamed, it was %s", escape.Name(was.Name))
	}
	if was.Up != now.Up {
		say(InterfaceChanged, asked, "", "interface %s", map[bool]string{true: "up", false: "down"}[now.Up])
	}
	if was.Carrier != now.Carrier && was.Up && now.Up {
		carrier := Author{Party: Kernel}
		if now.Carrier {
			say(InterfaceChanged, carrier, "the driver reports it", "carrier found")
		} else {
			say(InterfaceChanged, carrier, "the driver reports it", "carrier lost")
		}
	}
	if was.Group != now.Group {
		who, why := asked, ""
		if r.document != nil && r.document.UplinkGroup != 0 && (now.Group == r.document.UplinkGroup || was.Group == r.document.UplinkGroup) && a.Port == 0 {
			who = Author{Party: Multihomed, Probable: true}
		}
		if who.Party == Multihomed {
			why = routing.MarkUplink.Sentence()
		}
		say(InterfaceChanged, who, why, "moved from group %d to group %d", was.Group, now.Group)
	}
	if was.Master != now.Master {
		text := "no longer part of " + r.name(was.Master)
		if now.Master != 0 {
			text = "part of " + r.name(now.Master)
		}
		say(InterfaceChanged, asked, "", "%s", text)
	}
}

func kindOf(i routing.Interface) string {
	if i.Kind == "" {
		return ""
	}
	return " (" + escape.Text(i.Kind) + ")"
}

func (r *Recorder) takeAddress(at time.Time, a Announced) {
	family := routing.FamilyOf(a.Address.Prefix.Addr())
	k := addressKey{a.Device, a.Address.Prefix, a.Address.Peer}
	was, known := r.addresses[k]
	kind, text := AddressAdded, "address "+a.Address.Prefix.String()
	switch {
	case a.Gone:
		delete(r.addresses, k)
		if !known {
			return
		}
		kind = AddressRemoved
		text += " deleted"
	case !known:
		r.addresses[k] = a.Address
		text += " added"
	default:
		r.addresses[k] = a.Address
		kind = AddressChanged
		switch {
		case a.Address.Failed && !was.Failed:
			text += " is in use on another host"
		case a.Address.Deprecated && !was.Deprecated:
			text += " deprecated: new connections do not use it"
		default:
			return // Its lifetime was extended.
		}
	}
	who, why := r.authorOfAddress(a, family, kind)
	link := r.name(a.Device)
	r.blame(at, link, family, who, why)
	r.hold(held{
		event:   Event{Time: at, Kind: kind, Link: link, Family: family.String(), Object: a.Address.Prefix.String(), Text: text, Why: why, Author: who},
		group:   group{kind: kind, family: family.String(), author: who},
		follows: a.Address.Prefix.Addr().IsLinkLocalUnicast() && family == routing.IPv6 && kind != AddressChanged,
	})
}

// authorOfAddress says what the announcement does not: for IPv6 the kernel never names the socket.
func (r *Recorder) authorOfAddress(a Announced, f routing.Family, kind Kind) (who Author, why string) {
	i, known := r.interfaces[a.Device]
	switch {
	case kind == AddressChanged && a.Address.Failed:
		return Author{Party: Kernel}, "duplicate address detection failed"
	case kind == AddressChanged:
		return Author{Party: Kernel}, "its preferred lifetime is over"
	case kind == AddressRemoved && a.Port == 0 && known && !i.Up:
		return Author{Party: Kernel}, "the interface is down"
	case a.Origin == routing.OriginAdvertisement:
		return Author{Party: Kernel}, "router advertisement"
	case a.Origin == routing.OriginLinkLocal:
		return Author{Party: Kernel}, "link-local address of the interface"
	case a.Port != 0:
		if kind == AddressAdded && a.Address.Dynamic {
			why = "it has a lifetime: DHCP or a router advertisement"
		}
		return a.Author, why
	case f == routing.IPv4 && kind == AddressRemoved && a.Address.Dynamic:
		return Author{Party: Kernel}, "its lifetime is over"
	case f == routing.IPv6 && a.Address.Dynamic && r.managed(a.Device):
		return Author{Party: NetworkManager, Probable: true}, "DHCP or a router advertisement"
	default:
		return Author{Party: Unknown}, ""
	}
}

// managed reports whether the last document says that NetworkManager has a profile on an interface.
func (r *Recorder) managed(index int) bool {
	if r.document == nil {
		return false
	}
	name := r.name(index)
	return slices.ContainsFunc(r.document.Links, func(l status.Link) bool { return l.Interface == name && l.Profile != "" })
}

func (r *Recorder) takeRule(at time.Time, a Announced) {
	ours := a.Rule.Protocol == routing.Multihomed
	family := a.Rule.Family.String()
	e := Event{Time: at, Kind: RuleAdded, Family: family, Object: escape.Text(a.Rule.String()), Author: a.Author}
	verb := "added"
	if a.Gone {
		e.Kind, verb = RuleRemoved, "deleted"
	}
	e.Text = fmt.Sprintf("%s rule %s%s: %s", familyName(family), mine(ours, a.Author), verb, e.Object)
	r.ours(&e, ours)
	h := held{event: e, ours: ours, group: group{kind: e.Kind, family: family, author: e.Author, isOwn: own(e, ours)}}
	if ours {
		h.rule = a.Rule
	}
	r.hold(h)
}

func (r *Recorder) takeRoute(at time.Time, a Announced) {
	route := a.Routes[0]
	ours := route.Protocol == routing.Multihomed
	family := route.Family.String()
	link := r.name(route.Device)
	if route.Device == 0 {
		link = ""
	}
	e := Event{Time: at, Kind: RouteAdded, Link: link, Family: family, Object: routeText(route, link), Author: a.Author}
	if more := len(a.Routes) - 1; more > 0 {
		e.Object += fmt.Sprintf(" and %d more next hops", more)
	}
	verb := "added"
	switch {
	case a.Gone:
		e.Kind, verb = RouteRemoved, "deleted"
	case a.Replaced:
		e.Kind, verb = RouteReplaced, "replaced"
	}
	e.Text = fmt.Sprintf("%s route %s%s: %s", familyName(family), mine(ours, a.Author), verb, e.Object)
	if !ours {
		e.Why = r.whyRoute(route, a)
		if route.Table == routing.TableMain && route.IsDefault() {
			for _, way := range a.Routes {
				r.blame(at, r.name(way.Device), route.Family, e.Author, e.Why)
			}
		}
	}
	r.ours(&e, ours)
	h := held{event: e, ours: ours, group: group{kind: e.Kind, family: family, table: route.Table, author: e.Author, isOwn: own(e, ours)}}
	if ours {
		h.table = route.Table
	}
	if h.group.isOwn && r.limits.Summary {
		h.group.table = 0
	}
	h.linkLocal = route.Family == routing.IPv6 && route.Destination.Addr().IsLinkLocalUnicast()
	h.follows = route.Protocol == routing.ProtocolKernel && (e.Party == Kernel || e.Party == NetworkManager)
	r.hold(h)
}

// own reports whether multihomed changes what is its own, and restores nothing.
func own(e Event, ours bool) bool { return ours && e.Party == Multihomed && e.Why == "" }

// mine tells an object of multihomed from others where somebody else touches it.
func mine(ours bool, who Author) string {
	if ours && who.Party != Multihomed {
		return "of multihomed "
	}
	return ""
}

// ours remembers which process deleted an object of multihomed, and says so when it comes back. What the
// kernel deletes goes with an address or an interface, and comes back with it: that restores nothing.
func (r *Recorder) ours(e *Event, ours bool) {
	if !ours {
		return
	}
	key := e.Family + " " + e.Object
	switch who, was := r.deleted[key]; {
	case e.Kind == RuleRemoved || e.Kind == RouteRemoved:
		if e.Party == Multihomed || e.Party == Kernel {
			delete(r.deleted, key)
		} else if len(r.deleted) < mostDeleted {
			r.deleted[key] = e.Author
		}
	case was:
		delete(r.deleted, key)
		switch {
		case who.Party == Unknown:
			e.Why = "restored after it was deleted, by whom is not known"
		case who.Probable:
			e.Why = fmt.Sprintf("restored, %s deleted it", who)
		default:
			e.Why = fmt.Sprintf("restored after %s deleted it", who)
		}
	}
}

// routeText is a route as `ip route` prints it.
func routeText(r routing.Route, device string) string {
	text := escape.Text(r.Text(device))
	if no := r.Refuses(); no != "" {
		return no + " " + strings.Replace(text, " dev "+device, "", 1)
	}
	return text
}

// whyRoute says why a route of somebody else came or went, as far as its protocol tells.
func (r *Recorder) whyRoute(route routing.Route, a Announced) string {
	i, known := r.interfaces[route.Device]
	switch {
	case a.Gone && a.Port == 0 && known && !i.Up:
		return "the interface is down"
	case a.Gone && a.Port == 0 && known && !i.Carrier:
		return "the interface has no carrier"
	case a.Gone:
		return ""
	}
	const dhcp = 16 // RTPROT_DHCP
	switch p := route.Protocol; {
	case p == routing.ProtocolRA:
		return "router advertisement"
	case p == routing.ProtocolKernel:
		return "network of an address"
	case p == dhcp:
		return "DHCP"
	case p == routing.ProtocolStatic && a.Author.Party == NetworkManager:
		return "profile"
	default:
		return ""
	}
}

// blame notes who did something to an interface that may explain a change of the document. What
// multihomed does follows such a change.
func (r *Recorder) blame(at time.Time, link string, f routing.Family, who Author, why string) {
	if who.Party != Unknown && who.Party != Multihomed {
		r.causes[causeKey{link, f.String()}] = cause{at, who, why}
	}
}

// causeOf is who changed an interface a moment ago, Unknown if nobody did.
func (r *Recorder) causeOf(at time.Time, link, family string) cause {
	c, known := r.causes[causeKey{link, family}]
	if !known || at.Sub(c.at) > causeLasts {
		return cause{author: Author{Party: Unknown}}
	}
	return c
}

// forget leaves out causes that explain nothing any more.
func (r *Recorder) forget(at time.Time) {
	maps.DeleteFunc(r.causes, func(_ causeKey, c cause) bool { return at.Sub(c.at) > causeLasts })
}

func familyName(f string) string {
	if f == "ipv6" {
		return "IPv6"
	}
	return "IPv4"
}
