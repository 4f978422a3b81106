package owners

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/config"
	"multihomed/internal/hookstate"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Facts are what all possible owners say of an interface.
type Facts struct {
	Name   string
	Policy nm.Policy
	// Links are the entries of [[link]] in the configuration.
	Links []config.Link
	// Device is NetworkManager's, if Managed. NetworkManager has devices that it leaves
	// alone, too.
	Device  nm.Device
	Managed bool
	// Configs are the reports of hooks; Released says that the last one was removed.
	Configs  []hookstate.Config
	Released bool
	// Kind is the driver's name of a virtual interface (IFLA_INFO_KIND), Controller the
	// bridge, bond or VRF that it is a port of.
	Kind, Controller string
	// Leased are the addresses with routed leases; WasLeased says that the interface was a
	// link only by leases until now.
	Leased    []netip.Addr
	WasLeased bool
	// Abandoned says that NetworkManager is away and will not come: what it says is its last
	// word. Left says that the interface had routing when that became known.
	Abandoned, Left bool
	// Off is what the administrator switched off.
	Off offswitch.State
}

// Judge returns the claim on an interface, false if it has no owner. NetworkManager owns the
// whole of what it brings up. A hook owns the whole of an interface that NetworkManager leaves
// alone. On other interfaces only the leased addresses take part. The configuration wins over
// all of them, and the off switch over the configuration.
func Judge(f Facts) (reconcile.Claim, bool) {
	claim, claimed := f.judge()
	if !claimed || claim.Standing == reconcile.NoLink {
		return claim, claimed
	}
	settings := f.settings()
	why, off := f.Off.Of(f.Name, f.Device.ProfileUUID)
	if settings.Ignore {
		why = "the configuration ignores it ([[link]] " + settings.IgnoredBy + ")"
	}
	if off || settings.Ignore {
		claim.Standing, claim.Pending, claim.Only, claim.Else = reconcile.NoLink, false, nil, nil
		claim.Why = why
		// With another profile, a device of NetworkManager may become a link.
		claim.Released, claim.Watched = true, f.Device.Managed
		return claim, true
	}
	apply(&claim, settings)
	if claim.Else != nil {
		apply(claim.Else, settings)
	}
	return claim, true
}

func (f Facts) settings() config.Settings {
	d := f.Device
	d.Name = f.Name
	return config.SettingsOf(f.Links, d)
}

// apply puts the settings of the configuration into a claim. Its gateways win over those of
// DHCP, hooks and the profile.
func apply(claim *reconcile.Claim, s config.Settings) {
	claim.LastResort = s.LastResort
	if s.Role != 0 {
		claim.Choice = s.Role
	}
	if len(s.Gateways) > 0 {
		// The map belongs to the maker of the claim.
		claim.Intents = maps.Clone(claim.Intents)
		if claim.Intents == nil {
			claim.Intents = map[routing.Family]routing.Intent{}
		}
	}
	for _, g := range s.Gateways {
		f := routing.FamilyOf(g)
		intent := claim.Intents[f]
		intent.Gateway = g
		claim.Intents[f] = intent
		claim.Known = slices.DeleteFunc(claim.Known, func(r routing.Route) bool {
			return r.Family == f && r.Destination.Bits() == 0
		})
	}
	claim.Delegated = sortedPrefixes(claim.Delegated, s.Delegated)
}

