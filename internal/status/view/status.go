package view

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Status makes the status of a view and of the problems in it. Version is that of the program
// that looked.
func (v *View) Status(findings []routing.Problem, version string) status.Status {
	s := status.Status{
		Schema: status.Schema, Version: version, By: status.ByHost,
		Daemon: status.Daemon{
			Running: v.Running, PID: v.Daemon.PID, Version: v.Daemon.Version,
			Ready: v.Daemon.Ready, Waiting: v.Daemon.Waiting,
			StateDir: v.Daemon.Directories.State, RuntimeDir: v.Daemon.Directories.Runtime,
		},
		NetworkManager: status.Manager{Running: v.NM.Running, Version: v.NM.Version, Complete: v.NM.Complete, None: v.NoManager, Unwanted: v.Unwanted, Waiting: v.NM.Reason, Error: v.ManagerUnread},
		Tables:         status.Range{First: uint32(v.Policy.Tables.First), Last: uint32(v.Policy.Tables.Last)},
		UplinkGroup:    v.Policy.UplinkGroup,
		Links:          []status.Link{}, Shared: []status.Object{}, Others: []status.Other{}, Problems: []status.Problem{},
		Unread:  append([]string{}, v.Notes...),
		Unbound: map[string]status.Unbound{}, Unchecked: v.Unchecked, OtherRules: v.otherRules(),
	}
	if !v.Running && v.Unit.Unwanted() {
		s.Daemon.Kept = v.Unit.String()
	}
	s.Daemon.Refused = v.Refused()
	s.Off, s.OffLinks = v.offOf()
	if v.ByDaemon {
		s.By = status.ByDaemon
	}
	for f, u := range v.Unbound {
		s.Unbound[f.String()] = v.unboundIn(f, u)
	}
	if !v.Daemon.Started.IsZero() {
		s.Daemon.Started = &v.Daemon.Started
	}
	if v.LeasesUnread != "" && !slices.Contains(s.Unread, v.LeasesUnread) {
		s.Unread = append(s.Unread, v.LeasesUnread)
	}
	objects := objectsByLink(v, &s)
	for plan := range v.Planner.Links() {
		s.InForce.Add(v.unlisted(&plan))
		e, is := v.keptLink(&plan)
		if is {
			s.Links = append(s.Links, e.link)
			continue
		}
		l := linkOf(v, plan, objects[plan.Link.Name])
		l.Escape()
		if v.shelf != nil && !v.odd[plan.Link.Name] {
			e = v.kept(&plan)
			e.link, e.encoded = l, nil
		}
		s.Links = append(s.Links, l)
	}
	slices.SortFunc(s.Links, status.CompareLinks)
	s.Others = othersOf(v)
	s.Escape()
	s.Failover, s.Answers, s.Bindings = v.FailoverStatus(), v.Answers, v.Bindings
	s.Tell(findings)
	return s
}

// offOf is what was switched off.
func (v *View) offOf() (*status.Off, []status.OffLink) {
	off := v.Off
	mark := func(m offswitch.Mark) status.Off {
		o := status.Off{By: m.By}
		if !m.Since.IsZero() {
			o.Since = &m.Since
		}
		return o
	}
	var host *status.Off
	switch {
	case off.Host != nil:
		o := mark(*off.Host)
		host = &o
	case off.Damaged != nil:
		host = &status.Off{}
	}
	links := make([]status.OffLink, 0, len(off.Links))
	for _, l := range off.Links {
		name := l.Interface
		if names := l.On(v.Present()); len(names) > 0 {
			name = names[0]
		}
		links = append(links, status.OffLink{Interface: name, UUID: l.UUID, Off: mark(l.Mark)})
	}
	return host, links
}

// Present are the interfaces of the host, with their profiles.
func (v *View) Present() []offswitch.Interface {
	out := make([]offswitch.Interface, 0, len(v.Links))
	for _, name := range slices.SortedFunc(maps.Keys(v.Links), status.CompareNames) {
		uuid := v.NM.Devices[name].ProfileUUID
		if claim, is := v.ClaimOf(v.Links[name]); is && uuid == "" {
			uuid = claim.UUID
		}
		out = append(out, offswitch.Interface{Name: name, UUID: uuid})
	}
	return out
}

// objectsByLink counts all objects, keeps those of no link in the status and
// returns the others by interface.
func objectsByLink(v *View, s *status.Status) map[string][]Object {
	all := v.Objects()
	// The objects of kept links are kept, too.
	links := map[string]bool{}
	for plan := range v.Planner.Links() {
		_, is := v.keptLink(&plan)
		links[plan.Link.Name] = !is
	}
	out := map[string][]Object{}
	for _, o := range all {
		s.InForce.Take(o.State)
		if anew, isLink := links[o.Link]; !isLink {
			s.Shared = append(s.Shared, objectOf(o))
		} else if anew {
			out[o.Link] = append(out[o.Link], o)
		}
	}
	return out
}

func objectOf(o Object) status.Object {
	out := status.Object{Kind: string(o.Kind), State: o.State, Text: o.Text, Reason: string(o.Reason.Decision), Lifts: o.Lifts()}
	if o.Family != 0 {
		out.Family = o.Family.String()
	}
	return out
}

