package inspect

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"multihomed/allocator"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// look takes from the kernel's state what the view needs.
func (v *View) look(k *kernel.State, leases *allocator.Allocator, unbound map[routing.Family][]routing.Unbound) {
	v.Planner = routing.NewPlanner(v.Policy)
	foreign := v.recall.Foreign(k)
	for i, f := range routing.Families() {
		v.Planner.SetForeign(f, foreign[i])
		v.Planner.SetUnbound(f, unbound[f])
		v.Planner.SetGone(f, slices.DeleteFunc(slices.Clone(v.Daemon.Gone), func(r routing.Rule) bool { return r.Family != f }))
	}
	v.Planner.SetGroups(reconcile.GroupsOf(k))
	stands := readStanding(v.Policy, k)
	for _, index := range k.Indexes() {
		facts, ok := k.Link(index)
		if !ok {
			continue
		}
		v.Links[facts.Name] = facts
		if link, is := v.link(facts, stands, leases); is {
			link.Elsewhere = reconcile.ElsewhereOf(k, link, v.Claims[facts.Name], func(index int) bool {
				name, exists := k.NameOf(index)
				return exists && v.Claims[name].Standing != reconcile.NoLink
			})
			v.Planner.Set(link)
		}
	}
	if n, fault := k.Unread(); n > 0 {
		v.note("%d messages of the kernel, the last because of: %v", n, fault)
	}
	for plan := range v.Planner.Links() {
		for _, t := range plan.Link.Tables {
			if what, used := k.ForeignIn(t); used {
				v.ForeignIn[t] = what
			}
		}
	}
	all := routing.Everything(v.Planner, k)
	// Not knowing is not emptiness: what nobody is known to want may be wanted.
	v.Missing = routing.Diff(v.Planner, k, all, func(routing.Op) bool { return v.Complete() && len(v.unsure) == 0 })
}

// networks are those of all links, in which others may have addresses too.
func (v *View) networks(mirror *kernel.Mirror) []netip.Prefix {
	var out []netip.Prefix
	mirror.View(func(k *kernel.State) {
		for _, index := range k.Indexes() {
			if facts, ok := k.Link(index); ok && v.Claims[facts.Name].Standing != reconcile.NoLink {
				out = append(out, reconcile.NetworksOf(reconcile.LinkOf(facts, v.Claims[facts.Name]))...)
			}
		}
	})
	return out
}

// link puts an interface together as the daemon does, false if it is none.
func (v *View) link(facts kernel.Link, stands *standing, leases *allocator.Allocator) (routing.Link, bool) {
	claim := v.Claims[facts.Name]
	if claim.Standing == reconcile.NoLink {
		return routing.Link{}, false
	}
	link := reconcile.LinkOf(facts, claim)
	keys := routing.Keys(link)
	if claim.Standing == reconcile.Draining && (len(keys) == 0 || !stands.any(facts)) {
		return routing.Link{}, false
	}
	if link.Pending && stands.any(facts) && facts.Group != v.Policy.UplinkGroup {
		// It is being brought up once more, and was known to be no uplink: the
		// daemon remembers that too.
		link.Pending = false
	}
	link.WasUplink, link.DefaultUntil = v.recall.WasUplink(link, facts.Addresses, claim, v.Complete() && !v.unsure[facts.Name])
	link.Tables = map[routing.Key]routing.TableID{}
	for _, key := range keys {
		if leases != nil {
			if t, ok := leases.Lookup(key); ok {
				link.Tables[key] = t
				continue
			}
		}
		if t, ok := stands.table(link, key, keys); ok {
			link.Tables[key] = t
		}
	}
	return link, true
}