// sortedPrefixes joins lists of prefixes, each prefix once.
func sortedPrefixes(lists ...[]netip.Prefix) []netip.Prefix {
	all := slices.Concat(lists...)
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

func (f Facts) judge() (reconcile.Claim, bool) {
	var claim reconcile.Claim
	left := true
	if f.Managed {
		claim, left = Of(f.Policy, f.Device), f.Policy.Leaves(f.Device)
	}
	const gone = "the program that brought it up does not run any more"
	claim.Settling = claim.Settling && !f.Abandoned // It ended, and does not start again.
	if claim.Standing == reconcile.Link && f.Abandoned {
		// It keeps what it has. Addresses that come when its own have gone are of somebody
		// else, who may be no owner.
		claim.Standing, claim.Pending, claim.Why = reconcile.Draining, false, gone
	}
	if claim.Standing == reconcile.Link {
		return claim, true
	}
	if f.Left && !f.Managed {
		claim = reconcile.Claim{Standing: reconcile.Draining, Watched: true, Why: gone}
	}
	claim.LeftToOthers = f.Managed && left
	if left {
		if hook, is := f.hooked(); is {
			return f.orLeased(hook), true
		}
	}
	// A device that NetworkManager released drains. One that it never had belongs only to
	// the client of the lease.
	letGo := f.Managed && left && claim.Standing == reconcile.Draining && !f.Device.Gone && !f.Device.Settling
	if len(f.Leased) == 0 && letGo && f.WasLeased {
		claim.Standing = reconcile.NoLink
	}
	if len(f.Leased) == 0 || claim.Standing != reconcile.NoLink && !letGo {
		return f.orLeased(claim), f.Managed || f.Left
	}
	return f.leased(claim), true
}

// orLeased lets leases count as soon as nothing drains any more: the earlier owner may never
// have made the interface a link.
func (f Facts) orLeased(claim reconcile.Claim) reconcile.Claim {
	if claim.Standing == reconcile.Draining && len(f.Leased) > 0 {
		leased := f.leased(claim)
		claim.Else = &leased
	}
	return claim
}

// leased is the claim on an interface whose leased addresses take part.
func (f Facts) leased(claim reconcile.Claim) reconcile.Claim {
	claim.Standing, claim.Watched, claim.Only = reconcile.Link, true, f.Leased
	claim.LeftToOthers, claim.Released, claim.Else = false, false, nil
	if tunnel(f.Kind) || f.Managed && f.Device.VPN {
		// Its packets leave by another link in the end, so it is no uplink.
		claim.Choice = routing.AlwaysLocal
	}
	// Clients seldom add a default route to main.
	claim.DefaultMayBeMissing = true
	claim.Why = fmt.Sprintf("lease of %s", f.Leased[0])
	if more := len(f.Leased) - 1; more > 0 {
		claim.Why += fmt.Sprintf(" and %d more", more)
	}
	return claim
}

// tunnel reports whether a kind of virtual interface is no link, because its packets leave by
// another link. Package nm decides the same for NetworkManager's types.
func tunnel(kind string) bool {
	switch kind {
	case "amt", "dummy", "erspan", "geneve", "gre", "gretap", "gtp", "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl", "ipip",
		"l2tp", "sit", "tun", "vrf", "vti", "vti6", "vxlan", "wireguard", "xfrm":
		return true
	default:
		return false
	}
}

// hooked is the claim on an interface that a DHCP client or ifupdown configured.
func (f Facts) hooked() (reconcile.Claim, bool) {
	if len(f.Configs) == 0 {
		// Its rules stay until the kernel says that its addresses are gone.
		return reconcile.Claim{
			Standing: reconcile.Draining, Why: "its configuration was removed", Watched: true, Released: true,
		}, f.Released
	}
	if m, excluded := f.Policy.Excluded(f.Name); excluded {
		return reconcile.Claim{Why: "the configuration excludes " + m.String(), Released: true}, true
	}
	switch {
	case f.Name == routing.Loopback:
		return reconcile.Claim{Why: "it is the loopback", Released: true}, true
	case f.Controller != "":
		return reconcile.Claim{Why: "it is a port of " + f.Controller, Released: true}, true
	}
	if tunnel(f.Kind) && !f.Policy.Included(f.Name) {
		return reconcile.Claim{Why: "it is a tunnel or the like (" + f.Kind + ")", Released: true}, true
	}
	index := slices.MaxFunc(f.Configs, func(a, b hookstate.Config) int { return a.Index - b.Index }).Index
	claim := reconcile.Claim{
		Standing: reconcile.Link, Watched: true, DefaultMayBeMissing: true, Intents: map[routing.Family]routing.Intent{},
		Index: index,
	}
	var callers []string
	for _, c := range f.Configs {
		if c.Index != index {
			continue // It was for another interface of that name.
		}
		if !slices.Contains(callers, c.Caller) {
			callers = append(callers, c.Caller)
		}
		claim.Known = append(claim.Known, c.Known()...)
		claim.Delegated = append(claim.Delegated, c.Delegated...)
		intent := claim.Intents[c.Family]
		intent.Automatic = intent.Automatic || c.Automatic
		claim.Intents[c.Family] = intent
	}
	claim.Why = "configured by " + strings.Join(callers, " and ")
	return claim, true
}
