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

// Facts are what all who may own an interface say of it.
type Facts struct {
	Name   string
	Policy nm.Policy
	// Links are the entries of [[link]] in the configuration.
	Links []config.Link
	// Device is NetworkManager's, if Managed; it says so also of those that it
	// leaves alone.
	Device  nm.Device
	Managed bool
	// Configs are what hooks said; Released says that they took it back.
	Configs  []hookstate.Config
	Released bool
	// Kind is the driver's name of a virtual interface (IFLA_INFO_KIND), Controller the
	// bridge, bond or VRF that it is a port of.
	Kind, Controller string
	// Leased are the addresses that were leased with their routing; WasLeased says
	// that the interface was a link by leases alone, until now.
	Leased    []netip.Addr
	WasLeased bool
	// Left says that the interface had routing when NetworkManager was found not to come.
	Left bool
	// Off is what the administrator switched off.
	Off offswitch.State
}

// Judge says what an interface is, false if nobody says anything of it. What
// NetworkManager brings up is its whole; so is what somebody else configured and
// NetworkManager leaves alone. On the rest the addresses take part that were
// leased. Of all of them the configuration may know better, and whoever switched it
// off has the last word.
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
		// With another profile, a device of NetworkManager may be another matter.
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

// apply puts what the configuration says into a claim. Its gateways win over what
// DHCP, hooks and the profile say.
func apply(claim *reconcile.Claim, s config.Settings) {
	claim.LastResort = s.LastResort
	if s.Role != 0 {
		claim.Choice = s.Role
	}
	if len(s.Gateways) > 0 {
		// The map belongs to who made the claim.
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
	if claim.Standing == reconcile.Link {
		return claim, true
	}
	if f.Left && !f.Managed {
		claim = reconcile.Claim{Standing: reconcile.Draining, Watched: true, Why: "it was brought up by somebody who does not run any more"}
	}
	claim.LeftToOthers = f.Managed && left
	if left {
		if hook, is := f.hooked(); is {
			return f.orLeased(hook), true
		}
	}
	// What NetworkManager let go of drains; what it never had is its client's alone.
	letGo := f.Managed && left && claim.Standing == reconcile.Draining && !f.Device.Gone && !f.Device.Settling
	if len(f.Leased) == 0 && letGo && f.WasLeased {
		claim.Standing = reconcile.NoLink
	}
	if len(f.Leased) == 0 || claim.Standing != reconcile.NoLink && !letGo {
		return f.orLeased(claim), f.Managed || f.Left
	}
	return f.leased(claim), true
}

// orLeased lets leases count as soon as there is nothing left that drains. Who had the
// interface may never have made it a link, or has nothing more to say of it.
func (f Facts) orLeased(claim reconcile.Claim) reconcile.Claim {
	if claim.Standing == reconcile.Draining && len(f.Leased) > 0 {
		leased := f.leased(claim)
		claim.Else = &leased
	}
	return claim
}

// leased is the claim of an interface on which the leased addresses take part.
func (f Facts) leased(claim reconcile.Claim) reconcile.Claim {
	claim.Standing, claim.Watched, claim.Only = reconcile.Link, true, f.Leased
	claim.LeftToOthers, claim.Released, claim.Else = false, false, nil
	if tunnel(f.Kind) || f.Managed && f.Device.VPN {
		// What leaves by it leaves by another link in truth: it is no uplink.
		claim.Choice = routing.AlwaysLocal
	}
	// A client gives an address a table, and seldom main a default.
	claim.DefaultMayBeMissing = true
	claim.Why = fmt.Sprintf("lease of %s", f.Leased[0])
	if more := len(f.Leased) - 1; more > 0 {
		claim.Why += fmt.Sprintf(" and %d more", more)
	}
	return claim
}

// tunnel reports whether a kind of virtual interface is no link, as with
// NetworkManager: what is sent through it leaves by another link.
func tunnel(kind string) bool {
	switch kind {
	case "amt", "dummy", "erspan", "geneve", "gre", "gretap", "gtp", "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl", "ipip",
		"l2tp", "sit", "tun", "vrf", "vti", "vti6", "vxlan", "wireguard", "xfrm":
		return true
	default:
		return false
	}
}

// hooked says what an interface is that a DHCP client or ifupdown configured.
func (f Facts) hooked() (reconcile.Claim, bool) {
	if len(f.Configs) == 0 {
		// Its rules stay until the kernel says that its addresses are gone.
		return reconcile.Claim{
			Standing: reconcile.Draining, Why: "its configuration was taken away", Watched: true, Released: true,
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
