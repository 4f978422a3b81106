package doctor

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/shell"
	"multihomed/internal/status/outcome"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// checkLocalRule finds that no rule reads the table of local addresses for all packets: the host
// answers to none of its addresses. Where a VRF is used it stands behind others.
func checkLocalRule(f *facts) []Finding {
	var out []Finding
	for _, family := range routing.Families() {
		rules := f.Rules[family]
		if len(rules) == 0 || slices.ContainsFunc(rules, func(r routing.Rule) bool {
			return r.Action == routing.ActionLookup && r.Table == routing.TableLocal && !r.Selects() && r.Protocol != routing.Multihomed
		}) {
			continue
		}
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Error, Object: "0: from all lookup local",
			Text: fmt.Sprintf("the kernel's own rule for the table local is missing in %s: the host does not recognize its own addresses", family),
			Fix:  "add the rule again", Commands: routing.CommandsOf(fmt.Sprintf("ip %s rule add priority 0 from all lookup local", family.Flag())),
		}, Evidence: []string{fmt.Sprintf("the first %s rule is %q", family, rules[0])}})
	}
	return out
}

// mains are the routes of main.
func (f *facts) mains(family routing.Family) []routing.Route {
	return f.Tables[family][routing.TableMain]
}

// wordsOf is a route of main in the words of iproute2.
func (f *facts) wordsOf(r routing.Route) string {
	return strings.Replace(r.Text(f.device(r.Device)), " table "+r.Table.String(), "", 1)
}

// checkMainSource finds routes of main that give packets the address of another link: they leave by
// that link, and not as the route says. An address of lo is what routers use.
func checkMainSource(f *facts) []Finding {
	var out []Finding
	for _, family := range routing.Families() {
		for _, r := range f.mains(family) {
			if !r.PreferredSource.IsValid() || r.Type != routing.RouteUnicast || r.Protocol == routing.ProtocolKernel || r.Weight != 0 {
				continue
			}
			owner, owned := f.owner(r.PreferredSource)
			if !owned || owner.index == r.Device || f.has(r.Device, r.PreferredSource) {
				continue
			}
			to := r.Destination.Addr()
			if r.Destination.Bits() == 0 {
				to = outcome.Parts(family)[0]
			}
			// Bound to a local link they may use the route all the same.
			v, known := f.ask(lookup.Flow{From: r.PreferredSource, To: to})
			if !known || v.Outcome == lookup.Local || v.Through(r.Device) {
				continue
			}
			what := "they are refused"
			if v.Outcome == lookup.Sent && len(v.Legs) > 0 {
				what = "they leave by " + f.device(v.Legs[0].Device)
			}
			bare := r
			bare.PreferredSource = netip.Addr{}
			words := append([]string{"ip", family.Flag(), "route", "replace"}, strings.Fields(f.wordsOf(bare))...)
			out = append(out, Finding{Problem: routing.Problem{
				Severity: routing.Warning, Link: owner.name, Object: f.wordsOf(r),
				Text: fmt.Sprintf("the route of main for %s leads to %s and gives packets the address %s of %s: %s", r.Destination, f.device(r.Device), r.PreferredSource, owner.name, what),
				Fix:  "take src out of the route", Commands: routing.CommandsOf(shell.Command(words...)),
			}, Evidence: []string{f.wordsOf(r)}})
		}
	}
	return out
}

// has reports whether an interface has an address.
func (f *facts) has(index int, a netip.Addr) bool {
	return slices.ContainsFunc(f.Interfaces, func(i routing.Interface) bool {
		return (i.Index == index || i.Name == routing.Loopback) && slices.ContainsFunc(i.Addresses, func(own routing.Address) bool { return own.Prefix.Addr() == a })
	})
}

