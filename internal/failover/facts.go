package failover

import (
	"cmp"
	"net/netip"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Facts are what the controller must know of the host.
type Facts struct {
	// Ready says that every link is known.
	Ready bool
	// Uplinks are those that have a default, by index and family.
	Uplinks []Uplink
	// Courses say which way unbound traffic goes.
	Courses [2]routing.Course
	// Near are networks whose hosts prove nothing of the way behind a link.
	Near []netip.Prefix
	// Endpoints are those of Multipath TCP that the uplinks should have.
	Endpoints []connections.Endpoint
	// carriers say of all interfaces whether they run.
	carriers map[int]bool
}

// An Uplink is one that has a default in a family.
type Uplink struct {
	Index  int
	Name   string
	Family routing.Family
	Exit   routing.Exit
	// Runs says that the interface is up and has a carrier.
	Runs bool
	// Metered says that its traffic may cost money.
	Metered bool
	// Served says that NetworkManager brought it up.
	Served bool
	// Profile is the UUID of NetworkManager's profile, empty if there is none.
	Profile string
	// Addresses are its own of the family, Networks those of its neighbours.
	Addresses []netip.Addr
	Networks  []netip.Prefix
	// Servers are the DNS servers of the family that its owner names; the owner may name more
	// unless ServersKnown.
	Servers      []netip.Addr
	ServersKnown bool
	// Place is that of the administrator's preferences, from 0, -1 for none; Weight is its
	// share of unbound traffic, 0 for none.
	Place  int
	Weight uint8
}

// mostNear bounds the networks of neighbours: see [wire.MaxNear].
const mostNear = 256

// Gather makes the facts of a snapshot. It calls known with names that owners use, for
// uplinks alone. It is for the goroutine that may ask the owners.
func Gather(cfg config.Config, s *reconcile.Snapshot, known func(name string) owners.Known) Facts {
	f := Facts{Ready: s.Report.Ready, Courses: s.Courses, carriers: map[int]bool{}}
	for _, i := range s.Interfaces {
		f.carriers[i.Facts.Index] = i.Facts.Up && i.Facts.Carrier && i.Facts.Running
		for _, a := range i.Facts.Addresses {
			if n := a.Prefix.Masked(); len(f.Near) < mostNear && n.IsValid() && n.Bits() < n.Addr().BitLen() && !n.Addr().IsLinkLocalUnicast() && !n.Addr().IsLoopback() {
				f.Near = append(f.Near, n)
			}
		}
		if i.IsLink {
			f.Uplinks = append(f.Uplinks, uplinks(cfg, i, known)...)
		}
	}
	slices.SortFunc(f.Near, netip.Prefix.Compare)
	f.Near = slices.Compact(f.Near)
	if cfg.Failover.Enabled && cfg.Failover.MPTCP == config.MPTCPAuto {
		f.Endpoints = endpoints(s, f.Uplinks)
	}
	return f
}

// endpoints are those of Multipath TCP that uplinks should have which NetworkManager does not
// serve.
func endpoints(s *reconcile.Snapshot, all []Uplink) []connections.Endpoint {
	var links []connections.Uplink
	for _, u := range all {
		i, exists := s.Interface(u.Index)
		if !exists {
			continue
		}
		if len(links) == 0 || links[len(links)-1].Device != u.Index {
			links = append(links, connections.Uplink{Device: u.Index, Served: u.Served})
		}
		link := &links[len(links)-1]
		for _, a := range i.Facts.Addresses {
			if routing.FamilyOf(a.Prefix.Addr()) == u.Family {
				link.Addresses = append(link.Addresses, a)
			}
		}
	}
	return connections.WantedEndpoints(links)
}

func uplinks(cfg config.Config, i *reconcile.Interface, known func(name string) owners.Known) (all []Uplink) {
	for _, family := range routing.Families() {
		exit, is := routing.ExitOf(&i.Plan, family)
		if !is {
			continue
		}
		all = append(all, Uplink{
			Index: i.Facts.Index, Name: i.Facts.Name, Family: family, Exit: exit,
			Runs: i.Facts.Up && i.Facts.Carrier && i.Facts.Running,
		})
	}
	if len(all) == 0 {
		return nil
	}
	said := i.Said
	if !i.Claimed {
		said = i.Facts.Name
	}
	k := known(said)
	for n := range all {
		u := &all[n]
		u.Metered, u.ServersKnown, u.Served = k.Device.Metered, k.IsWhole, k.Device.Managed && !k.Device.External
		u.Profile = k.Device.ProfileUUID
		u.Servers = k.Resolvers[u.Family].Servers
		u.Weight, u.Place = cfg.Share.WeightOf(k.Device), -1
		if place, named := cfg.Failover.Preference(k.Device); named {
			u.Place = place
		}
		for _, a := range i.Facts.Addresses {
			if routing.FamilyOf(a.Prefix.Addr()) != u.Family {
				continue
			}
			u.Addresses = append(u.Addresses, a.Prefix.Addr())
			if n := a.Prefix.Masked(); n.Bits() < n.Addr().BitLen() {
				u.Networks = append(u.Networks, n)
			}
		}
	}
	return all
}

// isNear reports whether an address is a neighbour on the uplink.
func (u *Uplink) isNear(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a == u.Exit.Route.Gateway || slices.Contains(u.Addresses, a) ||
		slices.ContainsFunc(u.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// FactsOf are the facts of failover that the configuration alone decides.
func FactsOf(cfg config.Config) routing.Failover {
	f := routing.Failover{Enabled: cfg.Failover.Enabled, HostRoutes: cfg.Failover.HostRoutes}
	switch cfg.Failover.Forwarded {
	case config.ForwardedNone:
		f.Forwarded = routing.ForwardedNone
	case config.ForwardedAll:
		f.Forwarded = routing.ForwardedAll
	case config.ForwardedIPv4:
		f.Forwarded = routing.ForwardedIPv4
	}
	return f
}

// FactsOfUplinks are the facts of failover that need no judgement.
func FactsOfUplinks(cfg config.Config, uplinks []Uplink) routing.Failover {
	f := FactsOf(cfg)
	type preferred struct{ index, place int }
	var prefer []preferred
	for _, u := range uplinks {
		if u.Place >= 0 && !slices.Contains(prefer, preferred{u.Index, u.Place}) {
			prefer = append(prefer, preferred{u.Index, u.Place})
		}
		if u.Metered {
			if f.Metered == nil {
				f.Metered = map[int]struct{}{}
			}
			f.Metered[u.Index] = struct{}{}
		}
		if u.Weight > 0 {
			if f.Shares == nil {
				f.Shares = map[int]uint8{}
			}
			f.Shares[u.Index] = u.Weight
		}
	}
	slices.SortFunc(prefer, func(a, b preferred) int { return cmp.Or(a.place-b.place, a.index-b.index) })
	for _, p := range prefer {
		f.Prefer = append(f.Prefer, p.index)
	}
	return f
}
