package ctl

import (
	"cmp"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"multihomed/cmd/internal/inspect"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// statusOf makes of what was found what is shown.
func statusOf(v *inspect.View, root fs.FS, version string) Status {
	s := Status{
		Schema: statusSchema, Version: version,
		Daemon: Daemon{
			Running: v.Running, PID: v.Daemon.PID, Version: v.Daemon.Version,
			Ready: v.Daemon.Ready, Waiting: v.Daemon.Waiting,
		},
		NetworkManager: Manager{Running: v.NM.Running, Version: v.NM.Version, Complete: v.NM.Complete, None: v.Alone, Waiting: v.NM.Reason, Error: v.ManagerUnread},
		Tables:         Range{First: uint32(v.Policy.Tables.First), Last: uint32(v.Policy.Tables.Last)},
		UplinkGroup:    v.Policy.UplinkGroup,
		Links:          []Link{}, Shared: []Object{}, Others: []Other{}, Problems: []Problem{},
		Unread: append([]string{}, v.Notes...),
	}
	s.Off, s.OffLinks = offOf(v.Off)
	if !v.Daemon.Started.IsZero() {
		s.Daemon.Started = &v.Daemon.Started
	}
	if v.LeasesUnread != "" && !slices.Contains(s.Unread, v.LeasesUnread) {
		s.Unread = append(s.Unread, v.LeasesUnread)
	}
	objects := objectsByLink(v, &s)
	for plan := range v.Planner.Links() {
		s.Links = append(s.Links, linkOf(v, plan, objects[plan.Link.Name]))
	}
	slices.SortFunc(s.Links, compareLinks)
	s.Others = othersOf(v)
	s.Problems = append(s.Problems, v.Findings(root)...)
	s.OK = s.sound()
	return s
}

// offOf is what was switched off.
func offOf(off offswitch.State) (*Off, []OffLink) {
	mark := func(m offswitch.Mark) Off {
		o := Off{By: m.By}
		if !m.Since.IsZero() {
			o.Since = &m.Since
		}
		return o
	}
	var host *Off
	switch {
	case off.Host != nil:
		o := mark(*off.Host)
		host = &o
	case off.Damaged != nil:
		host = &Off{}
	}
	links := make([]OffLink, 0, len(off.Links))
	for _, l := range off.Links {
		links = append(links, OffLink{Interface: l.Interface, UUID: l.UUID, Off: mark(l.Mark)})
	}
	return host, links
}

// sound reports whether the exit status is 0.
func (s *Status) sound() bool {
	return s.InForce.complete() && !slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Severity == routing.Error })
}

// compareLinks puts uplinks first, then goes by name as people do.
func compareLinks(a, b Link) int {
	return cmp.Or(-cmp.Compare(a.Role, b.Role), compareNames(a.Interface, b.Interface))
}

// compareNames orders wan2 before wan10.
func compareNames(a, b string) int {
	at, an := splitNumber(a)
	bt, bn := splitNumber(b)
	return cmp.Or(strings.Compare(at, bt), cmp.Compare(len(an), len(bn)), strings.Compare(an, bn))
}

func splitNumber(name string) (text, number string) {
	text = strings.TrimRight(name, "0123456789")
	return text, strings.TrimLeft(name[len(text):], "0")
}

// complete reports whether everything is as planned.
func (c Count) complete() bool { return c.Present == c.Planned && c.Unexpected == 0 }

func (c *Count) add(state inspect.State) { c.addName(string(state)) }

func (c *Count) addName(state string) {
	switch inspect.State(state) {
	case inspect.Unexpected:
		c.Unexpected++
	case inspect.InForce:
		c.Planned++
		c.Present++
	case inspect.Missing, inspect.Different, inspect.Misplaced:
		c.Planned++
	case inspect.Yielding:
	}
}

// objectsByLink counts all objects, keeps those of no link in the status and
// returns the others by interface.
func objectsByLink(v *inspect.View, s *Status) map[string][]inspect.Object {
	links := map[string]bool{}
	for plan := range v.Planner.Links() {
		links[plan.Link.Name] = true
	}
	out := map[string][]inspect.Object{}
	for _, o := range v.Objects() {
		s.InForce.add(o.State)
		if links[o.Link] {
			out[o.Link] = append(out[o.Link], o)
		} else {
			s.Shared = append(s.Shared, objectOf(o))
		}
	}
	return out
}

