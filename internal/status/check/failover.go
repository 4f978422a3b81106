package check

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multihomed/internal/health"
	"multihomed/internal/status"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// Codes of problems of failover.
const (
	// UplinkDead says that an uplink does not work. The daemon logs each verdict itself.
	UplinkDead routing.Code = "uplink-dead"
	// AllDead says that no uplink works.
	AllDead routing.Code = "all-uplinks-dead"
	// NeverAnswered says that unbound traffic uses an uplink that nobody can tell dead from one
	// whose provider filters all questions.
	NeverAnswered routing.Code = "never-answered"
	// NotWatched says that uplinks are judged by their carrier alone.
	NotWatched routing.Code = "not-watched"
	// FailoverBlocked says that failover has no place among the rules of others.
	FailoverBlocked routing.Code = "failover-blocked"
	// DeadServers says that resolv.conf names only servers of dead links.
	DeadServers routing.Code = "dns-of-dead-links"
)

// checkUplinks names the uplinks that do not work, with the evidence. One that is dead in both
// families for reasons of one kind is named once.
func checkUplinks(v *view.View, _ files) []routing.Problem {
	var all [][]view.Uplink
	for _, f := range routing.Families() {
		if !v.Failover.Watches(f) {
			continue
		}
		for _, u := range v.Failover.In(f) {
			if !u.State.IsDead() {
				continue
			}
			alike := func(o []view.Uplink) bool {
				return o[0].Index == u.Index && o[0].State == u.State && o[0].Evidence.Kind == u.Evidence.Kind && o[0].Tested.IsZero() == u.Tested.IsZero() &&
					isStopgap(v, o[0]) == isStopgap(v, u) && isAwaited(v, o[0]) == isAwaited(v, u)
			}
			if at := slices.IndexFunc(all, alike); at >= 0 {
				all[at] = append(all[at], u)
			} else {
				all = append(all, []view.Uplink{u})
			}
		}
	}
	out := make([]routing.Problem, 0, len(all))
	for _, same := range all {
		out = append(out, deadUplink(v, same))
	}
	return out
}

// deadUplink is about one uplink in the families in which it is dead; numbers are of the first.
func deadUplink(v *view.View, same []view.Uplink) routing.Problem {
	u := same[0]
	families, objects := make([]string, 0, len(same)), make([]string, 0, len(same))
	for _, o := range same {
		families, objects = append(families, o.Family.Name()), append(objects, o.Family.String())
	}
	p := routing.Problem{Severity: routing.Warning, Link: u.Name, Object: strings.Join(objects, ", ")}
	family := and(families)
	switch {
	case !u.Tested.IsZero():
		p.Severity = routing.Notice
		p.Text = fmt.Sprintf("%s counts as dead for %s until %s, because an administrator tests failover", u.Name, family, u.Tested.Local().Format(time.TimeOnly))
		p.Fix = "multihomectl failover reset " + u.Name
		return p
	case u.State == health.Recovering:
		p.Severity = routing.Notice
		p.Text, p.Fix = "%s works again for %s, and counts as up when it has worked for a while", "to count it as up now"
		switch {
		case isStopgap(v, u):
			p.Text = "%s works again for %s, and unbound traffic uses it already, because no other uplink works; it counts as up when it has worked for a while"
		case isAwaited(v, u):
			p.Text, p.Fix = "%s works again for %s, and traffic returns to it when it has worked for a while", "to use it now"
		}
		p.Text = fmt.Sprintf(p.Text, u.Name, family)
		if !u.Recovered.IsZero() {
			p.Text += ": at " + u.Recovered.Local().Format(time.TimeOnly) + " if nothing is lost"
		}
		p.Fix += ": multihomectl failover reset " + u.Name
		return p
	}
	p.Text = fmt.Sprintf("%s does not work for %s", u.Name, family)
	if !u.Since.IsZero() {
		p.Text += " since " + u.Since.Local().Format(time.DateTime)
	}
	if why := u.Sentence(); why != "" {
		p.Text += ": " + why
	}
	p.Text += "; " + consequences(v, same)
	p.Fix = revive(v, u)
	return p
}