// checkSourceSpecific finds source-specific routes of main that hide a plain route of the same prefix
// from packets with other sources (fib6_lookup_1 in net/ipv6/ip6_fib.c). Default routes are exempt.
func checkSourceSpecific(f *facts) []Finding {
	const family = routing.IPv6
	var out []Finding
	for _, r := range f.mains(family) {
		if !r.Source.IsValid() || r.Source.Bits() == 0 || r.Destination.Bits() == 0 {
			continue
		}
		i := slices.IndexFunc(f.mains(family), func(o routing.Route) bool { return o.Destination == r.Destination && !o.Source.IsValid() })
		if i < 0 {
			continue
		}
		plain := f.mains(family)[i]
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Warning, Object: f.wordsOf(r),
			Text: fmt.Sprintf("the route of main %q hides %q: packets with other sources than %s do not find it", f.wordsOf(r), f.wordsOf(plain), r.Source),
			Fix:  "put the source-specific route into a table of its own, with a rule for its source; or delete it", Commands: routing.CommandsOf(shell.Command(append([]string{"ip", "-6", "route", "del"}, strings.Fields(f.wordsOf(r))...)...)),
		}, Evidence: []string{f.wordsOf(r), f.wordsOf(plain)}})
	}
	return out
}

// checkHardware finds two links with one hardware address. On one wire that is two hosts in one; IPv6
// makes the same interface identifier of it.
func checkHardware(f *facts) []Finding {
	const ethernet = 6
	var out []Finding
	for i, a := range f.links {
		for _, b := range f.links[i+1:] {
			if len(a.facts.Hardware) != ethernet || a.facts.Hardware != b.facts.Hardware || a.facts.Hardware == strings.Repeat("\x00", ethernet) || shares(a.facts) || shares(b.facts) {
				continue
			}
			severity, where := routing.Notice, "as long as they are on two wires that does no harm"
			if overlap(a, b) {
				severity, where = routing.Warning, "they are in one network, where each gets packets for the other"
			}
			other := []byte(b.facts.Hardware)
			const local, flip = 0x02, 0x01
			other[0] |= local
			other[ethernet-1] ^= flip
			out = append(out, Finding{Problem: routing.Problem{
				Severity: severity, Link: b.name,
				Text: fmt.Sprintf("%s and %s have the same hardware address %s; %s", a.name, b.name, mac([]byte(a.facts.Hardware)), where),
				Fix:  "give one of them another address; to keep it, set it in its profile, too", Commands: routing.CommandsOf(shell.Command("ip", "link", "set", "dev", b.name, "address", mac(other))),
			}, Evidence: []string{a.name + ": link/ether " + mac([]byte(a.facts.Hardware)), b.name + ": link/ether " + mac([]byte(b.facts.Hardware))}})
		}
	}
	return out
}

// shares reports whether an interface has its hardware address from another one.
func shares(i routing.Interface) bool {
	return i.Kind == "vlan" || i.Kind == "ipvlan" || i.Kind == "macsec" || i.Master != 0
}

func overlap(a, b link) bool {
	for _, n := range a.Networks {
		for _, o := range b.Networks {
			if n.Prefix.IsValid() && o.Prefix.IsValid() && n.Prefix.Overlaps(o.Prefix) {
				return true
			}
		}
	}
	return false
}

func mac(b []byte) string {
	parts := make([]string, 0, len(b))
	for _, c := range b {
		parts = append(parts, hex.EncodeToString([]byte{c}))
	}
	return strings.Join(parts, ":")
}

// checkAcceptRA finds links whose addresses the kernel has from routers to which it does not listen any
// more, because the host forwards (accept_ra in Documentation/networking/ip-sysctl.rst).
func checkAcceptRA(f *facts) []Finding {
	var out []Finding
	for _, l := range f.links {
		forwarding, forwardingLine := f.setting("ipv6", l.name, "forwarding")
		accept, acceptLine := f.setting("ipv6", l.name, "accept_ra")
		if forwarding == 0 || accept != 1 || !f.autoconfigured(l) {
			continue
		}
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Warning, Link: l.name,
			Text: fmt.Sprintf("%s forwards IPv6, and the kernel ignores router advertisements on it: its addresses expire, and it has no default route", l.name),
			Fix:  "accept them all the same", Commands: set("ipv6", l.name, "accept_ra", "2"),
		}, Evidence: []string{forwardingLine, acceptLine}})
	}
	return out
}

