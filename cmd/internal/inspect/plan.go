package inspect

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"multihomed/allocator"
	"multihomed/internal/standing"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// look takes from the kernel's state what the view needs.
func (v *View) look(k *kernel.State, leases *allocator.Allocator, unbound map[routing.Family][]routing.Unbound) {
	planner := routing.NewPlanner(v.Policy)
	v.Planner = planner
	foreign := v.recall.Foreign(k)
	for i, f := range routing.Families() {
		planner.SetForeign(f, foreign[i])
		planner.SetUnbound(f, unbound[f])
		planner.SetGone(f, slices.DeleteFunc(slices.Clone(v.Daemon.Gone), func(r routing.Rule) bool { return r.Family != f }))
	}
	planner.SetGroups(reconcile.GroupsOf(k))
	stands := standing.Read(v.Policy.Tables, k)
	for _, index := range k.Indexes() {
		facts, ok := k.Link(index)
		if !ok {
			continue
		}
		v.Links[facts.Name] = facts
		if link, is := v.link(facts, stands, leases); is {
			link.Elsewhere = reconcile.ElsewhereOf(k, link, v.Claims[facts.Name], func(index int) bool {
				other, exists := k.LinkFacts(index)
				standing := v.Claims[other.Name].Standing
				return exists && (standing == reconcile.Link || standing == reconcile.Draining && stands.Any(other))
			})
			planner.Set(link)
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
	all := routing.Everything(planner, k)
	// Not knowing is not emptiness: what nobody is known to want may be wanted.
	v.Missing = routing.Diff(planner, k, all, func(routing.Op) bool { return v.Complete() && len(v.unsure) == 0 })
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
func (v *View) link(facts kernel.Link, stands *standing.Tables, leases *allocator.Allocator) (routing.Link, bool) {
	claim := v.Claims[facts.Name]
	if claim.Standing == reconcile.NoLink {
		return routing.Link{}, false
	}
	link := reconcile.LinkOf(facts, claim)
	keys := routing.Keys(link)
	if claim.Standing == reconcile.Draining && (len(keys) == 0 || !stands.Any(facts)) {
		return routing.Link{}, false
	}
	if link.Pending && stands.Any(facts) && facts.Group != v.Policy.UplinkGroup {
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
		if t, ok := stands.Table(link, key, keys); ok {
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
		stands := standing.Read(v.Policy.Tables, k)
		for _, index := range k.Indexes() {
			facts, ok := k.Link(index)
			claim, claimed := v.Claims[facts.Name]
			switch {
			case !ok || claimed && !v.unsure[facts.Name]:
				continue
			case !claimed && !v.Complete() && stands.Any(facts):
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
				if len(stands.Of(facts.Name, facts.Index, f)) == 0 {
					claim.Intents[f] = routing.Intent{LeaveAlone: "nothing of it stands, and its profile could not be read"}
				}
			}
			v.Claims[facts.Name] = claim
		}
	})
	return mirror.SetInterest(ctx, recalled)
}
