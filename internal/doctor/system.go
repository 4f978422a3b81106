package doctor

import (
	"fmt"
	"slices"
	"strconv"

	"multihomed/internal/escape"
	"multihomed/internal/shell"
	"multihomed/internal/status"
	"multihomed/internal/unitfile"
	"multihomed/routing"
)

// checkSockets notes that the kernel dropped messages to the daemon. It reads everything again then,
// so nothing is wrong by now; it costs time.
func checkSockets(f *facts) []Finding {
	if f.Dropped == 0 {
		return nil
	}
	return []Finding{{Problem: routing.Problem{
		Severity: routing.Notice, Object: "/proc/net/netlink",
		Text: fmt.Sprintf("%d messages of the kernel to multihomed were lost, because more changed at once than its sockets hold: it has read everything again", f.Dropped),
		Fix:  "find out what changes so many routes; the count begins anew with the daemon", Commands: routing.CommandsOf(unitfile.Restart),
	}, Evidence: []string{"/proc/net/netlink: Drops " + strconv.Itoa(f.Dropped)}}}
}

// options are what the kernel must have, and what is lost without.
func options() []struct {
	name     string
	severity routing.Severity
	lost     string
} {
	return []struct {
		name     string
		severity routing.Severity
		lost     string
	}{
		{"CONFIG_IP_MULTIPLE_TABLES", routing.Error, "it has no rules of IPv4, so no link gets its own routing"},
		{"CONFIG_IPV6_MULTIPLE_TABLES", routing.Error, "it has no rules of IPv6, so no link gets its own routing"},
		{"CONFIG_IPV6_SUBTREES", routing.Notice, "it ignores the sources of IPv6 routes, such as those that routers and BGP bring"},
		{"CONFIG_NF_TABLES", routing.Notice, "forwarded packets are not answered by the link on which they were asked"},
		{"CONFIG_INET_DIAG_DESTROY", routing.Notice, "connections over a dead link are not closed"},
		{"CONFIG_BPF_SYSCALL", routing.Notice, "programs cannot be bound to links"},
		{"CONFIG_CGROUP_BPF", routing.Notice, "programs cannot be bound to links"},
	}
}

// Options are the names of the options of the kernel that matter.
func Options() []string {
	all := options()
	out := make([]string, 0, len(all))
	for _, o := range all {
		out = append(out, o.name)
	}
	return out
}

func checkKernelOptions(f *facts) []Finding {
	var out []Finding
	for _, o := range options() {
		if !slices.Contains(f.Missing, o.name) {
			continue
		}
		out = append(out, Finding{Problem: routing.Problem{
			Severity: o.severity, Object: o.name,
			Text: fmt.Sprintf("the kernel was built without %s: %s", o.name, o.lost),
			Fix:  "use a kernel that has the option, as those of Debian, Fedora and Ubuntu do",
		}, Evidence: []string{"# " + o.name + " is not set"}})
	}
	return out
}

// nearlyFull is the share of something bounded, in percent, from which on it is said.
const nearlyFull = 90

// isNearlyFull reports whether so many of a limit are taken.
func isNearlyFull(taken, limit int) bool { return limit > 0 && taken*100 >= limit*nearlyFull }

// checkNeighbors finds neighbor tables in which new neighbors may find no place (gc_thresh3 in
// Documentation/networking/ip-sysctl.rst).
func checkNeighbors(f *facts) []Finding {
	var out []Finding
	for family, tree := range map[routing.Family]string{routing.IPv4: "ipv4", routing.IPv6: "ipv6"} {
		limit := f.Parameters["net/"+tree+"/neigh/default/gc_thresh3"]
		if !isNearlyFull(f.Neighbors[family], limit) {
			continue
		}
		key := "net." + tree + ".neigh.default.gc_thresh3"
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Warning, Object: key,
			Text: fmt.Sprintf("the %s neighbor table has %d entries of at most %d: hosts on the links cannot be reached when it is full", family, f.Neighbors[family], limit),
			Fix:  "raise the limit", Commands: routing.CommandsOf(fmt.Sprintf("sysctl -w %s=%d", key, 4*max(limit, f.Neighbors[family]))),
		}, Evidence: []string{fmt.Sprintf("%s = %d", key, limit), fmt.Sprintf("%d entries", f.Neighbors[family])}})
	}
	slices.SortFunc(out, func(a, b Finding) int { return len(a.Object) - len(b.Object) })
	return out
}