// consequences say what unbound traffic does without the uplink; where families differ, of
// which.
func consequences(v *view.View, same []view.Uplink) string {
	sentences := func(traffic func(view.Uplink) string) []string {
		var out []string
		for _, u := range same {
			if c := consequence(v, u, traffic(u)); !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
		return out
	}
	all := sentences(func(view.Uplink) string { return "unbound traffic" })
	if len(all) > 1 {
		all = sentences(func(u view.Uplink) string { return "unbound " + u.Family.Name() + " traffic" })
	}
	return strings.Join(all, "; ")
}

func consequence(v *view.View, u view.Uplink, traffic string) string {
	way, leaves := v.Unbound[u.Family]
	c, known := v.Course(u.Family)
	switch {
	case !leaves:
		return traffic + " does not leave"
	case known && c.Why == routing.CourseNoneLives && way.Interface != u.Name:
		return "nor does " + way.Interface + ", which " + traffic + " uses"
	case way.Interface != u.Name:
		return traffic + " leaves by " + way.Interface
	case known && c.Why == routing.CourseNoneLives:
		return traffic + " stays on it, because no other uplink works"
	case known && c.Why == routing.CourseThrown:
		return traffic + " stays on it, because main has more throw routes than the table of failover can follow"
	default:
		return traffic + " is about to leave it"
	}
}

// isStopgap reports whether an uplink that recovers carries unbound traffic, because no other one
// works.
func isStopgap(v *view.View, u view.Uplink) bool {
	c, known := v.Course(u.Family)
	return known && c.Why != routing.CourseNoneLives && c.Why != routing.CourseThrown && u.State == health.Recovering && v.Unbound[u.Family].Interface == u.Name
}

// isAwaited reports whether unbound traffic returns to an uplink that recovers: main sends it there, or uplinks share
// it. NetworkManager may have given the uplink a worse metric than before.
func isAwaited(v *view.View, u view.Uplink) bool {
	c, known := v.Course(u.Family)
	return !known || c.Why == routing.CourseShared || slices.ContainsFunc(c.Main.Ways(), func(w routing.Route) bool { return w.Device == u.Index })
}

// revive says how to find out what is wrong with an uplink.
func revive(v *view.View, u view.Uplink) string {
	if u.Evidence.Kind == health.ByCarrier {
		return "check the cable, the radio or the modem of " + u.Name
	}
	if gateway := gatewayOf(v, u); gateway.IsValid() {
		return fmt.Sprintf("see whether its router answers: ping -c 3 -I %s %v", u.Name, gateway)
	}
	return "ask the provider of " + u.Name + "; if it works, set [failover] targets to hosts that answer there"
}

// gatewayOf is the next hop of the uplink's default route.
func gatewayOf(v *view.View, u view.Uplink) netip.Addr {
	plan, known := v.Planner.Link(u.Index)
	if !known {
		return netip.Addr{}
	}
	for _, r := range plan.Routes {
		if r.Route.Family == u.Family && r.Route.IsDefault() && r.Route.Gateway.IsValid() {
			return r.Route.Gateway
		}
	}
	return netip.Addr{}
}

// checkAllDead says that failover has nowhere to go.
func checkAllDead(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		all := v.Failover.In(f)
		if !v.Failover.Watches(f) || slices.ContainsFunc(all, func(u view.Uplink) bool { return !u.State.IsDead() || isStopgap(v, u) }) {
			continue
		}
		names := make([]string, 0, len(all))
		for _, u := range all {
			names = append(names, u.Name)
		}
		slices.SortFunc(names, status.CompareNames)
		out = append(out, routing.Problem{
			Severity: routing.Warning, Object: f.String(),
			Text: fmt.Sprintf("no uplink works for %s: %s; unbound traffic follows main until the first of them works", f.Name(), and(names)),
			Fix:  "look at the problem of each link",
		})
	}
	return out
}

// checkWatched says that nobody asks whether uplinks work. One that has no target to ask is no
// problem: its line says so.
func checkWatched(v *view.View, _ files) []routing.Problem {
	if v.Failover == nil || !v.Failover.Enabled {
		return nil
	}
	prober := v.Failover.Prober
	if prober == "" {
		return checkUnsent(v)
	}
	if !v.Failover.Watches(routing.IPv4) && !v.Failover.Watches(routing.IPv6) {
		return nil
	}
	return []routing.Problem{{
		Severity: routing.Notice, Object: "multihomed-prober.service",
		Text: "uplinks are judged by their carrier alone: " + prober,
		Fix:  v.Failover.ProberFix,
	}}
}

// checkUnsent says which uplinks cannot be asked, and what forbids it.
func checkUnsent(v *view.View) []routing.Problem {
	var out []routing.Problem
	for _, u := range v.Failover.Uplinks {
		if u.Unsent == "" || !v.Failover.Watches(u.Family) {
			continue
		}
		p := routing.ProblemOf(NotWatched, routing.Warning, u.Name, errors.New("judged by its carrier alone: "+u.Unsent))
		if !slices.ContainsFunc(out, func(o routing.Problem) bool { return o.Link == p.Link && o.Text == p.Text }) {
			out = append(out, p)
		}
	}
	return out
}

