package check

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// supported are the managers whose links get routing of their own.
const supported = "NetworkManager, ifupdown, dhclient and dhcpcd"

// Managers that multihomed does not take links from. Each is known by the control
// group of its service.
const networkd = "systemd-networkd"

func otherManagers() []string { return []string{"connman", "wickedd", "netctl", "iwd"} }

// checkOwners says who manages the interfaces that get nothing from multihomed. On a
// host where that is all of them it has no use, and that is an error: whoever
// installed it expects something else.
func checkOwners(v *view.View, f files) []routing.Problem {
	byManager := map[string][]string{}
	useless := idle(v)
	for name, facts := range v.Links {
		// The uplink of a container is one end of a veth. On a host that has links the ends
		// towards its containers are nobody's loss.
		if useless && facts.Kind == "veth" && networkdOwns(f, facts.Index) {
			facts.Kind = ""
		}
		if !isOrphan(v, facts) {
			continue
		}
		manager := managerOf(f, facts)
		byManager[manager] = append(byManager[manager], escape.Name(name))
	}
	if len(byManager) == 0 {
		return nil
	}
	var out []routing.Problem
	for _, manager := range slices.Sorted(maps.Keys(byManager)) {
		names := byManager[manager]
		slices.Sort(names)
		switch {
		case manager == "" && (!useless || !v.NoManager):
			// An address that somebody added by hand beside links that work, or
			// NetworkManager is away and said so elsewhere.
		case useless:
			out = append(out, routing.Problem{
				Severity: routing.Error, Object: manager,
				Text: fmt.Sprintf("multihomed does nothing on this host: %s manages %s, and multihomed works with %s", whoever(manager), enumerate(names), supported),
				Fix:  fixOf(manager, names),
			})
		default:
			out = append(out, routing.Problem{
				Severity: routing.Notice, Object: manager,
				Text: fmt.Sprintf("%s manages %s: multihomed sets up no routing there", whoever(manager), enumerate(names)),
			})
		}
	}
	return out
}

// idle reports whether there is no link at all, and none is expected.
func idle(v *view.View) bool {
	for plan := range v.Planner.Links() {
		if len(plan.Keys) > 0 {
			return false
		}
	}
	for _, c := range v.Claims {
		if c.Standing != reconcile.NoLink {
			return false
		}
	}
	return true
}

// isOrphan reports whether an interface has addresses that reach other hosts, and
// nobody claims it. Ports have their addresses on the bridge; tunnels and the like
// are no links.
func isOrphan(v *view.View, l routing.Interface) bool {
	if _, claimed := v.ClaimOf(l); claimed || l.Master != 0 || l.PointToPoint || l.Kind != "" && l.Kind != "vlan" && l.Kind != "bond" {
		return false
	}
	if plan, planned := v.Planner.Link(l.Index); planned && len(plan.Keys) > 0 {
		return false
	}
	return slices.ContainsFunc(l.Addresses, func(a routing.Address) bool {
		ip := a.Prefix.Addr()
		return a.Scope != routing.ScopeHost && ip.IsGlobalUnicast() && !ip.IsLoopback()
	})
}

// managerOf names who manages an interface, empty if that is not known.
func managerOf(f files, l routing.Interface) string {
	if networkdOwns(f, l.Index) {
		return networkd
	}
	for _, manager := range otherManagers() {
		if f.exists("sys/fs/cgroup/system.slice/" + manager + ".service") {
			return manager
		}
	}
	return ""
}

// networkdOwns reads what networkd says of an interface in its state file:
// ADMIN_STATE is "unmanaged" for those of others (sd_network_link_get_setup_state(3),
// src/libsystemd/sd-network/sd-network.c).
func networkdOwns(f files, index int) bool {
	if !networkdRuns(f) {
		return false
	}
	text, ok := f.text("run/systemd/netif/links/" + strconv.Itoa(index))
	if !ok {
		return false
	}
	state := ""
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(strings.TrimSpace(line), "ADMIN_STATE="); is {
			state = value
		}
	}
	return !slices.Contains([]string{"", "unmanaged", "linger", "pending", "initialized"}, state)
}

// networkdOwnsAny reports whether networkd configures an interface of the host.
func networkdOwnsAny(v *view.View, f files) bool {
	for _, l := range v.Links {
		if networkdOwns(f, l.Index) {
			return true
		}
	}
	return false
}

func whoever(manager string) string {
	if manager == "" {
		return "nobody it knows"
	}
	return manager
}

// fixOf never advises to install or start another manager: two of them on one
// interface are worse than none.
func fixOf(manager string, names []string) string {
	lease := fmt.Sprintf("lease tables for its addresses (multihomectl lease -i %s -a ADDRESS)", names[0])
	if manager == networkd {
		return "put [RoutingPolicyRule] and routes with Table= into the .network files (systemd.network(5)), or " + lease
	}
	return lease
}

// mostInterfaces bounds the interfaces that a sentence names.
const mostInterfaces = 5

func enumerate(names []string) string { return outcome.Enumerate(names, mostInterfaces) }