// checkRouteLimit finds that IPv6 may soon refuse packets: before Linux 6.3 entries that were made for
// destinations counted against max_size (ip6_dst_gc in net/ipv6/route.c).
func checkRouteLimit(f *facts) []Finding {
	limit := f.Parameters["net/ipv6/route/max_size"]
	if !isNearlyFull(f.Entries6, limit) {
		return nil
	}
	return []Finding{{Problem: routing.Problem{
		Severity: routing.Warning, Object: "net.ipv6.route.max_size",
		Text: fmt.Sprintf("IPv6 has %d destination entries of at most %d: a kernel before 6.3 refuses packets when there are more (\"Network is unreachable\")", f.Entries6, limit),
		Fix:  "raise the limit", Commands: routing.CommandsOf(fmt.Sprintf("sysctl -w net.ipv6.route.max_size=%d", max(1<<20, 4*f.Entries6))),
	}, Evidence: []string{fmt.Sprintf("net.ipv6.route.max_size = %d", limit), fmt.Sprintf("/proc/net/rt6_stats: %d destination entries", f.Entries6)}}}
}

// checkTables finds that few numbers are left for the networks of new links.
func checkTables(f *facts) []Finding {
	r := f.status.Tables
	if r.Last <= r.First {
		return nil
	}
	used := map[uint32]bool{}
	for _, l := range f.links {
		for _, n := range l.Networks {
			if n.Table != 0 {
				used[n.Table] = true
			}
		}
	}
	taken, all := len(used), int(r.Last-r.First) // The last number is that of failover.
	// Links that have a table get none of those that are kept for other ones.
	if !isNearlyFull(taken, all-routing.KeptForNew(all)) {
		return nil
	}
	return []Finding{{Problem: routing.Problem{
		Severity: routing.Warning, Object: fmt.Sprintf("tables %d-%d", r.First, r.Last),
		Text: fmt.Sprintf("%d of %d numbers of routing tables are taken: networks of new links soon get none, and follow main", taken, all),
		Fix:  "widen [tables] in /etc/multihomed/multihomed.toml, then: systemctl reload multihomed",
	}, Evidence: []string{fmt.Sprintf("tables %d-%d: %d taken", r.First, r.Last, taken)}}}
}

// checkMPTCP finds that a connection of Multipath TCP may use fewer links than have an endpoint. The
// subflows of a connection are of the family of its peer's address.
func checkMPTCP(f *facts) []Finding {
	endpoints := 0
	for _, family := range routing.Families() {
		n := 0
		for _, a := range f.Endpoints {
			if routing.FamilyOf(a) == family {
				n++
			}
		}
		endpoints = max(endpoints, n)
	}
	const mostSubflows = 8 // MPTCP_SUBFLOWS_MAX of net/mptcp/pm_netlink.c
	wanted := min(endpoints-1, mostSubflows)
	if f.Subflows >= wanted {
		return nil
	}
	severity, what := routing.Notice, "it does not use all links"
	if f.Subflows == 0 {
		severity, what = routing.Warning, "it uses one link only"
	}
	evidence := []string{fmt.Sprintf("ip mptcp limits: subflows %d", f.Subflows)}
	for _, a := range f.Endpoints {
		evidence = append(evidence, "ip mptcp endpoint: "+a.String())
	}
	return []Finding{{Problem: routing.Problem{
		Severity: severity, Object: "ip mptcp limits",
		Text: fmt.Sprintf("Multipath TCP has %d endpoints of a family, and a connection may add only %d subflows: %s", endpoints, f.Subflows, what),
		Fix:  "raise the limit", Commands: routing.CommandsOf(fmt.Sprintf("ip mptcp limits set subflows %d", wanted)),
	}, Evidence: evidence}}
}