func linkOf(v *View, plan routing.LinkPlan, objects []Object) status.Link {
	name := plan.Link.Name
	claim, _ := v.ClaimOf(v.Links[name])
	l := status.Link{
		Interface: name, Index: plan.Link.Index, Role: plan.Role().String(), RoleWhy: plan.Why(),
		Draining: claim.Standing == reconcile.Draining && !claim.Settling, Pending: claim.Pending, Why: claim.Why, Profile: claim.Profile,
		Up: plan.Link.Up, Carrier: v.Links[name].Carrier, Group: plan.Link.Group,
		Networks: []status.Network{}, LeftAlone: map[string]string{}, Unused: []status.Address{}, Objects: []status.Object{},
	}
	l.Type = claim.Type
	if plan.Mixed() {
		l.Roles = map[string]status.FamilyRole{}
		for _, f := range routing.Families() {
			l.Roles[f.String()] = status.FamilyRole{Role: plan.Roles.In(f).String(), Why: plan.Whys.In(f)}
		}
	}
	if v.ByDaemon {
		if i, known := v.Snapshot.Interface(l.Index); known && !i.Since.IsZero() {
			l.Since = &i.Since
		}
	}
	for _, o := range objects {
		l.InForce.Take(o.State)
		l.Objects = append(l.Objects, objectOf(o))
	}
	l.InForce.Add(v.unlisted(&plan))
	for _, k := range plan.Keys {
		n := networkOf(plan, k)
		if v.Snapshot != nil {
			n.Routes = v.Snapshot.Paths[plan.Link.Tables[k]]
		}
		l.Networks = append(l.Networks, n)
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

// unlisted counts the routes of a link that are not among the objects, because they are
// many. They stand: one that is missing is an object.
func (v *View) unlisted(plan *routing.LinkPlan) status.Count {
	n := 0
	if v.Snapshot != nil {
		for _, k := range plan.Keys {
			n += v.Snapshot.Paths[plan.Link.Tables[k]]
		}
	}
	return status.Count{Planned: n, Present: n}
}

func networkOf(plan routing.LinkPlan, k routing.Key) status.Network {
	t := plan.Link.Tables[k]
	n := status.Network{Family: k.Family.String(), HostAddresses: k.OfHosts(), Table: uint32(t), Addresses: []status.Address{}, Gateways: []status.Gateway{}}
	if !n.HostAddresses {
		n.Prefix = k.Prefix
	}
	for _, a := range plan.Link.Addresses {
		if own, ok := routing.KeyOf(plan.Link, a.Prefix.Addr()); ok && own == k && !a.Failed {
			n.Addresses = append(n.Addresses, addressOf(a))
		}
	}
	defaults := Defaults(&plan, k)
	slices.SortStableFunc(defaults, func(a, b routing.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	for _, r := range defaults {
		g := status.Gateway{}
		if r.Gateway.IsValid() {
			g.Via = &r.Gateway
		}
		n.Gateways = append(n.Gateways, g)
	}
	return n
}

// Defaults are the planned default routes of a network of a link, those for some of its sources included.
func Defaults(plan *routing.LinkPlan, k routing.Key) []routing.Route {
	t, has := plan.Link.Tables[k]
	var out []routing.Route
	for _, r := range plan.Routes {
		if !has || r.Route.Table != t || r.Route.Family != k.Family || r.Route.Destination.Bits() != 0 {
			continue
		}
		if from := r.Route.Source; !from.IsValid() || !k.OfHosts() && from.Overlaps(k.Prefix) || k.OfHosts() && slices.ContainsFunc(plan.Link.Addresses, func(a routing.Address) bool {
			own, is := routing.KeyOf(plan.Link, a.Prefix.Addr())
			return is && own == k && from.Contains(a.Prefix.Addr())
		}) {
			out = append(out, r.Route)
		}
	}
	return out
}

func addressOf(a routing.Address) status.Address {
	out := status.Address{Address: a.Prefix.Addr(), Length: a.Prefix.Bits(), Flags: []string{}}
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
func othersOf(v *View) []status.Other {
	out := []status.Other{}
	for _, name := range slices.SortedFunc(maps.Keys(v.Links), status.CompareNames) {
		facts := v.Links[name]
		if _, is := v.Planner.Link(facts.Index); is || name == "lo" {
			continue
		}
		out = append(out, status.Other{Interface: name, Why: whyNot(v, facts)})
	}
	return out
}

// unavailable is NetworkManager's word for an interface that cannot be activated now.
const unavailable = "unavailable"

func whyNot(v *View, facts routing.Interface) string {
	claim, known := v.ClaimOf(facts)
	switch {
	case known && claim.Why == unavailable && facts.Up && !facts.Carrier:
		return claim.Why + ", no carrier" // Whoever looks for the reason of an outage looks here.
	case known && claim.Why != "":
		return claim.Why
	case v.NoManager:
		return "not configured by NetworkManager, ifupdown, dhclient or dhcpcd"
	case !v.NM.Running:
		return "NetworkManager cannot be asked about it"
	default:
		return "NetworkManager does not know it"
	}
}