// checkNeverAnswered finds that unbound traffic uses an uplink on which nothing has ever answered,
// while another one works: it may be dead, and nobody would notice.
func checkNeverAnswered(v *view.View, _ files) []routing.Problem {
	var all []view.Uplink
	works := map[routing.Family]string{}
	for _, f := range routing.Families() {
		c, known := v.Course(f)
		if !known || !v.Failover.Watches(f) {
			continue
		}
		for _, u := range v.Failover.In(f) {
			switch {
			case works[f] == "" && (u.State == health.Up || u.State == health.Suspect):
				works[f] = u.Name
			case isMute(u) && v.Unbound[f].Interface == u.Name && slices.Contains(c.Devices(), u.Index):
				all = append(all, u)
			}
		}
	}
	var out []routing.Problem
	for len(all) > 0 {
		u := all[0]
		var families, objects []string
		other := ""
		all = slices.DeleteFunc(all, func(o view.Uplink) bool {
			if o.Index == u.Index && works[o.Family] != "" {
				families, objects = append(families, o.Family.Name()), append(objects, o.Family.String())
				other = works[o.Family]
			}
			return o.Index == u.Index
		})
		if len(families) == 0 {
			continue
		}
		out = append(out, routing.Problem{
			Severity: routing.Warning, Link: u.Name, Object: strings.Join(objects, ", "),
			Text: fmt.Sprintf("%s carries unbound %s traffic, and nothing has ever answered there: nobody would notice if it did not work; %s works", u.Name, and(families), other),
			Fix:  fmt.Sprintf("to use %s for 30 seconds: multihomectl failover test %s; if %s works, set [failover] targets to hosts that answer there", other, u.Name, u.Name),
		})
	}
	return out
}

// isMute reports whether an uplink was asked, and nothing has ever answered.
func isMute(u view.Uplink) bool {
	return u.State == health.Unprobed && u.Unwatched == "" && u.Unsent == "" && len(u.Targets) > 0 &&
		!slices.ContainsFunc(u.Targets, func(t health.TargetReport) bool { return t.Answered })
}

// checkBlocked says that the rules of others leave no place for those of failover.
func checkBlocked(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for _, f := range routing.Families() {
		if c, known := v.Course(f); !known || c.Why != routing.CourseBlocked || !v.Failover.Watches(f) {
			continue
		}
		if !routing.MainIsRead(v.Planner.Foreign(f)) {
			continue // Another problem says so: there is no main to be in front of.
		}
		out = append(out, routing.Problem{
			Severity: routing.Notice, Object: f.String(),
			Text: fmt.Sprintf("unbound %s traffic does not leave an uplink that does not work: rules of other programs leave no place in front of main", f.Name()),
			Fix:  fmt.Sprintf("give the rules of others at %d another priority: ip %s rule", routing.PriorityAgain, f.Flag()),
		})
	}
	return out
}

// checkResolvConf finds that only servers of dead links resolve names: a query then waits for
// 5 seconds and more (resolv.conf(5), timeout).
func checkResolvConf(v *view.View, f files) []routing.Problem {
	if v.Failover == nil || !v.Failover.Enabled {
		return nil
	}
	text, _ := f.text("etc/resolv.conf")
	var words, links []string
	for _, a := range nameservers(text) {
		dead := deadLinksOf(v, a)
		if len(dead) == 0 {
			return nil
		}
		words = append(words, a.String())
		for _, name := range dead {
			if !slices.Contains(links, name) {
				links = append(links, name)
			}
		}
	}
	if len(words) == 0 {
		return nil
	}
	do := "does"
	if len(links) > 1 {
		do = "do"
	}
	return []routing.Problem{{
		Severity: routing.Warning, Object: "/etc/resolv.conf",
		Text: fmt.Sprintf("only servers of %s resolve names (%s), which %s not work: a query may wait for many seconds", and(links), and(words), do),
		Fix:  "add a server of another link, or let dnsmasq leave out servers of dead links: servers_file in multihomed.toml(5)",
	}}
}

// deadLinksOf are the dead uplinks that name a DNS server, or have it in their network; none if
// a link that works has it too, or if nobody does.
func deadLinksOf(v *view.View, a netip.Addr) []string {
	f := routing.FamilyOf(a)
	if !v.Failover.Watches(f) {
		return nil
	}
	var dead []string
	for _, u := range v.Failover.In(f) {
		if !slices.Contains(u.Servers, a.WithZone("")) && a.Zone() != u.Name && !isOnLink(v, u.Index, a) {
			continue
		}
		if !u.State.IsDead() || isStopgap(v, u) {
			return nil
		}
		dead = append(dead, u.Name)
	}
	return dead
}

func isOnLink(v *view.View, index int, a netip.Addr) bool {
	plan, known := v.Planner.Link(index)
	return known && slices.ContainsFunc(plan.Keys, func(k routing.Key) bool { return !k.OfHosts() && k.Prefix.Contains(a) })
}

// nameservers are those that a resolver uses: the first three (MAXNS in resolv.h).
func nameservers(text string) []netip.Addr {
	var out []netip.Addr
	const most = 3
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && len(out) < most {
			out = append(out, a)
		}
	}
	return out
}

// and joins words as a sentence does.
func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
