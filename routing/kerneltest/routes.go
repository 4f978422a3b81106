package kerneltest

import (
	"slices"
	"syscall"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// find returns the place of the route that cannot stand beside r.
func (k *Kernel) find(r routing.Route) (int, bool) {
	key := r.Key()
	at := slices.IndexFunc(k.routes[fib{r.Family, r.Table}], func(have routing.Route) bool { return have.Key() == key })
	return at, at >= 0
}

func (k *Kernel) put(r routing.Route) {
	t := fib{r.Family, r.Table}
	k.routes[t] = append(k.routes[t], r)
	k.tell(event{route: r})
	if k.policy.OwnsRoute(r) {
		k.own[r.Key()] = r
		k.noted.Routes[r.Key()] = struct{}{}
	}
}

func (k *Kernel) remove(r routing.Route) {
	key := r.Key()
	k.flushTable(fib{r.Family, r.Table}, func(have routing.Route) bool { return have.Key() == key })
}

// replace is NLM_F_REPLACE. Of an IPv6 route with a next hop it takes the place
// of all legs, not of the one with the same next hop (fib6_add_rt2node).
//
// One without a next hop takes the place of another such route, and where there is only a
// route of the other sort the first of these goes.
func (k *Kernel) replace(r routing.Route) {
	if r.Family == routing.IPv6 {
		rival := func(have routing.Route) bool {
			return have.Family == r.Family && have.Table == r.Table && have.Destination == r.Destination &&
				have.Source == r.Source && have.Metric == r.Metric
		}
		same := func(have routing.Route) bool { return rival(have) && have.Gateway.IsValid() == r.Gateway.IsValid() }
		victim := rival
		if slices.ContainsFunc(k.routes[fib{r.Family, r.Table}], same) {
			victim = same
		}
		k.flushTable(fib{r.Family, r.Table}, victim)
	}
	ways := []routing.Route{r}
	if r.Family == routing.IPv6 {
		ways = r.Ways()
	}
	for _, way := range ways {
		k.remove(way)
		k.put(way)
	}
}

func (k *Kernel) flush(match func(routing.Route) bool) {
	for t := range k.routes {
		k.flushTable(t, match)
	}
}

func (k *Kernel) flushTable(t fib, match func(routing.Route) bool) {
	k.routes[t] = slices.DeleteFunc(k.routes[t], func(r routing.Route) bool {
		if !match(r) {
			return false
		}
		k.tell(event{route: r, gone: true})
		k.disown(r.Key())
		return true
	})
}

func (k *Kernel) disown(key routing.RouteKey) {
	if _, ours := k.own[key]; ours {
		delete(k.own, key)
		k.noted.Routes[key] = struct{}{}
	}
}

// check says why the kernel would refuse a route: one of its legs is enough.
func (k *Kernel) check(r routing.Route) error {
	for _, l := range r.Attributes.Get().Legs.All() {
		leg := r
		leg.Gateway, leg.Device, leg.OnLink, leg.Attributes = l.Gateway, l.Device, l.OnLink, routing.Attributes{}
		if err := k.check(leg); err != nil {
			return err
		}
	}
	if r.Type == routing.RouteThrow {
		return checkThrow(r)
	}
	i, ok := k.interfaces[r.Device]
	switch {
	case !ok:
		return syscall.ENODEV
	case !i.Up:
		return syscall.ENETDOWN
	case r.Destination != r.Destination.Masked():
		return syscall.EINVAL
	case r.PreferredSource.IsValid() && !k.isLocal(r.PreferredSource):
		// fib_create_info, ip6_route_info_create
		return syscall.EINVAL
	case r.Gateway.IsValid() && k.isLocal(r.Gateway) && !r.Gateway.IsLinkLocalUnicast():
		return syscall.EINVAL
	case r.Gateway.IsValid() && !r.OnLink && !k.reaches(r):
		return syscall.ENETUNREACH
	default:
		return nil
	}
}

// checkThrow is fib_create_info, which wants no way of a route that leads nowhere. IPv6 shows
// the loopback interface, and wants none or that.
func checkThrow(r routing.Route) error {
	const loopback = 1
	switch {
	case r.Gateway.IsValid(), r.Family == routing.IPv4 && r.Device != 0, r.Family == routing.IPv6 && r.Device != loopback,
		r.Destination != r.Destination.Masked(), r.PreferredSource.IsValid(), r.Attributes != routing.Attributes{}:
		return syscall.EINVAL
	default:
		return nil
	}
}

// reaches is fib_check_nh_v4_gw and ip6_route_check_nh: a next hop must be on
// the link by the table itself, or else by a full lookup on the device. Main is
// asked before that: it answers most, and costs less.
func (k *Kernel) reaches(r routing.Route) bool {
	if r.Family == routing.IPv6 && r.Gateway.IsLinkLocalUnicast() {
		return true
	}
	for _, table := range []routing.TableID{r.Table, routing.TableMain} {
		for _, way := range k.routes[fib{routing.FamilyOf(r.Gateway), table}] {
			if way.Device == r.Device && way.Type == routing.RouteUnicast && !way.Gateway.IsValid() && way.Destination.Contains(r.Gateway) {
				return true
			}
		}
	}
	by := k.Lookup(lookup.Flow{To: r.Gateway, OIF: k.interfaces[r.Device].Name})
	return by.Outcome == lookup.Sent && !by.Assumed && !slices.ContainsFunc(by.Legs, func(l routing.Route) bool { return l.Device != r.Device || l.Gateway.IsValid() })
}