// autoconfigured reports whether the kernel itself made an address of a link from what a router
// advertised: the address expires, and the kernel has a route to its network. NetworkManager and
// systemd-networkd listen to routers themselves, and make such routes as their own.
func (f *facts) autoconfigured(l link) bool {
	return slices.ContainsFunc(l.facts.Addresses, func(a routing.Address) bool {
		return a.Dynamic && a.Prefix.Addr().Is6() && slices.ContainsFunc(f.mains(routing.IPv6), func(r routing.Route) bool {
			return r.Device == l.index && r.Protocol == routing.ProtocolKernel && r.Destination == a.Prefix.Masked()
		})
	})
}

// checkLinkdown finds local links whose routes the kernel ignores while there is no carrier: packets
// bound to the link then follow main, which a link that is an uplink prevents by its rung
// "unreachable".
func checkLinkdown(f *facts) []Finding {
	var out []Finding
	for _, l := range f.links {
		value, line := f.setting("ipv4", l.name, "ignore_routes_with_linkdown")
		if value == 0 || l.uplink[routing.IPv4] || len(l.addresses(routing.IPv4)) == 0 {
			continue
		}
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Notice, Link: l.name,
			Text: fmt.Sprintf("the routes of %s are ignored while it has no carrier: packets with its address leave by another link then", l.name),
			Fix:  "keep the routes", Commands: set("ipv4", l.name, "ignore_routes_with_linkdown", "0"),
		}, Evidence: []string{line}})
	}
	return out
}

// checkResolvers finds DNS servers that one link alone named and that are asked by another one: many
// providers answer only their own customers.
func checkResolvers(f *facts) []Finding {
	var out []Finding
	for _, server := range f.Nameservers {
		if len(f.NamedBy[server]) != 1 || server.IsLoopback() || server.IsLinkLocalUnicast() {
			continue
		}
		by := f.NamedBy[server][0]
		i := slices.IndexFunc(f.links, func(l link) bool { return l.name == by })
		if i < 0 {
			continue
		}
		v, known := f.ask(lookup.Flow{To: server})
		if !known || v.Outcome != lookup.Sent || v.Through(f.links[i].index) || v.Route.Table != routing.TableMain {
			continue // Where another table decides, as that of a VPN, somebody wants it so.
		}
		family := routing.FamilyOf(server)
		device := f.device(v.Legs[0].Device)
		found := Finding{Problem: routing.Problem{
			Severity: routing.Notice, Link: by, Object: "nameserver " + server.String(),
			Text: fmt.Sprintf("the DNS server %s was named by %s and is asked by %s: many providers answer only their own customers", server, by, device),
			Fix:  "lead the server by its link; to keep it, set routed-dns in the profile (NetworkManager 1.52 and later)",
		}, Evidence: []string{"/etc/resolv.conf: nameserver " + server.String(), fmt.Sprintf("route to %s: %s", server, f.wordsOf(v.Legs[0]))}}
		if via, has := f.links[i].gateway(family); has {
			found.Commands = routing.CommandsOf(shell.Command("ip", family.Flag(), "route", "add", server.String(), "via", via.String(), "dev", by))
		}
		out = append(out, found)
	}
	return out
}

// checkNexthops notes that routes by nexthop objects are shown without their next hops
// (nexthop_compat_mode in Documentation/networking/ip-sysctl.rst).
func checkNexthops(f *facts) []Finding {
	const key = "net/ipv4/nexthop_compat_mode"
	value, known := f.Parameters[key]
	if !known || value != 0 {
		return nil
	}
	return []Finding{{Problem: routing.Problem{
		Severity: routing.Notice, Object: "net.ipv4.nexthop_compat_mode",
		Text: "routes by nexthop objects are shown without their next hops: programs that do not know such objects take them for routes without a gateway",
		Fix:  "switch the compatible form on", Commands: "sysctl -w net.ipv4.nexthop_compat_mode=1",
	}, Evidence: []string{"net.ipv4.nexthop_compat_mode = 0"}}}
}
