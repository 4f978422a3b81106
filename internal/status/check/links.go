package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/shell"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// checkDuplicates finds addresses that another host has.
func checkDuplicates(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for plan := range v.Planner.Links() {
		for _, a := range plan.Link.Addresses {
			if !a.Failed || plan.Link.Intents[routing.FamilyOf(a.Prefix.Addr())].LeaveAlone != "" {
				continue
			}
			out = append(out, routing.Problem{
				Severity: routing.Error, Link: plan.Link.Name,
				Text: fmt.Sprintf("address %s is used by another host (duplicate address detection failed)", a.Prefix.Addr()),
				Fix:  fmt.Sprintf("give one of the two another address, then: nmcli device reapply %s", plan.Link.Name),
			})
		}
	}
	return out
}

// place is where a network of a link stands.
type place struct {
	plan routing.LinkPlan
	key  routing.Key
}

// places4 groups the IPv4 networks of all links by prefix, in the order of
// interfaces. Host addresses have no network.
func places4(v *view.View) [][]place {
	var prefixes []netip.Prefix
	at := map[netip.Prefix][]place{}
	for plan := range v.Planner.Links() {
		for _, k := range plan.Keys {
			if k.Family != routing.IPv4 || k.OfHosts() {
				continue
			}
			if at[k.Prefix] == nil {
				prefixes = append(prefixes, k.Prefix)
			}
			at[k.Prefix] = append(at[k.Prefix], place{plan, k})
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	out := make([][]place, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, at[p])
	}
	return out
}

// addresses4 are a link's own addresses in the network.
func (p place) addresses4() []netip.Addr {
	var out []netip.Addr
	for _, a := range p.plan.Link.Addresses {
		if !a.Failed && a.Prefix.Addr().Is4() && p.key.Prefix.Contains(a.Prefix.Addr()) {
			out = append(out, a.Prefix.Addr())
		}
	}
	return out
}

// strict is rp_filter=1 of RFC 3704, section 2.2.
const strict = 1

// checkReversePath finds links that share an address under a strict reverse
// path filter. The filter looks up the way back by the address alone, finds the
// first link, and drops what came in through the second
// (__fib_validate_source in net/ipv4/fib_frontend.c).
func checkReversePath(v *view.View, f files) []routing.Problem {
	var out []routing.Problem
	first := map[netip.Addr]string{}
	for plan := range v.Planner.Links() {
		name := plan.Link.Name
		for _, a := range plan.Link.Addresses {
			addr := a.Prefix.Addr()
			if !addr.Is4() || a.Failed || addr.IsLoopback() {
				continue
			}
			other, shared := first[addr]
			if !shared {
				first[addr] = name
				continue
			}
			if other == name {
				continue
			}
			strictly := slices.DeleteFunc([]string{other, name}, func(n string) bool { return f.conf4(n, "rp_filter") != strict })
			if len(strictly) == 0 {
				continue
			}
			set := []string{"sysctl", "-w"}
			for _, n := range strictly {
				set = append(set, SysctlOf("net.ipv4.conf", n, "rp_filter")+"=2")
			}
			out = append(out, routing.Problem{
				Severity: routing.Warning, Link: name,
				Text: fmt.Sprintf("%s has the address %s too, and the reverse path filter of %s is strict: packets that come in on one of the two links are dropped", other, addr, strings.Join(strictly, " and ")),
				Fix:  strings.Join(set, " "), Commands: routing.CommandsOf(shell.Command(set...)),
			})
		}
	}
	return out
}

// arpSettings make the host answer for an address by its own link alone.
const arpSettings = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"

// SysctlOf is a parameter of an interface in the words of sysctl(8), where a dot in the name of an
// interface is written as a slash.
func SysctlOf(tree, device, key string) string {
	return tree + "." + strings.ReplaceAll(device, ".", "/") + "." + key
}

// checkARP finds links in one network, where the kernel by default answers for
// the addresses of one link on the other (arp_ignore and arp_announce in
// Documentation/networking/ip-sysctl.rst).
func checkARP(v *view.View, f files) []routing.Problem {
	var out []routing.Problem
	for _, places := range places4(v) {
		if places = oneWire(places, f.neighbours4()); len(places) < 2 || sameAddress(places) {
			continue
		}
		var names []string
		lax := false
		for _, p := range places {
			name := p.plan.Link.Name
			names = append(names, name)
			lax = lax || f.conf4(name, "arp_ignore") == 0 || f.conf4(name, "arp_announce") < 2
		}
		if !lax {
			continue
		}
		out = append(out, routing.Problem{
			Severity: routing.Warning, Link: names[0],
			Text: fmt.Sprintf("%s are in one network (%s) and each answers ARP for the addresses of the others: packets for one link may arrive on another", strings.Join(names, " and "), places[0].key.Prefix),
			Fix:  arpSettings, Commands: arpSettings,
		})
	}
	return out
}

// oneWire leaves those of some links with one prefix of which it is known that they are on
// one wire: a neighbour with the same hardware address was seen by both, or one of them is
// the other's neighbour. Two routers that both use 192.168.8.0/24 are two networks.
func oneWire(places []place, neighbours map[string]map[netip.Addr]string) []place {
	seen := func(a, b place) bool {
		of, others := neighbours[a.plan.Link.Name], neighbours[b.plan.Link.Name]
		for ip, mac := range of {
			if a.key.Prefix.Contains(ip) && others[ip] == mac || slices.Contains(b.addresses4(), ip) {
				return true
			}
		}
		return false
	}
	var out []place
	for i, a := range places {
		for j, b := range places {
			if i != j && (seen(a, b) || seen(b, a)) {
				out = append(out, a)
				break
			}
		}
	}
	return out
}

// sameAddress reports whether two links share an address: then their networks
// only look the same (two modems, each with a network of its own behind it).
func sameAddress(places []place) bool {
	seen := map[netip.Addr]bool{}
	for _, p := range places {
		for _, a := range p.addresses4() {
			if seen[a] {
				return true
			}
			seen[a] = true
		}
	}
	return false
}

// checkDefaults finds networks of uplinks from which there is no way on.
func checkDefaults(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for plan := range v.Planner.Links() {
		// One that comes may still get a default, one that goes may have lost it already.
		if !plan.Link.Up || plan.Link.Pending || v.Unsettled(plan.Link.Name) {
			continue
		}
		for _, k := range plan.Keys {
			t, has := plan.Link.Tables[k]
			if plan.Roles.In(k.Family) != routing.Uplink || !has {
				continue
			}
			without, all := withoutDefault(&plan, k)
			who := k.Network()
			switch {
			case !all && len(without) == 0:
				continue
			case !all:
				who = listed(without)
			}
			out = append(out, routing.Problem{
				Severity: routing.Notice, Link: plan.Link.Name,
				Text: fmt.Sprintf("no default route is known for %s: packets from there reach only the networks in table %d, and get \"unreachable\" for all others", who, t),
				Fix:  "if there is a router, set gateway in [[link]] to its address, then: systemctl reload multihomed",
			})
		}
	}
	return out
}

// withoutDefault lists the addresses of a network for which its table has no default route,
// and says whether that is so for the whole of it.
func withoutDefault(plan *routing.LinkPlan, k routing.Key) (without []string, all bool) {
	defaults := view.Defaults(plan, k)
	if len(defaults) == 0 {
		return nil, true
	}
	for _, a := range plan.Link.Addresses {
		if own, is := routing.KeyOf(plan.Link, a.Prefix.Addr()); is && own == k && !a.Failed && !outcome.HasDefault(plan, a.Prefix.Addr()) {
			without = append(without, a.Prefix.Addr().String())
		}
	}
	return without, false
}