func objectOf(o inspect.Object) Object {
	out := Object{Kind: string(o.Kind), State: string(o.State), Text: o.Text, Reason: string(o.Reason.Decision), Lifts: o.Lifts()}
	if o.Family != 0 {
		out.Family = o.Family.String()
	}
	return out
}

func linkOf(v *inspect.View, plan routing.LinkPlan, objects []inspect.Object) Link {
	name := plan.Link.Name
	claim := v.Claims[name]
	l := Link{
		Interface: name, Index: plan.Link.Index, Role: plan.Role.String(), RoleWhy: plan.Why,
		Draining: claim.Standing == reconcile.Draining, Why: claim.Why, Profile: claim.Profile,
		Up: plan.Link.Up, Carrier: v.Links[name].Carrier, Group: plan.Link.Group,
		Networks: []Network{}, LeftAlone: map[string]string{}, Unused: []Address{}, Objects: []Object{},
	}
	if d, known := v.NM.Devices[name]; known {
		l.Type = nm.TypeName(d.Type)
	}
	for _, o := range objects {
		l.InForce.add(o.State)
		l.Objects = append(l.Objects, objectOf(o))
	}
	for _, k := range plan.Keys {
		l.Networks = append(l.Networks, networkOf(plan, k))
	}
	for f, in := range plan.Link.Intents {
		if in.LeaveAlone != "" {
			l.LeftAlone[f.String()] = in.LeaveAlone
		}
	}
	for _, a := range plan.Link.Addresses {
		if a.Failed {
			l.Unused = append(l.Unused, addressOf(a))
		}
	}
	return l
}

func networkOf(plan routing.LinkPlan, k routing.Key) Network {
	t, has := plan.Link.Tables[k]
	n := Network{Family: k.Family.String(), HostAddresses: k.OfHosts(), Table: uint32(t), Addresses: []Address{}, Gateways: []Gateway{}}
	if !n.HostAddresses {
		n.Prefix = k.Prefix
	}
	for _, a := range plan.Link.Addresses {
		if own, ok := routing.KeyOf(plan.Link, a.Prefix.Addr()); ok && own == k && !a.Failed {
			n.Addresses = append(n.Addresses, addressOf(a))
		}
	}
	var defaults []routing.Route
	for _, r := range plan.Routes {
		if has && r.Route.Table == t && r.Route.Family == k.Family && r.Route.IsDefault() {
			defaults = append(defaults, r.Route)
		}
	}
	slices.SortStableFunc(defaults, func(a, b routing.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	for _, r := range defaults {
		g := Gateway{}
		if r.Gateway.IsValid() {
			g.Via = &r.Gateway
		}
		n.Gateways = append(n.Gateways, g)
	}
	return n
}

func addressOf(a routing.Address) Address {
	out := Address{Address: a.Prefix.Addr(), Length: a.Prefix.Bits(), Flags: []string{}}
	if a.Peer.IsValid() {
		out.Peer = new(netip.Addr)
		*out.Peer = a.Peer
	}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{a.Failed, "duplicate"},
		{a.Tentative, "tentative"},
		{a.Deprecated, "deprecated"},
		{a.Temporary, "temporary"},
		{a.Dynamic, "dynamic"},
	} {
		if f.set {
			out.Flags = append(out.Flags, f.name)
		}
	}
	return out
}

// othersOf lists the interfaces that are no links, but for the loopback.
func othersOf(v *inspect.View) []Other {
	out := []Other{}
	for _, name := range slices.SortedFunc(maps.Keys(v.Links), compareNames) {
		facts := v.Links[name]
		if _, is := v.Planner.Link(facts.Index); is || name == "lo" {
			continue
		}
		out = append(out, Other{Interface: name, Why: whyNot(v, facts)})
	}
	return out
}

func whyNot(v *inspect.View, facts kernel.Link) string {
	claim, known := v.Claims[facts.Name]
	switch {
	case known && claim.Why != "":
		return claim.Why
	case v.Alone:
		return "no hook said that it was configured"
	case !v.NM.Running:
		return "NetworkManager cannot be asked about it"
	default:
		return "NetworkManager does not know it"
	}
}
