package watch

import (
	"fmt"
	"net/netip"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// mostSummaries is how many links have a summary of their own; with more, one is of all of them.
const mostSummaries = 8

// A tale is what is held, seen together: an object that comes before another one goes has moved, and what
// goes with an address has gone because of it.
type tale struct {
	r *Recorder
	// known are the objects that the last document has, by their texts.
	known map[string]reason
	// before and after are the names of links in the last two documents, told whether these are of the
	// daemon, and tables and sources name the links that had or have them.
	before, after map[string]bool
	told          bool
	tables        map[string]string
	sources       map[netip.Prefix]string
	// added are the objects that came, with their last place among those that are held.
	added map[string]int
	// addresses are the interfaces and families that got or lost one, with those that they lost.
	addresses map[causeKey][]netip.Addr
	// moved are the places of additions that belong to a move.
	moved map[int]bool
}

type reason struct {
	link     string
	decision routing.Decision
}

func object(e Event) string { return e.Family + " " + e.Object }

func (r *Recorder) tale(was *status.Status) *tale {
	t := &tale{
		r: r, known: map[string]reason{}, before: map[string]bool{}, after: map[string]bool{}, tables: map[string]string{},
		sources: map[netip.Prefix]string{}, added: map[string]int{}, addresses: map[causeKey][]netip.Addr{}, moved: map[int]bool{},
	}
	if len(r.held) == 0 {
		return t
	}
	for i, h := range r.held {
		e := h.event
		switch {
		case h.ours && (e.Kind == RuleAdded || e.Kind == RouteAdded):
			t.added[object(e)] = i
		case e.Kind == AddressAdded || e.Kind == AddressRemoved:
			k := causeKey{e.Link, e.Family}
			var lost []netip.Addr
			if p, err := netip.ParsePrefix(e.Object); err == nil && e.Kind == AddressRemoved {
				lost = []netip.Addr{p.Addr()}
			}
			t.addresses[k] = append(t.addresses[k], lost...)
		}
	}
	if !r.Explainable() {
		return t
	}
	t.told = was != nil && r.document != nil && was.By == status.ByDaemon && r.document.By == status.ByDaemon
	t.links(was, t.before)
	t.links(r.document, t.after)
	return t
}

func (t *tale) links(s *status.Status, names map[string]bool) {
	if s == nil {
		return
	}
	for _, l := range s.Links {
		names[l.Interface] = true
		for _, n := range l.Networks {
			if n.Table != 0 {
				t.tables[n.Family+" "+fmt.Sprint(n.Table)] = l.Interface
			}
			if n.Prefix.IsValid() {
				t.source(n.Prefix.Masked(), l.Interface)
			}
			for _, a := range n.Addresses {
				t.source(netip.PrefixFrom(a.Address, a.Address.BitLen()), l.Interface)
			}
		}
	}
	if s != t.r.document {
		return
	}
	add := func(link string, objects []status.Object) {
		for _, o := range objects {
			if o.Reason != "" {
				t.known[o.Family+" "+o.Text] = reason{link, routing.Decision(o.Reason)}
			}
		}
	}
	for _, l := range s.Links {
		add(l.Interface, l.Objects)
	}
	add("", s.Shared)
}

// source notes whose source a prefix is. Two links may have the same.
func (t *tale) source(p netip.Prefix, link string) {
	if other, known := t.sources[p]; known && other != link {
		link = ""
	}
	t.sources[p] = link
}

// link is the link of an object that the last document does not have.
func (t *tale) link(h held) string {
	table := h.rule.Table + h.table // One of them is 0.
	if name, is := t.tables[h.event.Family+" "+fmt.Sprint(uint32(table))]; is {
		return name
	}
	if name := escape.Name(h.rule.OIF); t.before[name] || t.after[name] {
		return name
	}
	if h.rule.From.IsValid() {
		return t.sources[h.rule.From.Masked()]
	}
	return ""
}

// explain says why an object of multihomed came or went.
func (t *tale) explain(i int) {
	h := &t.r.held[i]
	e := &h.event
	w, known := t.known[object(*e)]
	if !known && h.rule.Priority != 0 {
		if rung, is := routing.RungOf(h.rule.Priority); is {
			w.decision = rung.Decision
		}
	}
	if !known && w.link == "" {
		w.link = t.link(*h)
	}
	if e.Link == "" {
		e.Link = w.link
	}
	e.Reason = string(w.decision)
	gone := e.Kind == RuleRemoved || e.Kind == RouteRemoved
	switch {
	case e.Why != "":
	case gone && e.Party == Kernel:
		e.Why = t.lost(*h)
	case e.Party != Multihomed:
	case gone:
		e.Why = t.whyGone(i, known)
	case w.decision != "":
		e.Why = w.decision.Sentence()
	}
}

// whyGone says why multihomed deleted an object. A move adds first; what is added later has come back.
func (t *tale) whyGone(i int, known bool) string {
	h := t.r.held[i]
	e := h.event
	came, back := t.added[object(e)]
	if back && came < i {
		if !known {
			return unneeded // Between two documents it came and went.
		}
		t.moved[came] = true
		return inOrder
	}
	if t.told && t.before[e.Link] && !t.after[e.Link] {
		return "it is no longer a link"
	}
	if why := t.lost(h); why != "" {
		return why
	}
	if known || back || h.rule.Priority == 0 && e.Reason == "" {
		return ""
	}
	return unneeded
}

const (
	inOrder  = "it moves to its place in the order"
	unneeded = "nothing needs it any more"
	// Of several.
	allInOrder  = "they move to their places in the order"
	allUnneeded = "nothing needs them any more"
)

// lost says that an object went with an address of its interface.
func (t *tale) lost(h held) string {
	for _, a := range t.addresses[causeKey{h.event.Link, h.event.Family}] {
		if h.rule.From.IsValid() && !h.rule.From.Contains(a) || a.IsLinkLocalUnicast() && a.Is6() && !h.linkLocal {
			continue
		}
		return "an address is gone"
	}
	return ""
}

// A sum is what happened to the objects of one link.
type sum struct {
	first         Event
	rules, routes int
	links         map[string]bool
	sameWhy       bool
}

type sumKey struct {
	link, verb string
	party      Party
}

// summary makes one event of all that multihomed, or the kernel, did to the objects of one link.
func (t *tale) summary() (out []Event) {
	sums, places, links := map[sumKey]*sum{}, map[sumKey]int{}, map[sumKey]int{}
	keys := make([]sumKey, len(t.r.held))
	for i, h := range t.r.held {
		k, is := t.key(h)
		if !is || t.moved[i] {
			continue
		}
		keys[i] = k
		if sums[k] == nil {
			sums[k] = &sum{}
			k.link = ""
			links[k]++
		}
	}
	clear(sums)
	for i, h := range t.r.held {
		k := keys[i]
		switch {
		case t.moved[i]:
			continue
		case k.verb == "":
			if !h.follows || !t.hasAddress(h) {
				out = appendJoined(out, h.event.clean())
			}
			continue
		}
		name := k.link
		if all := (sumKey{verb: k.verb, party: k.party}); links[all] > mostSummaries {
			k = all
		}
		s := sums[k]
		if s == nil {
			s = &sum{first: h.event, links: map[string]bool{}, sameWhy: true}
			sums[k], places[k] = s, len(out)
			out = append(out, Event{})
		}
		s.add(h, name)
	}
	for k, s := range sums {
		out[places[k]] = s.event(k)
	}
	return out
}

// appendJoined appends an event, or joins it with the last one of the interface if both are about its state.
func appendJoined(out []Event, e Event) []Event {
	ofInterface := func(e Event) bool {
		return e.Kind == InterfaceAdded || e.Kind == InterfaceChanged || e.Kind == InterfaceRemoved
	}
	for i := len(out) - 1; i >= 0 && ofInterface(e); i-- {
		was := &out[i]
		if was.Link != e.Link {
			continue
		}
		if !ofInterface(*was) || was.Author != e.Author || was.Why != e.Why {
			break
		}
		was.Text += ", " + strings.TrimPrefix(e.Text, "interface ")
		was.Kind, was.isSummary = e.Kind, true
		was.Count += e.Count
		return out
	}
	return append(out, e)
}

// hasAddress reports whether an interface got or lost an address. A link-local one is not waited for: it may
// come a moment after its network.
func (t *tale) hasAddress(h held) bool {
	_, is := t.addresses[causeKey{h.event.Link, h.event.Family}]
	return is || h.linkLocal
}

// key says where an event is counted, if it is.
func (t *tale) key(h held) (sumKey, bool) {
	e := h.event
	if !h.ours || strings.HasPrefix(e.Why, "restored") || e.Party != Multihomed && (e.Party != Kernel || e.Kind != RouteRemoved) {
		return sumKey{}, false
	}
	verb := map[Kind]string{RuleAdded: "added", RouteAdded: "added", RouteReplaced: "replaced", RuleRemoved: "deleted", RouteRemoved: "deleted"}[e.Kind]
	if e.Why == inOrder {
		verb = "moved"
	}
	return sumKey{e.Link, verb, e.Party}, true
}

func (s *sum) add(h held, link string) {
	if h.event.Kind == RuleAdded || h.event.Kind == RuleRemoved {
		s.rules++
	} else {
		s.routes++
	}
	if link != "" {
		s.links[link] = true
	}
	s.sameWhy = s.sameWhy && h.event.Why == s.first.Why
}

func (s *sum) event(k sumKey) Event {
	e := s.first
	if s.rules+s.routes == 1 {
		return e.clean()
	}
	e.Link, e.Family, e.Object, e.Reason = k.link, "", "", ""
	e.Count, e.isSummary = s.rules+s.routes, true
	switch {
	case !s.sameWhy:
		e.Why = ""
	case e.Why == inOrder:
		e.Why = allInOrder
	case e.Why == unneeded:
		e.Why = allUnneeded
	}
	var parts []string
	for _, c := range []struct {
		n    int
		noun string
	}{{s.rules, "rule"}, {s.routes, "route"}} {
		switch {
		case c.n == 1:
			parts = append(parts, "1 "+c.noun)
		case c.n > 1:
			parts = append(parts, fmt.Sprintf("%d %ss", c.n, c.noun))
		}
	}
	e.Text = strings.Join(parts, " and ")
	if e.Party == Kernel {
		e.Text += " of multihomed"
	}
	e.Text += " " + k.verb
	if len(s.links) > mostSummaries {
		e.Text += fmt.Sprintf(" on %d links", len(s.links))
	}
	return e.clean()
}