// checkAgents notes programs that make rules for the addresses of links. While none of their rules is
// in the way, that is all.
func checkAgents(f *facts) []Finding {
	out := make([]Finding, 0, len(f.Agents))
	for _, a := range f.Agents {
		fix := "take routing-policy out of it, or exclude its interfaces: [[exclude]] in /etc/multihomed/multihomed.toml"
		if a.Stop != "" {
			fix = "let one of the two do it"
		}
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Notice, Object: a.Name,
			Text: fmt.Sprintf("%s makes rules for the addresses of links, as multihomed does: its rules win", a.Name),
			Fix:  fix, Commands: a.Stop,
		}, Evidence: []string{a.File}})
	}
	return out
}

// checkUpstream finds a link whose router answers while nothing behind it does, and another link on
// which something does.
func checkUpstream(f *facts) []Finding {
	var out []Finding
	for _, p := range f.Probes {
		other := slices.ContainsFunc(f.Probes, func(o Probe) bool { return o.Family == p.Family && o.Link != p.Link && o.OutsideAnswers })
		if !p.OutsideAsked || p.OutsideAnswers || !other {
			continue
		}
		router := "its router answers"
		if !p.RouterAnswers {
			router = "its router does not answer either"
		}
		found := Finding{Problem: routing.Problem{
			Severity: routing.Error, Link: p.Link,
			Text: fmt.Sprintf("nothing outside answers by %s in %s, and something does by another link; %s", p.Link, p.Family, router),
			Fix:  "ask the provider, or look at the router, the modem and the contract",
		}, Evidence: []string{fmt.Sprintf("ping %s from %s: no answer", p.Outside, p.Link)}}
		if target := f.answersOutside(p); target != "" {
			// Either only the provider's own servers answer, or the host that was asked serves others alone.
			found.Severity = routing.Warning
			found.Text = fmt.Sprintf("%s does not answer by %s in %s, and something does by another link; the probes of failover are answered", p.Outside, p.Link, p.Family)
			found.Fix = "ask other hosts with --target, as some answer the customers of one provider alone; if none answers, ask the provider"
			found.Evidence = append(found.Evidence, fmt.Sprintf("%s answers by %s", target, p.Link))
		}
		out = append(out, found)
	}
	return out
}

// answersOutside is a target behind the router that answers the probes of failover, empty if there is none.
func (f *facts) answersOutside(p Probe) string {
	if f.status.Failover == nil {
		return ""
	}
	for _, h := range f.status.Failover.Uplinks {
		if escape.Original(h.Interface) != p.Link || h.Family != p.Family.String() || h.State != status.HealthUp || h.NotWatched != "" || h.RouterOnly {
			continue
		}
		for _, t := range h.Targets {
			if t.Answered && !t.Silent && !t.OnLink {
				return t.Target
			}
		}
	}
	return ""
}

// checkMTU finds a link on which small packets are answered and large ones are not: somebody on the
// way has a smaller MTU, and the messages that say so are lost (RFC 2923, section 2.1).
func checkMTU(f *facts) []Finding {
	var out []Finding
	for _, p := range f.Probes {
		if p.PathMTU == 0 || p.PathMTU >= p.MTU {
			continue
		}
		command := shell.Command("ip", "link", "set", "dev", p.Link, "mtu", strconv.Itoa(p.PathMTU))
		out = append(out, Finding{Problem: routing.Problem{
			Severity: routing.Warning, Link: p.Link,
			Text: fmt.Sprintf("packets of more than %d bytes vanish behind %s in %s, and nothing says so: connections hang when they carry much", p.PathMTU, p.Link, p.Family),
			Fix:  "lower the MTU; to keep it, set it in the profile of the link, too", Commands: routing.CommandsOf(command),
		}, Evidence: []string{fmt.Sprintf("ping -M do to %s: %d bytes are answered, %d are not", p.Outside, p.PathMTU, p.MTU)}})
	}
	return out
}

// checkConflicts finds addresses that another host answers for (RFC 5227).
func checkConflicts(f *facts) []Finding {
	var out []Finding
	for _, p := range f.Probes {
		for _, c := range p.Conflicts {
			out = append(out, Finding{Problem: routing.Problem{
				Severity: routing.Error, Link: p.Link, Object: c.Address.String(),
				Text: fmt.Sprintf("address %s is used by another host, too: %s answers for it on %s", c.Address, c.Hardware, p.Link),
				Fix:  "give one of the two another address",
			}, Evidence: []string{fmt.Sprintf("ARP: %s is at %s", c.Address, c.Hardware)}})
		}
	}
	return out
}