// recallClaims asks what stands where NetworkManager cannot be asked: an interface for
// which something of ours stands was a link, and a family for which nothing
// stands may be its owner's own.
func (v *View) recallClaims(ctx context.Context, mirror *kernel.Mirror) error {
	if v.Complete() && len(v.unsure) == 0 {
		return nil
	}
	recalled := map[int]bool{}
	mirror.View(func(k *kernel.State) {
		stands := readStanding(v.Policy, k)
		for _, index := range k.Indexes() {
			facts, ok := k.Link(index)
			claim, claimed := v.Claims[facts.Name]
			switch {
			case !ok || claimed && !v.unsure[facts.Name]:
				continue
			case !claimed && !v.Complete() && stands.any(facts):
				claim.Standing, claim.Why = reconcile.Link, "its routing stands, and NetworkManager cannot be asked"
			}
			if claim.Standing == reconcile.NoLink {
				continue
			}
			recalled[index] = true
			claim.Intents = maps.Clone(claim.Intents)
			if claim.Intents == nil {
				claim.Intents = map[routing.Family]routing.Intent{}
			}
			for _, f := range routing.Families() {
				if len(stands.tables(facts.Name, facts.Index, f)) == 0 {
					claim.Intents[f] = routing.Intent{LeaveAlone: "nothing of it stands, and its profile could not be read"}
				}
			}
			v.Claims[facts.Name] = claim
		}
	})
	return mirror.SetInterest(ctx, recalled)
}

// standing is what our objects in the kernel tell of tables: the rules and
// routes of a device name its tables, their prefixes say which is which.
type standing struct {
	byName  map[nameKey][]routing.TableID
	byIndex map[indexKey][]routing.TableID
	// prefixes are those that rules and routes of a table name.
	prefixes map[tableKey][]netip.Prefix
}

type nameKey struct {
	family routing.Family
	name   string
}

type indexKey struct {
	family routing.Family
	index  int
}

type tableKey struct {
	family routing.Family
	table  routing.TableID
}

func readStanding(p routing.Policy, k *kernel.State) *standing {
	s := &standing{
		byName: map[nameKey][]routing.TableID{}, byIndex: map[indexKey][]routing.TableID{},
		prefixes: map[tableKey][]netip.Prefix{},
	}
	for r := range k.Rules() {
		if r.Action != routing.ActionLookup || !p.Tables.Contains(r.Table) {
			continue
		}
		if r.OIF != "" {
			enter(s.byName, nameKey{r.Family, r.OIF}, r.Table)
		}
		for _, prefix := range []netip.Prefix{r.From, r.To} {
			if prefix.IsValid() {
				enter(s.prefixes, tableKey{r.Family, r.Table}, prefix)
			}
		}
	}
	for r := range k.Routes() {
		enter(s.byIndex, indexKey{r.Family, r.Device}, r.Table)
		if !r.IsDefault() && !r.Gateway.IsValid() {
			enter(s.prefixes, tableKey{r.Family, r.Table}, r.Destination)
		}
	}
	return s
}

func enter[K, V comparable](m map[K][]V, k K, v V) {
	if !slices.Contains(m[k], v) {
		m[k] = append(m[k], v)
	}
}

func (s *standing) tables(name string, index int, f routing.Family) []routing.TableID {
	out := slices.Clone(s.byName[nameKey{f, name}])
	for _, t := range s.byIndex[indexKey{f, index}] {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out
}

func (s *standing) any(l kernel.Link) bool {
	return len(s.tables(l.Name, l.Index, routing.IPv4)) > 0 || len(s.tables(l.Name, l.Index, routing.IPv6)) > 0
}

// table finds the table of a key among those of its interface: the one whose
// rules or routes name its network or an address of it, or the only one of an
// interface that has only one network.
func (s *standing) table(l routing.Link, key routing.Key, keys []routing.Key) (routing.TableID, bool) {
	candidates := s.tables(l.Name, l.Index, key.Family)
	for _, t := range candidates {
		if slices.ContainsFunc(s.prefixes[tableKey{key.Family, t}], func(p netip.Prefix) bool { return isOf(l, key, p) }) {
			return t, true
		}
	}
	same := 0
	for _, k := range keys {
		if k.Family == key.Family {
			same++
		}
	}
	if same == 1 && len(candidates) == 1 {
		return candidates[0], true
	}
	return 0, false
}

// isOf reports whether a prefix of a rule or a route is that of a key: its network,
// or one of its addresses. Of an address that is gone only the network can be told.
func isOf(l routing.Link, key routing.Key, p netip.Prefix) bool {
	if !p.IsSingleIP() {
		return p == key.Prefix
	}
	if own, has := routing.KeyOf(l, p.Addr()); has {
		return own == key
	}
	return !key.OfHosts() && key.Prefix.Contains(p.Addr())
}
